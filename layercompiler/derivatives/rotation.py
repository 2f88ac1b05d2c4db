"""Change of basis for PSD variables: where a PSD block of A is -I, the block's coordinates turn with the eigenvectors.

For X in svec coordinates with rows s = X, the derivative of the projection is U diag(beta) U' with the congruence
U = Q (x) Q. In the coordinates xi = U'x the block couples x and sigma by a diagonal, so the elimination of a PSD variable
costs a congruence of the other rows, O(k^3) each, instead of a dense factorisation of order k(k+1)/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from layercompiler.cones import ProductProjection
from layercompiler.programs.cone import Data, Structure


@dataclass(frozen=True)
class _Turn:
    """One rotated group of `count` equal PSD cones.

    Attributes:
        group: Index of the cone block.
        rows: (count, dim) rows of A, `cols` the variables they hold, `own` their entries of A.
        others: Per cone: (entries of A, number of rows, row position, svec position) of the other rows that touch its columns.
        own_kept: Position of `own` among the kept entries.
        slots: Per cone, the entries of the rotated pattern that hold the other rows.
        P_entries: Diagonal entries of P on the block's variables, aligned with `cols`, or None; in svec coordinates they
            are a multiple of the identity, which no rotation changes.
    """

    group: int
    rows: np.ndarray
    cols: np.ndarray
    own: np.ndarray
    others: tuple[tuple[np.ndarray, int, np.ndarray, np.ndarray], ...]
    own_kept: np.ndarray
    slots: tuple[np.ndarray, ...]
    P_entries: np.ndarray | None


Turned = tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class Rotation:
    """The rotated groups of a structure, and the pattern of A after the rotation; the identity where there are none."""

    A_rows: np.ndarray
    A_cols: np.ndarray
    kept: np.ndarray
    turns: tuple[_Turn, ...]

    @classmethod
    def of(cls, structure: Structure, samples: Data) -> Rotation:
        """Find the PSD groups whose rows each hold one constant entry, with P a multiple of the identity on their variables.

        Args:
            structure: The pattern.
            samples: Data at two or more random parameter values; what is equal in them is equal always, because every
                entry is a polynomial of the parameters.
        """
        found: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]] = []
        touch: list[list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = []
        start = 0
        per_row = np.diff(structure.A_indptr)
        coupled = np.zeros(structure.n, bool)
        coupled[structure.P_rows[structure.P_off]] = coupled[structure.P_cols[structure.P_off]] = True
        taken = np.zeros(structure.n, bool)
        dropped = np.zeros(len(structure.A_rows), bool)
        for g, (cone, count) in enumerate(structure.cones.blocks):
            rows = start + np.arange(count * cone.dim).reshape(count, cone.dim)
            start += count * cone.dim
            if cone.name != "psd" or cone.dim < 2 or np.any(per_row[rows] != 1):
                continue
            own = structure.A_indptr[rows]
            cols = structure.A_cols[own]
            if np.any(coupled[cols]) or np.any(taken[cols]) or len(np.unique(cols)) != cols.size:
                continue
            usable, P_entries = _isotropic(structure, samples, own, cols)
            if not usable:
                continue
            taken[cols] = True
            found.append((g, rows, cols, own, P_entries))
            touch.append([])
            for c in range(count):
                position = np.full(structure.n, -1)
                position[cols[c]] = np.arange(cone.dim)
                here = position[structure.A_cols]
                entries = np.flatnonzero((here >= 0) & (structure.A_rows != rows[c][here]))
                row_ids, row_position = np.unique(structure.A_rows[entries], return_inverse=True)
                touch[-1].append((entries, row_ids, row_position, here[entries]))
                dropped[entries] = True
        kept = np.flatnonzero(~dropped)
        where = np.full(len(dropped), -1)
        where[kept] = np.arange(len(kept))
        A_rows, A_cols, at = [structure.A_rows[kept]], [structure.A_cols[kept]], len(kept)
        turns = []
        for (g, rows, cols, own, P_entries), others in zip(found, touch, strict=True):
            slots = []
            for c, (_, row_ids, _, _) in enumerate(others):
                A_rows.append(np.repeat(row_ids, cols.shape[1]))
                A_cols.append(np.tile(cols[c], len(row_ids)))
                slots.append(np.arange(at, at + len(A_rows[-1])))
                at += len(A_rows[-1])
            per_cone = tuple((entries, len(ids), row_position, position) for entries, ids, row_position, position in others)
            turns.append(_Turn(g, rows, cols, own, per_cone, where[own], tuple(slots), P_entries))
        return cls(np.concatenate(A_rows), np.concatenate(A_cols), kept, tuple(turns))

    @property
    def flops(self) -> float:
        """Operations of the congruences, roughly."""
        orders = [(np.sqrt(8 * t.cols.shape[1] + 1) - 1) / 2 for t in self.turns]
        return float(sum(4 * k**3 * (1 + sum(rows for _, rows, _, _ in t.others)) for k, t in zip(orders, self.turns, strict=True)))

    def rotates(self, group: int) -> bool:
        """Whether a cone block is rotated."""
        return any(t.group == group for t in self.turns)

    def turn(self, data: Data, projection: ProductProjection) -> Turned:
        """The bases of a batch: eigenvectors, and the factor between x and svec coordinates, of each rotated group."""
        return tuple((projection.parts[t.group].Q, -1.0 / data.A[:, t.own]) for t in self.turns)

    def matrix(self, data: Data, turned: Turned, batch: int) -> np.ndarray:
        """Entries of A on the rotated pattern for a batch."""
        if not self.turns:
            return data.A
        out = np.empty((batch, len(self.A_rows)))
        out[:, : len(self.kept)] = data.A[:, self.kept]
        for turn, (Q, scale) in zip(self.turns, turned, strict=True):
            out[:, turn.own_kept] = -1.0
            for c, (touching, row_count, row_position, position) in enumerate(turn.others):
                if row_count:
                    block = np.zeros((batch, row_count, turn.cols.shape[1]))
                    block[:, row_position, position] = data.A[:, touching] * scale[:, c][:, position]
                    out[:, turn.slots[c]] = congruence(Q[:, c, None], block).reshape(batch, -1)
        return out

    def quadratic(self, data: Data, turned: Turned) -> np.ndarray:
        """Entries of P in the rotated coordinates, (1 or B, nnz)."""
        if all(t.P_entries is None for t in self.turns):
            return data.P
        out = np.array(np.broadcast_to(data.P, (max(len(data.P), *(len(scale) for _, scale in turned)), data.P.shape[1])))
        for turn, (_, scale) in zip(self.turns, turned, strict=True):
            if turn.P_entries is not None:
                out[:, turn.P_entries] *= scale**2
        return out

    def right(self, r_x: np.ndarray, h: np.ndarray, turned: Turned) -> tuple[np.ndarray, np.ndarray]:
        """Right-hand side into the rotated coordinates."""
        if not self.turns:
            return r_x, h
        r_x, h = r_x.copy(), h.copy()
        for turn, (Q, scale) in zip(self.turns, turned, strict=True):
            r_x[:, turn.cols] = congruence(Q, r_x[:, turn.cols] * scale)
            h[:, turn.rows] = congruence(Q, h[:, turn.rows])
        return r_x, h

    def left(self, u: np.ndarray, t: np.ndarray, turned: Turned) -> tuple[np.ndarray, np.ndarray]:
        """Solution back from the rotated coordinates."""
        if not self.turns:
            return u, t
        u, t = u.copy(), t.copy()
        for turn, (Q, scale) in zip(self.turns, turned, strict=True):
            back = Q.swapaxes(-1, -2)
            u[:, turn.cols] = congruence(back, u[:, turn.cols]) * scale
            t[:, turn.rows] = congruence(back, t[:, turn.rows])
        return u, t


def _isotropic(structure: Structure, samples: Data, own: np.ndarray, cols: np.ndarray) -> tuple[bool, np.ndarray | None]:
    """Whether the block's entries of A are nonzero constants and P is a multiple of the identity in its svec coordinates."""
    entries = samples.A[:, own]
    if not entries.all() or np.any(entries != entries[:1]):
        return False, None
    diagonal = np.full(structure.n, -1)
    on = np.flatnonzero(structure.P_rows == structure.P_cols)
    diagonal[structure.P_rows[on]] = on
    where = diagonal[cols]
    if np.all(where < 0):
        return True, None
    if np.any(where < 0):
        return False, None
    weights = (samples.P[:, where] / entries**2).reshape(len(samples.P) if len(samples.P) > 1 else len(entries), *cols.shape)
    same = np.all(np.abs(weights - weights[..., :1]) <= 1e-12 * np.abs(weights[..., :1]))
    return bool(same), where


def congruence(Q: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """svec(Q'MQ) for svec vectors of M: (..., k, k), (..., dim) to (..., dim)."""
    order = Q.shape[-1]
    lower, weight = _svec_index(order)
    M = np.empty((*vector.shape[:-1], order, order))
    M[..., lower[0], lower[1]] = M[..., lower[1], lower[0]] = vector / weight
    turned = np.matmul(Q.swapaxes(-1, -2), np.matmul(M, Q))
    return turned[..., lower[0], lower[1]] * weight


@lru_cache(maxsize=64)
def _svec_index(order: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    cols, rows = np.triu_indices(order)  # the transpose of the row-major upper triangle is the column-major lower one
    return (rows, cols), np.where(rows == cols, 1.0, np.sqrt(2.0))
