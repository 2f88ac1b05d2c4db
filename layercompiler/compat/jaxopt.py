"""JAXopt's names for implicit differentiation, fixed points and linear solves, in torch, jax and TensorFlow.

    from layercompiler.compat.jaxopt import custom_root, root_vjp, FixedPointIteration, solve_cg

What JAXopt refuses or gets wrong works here: forward mode and Hessians through `custom_root`, closures, cotangents of auxiliary outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from layercompiler import arrays
from layercompiler.derivatives import krylov
from layercompiler.derivatives.factors import cholesky, lu
from layercompiler.derivatives.operator import Operator
from layercompiler.derivatives.solves import LinearSolve
from layercompiler.implicit.arguments import Unknown
from layercompiler.implicit.decorators import custom_fixed_point as _fixed_point
from layercompiler.implicit.decorators import custom_root as _root
from layercompiler.implicit.decorators import root_jvp, root_vjp
from layercompiler.implicit.iterations import norm

Function = Callable[..., Any]

__all__ = [
    "FixedPointIteration",
    "OptStep",
    "custom_fixed_point",
    "custom_root",
    "root_jvp",
    "root_vjp",
    "solve_bicgstab",
    "solve_cg",
    "solve_cholesky",
    "solve_gmres",
    "solve_inv",
    "solve_lu",
    "solve_normal_cg",
]


def custom_root(
    optimality_fun: Function,
    has_aux: bool = False,
    solve: LinearSolve | Function | None = None,
    reference_signature: Function | None = None,
) -> Callable[[Function], Function]:
    """See `layercompiler.custom_root`."""
    return _root(optimality_fun, has_aux=has_aux, solve=solve, reference_signature=reference_signature)


def custom_fixed_point(
    fixed_point_fun: Function,
    has_aux: bool = False,
    solve: LinearSolve | Function | None = None,
    reference_signature: Function | None = None,
) -> Callable[[Function], Function]:
    """See `layercompiler.custom_fixed_point`."""
    return _fixed_point(fixed_point_fun, has_aux=has_aux, solve=solve, reference_signature=reference_signature)


class OptStep(NamedTuple):
    """Parameters and state of a solver's run."""

    params: Any
    state: Any


class FixedPointState(NamedTuple):
    """What is known of a run.

    Attributes:
        iter_num: Iterations.
        error: |T(params) - params|.
        aux: Auxiliary output of the map at the fixed point.
    """

    iter_num: Any
    error: Any
    aux: Any


@dataclass(frozen=True)
class FixedPointIteration:
    """params <- fixed_point_fun(params, *args, **kwargs) until it stands still.

    Args:
        fixed_point_fun: The map; with `has_aux` it returns (params, aux).
        maxiter: Most iterations.
        tol: Stop when |T(params) - params| <= tol.
        has_aux: Whether the map has auxiliary outputs; their cotangents count.
        implicit_diff: Differentiate at the fixed point; False differentiates through the iterations.
        implicit_diff_solve: Linear solve of the derivative.
    """

    fixed_point_fun: Function
    maxiter: int = 100
    tol: float = 1e-5
    has_aux: bool = False
    implicit_diff: bool = True
    implicit_diff_solve: LinearSolve | Function | None = None

    def run(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Iterate from `init_params`."""
        counted: list[Any] = []

        def T(y: Any, *rest: Any, **named: Any) -> Any:
            value = self.fixed_point_fun(y, *rest, **named)
            return value[0] if self.has_aux else value

        def solver(init: Any, *rest: Any, **named: Any) -> Any:
            xp, unknown = self._unknown(init, rest, named)

            def step(k: Any, y: Any, e: Any) -> tuple[Any, ...]:
                new = unknown.flatten(T(unknown.unflatten(y), *rest, **named))
                return k + 1, new, norm(xp, new - y, 0)

            y = unknown.flatten(init)
            start = (xp.new(0), y, norm(xp, y, 0) * 0 + float("inf"))
            if not self.implicit_diff:
                k, e = 0, None
                while k < self.maxiter and (e is None or xp.traced(y) or float(xp.numpy(e).max()) > self.tol):
                    k, y, e = step(k, y, e)
                counted[:] = [k, e]
                return unknown.unflatten(y)
            k, y, e = xp.while_loop(lambda k, y, e: (k < self.maxiter) & xp.any(e > self.tol), step, start)
            counted[:] = [xp.stop_gradient(k), xp.stop_gradient(e)]
            return unknown.unflatten(y)

        if self.implicit_diff:
            # a loose tolerance is the caller's wish, so a point is not called a non-root for it
            params = _fixed_point(T, solve=self.implicit_diff_solve, tolerance=None)(solver)(init_params, *args, **kwargs)
        else:
            params = solver(init_params, *args, **kwargs)
        aux = self.fixed_point_fun(params, *args, **kwargs)[1] if self.has_aux else None
        return OptStep(params, FixedPointState(counted[0], counted[1], aux))

    def _unknown(self, init: Any, args: Any, named: Any) -> tuple[Any, Unknown]:
        host = arrays.get("numpy")
        xp = arrays.of(*(v for v in host.tree([init, list(args), dict(named)])[0] if host.is_array(v)))
        leaves, build = xp.tree(init)
        return xp, Unknown(xp, build([v if xp.is_array(v) else xp.new(float(v)) for v in leaves]))

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """T(params) - params, leaf by leaf."""
        value = self.fixed_point_fun(params, *args, **kwargs)
        value = value[0] if self.has_aux else value
        xp, _ = self._unknown(params, args, kwargs)
        leaves, build = xp.tree(value)
        return build([a - b for a, b in zip(leaves, xp.tree(params)[0], strict=True)])


def _operator(matvec: Function, b: Any, ridge: float | None) -> tuple[Operator, Unknown, Any]:
    host = arrays.get("numpy")
    xp = arrays.of(*host.tree(b)[0])
    unknown = Unknown(xp, b)
    flat = unknown.flatten(b)

    def product(v: Any) -> Any:
        value = unknown.flatten(matvec(unknown.unflatten(v)))
        return value if ridge is None else value + ridge * v

    zeros = xp.zeros_like(flat)
    pulls: list[Any] = []

    def transposed(u: Any) -> Any:
        if not pulls:
            pulls.append(xp.vjp(product, zeros)[1])
        return pulls[0](u)[0]

    return Operator(xp, flat, 0, product, transposed), unknown, flat


def _direct(matvec: Function, b: Any, ridge: float | None, make: Function) -> Any:
    A, unknown, flat = _operator(matvec, b, ridge)
    return unknown.unflatten(A.shaped(make(A.xp, A.blocks).solve(A.xp, A.flat(flat))))


def _krylov(matvec: Function, b: Any, ridge: float | None, init: Any, run: Function) -> Any:
    A, unknown, flat = _operator(matvec, b, ridge)
    start = None if init is None else unknown.flatten(init)
    rhs = flat if start is None else flat - A.matvec(start)
    scale = A.norm(rhs)
    x = run(A, krylov.safe(A.xp, rhs, scale)) * scale
    return unknown.unflatten(x if start is None else start + x)


def solve_lu(matvec: Function, b: Any, ridge: float | None = None) -> Any:
    """Solve A x = b by LU of the materialised matrix."""
    return _direct(matvec, b, ridge, lu)


def solve_cholesky(matvec: Function, b: Any, ridge: float | None = None) -> Any:
    """Solve A x = b by Cholesky; A positive definite."""
    return _direct(matvec, b, ridge, cholesky)


def solve_inv(matvec: Function, b: Any, ridge: float | None = None) -> Any:
    """Solve A x = b by a factorisation (no inverse is formed)."""
    return _direct(matvec, b, ridge, lu)


def solve_cg(
    matvec: Function, b: Any, ridge: float | None = None, init: Any = None, *, tol: float = 1e-12, maxiter: int | None = None, M: Any = None
) -> Any:
    """Solve A x = b by conjugate gradients; A positive definite, M a preconditioner."""
    return _krylov(matvec, b, ridge, init, lambda A, r: krylov.cg(A, r, tol, maxiter or 10 * A.size, M))


def solve_gmres(
    matvec: Function, b: Any, ridge: float | None = None, init: Any = None, *, tol: float = 1e-12, maxiter: int | None = None, M: Any = None
) -> Any:
    """Solve A x = b by GMRES."""
    return _krylov(matvec, b, ridge, init, lambda A, r: krylov.gmres(A, r, tol, maxiter or 10 * A.size, M))


def solve_bicgstab(
    matvec: Function, b: Any, ridge: float | None = None, init: Any = None, *, tol: float = 1e-12, maxiter: int | None = None, M: Any = None
) -> Any:
    """Solve A x = b by BiCGSTAB."""
    return _krylov(matvec, b, ridge, init, lambda A, r: krylov.bicgstab(A, r, tol, maxiter or 10 * A.size, M))


def solve_normal_cg(
    matvec: Function, b: Any, ridge: float | None = None, init: Any = None, *, tol: float = 1e-12, maxiter: int | None = None
) -> Any:
    """Solve A'A x + ridge x = A'b by conjugate gradients; A may be rectangular if `init` has the shape of x."""
    host = arrays.get("numpy")
    xp = arrays.of(*host.tree(b)[0])
    unknown, values = Unknown(xp, b if init is None else init), Unknown(xp, b)

    def product(v: Any) -> Any:
        return values.flatten(matvec(unknown.unflatten(v)))

    start = xp.zeros_like(unknown.flatten(b)) if init is None else unknown.flatten(init)
    value, pull = xp.vjp(product, start)
    rhs = pull(values.flatten(b) - value)[0] - (0.0 if ridge is None else ridge * start)
    A = Operator(
        xp,
        start,
        0,
        lambda v: pull(product(v))[0] + (0.0 if ridge is None else ridge * v),
        lambda v: v,
        frozenset({"psd"}),
    )
    scale = A.norm(rhs)
    x = krylov.cg(A, krylov.safe(xp, rhs, scale), tol, maxiter or 10 * A.size + 100) * scale
    return unknown.unflatten(start + x)
