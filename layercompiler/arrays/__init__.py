"""One way to write numeric code for numpy, torch, jax and TensorFlow.

    xp = arrays.of(x)                  # by the type of a tensor, or arrays.get("torch")
    xp.sum(xp.exp(x), axis=-1)         # names and meaning of the Python array API standard
    y, pull = xp.vjp(f, x)             # and the transformations that a derivative rule needs

Functions of the standard (and a few that all frameworks have, such as einsum) come from the framework itself, for torch by way of
array-api-compat; `Arrays` lists what is added. Importing this loads no framework.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from layercompiler.arrays.base import Arrays
from layercompiler.errors import DtypeError
from layercompiler.frameworks import FRAMEWORKS, checked

__all__ = ["Arrays", "get", "of"]

_PACKAGES = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow", "keras": "tensorflow", "numpy": "numpy"}


@cache
def get(framework: str) -> Arrays:
    """The array functions of a framework by its name.

    Raises:
        OptionError: Not one of the four frameworks.
        MissingDependencyError: The framework is not installed.
    """
    return importlib.import_module(f"layercompiler.arrays.{checked(framework)}").ARRAYS


def of(*values: Any) -> Arrays:
    """The array functions that fit the values: those of the one framework among them; numpy for numbers, lists and numpy arrays.

    Raises:
        DtypeError: Values of two frameworks, or of an unknown one.
    """
    found = {name for value in values for name in [_framework(value)] if name != "numpy"}
    if len(found) > 1:
        raise DtypeError("tensors of several frameworks in one call", expected="one framework", got=", ".join(sorted(found)))
    return get(found.pop() if found else "numpy")


def _framework(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, complex, list, tuple)):
        return "numpy"
    for kind in type(value).__mro__:
        name = _PACKAGES.get(kind.__module__.split(".")[0])
        if name is not None:
            return name
    raise DtypeError("not a tensor of a known framework", expected=f"one of {list(FRAMEWORKS)}", got=type(value).__name__)
