"""The dense QP engine: our fused kernels for linear and quadratic programs that are small and dense (`layercompiler.kernels.DenseQP`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.kernels import DenseQP, DenseSolution
from layercompiler.programs.cone import Data, Structure
from layercompiler.solvers.engine import CORES, Engine, Options, Raw, register

LARGEST = 2**26  # bytes that one instance may keep


@register
class DenseEngine(Engine):
    """Pivoting on active sets and interior point on dense matrices, one instance per lane; points are exact, so nothing is refined."""

    name = "dense_qp"
    package = "layercompiler.kernels"
    cones = frozenset({"zero", "nonnegative"})
    releases_gil = True
    tightest = 1e-12

    @classmethod
    def available(cls) -> bool:
        """Whether the kernels were built."""
        return kernels.available()

    @classmethod
    def accepts(cls, structure: Structure) -> bool:
        """See `Engine.accepts`; an instance that would not fit into `LARGEST` bytes is left to sparse engines."""
        n, m = structure.n, structure.m
        return super().accepts(structure) and n >= 1 and 8 * (2 * n * n + 2 * m * n + min(m, 2 * n) ** 2) <= LARGEST

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        zero = sum(count for cone, count in structure.cones.blocks if cone.name == "zero")
        self.split = int(structure.A_indptr[zero])  # entries of A before those of G
        rows, cols = structure.A_rows, structure.A_cols
        self.kernel = DenseQP(
            structure.n,
            zero,
            structure.m - zero,
            Q=(structure.P_rows, structure.P_cols),
            A=(rows[: self.split], cols[: self.split]),
            G=(rows[self.split :] - zero, cols[self.split :]),
        )

    def run(self, data: Data, threads: int, **settings: Any) -> DenseSolution:
        """The kernel on a batch of cone data; `settings` are those of `DenseQP.solve`."""
        e, zero = self.split, self.kernel.equalities
        A, G, b, h = data.A[:, :e], data.A[:, e:], data.b[:, :zero], data.b[:, zero:]
        operands = (data.P, data.q, A, b, G, h)
        if data.batch == 0:
            operands = tuple(a[:0] for a in operands)
        return self.kernel.solve(*operands, threads=threads, **settings)

    def solve(self, data: Data, tolerance: float, options: Options, deadline: float | None) -> Raw:
        """See `Engine.solve`."""
        found = self.run(data, options.workers or CORES, time_limit=deadline)
        s = np.maximum(found.y - found.v, 0.0)
        return Raw(found.x, found.y, s, found.status, found.iterations)

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        raw = self.solve(Data(*(a[None] for a in data)), tolerance, options, deadline)
        return raw.x[0], raw.y[0], raw.s[0], raw.status[0], raw.iterations[0]
