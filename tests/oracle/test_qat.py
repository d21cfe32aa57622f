"""What nibble.qat writes, read by Transformers through compressed-tensors: the logits are nibble's."""
import os
import warnings

import numpy as np
import pytest

MISSING = "the {} package is missing: ./dev oracle installs it"
torch = pytest.importorskip("torch", reason=MISSING.format("torch"))
transformers = pytest.importorskip("transformers", reason=MISSING.format("transformers"))
pytest.importorskip("compressed_tensors", reason=MISSING.format("compressed-tensors"))

from nibble import _checkpoint, qat  # noqa: E402

# Two fp32 computations of the same numbers in different orders, as in test_transformers.py
FP32_BOUND = 2e-3


@pytest.mark.parametrize("more", [("--bits", "ternary"), ("--bits", "2"), ("--bits", "4", "--group-size", "32")], ids=" ".join)
def test_transformers_reads_what_qat_wrote(nibble, demo, demo_text, tmp_path, capsys, more):
    out = str(tmp_path / "out")
    assert qat.main([demo, "-o", out, "--text", demo_text, "--steps", "2", "--batch", "2", "--seq", "64", "--device", "cpu", *more]) == 0
    capsys.readouterr()
    with nibble.Model(out) as m:
        ids = m.tokenize("def push(self, item):\n    self.items.append(item)\n" * 4)
        ours = m.logits(ids)
    config = {}
    if more == ("--bits", "2"):  # asymmetric: see test_transformers.py for why such folders need these two
        widen(out)
        config["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
        model, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True, **config)
    assert not any(v for k, v in info.items()), info
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0].float().numpy()
    assert np.abs(ours - theirs).max() < FP32_BOUND


def widen(folder):
    path = os.path.join(folder, "model.safetensors")
    tensors = {n: ("F32", _checkpoint.to_f32(t)) if t[0] == "BF16" else (t[0], t[1].copy())
               for n, t in _checkpoint.read_safetensors(path).items()}
    _checkpoint.write_safetensors(path + ".wide", tensors)
    os.replace(path + ".wide", path)
