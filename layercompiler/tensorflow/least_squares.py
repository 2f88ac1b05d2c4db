"""Least squares as a function of TensorFlow tensors: the derivative is that of the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from layercompiler.errors import DerivativeError, ShapeError, SolveError, UnsupportedTransformError
from layercompiler.plan.arguments import starts
from layercompiler.plan.least_squares import FIXED, Call, CompiledLeastSquares, Prepared
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.solvers.least_squares import Result
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.traced import run
from layercompiler.status import Status
from layercompiler.tensorflow.layer import _tensor

_ZERO = tf.UnconnectedGradients.ZERO


class _Found(NamedTuple):
    """A solved call, the factors of its Hessian, what a bound holds, and which instances have a derivative (B,)."""

    call: Call
    result: Result
    factor: Any
    held: np.ndarray | None
    good: np.ndarray


class LeastSquaresLayer:
    """Parameters in, minimiser out, differentiable by `tf.GradientTape`; backward "implicit" or "gauss_newton".

    Args:
        compiled: A `CompiledLeastSquares`.

    Differentiability:
        The implicit derivative is of every order, by nested tapes, eagerly and inside of `tf.function`, where the batch size must be
        known while tracing; the approximate one is of first order, in eager mode. Where there is no derivative, asking for it raises
        (inside of `tf.function` it is NaN), or outputs are NaN with a zero gradient if the layer flags.
    """

    def __init__(self, compiled: CompiledLeastSquares) -> None:
        self.compiled = compiled
        if compiled.options.backward not in ("implicit", "gauss_newton"):
            raise UnsupportedTransformError(f"backward='{compiled.options.backward}' is not there in TensorFlow", expected="'implicit'")

    @property
    def prepared(self) -> Prepared:
        """The program and its solver."""
        return self.compiled.prepare("tensorflow")

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[Any, ...]:
        """Solve: parameters (batch..., *shape) in order or by name, starts by variable; one tensor per output.

        Raises:
            InputError: An argument is wrong.
            SolveError: An instance did not converge and the layer is told to raise.
        """
        return self._run(args, named, init, self.compiled.on_error)[0]

    def solve(
        self, *args: Any, init: Mapping[str, Any] | None = None, callback: Callable[..., Any] | None = None, **named: Any
    ) -> LeastSquaresSolution:
        """Solve in eager mode, and tell what happened to each instance; never raises for those that did not converge.

        Args:
            *args: As for a call.
            init: As for a call.
            callback: As in torch.
            **named: As for a call.
        """
        if not tf.executing_eagerly():
            raise UnsupportedTransformError("solve() has no per-instance information inside of tf.function", mend="call the layer itself")
        outputs, found, dtype = self._run(args, named, init, "flag", callback)
        p, batch = self.prepared, found.call.batch
        value = tf.constant((found.result.cost * p.program.scale + p.program.constant).reshape(batch), dtype)
        named_outputs = MappingProxyType(dict(zip(p.program.outputs, outputs, strict=True)))
        return LeastSquaresSolution(outputs, named_outputs, value, p.info(found.result, batch))

    def report(self) -> str:
        """The variables and residuals, and how they are solved and differentiated."""
        return self.prepared.report(self.compiled.choices())

    def __repr__(self) -> str:
        return f"layercompiler.tensorflow.LeastSquaresLayer({self.compiled.describe()})"

    def __getstate__(self) -> dict[str, Any]:
        return {"compiled": self.compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["compiled"])

    def _run(self, args: Any, named: Any, init: Any, on_error: str, callback: Any = None) -> tuple[tuple[Any, ...], Any, Any]:
        p = self.prepared
        given = [_tensor(v, name) for v, name in zip(p.arguments.bind(args, named), p.names, strict=True)]
        dtype = next((t.dtype for t in given if t.dtype.is_floating), tf.float64)
        host = starts(init) or {}
        shapes: Any = [tuple(t.shape) for t in given]
        if any(n is None for shape in shapes for n in shape):
            raise ShapeError(
                "the batch size is not known while tracing",
                got=str(shapes),
                mend="fix it: drop_remainder=True in a dataset, a whole input_signature of tf.function",
            )
        batch = p.batch_shape(shapes, host)
        theta = [tf.cast(t, tf.float64) for t in p.aligned(given, batch)]
        start = p.start(batch, host)
        if tf.executing_eagerly():
            flat, found = self._eagerly(theta, start, batch, on_error, _guarded(p, init or {}), callback)
        else:
            flat, found = self._in_graph(theta, start, batch, on_error), None
        return tuple(tf.cast(tf.reshape(flat[..., a:b], (*batch, *shape)), dtype) for a, b, shape in p.slices), found, dtype

    def _found(self, theta: Any, start: np.ndarray, batch: tuple[int, ...], on_error: str, callback: Any) -> _Found:
        p = self.prepared
        call = p.regular(theta, start, batch)
        result = p.solve(call, callback)
        if on_error == "raise":
            p.refuse(result, batch)
        factor, pivots, held = p.solver.factor(result.values, call.theta, call.shared, p.options.backward == "implicit")
        good = (result.status == Status.SOLVED) & (pivots > PIVOT)
        if p.options.backward != "implicit":  # the approximate Hessian is definite at a saddle point, too
            good &= p.solver.factor(result.values, call.theta, call.shared)[1] > PIVOT
        return _Found(call, result, factor, held, good)

    def _eagerly(
        self, theta: list[Any], start: np.ndarray, batch: tuple[int, ...], on_error: str, fixed: list[Any], callback: Any
    ) -> tuple[Any, _Found]:
        found = self._found(theta, start, batch, on_error, callback)
        shown = found.result.status == Status.SOLVED if on_error == "raise" else found.good
        values = np.where(shown[:, None], found.result.values, np.nan).reshape(*batch, -1)

        @tf.custom_gradient
        def attached(*tensors: Any) -> Any:
            def pull(cotangent: Any) -> list[Any]:
                return [*self._pull(found, on_error, cotangent, tensors[: len(theta)]), *(tf.zeros_like(t) for t in tensors[len(theta) :])]

            return tf.constant(values), pull

        return attached(*theta, *fixed), found

    def _pull(self, found: _Found, on_error: str, cotangent: Any, tensors: Any) -> Any:
        if not tf.executing_eagerly():
            raise UnsupportedTransformError("a solve in eager mode is differentiated in eager mode")
        p, call, values = self.prepared, found.call, found.result.values
        g = p.solver.lift(values, np.asarray(cotangent).reshape(call.count, -1))
        if on_error == "raise" and (~found.good & (np.abs(g).max(axis=1, initial=0.0) > 0)).any():
            raise DerivativeError("the Hessian is not positive definite at the solution: there is no derivative")
        good = found.good[:, None]
        g = np.where(good if found.held is None else good & ~found.held, g, 0.0)
        u = tf.constant(np.where(good, found.factor.solve(g, 2), 0.0))

        @tf.custom_gradient
        def first(cotangent: Any, *tensors: Any) -> Any:
            at, here = tf.constant(values), p.regular(tensors, call.start, call.batch)
            if not found.good.all():
                at, sources = p.sound(tf.constant(found.good.reshape(call.batch)), tf.reshape(at, (*call.batch, -1)), tensors)
                at, here = tf.reshape(at, values.shape), p.regular(sources, call.start, call.batch)
            pulled = p.solver.call("pull", here.shared)(at, u, *here.theta)
            kinds = zip(pulled, tensors, here.shared, p.program.parameters, strict=True)
            folded = [_fold(tf.reshape(f, (*(() if s else call.batch), *q.shape)), t) for f, t, s, q in kinds]
            return folded, lambda *w: self._second(found, (cotangent, *tensors), w)

        return first(cotangent, *tensors)

    def _second(self, found: _Found, sources: Any, w: Any) -> list[Any]:
        """Gradients of <w, gradient> in the cotangent and the parameters, by the derivative rule."""
        batch, mode = found.call.batch, self.compiled.options.backward
        if mode != "implicit":
            raise UnsupportedTransformError("an approximate derivative is not differentiated", got=f"backward='{mode}'")
        values, good = found.result.values.reshape(*batch, -1), found.good.reshape(*batch, 1)
        return self._recorded(tf.constant(values), tf.constant(good), tuple(sources), tuple(w))

    @cached_property
    def _recorded(self) -> Any:
        p = self.prepared

        @tf.function  # nested derivatives take seconds to record
        def second(values: Any, good: Any, sources: Any, w: Any) -> Any:
            cotangent, *tensors = sources
            with tf.GradientTape() as outer:
                outer.watch(sources)
                with tf.GradientTape() as inner:
                    inner.watch(tensors)
                    at, sound = p.sound(good[..., 0], values, tensors)
                    flat = p.attached(at, sound, "flag")
                kept = tf.where(good, cotangent, tf.zeros_like(cotangent))
                gradients: Any = inner.gradient([flat], tensors, output_gradients=[kept], unconnected_gradients=_ZERO)
            return outer.gradient(gradients, sources, output_gradients=list(w), unconnected_gradients=_ZERO)

        return second

    def _in_graph(self, theta: list[Any], start: np.ndarray, batch: tuple[int, ...], on_error: str) -> Any:
        p = self.prepared
        if p.options.linear not in ("auto", "dense"):
            raise UnsupportedTransformError(
                "inside of tf.function systems are dense", where=f"linear='{p.options.linear}'", expected="'auto' or 'dense'"
            )
        if p.options.backward != "implicit":
            raise UnsupportedTransformError("inside of tf.function the derivative is implicit", got=f"backward='{p.options.backward}'")

        stopped = [tf.stop_gradient(t) for t in theta]
        call = p.regular(stopped, start, batch)
        values, status, *_, pivots = (tf.stop_gradient(f) for f in run(p.solver, tf.constant(start), call.theta, call.shared))
        if p.domains:
            outside = tf.reshape(p.domains.traced(p.xp, stopped, batch), (-1,))
            status = tf.where(outside, tf.fill(status.shape, tf.constant(int(Status.NONFINITE_INPUT), status.dtype)), status)
        solved = status == int(Status.SOLVED)
        if on_error == "raise":
            solved = p.xp.host(_check, solved, status)  # all true where it returns
        good: Any = tf.reshape(solved & (pivots > PIVOT), (*batch, 1))
        shown = good if on_error == "flag" else tf.reshape(solved, (*batch, 1))
        values = tf.reshape(tf.where(tf.math.is_finite(values), values, tf.zeros_like(values)), (*batch, -1))
        nan = tf.fill(values.shape, tf.constant(np.nan, tf.float64))
        at, sources = p.sound(good[..., 0], values, theta) if on_error == "flag" else (values, theta)
        flat = p.attached(at, sources, "flag")
        if on_error == "raise":  # where there is no derivative, the derivative is NaN, not the value
            flat = values + (flat - values) * tf.where(good, tf.ones_like(nan), nan)
        return tf.where(shown, flat, nan)


def _guarded(p: Prepared, init: Mapping[str, Any]) -> list[Any]:
    """Starts of variables with fixed elements: a tape that watches one and asks for its gradient is refused."""

    def refuse(name: str) -> Any:
        raise UnsupportedTransformError(FIXED[0], where=f"init['{name}']", mend=FIXED[1])

    names = [v.name for v in p.program.variables if v.fixed is not None and v.fixed.any()]
    tensors = [(n, init[n]) for n in names if isinstance(init.get(n), (tf.Tensor, tf.Variable)) and init[n].dtype.is_floating]
    return [tf.custom_gradient(lambda t, n=n: (tf.identity(t), lambda g: refuse(n)))(tf.convert_to_tensor(t)) for n, t in tensors]


def _check(status: np.ndarray) -> np.ndarray:
    bad = status[status != int(Status.SOLVED)]
    if len(bad):
        kinds = ", ".join(Status(int(k)).message for k in np.unique(bad))
        raise SolveError(f"{len(bad)} of {len(status)} instances did not converge ({kinds})")
    return np.ones(len(status), bool)


def _fold(gradient: Any, like: Any) -> Any:
    """Sum over broadcast dimensions."""
    if len(gradient.shape) < len(like.shape):
        return tf.reshape(gradient, like.shape)
    axes = [i for i, (a, b) in enumerate(zip(gradient.shape, like.shape, strict=True)) if a != b]
    return tf.reduce_sum(gradient, axes, keepdims=True) if axes else gradient
