"""Fake quantization in PyTorch: weights as they will be read from the file, with gradients to train them by.

Forward is the grid of nibble._grid bit for bit.  Backward is the straight-through estimator with learned step sizes (LSQ, Esser
et al., 1902.08153) and, asymmetric, learned offsets (LSQ+, Bhalgat et al., 2004.09576): the zero point is z = rne(-offset/s).
With v = w/s, limits a and b of q - z, and r = rne(v):

                 a < v < b      v <= a   v >= b
    d/dw         1              0        0
    d/ds         r - v          a        b      summed over the group, times 1/sqrt(count * qmax)
    d/doffset    0              1        1      likewise: x^ = q s + offset, and q is at its limit there

Ternary weights differ in one thing: d/dw is 1 everywhere.  About a fifth of normal weights lies beyond the outer levels,
where they would stay as they are until the scale has grown.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from . import _grid

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _Stored(torch.autograd.Function):
    """Dense numbers as their file will hold them; the gradient passes."""

    @staticmethod
    def forward(ctx, x, dtype):
        return x.to(TORCH[dtype]).float()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _StoredScale(torch.autograd.Function):
    """_grid.stored_scale(); the gradient passes."""

    @staticmethod
    def forward(ctx, s, dtype):
        t = s.clamp(max=65504.0).to(TORCH[dtype]).float() if dtype == "F16" else s.to(TORCH[dtype]).float()
        return torch.where(s < 2.0**-14, torch.ceil(s * 2.0**24) * 2.0**-24, t) if dtype == "F16" else t

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _Zero(torch.autograd.Function):
    """The integer zero point of an offset.  What comes back is the gradient of the offset already: see _FakeQuant."""

    @staticmethod
    def forward(ctx, offset, scale, scheme):
        return torch.round(-offset / scale).clamp(scheme.qmin, scheme.qmax)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


class _FakeQuant(torch.autograd.Function):
    """w [N, groups, group], scale and zero [N, groups, 1]: (q - z) * s"""

    @staticmethod
    def forward(ctx, w, scale, zero, scheme):
        lo, hi = scheme.qmin - zero, scheme.qmax - zero
        v = w / scale
        r = torch.minimum(torch.maximum(torch.round(v), lo), hi)
        ctx.save_for_backward(v, r, lo, hi)
        ctx.scheme = scheme
        return r * scale

    @staticmethod
    def backward(ctx, grad):
        v, r, lo, hi = ctx.saved_tensors
        inside = (v > lo) & (v < hi)
        g = 1 / math.sqrt(v.shape[-1] * ctx.scheme.qmax)
        grad_s = (grad * torch.where(inside, r - v, r)).sum(-1, keepdim=True) * g
        grad_offset = (grad * ~inside).sum(-1, keepdim=True) * g if ctx.needs_input_grad[2] else None
        return grad if ctx.scheme.ternary else grad * inside, grad_s, grad_offset, None


class QuantLinear(nn.Module):
    """A linear layer whose fp32 weights are seen through their grid.

    `weight` [N,K] are the latent numbers, `scale` and `offset` [N, groups] start where `start` puts them: "rtn" the range of each
    group, "clip" the range with the least squared error, "twn" for ternary weights.
    """

    def __init__(self, weight, bias, scheme, dtype, start):
        super().__init__()
        self.scheme, self.dtype = scheme, dtype
        scale, zero = {"rtn": _grid.rtn, "clip": _grid.clipped, "twn": _grid.twn}[start](weight, scheme, dtype)
        self.weight = nn.Parameter(torch.from_numpy(weight.copy()))
        self.scale = nn.Parameter(torch.from_numpy(scale.copy()))
        self.offset = None if zero is None else nn.Parameter(torch.from_numpy((-zero * scale).astype("f4")))
        self.bias = None if bias is None else Stored(bias, dtype)

    def grid(self):
        """Scale and zero point as they will be stored; a symmetric grid has the zero point 0."""
        scale = _StoredScale.apply(self.scale, self.dtype)
        if self.offset is None:
            return scale, torch.zeros_like(scale)
        return scale, _Zero.apply(self.offset, scale.detach(), self.scheme)

    def quantized(self):
        """What F.linear multiplies by, [N,K]."""
        scale, zero = self.grid()
        w = self.scheme.grouped(self.weight)
        return _FakeQuant.apply(w, scale.unsqueeze(-1), zero.unsqueeze(-1), self.scheme).reshape(self.weight.shape)

    def forward(self, x):
        return F.linear(x, self.quantized(), None if self.bias is None else self.bias())

    @torch.no_grad()
    def keep_valid(self):
        """After a step of the optimizer: scales stay positive normal numbers of fp32."""
        self.scale.clamp_(min=1e-8)

    @torch.no_grad()
    def codes(self):
        """(codes, scales, zero points or None) for the file, computed by the reference in numpy."""
        scale, zero = (t.cpu().numpy() for t in self.grid())
        zero = None if self.offset is None else zero.astype("i4")
        return _grid.codes(self.weight.cpu().numpy(), scale, zero, self.scheme), scale, zero


class Stored(nn.Module):
    """A dense parameter (norm, bias, embedding) that is trained in fp32 and used as its file will hold it."""

    def __init__(self, value, dtype, train=True):
        super().__init__()
        self.dtype = dtype
        self.value = nn.Parameter(torch.from_numpy(value.copy()), requires_grad=train)

    def forward(self):
        return _Stored.apply(self.value, self.dtype) if self.value.requires_grad else self.value
