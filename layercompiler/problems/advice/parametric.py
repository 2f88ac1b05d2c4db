"""DPP advice: the expression is convex (or affine) for fixed parameters, but its parameters enter in a way that no layer follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layercompiler.problems.advice.wording import DPP, Words, declaration, listing, tight
from layercompiler.problems.curvature import AFFINE, Failure
from layercompiler.problems.notation import peel, text


def advise(failure: Failure, words: Words) -> str:
    """Say how to write an expression so that its parameters enter affinely.

    Args:
        failure: The expression, the demand and its place.
        words: What the advice needs to know of the place.
    """
    e = failure.expression
    if failure.cause == "number":
        return f"only a number can stand there: give {listing(e.parameters())} one and export one layer for each value"
    return words.substitute(e) if not e.variables() else _RULES.get(type(e).__name__, _any_atom)(failure, words)


def _product(failure: Failure, words: Words) -> str:
    e = failure.expression
    f, g = _factors(e)
    if f is None:
        return _any_atom(failure, words)
    if not g.parameters():
        return words.substitute(f)
    if type(g).__name__ == "QuadForm" and words.in_objective and not g.args[0].parameters():
        name = words.fresh(g.args[1].shape, "rs")
        return (
            f"declare {declaration(g.args[1], name, 'PSD')}, write quad_form({text(g.args[0])}, {name}) and pass "
            f"`{_times(f)}{tight(g.args[1])}` as {name} (which has to be positive semidefinite)"
        )
    merged = _merged(e, f, g, words)
    if merged is not None:
        return merged
    freed, tie = words.freed(g)
    factor, declare = (tight(f), "") if DPP.meets(f, AFFINE) else words.stand_for(f)
    declare += "; " * bool(declare)
    return f"{declare}{tie}; then write {_rebuilt(e, factor, freed)}"


def _factors(e: Any) -> tuple[Any, Any]:
    """The factor without variables and the other one."""
    f, g = e.args
    if f.variables():
        f, g = g, f
    return (None, None) if f.variables() else (peel(f), peel(g))


def _times(f: Any) -> str:
    return f"{tight(f)} * " if peel(f).shape == () else f"{tight(f)} @ "


def _rebuilt(e: Any, factor: str, other: str) -> str:
    first, second = (other, factor) if peel(e.args[0]).variables() else (factor, other)
    if type(e).__name__ == "MulExpression":
        return f"{first} @ {second}"
    return f"multiply({first}, {second})" if all(peel(a).shape for a in e.args) else f"{first} * {second}"


def _merged(e: Any, f: Any, g: Any, words: Words) -> str | None:
    """f * (h * v) with v free of parameters: one parameter for f * h."""
    if type(g) is not type(e) or len(g.args) != 2:
        return None
    h, v = _factors(g)
    same_side = bool(e.args[0].variables()) == bool(g.args[0].variables())
    if h is None or v.parameters() or (type(e).__name__ == "MulExpression" and not same_side):
        return None
    left_first = not e.args[0].variables()
    both = f * h if () in (f.shape, h.shape) else type(e)(*((f, h) if left_first else (h, f)))
    name = words.fresh(both.shape, "rw")
    product = f"{name} @ {tight(v)}" if left_first else f"{tight(v)} @ {name}"
    if type(e).__name__ != "MulExpression":
        product = f"multiply({name}, {text(v)})" if both.shape and v.shape else f"{name} * {tight(v)}"
    return (
        f"declare {declaration(both, name)}, write {product} and pass `{text(both)}`, computed in your framework, as {name} "
        f"(the gradient flows on to {listing(both.parameters())} there)"
    )


def _quotient(failure: Failure, words: Words) -> str:
    e = failure.expression
    a, b = peel(e.args[0]), peel(e.args[1])
    if type(a).__name__ == "multiply" and _factors(a)[0] is not None and not _factors(a)[1].parameters():
        f, v = _factors(a)
        ratio = f / b
        name = words.fresh(ratio.shape, "rw")
        return (
            f"declare {declaration(ratio, name)}, write {_scaled(name, ratio, v)} and pass `{text(ratio)}`, computed in your framework, "
            f"as {name} (the gradient flows on to {listing(ratio.parameters())} there)"
        )
    name = words.fresh(b.shape, "wr")
    sign = ["nonneg"] if b.is_nonneg() else ["nonpos"] if b.is_nonpos() else []
    declare = f"declare {declaration(b, name, *sign)}, pass `1 / {tight(b)}` as {name}"
    if not a.parameters():
        return f"{declare} and write {_scaled(name, b, a)}"
    stand, tie = words.freed(a)
    return f"{declare}; {tie}; then write {_scaled(name, b, a, stand)}"


def _scaled(name: str, b: Any, a: Any, stand: str = "") -> str:
    """The product of a parameter shaped like b and an expression, or the variable that stands for it."""
    return f"multiply({name}, {stand or text(a)})" if b.shape and a.shape else f"{name} * {stand or tight(a)}"


def _quadratic_form(failure: Failure, words: Words) -> str:
    e = failure.expression
    x, matrix = e.args
    inner, before = text(x), ""
    if x.parameters():
        inner, tie = words.stand_in(x)
        before = f"{tie}; "
    if not matrix.parameters():
        return (
            f"{before}then write quad_form({inner}, {text(matrix)}) (beside a parametric matrix all arguments are to be free of parameters)"
        )
    if words.in_objective and not failure.cause:
        if DPP.meets(matrix, AFFINE):
            return f"{before}then write quad_form({inner}, {text(matrix)})"
        return before + words.substitute(matrix, "PSD" if matrix.is_psd() else "NSD")
    return before + words.square_root(matrix, inner if before else tight(x), "-" * matrix.is_nsd())


def _over_linear(failure: Failure, words: Words) -> str:
    e = failure.expression
    x, y = e.args
    if y.variables():
        name, tie = words.stand_in(y)
        return f"{tie}; then write quad_over_lin({text(x)}, {name})"
    name = words.fresh((), "wr")
    declare = f"declare {declaration(y, name, 'nonneg')}, pass `1 / {tight(y)}` as {name}"
    if x.parameters():
        stand, tie = words.stand_in(x)
        return f"{declare}; {tie}; then write {name} * sum_squares({stand})"
    return f"{declare} and write {name} * sum_squares({text(x)})"


def _kronecker(failure: Failure, words: Words) -> str:
    e = failure.expression
    a, b = e.args
    f, g = (a, b) if not a.variables() else (b, a)
    if a.ndim != 2 or b.ndim != 2:
        return _any_atom(failure, words)
    factor, other, before = _separated(f, g, words)
    left, right = (factor, other) if f is a else (other, factor)
    rows, columns = a.shape
    return f"{before}write cp.bmat([[{left}[i, j] * {right} for j in range({columns})] for i in range({rows})])"


def _convolution(failure: Failure, words: Words) -> str:
    e = failure.expression
    c, x = e.args
    factor, other, before = _separated(c, x, words)
    if c.ndim != 1 or x.ndim != 1:
        shape, name = (c.size + x.size - 1, x.size), words.fresh((1, 1), "tf")
        band = f"the banded matrix with {name}[i, j] = {factor}[i - j], built in your framework"
        return f"{before}declare {name} = cp.Parameter({shape}), write {name} @ {other} and pass {band}"
    shifted = f"cp.hstack([np.zeros(i), {other}, np.zeros({c.size - 1} - i)])"
    return f"{before}write sum({factor}[i] * {shifted} for i in range({c.size}))"


def _separated(f: Any, g: Any, words: Words) -> tuple[str, str, str]:
    """Texts of two factors of which one holds no variables and the other no parameters, and what has to be declared."""
    factor, declared = (tight(f), "") if DPP.meets(f, AFFINE) else words.stand_for(f)
    other, tied = (tight(g), "") if not g.parameters() else words.stand_in(g)
    return factor, other, "".join(f"{line}; then " for line in (declared, tied) if line)


def _sorted_product(failure: Failure, words: Words) -> str:
    e = failure.expression
    weights = e.args[1]
    if not DPP.meets(weights, AFFINE):
        return words.substitute(weights)
    return _any_atom(failure, words)


def _perspective(failure: Failure, words: Words) -> str:
    e = failure.expression
    return (
        f"the function inside a perspective has to be free of parameters (here {listing(e.f.parameters())}): write it in a variable of "
        "its own, tied to the parametric expression by an equality constraint, or move a parametric factor out of the perspective"
    )


def _any_atom(failure: Failure, words: Words) -> str:
    """Variables in place of arguments with variables, parameters in place of arguments without."""
    e = failure.expression
    plain = [a for a in e.args if a.parameters() and not a.variables() and not DPP.meets(a, AFFINE)]
    lines = [words.substitute(a) for a in plain]
    for a in e.args:
        if a.parameters() and a.variables():
            name, tie = words.stand_in(a)
            lines.append(f"{tie}; then write {name} in place of `{text(a)}`")
    if lines:
        return "; besides, ".join(lines)
    return f"`{text(e)}` takes numbers there, not parameters: give {listing(e.parameters())} a number and export one layer for each value"


_RULES: dict[str, Callable[[Failure, Words], str]] = {
    "MulExpression": _product,
    "multiply": _product,
    "DivExpression": _quotient,
    "QuadForm": _quadratic_form,
    "quad_over_lin": _over_linear,
    "kron": _kronecker,
    "conv": _convolution,
    "convolve": _convolution,
    "dotsort": _sorted_product,
    "perspective": _perspective,
}
