"""Functions of an angle that are 0/0 at zero, by their squares, with all their derivatives right there."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any

NEAR = 0.04  # squared angle below which the series is used: closed forms lose digits to cancellation there
_TERMS = 6

_SINC = [(-1) ** k / factorial(2 * k + 1) for k in range(_TERMS)]
_VERSINE = [(-1) ** k / factorial(2 * k + 2) for k in range(_TERMS)]
_THIRD = [(-1) ** k / factorial(2 * k + 3) for k in range(_TERMS)]
# |B_2k| / (2k)! of the Bernoulli numbers
_BERNOULLI = [1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000]
_ARCTAN = [(-1) ** k / (2 * k + 1) for k in range(8)]


def sinc(xp: Any, square: Any) -> Any:
    """sin(t) / t."""
    return _join(xp, square, _SINC, lambda t: xp.sin(t) / t)


def versine(xp: Any, square: Any) -> Any:
    """(1 - cos(t)) / t^2."""
    return _join(xp, square, _VERSINE, lambda t: 2 * (xp.sin(t / 2) / t) ** 2)


def third(xp: Any, square: Any) -> Any:
    """(t - sin(t)) / t^3."""
    return _join(xp, square, _THIRD, lambda t: (t - xp.sin(t)) / (t * t * t))


def cotangent(xp: Any, square: Any) -> Any:
    """(1 - (t / 2) cot(t / 2)) / t^2."""
    return _join(xp, square, _BERNOULLI, lambda t: (1 - t / 2 * xp.cos(t / 2) / xp.sin(t / 2)) / (t * t))


def cotangent_rest(xp: Any, square: Any, part: Any) -> Any:
    """`cotangent` where part = (t / 2) cot(t / 2) is known."""
    near = square < NEAR
    one = xp.ones_like(square)
    return xp.where(near, _horner(xp.where(near, square, one), _BERNOULLI), (1 - part) / xp.where(near, one, square))


def angle_over_sine(xp: Any, sine_square: Any, cosine: Any) -> Any:
    """atan2(n, w) / n for n^2 and w >= 0."""
    near = sine_square < 0.01 * cosine * cosine
    one = xp.ones_like(cosine)
    safe = xp.where(near, cosine, one)
    u = xp.where(near, sine_square, 0 * one) / (safe * safe)
    far = xp.sqrt(xp.where(near, one, sine_square))
    return xp.where(near, _horner(u, _ARCTAN) / safe, xp.atan2(far, cosine) / far)


def _join(xp: Any, square: Any, coefficients: list[float], closed: Callable[[Any], Any]) -> Any:
    near = square < NEAR
    one = xp.ones_like(square)
    # both branches see harmless numbers where the other one is taken, so that no derivative is 0 * inf
    return xp.where(near, _horner(xp.where(near, square, one), coefficients), closed(xp.sqrt(xp.where(near, one, square))))


def _horner(x: Any, coefficients: list[float]) -> Any:
    total = coefficients[-1] * x + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        total = total * x + c
    return total
