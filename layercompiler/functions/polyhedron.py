"""Projection onto a polyhedron, by the layer of its quadratic program."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from layercompiler.errors import ShapeError
from layercompiler.export import export
from layercompiler.functions.operands import operands


def project_polyhedron(x: Any, A: Any = None, b: Any = None, G: Any = None, h: Any = None) -> Any:
    """Nearest point with A y = b and G y <= h.

    Args:
        x: (..., n).
        A: (..., m, n); None for no equalities.
        b: (..., m).
        G: (..., p, n); None for no inequalities.
        h: (..., p).

    Returns:
        (..., n).

    Raises:
        SolveError: The polyhedron is empty (in some instance).
        ShapeError: A matrix without its right-hand side, or shapes that do not fit.

    Differentiability: not where a constraint holds with equality and a zero multiplier; all data are differentiated.
    Cost: a quadratic program of n variables; its layer is compiled once per sizes and framework.
    """
    if (A is None) != (b is None) or (G is None) != (h is None):
        raise ShapeError("a matrix and its right-hand side come together", expected="A with b, G with h", got="one of them alone")
    given = [v for v in (x, A, b, G, h) if v is not None]
    xp, *values = operands(*given)
    n, m, p = values[0].shape[-1], 0 if A is None else values[1].shape[-2], 0 if G is None else values[-2].shape[-2]
    return _layer(int(n), int(m), int(p), xp.name)(*values)[0]


@lru_cache(maxsize=64)
def _layer(n: int, equalities: int, inequalities: int, framework: str) -> Any:
    from layercompiler.problems.projection import polyhedron  # brings cvxpy

    problem, parameters, variables = polyhedron(n, equalities, inequalities)
    return export(problem, framework, parameters=parameters, variables=variables)
