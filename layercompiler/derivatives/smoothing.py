"""The barrier-smoothed problem: where -mu sum log s_i stands in for s >= 0, solutions are smooth functions of the data.

Its optimality conditions are those of the problem with s_i y_i = mu in place of complementarity. With v = y - s that is the residual
map with y = (v + sqrt(v^2 + 4 mu)) / 2 in place of max(v, 0), so the cone that projects so is all that changes: Newton refines,
and the linear system differentiates, to second order too.

Source: Chen, Harker 1993; Kanzow 1996 (the smoothing function); Busseti, Moursi, Boyd 2019 (the residual map).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from layercompiler.cones import Nonnegative, Product
from layercompiler.cones.base import Projection
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import Point, ResidualMap
from layercompiler.derivatives.system import Linearization
from layercompiler.errors import DerivativeError
from layercompiler.programs.cone import Data, Structure

_GOOD = 1e-9  # relative residual of a center that derivatives may stand on
_STEPS = 30


@dataclass(frozen=True)
class Barrier(Nonnegative):
    """One inequality row with the barrier -mu log s.

    Attributes:
        mu: s y at every point, positive.
    """

    mu: float = 1.0
    name = "barrier"

    def project_dual(self, v: np.ndarray) -> Projection:
        """y > 0 with y - mu / y = v."""
        return _BarrierProjection(v, self.mu)


class _BarrierProjection(Projection):
    def __init__(self, v: np.ndarray, mu: float) -> None:
        self.v, self.mu, self.root = v, mu, np.hypot(v, 2 * np.sqrt(mu))
        large = 0.5 * (np.abs(v) + self.root)  # the other of y and s is mu over it, without cancellation
        self.y, s = np.where(v > 0, large, mu / large), np.where(v > 0, mu / large, large)
        self.slope, self.rest = self.y / self.root, s / self.root

    @property
    def smooth(self) -> np.ndarray:
        return np.ones(self.v.shape[:-1], bool)

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self.slope * u

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        return 2 * self.mu / self.root**3 * u * w

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        return np.sqrt(self.slope), -self.rest


class SmoothedMap(ResidualMap):
    """`ResidualMap` of linear cones with a barrier in place of every inequality.

    Args:
        structure: The pattern; zero and nonnegative cones.
        samples: See `ResidualMap`.
        mu: Weight of the barrier.
    """

    def __init__(self, structure: Structure, samples: Data, mu: float) -> None:
        super().__init__(_smoothed(structure, mu), samples)
        self.mu = mu

    def _at(self, mu: float) -> SmoothedMap:
        """The same with another weight; the symbolic work is shared."""
        self.prepare()
        other = copy.copy(self)
        other.structure, other.mu = _smoothed(self.structure, mu), mu
        return other

    def center(self, data: Data, x: np.ndarray, v: np.ndarray, bad: np.ndarray) -> tuple[Point, Linearization]:
        """The point of the barrier problem by Newton's method from solutions (x, v), with its linear system.

        Where it does not get there at once it comes by centers of larger mu, which are easier to reach.

        Raises:
            DerivativeError: It did not get there, for an instance that is not in `bad`.
        """
        with np.errstate(all="ignore"):
            products = Products.of(self.structure, data)
            point = self.refine(data, products, x, v, _STEPS)[0]
            open_ = np.setdiff1d(np.flatnonzero(~(point.norm <= _GOOD)), bad)
            if len(open_):
                part, bound = data.take(open_), products.take(open_)
                a, b = np.zeros_like(x[open_]), np.zeros_like(v[open_])
                size = 1 + np.abs(part.b).max(initial=0.0) + np.abs(part.q).max(initial=0.0)
                start = max(float(np.ceil(np.log10(size / self.mu))), 0.0)
                for exponent in np.arange(start, -0.5, -0.5):
                    found = self._at(self.mu * 10**exponent).refine(part, bound, a, b, _STEPS)[0]
                    a, b = found.x, found.v
                point = point.put(open_, self.point(part, bound, a, b))
                open_ = np.setdiff1d(np.flatnonzero(~(point.norm <= _GOOD)), bad)
            if len(open_):
                raise DerivativeError(
                    "the barrier-smoothed problem was not solved",
                    where=f"instances {open_[:8].tolist()}, mu = {self.mu:g}",
                    expected=f"relative residual <= {_GOOD:g}",
                    got=f"{point.norm[open_].max():.1e}",
                    mend="no inequality may hold with equality everywhere, and a larger mu is easier",
                )
            return point, self.linearize(data, point)


def _smoothed(structure: Structure, mu: float) -> Structure:
    blocks = tuple((cone if cone.name == "zero" else Barrier(mu=mu), count) for cone, count in structure.cones.blocks)
    return replace(structure, cones=Product(blocks))
