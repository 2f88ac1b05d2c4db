"""The short way of programs written as matrices: tensors of the host go to the dense kernel as they lie, with one node in autograd's graph.

It is taken in eager reverse mode where every tensor is float64 and contiguous and every instance is solved; all else, and second
derivatives, go the general way of `operators`, with the same numbers. With precision="single" float32 tensors take it too, as they are.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing_extensions import override

from layercompiler.kernels import DenseCalls, Solved
from layercompiler.plan.evaluation import ACCURATE
from layercompiler.plan.matrices import ORDER, Call, Matrices, summed
from layercompiler.torch import host, rules
from layercompiler.torch.lease import empty

_ACCURATE_SINGLE = 1e-4  # relative residual of a linear system in float32 up to which gradients are taken
PAUSE = 16  # calls that go the general way after one in which an instance failed
KINDS = (Tensor, torch.nn.Parameter)
_KNOWN = 64  # shapes of calls that are kept
# Bound here: a call looks up little, for what it looks up lies far away when others have used the caches in between.
_F64, _compiling, _recording = torch.float64, torch.compiler.is_compiling, torch.is_grad_enabled
_transformed, _dispatched, _tracing = (
    torch._C._are_functorch_transforms_active,
    torch._C._len_torch_dispatch_stack,
    torch._C._get_tracing_state,
)


def _eager() -> bool:
    """See `rules._plain`."""
    return not (_compiling() or _transformed() or _dispatched() or forward_ad._current_level >= 0) and _tracing() is None


@dataclass(frozen=True)
class Shapes:
    """What follows from the shapes of the arguments of a call.

    Attributes:
        batch: Shape of the batch.
        count: Instances.
        own: Which parameters come for each instance.
        strides: From one instance to the next, in numbers; 0 where the batch shares a parameter.
        outputs: Shapes of the outputs.
    """

    batch: tuple[int, ...]
    count: int
    own: tuple[bool, ...]
    strides: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]


class Short:
    """What all short ways share: they read the tensors of a call where they lie.

    Args:
        parameters: Shapes of the tensors of a call.
        results: Shapes of what is returned.
        threads: Threads that share a batch.
    """

    dtype = _F64

    def __init__(self, parameters: Sequence[Sequence[int]], results: Sequence[Sequence[int]], threads: int = 1) -> None:
        self.threads = threads
        self.parameters = [(tuple(shape), len(shape), math.prod(shape)) for shape in parameters]
        self.results = [tuple(shape) for shape in results]
        self.known: dict[Any, Shapes] = {}
        self.pause = 0

    def read(self, tensors: Sequence[Any]) -> tuple[Shapes, list[int], bool] | None:
        """The shapes of a call, addresses, and whether autograd records; None where the tensors lie otherwise."""
        if self.pause:
            self.pause -= 1
            return None
        if not _eager():
            return None
        key, addresses, recorded, dtype = [], [], False, self.dtype
        try:
            for t in tensors:
                if type(t) not in KINDS or t.dtype is not dtype or not t.is_cpu or not t.is_contiguous() or t.is_neg():
                    return None
                key.append(t.shape)
                addresses.append(t.data_ptr())
                if t.requires_grad:
                    recorded = True
        except RuntimeError:  # the wrapper of a transform, or sparse: there is no memory
            return None
        key = tuple(key)
        shapes = self.known.get(key)
        if shapes is None:
            shapes = self._shapes(key)
            if shapes is None:
                return None
            if len(self.known) < _KNOWN:
                self.known[key] = shapes
        if 0 in addresses and any([not a and t.numel() for a, t in zip(addresses, tensors, strict=True)]):
            return None  # zeros without memory
        return shapes, addresses, recorded and _recording()

    def _shapes(self, given: Sequence[Any]) -> Shapes | None:
        if len(given) != len(self.parameters):
            return None
        batch: tuple[int, ...] = ()
        own = []
        for size, (shape, rank, _) in zip(given, self.parameters, strict=True):
            k = len(size) - rank
            if k < 0 or tuple(size[k:]) != shape:
                return None
            if k:
                if batch and tuple(size[:k]) != batch:
                    return None
                batch = tuple(size[:k])
            own.append(k > 0)
        count = math.prod(batch)
        if count == 0:
            return None
        strides = [width if o and count > 1 else 0 for o, (_, _, width) in zip(own, self.parameters, strict=True)]
        return Shapes(batch, count, tuple(own), tuple(strides), tuple((*batch, *shape) for shape in self.results))


class Compiled(Short):
    """Of a compiled problem.

    Args:
        bound: The problem with its options.
    """

    def __init__(self, bound: Any) -> None:
        self.compiled = bound.compiled
        parameters, outputs = [p.shape for p in self.compiled.parameters], [o.shape for o in self.compiled.outputs]
        super().__init__(parameters, outputs, (bound.options or self.compiled.options).workers or self.compiled.threads)


def lies_plain(t: Tensor, dtype: torch.dtype = _F64) -> bool:
    """Whether the numbers of a tensor are those in the host's memory, in order and of this dtype."""
    return t.is_contiguous() and t.dtype is dtype and t.is_cpu and not t.is_neg() and not t._is_zerotensor()


def _lying(g: Sequence[Any]) -> list[Tensor | None]:
    """Cotangents whose numbers are those in their memory; zeros without memory stay as they are."""
    out = []
    for p in g:
        if p is not None and (type(p) not in KINDS or not p.is_contiguous() or p.is_neg()):
            if type(p) not in KINDS:
                raise RuntimeError("a cotangent of another kind")
            p = p.resolve_neg().contiguous()
        out.append(p)
    return out


class Quick(Compiled):
    """What a compiled problem needs for the short way.

    Args:
        bound: The problem with its options.
        matrices: Its parameters as operands of the kernel.
        single: Whether tensors are float32, and solved in it.
    """

    def __init__(self, bound: Any, matrices: Matrices, single: bool = False) -> None:
        super().__init__(bound)
        self.matrices, self.single, self.number = matrices, None, np.float32 if single else np.float64
        self.dtype = torch.float32 if single else _F64
        if not single and (bound.options or self.compiled.options).precision == "single":
            self.single = Quick(bound, matrices, True)
        parts = ["xyz".index(o.name) for o in bound.compiled.outputs]
        kernel = matrices.single if single else matrices.kernel
        self.calls = DenseCalls(kernel, matrices.constants, matrices.place, parts, _ACCURATE_SINGLE if single else ACCURATE)
        k, o = len(self.parameters), len(parts)
        self.there, self.back = struct.Struct(f"{2 * k + o}q").pack, struct.Struct(f"{2 * k + o + 2}q").pack

    @classmethod
    def of(cls, bound: Any) -> Quick | None:
        """Of a problem that can go this way, or None."""
        matrices: Matrices | None = getattr(bound.compiled, "matrices", None)
        options = bound.options or bound.compiled.options
        if matrices is None or not matrices.names or options.smoothing or options.time_limit or options.max_iterations:
            return None
        return cls(bound, matrices) if all(o.name in ("x", "y", "z") for o in bound.compiled.outputs) else None

    def __call__(self, bound: Any, tensors: Sequence[Any]) -> tuple[Tensor, ...] | None:
        """Outputs of the problem, or None where it has to go the general way."""
        read = self.read(tensors)
        if read is None:
            return None if self.single is None else self.single(bound, tensors)
        shapes, addresses, recorded = read
        outputs = [empty(shape, self.number) for shape in shapes.outputs]
        handle = self.calls.solve(shapes.count, self.there(*addresses, *shapes.strides, *[o.data_ptr() for o in outputs]), self.threads)
        if not handle:
            self.pause = PAUSE
            return None
        found = _Found(self.calls, handle, shapes.count)
        if not recorded:
            return tuple(outputs)
        found.quick, found.bound, found.shapes, found.addresses, found.results = self, bound, shapes, addresses, outputs
        return record(found, tensors)


class _Found(Solved):
    """A solved batch."""

    __slots__ = ("addresses", "bound", "quick", "results", "shapes")

    def outputs(self) -> tuple[Tensor, ...]:
        """What the layer returns, once: kept here, they would keep themselves alive."""
        outputs, self.results = self.results, []
        return tuple(outputs)

    def adjoint(self, theta: Sequence[Tensor], g: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None] | None:
        """Gradients of the parameters `wanted`; None where the linear system was not solved well."""
        shapes, addresses = self.shapes, [t.data_ptr() for t in theta]
        if addresses != self.addresses and not all([lies_plain(t, self.quick.dtype) for t in theta]):
            return None  # a hook for saved tensors has moved them
        out, pointers, summing = [], [], False
        for t, own, want in zip(theta, shapes.own, wanted, strict=True):
            if want and (own or self.batch == 1):
                gradient = empty(t.shape, self.quick.number)
                out.append(gradient)
                pointers.append(gradient.data_ptr())
            else:
                out.append(None)
                pointers.append(0)
                summing = summing or want
        kernel = self._calls.kernel
        ends = np.empty(self.batch * (kernel.n + kernel.rows), kernel.dtype) if summing else None
        at = (0, 0) if ends is None else (ends.ctypes.data, ends.ctypes.data + ends.itemsize * self.batch * kernel.n)
        cotangents = [0 if p is None else p.data_ptr() for p in g]
        if not self.pull(self.quick.back(*addresses, *cotangents, *pointers, *at), self.quick.threads):
            return None
        if ends is not None:
            self._sum(out, ends, theta, wanted)
        return out

    def _sum(self, out: list[Tensor | None], ends: np.ndarray, theta: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        """Gradients of what the batch shares."""
        kernel, B, solution = self._calls.kernel, self.batch, self.solution(None, None)
        u, t = ends[: B * kernel.n].reshape(B, kernel.n), ends[B * kernel.n :].reshape(B, kernel.rows)
        for i, want in enumerate(wanted):
            if want and out[i] is None:
                sums = summed(ORDER[self.quick.matrices.place[i]], u, t, solution.x, solution.y, kernel.equalities)
                out[i] = torch.from_numpy(np.ascontiguousarray(sums).reshape(tuple(theta[i].shape)))

    def z(self, theta: Sequence[Tensor]) -> Tensor:
        """The primal-dual vector of the general way, which finds the evaluation by it."""
        quick, shapes = self.quick, self.shapes
        leads = tuple([shapes.batch if own else () for own in shapes.own])
        arrays = []
        for t, lead, (shape, _, _) in zip(theta, leads, quick.parameters, strict=True):  # as a hook for saved tensors gives them back
            arrays.append(np.ascontiguousarray(host._array(t), dtype=np.float64).reshape(*lead, *shape))
        pointers = [0 if c is None else c.__array_interface__["data"][0] for c in self._calls.constants]
        strides = [0] * 6
        for a, stride, place in zip(arrays, shapes.strides, quick.matrices.place, strict=True):
            pointers[place], strides[place] = a.__array_interface__["data"][0], stride
        solution = self.solution((ctypes.c_void_p * 6)(*pointers), (ctypes.c_int64 * 6)(*strides))
        call = Call(shapes.batch, shapes.count, leads, [])
        return host._remember(quick.compiled.matrix_evaluation(arrays, call, solution, quick.threads), arrays)


class _Node(torch.autograd.Function):
    """A solved batch in the graph of reverse mode."""

    @staticmethod
    @override
    def forward(ctx: Any, found: Any, *theta: Tensor) -> tuple[Tensor, ...]:
        ctx.found = found
        ctx.save_for_backward(*theta)
        ctx.set_materialize_grads(False)
        return found.outputs()

    @staticmethod
    @override
    def backward(ctx: Any, *g: Any) -> Any:
        theta, found, wanted = ctx.saved_tensors, ctx.found, ctx.needs_input_grad[1:]
        if all([p is None for p in g]):
            return None, *(None for _ in theta)
        if not _recording() and _eager():
            try:
                gradients = found.adjoint(theta, _lying(g), wanted)
            except RuntimeError:  # a wrapper without memory
                gradients = None
            if gradients is not None:
                return None, *gradients
        if isinstance(found, _Found) and found.quick.dtype is torch.float32:  # the general way is that of float64
            wide = [t.double() for t in theta]
            *_, z = rules.Solve.call(wide, None, "f" * len(wide), found.bound)
            cotangents = [None if p is None else p.double() for p in g]
            return None, *[t.float() for t in rules.Vjp.call(wide, z.detach(), cotangents, found.bound)]
        gradients = rules._onto(rules.Vjp.call(theta, found.z(theta), g, found.bound), theta)
        return None, *gradients


def record(found: Any, tensors: Sequence[Tensor], node: type[_Node] = _Node) -> tuple[Tensor, ...]:
    """The outputs of a solved batch, recorded in the graph; no transform is active and no tensor is the wrapper of one."""
    return super(torch.autograd.Function, node).apply(found, *tensors)  # type: ignore[misc]
