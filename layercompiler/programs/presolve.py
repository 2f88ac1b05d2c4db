"""Presolve: substitute variables that an equality defines, so that least squares in a residual becomes a QP in x.

CVXPY writes `sum_squares(A @ x - b)` with a residual r = Ax - b, an equality, and P = 2I on r. Such a *defined variable*
x_k occurs in one equality row, c x_k + a'x = beta with a constant c, in no other row, and in P only on the diagonal.
With w = P_kk / c^2 its elimination leaves

    P + w a a',   q - (w beta + q_k / c) a,   d + w beta^2 / 2 + q_k beta / c

and the point comes back by x_k = (beta - a'x) / c, y_i = -(P_kk x_k + q_k) / c. Linear systems in the matrix of the residual
map are reduced and expanded by the same block elimination, so derivatives are those of the program as written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones import Product
from layercompiler.programs.cone import MATRIX_KINDS, ConeProgram, Data, Structure
from layercompiler.programs.pattern import Pattern, Segments


@dataclass(frozen=True)
class _Groups:
    """Groups of defined variables of equal size; within a group all rows share one support.

    Attributes:
        where: (groups, rows) which defined variable; `entries` (groups, rows, support) the entries of A.
        upper: Upper triangle of a support's outer products; `target` (groups, upper) the entries of P that they fill, `fill` their sums.
    """

    where: np.ndarray
    entries: np.ndarray
    upper: tuple[np.ndarray, np.ndarray]
    target: np.ndarray
    fill: Segments

    @classmethod
    def of(cls, where: np.ndarray, entries: np.ndarray, target: np.ndarray, size: int) -> _Groups:
        """Plan the sums into P of `size` entries."""
        return cls(where, entries, np.triu_indices(entries.shape[2]), target, Segments.of(target.ravel(), size))

    def add(self, P: np.ndarray, A: np.ndarray, w: np.ndarray) -> None:
        """Add w a a' of every row to P (B, nnz)."""
        a = A[:, self.entries]
        block = np.matmul(a.swapaxes(-1, -2) * w[:, self.where][:, :, None, :], a)
        entries = block[:, :, self.upper[0], self.upper[1]]
        P += self.fill.sum(entries.reshape(len(block), entries.shape[1] * entries.shape[2]))


@dataclass(frozen=True)
class Elimination:
    """Which defined variables are substituted, and the plan to do it for any numbers.

    Attributes:
        full: Structure of the program as canonicalised.
        structure: Structure of the reduced program.
        k: Eliminated variables, with their equality rows `i`, the coefficient `c`, and the position of P_kk (-1: none).
        i: See `k`.
        c: See `k`.
        P_kk: See `k`.
        keep_x: What stays: variables, rows (`keep_y`), entries of P (`keep_P`, at `place_P` of the new one) and of A (`keep_A`).
        row_entries: Entries of A of the defining rows without c, with their pattern `rows` (k by n').
        groups: Outer products that fill the new P.
    """

    full: Structure
    structure: Structure
    k: np.ndarray
    i: np.ndarray
    c: np.ndarray
    P_kk: np.ndarray
    keep_x: np.ndarray
    keep_y: np.ndarray
    keep_P: np.ndarray
    keep_A: np.ndarray
    place_P: np.ndarray
    row_entries: np.ndarray
    rows: Pattern
    groups: tuple[_Groups, ...]

    @property
    def active(self) -> bool:
        """Whether anything is substituted."""
        return len(self.k) > 0

    def shares(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows of equal support: which defined variables, and the entries of the new P that their outer products' upper triangle fills."""
        return [pair for g in self.groups for pair in zip(g.where, g.target, strict=True)]

    def bind(self, data: Data) -> Reduction:
        """The substitution for the numbers of one batch."""
        return Reduction(self, data) if self.active else Unreduced(self, data)


class Reduction:
    """An elimination with the numbers of one batch.

    Attributes:
        data: Numbers of the reduced program.
    """

    def __init__(self, plan: Elimination, full: Data) -> None:
        self.plan, c = plan, plan.c
        self.P_kk = np.where(plan.P_kk >= 0, full.P[:, plan.P_kk], 0.0) if full.P.shape[1] else np.zeros((1, len(c)))
        self.w, self.beta, self.q_k = self.P_kk / c**2, full.b[:, plan.i], full.q[:, plan.k]
        entries = full.A[:, plan.row_entries]
        self.rows = plan.rows.full(entries) if plan.rows.dense else entries
        P = np.zeros((*np.broadcast_shapes(full.P.shape[:1], full.A.shape[:1]), len(plan.structure.P_rows)))
        P[:, plan.place_P] = full.P[:, plan.keep_P]
        for group in plan.groups:
            group.add(P, full.A, self.w)
        linear = self.q_k / c
        q = full.q[:, plan.keep_x] - self._transposed(self.w * self.beta + linear)
        d = full.d + np.sum((0.5 * self.w * self.beta + linear) * self.beta, axis=-1, keepdims=True)
        self.data = Data(P, q, d, full.A[:, plan.keep_A], full.b[:, plan.keep_y])

    def expand(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Point of the full program from that of the reduced one: (B, n'), (B, m') to (B, n), (B, m)."""
        return self._expand(x, y, self.beta, -self.q_k)

    def reduce_rhs(self, r_x: np.ndarray, r_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Right-hand side of the reduced linear system: rows of P dx + A'dy = r_x and of A dx + ... = r_y."""
        p = self.plan
        pull = r_x[:, p.k] / p.c - self.w * r_y[:, p.i]
        return r_x[:, p.keep_x] - self._transposed(pull), r_y[:, p.keep_y]

    def expand_step(self, dx: np.ndarray, dy: np.ndarray, r_x: np.ndarray, r_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solution of the full linear system from that of the reduced one."""
        return self._expand(dx, dy, r_y[:, self.plan.i], r_x[:, self.plan.k])

    def _expand(self, x: np.ndarray, y: np.ndarray, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = self.plan
        full_x, full_y = np.empty((len(x), p.full.n)), np.empty((len(x), p.full.m))
        full_x[:, p.keep_x], full_y[:, p.keep_y] = x, y
        x_k = (row - self._product(x)) / p.c
        full_x[:, p.k], full_y[:, p.i] = x_k, (column - self.P_kk * x_k) / p.c
        return full_x, full_y

    def _product(self, x: np.ndarray) -> np.ndarray:
        """a'x for each defining row: (B, n') to (B, k)."""
        if self.plan.rows.dense:
            return np.matmul(self.rows, x[:, :, None])[:, :, 0]
        return self.plan.rows.product(self.rows, x)

    def _transposed(self, pull: np.ndarray) -> np.ndarray:
        """Sum of pull_i a_i: (B, k) to (B, n')."""
        if self.plan.rows.dense:
            return np.einsum("bij,bi->bj", self.rows, pull)
        return self.plan.rows.transposed(self.rows, pull)


class Unreduced(Reduction):
    """Nothing to substitute: every method is the identity."""

    def __init__(self, plan: Elimination, full: Data) -> None:
        self.plan, self.data = plan, full

    def expand(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The point itself."""
        return x, y

    def reduce_rhs(self, r_x: np.ndarray, r_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The right-hand side itself."""
        return r_x, r_y

    def expand_step(self, dx: np.ndarray, dy: np.ndarray, r_x: np.ndarray, r_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The solution itself."""
        return dx, dy


def eliminate(program: ConeProgram) -> Elimination:
    """Choose the defined variables whose substitution does not increase the number of nonzeros, and plan it."""
    s = program.structure
    k, i, entry, P_kk = _candidates(program)
    # Programs written as matrices go to the kernels as they are.
    chosen = _profitable(s, k, i, entry, P_kk) if program.kind not in MATRIX_KINDS else np.zeros(0, np.intp)
    k, i, entry, P_kk = k[chosen], i[chosen], entry[chosen], P_kk[chosen]
    c = program.A.constant[entry]
    keep_x = np.setdiff1d(np.arange(s.n), k)
    keep_y = np.setdiff1d(np.arange(s.m), i)
    new_col, new_row = np.full(s.n, -1), np.full(s.m, -1)
    new_col[keep_x], new_row[keep_y] = np.arange(len(keep_x)), np.arange(len(keep_y))

    eliminated_row, eliminated_col = np.full(s.m, -1), np.zeros(s.n, bool)
    eliminated_row[i], eliminated_col[k] = np.arange(len(k)), True
    in_row = (eliminated_row[s.A_rows] >= 0) & ~eliminated_col[s.A_cols]
    row_entries = np.flatnonzero(in_row)
    row_entries = row_entries[np.argsort(eliminated_row[s.A_rows[row_entries]], kind="stable")]
    row_of, col_of = eliminated_row[s.A_rows[row_entries]], new_col[s.A_cols[row_entries]]
    keep_A = np.flatnonzero(eliminated_row[s.A_rows] < 0)
    keep_P = np.flatnonzero(~eliminated_col[s.P_rows] & ~eliminated_col[s.P_cols])

    n = len(keep_x)
    old_keys = new_col[s.P_cols[keep_P]] * n + new_col[s.P_rows[keep_P]]
    found = _groups(row_entries, row_of, col_of, P_kk, n)
    all_keys = np.unique(np.concatenate([old_keys, *(keys.ravel() for _, _, keys in found)])).astype(np.intp)
    reduced = Structure(
        n=n,
        P_rows=(all_keys % max(n, 1)).astype(np.intp),
        P_cols=(all_keys // max(n, 1)).astype(np.intp),
        A_rows=new_row[s.A_rows[keep_A]],
        A_cols=new_col[s.A_cols[keep_A]],
        cones=_without_zero_rows(s.cones, len(i)),
    )
    return Elimination(
        full=s,
        structure=reduced if len(k) else s,
        k=k,
        i=i,
        c=c,
        P_kk=P_kk,
        keep_x=keep_x,
        keep_y=keep_y,
        keep_P=keep_P,
        keep_A=keep_A,
        place_P=np.searchsorted(all_keys, old_keys),
        row_entries=row_entries,
        rows=Pattern(row_of, col_of, (len(k), n)),
        groups=tuple(_Groups.of(where, entries, np.searchsorted(all_keys, keys), len(all_keys)) for where, entries, keys in found),
    )


def _candidates(program: ConeProgram) -> tuple[np.ndarray, ...]:
    """Defined variables k, their rows i, the entry of A that holds c, and the entry of P that holds P_kk (-1: none)."""
    s = program.structure
    zero = _zero_rows(s.cones)
    uses = np.bincount(s.A_cols, minlength=s.n)
    off = s.P_rows != s.P_cols
    coupled = np.zeros(s.n, bool)
    coupled[s.P_rows[off]] = coupled[s.P_cols[off]] = True
    diagonal = np.full(s.n, -1)
    diagonal[s.P_rows[~off]] = np.flatnonzero(~off)
    good = (s.A_rows < zero) & (uses[s.A_cols] == 1) & ~coupled[s.A_cols]
    good &= ~program.A.parametric & (np.abs(program.A.constant) > 1e-3) & (np.abs(program.A.constant) < 1e3)
    entries = np.flatnonzero(good)
    # One variable per row: the one with a constant, simple P_kk; rows are sorted, so the first of each row is taken.
    _, first = np.unique(s.A_rows[entries], return_index=True)
    entries = entries[first]
    k = s.A_cols[entries]
    return k, s.A_rows[entries], entries, diagonal[k]


def _profitable(s: Structure, k: np.ndarray, i: np.ndarray, entry: np.ndarray, P_kk: np.ndarray) -> np.ndarray:
    """Indices of the candidates to substitute: always without P_kk; else where a group's fill costs no more than its rows."""
    chosen = list(np.flatnonzero(P_kk < 0))
    supports: dict[bytes, list[int]] = {}
    for j in np.flatnonzero(P_kk >= 0):
        row = s.A_cols[s.A_indptr[i[j]] : s.A_indptr[i[j] + 1]]
        supports.setdefault(row[row != k[j]].tobytes(), []).append(int(j))
    for key, members in supports.items():
        width = len(key) // s.A_cols.itemsize
        if width * (width + 1) // 2 <= len(members) * (width + 2):
            chosen += members
    return np.sort(np.array(chosen[: s.n - 1], dtype=np.intp))  # a program without variables is none


def _groups(
    row_entries: np.ndarray, row_of: np.ndarray, col_of: np.ndarray, P_kk: np.ndarray, n: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows with a quadratic term, grouped by support and stacked by size: (which k, entries of A, keys in P)."""
    by_support: dict[bytes, list[int]] = {}
    bounds = np.searchsorted(row_of, np.arange(len(P_kk) + 1))
    for j in np.flatnonzero(P_kk >= 0):
        if bounds[j] < bounds[j + 1]:
            by_support.setdefault(col_of[bounds[j] : bounds[j + 1]].tobytes(), []).append(int(j))
    by_size: dict[tuple[int, int], list[list[int]]] = {}
    for members in by_support.values():
        by_size.setdefault((len(members), int(bounds[members[0] + 1] - bounds[members[0]])), []).append(members)
    out = []
    for (_, width), groups in by_size.items():
        where = np.array(groups, dtype=np.intp)
        positions = bounds[where][:, :, None] + np.arange(width)
        cols = col_of[positions[:, 0]]
        upper = np.triu_indices(width)
        low, high = np.minimum(cols[:, upper[0]], cols[:, upper[1]]), np.maximum(cols[:, upper[0]], cols[:, upper[1]])
        out.append((where, row_entries[positions], high * n + low))
    return out


def _zero_rows(cones: Product) -> int:
    return cones.blocks[0][1] if cones.blocks and cones.blocks[0][0].name == "zero" else 0


def _without_zero_rows(cones: Product, removed: int) -> Product:
    if not removed:
        return cones
    (zero, count), *rest = cones.blocks
    return Product((*(((zero, count - removed),) if count > removed else ()), *rest))
