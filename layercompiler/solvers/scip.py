"""SCIP on a kept model whose costs change; exact, one instance after another. A quadratic objective is a constraint t >= x'Px / 2 there."""

from __future__ import annotations

import importlib
import time
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.discrete import MixedInteger
from layercompiler.solvers.mixed_integer import MixedIntegerEngine, register_mixed_integer
from layercompiler.status import Status

_STATUS = {
    "optimal": Status.SOLVED,
    "infeasible": Status.PRIMAL_INFEASIBLE,
    "unbounded": Status.DUAL_INFEASIBLE,
    "inforunbd": Status.DUAL_INFEASIBLE,
    "timelimit": Status.TIME_LIMIT,
}


@register_mixed_integer
class Scip(MixedIntegerEngine):
    """SCIP, through the package pyscipopt."""

    name: ClassVar[str] = "scip"
    package: ClassVar[str] = "pyscipopt"
    quadratic: ClassVar[bool] = True

    def prepare(self) -> Any:
        """See `MixedIntegerEngine.prepare`."""
        return _Solver(self.program)


class _Solver:
    def __init__(self, program: MixedInteger) -> None:
        self.program = program
        self.scip = importlib.import_module("pyscipopt")
        self.model = m = self.scip.Model()
        m.hideOutput()
        m.setParam("limits/gap", 0.0)
        self.x = [
            m.addVar(lb=_number(low), ub=_number(high), vtype="I" if whole else "C")
            for low, high, whole in zip(program.lower, program.upper, program.integer, strict=True)
        ]
        A = program.A
        for i in range(program.m):
            part = slice(A.indptr[i], A.indptr[i + 1])
            row = self.scip.quicksum(float(a) * self.x[j] for j, a in zip(A.indices[part], A.data[part], strict=True))
            low, high = _number(program.low[i]), _number(program.high[i])
            if low == high:
                m.addCons(row == low)
            else:
                if high is not None:
                    m.addCons(row <= high)
                if low is not None:
                    m.addCons(row >= low)
        self.extra: list[Any] = []
        if program.quadratic is not None:
            m.setParam("numerics/feastol", 1e-9)
            P = sp.coo_array(sp.triu(program.quadratic))
            i, j = P.coords
            terms = ((0.5 if a == b else 1.0) * float(v) * self.x[a] * self.x[b] for a, b, v in zip(i, j, P.data, strict=True))
            t = m.addVar(lb=0.0, vtype="C")
            m.addCons(self.scip.quicksum(terms) <= t)
            self.extra = [t]

    def batch(self, costs: np.ndarray, deadline: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = np.full(costs.shape, np.nan)
        status, nodes = np.zeros(len(costs), np.int8), np.zeros(len(costs), int)
        for i, c in enumerate(costs):
            self.model.freeTransform()
            if deadline is not None:
                self.model.setParam("limits/time", max(0.0, deadline - time.perf_counter()))
            self.model.setObjective(self.scip.quicksum(float(a) * v for a, v in zip(c, self.x, strict=True)) + sum(self.extra), "minimize")
            self.model.optimize()
            status[i] = _STATUS.get(self.model.getStatus(), Status.FAILED)
            nodes[i] = self.model.getNNodes()
            if status[i] == Status.SOLVED:
                x[i] = [self.model.getVal(v) for v in self.x]
        x[:, self.program.integer] = np.rint(x[:, self.program.integer]) + 0.0
        bad = (status == Status.SOLVED) & ~(self.program.violation(x) <= 1e-5)
        status[bad], x[bad] = Status.INACCURATE, np.nan
        return x, status, nodes


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
