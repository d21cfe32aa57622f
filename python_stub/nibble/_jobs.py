"""The jobs of the command line: quantize, run, evaluate, bench, inspect.

progress(stage, done, total, unit, rate) may return True to cancel: the call then raises Error("ECANCELLED").
"""
from ctypes import byref, c_uint32, c_void_p

from . import _ffi
from ._call import Callbacks, as_dict, c_path, lib, options, result, set_fields, take_json


def quantize(src, dst, recipe=None, calib=None, calib_tokens=0, calib_ctx=0, device="cpu", threads=0, overwrite=False,
             dry_run=False, max_shard_bytes=0, progress=None, target_bits=0.0, target_bytes=0, calib_memory=0,
             sequential=None, stats=None, resume=False):
    """Writes `dst`, a Hugging Face folder in compressed-tensors format; returns the report, a row a tensor.

    recipe: a file, or the name of one in configs/recipes, "w8a8-dynamic" if None.  calib: a text file or JSONL with
    "text", which recipes with static activations need.  `dst` appears whole or not at all; dry_run writes nothing.
    target_bits (average bits a weight) or target_bytes (of the whole model): the best mixture within that, of the schemes
    that the recipe searches ("mixed" if None).
    With a text: calib_memory (bytes) bounds the memory that it takes.  sequential: True, quantized layers feed the next one
    (what methods do if None), False, dense layers do.  stats: a file of the dense layers' statistics, read where it exists,
    else written.  resume: go on behind the layers that a killed run finished.
    """
    if recipe is None and not target_bits and not target_bytes:
        recipe = "w8a8-dynamic"
    report = c_void_p()
    opt = options("quantize_options", recipe=recipe, calib=calib, calib_tokens=calib_tokens, calib_ctx=calib_ctx,
                  device=device, threads=threads, overwrite=bool(overwrite), dry_run=bool(dry_run),
                  max_shard_bytes=max_shard_bytes, target_bits=target_bits, target_bytes=target_bytes,
                  calib_memory=calib_memory, sequential=0 if sequential is None else 1 if sequential else -1, stats=stats,
                  resume=bool(resume))
    with Callbacks(progress) as cb:
        opt.callbacks = cb.struct
        lib().nb_quantize(c_path(src), c_path(dst), byref(opt), byref(report))
    return take_json(report)


def run(model, input, output, errors=None, resume=False, retry_failed=False, overwrite=False, shard_index=0,
        shard_count=0, endpoint=None, default_max_tokens=0, progress=None, **engine):
    """Answers an OpenAI Batch JSONL file; returns the summary.  `engine`: as in Engine.  Cancelled (also by Ctrl-C),
    the job can be continued with resume=True."""
    opt = options("run_options", input=input, output=output, errors=errors, resume=bool(resume),
                  retry_failed=bool(retry_failed), overwrite=bool(overwrite), shard_index=shard_index,
                  shard_count=shard_count, endpoint=endpoint, default_max_tokens=default_max_tokens)
    lib().nb_engine_options_init(byref(opt.engine))
    set_fields(opt.engine, **engine)
    summary = result("run_summary")
    with Callbacks(progress) as cb:
        opt.callbacks = cb.struct
        lib().nb_run(model._h, byref(opt), byref(summary))
    return as_dict(summary)


def evaluate(model, text_file, ctx=512, base=None, max_windows=0, protocol="hf", progress=None, kv_dtype=None):
    """Perplexity of `model` on a UTF-8 file, as a dict; with `base`, another Model, also how far the two are apart
    (KL divergence, share of equal top tokens).  protocol: "hf" or "llama.cpp".  kv_dtype: as in Engine, of `model`."""
    opt = options("eval_options", text=text_file, ctx=ctx, max_windows=max_windows, protocol=protocol,
                  kv_dtype=kv_dtype)
    r = result("eval_result")
    with Callbacks(progress) as cb:
        opt.callbacks = cb.struct
        lib().nb_eval(model._h, None if base is None else base._h, byref(opt), byref(r))
    values = as_dict(r)
    if base is None:
        for name in ("base_perplexity", "mean_kld", "max_kld", "same_top", "rms_dp"):
            del values[name]
    return values


def compare_layers(model, base, text_file, ctx=512, max_windows=0, progress=None):
    """Which layers of a quantized model hurt most, against the Model it was made from: a dict with "layers", each with the
    distance of the residual stream behind it ("stream_error") and the KL divergence of the base with that layer alone exchanged
    ("kl_alone"), over max_windows (0: 4) windows of ctx tokens; "why" where the two cannot be compared."""
    out = c_void_p()
    opt = options("eval_options", text=text_file, ctx=ctx, max_windows=max_windows)
    with Callbacks(progress) as cb:
        opt.callbacks = cb.struct
        lib().nb_eval_layers(model._h, base._h, byref(opt), byref(out))
    return take_json(out)


def bench(model, prompt=(128,), gen=(32,), batch=(1,), repetitions=5, progress=None, kv_dtype=None):
    """Tokens per second for prompts of these lengths, and for generating `gen` tokens in batches of these sizes: a
    list of dicts with llama-bench's keys (test, avg_ts, stddev_ts, samples_ts ...)."""
    opt = options("bench_options", repetitions=repetitions, kv_dtype=kv_dtype)
    for name, counts in (("prompt", prompt), ("gen", gen), ("batch", batch)):
        counts = [set_fields(_Count(), n=n).n for n in counts]
        setattr(opt, name, (c_uint32 * max(len(counts), 1))(*counts))
        setattr(opt, f"n_{name}", len(counts))
    json_text = c_void_p()
    with Callbacks(progress) as cb:
        opt.callbacks = cb.struct
        lib().nb_bench(model._h, byref(opt), byref(json_text))
    return take_json(json_text)


def inspect(path):
    """Describes a model's files without loading the weights: tensors, schemes, sizes, memory plan."""
    json_text = c_void_p()
    lib().nb_inspect(c_path(path), byref(json_text))
    return take_json(json_text)


class _Count(_ffi.Structure):
    """For the range check of set_fields()."""

    _fields_ = [("n", c_uint32)]
