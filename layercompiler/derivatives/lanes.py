"""The residual map on SIMD lanes: evaluation, refinement and linearisation in one compiled pass per pack of instances.

The kernel repeats what `residual_map` and `system` state in arrays, which serve where it was not built and for PSD cones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import TARGET, Point, ResidualMap
from layercompiler.derivatives.system import Linearization
from layercompiler.programs.cone import Data, Structure


def residual_map(structure: Structure, samples: Data) -> ResidualMap:
    """The residual map of a structure: compiled where the kernels were built and handle every cone."""
    if kernels.available() and all(cone.name in _HANDLED for cone, _ in structure.cones.blocks):
        return LanesMap(structure, samples)
    plain = ResidualMap(structure, samples)
    plain.prepare()
    return plain


_HANDLED = ("zero", "nonnegative", "second_order", "exponential", "power")


class LanesMap(ResidualMap):
    """`ResidualMap` with one instance per SIMD lane; results are the same bits for any batch and any number of threads."""

    def __init__(self, structure: Structure, samples: Data) -> None:
        super().__init__(structure, samples)
        cones = kernels.cone_list(structure.cones.blocks)
        self.newton = kernels.Newton(structure.n, (structure.P_rows, structure.P_cols), (structure.A_rows, structure.A_cols), cones)

    @property
    def order(self) -> int:
        """Order of the linear system."""
        return self.newton.order

    @property
    def flops(self) -> float:
        """Operations of one factorisation."""
        return float(self.newton.flops)

    @property
    def describe(self) -> str:
        """Name of the linear solve."""
        return f"lanes factorization ({self.newton.factor_nnz} entries, {self.newton.flops} flops), fused with the refinement"

    def linearize(self, data: Data, point: Point, threads: int = 1) -> Any:
        """Factor the linear system at a point."""
        return self._run(data, point.x, point.v, 0, threads)[2]

    def refine(
        self, data: Data, products: Products, x: np.ndarray, v: np.ndarray, steps: int, threads: int = 1
    ) -> tuple[Point, np.ndarray, Any]:
        """See `ResidualMap.refine`; the linearisation is always that of the returned points."""
        return self._run(data, x, v, steps, threads)

    def _run(self, data: Data, x: np.ndarray, v: np.ndarray, steps: int, threads: int) -> tuple[Point, np.ndarray, Any]:
        found = self.newton.refine(data.P, data.q, data.A, data.b, x, v, steps=steps, target=TARGET, threads=threads)
        point = Point(self.structure.cones, found.x, found.v, found.y, found.F_x, found.F_y, found.norm)
        return point, found.taken, LanesLinearization(self, data, point, found.linear, threads)


@dataclass(frozen=True)
class LanesLinearization:
    """The kernel's linearisation with the interface of `layercompiler.derivatives.system.Linearization`."""

    map: LanesMap
    data: Data
    point: Point
    kernel: Any
    threads: int

    def solve(self, r_x: np.ndarray, h: np.ndarray, refine: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Linearization.solve`."""
        return self.kernel.solve(r_x, h, refine=refine, threads=self.threads)

    def singular(self) -> np.ndarray:
        """See `Linearization.singular`."""
        return ~(self.kernel.reach <= 1e-8)

    def solve_least_squares(self, i: int, r_x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Linearization.solve_least_squares`."""
        one = np.array([i])
        plain: Linearization = ResidualMap.linearize(self.map, self.data.take(one), self.point.take(one))
        return plain.solve_least_squares(0, r_x, h)
