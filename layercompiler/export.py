"""The door: `export` a problem as a layer of a framework, or `compile` it once for all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercompiler import frameworks
from layercompiler.errors import NotAProblemError, OptionError, ParameterMismatchError, StoreError, nearest
from layercompiler.plan import CompiledProblem, compile_program
from layercompiler.plan.nonlinear import CompiledNonlinear
from layercompiler.programs.blackbox import BlackBox
from layercompiler.programs.nonlinear import NonlinearProgram
from layercompiler.programs.store import load as read
from layercompiler.solvers import Options, engine
from layercompiler.solvers.least_squares import LeastSquaresOptions
from layercompiler.solvers.least_squares.options import METHODS

# What compiles a problem of one of our own classes: a function of the problem and a `Request`, "module:function" in this package.
_COMPILERS: dict[str, str] = {
    "layercompiler.programs.blackbox.BlackBox": "export:_compile_discrete",
    "layercompiler.problems.qp.QP": "export:_compile_qp",
    "layercompiler.problems.factors.LeastSquares": "plan.least_squares:compile_least_squares",
    "layercompiler.programs.least_squares.LeastSquaresProgram": "plan.least_squares:compile_least_squares",
}


@dataclass(frozen=True)
class Request:
    """The arguments of `compile`.

    Attributes:
        parameters: As in `compile`; likewise the others. `options` are as given: each kind of problem has its own.
    """

    parameters: Sequence[Any] | None
    variables: Sequence[Any] | None
    solver: str
    on_error: str
    gp: bool | None
    options: Any
    estimator: Any


def compile(
    problem: Any,
    *,
    parameters: Sequence[Any] | None = None,
    variables: Sequence[Any] | None = None,
    solver: str = "auto",
    on_error: str = "raise",
    gp: bool | None = None,
    options: Any = None,
    estimator: Any = None,
) -> Any:
    """Compile a problem once, free of any framework: numpy in, numpy out.

    Args:
        problem: A `cvxpy.Problem`, DCP or DGP, and DPP in its parameters; or a `LeastSquares`; or a `QP`, whose parameters and
            outputs are given by name.
        parameters: Parameters in call order; None for all, in order of appearance. Others are constants with their `.value`.
        variables: Outputs: variables, dual variables (`constraint.dual_variables[i]`), affine expressions, or
            `problem.objective` for the optimal value; None for all variables.
        solver: "auto" or the name of an engine ("lanes", "dense_qp", "clarabel", "scs", ...), or of a method of nonlinear least squares
            ("levenberg_marquardt", "gauss_newton", "dogleg"), which then takes the problem whether it is convex or not.
        on_error: "raise", or "flag" for NaN outputs and zero derivatives of failed instances. For linear and quadratic programs also
            "closest": an instance that cannot be satisfied is answered by the closest one that can (the least squared violation of its
            rows, and then its objective), with the derivatives of that answer; `info.engine` says "closest" there.
        gp: True for a geometric program, False for a convex one, None to detect.
        options: `Options` (for least squares `LeastSquaresOptions`), or a dict of its fields.
        estimator: How to estimate gradients of a discrete problem, such as `layercompiler.IMLE()`. Needed for problems with boolean
            or integer variables and for a `BlackBox` (or a named oracle), which `problem` may also be.

    Returns:
        The compiled problem; `.solve`, `.vjp`, `.jvp`, `.report()`, and `.to("torch")` make use of it.

    Raises:
        BuildError: The problem cannot be compiled; the subclasses say why and how to mend it.
        OptionError: An unknown solver or option.
    """
    if on_error not in ("raise", "flag", "closest"):
        mend = nearest(str(on_error), ("raise", "flag", "closest"), "'raise' stops at a failed instance, 'flag' marks it with NaN")
        raise OptionError("unknown value of on_error", expected="'raise', 'flag' or 'closest'", got=repr(on_error), mend=mend)
    for what, given in (("parameters", parameters), ("variables", variables)):
        if isinstance(given, str) or hasattr(given, "shape"):
            raise ParameterMismatchError(
                f"`{what}` is a list", where=str(given), expected=f"{what}=[...]", got=type(given).__name__, mend=f"{what}=[{given}]"
            )
    request = Request(parameters, variables, solver, on_error, gp, options, estimator)
    compiled = _compiler(problem, request)(problem, request)
    if on_error == "closest" and not isinstance(compiled, CompiledProblem):
        raise OptionError(
            "only linear and quadratic programs have a closest one",
            where="on_error='closest'",
            got=type(compiled).__name__,
            mend="on_error='flag' marks failed instances",
        )
    return compiled


def export(
    problem: Any,
    framework: str = "",
    *,
    parameters: Sequence[Any] | None = None,
    variables: Sequence[Any] | None = None,
    solver: str = "auto",
    on_error: str = "raise",
    gp: bool | None = None,
    options: Any = None,
    estimator: Any = None,
) -> Any:
    """Compile a problem into a batched, differentiable layer of a framework.

    Args:
        problem: A `cvxpy.Problem`, or an already compiled one.
        framework: "torch", "jax", "tensorflow" or "numpy"; it must be given.
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
        OptionError: No framework is named, or an unknown one.
        MissingDependencyError: The framework is not installed.
    """
    frameworks.checked(framework)
    if not hasattr(problem, "layer_kind"):
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
    return frameworks.layer(problem, framework)


def _compiler(problem: Any, request: Request) -> Callable[[Any, Request], Any]:
    if request.estimator is not None:
        return _compile_discrete
    for kind in type(problem).__mro__:
        name = _COMPILERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is not None:
            module, _, function = name.partition(":")
            return getattr(importlib.import_module(f"layercompiler.{module}"), function)
    return _compile_convex


def _check_solver(solver: Any, others: Sequence[str] = ()) -> None:
    if solver is None or not isinstance(solver, str):
        raise OptionError(
            "the solver is given by name", where="solver", expected="a string", got=repr(solver), mend="leave `solver` out, or pass 'auto'"
        )
    if solver.lower() not in ("auto", *others):
        engine(solver)


def _compile_qp(problem: Any, request: Request) -> CompiledProblem:
    from layercompiler.problems.qp import compile_qp

    _check_solver(request.solver)
    program = compile_qp(problem, request.parameters, request.variables)
    return compile_program(program, request.solver, request.on_error, Options.of(request.options))


def _compile_convex(problem: Any, request: Request) -> Any:
    least_squares = isinstance(request.options, LeastSquaresOptions)
    _check_solver(request.solver, (str(request.solver).lower(),) if least_squares else tuple(METHODS))
    nonlinear = least_squares or request.solver.lower() in METHODS
    if not _of_cvxpy(problem):
        raise NotAProblemError(
            "only a cvxpy.Problem can be compiled here",
            expected="a cvxpy.Problem",
            got=type(problem).__name__,
            mend="write the problem as cvxpy.Problem(objective, constraints)",
        )
    from layercompiler.problems.nonlinear.choose import compile_either

    program = compile_either(problem, request.parameters, request.variables, request.gp, nonlinear, request.solver.lower() == "auto")
    if isinstance(program, NonlinearProgram):
        return CompiledNonlinear(program, request.solver, request.on_error, LeastSquaresOptions.of(request.options))
    options: Any = request.options
    return compile_program(program, request.solver, request.on_error, Options.of(options))


def _compile_discrete(problem: Any, request: Request) -> Any:
    from layercompiler.plan.discrete import CompiledDiscrete

    options = Options.of(request.options)
    if _of_cvxpy(problem):
        from layercompiler.problems.discrete import compile_discrete

        problem = compile_discrete(problem, request.parameters, request.variables)
    elif not isinstance(problem, BlackBox):
        problem = BlackBox(problem)
    if request.estimator is None:
        raise OptionError("a black box needs an estimator of its gradient", mend="pass estimator=layercompiler.IMLE(), or another one")
    return CompiledDiscrete(problem, request.estimator, request.solver, request.on_error, options)


def _of_cvxpy(problem: Any) -> bool:
    return type(problem).__module__.split(".")[0] == "cvxpy"


def load(path: str | Path, framework: str | None = None) -> Any:
    """Read a compiled problem that its `save` wrote; with a framework, its layer.

    Raises:
        StoreError: The file is damaged, unsafe or of another format.
        OptionError: Its engine is not known here.
        MissingDependencyError: Its engine is not installed here.
    """
    program, settings = read(path)
    try:
        options, solver, on_error = Options.of(dict(settings["options"])), str(settings["solver"]), settings["on_error"]
        if on_error not in ("raise", "flag", "closest"):
            raise ValueError(f"on_error {on_error!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError("the settings of the saved layer are malformed", where=str(path), got=str(error)) from error
    if program is None or "discrete" in settings:
        from layercompiler.plan.discrete import CompiledDiscrete
        from layercompiler.plan.discrete_store import restore

        compiled: Any = CompiledDiscrete(*restore(path, program, settings.get("discrete")), solver, on_error, options)
    else:
        compiled = compile_program(program, solver, on_error, options)
    return compiled if framework is None else frameworks.layer(compiled, framework)
