"""Sparse affine maps from parameter values to problem data, evaluated for a whole batch as gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Channel:
    """One vector of numbers that the data depend on affinely: a parameter, or its logarithm (geometric programs).

    Attributes:
        parameter: Position of the parameter in the call.
        size: Number of scalars, flattened in C order.
        log: True where the data are affine in log(parameter).
    """

    parameter: int
    size: int
    log: bool = False


@dataclass(frozen=True)
class Block:
    """The part of an affine map that one channel enters: out[rows] += coefs * channel[cols].

    `rows` and `cols` are aligned COO indices. The two flags say whether a plain indexed assignment is enough.
    """

    channel: int
    rows: np.ndarray
    cols: np.ndarray
    coefs: np.ndarray
    size: int

    @cached_property
    def _unit(self) -> bool:
        return bool(np.all(self.coefs == 1.0))

    @cached_property
    def _rows_unique(self) -> bool:
        return len(np.unique(self.rows)) == len(self.rows)

    @cached_property
    def _cols_unique(self) -> bool:
        return len(np.unique(self.cols)) == len(self.cols)

    @cached_property
    def _all_cols(self) -> bool:
        return len(self.cols) == self.size and bool(np.all(self.cols == np.arange(self.size)))

    @cached_property
    def _cells(self) -> np.ndarray:
        """Rows compressed to 0, 1, ...: a block may touch few of the map's rows."""
        return np.unique(self.rows)

    @cached_property
    def _matrix(self) -> Any:
        rows = np.searchsorted(self._cells, self.rows)
        return sp.csr_matrix((self.coefs, (rows, self.cols)), shape=(len(self._cells), self.size))

    @cached_property
    def _transpose(self) -> Any:
        return self._matrix.T.tocsr()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("channel", "rows", "cols", "coefs", "size")}

    def add(self, out: np.ndarray, theta: np.ndarray) -> None:
        """Add this block's contribution for `theta` (B, size) to `out` (B, rows)."""
        if self._rows_unique:
            gathered = theta if self._all_cols else theta[:, self.cols]
            out[:, self.rows] += gathered if self._unit else gathered * self.coefs
        else:
            out[:, self._cells] += (self._matrix @ theta.T).T

    def put(self, out: np.ndarray, theta: np.ndarray) -> None:
        """As `add`, into rows that are still zero and that no other entry of this block shares."""
        gathered = theta if self._all_cols else theta[:, self.cols]
        out[:, self.rows] = gathered if self._unit else gathered * self.coefs

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """Transpose of the linear part: gradient (B, rows) to (B, size)."""
        if self._cols_unique:
            picked = gradient[:, self.rows]
            picked = picked if self._unit else picked * self.coefs
            if self._all_cols:
                return picked
            out = np.zeros((len(gradient), self.size))
            out[:, self.cols] = picked
            return out
        return (self._transpose @ gradient[:, self._cells].T).T


@dataclass(frozen=True)
class AffineMap:
    """theta -> constant + sum over channels of a sparse matrix times the channel.

    Nearly every row of a canonicalised problem holds at most one parameter scalar, so evaluation is a gather and the
    transpose a scatter; rows with more go through a sparse product.

    Attributes:
        constant: (rows,) value with all parameters zero.
        blocks: One `Block` per channel that enters.

    Cost: O(nonzeros) time per instance; a component that no batched parameter enters is evaluated once for the batch.
    """

    constant: np.ndarray
    blocks: tuple[Block, ...]

    @classmethod
    def from_sparse(cls, matrix: sp.sparray, channels: Sequence[tuple[int, slice]]) -> AffineMap:
        """Build from a sparse matrix whose last column is the constant; `channels` names the column range of each channel."""
        csc: Any = sp.csc_array(matrix)
        constant = csc[:, [csc.shape[1] - 1]].toarray().ravel()
        blocks = []
        for channel, columns in channels:
            part = csc[:, columns].tocoo()
            keep = part.data != 0
            if keep.any():
                size = columns.stop - columns.start
                blocks.append(Block(channel, part.row[keep].astype(np.intp), part.col[keep].astype(np.intp), part.data[keep], size))
        return cls(constant, tuple(blocks))

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.constant)

    @cached_property
    def parametric(self) -> np.ndarray:
        """(rows,) bool, True where a parameter enters."""
        mask = np.zeros(self.size, bool)
        for block in self.blocks:
            mask[block.rows] = True
        return mask

    def batch(self, thetas: Sequence[np.ndarray]) -> int:
        """Leading size of the result: 1 unless a batched channel enters."""
        return max((len(thetas[b.channel]) for b in self.blocks), default=1)

    def __call__(self, thetas: Sequence[np.ndarray]) -> np.ndarray:
        """Evaluate: channels (1 or B, size) to (1 or B, rows)."""
        out = np.empty((self.batch(thetas), self.size))
        out[:] = self.constant
        for block, fresh in zip(self.blocks, self._fresh, strict=True):
            (block.put if fresh else block.add)(out, thetas[block.channel])
        return out

    @cached_property
    def _fresh(self) -> list[bool]:
        """Per block, whether it writes rows that nothing else has written before it."""
        written = self.constant != 0
        out = []
        for b in self.blocks:
            out.append(not written[b.rows].any() and len(np.unique(b.rows)) == len(b.rows))
            written = written.copy()
            written[b.rows] = True
        return out

    def linear(self, tangents: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """Apply the linear part to channel tangents; None where nothing enters."""
        live = [(b, t) for b in self.blocks if (t := tangents[b.channel]) is not None]
        if not live:
            return None
        out = np.zeros((max(len(t) for _, t in live), self.size))
        for block, tangent in live:
            block.add(out, tangent)
        return out

    def adjoint(self, gradient: np.ndarray, out: list[np.ndarray | None], shared: Sequence[bool]) -> None:
        """Add the transpose of the linear part, applied to `gradient` (B, rows), to the channel gradients `out`.

        Channels that the batch shares get the sum over the batch, taken before the scatter.
        """
        total = None
        for block in self.blocks:
            if shared[block.channel] and len(gradient) > 1:
                total = gradient.sum(axis=0, keepdims=True) if total is None else total
                part = block.adjoint(total)
            else:
                part = block.adjoint(gradient)
            held = out[block.channel]
            out[block.channel] = part if held is None else held + part

    def rows(self, keep: np.ndarray) -> AffineMap:
        """The map restricted to the rows `keep` (indices), in that order."""
        where = np.full(self.size, -1)
        where[keep] = np.arange(len(keep))
        blocks = []
        for b in self.blocks:
            mask = where[b.rows] >= 0
            if mask.any():
                blocks.append(Block(b.channel, where[b.rows[mask]], b.cols[mask], b.coefs[mask], b.size))
        return AffineMap(self.constant[keep], tuple(blocks))
