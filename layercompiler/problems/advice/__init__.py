"""How to write a subexpression that breaks the rules so that it keeps them; the tests hold the named rewrites to the rules."""

from __future__ import annotations

from layercompiler.problems.advice import convexity, geometric, parametric
from layercompiler.problems.curvature import Failure


def advise(kind: str, failure: Failure, gp: bool, *, in_objective: bool) -> str:
    """Say how to write a failing subexpression.

    Args:
        kind: "DCP", "DGP" or "DPP".
        failure: The subexpression, the demand and its place.
        gp: Whether the rules are those of geometric programming.
        in_objective: Whether it stands in the objective, where a quadratic form may keep a parametric matrix.

    Returns:
        One or two sentences.
    """
    if gp:
        return geometric.advise(kind, failure)
    return (parametric if kind == "DPP" else convexity).advise(failure, in_objective)
