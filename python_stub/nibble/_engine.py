"""Engine: many requests at once, continuously batched."""
import ctypes
import math
from ctypes import POINTER, byref, c_char_p, c_size_t, c_uint64
from dataclasses import dataclass
from typing import Optional

import numpy as np

from . import _ffi
from ._call import (Callbacks, Handle, as_dict, ids_array, ids_pointer, lib, new_handle, no_nul, options, result,
                    set_fields, text_at)
from ._ffi import Error, status_name

_TYPES = {_ffi.EVENT_TOKEN: "token", _ffi.EVENT_FINISHED: "finished", _ffi.EVENT_FAILED: "failed"}
_FINISH = {_ffi.FINISH_STOP: "stop", _ffi.FINISH_LENGTH: "length", _ffi.FINISH_CANCELLED: "cancelled"}


@dataclass
class Event:
    """What happened to one request in one step."""

    id: int
    type: str  # "token", "finished" or "failed"; the latter two are the request's last
    text: str  # text that became final; held back while it may still become a stop string or half a character
    token: Optional[int] = None  # of a token event
    finish: Optional[str] = None  # of a finished one: "stop", "length" or "cancelled"
    logprob: Optional[float] = None  # of the token, where the request asked for logprobs
    top: tuple = ()  # ((token, logprob), ...) of the alternatives, best first
    n_prompt: int = 0
    n_output: int = 0  # tokens so far
    error: Optional[Error] = None  # of a failed one


class Engine(Handle):
    """Runs requests on a model over a paged KV cache.

        with nibble.Engine(model, max_batch=16) as engine:
            id = engine.submit("Once upon a time", max_tokens=40)
            while not done:
                for event in engine.step(): ...

    One thread calls step(); submit() and cancel() may come from any thread.  Zeros are the library's defaults, see
    nb_engine_options in nibble.h.
    """

    def __init__(self, model, max_batch=0, max_context=0, prefill_chunk=0, kv_pages=0, kv_bytes=0, kv_dtype=None,
                 max_queue=0):
        self.model = model
        self._callbacks = Callbacks()  # the engine logs as long as it lives
        self._kept = []  # events of submit()ed requests that came up during generate_batch()
        self._room = max_queue or 65536
        opt = options("engine_options", max_batch=max_batch, max_context=max_context, prefill_chunk=prefill_chunk,
                      kv_pages=kv_pages, kv_bytes=kv_bytes, kv_dtype=kv_dtype, max_queue=max_queue)
        opt.callbacks = self._callbacks.struct
        pointer = new_handle(lib().nb_engine_create, model._h, byref(opt))
        self._own(lib().nb_engine_free, pointer, model, self._callbacks.struct)
        model._engines.add(self)

    def submit(self, prompt, *, max_tokens=128, temperature=None, top_k=None, top_p=None, min_p=None,
               repetition_penalty=None, presence_penalty=None, frequency_penalty=None, seed=None, stop=(),
               ignore_eos=False, logprobs=None):
        """Queues a request; its id is in the events of later steps.

        prompt: text, token ids, or chat messages (a list of {"role": ..., "content": ...}).  max_tokens 0: as far as
        the context goes.  temperature 0 (the default): greedy.  stop: a string or several, not part of the output.
        logprobs: number of alternatives a token, at most 20.  The result depends on the request alone, not on what
        else is in the batch.
        """
        ids = ids_array(self.model.prompt_ids(prompt))
        request = _ffi.nb_request()
        lib().nb_request_init(byref(request))
        request.prompt, request.n_prompt = ids_pointer(ids), len(ids)
        set_fields(request, max_tokens=max_tokens, ignore_eos=bool(ignore_eos), logprobs=logprobs)
        set_fields(request.sampling, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                   repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
                   frequency_penalty=frequency_penalty, seed=seed)
        words = [stop] if isinstance(stop, (str, bytes)) else list(stop)
        words = [no_nul(w if isinstance(w, bytes) else w.encode("utf-8"), "a stop string") for w in words]
        array = (c_char_p * max(len(words), 1))(*words)
        request.stop, request.n_stop = ctypes.cast(array, POINTER(c_char_p)), len(words)
        number = c_uint64()
        # `user` comes back with each event: whether its logprob means anything.
        wants = 1 if request.logprobs >= 0 else None
        lib().nb_engine_submit(self._h, byref(request), wants, byref(number))
        return number.value

    def cancel(self, id):
        """The request's last event ("finished", "cancelled") comes from a later step.  Unknown ids are ignored."""
        lib().nb_engine_cancel(self._h, id)

    def step(self):
        """Computes a chunk of prefill and one token for each running request: a list of Event, empty when idle."""
        kept, self._kept = self._kept, []
        return kept + self._step()

    def _step(self):
        events, n = POINTER(_ffi.nb_event)(), c_size_t()
        lib().nb_engine_step(self._h, byref(events), byref(n))
        return [self._event(events[i]) for i in range(n.value)]

    def _event(self, e):
        event = Event(e.id, _TYPES[e.type], text_at(e.text, e.text_bytes), n_prompt=e.n_prompt, n_output=e.n_output)
        if e.type == _ffi.EVENT_TOKEN:
            event.token = e.token
            if e.user:
                event.logprob = e.logprob
                event.top = tuple((e.top[i].token, e.top[i].logprob) for i in range(e.n_top))
            return event
        if e.type == _ffi.EVENT_FINISHED:
            event.finish = _FINISH[e.finish]
        else:
            event.error = Error(status_name(e.status), (e.error or b"").decode("utf-8", "replace"))
        return event

    def stats(self):
        s = result("engine_stats")
        lib().nb_engine_get_stats(self._h, byref(s))
        return as_dict(s)

    def generate_batch(self, rows, **defaults):
        """Answers many prompts at once; made to be the body of a Ray Data map_batches actor.

        rows: a dict of columns, or a list of dicts.  "prompt" (or "messages") is what submit() takes; columns named
        like other arguments of submit() apply to their row, empty ones (None, NaN) fall back to `defaults`.  The same
        kind of object comes back with "text", "finish_reason", "n_prompt", "n_output" and "error" added: a row that
        fails says why in "error" (else None) and does not disturb the others.
        """
        columns = isinstance(rows, dict)
        table = _rows_of_columns(rows) if columns else [dict(row) for row in rows]
        answers = self._answer(table, defaults)
        if not columns:
            return [{**row, **answer} for row, answer in zip(table, answers)]
        out = dict(rows)
        for name, kind in _ANSWER:
            out[name] = np.array([a[name] for a in answers], dtype=kind)
        return out

    def _answer(self, table, defaults):
        answers = [{"text": "", "finish_reason": None, "n_prompt": 0, "n_output": 0, "error": None} for _ in table]
        running, todo = {}, list(enumerate(table))[::-1]
        try:
            while todo or running:
                while todo and len(running) < self._room:
                    i, row = todo.pop()
                    try:
                        running[self.submit(**_request_of_row(row, defaults))] = i
                    except (Error, TypeError, ValueError) as e:
                        answers[i]["error"] = str(e)
                for event in self._step():
                    if event.id not in running:
                        self._kept.append(event)
                        continue
                    answer = answers[running[event.id]]
                    answer["text"] += event.text
                    answer["n_prompt"], answer["n_output"] = event.n_prompt, event.n_output
                    if event.type != "token":
                        del running[event.id]
                        answer["finish_reason"] = event.finish
                        answer["error"] = None if event.error is None else str(event.error)
        except BaseException:  # Ctrl-C: what was submitted must not run on in later steps
            for id in running:
                self.cancel(id)
            raise
        return answers


_ANSWER = [("text", object), ("finish_reason", object), ("n_prompt", np.int64), ("n_output", np.int64),
           ("error", object)]
_OPTIONS = ["max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
            "frequency_penalty", "seed", "stop", "ignore_eos"]


def _rows_of_columns(columns):
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {lengths}")
    n = next(iter(lengths.values()), 0)
    return [{name: values[i] for name, values in columns.items()} for i in range(n)]


def _empty(value):
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _request_of_row(row, defaults):
    prompt = row.get("prompt")
    if _empty(prompt):
        prompt = row.get("messages")
    if _empty(prompt):
        raise ValueError("the row has neither \"prompt\" nor \"messages\"")
    own = {}
    for name in _OPTIONS:
        value = row.get(name)
        if not _empty(value):
            # A column that has holes arrives as floats: 40.0 is meant where a count is expected.
            whole = name in ("max_tokens", "top_k", "seed") and isinstance(value, (float, np.floating))
            own[name] = int(value) if whole and float(value).is_integer() else value
    return {"prompt": prompt, **defaults, **own}
