"""DGP advice: log-log curvature. Monomials are log-log affine, posynomials log-log convex."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.problems.advice.wording import Words, listing
from layercompiler.problems.curvature import AFFINE, CONCAVE, CONVEX, Failure, Rules
from layercompiler.problems.notation import peel, text

_DGP = Rules(gp=True)


def advise(kind: str, failure: Failure, words: Words) -> str:
    """Say how to write an expression so that its log-log curvature is certified.

    Args:
        kind: "DGP" or "DPP".
        failure: The expression, the demand and its place.
        words: What the advice needs to know of the place.
    """
    e = failure.expression
    if kind == "DPP":
        return words.substitute(e, "pos") if not e.variables() else _parametrized(e, words)
    if failure.cause == "constant" and e.args:
        value = f"{np.ravel(e.value)[0]:.12g}" if e.size == 1 else "the array of its values"
        return f"write {value} in place of `{text(e)}`: cvxpy's log transform is wrong for this function of numbers"
    if not e.args:
        return _leaf(e)
    if any(type(a).__name__ == "NegExpression" for a in e.args) or type(e).__name__ == "NegExpression":
        return _difference(e, failure)
    exponent = _exponent(e)
    if exponent is not None and not _DGP.meets(e.args[0], AFFINE):
        return f"a power of a sum needs the sign of its exponent: declare {listing(exponent.parameters())} = cp.Parameter(nonneg=True)"
    return _curved(e, failure)


def _leaf(e: Any) -> str:
    if type(e).__name__ == "Constant":
        return f"geometric programs have positive numbers only: drop `{text(e)}`, or write a quotient for a difference"
    shape = f"{e.shape}, " if e.shape else ""
    return f"declare {e.name()} = cp.{type(e).__name__}({shape}pos=True): geometric programs know positive quantities only"


def _difference(e: Any, failure: Failure) -> str:
    parts = [peel(a) for a in e.args]
    plus = [a for a in parts if type(a).__name__ != "NegExpression"]
    minus = [a.args[0] for a in parts if type(a).__name__ == "NegExpression"]
    if failure.need == CONCAVE and len(plus) == 1 and minus:
        taken = " + ".join(text(m) for m in minus)
        if type(plus[0]).__name__ == "Constant" and text(plus[0]) == "1":
            return f"write one_minus_pos({taken})"
        return f"write diff_pos({text(plus[0])}, {taken})"
    return "a difference is not log-log convex: move the term to the other side of its constraint, or find a quotient for it"


def _curved(e: Any, failure: Failure) -> str:
    if failure.need == AFFINE:
        side = "<=" if _DGP.meets(e, CONVEX) else ">="
        return f"here only a monomial may stand: relax to an inequality that is tight at the solution, as `{text(e)} {side} ...`"
    if _DGP.meets(e, CONVEX):
        return "a posynomial (log-log convex) may only stand under Minimize or on the smaller side of <=; there has to be a monomial here"
    if _DGP.meets(e, CONCAVE):
        return "a log-log concave expression may only stand under Maximize or on the larger side of <="
    return "no rule certifies its log-log curvature: rewrite it with monomials, posynomials and the atoms of cvxpy.org/tutorial/dgp"


def _parametrized(e: Any, words: Words) -> str:
    if _exponent(e) is not None and e.args[0].parameters():
        base = e.args[0]
        name = words.fresh(base.shape, "yt")
        shape = f"{base.shape}, " if base.shape else ""
        sign = "==" if _DGP.meets(base, AFFINE) else ("<=" if _DGP.meets(base, CONVEX) else ">=")
        tie = f"{name} == {text(base)}" if sign == "==" else f"{text(base)} {sign} {name}"
        return f"declare {name} = cp.Variable({shape}pos=True), add the constraint {tie} and write {name} in place of `{text(base)}`"
    mixed = [a for a in e.args if a.parameters() and not a.variables()]
    if mixed:
        return "; besides, ".join(words.substitute(a, "pos") for a in mixed)
    return f"give {listing(e.parameters())} numbers and export one layer for each value"


def _exponent(e: Any) -> Any:
    """The exponent of a power, or the matrix of exponents of gmatmul, where it holds parameters."""
    exponent: Any = getattr(e, "p", getattr(e, "A", None))
    return exponent if hasattr(exponent, "parameters") and exponent.parameters() else None
