"""Quadratic forms of a shifted point in the objective, written so that CVXPY keeps their parameters."""

from __future__ import annotations

from typing import Any

import cvxpy as cp


def settle(problem: cp.Problem) -> cp.Problem:
    """Give the parametric argument of every quadratic form in the objective a variable of its own.

    CVXPY accepts quad_form(x, P) with a parametric P in a quadratic objective, but on that path it refuses
    quad_form(x - c, M) with a parameter c (and, without being asked to enforce DPP, freezes c at its value), which is DPP
    everywhere else. quad_form(d, M) with d == x - c is the same problem and passes on both paths.

    Args:
        problem: Any problem. Its constraints are kept as they are, the same objects.

    Returns:
        The same problem where there is nothing to do, else one with the objective rewritten and constraints appended.
    """
    ties: list[Any] = []
    objective = _visit(problem.objective, ties)
    return cp.Problem(objective, [*problem.constraints, *ties]) if ties else problem


def _visit(node: Any, ties: list[Any]) -> Any:
    args = [_visit(a, ties) for a in node.args]
    if type(node).__name__ == "QuadForm" and node.args[0].parameters():
        point = cp.Variable(node.args[0].shape)
        ties.append(point == node.args[0])
        args[0] = point
    return node if all(a is b for a, b in zip(args, node.args, strict=True)) else node.copy(args)
