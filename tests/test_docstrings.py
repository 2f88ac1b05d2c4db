"""The examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import layercompiler

MODULES = [m.name for m in pkgutil.walk_packages(layercompiler.__path__, "layercompiler.", onerror=lambda name: None)]


@pytest.mark.parametrize("name", [m for m in MODULES if not m.rsplit(".", 1)[-1].startswith("_")])
def test_docstring_examples(name):
    top = name.split(".")[1]
    if top in ("torch", "jax", "tensorflow"):
        pytest.importorskip(top)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").startswith("layercompiler"):
            raise
        pytest.skip(f"needs {error.name}")
    assert doctest.testmod(module).failed == 0
