"""The cone of positive semidefinite matrices in svec coordinates: column-major lower triangle, off-diagonals times sqrt 2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from layercompiler.cones.base import KINK, Cone, Expansion, Projection, dense_expansion


@dataclass(frozen=True)
class PSD(Cone):
    """Positive semidefinite matrices of an order; dim = order (order + 1) / 2."""

    order: int
    name = "psd"

    @cached_property
    def dim(self) -> int:  # type: ignore[override]
        """Rows of one cone."""
        return self.order * (self.order + 1) // 2

    @cached_property
    def expansion(self) -> Expansion:
        """T = U sqrt(beta) dense, N = -(1 - beta)."""
        return dense_expansion(self.dim)

    def project_dual(self, v: np.ndarray) -> Projection:
        """Clip the eigenvalues of v (B, count, dim); the cone is self-dual.

        Differentiability: not where an eigenvalue is 0; there, the derivative with that eigenvalue negative.
        Cost: O(order^3) per cone for the projection, `apply` and `second`; O(order^4) time and memory for `expansion_values`.
        """
        return _PSDProjection(v, self.order)


class _PSDProjection(Projection):
    """Clipped eigenvalues; with R_ij = 1 / (|w_i| + |w_j|) for eigenvalues of opposite signs and 0 for others.

    First divided differences of max(w, 0) are the eigenvalues `beta` of the derivative in the basis `Q`; the second ones are
    f[i, l, j] = |w_i| R_il R_ij + |w_l| R_il R_lj + |w_j| R_ij R_lj, of which at most one term is not zero: the one whose first
    index has the sign that the other two lack. No difference of equal eigenvalues is ever formed.
    Source: Daleckii, Krein 1965; Malick, Sendov 2006 (the projection).
    """

    def __init__(self, v: np.ndarray, order: int) -> None:
        self.v, self.order = v, order
        M = matrix(v, order)
        finite = np.isfinite(v).all(axis=-1)
        sound = finite.all()
        if not sound:
            M[~finite] = 0.0
        self.w, self.Q = np.linalg.eigh(M)
        # The side with fewer eigenvalues is formed, the other follows by Moreau: a point of the cone stays exactly as it is.
        up = self.w > 0
        mostly = 2 * up.sum(axis=-1, keepdims=True) > order
        side = np.abs(self.w) * (up != mostly)
        y = vector(np.matmul(self.Q * side[..., None, :], self.Q.swapaxes(-1, -2)), order)
        y += np.where(mostly, v, 0.0)
        if not sound:
            y[~finite] = np.nan
        self.y = y

    @property
    def smooth(self) -> np.ndarray:
        size = np.abs(self.w)
        largest = size.max(axis=-1, initial=0.0)
        return (size.min(axis=-1, initial=np.inf) > KINK * largest) & (largest > KINK) & np.isfinite(self.y[..., 0])

    @cached_property
    def _opposite(self) -> np.ndarray:
        """(..., k, k), R of the class."""
        size, up = np.abs(self.w), self.w > 0
        differ = up[..., :, None] != up[..., None, :]
        total = size[..., :, None] + size[..., None, :]
        return differ / np.where(differ, total, 1.0)

    @cached_property
    def beta(self) -> np.ndarray:
        """(B, count, dim) eigenvalues of the derivative in svec order."""
        rows, cols, _ = index(self.order)
        positive = np.maximum(self.w, 0.0)
        same = self.w[..., rows] > 0
        mixed = np.maximum(positive[..., rows], positive[..., cols]) * self._opposite[..., rows, cols]
        return np.where(same == (self.w[..., cols] > 0), same, mixed)

    def rotate(self, u: np.ndarray) -> np.ndarray:
        """svec(Q'MQ) of svec(M)."""
        return vector(self.Q.swapaxes(-1, -2) @ matrix(u, self.order) @ self.Q, self.order)

    def unrotate(self, u: np.ndarray) -> np.ndarray:
        """svec(QMQ') of svec(M)."""
        return vector(self.Q @ matrix(u, self.order) @ self.Q.swapaxes(-1, -2), self.order)

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self.unrotate(self.beta * self.rotate(u))

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Sum over l of f[i, l, j] (A_il B_lj + B_il A_lj) in the basis Q, as six products of matrices."""
        A, B = matrix(self.rotate(u), self.order), matrix(self.rotate(w), self.order)
        R, size = self._opposite, np.abs(self.w)
        RA, RB = R * A, R * B
        C = R * (size[..., :, None] * (RA @ B + RB @ A)) + (RA * size[..., None, :]) @ RB
        return self.unrotate(vector(C + C.swapaxes(-1, -2), self.order))

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        """U_pq = (Q_ia Q_jb + Q_ib Q_ja) weight_p weight_q / 2 for svec indices p = (i, j) and q = (a, b)."""
        rows, cols, weights = index(self.order)
        left, right = self.Q[..., rows, :], self.Q[..., cols, :]
        T = left[..., rows] * right[..., cols]
        T += left[..., cols] * right[..., rows]
        T *= (0.5 * weights)[:, None]
        T *= (weights * np.sqrt(self.beta))[..., None, :]
        return T.reshape(*T.shape[:-2], len(weights) ** 2), self.beta - 1.0


@lru_cache(maxsize=128)
def index(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, cols, weights) of svec: entries row >= col by column, sqrt 2 off the diagonal."""
    cols, rows = np.triu_indices(order)
    return rows, cols, np.where(rows == cols, 1.0, np.sqrt(2.0))


def matrix(u: np.ndarray, order: int) -> np.ndarray:
    """Symmetric matrices (..., order, order) of svec vectors (..., dim)."""
    rows, cols, weights = index(order)
    M = np.empty((*u.shape[:-1], order, order))
    M[..., rows, cols] = M[..., cols, rows] = u / weights
    return M


def vector(M: np.ndarray, order: int) -> np.ndarray:
    """svec of symmetric matrices."""
    rows, cols, weights = index(order)
    return M[..., rows, cols] * weights
