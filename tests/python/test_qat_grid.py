"""The grids, the packing and the checkpoint of nibble.qat against the engine, and against arithmetic written here in double.

No torch: what needs it is in test_qat_training.py.
"""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from nibble import _checkpoint, _grid
from nibble._grid import Scheme

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SCHEMES = [Scheme(8), Scheme(4), Scheme(3), Scheme(2), Scheme(4, 16), Scheme(3, 16), Scheme(2, 16), Scheme(8, 16, False),
           Scheme(4, 16, False), Scheme(3, 16, False), Scheme(2, 16, False), Scheme(4, 0, False), Scheme(2, 0, False)]
HIDDEN, FFN, VOCAB = 48, 80, 3072  # as many as the demo model's tokenizer has
SHAPES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (16, HIDDEN), "self_attn.v_proj": (16, HIDDEN),
          "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN),
          "mlp.down_proj": (HIDDEN, FFN)}


def scheme_name(s):
    return f"{'ternary' if s.ternary else s.bits}-{s.group or 'row'}{'' if s.symmetric else '-asym'}"


def awkward(n, k, seed):
    """Weights of all sizes, with rows of zeros, of subnormals, of one sign, and with ties in the middle of two codes."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n, k)) * np.exp2(rng.integers(-9, 5, (n, 1)))
    w[0] = 0
    w[1] *= 1e-41
    w[2] = np.abs(w[2])
    w[3] = -np.abs(w[3])
    w[4] = 0
    w[4, k // 2] = -3
    w[5] = rng.integers(-15, 16, k) / 2
    w[6, ::3] = w[6].max()
    w[7] = 2.0**-12 * rng.standard_normal(k)
    w[8] = 1e-7 * rng.standard_normal(k)
    return w.astype(np.float32)


def llama_folder(path, dtype, weights, demo):
    """A Llama of one layer with these linear weights; with the demo model's tokenizer."""
    os.makedirs(path)
    rng = np.random.default_rng(1)
    tensors = {f"model.layers.0.{name}.weight": _checkpoint.from_f32(w, dtype) for name, w in weights.items()}
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        tensors[f"{name}.weight"] = _checkpoint.from_f32(np.ones(HIDDEN), dtype)
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = _checkpoint.from_f32(rng.standard_normal((VOCAB, HIDDEN)), dtype)
    _checkpoint.write_safetensors(os.path.join(path, "model.safetensors"), tensors)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCAB,
              "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1,
              "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "dtype": DTYPES[dtype],
              "tie_word_embeddings": False}
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f)
    with open(os.path.join(demo, "tokenizer.json")) as f, open(os.path.join(path, "tokenizer.json"), "w") as g:
        g.write(f.read())
    return tensors


def recipe(path, s):
    weights = {"bits": s.bits, "symmetric": s.symmetric, "strategy": "group" if s.group else "channel"}
    if s.group:
        weights["group_size"] = s.group
    path.write_text(json.dumps({"name": "t", "description": "t", "weights": weights, "activations": None}))
    return str(path)


# ---- against the engine ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=scheme_name)
def test_a_folder_rounded_here_is_the_engines_bit_for_bit(nibble, demo, tmp_path, scheme, dtype):
    src, dst = str(tmp_path / "src"), str(tmp_path / "dst")
    source = llama_folder(src, dtype, {n: awkward(*shape, i) for i, (n, shape) in enumerate(SHAPES.items())}, demo)
    nibble.quantize(src, dst, recipe=recipe(tmp_path / "r.json", scheme))
    theirs = _checkpoint.read_weights(dst)
    ours = dict(source)
    for name in SHAPES:
        module = f"model.layers.0.{name}"
        w = _checkpoint.to_f32(ours.pop(f"{module}.weight"))
        scale, zero = _grid.rtn(w, scheme, dtype)
        q = _grid.codes(w, scale, zero, scheme)
        ours.update(_checkpoint.packed_tensors(module, q, scale, zero, scheme, dtype))
    assert sorted(ours) == sorted(theirs)
    for name, (t, a) in ours.items():
        assert t == theirs[name][0] and a.shape == theirs[name][1].shape, name
        assert a.tobytes() == theirs[name][1].tobytes(), name
    written = _checkpoint.read_json(os.path.join(dst, "config.json"))["quantization_config"]
    assert _checkpoint.quantization_config(scheme, ["lm_head"]) == written


@pytest.mark.parametrize("scheme", [Scheme(2, 0, True, True), Scheme(2, 16, True, True), Scheme(4, 16), Scheme(2, 16, False)],
                         ids=scheme_name)
def test_the_engine_reads_what_was_meant(nibble, demo, tmp_path, scheme):
    """A packed folder and a dense one of the same values: the engine's logits differ by the order of its sums only."""
    rng = np.random.default_rng(3)
    packed, dense = {}, {}
    for name, (n, k) in SHAPES.items():
        q = rng.integers(scheme.qmin, scheme.qmax + 1, (n, k)).astype(np.int8)
        groups = k // (scheme.group or k)
        scale = _grid.stored_scale(rng.uniform(0.02, 0.1, (n, groups)).astype(np.float32), "BF16")
        zero = None if scheme.symmetric else rng.integers(scheme.qmin, scheme.qmax + 1, (n, groups)).astype(np.int32)
        dense[name] = _grid.values(q, scale, zero, scheme)
        packed.update(_checkpoint.packed_tensors(f"model.layers.0.{name}", q, scale, zero, scheme, "BF16"))
    src, out = str(tmp_path / "dense"), str(tmp_path / "packed")
    others = {n: t for n, t in llama_folder(src, "F32", dense, demo).items() if ".mlp." not in n and ".self_attn." not in n}
    config = {**_checkpoint.read_json(os.path.join(src, "config.json")), "dtype": "bfloat16",
              "quantization_config": _checkpoint.quantization_config(scheme, ["lm_head"])}
    _checkpoint.write_folder(src, out, config, {**others, **packed}, {"method": "test"})
    ids = [int(i) for i in rng.integers(0, VOCAB, 40)]
    with nibble.Model(src) as a, nibble.Model(out) as b:
        want, got = a.logits(ids), b.logits(ids)
    # Sums of up to 80 products in another order, through two blocks: some hundred roundings of 2^-24
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    assert np.abs(want).max() > 1


# ---- against formulas ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme(2, 16, True, True)], ids=scheme_name)
def test_codes_of_any_scale_are_the_nearest_within_the_limits(scheme):
    """Learned scales are no ranges: weights lie far beyond the last codes.  Nearest in double, ties to even."""
    rng = np.random.default_rng(5)
    w = awkward(20, 48, 6)
    groups = 48 // (scheme.group or 48)
    scale = _grid.stored_scale(np.exp2(rng.uniform(-12, 3, (20, groups))).astype(np.float32), "BF16")
    zero = None if scheme.symmetric else rng.integers(scheme.qmin, scheme.qmax + 1, (20, groups)).astype(np.int32)
    q = _grid.codes(w, scale, zero, scheme)
    assert q.min() >= scheme.qmin and q.max() <= scheme.qmax
    for n, k in np.ndindex(w.shape):
        s, z = float(scale[n, k * groups // 48]), 0 if zero is None else int(zero[n, k * groups // 48])
        # a quotient of floats is nearer to a half than a double can tell only where it is the half
        want = min(max(round(float(np.float32(float(w[n, k]) / s))) + z, scheme.qmin), scheme.qmax)
        assert q[n, k] == want, (n, k)
    assert np.array_equal(_grid.values(q, scale, zero, scheme)[3],
                          np.float32((q[3].astype(float) - (0 if zero is None else np.repeat(zero[3], 48 // groups)))
                                     * np.repeat(scale[3], 48 // groups)))


def best_ternary(w):
    """The least squared error of a row among all ternary ones: of the k largest by magnitude, for the best k."""
    a = np.sort(np.abs(w.astype(float)))[::-1]
    return np.square(a).sum() - (np.square(np.cumsum(a)) / np.arange(1, a.size + 1)).max()


@pytest.mark.parametrize("group", [0, 16])
def test_twn_is_the_best_ternary_approximation_and_no_worse_than_the_papers(group):
    rng = np.random.default_rng(8)
    w = rng.standard_t(5, (200, 64)).astype(np.float32)
    scheme = Scheme(2, group, True, True)
    s, zero = _grid.twn(w, scheme, "F32")  # unrounded, as the optimum is
    assert zero is None
    error = np.square(scheme.grouped(_grid.values(_grid.codes(w, s, zero, scheme), s, zero, scheme) - w)).sum(-1)
    g = scheme.grouped(w).astype(float)
    for n, j in np.ndindex(error.shape):
        row = g[n, j]
        kept = np.abs(row) > 0.7 * np.abs(row).mean()
        paper = np.square(row - np.where(kept, np.sign(row) * np.abs(row)[kept].mean(), 0)).sum()
        assert error[n, j] <= paper * (1 + 1e-6)
    best = sum(best_ternary(row) for row in g.reshape(-1, g.shape[-1]))
    assert abs(error.sum() / best - 1) < 1e-5


def test_ternary_weights_are_no_worse_than_those_of_the_engines_recipe(nibble, demo, tmp_path):
    """Its search stops at the first threshold that does not move, which is near the best one."""
    src, dst = str(tmp_path / "src"), str(tmp_path / "dst")
    weights = {n: np.random.default_rng(i).standard_t(5, shape).astype("f4") for i, (n, shape) in enumerate(SHAPES.items())}
    source = llama_folder(src, "BF16", weights, demo)
    nibble.quantize(src, dst, recipe="ternary")
    theirs, scheme, ratios = _checkpoint.read_weights(dst), Scheme(2, 0, True, True), []
    for name, (_, k) in SHAPES.items():
        module = f"model.layers.0.{name}"
        w = _checkpoint.to_f32(source[f"{module}.weight"])
        scale, _ = _grid.twn(w, scheme, "BF16")
        q = _grid.unpack_codes(theirs[f"{module}.weight_packed"][1], k, 2)
        s = _checkpoint.to_f32(theirs[f"{module}.weight_scale"])
        assert q.min() == -1 and q.max() == 1
        ours = np.square(_grid.values(_grid.codes(w, scale, None, scheme), scale, None, scheme) - w).sum()
        ratios.append(ours / np.square(_grid.values(q, s, None, scheme) - w).sum())
    assert max(ratios) <= 1 + 1e-3  # scales are rounded to BF16 after the search
    assert min(ratios) > 0.9


def test_clipped_ranges_are_no_worse_than_whole_ones():
    w = awkward(40, 48, 2)
    for scheme in (Scheme(2, 16, False), Scheme(4, 16), Scheme(2)):
        def error(start):
            s, z = start(w, scheme, "BF16")
            e = _grid.values(_grid.codes(w, s, z, scheme), s, z, scheme).astype(float) - w
            return np.square(scheme.grouped(e)).sum(-1)
        clip, whole = error(_grid.clipped), error(_grid.rtn)
        assert (clip <= whole * (1 + 1e-6)).all() and clip.sum() < 0.9 * whole.sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 80])
def test_packing_is_one_stream_of_bits_and_comes_back(bits, k):
    u = np.random.default_rng(k).integers(0, 1 << bits, (3, k))
    words = _grid.pack(u, bits)
    assert words.shape == (3, -(-k * bits // 32)) and words.dtype == np.dtype("<u4")
    for row, packed in zip(u, words):
        stream = sum(int(x) << (i * bits) for i, x in enumerate(row))
        assert [stream >> (32 * i) & 0xFFFFFFFF for i in range(len(packed))] == packed.tolist()
    assert np.array_equal(_grid.unpack(words, k, bits), u)
    q = u.astype(np.int16) - (1 << (bits - 1))
    assert np.array_equal(_grid.unpack_codes(_grid.pack_codes(q, bits), k, bits), q)


def test_schemes_that_make_no_sense_are_refused():
    for wrong in (dict(bits=5), dict(bits=4, group=-1), dict(bits=4, ternary=True), dict(bits=2, ternary=True, symmetric=False)):
        with pytest.raises(ValueError):
            Scheme(**wrong)
    with pytest.raises(ValueError, match="down_proj: groups of 32 do not divide its 80 inputs"):
        Scheme(4, 32).grouped(np.zeros((2, 80), np.float32), "down_proj")


# ---- files -----------------------------------------------------------------------------------------------------------
def test_every_truncation_of_a_file_is_one_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": ("BF16", np.arange(6, dtype="<u2").reshape(2, 3)), "b": ("I64", np.array([1, 2], "<i8"))}
    _checkpoint.write_safetensors(str(path), tensors)
    whole = path.read_bytes()
    back = _checkpoint.read_safetensors(str(path))
    assert {n: (t, a.tolist()) for n, (t, a) in back.items()} == {n: (t, a.tolist()) for n, (t, a) in tensors.items()}
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(_checkpoint.BadFile, match="x.safetensors"):
            _checkpoint.read_safetensors(str(path))


def test_headers_that_lie_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for entry in ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]},
                  {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
                  {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}, {"dtype": "F32", "shape": [1]}, []):
        text = json.dumps({"a": entry}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
        with pytest.raises(_checkpoint.BadFile, match="x.safetensors: a "):
            _checkpoint.read_safetensors(str(path))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoint.shutil, "copyfile", full)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    with pytest.raises(OSError):
        _checkpoint.write_folder(str(tmp_path / "src"), str(tmp_path / "dst"), {}, {}, {})
    assert os.listdir(tmp_path) == ["src"]


# ---- without torch ---------------------------------------------------------------------------------------------------
def without_torch(code):
    return subprocess.run([sys.executable, "-c", "import sys; sys.modules['torch'] = None\n" + code], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "python_stub")})


def test_the_package_works_without_torch_and_qat_says_what_it_needs():
    assert without_torch("import nibble, nibble.qat").returncode == 0
    r = without_torch("import nibble.qat; sys.exit(nibble.qat.main(['m', '-o', 'o', '--bits', '4', '--text', 't']))")
    assert r.returncode == 1
    assert r.stderr == "nibble.qat: needs torch, which is not installed: pip install 'nibble[qat]'\n"
