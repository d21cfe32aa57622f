"""The methods as their papers have them, in numpy: what the engine's codes are compared with.  Nothing here is written for speed, and
nothing is taken from the engine: formulas come from the papers that each section names, and from docs/recipes.md where it says
that the engine does something else than they do.

H is X^T X of a layer's inputs, a loss tr(D H D^T) with D = W^ - W: the squared error of the outputs.
"""
import itertools

import numpy as np

F32 = np.float32


def loss(w, quantized, h):
    d = quantized - w
    return float(((d @ h) * d).sum())


# ---- even grids: docs/recipes.md, "The grids" --------------------------------------------------------------------------
def round_to(x, dtype):
    """fp32 as a file of this type holds it"""
    if dtype == "float32":
        return x
    u = x.view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(F32)


def grid(lo, hi, bits, symmetric, dtype="float32"):
    """(scale, zero) of ranges, in fp32; arrays of any shape"""
    lo, hi = np.minimum(lo, 0).astype(F32), np.maximum(hi, 0).astype(F32)
    levels = F32(2 ** bits - 1)
    s = np.maximum(-lo, hi) / (levels / 2) if symmetric else (hi - lo) / levels
    s = round_to(np.where(s < np.finfo(F32).tiny, F32(1), s).astype(F32), dtype)
    least = -(1 << (bits - 1))
    z = np.zeros(s.shape) if symmetric else np.clip(least - np.rint(lo / s), least, -least - 1)
    return s, z.astype(np.int32)


def codes(x, scale, zero, bits):
    """x / scale is a division of x's own type"""
    half = 1 << (bits - 1)
    return np.clip(np.rint(x / scale) + zero, -half, half - 1).astype(np.int32)


def grouped(w, group):
    return w.reshape(len(w), -1, group or w.shape[1])


def rtn(w, bits, symmetric, group=0, dtype="float32"):
    """(codes [N,K], scale [N,G], zero [N,G])"""
    g = grouped(w, group)
    s, z = grid(g.min(-1), g.max(-1), bits, symmetric, dtype)
    return codes(g, s[..., None], z[..., None], bits).reshape(w.shape), s, z


def on_grid(g, bits, symmetric, shrink):
    """The values of each group [.., group] on the grid of a range that is `shrink` times as wide"""
    s, z = grid(F32(shrink) * g.min(-1), F32(shrink) * g.max(-1), bits, symmetric)
    s, z = s[..., None], z[..., None]
    return (codes(g, s, z, bits) - z) * s.astype(np.float64)


# ---- ranges of activations: docs/recipes.md, Migacz 2017 -----------------------------------------------------------------
def clipped_error(x, bits, amax):
    """Mean squared error on the symmetric grid of a clip"""
    s = amax / ((2 ** bits - 1) / 2)
    half = 1 << (bits - 1)
    return ((np.clip(np.rint(x / s), -half, half - 1) * s - x) ** 2).mean()


def entropies(bins, levels):
    """KL(P || Q) of clips at the ends of bins levels .. len(bins) of |x|: P saturated, Q in levels."""
    bins = bins.astype(np.float64)
    bins[0] = bins[1]
    out = {}
    for i in range(levels, len(bins) + 1):
        p, own = bins[:i].copy(), bins[:i]
        p[-1] += bins[i:].sum()
        level = np.arange(i) * levels // i
        there = own > 0
        mass, count = np.bincount(level, own, levels), np.bincount(level, there, levels)
        q = np.where(there, (mass / np.maximum(count, 1))[level], 0)
        p, q = p / p.sum(), q / q.sum()
        at = p > 0
        out[i] = np.inf if (q[at] == 0).any() else (p[at] * np.log(p[at] / q[at])).sum()
    return out


# ---- clips -----------------------------------------------------------------------------------------------------------
def clip_weights_loss(w, bits, symmetric, group):
    """GPTQ's own search: 1 - i/100 for i = 0 .. 79, here with squares"""
    g = grouped(w, group)
    e = [((on_grid(g, bits, symmetric, 1 - i / 100) - g) ** 2).sum(-1) for i in range(80)]
    return float(np.min(e, 0).sum())


AWQ_CLIPS = [1 - i / 20 for i in range(10)]


def clip_outputs_best(w, h, bits, symmetric, group):
    """The least loss that any choice of AWQ's clips for the groups of a row has, by trying all of them."""
    g = grouped(w, group).astype(np.float64)
    n, groups, size = g.shape
    d = np.stack([on_grid(g.astype(F32), bits, symmetric, c) - g for c in AWQ_CLIPS], 2)  # [N, G, clip, size]
    blocks = h.reshape(groups, size, groups, size)
    total = 0.0
    for row in d:
        pair = np.einsum("aci,aibj,bdj->acbd", row, blocks, row, optimize=True)
        e = np.zeros([len(AWQ_CLIPS)] * groups)
        for a, b in itertools.product(range(groups), repeat=2):
            shape = [1] * groups
            shape[a] = shape[b] = len(AWQ_CLIPS)
            x = pair[a, :, b, :]
            e = e + (np.diag(x) if a == b else x if a < b else x.T).reshape(shape)
        total += e.min()
    return total


def clip_outputs_awq(w, h, bits, symmetric, group):
    """AWQ's own search: each group sees its own inputs alone"""
    g = grouped(w, group)
    out = g.astype(np.float64).copy()
    best = np.full(g.shape[:2], np.inf)
    for c in AWQ_CLIPS:
        q = on_grid(g, bits, symmetric, c)
        for i in range(g.shape[1]):
            d = q[:, i] - g[:, i]
            e = ((d @ h[i * g.shape[2]:(i + 1) * g.shape[2], i * g.shape[2]:(i + 1) * g.shape[2]]) * d).sum(-1)
            better = e < best[:, i]
            best[better, i] = e[better]
            out[better, i] = q[better, i]
    return loss(w, out.reshape(w.shape), h)


# ---- GPTQ: arXiv 2210.17323 --------------------------------------------------------------------------------------------
def inverse_factor(h, damp, order):
    """U, upper triangular, U^T U = (H + lambda I)^-1 with columns in `order`; inputs that are always 0 get H_ii = 1."""
    h = h.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    h += damp * np.diag(h).mean() * np.eye(len(h))
    return np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T, dead


def gptq(w, h, bits, symmetric, group, damp=0.01, act_order=True, given=None):
    """(codes, scale, zero, furthest).  given: codes to follow; furthest: how far, in steps beyond half of one, the number that is
    rounded lies from the given code at most: 0 but for the rounding of fp32 where these are the codes that GPTQ takes."""
    k = w.shape[1]
    group = group or k
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(k)
    u, dead = inverse_factor(h, damp, order)
    plain = np.where(dead, 0, w).astype(F32)
    _, scale, zero = rtn(plain, bits, symmetric, group)
    x = plain[:, order].astype(np.float64)
    out, furthest = np.zeros(w.shape, np.int32), 0.0
    for i, column in enumerate(order):
        g = column // group
        if not act_order and column % group == 0:  # without act-order grids follow the updates: they are not static
            now = x[:, i:i + group].astype(F32)
            s, z = grid(now.min(-1), now.max(-1), bits, symmetric)
            scale[:, g], zero[:, g] = s, z
        s, z = scale[:, g].astype(np.float64), zero[:, g]
        q = codes(x[:, i], s, z, bits)
        if given is not None:
            free = np.clip(x[:, i] / s + z, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
            q = given[:, column]
            furthest = max(furthest, float((np.abs(free - q) - 0.5).max()))
        out[:, column] = q
        e = (x[:, i] - (q - z) * s) / u[i, i]
        x[:, i + 1:] -= np.outer(e, u[i, i + 1:])
    return out, scale, zero, furthest


# ---- AWQ and SmoothQuant: arXiv 2306.00978, 2211.10438 -----------------------------------------------------------------
def awq_scales(ws, mean_abs, group):
    """The 20 candidates of AutoAWQ (duo_scaling) for layers that share their inputs."""
    rel = np.concatenate([(np.abs(grouped(w, group)) / (np.abs(grouped(w, group)).max(-1, keepdims=True) + 1e-6)).reshape(w.shape)
                          for w in ws]).mean(0)
    for i in range(20):
        r = i / 20
        s = np.maximum(mean_abs ** r / (rel ** (1 - r) + 1e-4), 1e-4)
        yield s / np.sqrt(s.max() * s.min())


def awq_loss(ws, s, h, bits, symmetric, group):
    """Of the outputs, with weights times s and inputs over s"""
    total = 0.0
    for w in ws:
        q, scale, zero = rtn((w * s).astype(F32), bits, symmetric, group)
        spread = [np.repeat(x, group, 1) for x in (scale.astype(np.float64), zero)]
        total += loss(w, (q - spread[1]) * spread[0] / s, h)
    return total


def smooth_scales(ws, abs_max, alpha):
    most = np.max([np.abs(w).max(0) for w in ws], 0)
    return np.maximum(np.maximum(abs_max, 1e-5) ** alpha / np.maximum(most, 1e-5) ** (1 - alpha), 1e-5)


# ---- SpQR: arXiv 2306.03078 --------------------------------------------------------------------------------------------
def nest(x, least, whole):
    """Numbers of 16 rows [rows, ...] on a grid of 3 bits of their own, whose ends and steps are fp16"""
    half = lambda v: np.asarray(v, np.float16).astype(np.float64)
    base = half(np.rint(x.min(0)) if whole else x.min(0))
    step = half(np.maximum((x.max(0) - x.min(0)) / 7, least))
    return base + np.clip(np.rint((x - base) / np.where(step > 0, step, 1)), 0, 7) * step


def spqr(w, h, bits, t=0.2, damp=1.0, group=16):
    """(values, share of single numbers).  As docs/recipes.md says, and unlike the paper's program: act-order moves whole groups, and
    zero points are whole numbers."""
    n, k = w.shape
    half, levels = 1 << (bits - 1), 2 ** bits - 1
    diagonal = np.diag(h)
    order = np.concatenate([g * group + np.argsort(-diagonal[g * group:(g + 1) * group], kind="stable")
                            for g in np.argsort(-diagonal.reshape(-1, group).sum(1), kind="stable")])
    u, dead = inverse_factor(h, damp, order)
    x = np.where(dead, 0, w).astype(np.float64)[:, order]
    threshold = t * (x.var(0, ddof=1) / np.diag(u) ** 2).mean()

    def fit_loss(v, keep, inverse):
        lo, hi = (np.minimum(np.where(keep, v, 0).min(-1), 0), np.maximum(np.where(keep, v, 0).max(-1), 0))
        s = np.where(hi > lo, (hi - lo) / levels, 1)[..., None]
        z = np.clip(-half - np.rint(lo[..., None] / s), -half, half - 1)
        q = np.clip(np.rint(v / s) + z, -half, half - 1)
        return (np.where(keep, (v - (q - z) * s) * inverse, 0) ** 2).sum(-1)

    out, single = np.zeros((n, k)), np.zeros((n, k), bool)
    for j0 in range(0, k, group):
        v, inverse = x[:, j0:j0 + group].copy(), 1 / np.diag(u)[j0:j0 + group]
        everything = fit_loss(v, np.ones(v.shape, bool), inverse)
        alone = np.stack([everything - fit_loss(v, np.broadcast_to(np.arange(group) != j, v.shape), inverse) > threshold
                          for j in range(group)], 1)
        rest = (~alone).sum(1, keepdims=True)
        v = np.where(alone, np.where(alone, 0, v).sum(1, keepdims=True) / np.maximum(rest, 1), v)
        lo, hi = np.minimum(v.min(1), 0), np.maximum(v.max(1), 0)
        scale = (hi - lo) / levels
        zero = -half - lo / scale
        for r in range(0, n, 16):
            scale[r:r + 16], zero[r:r + 16] = nest(scale[r:r + 16], 0, False), nest(zero[r:r + 16], 1, True)
        zero = np.clip(np.rint(zero), -half, half - 1)
        for j in range(j0, j0 + group):
            q = codes(x[:, j], scale, zero, bits)
            value = (q - zero) * scale
            e = (x[:, j] - value) / u[j, j]
            big = e * e > threshold
            value = np.where(big, x[:, j].astype(np.float16), value)
            e = (x[:, j] - value) / u[j, j]
            x[:, j + 1:] -= np.outer(e, u[j, j + 1:])
            out[:, order[j]], single[:, order[j]] = value, big
    return out, single.mean()


# ---- NF4: arXiv 2305.14314 ---------------------------------------------------------------------------------------------
NF4 = np.array([-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0, 0.0795803, 0.1609302, 0.2461123,
                0.33791524, 0.44070983, 0.562617, 0.72295684, 1])


def nf4(w, group):
    """(codes 0 .. 15 [N,K], absmax [N,G], how far each number is from a tie, in units of its group)"""
    g = grouped(w, group).astype(np.float64)
    most = np.abs(g).max(-1)
    away = np.abs(g[..., None] / most[..., None, None] - NF4)
    nearest = np.sort(away, -1)
    return away.argmin(-1).reshape(w.shape), most, (nearest[..., 1] - nearest[..., 0]).reshape(w.shape)


# ---- ternary and binary: arXiv 1605.04711, 2402.17764, 1603.05279 --------------------------------------------------------
def twn(w, refine):
    """(codes, scale) of rows"""
    size = np.abs(w.astype(np.float64))
    cut = 0.7 * size.mean(1, keepdims=True)
    while True:
        kept = size > cut
        scale = (size * kept).sum(1, keepdims=True) / kept.sum(1, keepdims=True)
        if not refine or (kept == (size > scale / 2)).all():
            return (np.sign(w) * kept).astype(np.int32), scale
        cut = scale / 2


def absmean(w):
    s = F32(max(np.abs(w.astype(np.float64)).mean(), 1e-5))
    return np.clip(np.rint(w / s), -1, 1).astype(np.int32), s


def binary(w):
    return np.where(w >= 0, 1, -1), np.abs(w.astype(np.float64)).mean(1, keepdims=True)


# ---- QuIP#: arXiv 2402.04396 -------------------------------------------------------------------------------------------
def spread_matrix(n):
    """The rotation of docs/recipes.md: Hadamard where n is a power of two; an odd factor is a Hartley matrix."""
    h = n & -n
    odd = n // h
    t = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    m = np.cos(t) + np.sin(t)
    while len(m) < n:
        m = np.kron(m, np.array([[1, 1], [1, -1]]))
    return m / np.sqrt(n)


def e8p_book():
    """[65536, 8], from the description of the code word"""
    rows = sorted(v for v in itertools.product((0.5, 1.5, 2.5), repeat=8) if sum(x * x for x in v) <= 10)
    rows += sorted(set(itertools.permutations([1.5] * 5 + [0.5] * 3)))[:29]
    rows = np.array(rows)
    rows[rows.sum(1) % 2 != 0, 7] *= -1
    book = np.zeros((65536, 8))
    for sigma in range(256):
        parity = bin(sigma).count("1") & 1
        flip = np.ones(8)
        for bit, element in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            flip[element] = -1 if (sigma ^ parity) >> bit & 1 else 1
        book[sigma::256] = rows * flip + (-0.25 if parity else 0.25)
    return book


class E8P:
    """Nearest points.  Signs are folded away: of all points with the sizes of a row, the nearest has the signs of x, but for the
    cheapest one where their number is odd and the row's is even, or the other way."""

    def __init__(self, bits):
        self.book, self.bits = e8p_book(), bits
        self.rows = np.abs(self.book[::256] - 0.25)
        self.norm, self.odd = (self.rows ** 2).sum(1), self.rows.sum(1) % 2 != 0

    def value(self, words):
        """[..., bits/2] -> [..., 8]; a second word is 3.5 times finer"""
        v = self.book[words[..., 0]]
        return v + self.book[words[..., 1]] / 3.5 if self.bits == 4 else v

    def shifted(self, x, shift):
        """(points, squared distances) among those that were shifted this way"""
        y = x - shift
        size, sign = np.abs(y), np.where(y < 0, -1.0, 1.0)
        each = size[:, None, :] * self.rows
        wrong = ((y < 0).sum(1) % 2 != 0)[:, None] != self.odd
        d = self.norm - 2 * each.sum(2) + 4 * wrong * each.min(2)
        row, i = d.argmin(1), np.arange(len(x))
        point = self.rows[row] * sign
        point[i, each[i, row].argmin(1)] *= np.where(wrong[i, row], -1, 1)
        return point + shift, d[i, row] + (y ** 2).sum(1)

    def one(self, x):
        (a, da), (b, db) = self.shifted(x, 0.25), self.shifted(x, -0.25)
        return np.where((da <= db)[:, None], a, b)

    def nearest(self, x):
        first = self.one(x)
        return first + self.one(3.5 * (x - first)) / 3.5 if self.bits == 4 else first


def block_ldl(h, block=8):
    """L, unit block lower triangular, H = L D L^T"""
    c = np.linalg.cholesky(h)
    for b in range(0, len(h), block):
        c[:, b:b + block] = c[:, b:b + block] @ np.linalg.inv(c[b:b + block, b:b + block])
    return c


def quip_round(v, h, code, passes, careful):
    """Block LDLQ from the last eight columns to the first, then coordinate descent.  careful: a new point is only taken where it
    loses less, as docs/recipes.md says; the paper takes it always."""
    l, k = block_ldl(h), v.shape[1]
    q = np.zeros(v.shape)
    for b in range(k - 8, -1, -8):
        q[:, b:b + 8] = code.nearest(v[:, b:b + 8] + (v - q)[:, b + 8:] @ l[b + 8:, b:b + 8])
    for _ in range(passes):
        before = q.copy()
        for b in range(k - 8, -1, -8):
            own = h[b:b + 8, b:b + 8]
            g = (v - q) @ h[:, b:b + 8]
            new = code.nearest(q[:, b:b + 8] + g @ np.linalg.inv(own))
            c = new - q[:, b:b + 8]
            gain = ((c @ own) * c - 2 * g * c).sum(1) < 0
            q[:, b:b + 8] = np.where(gain[:, None] | (not careful), new, q[:, b:b + 8])
        if (q == before).all():
            break
    return q


# ---- the KV cache: docs/numerics.md --------------------------------------------------------------------------------------
def kv_int8(x):
    s = np.abs(x).max(-1, keepdims=True) / 127
    return np.clip(np.rint(x / s), -127, 127) * s


def key_grid(k):
    """Keys by channel, [tokens, heads, HEAD]: shift by the mean, scale by the root of the standard deviation, which is where the error of
    a score, sum of scale^2 times sum of (deviation / scale)^2, is least; the geometric mean of a head's scales is 1."""
    shift, scale = k.mean(0), np.sqrt(k.std(0))
    return shift, scale / np.exp(np.log(scale).mean(-1, keepdims=True))


def kv_int4(x):
    """Runs of 32 elements of a head, scale and minimum in fp16"""
    run = x.reshape(*x.shape[:-1], -1, 32)
    m = run.min(-1, keepdims=True).astype(np.float16).astype(np.float64)
    s = ((run.max(-1, keepdims=True) - m) / 15).astype(np.float16).astype(np.float64)
    return (np.clip(np.rint((run - m) / s), 0, 15) * s + m).reshape(x.shape)
