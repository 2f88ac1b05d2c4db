"""HiGHS on a kept model: the linear relaxation first, branch and bound only where it is not whole.

Only costs change between instances, so the last basis stays primal feasible and the relaxation takes a few simplex steps. Its
solution is optimal where it is whole. Elsewhere branch and bound runs on the same model, depth first, with two aids: solutions of
earlier instances are incumbents (certified by the bound like any other), and reduced costs fix variables. HiGHS's own
branch and bound takes over where that needs too many nodes.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import highspy
import numpy as np
import scipy.sparse as sp

from layercompiler.programs.discrete import MixedInteger
from layercompiler.solvers.mixed_integer import MixedIntegerEngine, register_mixed_integer
from layercompiler.status import Status

_WHOLE = 1e-6  # distance to a whole number that counts as one
_GAP = 1e-9
_NODES = 600
_POOL = 1000
_PRIMAL, _DUAL = 4, 1  # new costs keep a basis primal feasible, new bounds keep it dual feasible

_STATUS = highspy.HighsModelStatus
_FAILURES = {
    _STATUS.kInfeasible: Status.PRIMAL_INFEASIBLE,
    _STATUS.kUnbounded: Status.DUAL_INFEASIBLE,
    _STATUS.kTimeLimit: Status.TIME_LIMIT,
    _STATUS.kIterationLimit: Status.ITERATION_LIMIT,
}


@register_mixed_integer
class Highs(MixedIntegerEngine):
    """HiGHS, which comes with CVXPY; see the module."""

    name: ClassVar[str] = "highs"
    package: ClassVar[str] = "highspy"

    def prepare(self) -> Any:
        """See `MixedIntegerEngine.prepare`."""
        return _Solver(self.program)


class _Failure(Exception):  # noqa: N818 (control flow)
    def __init__(self, status: Status) -> None:
        self.status = status


class _Solver:
    def __init__(self, program: MixedInteger) -> None:
        self.program = program
        self.relaxation = _model(program, whole=False)
        self.whole: Any = None
        self.index = np.arange(program.n, dtype=np.int32)
        self.integer = np.flatnonzero(program.integer).astype(np.int32)
        self.start = self._reference()

    def _reference(self) -> Any:
        """A feasible basis that depends on the program alone: where every batch starts, so that answers have no history."""
        h = self.relaxation
        h.changeColsCost(self.program.n, self.index, np.arange(1.0, 2.0, 1.0 / max(1, self.program.n))[: self.program.n])
        h.run()
        return h.getBasis() if h.getModelStatus() == _STATUS.kOptimal else None

    def batch(self, costs: np.ndarray, deadline: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.relaxation.clearSolver()
        self.strategy = _PRIMAL
        self.relaxation.setOptionValue("simplex_strategy", _PRIMAL)
        if self.start is not None:
            self.relaxation.setBasis(self.start)
        self.pool, self.pooled, self.seen = np.zeros((_POOL, self.program.n)), 0, set()
        self.deadline = deadline
        x = np.full(costs.shape, np.nan)
        status, nodes = np.zeros(len(costs), np.int8), np.zeros(len(costs), int)
        for i, c in enumerate(costs):
            self.nodes = 0
            try:
                x[i] = self._one(c)
            except _Failure as failure:
                status[i] = failure.status
            nodes[i] = self.nodes
        bad = (status == Status.SOLVED) & ~(self.program.violation(x) <= 1e-5)
        status[bad], x[bad] = Status.INACCURATE, np.nan
        return x, status, nodes

    def _one(self, c: np.ndarray) -> np.ndarray:
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise _Failure(Status.TIME_LIMIT)
        self.relaxation.changeColsCost(len(c), self.index, c)
        x, reduced = self._relax()
        if self._fraction(x) <= _WHOLE:
            return self._round(x)
        if self.strategy == _PRIMAL:  # after branching the basis is no longer primal feasible: this batch stays with the dual simplex
            self.strategy = _DUAL
            self.relaxation.setOptionValue("simplex_strategy", _DUAL)
        try:
            return self._branch(c, x, reduced)
        finally:
            self.relaxation.changeColsBounds(
                len(self.integer), self.integer, self.program.lower[self.integer], self.program.upper[self.integer]
            )

    def _relax(self) -> tuple[np.ndarray, np.ndarray]:
        h = self.relaxation
        h.run()
        status = h.getModelStatus()
        if status != _STATUS.kOptimal:
            status = _again(h)
        if status != _STATUS.kOptimal:
            raise _Failure(_FAILURES.get(status, Status.FAILED))
        found = h.getSolution()
        return np.array(found.col_value), np.array(found.col_dual)

    def _fraction(self, x: np.ndarray) -> float:
        xi = x[self.integer]
        return float(np.abs(xi - np.rint(xi)).max(initial=0.0))

    def _round(self, x: np.ndarray) -> np.ndarray:
        """A whole solution, remembered for later instances.

        With continuous variables beside whole ones, rounding could break a row by 1e-6 times its coefficients, which the check at
        the end allows for.
        """
        x[self.integer] = np.rint(x[self.integer]) + 0.0
        if len(self.integer):
            key = x.tobytes()
            if key not in self.seen and self.pooled < _POOL:
                self.seen.add(key)
                self.pool[self.pooled] = x
                self.pooled += 1
        return x

    def _branch(self, c: np.ndarray, x: np.ndarray, reduced: np.ndarray) -> np.ndarray:
        whole = self.integer
        best, answer = np.inf, None
        if self.pooled:
            values = self.pool[: self.pooled] @ c
            k = int(values.argmin())
            best, answer = values[k], self.pool[k].copy()
        stack = [(float(c @ x), x, reduced, self.program.lower[whole].copy(), self.program.upper[whole].copy())]
        while stack:
            value, x, reduced, lower, upper = stack.pop()
            if value >= best - _GAP * max(1.0, abs(best)):
                continue
            if self.nodes >= _NODES:
                return self._exact(c)
            if self.deadline is not None and time.perf_counter() > self.deadline:
                raise _Failure(Status.TIME_LIMIT)
            xi = x[whole]
            if np.isfinite(best):  # a variable at a bound whose reduced cost exceeds the gap cannot leave it
                d, gap = reduced[whole], best - value + 1e-9
                upper = np.where((d > gap) & (xi <= lower + 1e-9), lower, upper)
                lower = np.where((-d > gap) & (xi >= upper - 1e-9), upper, lower)
            j = int(np.abs(xi - np.rint(xi)).argmax())
            children = []
            for down in (True, False):
                low, high = lower.copy(), upper.copy()
                if down:
                    high[j] = np.floor(xi[j])
                else:
                    low[j] = np.ceil(xi[j])
                self.relaxation.changeColsBounds(len(whole), whole, low, high)
                self.nodes += 1
                try:
                    y, r = self._relax()
                except _Failure as failure:
                    if failure.status == Status.PRIMAL_INFEASIBLE:
                        continue
                    raise
                bound = float(c @ y)
                if bound >= best - _GAP * max(1.0, abs(best)):
                    continue
                if self._fraction(y) <= _WHOLE:
                    answer = self._round(y).copy()
                    best = float(c @ answer)
                else:
                    children.append((bound, y, r, low, high))
            stack += sorted(children, key=lambda child: -child[0])
        if answer is None:
            raise _Failure(Status.PRIMAL_INFEASIBLE)
        return answer

    def _exact(self, c: np.ndarray) -> np.ndarray:
        if self.whole is None:
            self.whole = _model(self.program, whole=True)
        h = self.whole
        h.clearSolver()
        if self.deadline is not None:
            h.setOptionValue("time_limit", h.getRunTime() + max(1e-3, self.deadline - time.perf_counter()))  # HiGHS counts all its runs
        h.changeColsCost(len(c), self.index, c)
        h.run()
        status = h.getModelStatus()
        if status != _STATUS.kOptimal:
            raise _Failure(_FAILURES.get(status, Status.FAILED))
        return self._round(np.array(h.getSolution().col_value))


def _again(h: Any) -> Any:
    """The status of a model after a fresh start without presolve, which tells infeasible from unbounded."""
    h.clearSolver()
    h.setOptionValue("presolve", "off")
    h.run()
    h.setOptionValue("presolve", "choose")
    status = h.getModelStatus()
    if status == _STATUS.kUnboundedOrInfeasible:
        status = _STATUS.kInfeasible
    return status


def _model(program: MixedInteger, whole: bool) -> Any:
    h = highspy.Highs()
    h.setOptionValue("output_flag", False)
    h.setOptionValue("threads", 1)
    h.setOptionValue("random_seed", 0)
    if whole:
        h.setOptionValue("mip_rel_gap", 0.0)
        h.setOptionValue("mip_abs_gap", 1e-9)
    lp = highspy.HighsLp()
    A = sp.csc_array(program.A)
    lp.num_col_, lp.num_row_ = program.n, program.m
    lp.col_cost_ = np.zeros(program.n)
    lp.col_lower_, lp.col_upper_ = program.lower, program.upper
    lp.row_lower_, lp.row_upper_ = program.low, program.high
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = A.indptr, A.indices, A.data
    if whole:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(flag)] for flag in program.integer]
    h.passModel(lp)
    return h
