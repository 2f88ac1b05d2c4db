"""Elements of a group as a residual function sees them."""

from __future__ import annotations

from typing import Any

from layercompiler.manifolds.group import Group


class Element:
    """One element (or a batch) of a group in arrays of any framework; immutable.

        lambda a, b, z: (z.inverse() @ a.inverse() @ b).log()

    Attributes:
        group: The group.
        data: Its numbers, (..., ambient); see the group for their order.
    """

    __slots__ = ("_xp", "data", "group")

    def __init__(self, group: Group, xp: Any, data: Any) -> None:
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "_xp", xp)
        object.__setattr__(self, "data", data)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("an element does not change")

    def __matmul__(self, other: Element) -> Element:
        return self._new(self.group.compose(self._xp, self.data, other.data))

    def inverse(self) -> Element:
        """The inverse element."""
        return self._new(self.group.inverse(self._xp, self.data))

    def between(self, other: Element) -> Element:
        """self^-1 other."""
        return self.inverse() @ other

    def log(self) -> Any:
        """Its tangent (..., dof)."""
        return self.group.log(self._xp, self.data)

    def local(self, other: Element) -> Any:
        """log(self^-1 other), (..., dof)."""
        return self.between(other).log()

    def retract(self, v: Any) -> Element:
        """Self exp(v)."""
        return self._new(self.group.retract(self._xp, self.data, v))

    def interpolate(self, other: Element, t: Any) -> Element:
        """The element at t in [0, 1] between self and other."""
        return self._new(self.group.interpolate(self._xp, self.data, other.data, t))

    def act(self, points: Any) -> Any:
        """Images of points (..., 2 or 3)."""
        return self.group.act(self._xp, self.data, points)

    def matrix(self) -> Any:
        """Its matrix."""
        return self.group.matrix(self._xp, self.data)

    def adjoint(self) -> Any:
        """Its adjoint matrix (..., dof, dof)."""
        return self.group.adjoint(self._xp, self.data)

    @property
    def rotation(self) -> Element:
        """The rotation of a rigid motion."""
        from layercompiler.manifolds import SO2, SO3

        group = SO2 if self.group.points == 2 else SO3
        return Element(group, self._xp, self.data[..., : group.ambient])

    @property
    def translation(self) -> Any:
        """The translation of a rigid motion (..., 2 or 3)."""
        return self.data[..., self.group.ambient - self.group.points :]

    def __getitem__(self, key: Any) -> Element:
        return self._new(self.data[key])

    def __repr__(self) -> str:
        return f"{self.group.name}({self.data})"

    def _new(self, data: Any) -> Element:
        return Element(self.group, self._xp, data)
