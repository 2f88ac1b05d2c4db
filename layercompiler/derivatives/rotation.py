"""Change of basis for PSD cones: their rows turn with the eigenvectors, and so do the variables of a block that is -I.

For rows s in svec coordinates the derivative of the projection is U diag(beta) U' with the congruence U = Q (x) Q. In the
coordinates U's of the rows it is diagonal, for one congruence of every column of A, O(k^3), where forming U takes O(k^4) time and
memory. Where the block of A is -I (a PSD variable X, rows s = X), the coordinates xi = U'x of the variables turn as well: then the
block couples x and sigma by a diagonal, and the elimination of the variable costs a congruence of the other rows instead of a
dense factorisation of order k(k+1)/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from layercompiler.cones import ProductProjection
from layercompiler.errors import DerivativeError
from layercompiler.programs.cone import Data, Structure


@dataclass(frozen=True)
class Turning:
    """A group of `count` equal PSD cones whose variables turn.

    Attributes:
        group: Index of the cone block.
        rows: (count, dim) rows of A, `cols` the variables they hold, `own` their entries of A.
        P_entries: Diagonal entries of P on these variables, aligned with `cols`, or None.
    """

    group: int
    rows: np.ndarray
    cols: np.ndarray
    own: np.ndarray
    P_entries: np.ndarray | None


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


@dataclass(frozen=True)
class _RowTurn:
    """One group of `count` equal PSD cones whose rows turn alone.

    Attributes:
        group: Index of the cone block.
        rows: (count, dim) rows of A.
        columns: Per cone: (entries of A after the turns of variables, number of columns, column position, svec position).
        slots: Per cone, the entries of the rotated pattern, by column.
    """

    group: int
    rows: np.ndarray
    columns: tuple[tuple[np.ndarray, int, np.ndarray, np.ndarray], ...]
    slots: tuple[slice, ...]


# Entries of the rotated A beyond which the system is refused: each costs some 400 bytes until the factors stand.
LARGEST = 8_000_000

Turned = tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class Rotation:
    """The rotated groups of a structure, and the pattern of A after the rotation; the identity where there are none.

    Attributes:
        A_rows: Rows of A after the rotation; `A_cols` its columns.
        A_cols: See `A_rows`.
        kept: Entries of A that no turn of variables touches, in front of the turned ones.
        turns: Groups whose variables turn.
        still: Entries after the turns of variables that no turn of rows touches, in front of the turned ones.
        row_turns: Groups whose rows turn alone.
    """

    A_rows: np.ndarray
    A_cols: np.ndarray
    kept: np.ndarray
    turns: tuple[_Turn, ...]
    still: np.ndarray
    row_turns: tuple[_RowTurn, ...]

    @classmethod
    def of(cls, structure: Structure, samples: Data) -> Rotation:
        """Turn the rows of every PSD group, and the variables where its rows each hold one constant entry and P is isotropic on them.

        Args:
            structure: The pattern.
            samples: Data at two or more random parameter values; what is equal in them is equal always, because every
                entry is a polynomial of the parameters.

        Raises:
            DerivativeError: The rotated pattern would have more than `LARGEST` entries.
        """
        found = turning(structure, samples)
        touch: list[list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = []
        dropped = np.zeros(len(structure.A_rows), bool)
        filled = 0
        for block in found:
            touch.append([])
            for rows, cols in zip(block.rows, block.cols, strict=True):
                position = np.full(structure.n, -1)
                position[cols] = np.arange(len(cols))
                here = position[structure.A_cols]
                entries = np.flatnonzero((here >= 0) & (structure.A_rows != rows[here]))
                row_ids, row_position = np.unique(structure.A_rows[entries], return_inverse=True)
                touch[-1].append((entries, row_ids, row_position, here[entries]))
                dropped[entries] = True
                filled += len(row_ids) * len(cols)
                _refuse_above(filled)
        kept = np.flatnonzero(~dropped)
        where = np.full(len(dropped), -1)
        where[kept] = np.arange(len(kept))
        A_rows, A_cols, at = [structure.A_rows[kept]], [structure.A_cols[kept]], len(kept)
        turns = []
        for block, others in zip(found, touch, strict=True):
            cols, slots = block.cols, []
            for c, (_, row_ids, _, _) in enumerate(others):
                A_rows.append(np.repeat(row_ids, cols.shape[1]))
                A_cols.append(np.tile(cols[c], len(row_ids)))
                slots.append(np.arange(at, at + len(A_rows[-1])))
                at += len(A_rows[-1])
            per_cone = tuple((entries, len(ids), row_position, position) for entries, ids, row_position, position in others)
            turns.append(_Turn(block.group, block.rows, cols, block.own, per_cone, where[block.own], tuple(slots), block.P_entries))
        return cls._with_rows(structure, np.concatenate(A_rows), np.concatenate(A_cols), kept, tuple(turns))

    @classmethod
    def _with_rows(
        cls, structure: Structure, A_rows: np.ndarray, A_cols: np.ndarray, kept: np.ndarray, turns: tuple[_Turn, ...]
    ) -> Rotation:
        """Turn the rows of the PSD groups whose variables do not turn."""
        done = {turn.group for turn in turns}
        rows, cols, groups = [], [], []
        moved = np.zeros(len(A_rows), bool)
        start = filled = 0
        for g, (cone, count) in enumerate(structure.cones.blocks):
            of_group = start + np.arange(count * cone.dim).reshape(count, cone.dim)
            start += count * cone.dim
            if cone.name != "psd" or g in done:
                continue
            columns = []
            for of_cone in of_group:
                entries = np.flatnonzero((A_rows >= of_cone[0]) & (A_rows <= of_cone[-1]))
                moved[entries] = True
                ids, position = np.unique(A_cols[entries], return_inverse=True)
                filled += len(ids) * cone.dim
                _refuse_above(filled)
                columns.append((entries, len(ids), position, A_rows[entries] - of_cone[0]))
                rows.append(np.tile(of_cone, len(ids)))
                cols.append(np.repeat(ids, cone.dim))
            groups.append((g, of_group, tuple(columns)))
        still = np.flatnonzero(~moved)
        ends = iter(pairwise(np.cumsum([len(still), *map(len, rows)]).tolist()))
        row_turns = tuple(_RowTurn(g, of_group, columns, tuple(slice(*next(ends)) for _ in columns)) for g, of_group, columns in groups)
        return cls(np.concatenate([A_rows[still], *rows]), np.concatenate([A_cols[still], *cols]), kept, turns, still, row_turns)

    @property
    def flops(self) -> float:
        """Operations of the congruences, roughly."""
        turned = [(t.cols.shape[1], 1 + sum(rows for _, rows, _, _ in t.others)) for t in self.turns]
        turned += [(t.rows.shape[1], sum(columns for _, columns, _, _ in t.columns)) for t in self.row_turns]
        return float(sum(4 * ((np.sqrt(8 * dim + 1) - 1) / 2) ** 3 * vectors for dim, vectors in turned))

    def rotates(self, group: int) -> bool:
        """Whether a cone block is rotated."""
        return any(t.group == group for t in (*self.turns, *self.row_turns))

    def turn(self, data: Data, projection: ProductProjection) -> Turned:
        """The bases of a batch: eigenvectors, and the factor between x and svec coordinates, of each rotated group."""
        variables = ((projection.parts[t.group].Q, -1.0 / data.A[:, t.own]) for t in self.turns)
        rows = ((projection.parts[t.group].Q, np.ones((1, 0))) for t in self.row_turns)
        return *variables, *rows

    def matrix(self, data: Data, turned: Turned, batch: int) -> np.ndarray:
        """Entries of A on the rotated pattern for a batch."""
        first = self._turn_variables(data, turned, batch)
        if not self.row_turns:
            return first
        out = np.empty((batch, len(self.A_rows)))
        out[:, : len(self.still)] = first[:, self.still]
        for turn, (Q, _) in zip(self.row_turns, turned[len(self.turns) :], strict=True):
            for c, (entries, column_count, column_position, position) in enumerate(turn.columns):
                block = np.zeros((batch, column_count, turn.rows.shape[1]))
                block[:, column_position, position] = first[:, entries]
                out[:, turn.slots[c]] = congruence(Q[:, c, None], block).reshape(batch, column_count * turn.rows.shape[1])
        return out

    def _turn_variables(self, data: Data, turned: Turned, batch: int) -> np.ndarray:
        if not self.turns:
            return data.A
        out = np.empty((batch, len(self.kept) + sum(len(slots) for t in self.turns for slots in t.slots)))
        out[:, : len(self.kept)] = data.A[:, self.kept]
        for turn, (Q, scale) in zip(self.turns, turned, strict=False):
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
        turned = turned[: len(self.turns)]
        out = np.array(np.broadcast_to(data.P, (max(len(data.P), *(len(scale) for _, scale in turned)), data.P.shape[1])))
        for turn, (_, scale) in zip(self.turns, turned, strict=True):
            if turn.P_entries is not None:
                out[:, turn.P_entries] *= scale**2
        return out

    def right(self, r_x: np.ndarray, h: np.ndarray, turned: Turned) -> tuple[np.ndarray, np.ndarray]:
        """Right-hand side into the rotated coordinates."""
        if not turned:
            return r_x, h
        r_x, h = r_x.copy(), h.copy()
        for turn, (Q, scale) in zip((*self.turns, *self.row_turns), turned, strict=True):
            if isinstance(turn, _Turn):
                r_x[:, turn.cols] = congruence(Q, r_x[:, turn.cols] * scale)
            h[:, turn.rows] = congruence(Q, h[:, turn.rows])
        return r_x, h

    def left(self, u: np.ndarray, t: np.ndarray, turned: Turned) -> tuple[np.ndarray, np.ndarray]:
        """Solution back from the rotated coordinates."""
        if not turned:
            return u, t
        u, t = u.copy(), t.copy()
        for turn, (Q, scale) in zip((*self.turns, *self.row_turns), turned, strict=True):
            back = Q.swapaxes(-1, -2)
            if isinstance(turn, _Turn):
                u[:, turn.cols] = congruence(back, u[:, turn.cols]) * scale
            t[:, turn.rows] = congruence(back, t[:, turn.rows])
        return u, t


def turning(structure: Structure, samples: Data) -> list[Turning]:
    """The PSD groups whose rows each hold one constant entry, in columns of their own on which P is isotropic."""
    found: list[Turning] = []
    start = 0
    per_row = np.diff(structure.A_indptr)
    coupled, taken = np.zeros(structure.n, bool), np.zeros(structure.n, bool)
    coupled[structure.P_rows[structure.P_off]] = coupled[structure.P_cols[structure.P_off]] = True
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
        if usable:
            taken[cols] = True
            found.append(Turning(g, rows, cols, own, P_entries))
    return found


def _refuse_above(entries: int) -> None:
    if entries > LARGEST:
        raise DerivativeError(
            "the linear system of the derivative is too large",
            where="the positive semidefinite cones",
            expected=f"at most {LARGEST} entries",
            got=f"{entries} or more",
            mend="write the matrix constraint in fewer variables, or as a variable declared PSD=True",
        )


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
