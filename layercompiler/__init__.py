"""layercompiler compiles an optimisation problem into a batched, differentiable layer of torch, jax or TensorFlow.

    layer = layercompiler.export(problem, "torch", parameters=[A, b], variables=[x])
    (x_star,) = layer(A_batch, b_batch)          # (..., n), any leading batch shape, gradients flow

Public names are resolved at first use: importing the package loads no framework, no solver and no cvxpy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layercompiler import errors
    from layercompiler.export import compile, export, load
    from layercompiler.plan import CompiledProblem
    from layercompiler.solvers import Options
    from layercompiler.status import Info, Solution, Status

__version__ = "0.1.0"
__all__ = ["CompiledProblem", "Info", "Options", "Solution", "Status", "compile", "errors", "export", "load"]

_ORIGIN = {
    "CompiledProblem": "plan",
    "Info": "status",
    "Options": "solvers",
    "Solution": "status",
    "Status": "status",
    "compile": "export",
    "export": "export",
    "load": "export",
}
_MODULES = ("errors", "inspect", "jax", "tensorflow", "torch")


class _Package(ModuleType):
    """Keeps `layercompiler.export` the function when the import system binds the submodule of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _ORIGIN and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ORIGIN:
        value = getattr(importlib.import_module(f"{__name__}.{_ORIGIN[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
