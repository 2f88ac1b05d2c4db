"""The door: `export` a problem as a layer of a framework, or `compile` it once for all of them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layercompiler.errors import MissingDependencyError, NotAProblemError, OptionError, StoreError
from layercompiler.plan import CompiledProblem, compile_program
from layercompiler.problems.qp import QP, compile_qp
from layercompiler.programs.blackbox import BlackBox
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
    estimator: Any = None,
) -> Any:
    """Compile a problem once, free of any framework: numpy in, numpy out.

    Args:
        problem: A `cvxpy.Problem`, DCP or DGP, and DPP in its parameters; or a `layercompiler.QP`, whose parameters and outputs are
            given by name.
        parameters: Parameters in call order; None for all, in order of appearance. Others are constants with their `.value`.
        variables: Outputs: variables, dual variables (`constraint.dual_variables[i]`), affine expressions, or
            `problem.objective` for the optimal value; None for all variables.
        solver: "auto" or the name of an engine ("lanes", "dense_qp", "clarabel", "scs", ...).
        on_error: "raise", or "flag" for NaN outputs and zero derivatives of failed instances.
        gp: True for a geometric program, False for a convex one, None to detect.
        options: `Options`, or a dict of its fields.
        estimator: How to estimate gradients of a discrete problem, such as `layercompiler.IMLE()`. Needed for problems with boolean
            or integer variables and for a `BlackBox` (or a named oracle), which `problem` may also be.

    Returns:
        The compiled problem; `.solve`, `.vjp`, `.jvp`, `.report()`, and `.to("torch")` make use of it.

    Raises:
        BuildError: The problem cannot be compiled; the subclasses say why and how to mend it.
        OptionError: An unknown solver or option.
    """
    if on_error not in ("raise", "flag"):
        raise OptionError("unknown value of on_error", expected="'raise' or 'flag'", got=repr(on_error))
    checked = Options.of(options)
    if estimator is not None or isinstance(problem, BlackBox):
        return _compile_discrete(problem, parameters, variables, solver, on_error, checked, estimator)
    if solver is None or not isinstance(solver, str):
        raise OptionError("the solver is given by name", expected="a string such as 'auto'", got=repr(solver))
    if solver.lower() != "auto":
        engine(solver)
    if isinstance(problem, QP):
        return compile_program(compile_qp(problem, parameters, variables), solver, on_error, checked)
    if type(problem).__module__.split(".")[0] != "cvxpy":
        raise NotAProblemError(
            "only a cvxpy.Problem or a layercompiler.QP can be compiled here",
            expected="a cvxpy.Problem or a layercompiler.QP",
            got=type(problem).__name__,
            mend="write the problem as cvxpy.Problem(objective, constraints)",
        )
    from layercompiler.problems.convex import compile_convex

    program = compile_convex(problem, parameters, variables, gp)
    return compile_program(program, solver, on_error, checked)


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
    estimator: Any = None,
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
        estimator: See `compile`.

    Returns:
        A layer: called with one tensor per parameter, (batch..., *shape), it returns a tuple of tensors.

    Raises:
        MissingDependencyError: The framework is not installed.
    """
    kind = layer_class(framework)
    if isinstance(problem, CompiledProblem):
        return kind(problem)
    if not hasattr(problem, "estimator"):
        problem = compile(
            problem,
            parameters=parameters,
            variables=variables,
            solver=solver,
            on_error=on_error,
            gp=gp,
            options=options,
            estimator=estimator,
        )
    return layer_class(framework, "DiscreteLayer")(problem) if hasattr(problem, "estimator") else kind(problem)


def _compile_discrete(problem: Any, parameters: Any, variables: Any, solver: str, on_error: str, options: Options, estimator: Any) -> Any:
    from layercompiler.plan.discrete import CompiledDiscrete

    if type(problem).__module__.split(".")[0] == "cvxpy":
        from layercompiler.problems.discrete import compile_discrete

        problem = compile_discrete(problem, parameters, variables)
    elif not isinstance(problem, BlackBox):
        problem = BlackBox(problem)
    if estimator is None:
        raise OptionError("a black box needs an estimator of its gradient", mend="pass estimator=layercompiler.IMLE(), or another one")
    return CompiledDiscrete(problem, estimator, solver, on_error, options)


def load(path: str | Path, framework: str | None = None) -> Any:
    """Read a compiled problem that `CompiledProblem.save` wrote; with a framework, its layer.

    Raises:
        StoreError: The file is damaged, unsafe or of another format.
        OptionError: Its engine is not known here.
        MissingDependencyError: Its engine is not installed here.
    """
    program, settings = read(path)
    try:
        options, solver, on_error = Options.of(dict(settings["options"])), str(settings["solver"]), settings["on_error"]
        if on_error not in ("raise", "flag"):
            raise ValueError(f"on_error {on_error!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError("the settings of the saved layer are malformed", where=str(path), got=str(error)) from error
    compiled = compile_program(program, solver, on_error, options)
    return compiled if framework is None else layer_class(framework)(compiled)


def layer_class(framework: str, kind: str = "Layer") -> Any:
    """The layer class of a framework: "Layer", or "DiscreteLayer" for discrete problems."""
    name = str(framework).lower()
    if name not in FRAMEWORKS:
        raise OptionError("unknown framework", expected=f"one of {list(FRAMEWORKS)}", got=repr(framework))
    if name == "numpy":
        return getattr(importlib.import_module(f"layercompiler.plan.{'layer' if kind == 'Layer' else 'discrete'}"), kind)
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(f"framework '{name}' is not installed", mend=f"pip install 'layercompiler[{name}]'")
    return getattr(importlib.import_module(f"layercompiler.{name}" + (".discrete" if kind != "Layer" else "")), kind)
