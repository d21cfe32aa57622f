"""include/nibble.h for ctypes: status codes, structs, prototypes, and where the library is found.

Everything here has the name that it has in the header, in the header's order; tests/python/test_ffi.py compares the
two with the help of a C compiler.  Calls that return nb_status raise Error, so callers never look at a status.
"""
import ctypes
import ctypes.util
import functools
import os
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int, c_int32, c_size_t,
                    c_uint, c_uint32, c_uint64, c_void_p)

STATUS = {
    "OK": 0, "EINVAL": 1, "ENOMEM": 10, "EIO": 20, "EFORMAT": 21, "EEXIST": 22, "EUNSUPPORTED": 30, "ENODEVICE": 31,
    "ELIMIT": 40, "ECANCELLED": 50, "EINTERNAL": 60,
}
TOKENIZE_SPECIAL, TOKENIZE_PLAIN = 1, 2
DETOKENIZE_SKIP_SPECIAL = 1
EVENT_TOKEN, EVENT_FINISHED, EVENT_FAILED = 1, 2, 3
FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED = 0, 1, 2, 3
LOG_DEBUG, LOG_INFO, LOG_WARN = 0, 1, 2


class Error(Exception):
    """A nibble call failed: `status` is a name of nb_status without its prefix ("EIO"), `text` one sentence."""

    def __init__(self, status, text):
        super().__init__(status, text)
        self.status = status
        self.text = text

    def __str__(self):
        return self.text


def status_name(code):
    return next((name for name, value in STATUS.items() if value == code), f"status {code}")


class nb_progress(Structure):
    _fields_ = [("stage", c_char_p), ("unit", c_char_p), ("done", c_uint64), ("total", c_uint64), ("rate", c_double)]


nb_log_fn = CFUNCTYPE(None, c_void_p, c_int, c_char_p)
nb_progress_fn = CFUNCTYPE(c_int, c_void_p, POINTER(nb_progress))


class nb_callbacks(Structure):
    _fields_ = [("log", nb_log_fn), ("progress", nb_progress_fn), ("user", c_void_p)]


class nb_model_options(Structure):
    _fields_ = [("struct_size", c_size_t), ("device", c_char_p), ("threads", c_int32), ("callbacks", nb_callbacks),
                ("act_dtype", c_char_p), ("gemm", c_char_p), ("pack_cache", c_char_p), ("pin", c_char_p)]


class nb_model_info(Structure):
    _fields_ = [("struct_size", c_size_t), ("n_params", c_uint64), ("weight_bytes", c_uint64), ("n_layers", c_uint32),
                ("hidden_size", c_uint32), ("n_heads", c_uint32), ("n_kv_heads", c_uint32), ("head_dim", c_uint32),
                ("vocab_size", c_uint32), ("max_context", c_uint32), ("kv_bytes_per_token", c_uint64),
                ("name", c_char * 64), ("scheme", c_char * 64), ("device", c_char * 64)]


class nb_engine_options(Structure):
    _fields_ = [("struct_size", c_size_t), ("max_batch", c_uint32), ("max_context", c_uint32),
                ("prefill_chunk", c_uint32), ("kv_pages", c_uint32), ("kv_bytes", c_uint64), ("kv_dtype", c_char_p),
                ("max_queue", c_uint32), ("callbacks", nb_callbacks), ("reserved", c_uint64 * 4)]


class nb_sampling(Structure):
    _fields_ = [("struct_size", c_size_t), ("temperature", c_float), ("top_k", c_int32), ("top_p", c_float),
                ("min_p", c_float), ("repetition_penalty", c_float), ("presence_penalty", c_float),
                ("frequency_penalty", c_float), ("seed", c_uint64), ("reserved", c_uint64 * 4)]


class nb_request(Structure):
    _fields_ = [("struct_size", c_size_t), ("prompt", POINTER(c_int32)), ("n_prompt", c_size_t),
                ("max_tokens", c_uint32), ("ignore_eos", c_int32), ("sampling", nb_sampling),
                ("stop", POINTER(c_char_p)), ("n_stop", c_size_t), ("logprobs", c_int32)]


class nb_logprob(Structure):
    _fields_ = [("token", c_int32), ("logprob", c_float)]


class nb_event(Structure):
    # text is a pointer, not a c_char_p: it may hold NUL bytes, so its length is text_bytes.
    _fields_ = [("type", c_int), ("finish", c_int), ("id", c_uint64), ("user", c_void_p), ("token", c_int32),
                ("logprob", c_float), ("top", POINTER(nb_logprob)), ("n_top", c_size_t), ("text", c_void_p),
                ("text_bytes", c_size_t), ("status", c_int), ("error", c_char_p), ("n_prompt", c_uint32),
                ("n_output", c_uint32),
                ("reserved", c_uint64 * 4)]


class nb_engine_stats(Structure):
    _fields_ = [("struct_size", c_size_t), ("prompt_tokens", c_uint64), ("output_tokens", c_uint64),
                ("preemptions", c_uint64), ("running", c_uint32), ("waiting", c_uint32), ("kv_pages_total", c_uint32),
                ("kv_pages_used", c_uint32), ("page_tokens", c_uint32)]


class nb_quantize_options(Structure):
    _fields_ = [("struct_size", c_size_t), ("recipe", c_char_p), ("calib", c_char_p), ("calib_tokens", c_uint32),
                ("calib_ctx", c_uint32), ("device", c_char_p), ("threads", c_int32), ("overwrite", c_int32),
                ("dry_run", c_int32), ("max_shard_bytes", c_uint64), ("callbacks", nb_callbacks),
                ("target_bits", c_double), ("target_bytes", c_uint64), ("calib_memory", c_uint64),
                ("sequential", c_int32), ("stats", c_char_p), ("resume", c_int32)]


class nb_run_options(Structure):
    _fields_ = [("struct_size", c_size_t), ("input", c_char_p), ("output", c_char_p), ("errors", c_char_p),
                ("resume", c_int32), ("retry_failed", c_int32), ("overwrite", c_int32), ("shard_index", c_uint32),
                ("shard_count", c_uint32), ("endpoint", c_char_p), ("default_max_tokens", c_uint32),
                ("engine", nb_engine_options), ("callbacks", nb_callbacks)]


class nb_run_summary(Structure):
    _fields_ = [("struct_size", c_size_t), ("total", c_uint64), ("completed", c_uint64), ("failed", c_uint64),
                ("skipped", c_uint64), ("prompt_tokens", c_uint64), ("output_tokens", c_uint64), ("seconds", c_double)]


class nb_eval_options(Structure):
    _fields_ = [("struct_size", c_size_t), ("text", c_char_p), ("ctx", c_uint32), ("max_windows", c_uint32),
                ("protocol", c_char_p), ("callbacks", nb_callbacks), ("kv_dtype", c_char_p)]


class nb_eval_result(Structure):
    _fields_ = [("struct_size", c_size_t), ("perplexity", c_double), ("perplexity_error", c_double),
                ("tokens", c_uint64), ("scored", c_uint64), ("windows", c_uint64), ("base_perplexity", c_double),
                ("mean_kld", c_double), ("max_kld", c_double), ("same_top", c_double), ("rms_dp", c_double),
                ("seconds", c_double)]


class nb_bench_options(Structure):
    _fields_ = [("struct_size", c_size_t), ("prompt", POINTER(c_uint32)), ("n_prompt", c_size_t),
                ("gen", POINTER(c_uint32)), ("n_gen", c_size_t), ("batch", POINTER(c_uint32)), ("n_batch", c_size_t),
                ("repetitions", c_uint32), ("callbacks", nb_callbacks), ("kv_dtype", c_char_p)]


STRUCTS = [nb_progress, nb_callbacks, nb_model_options, nb_model_info, nb_engine_options, nb_sampling, nb_request,
           nb_logprob, nb_event, nb_engine_stats, nb_quantize_options, nb_run_options, nb_run_summary,
           nb_eval_options, nb_eval_result, nb_bench_options]


class nb_status(c_int):
    """As a restype: the call's status, which check() turns into an exception."""


_handle = c_void_p  # of an opaque object
_out = POINTER(c_void_p)  # receives a handle, or memory for nb_free()
_size = POINTER(c_size_t)
_ids = POINTER(c_int32)

# name: (result, arguments)
PROTOTYPES = {
    "nb_version": (c_char_p, []),
    "nb_status_text": (c_char_p, [c_int]),
    "nb_last_error": (c_char_p, []),
    "nb_free": (None, [c_void_p]),
    "nb_tokenizer_load": (nb_status, [_out, c_char_p]),
    "nb_tokenizer_free": (None, [_handle]),
    "nb_tokenizer_vocab_size": (c_size_t, [_handle]),
    "nb_tokenizer_bos": (c_int32, [_handle]),
    "nb_tokenizer_eos": (c_int32, [_handle]),
    "nb_tokenize": (nb_status, [_handle, c_char_p, c_size_t, c_uint, POINTER(_ids), _size]),
    "nb_detokenize": (nb_status, [_handle, _ids, c_size_t, c_uint, _out, _size]),
    "nb_stream_create": (nb_status, [_out, _handle, c_uint]),
    "nb_stream_feed": (nb_status, [_handle, c_int32, _out, _size]),
    "nb_stream_flush": (nb_status, [_handle, _out, _size]),
    "nb_stream_free": (None, [_handle]),
    "nb_chat_render": (nb_status, [_handle, c_char_p, c_int, _out]),
    "nb_model_options_init": (None, [POINTER(nb_model_options)]),
    "nb_model_load": (nb_status, [_out, c_char_p, POINTER(nb_model_options)]),
    "nb_model_random": (nb_status, [_out, c_char_p, c_char_p, POINTER(nb_model_options)]),
    "nb_model_free": (None, [_handle]),
    "nb_model_tokenizer": (c_void_p, [_handle]),
    "nb_model_get_info": (nb_status, [_handle, POINTER(nb_model_info)]),
    "nb_model_logits": (nb_status, [_handle, _ids, c_size_t, POINTER(c_float)]),
    "nb_engine_options_init": (None, [POINTER(nb_engine_options)]),
    "nb_engine_create": (nb_status, [_out, _handle, POINTER(nb_engine_options)]),
    "nb_engine_free": (None, [_handle]),
    "nb_sampling_init": (None, [POINTER(nb_sampling)]),
    "nb_request_init": (None, [POINTER(nb_request)]),
    "nb_engine_submit": (nb_status, [_handle, POINTER(nb_request), c_void_p, POINTER(c_uint64)]),
    "nb_engine_cancel": (None, [_handle, c_uint64]),
    "nb_engine_step": (nb_status, [_handle, POINTER(POINTER(nb_event)), _size]),
    "nb_engine_get_stats": (nb_status, [_handle, POINTER(nb_engine_stats)]),
    "nb_quantize_options_init": (None, [POINTER(nb_quantize_options)]),
    "nb_quantize": (nb_status, [c_char_p, c_char_p, POINTER(nb_quantize_options), _out]),
    "nb_run_options_init": (None, [POINTER(nb_run_options)]),
    "nb_run": (nb_status, [_handle, POINTER(nb_run_options), POINTER(nb_run_summary)]),
    "nb_eval_options_init": (None, [POINTER(nb_eval_options)]),
    "nb_eval": (nb_status, [_handle, _handle, POINTER(nb_eval_options), POINTER(nb_eval_result)]),
    "nb_eval_layers": (nb_status, [_handle, _handle, POINTER(nb_eval_options), _out]),
    "nb_bench_options_init": (None, [POINTER(nb_bench_options)]),
    "nb_bench": (nb_status, [_handle, POINTER(nb_bench_options), _out]),
    "nb_inspect": (nb_status, [c_char_p, _out]),
}


def _candidates():
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libnibble.so")
    yield beside if os.path.exists(beside) else beside + ".0"
    yield "libnibble.so.0"
    found = ctypes.util.find_library("nibble")
    if found:
        yield found


def _open():
    # OpenMP's threads spin for milliseconds between two loops by default, which stops other work on the machine and, on a
    # busy one, nibble itself.  libgomp reads this when it is loaded, unless another package has loaded it before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    chosen = os.environ.get("NIBBLE_LIBRARY")
    if chosen:  # an explicit choice is never replaced by another library
        try:
            return ctypes.CDLL(chosen)
        except OSError as e:
            raise ImportError(f"NIBBLE_LIBRARY={chosen}: cannot be loaded ({e})") from None
    tried = []
    for path in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError as e:
            tried.append(f"{path} ({e})")
    raise ImportError("libnibble.so is not installed: set NIBBLE_LIBRARY to its path (./dev build leaves it at "
                      "build/libnibble.so); tried " + ", ".join(tried))


@functools.lru_cache(maxsize=None)
def lib():
    """The library with all prototypes set; loaded on first use.  ctypes releases the GIL during each call."""
    so = _open()

    # nb_last_error() belongs to the calling thread, and this runs on it right after the call.
    def check(status, func, args):
        if status.value != 0:
            raise Error(status_name(status.value), so.nb_last_error().decode("utf-8", "replace"))

    for name, (result, arguments) in PROTOTYPES.items():
        try:
            function = getattr(so, name)
        except AttributeError:
            raise ImportError(f"{so._name} has no {name}: it is older than this package") from None
        function.restype = result
        function.argtypes = arguments
        if result is nb_status:
            function.errcheck = check
    return so
