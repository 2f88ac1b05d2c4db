"""Recent evaluations by exact value, so that a stateless backward pass finds the factorization its forward pass left behind.

jax and TensorFlow graphs hand nothing but arrays from one host call to the next. The arrays of a call and its primal-dual point
determine the evaluation, so looking it up changes the cost of a derivative and never its value.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CAPACITY = 4  # evaluations, each with its factorization: enough for a few layers' worth of calls in flight, and bounded


class _Entry(NamedTuple):
    arrays: tuple[np.ndarray, ...]
    z: np.ndarray
    evaluation: Any
    options: Any
    mark: int


class Memory:
    """The last few evaluations of one compiled problem; any number of threads may share it.

    Args:
        problem: A `CompiledProblem`; only `outcome` (where it is there, else `evaluate`) and `restore` are used.
        capacity: How many evaluations are kept; the one used longest ago goes first.
    """

    def __init__(self, problem: Any, capacity: int = CAPACITY) -> None:
        self.problem, self._capacity = problem, capacity
        self._outcome = getattr(problem, "outcome", None) or problem.evaluate
        self._entries: tuple[_Entry, ...] = ()
        self._lock = threading.Lock()
        self._mark = 1 + secrets.randbits(62)  # so that no other memory's are the same, in this process or another

    def __len__(self) -> int:
        return len(self._entries)

    def solve(self, arrays: Sequence[np.ndarray], *, keep: bool, **settings: Any) -> Any:
        """Evaluate at `arrays`; where it is kept, at a copy of them, because the caller's buffers may not outlive the call.

        Args:
            arrays: One per parameter.
            keep: Remember the evaluation.
            **settings: `warm_start` and `options` of `evaluate`.
        """
        if not keep:
            return self._outcome([_readable(a) for a in arrays], **settings)
        copies = tuple(_copy(a) for a in arrays)
        evaluation = self._outcome([_readable(a) for a in copies], **settings)
        return self._keep(copies, evaluation.z, evaluation, settings.get("options"))

    def put(self, arrays: Sequence[np.ndarray], evaluation: Any, options: Any = None) -> None:
        """Remember an evaluation made elsewhere at `arrays`."""
        self._keep(tuple(_copy(a) for a in arrays), evaluation.z, evaluation, options)

    def mark(self, evaluation: Any) -> int:
        """A number that finds the evaluation as long as it is remembered; 0 where it is not."""
        return next((e.mark for e in reversed(self._entries) if e.evaluation is evaluation), 0)

    def at(
        self,
        arrays: Sequence[np.ndarray],
        z: np.ndarray,
        options: Any = None,
        mark: int = 0,
        recall: Callable[..., Any] | None = None,
    ) -> Any:
        """The evaluation of `arrays` whose point is `z`: remembered, what `recall(arrays)` finds elsewhere, or restored from `z`.

        Args:
            arrays: One per parameter.
            z: (batch..., zsize).
            options: Of the evaluation.
            mark: Of a point that has come with its arrays all the way, so that neither need be compared.
            recall: Where else it may be.
        """
        entries = self._entries
        for entry in reversed(entries) if mark else ():
            if (
                entry.mark == mark
                and entry.z.shape == z.shape
                and all(a.shape == b.shape for a, b in zip(entry.arrays, arrays, strict=True))
            ):
                return self._used(entry)
        for entry in reversed(entries):
            if entry.options == options and _same(entry.z, z) and all(map(_same, entry.arrays, arrays)):
                return self._used(entry)
        copies, z = tuple(_copy(a) for a in arrays), _copy(z)
        known = [_readable(a) for a in copies]
        evaluation = recall(known) if recall else None
        return self._keep(copies, z, evaluation or self.problem.restore(known, z, options), options)

    def _keep(self, arrays: tuple[np.ndarray, ...], z: np.ndarray, evaluation: Any, options: Any) -> Any:
        with self._lock:
            entry = _Entry(arrays, z, evaluation, options, self._mark)
            self._mark += max(1, math.prod(z.shape[:-1]))  # instance i has mark + i
        return self._used(entry)

    def _used(self, entry: _Entry) -> Any:
        with self._lock:
            others = tuple(e for e in self._entries if e is not entry)
            self._entries = (*others[max(0, len(others) + 1 - self._capacity) :], entry)
        return entry.evaluation


def _readable(a: np.ndarray) -> np.ndarray:
    """The frameworks' bfloat16 and float8 are no numbers to numpy; float32 holds each of them exactly."""
    return a.astype(np.float32) if a.dtype.kind == "V" else a


def _core(a: np.ndarray) -> np.ndarray:
    """The part of `a` that broadcasting did not repeat."""
    return a[tuple(slice(0, 1) if stride == 0 and k > 1 else slice(None) for k, stride in zip(a.shape, a.strides, strict=True))]


def _copy(a: np.ndarray) -> np.ndarray:
    if a.flags.c_contiguous:
        return a.copy()
    return np.broadcast_to(np.array(_core(a)), a.shape)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit (so that NaN equals itself, and 0 differs from -0)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if _core(a).shape == _core(b).shape:
        a, b = _core(a), _core(b)
    if a.size and a.flat[0] != b.flat[0] and a.flat[0] == a.flat[0]:
        return False  # nearly every miss ends here, before the whole array is read
    words = np.dtype(f"u{a.dtype.itemsize}")
    return bool((np.ascontiguousarray(a).view(words) == np.ascontiguousarray(b).view(words)).all())
