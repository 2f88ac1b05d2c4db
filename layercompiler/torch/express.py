"""The short way of cone programs: a call crosses over to the kernels once forward and once backward, with one node in autograd's graph.

It is taken in eager reverse mode where every tensor is contiguous and every instance is solved to rounding; all else, and second
derivatives, go the general way of `operators`, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from layercompiler import kernels
from layercompiler.kernels.express import HARD
from layercompiler.plan.express import express
from layercompiler.torch import host
from layercompiler.torch.lease import empty
from layercompiler.torch.quick import PAUSE, Shapes, Short, record


class Express(Short):
    """What a compiled problem needs for this way.

    Args:
        bound: The problem with its options.
        way: Its kernels as one.
    """

    def __init__(self, bound: Any, way: kernels.Express) -> None:
        super().__init__(bound)
        self.way = way

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
        passage = self.way.forward(shapes.count, [*addresses, *shapes.strides, *[o.data_ptr() for o in outputs]], self.threads)
        if isinstance(passage, int):
            if passage >= HARD:
                self.pause = PAUSE
            return None
        return record(_Found(self, bound, passage, shapes, outputs), tensors) if recorded else tuple(outputs)


class _Found:
    """A solved batch."""

    def __init__(self, way: Express, bound: Any, passage: kernels.Passage, shapes: Shapes, outputs: Any) -> None:
        self.way, self.bound, self.passage, self.batch = way, bound, passage, shapes.batch
        self.shared = [not own for own in shapes.own]
        self._outputs: list[Tensor] = outputs
        self._z: Tensor | None = None

    def outputs(self) -> tuple[Tensor, ...]:
        """What the layer returns, once: kept here, they would keep themselves alive."""
        outputs, self._outputs = self._outputs, []
        return tuple(outputs)

    def adjoint(self, theta: Sequence[Tensor], g: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None] | None:
        """Gradients of the parameters `wanted`; None where the linear system was not solved well."""
        out = [empty(t.shape) if want else None for t, want in zip(theta, wanted, strict=True)]
        addresses = [0 if p is None else p.data_ptr() for p in (*g, *out)]
        return out if self.passage.adjoint(addresses, self.shared, self.way.threads) else None

    def z(self, theta: Sequence[Tensor]) -> Tensor:
        """The primal-dual vector of the general way, which finds the evaluation by it."""
        if self._z is None:
            compiled = self.way.compiled
            z, arrays = np.empty((*self.batch, compiled.zsize)), [host._array(t) for t in theta]
            self.passage.point(z)
            self._z = host._remember(compiled.restore(arrays, z, self.bound.options), arrays)
        return self._z
