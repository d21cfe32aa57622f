"""nibble against Hugging Face Transformers in fp32: dense models, and quantized folders through compressed-tensors."""
import json
import os
import shutil
import warnings

import numpy as np
import pytest

MISSING = "the {} package is missing: ./dev oracle installs it"
torch = pytest.importorskip("torch", reason=MISSING.format("torch"))
transformers = pytest.importorskip("transformers", reason=MISSING.format("transformers"))
safetensors_torch = pytest.importorskip("safetensors.torch", reason=MISSING.format("safetensors"))
pytest.importorskip("compressed_tensors", reason=MISSING.format("compressed-tensors"))

# Two fp32 computations of the same numbers in different orders: 2e-3 on logits of magnitude 20 is 1e-4 relative, some
# hundred roundings of 2^-24 through a dozen layers.  The measured difference is about 2e-5.
FP32_BOUND = 2e-3


def load_hf(folder, **options):
    """The model in fp32 and what the loader had to say about the folder's tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options)
    return model.eval(), info


def hf_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].float().numpy()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.fixture(scope="module", params=["demo", "prose-llama"])
def dense(request, nibble, shared):
    """folder, text file, the model in nibble and in Transformers"""
    if request.param == "demo":
        folder, text = request.getfixturevalue("demo"), request.getfixturevalue("demo_text")
    else:
        folder = shared("models/prose-llama")
        text = os.path.join(folder, "val.txt")
    with nibble.Model(folder) as ours:
        yield folder, text, ours, load_hf(folder)[0]


def some_ids(model, text, n):
    with open(text, encoding="utf-8") as f:
        return model.tokenize(f.read(8 * n))[:min(n, model.info["max_context"])]


# ---- dense models ----------------------------------------------------------------------------------------------------
def test_logits_agree_at_every_position(dense):
    _, text, ours, hf = dense
    ids = some_ids(ours, text, 800)
    assert np.abs(ours.logits(ids) - hf_logits(hf, ids)).max() < FP32_BOUND


def test_logits_agree_for_one_token_and_for_odd_lengths(dense):
    _, text, ours, hf = dense
    ids = some_ids(ours, text, 800)
    for start, n in ((0, 1), (5, 2), (7, 17), (40, 33), (3, 129)):
        part = ids[start:start + n]
        assert np.abs(ours.logits(part) - hf_logits(hf, part)).max() < FP32_BOUND, (start, n)


def test_stored_reference_logits_agree(nibble, shared):
    folder = shared("models/prose-llama")
    stored = np.load(os.path.join(folder, "reference.npz"))
    with nibble.Model(folder) as m:
        assert np.abs(m.logits(stored["ids"]) - stored["logits"]).max() < FP32_BOUND


def test_greedy_tokens_are_the_same(nibble, dense):
    _, text, ours, hf = dense
    ids = some_ids(ours, text, 800)
    prompts = [ids[:1], ids[:7], ids[:1] + ids[50:90], ids[:200]]
    with nibble.Engine(ours, max_batch=len(prompts), max_context=256) as engine:
        numbers = [engine.submit(p, max_tokens=24) for p in prompts]
        got, left = {n: [] for n in numbers}, len(numbers)
        while left:
            for event in engine.step():
                if event.type == "token":
                    got[event.id].append(event.token)
                else:
                    left -= 1
    eos = ours.tokenizer.eos
    for prompt, number in zip(prompts, numbers):
        with torch.no_grad():
            out = hf.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                              do_sample=False, max_new_tokens=24, pad_token_id=eos)
        expected = out[0, len(prompt):].tolist()
        assert without_eos(got[number], eos) == without_eos(expected, eos)


def without_eos(ids, eos):
    return ids[:ids.index(eos)] if eos in ids else ids


@pytest.mark.parametrize("name", ["val.txt ctx 256", "val.txt ctx 512",
                                  "wiki.test.raw first 300000 characters ctx 512"])
def test_perplexity_is_the_one_of_the_hf_protocol(nibble, shared, tmp_path, name):
    folder = shared("models/prose-llama")
    with open(os.path.join(folder, "ppl.json")) as f:
        stored = json.load(f)[name]
    text = os.path.join(folder, "val.txt")
    if name.startswith("wiki"):
        text = tmp_path / "wiki.txt"
        with open(shared("text/wiki.test.raw"), encoding="utf-8", newline="") as f:
            text.write_bytes(f.read(300000).encode("utf-8"))
    with nibble.Model(folder) as m:
        r = nibble.evaluate(m, text, ctx=int(name.split()[-1]))
    assert (r["tokens"], r["windows"]) == (stored["tokens"], stored["windows"])
    assert r["perplexity"] == pytest.approx(stored["perplexity"], rel=1e-3)


# ---- quantized folders -----------------------------------------------------------------------------------------------
WEIGHT_ONLY = ["w8a16", "w8a16-g128", "w8-tensor", "w4a16", "w4a16-channel", "w4a16-g128", "w4a16-g64",
               "w4a16-g32-asym", "w4-mixed"]
INTEGER = ["w8a8-dynamic", "w8a8-static", "w8a8-static-asym", "w4a8"]


def test_every_recipe_is_compared(root):
    names = {f[:-len(".json")] for f in os.listdir(os.path.join(root, "configs", "recipes")) if f.endswith(".json")}
    assert names == set(WEIGHT_ONLY + INTEGER)


@pytest.fixture(scope="module")
def quantized(nibble, dense, tmp_path_factory):
    """A function from a recipe to folder, ids, nibble's logits of the quantized model, and of the dense one."""
    folder, text, ours, _ = dense
    base = tmp_path_factory.mktemp("quantized")
    ids = some_ids(ours, text, 200)
    dense_logits = ours.logits(ids)

    def make(recipe):
        out = str(base / recipe)
        nibble.quantize(folder, out, recipe=recipe, calib=text, calib_tokens=1024, calib_ctx=256,
                        overwrite=True)
        with nibble.Model(out) as q:
            return out, ids, q.logits(ids), dense_logits

    yield make
    shutil.rmtree(base)


def assert_every_tensor_was_understood(info):
    assert {k: list(v) for k, v in info.items() if v and k != "error_msgs"} == {}
    assert not info.get("error_msgs")


@pytest.mark.parametrize("recipe", WEIGHT_ONLY)
def test_weight_only_folders_mean_the_same_to_transformers(quantized, recipe):
    folder, ids, ours, dense_logits = quantized(recipe)
    if recipe.endswith("asym"):
        # compressed-tensors 0.20 declares packed zero points as unpacked when it prepares an empty model, so only
        # dequantize=True can read such files.  That multiplies in the scales' type: bf16 as stored, so widen them
        # (exact) to see the codes and not its rounding.
        widen(folder)
        hf, info = load_hf(folder, quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    else:
        hf, info = load_hf(folder)
    assert_every_tensor_was_understood(info)
    theirs = hf_logits(hf, ids)
    # Both multiply fp32 activations by (code - zero) * scale in fp32: nothing but the order of the sums may differ.
    assert np.abs(ours - theirs).max() < FP32_BOUND
    assert rms(ours - dense_logits) > 100 * rms(ours - theirs), "the recipe changed nothing: the test proves nothing"


def widen(folder):
    path = os.path.join(folder, "model.safetensors")
    tensors = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in safetensors_torch.load_file(path).items()}
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


def absmax_over_127(value, args, module, global_scale=None):
    """nibble's scale of a token: absmax / 127, which maps the largest value to the code 127."""
    scale = value.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
    return scale, torch.zeros_like(scale, dtype=torch.int8)


@pytest.mark.parametrize("recipe", INTEGER)
def test_integer_folders_mean_the_same_to_transformers(nibble, quantized, monkeypatch, recipe):
    """Transformers quantizes and dequantizes activations in fp32 where nibble multiplies integers.  With the same scales
    the two agree like dense models until a value lies within fp32 rounding of a tie: then its code differs by one,
    which no later layer undoes (Transformers in fp32 and in fp64 are just as far apart).  So: short texts, each with its
    own luck.  Most must agree to fp32, and a flipped code must stay below the noise of quantization itself."""
    from compressed_tensors.quantization.lifecycle import forward

    monkeypatch.setattr(forward, "compute_dynamic_scales_and_zp", absmax_over_127)
    folder, ids, _, dense_logits = quantized(recipe)
    hf, info = load_hf(folder)
    assert_every_tensor_was_understood(info)
    exact, differences = 0, []
    with nibble.Model(folder) as q:
        texts = [ids[i:i + 4] for i in range(0, len(ids), 4)]
        for text in texts:
            differences.append(q.logits(text) - hf_logits(hf, text))
            exact += np.abs(differences[-1]).max() < FP32_BOUND
        noise = rms(q.logits(ids) - dense_logits)
    print(f"{recipe}: {exact} of {len(texts)} exact, rms {rms(differences):.2g}, noise {noise:.2g}")
    assert exact > 0.5 * len(texts)
    assert rms(differences) < 0.5 * noise


@pytest.mark.parametrize("recipe", ["w8a8-dynamic", "w4a8"])
def test_the_scale_of_compressed_tensors_costs_no_more_than_quantization(quantized, recipe):
    """As it comes, compressed-tensors takes absmax / 127.5 for a token: other roundings of the same size, so the two
    differ by about as much as one of them differs from exact activations."""
    folder, ids, ours, dense_logits = quantized(recipe)
    theirs = hf_logits(load_hf(folder)[0], ids)
    assert rms(ours - theirs) < rms(ours - dense_logits)
    assert rms(theirs - dense_logits) == pytest.approx(rms(ours - dense_logits), rel=0.25)
