"""Discrete problems as functions of tensors, in eager mode and in `tf.function`; solves run on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler.errors import LayerCompilerError
from layercompiler.plan.discrete import SEED, refuse_second
from layercompiler.tensorflow.layer import _dtype, _shapes, _tensor


class _Sized:
    """What `_shapes` reads, for the shapes of one call."""

    def __init__(self, compiled: Any, space: Any) -> None:
        self.parameters, self.batch_shape = space.parameters, space.reader.batch_shape
        self.outputs = [_Shape(inner) for inner in compiled.sizes(space)]


class _Shape:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


class DiscreteLayer(tf.Module):
    """A discrete problem as a function of tensors: parameters in, (sampled) solutions out, gradients by an estimator.

    Args:
        compiled: A `CompiledDiscrete`.

    Example:
        >>> import layercompiler as lc, tensorflow as tf
        >>> layer = lc.export(lc.oracles.TopK(4, 2), "tensorflow", estimator=lc.Identity())
        >>> scores = tf.Variable([0.1, 3.0, 2.0, -1.0])
        >>> with tf.GradientTape() as tape:
        ...     z = layer(scores)[0]
        ...     loss = z[0]
        >>> tape.gradient(loss, scores).numpy().tolist()
        [0.75, -0.25, -0.25, -0.25]

    Differentiability:
        Reverse mode of first order, in eager mode and in `tf.function` (not with XLA); a second derivative raises
        UnsupportedTransformError. Failed instances (with on_error="flag") are NaN, with zero gradients.
    """

    def __init__(self, compiled: Any) -> None:
        super().__init__(name="discrete_layer")
        self.compiled = compiled
        self._solver = None
        if getattr(compiled.problem, "arrays", "numpy") == "tensorflow":
            solver = compiled.problem.solver
            self._solver = lambda values: np.asarray(solver(tf.constant(values)))

    def __call__(self, *args: Any, generator: Any = None, seed: Any = None, **named: Any) -> tuple[Any, ...]:
        """Draw solutions at the given parameters.

        Args:
            *args: Parameters in the order of the compiled problem, each (batch..., *shape).
            generator: A `tf.random.Generator`; None for TensorFlow's global random state, which `tf.random.set_seed` sets.
            seed: A whole number, or a tensor of several, instead: the same seed gives the same samples in every framework.
            **named: Parameters by name.

        Returns:
            One tensor per output: (batch..., *shape) for the mean of the samples, (batch..., samples, *shape) for all of them.

        Raises:
            InputError: A count, a name, a shape, a dtype or a value of a parameter is wrong.
            SolveError: An instance could not be solved, and the layer is not told to flag it; in `tf.function` TensorFlow raises its own
                error, which carries the text.
        """
        theta, shapes, dtype, space = self._theta(args, named)
        return tuple(tf.cast(y, dtype) for y in self._draw(theta, shapes, self._seed(generator, seed), space)[:-2])

    def expect(self, function: Callable[..., Any], *args: Any, generator: Any = None, seed: Any = None, **named: Any) -> Any:
        """Estimate E f(z), with its gradient by the score function: f needs no derivative in z.

        Args:
            function: Takes the outputs with all samples, each (batch..., samples, *shape), and returns values (batch..., samples).
            *args: As for a call; likewise `generator`, `seed` and `named`.
            generator: See `args`.
            seed: See `args`.
            **named: See `args`.

        Returns:
            (batch...), the mean over the samples.
        """
        self.compiled.check_expectation()
        theta, shapes, dtype, space = self._theta(args, named)
        fixed = [tf.stop_gradient(t) for t in theta]
        *outputs, solutions, noise = self._draw(fixed, shapes, self._seed(generator, seed), space)
        values = function(*(tf.cast(tf.stop_gradient(y), dtype) for y in outputs))

        def weights(solutions: Any, noise: Any, values: Any, *arrays: Any) -> Any:
            return self.compiled.weights(arrays, solutions, noise, values)

        held = tf.cast(tf.stop_gradient(values), tf.float64)
        found = _host(weights, [solutions, noise, held, *fixed], [t.shape for t in theta])
        surrogate = tf.reduce_mean(values, -1)
        for t, f, w in zip(theta, fixed, found, strict=True):
            product = tf.stop_gradient(w) * (t - f)
            rank = len(surrogate.shape)
            surrogate = surrogate + tf.cast(tf.reduce_sum(product, axis=list(range(rank, len(product.shape)))), dtype)
        return surrogate

    def loss(self, loss: Any, *args: Any, generator: Any = None, seed: Any = None, **named: Any) -> Any:
        """A loss of predicted parameters, one value per instance.

        Args:
            loss: One of `layercompiler.losses`.
            *args: Predicted parameters, as for a call.
            generator: See a call.
            seed: See a call.
            **named: Predicted parameters by name, and the targets the loss needs: `true=` parameters, `solution=`, `pool=`; tuples
                where there are several.

        Returns:
            (batch...), differentiable in the predicted parameters; the targets are constants.
        """
        targets, named = self.compiled.targets(named)
        theta, _, dtype, space = self._theta(args, named)
        names, counts = list(targets), [len(v) for v in targets.values()]
        rank = len(theta[0].shape) - len(space.parameters[0].shape)

        def call(words: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
            rest = list(arrays[len(theta) :])
            held = {k: [rest.pop(0) for _ in range(n)] for k, n in zip(names, counts, strict=True)}
            values, gradients = self.compiled.loss(loss, list(arrays[: len(theta)]), held, words)
            return [values, *gradients]

        fixed = [tf.stop_gradient(t) for t in theta]
        flat = [tf.cast(tf.stop_gradient(t), tf.float64) for v in targets.values() for t in v]
        wanted = [theta[0].shape[:rank], *(t.shape for t in theta)]
        surrogate, *gradients = _host(call, [self._words(generator, seed), *fixed, *flat], wanted)
        for t, f, g in zip(theta, fixed, gradients, strict=True):
            surrogate = surrogate + tf.reduce_sum(g * (t - f), axis=list(range(rank, len(t.shape))))
        return tf.cast(surrogate, dtype)

    def solve(self, *args: Any, **named: Any) -> Any:
        """The optimal solutions without noise: a `Solution` of numpy arrays, with values, objective and status."""
        return self.compiled.solve(*(np.asarray(v) for v in self.compiled.arguments(args, named)))

    def report(self) -> str:
        """What the compiler found."""
        return self.compiled.report()

    @tf.autograph.experimental.do_not_convert
    def _theta(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[Any], list[Any], Any, Any]:
        values = self.compiled.arguments(args, named)
        tensors = [_tensor(v, p.name) for v, p in zip(values, self.compiled.parameters, strict=True)]
        dtype = _dtype(values, [t.dtype for t in tensors])
        space = self.compiled.sized([tuple(1 if n is None else n for n in t.shape) for t in tensors])
        sized = _Sized(self.compiled, space)
        shapes = _shapes(sized, [t.shape for t in tensors])
        batch = tf.constant([], tf.int32)
        for t, p in zip(tensors, space.parameters, strict=True):
            batch = tf.broadcast_dynamic_shape(batch, tf.shape(t)[: tf.rank(t) - len(p.shape)])
        theta = [
            tf.broadcast_to(tf.cast(t, tf.float64), tf.concat([batch, tf.constant(p.shape, tf.int32)], 0))
            for t, p in zip(tensors, space.parameters, strict=True)
        ]
        return theta, shapes, dtype, space

    @tf.autograph.experimental.do_not_convert
    def _draw(self, theta: list[Any], shapes: list[Any], seed: Any, space: Any) -> list[Any]:
        def sample(seed: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
            found = self.compiled.sample(arrays, seed, solver=self._solver)
            return [*found.outputs, found.solutions, found.noise]

        def pull(solutions: np.ndarray, noise: np.ndarray, *rest: np.ndarray) -> list[np.ndarray]:
            arrays, cotangents = rest[: len(theta)], rest[len(theta) :]
            return list(self.compiled.pull(arrays, solutions, noise, cotangents, solver=self._solver))

        @tf.custom_gradient
        def draw(*theta: Any) -> Any:
            out = _host(sample, [seed, *theta], shapes)

            @tf.custom_gradient
            def estimate(*cotangents: Any) -> Any:
                found = _host(pull, [out[-2], out[-1], *theta, *cotangents], [t.shape for t in theta])
                return found, refuse_second

            return out, lambda *cotangents: _each(estimate(*cotangents[:-2]))

        return _each(draw(*theta))

    def _seed(self, generator: Any, seed: Any) -> Any:
        if not self.compiled.estimator.random:
            return tf.zeros(1, tf.int64)
        return self._words(generator, seed)

    def _words(self, generator: Any, seed: Any) -> Any:
        if seed is not None:
            return tf.reshape(tf.cast(seed, tf.int64), [-1])
        if generator is not None:
            return generator.uniform((SEED,), 0, 2**62, tf.int64)
        return tf.random.uniform((SEED,), 0, 2**62, tf.int64)

    def __repr__(self) -> str:
        return f"layercompiler.tensorflow.DiscreteLayer({self.compiled.describe()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.compiled,)

    def __deepcopy__(self, memo: dict[int, Any]) -> DiscreteLayer:
        return type(self)(self.compiled)


def _each(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _host(function: Callable[..., Any], tensors: list[Any], shapes: list[Any]) -> list[Any]:
    """Call a function of numpy arrays; float64 tensors out."""
    if all(isinstance(t, tf.__internal__.EagerTensor) for t in tensors):
        return [tf.constant(np.asarray(a), tf.float64) for a in function(*(t.numpy() for t in tensors))]

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        try:
            return [np.asarray(a, np.float64) for a in function(*arrays)]
        except LayerCompilerError as error:
            raise ValueError(str(error)) from error

    found = tf.numpy_function(call, tensors, [tf.float64] * len(shapes), stateful=False)
    for tensor, shape in zip(_each(found), shapes, strict=True):
        tensor.set_shape(shape)
    return _each(found)
