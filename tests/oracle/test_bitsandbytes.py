"""NF4 and INT8 of bitsandbytes against the package, in both directions.  Needs the packages and a build; skips without."""

import json
import os
import pathlib
import subprocess

import pytest

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("safetensors")

from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD_DIR", ROOT / "build"))


def run(test, **env):
    program = BUILD / "ct_oracle_test"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    r = subprocess.run(
        [program, f"--gtest_filter=Oracle.{test}"],
        env={**os.environ, **{k: str(v) for k, v in env.items()}},
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr
    assert "1 test from 1 test suite ran" in r.stdout and "SKIPPED" not in r.stdout, r.stdout


def test_the_package_reads_what_nibble_writes(tmp_path):
    run("writes_cases", NIBBLE_ORACLE_OUT=tmp_path)
    tensors = load_file(tmp_path / "nf4" / "model.safetensors")
    expected = load_file(tmp_path / "nf4" / "expected" / "model.safetensors")
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())["quantization_config"]
    checked = 0
    for name, want in expected.items():
        if name in config["llm_int8_skip_modules"]:
            assert torch.equal(tensors[name + ".weight"], want)
            continue
        prefix = name + ".weight"
        parts = {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        assert (state.quant_type, state.blocksize, tuple(state.shape)) == ("nf4", 64, tuple(want.shape))
        state.dtype = torch.float32  # dequantize in fp32, as nibble does
        assert torch.equal(dequantize_4bit(tensors[prefix], state), want), name
        checked += 1
    assert checked == 2


def save(folder, config, tensors, expected):
    (folder / "expected").mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, folder / "expected" / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"quantization_config": {"quant_method": "bitsandbytes", **config}})
    )


def test_nibble_reads_what_the_package_writes(tmp_path):
    torch.manual_seed(3)
    for nested in (False, True):
        tensors, expected = {}, {}
        for i, (n, k) in enumerate([(5, 64), (6, 96), (64, 1024), (3, 192)]):
            name, w = f"layers.{i}.proj", torch.randn(n, k)
            packed, state = quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type="nf4")
            tensors[name + ".weight"] = packed
            for key, value in state.as_dict(packed=True).items():
                tensors[f"{name}.weight.{key}"] = value
            # Blocks of (6, 96) run over the ends of rows, which the package's own CPU kernel gets wrong when it dequantizes.
            state.shape = torch.Size((n * k // 64, 64))
            expected[name] = dequantize_4bit(packed, state).reshape(n, k)
        save(tmp_path / f"nf4-{nested}", {"load_in_4bit": True}, tensors, expected)

    w = torch.randn(9, 33)
    w[4] = 0
    codes, scb, _ = bnb.functional.int8_vectorwise_quant(w.half())
    save(
        tmp_path / "int8",
        {"load_in_8bit": True},
        {"int8.weight": codes, "int8.SCB": scb, "int8.weight_format": torch.tensor(0, dtype=torch.uint8)},
        {"int8": codes.float() * scb.float()[:, None] / 127},
    )
    run("reads_cases", NIBBLE_ORACLE_IN=tmp_path)
