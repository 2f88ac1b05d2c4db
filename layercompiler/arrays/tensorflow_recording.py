"""Functions with a gradient of their own, seen by every kind of differentiation that TensorFlow has.

`tf.custom_gradient` is not enough (2.21): in a `tf.function` a `ForwardAccumulator` of the same function silently gets zero for it, because
the plain gradient of the identity that carries the rule is recorded beside the rule; and `tf.vectorized_map` silently drops the rule,
because it copies that identity without it. Here nothing but the rule is recorded, and the rule belongs to the node that computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler.errors import MissingDependencyError

try:
    # Private, and the only door to tapes and accumulators alike; tests/tensorflow/test_recording.py is the contract.
    from tensorflow.python.eager import record
except ImportError as error:
    raise MissingDependencyError(
        "this version of TensorFlow keeps its gradient recording elsewhere",
        expected="tensorflow 2.18 to 2.21",
        got=tf.__version__,
        mend="pip install 'layercompiler[tensorflow]'",
    ) from error

Tensors = Sequence[Any]

# The name of every node: what TensorFlow quotes when XLA refuses it.
NODE = "layercompiler_runs_on_the_host_and_needs_jit_compile_False"
_NUMBERS = itertools.count()


def eager(values: Tensors, arguments: Tensors, gradient: Callable[..., list[Any]]) -> list[Any]:
    """Eager tensors as a function of `arguments` whose gradient is `gradient`.

    Args:
        values: The results, which nothing recorded so far leads to.
        arguments: The tensors that they depend on.
        gradient: Given one cotangent per result, returns one per argument; linear, and differentiable, for forward mode is its transpose.
    """
    record.record_operation("LayerCompiler", list(values), list(arguments), gradient)
    return list(values)


def watched() -> bool:
    """Whether a tape or an accumulator sees what happens now."""
    return record.could_possibly_record()


def node(
    host: Callable[..., list[np.ndarray]],
    arguments: Tensors,
    kinds: Sequence[tuple[tf.TensorShape, tf.DType]],
    gradient: Callable[[Tensors, Tensors, Tensors], list[Any]],
) -> list[Any]:
    """A node of the current graph that calls `host`.

    Args:
        host: A pure function of arrays.
        arguments: Its tensors.
        kinds: Static shape and dtype of each result.
        gradient: Given arguments, results and one cotangent per result, all of one graph (a gradient is traced into a graph of its own, and
            the loop that `tf.vectorized_map` makes of a node is another), returns one cotangent per argument, or None for those that
            have none.
    """
    arguments = [tf.identity(a) for a in arguments]  # enter this graph while recording is on
    name = f"LayerCompilerGradient{next(_NUMBERS)}"
    tf.RegisterGradient(name)(lambda op, *g: gradient(list(op.inputs), list(op.outputs), g))
    with record.stop_recording(), tf.compat.v1.get_default_graph().gradient_override_map({"PyFuncStateless": name}):
        results = tf.numpy_function(host, arguments, [dtype for _, dtype in kinds], stateful=False, name=NODE)
    for result, (shape, _) in zip(results, kinds, strict=True):
        result.set_shape(shape)
    record.record_operation("LayerCompiler", results, arguments, lambda *g: gradient(arguments, results, g))
    return list(results)
