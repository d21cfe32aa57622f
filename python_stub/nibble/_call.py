"""What every call needs: text and numbers into C, C's memory back into Python, callbacks, owned handles."""
import ctypes
import json
import logging
import operator
import os
import weakref
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_void_p

import numpy as np

from . import _ffi
from ._ffi import lib

log = logging.getLogger("nibble")
_LEVELS = {_ffi.LOG_DEBUG: logging.DEBUG, _ffi.LOG_INFO: logging.INFO, _ffi.LOG_WARN: logging.WARNING}


# ---- into C ----------------------------------------------------------------------------------------------------------
def c_path(path):
    return no_nul(os.fsencode(path), "a path")


def no_nul(data, what):
    if b"\0" in data:
        raise ValueError(f"{what} must not hold a NUL byte: {data!r}")
    return data


def set_fields(struct, **values):
    """Sets fields by name; None leaves the default.  ctypes would wrap a number that does not fit: an error here."""
    types = dict(struct._fields_)
    for name, value in values.items():
        if value is None:
            continue
        kind = types[name]
        if kind is c_char_p:
            setattr(struct, name, c_path(value))
        elif kind in (c_float, c_double):
            setattr(struct, name, float(value))
        else:
            number = operator.index(value)
            setattr(struct, name, number)
            if getattr(struct, name) != number:
                raise ValueError(f"{name}={number}: does not fit {kind.__name__}")
    return struct


def options(name, **values):
    """An option struct with the library's defaults, then `values`."""
    struct = getattr(_ffi, f"nb_{name}")()
    getattr(lib(), f"nb_{name}_init")(byref(struct))
    return set_fields(struct, **values)


def result(name):
    struct = getattr(_ffi, f"nb_{name}")()
    struct.struct_size = ctypes.sizeof(struct)
    return struct


def ids_array(ids):
    """int32, contiguous; the caller's own memory where it already is that."""
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"token ids must be a flat sequence of integers, got {array.dtype} of shape {array.shape}")
    if array.size and (int(array.min()) < -2**31 or int(array.max()) >= 2**31):
        raise ValueError("token ids must fit 32 bits")
    return np.ascontiguousarray(array, dtype=np.int32)


def ids_pointer(array):
    return array.ctypes.data_as(POINTER(c_int32))


# ---- out of C --------------------------------------------------------------------------------------------------------
def text_at(address, n):
    # A token of byte fallback may be half a character at the end of a text: U+FFFD, as tokenizers do it.
    return ctypes.string_at(address, n).decode("utf-8", "replace") if address else ""


def take_text(pointer, n=-1):
    """The text behind a `char **` result, whose memory goes back to the library."""
    try:
        return text_at(pointer.value, n)
    finally:
        lib().nb_free(pointer)


def take_json(pointer):
    return json.loads(take_text(pointer))


def as_dict(struct):
    values = {name: getattr(struct, name) for name, _ in struct._fields_ if name != "struct_size"}
    return {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in values.items()}


# ---- callbacks -------------------------------------------------------------------------------------------------------
class Callbacks:
    """Diagnostics go to logging's "nibble"; progress(stage, done, total, unit, rate) may return True to cancel.

        with Callbacks(progress) as cb:
            opt.callbacks = cb.struct
            lib().nb_...(byref(opt))

    An exception cannot pass through C: it is kept, cancels the call, and is raised when the block ends.  The progress
    function is always set, since it is also where Python gets to see Ctrl-C during a long call.
    """

    def __init__(self, progress=None):
        self.progress = progress
        self.raised = None
        # self -> struct -> function -> self would be a cycle through C: the functions see only what they need.
        self.struct = _ffi.nb_callbacks(_log_function, _ffi.nb_progress_fn(_progress_function(weakref.ref(self))), None)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self.raised is not None:
            raised, self.raised = self.raised, None
            raise raised


@_ffi.nb_log_fn
def _log_function(_user, level, text):
    log.log(_LEVELS.get(level, logging.INFO), "%s", text.decode("utf-8", "replace"))


def _progress_function(owner):
    def function(_user, p):
        self = owner()
        if self is None:
            return 0
        try:
            p = p.contents
            return int(bool(self.progress and self.progress(p.stage.decode(), p.done, p.total, p.unit.decode(), p.rate)))
        except BaseException as e:
            self.raised = e
            return 1

    return function


# ---- objects that own a handle ---------------------------------------------------------------------------------------
class Handle:
    """Owns a C object.  close() frees it (again: nothing happens), as do `with`, garbage collection and the end of the
    program.  No other thread may be inside a call on the object while it is closed."""

    def _own(self, free, pointer, *needs):
        """`needs` are kept alive until the object is freed, also where all of it becomes garbage at once."""
        self._pointer = pointer
        self._finalizer = weakref.finalize(self, _free, free, pointer, needs)

    @property
    def _h(self):
        if not self._finalizer.alive:
            raise ValueError(f"this {type(self).__name__} is closed")
        return self._pointer

    def close(self):
        self._finalizer()

    @property
    def closed(self):
        return not self._finalizer.alive

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()


def _free(free, pointer, _needs):
    free(pointer)


def new_handle(call, *args):
    """call(&handle, *args)"""
    pointer = c_void_p()
    call(byref(pointer), *args)
    return pointer


