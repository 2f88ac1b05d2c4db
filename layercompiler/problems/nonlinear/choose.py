"""Convex or nonlinear: which path a CVXPY problem takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp

from layercompiler.errors import BuildError, NotDCPError
from layercompiler.problems.convex import compile_convex
from layercompiler.problems.nonlinear.recognize import Recognizer
from layercompiler.problems.nonlinear.unknowns import Unknowns
from layercompiler.programs.cone import ConeProgram
from layercompiler.programs.nonlinear import NonlinearProgram

_NONCONVEX = frozenset(("sin", "cos", "tan", "sinh", "tanh", "asinh", "atanh", "normcdf"))


def compile_either(
    problem: Any,
    parameters: Sequence[Any] | None,
    outputs: Sequence[Any] | None,
    gp: bool | None,
    nonlinear: bool,
    automatic: bool,
) -> ConeProgram | NonlinearProgram:
    """Compile a problem by the rules of convexity, and where they fail as nonlinear least squares.

    Args:
        problem: A `cvxpy.Problem`.
        parameters: As for `compile_convex`.
        outputs: As for `compile_convex`.
        gp: As for `compile_convex`; given, the problem must be convex or geometric.
        nonlinear: Take the nonlinear path in any case.
        automatic: Whether the nonlinear path may be taken at all.

    Raises:
        BuildError: Neither path takes it. The error is that of the rules of convexity, unless the problem has an
            atom that is never convex, or the square of something that is not.
    """
    from layercompiler.problems.nonlinear.compile import compile_nonlinear

    if nonlinear:
        return compile_nonlinear(problem, parameters, outputs)
    try:
        return compile_convex(problem, parameters, outputs, gp)
    except NotDCPError as error:
        if gp is not None or not automatic or not isinstance(problem, cp.Problem):
            raise
        try:
            return compile_nonlinear(problem, parameters, outputs)
        except BuildError as other:
            if _never_convex(problem):
                raise other from None
            raise error from None


def _never_convex(problem: cp.Problem) -> bool:
    """Whether the problem was meant as nonlinear least squares: an atom occurs that the rules of convexity do not know, or a square of
    something that is not convex, such as a product of variables."""
    stack, seen = [problem.objective.expr, *(a for c in problem.constraints for a in c.args)], set()
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if type(e).__name__ in _NONCONVEX:
            return True
        stack.extend(e.args)
    try:
        unknowns = Unknowns(problem.variables(), problem.parameters(), {}, ())
        return Recognizer(unknowns.translator).nonconvex(problem.objective)
    except BuildError:
        return False
