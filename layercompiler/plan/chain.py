"""The chain rule between the user's parameters and the channels that the data are affine in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.errors import ShapeError
from layercompiler.plan.arguments import Values
from layercompiler.programs.cone import ConeProgram

Channels = list[np.ndarray | None]


class Chain:
    """Tangents down to the channels and gradients back up, for the arguments of one call.

    A channel is a parameter or its logarithm; gradients have the shape of the argument, summed over broadcast dimensions.
    """

    def __init__(self, program: ConeProgram, values: Values) -> None:
        self.program, self.values = program, values
        # Where a logarithm does not exist the instance is marked as not finite; 1 keeps its place without a warning.
        flat = ((c, values.flat[c.parameter]) for c in program.channels)
        self.raw = tuple(np.where(r > 0, r, 1.0) if c.log else r for c, r in flat)

    def thetas(self) -> tuple[np.ndarray, ...]:
        """Channel values, (1 or count, size)."""
        return tuple(np.log(r) if c.log else r for c, r in zip(self.program.channels, self.raw, strict=True))

    def tangents(self, tangents: Sequence[Any]) -> Channels:
        """Tangents of the channels, (1 or count, size), None for zero."""
        flat: Channels = []
        self._count(tangents, "tangent")
        for p, shape, tangent in zip(self.program.parameters, self.values.shapes, tangents, strict=True):
            if tangent is None:
                flat.append(None)
                continue
            array = np.asarray(tangent, dtype=float)
            if array.shape != shape:
                raise ShapeError(f"the tangent of parameter '{p.name}' has the wrong shape", expected=f"{shape}", got=f"{array.shape}")
            flat.append(self.values.flatten(array, p))
        out: Channels = []
        for c, raw in zip(self.program.channels, self.raw, strict=True):
            tangent = flat[c.parameter]
            out.append(tangent / raw if c.log and tangent is not None else tangent)
        return out

    def mixed(self, first: Channels, second: Channels) -> Channels:
        """Second derivative of the channels along two tangents: -h k / theta^2 for logarithms, else zero."""
        triples = zip(self.program.channels, first, second, strict=True)
        return [-a * b if c.log and a is not None and b is not None else None for c, a, b in triples]

    def pull(self, gradients: Any, clean: Any) -> Channels:
        """Gradients of the data to gradients of the channels: the transposes of the affine maps."""
        shared = [len(r) == 1 for r in self.raw]
        out: Channels = [None] * len(self.program.channels)
        for m, gradient in zip(self.program.maps, gradients, strict=True):
            if m.blocks:
                m.adjoint(clean(gradient()), out, shared)
        return out

    def to_parameters(self, channels: Channels) -> tuple[np.ndarray, ...]:
        """Gradients of the channels to gradients of the arguments."""
        if self.program.plain and all(
            [g is not None and g.size == math.prod(s) for g, s in zip(channels, self.values.shapes, strict=True)]
        ):
            return tuple([g.reshape(s) for g, s in zip(channels, self.values.shapes, strict=True)])  # type: ignore[union-attr]
        return self._arguments([None if g is None else g / raw if c.log else g for c, raw, g in self._each(channels)])

    def to_parameters_along(self, moved: Channels, channels: Channels, tangents: Channels) -> tuple[np.ndarray, ...]:
        """Derivative of `to_parameters`: for a logarithm, d(g / theta) = g' / theta - g h / theta with h its channel's tangent."""
        out: Channels = []
        for (c, raw, change), g, h in zip(self._each(moved), channels, tangents, strict=True):
            total = change
            if c.log:
                total = None if change is None else change / raw
                if g is not None and h is not None:
                    total = -g * h / raw if total is None else total - g * h / raw
            out.append(total)
        return self._arguments(out)

    def zeros(self) -> tuple[np.ndarray, ...]:
        """Zero gradients."""
        return tuple(np.zeros(shape) for shape in self.values.shapes)

    def _each(self, channels: Channels) -> Any:
        return zip(self.program.channels, self.raw, channels, strict=True)

    def _arguments(self, channels: Channels) -> tuple[np.ndarray, ...]:
        flat: Channels = [None] * len(self.program.parameters)
        for c, gradient in zip(self.program.channels, channels, strict=True):
            if gradient is not None:
                held = flat[c.parameter]
                flat[c.parameter] = gradient if held is None else held + gradient
        out = []
        for p, shape, gradient in zip(self.program.parameters, self.values.shapes, flat, strict=True):
            lead = shape[: len(shape) - len(p.shape)]
            if gradient is None:
                out.append(np.zeros(shape))
            elif len(gradient) == math.prod(lead):
                out.append(gradient.reshape(shape))
            else:
                wide = np.broadcast_to(gradient, (self.values.count, p.size)).reshape((*self.values.batch, p.size))
                out.append(_unbroadcast(wide, lead).reshape(shape))
        return tuple(out)

    def _count(self, given: Sequence[Any], what: str) -> None:
        if len(given) != len(self.program.parameters):
            raise ShapeError(f"one {what} per parameter is needed", expected=f"{len(self.program.parameters)}", got=f"{len(given)}")


def _unbroadcast(wide: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Sum (*batch, size) over the dimensions along which `lead` was broadcast."""
    extra = wide.ndim - 1 - len(lead)
    wide = wide.sum(axis=tuple(range(extra))) if extra else wide
    ones = tuple(i for i, n in enumerate(lead) if n == 1 and wide.shape[i] != 1)
    return wide.sum(axis=ones, keepdims=True) if ones else wide
