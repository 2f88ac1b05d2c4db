"""The door: `export` a problem as a layer of a framework, or `compile` it once for all of them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layercompiler.errors import MissingDependencyError, NotAProblemError, OptionError
from layercompiler.plan import CompiledProblem
from layercompiler.programs.store import load as read
from layercompiler.solvers import Options, engine

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


def compile(
    problem: Any,
    *,
    parameters: Sequence[Any] | None = None,
    variables: Sequence[Any] | None = None,
    solver: str = "auto",
    on_error: str = "raise",
    gp: bool | None = None,
    options: Options | dict[str, Any] | None = None,
) -> CompiledProblem:
    """Compile a problem once, free of any framework: numpy in, numpy out.

    Args:
        problem: A `cvxpy.Problem`, DCP or DGP, and DPP in its parameters.
        parameters: Parameters in call order; None for all, in order of appearance. Others are constants with their `.value`.
        variables: Outputs: variables, dual variables (`constraint.dual_variables[i]`), affine expressions, or
            `problem.objective` for the optimal value; None for all variables.
        solver: "auto" or the name of an engine ("lanes", "clarabel", "scs", "ecos", ...).
        on_error: "raise", or "flag" for NaN outputs and zero derivatives of failed instances.
        gp: True for a geometric program, False for a convex one, None to detect.
        options: `Options`, or a dict of its fields.

    Returns:
        The compiled problem; `.solve`, `.vjp`, `.jvp`, `.report()`, and `.to("torch")` make use of it.

    Raises:
        BuildError: The problem cannot be compiled; the subclasses say why and how to mend it.
        OptionError: An unknown solver or option.
    """
    if on_error not in ("raise", "flag"):
        raise OptionError("unknown value of on_error", expected="'raise' or 'flag'", got=repr(on_error))
    checked = Options.of(options)
    if solver is None or not isinstance(solver, str):
        raise OptionError("the solver is given by name", expected="a string such as 'auto'", got=repr(solver))
    if solver.lower() != "auto":
        engine(solver)
    if type(problem).__module__.split(".")[0] != "cvxpy":
        raise NotAProblemError(
            "only a cvxpy.Problem can be compiled here",
            expected="a cvxpy.Problem",
            got=type(problem).__name__,
            mend="write the problem as cvxpy.Problem(objective, constraints)",
        )
    from layercompiler.problems.convex import compile_convex

    program = compile_convex(problem, parameters, variables, gp)
    return CompiledProblem(program, solver, on_error, checked)


def export(
    problem: Any,
    framework: str,
    *,
    parameters: Sequence[Any] | None = None,
    variables: Sequence[Any] | None = None,
    solver: str = "auto",
    on_error: str = "raise",
    gp: bool | None = None,
    options: Options | dict[str, Any] | None = None,
) -> Any:
    """Compile a problem into a batched, differentiable layer of a framework.

    Args:
        problem: A `cvxpy.Problem`, or an already compiled one.
        framework: "torch", "jax", "tensorflow" or "numpy".
        parameters: See `compile`; likewise the other arguments.
        variables: See `compile`.
        solver: See `compile`.
        on_error: See `compile`.
        gp: See `compile`.
        options: See `compile`.

    Returns:
        A layer: called with one tensor per parameter, (batch..., *shape), it returns a tuple of tensors.

    Raises:
        MissingDependencyError: The framework is not installed.
    """
    kind = layer_class(framework)
    if not isinstance(problem, CompiledProblem):
        problem = compile(problem, parameters=parameters, variables=variables, solver=solver, on_error=on_error, gp=gp, options=options)
    return kind(problem)


def load(path: str | Path, framework: str | None = None) -> Any:
    """Read a compiled problem that `CompiledProblem.save` wrote; with a framework, its layer.

    Raises:
        StoreError: The file is damaged, unsafe or of another format.
    """
    program, settings = read(path)
    options = Options.of(settings.get("options"))
    compiled = CompiledProblem(program, str(settings["solver"]), str(settings["on_error"]), options)
    return compiled if framework is None else layer_class(framework)(compiled)


def layer_class(framework: str) -> Any:
    """The Layer class of a framework."""
    name = str(framework).lower()
    if name not in FRAMEWORKS:
        raise OptionError("unknown framework", expected=f"one of {list(FRAMEWORKS)}", got=repr(framework))
    if name == "numpy":
        from layercompiler.plan.layer import Layer

        return Layer
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(f"framework '{name}' is not installed", mend=f"pip install 'layercompiler[{name}]'")
    return importlib.import_module(f"layercompiler.{name}").Layer
