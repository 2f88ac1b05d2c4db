"""Implicit problems as functions of TensorFlow tensors."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from layercompiler.implicit.layer import Layer


class ImplicitLayer(Layer):
    """An implicit problem as a function; learned weights of an unrolled algorithm are variables (`trainable_variables`)."""

    def __init__(self, problem: Any) -> None:
        super().__init__(problem, "tensorflow")
        self.trainable_variables: list[Any] = []
        if getattr(problem, "learn", None) is not None:
            leaves, build = self.xp.tree(problem.learn)
            self.trainable_variables = [tf.Variable(self.xp.new(self.xp.numpy(leaf))) for leaf in leaves]
            self.weights = lambda: build([tf.convert_to_tensor(v) for v in self.trainable_variables])
