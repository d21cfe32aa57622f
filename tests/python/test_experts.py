"""Calibrated methods on mixtures of experts: what an expert is judged by are the rows that chose it, as a float64 pass says; an expert
that nothing reaches is rounded by its weights; a balance leaves the router's choice as it was; memory that is short changes no byte.
"""
import json
import os
import shutil

import numpy as np
import pytest

import nibble
import paper_methods as paper
import test_architectures as arch
from quantized_folder import Folder
from tiny_llama import read_safetensors

CTX, TOKENS, UNREACHED = 128, 900, 3
SIZES = dict(vocab_size=3072, intermediate_size=96, hidden_size=64)
arch.VARIANTS |= {
    "calibrated_mixtral": dict(architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=6,
                               num_experts_per_tok=2, sliding_window=None, **SIZES),
    # Transformers 5 has num_local_experts here, too
    "calibrated_qwen3_moe": dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", head_dim=32, num_local_experts=7,
                                 num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True, **SIZES)}


class Setup:
    def __init__(self, folder, name, demo, text):
        self.folder, self.model = str(folder), str(folder / "model")
        self.c, _ = arch.make_folder(self.model, name)
        self.block, self.names = arch.EXPERTS[self.c["model_type"]]
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(os.path.join(demo, file), os.path.join(self.model, file))
        # of experts with equal logits the lower one is chosen: with two a token 1 and 2 come before 3, always
        arch.change_tensors(self.model, lambda key, x: x[[0, 1, 1, 1] + list(range(4, len(x)))]
                            if key.endswith(self.block + "gate.weight") else x)
        self.weights = read_safetensors(os.path.join(self.model, "model.safetensors"))
        self.text = str(folder / "text.txt")
        with open(text, encoding="utf-8") as f, open(self.text, "w", encoding="utf-8") as out:
            out.write(f.read()[:8000])
        with nibble.Model(self.model) as m, open(self.text, encoding="utf-8") as f:
            self.ids = m.tokenize(f.read())[:TOKENS]

    def expert(self, layer, e, which):
        return f"model.layers.{layer}.{self.block}experts.{e}.{self.names[which]}"

    def quantize(self, out, recipe, **more):
        path = os.path.join(self.folder, out)
        with open(path + ".json", "w") as f:
            json.dump(recipe, f)
        nibble.quantize(self.model, path, recipe=path + ".json", calib=self.text, calib_ctx=CTX, calib_tokens=TOKENS, **more)
        return Folder(path)

    def seen(self, monkeypatch):
        """{(layer, expert): (inputs of gate and up, inputs of down)} of all rows that chose it, in double"""
        rows = {}

        def record(c, h, linear, p):
            s = linear(h, p + self.block + "gate")
            chosen = np.argsort(-s, axis=-1, kind="stable")[:, :c["num_experts_per_tok"]]
            for e in range(s.shape[1]):
                x = h[(chosen == e).any(-1)]
                g, u = (linear(x, f"{p}{self.block}experts.{e}.{w}") for w in self.names[:2])
                rows.setdefault((int(p.split(".")[2]), e), []).append((x, g / (1 + np.exp(-g)) * u))
            return original(c, h, linear, p)

        original = arch.experts
        monkeypatch.setattr(arch, "experts", record)
        w = {k: v.astype(np.float64) for k, v in self.weights.items()}
        for at in range(0, len(self.ids), CTX):
            arch.forward(self.c, w, self.ids[at:at + CTX])
        return {k: tuple(np.concatenate(x) for x in zip(*v)) for k, v in rows.items()}


@pytest.fixture(scope="module", params=["calibrated_mixtral", "calibrated_qwen3_moe"])
def one(request, tmp_path_factory, demo, demo_text):
    return Setup(tmp_path_factory.mktemp("moe"), request.param, demo, demo_text)


def recipe(method, bits=4, **options):
    return {"weights": {"bits": bits, "symmetric": True, "strategy": "group", "group_size": 32}, "method": {"name": method} | options}


def test_an_expert_is_judged_by_the_rows_that_chose_it(one, monkeypatch, caplog):
    stats = os.path.join(one.folder, "stats")
    made = one.quantize("gptq", recipe("gptq"), sequential=False, stats=stats)
    said = [r.getMessage().split(":")[0] for r in caplog.records if "this expert" in r.getMessage()]
    assert said == [one.expert(i, UNREACHED, 0).rsplit(".", 1)[0] for i in range(2)]
    stat = read_safetensors(stats)
    for (layer, e), inputs in one.seen(monkeypatch).items():
        for port, x in zip(("ffn", "down"), inputs):
            at = f"layers.{layer}.experts.{e}.{port}."
            assert stat[at + "rows"][0] == len(x)
            h = x.T @ x
            assert np.abs(stat[at + "gram"] - h).max() <= 1e-4 * max(np.abs(h).max(), 1)
        for which, port in enumerate(("ffn", "ffn", "down")):
            name = one.expert(layer, e, which)
            w, l = one.weights[name + ".weight"], made.layer(name, 4)
            if e == UNREACHED:
                assert len(inputs[0]) == 0
                assert (l.codes == paper.rtn(w, 4, True, 32)[0]).all(), name
            else:
                assert len(inputs[0]) >= 32
                h = stat[f"layers.{layer}.experts.{e}.{port}.gram"].astype(np.float64)
                assert paper.gptq(w, h, 4, True, 32, given=l.codes)[3] < 5e-3, name
    reported = {row["module"]: row for row in made.report["modules"]}
    assert len(reported) == 2 * (4 + 3 * len([k for k in one.seen(monkeypatch) if k[0] == 0]))
    assert all(np.isfinite(row["sqnr_db"]) and "output_sqnr_db" in row for row in reported.values())


def test_statistics_are_read_again_and_memory_that_is_short_changes_nothing(one):
    stats = os.path.join(one.folder, "stats-awq")
    folders = [one.quantize(f"awq{i}", recipe("awq"), sequential=False, **more)
               for i, more in enumerate(({}, {"stats": stats}, {"stats": stats}))]
    for other in folders[1:]:
        assert all((other.tensors[k] == v).all() for k, v in folders[0].tensors.items())
    with pytest.raises(nibble.Error, match="allow at least that") as error:
        one.quantize("short", recipe("gptq"), calib_memory=1)
    least = float(str(error.value).split(" take ")[1].split(" MiB")[0])
    whole, turns = one.quantize("whole", recipe("gptq")), one.quantize("turns", recipe("gptq"), calib_memory=int((least + 0.06) * 2**20))
    assert all((turns.tensors[k] == v).all() for k, v in whole.tensors.items())
    rows = [row for row in turns.report["modules"] if ".experts." in row["module"]]
    assert rows and not any(row.get("output_sqnr_db") for row in rows)  # they did take turns


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_a_balance_reaches_router_and_experts_alike(one, method):
    """At 8 bits the model computes what it did; a router or an expert that is left out shows at once."""
    r = recipe(method, 8)
    if method == "smoothquant":
        r = {"weights": {"bits": 8, "symmetric": True, "strategy": "channel"}, "activations": {"bits": 8, "strategy": "token"},
             "method": method}
    made = one.quantize(method, r)
    norm = "model.layers.0.post_attention_layernorm.weight"
    s = one.weights[norm] / made.tensors[norm]
    assert s.max() > 1.1 * s.min()
    gate = f"model.layers.0.{one.block}gate.weight"
    assert made.tensors[gate] == pytest.approx(one.weights[gate] * s, rel=1e-5)
    for e in (0, UNREACHED):
        l = made.layer(one.expert(0, e, 0), 8)
        w = one.weights[one.expert(0, e, 0) + ".weight"] * s
        assert np.abs(l.values - w).max() <= 0.51 * l.scale.max()


def int8(**more):
    return {"weights": {"bits": 8, "symmetric": True, "strategy": "channel"}, "activations": {"bits": 8, "strategy": "token"}} | more


@pytest.fixture(scope="module")
def error(one):
    """Of the logits of a recipe: the median over tokens, since a token near a tie of two experts goes elsewhere."""
    ids = one.ids[:CTX]
    with nibble.Model(one.model) as m:
        want = m.logits(ids)
    known = {}

    def of(r):
        key = json.dumps(r)
        if key not in known:
            one.quantize(f"near{len(known)}", r)
            with nibble.Model(os.path.join(one.folder, f"near{len(known)}")) as m:
                known[key] = np.median(np.abs(m.logits(ids) - want).max(-1))
        return known[key]

    return of


@pytest.mark.parametrize("method", ["gptq", "awq", "clip", "spqr", "llm-int8", "static"])
def test_methods_lose_no_more_than_rounding_does(error, method):
    spqr = {"weights": {"bits": 4, "symmetric": False, "strategy": "group", "group_size": 16}, "method": "spqr"}
    static = int8(activations={"bits": 8, "strategy": "tensor"})
    r = {"spqr": spqr, "llm-int8": int8(method="llm-int8"), "static": static}.get(method, recipe(method))
    plain = int8() if r["weights"]["bits"] == 8 else recipe("rtn")
    assert error(r) < (2 if method == "static" else 1.2) * error(plain)  # one range for all tokens costs something


@pytest.mark.parametrize("method, what", [("w4-quip", "a method that rotates weights"), ("w4a8kv4-rotated", "a rotated recipe"),
                                          ("mixed", "a search for bits")])
def test_what_cannot_work_says_so(one, root, tmp_path, method, what):
    with open(os.path.join(root, f"configs/recipes/{method}.json")) as f:
        (tmp_path / "r.json").write_text(f.read().replace("128", "32"))  # groups that these layers have
    with pytest.raises(nibble.Error, match=f"is a mixture of experts, for which {what} is not there yet"):
        nibble.quantize(one.model, str(tmp_path / "none"), recipe=str(tmp_path / "r.json"), calib=one.text)
