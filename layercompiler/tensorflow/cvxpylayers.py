"""`CvxpyLayer`: the signature of the cvxpylayers class on our layer, so that switching is one import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from layercompiler.compatibility import Front
from layercompiler.memory import Memory
from layercompiler.status import Solution
from layercompiler.tensorflow import layer


@keras.saving.register_keras_serializable(package="layercompiler")
class CvxpyLayer(layer.Layer):
    """A drop-in for `cvxpylayers.tensorflow.CvxpyLayer`.

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
        >>> import cvxpy as cp, tensorflow as tf
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1])
        >>> layer = CvxpyLayer(problem, parameters=[c], variables=[x])
        >>> (y,) = layer(tf.zeros(2), solver_args={"eps": 1e-8, "max_iters": 10000})
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
        front = Front(problem, parameters, variables, solver, gp, verbose, solver_args)
        super().__init__(front.compiled)
        self._front = front

    def __call__(self, *args: Any, solver_args: Mapping[str, Any] | None = None, warm_start: Any = None, **named: Any) -> tuple[Any, ...]:
        """Solve the problem; `solver_args` override those of the constructor, and `warm_start` is the result of an earlier `solve`."""
        compiled, options, start = self._front.settings(solver_args, warm_start)
        if options is None:
            return super().__call__(*args, warm_start=start, **named)
        return layer.run(Memory(compiled), options, args, named, start)

    def solve(self, *args: Any, solver_args: Mapping[str, Any] | None = None, warm_start: Any = None, **named: Any) -> Solution:
        """Solve, and tell what happened to each instance."""
        compiled, options, start = self._front.settings(solver_args, warm_start)
        return layer.solve(compiled, options, args, named, start)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "_front": self._front}
