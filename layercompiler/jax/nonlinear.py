"""Nonlinear problems of a modelling language as functions of jax arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from layercompiler import arrays
from layercompiler.jax.layer import _array
from layercompiler.jax.least_squares import LeastSquaresLayer
from layercompiler.plan.arguments import starts
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.plan.nonlinear import CompiledNonlinear

_XP = arrays.get("jax")


class NonlinearLayer:
    """Parameters in, outputs out, differentiable; see `LeastSquaresLayer` for transforms, cost, and when there is no derivative.

    Args:
        compiled: A `CompiledNonlinear`.
    """

    def __init__(self, compiled: CompiledNonlinear) -> None:
        self.compiled = compiled
        self.inner = LeastSquaresLayer(compiled.inner)

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[jax.Array, ...]:
        """Solve for parameters (batch..., *shape) in order or by name, starts by variable; one array per output.

        Raises:
            InputError: An argument is wrong.
            SolveError: An instance did not converge and the layer is told to raise.
        """
        return self._run(args, named, init, lambda theta, start: self.inner(*theta, init=start))

    def solve(
        self, *args: Any, init: Mapping[str, Any] | None = None, callback: Callable[..., Any] | None = None, **named: Any
    ) -> LeastSquaresSolution:
        """Solve outside of transforms, and tell what happened to each instance; never raises for those that did not converge.

        `callback` as in `LeastSquaresLayer.solve`.
        """
        found: list[LeastSquaresSolution] = []

        def solve(theta: Any, start: Any) -> tuple[Any, ...]:
            found.append(self.inner.solve(*theta, init=start, callback=callback))
            return found[0].outputs

        return self.compiled.solution(self._run(args, named, init, solve, True), found[0])

    def report(self) -> str:
        """What the compiler found, and how it is solved and differentiated."""
        return self.compiled.report()

    def __repr__(self) -> str:
        return f"layercompiler.jax.NonlinearLayer({self.compiled.describe()})"

    def _run(self, args: Any, named: Any, init: Any, solve: Callable[..., Any], told: bool = False) -> tuple[jax.Array, ...]:
        compiled = self.compiled
        given = [_array(v, name) for v, name in zip(compiled.arguments.bind(args, named), compiled.parameters, strict=True)]
        kinds = [g.dtype for g in given if jnp.issubdtype(g.dtype, jnp.floating)]
        dtype = jnp.result_type(*kinds) if kinds else jnp.float64
        host = starts(init)
        values = self.compiled.call(_XP, [g.astype(jnp.float64) for g in given], host, solve, told)
        return tuple(v.astype(dtype) for v in values)
