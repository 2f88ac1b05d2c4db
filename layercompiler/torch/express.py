"""The short way of cone programs: a call crosses over to the kernels once forward and once backward, with one node in autograd's graph.

It is taken in eager reverse mode where every tensor is contiguous and every instance is solved to rounding; all else, and second
derivatives, go the general way of `operators`, with the same numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercompiler import kernels
from layercompiler.kernels.express import HARD
from layercompiler.plan.express import express
from layercompiler.torch import host
from layercompiler.torch.lease import empty
from layercompiler.torch.quick import PAUSE, Compiled, Shapes, lies_plain, record


class Express(Compiled):
    """What a compiled problem needs for this way.

    Args:
        bound: The problem with its options.
        way: Its kernels as one.
    """

    def __init__(self, bound: Any, way: kernels.Express) -> None:
        super().__init__(bound)
        self.way = way
        self.pack = struct.Struct(f"{2 * len(self.parameters) + len(self.results)}q").pack  # addresses of a call, there and back

    @classmethod
    def of(cls, bound: Any) -> Express | None:
        """Of a problem that can go this way, or None."""
        way = express(bound.compiled, bound.options or bound.compiled.options)
        return None if way is None else cls(bound, way)

    def __call__(self, bound: Any, tensors: Sequence[Any]) -> tuple[Tensor, ...] | None:
        """Outputs of the problem, or None where it has to go the general way."""
        read = self.read(tensors)
        if read is None:
            return None
        shapes, addresses, recorded = read
        outputs = [empty(shape) for shape in shapes.outputs]
        handle = self.way.forward(shapes.count, self.pack(*addresses, *shapes.strides, *[o.data_ptr() for o in outputs]), self.threads)
        if handle <= 0:
            if -handle >= HARD:
                self.pause = PAUSE
            return None
        found = _Found(self.way, handle)
        if not recorded:
            return tuple(outputs)
        found.short, found.bound, found.shapes, found.addresses, found.results, found.known = self, bound, shapes, addresses, outputs, None
        return record(found, tensors)


class _Found(kernels.Passage):
    """A solved batch."""

    __slots__ = ("__weakref__", "addresses", "bound", "known", "results", "shapes", "short")
    short: Express
    shapes: Shapes
    addresses: list[int]
    results: list[Tensor]
    known: Tensor | None

    def outputs(self) -> tuple[Tensor, ...]:
        """What the layer returns, once: kept here, they would keep themselves alive."""
        outputs, self.results = self.results, []
        return tuple(outputs)

    def adjoint(self, theta: Sequence[Tensor], g: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None] | None:
        """Gradients of the parameters `wanted`; None where the linear system was not solved well."""
        addresses = [t.data_ptr() for t in theta]
        if addresses != self.addresses and not all([t.is_cpu and t.dtype is torch.float64 and lies_plain(t) for t in theta]):
            return None  # a hook for saved tensors has moved them
        out: list[Tensor | None] = [empty(t.shape) if want else None for t, want in zip(theta, wanted, strict=True)]
        ends = [0 if p is None else p.data_ptr() for p in (*g, *out)]
        return out if self.pull(self.short.pack(*ends, *addresses), self.short.threads) else None

    def z(self, theta: Sequence[Tensor]) -> Tensor:
        """The primal-dual vector of the general way, which finds the evaluation by it."""
        if self.known is None:
            compiled = self.short.compiled
            z, arrays = np.empty((*self.shapes.batch, compiled.zsize)), [host._array(t) for t in theta]
            self.point(z)
            self.known = host._remember(compiled.restore(arrays, z, self.bound.options), arrays)
        return self.known
