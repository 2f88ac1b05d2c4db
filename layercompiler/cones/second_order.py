"""The second-order cone {(t, z): |z| <= t}, self-dual, with a sparse expansion of its derivative.

With u = z / |z|, l = (1 + t / |z|) / 2 and e+ = (1, u) / sqrt 2 the derivative of the projection between the cone and its
negative is D = l (0 (+) (I - uu')) + e+ e+' (source: Fukushima, Luo, Tseng 2001; Busseti, Moursi, Boyd 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layercompiler.cones.base import KINK, Cone, Expansion, Projection

_HALF = np.sqrt(0.5)


@dataclass(frozen=True)
class SecondOrder(Cone):
    """A second-order cone of `dim` rows, the epigraph variable first."""

    dim: int
    name = "second_order"

    @cached_property
    def expansion(self) -> Expansion:
        """Unknowns tau_z (dim - 1), tau_a, eps: see the package's derivative notes; one extra unknown keeps A's sparsity.

        T tau = [c0 tau_a; sqrt(l) tau_z + cz tau_a]; eps enforces u'tau_z = 0.
        """
        k = self.dim - 1
        z = np.arange(k)
        T_rows = np.concatenate([[0], z + 1, z + 1])
        T_cols = np.concatenate([[k], z, np.full(k, k)])
        N_rows = np.concatenate([z, [k], z, [k + 1]])
        N_cols = np.concatenate([z, [k], np.full(k, k + 1), [k + 1]])
        return Expansion(T_rows, T_cols, N_rows, N_cols, np.concatenate([-np.ones(k + 1), [1]]).astype(np.int8))

    def project_dual(self, v: np.ndarray) -> Projection:
        """Project v (B, count, dim) onto the cone, which is its own dual.

        Differentiability: not where |z| = |t|; there, the derivative inside the cone or its negative.
        """
        return _SecondOrderProjection(v)


class _SecondOrderProjection(Projection):
    def __init__(self, v: np.ndarray) -> None:
        self.v = v
        t, z = v[..., :1], v[..., 1:]
        scale = np.abs(z).max(axis=-1, keepdims=True, initial=0.0)
        safe = np.where(scale > 0, scale, 1.0)
        length = safe * np.sqrt(np.sum((z / safe) ** 2, axis=-1, keepdims=True)) * (scale > 0)
        self.inside, self.outside = length <= t, length <= -t
        self.middle = ~(self.inside | self.outside)
        self.t, self.length = t, np.where(length > 0, length, 1.0)
        self.u = z / self.length
        half = 0.5 * (t + length)
        self.y = np.where(self.inside, v, np.where(self.outside, 0.0, np.concatenate([half, half * self.u], axis=-1)))
        self._norm = length

    @property
    def smooth(self) -> np.ndarray:
        t, norm = np.abs(self.t[..., 0]), self._norm[..., 0]
        size = np.maximum(t, norm)
        return (np.abs(norm - t) > KINK * size) & (size > KINK)

    @cached_property
    def _l(self) -> np.ndarray:
        return 0.5 * (1.0 + self.t / self.length)

    def apply(self, u: np.ndarray) -> np.ndarray:
        a, b = u[..., :1], u[..., 1:]
        along = np.sum(self.u * b, axis=-1, keepdims=True)
        both = 0.5 * (a + along)
        out = np.concatenate([both, self._l * (b - along * self.u) + both * self.u], axis=-1)
        return np.where(self.inside, u, np.where(self.outside, 0.0, out))

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Differentiate D along w: du = (w_z - u u'w_z) / |z|, dl = (w_t - (t/|z|) u'w_z) / (2 |z|)."""
        a, b = u[..., :1], u[..., 1:]
        w_t, w_z = w[..., :1], w[..., 1:]
        n, e = self.length, self.u
        radial = np.sum(e * w_z, axis=-1, keepdims=True)
        de = (w_z - radial * e) / n
        dl = 0.5 * (w_t - self.t / n * radial) / n
        along, dalong = np.sum(e * b, axis=-1, keepdims=True), np.sum(de * b, axis=-1, keepdims=True)
        both, dboth = 0.5 * (a + along), 0.5 * dalong
        lower = dl * (b - along * e) - self._l * (dalong * e + along * de) + dboth * e + both * de
        return np.where(self.middle, np.concatenate([dboth, lower], axis=-1), 0.0)

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        k = self.v.shape[-1] - 1
        inside, middle = self.inside, self.middle
        root = np.where(inside, 1.0, np.where(middle, np.sqrt(np.maximum(self._l, 0.0)), 0.0))
        c0 = np.where(inside, 1.0, np.where(middle, _HALF, 0.0))
        cz = np.where(middle, _HALF * self.u, 0.0)
        wide = np.broadcast_to(root, (*root.shape[:-1], k))
        T = np.concatenate([c0, wide, cz], axis=-1)
        tau = np.broadcast_to(np.where(inside, 0.0, np.where(middle, self._l - 1.0, -1.0)), wide.shape)
        alpha = np.where(self.outside & ~inside, -1.0, 0.0)
        coupling = np.where(middle, self.u, 0.0)
        N = np.concatenate([tau, alpha, coupling, np.where(middle, 0.0, 1.0)], axis=-1)
        return T, N
