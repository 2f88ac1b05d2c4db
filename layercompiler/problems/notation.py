"""Expressions in the words of the person who wrote them: `sum_squares(A @ x - b)`, not `quad_over_lin(A @ x + -b, 1.0, None, False)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_SUM, _PRODUCT, _POWER, _ATOM = range(4)
_WIDTH = 100
_NAMES = {
    "MatrixFrac": "matrix_frac",
    "normNuc": "norm_nuc",
    "SuppFuncAtom": "suppfunc",
    "Vstack": "vstack",
    "Hstack": "hstack",
    "Sum": "sum",
    "Trace": "trace",
}
_TRANSPARENT = {"Promote", "broadcast_to", "conj", "psd_wrap", "nonneg_wrap", "nonpos_wrap", "symmetric_wrap", "skew_symmetric_wrap"}
_STACKS = {"Hstack", "Vstack", "Concatenate"}


def text(expression: Any, width: int = _WIDTH) -> str:
    """Write an expression, objective or constraint as a user of cvxpy would.

    Args:
        expression: A cvxpy expression, objective or constraint.
        width: Longer texts are cut in the middle.

    Returns:
        One line.
    """
    line = re.sub(r"\s+", " ", _whole(expression))
    keep = (width - 5) // 2
    return line if len(line) <= width else f"{line[:keep]} ... {line[-keep:]}"


def peel(expression: Any) -> Any:
    """Strip the wrappers that cvxpy adds by itself: promotions of a scalar, broadcasts, conjugates of reals."""
    while type(expression).__name__ in _TRANSPARENT:
        expression = expression.args[0]
    return expression


def _whole(node: Any) -> str:
    kind = type(node).__name__
    if kind in {"Minimize", "Maximize"}:
        return f"{kind}({_write(node.args[0], _SUM)})"
    sign = {"Inequality": "<=", "Equality": "==", "PSD": ">>", "Zero": "==", "NonPos": "<=", "NonNeg": ">="}.get(kind)
    if sign is None:
        is_constraint = hasattr(node, "dual_variables")
        return f"{kind}({', '.join(_write(a, _SUM) for a in node.args)})" if is_constraint else _write(node, _SUM)
    left, right = node.args if len(node.args) == 2 else _sides(node.args[0])
    return f"{_write(left, _SUM)} {sign} {_write(right, _SUM) if right is not None else '0'}"


def _sides(expression: Any) -> tuple[Any, Any]:
    """Undo `X >> Y`, which cvxpy keeps as one expression X - Y."""
    args = expression.args if type(expression).__name__ == "AddExpression" else ()
    if len(args) != 2:
        return expression, None
    right = peel(args[1])
    if type(right).__name__ == "Constant" and right.is_zero():
        return args[0], None
    return (args[0], right.args[0]) if type(right).__name__ == "NegExpression" else (expression, None)


def _write(e: Any, level: int) -> str:
    label = getattr(e, "_label", None)
    if label:
        return str(label)
    e = peel(e)
    kind = type(e).__name__
    if not e.args:
        return _constant(e) if kind == "Constant" else e.name()
    writer = _WRITERS.get(kind)
    if writer is not None:
        line, own = writer(e)
        return line if own >= level else f"({line})"
    items = ", ".join(_write(a, _SUM) for a in e.args)
    axis = getattr(e, "axis", None)
    return f"{_NAMES.get(kind, kind)}({f'[{items}]' if kind in _STACKS else items}{'' if axis is None else f', axis={axis}'})"


def _constant(e: Any) -> str:
    name = str(getattr(e, "_name", None) or "")
    if name and len(name) < 30 and "[" not in name:
        return name
    if e.shape == ():
        return f"{complex(e.value) if e.is_complex() else float(e.value):g}"
    values = e.value.toarray() if hasattr(e.value, "toarray") else np.asarray(e.value)
    if values.size <= 4:
        return str(values.tolist())
    if np.all(values == values.flat[0]):
        return f"{values.flat[0]:g}"
    return f"<constant {' x '.join(map(str, e.shape))}>"


def _add(e: Any) -> tuple[str, int]:
    line = _write(e.args[0], _SUM)
    for term in e.args[1:]:
        bare = peel(term)
        minus = type(bare).__name__ == "NegExpression"
        line += f" - {_write(bare.args[0], _PRODUCT)}" if minus else f" + {_write(bare, _SUM)}"
    return line, _SUM


def _multiply(e: Any) -> tuple[str, int]:
    if all(peel(a).shape for a in e.args):
        return f"multiply({_write(e.args[0], _SUM)}, {_write(e.args[1], _SUM)})", _ATOM
    return f"{_write(e.args[0], _PRODUCT)} * {_write(e.args[1], _POWER)}", _PRODUCT


def _norm(e: Any) -> tuple[str, int]:
    order = getattr(e, "original_p", None) or getattr(e, "p", 2)
    axis = "" if e.axis is None else f", axis={e.axis}"
    return f"norm({_write(e.args[0], _SUM)}{'' if float(order) == 2 else f', {float(order):g}'}{axis})", _ATOM


def _power(e: Any) -> tuple[str, int]:
    exponent = _write(e.p, _POWER)
    base = e.args[0]
    if exponent == "0.5":
        return f"sqrt({_write(base, _SUM)})", _ATOM
    return f"{_write(base, _ATOM)} ** {exponent}", _POWER


def _over(e: Any) -> tuple[str, int]:
    x, y = e.args
    if not y.parameters() and y.is_constant() and np.all(y.value == 1):
        return f"sum_squares({_write(x, _SUM)})", _ATOM
    return f"quad_over_lin({_write(x, _SUM)}, {_write(y, _SUM)})", _ATOM


def _index(e: Any) -> tuple[str, int]:
    whole, inner = e.name(), e.args[0].name()
    tail = whole[len(inner) :] if whole.startswith(inner) else "[...]"
    return f"{_write(e.args[0], _ATOM)}{tail}", _ATOM


def _call(name: str, parts: Callable[[Any], Sequence[Any]]) -> Callable[[Any], tuple[str, int]]:
    return lambda e: (f"{name}({', '.join(_write(p, _SUM) for p in parts(e))})", _ATOM)


_WRITERS: dict[str, Callable[[Any], tuple[str, int]]] = {
    "AddExpression": _add,
    "NegExpression": lambda e: (f"-{_write(e.args[0], _PRODUCT)}", _SUM),
    "multiply": _multiply,
    "MulExpression": lambda e: (f"{_write(e.args[0], _PRODUCT)} @ {_write(e.args[1], _POWER)}", _PRODUCT),
    "DivExpression": lambda e: (f"{_write(e.args[0], _PRODUCT)} / {_write(e.args[1], _POWER)}", _PRODUCT),
    "transpose": lambda e: (f"{_write(e.args[0], _ATOM)}.T", _ATOM),
    "index": _index,
    "special_index": _index,
    "Power": _power,
    "PowerApprox": _power,
    "Pnorm": _norm,
    "PnormApprox": _norm,
    "PartialProblem": lambda e: (f"partial_optimize({_whole(e.args[0].objective)})", _ATOM),
    "QuadForm": _call("quad_form", lambda e: e.args),
    "quad_over_lin": _over,
    "huber": _call("huber", lambda e: (e.args[0], e.M)),
    "gmatmul": _call("gmatmul", lambda e: (e.A, e.args[0])),
    "GeoMean": _call("geo_mean", lambda e: e.args),
    "GeoMeanApprox": _call("geo_mean", lambda e: e.args),
    "sum_largest": lambda e: (f"sum_largest({_write(e.args[0], _SUM)}, {e.k})", _ATOM),
    "reshape": lambda e: (f"reshape({_write(e.args[0], _SUM)}, {e.shape})", _ATOM),
}
