"""Discrete problems as torch modules: two operators (draw, pull) that autograd, torch.func and torch.compile see through."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from layercompiler.errors import UnsupportedTransformError
from layercompiler.plan.discrete import SEED, refuse_second
from layercompiler.torch.layer import _read
from layercompiler.torch.rules import _bare, _plain

_serial = itertools.count()
_live: WeakValueDictionary[str, _Bound] = WeakValueDictionary()


class _Bound:
    """A compiled problem under the name that operators carry; names belong to this process."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.name = f"{next(_serial)}/{len(compiled.parameters)}"  # the count is read inside of traced graphs
        self.solver = _native(compiled)
        _live[self.name] = self


def _native(compiled: Any) -> Callable[[np.ndarray], Any] | None:
    """The black box's solver as a function of numpy arrays, where it takes tensors."""
    if getattr(compiled.problem, "arrays", "numpy") != "torch":
        return None
    solver = compiled.problem.solver

    def call(values: np.ndarray) -> Any:
        with torch.no_grad():
            found = solver(torch.from_numpy(np.ascontiguousarray(values)))
        return found.detach().cpu().numpy() if isinstance(found, Tensor) else found

    return call


def _find(name: str) -> _Bound:
    try:
        return _live[name]
    except KeyError:
        raise UnsupportedTransformError(
            "a traced graph names a discrete layer that is gone", where=f"problem {name!r}", mend="keep the layer as long as the graph"
        ) from None


def _shapes(theta: Sequence[Tensor], seed: Tensor, compiled: Any) -> list[tuple[int, ...]]:
    """Shapes of what `draw` returns."""
    space = compiled.sized([tuple(t.shape) for t in theta])
    batch = torch.broadcast_shapes(*(t.shape[: t.ndim - len(p.shape)] for t, p in zip(theta, space.parameters, strict=True)))
    lead = seed.shape[:-1]
    batch = torch.broadcast_shapes(tuple(batch), (*lead, *(1,) * (len(batch) - len(lead))))
    return [(*batch, *inner) for inner in compiled.sizes(space)]


@torch.library.custom_op("layercompiler_discrete::draw", mutates_args=())
def _draw(theta: Sequence[Tensor], seed: Tensor, problem: str) -> list[Tensor]:
    """Outputs, solutions and noise."""
    bound = _find(problem)
    sample = bound.compiled.sample([t.numpy(force=True) for t in theta], seed.numpy(force=True), solver=bound.solver)
    return [torch.from_numpy(np.array(a, dtype=np.float64)) for a in (*sample.outputs, sample.solutions, sample.noise)]


@_draw.register_fake
def _(theta: Sequence[Tensor], seed: Tensor, problem: str) -> list[Tensor]:
    return [theta[0].new_empty(shape, dtype=torch.float64) for shape in _shapes(theta, seed, _find(problem).compiled)]


@torch.library.custom_op("layercompiler_discrete::pull", mutates_args=())
def _pull(theta: Sequence[Tensor], solutions: Tensor, noise: Tensor, cotangents: Sequence[Tensor], problem: str) -> list[Tensor]:
    """Gradients of the parameters, one per instance of the batch."""
    bound = _find(problem)
    arrays = [t.numpy(force=True) for t in theta]
    g = [c.numpy(force=True) for c in cotangents]
    found = bound.compiled.pull(arrays, solutions.numpy(force=True), noise.numpy(force=True), g, solver=bound.solver)
    return [torch.from_numpy(np.array(a, dtype=np.float64)) for a in found]


@_pull.register_fake
def _(theta: Sequence[Tensor], solutions: Tensor, noise: Tensor, cotangents: Sequence[Tensor], problem: str) -> list[Tensor]:
    space = _find(problem).compiled.sized([tuple(t.shape) for t in theta])
    return [solutions.new_empty((*solutions.shape[:-2], *p.shape)) for p in space.parameters]


@torch.library.custom_op("layercompiler_discrete::third", mutates_args=())
def _refuse(like: Sequence[Tensor], problem: str) -> list[Tensor]:
    """The derivative of an estimate, which does not exist."""
    return refuse_second()


@_refuse.register_fake
def _(like: Sequence[Tensor], problem: str) -> list[Tensor]:
    return [torch.empty_like(t) for t in like]


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension as the first one."""
    return tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _Pull(torch.autograd.Function):
    """(problem, *parameters, solutions, noise, *cotangents) to gradients."""

    @staticmethod
    def forward(problem: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = int(problem.split("/")[1])
        return tuple(_pull(list(tensors[:count]), tensors[count], tensors[count + 1], list(tensors[count + 2 :]), problem))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.problem = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return None, *_refuse(list(ctx.saved_tensors), ctx.problem)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: str, *tensors: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        fronts = [_front(t, d, info.batch_size) for t, d in zip(tensors, in_dims[1:], strict=True)]
        found = _Pull.apply(problem, *fronts)
        return found, (0,) * len(found)


class _Draw(torch.autograd.Function):
    """(problem, seed, *parameters) to (*outputs, solutions, noise)."""

    @staticmethod
    def forward(problem: str, seed: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        return tuple(_draw(list(theta), seed, problem))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.problem = inputs[0]
        ctx.keep = None if torch.compiler.is_compiling() else _live.get(inputs[0])  # the graph may outlive the layer
        ctx.save_for_backward(*inputs[2:], output[-2], output[-1])
        ctx.mark_non_differentiable(output[-2], output[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        tensors = (*ctx.saved_tensors, *gradients[:-2])
        if torch.compiler.is_compiling():  # where torch itself refuses second derivatives, and cannot trace a Function here
            count = len(tensors) - len(gradients)
            with torch.no_grad():
                return (
                    None,
                    None,
                    *_pull(list(tensors[:count]), tensors[count], tensors[count + 1], list(tensors[count + 2 :]), ctx.problem),
                )
        return None, None, *_Pull.apply(ctx.problem, *tensors)  # type: ignore[misc]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: str, seed: Tensor, *theta: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        fronts = [_front(t, d, info.batch_size) for t, d in zip((seed, *theta), in_dims[1:], strict=True)]
        found = _Draw.apply(problem, *fronts)
        return found, (0,) * len(found)


class _Eager(torch.autograd.Function):
    """`_Draw` where nothing but eager reverse mode is at work: without operators, and with the sample kept as it is."""

    @staticmethod
    def forward(ctx: Any, bound: _Bound, seed: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        sample = bound.compiled.sample([t.numpy(force=True) for t in theta], seed.numpy(force=True), solver=bound.solver)
        ctx.bound, ctx.sample = bound, sample
        ctx.save_for_backward(*theta)
        return tuple(_own(a, sample.solutions) for a in sample.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        theta, bound, sample = ctx.saved_tensors, ctx.bound, ctx.sample
        if torch.is_grad_enabled():  # a graph of the backward pass is asked for
            kept = [torch.from_numpy(np.array(a)) for a in (sample.solutions, sample.noise)]
            return None, None, *_Pull.apply(bound.name, *theta, *kept, *gradients)  # type: ignore[misc]
        arrays, g = [t.numpy(force=True) for t in theta], [c.numpy(force=True) for c in gradients]
        found = bound.compiled.pull(arrays, sample.solutions, sample.noise, g, solver=bound.solver)
        return None, None, *[torch.from_numpy(np.ascontiguousarray(a, dtype=np.float64)) for a in found]


def _own(array: np.ndarray, kept: np.ndarray) -> Tensor:
    """A tensor of float64 that shares no memory with `kept`."""
    fresh = array.dtype == np.float64 and array.flags.c_contiguous and array.flags.writeable and not np.may_share_memory(array, kept)
    return torch.from_numpy(array if fresh else np.array(array, dtype=np.float64))


class DiscreteLayer(torch.nn.Module):
    """A discrete problem as a torch module: parameters in, (sampled) solutions out, gradients by an estimator.

    Args:
        compiled: A `CompiledDiscrete`.

    Example:
        >>> import layercompiler as lc, torch
        >>> layer = lc.export(lc.oracles.TopK(4, 2), "torch", estimator=lc.Identity())
        >>> scores = torch.tensor([0.1, 3.0, 2.0, -1.0], requires_grad=True)
        >>> (z,) = layer(scores)
        >>> z[0].backward()
        >>> z.tolist(), scores.grad.tolist()
        ([0.0, 1.0, 1.0, 0.0], [0.75, -0.25, -0.25, -0.25])

    Differentiability:
        Reverse mode of first order, in eager mode, under torch.compile and torch.func; a second derivative raises
        UnsupportedTransformError. Failed instances (with on_error="flag") are NaN, with zero gradients.

    Cost:
        Solves run on the host in float64.
    """

    _unseeded: ClassVar[Tensor] = torch.zeros(1, dtype=torch.int64)

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self.compiled = compiled
        self._bound = _Bound(compiled)

    def forward(self, *tensors: Any, generator: torch.Generator | None = None, seed: Any = None, **named: Any) -> tuple[Tensor, ...]:
        """Draw solutions at the given parameters.

        Args:
            *tensors: Parameters in the order of the compiled problem, each (batch..., *shape).
            generator: Source of the noise; None for torch's own, which `torch.manual_seed` sets.
            seed: A whole number, or a tensor of several, instead: the same seed gives the same samples.
            **named: Parameters by name.

        Returns:
            One tensor per output: (batch..., *shape) for the mean of the samples, (batch..., samples, *shape) for all of them.

        Raises:
            InputError: A count, a name, a shape, a dtype or a value of a parameter is wrong.
            SolveError: An instance has no solution or could not be solved, and the layer is not told to flag it.
        """
        theta, dtype, device = self._theta(tensors, named)
        words = self._seed(generator, seed)
        if _plain() and _bare([words, *theta]):
            outputs = _Eager.apply(self._bound, words, *theta)
        else:
            *outputs, _, _ = _Draw.apply(self._bound.name, words, *theta)  # type: ignore[misc]
        return tuple(x.to(device=device, dtype=dtype) for x in outputs)  # type: ignore[union-attr]

    def expect(self, function: Callable[..., Tensor], *tensors: Any, generator: Any = None, seed: Any = None, **named: Any) -> Tensor:
        """Estimate E f(z), with its gradient by the score function: f needs no derivative in z.

        Args:
            function: Takes the outputs with all samples, each (batch..., samples, *shape), and returns values (batch..., samples).
            *tensors: As for a call; likewise `generator`, `seed` and `named`.
            generator: See `tensors`.
            seed: See `tensors`.
            **named: See `tensors`.

        Returns:
            (batch...), the mean over the samples; differentiable in the parameters, and in whatever else `function` uses.
        """
        self.compiled.check_expectation()
        theta, dtype, device = self._theta(tensors, named)
        with torch.no_grad():
            *outputs, solutions, noise = _draw([t.detach() for t in theta], self._seed(generator, seed), self._bound.name)
        values = function(*(x.to(device=device, dtype=dtype) for x in outputs))
        found = self.compiled.weights(
            [t.numpy(force=True) for t in theta], solutions.numpy(), noise.numpy(), values.detach().double().numpy(force=True)
        )
        surrogate = values.mean(-1)
        for t, w in zip(theta, found, strict=True):
            weighted = torch.from_numpy(np.ascontiguousarray(w)) * (t - t.detach())
            surrogate = surrogate + weighted.reshape(*surrogate.shape, -1).sum(-1).to(device=device, dtype=dtype)
        return surrogate

    def loss(self, loss: Any, *tensors: Any, generator: torch.Generator | None = None, seed: Any = None, **named: Any) -> Tensor:
        """A loss of predicted parameters, one value per instance.

        Args:
            loss: One of `layercompiler.losses`.
            *tensors: Predicted parameters, as for a call.
            generator: See a call.
            seed: See a call.
            **named: Predicted parameters by name, and the targets the loss needs: `true=` parameters, `solution=`, `pool=`; tuples
                where there are several.

        Returns:
            (batch...), differentiable in the predicted parameters; the targets are constants.
        """
        targets, named = self.compiled.targets(named)
        theta, dtype, device = self._theta(tensors, named)
        words = self._words(generator, seed)
        held = {k: [t.numpy(force=True) if isinstance(t, Tensor) else t for t in v] for k, v in targets.items()}
        values, gradients = self.compiled.loss(loss, [t.numpy(force=True) for t in theta], held, words.numpy(force=True))
        surrogate = torch.from_numpy(np.array(values)).to(device=device, dtype=dtype)
        for t, g in zip(theta, gradients, strict=True):
            moved = torch.from_numpy(np.ascontiguousarray(g)) * (t - t.detach())
            surrogate = surrogate + moved.reshape(*surrogate.shape, -1).sum(-1).to(device=device, dtype=dtype)
        return surrogate

    def solve(self, *tensors: Any, **named: Any) -> Any:
        """The optimal solutions without noise: a `Solution` of numpy arrays, with values, objective and status."""
        values = self.compiled.arguments(tensors, named)
        return self.compiled.solve(*(v.numpy(force=True) if isinstance(v, Tensor) else v for v in values))

    def _theta(self, tensors: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[Tensor], torch.dtype, torch.device | None]:
        values = self.compiled.arguments(tensors, named)
        theta, _, dtype, device = _read(values, [p.name for p in self.compiled.parameters])
        shapes = [tuple(t.shape) for t in theta]
        batch = self.compiled.batch_shape(shapes)
        specs = self.compiled.sized(shapes).parameters
        return [t.expand(*batch, *p.shape) for t, p in zip(theta, specs, strict=True)], dtype, device

    def _seed(self, generator: torch.Generator | None, seed: Any) -> Tensor:
        if not self.compiled.estimator.random:
            return self._unseeded
        return self._words(generator, seed)

    def _words(self, generator: torch.Generator | None, seed: Any) -> Tensor:
        if seed is not None:
            return (
                torch.as_tensor(seed, dtype=torch.int64).reshape(-1)
                if not isinstance(seed, Tensor) or seed.ndim < 1
                else seed.to(torch.int64)
            )
        return torch.randint(2**62, (SEED,), generator=generator)

    def report(self) -> str:
        """What the compiler found."""
        return self.compiled.report()

    def extra_repr(self) -> str:
        """One line about the problem: parameters, outputs, oracle, estimator."""
        return self.compiled.describe()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_bound"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bound = _Bound(self.compiled)

    def __deepcopy__(self, memo: dict[int, Any]) -> DiscreteLayer:
        other = type(self)(self.compiled)
        other.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in ("_bound", "compiled")})
        return other
