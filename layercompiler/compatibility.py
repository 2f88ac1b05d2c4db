"""The cvxpylayers signature in our terms: the same arguments, the same refusals, SCS-style settings translated.

Framework independent: each framework's `CvxpyLayer` is its `Layer` with a `Front`, so that switching is one import.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from layercompiler.errors import OptionError, ParameterMismatchError, UnsupportedConeError, nearest
from layercompiler.plan.dense import compile_program

ENGINES = {"scs": "scs", "ecos": "ecos", "clarabel": "clarabel", "cuclarabel": "clarabel", "moreau": "moreau", "lanes": "lanes"}
AUTOMATIC = frozenset({"diffcp", "auto"})  # the peer's default backend is not an engine: ours chooses
TOLERANCES = frozenset(
    {"eps", "eps_abs", "eps_rel", "abstol", "reltol", "feastol", "tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_ktratio", "tolerance"}
)
ITERATIONS = frozenset({"max_iters", "max_iter", "maxit", "max_iterations"})
TIMES = frozenset({"time_limit", "time_limit_secs"})
WORKERS = frozenset({"n_jobs", "n_jobs_forward", "n_jobs_backward", "workers"})
TIGHTEST = 1e-11  # a relative residual that refinement reaches; tighter requests mean "as exact as it gets"
FIRST_ORDER = 1000  # iteration limits from here on are meant for first-order methods and are no limit for the others
EXACT_MODES = frozenset({"dense", "lsqr", "lsmr", "lu", "lu_factor", "direct"})
# Tuning of one engine or of its derivative that changes the way to the answer and not the answer: accepted, without effect.
TUNING = frozenset(
    {
        *("acceleration_lookback", "acceleration_interval", "acceleration_type", "adaptive_scale", "alpha", "normalize", "rho_x", "scale"),
        *(
            "eps_infeas",
            "feastol_inacc",
            "abstol_inacc",
            "reltol_inacc",
            "mi_max_iters",
            "direct_solve_method",
            "use_indirect",
            "use_quad_obj",
        ),
        *(
            "gpu",
            "mkl",
            "cudss",
            "backend",
            "device",
            "dtype",
            "derivative_kwargs",
            "raise_on_error",
            "write_data_filename",
            "log_csv_filename",
        ),
        *("equilibrate_enable", "equilibrate_max_iter", "iterative_refinement_enable", "static_regularization_enable", "presolve_enable"),
        *("dynamic_regularization_enable", "max_step_fraction", "chordal_decomposition_enable", "random_init", "cg_rate", "linear_solver"),
    }
)
_KNOWN = TOLERANCES | ITERATIONS | TIMES | WORKERS | TUNING | {"solve_method", "solver", "mode", "verbose"}


def engine(name: Any) -> str | None:
    """The name of our engine for a peer's or CVXPY's solver name; None where the choice is left to us.

    Raises:
        OptionError: `name` is not a string; whether an engine of that name exists is the registry's word.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise OptionError(
            "a solver is chosen by its name",
            expected="a string such as 'clarabel'",
            got=type(name).__name__,
            mend="register a solver of your own in layercompiler.solvers and name it here",
        )
    return None if name.lower() in AUTOMATIC else ENGINES.get(name.lower(), name)


def translate(solver: str | None, solver_args: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Our engine and the fields of `layercompiler.solvers.Options` for a peer's `solver` and `solver_args`.

    The tightest of several tolerances and the largest number of workers win; `solve_method` wins over `solver`, as in the peer. A
    tolerance is what the solution is checked against: solutions are refined as far as it goes in any case.

    Args:
        solver: A solver name of CVXPY or of the peer, in any case, or None.
        solver_args: SCS-, ECOS-, Clarabel- or diffcp-style settings.

    Returns:
        The engine's name (None: ours to choose) and a dict with those of `tolerance`, `max_iterations`, `time_limit`, `verbose`
        and `workers` that were given.

    Raises:
        OptionError: A name is unknown, a number is out of range, or the setting asks for another derivative (`mode="lpgd"`).
    """
    found: dict[str, Any] = {}
    name = engine(solver)
    for key, value in (solver_args or {}).items():
        if key not in _KNOWN:
            raise OptionError(
                f"unknown solver argument {key!r}", where="solver_args", mend=nearest(key, _KNOWN, f"known are {sorted(_KNOWN)}")
            )
        if key in ("solve_method", "solver"):
            name = engine(value)
        elif key == "mode":
            _mode(value)
        elif key == "verbose":
            found["verbose"] = bool(value)
        elif value is not None and key in TOLERANCES:
            found["tolerance"] = min(max(_positive(key, value), TIGHTEST), found.get("tolerance", math.inf))
        elif value is not None and key in ITERATIONS:
            found["max_iterations"] = int(_positive(key, value))
        elif value is not None and key in TIMES and float(value) != 0:  # SCS: 0 is "no limit"
            found["time_limit"] = _positive(key, value)
        elif value is not None and key in WORKERS and int(value) > 0:  # -1 is "as many as there are", our default
            found["workers"] = max(int(value), found.get("workers", 0))
    if name != "scs" and found.get("max_iterations", 0) >= FIRST_ORDER:
        del found["max_iterations"]
    return name, found


def _positive(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise OptionError(f"solver argument {key!r} is out of range", expected="a positive number", got=repr(value))
    return number


def _mode(value: Any) -> None:
    name = str(value).lower()
    if name in EXACT_MODES:
        return
    if name.startswith("lpgd"):
        raise OptionError(
            f"mode={value!r} asks for a perturbed gradient, which is not the derivative of the solution",
            mend="leave `mode` out: the derivative is exact; estimators of other gradients are for discrete problems",
        )
    raise OptionError(f"unknown mode {value!r}", expected=f"one of {sorted(EXACT_MODES)}", got=repr(value))


class Front:
    """The arguments of a `CvxpyLayer`, constructor and call, in our terms; each framework's class holds one beside its `Layer`.

    Args:
        problem: A `cvxpy.Problem`.
        parameters: All of its parameters, in call order.
        variables: The outputs.
        solver: Name of a solver of CVXPY, the peer or ours; None for ours to choose.
        gp: True for a geometric program.
        verbose: Let the solver print.
        solver_args: Settings of every call; see `translate`.

    Attributes:
        compiled: The compiled problem.

    Raises:
        ParameterMismatchError: `parameters` or `variables` is not a list or tuple, or `parameters` are not all of the problem's.
        BuildError: The problem cannot be compiled.
        OptionError: An unknown solver or solver argument.
    """

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        for what, given in (("parameters", parameters), ("variables", variables)):
            if not isinstance(given, (list, tuple)):
                raise ParameterMismatchError(
                    f"the layer's {what} must be a list or tuple",
                    got=type(given).__name__,
                    mend=f"pass {what}=[...], also for a single one",
                )
        _check_all_listed(problem, parameters)
        self._arguments = {"verbose": verbose, **(solver_args or {})}
        name, options = translate(solver, self._arguments)
        door = importlib.import_module("layercompiler.export")  # it stands above the frameworks
        base = door.compile(problem, parameters=list(parameters), variables=list(variables), gp=True if gp else None, options=options)
        self._engines: dict[str, Any] = {"auto": base}
        self.compiled = self._on(name)

    def settings(self, solver_args: Mapping[str, Any] | None, warm_start: Any) -> tuple[Any, Any, Any]:
        """The compiled problem, the options and the warm start of one call.

        The options are None where the call has no settings of its own. A call that names another solver gets the same program on that
        engine, or on ours where it cannot take the program.

        Raises:
            OptionError: An unknown solver argument, or `warm_start=True`, which asks for state that a layer does not keep.
        """
        if warm_start is True:
            raise OptionError(
                "warm_start is a value here, not a switch: a layer keeps no state between calls",
                expected="the solution of an earlier layer.solve(...)",
                got="True",
                mend="solution = layer.solve(*tensors); layer(*tensors, warm_start=solution)",
            )
        start = None if warm_start is False else warm_start
        if not solver_args:
            return self.compiled, None, start
        name, found = translate(self.compiled.solver, {**self._arguments, **solver_args})
        return self._on(name), type(self.compiled.options).of(found), start

    def _on(self, name: str | None) -> Any:
        key = (name or "auto").lower()
        if key not in self._engines:  # a pure function of the name, so that threads may race for it
            base = self._engines["auto"]
            try:
                self._engines[key] = compile_program(base.program, key, base.on_error, base.options)
            except UnsupportedConeError:  # the peer rewrites quadratic objectives as cones; here they stay, which ECOS does not take
                self._engines[key] = base
        return self._engines[key]


def _check_all_listed(problem: Any, parameters: Sequence[Any]) -> None:
    if not hasattr(problem, "parameters"):
        return  # not a problem: the compiler says so
    listed = {id(p): p for p in parameters}
    known = {id(p): p for p in problem.parameters()}
    wrong = [*(p for i, p in known.items() if i not in listed), *(p for i, p in listed.items() if i not in known)]
    if wrong:
        raise ParameterMismatchError(
            "the layer's parameters must exactly match problem.parameters()",
            where=f"parameters {sorted(p.name() if hasattr(p, 'name') else repr(p) for p in wrong)}",
            mend="list each of them once; layercompiler.export also takes a part of them and keeps the others at their values",
        )
