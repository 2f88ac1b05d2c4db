"""The short way of least squares: tensors of the host go to the compiled solve as they lie, with one node in autograd's graph.

It is taken in eager reverse mode where every tensor is float64, contiguous and finite and every instance converges; all else, and
second derivatives, go the general way of `least_squares`, with the same numbers to the last bit.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from layercompiler.kernels import library
from layercompiler.kernels.ldl import Factor
from layercompiler.plan.least_squares import Prepared
from layercompiler.solvers.least_squares import Result
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.torch import quick, rules
from layercompiler.torch.lease import empty
from layercompiler.torch.quick import KINDS, PAUSE, Shapes, Short, lies_plain

REFINE, TARGET = 2, 1e-14  # of the linear solve, those of the general way
SMALL = 2**15  # bytes up to which numbers are looked at in a copy: a call of torch's dispatcher costs more


class Direct(Short):
    """What a program needs for the short way.

    Args:
        prepared: A program whose solves run in compiled code from start to end.
        general: (solved batch, theta, which are wanted, cotangent of all values) to the gradients of theta by the general way.
    """

    def __init__(self, prepared: Prepared, general: Callable[..., Any]) -> None:
        super().__init__([p.shape for p in prepared.program.parameters], [shape for _, _, shape in prepared.slices])
        self.prepared, self.general = prepared, general
        solver, o = prepared.solver, prepared.options
        native = solver.native
        assert native is not None
        self.native, self.descent, self._library = native, native.descent, library.require()
        gauss_newton = prepared.method == "gauss_newton"
        self.settings = (o.tolerance, o.damping, o.max_iterations, o.adaptive, o.ellipsoidal, o.polish, gauss_newton)
        self.size, self.n = solver.evaluation.size, solver.structure.n
        self.default = np.ascontiguousarray(prepared.default)
        self.finite = bool(np.isfinite(prepared.default).all())
        self.parts = [(a, b) for a, b, _ in prepared.slices]
        self.whole = self.parts == [(0, self.size)]
        self.flat = all(v.manifold.name == "euclidean" for v in prepared.program.variables)
        self.free = None if self.n == self.size else solver.structure.free
        self.one = np.ones(1)  # the widening of losses that have none
        self.constants = [library.address(c) for c in native.constants]
        self.inputs = 1 + len(self.parameters) + len(self.constants)
        self.pointers, self.strides = ctypes.c_void_p * (2 + self.inputs), ctypes.c_int64 * (2 + self.inputs)
        self.steps = ctypes.c_int64 * len(self.parameters)
        self.pulls = [t.handle for t in native.pulls]
        self.held = [_Held(now, then) for now, then in native.held]

    @classmethod
    def of(cls, prepared: Prepared, general: Callable[..., Any]) -> Direct | None:
        """Of a program that can go this way, or None."""
        easy = prepared.options.backward == "implicit" and prepared.on_error in ("raise", "flag") and prepared.program.parameters
        return cls(prepared, general) if easy and prepared.solver.whole else None

    def __call__(self, tensors: Sequence[Any], init: Mapping[str, Any] | None) -> tuple[Tensor, ...] | None:
        """Outputs of the program, or None where it has to go the general way."""
        read = self.read(tensors)
        if read is None or (not all([h.same() for h in self.held]) and self.native.changed()):
            return None
        shapes, addresses, recorded = read
        with np.errstate(all="ignore"):
            for t, address in zip(tensors, addresses, strict=True):
                size = 8 * t.numel()
                numbers = np.frombuffer(ctypes.string_at(address, size)) if size <= SMALL else t.detach()
                if not math.isfinite(numbers.sum()):  # a NaN or an infinity shows in the sum; numbers that overflow, too
                    return None
        if self.prepared.domains and self.prepared.domains.broken([t.detach().numpy() for t in tensors]):
            return None
        values = self._start(shapes.batch, shapes.count, init)
        if values is None:
            return None
        found = _Found(self, shapes, values, addresses, init)
        if not found.solve() or (recorded and self.prepared.on_error == "flag" and not found.factorise()):
            self.pause = PAUSE
            return None
        return quick.record(found, tensors, _Node) if recorded else found.outputs()

    def _start(self, batch: tuple[int, ...], count: int, init: Mapping[str, Any] | None) -> np.ndarray | None:
        """(count, ambient) starting values in memory of their own; None where they are not finite or change the batch."""
        if init is None:
            if not self.finite:
                return None
            return self.default.repeat(count, axis=0)
        if self.prepared.batch_shape([batch + p[0] for p in self.parameters], init) != batch:
            return None
        values = self.prepared.start(batch, init)
        return values if np.isfinite(values).all() else None


class _Held:
    """A tensor that residuals close over, and what it held; a quick look at it."""

    def __init__(self, now: Tensor, then: Tensor) -> None:
        self.now, self.shape, self.size = now, now.shape, now.numel() * now.element_size()
        small = self.size <= SMALL and type(now) in KINDS and now.layout is torch.strided and now.is_cpu and now.is_contiguous()
        self.then = then.contiguous().numpy().tobytes() if small and not now.is_neg() and not now.is_conj() else None

    def same(self) -> bool:
        """Whether it holds the same bits; not to be told in a glance, it is said to have changed."""
        now = self.now
        if self.then is None or now.requires_grad or now.shape != self.shape or not now.is_contiguous():
            return False
        return ctypes.string_at(now.data_ptr(), self.size) == self.then


class _Found:
    """A solved batch."""

    def __init__(self, way: Direct, shapes: Shapes, values: np.ndarray, addresses: list[int], init: Any) -> None:
        self.way, self.shapes, self.values, self.init = way, shapes, values, init
        self.batch, self.count, self.factor = shapes.batch, shapes.count, None
        self.pointers = way.pointers(library.address(values), None, library.address(way.one), *addresses, *way.constants)
        self.strides = way.strides(way.size, way.n, 0, *shapes.strides)

    def solve(self) -> bool:
        """From the values, in place; whether every instance converged."""
        way, B = self.way, self.count
        self.facts = np.empty(4 * B + 1 + (B + 7) // 8)  # measures, largest gradients, costs; iterations, refinements; statuses
        self.facts[4 * B] = 0.0
        at = library.address(self.facts)
        status = at + 8 * (4 * B + 1)
        if way._library.lc_nls_solve(
            *(way.descent.handle, B, self.pointers[0], way.inputs, *self.given(), *way.settings),
            *(status, at, at + 8 * B, at + 16 * B, at + 24 * B, at + 32 * B),
        ):
            raise MemoryError(library.reason())
        return ctypes.string_at(status, B) == bytes(B)

    def given(self) -> tuple[int, int]:
        """Where pointers and strides of what the solve reads begin: those of values and step are left out."""
        return ctypes.addressof(self.pointers) + 16, ctypes.addressof(self.strides) + 16

    def factorise(self) -> bool:
        """Whether every instance has a positive definite Hessian."""
        if self.factor is None:
            way, B = self.way, self.count
            given = (way.descent.handle, B, self.pointers[0], way.inputs, *self.given())
            self.factor = Factor(way.descent.ldl, B, lambda pivots: way._library.lc_nls_factor(*given, pivots))
        return bool(self.factor.pivots.min() > PIVOT)  # not where one is NaN

    def outputs(self) -> tuple[Tensor, ...]:
        """What the layer returns, each its own memory."""
        if self.way.whole:
            return (torch.from_numpy(self.values.reshape(self.shapes.outputs[0]).copy()),)
        pairs = zip(self.way.parts, self.shapes.outputs, strict=True)
        return tuple([torch.from_numpy(self.values[:, a:b].reshape(shape).copy()) for (a, b), shape in pairs])

    def adjoint(self, theta: Sequence[Tensor], g: Sequence[Tensor | None]) -> list[Tensor] | None:
        """Gradients of the parameters; None where an instance has no derivative."""
        way, B = self.way, self.count
        if not all([lies_plain(t) for t in theta]) or not self.factorise():  # a hook for saved tensors may have moved them
            return None
        whole = g[0] if way.whole and g[0] is not None and lies_plain(g[0]) else self.gathered(g)
        right = whole.numpy().reshape(B, way.size)
        if not way.flat:
            right = way.prepared.solver.lift(self.values, right)
        elif way.free is not None:
            right = right[:, way.free]
        assert self.factor is not None
        u = self.factor.solve(right, refine=REFINE, tol=TARGET)[0]
        out = [torch.from_numpy(np.zeros(t.shape)) if 8 * t.numel() <= SMALL else empty(t.shape).zero_() for t in theta]
        k = len(out)
        pointers, strides = way.pointers(*self.pointers), way.strides(*self.strides)
        pointers[1], pointers[3 : 3 + k] = library.address(u), [t.data_ptr() for t in theta]
        to, steps = (ctypes.c_void_p * k)(*[x.data_ptr() for x in out]), way.steps(*strides[3 : 3 + k])
        for tape in way.pulls:
            if way._library.lc_tape_run(tape, B, pointers, strides, to, steps):
                raise MemoryError(library.reason())
        return out

    def gathered(self, g: Sequence[Tensor | None]) -> Tensor:
        """The cotangent of all values, (batch..., ambient), differentiable."""
        if self.way.whole and g[0] is not None:
            return g[0].resolve_neg().reshape(*self.batch, self.way.size)
        whole = torch.zeros(*self.batch, self.way.size, dtype=torch.float64, device="cpu")
        for part, (a, b) in zip(g, self.way.parts, strict=True):
            if part is not None:
                whole = whole + torch.nn.functional.pad(part.reshape(*self.batch, b - a), (a, self.way.size - b))
        return whole

    @property
    def result(self) -> Result:
        """What the solve found."""
        B = self.count
        measure, largest, cost, iterations = self.facts[: 4 * B].reshape(4, B)
        status, refinements = self.facts[4 * B + 1 :].view(np.int8)[:B], int(self.facts[4 * B : 4 * B + 1].view(np.int64)[0])
        return Result(self.values, status, measure, largest, cost, iterations.view(np.int64), refinements)


class _Node(quick._Node):
    """A solved batch in the graph of reverse mode."""

    @staticmethod
    @override
    def backward(ctx: Any, *g: Any) -> Any:
        theta, found, wanted = ctx.saved_tensors, ctx.found, ctx.needs_input_grad[1:]
        given = [p for p in g if p is not None]
        if not given:
            return None, *(None for _ in theta)
        if not torch.is_grad_enabled() and rules._plain() and all([type(p) is Tensor for p in given]) and rules._bare([*given, *theta]):
            gradients = found.adjoint(theta, g)
            if gradients is not None:
                return None, *gradients
        return None, *found.way.general(found, theta, wanted, found.gathered(g))
