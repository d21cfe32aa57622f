"""Where the Python tests find the package, the library, the demo model and the shared data."""
import importlib.util
import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "python_stub"))
BUILD = os.environ.get("NIBBLE_BUILD_DIR", os.path.join(ROOT, "build"))
os.environ.setdefault("NIBBLE_LIBRARY", os.path.join(BUILD, "libnibble.so"))
os.environ.setdefault("NIBBLE_RECIPES", os.path.join(ROOT, "configs", "recipes"))

# Training needs torch, 200 MB from PyPI: where it is missing these tests do not exist, and the last lines say so.
collect_ignore = [] if importlib.util.find_spec("torch") else ["python/test_qat_training.py"]


def pytest_terminal_summary(terminalreporter):
    for name in collect_ignore:
        terminalreporter.write_line(f"torch is not installed: tests/{name} is left out (./dev oracle runs it)")


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def nibble():
    if not os.path.exists(os.environ["NIBBLE_LIBRARY"]):
        pytest.skip(f"{os.environ['NIBBLE_LIBRARY']} is missing: ./dev build makes it")
    import nibble

    return nibble


@pytest.fixture(scope="session")
def demo():
    folder = os.path.join(ROOT, "configs", "demo", "model")
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        pytest.skip("configs/demo/model is not in this checkout")
    return folder


@pytest.fixture(scope="session")
def demo_text():
    path = os.path.join(ROOT, "configs", "demo", "val.txt")
    if not os.path.exists(path):
        pytest.skip("configs/demo/val.txt is not in this checkout")
    return path


@pytest.fixture(scope="session")
def shared():
    """A function from a relative path to the shared test data; skips where it is missing."""
    data = os.environ.get("NIBBLE_SHARED_DATA", os.path.join(os.path.dirname(ROOT), "shared", "data"))

    def find(path):
        full = os.path.join(data, path)
        if not os.path.exists(full):
            pytest.skip(f"no shared data: {path} (set NIBBLE_SHARED_DATA)")
        return full

    return find


@pytest.fixture(scope="session")
def model(nibble, demo):
    with nibble.Model(demo) as m:
        yield m
