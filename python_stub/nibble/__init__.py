"""nibble: quantized LLM inference from Python, over the C library.

    import nibble

    with nibble.Model("path/to/hf-folder") as m:
        print(m.generate("Once upon a time", max_tokens=40, temperature=0.8, seed=1))
    nibble.quantize("path/to/hf-folder", "out", recipe="w4a16-g128")

The library is $NIBBLE_LIBRARY, else libnibble.so beside this package, else the installed one; it is loaded on first
use.  A call that fails raises nibble.Error with a status ("EIO") and one sentence.  Diagnostics go to the logger
"nibble" of the logging module.
"""
from ._engine import Engine, Event
from ._ffi import Error
from ._jobs import bench, compare_layers, evaluate, inspect, quantize, run
from ._model import Model, Stream, Tokenizer

__version__ = "0.1.0"
__all__ = ["Engine", "Error", "Event", "Model", "Stream", "Tokenizer", "bench", "compare_layers", "evaluate", "inspect",
           "library_version", "quantize", "run"]


def library_version():
    """Of the library that is in use, which may differ from this package's __version__."""
    from ._ffi import lib

    return lib().nb_version().decode()
