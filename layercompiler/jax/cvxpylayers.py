"""`CvxpyLayer`: the signature of the cvxpylayers class on our layer, so that switching is one import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from layercompiler.compatibility import Front
from layercompiler.jax import layer
from layercompiler.jax.host import Host
from layercompiler.status import Solution


class CvxpyLayer(layer.Layer):
    """A drop-in for `cvxpylayers.jax.CvxpyLayer`.

    Args:
        problem: A DPP-compliant `cvxpy.Problem`.
        parameters: All of the problem's parameters, in the order of the arrays of a call.
        variables: The variables (or dual variables) to return.
        solver: Name of a solver, as CVXPY or layercompiler call it; None lets layercompiler choose.
        gp: True for a geometric program.
        verbose: Let the solver print.
        canon_backend: Accepted and without effect: there is one canonicalization.
        solver_args: Settings in the style of SCS, ECOS, Clarabel or diffcp; `layercompiler.compatibility.translate` says what they
            become.

    Example:
        >>> import cvxpy as cp, jax
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1])
        >>> layer = CvxpyLayer(problem, parameters=[c], variables=[x])
        >>> (y,) = layer(jax.numpy.zeros(2), solver_args={"eps": 1e-8, "max_iters": 10000})
        >>> [round(float(v), 6) for v in y]
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
        self._front = Front(problem, parameters, variables, solver, gp, verbose, solver_args)
        super().__init__(self._front.compiled)

    def __call__(
        self, *args: Any, solver_args: Mapping[str, Any] | None = None, warm_start: Any = None, **named: Any
    ) -> tuple[jax.Array, ...]:
        """Solve the problem; `solver_args` override those of the constructor, and `warm_start` is the result of an earlier `solve`."""
        host, start = self._settings(solver_args, warm_start)
        return layer.run(host, args, named, start)

    def solve(self, *args: Any, solver_args: Mapping[str, Any] | None = None, warm_start: Any = None, **named: Any) -> Solution:
        """Solve, and tell what happened to each instance."""
        host, start = self._settings(solver_args, warm_start)
        return layer.solve(host, args, named, start)

    def _settings(self, solver_args: Mapping[str, Any] | None, warm_start: Any) -> tuple[Host, Any]:
        compiled, options, start = self._front.settings(solver_args, warm_start)
        return (self._host if options is None else Host(compiled, options)), start
