"""`custom_root` and `custom_fixed_point` give derivatives to any solver; `root_vjp` and `root_jvp` are the products themselves.

They mean what JAXopt's functions of these names mean, in torch, jax and TensorFlow.

Source: Blondel et al. 2022, "Efficient and modular implicit differentiation".
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler.arrays import Arrays
from layercompiler.derivatives.operator import Operator, jacobian
from layercompiler.derivatives.solves import Auto, LinearSolve
from layercompiler.derivatives.solves import solve as solve_linear
from layercompiler.errors import InputError, OptionError
from layercompiler.implicit.arguments import Arguments, Function, Unknown, bound
from layercompiler.implicit.layer import one_by_one
from layercompiler.implicit.solve import Policy, differentiable, refusing


def custom_root(
    F: Function,
    *,
    has_aux: bool = False,
    solve: LinearSolve | Function | None = None,
    argnums: int | Sequence[int] | None = None,
    reference_signature: Function | None = None,
    structure: Sequence[str] = (),
    batch: int = 0,
    host: bool = False,
    tolerance: float | None = 1e-3,
    on_error: str = "warn",
) -> Callable[[Function], Function]:
    """Give a solver of F(y, *args, **named) = 0 the derivatives of the root.

        @lc.custom_root(lambda y, theta: theta * y + y**3 - 1.0)
        def solver(init, theta): ...        # any code: a loop, SciPy, a compiled library

    Args:
        F: The residual, F(y, *args, **named) or F(xp, y, *args, **named), of the structure of y.
        has_aux: The solver returns (y, aux). Derivatives of aux cannot be known, and asking for them raises (forwards they are NaN).
        solve: A linear solve (`layercompiler.linear`), or a function (matvec, b) -> x.
        argnums: Positions (0 is `init`) of the only arguments that are differentiated; None for all.
        reference_signature: A function whose signature names the arguments of F, if F itself takes *args.
        structure: Facts known of dF/dy: "symmetric", "psd", "negative".
        batch: Number of leading dimensions of y that are independent instances.
        host: The solver wants numpy arrays: it is called on the host, under jit and vmap too, and must return the structure of `init`.
        tolerance: Above tolerance * (1 + |y|), |F| says that the solver returned no root; None skips the check.
        on_error: What then: "warn", "raise" or "flag" (NaN).

    Returns:
        A decorator of solvers: solver(init, *args, **named) -> y or (y, aux).

    Differentiability: forward and reverse mode, of every order, under vmap; what F captures (module parameters, closed-over tensors) is
        differentiated in torch and jax, and variables are in TensorFlow; what cannot be is refused.
    """
    policy = Policy(_linear(solve), frozenset(structure), batch, tolerance, on_error)
    chosen = None if argnums is None else {argnums} if isinstance(argnums, int) else set(argnums)

    def decorate(solver: Function) -> Function:
        @functools.wraps(solver)
        def solution(init: Any, *args: Any, **named: Any) -> Any:
            xp = _framework(init, args, named)
            fixed = frozenset() if chosen is None else frozenset(i for i in range(len(args)) if i + 1 not in chosen)
            given = Arguments(xp, args, named, fixed)
            y, aux, unknown = _run(xp, solver, init, given, has_aux, host, batch)
            residual = _flat_residual(xp, F, given, unknown, reference_signature)
            attached, theta = differentiable(xp, residual, y, given.arrays, policy)
            result = unknown.unflatten(attached)
            return (result, refusing(xp, aux, theta)) if has_aux else result

        return solution

    return decorate


def custom_fixed_point(T: Function, **options: Any) -> Callable[[Function], Function]:
    """Give a solver of y = T(y, *args, **named) the derivatives of the fixed point; arguments as of `custom_root`."""

    return custom_root(_FixedPointResidual(T), **options)


class _FixedPointResidual:
    """y - T(y, ...), leaf by leaf."""

    def __init__(self, T: Function) -> None:
        self.T = T

    def __call__(self, y: Any, *args: Any, **named: Any) -> Any:
        value = self.T(y, *args, **named)
        return _minus(y, value)


def _minus(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return type(a)((k, _minus(v, b[k])) for k, v in a.items())
    if isinstance(a, (tuple, list)):
        items = [_minus(x, y) for x, y in zip(a, b, strict=True)]
        return type(a)(*items) if hasattr(a, "_fields") else type(a)(items)
    return a - b


def root_vjp(
    F: Function, sol: Any, args: tuple[Any, ...], cotangent: Any, solve: LinearSolve | Function | None = None, batch: int = 0
) -> tuple[Any, ...]:
    """Cotangents of the arguments of F at the root `sol`: -(dF/dargs)' (dF/dy)^-T cotangent.

    Args:
        F: The residual F(y, *args).
        sol: Its root.
        args: The other arguments; None is returned for those that are not floating arrays.
        cotangent: Of the structure of `sol`.
        solve: A linear solve, or a function (matvec, b) -> x.
        batch: Number of leading batch dimensions of `sol`.
    """
    xp, f, y, given, unknown = _at_root(F, sol, args, batch)
    A = jacobian(xp, lambda v: f(v, *given.arrays), y, batch)
    u = solve_linear(_linear(solve) or Auto(), A.T, unknown.flatten(cotangent))
    at = [i for i, a in enumerate(given.arrays) if xp.is_floating(a)]

    def moved(*some: Any) -> Any:
        full = list(given.arrays)
        for i, value in zip(at, some, strict=True):
            full[i] = value
        return f(y, *full)

    pulled = xp.vjp(moved, *(given.arrays[i] for i in at))[1](-u) if at else ()
    grads: list[Any] = [None] * len(given.arrays)
    for i, grad in zip(at, pulled, strict=True):
        grads[i] = grad
    return tuple(given.rebuild(grads)[0])


def root_jvp(
    F: Function, sol: Any, args: tuple[Any, ...], tangents: tuple[Any, ...], solve: LinearSolve | Function | None = None, batch: int = 0
) -> Any:
    """The tangent of the root `sol`: -(dF/dy)^-1 dF/dargs tangents; arguments as of `root_vjp`."""
    xp, f, y, given, unknown = _at_root(F, sol, args, batch)
    moving = Arguments(xp, tuple(tangents), {}).arrays
    if len(moving) != len(given.arrays):
        raise InputError("one tangent per argument", expected=str(len(given.arrays)), got=str(len(moving)))
    change = xp.jvp(lambda *theta: f(y, *theta), given.arrays, moving)[1]
    A = jacobian(xp, lambda v: f(v, *given.arrays), y, batch)
    return unknown.unflatten(solve_linear(_linear(solve) or Auto(), A, -change))


def _at_root(F: Function, sol: Any, args: tuple[Any, ...], batch: int) -> tuple[Arrays, Function, Any, Arguments, Unknown]:
    xp = _framework(sol, args, {})
    given, unknown = Arguments(xp, tuple(args), {}), Unknown(xp, sol, batch)
    return xp, _flat_residual(xp, F, given, unknown), unknown.flatten(sol), given, unknown


def _flat_residual(xp: Arrays, F: Function, given: Arguments, unknown: Unknown, signature: Function | None = None) -> Function:
    call = _FixedPointResidual(bound(F.T, xp)) if isinstance(F, _FixedPointResidual) else bound(F, xp)

    def flat(y: Any, *values: Any) -> Any:
        args, named = given.rebuild(values)
        point = unknown.unflatten(y)
        if signature is not None:
            filled = inspect.signature(signature).bind(point, *args, **named)
            return unknown.flatten(call(*filled.args, **filled.kwargs))
        return unknown.flatten(call(point, *args, **named))

    return flat


def _run(xp: Arrays, solver: Function, init: Any, given: Arguments, has_aux: bool, host: bool, batch: int) -> tuple[Any, Any, Unknown]:
    """The solver's point, on constants: (flat y, aux, structure)."""
    structure: list[Any] = []

    def call(*values: Any) -> tuple[Any, ...]:
        args, named = given.rebuild(values)
        result = solver(init, *args, **named)
        sol, aux = result if has_aux else (result, None)
        unknown = Unknown(xp, sol, batch)
        leaves, build = xp.tree(aux)
        structure[:] = [unknown, build, [xp.is_array(leaf) for leaf in leaves], leaves]
        return (unknown.flatten(sol), *(leaf for leaf in leaves if xp.is_array(leaf)))

    def on_host(*values: Any) -> np.ndarray:
        args, named = given.rebuild([np.asarray(v) for v in values[len(leaves) :]])
        result = solver(build([np.asarray(v) for v in values[: len(leaves)]]), *args, **named)
        return np.reshape(Unknown(arrays.get("numpy"), result, batch).flatten(result), unknown.flatten(init).shape)

    if host:
        if has_aux:
            raise OptionError("a host solver cannot have auxiliary outputs", mend="return the solution alone, or use host=False")
        unknown = Unknown(xp, init, batch)
        leaves, build = xp.tree(init)
        y = xp.host(on_host, unknown.flatten(init), *(xp.asarray(v) for v in leaves), *given.arrays)
        return y, None, unknown
    y, *rest = xp.opaque(call, one_by_one(xp), *given.arrays)
    unknown, build, tensor, leaves = structure
    moved = iter(rest)
    return y, build([next(moved) if is_tensor else leaf for leaf, is_tensor in zip(leaves, tensor, strict=True)]), unknown


def _framework(init: Any, args: Sequence[Any], named: dict[str, Any]) -> Arrays:
    host = arrays.get("numpy")
    leaves = host.tree([init, list(args), dict(named)])[0]
    known = [v for v in leaves if host.is_array(v)]
    xp = arrays.of(*known)
    if xp.name == "numpy":
        raise OptionError(
            "no tensor of a framework among the arguments", expected="tensors of torch, jax or TensorFlow", mend="convert one argument"
        )
    return xp


class _Function(LinearSolve):
    """A linear solve as a function (matvec, b) -> x."""

    def __init__(self, f: Function) -> None:
        self.f = f
        self.accept = None  # as accurate as its author wants it

    def solve(self, A: Operator, b: Any) -> Any:
        return self.f(A.matvec, b)


def _linear(solve: LinearSolve | Function | None) -> LinearSolve | None:
    return solve if solve is None or isinstance(solve, LinearSolve) else _Function(solve)
