"""Points on which projections are hard: all magnitudes, next to every boundary and every kink, and on them."""

import numpy as np


def magnitudes(rng, *shape):
    """Signed numbers from 1e-8 to 1e8."""
    return np.exp(rng.uniform(np.log(1e-8), np.log(1e8), shape)) * rng.choice([-1, 1], shape)


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def exponential_rays(rho):
    e, one = np.exp(-np.abs(rho)), np.ones_like(rho)
    up = (rho >= 0)[:, None]
    x = np.where(up, np.stack([rho * e, e, one], 1), np.stack([rho, one, e], 1))
    return unit(x), unit(np.where(up, np.stack([one, 1 - rho, -e], 1), np.stack([e, (1 - rho) * e, -one], 1)))


def power_rays(rho, alpha):
    beta = 1 - alpha
    s, t = np.maximum(beta * rho, -alpha * rho), np.maximum(-beta * rho, alpha * rho)
    x = np.stack([np.exp(beta * rho - s), np.exp(-alpha * rho - s), np.exp(-s)], 1)
    return unit(x), unit(np.stack([-alpha * np.exp(-beta * rho - t), -beta * np.exp(alpha * rho - t), np.exp(-t)], 1))


def mixtures(rng, rays):
    """X x + Y y with one share between 1e-17 and 1, and with one share zero, at all magnitudes."""
    x, y = rays
    small = np.exp(rng.uniform(-40, 0, (len(x), 1))) * (rng.random((len(x), 1)) < 0.8)
    swap = rng.random((len(x), 1)) < 0.5
    return (np.where(swap, 1, small) * x + np.where(swap, small, 1) * y) * np.abs(magnitudes(rng, len(x), 1))


def near_planes(rng, count):
    """Normal points with one coordinate zero, or tiny."""
    out = rng.standard_normal((count, 3))
    which = rng.integers(0, 3, count)
    out[np.arange(count), which] = magnitudes(rng, count) * rng.choice([0, 1e-18, 1e-12, 1e-8], count)
    return out


def exponential(rng, count):
    """(count, 3) points v for the projection onto the dual cone."""
    k = count // 4
    rho = np.sinh(rng.uniform(-8, 8, count - 3 * k))
    parts = [rng.standard_normal((k, 3)), magnitudes(rng, k, 3), near_planes(rng, k), mixtures(rng, exponential_rays(rho))]
    return -np.concatenate(parts)


def power(rng, count):
    """(count, 3) points v, and their exponents (count,), from 1e-8 to 1 - 1e-8."""
    k = count // 4
    alpha = np.where(rng.random(count) < 0.5, rng.uniform(0.02, 0.98, count), np.exp(rng.uniform(np.log(1e-8), np.log(0.5), count)))
    alpha = np.where(rng.random(count) < 0.3, 1 - alpha, alpha)
    alpha[rng.random(count) < 0.1] = 0.5
    rho = np.sinh(rng.uniform(-5.5, 5.5, count - 3 * k))
    mixed = mixtures(rng, power_rays(rho, alpha[3 * k :]))
    mixed[:, 2] *= rng.choice([-1, 1], len(mixed))
    return -np.concatenate([rng.standard_normal((k, 3)), magnitudes(rng, k, 3), near_planes(rng, k), mixed]), alpha
