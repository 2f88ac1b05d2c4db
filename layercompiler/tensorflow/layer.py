"""A compiled problem as a Keras layer and a plain function of tensors."""

from __future__ import annotations

import base64
import importlib
import tempfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layercompiler.errors import DtypeError, LayerCompilerError, MissingDependencyError, UnsupportedTransformError
from layercompiler.memory import Memory
from layercompiler.plan.arguments import NUMBERS, REAL_PARTS
from layercompiler.status import Solution
from layercompiler.tensorflow.operators import UNKNOWN, Point, eager
from layercompiler.tensorflow.operators import solve as solve_batch

if keras.backend.backend() != "tensorflow":
    raise MissingDependencyError(
        "layercompiler.tensorflow needs Keras on TensorFlow",
        expected="keras.backend.backend() == 'tensorflow'",
        got=repr(keras.backend.backend()),
        mend="set KERAS_BACKEND=tensorflow before keras is imported, or use layercompiler.jax or layercompiler.torch",
    )

_FLAGS = frozenset({"training", "mask"})  # what Keras passes to any layer whose `call` takes names


@keras.saving.register_keras_serializable(package="layercompiler")
class Layer(keras.layers.Layer):
    """A batched, differentiable optimization problem: parameters in, solutions out.

    The leading axes of all tensors are batch axes and broadcast as in numpy. The results have the dtype of the arguments, while the host
    solves in float64. The layer has no weights and no state.

    Args:
        compiled: A `CompiledProblem`.
        **settings: `name`, `dtype` and `trainable`, as for any Keras layer.

    Example:
        >>> import cvxpy as cp, layercompiler as lc, tensorflow as tf
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> layer = lc.export(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), "tensorflow")
        >>> c = tf.Variable([1.0, -1.0])
        >>> with tf.GradientTape() as tape:
        ...     (y,) = layer(c)
        >>> [round(float(g), 6) + 0.0 for g in tape.gradient(y, c)]
        [1.0, 0.0]

    Differentiability:
        `tf.GradientTape` (also nested), `tf.autodiff.ForwardAccumulator`, `tape.jacobian` and `tf.vectorized_map`, in eager mode and in
        `tf.function`, exact to second order; a third derivative raises `UnsupportedTransformError` (in a graph, when it runs). Failed
        instances (with on_error="flag") are NaN, with zero derivatives. XLA (`jit_compile=True`) refuses the layer, and so does a
        SavedModel in another process: the solver runs on the host. `model.save("....keras")` keeps the compiled problem.
    """

    def __init__(self, compiled: Any, **settings: Any) -> None:
        super().__init__(autocast=False, **settings)
        self.compiled = compiled
        self._memory = Memory(compiled)
        self.supports_jit = False  # Keras asks before it turns XLA on by itself
        self.built = True

    def __call__(self, *args: Any, warm_start: Any = None, options: Any = None, **named: Any) -> tuple[Any, ...]:
        """Solve the problem at the given parameters.

        Args:
            *args: Parameters in the order of the compiled problem, each (batch..., *shape). Numbers, lists and numpy arrays are taken too.
                Symbolic Keras inputs give symbolic outputs.
            warm_start: The `Solution` of an earlier `solve`, or its `warm_start`, to start from.
            options: `Options`, or a dict of their fields, of this call instead of the layer's.
            **named: Parameters by name.

        Returns:
            One tensor per output, (batch..., *shape).

        Raises:
            ShapeError: The number, the names or the shapes of the arguments are wrong.
            DtypeError: An argument is not real.
            SolveError: An instance was not solved, and the problem was compiled with `on_error="raise"`. Inside `tf.function` TensorFlow
                raises its own error, which carries the text.
        """
        if any(isinstance(v, keras.KerasTensor) for v in (*args, *named.values())):
            return super().__call__(*(v if isinstance(v, keras.KerasTensor) else _tensor(v, "") for v in args), **named)
        return run(self._memory, self._options(options), args, self._without_flags(named), warm_start)

    def call(self, *args: Any, **named: Any) -> tuple[Any, ...]:
        """The outputs, where Keras itself calls the layer."""
        return run(self._memory, None, args, self._without_flags(named), None)

    def compute_output_spec(self, *args: Any, **named: Any) -> tuple[Any, ...]:
        """Shapes and dtypes of the outputs for symbolic Keras inputs."""
        values = self.compiled.arguments(args, named)
        tensors = [
            v if isinstance(v, keras.KerasTensor) else _tensor(v, p.name) for v, p in zip(values, self.compiled.parameters, strict=True)
        ]
        dtype = _dtype(values, [tf.as_dtype(t.dtype) for t in tensors]).name
        return tuple(keras.KerasTensor(tuple(s), dtype) for s in _shapes(self.compiled, [tf.TensorShape(t.shape) for t in tensors]))

    def solve(self, *args: Any, warm_start: Any = None, options: Any = None, **named: Any) -> Solution:
        """Solve outside of any graph, and tell what happened to each instance; the arguments are those of a call.

        Returns:
            The solution; its outputs and values are tensors in the dtype of a call.

        Raises:
            UnsupportedTransformError: An argument is symbolic.
        """
        return solve(self.compiled, self._options(options), args, named, warm_start)

    def report(self) -> str:
        """What the compiler did, pass by pass."""
        return self.compiled.report()

    def get_config(self) -> dict[str, Any]:
        """The configuration of a Keras layer, with the compiled problem as text."""
        with tempfile.TemporaryDirectory() as folder:
            self.compiled.save(path := Path(folder) / "compiled.npz")
            text = base64.b64encode(path.read_bytes()).decode()
        return {"name": self.name, "trainable": self.trainable, "compiled": text}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Layer:
        """The layer that `get_config` describes.

        Raises:
            StoreError: The text is damaged.
        """
        config = dict(config)
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "compiled.npz").write_bytes(base64.b64decode(config.pop("compiled")))
            door = importlib.import_module("layercompiler.export")  # it stands above the frameworks
            return Layer(door.load(path), **config)

    def __repr__(self) -> str:
        return f"{type(self).__module__.rpartition('.')[0]}.{type(self).__name__}({self.compiled.describe()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._state())

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        return _rebuild(type(self), self._state())

    def _state(self) -> dict[str, Any]:
        """What a copy is made of, beside its class."""
        return {"compiled": self.compiled, "name": self.name, "trainable": self.trainable}

    def _without_flags(self, named: dict[str, Any]) -> dict[str, Any]:
        if not named.keys() & _FLAGS:
            return named
        parameters = {p.name for p in self.compiled.parameters}
        return {k: v for k, v in named.items() if k in parameters or k not in _FLAGS}

    def _options(self, options: Any) -> Any:
        return None if options is None else type(self.compiled.options).of(options)


def _rebuild(kind: type[Layer], state: dict[str, Any]) -> Layer:
    layer = kind.__new__(kind)
    Layer.__init__(layer, **{k: v for k, v in state.items() if not k.startswith("_")})
    for name, value in state.items():
        if name.startswith("_"):
            setattr(layer, name, value)
    return layer


def run(memory: Memory, options: Any, args: tuple[Any, ...], named: dict[str, Any], warm_start: Any) -> tuple[Any, ...]:
    """Outputs of a problem, for the arguments of a call."""
    try:
        return _run(memory, options, args, named, warm_start)
    except LayerCompilerError as error:
        error._keras_call_info_injected = True  # or a Keras model around the layer replaces the error by one that carries nothing
        raise


@tf.autograph.experimental.do_not_convert
def _run(memory: Memory, options: Any, args: tuple[Any, ...], named: dict[str, Any], warm_start: Any) -> tuple[Any, ...]:
    compiled = memory.problem
    values = compiled.arguments(args, named)
    tensors = [_tensor(v, p.name) for v, p in zip(values, compiled.parameters, strict=True)]
    shapes = () if eager(tensors) else _shapes(compiled, [t.shape for t in tensors])
    dtype = _dtype(values, [t.dtype for t in tensors])
    if not tensors:
        return tuple(tf.cast(y, dtype) for y in compiled.evaluate([], options=options).outputs)
    start = None if warm_start is None else tf.stop_gradient(tf.cast(getattr(warm_start, "warm_start", warm_start), tf.float64))
    return tuple(solve_batch(Point(memory, [t if t.dtype == dtype else tf.cast(t, dtype) for t in tensors], shapes, start, options)))


def solve(compiled: Any, options: Any, args: tuple[Any, ...], named: dict[str, Any], warm_start: Any) -> Solution:
    """The solution of a problem, for the arguments of a call."""
    values = compiled.arguments(args, named)
    if not tf.executing_eagerly() or any(isinstance(v, keras.KerasTensor) for v in values):
        raise UnsupportedTransformError(
            "layer.solve reports on values, and these are symbolic",
            expected="eager tensors or arrays",
            got="tensors of a graph",
            mend="call layer(...) inside tf.function, and layer.solve(...) outside of it",
        )
    tensors = [_tensor(v, p.name) for v, p in zip(values, compiled.parameters, strict=True)]
    dtype = _dtype(values, [t.dtype for t in tensors])
    found = compiled.solve(*(tf.cast(t, dtype).numpy() for t in tensors), warm_start=warm_start, options=options)
    outputs = tuple(tf.cast(y, dtype) for y in found.outputs)
    return replace(found, outputs=outputs, values=MappingProxyType(dict(zip(found.values, outputs, strict=True))))


def _shapes(compiled: Any, shapes: list[tf.TensorShape]) -> list[tf.TensorShape]:
    """Static shapes of the outputs for static shapes of the arguments, of which any part may be unknown."""
    batch = tf.TensorShape([])
    known = []
    for shape, p in zip(shapes, compiled.parameters, strict=True):
        k = len(p.shape)
        if shape.rank is None:
            batch = UNKNOWN
            known.append(p.shape)
            continue
        split = max(0, shape.rank - k)
        own = [q if n is None else n for n, q in zip(shape.as_list()[split:], p.shape[k - min(k, shape.rank) :], strict=True)]
        known.append((*(1 if n is None else n for n in shape.as_list()[:split]), *own))
    compiled.batch_shape([tuple(s) for s in known])
    if batch.rank is not None:
        for shape, p in zip(shapes, compiled.parameters, strict=True):
            batch = tf.broadcast_static_shape(batch, shape[: shape.rank - len(p.shape)])
    return [batch.concatenate(o.shape) for o in compiled.outputs]


def _tensor(value: Any, name: str) -> tf.Tensor:
    """A tensor; numbers and lists go through numpy, so that they are not rounded to float32 on the way."""
    try:
        tensor = tf.convert_to_tensor(value if hasattr(value, "dtype") else np.asarray(value))
    except (TypeError, ValueError) as error:
        got = type(value).__name__
        raise DtypeError(
            f"parameter {name!r} is not an array", where=f"parameter {name!r}", expected="real numbers", got=got, mend=NUMBERS
        ) from error
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        got = f"{'complex ' * tensor.dtype.is_complex}dtype {tensor.dtype.name}"
        mend = REAL_PARTS if got.startswith("complex") else NUMBERS
        raise DtypeError(f"parameter {name!r} is not real", where=f"parameter {name!r}", expected="a real dtype", got=got, mend=mend)
    return tensor


def _dtype(values: list[Any], dtypes: list[tf.DType]) -> tf.DType:
    """The widest floating dtype of the arguments; numbers and lists follow the tensors among them, and Keras where there are none."""
    given = [d for v, d in zip(values, dtypes, strict=True) if d.is_floating and hasattr(v, "dtype")]
    widest = sorted(set(given), key=lambda d: (d.size, d.name))
    if len(widest) > 1 and widest[-1].size == widest[-2].size:
        return tf.float32  # float16 beside bfloat16: neither holds the other
    return widest[-1] if widest else tf.as_dtype(keras.backend.floatx())
