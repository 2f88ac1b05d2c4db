"""Sparse LDL' of many symmetric quasi-definite matrices of one pattern, one matrix per SIMD lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layercompiler.errors import BuildError, DtypeError, ShapeError
from layercompiler.kernels import library


class LDL:
    """The symbolic factorisation of a pattern: ordering, supernodes and update schedule, made once.

    Args:
        n: Order of the matrices.
        rows: Row of each entry of the upper triangle, integers of shape (nnz,), `rows[k] <= cols[k]`. Entries given twice are added.
        cols: Column of each entry, shape (nnz,). The diagonal is always part of the pattern.
        signs: Expected sign of each pivot, +1 or -1, shape (n,).
        late: Unknowns (bool, shape (n,)) to eliminate only after all their neighbors that are not late; for unknowns whose own
            diagonal vanishes.
        isa: Instruction set to use; the best one of the machine by default.

    Immutable and thread safe; pickling and copying rebuild it from its arguments.

    Example:
        >>> import numpy as np
        >>> from layercompiler.kernels import LDL
        >>> ldl = LDL(2, [0, 0, 1], [0, 1, 1], [1, -1])
        >>> x, residual = ldl.factor(np.array([[2.0, 1.0, -1.0]])).solve(np.array([[3.0, 0.0]]))
        >>> x.round(12)
        array([[1., 1.]])

    Cost: The symbolic phase tries three orderings; numeric work is `flops` per instance and factorisation.
    """

    def __init__(self, n: int, rows: Any, cols: Any, signs: Any, *, late: Any = None, isa: str | None = None) -> None:
        self._handle = None
        self.n = int(n)
        self.rows, self.cols = indices(rows, "rows"), indices(cols, "cols")
        self.signs = np.array(signs, dtype=np.int8)
        self.late = np.zeros(self.n, np.int8) if late is None else np.array(late, dtype=bool).astype(np.int8)
        self.isa = library.instruction_set(isa)
        if self.rows.shape != self.cols.shape or self.signs.shape != (self.n,) or self.late.shape != (self.n,):
            raise BuildError(
                "the pattern's arrays do not fit each other",
                where="LDL",
                expected=f"rows and cols of one length, {self.n} signs",
                got=f"{self.rows.shape}, {self.cols.shape}, {self.signs.shape}",
            )
        self.nnz = self.rows.size
        self._library = library.require()
        at = library.address
        self._handle = self._library.lc_ldl_new(
            self.n, self.nnz, at(self.rows), at(self.cols), at(self.signs), at(self.late), self.isa.encode()
        )
        if not self._handle:
            raise BuildError("the pattern is malformed", where="LDL", got=library.reason())
        facts = np.zeros(6, np.int64)
        self._library.lc_ldl_facts(self._handle, at(facts))
        self.factor_nnz, self.flops, self.supernodes, self.panel, self.lanes, self.footprint = facts.tolist()
        for array in (self.rows, self.cols, self.signs, self.late):
            array.setflags(write=False)

    def factor(self, values: np.ndarray, *, eps: float = 1e-9, threads: int = 1) -> Factor:
        """Factorises K + E for every instance, E a small diagonal with the expected signs.

        Args:
            values: Entries in the order of the pattern, float64 of shape (B, nnz); B = 1 serves any batch of right-hand sides.
            eps: Static regularisation.
            threads: Threads that share the packs; the result does not depend on it.

        Returns:
            The factors, which keep themselves alive.

        Units and scaling: each instance is first scaled to S K S by powers of two until the largest entry of every row lies
        between 1/16 and 16 (four sweeps at most; a matrix that is there already is left alone); `eps` is added (with sign) to
        the diagonal of S K S, a pivot of wrong sign or below 1e-13 there becomes `eps`, and `Factor.pivots` is measured there.
        """
        values = _reals(values, (self.nnz,), "values")
        make = self._library.lc_ldl_factor
        return Factor(self, len(values), lambda pivots: make(self._handle, len(values), library.address(values), eps, pivots, threads))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.n, self.rows, self.cols, self.signs, self.late)

    def __repr__(self) -> str:
        return f"LDL(n={self.n}, nnz={self.nnz}, factor={self.factor_nnz}, flops={self.flops}, isa={self.isa!r}, lanes={self.lanes})"

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_ldl_free(self._handle)
            self._handle = None


def _rebuild(n: int, rows: np.ndarray, cols: np.ndarray, signs: np.ndarray, late: np.ndarray) -> LDL:
    return LDL(n, rows, cols, signs, late=late)


class Factor:
    """The factors of a batch, kept until the object dies: a later solve is two triangular solves.

    Attributes:
        batch: Number of instances.
        pivots: Smallest pivot times its expected sign in the scaled matrix, shape (B,); tiny or negative: nearly
            singular or not quasi-definite; NaN: the values hold a NaN or an infinity.
    """

    def __init__(self, ldl: LDL, batch: int, make: Callable[[int], int | None]) -> None:
        self._handle = None
        self.ldl, self.batch = ldl, batch
        self.pivots = np.empty(batch)
        if batch:
            self._handle = make(library.address(self.pivots))  # a handle for where to write the pivots
            if not self._handle:
                raise MemoryError(library.reason())

    def solve(self, rhs: np.ndarray, *, refine: int = 3, tol: float = 1e-14, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Solves K x = rhs by the factors and iterative refinement against the unregularised matrix.

        Args:
            rhs: float64 of shape (B, n) or (B, k, n); any B if the factor has one instance.
            refine: Most refinement steps; each instance and right-hand side stops by itself.
            tol: Relative residual at which refinement stops.
            threads: Threads that share the packs.

        Returns:
            x of the shape of `rhs`, and the relative residual max|S (rhs - K x)| / max|S rhs| of shape (B,) or
            (B, k), with S as in `LDL.factor`: that of the best iterate, which is the one returned. NaN marks an instance whose
            data are not finite.
        """
        n = self.ldl.n
        rhs = np.ascontiguousarray(rhs, dtype=np.float64)
        if rhs.ndim not in (2, 3) or rhs.shape[-1] != n or (self.batch != 1 and rhs.shape[0] != self.batch):
            raise ShapeError(
                "wrong right-hand side", where="rhs", expected=f"({self.batch}, {n}) or ({self.batch}, k, {n})", got=str(rhs.shape)
            )
        x, residual = np.empty(rhs.shape), np.empty(rhs.shape[:-1])
        if residual.size:
            columns = rhs.shape[1] if rhs.ndim == 3 else 1
            at = library.address
            if self.ldl._library.lc_factor_solve(
                self._handle, rhs.shape[0], columns, at(rhs), at(x), at(residual), int(refine), float(tol), int(threads)
            ):
                raise MemoryError(library.reason())
        return x, residual

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.ldl._library.lc_factor_free(self._handle)
            self._handle = None


def indices(values: Any, name: str) -> np.ndarray:
    """A one-dimensional copy of integer indices."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DtypeError("indices must be integers", where=name, got=str(array.dtype))
    if array.ndim != 1:
        raise BuildError("indices must be one-dimensional", where=name, got=str(array.shape))
    return np.array(array, dtype=np.int64)


def _reals(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = np.ascontiguousarray(values, dtype=np.float64)
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise ShapeError("wrong shape", where=name, expected=f"(B, {', '.join(map(str, shape))})", got=str(array.shape))
    return array
