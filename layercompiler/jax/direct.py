"""Which calls of compiled code the kernels take by themselves: those in batches that are whole or shared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.kernels.foreign import MOST, DenseCall, ExpressCall, Ledger
from layercompiler.plan.express import express

Dims = tuple[int, ...]
Calls = DenseCall | ExpressCall


class Direct(ABC):
    """The kernels of a problem, as compiled code calls them.

    Args:
        problem: A `CompiledProblem`.
        options: `Options` of its solves.
    """

    def __init__(self, problem: Any, options: Any) -> None:
        self.problem = problem
        self.shapes = [p.shape for p in problem.parameters]
        self.results = [o.shape for o in problem.outputs]
        self.threads, self.ledger = options.workers or problem.threads, Ledger()

    @classmethod
    def of(cls, problem: Any, options: Any = None) -> Direct | None:
        """Of a problem that is solved by calls of the kernels alone, or None."""
        options = options or getattr(problem, "options", None)
        if options is None or not kernels.available() or not problem.parameters:
            return None
        return _Matrices.where(problem, options) or _Whole.where(problem, options)

    def solve(self, shapes: Sequence[Dims], keep: bool) -> Calls | None:
        """The call that solves for parameters of these shapes, (batch..., *shape) each with equally many batch axes."""
        if len(shapes) != len(self.shapes):
            return None
        leads = self._leads(shapes)
        full = np.broadcast_shapes(*leads)
        varies = self._varies(leads, full)
        return None if varies is None else self._solve(math.prod(full), varies, keep)

    def pull(self, shapes: Sequence[Dims], words: Dims, given: dict[int, Dims], wanted: dict[int, Dims]) -> Calls | None:
        """The call that pulls cotangents of the outputs `given`, of these shapes, back to parameters `wanted`, with these batch axes."""
        leads = self._leads(shapes)
        full = np.broadcast_shapes(*leads)
        if words[:-1] != full or any(s != (*full, *self.results[k]) for k, s in given.items()):
            return None
        varies, own = self._varies(leads, full), {i: _varies(dims, full) for i, dims in wanted.items()}
        return None if varies is None or None in own.values() else self._pull(math.prod(full), varies, list(given), own)

    def recall(self, mark: int, count: int, arrays: Sequence[np.ndarray]) -> Any:
        """The evaluation that compiled code left behind at these points, to be differentiated here; None where it is no longer there.

        Args:
            mark: Of the first point; 0 where they are not those of one evaluation.
            count: Points.
            arrays: One per parameter, of any float type.
        """
        return None

    @abstractmethod
    def _solve(self, count: int, varies: list[bool], keep: bool) -> Calls: ...

    @abstractmethod
    def _pull(self, count: int, varies: list[bool], given: list[int], own: Any) -> Calls: ...

    def _leads(self, shapes: Sequence[Dims]) -> list[Dims]:
        return [s[: len(s) - len(shape)] for s, shape in zip(shapes, self.shapes, strict=False)]

    def _varies(self, leads: Sequence[Dims], full: Dims) -> list[bool] | None:
        varies: Any = [_varies(d, full) for d in leads]
        return None if None in varies or math.prod(full) == 0 else varies


class _Matrices(Direct):
    """Programs written as matrices: the dense kernel reads parameters as they are."""

    @classmethod
    def where(cls, problem: Any, options: Any) -> Direct | None:
        matrices = getattr(problem, "matrices", None)
        if matrices is None or problem.zsize != matrices.kernel.n + matrices.kernel.rows:
            return None
        plain = not options.smoothing and options.time_limit is None and options.max_iterations is None
        named = len(problem.outputs) <= MOST and all(o.name in ("x", "y", "z") for o in problem.outputs)
        return cls(problem, options) if plain and named else None

    def recall(self, mark: int, count: int, arrays: Sequence[np.ndarray]) -> Any:
        arrays, matrices = [np.asarray(a, np.float64) for a in arrays], self.problem.matrices
        call = matrices.read(arrays) if mark else None
        if call is None or call.count != count:
            return None
        found = self.ledger.take(matrices.kernel, mark, call.operands)
        return None if found is None else self.problem.matrix_evaluation(arrays, call, found, self.threads)

    def _solve(self, count: int, varies: list[bool], keep: bool) -> DenseCall:
        return self._call(count, varies, range(len(self.results)), keep=keep)

    def _pull(self, count: int, varies: list[bool], given: list[int], own: Any) -> DenseCall:
        return self._call(count, varies, given, wanted=own)

    def _call(self, count: int, varies: list[bool], outputs: Sequence[int], **settings: Any) -> DenseCall:
        m, parts = self.problem.matrices, [self.problem.outputs[k].name for k in outputs]
        return DenseCall(m.kernel, self.ledger, count, m.place, varies, m.constants, parts, self.threads, **settings)


class _Whole(Direct):
    """Programs that have an express way."""

    way: kernels.Express

    @classmethod
    def where(cls, problem: Any, options: Any) -> Direct | None:
        way = express(problem, options)
        if way is None:
            return None
        found = cls(problem, options)
        found.way = way
        return found

    def _solve(self, count: int, varies: list[bool], keep: bool) -> ExpressCall:
        return self._call(count, varies, keep=keep)

    def _pull(self, count: int, varies: list[bool], given: list[int], own: Any) -> ExpressCall:
        return self._call(count, varies, given=given, wanted=own)

    def _call(self, count: int, varies: list[bool], **settings: Any) -> ExpressCall:
        sources, outputs = [math.prod(s) for s in self.shapes], [math.prod(s) for s in self.results]
        return ExpressCall(self.way, self.ledger, count, self.threads, sources, varies, outputs, **settings)


def _varies(dims: Dims, full: Dims) -> bool | None:
    """Whether a value varies along the whole batch, or not at all; None where it does along some axes."""
    return True if dims == full else False if math.prod(dims) == 1 else None
