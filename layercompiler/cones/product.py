"""The product of cones, with the interface of a cone: the solver never loops over cones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from layercompiler.cones.base import Cone, Projection


@dataclass(frozen=True)
class Product:
    """Consecutive blocks of equal cones, in the standard order.

    Attributes:
        blocks: (cone, count) pairs.
    """

    blocks: tuple[tuple[Cone, int], ...]

    @cached_property
    def m(self) -> int:
        """Number of rows."""
        return sum(cone.dim * count for cone, count in self.blocks)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Row range of each block."""
        ends = np.cumsum([0] + [cone.dim * count for cone, count in self.blocks])
        return tuple(slice(int(a), int(b)) for a, b in pairwise(ends))

    def split(self, v: np.ndarray) -> list[np.ndarray]:
        """(..., m) to one (..., count, dim) per block."""
        return [v[..., s].reshape(*v.shape[:-1], count, cone.dim) for s, (cone, count) in zip(self.slices, self.blocks, strict=True)]

    def join(self, parts: list[np.ndarray], batch: int) -> np.ndarray:
        """The inverse of `split`."""
        flat = [p.reshape(*p.shape[:-2], s.stop - s.start) for p, s in zip(parts, self.slices, strict=True)]
        return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1) if flat else np.zeros((batch, 0))

    def project_dual(self, v: np.ndarray) -> ProductProjection:
        """Project (B, m) onto K*."""
        return ProductProjection(self, v, [cone.project_dual(p) for (cone, _), p in zip(self.blocks, self.split(v), strict=True)])

    def dual_violation(self, y: np.ndarray) -> np.ndarray:
        """(B,) largest entry of y - Proj_{K*}(y)."""
        return np.abs(y - self.project_dual(y).y).max(axis=1, initial=0.0)

    def primal_violation(self, s: np.ndarray) -> np.ndarray:
        """(B,) largest entry of s - Proj_K(s), which is Proj_{K*}(-s) by Moreau."""
        return np.abs(self.project_dual(-s).y).max(axis=1, initial=0.0)


class ProductProjection:
    """The projections of all blocks at v (B, m)."""

    def __init__(self, product: Product, v: np.ndarray, parts: list[Projection]) -> None:
        self.product, self.v, self.parts = product, v, parts
        self.y = product.join([p.y for p in parts], len(v))

    @property
    def smooth(self) -> np.ndarray:
        """(B,) bool: no block sits at a kink."""
        out = np.ones(len(self.v), bool)
        for part in self.parts:
            out &= part.smooth.all(axis=1)
        return out

    def apply(self, u: np.ndarray) -> np.ndarray:
        """D u for u (..., B, m)."""
        return self.product.join([p.apply(x) for p, x in zip(self.parts, self.product.split(u), strict=True)], len(u))

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """D^2 Proj[u, w] for u and w (..., B, m)."""
        parts = zip(self.parts, self.product.split(u), self.product.split(w), strict=True)
        return self.product.join([p.second(a, b) for p, a, b in parts], len(u))

    def take(self, index: np.ndarray) -> ProductProjection:
        """The instances `index`."""
        return self.product.project_dual(self.v[index])

    def put(self, index: np.ndarray, other: ProductProjection) -> ProductProjection:
        """This batch with the instances `index` replaced."""
        v = self.v.copy()
        v[index] = other.v
        return self.product.project_dual(v)
