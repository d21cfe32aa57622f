"""safetensors and compressed-tensors against the packages that define them, in both directions.

The C++ test programs write folders for the packages to read (Oracle.writes_*) and read folders that the packages wrote
(Oracle.reads_*); all values are compared bit for bit.  Needs the packages and a build; skips without.
"""

import json
import os
import pathlib
import subprocess

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
pytest.importorskip("compressed_tensors")
pytest.importorskip("transformers")

from compressed_tensors.compressors import BaseCompressor, ModelCompressor  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.utils.quantization_config import CompressedTensorsConfig  # noqa: E402

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


def load_folder(folder):
    """All tensors of model.safetensors, or of the shards that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    listed = json.loads(index.read_text())
    tensors = {}
    for shard in sorted(set(listed["weight_map"].values())):
        part = load_file(folder / shard)
        assert all(listed["weight_map"][name] == shard for name in part)
        tensors |= part
    assert set(tensors) == set(listed["weight_map"])
    assert listed["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    return tensors


class Stack(torch.nn.Module):
    """layers.<i>.proj: Linear of shape shapes[i]."""

    def __init__(self, shapes, dtype):
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for n, k in shapes:
            block = torch.nn.Module()
            block.proj = torch.nn.Linear(k, n, bias=False, dtype=dtype)
            self.layers.append(block)


# ---- nibble writes, the packages read ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    run("writes_cases", NIBBLE_ORACLE_OUT=folder)
    return folder


@pytest.mark.parametrize(
    "case, dtype", [("mixed", torch.float32), ("packed", torch.bfloat16), ("plain", torch.float16)]
)
def test_the_reference_decompresses_what_nibble_writes(written, case, dtype):
    folder = written / case
    config = CompressedTensorsConfig.from_dict(json.loads((folder / "config.json").read_text()))
    expected = load_file(folder / "expected" / "model.safetensors")
    names = sorted(expected, key=lambda n: int(n.split(".")[1]))

    # what Transformers does to load a compressed folder, with names and shapes checked strictly
    model = Stack([expected[n].shape for n in names], dtype)
    compressor = ModelCompressor.from_compression_config(config)
    apply_quantization_config(model, compressor.quantization_config)
    compressor.compress_model(model)
    tensors = load_folder(folder)
    have = model.state_dict()
    assert set(have) == set(tensors)
    for name, t in tensors.items():
        assert have[name].shape == t.shape, name
        assert have[name].dtype == t.dtype or name == names[-1] + ".weight", name  # the dense one is always F32
    model.load_state_dict(tensors, strict=True)

    for name in names:
        module = model.get_submodule(name)
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            assert name == names[-1]
            assert torch.equal(module.weight.float(), expected[name])
            continue
        kind = BaseCompressor.get_value_from_registry(scheme.format.value)
        state = dict(module.state_dict())
        state["weight_scale"] = state["weight_scale"].float()  # dequantize in fp32, as nibble does
        assert torch.equal(kind.decompress(state, scheme)["weight"], expected[name]), (name, scheme)


def test_written_files_are_those_of_the_reference_writer(written, tmp_path):
    for file in sorted(written.glob("*/*.safetensors")):
        again = tmp_path / "again.safetensors"
        save_file(load_file(file), again, metadata={"format": "pt"})
        assert again.read_bytes() == file.read_bytes(), file
        with safetensors.safe_open(file, framework="pt") as f:
            assert f.metadata() == {"format": "pt"}


# ---- the packages write, nibble reads ----------------------------------------------------------------------------------


def schemes(bits, symmetric, act):
    """One config group for each strategy; the first targets the class, the others a pattern."""
    inputs = {
        "none": None,
        "token": {"num_bits": 8, "strategy": "token", "dynamic": True},
        "static": {"num_bits": 8, "strategy": "tensor"},
        "static-asym": {"num_bits": 8, "strategy": "tensor", "symmetric": False},
    }[act]
    strategies = [{"strategy": "channel"}, {"strategy": "tensor"}] + [
        {"strategy": "group", "group_size": g} for g in (32, 64, 128)
    ]
    return {
        f"group_{i}": {
            "targets": ["Linear"] if i == 0 else [f"re:layers\\.{i}\\."],
            "weights": {"num_bits": bits, "symmetric": symmetric, **s},
            "input_activations": inputs,
        }
        for i, s in enumerate(strategies)
    }


def calibrate(module):
    """Scales and zero points from the extremes of the weight, by the reference's own formula."""
    args, scheme = module.quantization_scheme.weights, module.quantization_scheme
    w = module.weight.data
    if args.strategy == "tensor":
        lo, hi = w.min().reshape(1), w.max().reshape(1)
    else:
        g = w.reshape(w.shape[0], -1, args.group_size or w.shape[1])
        lo, hi = g.amin(-1), g.amax(-1)
    scale, zero = calculate_qparams(lo, hi, args)
    module.weight_scale.data = scale.to(w.dtype)
    module.weight_zero_point.data = zero.to(torch.int8)
    if scheme.input_activations is not None and not scheme.input_activations.dynamic:
        module.input_scale.data.fill_(0.0372)
        module.input_zero_point.data.fill_(0 if scheme.input_activations.symmetric else -57)


def write_reference(folder, groups, dtype):
    torch.manual_seed(len(str(folder)))
    model = Stack([(10, 37), (1, 50), (9, 96), (17, 128), (11, 384), (3, 5)], dtype)
    config = QuantizationConfig.model_validate(
        {"config_groups": groups, "ignore": ["layers.5.proj"], "quantization_status": "initialized"}
    )
    apply_quantization_config(model, config)
    quantized = [m for m in model.modules() if hasattr(m, "quantization_scheme")]
    for m in quantized:
        calibrate(m)
        m.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    compressor.update_config(folder)

    expected = {}
    for i in range(6):
        name = f"layers.{i}.proj"
        module = model.get_submodule(name)
        if i == 5:
            expected[name] = module.weight.data.float()
            continue
        scheme = module.quantization_scheme
        state = dict(module.state_dict())
        state["weight_scale"] = state["weight_scale"].float()
        kind = BaseCompressor.get_value_from_registry(scheme.format.value)
        expected[name] = kind.decompress(state, scheme)["weight"].contiguous()
        if "input_scale" in state:
            zero = state.get("input_zero_point", torch.zeros(1))
            expected[name + "#input"] = torch.cat([state["input_scale"].float(), zero.float()])
    (folder / "expected").mkdir()
    save_file(expected, folder / "expected" / "model.safetensors")


def test_nibble_reads_what_the_reference_writes(tmp_path):
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    count = 0
    for bits in (4, 8):
        for symmetric in (True, False):
            for act in ("none", "token", "static", "static-asym"):
                folder = tmp_path / f"w{bits}-{'sym' if symmetric else 'asym'}-{act}"
                write_reference(folder, schemes(bits, symmetric, act), dtypes[count % 3])
                count += 1
    run("reads_cases", NIBBLE_ORACLE_IN=tmp_path)
