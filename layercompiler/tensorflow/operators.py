"""The solution map and its two derivative orders as TensorFlow functions whose gradients are made of each other.

With f the solution map of the parameters theta:

    solve(theta)                     gradient: vjp
    vjp(g)       = J'g               transpose: jvp;                       along theta: hvp
    jvp(h)       = J h               transpose: vjp;                       along theta: hvp
    hvp(g, h)    = D(J'g)[h]         transpose in g: second, in h: hvp;    along theta: a third derivative, which raises
    second(h, k) = D^2 f[h, k]       transpose in each: hvp;               along theta: a third derivative, which raises

In eager mode the host functions are called directly, so that their exceptions reach the caller as they are, and what depends on several
things is recorded once for each, so that a tape computes what it was asked for and no more. In a graph they are nodes that find the
factorization of the forward pass in a `Memory`; what is not asked for is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler.arrays import tensorflow_recording as recording
from layercompiler.arrays.tensorflow_recording import Tensors
from layercompiler.errors import UnsupportedTransformError
from layercompiler.memory import Memory

UNKNOWN = tf.TensorShape(None)  # pyright: ignore[reportArgumentType]
Arguments = Sequence[Tensors]  # lists of tangents (one per parameter) or cotangents (one per output)


@dataclass
class Point:
    """A solved batch: where, and what is needed to differentiate there.

    Attributes:
        memory: Evaluations of the compiled problem by value.
        thetas: One tensor per parameter, of one dtype.
        shapes: Static shapes of the outputs, known in eager mode once they are.
        start: A warm start, or None.
        options: `Options` of the solve, or None for the problem's own.
        z: The primal-dual point, in a graph.
        evaluation: The evaluation, in eager mode.
        differentiated: Not empty once a gradient was asked for; the host then remembers its evaluations.
    """

    memory: Memory
    thetas: Tensors
    shapes: Sequence[tf.TensorShape] = ()
    start: Any = None
    options: Any = None
    z: Any = None
    evaluation: Any = None
    differentiated: list[bool] = field(default_factory=list)

    @property
    def dtype(self) -> tf.DType:
        """The dtype of all tensors of the call."""
        return self.thetas[0].dtype

    def arrays(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Host arrays in the dtype of the call."""
        return [np.asarray(v, self.dtype.as_numpy_dtype) for v in values]

    def in_graph(self) -> Any:
        """z as a tensor; a point that was solved in eager mode is differentiated in a graph by `tape.jacobian`."""
        if self.z is None:
            self.memory.put([t.numpy() for t in self.thetas], self.evaluation, self.options)
            self.z = tf.constant(self.evaluation.z, tf.float64)
        return self.z


def solve(point: Point) -> list[Any]:
    """The outputs at `point.thetas`; leaves there what derivatives need."""
    count = len(point.thetas)
    arguments = [*point.thetas, *([] if point.start is None else [point.start])]

    def run(arrays: Sequence[np.ndarray], keep: bool) -> Any:
        start = arrays[count] if len(arrays) > count else None
        return point.memory.solve(arrays[:count], keep=keep, warm_start=start, options=point.options)

    if eager(arguments):
        point.evaluation = run([a.numpy() for a in arguments], keep=False)
        values = [tf.constant(v) for v in point.arrays(point.evaluation.outputs)]
        point.shapes = [v.shape for v in values]
        return recording.eager(values, point.thetas, lambda *g: vjp(point, g))

    def host(*arrays: np.ndarray) -> list[np.ndarray]:
        evaluation = run(arrays, keep=bool(point.differentiated))
        return [*point.arrays(evaluation.outputs), evaluation.z]

    def gradient(arguments: Tensors, results: Tensors, g: Tensors) -> list[Any]:
        point.differentiated.append(True)
        return [*vjp(replace(point, thetas=arguments[:count], z=results[-1]), g[:-1]), *[None] * (len(arguments) - count)]

    kinds = [*((shape, point.dtype) for shape in point.shapes), (UNKNOWN, tf.float64)]
    return recording.node(host, arguments, kinds, gradient)[:-1]


@dataclass(frozen=True)
class _Map:
    """A host function that is linear in each of its arguments.

    Attributes:
        run: The function of an evaluation and the arguments, as arrays.
        pulls: Whether it returns one array per parameter (or one per output).
        transposes: For each argument, its cotangent, from the point, the arguments and the cotangent of the result.
        along: The cotangent of the parameters, from the same.
    """

    run: Callable[..., Sequence[np.ndarray]]
    pulls: bool
    transposes: tuple[Callable[[Point, Arguments, Tensors], list[Any]], ...]
    along: Callable[[Point, Arguments, Tensors], list[Any]]

    def __call__(self, point: Point, *arguments: Tensors) -> list[Any]:
        flat = [t for each in arguments for t in each]
        if point.evaluation is not None and eager(flat):
            return self._eagerly(point, arguments)
        shapes = [t.shape for t in point.thetas] if self.pulls else point.shapes
        count, lengths = len(point.thetas), [len(each) for each in arguments]

        def host(*arrays: np.ndarray) -> list[np.ndarray]:
            evaluation = point.memory.at(arrays[:count], arrays[count], point.options)
            return point.arrays(self.run(evaluation, *_split(arrays[count + 1 :], lengths)))

        def gradient(inputs: Tensors, _: Tensors, cotangents: Tensors) -> list[Any]:
            there = replace(point, thetas=inputs[:count], z=inputs[count], evaluation=None)
            given = _split(inputs[count + 1 :], lengths)
            linear = [c for transpose in self.transposes for c in transpose(there, given, cotangents)]
            return [*self.along(there, given, cotangents), None, *linear]

        kinds = [(shape, point.dtype) for shape in shapes]
        return recording.node(host, [*point.thetas, point.in_graph(), *flat], kinds, gradient)

    def _eagerly(self, point: Point, arguments: Arguments) -> list[Any]:
        arrays = point.arrays(self.run(point.evaluation, *([t.numpy() for t in each] for each in arguments)))
        if not recording.watched():
            return [tf.constant(a) for a in arrays]
        values: list[Any] = []
        for k, (each, rule) in enumerate(zip((*arguments, point.thetas), (*self.transposes, self.along), strict=True)):
            part = [tf.constant(a) if k == 0 else tf.zeros(a.shape, point.dtype) for a in arrays]
            part = recording.eager(part, each, lambda *g, rule=rule: rule(point, arguments, g))
            values = part if k == 0 else [v + p for v, p in zip(values, part, strict=True)]
        return values


def _third(point: Point, arguments: Arguments, cotangents: Tensors) -> list[Any]:
    """Raise; in a graph only when it runs, because TensorFlow builds gradients that it then leaves unused."""
    return _refuse(cotangents, point.thetas)


def _refuse(arguments: Tensors, like: Tensors) -> list[Any]:
    error = UnsupportedTransformError(
        "third derivatives of an optimization layer do not exist here",
        expected="at most two nested derivatives",
        got="a third",
        mend="put tf.stop_gradient around the layer's arguments where the outermost derivative need not see them",
    )
    if tf.executing_eagerly():
        raise error

    def host(*_: np.ndarray) -> list[np.ndarray]:
        raise error

    # Forward mode transposes what is returned here: without a gradient in turn it would take the tangent for zero.
    return recording.node(host, arguments, [(t.shape, t.dtype) for t in like], lambda a, _, g: _refuse(g, a))


jvp = _Map(
    lambda evaluation, h: evaluation.jvp(h),
    pulls=False,
    transposes=(lambda point, _, g: vjp(point, g),),
    along=lambda point, given, g: hvp(point, g, given[0]),
)
vjp = _Map(
    lambda evaluation, g: evaluation.vjp(g),
    pulls=True,
    transposes=(lambda point, _, w: jvp(point, w),),
    along=lambda point, given, w: hvp(point, given[0], w),
)
hvp = _Map(
    lambda evaluation, g, h: evaluation.hvp(g, h),
    pulls=True,
    transposes=(lambda point, given, w: second(point, given[1], w), lambda point, given, w: hvp(point, given[0], w)),
    along=_third,
)
second = _Map(
    lambda evaluation, h, k: evaluation.second(h, k),
    pulls=False,
    transposes=(lambda point, given, g: hvp(point, g, given[1]), lambda point, given, g: hvp(point, g, given[0])),
    along=_third,
)


def eager(tensors: Tensors) -> bool:
    """Whether these are values, and no nodes of a graph."""
    return tf.executing_eagerly() and all(hasattr(t, "numpy") for t in tensors)


def _split(values: Sequence[Any], lengths: Sequence[int]) -> list[Sequence[Any]]:
    ends = np.cumsum(lengths).tolist()
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]
