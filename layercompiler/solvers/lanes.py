"""The lanes engine: our compiled interior point, one instance per SIMD lane (`layercompiler.kernels`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.programs.cone import Data, Structure
from layercompiler.solvers.engine import CORES, Engine, Options, Raw, register
from layercompiler.status import Status

LARGEST_PSD = 50  # beyond it one instance at a time on LAPACK is the better shape
MAX_ITERATIONS = 100
_ROUGH = 1e-7  # measured: 1e-6 saves 5 % of the iterations, and one instance in a hundred then needs a second solve
_ROUGH_SMOOTH = (
    1e-5  # with exponential or power cones, where two Newton steps end at rounding from 1e-5 as well: a quarter of the iterations less
)


@register
class Lanes(Engine):
    """The compiled conic interior point on packs of instances; results are the same bits for any batch and any number of workers."""

    name = "lanes"
    package = "layercompiler.kernels"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    releases_gil = True
    tightest = 1e-12

    @classmethod
    def available(cls) -> bool:
        """Whether the kernels were built."""
        return kernels.available()

    @classmethod
    def accepts(cls, structure: Structure) -> bool:
        """See `Engine.accepts`; PSD cones of order above `LARGEST_PSD` are left to other engines."""
        small = all(cone.name != "psd" or cone.order <= LARGEST_PSD for cone, _ in structure.cones.blocks)
        return small and super().accepts(structure)

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        smooth = any(cone.name in ("exponential", "power") for cone, _ in structure.cones.blocks)
        self.rough = _ROUGH_SMOOTH if smooth else _ROUGH
        self.conic = kernels.Conic(
            structure.n,
            (structure.P_rows, structure.P_cols),
            (structure.A_rows, structure.A_cols),
            kernels.cone_list(structure.cones.blocks),
        )

    def solve(self, data: Data, tolerance: float, options: Options, deadline: float | None) -> Raw:
        """See `Engine.solve`."""
        return self._run(data, tolerance, options, deadline, None)

    def resume(self, data: Data, tolerance: float, options: Options, deadline: float | None, earlier: Raw) -> Raw:
        """See `Engine.resume`: the interior point goes on from where it stopped."""
        x = np.where(earlier.status[:, None] == Status.SOLVED, earlier.x, np.nan)  # a ray is no place to start from
        return self._run(data, tolerance, options, deadline, (x, earlier.y, earlier.s))

    def _run(
        self,
        data: Data,
        tolerance: float,
        options: Options,
        deadline: float | None,
        start: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    ) -> Raw:
        found = self.conic.solve(
            *(data.P, data.q, data.A, data.b),
            tol=tolerance,
            max_iter=options.max_iterations or MAX_ITERATIONS,
            time_limit=math.inf if deadline is None else max(deadline, 0.0),
            warm_start=start,
            threads=options.workers or CORES,
        )
        return Raw(found.x, found.y, found.s, found.status, found.iterations)

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        raw = self.solve(Data(*(a[None] for a in data)), tolerance, options, deadline)
        return raw.x[0], raw.y[0], raw.s[0], raw.status[0], raw.iterations[0]
