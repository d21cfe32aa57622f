"""The random folders of tests/python/test_architectures.py, loaded by Transformers and by nibble."""
import os
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: ./dev oracle brings it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: ./dev oracle brings it")

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "python"))
from test_architectures import VARIANTS, make_folder  # noqa: E402

import nibble  # noqa: E402


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name, tmp_path):
    folder = str(tmp_path / name)
    c, _ = make_folder(folder, name)
    ids = [int(i) for i in np.random.default_rng(1).integers(0, c["vocab_size"], 200)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    with nibble.Model(folder) as m:
        got = m.logits(ids)
    assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()  # both round in fp32
