"""Least squares as a torch module: the solve is one autograd node, its derivative the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercompiler.errors import DerivativeError, UnsupportedTransformError
from layercompiler.plan.least_squares import CompiledLeastSquares, LeastSquaresSolution, Prepared
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.traced import unrolled
from layercompiler.status import Status
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
        Reverse mode to any order, with respect to every parameter; a start has the derivative zero. The first order is a solve with the
        factors of the Hessian; under create_graph the derivative rule takes over, which is dense. Forward mode and torch.func raise; the
        jax layer has them.
        By default exact ("implicit"): at a converged point with a positive definite Hessian. Where the Hessian is not definite, a
        layer that raises does so when a gradient is asked for, and one that flags makes the outputs NaN with a zero gradient.

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
        return self._run(tensors, named, init, None)[0]

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
        outputs, node, dtype, device = self._run(tensors, named, init, callback, "flag")
        info = self.prepared.info(node.result, node.batch)
        program = self.prepared.program
        value = torch.from_numpy(node.result.cost * program.scale + program.constant).reshape(node.batch).to(device=device, dtype=dtype)
        return LeastSquaresSolution(outputs, MappingProxyType(dict(zip(program.outputs, outputs, strict=True))), value, info)

    def extra_repr(self) -> str:
        """One line about the problem."""
        return self.compiled.describe()

    def _run(self, tensors: Any, named: Any, init: Any, callback: Any, on_error: str | None = None) -> Any:
        prepared = self.prepared
        values = prepared.arguments.bind(tensors, named)
        theta, _, dtype, device = _read(values, prepared.names)
        if device is not None:
            theta = [t.cpu() for t in theta]
        node = _Node(prepared, init, callback, on_error or self.compiled.on_error)
        mode = self.compiled.options.backward
        if node.prepared.xp.traced(*theta):
            raise UnsupportedTransformError(
                "least squares in torch is not transformed by torch.func or torch.compile",
                mend="use autograd (with a batch instead of vmap, create_graph=False), or the jax layer, which takes every transform",
            )
        flat = _steps(node, theta) if mode in ("truncated", "unrolled") else _Solve.apply(node, *theta)
        batch = flat.shape[:-1]
        outputs = [flat[..., a:b].reshape(*batch, *shape) for a, b, shape in prepared.slices]
        if not theta and init is None:
            dtype = torch.get_default_dtype()
        if dtype is not torch.float64 or device is not None:
            outputs = [x.to(device=device, dtype=dtype) for x in outputs]
        return (tuple(outputs), node, dtype, device) if callback is not None or on_error else (tuple(outputs),)


class _Node:
    """One call: what the autograd node carries besides tensors."""

    def __init__(self, prepared: Prepared, init: Any, callback: Any, on_error: str) -> None:
        self.prepared, self.callback, self.on_error = prepared, callback, on_error
        self.init = None if init is None else {k: _host(v) for k, v in init.items()}
        self.batch: tuple[int, ...] = ()
        self.result: Any = None

    def run(self, theta: tuple[Tensor, ...]) -> Any:
        """Solve; fills `batch` and `result`."""
        p = self.prepared
        self.batch = p.batch_shape([tuple(t.shape) for t in theta], self.init)
        call = p.regular(theta, p.start(self.batch, self.init), self.batch)
        self.result = p.solve(call, self.callback)
        if self.on_error == "raise":
            p.refuse(self.result, self.batch)
        return call


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
        values = result.values
        if node.on_error == "flag":
            values = np.where((result.status == Status.SOLVED)[:, None], values, np.nan)
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(*node.batch, p.solver.evaluation.size)

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
        theta = ctx.saved_tensors
        if gradient is None:
            return None, *(None for _ in theta)
        if not hasattr(ctx, "adjoint"):
            ctx.adjoint = _Adjoint(ctx.node, theta)
        if torch.is_grad_enabled():  # create_graph: the derivative is to be differentiated
            return None, *ctx.adjoint.differentiable(gradient, theta)
        with torch.no_grad():
            return None, *ctx.adjoint.pull(gradient)


class _Adjoint:
    """Derivatives at the solution of a call."""

    def __init__(self, node: _Node, theta: tuple[Tensor, ...]) -> None:
        p = self.prepared = node.prepared
        self.node, self.theta = node, theta
        result = node.result
        self.call = p.regular([t.detach() for t in theta], result.values, node.batch)
        exact = p.options.backward != "gauss_newton"
        self.factor, pivots, self.held = p.solver.factor(result.values, self.call.theta, self.call.shared, exact)
        self.solved = result.status == Status.SOLVED
        self.good = self.solved & (pivots > PIVOT)

    def flag(self, output: Tensor) -> None:
        """NaN where there is no derivative."""
        if not self.good.all():
            output.view(-1, output.shape[-1])[torch.from_numpy(~self.good)] = float("nan")
            status = np.where(self.solved & ~self.good, np.int8(Status.INDEFINITE), self.node.result.status)
            object.__setattr__(self.node.result, "status", status)

    def pull(self, gradient: Tensor) -> list[Tensor]:
        p, call = self.prepared, self.call
        g = gradient.detach().to(torch.float64).reshape(call.count, -1).numpy()
        g = p.solver.evaluation.lift(self.node.result.values, g)
        touched = np.abs(g).max(axis=1, initial=0.0) > 0
        self.check(touched)
        g = np.where((self.good & touched)[:, None], g, 0.0)
        if self.held is not None:
            g = np.where(self.held, 0.0, g)
        u = np.where(self.good[:, None], self.factor.solve(g, 2), 0.0)
        found = p.solver.pull(self.node.result.values, u, call.theta, call.shared)
        return [
            _fold(f.reshape((*(() if s else call.batch), *q.shape)), t)
            for f, t, s, q in zip(found, self.theta, call.shared, p.program.parameters, strict=True)
        ]

    def differentiable(self, gradient: Tensor, theta: tuple[Tensor, ...]) -> list[Tensor | None]:
        """`pull` as a function of both with derivatives of its own, by the derivative rule at the solution."""
        p, node = self.prepared, self.node
        if p.options.backward != "implicit":
            raise UnsupportedTransformError(f"backward='{p.options.backward}' has no second derivatives", expected="'implicit'")
        if not self.good.all():
            self.check(np.ones(len(self.good), bool))
            raise DerivativeError(
                "second derivatives need every instance of the batch",
                got=f"{int((~self.good).sum())} instances without a derivative",
                mend="leave those instances out of the batch",
            )
        values = torch.from_numpy(node.result.values).reshape(*node.batch, -1)
        moving = [t for t in theta if t.requires_grad]
        flat = p.attached(values, p.aligned(theta, node.batch), "raise")
        found = iter(torch.autograd.grad(flat, moving, gradient, create_graph=True, allow_unused=True))
        return [next(found) if t.requires_grad else None for t in theta]

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


def _steps(node: _Node, theta: list[Tensor]) -> Tensor:
    """The values through recorded steps: all of them, or the last ones from the solution."""
    p = node.prepared
    batch = p.batch_shape([tuple(t.shape) for t in theta], node.init)
    start = p.start(batch, node.init)
    node.run(tuple(t.detach() for t in theta))
    whole = p.options.backward == "unrolled"
    count = max(int(node.result.iterations.max(initial=0)), 1) if whole else p.options.truncation
    call = p.regular(p.aligned(theta, batch), start, batch)
    values = unrolled(p.solver, start if whole else node.result.values, call.theta, call.shared, count)
    if node.on_error == "flag":
        good = torch.from_numpy(node.result.status == Status.SOLVED)
        values = torch.where(good[:, None], values, torch.full_like(values, float("nan")))
    return values.reshape(*batch, -1)
