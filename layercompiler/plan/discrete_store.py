"""Saved discrete problems: estimators, noise and named oracles as records of their names and fields; nothing in a file is executed."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layercompiler.derivatives.perturbation.estimators import StepSize, estimators
from layercompiler.derivatives.perturbation.noise import noises
from layercompiler.errors import LayerCompilerError, StoreError
from layercompiler.programs import store
from layercompiler.programs.blackbox import BlackBox
from layercompiler.programs.cone import ConeProgram
from layercompiler.programs.discrete import DiscreteProgram
from layercompiler.solvers.oracles import NamedOracle, oracles

LARGEST = 1 << 20  # values of a named oracle that a file may ask for
_REGISTRIES = {"estimator": estimators, "noise": noises, "oracle": oracles}


def save(path: str | Path, compiled: Any) -> None:
    """Write a compiled discrete problem.

    Raises:
        StoreError: Its solver, estimator or noise is not one of a registry.
    """
    problem = compiled.problem
    discrete: dict[str, Any] = {"estimator": _record(compiled.estimator)}
    if isinstance(problem, BlackBox):
        if not isinstance(problem.solver, NamedOracle):
            raise StoreError(
                "a black box of the user's own code cannot be saved",
                where=problem.label,
                expected="a CVXPY problem or a named oracle",
                got=type(problem.solver).__name__,
                mend="save the estimator's arguments, and export the black box again where it is needed",
            )
        E, own = problem.equalities, problem.solver.equalities()
        discrete["box"] = {
            "solver": _record(problem.solver),
            "sense": problem.sense,
            "shape": list(problem.shape or ()),
            "equalities": None if E is None or (own is not None and np.array_equal(E, own)) else E.tolist(),
            "name": problem.name,
        }
    else:
        discrete |= {name: np.flatnonzero(getattr(problem, name)).tolist() for name in ("integer", "boolean")}
    options = {k: v for k, v in compiled.options.__dict__.items() if k != "executor"}
    settings = {"solver": compiled.solver, "on_error": compiled.on_error, "options": options, "discrete": discrete}
    store.save(path, None if isinstance(problem, BlackBox) else problem.cone, settings)


def restore(path: str | Path, program: ConeProgram | None, record: Any) -> tuple[DiscreteProgram | BlackBox, Any]:
    """The problem and the estimator of what `save` wrote.

    Args:
        path: Of the file, for messages.
        program: The cone program of the file, None for a black box.
        record: The file's settings "discrete".

    Raises:
        StoreError: The record is malformed, or names something that is not registered here.
    """
    try:
        estimator = _object(record["estimator"], "estimator")
        if program is None:
            return _box(record["box"]), estimator
        return DiscreteProgram(program, _mask(record["integer"], program), _mask(record["boolean"], program)), estimator
    except StoreError:
        raise
    except (LayerCompilerError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise StoreError("the discrete part of the saved layer is malformed", where=str(path), got=str(error)) from error


def _mask(indices: Any, program: ConeProgram) -> np.ndarray:
    n = program.structure.n
    if not all(type(i) is int and 0 <= i < n for i in indices) or len(set(indices)) != len(indices):
        raise StoreError("an index of the saved layer is out of range", where="whole variables", expected=f"integers in [0, {n})")
    mask = np.zeros(n, bool)
    mask[indices] = True
    return mask


def _box(record: dict[str, Any]) -> BlackBox:
    solver = _object(record["solver"], "oracle")
    shape = tuple(record["shape"])
    if math.prod(solver.shape) > LARGEST or shape != solver.shape:
        raise StoreError("the oracle of the saved layer is too large, or has another shape", where="box", got=str(solver.shape))
    E = record["equalities"]
    return BlackBox(solver, record["sense"], shape, "numpy", E if E is None else np.array(E, dtype=float), str(record["name"]))


def _record(value: Any) -> Any:
    """A value of a field as JSON."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, (tuple, list)):
        return [_record(v) for v in value]
    if isinstance(value, StepSize):
        return {"kind": "step", "value": value.value, "nonzeros": value.nonzeros, "seen": value.seen}
    for kind, registry in _REGISTRIES.items():
        name = getattr(value, "name", None)
        if is_dataclass(value) and name in registry.names() and registry.find(name) is type(value):
            return {"kind": kind, "name": name, "fields": {f.name: _record(getattr(value, f.name)) for f in fields(value)}}
    raise StoreError(
        "a part of the layer cannot be saved",
        where=type(value).__name__,
        expected="estimators, noise and oracles that are dataclasses under a registered name",
        mend="register it: layercompiler.noise.noises.register, for instance",
    )


def _object(record: Any, expected: str = "") -> Any:
    """The value of a record."""
    if isinstance(record, list):
        return tuple(_object(v) for v in record)
    if not isinstance(record, dict):
        if expected:
            raise StoreError(f"the saved layer has no {expected}", where=expected, got=repr(record))
        return record
    kind = record["kind"]
    if expected and kind != expected:
        raise StoreError(f"the saved layer has no {expected}", where=expected, got=repr(kind))
    if kind == "step":
        state = StepSize(float(record["value"]))
        state.nonzeros, state.seen = float(record["nonzeros"]), int(record["seen"])
        return state
    made = _REGISTRIES[kind].find(str(record["name"]))
    given = {str(k): _object(v) for k, v in record["fields"].items()}
    return made(**given)
