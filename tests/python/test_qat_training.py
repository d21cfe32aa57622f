"""nibble.qat in PyTorch: bits and gradients of fake quantization, and whole runs whose folders the engine loads.

Collected only where torch is installed: see conftest.py.
"""
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from nibble import _checkpoint, _fakequant, _grid, _llama, qat
from nibble._grid import Scheme

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCHEMES = {"ternary": Scheme(2, 0, True, True), "ternary-g16": Scheme(2, 16, True, True), "2-g16-asym": Scheme(2, 16, False),
           "4-g16": Scheme(4, 16), "8-row": Scheme(8), "3-row-asym": Scheme(3, 0, False)}


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


def layer(scheme, dtype="BF16", start=None, n=24, k=48, seed=1):
    """A layer with scales and offsets as training leaves them: no ranges of the weights, and between stored numbers."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_t(4, (n, k)) * 0.1).astype(np.float32)
    w[0] = 0
    m = _fakequant.QuantLinear(w, None, scheme, dtype, start or ("twn" if scheme.ternary else "rtn"))
    with torch.no_grad():
        m.scale.mul_(torch.from_numpy(rng.uniform(0.5, 1.4, m.scale.shape).astype("f4")))
        m.scale[1] = 3e-6  # where F16 scales are rounded up
        if m.offset is not None:
            m.offset.mul_(torch.from_numpy(rng.uniform(0.6, 1.5, m.scale.shape).astype("f4")))
    return m


# ---- one layer -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_is_trained_is_what_the_codes_mean_bit_for_bit(scheme, dtype):
    m = layer(scheme, dtype)
    q, scale, zero = m.codes()
    assert np.array_equal(_grid.stored_scale(m.scale.detach().numpy(), dtype), scale)
    assert np.array_equal(_grid.stored_scale(scale, dtype), scale)  # the file changes nothing
    assert (zero is None) == scheme.symmetric
    want = _grid.values(q, scale, zero, scheme)
    got = m.quantized().detach().numpy()
    assert np.array_equal(got, want)
    assert q.min() == scheme.qmin and q.max() == scheme.qmax
    x = torch.randn(5, 48)
    assert torch.equal(m(x), torch.nn.functional.linear(x, torch.from_numpy(want)))


def written_out(w, s, offset, grad, scheme):
    """d/dw, d/ds, d/doffset of one group by the table in LSQ and LSQ+, one weight after the other in double."""
    dw, ds, do = [], 0.0, 0.0
    z = 0 if offset is None else min(max(round(-offset / s), scheme.qmin), scheme.qmax)
    a, b = scheme.qmin - z, scheme.qmax - z
    for x, g in zip(w, grad):
        v = x / s
        if v <= a or v >= b:
            dw.append(g if scheme.ternary else 0.0)
            ds += g * (a if v <= a else b)
            do += g
        else:
            dw.append(g)
            ds += g * (round(v) - v)
    part = 1 / math.sqrt(len(w) * scheme.qmax)
    return dw, ds * part, do * part


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_gradients_are_those_of_the_papers(scheme):
    m = layer(scheme, "F32")
    grad = torch.randn(24, 48, generator=torch.Generator().manual_seed(2))
    (m.quantized() * grad).sum().backward()
    w, g = (scheme.grouped(t.detach().double().numpy()) for t in (m.weight, grad))
    scales, offsets = (None if t is None else t.detach().numpy() for t in (m.scale, m.offset))
    for n, j in np.ndindex(scales.shape):
        offset = None if offsets is None else float(offsets[n, j])
        dw, ds, do = written_out(w[n, j], float(scales[n, j]), offset, g[n, j], scheme)
        assert np.allclose(scheme.grouped(m.weight.grad.numpy())[n, j], dw, atol=1e-6)
        # v is rounded to fp32: of magnitude 1e5 it is wrong by 1e-2, but then it is outside
        assert math.isclose(float(m.scale.grad[n, j]), ds, rel_tol=1e-4, abs_tol=1e-4)
        if offset is not None:
            assert math.isclose(float(m.offset.grad[n, j]), do, rel_tol=1e-4, abs_tol=1e-4)


def test_scales_stay_positive():
    m = layer(SCHEMES["4-g16"], "F16")
    with torch.no_grad():
        m.scale.fill_(-1)
    m.keep_valid()
    q, scale, _ = m.codes()
    assert (scale > 0).all() and np.isfinite(m.quantized().detach().numpy()).all()


# ---- whole runs ------------------------------------------------------------------------------------------------------
@pytest.fixture
def text(tmp_path, demo_text):
    path = tmp_path / "text.txt"
    with open(demo_text, "rb") as f:
        path.write_bytes(f.read(60000).decode("utf-8", "ignore").encode())
    return str(path)


def arguments(demo, out, text, *more):
    return [demo, "-o", str(out), "--text", text, "--steps", "3", "--batch", "2", "--seq", "64", "--threads", "2", "--json",
            "--device", "cpu", *more]


def run(capsys, argv):
    assert qat.main([str(a) for a in argv]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def torch_logits(folder, ids):
    """The folder read back and multiplied in PyTorch: dense tensors and what the codes mean."""
    config = _checkpoint.read_json(os.path.join(folder, "config.json"))
    tensors = _checkpoint.read_weights(folder)
    made = config.pop("quantization_config", None)
    if made:
        args = made["config_groups"]["group_0"]["weights"]
        for name in [n for n in tensors if n.endswith(".weight_packed")]:
            module = name[:-len(".weight_packed")]
            n, k = tensors.pop(f"{module}.weight_shape")[1].tolist()
            scheme = Scheme(args["num_bits"], args["group_size"] or 0, args["symmetric"])
            scale = _checkpoint.to_f32(tensors.pop(f"{module}.weight_scale"))
            q, zero = _grid.unpack_codes(tensors.pop(name)[1], k, scheme.bits), None
            if not scheme.symmetric:
                words = tensors.pop(f"{module}.weight_zero_point")[1]
                zero = _grid.unpack_codes(np.ascontiguousarray(words.T), n, scheme.bits).T.astype(np.int32)
            tensors[f"{module}.weight"] = "F32", _grid.values(q, scale, zero, scheme)
    m = _llama.Llama(_llama.parse_config(config, folder), tensors)
    with torch.no_grad():
        return m(torch.tensor([ids]))[0].numpy()


# Two fp32 computations of the same numbers in different orders: 1e-4 of logits of magnitude 20, as in tests/oracle.
FP32_BOUND = 2e-3


def test_the_forward_pass_is_the_engines(nibble, demo, model):
    ids = model.tokenize("def add(a, b):\n    return a + b\n" * 10)
    assert np.abs(torch_logits(demo, ids) - model.logits(ids)).max() < FP32_BOUND


@pytest.mark.parametrize("more", [("--bits", "ternary"), ("--bits", "ternary", "--group-size", "64"), ("--bits", "2"),
                                  ("--bits", "4", "--group-size", "32", "--train-embeddings"), ("--bits", "3", "--no-symmetric"),
                                  ("--bits", "4", "--compute", "bf16")], ids=" ".join)
def test_the_engine_gives_the_logits_that_were_trained(nibble, demo, text, tmp_path, capsys, monkeypatch, more):
    students = []
    export = qat.export
    monkeypatch.setattr(qat, "export", lambda *a: (students.append(a[3]), export(*a)))
    out = tmp_path / "out"
    report = run(capsys, arguments(demo, out, text, *more))
    assert sorted(os.listdir(tmp_path)) == ["out", "text.txt"]
    with nibble.Model(str(out)) as m:
        ids = m.tokenize("class Stack:\n    def push(self, item):\n        self.items.append(item)\n")
        got = m.logits(ids)
    with torch.no_grad():
        trained = students[0](torch.tensor([ids]))[0].numpy()
    assert np.abs(got - trained).max() < FP32_BOUND
    assert np.abs(got - torch_logits(str(out), ids)).max() < FP32_BOUND
    with nibble.Model(demo) as m:
        assert np.abs(got - m.logits(ids)).max() > 0.1  # it is another model
    assert json.loads((out / "qat_report.json").read_text()) == report


def test_no_steps_from_whole_ranges_are_the_engines_own_rounding(nibble, demo, text, tmp_path, capsys):
    run(capsys, arguments(demo, tmp_path / "a", text, "--bits", "4", "--steps", "0", "--start", "rtn"))
    nibble.quantize(demo, str(tmp_path / "b"), recipe="w4a16-g128")
    a, b = (_checkpoint.read_weights(str(tmp_path / d)) for d in "ab")
    assert sorted(a) == sorted(b)
    assert all(a[n][0] == b[n][0] and a[n][1].tobytes() == b[n][1].tobytes() for n in a)
    assert _checkpoint.read_json(tmp_path / "a" / "config.json") == _checkpoint.read_json(tmp_path / "b" / "config.json")


def test_training_repairs_ternary_weights(nibble, demo, demo_text, tmp_path, capsys):
    report = run(capsys, arguments(demo, tmp_path / "out", demo_text, "--bits", "ternary", "--steps", "30", "--seq", "128"))
    damage = report["perplexity_start"] - report["perplexity_original"]
    assert damage > 0
    assert report["perplexity"] < report["perplexity_start"] - 0.5 * damage


def test_an_interrupted_run_continues_to_the_same_bytes(demo, text, tmp_path, capsys, monkeypatch):
    same = ("--bits", "2", "--steps", "6", "--checkpoint-every", "2", "--train-embeddings")
    run(capsys, arguments(demo, tmp_path / "whole", text, *same))
    train_step = qat.Trainer.train_step

    def interrupted(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return train_step(self)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(qat.Trainer, "train_step", interrupted)
        assert qat.main(arguments(demo, out, text, *same)) == 130
    assert "cut.qat-state holds what --resume continues" in capsys.readouterr().err
    assert not out.exists()
    assert qat.main(arguments(demo, out, text, *same)) == 1
    assert "an interrupted run; --resume continues it" in capsys.readouterr().err
    assert qat.main(arguments(demo, out, text, *same, "--resume", "--lr", "1e-2")) == 1
    assert "was made with lr 0.0005, and this run has 0.01" in capsys.readouterr().err
    run(capsys, arguments(demo, out, text, *same, "--resume"))
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["cut", "text.txt", "whole"]


def test_the_command_runs_as_a_module(demo, text, tmp_path):
    r = subprocess.run([sys.executable, "-m", "nibble.qat", *arguments(demo, tmp_path / "o", text, "--bits", "4")],
                       capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "python_stub")})
    assert r.returncode == 0, r.stderr
    assert json.loads(r.stdout)["method"] == "qat"
    assert "step 3/3" in r.stderr and "0:00 left" in r.stderr


# ---- bad input -------------------------------------------------------------------------------------------------------
def refused(capsys, argv, *words):
    try:
        status = qat.main([str(a) for a in argv])
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status != 0
    assert all(w in err for w in words), err
    assert "Traceback" not in err


def test_bad_arguments_are_refused_by_name(demo, text, tmp_path, capsys):
    out = tmp_path / "out"
    for more, words in [
        (("--bits", "5"), ["--bits"]),
        (("--bits", "4", "--group-size", "-1"), ["groups of -1"]),
        (("--bits", "4", "--group-size", "48"), ["q_proj", "groups of 48", "256 inputs"]),
        (("--bits", "ternary", "--no-symmetric"), ["ternary weights are symmetric"]),
        (("--bits", "4", "--start", "twn"), ["--start twn"]),
        (("--bits", "4", "--distill", "2"), ["--distill is 2.0, expected 0 to 1"]),
        (("--bits", "4", "--lr", "nan"), ["--lr is nan"]),
        (("--bits", "4", "--steps", "-1"), ["--steps is -1, expected at least 0"]),
        (("--bits", "4", "--seq", "5000"), ["--seq is 5000", "1024"]),
        (("--bits", "4", "--device", "tpu"), ["--device tpu"]),
        (("--bits", "4", "--resume"), ["nothing to resume"]),
        (("--bits", "4", "--resume", "--overwrite"), ["one of them"]),
        (("--bits", "4", "--text", "missing.txt"), ["missing.txt: No such file"]),
        (("--bits", "ternary", "--lr", "1e30", "--steps", "20"), ["--lr", "may help"]),
    ]:
        refused(capsys, arguments(demo, out, text, *more), *words)
        assert not out.exists()
    refused(capsys, arguments(demo, tmp_path / "no" / "out", text, "--bits", "4"), "no: is not a folder that can be written to")
    out.mkdir()
    refused(capsys, arguments(demo, out, text, "--bits", "4"), "exists; --overwrite")
    refused(capsys, arguments(demo, demo, text, "--bits", "4", "--overwrite"), "is the model itself")


def test_bad_texts_are_refused(demo, tmp_path, capsys):
    for data, words in [(b"", ["has 1 tokens", "expected at least"]), (b"short", ["expected at least"]),
                        (b"abc\xff", ["byte 3 is not UTF-8"])]:
        path = tmp_path / "t.txt"
        path.write_bytes(data)
        refused(capsys, arguments(demo, tmp_path / "out", str(path), "--bits", "4"), *words)
    path = tmp_path / "t.jsonl"
    for data in ("{}\n", "nonsense\n", '{"text": 5}\n', "[1]\n"):
        path.write_text(data)
        refused(capsys, arguments(demo, tmp_path / "out", str(path), "--bits", "4"), "t.jsonl", "\"text\"")
    with pytest.raises(_checkpoint.BadFile, match="one token repeated"):
        qat.Windows(np.full(1000, 7), 16, 2, 0)


def test_jsonl_is_its_texts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one\u2028line"}\r\n\n{"text": "zwei ä"}\n', encoding="utf-8")
    assert qat.read_text(str(path)).decode() == "one\u2028line\n\nzwei ä"


def test_bad_models_are_refused_by_tensor(demo, text, tmp_path, capsys):
    src = tmp_path / "src"
    shutil.copytree(demo, src)
    good = dict(_checkpoint.read_weights(str(src)))
    good = {n: (t, a.copy()) for n, (t, a) in good.items()}
    name = "model.layers.1.mlp.up_proj.weight"
    holed = good[name][1].copy()
    holed[3, 5] = 0x7FC0
    for change, words in [((name, None), [f"lacks {name}"]), ((name, ("BF16", good[name][1][:-1])), [name, "expected [512, 256]"]),
                          ((name, ("BF16", holed)), [name, "NaN"]), ((name, ("I32", np.zeros((512, 256), "<i4"))), ["I32"])]:
        tensors = {**good, change[0]: change[1]}
        _checkpoint.write_safetensors(str(src / "model.safetensors"), {n: t for n, t in tensors.items() if t})
        refused(capsys, arguments(src, tmp_path / "out", text, "--bits", "4"), *words)
    config = _checkpoint.read_json(src / "config.json")
    for key, value, words in [("architectures", ["GPT2LMHeadModel"], ["GPT2LMHeadModel"]), ("hidden_act", "gelu", ["gelu"]),
                              ("quantization_config", {}, ["quantized already"]), ("hidden_size", "x", ["hidden_size"]),
                              ("rope_scaling", {"rope_type": "yarn"}, ["yarn"]), ("torch_dtype", "int8", ["int8"])]:
        (src / "config.json").write_text(json.dumps({**config, key: value}))
        refused(capsys, arguments(src, tmp_path / "out", text, "--bits", "4"), "config.json", *words)
