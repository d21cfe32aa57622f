"""Hugging Face folders without other packages: read safetensors, write a compressed-tensors checkpoint."""
import json
import os
import shutil
import struct

import numpy as np

from . import _grid

# dtype of a file -> what numpy holds it as; BF16, which numpy lacks, as its bits
TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "I32": np.dtype("<i4"),
         "I64": np.dtype("<i8"), "I8": np.dtype("i1")}
OF_CONFIG = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
              "added_tokens.json", "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt", "LICENSE",
              "LICENSE.txt")
LONGEST_HEADER = 100 << 20


class BadFile(Exception):
    """One sentence: which file, what was found, what was expected."""


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except OSError as e:
        raise BadFile(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise BadFile(f"{path}: is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadFile(f"{path}: is not a JSON object")
    return value


# ---- safetensors -----------------------------------------------------------------------------------------------------
def _check_entry(path, name, entry, size):
    """(dtype, shape, begin) of an entry whose bytes lie within `size`"""
    try:
        dtype, shape, (begin, end) = entry["dtype"], list(entry["shape"]), entry["data_offsets"]
        plain = all(type(i) is int and i >= 0 for i in [*shape, begin, end])
    except (KeyError, TypeError, ValueError):
        plain = False
    if not plain:
        raise BadFile(f"{path}: {name} has no dtype, shape and data_offsets of integers")
    if dtype not in TYPES:
        raise BadFile(f"{path}: {name} is {dtype}, expected one of {', '.join(TYPES)}")
    count = 1
    for i in shape:
        count *= i
    if end - begin != count * TYPES[dtype].itemsize or end > size:
        raise BadFile(f"{path}: {name} of shape {shape} has the bytes {begin} to {end} of {size}")
    return dtype, shape, begin


def read_safetensors(path):
    """name -> (dtype, array); arrays are views into the mapped file."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as e:
        raise BadFile(f"{path}: {getattr(e, 'strerror', None) or e}") from e
    n = struct.unpack("<Q", data[:8].tobytes())[0] if data.size >= 8 else LONGEST_HEADER
    if n > min(LONGEST_HEADER, data.size - 8):
        raise BadFile(f"{path}: is not a safetensors file: its header would have {n} bytes of {data.size}")
    try:
        header = json.loads(data[8:8 + n].tobytes().decode("utf-8"))
        items = header.items()
    except (ValueError, AttributeError) as e:
        raise BadFile(f"{path}: the header is not a JSON object") from e
    body, out = data[8 + n:], {}
    for name, entry in items:
        if name == "__metadata__":
            continue
        dtype, shape, begin = _check_entry(path, name, entry, body.size)
        count = int(np.prod(shape, dtype=np.int64))
        out[name] = dtype, np.frombuffer(body, TYPES[dtype], count, begin).reshape(shape)
    return out


def read_weights(folder):
    """All tensors of model.safetensors, or of the shards that its index names."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(index):
        return read_safetensors(os.path.join(folder, "model.safetensors"))
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and os.path.basename(f) == f for f in files.values()):
        raise BadFile(f"{index}: has no \"weight_map\" from tensors to files of this folder")
    out = {}
    for f in sorted(set(files.values())):
        out.update(read_safetensors(os.path.join(folder, f)))
    return out


def to_f32(tensor):
    dtype, a = tensor
    if dtype not in _grid.STORED:
        raise BadFile(f"a weight is stored as {dtype}, expected one of {', '.join(_grid.STORED)}")
    return _grid.bf16_values(a) if dtype == "BF16" else a.astype(np.float32)


def from_f32(x, dtype):
    x = np.ascontiguousarray(x, np.float32)
    return dtype, _grid.bf16_bits(x) if dtype == "BF16" else x.astype(TYPES[dtype])


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, array), wide types first, so that everything is aligned"""
    order = sorted(tensors, key=lambda name: (-TYPES[tensors[name][0]].itemsize, name))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        dtype, a = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            dtype, a = tensors[name]
            f.write(np.ascontiguousarray(a, TYPES[dtype]).tobytes())
        f.flush()
        os.fsync(f.fileno())


# ---- compressed-tensors ----------------------------------------------------------------------------------------------
def scale_dtype(config, where):
    """Scales are stored in the model's dtype, as `nibble quantize` does."""
    name = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    if name not in OF_CONFIG:
        raise BadFile(f"{where}: \"dtype\" is {json.dumps(name)}, expected float32, float16 or bfloat16")
    return OF_CONFIG[name]


def packed_tensors(module, q, scale, zero, scheme, dtype):
    """The tensors that stand for one linear layer."""
    out = {f"{module}.weight_packed": ("I32", _grid.pack_codes(q, scheme.bits).view("<i4")),
           f"{module}.weight_scale": from_f32(scale, dtype),
           f"{module}.weight_shape": ("I64", np.array(q.shape, "<i8"))}
    if not scheme.symmetric:  # zero points run down the columns
        words = _grid.pack(zero.T - scheme.qmin, scheme.bits).T
        out[f"{module}.weight_zero_point"] = "I32", np.ascontiguousarray(words).view("<i4")
    return out


def quantization_config(scheme, ignore):
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric,
               "strategy": "group" if scheme.group else "channel", "group_size": scheme.group or None, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "version": "0.20.0", "format": "pack-quantized",
            "quantization_status": "compressed", "config_groups": {"group_0": group}, "ignore": list(ignore),
            "kv_cache_scheme": None, "global_compression_ratio": None}


def write_folder(src, dst, config, tensors, report):
    """A Hugging Face folder that appears whole or not at all; an existing `dst` is replaced."""
    partial = f"{dst}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        write_safetensors(os.path.join(partial, "model.safetensors"), tensors)
        for name, value in (("config.json", config), ("qat_report.json", report)):
            with open(os.path.join(partial, name), "w", encoding="utf-8") as f:
                json.dump(value, f, indent=2)
                f.write("\n")
        for name in COMPANIONS:
            if os.path.exists(os.path.join(src, name)):
                shutil.copyfile(os.path.join(src, name), os.path.join(partial, name))
        if os.path.isdir(dst):
            shutil.rmtree(dst)
        os.rename(partial, dst)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
