"""Tokenizer and Model: text to ids to logits."""
import json
import weakref
from ctypes import POINTER, byref, c_float, c_int32, c_size_t, c_void_p

import numpy as np

from . import _ffi
from ._call import (Callbacks, Handle, as_dict, c_path, ids_array, ids_pointer, lib, new_handle, options, result,
                    take_text, text_at)


class Tokenizer(Handle):
    """`path`: a folder with tokenizer.json, a tokenizer.json, or a .gguf file.  Any number of threads may use one."""

    def __init__(self, path):
        self._own(lib().nb_tokenizer_free, new_handle(lib().nb_tokenizer_load, c_path(path)))

    @classmethod
    def _of_model(cls, model):
        pointer = lib().nb_model_tokenizer(model._h)
        if not pointer:
            return None
        self = cls.__new__(cls)
        self._own(_borrowed, c_void_p(pointer), model)
        return self

    @property
    def vocab_size(self):
        return lib().nb_tokenizer_vocab_size(self._h)

    @property
    def bos(self):
        """The id, or None."""
        return _or_none(lib().nb_tokenizer_bos(self._h))

    @property
    def eos(self):
        return _or_none(lib().nb_tokenizer_eos(self._h))

    def tokenize(self, text, special=True, plain=False):
        """Ids of `text` (str or UTF-8 bytes).  special: add what the post-processor adds (BOS ...); plain: the text of
        special tokens is ordinary text."""
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        flags = (_ffi.TOKENIZE_SPECIAL if special else 0) | (_ffi.TOKENIZE_PLAIN if plain else 0)
        ids, n = POINTER(c_int32)(), c_size_t()
        lib().nb_tokenize(self._h, data, len(data), flags, byref(ids), byref(n))
        try:
            return ids[:n.value]
        finally:
            lib().nb_free(ids)

    def detokenize(self, ids, skip_special=False):
        array = ids_array(ids)
        text, n = c_void_p(), c_size_t()
        flags = _ffi.DETOKENIZE_SKIP_SPECIAL if skip_special else 0
        lib().nb_detokenize(self._h, ids_pointer(array), len(array), flags, byref(text), byref(n))
        return take_text(text, n.value)

    def stream(self, skip_special=False):
        return Stream(self, skip_special)

    def chat(self, messages, add_generation_prompt=True):
        """The prompt that the model's chat template makes of OpenAI messages.  Tokenize it with special=False:
        templates print their own BOS."""
        text = c_void_p()
        data = json.dumps(messages, ensure_ascii=False).encode("utf-8")
        lib().nb_chat_render(self._h, data, int(add_generation_prompt), byref(text))
        return take_text(text)


class Stream(Handle):
    """Detokenises ids as they come: the pieces joined are detokenize() of all ids, none ends inside a character."""

    def __init__(self, tokenizer, skip_special=False):
        flags = _ffi.DETOKENIZE_SKIP_SPECIAL if skip_special else 0
        self._own(lib().nb_stream_free, new_handle(lib().nb_stream_create, tokenizer._h, flags), tokenizer)

    def feed(self, token):
        return self._piece(lib().nb_stream_feed, token)

    def flush(self):
        return self._piece(lib().nb_stream_flush)

    def _piece(self, call, *args):
        piece, n = c_void_p(), c_size_t()
        call(self._h, *args, byref(piece), byref(n))
        return text_at(piece.value, n.value)


class Model(Handle):
    """A Hugging Face folder, loaded: config.json, *.safetensors (dense or compressed-tensors), tokenizer.json.

        with nibble.Model("path/to/folder") as m:
            print(m.generate("Once upon a time", max_tokens=40))

    device "auto", "cpu" or "cuda:N"; act_dtype "f16" or "bf16", on a GPU; threads 0: one for each available core.  Any number
    of threads may use one model.
    """

    def __init__(self, path, device="cpu", threads=0, progress=None, act_dtype=None):
        self._load(lib().nb_model_load, (c_path(path),), device, threads, progress, act_dtype)

    @classmethod
    def random(cls, shape, recipe=None, device="cpu", threads=0, progress=None, act_dtype=None):
        """Random weights in the architecture of `shape` (a config.json-like file), for benchmarks; no tokenizer."""
        self = cls.__new__(cls)
        names = c_path(shape), None if recipe is None else c_path(recipe)
        self._load(lib().nb_model_random, names, device, threads, progress, act_dtype)
        return self

    def _load(self, call, names, device, threads, progress, act_dtype):
        self._engines = weakref.WeakSet()
        self._tokenizer = None
        with Callbacks(progress) as cb:
            opt = options("model_options", device=device, threads=threads, act_dtype=act_dtype)
            opt.callbacks = cb.struct
            self._own(lib().nb_model_free, new_handle(call, *names, byref(opt)))
        info = result("model_info")
        lib().nb_model_get_info(self._h, byref(info))
        self.info = as_dict(info)

    def close(self):
        """Also closes the engines that run this model."""
        for engine in list(self._engines):
            engine.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
            self._tokenizer = None
        super().close()

    @property
    def tokenizer(self):
        """Lives as long as the model; None for a model without one."""
        if self._tokenizer is None:
            self._h  # a closed model has no tokenizer to look for
            self._tokenizer = Tokenizer._of_model(self)
        return self._tokenizer

    def _need_tokenizer(self):
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError("this model has no tokenizer: pass token ids")
        return tokenizer

    def tokenize(self, text, special=True, plain=False):
        return self._need_tokenizer().tokenize(text, special, plain)

    def detokenize(self, ids, skip_special=False):
        return self._need_tokenizer().detokenize(ids, skip_special)

    def logits(self, ids):
        """float32 [T, V]: row t scores the token after ids[0..t]."""
        array = ids_array(ids)
        out = np.empty((len(array), self.info["vocab_size"]), dtype=np.float32)
        lib().nb_model_logits(self._h, ids_pointer(array), len(array), out.ctypes.data_as(POINTER(c_float)))
        return out

    def prompt_ids(self, prompt):
        """What Engine.submit does with a prompt: text, token ids, or chat messages (a list of dicts)."""
        if isinstance(prompt, (str, bytes)):
            return self.tokenize(prompt)
        if len(prompt) and isinstance(prompt[0], dict):
            return self.tokenize(self._need_tokenizer().chat(list(prompt)), special=False)
        return ids_array(prompt)

    def stream(self, prompt, *, max_tokens=128, **request):
        """Yields the generated text piece by piece; arguments as in Engine.submit."""
        from ._engine import Engine

        ids = self.prompt_ids(prompt)
        room = self.info["max_context"]
        if max_tokens:  # a KV cache for this request, not for the longest one that the model could take
            room = min(room, len(ids) + max_tokens)
        with Engine(self, max_batch=1, max_context=room) as engine:
            engine.submit(ids, max_tokens=max_tokens, **request)
            finished = False
            while not finished:
                for event in engine.step():
                    if event.error is not None:
                        raise event.error
                    if event.text:
                        yield event.text
                    finished = finished or event.type == "finished"

    def generate(self, prompt, **request):
        """The generated text.  `request`: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
        presence_penalty, frequency_penalty, seed, stop, ignore_eos, see Engine.submit."""
        return "".join(self.stream(prompt, **request))


def _borrowed(_pointer):
    """The model frees its tokenizer."""


def _or_none(token):
    return None if token < 0 else token
