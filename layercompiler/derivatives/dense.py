"""The residual map of linear and quadratic programs on the dense kernels, whose forward pass leaves the factors behind."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import Point, ResidualMap
from layercompiler.derivatives.system import Linearization
from layercompiler.kernels import DenseFactors
from layercompiler.programs.cone import Data, Structure

if TYPE_CHECKING:
    from layercompiler.solvers.dense_qp import DenseEngine

SINGULAR = 1e-8


class DenseMap(ResidualMap):
    """`ResidualMap` of zero and nonnegative cones; the kernel equilibrates for itself, so data are taken as they are."""

    def __init__(self, structure: Structure, samples: Data, engine: DenseEngine) -> None:
        super().__init__(structure, samples)
        self.engine = engine
        self.equilibrate = None

    @property
    def order(self) -> int:
        """Order of the linear system."""
        return self.structure.n + self.structure.m

    @property
    def flops(self) -> float:
        """Operations of one solution."""
        return self.engine.kernel.flops

    @property
    def describe(self) -> str:
        """Name of the linear solve."""
        return "factors of the dense kernel's last solve, refined on the data"

    def linearize(self, data: Data, point: Point, threads: int = 1) -> Any:
        """Factor the linear system at a point."""
        found = self.engine.run(data, threads, start=(point.x, point.v), factor_only=True)
        return DenseLinearization(self, data, point, found.factors, found.reach, threads)

    def refine(
        self, data: Data, products: Products, x: np.ndarray, v: np.ndarray, steps: int, threads: int = 1
    ) -> tuple[Point, np.ndarray, Any]:
        """Evaluate: the kernel has refined already."""
        return self.point(data, products, x, v), np.zeros(len(x), int), None


@dataclass(frozen=True)
class DenseLinearization:
    """The kernel's factors with the interface of `layercompiler.derivatives.system.Linearization`."""

    map: DenseMap
    data: Data
    point: Point
    factors: DenseFactors
    reach: np.ndarray
    threads: int

    def solve(self, r_x: np.ndarray, h: np.ndarray, refine: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Linearization.solve`."""
        u, t, residual = self.factors.solve(r_x, h, threads=self.threads)
        lost = ~(np.isfinite(r_x).all(axis=1) & np.isfinite(h).all(axis=1))
        if lost.any():  # the kernel's refinement keeps what it had where nothing gets better
            u[lost], t[lost] = np.nan, np.nan
        return u, t, residual

    def route(self) -> tuple[int, ...]:
        """See `LanesLinearization.route`."""
        operands = self.factors.operands
        return 1, self.factors._handle or 0, ctypes.addressof(operands.values), ctypes.addressof(operands.strides)

    def singular(self) -> np.ndarray:
        """See `Linearization.singular`."""
        return ~(self.reach <= SINGULAR)

    def solve_least_squares(self, i: int, r_x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Linearization.solve_least_squares`."""
        one = np.array([i])
        plain: Linearization = ResidualMap.linearize(self.map, self.data.take(one), self.point.take(one))
        return plain.solve_least_squares(0, r_x, h)
