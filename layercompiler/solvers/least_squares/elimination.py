"""Schur complements: unknowns whose part of the matrix is block diagonal (the points of a bundle adjustment) are eliminated first.

    [ B  E' ] [x]   [r]        S x = r - E' C^-1 c,    S = B - E' C^-1 E,
    [ E  C  ] [y] = [c]        C y = c - E x

C is a block for each element, so its factors are small ones of all elements at once, and elements that see the same columns of B
(points seen by the same cameras) are added to S by one product of matrices.

Source: Triggs, McLauchlan, Hartley, Fitzgibbon 2000, "Bundle adjustment: a modern synthesis", section 6.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_solve

from layercompiler.errors import OptionError
from layercompiler.solvers.least_squares.linear import Factor, Normal
from layercompiler.solvers.least_squares.structure import Structure


def elements(structure: Structure) -> np.ndarray:
    """(n,) number of the element that each free column belongs to, counted through all variables."""
    parts, start = [], 0
    for v in structure.program.variables:
        parts.append(start + np.repeat(np.arange(v.elements), v.manifold.dof))
        start += v.elements
    return np.concatenate(parts)[structure.free] if parts else np.zeros(0, int)


def separable(structure: Structure) -> list[str]:
    """Names of variables that can be eliminated together, the longest first: no entry joins two of their elements."""
    owner, element = _owners(structure), elements(structure)
    a, b = owner[structure.rows], owner[structure.cols]
    apart = element[structure.rows] != element[structure.cols]
    joined = set(zip(a[apart].tolist(), b[apart].tolist(), strict=True))
    order = np.argsort([-int((owner == k).sum()) for k in range(len(structure.program.variables))], kind="stable")
    chosen: list[int] = []
    for k in order.tolist():
        several = len(np.unique(element[owner == k])) > 1
        if several and all((k, j) not in joined and (j, k) not in joined for j in (*chosen, k)):
            chosen.append(k)
    return [structure.program.variable_names[k] for k in chosen]


def _owners(structure: Structure) -> np.ndarray:
    parts = [np.full(v.dof, k) for k, v in enumerate(structure.program.variables)]
    return np.concatenate(parts)[structure.free] if parts else np.zeros(0, int)


class Schur(Normal):
    """Elimination of the variables named, or of all that can be.

    Args:
        structure: Of the program.
        names: Variables to eliminate; None for all that `separable` finds.

    Raises:
        OptionError: A variable is unknown, or entries join its elements.
    """

    name = "schur"

    def __init__(self, structure: Structure, names: tuple[str, ...] | None = None) -> None:
        found = separable(structure)
        if names is not None and not set(names) <= set(found):
            raise OptionError(
                "a variable cannot be eliminated: factors join its elements, or it is a single one",
                where=", ".join(sorted(set(names) - set(found))),
                expected=f"some of {found}",
                mend="eliminate the variable of which every factor reads one element (the points of a bundle adjustment)",
            )
        names = tuple(found) if names is None else names
        if not names:
            raise OptionError("there is no variable to eliminate", where="linear='schur'", expected="one with elements no factor joins")
        self.structure, n = structure, structure.n
        position = [structure.program.variable_names.index(name) for name in names]
        gone = np.isin(_owners(structure), position)
        self.kept, self.gone = np.flatnonzero(~gone), np.flatnonzero(gone)
        local = np.empty(n, int)
        local[self.kept], local[self.gone] = np.arange(len(self.kept)), np.arange(len(self.gone))
        rows, cols = structure.rows, structure.cols
        both, none = ~gone[rows] & ~gone[cols], gone[rows] & gone[cols]
        self.inner = np.flatnonzero(both), local[rows[both]], local[cols[both]]
        element = elements(structure)
        self.groups = _groups(structure, element, gone, local, np.flatnonzero(none), np.flatnonzero(~both & ~none))

    def factor(self, entries: np.ndarray, diagonal: np.ndarray) -> Factor:
        """See `Normal.factor`."""
        return _SchurFactor(self, entries, diagonal)


class _Group:
    """Eliminated elements of one size that see the same kept columns.

    Attributes:
        columns: (count, d) their columns among the eliminated.
        sees: (k,) kept columns.
        own: (entries, element, i, j) arrays of the places in C; both triangles.
        cross: (entries, element, i, column) arrays of the places in E.
    """

    def __init__(self, columns: np.ndarray, sees: np.ndarray, own: Any, cross: Any) -> None:
        self.columns, self.sees, self.own, self.cross = columns, sees, own, cross


def _groups(
    structure: Structure, element: np.ndarray, gone: np.ndarray, local: np.ndarray, own: np.ndarray, cross: np.ndarray
) -> list[_Group]:
    rows, cols = structure.rows, structure.cols
    mine: dict[int, list[int]] = {}
    for c in np.flatnonzero(gone).tolist():
        mine.setdefault(int(element[c]), []).append(c)
    inside: dict[int, list[int]] = {}
    for k, e in zip(own.tolist(), element[rows[own]].tolist(), strict=True):
        inside.setdefault(e, []).append(k)
    across: dict[int, list[tuple[int, int, int]]] = {}
    for k in cross.tolist():
        r, c = int(rows[k]), int(cols[k])
        r, c = (r, c) if gone[r] else (c, r)
        across.setdefault(int(element[r]), []).append((k, r, int(local[c])))
    alike: dict[Any, list[int]] = {}
    for e in mine:
        sees = tuple(sorted({c for _, _, c in across.get(e, ())}))
        alike.setdefault((len(mine[e]), sees), []).append(e)
    out = []
    for (_, sees), members in alike.items():
        at = {c: i for i, c in enumerate(sees)}
        place = {c: i for e in members for i, c in enumerate(mine[e])}
        first = [(k, g, place[int(rows[k])], place[int(cols[k])]) for g, e in enumerate(members) for k in inside.get(e, ())]
        first += [(k, g, j, i) for k, g, i, j in first if i != j]
        second = [(k, g, place[r], at[c]) for g, e in enumerate(members) for k, r, c in across.get(e, ())]
        columns = np.array([[local[c] for c in mine[e]] for e in members])
        out.append(_Group(columns, np.array(sees, int), *(np.array(x, int).reshape(-1, 4).T for x in (first, second))))
    return out


class _SchurFactor(Factor):
    def __init__(self, normal: Schur, entries: np.ndarray, diagonal: np.ndarray) -> None:
        s = self.structure = normal.structure
        self.normal = normal
        self.entries, self.diagonal = entries, diagonal
        B, m = len(entries), len(normal.kept)
        d = np.array(diagonal)
        on = np.flatnonzero(s.rows == s.cols)
        d[:, s.rows[on]] += entries[:, on]
        self.scale = 1 / np.sqrt(np.where((d > 0) & np.isfinite(d), d, 1.0))
        v = entries * self.scale[:, s.rows] * self.scale[:, s.cols]
        extra = diagonal * self.scale**2
        S = np.zeros((B, m, m))
        places, i, j = normal.inner
        S[:, i, j] = v[:, places]
        S[:, j, i] = v[:, places]
        S[:, np.arange(m), np.arange(m)] += extra[:, normal.kept]
        self.parts, pivots = [], np.full(B, np.inf)
        for g in normal.groups:
            count, width = g.columns.shape
            C = np.zeros((B, count, width, width))
            C[:, g.own[1], g.own[2], g.own[3]] = v[:, g.own[0]]
            C[:, :, np.arange(width), np.arange(width)] += extra[:, normal.gone][:, g.columns]
            E = np.zeros((B, count, width, len(g.sees)))
            E[:, g.cross[1], g.cross[2], g.cross[3]] = v[:, g.cross[0]]
            L, smallest = cholesky(C)
            W = forward(L, E)
            flat = W.reshape(B, count * width, len(g.sees))
            S[:, g.sees[:, None], g.sees] -= np.swapaxes(flat, 1, 2) @ flat
            self.parts.append((g, L, W))
            pivots = np.minimum(pivots, np.where(np.isfinite(smallest), smallest, -1).reshape(B, -1).min(axis=1, initial=np.inf))
        self.chol = []
        for b in range(B):
            try:
                self.chol.append(np.linalg.cholesky(S[b]))
                pivots[b] = min(pivots[b], (np.diag(self.chol[b]) ** 2).min(initial=np.inf))
            except np.linalg.LinAlgError:
                self.chol.append(None)
                pivots[b] = -1.0
        self.pivots = pivots

    def solve(self, rhs: np.ndarray, refine: int = 0) -> np.ndarray:
        x = self._once(rhs)
        for _ in range(refine):
            x = x + self._once(rhs - self._product(x))
        return x

    def _product(self, x: np.ndarray) -> np.ndarray:
        s, out = self.structure, np.empty_like(x)
        for b, v in enumerate(self.entries):
            upper = sp.csr_matrix((v, (s.rows, s.cols)), (s.n, s.n))
            out[b] = upper @ x[b] + upper.T @ x[b] - upper.diagonal() * x[b] + self.diagonal[b] * x[b]
        return out

    def _once(self, rhs: np.ndarray) -> np.ndarray:
        n, r = self.normal, rhs * self.scale
        top, low = r[:, n.kept], r[:, n.gone]
        lowered = []
        for g, L, W in self.parts:
            c = forward(L, low[:, g.columns][..., None])
            lowered.append(c)
            top[:, g.sees] -= np.einsum("bpik,bpi->bk", W, c[..., 0])
        x = np.stack(
            [
                np.full(len(t), np.nan) if L is None else cho_solve((L, True), t, check_finite=False)
                for L, t in zip(self.chol, top, strict=True)
            ]
        )
        y = np.empty_like(low)
        for (g, L, W), c in zip(self.parts, lowered, strict=True):
            y[:, g.columns] = backward(L, c - np.einsum("bpik,bk->bpi", W, x[:, g.sees])[..., None])[..., 0]
        out = np.empty_like(rhs)
        out[:, n.kept], out[:, n.gone] = x, y
        return out * self.scale


def cholesky(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of many small matrices (..., d, d) and their smallest pivots; NaN where a matrix is not definite."""
    d = A.shape[-1]
    L, smallest = np.zeros_like(A), np.full(A.shape[:-2], np.inf)
    with np.errstate(all="ignore"):
        for j in range(d):
            column = A[..., j:, j] - np.einsum("...ik,...k->...i", L[..., j:, :j], L[..., j, :j])
            pivot = column[..., 0]
            smallest = np.minimum(smallest, pivot)
            L[..., j:, j] = column / np.sqrt(np.where(pivot > 0, pivot, np.nan))[..., None]
    return L, smallest


def forward(L: np.ndarray, b: np.ndarray) -> np.ndarray:
    """L^-1 b for many small triangles (..., d, d) and b (..., d, k)."""
    x = np.array(b)
    for i in range(L.shape[-1]):
        if i:
            x[..., i, :] -= np.einsum("...j,...jk->...k", L[..., i, :i], x[..., :i, :])
        x[..., i, :] /= L[..., i, i, None]
    return x


def backward(L: np.ndarray, b: np.ndarray) -> np.ndarray:
    """L'^-1 b, as `forward`."""
    x = np.array(b)
    for i in reversed(range(L.shape[-1])):
        x[..., i, :] -= np.einsum("...j,...jk->...k", L[..., i + 1 :, i], x[..., i + 1 :, :])
        x[..., i, :] /= L[..., i, i, None]
    return x
