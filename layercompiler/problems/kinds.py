"""Kinds of unknowns of a least-squares problem: Euclidean ones, rotations and rigid motions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercompiler import arrays, manifolds
from layercompiler.manifolds import Element, Group


@dataclass(frozen=True)
class Variable:
    """A declared unknown (or, among the parameters, a value of that kind).

    Attributes:
        group: The group of its elements, or None for Euclidean ones.
        shape: Shape of a value.
        init: Default start, of `shape`; None for zeros or identities.
        fixed: True, or the elements (indices or a mask) that keep their start.
        lower: Bounds of Euclidean variables, broadcast to `shape`.
        upper: See `lower`.
    """

    group: Group | None
    shape: tuple[int, ...]
    init: Any = field(default=None, repr=False)
    fixed: Any = None
    lower: Any = None
    upper: Any = None


def Euclidean(*shape: int, init: Any = None, fixed: Any = None, lower: Any = None, upper: Any = None) -> Variable:
    """A vector or an array of real numbers; factors with an index read rows of its first axis.

    Args:
        *shape: Its shape; none for a number.
        init: Default start.
        fixed: True, or rows that keep their start.
        lower: Bounds, broadcast to the shape; the start is clipped to them.
        upper: See `lower`.
    """
    return Variable(None, tuple(shape), init, fixed, lower, upper)


class Kind:
    """A group as it is declared, and a maker of its elements.

    Called with a count, `lc.SE3(100)`, it declares 100 elements, and without one a single element. Its methods make and read elements in
    numpy, torch, jax or TensorFlow, whichever the numbers are in; lists are taken for numpy.

    Args:
        group: The group.

    Example:
        >>> import layercompiler as lc, numpy as np
        >>> x = lc.SE2.exp([1.0, 0.0, np.pi / 2])  # of a tangent: translation, then rotation
        >>> x.shape, lc.SE2.identity(3).shape
        ((4,), (3, 4))
        >>> back = lc.SE2.element(x).inverse() @ lc.SE2.element(x)
        >>> [round(float(v), 12) + 0.0 for v in back.log()]
        [0.0, 0.0, 0.0]
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.__doc__ = f"{group.name}: {group.__doc__}"

    def __call__(self, count: int | None = None, *, init: Any = None, fixed: Any = None) -> Variable:
        """Declare `count` elements, a value of shape (count, ambient), or one of shape (ambient,).

        Args:
            count: How many.
            init: Default start; the identity where there is none.
            fixed: True, or the elements (indices or a mask) that keep their start.
        """
        ambient = self.group.ambient
        return Variable(self.group, (ambient,) if count is None else (count, ambient), init, fixed)

    def exp(self, v: Any) -> Any:
        """Elements (..., ambient) of tangents (..., dof): translation first, then the rotation as angle, or axis times angle."""
        xp = arrays.of(v)
        return self.group.exp(xp, np.asarray(v, float) if xp.name == "numpy" else v)

    def identity(self, count: int | None = None) -> np.ndarray:
        """The neutral element, (ambient,) or (count, ambient)."""
        one = self.group.identity()
        return one if count is None else np.tile(one, (count, 1))

    def random(self, rng: np.random.Generator, shape: tuple[int, ...] = (), scale: float = 1.0) -> np.ndarray:
        """exp of normal tangents times `scale`, (*shape, ambient)."""
        return self.group.random(rng, shape, scale)

    def element(self, x: Any) -> Element:
        """Numbers (..., ambient) as an `Element`, as residuals see it, to compute with; its `data` are numbers again."""
        xp = arrays.of(x)
        return Element(self.group, xp, np.asarray(x, float) if xp.name == "numpy" else x)

    def __repr__(self) -> str:
        return f"layercompiler.{self.group.name}"


SO2, SE2, SO3, SE3 = (Kind(g) for g in (manifolds.SO2, manifolds.SE2, manifolds.SO3, manifolds.SE3))
