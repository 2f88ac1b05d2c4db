"""How to write a subexpression that breaks the rules so that it keeps them; the tests hold the named rewrites to the rules."""

from __future__ import annotations

from layercompiler.problems.advice import convexity, geometric, parametric
from layercompiler.problems.advice.wording import Words
from layercompiler.problems.curvature import Failure

__all__ = ["Words", "advise"]


def advise(kind: str, failure: Failure, gp: bool, words: Words) -> str:
    """Say how to write a failing subexpression.

    Args:
        kind: "DCP", "DGP" or "DPP".
        failure: The subexpression, the demand and its place.
        gp: Whether the rules are those of geometric programming.
        words: The names that are taken, and whether it stands in the objective.

    Returns:
        One or two sentences.
    """
    if type(failure.expression).__name__ == "PartialProblem":
        return "mend the problem inside partial_optimize, or write its variables and constraints into the outer problem"
    if gp:
        return geometric.advise(kind, failure, words)
    return (parametric if kind == "DPP" else convexity).advise(failure, words)
