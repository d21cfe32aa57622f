"""The Python package, end to end on the demo model."""
import gc
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

PROMPTS = ["Return the number of", "The", "def add(a, b):", "A list is a sequence", "x = 1"]


def trees_equal(a, b):
    names = sorted(os.listdir(a))
    return names == sorted(os.listdir(b)) and all(
        open(os.path.join(a, n), "rb").read() == open(os.path.join(b, n), "rb").read() for n in names)


# ---- tokenizer -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["", " ", "Hello, world!", "naïve café — 東京 🙂\n\n\tx", "nul \0 inside", "a" * 5000])
def test_text_survives_the_round_trip(model, text):
    ids = model.tokenize(text, special=False)
    assert all(type(i) is int for i in ids)
    assert model.detokenize(ids) == text
    assert model.tokenize(text.encode("utf-8"), special=False) == ids


def test_special_adds_bos_and_skip_special_drops_it(model):
    ids = model.tokenize("word")
    assert ids == [model.tokenizer.bos] + model.tokenize("word", special=False)
    assert model.detokenize(ids, skip_special=True) == "word"


def test_plain_makes_the_text_of_special_tokens_ordinary(model):
    marker = model.detokenize([model.tokenizer.bos])
    assert model.tokenize(marker, special=False) == [model.tokenizer.bos]
    plain = model.tokenize(marker, special=False, plain=True)
    assert model.tokenizer.bos not in plain and model.detokenize(plain) == marker


def test_streamed_pieces_join_to_the_whole_text(nibble, demo):
    text = "naïve café — 東京 🙂!"
    with nibble.Tokenizer(demo) as tokenizer, tokenizer.stream() as stream:
        ids = tokenizer.tokenize(text, special=False)
        pieces = [stream.feed(i) for i in ids] + [stream.flush()]
    assert "".join(pieces) == text
    assert len([p for p in pieces if p]) > 1
    assert not any("\ufffd" in p for p in pieces)


def test_ids_may_be_a_list_an_array_or_nothing_but_not_floats(model):
    ids = model.tokenize("Hello there")
    assert model.detokenize(np.array(ids, dtype=np.int64)) == model.detokenize(ids)
    assert model.detokenize(np.array(ids * 2, dtype=np.int32)[::2]) == model.detokenize((ids * 2)[::2])
    assert model.detokenize([]) == ""
    for wrong in ([1.5], [[1, 2]], ["1"]):
        with pytest.raises(TypeError, match="token ids"):
            model.detokenize(wrong)
    with pytest.raises(ValueError, match="32 bits"):
        model.logits([2**31])


# ---- logits ----------------------------------------------------------------------------------------------------------
def test_logits_have_the_documented_shape_and_type(model):
    ids = model.tokenize("The list of numbers")
    scores = model.logits(ids)
    assert scores.dtype == np.float32 and scores.flags.c_contiguous
    assert scores.shape == (len(ids), model.info["vocab_size"])
    assert np.isfinite(scores).all()


def test_logits_of_a_prefix_are_the_first_rows(model):
    ids = model.tokenize("The list of numbers is sorted in place.")
    whole, part = model.logits(ids), model.logits(ids[:4])
    # The same sums in the same order: a row does not depend on how many rows are computed with it.
    assert np.array_equal(whole[:4], part)


def test_logits_are_the_same_from_several_threads(model):
    ids = model.tokenize("Any number of threads may use one model.")
    results = [None] * 4
    expected = model.logits(ids)

    def work(i):
        results[i] = model.logits(ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(r, expected) for r in results)


# ---- generation ------------------------------------------------------------------------------------------------------
def greedy_by_logits(model, prompt, n):
    """The definition of greedy: the best score, then again with that token."""
    ids = model.tokenize(prompt)
    start = len(ids)
    while len(ids) < start + n:
        best = int(model.logits(ids)[-1].argmax())
        if best == model.tokenizer.eos:
            break
        ids.append(best)
    return model.tokenizer.detokenize(ids, skip_special=True)[len(prompt):]


def test_greedy_text_follows_the_best_logit(model):
    assert model.generate(PROMPTS[0], max_tokens=12) == greedy_by_logits(model, PROMPTS[0], 12)


def test_a_batch_gives_each_request_what_it_gets_alone(nibble, model):
    alone = [model.generate(p, max_tokens=10) for p in PROMPTS]
    with nibble.Engine(model, max_batch=3, max_context=128) as engine:
        together = engine.generate_batch([{"prompt": p} for p in PROMPTS], max_tokens=10)
    assert [r["text"] for r in together] == alone
    assert all(r["error"] is None and r["finish_reason"] in ("stop", "length") for r in together)


def test_sampling_depends_on_the_seed_alone(nibble, model):
    hot = dict(max_tokens=12, temperature=1.2, top_k=200, top_p=0.99, ignore_eos=True)
    texts = {seed: model.generate(PROMPTS[0], seed=seed, **hot) for seed in range(4)}
    assert len(set(texts.values())) > 1
    with nibble.Engine(model, max_batch=4, max_context=128) as engine:
        rows = engine.generate_batch([{"prompt": PROMPTS[0], "seed": seed} for seed in texts], **hot)
    assert [r["text"] for r in rows] == list(texts.values())


def test_a_stop_string_ends_the_text_before_it(model):
    whole = model.generate(PROMPTS[0], max_tokens=24)
    stop = whole[6:9]
    assert model.generate(PROMPTS[0], max_tokens=24, stop=stop) == whole[:whole.index(stop)]
    assert model.generate(PROMPTS[0], max_tokens=24, stop=["\x01never", stop]) == whole[:whole.index(stop)]


def test_the_streamed_text_is_the_generated_one(model):
    pieces = list(model.stream(PROMPTS[0], max_tokens=16))
    assert len(pieces) > 1 and "".join(pieces) == model.generate(PROMPTS[0], max_tokens=16)


def test_token_ids_are_a_prompt_too(model):
    ids = model.tokenize(PROMPTS[0])
    assert model.generate(ids, max_tokens=8) == model.generate(PROMPTS[0], max_tokens=8)
    assert model.generate(np.array(ids), max_tokens=8) == model.generate(PROMPTS[0], max_tokens=8)


def test_a_penalty_changes_a_repetitive_text(model):
    plain = model.generate(PROMPTS[0], max_tokens=40, ignore_eos=True)
    for option in ({"repetition_penalty": 2.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        assert model.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, **option) != plain


# ---- engine ----------------------------------------------------------------------------------------------------------
def drain(engine):
    events = []
    while True:
        new = engine.step()
        if not new and not engine.stats()["running"] and not engine.stats()["waiting"]:
            return events
        events += new


def test_events_tell_the_whole_story_of_a_request(nibble, model):
    ids = model.tokenize(PROMPTS[0])
    with nibble.Engine(model, max_batch=2, max_context=64) as engine:
        with_logprobs = engine.submit(PROMPTS[0], max_tokens=5, logprobs=3, ignore_eos=True)
        without = engine.submit(PROMPTS[1], max_tokens=5, ignore_eos=True)
        events = drain(engine)
    story = [e for e in events if e.id == with_logprobs]
    tokens = [e for e in story if e.type == "token"]
    assert [e.type for e in story] == ["token"] * 5 + ["finished"]
    assert story[-1].finish == "length" and story[-1].n_output == 5 and story[-1].n_prompt == len(ids)
    assert "".join(e.text for e in story) == model.generate(PROMPTS[0], max_tokens=5, ignore_eos=True)
    # the first token's alternatives against the softmax of the logits, in double
    row = model.logits(ids)[-1].astype(np.float64)
    logp = row - row.max() - np.log(np.exp(row - row.max()).sum())
    best = np.argsort(-row, kind="stable")[:3]
    assert [t for t, _ in tokens[0].top] == best.tolist() and tokens[0].token == best[0]
    assert np.allclose([p for _, p in tokens[0].top], logp[best], atol=1e-5)
    assert tokens[0].logprob == tokens[0].top[0][1]
    assert all(e.logprob is None and e.top == () for e in events if e.id == without)


def test_a_cancelled_request_ends_as_cancelled(nibble, model):
    with nibble.Engine(model, max_batch=2, max_context=512) as engine:
        gone = engine.submit(PROMPTS[0], max_tokens=400, ignore_eos=True)
        stays = engine.submit(PROMPTS[1], max_tokens=6, ignore_eos=True)
        engine.step()
        engine.cancel(gone)
        engine.cancel(987654321)
        last = {e.id: e for e in drain(engine) if e.type != "token"}
    assert last[gone].finish == "cancelled" and last[gone].n_output < 400
    assert last[stays].finish == "length" and last[stays].n_output == 6


def test_rows_and_columns_give_the_same_answers(nibble, model):
    with nibble.Engine(model, max_batch=4, max_context=128) as engine:
        rows = engine.generate_batch([{"id": i, "prompt": p, "max_tokens": 3 + i} for i, p in enumerate(PROMPTS)],
                                     ignore_eos=True)
        columns = engine.generate_batch({"id": np.arange(5), "prompt": np.array(PROMPTS, dtype=object),
                                         "max_tokens": np.array([3.0, 4.0, 5.0, 6.0, np.nan])},
                                        max_tokens=7, ignore_eos=True)
        assert engine.generate_batch([]) == []
    assert [r["n_output"] for r in rows] == [3, 4, 5, 6, 7]
    assert columns["text"].tolist() == [r["text"] for r in rows]
    assert columns["n_output"].tolist() == [3, 4, 5, 6, 7]
    assert columns["id"].tolist() == [r["id"] for r in rows] == [0, 1, 2, 3, 4]


def test_a_bad_row_does_not_disturb_the_others(nibble, model):
    bad = [{"prompt": [1, 2, 10**6]}, {"prompt": "x", "temperature": -1.0}, {"prompt": "a " * 4000}, {"text": "?"},
           {"prompt": "x", "max_tokens": -3}, {"prompt": "x", "stop": ["a\0b"]}]
    with nibble.Engine(model, max_batch=4, max_context=64) as engine:
        answers = engine.generate_batch([{"prompt": PROMPTS[0]}, *bad, {"prompt": PROMPTS[1]}], max_tokens=4)
        assert engine.stats()["kv_pages_used"] == 0
    assert all(a["error"] and a["text"] == "" and a["finish_reason"] is None for a in answers[1:-1])
    for answer, prompt in ((answers[0], PROMPTS[0]), (answers[-1], PROMPTS[1])):
        assert answer["error"] is None and answer["text"] == model.generate(prompt, max_tokens=4)


def test_events_of_other_requests_wait_for_step(nibble, model):
    with nibble.Engine(model, max_batch=4, max_context=64) as engine:
        mine = engine.submit(PROMPTS[1], max_tokens=2, ignore_eos=True)
        engine.generate_batch([{"prompt": PROMPTS[0]}], max_tokens=8)
        events = drain(engine)
    assert [e.type for e in events if e.id == mine] == ["token", "token", "finished"]


# ---- jobs ------------------------------------------------------------------------------------------------------------
def test_a_quantized_folder_loads_and_stays_close(nibble, model, demo, demo_text, tmp_path):
    out = tmp_path / "int4"
    seen = []
    report = nibble.quantize(demo, out, recipe="w4a16-g128", progress=lambda *p: seen.append(p))
    assert {m["scheme"] for m in report["modules"]} == {"W4A16 g128"}
    assert report["bytes_after"] < report["bytes_before"]
    assert seen and all(done <= total for _, done, total, _, _ in seen)
    assert nibble.inspect(out)["format"] == "compressed-tensors"
    with nibble.Model(out) as q:
        assert q.info["scheme"] == "W4A16 g128" and q.info["weight_bytes"] < model.info["weight_bytes"]
        r = nibble.evaluate(q, demo_text, ctx=128, base=model, max_windows=4)
        layers = nibble.compare_layers(q, model, demo_text, ctx=64, max_windows=1)["layers"]
        assert q.generate(PROMPTS[0], max_tokens=4)
    assert [x["layer"] for x in layers] == ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "lm_head"]
    assert layers[0]["stream_error"] == 0 and 0 < layers[1]["stream_error"] < layers[4]["stream_error"] < 1
    assert all(x["kl_alone"] > 0 for x in layers[1:5])
    assert 0 < r["mean_kld"] < 0.1 and 0.8 < r["same_top"] <= 1 and r["scored"] == 4 * 127
    with pytest.raises(nibble.Error) as e:
        nibble.quantize(demo, out, recipe="w4a16-g128")
    assert e.value.status == "EEXIST" and str(out) in e.value.text
    again = tmp_path / "again"
    nibble.quantize(demo, again, recipe="w4a16-g128")
    assert trees_equal(out, again)


def test_a_dry_run_reports_and_writes_nothing(nibble, demo, tmp_path):
    plan = nibble.quantize(demo, tmp_path / "x", recipe="w8a16", dry_run=True)
    assert os.listdir(tmp_path) == []
    real = nibble.quantize(demo, tmp_path / "x", recipe="w8a16")
    assert (plan["bytes_before"], plan["bytes_after"]) == (real["bytes_before"], real["bytes_after"])


def test_static_activations_need_and_use_a_calibration_text(nibble, demo, demo_text, tmp_path):
    with pytest.raises(nibble.Error, match="calib"):
        nibble.quantize(demo, tmp_path / "no", recipe="w8a8-static")
    assert os.listdir(tmp_path) == []
    report = nibble.quantize(demo, tmp_path / "q", recipe="w8a8-static", calib=demo_text, calib_tokens=256,
                             calib_ctx=128)
    assert report["calibration_tokens"] == 256
    with nibble.Model(tmp_path / "q") as q:
        assert np.isfinite(q.logits(q.tokenize(PROMPTS[0]))).all()


def test_progress_can_cancel_and_leaves_nothing(nibble, demo, tmp_path):
    with pytest.raises(nibble.Error) as e:
        nibble.quantize(demo, tmp_path / "q", recipe="w8a16", progress=lambda *p: True)
    assert e.value.status == "ECANCELLED" and os.listdir(tmp_path) == []


def test_an_exception_in_progress_comes_out_of_the_call(nibble, demo, tmp_path):
    def fail(*p):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        nibble.quantize(demo, tmp_path / "q", recipe="w8a16", progress=fail)
    assert os.listdir(tmp_path) == []


def test_a_batch_file_is_answered(nibble, model, tmp_path):
    job = tmp_path / "in.jsonl"
    job.write_text("".join(json.dumps({
        "custom_id": f"r{i}", "method": "POST", "url": "/v1/completions",
        "body": {"model": "demo", "prompt": p, "max_tokens": 4, "temperature": 0}}) + "\n" for i, p in enumerate(PROMPTS)))
    out, engine = tmp_path / "out.jsonl", dict(max_batch=2, max_context=64)
    summary = nibble.run(model, job, out, **engine)
    assert (summary["total"], summary["completed"], summary["failed"]) == (5, 5, 0)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    texts = {r["custom_id"]: r["response"]["body"]["choices"][0]["text"] for r in rows}
    assert texts == {f"r{i}": model.generate(p, max_tokens=4) for i, p in enumerate(PROMPTS)}
    with pytest.raises(nibble.Error) as e:
        nibble.run(model, job, out, **engine)
    assert e.value.status == "EEXIST"
    assert nibble.run(model, job, out, resume=True, **engine)["skipped"] == 5


def test_bench_names_its_rows_as_llama_bench_does(nibble, model):
    rows = nibble.bench(model, prompt=[8], gen=[2], repetitions=1)
    assert [r["test"] for r in rows] == ["pp8", "tg2"] and all(r["avg_ts"] > 0 for r in rows)


def test_random_weights_need_no_tokenizer(nibble, root):
    shape = os.path.join(root, "configs", "shapes", "tiny.json")
    with nibble.Model.random(shape, recipe="w8a8-dynamic") as m:
        assert m.tokenizer is None and m.info["scheme"].startswith("W8A8")
        assert m.logits([1, 2, 3]).shape == (3, m.info["vocab_size"])
        with pytest.raises(ValueError, match="no tokenizer"):
            m.tokenize("x")


# ---- errors and lifetimes --------------------------------------------------------------------------------------------
def test_errors_name_their_status_and_say_one_sentence(nibble, model, demo, tmp_path):
    for call, status, words in [
        (lambda: nibble.Model(tmp_path / "missing"), "EIO", "missing"),
        (lambda: nibble.Tokenizer(tmp_path / "missing"), "EIO", "missing"),
        (lambda: nibble.inspect(tmp_path / "missing"), "EIO", "missing"),
        (lambda: nibble.quantize(demo, tmp_path / "x", recipe="no-such-recipe"), "EINVAL", "no-such-recipe"),
        (lambda: nibble.evaluate(model, tmp_path / "no.txt"), "EIO", "no.txt"),
        (lambda: model.logits([]), "EINVAL", ""),
        (lambda: model.logits([-1]), "EINVAL", "-1"),
        (lambda: model.detokenize([10**6]), "EINVAL", "1000000"),
        (lambda: model.tokenize(b"ab\xff"), "EINVAL", "2"),
        (lambda: model.generate("x", top_p=7.0), "EINVAL", "7"),
    ]:
        with pytest.raises(nibble.Error) as e:
            call()
        assert e.value.status == status, e.value
        assert words in str(e.value) and "\n" not in str(e.value) and str(e.value) == e.value.text != ""


def test_a_broken_checkpoint_is_an_error(nibble, demo, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(demo, broken)
    with open(broken / "model.safetensors", "r+b") as f:
        f.truncate(100000)
    with pytest.raises(nibble.Error) as e:
        nibble.Model(broken)
    assert e.value.status == "EFORMAT" and "model.safetensors" in e.value.text


def test_numbers_that_do_not_fit_are_refused_instead_of_wrapped(nibble, model, demo):
    for call in (lambda: model.generate("x", max_tokens=-1), lambda: model.generate("x", seed=2**64),
                 lambda: nibble.Engine(model, max_batch=2**32), lambda: nibble.Model(demo, threads=2**31),
                 lambda: nibble.bench(model, prompt=[-1])):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError):
        model.generate("x", max_tokens=2.5)
    with pytest.raises(TypeError):
        model.generate("x", temprature=1.0)


def test_closing_twice_is_fine_and_use_after_close_is_an_error(nibble, demo):
    m = nibble.Model(demo)
    tokenizer, engine = m.tokenizer, nibble.Engine(m, max_batch=1, max_context=32)
    engine.submit("x", max_tokens=4)
    m.close()
    m.close()
    assert m.closed and engine.closed and tokenizer.closed
    for call in (lambda: m.logits([1]), lambda: m.tokenize("x"), lambda: tokenizer.tokenize("x"), engine.step,
                 lambda: engine.submit("x"), lambda: nibble.Engine(m), lambda: m.generate("x")):
        with pytest.raises(ValueError, match="closed"):
            call()
    engine.close()


def test_what_depends_on_a_model_keeps_it_alive(nibble, demo):
    tokenizer = nibble.Model(demo).tokenizer
    engine = nibble.Engine(nibble.Model(demo), max_batch=1, max_context=64)
    gc.collect()
    assert tokenizer.detokenize(tokenizer.tokenize("still here", special=False)) == "still here"
    assert engine.generate_batch([{"prompt": "x"}], max_tokens=2)[0]["error"] is None


def test_a_program_may_end_without_closing_anything(nibble, demo):
    code = ("import nibble, sys\nm = nibble.Model(sys.argv[1])\ne = nibble.Engine(m, max_batch=1, max_context=64)\n"
            "e.submit('x', max_tokens=4)\ne.step()\nt = m.tokenizer\nloop = [m, e, t]\nloop.append(loop)\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, demo], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_installed_package_works_from_anywhere(root, tmp_path):
    """`pip install ./python_stub` (./dev test does it into .cache/pip-target): import, load, generate, in a bare process."""
    target = os.path.join(root, ".cache", "pip-target")
    if not os.path.isdir(target):
        pytest.skip("not installed with pip: ./dev test does that")
    code = ("import nibble, sys; m = nibble.Model(sys.argv[1]); "
            "print(nibble.__file__); print(len(m.generate('Return a copy of the string', max_tokens=8)) > 0)")
    env = {**os.environ, "PYTHONPATH": target}
    out = subprocess.run([sys.executable, "-c", code, os.path.join(root, "configs/demo/model")], cwd=tmp_path, env=env,
                         capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split("\n")[0].startswith(target) and "True" in out.stdout
