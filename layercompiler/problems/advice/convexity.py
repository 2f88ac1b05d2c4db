"""DCP advice: the expression is not convex by the rules, whatever its parameters are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layercompiler.problems.advice.wording import DCP, Words, declaration, listing, tight
from layercompiler.problems.curvature import AFFINE, ANY, CONCAVE, CONVEX, Failure
from layercompiler.problems.notation import peel, text


def advise(failure: Failure, words: Words) -> str:
    """Say how to write an expression so that its curvature is certified, or why no rule can.

    Args:
        failure: The expression, the demand and its place.
        words: What the advice needs to know of the place.
    """
    return next(line for rule in _RULES if (line := rule(failure, words)))


def _unsigned_factor(failure: Failure, words: Words) -> str | None:
    """A factor of unknown sign times a convex or concave expression."""
    e, kind = failure.expression, _kind(failure.expression)
    if kind not in {"multiply", "MulExpression", "DivExpression"} or failure.need == AFFINE:
        return None
    factor, other = (e.args[1], e.args[0]) if kind == "DivExpression" or e.args[0].variables() else e.args
    if factor.variables() or not DCP.meets(other, ANY):
        return None
    upward = DCP.meets(other, CONVEX) == (failure.need != CONCAVE)
    sign, word = ("nonneg", "nonnegative") if upward else ("nonpos", "nonpositive")
    factor = peel(factor)
    if not factor.parameters():
        return f"`{text(factor)}` has entries of both signs: only its {word} part keeps the curvature, so split it"
    if kind == "DivExpression":
        name = words.fresh(factor.shape, "wr")
        product = f"multiply({name}, {text(other)})" if factor.shape and other.shape else f"{name} * {tight(other)}"
        return f"declare {declaration(factor, name, sign)}, pass `1 / {tight(factor)}` as {name} and write {product}"
    line = _signed(factor, sign, words)
    if not other.parameters():
        return line
    name, tie = words.freed(other)
    return f"{line}; besides, {tie} and write {name} in place of `{text(other)}`"


def _signed(factor: Any, sign: str, words: Words) -> str:
    """Demand a sign of a factor: of the parameter itself where the factor is one, else of a new parameter for the factor."""
    leaf = factor
    while _kind(leaf) in {"index", "transpose", "reshape", "Sum", "NegExpression", "Promote"}:
        sign = {"nonneg": "nonpos", "nonpos": "nonneg"}[sign] if _kind(leaf) == "NegExpression" else sign
        leaf = leaf.args[0]
    if _kind(leaf) == "Parameter":
        return f"declare the sign that makes it so: {declaration(leaf, leaf.name(), sign)}"
    return words.substitute(factor, sign)


def _quotient(failure: Failure, words: Words) -> str | None:
    e = failure.expression
    if _kind(e) != "DivExpression" or not e.args[1].variables():
        return None
    a, b = e.args
    if a.variables():
        return (
            "a quotient of two expressions with variables is neither convex nor concave; if every quantity is positive, declare "
            "the variables and parameters with pos=True and pass gp=True"
        )
    wanted, sign = ("nonneg", a.is_nonneg()) if failure.need != CONCAVE else ("nonpos", a.is_nonpos())
    one = not a.parameters() and np.all(a.value == 1)
    line = f"write inv_pos({text(b)})" if one else f"write {tight(a)} * inv_pos({text(b)})"
    line += ", which is convex where the denominator is positive"
    if sign or not a.parameters():
        return line
    return f"{line}; besides, {_signed(peel(a), wanted, words)}"


def _parametric_exponent(failure: Failure, words: Words) -> str | None:
    e = failure.expression
    if _kind(e) not in {"Power", "PowerApprox"} or not e.p.parameters():
        return None
    return (
        f"the exponent of a power has to be a number: give {listing(e.p.parameters())} one and export a layer for each exponent; if every "
        "quantity is positive, declare the variables with pos=True and pass gp=True: an exponent may be a parameter there"
    )


def _indefinite(failure: Failure, words: Words) -> str | None:
    e = failure.expression
    if _kind(e) != "QuadForm":
        return None
    x, matrix = e.args
    attribute, word, sign = ("PSD", "positive", "") if failure.need != CONCAVE else ("NSD", "negative", "-")
    if not matrix.parameters():
        wrapped = f"{sign}quad_form({text(x)}, cp.psd_wrap({sign}{tight(matrix)}))"
        return f"the matrix is not {word} semidefinite; if it is but for rounding, write {wrapped}"
    if words.in_objective and not x.parameters():
        return (
            f"declare {declaration(matrix, matrix.name(), attribute)}"
            if _kind(matrix) == "Parameter"
            else words.substitute(matrix, attribute)
        )
    if not x.parameters():
        return words.square_root(matrix, tight(x), sign)
    name, tie = words.stand_in(x)
    return f"{tie}; then {words.square_root(matrix, name, sign)}"


def _idiom(failure: Failure, words: Words) -> str | None:
    """Convex functions written in a way that hides it."""
    e = failure.expression
    match _kind(e), [peel(a) for a in e.args]:
        case (("multiply" | "MulExpression"), [a, b]) if text(a) == text(b):
            return f"write square({text(a)})" if _kind(e) == "multiply" or not a.shape else f"write sum_squares({text(a)})"
        case (("multiply" | "MulExpression"), [a, b]) if {_kind(a), _kind(b)} & {"log"}:
            log, x = (a, b) if _kind(a) == "log" else (b, a)
            return f"write -entr({text(x)})" if text(log.args[0]) == text(x) else None
        case "MulExpression", [a, b] if _kind(a) == "MulExpression" and text(peel(a.args[1])) == text(b) and not a.args[0].variables():
            matrix = peel(a.args[0])
            psd = "" if matrix.is_psd() or not matrix.parameters() else f" and declare {declaration(matrix, text(matrix), 'PSD')}"
            return (
                f"write quad_form({text(b)}, {text(matrix)}){psd}"
                if words.in_objective or not matrix.parameters()
                else words.square_root(matrix, tight(b), "-" * (failure.need == CONCAVE))
            )
        case "log", [a] if _kind(a) == "Sum" and _kind(peel(a.args[0])) == "exp":
            return f"write log_sum_exp({text(peel(a.args[0]).args[0])})"
        case "log", [a] if (
            _kind(a) == "AddExpression" and len(a.args) == 2 and {_is_one(t) or _kind(peel(t)) for t in a.args} == {True, "exp"}
        ):
            exponent = next(peel(t) for t in a.args if _kind(peel(t)) == "exp").args[0]
            return f"write logistic({text(exponent)})"
        case (("Power" | "PowerApprox"), [a]) if text(e).startswith("sqrt(") and _is_sum_of_squares(a):
            return f"write norm({text(_squared(a))})"
    return None


def _is_one(e: Any) -> bool:
    return e.is_constant() and not e.parameters() and bool(np.all(e.value == 1))


def _is_sum_of_squares(a: Any) -> bool:
    return text(a).startswith("sum_squares(") or (_kind(a) == "Sum" and a.axis is None and text(peel(a.args[0])).endswith(" ** 2"))


def _squared(a: Any) -> Any:
    return a.args[0] if _kind(a) == "quad_over_lin" else peel(a.args[0]).args[0]


def _bilinear(failure: Failure, words: Words) -> str | None:
    e = failure.expression
    if _kind(e) not in {"multiply", "MulExpression"} or not all(a.variables() for a in e.args):
        return None
    root = (
        f"; its square root is concave: geo_mean(hstack([{', '.join(text(a) for a in e.args)}]))"
        if not any(a.shape for a in e.args)
        else ""
    )
    return (
        f"a product of two expressions with variables is neither convex nor concave{root}; make one of them a parameter; or, if all is "
        "positive, declare the variables and parameters with pos=True and pass gp=True"
    )


def _mixed_sum(failure: Failure, words: Words) -> str | None:
    e = failure.expression
    if failure.need != ANY or _kind(e) != "AddExpression":
        return None
    convex = [text(a) for a in e.args if not DCP.meets(a, CONCAVE)]
    concave = [text(a) for a in e.args if not DCP.meets(a, CONVEX)]
    terms = f"convex terms (`{'`, `'.join(convex)}`) and concave ones (`{'`, `'.join(concave)}`)"
    return f"it adds {terms}: keep one kind, or find one convex atom for the whole"


def _wrong_side(failure: Failure, words: Words) -> str | None:
    """A curvature that is certified, but not the one the place demands."""
    e, need = failure.expression, failure.need
    has = next((n for n in (CONVEX, CONCAVE) if DCP.meets(e, n)), None)
    if has is None or need == ANY:
        return None
    line = text(e)
    if need == AFFINE:
        side = "<=" if has == CONVEX else ">="
        name = words.fresh(e.shape, "ty")
        return (
            f"here only an affine expression may stand: relax to an inequality that is tight at the solution, `{line} {side} ...`, or "
            f"declare a variable {name}, add the constraint {line} {side} {name} and write {name} here"
        )
    if words.in_objective:
        word, verb = ("concave", "Maximize") if has == CONCAVE else ("convex", "Minimize")
        whole = failure.path == "problem.objective.args[0]"
        return (
            f"{verb} it instead: it is {word}"
            if whole
            else f"only {verb} takes {word} terms: leave the term out, or replace it by one of the other kind"
        )
    side = "smaller side of <= (as in `" + line + " <= bound`)" if has == CONVEX else "larger side of <= (as in `bound <= " + line + "`)"
    return f"{DCP.curvature(e)} expressions may only stand on the {side}; the other way round the feasible set is not convex"


def _composition(failure: Failure, words: Words) -> str | None:
    e = failure.expression
    convex, concave = DCP.atom_meets(e, CONVEX), DCP.atom_meets(e, CONCAVE)
    need = CONVEX if convex else CONCAVE
    if convex == concave:
        return None
    parts = []
    for i, a in enumerate(e.args):
        below = DCP.argument_need(e, i, need)
        if not DCP.meets(a, below):
            parts.append(f"its argument `{text(a)}` has to be {below.name(False)} and is {DCP.curvature(a)}")
    line = f"the function is {need.name(False)}, so {' and '.join(parts)}"
    return f"{line}: look for one atom that is the whole, or bound the argument by a variable of its own" if parts else None


def _give_up(failure: Failure, words: Words) -> str:
    e = failure.expression
    if e.is_quasiconvex() or e.is_quasiconcave():
        return "it is quasiconvex or quasiconcave only: that takes bisection and has no derivative rule here; bound it by a fixed level"
    return "no rule certifies its curvature: rewrite it with a convex or concave atom (https://www.cvxpy.org/tutorial/functions)"


def _kind(e: Any) -> str:
    return type(e).__name__


_RULES: tuple[Callable[[Failure, Words], str | None], ...] = (
    _parametric_exponent,
    _indefinite,
    _idiom,
    _quotient,
    _unsigned_factor,
    _bilinear,
    _mixed_sum,
    _wrong_side,
    _composition,
    _give_up,
)
