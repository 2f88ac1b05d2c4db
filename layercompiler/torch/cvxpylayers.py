"""`CvxpyLayer`: the signature of the cvxpylayers class on our layer, so that switching is one import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layercompiler.compatibility import Front
from layercompiler.torch import layer
from layercompiler.torch.registry import Bound, bind


class CvxpyLayer(layer.Layer):
    """A drop-in for `cvxpylayers.torch.CvxpyLayer`.

    Args:
        problem: A DPP-compliant `cvxpy.Problem`.
        parameters: All of the problem's parameters, in the order of the tensors of a call.
        variables: The variables (or dual variables) to return.
        solver: Name of a solver, as CVXPY or layercompiler call it; None lets layercompiler choose.
        gp: True for a geometric program.
        verbose: Let the solver print.
        canon_backend: Accepted and without effect: there is one canonicalization.
        solver_args: Settings in the style of SCS, ECOS, Clarabel or diffcp; `layercompiler.compatibility.translate` says what they
            become.

    Example:
        >>> import cvxpy as cp, torch
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1])
        >>> layer = CvxpyLayer(problem, parameters=[c], variables=[x])
        >>> (y,) = layer(torch.zeros(2, dtype=torch.float64), solver_args={"eps": 1e-8, "max_iters": 10000})
        >>> [round(v, 9) for v in y.tolist()]
        [0.5, 0.5]
    """

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        front = Front(problem, parameters, variables, solver, gp, verbose, solver_args)
        super().__init__(front.compiled)
        self._front = front

    def forward(
        self, *tensors: Any, solver_args: Mapping[str, Any] | None = None, warm_start: Any = None, **named: Any
    ) -> tuple[Tensor, ...]:
        """Solve the problem; `solver_args` override those of the constructor, and `warm_start` is the result of an earlier `solve`."""
        bound, start = self._call(solver_args, warm_start)
        return layer.run(bound, tensors, named, start)[0]

    def solve(self, *tensors: Any, solver_args: Mapping[str, Any] | None = None, warm_start: Any = None, **named: Any) -> layer.Solution:
        """Solve, and tell what happened to each instance."""
        bound, start = self._call(solver_args, warm_start)
        return layer.solve(bound, tensors, named, start)

    def _call(self, solver_args: Mapping[str, Any] | None, warm_start: Any) -> tuple[Bound, Any]:
        compiled, options, start = self._front.settings(solver_args, warm_start)
        return (self._bound if options is None else bind(compiled, options)), start
