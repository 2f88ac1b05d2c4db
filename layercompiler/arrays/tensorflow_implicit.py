"""Implicit functions in TensorFlow: a recorded rule, eagerly and in graphs; variables are differentiated, captured tensors refused."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from layercompiler.arrays import tensorflow_recording as recording
from layercompiler.errors import UnsupportedTransformError

Tensors = tuple[Any, ...]


def implicit(xp: Any, rule: Any, known: Tensors, args: Tensors) -> Any:
    """See `Arrays.implicit`."""
    args = tuple(tf.convert_to_tensor(a) for a in args)
    # Stopped arguments, not a stopped tape: the numbers are found by means of tapes.
    value = tf.stop_gradient(rule.value(xp, known, tuple(tf.stop_gradient(a) for a in args)))
    variables = _variables(rule, value, args)
    handles = [v.handle for v in variables]

    def gradient(inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        here, y, (cotangent,) = tuple(inputs), outputs[0], cotangents
        u = rule.solve(xp, y, here, cotangent, True)
        at = [i for i, a in enumerate(here) if a.dtype.is_floating]
        moved = list(here)
        for i in at:
            moved[i] = tf.identity(here[i])  # an argument passed twice counts twice
        with tf.GradientTape() as tape:
            tape.watch([moved[i] for i in at])
            residual = rule.residual(y, *moved)
        found = tape.gradient(residual, [moved[i] for i in at] + variables, -u, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        grads: list[Any] = [None if not a.dtype.is_floating else tf.zeros_like(a) for a in here]
        for i, grad in zip(at, found, strict=False):
            grads[i] = grad
        return grads + [tf.convert_to_tensor(g) for g in found[len(at) :]]

    if tf.executing_eagerly():

        def eagerly(cotangent: Any) -> list[Any]:
            return gradient(args, [value], [cotangent])

        return recording.eager([value], [*args, *handles], eagerly)[0]
    if variables:
        raise UnsupportedTransformError(
            "a function that captures tf.Variables is differentiated eagerly only",
            where=", ".join(v.name for v in variables),
            mend="pass the variables as arguments, or call the layer outside of tf.function",
        )
    count = len(args)

    def in_graph(inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        return [None, *gradient(inputs[1 : 1 + count], outputs, cotangents)]

    return recording.node(lambda v, *_: [v], [value, *args], [(value.shape, value.dtype)], in_graph)[0]


def _variables(rule: Any, y: Any, args: Tensors) -> list[Any]:
    """Variables that the residual reads; what else it captures and a tape watches is refused."""
    if not (recording.record.could_possibly_record() or not tf.executing_eagerly()):
        return []
    stopped = [tf.stop_gradient(a) for a in args]
    with tf.GradientTape() as tape:
        residual = rule.residual(tf.stop_gradient(y), *stopped)
    variables = [v for v in tape.watched_variables() if v.dtype.is_floating]
    if tf.executing_eagerly() and not variables and not recording.record.should_record_backprop([residual]):
        return []
    graph = tf.__internal__.FuncGraph("captures")
    with recording.record.stop_recording(), graph.as_default():
        rule.residual(tf.constant(0, y.dtype) + tf.zeros(y.shape, y.dtype), *(tf.zeros(a.shape, a.dtype) for a in args))
    outer = [t for t in graph.external_captures if t.dtype.is_floating]
    lost = [t for t in outer if _differentiable(t)]
    if lost:
        raise UnsupportedTransformError(
            "the function captures a tensor that a derivative may be asked of",
            got=", ".join(f"a tensor of shape {tuple(t.shape)}" for t in lost),
            mend="pass it as an argument of the function",
        )
    return variables


def _differentiable(tensor: Any) -> bool:
    if isinstance(tensor, tf.__internal__.EagerTensor):
        return bool(recording.record.should_record_backprop([tensor]))
    return tensor.op.type not in ("Const", "ReadVariableOp")
