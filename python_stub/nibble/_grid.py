"""The engine's integer grids in numpy, equal to csrc/quant/grid.c bit for bit, and what compressed-tensors packs them into.

    symmetric    s = absmax / ((2^b - 1)/2)     q = clamp(rne(x/s),     qmin, qmax)     x ~ q*s
    asymmetric   s = (max - min) / (2^b - 1)    q = clamp(rne(x/s) + z, qmin, qmax)     x ~ (q - z)*s
    ternary      s = TWN's, see twn()           q = clamp(rne(x/s), -1, 1)              x ~ q*s

All numbers are fp32, division is IEEE's, rounding to nearest even, and a scale is rounded to the type that it is stored in
before codes are computed.  No torch here: this is the reference that nibble._fakequant is tested against.
"""
from dataclasses import dataclass

import numpy as np

F32 = np.float32
FLT_MIN, FLT_MAX = np.finfo(F32).tiny, np.finfo(F32).max
SCALE_MAX = FLT_MAX / F32(256)  # every (q - z) * s is finite
STORED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Scheme:
    """bits of a stored code; group: inputs that share a scale, 0: one scale a row; ternary: codes -1, 0, 1 in 2 bits"""

    bits: int
    group: int = 0
    symmetric: bool = True
    ternary: bool = False

    def __post_init__(self):
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"{self.bits} bits, expected 2, 3, 4 or 8")
        if self.group < 0:
            raise ValueError(f"groups of {self.group}, expected a positive number, or 0 for one scale a row")
        if self.ternary and (self.bits != 2 or not self.symmetric):
            raise ValueError("ternary weights are symmetric and are stored in 2 bits")

    @property
    def qmin(self):
        return -1 if self.ternary else -(1 << (self.bits - 1))

    @property
    def qmax(self):
        return 1 if self.ternary else (1 << (self.bits - 1)) - 1

    def grouped(self, w, name="weight"):
        """[N,K] as [N, groups, group]"""
        n, k = w.shape
        group = self.group or k
        if k % group:
            raise ValueError(f"{name}: groups of {group} do not divide its {k} inputs")
        return w.reshape(n, k // group, group)


def bf16_bits(x):
    """fp32 -> the upper 16 bits, rounded to nearest even; a NaN stays a quiet NaN."""
    u = np.ascontiguousarray(x, F32).view(np.uint32)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), (u >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def bf16_values(bits):
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(F32)


def stored_scale(s, dtype):
    """Scales as a file of this dtype holds them.  Below 2^-14 the steps of F16 are 2^-24 wide whatever the scale is: there it is
    rounded up, so that it keeps the range and is never 0."""
    if dtype == "BF16":
        return bf16_values(bf16_bits(s))
    if dtype == "F32":
        return s
    if dtype != "F16":
        raise ValueError(f"scales cannot be stored as {dtype}, expected one of {', '.join(STORED)}")
    small = np.ceil(s * F32(2.0**24)) * F32(2.0**-24)
    return np.where(s < F32(2.0**-14), small, np.minimum(s, F32(65504)).astype(np.float16).astype(F32))


def _limited(x, s, lo, hi):
    """rne(x/s) limited to [lo, hi]; NaN gives lo."""
    with np.errstate(over="ignore", invalid="ignore"):
        r = np.rint(x / s)
    return np.where(r > lo, np.minimum(r, hi), lo).astype(np.int32)


def grid_of_range(lo, hi, scheme, dtype):
    """Scales and zero points (None when symmetric) for ranges of finite fp32; csrc/quant/grid.c: nbi_grid_make()."""
    lo, hi = np.minimum(lo, F32(0)), np.maximum(hi, F32(0))
    levels = F32((1 << scheme.bits) - 1)
    if scheme.symmetric:
        s = np.maximum(-lo, hi) / (levels / F32(2))
    else:
        with np.errstate(over="ignore"):
            span = hi - lo
            wide = ((hi.astype(np.float64) - lo) / np.float64(levels)).astype(F32)
            s = np.where(np.isfinite(span), span / levels, wide)
    s = np.where(s < FLT_MIN, F32(1), stored_scale(np.minimum(s, SCALE_MAX), dtype)).astype(F32)
    if scheme.symmetric:
        return s, None
    return s, scheme.qmin - _limited(lo, s, scheme.qmin - scheme.qmax, 0)


def codes(w, scale, zero, scheme):
    """int8 codes [N,K]; scale and zero [N, groups]"""
    z = np.zeros(scale.shape, np.int32) if zero is None else zero
    z = z[:, :, None]
    q = _limited(scheme.grouped(w), scale[:, :, None], scheme.qmin - z, scheme.qmax - z) + z
    return q.astype(np.int8).reshape(w.shape)


def values(q, scale, zero, scheme):
    """fp32 [N,K], what the codes mean"""
    z = 0 if zero is None else zero[:, :, None]
    return ((scheme.grouped(q).astype(np.int32) - z).astype(F32) * scale[:, :, None]).reshape(q.shape)


def rtn(w, scheme, dtype):
    """The engine's round to nearest: scales and zero points of the range of each group."""
    g = scheme.grouped(w)
    return grid_of_range(g.min(-1), g.max(-1), scheme, dtype)


def clipped(w, scheme, dtype, steps=64):
    """Of `steps` ranges, the whole one and narrower ones, that with the least squared error in each group."""
    g = scheme.grouped(w)
    lo, hi = g.min(-1), g.max(-1)
    best = None
    for i in range(steps):
        f = F32(1 - i / steps)
        s, z = grid_of_range(lo * f, hi * f, scheme, dtype)
        e = np.square(scheme.grouped(values(codes(w, s, z, scheme), s, z, scheme)) - g).sum(-1, dtype=np.float64)
        if best is None:
            best, scale, zero = e, s, z
            continue
        better = e < best
        best = np.where(better, e, best)
        scale = np.where(better, s, scale)
        zero = None if z is None else np.where(better, z, zero)
    return scale, zero


def twn(w, scheme, dtype):
    """Ternary Weight Networks (Li et al., 1605.04711): the scale and the threshold with the least squared error.

    With the k largest magnitudes kept, the best scale is their mean and the error is sum w^2 - (their sum)^2 / k.  The paper takes a
    threshold of 0.7 mean|w|, which is good for one normal distribution; here the best k is found, in one sorted pass.  Its codes
    are the nearest ones to the scale, which is what codes() makes.
    """
    a = -np.sort(-np.abs(scheme.grouped(w)), axis=-1).astype(np.float64)
    total, kept = np.cumsum(a, -1), np.arange(1, a.shape[-1] + 1)
    best = np.argmax(np.square(total) / kept, -1)[:, :, None]
    s = (np.take_along_axis(total, best, -1) / (best + 1))[:, :, 0].astype(F32)
    return np.where(s < FLT_MIN, F32(1), stored_scale(np.minimum(s, SCALE_MAX), dtype)).astype(F32), None


# ---- compressed-tensors ----------------------------------------------------------------------------------------------
def pack(u, bits):
    """Unsigned codes [N, K] -> uint32 [N, ceil(K*bits/32)]: one stream a row without gaps, low bits first."""
    n, k = u.shape
    words = -(-k * bits // 32)
    stream = (u.astype(np.uint8)[:, :, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    packed = np.zeros((n, words * 4), np.uint8)
    some = np.packbits(stream.reshape(n, k * bits), axis=1, bitorder="little")
    packed[:, :some.shape[1]] = some
    return packed.view("<u4")


def unpack(words, k, bits):
    """The inverse of pack()."""
    n = words.shape[0]
    stream = np.unpackbits(np.ascontiguousarray(words, "<u4").view(np.uint8), axis=1, bitorder="little")[:, :k * bits]
    return (stream.reshape(n, k, bits).astype(np.uint16) << np.arange(bits, dtype=np.uint16)).sum(-1).astype(np.uint8)


def pack_codes(q, bits):
    return pack(q.astype(np.int16) + (1 << (bits - 1)), bits)


def unpack_codes(words, k, bits):
    return (unpack(words, k, bits).astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
