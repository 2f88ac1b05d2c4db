"""An objective as a sum of weighted squares and robust losses.

The objective is peeled from the outside. What is linear in its argument (sums, weights, matrices, stacks, indices) is turned into a weight
for every entry of that argument, by its transpose; what remains must be a square or a loss that grows slower. With s = f(x)^2 and w, c
that depend on parameters only:

    w f^2, sum_squares, norms squared, quad_over_lin, x'Px        squares
    w huber(f, M)                                                 Huber, radius M
    w log(1 + c f^2),  w log1p(c f^2)                             Cauchy, radius 1/sqrt(c)
    w sqrt(1 + c f^2)                                             pseudo-Huber, radius 1/sqrt(c)
   -w exp(-c f^2)                                                 Welsch, radius 1/sqrt(c)
    w f^2 / (c + f^2)                                             Geman-McClure, radius sqrt(c)

All these losses have rho_c(s) = c rho_1(s / c), so a weight in front moves inside: w rho_c(s) = rho_{wc}(w s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from layercompiler.errors import NotLeastSquaresError, UnsupportedExpressionError
from layercompiler.expressions import Builder
from layercompiler.expressions.movement import gather
from layercompiler.expressions.sparsity import pattern
from layercompiler.problems.nonlinear.translate import RULES, Translator, power
from layercompiler.problems.nonlinear.weights import Weight, Weights
from layercompiler.problems.notation import peel, text

_MOVES = frozenset(
    (
        "index",
        "special_index",
        "reshape",
        "transpose",
        "diag_vec",
        "diag_mat",
        "upper_tri",
        "Hstack",
        "Vstack",
        "Concatenate",
        "Trace",
        "cumsum",
    )
)
_WRAPS = frozenset(("conj", "real", "nonneg_wrap", "nonpos_wrap", "psd_wrap", "nsd_wrap", "symmetric_wrap", "hermitian_wrap"))


@dataclass(frozen=True, eq=False)
class Term:
    """w rho(f^2) summed over the entries of f.

    Attributes:
        loss: "square", "huber", "cauchy", "pseudo-huber", "welsch" or "geman-mcclure".
        inner: Node of f, flat (k,).
        weight: Node of w (k,), what multiplies f^2 near zero; it depends on parameters only. It is kept as it is, for a square root
            would have no derivative at zero.
        radius: Node of the radius (k,) in units of f; None for squares.
        source: The term as it was written.
    """

    loss: str
    inner: int
    weight: int
    radius: int | None
    source: str


class Recognizer(Weights):
    """Collects the terms of an objective.

    Args:
        translator: Holds the graph in which nodes of terms are made.
    """

    def __init__(self, translator: Translator) -> None:
        super().__init__(translator)
        self.terms: list[Term] = []

    def objective(self, objective: Any) -> list[Term]:
        """The terms of a `cp.Minimize` or `cp.Maximize`.

        Raises:
            NotLeastSquaresError: A term is no square and no robust loss, or its weight may be negative.
            UnsupportedExpressionError: An atom cannot be compiled.
        """
        for e, w in self._leaves(objective):
            self._leaf(e, w)
        return self.terms

    def nonconvex(self, objective: Any) -> bool:
        """Whether a term is a square or a loss of something that is not convex by the rules: no convex problem was meant."""
        for e, w in self._leaves(objective):
            if type(e).__name__ in (*_LEAVES, "exp") and not e.is_convex():
                inner = e.args[0]
                try:
                    self._leaf(e, w)
                    return True
                except NotLeastSquaresError:
                    continue
                except UnsupportedExpressionError:
                    if not (inner.is_convex() or inner.is_concave()):
                        return True
        return False

    # Peeling -------------------------------------------------------------------------------------------------------------

    def _leaves(self, objective: Any) -> Iterator[tuple[Any, Weight]]:
        """The terms in which the objective is linear, with their weights."""
        sign = -1.0 if isinstance(objective, cp.Maximize) else 1.0
        stack = [(objective.expr, self.constant(np.full(objective.expr.shape, sign)))]
        while stack:  # not recursive: sums written in loops are deep
            e, w = stack.pop()
            if e.is_constant():
                continue
            below = self._linear(e, w)
            if below is None:
                yield e, w
            else:
                stack.extend(reversed(below))

    def _linear(self, e: Any, w: Weight) -> list[tuple[Any, Weight]] | None:
        """Arguments with their weights where e is linear in them, else None."""
        kind = type(e).__name__
        if kind == "AddExpression":
            return [(a, self.narrowed(w, tuple(a.shape))) for a in e.args]
        if kind == "NegExpression":
            return [(e.args[0], self.made(self.b.call("negative", w.node), w.negative, w.positive))]
        if kind in ("Promote", "broadcast_to"):
            return [(e.args[0], self.narrowed(w, tuple(e.args[0].shape)))]
        if kind in _WRAPS:
            return [(e.args[0], w)]
        if kind == "Sum":
            return [(e.args[0], self.over_axes(w, e))]
        if kind == "multiply" and any(a.is_constant() for a in e.args):
            c, f = e.args if e.args[0].is_constant() else e.args[::-1]
            return [(f, self.narrowed(self.times(w, self.factor(c)), tuple(f.shape)))]
        if kind == "DivExpression" and e.args[1].is_constant():
            return [(e.args[0], self.narrowed(self.times(w, self.factor(e.args[1]), "divide"), tuple(e.args[0].shape)))]
        if kind == "MulExpression" and any(a.is_constant() for a in e.args):
            return [self.through_matrix(w, e)]
        if kind in ("Power", "PowerApprox") and self._exponent(e) == 1:
            return [(e.args[0], w)]
        if kind in _MOVES:
            return self._through_move(w, e)
        return None

    def _through_move(self, w: Weight, e: Any) -> list[tuple[Any, Weight]]:
        """The transpose of an atom that moves and adds entries: its own pattern is its matrix."""
        builder = Builder()
        inputs = [builder.input(k, tuple(a.shape)) for k, a in enumerate(e.args)]
        starts = np.concatenate([[0], np.cumsum([a.size for a in e.args])]).astype(int)
        graph = builder.graph([RULES[type(e).__name__](Translator(builder, {}), e, inputs)])
        matrix = pattern(graph, {k: int(starts[k]) for k in range(len(e.args))}, int(starts[-1]))
        parts = [(a, sp.csr_array(matrix[:, starts[k] : starts[k + 1]])) for k, a in enumerate(e.args)]
        return [(a, self.transposed(w, M, tuple(a.shape))) for a, M in parts]

    def _exponent(self, e: Any) -> float | None:
        return float(e.p.value) if isinstance(e.p, cp.Constant) else None

    # Leaves --------------------------------------------------------------------------------------------------------------

    def _leaf(self, e: Any, w: Weight) -> None:
        kind = type(e).__name__
        if kind == "exp":
            matched = self._welsch(e, w)
        else:
            matched = _LEAVES[kind](self, e, w) if kind in _LEAVES else None
        if matched is None:
            raise self.rejected(e, f"'{kind}'" if e.args else "a linear term")

    def _add(self, e: Any, loss: str, inner: int, w: Weight, scale: int | None = None, radius: int | None = None) -> bool:
        """Keep a term.

        Args:
            e: Where it was written.
            loss: Its kind.
            inner: Node of f.
            w: Weights of the entries of f.
            scale: Node that multiplies w; None for 1.
            radius: Node of the loss's radius in units of f; None for squares.
        """
        if w.negative.any():
            raise NotLeastSquaresError(
                "the weight of a squared term may be negative",
                where=text(e),
                expected="a weight that is nonnegative for every value of the parameters",
                mend="declare the weight as Parameter(nonneg=True), or take it out of the objective",
            )
        live = np.flatnonzero(w.positive.reshape(-1))
        if not len(live):
            return True
        flat = [gather(self.b, self._spread(k, w.positive.shape), live) for k in (inner, w.node)]
        weight = flat[1] if scale is None else self.b.call("multiply", flat[1], gather(self.b, self._spread(scale, w.positive.shape), live))
        if radius is not None:
            radius = gather(self.b, self._spread(radius, w.positive.shape), live)
        self.terms.append(Term(loss, flat[0], weight, radius, text(e)))
        return True

    def _spread(self, k: int, shape: tuple[int, ...]) -> int:
        return k if self.b.shape(k) == shape else self.b.call("broadcast", k, options=(shape,))

    def _power(self, e: Any, w: Weight) -> bool | None:
        p = self._exponent(e)
        base = e.args[0]
        if p == 2 and type(peel(base)).__name__ in ("Pnorm", "PnormApprox") and float(peel(base).p) == 2 and base.shape == peel(base).shape:
            norm = peel(base)
            return self._add(e, "square", self.t.node(norm.args[0]), self.over_axes(w, norm))
        if p is not None and p > 0 and p % 2 == 0:
            return self._add(e, "square", power(self.t, self.t.node(base), p / 2), w)
        if p == 0.5:
            found = self._one_plus_square(base)
            if found is not None:  # w sqrt(a + c s) = w sqrt(a) sqrt(1 + (c/a) s), near zero w c / (2 sqrt(a)) s
                a, c, f = found
                slope = self.b.call("divide", c, self.b.call("scale", power(self.t, a, 0.5), options=(2.0,)))
                return self._add(e, "pseudo-huber", f, w, slope, power(self.t, self.b.call("divide", a, c), 0.5))
        return None

    def _quad_over_lin(self, e: Any, w: Weight) -> bool:
        x, y = e.args
        wide = self.over_axes(w, e)
        node = self.t.node(x)
        if y.is_constant():
            factor = self.factor(y)
            if self._is_one(y):
                return self._add(e, "square", node, wide)
            scalar = Weight(gather(self.b, factor.node, np.zeros((), int)), factor.positive.reshape(()), np.zeros((), bool))
            return self._add(e, "square", node, self.times(wide, scalar, "divide"))
        divisor = power(self.t, gather(self.b, self.t.node(y), np.zeros((), int)), 0.5)
        return self._add(e, "square", self.b.call("divide", node, divisor), wide)

    def _huber(self, e: Any, w: Weight) -> bool:
        return self._add(e, "huber", self.t.node(e.args[0]), w, None, self.t.node(e.M))

    def _quad_form(self, e: Any, w: Weight) -> bool | None:
        x, P = e.args
        return self._matrix_square(e, x, P, w) if P.is_constant() else None

    def _matrix_square(self, e: Any, x: Any, P: Any, w: Weight) -> bool:
        """w x'Px = w |L'x|^2 with P = L L'."""
        node = self.t.node(P)
        value = self.b.value(node)
        flat = gather(self.b, self.t.node(x), np.arange(x.size))
        if value is None:
            if not P.is_psd():
                raise NotLeastSquaresError(
                    "the matrix of a quadratic form is not known to be positive semidefinite",
                    where=text(e),
                    mend="declare it as Parameter((n, n), PSD=True)",
                )
            factor = gather(self.b, self.b.call("cholesky", node), np.arange(x.size**2).reshape(x.size, x.size).T)
        else:
            lengths, vectors = np.linalg.eigh(0.5 * (value + value.T))
            if lengths.min(initial=0.0) < -1e-10 * max(1.0, lengths.max(initial=0.0)):
                raise NotLeastSquaresError(
                    "the matrix of a quadratic form is not positive semidefinite", where=text(e), got=f"an eigenvalue {lengths.min():g}"
                )
            keep = lengths > 1e-14 * lengths.max(initial=0.0)
            factor = self.b.constant(np.sqrt(lengths[keep])[:, None] * vectors[:, keep].T)
        inner = self.b.call("matmul", factor, flat)
        return self._add(e, "square", inner, self.widened(Weight(w.node, w.positive, w.negative), self.b.shape(inner)))

    def _product(self, e: Any, w: Weight) -> bool | None:
        """F * f, f @ f and f' P f, which are squares."""
        a, b = e.args
        if self.t.node(a) == self.t.node(b) and (type(e).__name__ == "multiply" or a.ndim == 1):
            return self._add(e, "square", self.t.node(a), w if type(e).__name__ == "multiply" else self.widened(w, tuple(a.shape)))
        if type(e).__name__ == "MulExpression" and e.size == 1 and type(peel(a)).__name__ == "MulExpression":
            x, P = peel(a).args
            same = x.size == b.size and self._flat(x) == self._flat(b)
            if same and P.is_constant() and P.shape == (b.size, b.size):
                return self._matrix_square(
                    e, b, P, self.made(gather(self.b, w.node, np.zeros((), int)), w.positive.reshape(()), w.negative.reshape(()))
                )
        return None

    def _flat(self, x: Any) -> int:
        return gather(self.b, self.t.node(x), np.arange(x.size))

    def _log(self, e: Any, w: Weight) -> bool | None:
        found = self._one_plus_square(e.args[0], log1p=type(e).__name__ == "log1p")
        if found is None:
            return None
        a, c, f = found  # w log(a + c s) = w log(a) + w log(1 + (c/a) s)
        ratio = self.b.call("divide", c, a)
        return self._add(e, "cauchy", f, w, ratio, power(self.t, ratio, -0.5))

    def _welsch(self, e: Any, w: Weight) -> bool | None:
        """-w exp(-c s) is w (1 - exp(-c s)) but for a constant."""
        found = self._square(e.args[0], negative=True)
        if found is None or w.positive.any():
            return None
        c, f = found
        flipped = self.made(self.b.call("negative", w.node), w.negative, w.positive)
        return self._add(e, "welsch", f, flipped, c, power(self.t, c, -0.5))

    def _ratio(self, e: Any, w: Weight) -> bool | None:
        """W c s / (a + b s), with the same s above and below."""
        above, below = self._square(e.args[0]), self._one_plus_square(e.args[1])
        if above is None or below is None or above[1] != below[2]:
            return None
        (c, f), (a, b, _) = above, below
        return self._add(e, "geman-mcclure", f, w, self.b.call("divide", c, a), power(self.t, self.b.call("divide", a, b), 0.5))

    def _square(self, e: Any, negative: bool = False) -> tuple[int, int] | None:
        """(c, f) where e is c f^2 (or -c f^2) entry by entry and c > 0 depends on parameters only."""
        e = peel(e)
        kind = type(e).__name__
        if kind == "NegExpression":
            return self._square(e.args[0], not negative)
        if kind == "multiply" and any(a.is_constant() for a in e.args):
            c, f = e.args if e.args[0].is_constant() else e.args[::-1]
            flipped = negative != (c.is_nonpos() and not c.is_nonneg())
            inner = self._square(f, flipped) if c.is_nonneg() or c.is_nonpos() else None
            size = self.t.node(c) if c.is_nonneg() else self.b.call("negative", self.t.node(c))
            return None if inner is None else (self.b.call("multiply", size, inner[0]), inner[1])
        if kind == "DivExpression" and e.args[1].is_constant() and e.args[1].is_nonneg():
            inner = self._square(e.args[0], negative)
            return None if inner is None else (self.b.call("divide", inner[0], self.t.node(e.args[1])), inner[1])
        if negative:
            return None
        if kind in ("Power", "PowerApprox") and self._exponent(e) == 2:
            return self.b.constant(1.0), self.t.node(e.args[0])
        if kind == "quad_over_lin" and e.size == 1 and e.args[0].size == 1 and self._is_one(e.args[1]):
            return self.b.constant(1.0), gather(self.b, self.t.node(e.args[0]), np.zeros((), int))
        return None

    def _is_one(self, e: Any) -> bool:
        value = self.b.value(self.t.node(e)) if e.is_constant() else None
        return value is not None and bool(np.all(value == 1))

    def _one_plus_square(self, e: Any, log1p: bool = False) -> tuple[int, int, int] | None:
        """(a, c, f) where e is a + c f^2 and a > 0, c > 0 depend on parameters only; with `log1p` e is c f^2 and a is 1."""
        e = peel(e)
        one = self.b.constant(1.0)
        if log1p:
            found = self._square(e)
            return None if found is None else (one, *found)
        if type(e).__name__ != "AddExpression":
            return None
        fixed = [a for a in e.args if a.is_constant()]
        moving = [a for a in e.args if not a.is_constant()]
        found = self._square(moving[0]) if len(moving) == 1 else None
        if found is None or not fixed or not all(a.is_nonneg() for a in fixed):
            return None
        return self.b.call("add", *(self.t.node(a) for a in fixed), self.b.constant(0.0)), *found


_LEAVES: dict[str, Callable[[Recognizer, Any, Weight], bool | None]] = {
    "Power": Recognizer._power,
    "PowerApprox": Recognizer._power,
    "quad_over_lin": Recognizer._quad_over_lin,
    "huber": Recognizer._huber,
    "QuadForm": Recognizer._quad_form,
    "multiply": Recognizer._product,
    "MulExpression": Recognizer._product,
    "log": Recognizer._log,
    "log1p": Recognizer._log,
    "DivExpression": Recognizer._ratio,
}
