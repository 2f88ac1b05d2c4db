"""Array functions of jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import jax.scipy.special
import numpy as np

from layercompiler.arrays import jax_implicit
from layercompiler.arrays.base import Arrays, Function
from layercompiler.errors import UnsupportedTransformError


class Jax(Arrays):
    """Array functions of jax."""

    name = "jax"

    def new(self, value: Any, like: Any = None) -> Any:
        array = np.asarray(value)
        return jnp.asarray(array) if array.dtype.kind in "biu" else jnp.asarray(array, jnp.float64 if like is None else like.dtype)

    def numpy(self, value: Any) -> np.ndarray:
        if self.traced(value):
            raise UnsupportedTransformError("a traced value has no numbers", mend="call this outside of jit, vmap and grad")
        return np.asarray(value)

    def traced(self, *values: Any) -> bool:
        return any(isinstance(v, jax.core.Tracer) for v in values)

    def stop_gradient(self, x: Any) -> Any:
        return jax.lax.stop_gradient(x)

    def segment_sum(self, values: Any, index: Any, count: int) -> Any:
        return jax.ops.segment_sum(values, index, count)

    def softplus(self, x: Any) -> Any:
        return jax.nn.softplus(x)

    def ndtr(self, x: Any) -> Any:
        return jax.scipy.special.ndtr(x)

    def logsumexp(self, x: Any, axis: int | tuple[int, ...], keepdims: bool = False) -> Any:
        return jax.scipy.special.logsumexp(x, axis=axis, keepdims=keepdims)

    def solve_triangular(self, L: Any, b: Any, *, lower: bool = True, transposed: bool = False) -> Any:
        if L.shape[:-2] == b.shape[:-2] and L.dtype == b.dtype:
            # LAPACK reads columns: the transpose of an array of rows is one of columns, and the solve needs no copy of it
            U = jnp.swapaxes(L, -1, -2)
            return jax.lax.linalg.triangular_solve(U, b, left_side=True, lower=not lower, transpose_a=not transposed)
        return jax.scipy.linalg.solve_triangular(L, b, lower=lower, trans=1 if transposed else 0)

    def cholesky(self, A: Any) -> tuple[Any, Any]:
        L = jnp.linalg.cholesky(A)
        return L, jnp.all(jnp.isfinite(jnp.diagonal(L, axis1=-2, axis2=-1)), axis=-1)

    def lu_factor(self, A: Any) -> tuple[Any, Any]:
        return jax.scipy.linalg.lu_factor(A)

    def lu_solve(self, LU: Any, pivots: Any, b: Any, *, transposed: bool = False) -> Any:
        def one(f: Any, p: Any, r: Any) -> Any:
            return jax.scipy.linalg.lu_solve((f, p), r, trans=int(transposed))

        for _ in range(LU.ndim - 2):
            one = jax.vmap(one)
        return one(LU, pivots, b)

    def is_floating(self, x: Any) -> bool:
        return bool(jnp.issubdtype(x.dtype, jnp.floating))

    def tree(self, value: Any) -> tuple[list[Any], Function]:
        leaves, structure = jax.tree_util.tree_flatten(value)
        return leaves, lambda new: jax.tree_util.tree_unflatten(structure, new)

    def linearize(self, f: Function, x: Any) -> tuple[Any, Function]:
        return jax.linearize(f, x)

    def implicit(self, rule: Any, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        return jax_implicit.implicit(self, rule, known, args)

    def rows(self, pull: Function, push: Function, like: Any, single: bool = False) -> Any:
        return jax_implicit.rows(pull, like, single)

    def linear_solve(self, matvec: Function, b: Any, solve: Function) -> Any:
        return jax_implicit.linear_solve(matvec, b, solve)

    def refuse(self, change: Any, message: str, mend: str) -> Any:
        return jax_implicit.refuse(change, message, mend)

    def captures(self, f: Function, args: tuple[Any, ...]) -> tuple[Function, tuple[Any, ...], Any, Any]:
        return jax_implicit.captures(f, args)

    def host(self, f: Any, like: Any, *args: Any) -> Any:
        return jax_implicit.host(f, like, args)

    def vjp(self, f: Function, *args: Any) -> Any:
        return jax.vjp(f, *args)

    def jvp(self, f: Function, args: Sequence[Any], tangents: Sequence[Any]) -> Any:
        return jax.jvp(f, tuple(args), tuple(tangents))

    def vmap(self, f: Function, in_axes: Any = 0) -> Function:
        return jax.vmap(f, in_axes)

    def jacobian(self, f: Function, x: Any) -> Any:
        return jax.jacfwd(f)(x)

    def while_loop(self, condition: Function, body: Function, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return jax.lax.while_loop(lambda s: condition(*s), lambda s: tuple(body(*s)), tuple(state))

    def cond(self, condition: Any, yes: Function, no: Function, *args: Any) -> Any:
        return jax.lax.cond(condition, yes, no, *args)

    def compile(self, f: Function) -> Function:
        return jax.jit(f)


ARRAYS = Jax(jnp)
