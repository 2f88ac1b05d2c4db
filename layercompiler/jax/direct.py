"""Which calls of compiled code the dense kernel can take by itself: programs written as matrices, in batches that are whole or shared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.kernels.foreign import MOST, DenseCall, Ledger

Dims = tuple[int, ...]


class Direct:
    """The dense kernel of a problem, as compiled code calls it.

    Args:
        problem: A `DenseProblem` written as matrices.
        options: `Options` of its solves.
    """

    def __init__(self, problem: Any, options: Any) -> None:
        self.problem, self.matrices = problem, problem.matrices
        self.shapes = [p.shape for p in problem.parameters]
        self.results = [o.shape for o in problem.outputs]
        self.parts = [o.name for o in problem.outputs]
        self.threads, self.ledger = options.workers or problem.threads, Ledger()

    @classmethod
    def of(cls, problem: Any, options: Any = None) -> Direct | None:
        """Of a problem that is solved by one call of the kernel, or None."""
        options = options or getattr(problem, "options", None)
        matrices = getattr(problem, "matrices", None)
        if matrices is None or not kernels.available() or problem.zsize != matrices.kernel.n + matrices.kernel.rows:
            return None
        plain = not options.smoothing and options.time_limit is None and options.max_iterations is None
        named = len(problem.outputs) <= MOST and all(o.name in ("x", "y", "z") for o in problem.outputs)
        return cls(problem, options) if plain and named else None

    def solve(self, shapes: Sequence[Dims], keep: bool) -> DenseCall | None:
        """The call that solves for parameters of these shapes, (batch..., *shape) each with equally many batch axes."""
        leads = self._leads(shapes)
        return self._call(leads, np.broadcast_shapes(*leads), self.parts, keep=keep) if len(shapes) == len(self.shapes) else None

    def pull(self, shapes: Sequence[Dims], words: Dims, given: dict[int, Dims], wanted: dict[int, Dims]) -> DenseCall | None:
        """The call that pulls cotangents of the outputs `given`, of these shapes, back to parameters `wanted`, with these batch axes."""
        leads = self._leads(shapes)
        full = np.broadcast_shapes(*leads)
        if words[:-1] != full or any(s != (*full, *self.results[k]) for k, s in given.items()):
            return None
        own = {i: _varies(dims, full) for i, dims in wanted.items()}
        return self._call(leads, full, [self.parts[k] for k in given], wanted=own) if None not in own.values() else None

    def recall(self, mark: int, count: int, arrays: Sequence[np.ndarray]) -> Any:
        """The evaluation that compiled code left behind at these points, to be differentiated here; None where it is no longer there.

        Args:
            mark: Of the first point; 0 where they are not those of one evaluation.
            count: Points.
            arrays: One per parameter, of any float type.
        """
        arrays = [np.asarray(a, np.float64) for a in arrays]
        call = self.matrices.read(arrays) if mark else None
        if call is None or call.count != count:
            return None
        found = self.ledger.take(self.matrices.kernel, mark, call.operands)
        return None if found is None else self.problem.matrix_evaluation(arrays, call, found, self.threads)

    def _leads(self, shapes: Sequence[Dims]) -> list[Dims]:
        return [s[: len(s) - len(shape)] for s, shape in zip(shapes, self.shapes, strict=False)]

    def _call(self, leads: Sequence[Dims], full: Dims, parts: Sequence[str], **settings: Any) -> DenseCall | None:
        varies, count = [_varies(d, full) for d in leads], math.prod(full)
        if None in varies or count == 0:
            return None
        m = self.matrices
        return DenseCall(m.kernel, self.ledger, count, m.place, [bool(v) for v in varies], m.constants, parts, self.threads, **settings)


def _varies(dims: Dims, full: Dims) -> bool | None:
    """Whether a value varies along the whole batch, or not at all; None where it does along some axes."""
    return True if dims == full else False if math.prod(dims) == 1 else None
