"""The residual map on SIMD lanes: evaluation, refinement and linearisation in one compiled pass per pack of instances.

The kernel repeats what `residual_map` and `system` state in arrays, which serve where it was not built or a PSD system is too large.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.cones import Cone
from layercompiler.derivatives import rotation
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import TARGET, Point, ResidualMap
from layercompiler.derivatives.system import Linearization
from layercompiler.errors import BuildError
from layercompiler.programs.cone import Data, Structure

_LARGEST_PSD = 60  # beyond it LAPACK's eigenvectors are worth leaving the lanes


def residual_map(structure: Structure, samples: Data) -> ResidualMap:
    """The residual map of a structure: compiled where the kernels were built, handle every cone, and the system is not too large."""
    if kernels.available() and all(_handled(cone) for cone, _ in structure.cones.blocks):
        with suppress(BuildError):
            return LanesMap(structure, samples)
    plain = ResidualMap(structure, samples)
    plain.prepare()
    return plain


def _handled(cone: Cone) -> bool:
    if cone.name == "psd":
        return cone.order <= _LARGEST_PSD
    return cone.name in ("zero", "nonnegative", "second_order", "exponential", "power")


def _turns(structure: Structure, samples: Data) -> list[int]:
    """Indices, among the PSD cones, of those whose variables turn."""
    groups = {block.group for block in rotation.turning(structure, samples)}
    out, at = [], 0
    for g, (cone, count) in enumerate(structure.cones.blocks):
        if cone.name == "psd":
            out += range(at, at + count) if g in groups else ()
            at += count
    return out


class LanesMap(ResidualMap):
    """`ResidualMap` with one instance per SIMD lane; results are the same bits for any batch and any number of threads."""

    def __init__(self, structure: Structure, samples: Data) -> None:
        super().__init__(structure, samples)
        cones = kernels.cone_list(structure.cones.blocks)
        P, A = (structure.P_rows, structure.P_cols), (structure.A_rows, structure.A_cols)
        self.newton = kernels.Newton(structure.n, P, A, cones, turns=_turns(structure, samples))
        if self.newton.turned > rotation.LARGEST:
            raise BuildError(
                "the system in the coordinates of the eigenvectors is too large", where="LanesMap", got=str(self.newton.turned)
            )

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
        """Name of the linear solve, and the blocks treated in their eigenbasis."""
        groups = sum(cone.name == "psd" for cone, _ in self.structure.cones.blocks)
        turned = f", {groups} PSD groups in their eigenbasis" if groups else ""
        return f"lanes factorization ({self.newton.factor_nnz} entries, {self.newton.flops} flops{turned}), fused with the refinement"

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
        point = Point(self.structure.cones, found.x, found.v, found.y, found.F_x, found.F_y, found.norm, found.suspect)
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

    def route(self) -> tuple[int, ...]:
        """What the kernels' adjoint route takes: whether the factors are dense, their handle, and the operands of dense ones."""
        return 0, self.kernel.handle, 0, 0

    def singular(self) -> np.ndarray:
        """See `Linearization.singular`."""
        return ~(self.kernel.reach <= 1e-8)

    def solve_least_squares(self, i: int, r_x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Linearization.solve_least_squares`."""
        one = np.array([i])
        plain: Linearization = ResidualMap.linearize(self.map, self.data.take(one), self.point.take(one))
        return plain.solve_least_squares(0, r_x, h)
