"""Batches of dense quadratic programs on SIMD lanes: the whole solver and its derivative fused, one instance per lane."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.errors import BuildError, ShapeError
from layercompiler.kernels import library

OPERANDS = ("Q", "q", "A", "b", "G", "h")
Pattern = tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class DenseSolution:
    """Points of minimise 1/2 x'Qx + q'x subject to Ax = b, Gx <= h, with the factors that differentiate them.

    Attributes:
        x: (B, n). Where dual infeasible, a direction of unboundedness with q'x = -1.
        v: (B, p + m), duals of the equalities, then duals less slacks of the inequalities.
        y: (B, p + m), duals. Where primal infeasible, a certificate: A'y + G'z = 0, z >= 0 with the gain -(b'y + h'z) equal to one.
        status: `layercompiler.status.Status` codes, int8 (B,): SOLVED, a claim of infeasibility, NOT_CONVEX, TIME_LIMIT, or FAILED.
        iterations: (B,) steps of pivoting and interior-point iterations.
        norm: (B,) relative residual of the optimality conditions, computed on the data as given.
        margin: (B,) smallest dual or slack of an inequality in scaled coordinates: zero where strict complementarity fails.
        reach: (B,) what a right-hand side without structure leaves of the linear system; above 1e-8 it is singular.
        factors: Of the linear systems at these points.
        troubles: How many instances are not solved, or have a singular system.
    """

    x: np.ndarray
    v: np.ndarray
    y: np.ndarray
    status: np.ndarray
    iterations: np.ndarray
    norm: np.ndarray
    margin: np.ndarray
    reach: np.ndarray
    factors: DenseFactors
    troubles: int


class DenseQP:
    """The sizes of a dense QP, and the patterns of its matrices where they are not given in full.

    Args:
        n: Variables.
        equalities: Rows of A.
        inequalities: Rows of G.
        Q: Rows and columns of the entries of the upper triangle of Q; None where all n x n entries are given, of which the symmetric
            part counts.
        A: Rows and columns of the entries of A; None for all entries, by rows. Likewise `G`.
        G: See `A`.
        isa: Instruction set; the best one of the machine by default.
        dtype: float64, or float32: of operands, points, right-hand sides and gradients; norm, margin, reach and residuals are float64.

    Immutable and thread safe; pickling rebuilds it.

    In float32 (for the asking: half the bytes, twice the lanes, numbers right to 1e-4 or so) an instance counts as solved only where no
    pivot is below 1e-4 of its diagonal and a correction moves everything by far less than the smallest multiplier and slack, so that it
    is sure which rows are active. All others, about half of those whose Q is nearly singular, are solved again in float64.

    Example:
        >>> import numpy as np
        >>> from layercompiler.kernels import DenseQP
        >>> qp = DenseQP(2, 0, 2)
        >>> r = qp.solve(np.eye(2)[None], [[-1.0, 0.0]], np.zeros((1, 0, 2)), np.zeros((1, 0)), np.eye(2)[None], [[1.0, 5.0]])
        >>> r.x.round(12) + 0.0
        array([[1., 0.]])

    Source: Judice, Pires 1994 (block principal pivoting); Mehrotra 1992; Amos, Kolter 2017; Pougkakiotis, Gondzio 2021.
    """

    def __init__(
        self,
        n: int,
        equalities: int,
        inequalities: int,
        *,
        Q: Pattern = None,
        A: Pattern = None,
        G: Pattern = None,
        isa: str | None = None,
        dtype: Any = np.float64,
    ) -> None:
        self._handle = None
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float64, np.float32):
            raise BuildError("numbers of another kind", where="DenseQP", expected="float64 or float32", got=str(self.dtype))
        self.n, self.equalities, self.inequalities = int(n), int(equalities), int(inequalities)
        self.rows = self.equalities + self.inequalities
        self.patterns = tuple(None if k is None else tuple(_small(i) for i in k) for k in (Q, A, G))
        self.isa = library.instruction_set(isa)
        self._library, at = library.require(), library.address
        arguments: list[Any] = []
        self._entries = []
        for k, count in zip(self.patterns, (self.n * self.n, self.equalities * self.n, self.inequalities * self.n), strict=True):
            if k is not None and len(k[0]) != len(k[1]):
                raise BuildError("a pattern needs as many rows as columns", where="DenseQP")
            self._entries.append(count if k is None else len(k[0]))
            arguments += [self._entries[-1], *((None, None) if k is None else map(at, k))]
        self._handle = self._library.lc_dense_new(
            *(self.n, self.equalities, self.inequalities),
            *(int(self.dtype == np.float32), int(self.patterns[0] is not None), *arguments, self.isa.encode()),
        )
        if not self._handle:
            raise BuildError("the structure is malformed", where="DenseQP", got=library.reason())
        facts = np.zeros(3, np.int64)
        self._library.lc_dense_facts(self._handle, at(facts))
        self.lanes, self.bytes_dual, self.bytes_primal = facts.tolist()
        self._widths = (self._entries[0], self.n, self._entries[1], self.equalities, self._entries[2], self.inequalities)

    @property
    def handle(self) -> int:
        """What the kernels know the structure by."""
        return self._handle or 0

    @property
    def forms(self) -> int:
        """Which forms are worth trying: bit 0 the dual, bit 1 the primal."""
        return 3 if self.inequalities <= 2 * self.n else 2

    @property
    def flops(self) -> float:
        """See `operations`."""
        return operations(self.n, self.equalities, self.inequalities)

    def solve(
        self,
        Q: Any,
        q: Any,
        A: Any,
        b: Any,
        G: Any,
        h: Any,
        *,
        start: tuple[np.ndarray, np.ndarray] | None = None,
        factor_only: bool = False,
        form: str | None = None,
        quick: bool = False,
        time_limit: float | None = None,
        threads: int = 1,
    ) -> DenseSolution:
        """Solve every instance; an operand with a leading dimension of 1 is shared by the batch.

        Args:
            Q: (B, n, n), or entries (B, nnz) of the pattern.
            q: (B, n).
            A: (B, p, n), or entries.
            b: (B, p).
            G: (B, m, n), or entries.
            h: (B, m).
            start: x (B, n) and v (B, p + m) of an earlier, similar solve (float64 only).
            factor_only: Take `start` as the solution: only evaluate and factor.
            form: "dual" or "primal" to try that form alone; None for the better one, and the other where it fails.
            quick: Leave open what takes many iterations.
            time_limit: Seconds after which no pack is begun any more; what is left has status TIME_LIMIT.
            threads: Threads that share the packs; results do not depend on it.

        Raises:
            ShapeError: An operand does not fit.
        """
        operands = Operands.of(self, (Q, q, A, b, G, h))
        batch, m = operands.batch, self.rows
        x, v, y = (np.empty((batch, k), self.dtype) for k in (self.n, m, m))
        facts = np.empty((3, batch))
        status, iterations = np.empty(batch, np.int8), np.empty(batch, np.int32)
        handle, at, troubles = None, library.address, ctypes.c_int64()
        points: list[Any] = [None, None]
        if start is not None:
            if self.dtype != np.float64:
                raise BuildError("float32 starts from nothing", where="start")
            points = [np.ascontiguousarray(a, dtype=np.float64) for a in start]
            if points[0].shape != x.shape or points[1].shape != v.shape:
                raise ShapeError(
                    "wrong start", where="start", expected=f"{x.shape}, {v.shape}", got=f"{points[0].shape}, {points[1].shape}"
                )
        if batch:
            forms = {None: self.forms, "dual": 1, "primal": 2}[form] + 4 * quick
            handle = self._library.lc_dense_solve_within(
                *(self._handle, batch, operands.values, operands.strides),
                *(None if a is None else at(a) for a in points),
                *(int(factor_only), forms, math.inf if time_limit is None else float(time_limit)),
                *(at(x), at(v), at(y), at(status), at(iterations)),
                *(at(facts) + 8 * batch * k for k in range(3)),
                *(ctypes.byref(troubles), int(threads)),
            )
            if not handle:
                raise MemoryError(library.reason())
        norm, margin, reach = facts
        return DenseSolution(x, v, y, status, iterations, norm, margin, reach, DenseFactors(self, handle, operands), troubles.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.n, self.equalities, self.inequalities, self.patterns, self.dtype)

    def __repr__(self) -> str:
        return f"DenseQP(n={self.n}, equalities={self.equalities}, inequalities={self.inequalities}, isa={self.isa!r}, dtype={self.dtype})"

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_dense_free(self._handle)
            self._handle = None


def operations(n: int, equalities: int, inequalities: int) -> float:
    """Operations of one solution with its gradient by six interior-point iterations in the better of the two forms: a yardstick."""
    p, m = equalities, inequalities
    if m <= 2 * n:
        return n**3 / 3 + n * n * (m + p) + n * (m + p) ** 2 + 8 * (m**3 / 3 + 10 * m * m) + 8 * n * (n + m + p)
    return 14 * (n**3 / 3 + n * n * (m + p) + 8 * n * (n + m + p))


def _small(index: Any) -> np.ndarray:
    """Indices as the kernel reads them; one that does not fit is out of range, not another one."""
    found = np.asarray(index)
    if found.ndim != 1 or (found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**31)):
        raise BuildError("an index is out of range", where="DenseQP")
    return np.ascontiguousarray(found, np.int32)


def _rebuild(n: int, equalities: int, inequalities: int, patterns: Sequence[Pattern], dtype: np.dtype[Any]) -> DenseQP:
    return DenseQP(n, equalities, inequalities, Q=patterns[0], A=patterns[1], G=patterns[2], dtype=dtype)


_Pointers, _Strides = ctypes.c_void_p * 6, ctypes.c_int64 * 6


@dataclass(frozen=True)
class Operands:
    """The numbers of a batch as the kernel reads them; `arrays` keeps them alive."""

    arrays: tuple[np.ndarray, ...]
    batch: int
    values: Any
    strides: Any

    @classmethod
    def of(cls, qp: DenseQP, given: Sequence[Any]) -> Operands:
        """Check the operands, contiguous within an instance."""
        arrays, pointers, strides, batch = [], [], [], 1
        for k in range(6):
            a, width = given[k], qp._widths[k]
            if not (type(a) is np.ndarray and a.dtype == qp.dtype and a.flags.c_contiguous):
                a = np.ascontiguousarray(a, dtype=qp.dtype)
            count = a.shape[0] if a.ndim else -1
            if a.size != count * width or a.ndim < 2:
                raise ShapeError("wrong shape", where=OPERANDS[k], expected=f"(B, {width}) or its matrix", got=str(a.shape))
            if count != 1:
                if batch not in (1, count):
                    raise ShapeError("wrong batch", where=OPERANDS[k], expected=f"{batch} or 1", got=str(count))
                batch = count
            arrays.append(a)
            pointers.append(library.address(a))
            strides.append(width if count > 1 else 0)
        return cls(tuple(arrays), batch, _Pointers(*pointers), _Strides(*strides))


class DenseFactors:
    """Factors of [[Q, A', G_I'], [A, 0, 0], [G_I, 0, 0]] with I the active inequalities; tangents and adjoints are triangular solves."""

    def __init__(self, qp: DenseQP, handle: Any, operands: Operands) -> None:
        self._handle, self.qp, self.operands = handle, qp, operands

    @property
    def batch(self) -> int:
        """Number of instances."""
        return self.operands.batch

    def solve(self, r: np.ndarray, h: np.ndarray, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q u + A't_1 + G't_2 = r, A u = h_1, G_I u = h_2, t_2 = 0 off I.

        Args:
            r: (B, n).
            h: (B, p + m).
            threads: Threads that share the packs.

        Returns:
            u (B, n), t (B, p + m) and the relative residuals (B,); instances that are not solved get zeros.
        """
        return self._run(r, h, None, None, None, threads)

    def gradients(
        self, r: np.ndarray, h: np.ndarray, x: np.ndarray, y: np.ndarray, wanted: Sequence[bool], *, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray | None]]:
        """`solve`, and the gradients of the data that (u, t) gives at the point (x, y).

        dQ = -(u x' + x u') / 2, dq = -u, dA = -(y u' + t x'), db = t, likewise G and h; one array per operand that is `wanted`,
        full matrices (B, rows, n).
        """
        n, p, m, batch = self.qp.n, self.qp.equalities, self.qp.inequalities, self.batch
        shapes = ((batch, n, n), (batch, n), (batch, p, n), (batch, p), (batch, m, n), (batch, m))
        out = [np.empty(s, self.qp.dtype) if w else None for s, w in zip(shapes, wanted, strict=True)]
        u, t, residual = self._run(r, h, x, y, _Pointers(*(None if a is None else a.ctypes.data for a in out)), threads)
        return u, t, residual, out

    def _run(self, r: Any, h: Any, x: Any, y: Any, pointers: Any, threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r, h = np.ascontiguousarray(r, dtype=self.qp.dtype), np.ascontiguousarray(h, dtype=self.qp.dtype)
        if r.shape != (self.batch, self.qp.n) or h.shape != (self.batch, self.qp.rows):
            expected = f"({self.batch}, {self.qp.n}), ({self.batch}, {self.qp.rows})"
            raise ShapeError("wrong right-hand side", where="r, h", expected=expected, got=f"{r.shape}, {h.shape}")
        u, t, residual = np.empty_like(r), np.empty_like(h), np.empty(self.batch)
        if self.batch:
            at = library.address
            ends = (None, None) if pointers is None else (at(x), at(y))
            if self.qp._library.lc_dense_adjoint(
                *(self._handle, self.operands.values, self.operands.strides),
                *(at(a) for a in (r, h, u, t, residual)),
                *(*ends, pointers, int(threads)),
            ):
                raise MemoryError(library.reason())
        return u, t, residual

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.qp._library.lc_dense_factors_free(self._handle)
            self._handle = None
