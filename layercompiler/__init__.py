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
    from layercompiler.decorator import imle
    from layercompiler.derivatives.perturbation.estimators import (
        DBB,
        IMLE,
        AdaptiveIMLE,
        Identity,
        Perturbed,
        ScoreFunction,
        StraightThrough,
    )
    from layercompiler.export import compile, export, load
    from layercompiler.implicit.decorators import custom_fixed_point, custom_root, root_jvp, root_vjp
    from layercompiler.implicit.problem import Argmin, Declarative, FixedPoint, Root, Unrolled
    from layercompiler.plan import CompiledProblem
    from layercompiler.problems.factors import SE2, SE3, SO2, SO3, Diagonal, Euclidean, Full, LeastSquares, Scale, factor
    from layercompiler.problems.qp import QP
    from layercompiler.programs.blackbox import BlackBox
    from layercompiler.programs.robust import Cauchy, GemanMcClure, Huber, PseudoHuber, Welsch
    from layercompiler.solvers import Options
    from layercompiler.solvers.least_squares import LeastSquaresOptions
    from layercompiler.status import Info, Solution, Status

__version__ = "0.1.0"
__all__ = [
    "DBB",
    "IMLE",
    "QP",
    "SE2",
    "SE3",
    "SO2",
    "SO3",
    "AdaptiveIMLE",
    "Argmin",
    "BlackBox",
    "Cauchy",
    "CompiledProblem",
    "Declarative",
    "Diagonal",
    "Euclidean",
    "FixedPoint",
    "Full",
    "GemanMcClure",
    "Huber",
    "Identity",
    "Info",
    "LeastSquares",
    "LeastSquaresOptions",
    "Options",
    "Perturbed",
    "PseudoHuber",
    "Root",
    "Scale",
    "ScoreFunction",
    "Solution",
    "Status",
    "StraightThrough",
    "Unrolled",
    "Welsch",
    "compile",
    "custom_fixed_point",
    "custom_root",
    "errors",
    "export",
    "factor",
    "imle",
    "load",
    "root_jvp",
    "root_vjp",
]

_ESTIMATORS = ("AdaptiveIMLE", "DBB", "IMLE", "Identity", "Perturbed", "ScoreFunction", "StraightThrough")
_LEAST_SQUARES = ("SE2", "SE3", "SO2", "SO3", "Diagonal", "Euclidean", "Full", "LeastSquares", "Scale", "factor")
_ROBUST = ("Cauchy", "GemanMcClure", "Huber", "PseudoHuber", "Welsch")
_IMPLICIT = ("Argmin", "Declarative", "FixedPoint", "Root", "Unrolled")
_ORIGIN = {
    **dict.fromkeys(_ESTIMATORS, "derivatives.perturbation.estimators"),
    "BlackBox": "programs.blackbox",
    "QP": "problems.qp",
    **dict.fromkeys(_LEAST_SQUARES, "problems.factors"),
    **dict.fromkeys(_ROBUST, "programs.robust"),
    "LeastSquaresOptions": "solvers.least_squares",
    **dict.fromkeys(_IMPLICIT, "implicit.problem"),
    **dict.fromkeys(("custom_fixed_point", "custom_root", "root_jvp", "root_vjp"), "implicit.decorators"),
    "imle": "decorator",
    "CompiledProblem": "plan",
    "Info": "status",
    "Options": "solvers",
    "Solution": "status",
    "Status": "status",
    "compile": "export",
    "export": "export",
    "load": "export",
}
_MODULES = ("errors", "functions", "implicit", "inspect", "jax", "manifolds", "tensorflow", "torch")
_ALIASES = {
    "linear": "derivatives.solves",
    "losses": "derivatives.perturbation.losses",
    "noise": "derivatives.perturbation.noise",
    "oracles": "solvers.oracles",
}


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
    if name in _ALIASES:
        return importlib.import_module(f"{__name__}.{_ALIASES[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES, *_ALIASES})
