"""The fixed sparsity of a least-squares program: which entries of the normal matrix each factor adds to, found once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from layercompiler.errors import BuildError
from layercompiler.programs.least_squares import Block, LeastSquaresProgram, Sparsity, columns


@dataclass(frozen=True)
class Dense:
    """A block whose factors each have a dense Jacobian (m, k).

    Attributes:
        block: Of the program.
        cols: (E, k) column of the free unknown, -1 for fixed ones.
        first: With `second` (T,), the local columns of each pair that makes an entry, for all factors alike.
        second: See `first`.
        kept: (entries,) positions in (E * T) of pairs without a fixed column; None for all.
        n: Length of the free unknown.
    """

    block: Block
    cols: np.ndarray = field(repr=False)
    first: np.ndarray = field(repr=False)
    second: np.ndarray = field(repr=False)
    kept: np.ndarray | None = field(repr=False)
    rows_out: np.ndarray = field(repr=False)
    cols_out: np.ndarray = field(repr=False)
    n: int

    @cached_property
    def whole(self) -> bool:
        """Whether the one factor reads the unknown itself, in order."""
        return self.cols.shape == (1, self.n) and bool((self.cols[0] == np.arange(self.n)).all())


@dataclass(frozen=True)
class Sparse:
    """A block of one factor with a sparse Jacobian.

    Attributes:
        block: Of the program.
        rows: Row of each nonzero.
        local: Column of each nonzero among the block's own.
        cols: Column of each nonzero in the free unknown; nonzeros of fixed columns are dropped.
        kept: Positions of the nonzeros in the front end's order.
        colors: (local columns,) colour of each column of the Jacobian.
        first: With `second`, positions of the nonzeros whose product is an entry.
        second: See `first`.
        hessian_colors: (local columns,) colours of the Hessian.
        left: With `right`, local columns of each entry.
        right: See `left`.
    """

    block: Block
    rows: np.ndarray = field(repr=False)
    local: np.ndarray = field(repr=False)
    cols: np.ndarray = field(repr=False)
    kept: np.ndarray = field(repr=False)
    colors: np.ndarray = field(repr=False)
    first: np.ndarray = field(repr=False)
    second: np.ndarray = field(repr=False)
    slot: np.ndarray = field(repr=False)
    hessian_colors: np.ndarray = field(repr=False)
    left: np.ndarray = field(repr=False)
    right: np.ndarray = field(repr=False)
    rows_out: np.ndarray = field(repr=False)
    cols_out: np.ndarray = field(repr=False)


class Structure:
    """The pattern of a program.

    Attributes:
        n: Length of the free unknown: columns of fixed elements are left out.
        free: (n,) position of each free column in the whole unknown.
        blocks: One `Dense` or `Sparse` per block.
        rows: With `cols`, places of the entries of the upper triangle, row <= col, by columns.
        cols: See `rows`.
        merge: (raw entries,) place of each raw entry among `rows`, or None where they are the raw entries.
    """

    def __init__(self, program: LeastSquaresProgram) -> None:
        self.program = program
        self.free = np.flatnonzero(program.free)
        self.n = len(self.free)
        position = np.full(program.dof, -1)
        position[self.free] = np.arange(self.n)
        self.blocks = tuple(
            _dense(b, position[columns(program, b)], self.n)
            if b.sparsity is None
            else _sparse(b, b.sparsity, position[columns(program, b)[0]])
            for b in program.blocks
        )
        rows = np.concatenate([b.rows_out for b in self.blocks]) if self.blocks else np.zeros(0, int)
        cols = np.concatenate([b.cols_out for b in self.blocks]) if self.blocks else np.zeros(0, int)
        keys, merge = np.unique(cols * self.n + rows, return_inverse=True)
        same = len(rows) == len(keys) and bool((merge == np.arange(len(keys))).all())
        self.rows, self.cols, self.merge = keys % max(self.n, 1), keys // max(self.n, 1), None if same else merge

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper bounds of the free unknown (n,), or None without bounds."""
        if all(v.lower is None and v.upper is None for v in self.program.variables):
            return None
        parts = ([], [])
        for v in self.program.variables:
            for part, bound, nothing in zip(parts, (v.lower, v.upper), (-np.inf, np.inf), strict=True):
                if bound is not None and v.manifold.name != "euclidean":
                    raise BuildError("only Euclidean variables have bounds", where=f"variable '{v.name}'")
                part.append(np.full(v.dof, nothing) if bound is None else np.asarray(bound, float).reshape(-1))
        lower, upper = (np.concatenate(p)[self.free] for p in parts)
        return lower, upper


def _dense(block: Block, cols: np.ndarray, n: int) -> Dense:
    first, second = np.triu_indices(cols.shape[1])
    a, b = cols[:, first].reshape(-1), cols[:, second].reshape(-1)
    keep = (a >= 0) & (b >= 0)
    # two places of one column, as where a factor reads one element twice: the entry and its mirror both add to the diagonal
    twice = np.flatnonzero(keep & (a == b) & np.tile(first != second, len(cols)))
    kept = None if keep.all() and not len(twice) else np.concatenate([np.flatnonzero(keep), twice])
    if kept is not None:
        a, b = a[kept], b[kept]
    return Dense(block, cols, first, second, kept, np.minimum(a, b), np.maximum(a, b), n)


def _sparse(block: Block, sparsity: Sparsity, cols: np.ndarray) -> Sparse:
    rows, local = np.asarray(sparsity.rows), np.asarray(sparsity.cols)
    colors = color(rows, local, len(cols)) if sparsity.colors is None else np.asarray(sparsity.colors)
    kept = np.flatnonzero(cols[local] >= 0)
    kept = kept[np.lexsort((local[kept], rows[kept]))]
    rows, local = rows[kept], local[kept]
    first, second = [], []
    starts = np.searchsorted(rows, np.arange(block.dim + 1))
    for count in np.unique(np.diff(starts)):  # rows of one length at once
        begin = starts[:-1][np.diff(starts) == count]
        i, j = np.triu_indices(count)
        first.append((begin[:, None] + i).reshape(-1))
        second.append((begin[:, None] + j).reshape(-1))
    a, b = (np.concatenate(p) if p else np.zeros(0, int) for p in (first, second))
    keys, slot = np.unique(local[a] * len(cols) + local[b], return_inverse=True)
    left, right = keys // len(cols), keys % len(cols)
    p, q = cols[left], cols[right]
    both = np.concatenate([left, right]), np.concatenate([right, left])
    return Sparse(
        block,
        rows,
        local,
        cols[local],
        kept,
        colors,
        a,
        b,
        slot,
        color(*both, len(cols)),
        left,
        right,
        np.minimum(p, q),
        np.maximum(p, q),
    )


def color(rows: np.ndarray, cols: np.ndarray, count: int) -> np.ndarray:
    """Colours of columns, greedy by falling number of nonzeros: two columns of one colour share no row.

    Source: Curtis, Powell, Reid 1974.
    """
    import scipy.sparse as sp

    A = sp.csc_matrix((np.ones(len(rows), np.int8), (rows, cols)), (int(rows.max(initial=-1)) + 1, count))
    by_row = A.tocsr()
    colors, degree = np.full(count, -1), np.diff(A.indptr)
    for j in np.argsort(-degree, kind="stable"):
        own = A.indices[A.indptr[j] : A.indptr[j + 1]]
        near = {int(colors[k]) for i in own for k in by_row.indices[by_row.indptr[i] : by_row.indptr[i + 1]]}
        colors[j] = next(c for c in range(count + 1) if c not in near)
    return colors
