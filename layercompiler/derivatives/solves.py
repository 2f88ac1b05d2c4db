"""Linear solves as values: how a derivative solves with the Jacobian or its transpose; every one checks its residual.

    lc.Root(F, solver=..., linear_solve=CG(preconditioner=M))

Right-hand sides are scaled to unit norm before anything iterates, so tiny cotangents neither stall nor overflow.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.derivatives import factors, krylov
from layercompiler.derivatives.factors import Factor
from layercompiler.derivatives.operator import Operator, is_symmetric
from layercompiler.errors import DerivativeError, LayerCompilerError, OptionError

DENSE = 64  # up to this size per instance a batched LU beats any iteration, in every framework
ROUGH = 128  # from this size on a matrix is formed and factorised faster in single precision, refinement included
NEAR = 1e-12  # a relative residual of double precision; above it, a solution by single precision is not taken
LARGEST_DENSE = 4096  # no fallback materialises larger blocks


class LinearSolve(ABC):
    """Solves A x = b on numbers; the caller checks the residual."""

    #: Largest accepted relative residual; None for a loose solve that is meant to be approximate.
    accept: float | None = 1e-9

    @abstractmethod
    def solve(self, A: Operator, b: Any) -> Any:
        """X of the shape of b, for b of unit norm."""


@dataclass(frozen=True)
class LU(LinearSolve):
    """Dense LU of every instance's block, refined. Cost: n products and O(n^3) per instance."""

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        return refined(A, factors.lu(A.xp, A.blocks), b, False)


@dataclass(frozen=True)
class Cholesky(LinearSolve):
    """Dense Cholesky of every instance's block, which must be symmetric and positive (or, tagged so, negative) definite."""

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        return refined(A, factors.cholesky(A.xp, A.blocks, -1 if "negative" in A.structure else 1), b, False)


@dataclass(frozen=True)
class _Dense(LinearSolve):
    """Cholesky where the blocks are symmetric (told, or seen in their numbers) and definite, else LU: `Auto` takes it.

    A large block is formed and factorised in single precision, which takes half of the time, and solutions are refined against A itself;
    where they do not get to the precision of A that way, all is done over in that precision.
    """

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        xp = A.xp
        rough = A.rough if A.size >= ROUGH else None
        if rough is None:
            return self.exactly(A, b)
        x, e = refine(A, self.factor(A, rough), b, False)
        good = xp.all(e <= NEAR)
        if not xp.traced(b):
            return x if bool(good) else self.exactly(A, b)

        def again(good: Any, x: Any) -> tuple[Any, Any]:
            here = Operator(xp, A.like, A.batch, A.matvec, A.rmatvec, A.structure)  # whose blocks belong to the loop
            return xp.ones_like(good), self.exactly(here, b)

        return xp.while_loop(lambda good, x: ~good, again, (good, x))[1]  # not `cond`, of which vmap would run both sides

    def factor(self, A: Operator, matrix: Any) -> Factor:
        """Of a rough matrix."""
        xp, sign = A.xp, -1 if "negative" in A.structure else 1
        if xp.traced(matrix):
            if not A.structure & {"psd", "negative"}:
                return factors.lu(xp, matrix)
            return Factor("cholesky", (xp.cholesky(matrix * sign)[0],), sign)
        if A.symmetric or bool(xp.max(xp.abs(matrix - xp.matrix_transpose(matrix))) <= 1e-5 * xp.max(xp.abs(matrix))):
            L, ok = xp.cholesky(matrix * sign if sign < 0 else matrix)
            if bool(xp.all(ok)):
                return Factor("cholesky", (L,), sign)
        return factors.lu(xp, matrix)

    def exactly(self, A: Operator, b: Any) -> Any:
        """In the precision of A."""
        xp, sign = A.xp, -1 if "negative" in A.structure else 1
        if xp.traced(b):
            if not A.structure & {"psd", "negative"}:
                return LU().solve(A, b)
            L, ok = xp.cholesky(A.blocks * sign)
            factor = Factor("cholesky", (L,), sign)
            return xp.cond(xp.all(ok), lambda r: refined(A, factor, r, False), lambda r: CG(maxiter=2 * A.size).solve(A, r), b)
        if A.size >= DENSE and (A.symmetric or _looks_symmetric(A)):
            L, ok = xp.cholesky(A.blocks * sign if sign < 0 else A.blocks)
            if bool(xp.all(ok)):
                return refined(A, Factor("cholesky", (L,), sign), b, False)
        return LU().solve(A, b)


def _looks_symmetric(A: Operator) -> bool:
    xp, B = A.xp, A.blocks
    return bool(xp.max(xp.abs(B - xp.matrix_transpose(B))) <= 100 * A.eps * xp.max(xp.abs(B)))


@dataclass(frozen=True)
class _Iterative(LinearSolve):
    """Settings of the iterations.

    Args:
        tol: Relative residual to reach; None for as far as the precision allows (1e-12 in float64).
        maxiter: Most iterations; None for 10 n + 100.
        preconditioner: M(y, *theta) -> a function v -> roughly A^-1 v. For an adjoint its transpose is taken automatically.
    """

    tol: float | None = None
    maxiter: int | None = None
    preconditioner: Callable[..., Any] | None = None

    def settings(self, A: Operator) -> tuple[float, int]:
        """The tolerance and the iteration limit for an operator."""
        return self.tol or max(1e-12, 20 * A.eps), self.maxiter or 10 * A.size + 100

    @property
    def accept(self) -> float:  # type: ignore[override]
        """A tolerance that was asked for is what is held to."""
        return max(1e-9, 10 * (self.tol or 0.0))


@dataclass(frozen=True)
class CG(_Iterative):
    """Conjugate gradients; A must be symmetric and definite."""

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        near = 5e-11 if self.tol is None and A.eps < 1e-12 else 0.0  # the accuracy of a derivative is 1e-9 by default
        return krylov.cg(A, b, *self.settings(A), A.preconditioner, near)


@dataclass(frozen=True)
class GMRES(_Iterative):
    """Restarted GMRES, preconditioned from the right.

    Args:
        restart: Dimension of the Krylov spaces.
    """

    restart: int = 30

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        return krylov.gmres(A, b, *self.settings(A), A.preconditioner, self.restart)


@dataclass(frozen=True)
class BiCGSTAB(_Iterative):
    """BiCGSTAB: short recurrences, any square A."""

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        return krylov.bicgstab(A, b, *self.settings(A), A.preconditioner)


@dataclass(frozen=True)
class NormalCG(_Iterative):
    """Conjugate gradients on the normal equations; a preconditioner is one of A'A and symmetric."""

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        return krylov.normal_cg(A, b, *self.settings(A), A.preconditioner)


@dataclass(frozen=True)
class LSMR(_Iterative):
    """LSMR: least squares without squaring the condition number; minimum norm where A is singular."""

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        return krylov.lsmr(A, b, *self.settings(A))


@dataclass(frozen=True)
class Neumann(LinearSolve):
    """The Neumann series sum_k (I - A)^k b, which converges for A = I - dT/dy with a contraction T.

    Args:
        terms: Number of terms of a truncated series, approximate on purpose (its residual is not checked); 1 is the "Jacobian-free"
            backward pass. None to sum until it converges, with BiCGSTAB for what is left of a series that converges slowly.
        tol: Relative residual to reach without `terms`; None for as far as the precision allows.
    """

    terms: int | None = 1
    tol: float | None = None

    @property
    def accept(self) -> float | None:  # type: ignore[override]
        """A truncated series is not held to anything."""
        return None if self.terms is not None else max(1e-9, 10 * (self.tol or 0.0))

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        if self.terms is not None:
            return krylov.neumann(A, b, self.terms)
        tol = self.tol or max(1e-12, 20 * A.eps)
        x, r = krylov.series(A, b, tol)
        if not A.xp.traced(b) and not bool(A.xp.any(A.norm(r) > tol)):
            return x
        return x + krylov.bicgstab(A, r, tol, A.size)


@dataclass(frozen=True)
class Auto(LinearSolve):
    """Dense LU where forming the blocks is likely the cheapest; else CG if the Jacobian is symmetric (told or probed), else BiCGSTAB.

    Iterations are given up, for LU, once they have cost some times what LU costs. Whatever comes first is kept only if its residual
    passes; the last resort is the pseudo-inverse.

    Args:
        probe: Whether to look for symmetry, at the price of two products.
        contraction: A = I - dT/dy with a map T that likely contracts: its Neumann series is begun first.
    """

    probe: bool = True
    contraction: bool = False

    def solve(self, A: Operator, b: Any) -> Any:
        """See `LinearSolve.solve`."""
        dense = formed(A)
        if A.size <= DENSE or dense <= DENSE:
            return _Dense().solve(A, b)
        if self.contraction and not A.xp.traced(b):
            return Neumann(None).solve(A, b)
        if A.xp.traced(b):  # no numbers to probe or to decide by
            dense = A.size <= 1024
            first = _Dense() if dense else CG(maxiter=2 * A.size) if A.structure & {"psd", "negative"} else GMRES()
            return first.solve(A, b)
        symmetric = A.symmetric or (self.probe and is_symmetric(A))
        limit = int(4 * dense) if A.size <= LARGEST_DENSE else 2 * A.size
        x = CG(maxiter=limit).solve(A, b) if symmetric else BiCGSTAB(maxiter=limit // 2).solve(A, b)
        if A.size > LARGEST_DENSE and not symmetric and bool(np.any(A.xp.numpy(error(A, x, b)) > accepted(A, 1e-9))):
            x = GMRES(maxiter=max(300, A.size)).solve(A, b)
        return x


def formed(A: Operator) -> float:
    """What a dense solve costs, in products with A as they come in an iteration.

    Forming the blocks takes n products together. For a single instance a product is bound by memory or by the cost of its calls, and one of
    many at once is measured to cost a tenth (logistic regression, p = 100 and 300, torch and jax); a batch of instances fills the machine
    already. TensorFlow takes them one by one.
    """
    share = 1.0 if A.xp.name == "tensorflow" else min(1.0, 0.1 * math.prod(A.shape[: A.batch]))
    return A.size * share * (1 + A.size / 2000)  # n^3 against n products of n^2 at least


def refined(A: Operator, factor: Factor, b: Any, transposed: bool, steps: int = 8) -> Any:
    """Solve with a factor and refine against A itself."""
    return refine(A, factor, b, transposed, steps)[0]


def refine(A: Operator, factor: Factor, b: Any, transposed: bool, steps: int = 8) -> tuple[Any, Any]:
    """As `refined`, for b of unit norm, and the relative residuals.

    A factor of a point nearby converges linearly: with a first correction of relative size e, the next residual is of size e^2, and where
    that is beyond doubt no product is spent on it.
    """
    xp = A.xp

    def apply(r: Any) -> Any:
        return A.shaped(factor.solve(xp, A.flat(r), transposed))

    def go(k: Any, x: Any, r: Any, e: Any, before: Any) -> Any:
        return (k < steps) & xp.any(~sure & (e > 30 * A.eps) & (e < 0.5 * before))

    def step(k: Any, x: Any, r: Any, e: Any, before: Any) -> Any:
        x = x + apply(r)
        r = b - A.matvec(x)
        return k + 1, x, r, A.norm(r), e

    x = apply(b)
    r = b - A.matvec(x)
    e = A.norm(r)
    d = apply(r)
    rate = A.norm(d) / A.norm(x) + e
    sure = rate < 1e-2 * A.eps**0.25
    if not xp.traced(b) and bool(xp.all(sure)):
        return x + d, e * rate
    found = xp.while_loop(go, step, (xp.zero, x, r, e, xp.zeros_like(e) + float("inf")))
    return xp.where(sure, x + d, found[1]), xp.where(sure, e * rate, found[3])


def _refine_alone(A: Operator, factor: Factor, b: Any, transposed: bool, steps: int = 8) -> tuple[Any, float] | None:
    """As `refine`, of one instance, eagerly, for b of any size; None where that is not a plain number."""
    xp, flat = A.xp, len(A.shape) == 1

    def apply(r: Any) -> Any:
        return factor.solve(xp, r, transposed) if flat else A.shaped(factor.solve(xp, A.flat(r), transposed))

    def size(a: Any) -> float:
        a = a if flat else a.reshape(-1)
        return math.sqrt(a.dot(a).item())

    scale = size(b)
    if not 1e-100 < scale < 1e100:
        return None
    x = apply(b)
    r = b - A.matvec(x)
    e, before = size(r) / scale, math.inf
    if e <= A.eps:
        return x, e
    d = apply(r)
    rate = size(d) / max(size(x), 1e-300) + e
    if rate < 1e-2 * A.eps**0.25:
        return x + d, e * rate
    while steps > 0 and e > 30 * A.eps and e < 0.5 * before:
        x = x + d
        r = b - A.matvec(x)
        before, e = e, size(r) / scale
        d = apply(r)
        steps -= 1
    return x, e


def error(A: Operator, x: Any, b: Any) -> Any:
    """Relative residuals per instance, for b of unit norm; NaN where x is not finite, which a product with zeros would not show."""
    return A.norm(b - A.matvec(x) + 0.0 * x)


def accepted(A: Operator, accept: float) -> float:
    """The accepted relative residual in the precision of A."""
    return max(accept, 1e4 * A.eps)


def solve(
    linear: LinearSolve, A: Operator, b: Any, *, factor: Factor | None = None, transposed: bool = False, on_error: str = "raise"
) -> Any:
    """Solve A x = b, scaled, checked, with fallbacks; A is already the transpose if `transposed`, which only says so to the factor.

    Raises:
        DerivativeError: No fallback reached an acceptable residual and on_error is "raise". Traced code cannot raise: there the
            instance is NaN.
    """
    xp = A.xp
    if not isinstance(linear, LinearSolve):
        raise OptionError("not a linear solve", expected="such as layercompiler.linear.CG()", got=repr(linear))
    if A.size == 0 or 0 in A.shape:
        return b
    limit = accepted(A, linear.accept or 1e-9)
    if factor is not None and A.batch == 0 and xp.name == "torch" and not xp.traced(b):
        found = _refine_alone(A, factor, b, transposed)
        if found is not None and found[1] <= limit:
            return found[0]
    unit, scale = _unit(A, b)
    off = None
    if factor is not None:
        x, off = refine(A, factor, unit, transposed)
    else:
        x = _attempt(linear, A, unit)
        if linear.accept is None:
            return x * scale
    off = error(A, x, unit) if off is None else off
    if xp.traced(b):
        good = off <= limit
        return xp.where(good, x * scale, xp.where(xp.isfinite(scale) & (scale == 0), xp.zeros_like(x), xp.zeros_like(x) + float("nan")))
    for spare in _fallbacks(linear, A, factor):
        worse = xp.numpy(~(off <= limit))
        if not worse.any():
            break
        other = _attempt(spare, A, unit)
        other_off = error(A, other, unit)
        better = (other_off < off) | ~xp.isfinite(off)
        x, off = xp.where(better, other, x), xp.where(better, other_off, off)
    bad = xp.numpy(~(off <= limit))
    if bad.any():
        x = _report(A, x, xp.numpy(off), bad, limit, on_error)
    return x * scale


def _unit(A: Operator, b: Any) -> tuple[Any, Any]:
    """(u, c) with b = c u and u of unit norm, for every instance."""
    xp = A.xp
    if not xp.traced(b):
        scale = A.norm(b)
        if bool(xp.all((scale > 1e-10) & (scale < 1e10))):
            return b / scale, scale
    largest = xp.max(xp.abs(b), axis=A.axes, keepdims=True) if A.axes else xp.abs(b)
    unit = krylov.safe(xp, b, largest)  # in two steps: squares of tiny numbers vanish
    scale = A.norm(unit)
    return krylov.safe(xp, unit, scale), scale * largest


def _attempt(linear: LinearSolve, A: Operator, b: Any) -> Any:
    try:
        return linear.solve(A, b)
    except LayerCompilerError:
        raise
    except Exception as failure:  # a singular or indefinite block stops the factorisation of the whole batch
        if type(failure).__name__ not in ("LinAlgError", "_LinAlgError", "InvalidArgumentError"):
            raise
        return A.xp.zeros_like(b) + float("nan")


@dataclass(frozen=True)
class _PseudoInverse(LinearSolve):
    def solve(self, A: Operator, b: Any) -> Any:
        return refined(A, factors.pinv(A.xp, A.blocks), b, False)


def _fallbacks(linear: LinearSolve, A: Operator, factor: Factor | None) -> list[LinearSolve]:
    dense: list[LinearSolve] = [LU(), _PseudoInverse()] if A.size <= LARGEST_DENSE else [GMRES()]
    first = [linear] if factor is not None else []
    return first + [s for s in dense if s != linear]


def _report(A: Operator, x: Any, off: np.ndarray, bad: np.ndarray, limit: float, on_error: str) -> Any:
    where = bad.reshape(bad.shape[: A.batch])
    indices = tuple(tuple(int(i) for i in row) for row in np.argwhere(where)) if A.batch else ()
    text = f"the linear system of the derivative is singular or too ill-conditioned (relative residual {np.nanmax(off[bad]):.1e})"
    mend = "check that the Jacobian dF/dy is regular at the solution, or pass linear_solve=LSMR() and on_error='flag'"
    if on_error == "raise":
        raise DerivativeError(text, where=f"instances {list(indices)}" if indices else "", expected=f"at most {limit:.0e}", mend=mend)
    if on_error == "warn":
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return x
    return A.xp.where(A.xp.new(bad), A.xp.zeros_like(x), x)
