"""The quadratic program of a projection."""

from __future__ import annotations

from typing import Any

import cvxpy as cp


def polyhedron(n: int, equalities: int, inequalities: int) -> tuple[cp.Problem, list[Any], list[Any]]:
    """(problem, parameters, variables) of the projection of x (n,) onto {A y = b, G y <= h}."""
    x, y = cp.Parameter(n, name="x"), cp.Variable(n, name="y")
    parameters, constraints = [x], []
    for rows, relation in ((equalities, "equal"), (inequalities, "less")):
        if rows:
            matrix, right = cp.Parameter((rows, n), name="A" if relation == "equal" else "G"), cp.Parameter(rows)
            parameters += [matrix, right]
            constraints.append(matrix @ y == right if relation == "equal" else matrix @ y <= right)
    return cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - x)), constraints), parameters, [y]
