"""Isotonic regression: the nearest monotone sequence."""

from __future__ import annotations

from math import ceil, log2
from typing import Any

import numpy as np

from layercompiler.functions.operands import operands


def isotonic(y: Any, weights: Any = 1.0, increasing: bool = True) -> Any:
    """The monotone sequence x that minimises sum(weights * (x - y)^2).

    It is the mean of y over blocks. The blocks are found on constants; the means are a formula of y and the weights.

    Args:
        y: (..., n).
        weights: (..., n) or broadcast, positive; differentiated too.
        increasing: False for a decreasing sequence.

    Differentiability: piecewise smooth; not where two neighboring blocks have equal means, which stay apart then.
    Cost: O(n) where values are at hand (pooling of adjacent violators, as many passes as blocks nest, at most n); O(n^2) time and memory
        inside jit, vmap and other tracing (the min-max formula).
    Source: Best, Chakravarti 1990; Robertson, Wright, Dykstra 1988 (the min-max formula).
    """
    xp, y, weights = operands(y, weights)
    if not increasing:
        return -isotonic(-y, weights)
    zero = xp.zeros_like(xp.stop_gradient(y)) + xp.zeros_like(xp.stop_gradient(weights))
    y, weights = y + zero, weights + zero
    center = xp.stop_gradient(xp.mean(y, axis=-1, keepdims=True))
    sums, masses = _sums(xp, weights * (y - center)), _sums(xp, weights)
    if xp.traced(y, weights):
        start, stop = _minimax(xp, xp.stop_gradient(sums), xp.stop_gradient(masses))
    else:
        start, stop = (xp.new(v) for v in _pool(xp.numpy(sums), xp.numpy(masses)))

    def over(v: Any) -> Any:
        return xp.take_along_axis(v, stop, axis=-1) - xp.take_along_axis(v, start, axis=-1)

    return over(sums) / over(masses) + center


def _sums(xp: Any, v: Any) -> Any:
    """(..., n + 1) sums of the first 0, 1, ..., n entries."""
    return xp.concat([xp.zeros_like(v[..., :1]), xp.cumulative_sum(v, axis=-1)], axis=-1)


def _pool(sums: np.ndarray, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., n) first entry of each entry's block, and the one behind its last."""
    n = sums.shape[-1] - 1
    place = np.arange(n)
    first = np.ones((*sums.shape[:-1], n), bool)
    while True:
        start = np.maximum.accumulate(np.where(first, place, 0), axis=-1)
        last = np.concatenate([first[..., 1:], np.ones_like(first[..., :1])], axis=-1)
        stop = np.minimum.accumulate(np.where(last, place + 1, n)[..., ::-1], axis=-1)[..., ::-1]
        mean = np.take_along_axis(sums, stop, -1) - np.take_along_axis(sums, start, -1)
        mean = mean / (np.take_along_axis(masses, stop, -1) - np.take_along_axis(masses, start, -1))
        falls = first[..., 1:] & (mean[..., :-1] > mean[..., 1:])
        if not falls.any():
            return start, stop
        first[..., 1:] &= ~falls


def _minimax(xp: Any, sums: Any, masses: Any) -> tuple[Any, Any]:
    """The same by x_i = max over j <= i of min over k >= i of mean(y_j, ..., y_k)."""
    n = sums.shape[-1] - 1
    j, k = np.arange(n)[:, None], np.arange(n)[None, :]
    sound = xp.new(k >= j)
    total = sums[..., None, 1:] - sums[..., :-1, None]
    mass = masses[..., None, 1:] - masses[..., :-1, None]
    far = xp.full_like(total, xp.inf)
    mean = xp.where(sound, total / xp.where(sound, mass, xp.ones_like(mass)), far)
    least = mean  # least[j, i] = min over k >= i, by doubling
    for p in range(ceil(log2(n)) if n > 1 else 0):
        shift = 2**p
        least = xp.minimum(least, xp.concat([least[..., shift:], far[..., :shift]], axis=-1))
    start = xp.argmax(xp.where(sound, least, -far), axis=-2)
    row = xp.take_along_axis(mean, xp.expand_dims(start, axis=-1) + xp.new(np.zeros(n, int)), axis=-2)
    stop = xp.argmin(xp.where(sound, row, far), axis=-1) + 1
    return start, stop
