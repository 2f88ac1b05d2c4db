"""Our compiled simplex and branch and bound for small programs; HiGHS takes the instances that it gives up."""

from __future__ import annotations

import math
import time
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from layercompiler import kernels
from layercompiler.errors import BuildError
from layercompiler.kernels import simplex as kernel
from layercompiler.programs.discrete import MixedInteger
from layercompiler.solvers.mixed_integer import MixedIntegerEngine, mixed_integer_engine, register_mixed_integer
from layercompiler.status import Status

LARGEST = 120_000  # rows times variables; beyond it the sparse simplex of HiGHS is the faster one


@register_mixed_integer
class Simplex(MixedIntegerEngine):
    """The compiled simplex of `layercompiler.kernels`; HiGHS behind it judges infeasible, unbounded and hard instances."""

    name: ClassVar[str] = "simplex"
    package: ClassVar[str] = "layercompiler.kernels"

    @classmethod
    def accepts(cls, program: MixedInteger) -> bool:
        """See `MixedIntegerEngine.accepts`."""
        return kernels.available() and program.quadratic is None and 0 < program.n and program.m * program.n <= LARGEST

    @cached_property
    def start(self) -> kernel.Simplex | None:
        """The kernel with its start basis; None where there is none."""
        p = self.program
        try:
            return kernel.Simplex(p.A, p.low, p.high, p.lower, p.upper, p.integer)
        except BuildError:
            return None

    @cached_property
    def behind(self) -> MixedIntegerEngine:
        """The engine for what the kernel gives up."""
        return mixed_integer_engine("highs")(self.program)

    def prepare(self) -> Any:
        """See `MixedIntegerEngine.prepare`."""
        return self

    def batch(self, costs: np.ndarray, deadline: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `MixedIntegerEngine.prepare`."""
        if self.start is None:
            return self._behind(costs, deadline)
        found = self.start.solve(costs, time_limit=math.inf if deadline is None else max(0.0, deadline - time.perf_counter()))
        x, nodes = found.x, found.nodes.astype(int)
        status = np.where(found.outcome == kernel.LATE, Status.TIME_LIMIT, Status.SOLVED).astype(np.int8)
        given_up = (found.outcome != kernel.LATE) & (found.outcome != kernel.SOLVED)
        given_up |= (status == Status.SOLVED) & ~(self.program.violation(x) <= 1e-6)
        x[status != Status.SOLVED] = np.nan
        if given_up.any():
            x[given_up], status[given_up], nodes[given_up] = self._behind(costs[given_up], deadline)
        return x, status, nodes

    def _behind(self, costs: np.ndarray, deadline: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        solver = self.behind.take()
        try:
            return solver.batch(costs, deadline)
        finally:
            self.behind.give(solver)
