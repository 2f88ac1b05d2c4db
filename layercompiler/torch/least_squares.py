"""Least squares as a torch module: the solve is one autograd node, its derivative the implicit function theorem."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from layercompiler.errors import DerivativeError, UnsupportedTransformError
from layercompiler.plan.arguments import starts
from layercompiler.plan.least_squares import FIXED, CompiledLeastSquares, Prepared
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.traced import converging, follow, instances
from layercompiler.status import Status
from layercompiler.torch import rules
from layercompiler.torch.direct import Direct
from layercompiler.torch.layer import _read


class LeastSquaresLayer(torch.nn.Module):
    """Parameters in, minimiser out, differentiable.

    Args:
        compiled: A `CompiledLeastSquares`.

    Example:
        >>> import layercompiler as lc, torch
        >>> t = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> problem = lc.LeastSquares(
        ...     {"x": lc.Euclidean(2, init=[1.0, 0.0])},
        ...     [lc.factor(lambda x, y: x[0] * torch.exp(x[1] * t) - y, on="x", data="y")],
        ...     {"y": (5,)},
        ... )
        >>> layer = lc.export(problem, "torch")
        >>> y = (2 * torch.exp(-t)).requires_grad_()
        >>> (x,) = layer(y)
        >>> x[1].backward()
        >>> [round(v, 6) for v in x.tolist()], abs(round(float(y.grad @ y.detach()), 6))
        ([2.0, -1.0], 0.0)

    Differentiability:
        With respect to every parameter, of every order, in both modes and under `torch.func` ("implicit"; the other backward modes
        have first order in reverse mode). A start has the derivative zero, for the solution does not move with it; that of elements
        that are fixed is refused where it requires a gradient: what is fixed and learned is a parameter. `torch.compile` breaks its
        graph here. Every mode returns the solution, and its status is that of the point which is returned.
        By default exact ("implicit"): at a converged point with a positive definite Hessian. Where the Hessian is not definite, a
        layer that raises does so when a gradient is asked for (inside of `torch.func` the derivative is NaN), and one that flags makes
        the outputs NaN with a zero gradient.

    Cost:
        Solves run on the host in float64; one factorisation per step, and one for all derivatives.
    """

    def __init__(self, compiled: CompiledLeastSquares) -> None:
        super().__init__()
        self.compiled = compiled

    @property
    def prepared(self) -> Prepared:
        """The program and its solver."""
        return self.compiled.prepare("torch")

    def forward(self, *tensors: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Solve at the given parameters.

        Args:
            *tensors: Parameters in order, each (batch..., *shape); leading dimensions broadcast.
            init: Starting values by variable, (batch..., *shape); the declared ones by default.
            **named: Parameters by name.

        Returns:
            One tensor per output, (batch..., *shape).

        Raises:
            InputError: An argument is wrong.
            SolveError: An instance did not converge and the layer is told to raise.
        """
        if not named and not torch.compiler.is_compiling():
            outputs = self._directly(tensors, init)
            if outputs is not None:
                return outputs
        return self._run(tensors, named, init, None)[0]  # type: ignore[reportCallIssue]

    def solve(
        self, *tensors: Any, init: Mapping[str, Any] | None = None, callback: Callable[..., Any] | None = None, **named: Any
    ) -> LeastSquaresSolution:
        """Solve, and tell what happened to each instance; never raises for instances that did not converge.

        Args:
            *tensors: As for a call.
            init: As for a call.
            callback: Called after every step with (step, cost (B,), relative gradient (B,), values (B, numbers)); the solve stops where
                it returns True. `info.history` then holds the costs.
            **named: As for a call.
        """
        outputs, node, dtype, device = self._run(tensors, named, init, callback, "flag")  # type: ignore[reportCallIssue]
        info = self.prepared.info(node.result, node.batch)
        program = self.prepared.program
        value = torch.from_numpy(node.result.cost * program.scale + program.constant).reshape(node.batch).to(device=device, dtype=dtype)
        return LeastSquaresSolution(outputs, MappingProxyType(dict(zip(program.outputs, outputs, strict=True))), value, info)

    def report(self) -> str:
        """The variables and residuals, and how they are solved and differentiated."""
        return self.prepared.report(self.compiled.choices())

    def extra_repr(self) -> str:
        """One line about the problem."""
        return self.compiled.describe()

    def _directly(self, tensors: Sequence[Any], init: Any) -> tuple[Tensor, ...] | None:
        """Outputs by the short way, or None where the call has to go the general way."""
        prepared = self.prepared
        way: Direct | None = prepared.short
        if way is None or way.native is not prepared.solver.__dict__.get("native"):
            if not rules._plain():  # the residuals are spelled out where they see plain tensors
                return None
            way = prepared.short = Direct.of(prepared, _general)
        return None if way is None else way(tensors, _starts(prepared, init))

    @torch.compiler.disable
    def _run(self, tensors: Any, named: Any, init: Any, callback: Any, on_error: str | None = None) -> Any:
        prepared = self.prepared
        values = prepared.arguments.bind(tensors, named)
        theta, codes, dtype, device = _read(values, prepared.names)
        if device is not None:
            theta = [t.cpu() for t in theta]
        if (named or codes) and callback is None and on_error is None:
            outputs = self._directly(theta, init)
            if outputs is not None:
                return (tuple([x.to(device=device, dtype=dtype) for x in outputs]),)
        node = _Node(prepared, init, callback, on_error or self.compiled.on_error)
        mode = self.compiled.options.backward
        if prepared.xp.traced(*theta) or forward_ad._current_level >= 0:
            flat = _transformed(node, theta, mode, callback)
        else:
            flat = _steps(node, theta) if mode in ("truncated", "unrolled") else _Solve.apply(node, *theta)
        batch = flat.shape[:-1]
        outputs = [flat[..., a:b].reshape((*batch, *shape)) for a, b, shape in prepared.slices]
        if not theta and init is None:
            dtype = torch.get_default_dtype()
        if dtype is not torch.float64 or device is not None:
            outputs = [x.to(device=device, dtype=dtype) for x in outputs]
        return (tuple(outputs), node, dtype, device) if callback is not None or on_error else (tuple(outputs),)


class _Node:
    """One call: what the autograd node carries besides tensors."""

    def __init__(self, prepared: Prepared, init: Any, callback: Any, on_error: str) -> None:
        self.prepared, self.callback, self.on_error = prepared, callback, on_error
        self.init = _starts(prepared, init)
        self.batch: tuple[int, ...] = ()
        self.call: Any = None
        self.result: Any = None

    def run(self, theta: tuple[Tensor, ...], record: Any = None) -> Any:
        """Solve; fills `batch` and `result`, and `record` with the steps."""
        p = self.prepared
        self.batch = p.batch_shape([tuple(t.shape) for t in theta], self.init)
        call = self.call = p.regular([t.detach() for t in theta], p.start(self.batch, self.init), self.batch)
        self.result = p.solve(call, self.callback, record)
        if self.on_error == "raise":
            p.refuse(self.result, self.batch)
        return call


def _starts(prepared: Prepared, init: Mapping[str, Any] | None) -> dict[str, np.ndarray] | None:
    """Starts on the host."""
    found = starts(init, _host)
    for v in prepared.program.variables:
        given = (init or {}).get(v.name)
        if v.fixed is None or not v.fixed.any() or not isinstance(given, Tensor):
            continue
        if (given.requires_grad and torch.is_grad_enabled()) or (
            forward_ad._current_level >= 0 and forward_ad.unpack_dual(given).tangent is not None
        ):
            raise UnsupportedTransformError(FIXED[0], where=f"init['{v.name}']", mend=FIXED[1])
    return found


def _host(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise UnsupportedTransformError("a start cannot be transformed", where="init", mend="map over parameters only")
        return value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


class _Solve(torch.autograd.Function):
    """(node, *theta) to the values (batch..., ambient)."""

    @staticmethod
    def forward(node: _Node, *theta: Tensor) -> Tensor:
        node.run(theta)
        result, p = node.result, node.prepared
        values = np.array(result.values, order="C")  # of their own: who gets them may write to them
        if node.on_error == "flag":
            values[result.status != Status.SOLVED] = np.nan
        return torch.from_numpy(values.reshape(*node.batch, p.solver.evaluation.size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.node = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)
        if any(ctx.needs_input_grad[1:]) and ctx.node.on_error == "flag":
            adjoint = ctx.adjoint = _Adjoint(ctx.node, inputs[1:])
            adjoint.flag(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled() and ctx.node.prepared.options.backward == "implicit":
            return None, *_twice(ctx.node, _adjoint(ctx), ctx.saved_tensors, ctx.needs_input_grad[1:], gradient)
        return _once(ctx, gradient) if torch.is_grad_enabled() else (None, *_adjoint(ctx).pull(gradient))


# torch asks for it at every call, and finding it takes longer than a small solve
_Solve.forward.__signature__ = inspect.signature(_Solve.forward)  # type: ignore[attr-defined]


@torch.autograd.function.once_differentiable
def _once(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return None, *_adjoint(ctx).pull(gradient)


def _general(found: Any, theta: Sequence[Tensor], wanted: Sequence[bool], gradient: Tensor) -> Sequence[Any]:
    """Gradients of a batch that the short way solved."""
    p = found.way.prepared
    node = _Node(p, found.init, None, p.on_error)
    node.batch, node.result = found.batch, found.result
    node.call = p.regular([t.detach() for t in theta], p.start(node.batch, node.init), node.batch)
    adjoint = _Adjoint(node, tuple(theta))
    return _twice(node, adjoint, theta, wanted, gradient) if torch.is_grad_enabled() else adjoint.pull(gradient)


def _twice(node: _Node, adjoint: _Adjoint, theta: Sequence[Tensor], wanted: Sequence[bool], gradient: Tensor) -> list[Any]:
    """Gradients that are differentiable themselves."""
    p = node.prepared
    adjoint.check(gradient.detach().reshape(adjoint.call.count, -1).abs().amax(1).numpy() != 0)
    good = torch.from_numpy(adjoint.good).reshape(*node.batch, 1)
    values = torch.from_numpy(np.ascontiguousarray(node.result.values)).reshape(*node.batch, -1)
    aligned: Any = p.aligned(theta, node.batch)
    if not adjoint.good.all():
        values, aligned = p.sound(good[..., 0], values, aligned)
    flat = p.attached(values, aligned, "flag")
    at = [i for i, asked in enumerate(wanted) if asked]
    cotangent = torch.where(good, gradient, torch.zeros_like(gradient))
    found = torch.autograd.grad(flat, [theta[i] for i in at], cotangent, create_graph=True, allow_unused=True)
    grads: list[Any] = [None] * len(theta)
    for i, g in zip(at, found, strict=True):
        grads[i] = g
    return grads


def _adjoint(ctx: Any) -> _Adjoint:
    if not hasattr(ctx, "adjoint"):
        ctx.adjoint = _Adjoint(ctx.node, ctx.saved_tensors)
    return ctx.adjoint


class _Adjoint:
    """Derivatives at the solution of a call."""

    def __init__(self, node: _Node, theta: tuple[Tensor, ...]) -> None:
        p = self.prepared = node.prepared
        self.node, self.theta = node, theta
        result = node.result
        self.call = node.call
        exact = p.options.backward != "gauss_newton"
        self.factor, pivots, self.held = p.solver.factor(result.values, self.call.theta, self.call.shared, exact)
        self.solved = result.status == Status.SOLVED
        self.good = self.solved & (pivots > PIVOT)
        if not exact:  # which is definite at a saddle point, too
            self.good &= p.solver.factor(result.values, self.call.theta, self.call.shared)[1] > PIVOT

    def flag(self, output: Tensor) -> None:
        """NaN where there is no derivative."""
        if not self.good.all():
            output.view(-1, output.shape[-1])[torch.from_numpy(~self.good)] = float("nan")
            status = np.where(self.solved & ~self.good, np.int8(Status.INDEFINITE), self.node.result.status)
            object.__setattr__(self.node.result, "status", status)

    def pull(self, gradient: Tensor) -> list[Tensor]:
        p, call = self.prepared, self.call
        if not call.count:
            return [torch.zeros_like(t) for t in self.theta]
        g = gradient.detach().to(torch.float64).reshape(call.count, -1).resolve_neg().numpy()
        g = p.solver.lift(self.node.result.values, g)
        touched = np.abs(g).max(axis=1, initial=0.0) != 0  # by NaN, too
        self.check(touched)
        g = np.where((self.good & touched)[:, None], g, 0.0)
        if self.held is not None:
            g = np.where(self.held, 0.0, g)
        u = np.where(self.good[:, None], self.factor.solve(g, 2), 0.0)
        values = np.ascontiguousarray(self.node.result.values)
        if not self.good.all():
            sound, call = self._sound(torch.from_numpy(values))
            values = sound.numpy()
        found = p.solver.pull(values, u, call.theta, call.shared)
        return [
            _fold(torch.as_tensor(f).reshape((*(() if s else call.batch), *q.shape)), t)
            for f, t, s, q in zip(found, self.theta, call.shared, p.program.parameters, strict=True)
        ]

    def _sound(self, values: Tensor) -> tuple[Tensor, Any]:
        p, batch = self.prepared, self.call.batch
        good = torch.from_numpy(self.good).reshape(batch)
        values, theta = p.sound(good, values.reshape(*batch, -1), p.aligned([t.detach() for t in self.theta], batch))
        return values.reshape(self.call.count, -1), p.regular(theta, self.call.start, batch)

    def check(self, touched: np.ndarray) -> None:
        bad = touched & ~self.good
        if self.node.on_error == "raise" and bad.any():
            stationary = bad & self.solved
            places = [tuple(int(k) for k in np.unravel_index(i, self.call.batch)) for i in np.flatnonzero(bad)]
            raise DerivativeError(
                "the Hessian is not positive definite at the solution: there is no derivative"
                if stationary.any()
                else "an instance that did not converge has no derivative",
                where=f"batch index {', '.join(map(str, places[:8]))}",
                mend="add a prior or fix the free directions (a gauge), or export with on_error='flag'",
            )


def _fold(gradient: Tensor, like: Tensor) -> Tensor:
    """Sum over broadcast dimensions."""
    while gradient.ndim > like.ndim:
        gradient = gradient.sum(0)
    if gradient.ndim < like.ndim:
        return gradient.reshape(like.shape)
    for d, (a, b) in enumerate(zip(gradient.shape, like.shape, strict=True)):
        if a != b:
            gradient = gradient.sum(d, keepdim=True)
    return gradient


def _transformed(node: _Node, theta: list[Tensor], mode: str, callback: Any) -> Tensor:
    """The values under transforms: a solve that they do not see, and the derivative rule."""
    p = node.prepared
    if mode != "implicit" or callback is not None:
        raise UnsupportedTransformError(
            "transforms of torch.func and forward mode are there for the layer itself with backward='implicit'",
            got=f"backward='{mode}'" if callback is None else "a call of solve()",
            mend="use autograd (with a batch instead of vmap)",
        )
    batch = p.batch_shape([tuple(t.shape) for t in theta], node.init)
    theta = list(p.aligned(theta, batch))

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        call = node.run(tensors)
        adjoint = _Adjoint(node, tensors)
        shown = adjoint.good if node.on_error == "flag" else np.ones_like(adjoint.good)
        facts = np.stack([adjoint.good, shown], axis=1).astype(np.float64)
        values = np.where(np.isfinite(node.result.values), node.result.values, 0.0)
        return tuple(torch.from_numpy(a).reshape(*call.batch, -1) for a in (values, facts))

    values, facts = p.xp.opaque(run, lambda axes, size, inner: inner, *theta)
    good, shown = facts[..., :1] > 0, facts[..., 1:] > 0
    at, sources = p.sound(good[..., 0], values, theta) if node.on_error == "flag" else (values, theta)
    flat = p.attached(at, sources, "flag")
    nan = torch.full_like(values, float("nan"))
    # where there is no derivative, the derivative is NaN, not the value
    flat = values + (flat - values) * torch.where(good, torch.ones_like(nan), nan) if node.on_error == "raise" else flat
    return torch.where(shown, flat, nan)


class _Checked(torch.autograd.Function):
    """Values as they are, whose gradient is refused where there is no derivative."""

    @staticmethod
    def forward(ctx: Any, adjoint: _Adjoint, values: Tensor, *theta: Tensor) -> Tensor:
        ctx.adjoint, ctx.theta = adjoint, theta
        return values.view_as(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        touched = gradient.reshape(ctx.adjoint.call.count, -1).abs().amax(1).numpy() != 0
        ctx.adjoint.check(touched)
        good = torch.from_numpy(ctx.adjoint.good)[:, None]
        kept = torch.where(good, gradient.reshape(len(good), -1), torch.zeros_like(gradient.reshape(len(good), -1)))
        return None, kept.reshape(gradient.shape), *[torch.zeros_like(t) for t in ctx.theta]


def _steps(node: _Node, theta: list[Tensor]) -> Tensor:
    """The solution with the derivative of steps: of those that led to it, or of the last ones, which are steps at it."""
    p = node.prepared
    record: list[Any] | None = [] if p.options.backward == "unrolled" else None
    node.run(tuple(t.detach() for t in theta), record)
    found, count = node.result, node.call.count
    values = torch.from_numpy(np.array(found.values, order="C"))
    shape = (*node.batch, values.shape[-1])
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in theta) and count):
        if node.on_error == "flag":
            values[torch.from_numpy(found.status != Status.SOLVED)] = torch.nan
        return values.reshape(shape)
    adjoint = _Adjoint(node, tuple(theta))
    if node.on_error == "flag":
        adjoint.flag(values)
    index = np.flatnonzero(adjoint.good)
    if not len(index):
        return _Checked.apply(adjoint, values, *theta).reshape(shape)  # type: ignore[reportCallIssue]
    call = p.regular(p.aligned(theta, node.batch), node.call.start, node.batch)
    sources, at = p.solver.take(call.theta, call.shared, index), torch.from_numpy(index)
    ends = values[at]
    if record is None:
        host = p.solver.instances(p.solver.take(node.call.theta, call.shared, index), call.shared)
        with np.errstate(all="ignore"):
            record = [(1.0, converging(p.solver, host, found.values[index]))] * p.options.truncation
    else:
        record = [(widen, type(step)(*(None if a is None else a[index] for a in step))) for widen, step in record]
    x: Tensor | None = None
    for widen, step in record:
        if step.accept.any():
            tensors = type(step)(*(None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in step))
            x = follow(p.solver, instances(p.solver, sources, call.shared, widen), tensors.values if x is None else x, tensors)
    if x is not None:
        ends = ends + (x - x.detach())
    return _Checked.apply(adjoint, values.index_put((at,), ends), *([] if ends.requires_grad else theta)).reshape(shape)  # type: ignore[reportCallIssue]
