"""The cvxpylayers signature in our terms: the same arguments, the same refusals, SCS-style settings translated.

Framework independent: each framework combines `Compatible` with its own `Layer`, so that switching is one import.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from layercompiler.errors import OptionError, ParameterMismatchError

ENGINES = {"scs": "scs", "ecos": "ecos", "clarabel": "clarabel", "cuclarabel": "clarabel", "moreau": "moreau", "lanes": "lanes"}
AUTOMATIC = frozenset({"diffcp", "auto"})  # the peer's default backend is not an engine: ours chooses
TOLERANCES = frozenset(
    {"eps", "eps_abs", "eps_rel", "abstol", "reltol", "feastol", "tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_ktratio", "tolerance"}
)
ITERATIONS = frozenset({"max_iters", "max_iter", "maxit", "max_iterations"})
TIMES = frozenset({"time_limit", "time_limit_secs"})
WORKERS = frozenset({"n_jobs", "n_jobs_forward", "n_jobs_backward", "workers"})
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
_KNOWN = TOLERANCES | ITERATIONS | TIMES | WORKERS | TUNING | {"solve_method", "solver", "mode", "verbose", "warm_start"}


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

    The tightest of several tolerances and the largest number of workers win; `solve_method` wins over `solver`, as in the peer.

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
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            raise OptionError(
                f"unknown solver argument {key!r}", mend=f"did you mean {near[0]!r}?" if near else f"known are {sorted(_KNOWN)}"
            )
        if key in ("solve_method", "solver"):
            name = engine(value)
        elif key == "mode":
            _mode(value)
        elif key == "verbose":
            found["verbose"] = bool(value)
        elif value is not None and key in TOLERANCES:
            found["tolerance"] = min(_positive(key, value), found.get("tolerance", math.inf))
        elif value is not None and key in ITERATIONS:
            found["max_iterations"] = int(_positive(key, value))
        elif value is not None and key in TIMES and float(value) != 0:  # SCS: 0 is "no limit"
            found["time_limit"] = _positive(key, value)
        elif value is not None and key in WORKERS and int(value) > 0:  # -1 is "as many as there are", our default
            found["workers"] = max(int(value), found.get("workers", 0))
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


def options(found: Mapping[str, Any]) -> Any:
    """The `Options` with the translated fields; fields that this version's `Options` does not have are without effect."""
    from layercompiler.solvers import Options

    names = {f.name for f in fields(Options)}
    return Options(**{k: v for k, v in found.items() if k in names})


class Compatible:
    """What every framework's `CvxpyLayer` shares: the constructor's arguments and the arguments of a call."""

    _engine: str | None
    _defaults: dict[str, Any]

    @staticmethod
    def build(
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        solver: str | None,
        gp: bool,
        verbose: bool,
        solver_args: Mapping[str, Any] | None,
    ) -> tuple[Any, str | None, dict[str, Any]]:
        """Compile `problem` under the peer's rules.

        Returns:
            The compiled problem, the engine's name and the solver arguments that every call starts from.

        Raises:
            ParameterMismatchError: `parameters` or `variables` is not a list or tuple, or `parameters` are not all of the problem's.
        """
        from layercompiler import compile as compile_problem

        for what, given in (("parameters", parameters), ("variables", variables)):
            if not isinstance(given, (list, tuple)):
                raise ParameterMismatchError(f"the layer's {what} must be a list or tuple", got=type(given).__name__)
        if hasattr(problem, "parameters") and (left := {p.id for p in problem.parameters()} ^ {getattr(p, "id", None) for p in parameters}):
            names = sorted(p.name() for p in (*problem.parameters(), *parameters) if getattr(p, "id", None) in left and hasattr(p, "name"))
            raise ParameterMismatchError(
                "the layer's parameters must exactly match problem.parameters()",
                where=f"parameters {names}",
                mend="list each of them once; layercompiler.export also takes a part of them and keeps the others at their values",
            )
        defaults = {"verbose": verbose, **(solver_args or {})}
        name, found = translate(solver, defaults)
        compiled = compile_problem(
            problem,
            parameters=list(parameters),
            variables=list(variables),
            solver=name or "auto",
            gp=True if gp else None,
            options=options(found),
        )
        return compiled, name, defaults

    def call_options(self, solver_args: Mapping[str, Any] | None) -> Any:
        """The `Options` of one call, or None where the call gives no settings of its own.

        Raises:
            OptionError: The call names another engine than the one the layer was compiled for.
        """
        if not solver_args:
            return None
        name, found = translate(self._engine, {**self._defaults, **solver_args})
        if name != self._engine:
            raise OptionError(
                "the solver of a layer is chosen when it is built",
                expected=repr(self._engine or "auto"),
                got=repr(name),
                mend="pass it to the constructor, in solver or solver_args",
            )
        return options(found)

    @staticmethod
    def warm(warm_start: Any) -> Any:
        """The warm start as a value; the peer's `False` is none.

        Raises:
            OptionError: `warm_start=True` asks for hidden state: a layer keeps none.
        """
        if warm_start is True:
            raise OptionError(
                "warm_start is a value here, not a switch: a layer keeps no state between calls",
                expected="the solution of an earlier layer.solve(...)",
                got="True",
                mend="solution = layer.solve(*tensors); layer(*tensors, warm_start=solution)",
            )
        return None if warm_start is False else warm_start
