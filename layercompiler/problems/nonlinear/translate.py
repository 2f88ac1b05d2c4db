"""CVXPY expression trees to graphs (`layercompiler.expressions`): one rule per atom, shared sub-expressions once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from layercompiler.errors import UnsupportedExpressionError
from layercompiler.expressions import Builder
from layercompiler.expressions.linear import sparse_product
from layercompiler.expressions.movement import concatenate, gather
from layercompiler.expressions.operation import positions
from layercompiler.problems.notation import text


class Translator:
    """Turns expressions into nodes of one graph.

    Args:
        builder: Where the nodes go.
        leaves: For `id`s of variables and parameters the nodes of their values.
    """

    def __init__(self, builder: Builder, leaves: dict[int, int]) -> None:
        self.builder, self.leaves = builder, leaves
        self._done: dict[int, tuple[Any, int]] = {}  # by identity of the object, which is kept alive

    def node(self, expression: Any) -> int:
        """The node of an expression.

        Raises:
            UnsupportedExpressionError: An atom has no rule; the error names the subexpression.
        """
        stack = [expression]
        while stack:  # not recursive: sums written in loops are deep
            e = stack[-1]
            if id(e) in self._done:
                stack.pop()
                continue
            waiting = [a for a in _children(e) if id(a) not in self._done]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            self._done[id(e)] = (e, self._rule(e))
        return self._done[id(expression)][1]

    def of(self, expression: Any) -> int:
        """The node of an expression that has been translated already."""
        return self._done[id(expression)][1]

    def call(self, operation: str, *arguments: int, **parts: Any) -> int:
        """A node of the graph."""
        return self.builder.call(operation, *arguments, **parts)

    def _rule(self, e: Any) -> int:
        kind = type(e).__name__
        if e.is_complex():
            raise UnsupportedExpressionError(
                "complex values in a nonlinear problem", where=text(e), mend="write real and imaginary parts as variables of their own"
            )
        if isinstance(e, cp.Variable | cp.Parameter):
            if e.id not in self.leaves:
                raise UnsupportedExpressionError("a leaf that is not part of the problem", where=text(e))
            return self.leaves[e.id]
        if isinstance(e, cp.Constant):
            return self.builder.constant(dense(e.value).reshape(e.shape))
        rule = RULES.get(kind)
        if rule is None:
            raise UnsupportedExpressionError(
                f"'{kind}' has no smooth form that can be compiled",
                where=text(e),
                expected="smooth or piecewise smooth real atoms",
                got=kind,
                mend=_ADVICE.get(
                    kind, "rewrite the term with smooth atoms, or write the residual as a function and use layercompiler.LeastSquares"
                ),
            )
        k = rule(self, e, [self.of(a) for a in e.args])
        return k if self.builder.shape(k) == tuple(e.shape) else self.call("reshape", k, options=(tuple(int(n) for n in e.shape),))


_ADVICE = {
    kind: "it is constant almost everywhere, so no descent method can use it; replace it by a smooth approximation"
    for kind in ("sign", "ceil", "floor", "length", "Not", "And", "Or", "Xor")
}


def _children(e: Any) -> list[Any]:
    more = [e.M] if type(e).__name__ == "huber" else [e.p] if type(e).__name__ in ("Power", "PowerApprox") else []
    return [*e.args, *more]


def dense(value: Any) -> np.ndarray:
    """A constant's value as a dense array."""
    return np.asarray(value.toarray() if sp.issparse(value) else value, dtype=np.float64)


Rule = Callable[[Translator, Any, list[int]], int]


def _elementwise(operation: str, *options: Any) -> Rule:
    return lambda t, e, a: t.call(operation, *a, options=options)


def _moved(index: Callable[[Any, np.ndarray], Any]) -> Rule:
    """A rule for an atom that moves entries, by what it does with an array of positions."""

    def rule(t: Translator, e: Any, a: list[int]) -> int:
        return gather(t.builder, a[0], np.asarray(index(e, positions(tuple(e.args[0].shape)))).reshape(e.shape))

    return rule


def _stacked(stack: Callable[[Any, list[np.ndarray]], Any]) -> Rule:
    """A rule for an atom that stacks its arguments."""

    def rule(t: Translator, e: Any, a: list[int]) -> int:
        start, parts = 0, []
        for argument in e.args:
            parts.append(start + positions(tuple(argument.shape)))
            start += argument.size
        return gather(t.builder, concatenate(t.builder, a), np.asarray(stack(e, parts)).reshape(e.shape))

    return rule


def _axes(e: Any) -> tuple[int, ...]:
    rank, axis = e.args[0].ndim, getattr(e, "axis", None)
    axes = range(rank) if axis is None else (axis,) if isinstance(axis, int | np.integer) else axis
    return tuple(sorted(int(a) % rank for a in axes))


def _reduced(operation: str) -> Rule:
    return lambda t, e, a: reduce(t, operation, a[0], _axes(e), bool(getattr(e, "keepdims", False)))


def reduce(t: Translator, operation: str, k: int, axes: tuple[int, ...] | None = None, keep: bool = False, *more: Any) -> int:
    """A reduction over axes (all by default)."""
    axes = tuple(range(len(t.builder.shape(k)))) if axes is None else axes
    return t.call(operation, k, options=(axes, keep, *more))


def _matmul(t: Translator, e: Any, a: list[int]) -> int:
    left, right = e.args
    if left.shape == () or right.shape == ():
        return t.call("multiply", *a)
    matrix = t.builder.value(a[0])
    if matrix is not None and matrix.ndim == 2 and right.ndim == 1:
        k = sparse_product(t.builder, matrix, a[1])
        if k is not None:
            return k
    matrix = t.builder.value(a[1])
    if matrix is not None and matrix.ndim == 2 and left.ndim == 1:
        k = sparse_product(t.builder, matrix.T, a[0])
        if k is not None:
            return k
    return t.call("matmul", *a)


def _power(t: Translator, e: Any, a: list[int]) -> int:
    p = t.of(e.p)
    value = t.builder.value(p)
    return t.call("raise", a[0], p) if value is None else power(t, a[0], float(value))


def power(t: Translator, k: int, p: float) -> int:
    """x ** p for a constant p."""
    return k if p == 1 else t.call("power", k, options=(p,))


def _norm(t: Translator, k: int, p: float, axes: tuple[int, ...] | None = None, keep: bool = False) -> int:
    if p == np.inf:
        return reduce(t, "max", t.call("abs", k), axes, keep)
    if p == 1:
        return reduce(t, "sum", t.call("abs", k), axes, keep)
    size = k if p == 2 else t.call("abs", k)
    total = reduce(t, "sum", power(t, size, p), axes, keep)
    return t.call("root", total, options=(p,)) if p > 1 else power(t, total, 1 / p)


def _quad_over_lin(t: Translator, e: Any, a: list[int]) -> int:
    total = reduce(t, "sum", power(t, a[0], 2.0), _axes(e), bool(getattr(e, "keepdims", False)))
    one = t.builder.value(a[1])
    if one is not None and np.all(one == 1):
        return total
    return t.call("divide", total, gather(t.builder, a[1], np.zeros((), int)))


def _quad_form(t: Translator, e: Any, a: list[int]) -> int:
    x = gather(t.builder, a[0], np.arange(e.args[0].size))
    return t.call("matmul", x, t.call("matmul", a[1], x))


def _geo_mean(t: Translator, e: Any, a: list[int]) -> int:
    """prod(x ** w) over the entries with a positive weight."""
    rank = e.args[0].ndim
    axis = range(rank) if e.axis is None else (e.axis,) if isinstance(e.axis, int) else e.axis
    axes = [int(i) % rank for i in axis]
    at = np.moveaxis(positions(tuple(e.args[0].shape)), axes, range(len(axes)))
    rest = at.shape[len(axes) :]
    kept = at.reshape((-1, int(np.prod(rest, dtype=int))), order="F")[np.asarray(e._keep)]
    w = t.builder.constant(np.array([float(v) for v in e.w])[:, None] * np.ones(kept.shape))
    log = t.call("log", gather(t.builder, a[0], kept))
    flat = t.call("exp", reduce(t, "sum", t.call("multiply", w, log), (0,)))
    return gather(t.builder, flat, np.arange(int(np.prod(rest, dtype=int))).reshape(rest, order="F").reshape(e.shape, order="F"))


def _sum_largest(t: Translator, e: Any, a: list[int]) -> int:
    return reduce(t, "sum_largest", a[0], _axes(e), bool(getattr(e, "keepdims", False)), float(e.k))


def _dotsort(t: Translator, e: Any, a: list[int]) -> int:
    """The weights of the sorted entries, padded with zeros as cvxpy does; they must not depend on a variable."""
    n, m = e.args[0].size, e.args[1].size
    x, w = (gather(t.builder, k, np.arange(size)) for k, size in zip(a, (n, m), strict=True))
    if m < n:
        w = gather(t.builder, w, np.where(np.arange(n) < m, np.arange(n), -1))
    return reduce(t, "sum", t.call("multiply", t.call("sort", x), t.call("sort", w)))


def _eigenvalues(pick: Callable[[Translator, Any, int], int]) -> Rule:
    return lambda t, e, a: pick(t, e, t.call("eigenvalues", a[0]))


def _largest_eigenvalues(t: Translator, e: Any, w: int) -> int:
    return reduce(t, "sum_largest", w, (len(t.builder.shape(w)) - 1,), False, float(e.k))


def _condition_number(t: Translator, e: Any, w: int) -> int:
    n = e.args[0].shape[0]
    return t.call("divide", gather(t.builder, w, np.array(n - 1)), gather(t.builder, w, np.array(0)))


def _matrix_frac(t: Translator, e: Any, a: list[int]) -> int:
    """trace(X' P^-1 X)."""
    n = e.args[1].shape[0]
    X = gather(t.builder, a[0], positions((n, e.args[0].size // n)))
    return reduce(t, "sum", t.call("multiply", X, t.call("matmul", t.call("inverse", a[1]), X)))


def _trace_inverse(t: Translator, e: Any, a: list[int]) -> int:
    return reduce(t, "sum", power(t, t.call("eigenvalues", a[0]), -1.0))


def _eye_minus_inverse(t: Translator, e: Any, a: list[int]) -> int:
    eye = t.builder.constant(np.eye(e.args[0].shape[0]))
    return t.call("inverse", t.call("add", eye, t.call("negative", a[0])))


def _gmatmul(t: Translator, e: Any, a: list[int]) -> int:
    """exp(A log x)."""
    A = e.A if isinstance(e.A, cp.Expression) else cp.Constant(e.A)
    return t.call("exp", t.call("matmul", t.node(A), t.call("log", a[0])))


def _dist_ratio(t: Translator, e: Any, a: list[int]) -> int:
    near, far = (_norm(t, t.call("add", a[0], t.call("negative", k)), 2.0) for k in a[1:])
    return t.call("divide", near, far)


def _index(e: Any, at: np.ndarray) -> Any:
    return at[e._orig_key]


def _trace(t: Translator, e: Any, a: list[int]) -> int:
    diagonal = np.diagonal(positions(tuple(e.args[0].shape)), axis1=-2, axis2=-1)
    return reduce(t, "sum", gather(t.builder, a[0], diagonal), (diagonal.ndim - 1,))


def _upper(e: Any, at: np.ndarray) -> Any:
    i, j = np.triu_indices(at.shape[-1], k=1)
    return at[..., i, j]


def _transpose(t: Translator, e: Any, a: list[int]) -> int:
    rank = e.args[0].ndim
    axes = tuple(range(rank))[::-1] if e.axes is None else tuple(int(i) % rank for i in e.axes)
    if t.builder.nodes[a[0]].operation in ("input", "gather", "slice", "reshape", "permute"):
        return gather(t.builder, a[0], np.transpose(positions(tuple(e.args[0].shape)), axes))
    return a[0] if rank < 2 else t.call("permute", a[0], options=(axes,))


def _broadcast(t: Translator, e: Any, a: list[int]) -> int:
    return a[0] if tuple(e.args[0].shape) == tuple(e.shape) else t.call("broadcast", a[0], options=(tuple(int(n) for n in e.shape),))


def _convolve(t: Translator, e: Any, a: list[int]) -> int:
    return t.call("convolve", *(gather(t.builder, k, np.arange(x.size)) for k, x in zip(a, e.args, strict=True)))


def _cumulative(operation: str) -> Rule:
    def rule(t: Translator, e: Any, a: list[int]) -> int:
        shape = tuple(e.args[0].shape)
        if e.axis is None or not shape:
            return t.call(operation, gather(t.builder, a[0], np.arange(e.args[0].size)), options=(0,))
        return t.call(operation, a[0], options=(int(e.axis) % len(shape),))

    return rule


RULES: dict[str, Rule] = {
    "AddExpression": _elementwise("add"),
    "NegExpression": _elementwise("negative"),
    "multiply": _elementwise("multiply"),
    "DivExpression": _elementwise("divide"),
    "MulExpression": _matmul,
    "Power": _power,
    "PowerApprox": _power,
    "huber": lambda t, e, a: t.call("huber", a[0], t.of(e.M)),
    **{
        atom: _elementwise(operation)
        for atom, operation in {
            **{name: name for name in ("exp", "log", "log1p", "sin", "cos", "tan", "sinh", "tanh", "asinh", "atanh", "abs")},
            "logistic": "softplus",
            "normcdf": "ndtr",
            "entr": "entropy",
            "rel_entr": "relative_entropy",
            "kl_div": "divergence",
            "maximum": "maximum",
            "minimum": "minimum",
        }.items()
    },
    "xexp": lambda t, e, a: t.call("multiply", a[0], t.call("exp", a[0])),
    "one_minus_pos": lambda t, e, a: t.call("add", t.builder.constant(1.0), t.call("negative", a[0])),
    "Sum": _reduced("sum"),
    "Prod": _reduced("prod"),
    "max": _reduced("max"),
    "min": _reduced("min"),
    "log_sum_exp": _reduced("logsumexp"),
    "norm1": lambda t, e, a: _norm(t, a[0], 1.0, _axes(e), bool(e.keepdims)),
    "norm_inf": lambda t, e, a: _norm(t, a[0], np.inf, _axes(e), bool(e.keepdims)),
    "Pnorm": lambda t, e, a: _norm(t, a[0], float(e.p), _axes(e), bool(e.keepdims)),
    "PnormApprox": lambda t, e, a: _norm(t, a[0], float(e.p), _axes(e), bool(e.keepdims)),
    "quad_over_lin": _quad_over_lin,
    "QuadForm": _quad_form,
    "GeoMean": _geo_mean,
    "GeoMeanApprox": _geo_mean,
    "sum_largest": _sum_largest,
    "dotsort": _dotsort,
    "cumsum": _cumulative("cumsum"),
    "cumprod": _cumulative("cumprod"),
    "cummax": _cumulative("cummax"),
    "kron": _elementwise("kron"),
    "conv": _convolve,
    "convolve": _convolve,
    "Trace": _trace,
    "log_det": _elementwise("logdet"),
    "lambda_max": _eigenvalues(lambda t, e, w: gather(t.builder, w, positions(t.builder.shape(w))[..., -1])),
    "lambda_sum_largest": _eigenvalues(_largest_eigenvalues),
    "condition_number": _eigenvalues(_condition_number),
    "von_neumann_entr": _eigenvalues(lambda t, e, w: reduce(t, "sum", t.call("entropy", w))),
    "sigma_max": lambda t, e, a: reduce(t, "max", t.call("singular_values", a[0])),
    "normNuc": lambda t, e, a: reduce(t, "sum", t.call("singular_values", a[0])),
    "MatrixFrac": _matrix_frac,
    "tr_inv": _trace_inverse,
    "eye_minus_inv": _eye_minus_inverse,
    "gmatmul": _gmatmul,
    "dist_ratio": _dist_ratio,
    "Promote": _broadcast,
    "broadcast_to": _broadcast,
    "transpose": _transpose,
    "index": _moved(_index),
    "special_index": _moved(lambda e, at: at[e.key]),
    "reshape": _moved(lambda e, at: at.reshape(e.shape, order=e.order)),
    "diag_vec": lambda t, e, a: gather(t.builder, a[0], np.diag(positions((e.args[0].size,)) + 1, k=e.k) - 1),
    "diag_mat": _moved(lambda e, at: np.diagonal(at, offset=e.k)),
    "upper_tri": _moved(_upper),
    "Hstack": _stacked(lambda e, parts: np.hstack(parts)),
    "Vstack": _stacked(lambda e, parts: np.vstack(parts)),
    "Concatenate": _stacked(lambda e, parts: np.concatenate(parts, axis=e.axis)),
    **dict.fromkeys(
        ("conj", "real", "nonneg_wrap", "nonpos_wrap", "psd_wrap", "nsd_wrap", "hermitian_wrap", "skew_symmetric_wrap", "symmetric_wrap"),
        lambda t, e, a: a[0],
    ),
}
