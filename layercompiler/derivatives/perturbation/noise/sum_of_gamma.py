"""Sum-of-gamma noise, drawn by inversion of its exact distribution function.

The variable is X = (G_1 + ... + G_m - log m) / k with independent G_i of shape 1/k and scale k/i; the sum of k of them tends to
a Gumbel variable with m. Drawing m gammas per entry is slow, so the distribution function F of G = sum G_i is inverted instead.

The transform M(s) = prod_i (1 + s k / i)^(-1/k) has its singularities on the negative real axis only, which is the case Talbot's
contour is made for: F(x) = L^-1[M(s) / s](x) comes out to about 1e-12 at any x > 0, also near zero, where the density is singular
for m < k (F ~ x^(m/k) there). Sampling then is one random word and one linear interpolation between neighbouring quantiles; the
outer cells, where the quantile function bends, go through a table in logit(u).

Source: Niepert, Minervini, Franceschi 2021 (the noise); Weideman 2006 (the contour).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.noise.base import Noise, noises
from layercompiler.errors import OptionError

_CELLS = 1 << 14
_TAIL = 64  # cells at either end that go through the logit table
_LOGIT = 34.0  # logit(u) of the ends of that table: u from 2e-15 to 1 - 2e-15
_KNOTS = 1 << 14
_NODES = 24


@noises.register
@dataclass(frozen=True)
class SumOfGamma(Noise):
    """Sum-of-gamma noise for distributions over vectors with about `k` ones.

    Args:
        k: Number of ones in a typical solution (kappa), positive.
        terms: Number m of gammas in the sum.

    Cost:
        A table is made once per (k, terms), in about 0.1 s; a draw costs one random word and a gather.
    """

    k: float = 1.0
    terms: int = 10
    name: ClassVar[str] = "sum_of_gamma"

    def __post_init__(self) -> None:
        if not (self.k > 0 and math.isfinite(self.k)) or int(self.terms) != self.terms or self.terms < 1:
            raise OptionError("sum-of-gamma noise needs k > 0 and a whole number of terms", got=f"k={self.k!r}, terms={self.terms!r}")

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws by inversion."""
        base, slope, tail = _tables(float(self.k), int(self.terms))
        count = math.prod(shape)
        words = rng.integers(0, 1 << 32, count, dtype=np.uint32)
        cell = (words >> np.uint32(18)).astype(np.intp)
        out = slope.take(cell, mode="clip")  # mode "clip" leaves out the check of bounds, which cannot be violated
        out *= words & np.uint32((1 << 18) - 1)
        out += base.take(cell, mode="clip")
        (outer,) = np.nonzero((words - np.uint32(_TAIL << 18)) >= np.uint32((_CELLS - 2 * _TAIL) << 18))
        if len(outer):
            # u is uniform within its cell: the word's low bits, refined by a fresh draw
            u = (words[outer].astype(float) + rng.random(len(outer))) * 2.0**-32
            low = u < 0.5
            edge = np.maximum(np.where(low, u, 1.0 - u), 1e-300)
            at = np.where(low, 1.0, -1.0) * (np.log(edge) - np.log1p(-edge))
            place = np.clip((at + _LOGIT) * ((_KNOTS - 1) / (2 * _LOGIT)), 0.0, _KNOTS - 1.0001)
            knot = place.astype(np.intp)
            part = place - knot
            out[outer] = tail[knot] * (1.0 - part) + tail[knot + 1] * part
        return out.reshape(shape)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """The exact distribution function, for checks."""
        total = np.asarray(x, dtype=float) * self.k + math.log(self.terms)
        return np.where(total > 0, _below(np.maximum(total, 1e-300), self.k, self.terms), 0.0)


def _below(x: np.ndarray, k: float, m: int) -> np.ndarray:
    """P(G <= x) for x > 0 by Talbot's contour s(t) = N/x (a + b t cot(c t) + d i t), midpoint rule."""
    t = (2.0 * np.arange(_NODES) + 1.0) * np.pi / _NODES - np.pi
    t = t[_NODES // 2 :]  # conjugate pairs
    c = 0.6407
    cot = 1.0 / np.tan(c * t)
    s = _NODES * (-0.4814 + 0.6122 * t * cot + 0.2645j * t)
    ds = _NODES * (0.6122 * cot - 0.6122 * c * t / np.sin(c * t) ** 2 + 0.2645j)
    weight = np.exp(s) * ds * (2.0 / _NODES) / s
    log = np.zeros((len(x.ravel()), len(s)), complex)
    z = s[None, :] / x.ravel()[:, None]
    for i in range(1, m + 1):
        log += np.log1p(z * (k / i))
    return np.clip((np.exp(-log / k) @ weight).imag, 0.0, 1.0).reshape(x.shape)


@lru_cache(maxsize=64)
def _tables(k: float, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantiles at the cell edges, their slopes per low word, and quantiles on a grid of logit(u)."""
    low, high = math.log(1e-300) if m < k else math.log(1e-16), math.log(60.0 * k + 60.0)
    # the lower tail behaves as x^(m/k): reach down until F is below the smallest u of the table
    reach = (-_LOGIT - 6.0) * k / m
    x = np.exp(np.linspace(max(low, min(reach, -8.0), -690.0), high, 6000))
    f = np.maximum.accumulate(_below(x, k, m))
    with np.errstate(divide="ignore"):
        logit = np.log(f) - np.log1p(-np.minimum(f, 1 - 1e-16))
    good = np.isfinite(logit) & (f < 1 - 1e-11)
    # above 1 - 1e-11 the tail is exponential with the rate of the widest gamma, 1/k, times a slowly varying power
    knots = np.linspace(-_LOGIT, _LOGIT, _KNOTS)
    a, b = logit[good], np.log(x[good])
    keep = np.concatenate([[True], np.diff(a) > 0])
    tail = np.exp(_pchip(a[keep], b[keep], knots))
    top = a[keep][-1]
    beyond = knots > top
    tail[beyond] = np.exp(b[keep][-1]) + k * (knots[beyond] - top)
    u = np.arange(1, _CELLS) / _CELLS
    inner = np.exp(_pchip(a[keep], b[keep], np.log(u) - np.log1p(-u)))
    edges = np.concatenate([[0.0], inner, [inner[-1]]])
    shift = math.log(m)
    base = (edges[:-1] - shift) / k
    slope = np.diff(edges) / k * 2.0**-18
    return base, slope, (tail - shift) / k


def _pchip(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    from scipy.interpolate import PchipInterpolator

    inside = np.clip(at, x[0], x[-1])
    value = PchipInterpolator(x, y)(inside)
    slope = (y[1] - y[0]) / (x[1] - x[0])  # log-linear below: F is a power of x there
    return np.where(at < x[0], y[0] + slope * (at - x[0]), value)
