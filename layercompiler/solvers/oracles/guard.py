"""Calls of a user's solver: in parts, with a time limit, and with an account of which instance failed and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures import TimeoutError as ExecutorTimeout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercompiler.errors import ShapeError
from layercompiler.status import Status


@dataclass
class Answers:
    """Solutions of a batch (N, d), NaN where there is none; status (N,); and what was wrong, by row."""

    x: np.ndarray
    status: np.ndarray
    notes: dict[int, str] = field(default_factory=dict)


def guarded(
    solver: Callable[[np.ndarray], Any],
    values: np.ndarray,
    shape: tuple[int, ...],
    time_limit: float | None,
    executor: Executor | None,
    workers: int,
) -> Answers:
    """Call a solver for values (N, d) and check what it returns.

    Where it raises for the batch, halves are tried, so that one bad instance does not spoil the others. A hanging solver cannot be
    stopped from outside; its thread is abandoned and the instances are reported.

    Raises:
        ShapeError: The solver returned something else than one solution per instance.
    """
    count = len(values)
    rows = np.flatnonzero(np.isfinite(values).all(axis=1))
    x = np.empty(values.shape) if len(rows) == count else np.full(values.shape, np.nan)
    answers = Answers(x, np.full(count, Status.NONFINITE_INPUT, np.int8))
    if not len(rows):
        return answers
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    if executor is None:
        _solve(solver, values, rows, shape, answers, deadline)
        return answers
    parts = np.array_split(rows, min(len(rows), 4 * max(1, workers)))
    futures = [(part, executor.submit(solver, values[part].reshape(len(part), *shape))) for part in parts]
    for part, future in futures:
        try:
            left = None if deadline is None else max(0.0, deadline - time.perf_counter())
            _store(future.result(left), part, shape, answers)
        except (TimeoutError, ExecutorTimeout):
            future.cancel()
            _fail(part, Status.TIME_LIMIT, "the time limit was reached", answers)
        except ShapeError:
            raise
        except Exception as error:
            _halve(solver, values, part, shape, answers, deadline, error)
    return answers


def _solve(solver: Any, values: np.ndarray, rows: np.ndarray, shape: tuple[int, ...], answers: Answers, deadline: float | None) -> None:
    batch = values if len(rows) == len(values) else values[rows]
    try:
        found = _call(solver, batch.reshape(len(rows), *shape), deadline)
    except TimeoutError:
        _fail(rows, Status.TIME_LIMIT, "the time limit was reached", answers)
    except Exception as error:
        _halve(solver, values, rows, shape, answers, deadline, error)
    else:
        _store(found, rows, shape, answers)


def _halve(
    solver: Any, values: np.ndarray, rows: np.ndarray, shape: tuple[int, ...], answers: Answers, deadline: float | None, error: Exception
) -> None:
    if len(rows) == 1:
        _fail(rows, Status.FAILED, f"the solver raised {type(error).__name__}: {error}", answers)
        return
    for half in np.array_split(rows, 2):
        _solve(solver, values, half, shape, answers, deadline)


def _store(found: Any, rows: np.ndarray, shape: tuple[int, ...], answers: Answers) -> None:
    x = _array(found)
    if x.shape != (len(rows), *shape):
        x = _one_by_one(found, rows, shape, answers)
    x = x.reshape(len(rows), -1)
    place = slice(None) if len(rows) == len(answers.x) else rows
    good = np.isfinite(x).all(axis=1)
    if good.all():
        answers.x[place], answers.status[place] = x, Status.SOLVED
        return
    answers.x[rows] = np.where(good[:, None], x, np.nan)
    answers.status[rows] = np.where(good, Status.SOLVED, Status.FAILED)
    for i in rows[~good]:
        answers.notes.setdefault(int(i), "the solver returned NaN or an infinity")


def _array(found: Any) -> np.ndarray:
    try:
        return np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        return np.asarray(None)


def _one_by_one(found: Any, rows: np.ndarray, shape: tuple[int, ...], answers: Answers) -> np.ndarray:
    """Solutions (N, *shape) of a sequence in which some have the wrong shape: NaN for those.

    Raises:
        ShapeError: There is no saying which instance is wrong: not one per instance, or none of the right shape.
    """
    parts = [_array(z) for z in found] if isinstance(found, (list, tuple)) and len(found) == len(rows) else []
    right = [z.shape == shape and z.dtype.kind == "f" for z in parts]
    if not any(right):
        x = _array(found)
        raise ShapeError(
            "the solver returned solutions of the wrong shape",
            where=f"called with {len(rows)} instances",
            expected=str((len(rows), *shape)),
            got=str(x.shape) if x.dtype.kind == "f" else type(found).__name__,
            mend="return an array with one solution per instance, of the shape of the costs",
        )
    for i, z, fits in zip(rows, parts, right, strict=True):
        if not fits:
            answers.notes[int(i)] = f"the solver returned a solution of shape {z.shape} instead of {shape}"
    return np.stack([z if fits else np.full(shape, np.nan) for z, fits in zip(parts, right, strict=True)])


def _fail(rows: np.ndarray, status: Status, note: str, answers: Answers) -> None:
    answers.x[rows], answers.status[rows] = np.nan, status
    answers.notes |= {int(i): note for i in rows}


def _call(solver: Any, batch: np.ndarray, deadline: float | None) -> Any:
    if deadline is None:
        return solver(batch)
    left = deadline - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    result: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            result.append(solver(batch))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)  # a daemon: an abandoned one must not keep the process alive
    thread.start()
    thread.join(left)
    if errors:
        raise errors[0]
    if not result:
        raise TimeoutError
    return result[0]
