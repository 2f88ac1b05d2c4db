"""The Jacobian of a residual map as a linear operator, one block per instance, on numbers: products, blocks, norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np

from layercompiler.arrays import Arrays

Product = Callable[[Any], Any]


class Operator:
    """A square linear operator A on arrays (batch..., event...), block-diagonal over the batch.

    Args:
        xp: Array functions.
        like: An array of the operand's shape and type.
        batch: Number of leading batch dimensions.
        matvec: v -> A v.
        rmatvec: u -> A'u.
        structure: Facts known of A: any of "symmetric", "psd" (symmetric positive semidefinite), "negative" (-A is psd).
        preconditioner: v -> roughly A^-1 v, or None.
    """

    def __init__(
        self,
        xp: Arrays,
        like: Any,
        batch: int,
        matvec: Product,
        rmatvec: Product,
        structure: frozenset[str] = frozenset(),
        preconditioner: Product | None = None,
    ) -> None:
        self.xp, self.like, self.batch, self.matvec, self.rmatvec, self.structure = xp, like, batch, matvec, rmatvec, structure
        self.preconditioner = preconditioner
        self.shape = tuple(int(s) for s in like.shape)
        self.axes = tuple(range(batch, len(self.shape)))
        self.size = math.prod(self.shape[batch:])
        self.eps = _eps(getattr(like.dtype, "name", None) or str(like.dtype))

    @property
    def T(self) -> Operator:
        """A'."""
        return Operator(self.xp, self.like, self.batch, self.rmatvec, self.matvec, self.structure)

    @property
    def symmetric(self) -> bool:
        """Whether A is known to be symmetric."""
        return bool(self.structure & {"symmetric", "psd", "negative"})

    def dot(self, a: Any, b: Any) -> Any:
        """Inner products per instance, (batch..., 1, ...)."""
        return self.xp.inner(a, b, self.axes)

    def norm(self, a: Any) -> Any:
        """Euclidean norms per instance, (batch..., 1, ...)."""
        return self.xp.norm(a, self.axes)

    def flat(self, a: Any) -> Any:
        """(batch..., n) of (batch..., event...)."""
        return self.xp.reshape(a, (*self.shape[: self.batch], self.size))

    def shaped(self, a: Any) -> Any:
        """(batch..., event...) of (batch..., n)."""
        return self.xp.reshape(a, self.shape)

    @property
    def rough(self) -> Any:
        """A as a matrix (n, n) in single precision, where that costs half; None elsewhere."""
        xp = self.xp
        if self.batch or self.eps > 1e-12:
            return None
        found = xp.rows(self.rmatvec, self.matvec, self.like, single=True)
        return None if found is None or self.eps > 0.1 * _eps(str(found.dtype)) else xp.reshape(found, (self.size, self.size))

    @cached_property
    def blocks(self) -> Any:
        """A as matrices (batch..., n, n): n products for all instances together, never one matrix of the whole batch."""
        xp, lead = self.xp, self.shape[: self.batch]
        if self.batch == 0 and self.size > 1:
            found = xp.rows(self.rmatvec, self.matvec, self.like)
            if found is not None:
                return xp.reshape(found, (self.size, self.size))
        eye = np.broadcast_to(np.eye(self.size).reshape(self.size, *(1,) * self.batch, self.size), (self.size, *lead, self.size))
        basis = xp.new(eye.reshape(self.size, *self.shape), self.like)
        if self.size == 0:
            return xp.zeros_like(xp.new(np.zeros((*lead, 0, 0)), self.like))
        self.rmatvec(xp.zeros_like(self.like))  # linearised out here: what is linearised inside of vmap stays there
        rows = xp.reshape(over(xp, self.rmatvec, basis), (self.size, *lead, self.size))
        return xp.moveaxis(rows, 0, -2)


@cache
def _eps(dtype: str) -> float:
    return float(np.finfo(dtype.split(".")[-1]).eps)


def over(xp: Arrays, product: Product, basis: Any) -> Any:
    """A linear product of every row of a basis."""
    if xp.name == "tensorflow":  # vectorized_map retraces at every call, and cannot see tapes that are already recorded
        return xp.stack([product(basis[i]) for i in range(int(basis.shape[0]))])
    return xp.vmap(product)(basis)


def jacobian(xp: Arrays, f: Product, y: Any, batch: int, structure: frozenset[str] = frozenset()) -> Operator:
    """The operator of df/dy at y; f is linearised once for each direction that is asked for."""
    pull = cache(lambda: xp.pullback(f, y))
    push = pull if structure else cache(lambda: xp.pushforward(f, y))  # symmetric, so the cheaper direction serves

    def rmatvec(u: Any) -> Any:
        return pull()(u)

    def matvec(v: Any) -> Any:
        return push()(v)

    rmatvec.linearized, matvec.linearized = pull, push  # type: ignore[attr-defined]
    if xp.traced(y):  # what is linearised first inside of a traced loop cannot be used outside of it
        zero = xp.zeros_like(y)
        rmatvec(zero)
        matvec(zero)
    return Operator(xp, y, batch, matvec, rmatvec, structure)


def is_symmetric(A: Operator) -> bool:
    """Whether A is symmetric, by two random products: u'Av = v'Au for Gaussian u and v only then (with probability one)."""
    xp, rng = A.xp, np.random.default_rng(0)
    u, v = (xp.new(rng.standard_normal(A.shape), A.like) for _ in range(2))
    Au, Av = A.rmatvec(u), A.rmatvec(v)
    scale = A.norm(u) * A.norm(Av) + A.norm(v) * A.norm(Au)
    return bool(np.all(xp.numpy(xp.abs(A.dot(v, Au) - A.dot(u, Av))) <= 100 * A.eps * xp.numpy(scale)))
