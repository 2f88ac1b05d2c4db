"""Defined variables substituted for a whole batch, in one pass; `layercompiler.programs.presolve` states what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layercompiler.errors import BuildError
from layercompiler.kernels.library import address
from layercompiler.kernels.maps import Handle, contiguous, integers, pointers, strides


@dataclass(frozen=True)
class Layout:
    """The plan of a substitution: x_k = (beta - a'x) / c for k variables, each with a row of its own.

    Attributes:
        full: Variables and rows of the whole program; `size` those that are left.
        keep_x: Variables that are left, and rows (`keep_y`).
        keep_y: See `keep_x`.
        variable: (k,) substituted variables, with their `row` and coefficient `c`.
        row: See `variable`.
        c: See `variable`.
        start: (k + 1,) where the entries of each a begin; `column` (entries,) in the numbering of what is left, ascending in each a.
        column: See `start`.
        P_size: Entries of the new P; `place` (kept,) where each entry of P that is left goes.
        place: See `P_size`.
        groups: Rows of equal support, (which of the k, places in the new P of the upper triangle of their outer products, by rows).
    """

    full: tuple[int, int]
    size: tuple[int, int]
    keep_x: np.ndarray
    keep_y: np.ndarray
    variable: np.ndarray
    row: np.ndarray
    c: np.ndarray
    start: np.ndarray
    column: np.ndarray
    P_size: int
    place: np.ndarray
    groups: Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Weights:
    """The numbers of a batch that the way back needs, (1 or B, ...): entries of all a, weights w, P_kk, beta and q_k."""

    entries: np.ndarray
    w: np.ndarray
    diagonal: np.ndarray
    beta: np.ndarray
    linear: np.ndarray


class Substitution(Handle):
    """A substitution analysed once.

    Args:
        layout: The plan.

    Raises:
        BuildError: The plan contradicts itself.
    """

    def __init__(self, layout: Layout) -> None:
        k, self.layout = len(layout.variable), layout
        widths = [int((np.sqrt(8 * len(targets) + 1) - 1) / 2 + 0.5) for _, targets in layout.groups]
        if len(layout.row) != k or len(layout.c) != k or len(layout.start) != k + 1 or layout.start[-1] != len(layout.column):
            raise BuildError("the plan contradicts itself", where="Substitution")
        if len(layout.keep_x) != layout.size[0] or len(layout.keep_y) != layout.size[1]:
            raise BuildError("the plan contradicts itself", where="Substitution")
        if any(w * (w + 1) // 2 != len(targets) for w, (_, targets) in zip(widths, layout.groups, strict=True)):
            raise BuildError("the plan contradicts itself", where="Substitution")
        joined = [integers(np.concatenate([np.zeros(0, int), *(g[i] for g in layout.groups)])) for i in (0, 1)]
        super().__init__(
            *("substitution", *layout.full, *layout.size, k, integers(layout.keep_x), integers(layout.keep_y)),
            *(integers(layout.variable), integers(layout.row), np.ascontiguousarray(layout.c, dtype=float)),
            *(integers(layout.start), integers(layout.column), layout.P_size, len(layout.place), integers(layout.place)),
            *(len(layout.groups), integers([len(g[0]) for g in layout.groups]), integers(widths), *joined),
        )

    def bind(
        self, P: np.ndarray, q: np.ndarray, d: np.ndarray, rows: tuple[np.ndarray, ...], batch: int, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Weights]:
        """P, q and d of the reduced program.

        Args:
            P: Entries that are left, (1 or B, kept); q (1 or B, n), d (1 or B, 1).
            q: See `P`.
            d: See `P`.
            rows: Entries of all a (1 or B, entries), beta, q_k and P_kk (1 or B, k).
            batch: B.
            threads: Threads that share the batch.
        """
        entries, beta, linear, diagonal = rows
        operands = (P, q, d, entries, beta, linear, diagonal)
        P_count, d_count = (max(len(a) for a in part) for part in ((P, entries, diagonal), (d, beta, linear, diagonal)))
        w = np.empty(diagonal.shape)
        new_P, new_q, new_d = np.empty((P_count, self.layout.P_size)), np.empty((batch, q.shape[1])), np.empty((d_count, 1))
        self.call(
            *("lc_substitution_bind", batch, pointers(operands), strides(operands), P_count, len(diagonal), d_count),
            *(address(new_P), address(new_q), address(new_d), address(w), threads),
        )
        return new_P, new_q, new_d, Weights(entries, w, diagonal, beta, linear)

    def expand(
        self, x: np.ndarray, y: np.ndarray, weights: Weights, rhs: tuple[np.ndarray, np.ndarray] | None, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The point of the full program, or, with `rhs` = (r_x, r_y) of the full linear system, its solution."""
        x, y = contiguous(x), contiguous(y)
        row, column = (contiguous(rhs[1]), contiguous(rhs[0])) if rhs else (weights.beta, weights.linear)
        held = (row, column, weights.entries, weights.diagonal)
        across = [a.shape[1] if len(a) > 1 else 0 for a in held]
        full_x, full_y = (np.empty((len(x), k)) for k in self.layout.full)
        self.call(
            *("lc_substitution_expand", len(x), address(x), address(y), address(row), across[0], address(column), across[1]),
            *(1.0 if rhs else -1.0, int(rhs is not None), address(held[2]), across[2], address(held[3]), across[3]),
            *(address(full_x), address(full_y), threads),
        )
        return full_x, full_y

    def reduce(self, r_x: np.ndarray, r_y: np.ndarray, weights: Weights, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Right-hand side of the reduced linear system."""
        r_x, r_y = contiguous(r_x), contiguous(r_y)
        a, b = (np.empty((len(r_x), k)) for k in self.layout.size)
        across = [k.shape[1] if len(k) > 1 else 0 for k in (weights.entries, weights.w)]
        self.call(
            *("lc_substitution_reduce", len(r_x), address(r_x), address(r_y), address(weights.entries), across[0]),
            *(address(weights.w), across[1], address(a), address(b), threads),
        )
        return a, b
