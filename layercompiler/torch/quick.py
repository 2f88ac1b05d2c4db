"""The short way of programs written as matrices: tensors of the host go to the dense kernel as they lie, with one node in autograd's graph.

It is taken in eager reverse mode where every tensor is float64 and contiguous and every instance is solved; all else, and second
derivatives, go the general way of `operators`, with the same numbers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from layercompiler.kernels import DenseFactors, DenseSolution
from layercompiler.kernels.dense_qp import Operands
from layercompiler.plan.evaluation import ACCURATE
from layercompiler.plan.matrices import ORDER, Call, Matrices, summed
from layercompiler.torch import host, rules
from layercompiler.torch.lease import empty

PAUSE = 16  # calls that go the general way after one in which an instance failed
KINDS = (Tensor, torch.nn.Parameter)
_Pointers, _Strides = ctypes.c_void_p * 6, ctypes.c_int64 * 6


class Short:
    """What all short ways share: they read the tensors of a call where they lie.

    Args:
        parameters: What has a `shape`, one for each tensor of a call.
        threads: Threads that share a batch.
    """

    def __init__(self, parameters: Sequence[Any], threads: int) -> None:
        self.threads = threads
        self.parameters = [(tuple(p.shape), len(p.shape), math.prod(p.shape)) for p in parameters]
        self.pause = 0

    def read(self, tensors: Sequence[Any]) -> tuple[tuple[int, ...], int, list[bool], list[int], bool] | None:
        """Batch shape, instances, which tensors have it, addresses, and whether autograd records; None where they lie otherwise."""
        if self.pause:
            self.pause -= 1
            return None
        if len(tensors) != len(self.parameters) or not rules._plain():
            return None
        batch: tuple[int, ...] = ()
        wide, addresses, recorded = [], [], False
        for t, (shape, rank, _) in zip(tensors, self.parameters, strict=True):
            if type(t) not in KINDS or t.layout is not torch.strided:
                return None
            size, k = t.shape, t.dim() - rank
            if k < 0 or size[k:] != shape or not lies_plain(t):
                return None
            if k:
                if batch and size[:k] != batch:
                    return None
                batch = size[:k]
            wide.append(k > 0)
            addresses.append(t.data_ptr())
            recorded = recorded or t.requires_grad
        count = math.prod(batch)
        if count == 0 or not rules._bare(tensors):
            return None
        return tuple(batch), count, wide, addresses, recorded and torch.is_grad_enabled()


def lies_plain(t: Tensor) -> bool:
    """Whether the numbers of a tensor are those in the host's memory, in order and float64."""
    return t.is_contiguous() and t.dtype is torch.float64 and t.is_cpu and not t.is_neg() and not t._is_zerotensor()


def threads(bound: Any) -> int:
    """Threads that share the batches of a problem."""
    return (bound.options or bound.compiled.options).workers or bound.compiled.threads


class Quick(Short):
    """What a compiled problem needs for the short way.

    Args:
        bound: The problem with its options.
        matrices: Its parameters as operands of the kernel.
    """

    def __init__(self, bound: Any, matrices: Matrices) -> None:
        super().__init__(bound.compiled.parameters, threads(bound))
        self.compiled = bound.compiled
        self.matrices, self.kernel = matrices, matrices.kernel
        self.names = [o.name for o in bound.compiled.outputs]
        self.constants = [None if c is None else np.ascontiguousarray(c, dtype=np.float64) for c in matrices.constants]
        self.addresses = [None if c is None else c.__array_interface__["data"][0] for c in self.constants]

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
            return None
        batch, count, wide, given, recorded = read
        pointers, strides = list(self.addresses), [0] * 6
        for address, own, place, (_, _, width) in zip(given, wide, self.matrices.place, self.parameters, strict=True):
            pointers[place], strides[place] = address, width if own else 0
        found = _Found(self, bound, Call(batch, count, tuple([batch if own else () for own in wide]), []), pointers, strides)
        if found.troubles:
            self.pause = PAUSE
            return None
        return record(found, tensors) if recorded else found.outputs()


class _Found:
    """A solved batch."""

    def __init__(self, quick: Quick, bound: Any, call: Call, pointers: list[Any], strides: list[int]) -> None:
        self.quick, self.bound, self.call = quick, bound, call
        kernel, B = quick.kernel, call.count
        n, m = kernel.n, kernel.rows
        self.numbers = np.empty(B * (n + 2 * m + 4) + 1)  # x, v, y, three facts; iterations and statuses in the last B
        start = self.numbers.__array_interface__["data"][0]
        at = [start + 8 * B * k for k in (0, n, n + m, n + 2 * m, n + 2 * m + 1, n + 2 * m + 2, n + 2 * m + 3)]
        self.x, self.y = at[0], at[2]
        values, steps, troubles = _Pointers(*pointers), _Strides(*strides), ctypes.c_int64()
        handle = kernel._library.lc_dense_solve(
            *(kernel._handle, B, values, steps, None, None, 0, kernel.forms, at[0], at[1], at[2], at[6] + 4 * B, at[6]),
            *(at[3], at[4], at[5], ctypes.byref(troubles), quick.threads),
        )
        if not handle:
            raise MemoryError
        self.troubles = troubles.value
        self.factors = DenseFactors(kernel, handle, Operands((), B, values, steps))

    def view(self, first: int, width: int) -> np.ndarray:
        """Columns of the numbers of all instances, (B, width)."""
        B = self.call.count
        return self.numbers[B * first : B * (first + width)].reshape(B, width)

    def outputs(self) -> tuple[Tensor, ...]:
        """What the layer returns, each its own memory."""
        n, m, p, batch = self.quick.kernel.n, self.quick.kernel.rows, self.quick.kernel.equalities, self.call.batch
        out = []
        for name in self.quick.names:
            a = self.view(0, n) if name == "x" else self.view(n + m, m)[:, :p] if name == "y" else self.view(n + m, m)[:, p:]
            out.append(torch.from_numpy(np.array(a, order="C").reshape(*batch, a.shape[1])))
        return tuple(out)

    def adjoint(self, theta: Sequence[Tensor], g: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None] | None:
        """Gradients of the parameters `wanted`; None where the linear system was not solved well."""
        if not all([lies_plain(t) for t in theta]):  # a hook for saved tensors may have moved them
            return None
        quick, B = self.quick, self.call.count
        kernel = quick.kernel
        n, m, p = kernel.n, kernel.rows, kernel.equalities
        gx, gy = None, None
        for name, part in zip(quick.names, g, strict=True):
            if part is None:
                continue
            if name == "x":
                gx = part if gx is None else gx + part
            else:
                gy = np.zeros((B, m)) if gy is None else gy
                gy[:, slice(0, p) if name == "y" else slice(p, None)] += part.reshape(B, -1).numpy()
        gx = torch.zeros(B * n, dtype=torch.float64, device="cpu") if gx is None else gx.contiguous()
        pointers, out = list(quick.addresses), []
        own: list[int | None] = [None] * 6
        strides, ends = self.factors.operands.strides, np.empty(B * (n + m + 1))
        for t, lead, want, place in zip(theta, self.call.leads, wanted, quick.matrices.place, strict=True):
            pointers[place] = t.data_ptr()
            gradient = empty(t.shape) if want and (lead or B == 1) else None
            own[place] = None if gradient is None else gradient.data_ptr()
            out.append(gradient)
        at = ends.__array_interface__["data"][0]
        failed = kernel._library.lc_dense_adjoint(
            *(self.factors._handle, _Pointers(*pointers), strides, gx.data_ptr()),
            *(None if gy is None else gy.__array_interface__["data"][0], at, at + 8 * B * n, at + 8 * B * (n + m)),
            *(self.x, self.y, _Pointers(*own), quick.threads),
        )
        if failed or not ends[B * (n + m) :].max() <= ACCURATE:
            return None
        for i, want in enumerate(wanted):
            if want and out[i] is None:  # shared by the batch
                u, t = ends[: B * n].reshape(B, n), ends[B * n : B * (n + m)].reshape(B, m)
                sums = summed(ORDER[quick.matrices.place[i]], u, t, self.view(0, n), self.view(n + m, m), p)
                out[i] = torch.from_numpy(np.ascontiguousarray(sums).reshape(tuple(theta[i].shape)))
        return out

    def z(self, theta: Sequence[Tensor]) -> Tensor:
        """The primal-dual vector of the general way, which finds the evaluation by it."""
        quick, call, B = self.quick, self.call, self.call.count
        n, m = quick.kernel.n, quick.kernel.rows
        arrays = [host._array(t) for t in theta]
        norm, margin, reach = self.numbers[B * (n + 2 * m) : B * (n + 2 * m + 3)].reshape(3, B)
        iterations = self.numbers[B * (n + 2 * m + 3) :].view(np.int32)[:B]
        x, v, y = self.view(0, n), self.view(n, m), self.view(n + m, m)
        solution = DenseSolution(x, v, y, np.zeros(B, np.int8), iterations, norm, margin, reach, self.factors, 0)
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
        given = [p for p in g if p is not None]
        if not given:
            return None, *(None for _ in theta)
        if not torch.is_grad_enabled() and rules._plain() and rules._bare(given) and rules._bare(theta):
            gradients = found.adjoint(theta, [p if p is None or lies_plain(p) else p.resolve_neg().contiguous() for p in g], wanted)
            if gradients is not None:
                return None, *gradients
        gradients = rules._onto(rules.Vjp.call(theta, found.z(theta), g, found.bound), theta)
        return None, *gradients


def record(found: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a solved batch, recorded in the graph; no transform is active and no tensor is the wrapper of one."""
    return super(torch.autograd.Function, _Node).apply(found, *tensors)  # type: ignore[misc]
