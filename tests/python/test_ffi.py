"""python_stub/nibble/_ffi.py says the same as include/nibble.h, according to a C compiler."""
import ctypes
import os
import re
import shutil
import subprocess

import pytest
from nibble import _ffi

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMPILER = os.environ.get("CC") or shutil.which("cc")


def header():
    """include/nibble.h without comments."""
    with open(os.path.join(ROOT, "include", "nibble.h")) as f:
        return re.sub(r"/\*.*?\*/", " ", f.read(), flags=re.S)


def run_c(folder, statements):
    """Compiles a main() with these statements against the header: its output lines."""
    if not COMPILER:
        pytest.skip("no C compiler (cc) to ask")
    source, program = folder / "ask.c", folder / "ask"
    source.write_text('#include <stdio.h>\n#include "nibble.h"\n#define SIZE(t, f) sizeof(((t *)0)->f)\n'
                      "int main(void)\n{\n" + "\n".join(statements) + "\nreturn 0;\n}\n")
    done = subprocess.run([COMPILER, "-std=c11", "-I", os.path.join(ROOT, "include"), str(source), "-o", str(program)],
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return subprocess.run([str(program)], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def header_structs():
    """name -> field names, in order."""
    structs = {}
    for name, body in re.findall(r"typedef struct (nb_\w+)\s*\{(.*?)\}\s*\1\s*;", header(), flags=re.S):
        fields = []
        for declaration in filter(None, map(str.strip, body.split(";"))):
            for declarator in declaration.split(","):
                fields.append(re.search(r"(\w+)(\[\w+\])?$", declarator.strip()).group(1))
        structs[name] = fields
    return structs


def header_functions():
    """name -> (result, [argument, ...]) as C text."""
    functions = {}
    for result, name, arguments in re.findall(r"NB_API\s+([\w\s*]+?)\b(nb_\w+)\s*\(([^)]*)\)\s*;", header()):
        arguments = " ".join(arguments.split())
        functions[name] = (result.strip(), [] if arguments == "void" else arguments.split(", "))
    return functions


def test_every_struct_of_the_header_is_declared_with_its_fields():
    declared = {s.__name__: [f for f, _ in s._fields_] for s in _ffi.STRUCTS}
    assert declared == header_structs()


def test_every_size_and_offset_is_what_the_compiler_says(tmp_path):
    statements, expected = [], []
    for s in _ffi.STRUCTS:
        name = s.__name__
        statements.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(s)}")
        for field, kind in s._fields_:
            statements.append(f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), SIZE({name}, {field}));')
            expected.append(f"{name}.{field} {getattr(s, field).offset} {ctypes.sizeof(kind)}")
    assert run_c(tmp_path, statements) == expected


def test_every_number_has_the_value_of_the_header(tmp_path):
    numbers = {f"NB_{name}": value for name, value in _ffi.STATUS.items()}
    for prefix in ("TOKENIZE", "DETOKENIZE", "EVENT", "FINISH", "LOG"):
        numbers.update({f"NB_{k}": v for k, v in vars(_ffi).items() if k.startswith(prefix + "_")})
    lines = run_c(tmp_path, [f'printf("{name} %d\\n", (int){name});' for name in numbers])
    assert lines == [f"{name} {value}" for name, value in numbers.items()]
    text = header()
    listed = re.findall(r"^\s*X\((\w+), \d+,", text, flags=re.M)
    listed += re.findall(r"\bNB_((?:EVENT|FINISH|LOG)_\w+) = |#define NB_((?:TOKENIZE|DETOKENIZE)_\w+)", text)
    names = {n if isinstance(n, str) else n[0] or n[1] for n in listed}
    assert names == {name[len("NB_"):] for name in numbers}


def test_every_function_of_the_header_has_a_prototype():
    functions = header_functions()
    assert len(functions) == len(re.findall(r"^NB_API", header(), flags=re.M))
    assert set(_ffi.PROTOTYPES) == set(functions)


SCALARS = {"int": ctypes.c_int, "unsigned": ctypes.c_uint, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32,
           "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t, "nb_status": ctypes.c_int, "void": None}
STRUCTS = {s.__name__: s for s in _ffi.STRUCTS}


def agrees(text, kind, is_result):
    """Does the ctypes type `kind` pass what C declares as `text` (without a name)?"""
    base = re.sub(r"\bconst\b|[\s*]", "", text)
    depth = text.count("*")
    if depth == 0:
        return kind is (_ffi.nb_status if is_result and base == "nb_status" else SCALARS[base])
    if depth == 1 and base == "char":
        return kind is ctypes.c_char_p
    if depth == 1 and base in STRUCTS:
        return kind is ctypes.POINTER(STRUCTS[base])
    if depth == 1 and base in ("int32_t", "uint64_t", "size_t", "float"):
        return kind is ctypes.POINTER({**SCALARS, "float": ctypes.c_float}[base])
    if depth == 1:
        return kind is ctypes.c_void_p  # an opaque object, or void *
    if base in STRUCTS:
        return kind is ctypes.POINTER(ctypes.POINTER(STRUCTS[base]))
    if base == "int32_t":
        return kind is ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
    return kind is ctypes.POINTER(ctypes.c_void_p)  # receives an object or memory


@pytest.mark.parametrize("name", sorted(header_functions()))
def test_a_prototype_has_the_types_of_the_header(name):
    result, arguments = header_functions()[name]
    assert name in _ffi.PROTOTYPES
    kind, kinds = _ffi.PROTOTYPES[name]
    assert agrees(result, kind, True), f"{name} returns {result}"
    assert len(arguments) == len(kinds)
    for argument, got in zip(arguments, kinds):
        assert agrees(re.sub(r"\w+$", "", argument), got, False), f"{name}: {argument} is declared as {got}"


def test_the_library_has_every_function(nibble):
    from nibble._ffi import lib

    assert all(hasattr(lib(), name) for name in _ffi.PROTOTYPES)
    assert nibble.library_version() == nibble.__version__


def test_a_wrong_library_path_is_one_clear_error(nibble, monkeypatch):
    monkeypatch.setenv("NIBBLE_LIBRARY", "/nonexistent/libnibble.so")
    with pytest.raises(ImportError, match="NIBBLE_LIBRARY=/nonexistent/libnibble.so: cannot be loaded"):
        _ffi._open()
    monkeypatch.delenv("NIBBLE_LIBRARY")
    monkeypatch.setattr(_ffi, "_candidates", lambda: iter(["/nonexistent/a.so", "/nonexistent/b.so"]))
    with pytest.raises(ImportError, match="set NIBBLE_LIBRARY to its path.*a.so.*b.so"):
        _ffi._open()
