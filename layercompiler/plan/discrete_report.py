"""What is said about a discrete problem: its description, the report of the compiler, and the account of what failed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from layercompiler.errors import SolveError
from layercompiler.plan.spaces import BoundCall, Calls, Constraints, Costs
from layercompiler.status import Info, Solution, Status


def describe(compiled: Any) -> str:
    """One line: parameters, outputs, oracle, estimator."""
    parameters = ", ".join(f"{p.name} {_any(p.shape)}" for p in compiled.parameters)
    outputs = ", ".join(f"{o.name} {_any(o.shape)}" for o in compiled.outputs)
    return f"parameters: {parameters}; outputs: {outputs}; oracle: {compiled.space.oracle}; estimator: {compiled.estimator}"


def report(compiled: Any) -> str:
    """What the compiler found, as lines."""
    space, lines = compiled.space, [compiled.describe()]
    if isinstance(space, (Costs, Constraints)):
        kind = "mixed-integer linear program" if space.program.quadratic is None else "convex mixed-integer quadratic program"
    if isinstance(space, Costs):
        p = space.program.fixed
        lines.append(f"{kind}: {p.n} variables ({int(p.integer.sum())} whole), {p.m} rows; parameters in the costs")
        if space.match is not None:
            lines.append(f"recognised as {space.oracle}: solved by the named oracle {type(space.match[0]).__name__}, exact")
        elif p.quadratic is None:
            lines.append(f"no well-known pattern is certain: solved by {space.oracle}, linear relaxation first, exact")
        else:
            lines.append(f"solved by {space.oracle}, one instance after another")
    elif isinstance(space, Constraints):
        lines.append(f"{kind} with parameters in its constraints: every perturbed instance is solved on its own")
    else:
        lines.append(f"black box: {space.oracle}, which {'minimises' if compiled.problem.sense == 'min' else 'maximises'}")
    return "\n".join(lines)


def failure(bound: BoundCall, status: np.ndarray, calls: Calls, rows: int, what: str) -> SolveError:
    """The error that names the instances of `bound` whose status (count,) is not SOLVED, with what the solver said.

    Args:
        bound: The call.
        status: (count,).
        calls: The oracle of the call, whose notes are by row of its last round.
        rows: Rows of that round per instance.
        what: What failed.
    """
    bad = np.flatnonzero(status != Status.SOLVED)
    places = tuple(tuple(int(j) for j in np.unravel_index(i, bound.batch)) if bound.batch else () for i in bad)
    names = [f"{p[0] if len(p) == 1 else p}: {Status(status[i]).message}" for p, i in zip(places, bad, strict=True)][:5]
    notes = sorted({note for row, note in calls.notes.items() if status[min(row // rows, len(status) - 1)] != Status.SOLVED})
    found = np.where(np.isin(np.arange(bound.count), bad), np.nan, 0.0)
    info = info_of(status.reshape(bound.batch), bound.space.oracle, time.perf_counter())
    return SolveError(
        f"{len(bad)} of {bound.count} instances failed in {what}",
        solution=Solution((), {}, found.reshape(bound.batch), info),
        indices=places,
        where=("batch index " if bound.batch else "") + "; ".join(names) + ("; ..." if len(bad) > 5 else ""),
        got="; ".join(notes[:3]),
        mend="mend the instance, raise the time limit, or export with on_error='flag' to keep the others",
    )


def worst(status: np.ndarray) -> np.ndarray:
    """The first code of each row that is not SOLVED, (B,)."""
    failed = status != Status.SOLVED
    return np.where(failed.any(axis=1), status[np.arange(len(status)), failed.argmax(axis=1)], Status.SOLVED).astype(np.int8)


def info_of(status: np.ndarray, engine: str, began: float) -> Info:
    """An `Info` of a call that began at a time of `time.perf_counter`."""
    zeros, flags = np.zeros(status.shape, int), np.zeros(status.shape, bool)
    residual = np.where(status == Status.SOLVED, 0.0, np.nan)
    return Info(status, residual, zeros, zeros, flags, ~flags, np.full(status.shape, engine, dtype=object), time.perf_counter() - began)


def _any(shape: tuple[int, ...]) -> str:
    return "(any,)" if shape == (-1,) else str(shape)
