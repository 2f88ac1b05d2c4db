"""Nonlinear problems of a modelling language as torch modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from layercompiler import arrays
from layercompiler.plan.arguments import starts
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.plan.nonlinear import CompiledNonlinear
from layercompiler.torch.layer import _read
from layercompiler.torch.least_squares import LeastSquaresLayer, _host

_XP = arrays.get("torch")


class NonlinearLayer(torch.nn.Module):
    """Parameters in, outputs out, differentiable; see `LeastSquaresLayer` for what the derivative is and when there is none.

    Args:
        compiled: A `CompiledNonlinear`.

    Example:
        >>> import cvxpy as cp, layercompiler as lc, torch
        >>> x, y, t = cp.Variable(2, name="x"), cp.Parameter(5, name="y"), torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x[0] * cp.exp(x[1] * t.numpy()) - y)))
        >>> layer = lc.export(problem, "torch", parameters=[y], variables=[x])
        >>> (found,) = layer(2 * torch.exp(-t), init={"x": [1.0, 0.0]})
        >>> [round(v, 6) for v in found.tolist()]
        [2.0, -1.0]
    """

    def __init__(self, compiled: CompiledNonlinear) -> None:
        super().__init__()
        self.compiled = compiled
        self.inner = LeastSquaresLayer(compiled.inner)

    def forward(self, *tensors: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Solve at the given parameters.

        Args:
            *tensors: Parameters in order, each (batch..., *shape); leading dimensions broadcast.
            init: Starts by variable, (batch..., *shape); by default each variable's `.value` when the problem was compiled, else zero.
            **named: Parameters by name.

        Returns:
            One tensor per output, (batch..., *shape).

        Raises:
            InputError: An argument is wrong.
            SolveError: An instance did not converge and the layer is told to raise.
        """
        return self._run(tensors, named, init, lambda theta, start: self.inner(*theta, init=start))

    def solve(
        self, *tensors: Any, init: Mapping[str, Any] | None = None, callback: Callable[..., Any] | None = None, **named: Any
    ) -> LeastSquaresSolution:
        """Solve, and tell what happened to each instance; never raises for instances that did not converge.

        Args:
            *tensors: As for a call.
            init: As for a call.
            callback: Called after every step; see `LeastSquaresLayer.solve`.
            **named: As for a call.
        """
        found: list[LeastSquaresSolution] = []

        def solve(theta: Any, start: Any) -> tuple[Tensor, ...]:
            found.append(self.inner.solve(*theta, init=start, callback=callback))
            return found[0].outputs

        return self.compiled.solution(self._run(tensors, named, init, solve, True), found[0])

    def report(self) -> str:
        """What the compiler found, and how it is solved and differentiated."""
        return self.compiled.report()

    def extra_repr(self) -> str:
        """One line about the problem."""
        return self.compiled.describe()

    def _run(self, tensors: Any, named: Any, init: Any, solve: Callable[..., Any], told: bool = False) -> tuple[Tensor, ...]:
        compiled = self.compiled
        theta, _, dtype, device = _read(compiled.arguments.bind(tensors, named), compiled.parameters)
        host = starts(init, _host)
        values = compiled.call(_XP, [t.cpu() for t in theta] if device is not None else theta, host, solve, told)
        return tuple(v.to(device=device, dtype=dtype) for v in values)
