"""The array interior point as an engine: numpy only, for dense programs, where there is no compiler."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler.programs.cone import Data, Structure
from layercompiler.solvers.engine import Engine, Options, Raw, register
from layercompiler.solvers.interior_point.program import Program
from layercompiler.solvers.interior_point.solution import Settings, solve
from layercompiler.solvers.interior_point.symmetric import Symmetric
from layercompiler.status import Status

LARGEST = 3000  # variables and rows together: everything is dense
_CHUNK = 2_000_000  # numbers of a working set


@register
class InteriorPoint(Engine):
    """Batched interior point on dense arrays, without compiled code of ours."""

    name = "interior_point"
    cones = frozenset({"zero", "nonnegative", "second_order"})
    tightest = 1e-12

    @classmethod
    def accepts(cls, structure: Structure) -> bool:
        """See `Engine.accepts`; programs that are too large to be dense are left to other engines."""
        return structure.n + structure.m <= LARGEST and super().accepts(structure) and Symmetric.of(structure.cones) is not None

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        found = Symmetric.of(structure.cones)
        assert found is not None
        self.equalities, self.cone = found
        on_diagonal = structure.P_rows[structure.P_rows == structure.P_cols]
        self.definite = len(np.unique(on_diagonal)) == structure.n

    def solve(self, data: Data, tolerance: float, options: Options, deadline: float | None) -> Raw:
        """See `Engine.solve`."""
        n, m, k, B = self.structure.n, self.structure.m, self.equalities, data.batch
        settings = Settings(self.definite, tolerance=options.tolerance, limit=options.max_iterations)
        x, y, s = np.full((B, n), np.nan), np.full((B, m), np.nan), np.full((B, m), np.nan)
        status, iterations = np.full(B, Status.TIME_LIMIT, np.int8), np.zeros(B, int)
        end = None if deadline is None else time.perf_counter() + deadline
        size = max(1, _CHUNK // max((n + m) ** 2, 1))
        for at in range(0, B, size):
            if end is not None and time.perf_counter() > end:
                break
            rows = np.arange(at, min(at + size, B))
            with np.errstate(all="ignore"):
                found = solve(self._program(data.take(rows)), settings)
                z = self.cone.project(arrays.get("numpy"), found.point.v)
            x[rows], y[rows, :k], y[rows, k:] = found.point.x, found.point.y, z
            s[rows, :k], s[rows, k:] = 0.0, z - found.point.v
            status[rows], iterations[rows] = found.status, found.iterations
        return Raw(x, y, s, status, iterations)

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        raw = self.solve(Data(*(a[None] for a in data)), tolerance, options, deadline)
        return raw.x[0], raw.y[0], raw.s[0], raw.status[0], raw.iterations[0]

    def _program(self, data: Data) -> Program:
        s, k = self.structure, self.equalities
        A = s.A_pattern.full(data.A)
        Q = s.P_pattern.full(data.P[:, s.P_mirror])
        return Program(arrays.get("numpy"), self.cone, Q, data.q, A[:, :k], data.b[:, :k], A[:, k:], data.b[:, k:])
