"""Losses of a squared norm that grow slower than it, so that outliers pull less."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercompiler.errors import OptionError


@dataclass(frozen=True)
class Robust(ABC):
    """rho(s) of s = ||W r||^2, with rho(0) = 0 and rho'(0) = 1: near zero every loss is the square.

    Args:
        radius: Where the loss starts to bend, in units of ||W r||: a positive number, an array of one per factor, or the name of a
            parameter of shape () or (factors,).
    """

    radius: Any = 1.0

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.radius, str):
            radius = np.asarray(self.radius, dtype=float)
            if not (np.isfinite(radius) & (radius > 0)).all():
                raise OptionError(
                    "the radius of a robust loss is not positive",
                    where=type(self).__name__,
                    expected="finite numbers > 0, or the name of a parameter",
                    got=str(self.radius),
                )

    @abstractmethod
    def rho(self, xp: Any, s: Any, c: Any) -> Any:
        """The loss of s at the squared radius c."""

    @abstractmethod
    def slope(self, xp: Any, s: Any, c: Any) -> Any:
        """rho'(s), the weight of the factor in a Gauss-Newton step."""


@dataclass(frozen=True)
class Huber(Robust):
    """s up to radius^2, then 2 radius sqrt(s) - radius^2."""

    name: ClassVar[str] = "huber"

    def rho(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        far = s > c
        return xp.where(far, 2 * xp.sqrt(c * xp.where(far, s, c)) - c, s)

    def slope(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        far = s > c
        return xp.where(far, xp.sqrt(c / xp.where(far, s, c)), xp.ones_like(s))


@dataclass(frozen=True)
class PseudoHuber(Robust):
    """2 radius^2 (sqrt(1 + s / radius^2) - 1): a smooth Huber loss."""

    name: ClassVar[str] = "pseudo-huber"

    def rho(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return 2 * s / (xp.sqrt(1 + s / c) + 1)  # without the cancellation of the formula above

    def slope(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return 1 / xp.sqrt(1 + s / c)


@dataclass(frozen=True)
class Cauchy(Robust):
    """radius^2 log(1 + s / radius^2)."""

    name: ClassVar[str] = "cauchy"

    def rho(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return c * xp.log1p(s / c)

    def slope(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return 1 / (1 + s / c)


@dataclass(frozen=True)
class Welsch(Robust):
    """radius^2 (1 - exp(-s / radius^2))."""

    name: ClassVar[str] = "welsch"

    def rho(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return -c * xp.expm1(-s / c)

    def slope(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return xp.exp(-s / c)


@dataclass(frozen=True)
class GemanMcClure(Robust):
    """radius^2 s / (radius^2 + s).

    Args:
        radius: See `Robust`.
        graduated: Solve first with the squared radius `start` times as large, where the loss is nearly a square, and shrink it by
            `factor` in stages: graduated non-convexity, which finds the inliers from farther away.
        start: First factor of the squared radius.
        factor: What divides it from stage to stage.

    Source: Yang, Antonante, Tzoumas, Carlone 2020, "Graduated non-convexity for robust spatial perception".
    """

    graduated: bool = False
    start: float = 1024.0
    factor: float = 2.0
    name: ClassVar[str] = "geman-mcclure"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.start >= 1 and self.factor > 1):
            raise OptionError(
                "a graduation shrinks", where="GemanMcClure", expected="start >= 1 and factor > 1", got=f"{self.start}, {self.factor}"
            )

    def rho(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return s * (c / (c + s))

    def slope(self, xp: Any, s: Any, c: Any) -> Any:
        """See `Robust`."""
        return (c / (c + s)) ** 2
