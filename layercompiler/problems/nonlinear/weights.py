"""Weights of the entries of an expression, and the transposes of linear maps that carry them inward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.errors import NotLeastSquaresError
from layercompiler.expressions.linear import sparse_product
from layercompiler.expressions.movement import gather
from layercompiler.problems.nonlinear.translate import Translator
from layercompiler.problems.notation import text


@dataclass(frozen=True, eq=False)
class Weight:
    """Weights of the entries of an expression: their node, and which may be positive or negative."""

    node: int
    positive: np.ndarray
    negative: np.ndarray


class Weights:
    """The algebra of weights; their nodes are made in the graph of a translator."""

    def __init__(self, translator: Translator) -> None:
        self.t, self.b = translator, translator.builder

    def constant(self, value: np.ndarray) -> Weight:
        """Weights that are known numbers."""
        return Weight(self.b.constant(value), value > 0, value < 0)

    def made(self, node: int, positive: np.ndarray, negative: np.ndarray) -> Weight:
        """Weights at a node; where it is constant, its own signs."""
        value = self.b.value(node)
        return Weight(node, positive, negative) if value is None else self.constant(value)

    def factor(self, c: Any) -> Weight:
        """A factor that depends on parameters only, with the signs that it may have."""
        node = self.t.node(c)
        shape = tuple(c.shape)
        positive, negative = np.full(shape, not c.is_nonpos()), np.full(shape, not c.is_nonneg())
        return self.made(node, positive, negative)

    def times(self, w: Weight, c: Weight, operation: str = "multiply") -> Weight:
        """The product (or quotient) of weights and a factor."""
        positive = (w.positive & c.positive) | (w.negative & c.negative)
        negative = (w.positive & c.negative) | (w.negative & c.positive)
        return self.made(self.b.call(operation, w.node, c.node), positive, negative)

    def narrowed(self, w: Weight, shape: tuple[int, ...]) -> Weight:
        """The transpose of broadcasting from `shape`."""
        old = w.positive.shape
        if old == shape:
            return w
        lead = len(old) - len(shape)
        axes = (*range(lead), *(lead + a for a, n in enumerate(shape) if n == 1 and old[lead + a] != 1))
        node = self.b.call("sum", w.node, options=(axes, False)) if axes else w.node
        node = gather(self.b, node, np.arange(int(np.prod(shape, dtype=int))).reshape(shape))
        positive, negative = (np.asarray(part.any(axis=axes)).reshape(shape) for part in (w.positive, w.negative))
        return self.made(node, positive, negative)

    def widened(self, w: Weight, shape: tuple[int, ...]) -> Weight:
        """Broadcast to a shape."""
        if w.positive.shape == shape:
            return w
        node = self.b.call("broadcast", w.node, options=(shape,))
        return self.made(node, np.broadcast_to(w.positive, shape), np.broadcast_to(w.negative, shape))

    def over_axes(self, w: Weight, e: Any) -> Weight:
        """The transpose of a sum of e.args[0] along e.axis."""
        inner = tuple(e.args[0].shape)
        axis = range(len(inner)) if e.axis is None else (e.axis,) if isinstance(e.axis, int | np.integer) else e.axis
        axes = {int(a) % len(inner) for a in axis} if inner else set()
        kept = tuple(1 if a in axes else n for a, n in enumerate(inner))
        index = np.arange(int(np.prod(kept, dtype=int))).reshape(kept)
        moved = self.made(gather(self.b, w.node, index), w.positive.reshape(kept), w.negative.reshape(kept))
        return self.widened(moved, inner)

    def transposed(self, w: Weight, matrix: Any, shape: tuple[int, ...]) -> Weight:
        """The transpose of a constant matrix with entries of one sign, on flat entries."""
        flat = gather(self.b, w.node, np.arange(w.positive.size))
        M = sp.csr_array(matrix.T)
        node = sparse_product(self.b, M, flat)
        node = self.b.call("matmul", self.b.constant(M.toarray()), flat) if node is None else node
        node = gather(self.b, node, np.arange(int(np.prod(shape, dtype=int))).reshape(shape))
        signs = [(M.astype(int) @ part.reshape(-1).astype(int)).reshape(shape) > 0 for part in (w.positive, w.negative)]
        return self.made(node, *signs)

    def through_matrix(self, w: Weight, e: Any) -> tuple[Any, Weight]:
        """The transpose of f -> C @ f or f -> f @ C."""
        left, right = e.args
        constant_left = left.is_constant()
        c, f = (left, right) if constant_left else (right, left)
        C = self.factor(c)
        if c.shape == () or f.shape == ():
            return f, self.narrowed(self.times(w, C), tuple(f.shape))
        if max(c.ndim, f.ndim) > 2:
            raise self.rejected(e, "products of arrays with more than two axes")

        rows = 1 if left.ndim == 1 else left.shape[0]
        columns = 1 if right.ndim == 1 else right.shape[1]
        inner = c.size // (rows if constant_left else columns)
        shape = (rows, inner) if constant_left else (inner, columns)
        turned = gather(self.b, C.node, np.arange(c.size).reshape(shape).T)
        W = gather(self.b, w.node, np.arange(rows * columns).reshape(rows, columns))
        product = self.b.call("matmul", turned, W) if constant_left else self.b.call("matmul", W, turned)

        def count(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            a, b = a.reshape(rows, columns).astype(int), b.reshape(shape).T.astype(int)
            return ((b @ a if constant_left else a @ b) > 0).reshape(f.shape)

        positive = count(w.positive, C.positive) | count(w.negative, C.negative)
        negative = count(w.positive, C.negative) | count(w.negative, C.positive)
        return f, self.made(gather(self.b, product, np.arange(f.size).reshape(f.shape)), positive, negative)

    def rejected(self, e: Any, what: str) -> NotLeastSquaresError:
        """The error for a term that is neither a square nor a loss."""
        return NotLeastSquaresError(
            "the problem is neither convex by the rules nor a nonlinear least-squares problem",
            where=text(e),
            expected="sums of nonnegatively weighted squares (sum_squares, quad_form) or robust losses (huber, log1p of a square)",
            got=what,
            mend="write the term as a square of a residual, or the problem as functions with layercompiler.LeastSquares",
        )
