"""What `nibble quantize` wrote, as docs/formats.md and the reference of compressed-tensors and bitsandbytes describe it: codes, scales and
zero points of a linear layer in numpy.  Written from these pages, not from the engine's readers.
"""
import json
import os

import numpy as np

from tiny_llama import read_safetensors


class Folder:
    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, "config.json")) as f:
            self.config = json.load(f)["quantization_config"]
        with open(os.path.join(path, "quant_report.json")) as f:
            self.report = json.load(f)
        self.tensors = read_safetensors(os.path.join(path, "model.safetensors"))

    def layer(self, name, bits):
        part = {k[len(name) + 1:]: v for k, v in self.tensors.items() if k.startswith(name + ".")}
        return Layer(part, bits)


def fields(words, bits, count):
    """Numbers of `bits` that lie side by side in each row of 32-bit words, low bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    rows = stream[..., :count * bits].reshape(*words.shape[:-1], count, bits)
    return (rows.astype(np.int32) << np.arange(bits)).sum(-1)


class Layer:
    def __init__(self, part, bits):
        self.part, self.bits, self.bias = part, bits, 1 << (bits - 1)
        self.shape = tuple(int(x) for x in part["weight_shape"]) if "weight_shape" in part else part["weight"].shape

    @property
    def codes(self):
        if self.part.get("weight") is not None:
            return self.part["weight"].astype(np.int32)
        return fields(self.part["weight_packed"], self.bits, self.shape[1]) - self.bias

    @property
    def scale(self):
        """[N,G]; one scale for all is [1,1]"""
        s = self.part["weight_scale"]
        return s.reshape(-1, s.shape[-1])

    @property
    def zero(self):
        words = self.part.get("weight_zero_point")
        if words is None:
            return np.zeros(self.scale.shape, np.int32)
        return fields(words.T, self.bits, self.shape[0]).T - self.bias

    def spread(self, x):
        """[N,G] for each weight"""
        return np.broadcast_to(np.repeat(x, self.shape[1] // x.shape[1], 1), self.shape)

    @property
    def values(self):
        return (self.codes - self.spread(self.zero)) * self.spread(self.scale).astype(np.float64)

    # ---- SpQR ----
    @property
    def nested_values(self):
        """What a layer with nested scales and single numbers stands for."""
        n, k = self.shape
        grids = self.part["scale_grid"].astype(np.float64), self.part["zero_grid"].astype(np.float64)
        groups = grids[0].shape[1]
        run = np.arange(n) // 16
        both = []
        for name, grid in zip(("scale_codes", "zero_codes"), grids):
            code = fields(self.part[name].reshape(1, -1), 3, n * groups).reshape(n, groups)
            both.append(grid[run, :, 0] + code * grid[run, :, 1])
        scale, zero = both[0], np.rint(both[1])
        w = (self.codes - np.repeat(zero, k // groups, 1)) * np.repeat(scale, k // groups, 1)
        return w + self.singles

    @property
    def singles(self):
        """The numbers beside the codes, as a matrix."""
        n, k = self.shape
        counts = sum(p.astype(np.int64) << 8 * i for i, p in enumerate(self.part["sparse_counts"]))
        wide = "<u1" if k <= 256 else "<u2"
        entries = np.ascontiguousarray(self.part["sparse_entries"]).view([("column", wide), ("value", "<f2")]).reshape(-1)
        out = np.zeros((n, k))
        out[np.repeat(np.arange(n), counts), entries["column"]] = entries["value"]
        return out

    # ---- LLM.int8() ----
    @property
    def outliers(self):
        """(columns, their weights [columns, N])"""
        columns = np.ascontiguousarray(self.part["outlier_columns"]).view("<u4").reshape(-1)
        return columns, np.ascontiguousarray(self.part["outlier_values"]).view("<f2").astype(np.float64)

    # ---- QuIP# ----
    def signs(self, name):
        n = self.shape[0 if name == "output_signs" else 1]
        return 1.0 - 2.0 * np.unpackbits(self.part[name], bitorder="little")[:n]

    @property
    def words(self):
        """[N, K/8, bits/2]"""
        return self.part["weight_words"].view("<u2").reshape(self.shape[0], self.shape[1] // 8, self.bits // 2)
