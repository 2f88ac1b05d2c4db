"""Discrete problems as functions of jax arrays; solves run on the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from layercompiler.errors import OptionError
from layercompiler.jax.layer import _array, _dtype
from layercompiler.plan.discrete import SEED, refuse_second


class _Host:
    """A compiled problem with what the callbacks do; hashable by identity."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.solver = _native(compiled)

    def draw(self, dtype: Any, seed: np.ndarray, *theta: np.ndarray) -> tuple[np.ndarray, ...]:
        sample = self.compiled.sample([np.asarray(t) for t in theta], np.asarray(seed), solver=self.solver)
        return tuple(np.asarray(a, dtype) for a in (*sample.outputs, sample.solutions, sample.noise))

    def pull(self, dtype: Any, solutions: np.ndarray, noise: np.ndarray, cotangents: tuple[np.ndarray, ...], *theta: np.ndarray) -> Any:
        arrays = [np.asarray(t) for t in theta]
        space = self.compiled.sized([a.shape for a in arrays])
        extra = 0 if self.compiled.estimator.output == "mean" else 1
        leads = [np.shape(c)[: np.ndim(c) - extra - len(o.shape)] for c, o in zip(cotangents, space.outputs, strict=True)]
        leads += [np.shape(solutions)[:-2], *(a.shape[: a.ndim - len(p.shape)] for a, p in zip(arrays, space.parameters, strict=True))]
        batch = np.broadcast_shapes(*leads)
        wide = np.broadcast_to(solutions, (*batch, *np.shape(solutions)[-2:]))
        found = self.compiled.pull(arrays, wide, np.asarray(noise), [np.asarray(c) for c in cotangents], solver=self.solver)
        return tuple(np.asarray(a, dtype) for a in found)


def _native(compiled: Any) -> Callable[[np.ndarray], Any] | None:
    if getattr(compiled.problem, "arrays", "numpy") != "jax":
        return None
    solver = compiled.problem.solver
    return lambda values: np.asarray(solver(jnp.asarray(values)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _draw(host: _Host, seed: jax.Array, *theta: jax.Array) -> tuple[jax.Array, ...]:
    compiled, dtype = host.compiled, theta[0].dtype
    space = compiled.sized([t.shape for t in theta])
    batch = theta[0].shape[: theta[0].ndim - len(space.parameters[0].shape)]
    shapes = tuple(jax.ShapeDtypeStruct((*batch, *inner), dtype) for inner in compiled.sizes(space))
    return tuple(jax.pure_callback(partial(host.draw, dtype), shapes, seed, *theta, vmap_method="expand_dims"))


def _draw_forward(host: _Host, seed: jax.Array, *theta: jax.Array) -> tuple[Any, Any]:
    out = _draw(host, seed, *theta)
    return out, (seed, theta, out[-2], out[-1])


def _draw_backward(host: _Host, held: Any, cotangents: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    seed, theta, solutions, noise = held
    return np.zeros(seed.shape, jax.dtypes.float0), *_pull(host, solutions, noise, cotangents[:-2], *theta)


_draw.defvjp(_draw_forward, _draw_backward)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pull(
    host: _Host, solutions: jax.Array, noise: jax.Array, cotangents: tuple[jax.Array, ...], *theta: jax.Array
) -> tuple[jax.Array, ...]:
    shapes = tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in theta)
    call = partial(host.pull, theta[0].dtype)
    return tuple(jax.pure_callback(call, shapes, solutions, noise, cotangents, *theta, vmap_method="expand_dims"))


@_pull.defjvp
def _(host: _Host, primals: Any, tangents: Any) -> Any:
    refuse_second()


class DiscreteLayer:
    """A discrete problem as a function of jax arrays: parameters in, (sampled) solutions out, gradients by an estimator.

    Args:
        compiled: A `CompiledDiscrete`.

    Example:
        >>> import jax, layercompiler as lc
        >>> layer = lc.export(lc.oracles.TopK(4, 2), "jax", estimator=lc.Identity())
        >>> gradient = jax.jit(jax.grad(lambda scores: layer(scores)[0][0]))
        >>> gradient(jax.numpy.array([0.1, 3.0, 2.0, -1.0])).tolist()
        [0.75, -0.25, -0.25, -0.25]

    Differentiability:
        Reverse mode of first order, under `jit` and `vmap` too; other derivatives raise. A mapped key gives every instance its own
        noise, one key for all gives all the same, as for `jax.random`. Failed instances (with on_error="flag") are NaN, with zero
        gradients.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._host = _Host(compiled)

    def __call__(self, *args: Any, key: Any = None, seed: Any = None, **named: Any) -> tuple[jax.Array, ...]:
        """Draw solutions at the given parameters.

        Args:
            *args: Parameters in the order of the compiled problem, each (batch..., *shape).
            key: A key of `jax.random`; needed where the estimator draws noise, unless there is a seed.
            seed: A whole number, or an array of several, instead: the same seed gives the same samples in every framework.
            **named: Parameters by name.

        Returns:
            One array per output: (batch..., *shape) for the mean of the samples, (batch..., samples, *shape) for all of them.

        Raises:
            InputError: A count, a name, a shape, a dtype or a value of a parameter is wrong, or the key is missing.
            SolveError: An instance could not be solved, and the layer is not told to flag it; in transforms jax raises its own error.
        """
        words, theta = self._seed(key, seed), self._theta(args, named)
        if not any(isinstance(t, jax.core.Tracer) for t in (words, *theta)):  # so that exceptions reach the caller as they are
            return tuple(map(jnp.asarray, self._host.draw(theta[0].dtype, np.asarray(words), *map(np.asarray, theta))[:-2]))
        return _draw(self._host, words, *theta)[:-2]

    def expect(self, function: Callable[..., jax.Array], *args: Any, key: Any = None, seed: Any = None, **named: Any) -> jax.Array:
        """Estimate E f(z), with its gradient by the score function: f needs no derivative in z.

        Args:
            function: Takes the outputs with all samples, each (batch..., samples, *shape), and returns values (batch..., samples).
            *args: As for a call; likewise `key`, `seed` and `named`.
            key: See `args`.
            seed: See `args`.
            **named: See `args`.

        Returns:
            (batch...), the mean over the samples.
        """
        self.compiled.check_expectation()
        theta = self._theta(args, named)
        fixed = [jax.lax.stop_gradient(t) for t in theta]
        *outputs, solutions, noise = map(jax.lax.stop_gradient, _draw(self._host, self._seed(key, seed), *fixed))
        values = function(*outputs)
        shapes = tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in theta)

        def weights(solutions: Any, noise: Any, values: Any, *arrays: Any) -> Any:
            found = self.compiled.weights([np.asarray(a) for a in arrays], *(np.asarray(a) for a in (solutions, noise, values)))
            return tuple(np.asarray(w, a.dtype) for w, a in zip(found, arrays, strict=True))

        held = jax.lax.stop_gradient(values)
        found = jax.pure_callback(weights, shapes, solutions, noise, held, *fixed, vmap_method="sequential")
        surrogate = values.mean(-1)
        for t, f, w in zip(theta, fixed, found, strict=True):
            surrogate = surrogate + (jax.lax.stop_gradient(w) * (t - f)).reshape(*surrogate.shape, -1).sum(-1)
        return surrogate

    def loss(self, loss: Any, *args: Any, key: Any = None, seed: Any = None, **named: Any) -> jax.Array:
        """A loss of predicted parameters, one value per instance.

        Args:
            loss: One of `layercompiler.losses`.
            *args: Predicted parameters, as for a call.
            key: See a call.
            seed: See a call.
            **named: Predicted parameters by name, and the targets the loss needs: `true=` parameters, `solution=`, `pool=`; tuples
                where there are several.

        Returns:
            (batch...), differentiable in the predicted parameters; the targets are constants.
        """
        targets, named = self.compiled.targets(named)
        theta = self._theta(args, named)
        specs = self.compiled.sized([t.shape for t in theta]).parameters
        batch = theta[0].shape[: theta[0].ndim - len(specs[0].shape)]
        if loss.random and key is None and seed is None and (loss.name != "regret" or self.compiled.estimator.random):
            raise OptionError("the loss draws noise and needs a key", expected="key=jax.random.key(...)", got="none")
        words = jnp.atleast_1d(jnp.asarray(seed)) if seed is not None else jnp.zeros(1) if key is None else jax.random.bits(key, (SEED,))
        names = list(targets)

        def call(words: Any, targets: Any, *arrays: Any) -> Any:
            held = {k: [np.asarray(t) for t in v] for k, v in zip(names, targets, strict=True)}
            values, gradients = self.compiled.loss(loss, [np.asarray(a) for a in arrays], held, np.asarray(words))
            return tuple(np.asarray(a, theta[0].dtype) for a in (values, *gradients))

        fixed = [jax.lax.stop_gradient(t) for t in theta]
        held = jax.lax.stop_gradient([[jnp.asarray(t) for t in targets[k]] for k in names])
        shapes = tuple(jax.ShapeDtypeStruct(s, theta[0].dtype) for s in (batch, *(t.shape for t in theta)))
        surrogate, *gradients = jax.lax.stop_gradient(jax.pure_callback(call, shapes, words, held, *fixed, vmap_method="sequential"))
        for t, f, g in zip(theta, fixed, gradients, strict=True):
            surrogate = surrogate + (g * (t - f)).reshape(*batch, -1).sum(-1)
        return surrogate

    def solve(self, *args: Any, **named: Any) -> Any:
        """The optimal solutions without noise: a `Solution` of numpy arrays, with values, objective and status."""
        return self.compiled.solve(*(np.asarray(v) for v in self.compiled.arguments(args, named)))

    def _theta(self, args: tuple[Any, ...], named: dict[str, Any]) -> list[jax.Array]:
        values = self.compiled.arguments(args, named)
        arrays = [_array(v, p.name) for v, p in zip(values, self.compiled.parameters, strict=True)]
        dtype = _dtype(values, arrays)
        shapes = [a.shape for a in arrays]
        batch = self.compiled.batch_shape(shapes)
        specs = self.compiled.sized(shapes).parameters
        return [jnp.broadcast_to(a.astype(dtype), (*batch, *p.shape)) for a, p in zip(arrays, specs, strict=True)]

    def _seed(self, key: Any, seed: Any) -> jax.Array:
        if not self.compiled.estimator.random:
            return jnp.zeros(1, jnp.uint32)
        if seed is not None:
            return jnp.atleast_1d(jnp.asarray(seed))
        if key is None:
            raise OptionError(
                "the estimator draws noise and needs a key", expected="key=jax.random.key(...)", got="none", mend="layer(costs, key=key)"
            )
        return jax.random.bits(key, (SEED,), jnp.uint32)

    def report(self) -> str:
        """What the compiler found."""
        return self.compiled.report()

    def __repr__(self) -> str:
        return f"layercompiler.jax.DiscreteLayer({self.compiled.describe()})"

    def __getstate__(self) -> dict[str, Any]:
        return {"compiled": self.compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["compiled"])
