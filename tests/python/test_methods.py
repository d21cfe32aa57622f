"""Each method on a layer against a restatement of its paper in numpy (paper_methods.py): the same codes where the method leaves no choice,
else an objective within 1 %.

A model of one layer (tiny_llama.py) is quantized through the public API.  What methods look at are the statistics of the dense
layer, which `stats=` leaves in a file; test_statistics... says that they are right, all others start from them.
"""
import itertools
import json
import os

import numpy as np
import pytest

import paper_methods as paper
import tiny_llama as tiny
from quantized_folder import Folder

CTX = 128
PROJ = list(tiny.PORTS)


def windows(ids, size):
    return [ids[at:at + size] for at in range(0, len(ids), size)]


class Setup:
    """A model, its weights and text, and what every recipe makes of it."""

    def __init__(self, nibble, folder, demo, text, **shape):
        self.nibble, self.folder, self.made = nibble, str(folder), {}
        self.model, self.text, self.stats_file = (os.path.join(self.folder, x) for x in ("model", "text.txt", "stats.safetensors"))
        os.makedirs(self.folder, exist_ok=True)
        self.weights = tiny.write_model(self.model, demo, **shape)
        with open(text, encoding="utf-8") as f, open(self.text, "w", encoding="utf-8") as out:
            out.write(f.read()[:5000])
        with nibble.Model(self.model) as m:
            with open(self.text, encoding="utf-8") as f:
                self.ids = m.tokenize(f.read())
        self.quantize({"weights": {"bits": 8}, "method": {"name": "gptq"}})  # leaves the statistics
        self.stats = tiny.read_safetensors(self.stats_file)

    def quantize(self, recipe, **more):
        """The folder that a recipe makes; the same recipe is not made twice."""
        key = json.dumps([recipe, more], sort_keys=True)
        if key not in self.made:
            at = os.path.join(self.folder, f"q{len(self.made)}")
            with open(at + ".json", "w") as f:
                json.dump(recipe, f)
            method = recipe.get("method", "rtn")
            name = method if isinstance(method, str) else method["name"]
            if name in ("gptq", "clip", "awq", "smoothquant", "spqr", "quip", "llm-int8"):
                more = {"calib": self.text, "calib_ctx": CTX, "stats": self.stats_file, "sequential": False} | more
            self.nibble.quantize(self.model, at, recipe=at + ".json", **more)
            self.made[key] = Folder(at)
        return self.made[key]

    def weight(self, name):
        return self.weights[tiny.module(0, name) + ".weight"]

    def stat(self, name, what):
        return self.stats[f"layers.0.{tiny.PORTS[name]}.{what}"]

    def gram(self, name):
        return self.stat(name, "gram").astype(np.float64)


@pytest.fixture(scope="module")
def one(nibble, tmp_path_factory, demo, demo_text):
    return Setup(nibble, tmp_path_factory.mktemp("one"), demo, demo_text)


@pytest.fixture(scope="module")
def inputs(one):
    """name -> what the layer sees of the whole text, in double"""
    seen = [tiny.forward(one.weights, w)[1] for w in windows(one.ids, CTX)]
    return {name: np.concatenate([s[0, port] for s in seen]) for name, port in tiny.PORTS.items()}


def weights(bits, symmetric=True, group=0, strategy=None):
    w = {"bits": bits, "symmetric": symmetric, "strategy": strategy or ("group" if group else "channel")}
    return w | ({"group_size": group} if group else {})


# ---- what all start from ----------------------------------------------------------------------------------------------
def test_statistics_are_those_of_the_model_in_double(one, inputs):
    for name in ("q_proj", "o_proj", "gate_proj", "down_proj"):
        x, port = inputs[name], tiny.PORTS[name]
        get = lambda what: one.stats[f"layers.0.{port}.{what}"]
        h, diagonal = x.T @ x, np.sqrt((x * x).sum(0))
        assert np.abs(get("gram") - h).max(initial=0, where=np.outer(diagonal, diagonal) == 0) == 0
        assert (np.abs(get("gram") - h) <= 2e-5 * np.outer(diagonal, diagonal)).all(), port
        assert get("abs_sum") == pytest.approx(np.abs(x).sum(0), rel=1e-4, abs=1e-6)
        for what, want in (("abs_max", np.abs(x).max(0)), ("min", x.min(0)), ("max", x.max(0))):
            assert get(what) == pytest.approx(want, rel=1e-4, abs=1e-5), what
    assert one.gram("q_proj")[tiny.DEAD].max() == 0 and len(one.ids) > 3 * tiny.FFN


# ---- round to nearest -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits, symmetric, group", [(8, True, 0), (4, True, 128), (4, False, 32), (3, True, 64), (3, False, 16),
                                                    (2, False, 64), (2, True, 0)])
def test_rtn_has_the_codes_of_its_formula(one, bits, symmetric, group):
    made = one.quantize({"weights": weights(bits, symmetric, group)})
    for name in PROJ:
        q, s, z = paper.rtn(one.weight(name), bits, symmetric, group)
        l = made.layer(tiny.module(0, name), bits)
        assert (l.codes == q).all() and (l.scale == s).all() and (l.zero == z).all(), name


def test_rtn_of_a_whole_matrix(one):
    made = one.quantize({"weights": weights(8, strategy="tensor")})
    w = one.weight("down_proj")
    q, s, _ = paper.rtn(w.reshape(1, -1), 8, True)
    l = made.layer(tiny.module(0, "down_proj"), 8)
    assert (l.codes == q.reshape(w.shape)).all() and (l.scale == s).all()


# ---- static activations -----------------------------------------------------------------------------------------------
def static_scales(one, method, symmetric=True, **more):
    made = one.quantize({"weights": weights(8), "activations": {"strategy": "tensor", "symmetric": symmetric},
                         "calibration": {"method": method} | more}, calib=one.text, calib_ctx=CTX)
    return {m["module"].rsplit(".", 1)[1]: (m["input_scale"], m["input_zero_point"]) for m in made.report["modules"]}


def test_static_ranges_are_those_of_their_formulas(one, inputs):
    """Extremes exactly; the others to what a histogram of 2048 bins resolves."""
    for name, x in inputs.items():
        width = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / 2048
        assert static_scales(one, "minmax")[name][0] == pytest.approx(np.abs(x).max() / 127.5, rel=1e-4)
        scale, zero = static_scales(one, "minmax", symmetric=False)[name]
        assert scale == pytest.approx((x.max() - x.min()) / 255, rel=1e-4)
        assert abs(zero + 128 - (0 - x.min()) / scale) <= 0.51
        got = 127.5 * static_scales(one, "percentile", percentile=99.0)[name][0]
        assert abs(got - np.percentile(np.abs(x), 99)) <= 1.01 * width
        got = paper.clipped_error(x, 8, 127.5 * static_scales(one, "mse")[name][0])
        least = min(paper.clipped_error(x, 8, f * np.abs(x).max()) for f in np.linspace(0.05, 1, 191))
        assert got <= 1.01 * least, name


def test_the_entropy_of_a_clip_is_the_least(one, inputs):
    for name in ("q_proj", "down_proj"):
        x = np.abs(inputs[name])
        width = 2.0 ** np.ceil(np.log2(x.max())) / 2048
        kl = paper.entropies(np.bincount(np.minimum((x / width).astype(int), 2047).ravel(), minlength=2048), 128)
        at = 127.5 * static_scales(one, "kl")[name][0] / width
        last = int(np.ceil(x.max() / width))  # clips beyond the largest number are that number
        assert abs(at - round(at)) < 1e-3 or round(at) == last, name
        assert kl[round(at)] <= 1.01 * min(kl.values()), name


# ---- clips ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits, symmetric", [(4, True), (3, False)])
def test_clipped_weights_lose_what_the_search_over_80_clips_loses(one, bits, symmetric):
    made = one.quantize({"weights": weights(bits, symmetric, 64), "method": "clip-weights"})
    for name in PROJ:
        w = one.weight(name)
        got = ((made.layer(tiny.module(0, name), bits).values - w) ** 2).sum()
        assert got == pytest.approx(paper.clip_weights_loss(w, bits, symmetric, 64), rel=0.01), name


@pytest.mark.parametrize("bits, symmetric", [(4, True), (3, False)])
def test_clipped_outputs_lose_less_than_awqs_and_little_more_than_the_best_of_all(one, bits, symmetric):
    """Groups that take turns end where none gains alone: a few percent above the best of all 10^4 combinations of a row."""
    made = one.quantize({"weights": weights(bits, symmetric, 32), "method": "clip"})
    for name in ("q_proj", "o_proj", "gate_proj"):
        w, h = one.weight(name), one.gram(name)
        got = paper.loss(w, made.layer(tiny.module(0, name), bits).values, h)
        assert got <= 1.05 * paper.clip_outputs_best(w, h, bits, symmetric, 32), name
        assert got <= paper.clip_outputs_awq(w, h, bits, symmetric, 32), name


# ---- GPTQ -------------------------------------------------------------------------------------------------------------
GPTQ = [(4, True, 128, {}), (3, True, 64, {"damp": 0.001}), (2, False, 64, {}), (4, False, 32, {"block": 48}),
        (4, True, 0, {"act_order": False}), (3, False, 64, {"act_order": False, "static_groups": False, "damp": 0.1})]


@pytest.mark.parametrize("bits, symmetric, group, options", GPTQ)
def test_gptq_takes_the_codes_of_its_paper(one, bits, symmetric, group, options):
    """Each code is the nearest to what the columns before it left, up to ties: half a step and what fp32 moves."""
    made = one.quantize({"weights": weights(bits, symmetric, group), "method": {"name": "gptq"} | options})
    options = {k: v for k, v in options.items() if k in ("damp", "act_order")}
    for name in ("k_proj", "o_proj", "down_proj"):
        some = slice(None, None, 3)  # rows are rounded each for itself
        w, h = one.weight(name)[some], one.gram(name)
        l = made.layer(tiny.module(0, name), bits)
        _, scale, zero, furthest = paper.gptq(w, h, bits, symmetric, group, given=l.codes[some], **options)
        assert furthest < 5e-3, name
        assert l.scale[some] == pytest.approx(scale, rel=1e-5) and (l.zero[some] == zero).all()
        q, _, _, _ = paper.gptq(w, h, bits, symmetric, group, **options)
        wide = w.shape[1] // scale.shape[1]
        values = (q - np.repeat(zero, wide, 1)) * np.repeat(scale.astype(np.float64), wide, 1)
        assert paper.loss(w, l.values[some], h) == pytest.approx(paper.loss(w, values, h), rel=0.01)


def test_gptq_is_better_than_rounding(one):
    made = [one.quantize({"weights": weights(3, True, 64)} | m) for m in ({}, {"method": {"name": "gptq", "damp": 0.001}})]
    for name in PROJ:
        rtn, gptq = (paper.loss(one.weight(name), m.layer(tiny.module(0, name), 3).values, one.gram(name)) for m in made)
        assert gptq < 0.7 * rtn, name


# ---- AWQ and SmoothQuant ----------------------------------------------------------------------------------------------
NORMS = {"attn": ("input_layernorm", ("q_proj", "k_proj", "v_proj")),
         "ffn": ("post_attention_layernorm", ("gate_proj", "up_proj"))}


def balance(one, made, port):
    """What the norm in front was divided by"""
    name = f"model.layers.0.{NORMS[port][0]}.weight"
    old, new = one.weights[name], made.tensors[name]
    return np.where(new != 0, old / np.where(new != 0, new, 1), np.float32(1)).astype(np.float32)


@pytest.mark.parametrize("port", NORMS)
def test_awq_balances_as_well_as_the_best_of_its_ratios(one, port):
    made = one.quantize({"weights": weights(4, False, 32), "method": "awq"})
    names = NORMS[port][1]
    ws, h = [one.weight(n).astype(np.float64) for n in names], one.gram(names[0])
    s = balance(one, made, port).astype(np.float64)
    lost = lambda s: paper.awq_loss(ws, s, h, 4, False, 32)
    mean = one.stat(names[0], "abs_sum") / len(one.ids)
    best = min(lost(c) for c in paper.awq_scales(ws, mean, 32))
    assert lost(s) <= 1.01 * best < 0.95 * lost(np.ones(len(s)))
    assert s.max() > 1.5 * s.min()


def test_awq_rounds_and_clips_what_it_balanced(one):
    made = one.quantize({"weights": weights(4, False, 32), "method": "awq"})
    for name in ("q_proj", "k_proj"):
        q, s, z = paper.rtn(one.weight(name) * balance(one, made, "attn"), 4, False, 32)
        l = made.layer(tiny.module(0, name), 4)
        assert (l.codes == q).mean() > 0.9999 and l.scale == pytest.approx(s, rel=1e-6) and (l.zero == z).all()
    s = balance(one, made, "ffn")
    w, h = one.weight("gate_proj") * s, one.gram("gate_proj") / np.outer(s, s)
    got = paper.loss(w, made.layer(tiny.module(0, "gate_proj"), 4).values, h)
    assert got <= 1.05 * paper.clip_outputs_best(w, h, 4, False, 32)


@pytest.mark.parametrize("alpha", [0.5, 0.85])
def test_smoothquant_has_the_scales_of_its_paper(one, alpha):
    made = one.quantize({"weights": weights(8), "activations": {"bits": 8, "strategy": "token"},
                         "method": {"name": "smoothquant", "alpha": alpha}})
    for port, (_, names) in NORMS.items():
        want = paper.smooth_scales([one.weight(n) for n in names], one.stat(names[0], "abs_max"), alpha)
        s = balance(one, made, port)
        alive = np.arange(len(s)) != tiny.DEAD
        assert s[alive] == pytest.approx(want[alive], rel=1e-5)
        for name in names:
            q, scale, _ = paper.rtn(one.weight(name) * s, 8, True)
            l = made.layer(tiny.module(0, name), 8)
            assert np.abs(l.codes - q).max() <= 1 and (l.codes == q).mean() > 0.9999
            assert l.scale == pytest.approx(scale, rel=1e-6)


# ---- SpQR, LLM.int8() -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [4, 3])
def test_spqr_loses_what_its_paper_loses(one, bits):
    made = one.quantize({"weights": weights(bits, False, 16), "method": "spqr"})
    for name in PROJ:
        w, h = one.weight(name), one.gram(name)
        l = made.layer(tiny.module(0, name), bits)
        want, share = paper.spqr(w, h, bits)
        assert paper.loss(w, l.nested_values, h) == pytest.approx(paper.loss(w, want, h), rel=0.01), name
        assert (l.singles != 0).mean() == pytest.approx(share, rel=0.03) and 0.001 < share < 0.1


def test_llm_int8_keeps_the_columns_that_reach_six(one):
    made = one.quantize({"weights": weights(8), "activations": {"bits": 8, "strategy": "token"}, "method": "llm-int8"})
    counts = []
    for name in PROJ:
        w = one.weight(name)
        l = made.layer(tiny.module(0, name), 8)
        want = np.flatnonzero(one.stat(name, "abs_max") >= 6)
        columns, values = l.outliers if "outlier_columns" in l.part else (np.zeros(0), np.zeros((0, len(w))))
        assert (columns == want).all() and (values == w[:, want].T.astype(np.float16)).all(), name
        rest = w.copy()
        rest[:, want] = 0
        s = (np.abs(rest).max(1, keepdims=True) / np.float32(127)).astype(np.float32)
        assert (l.codes == np.rint(rest / s)).all() and (l.scale == s).all()
        counts.append(len(want))
    assert max(counts) > 3 and min(counts) < tiny.HIDDEN / 2


# ---- data-free codebooks ----------------------------------------------------------------------------------------------
def test_nf4_takes_the_nearest_quantile(one):
    made = one.quantize({"weights": weights(4, True, 64), "method": "nf4"})
    for name in PROJ:
        w = one.weight(name)
        part = {k[len(tiny.module(0, name)) + 1:]: v for k, v in made.tensors.items() if k.startswith(tiny.module(0, name) + ".")}
        both = part["weight"].reshape(-1)
        codes = np.stack([both >> 4, both & 15], 1).reshape(w.shape)
        want, most, sure = paper.nf4(w, 64)
        assert (part["weight.absmax"].reshape(most.shape) == most).all()
        assert part["weight.quant_map"] == pytest.approx(paper.NF4, abs=1e-7)
        assert (codes == want)[sure > 1e-6].all() and (sure > 1e-6).mean() > 0.999, name


@pytest.mark.parametrize("refine", [False, True])
def test_twn_has_the_codes_of_its_paper(one, refine):
    made = one.quantize({"weights": weights(2), "method": {"name": "twn", "refine": refine}})
    for name in PROJ:
        q, s = paper.twn(one.weight(name), refine)
        l = made.layer(tiny.module(0, name), 2)
        assert (l.codes == q).all() and l.scale == pytest.approx(s, rel=1e-6), name


def test_absmean_and_binary_have_the_codes_of_their_papers(one):
    for name in PROJ:
        q, s = paper.absmean(one.weight(name))
        l = one.quantize({"weights": weights(2, strategy="tensor"), "method": "absmean"}).layer(tiny.module(0, name), 2)
        assert (l.codes == q).all() and l.scale == pytest.approx(s, rel=1e-6), name
        q, s = paper.binary(one.weight(name))
        l = one.quantize({"weights": weights(1), "method": "binary"}).layer(tiny.module(0, name), 1)
        bits = np.unpackbits(l.part["weight_packed"].view(np.uint8), axis=1, bitorder="little")[:, :l.shape[1]]
        assert (2 * bits.astype(int) - 1 == q).all() and l.scale == pytest.approx(s, rel=1e-6), name


# ---- QuIP# ------------------------------------------------------------------------------------------------------------
def test_the_codebook_is_the_papers():
    book = paper.e8p_book()
    assert (book[0] == 0.75).all() and (book[1] == 0.25).all()
    assert len(np.unique(book, axis=0)) == 65536 and (book ** 2).sum(1).mean() == pytest.approx(9.57, abs=0.01)
    x = np.random.default_rng(3).standard_normal((40, 8)) * np.linspace(0.3, 2.5, 40)[:, None]
    nearest = ((x[:, None] - book) ** 2).sum(2).min(1)
    assert ((x - paper.E8P(2).nearest(x)) ** 2).sum(1) == pytest.approx(nearest)


@pytest.mark.parametrize("bits, names", [(2, ("q_proj", "down_proj")), (4, ("o_proj",))])
def test_quip_loses_what_its_paper_loses(one, bits, names):
    """Rotated with the signs in the file, in the file's scale."""
    made, code = one.quantize({"weights": weights(bits, strategy="tensor"), "method": "quip"}), paper.E8P(bits)
    for name in names:
        w, l = one.weight(name).astype(np.float64), made.layer(tiny.module(0, name), bits)
        n, k = w.shape
        left = paper.spread_matrix(n) * l.signs("output_signs")
        right = l.signs("input_signs")[:, None] * paper.spread_matrix(k)
        h = one.gram(name)
        h = right.T @ (h / np.diag(h).mean()) @ right + 0.01 * np.eye(k)
        unit = l.scale.item() * (4 if bits == 2 else 28)  # the file's scale is that of whole numbers
        some = slice(None, None, 5)  # rows are rounded each for itself
        v = (left @ w @ right / unit)[some]
        lost = lambda q: paper.loss(v, q, h) * unit ** 2
        got = lost(code.value(l.words).reshape(n, k)[some])
        assert got == pytest.approx(lost(paper.quip_round(v, h, code, 10, careful=True)), rel=0.01), name
        authors = v * unit / np.sqrt((w * w).mean()) * 1.03
        size = unit / np.sqrt((w * w).mean()) * 1.03
        plain = paper.loss(authors, paper.quip_round(authors, h, code, 10, careful=False), h) * (unit / size) ** 2
        assert got <= 1.01 * plain, name


# ---- QuaRot -----------------------------------------------------------------------------------------------------------
def test_a_rotated_model_computes_the_same(nibble, one):
    """Dense but for one layer, whose weight is put back here: the rest is rotated and nothing else."""
    made = one.quantize({"weights": None, "rotate": True, "overrides": [{"match": tiny.module(0, "k_proj"), "weights": weights(8)}]})
    t = dict(made.tensors)
    q = np.linalg.lstsq(one.weights["model.embed_tokens.weight"].astype(np.float64), t["model.embed_tokens.weight"], rcond=None)[0]
    assert np.abs(q @ q.T - np.eye(tiny.HIDDEN)).max() < 1e-5
    assert np.abs(np.abs(q) - tiny.HIDDEN ** -0.5).max() < 1e-5  # a Hadamard matrix with signs
    norm = one.weights["model.layers.0.input_layernorm.weight"]
    assert (t["model.layers.0.input_layernorm.weight"] == 1).all()
    k = (one.weight("k_proj") * norm) @ q
    stored = made.layer(tiny.module(0, "k_proj"), 8).values
    assert 1e-4 < np.abs(stored - k).max() / np.abs(k).max() < 1 / 127  # it is that weight, in 8 bits
    t[tiny.module(0, "k_proj") + ".weight"] = k
    ids = one.ids[:CTX]
    want = tiny.forward(one.weights, ids)[0]
    assert np.abs(tiny.forward(t, ids)[0] - want).max() < 1e-5 * np.abs(want).max()
    with nibble.Model(one.model) as m:
        assert np.abs(m.logits(ids) - want).max() < 1e-5 * np.abs(want).max()


# ---- mixed precision --------------------------------------------------------------------------------------------------
CHOICES = [weights(2, False, 64), weights(3, False, 64), weights(4, False, 32), weights(8), None]


MIXED = {"calib_ctx": CTX, "calib_tokens": 4 * CTX}


@pytest.mark.parametrize("bits, by", [(2.9, "error"), (5.5, "kl")])
def test_a_mixture_is_the_best_of_all_assignments(one, bits, by):
    made = one.quantize({"weights": weights(4, False, 64), "search": {"target_bits": bits, "by": by, "windows": 2, "choices": CHOICES}},
                        calib=one.text, **MIXED)
    found = made.report["search"]
    assert [r["module"] for r in found["modules"]] == [tiny.module(0, n) for n in PROJ]
    sizes, costs = (np.array([[c[key] for c in r["choices"]] for r in found["modules"]]) for key in ("bytes", by))
    every = np.array(list(itertools.product(range(5), repeat=7)))
    size, cost = (x[np.arange(7), every].sum(1) for x in (sizes, costs))
    budget = bits / 8 * sum(one.weight(n).size for n in PROJ)
    best = cost[size <= budget].min()
    picked = [[c["scheme"] for c in r["choices"]].index(r["scheme"]) for r in found["modules"]]
    assert sizes[np.arange(7), picked].sum() <= budget
    assert costs[np.arange(7), picked].sum() == pytest.approx(best, rel=1e-9) == found["expected_cost"]


def test_the_costs_of_a_mixture_are_errors_and_divergences(one):
    made = one.quantize({"weights": weights(4, False, 64), "search": {"target_bits": 5.5, "windows": 9, "choices": CHOICES}},
                        calib=one.text, **MIXED)
    text = windows(one.ids[:4 * CTX], CTX)
    dense = [tiny.forward(one.weights, w) for w in text]
    for row, name in zip(made.report["search"]["modules"], PROJ):
        w, x = one.weight(name), np.concatenate([seen[0, tiny.PORTS[name]] for _, seen in dense])
        for i, c in enumerate(CHOICES[:4]):
            q, s, z = paper.rtn(w, c["bits"], c["symmetric"], c.get("group_size", 0))
            size = w.shape[1] // s.shape[1]
            values = (q - np.repeat(z, size, 1)) * np.repeat(s.astype(np.float64), size, 1)
            error = ((x @ (values - w).T) ** 2).sum() / ((x @ w.T) ** 2).sum()
            assert row["choices"][i]["error"] == pytest.approx(error, rel=1e-3)
            if i == 0 and name in ("k_proj", "down_proj"):
                other = one.weights | {tiny.module(0, name) + ".weight": values}
                kl = [tiny.divergence(d[0], tiny.forward(other, w)[0]) for d, w in zip(dense, text)]
                assert row["choices"][i]["kl"] == pytest.approx(np.mean(kl), rel=0.02), name
        assert row["choices"][4]["error"] == row["choices"][4]["kl"] == 0


# ---- keys by channel --------------------------------------------------------------------------------------------------
KEYS = {"weights": None, "kv_dtype": "int4", "kv_keys": "channel"}


@pytest.fixture(scope="module")
def key_grid(one):
    made = one.quantize(KEYS, calib=one.text, calib_ctx=CTX)
    return [made.tensors[f"model.layers.0.self_attn.k_channel_{what}"].reshape(-1, tiny.HEAD) for what in ("shift", "scale")]


def test_key_grids_are_those_of_their_formula(one, inputs, key_grid):
    keys = inputs["k_proj"] @ one.weight("k_proj").astype(np.float64).T
    keys = np.concatenate([tiny.rope(w.reshape(len(w), -1, tiny.HEAD)) for w in windows(keys, CTX)])
    assert one.quantize(KEYS, calib=one.text, calib_ctx=CTX).report["kv_keys"] == "channel"
    shift, scale = paper.key_grid(keys)
    assert (np.abs(key_grid[0] - shift) <= 1e-5 * keys.std(0)).all()
    assert key_grid[1] == pytest.approx(scale, rel=1e-5)
    error = lambda s: (s ** 2).sum(-1) * (keys.var(0) / s ** 2).sum(-1)
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert (error(scale) < error(scale * np.exp(0.1 * rng.standard_normal(scale.shape)))).all()


@pytest.mark.parametrize("kind, store", [("int8", paper.kv_int8), ("int4", paper.kv_int4)])
def test_a_cache_with_keys_by_channel_moves_the_logits_as_its_formula_does(nibble, one, key_grid, kind, store):
    shift, scale = (x.astype(np.float64) for x in key_grid)
    by_channel = lambda k: store((k - shift) / scale) * scale + shift
    want = [tiny.divergence(tiny.forward(one.weights, w)[0], tiny.forward(one.weights, w, store_k=by_channel, store_v=store)[0])[:-1]
            for w in windows(one.ids[:4 * CTX], CTX)]
    with nibble.Model(one.quantize(KEYS, calib=one.text, calib_ctx=CTX).path) as m, nibble.Model(one.model) as base:
        got = nibble.evaluate(m, one.text, ctx=CTX, base=base, max_windows=4, kv_dtype=kind)
    assert got["mean_kld"] == pytest.approx(np.mean(want), rel=0.02)


# ---- the KV cache -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, store", [("int8", paper.kv_int8), ("int4", paper.kv_int4)])
def test_a_quantized_cache_moves_the_logits_as_its_formula_does(nibble, one, kind, store):
    want = [tiny.divergence(tiny.forward(one.weights, w)[0], tiny.forward(one.weights, w, store_k=store, store_v=store)[0])[:-1]
            for w in windows(one.ids[:4 * CTX], CTX)]
    with nibble.Model(one.model) as m, nibble.Model(one.model) as base:
        got = nibble.evaluate(m, one.text, ctx=CTX, base=base, max_windows=4, kv_dtype=kind)
    assert got["mean_kld"] == pytest.approx(np.mean(want), rel=0.02)
