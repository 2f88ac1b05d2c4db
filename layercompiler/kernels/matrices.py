"""Whole calls of programs written as matrices in one crossing: parameters in, outputs out, and later cotangents in, gradients out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.kernels import library
from layercompiler.kernels.dense_qp import DenseFactors, DenseQP, DenseSolution, Operands
from layercompiler.kernels.maps import Handle, longs


class DenseCalls(Handle):
    """Calls of one dense QP, as addresses of numbers: where they lie is the caller's business.

    Args:
        kernel: The QP.
        constants: One array per operand of the kernel, None for those that are parameters.
        places: Operand of each parameter.
        parts: What each output shows: 0 x, 1 the duals of the equalities, 2 those of the inequalities.
        accurate: Relative residual of the linear system up to which gradients are taken.
    """

    def __init__(
        self, kernel: DenseQP, constants: Sequence[np.ndarray | None], places: Sequence[int], parts: Sequence[int], accurate: float
    ) -> None:
        self.kernel = kernel
        self.constants = [None if c is None else np.ascontiguousarray(c, dtype=kernel.dtype) for c in constants]
        addresses = [0 if c is None else library.address(c) for c in self.constants]
        head = (kernel.handle, kernel.dtype.itemsize, kernel.n, kernel.equalities, kernel.inequalities, kernel.forms)
        sizes = (*head, *addresses, len(places), len(parts))
        super().__init__("matrices", longs([*sizes, *places, *parts]), accurate)
        self._forward, self._adjoint = self._library.lc_matrices_forward, self._library.lc_solved_adjoint
        self._free_solved = self._library.lc_solved_free

    def solve(self, batch: int, addresses: bytes, threads: int) -> int:
        """Handle of a solved batch, for `Solved`; 0 where an instance has no solution here.

        Args:
            batch: B.
            addresses: 64-bit integers: where the parameters lie, their strides (0 where the batch shares one), where the outputs go.
            threads: Threads that share the batch; results do not depend on it.
        """
        handle = self._forward(self._handle, batch, addresses, threads)
        if handle > 0:
            return handle
        if not handle:
            raise MemoryError(library.reason())
        return 0


class Solved:
    """A solved batch, with the factors that differentiate it."""

    __slots__ = ("_calls", "_handle", "batch")

    def __init__(self, calls: DenseCalls, handle: int, batch: int) -> None:
        self._calls, self._handle, self.batch = calls, handle, batch

    def pull(self, addresses: bytes, threads: int) -> bool:
        """Gradients of the parameters; False where the linear system of an instance was not solved well.

        Args:
            addresses: 64-bit integers: where the parameters lie, the cotangents of the outputs (0 for zero), where the gradients of the
                parameters go, of each instance (0 where none is wanted), and where the solution (u, t) of the linear systems goes, or 0, 0.
            threads: Threads that share the batch.
        """
        failed = self._calls._adjoint(self._handle, addresses, threads)
        if failed < 0:
            raise MemoryError(library.reason())
        return not failed

    def solution(self, values: Any, strides: Any) -> DenseSolution:
        """The points, with factors that live as long as this batch; `values` and `strides` are those of the operands."""
        kernel, B = self._calls.kernel, self.batch
        x, v, y = (np.empty((B, k), kernel.dtype) for k in (kernel.n, kernel.rows, kernel.rows))
        facts = np.empty((3, B))
        iterations = np.empty(B, np.int32)
        handle = self._calls._library.lc_solved_point(self._handle, *map(library.address, (x, v, y, facts, iterations)))
        factors = _Borrowed(kernel, handle, Operands((), B, values, strides))
        factors.owner = self
        norm, margin, reach = facts
        return DenseSolution(x, v, y, np.zeros(B, np.int8), iterations, norm, margin, reach, factors, 0)

    def __del__(self) -> None:
        self._calls._free_solved(self._handle)


class _Borrowed(DenseFactors):
    """Factors that a solved batch keeps."""

    owner: Solved

    def __del__(self) -> None:
        pass
