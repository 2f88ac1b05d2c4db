"""How far a point and the Jacobian computed there may be from the truth, from numbers at the point alone.

With alpha the smallest singular value of A = dF/dy, beta a Lipschitz constant of dF/dtheta in y, gamma one of A in y, and R = |dF/dtheta|:

    |y - y*| <= |F| / alpha,        |J(y) - J(y*)| <= (beta / alpha + gamma R / alpha^2) |F| / alpha

Source: Blondel et al. 2022, theorem 1, made a-posteriori by the first inequality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.arrays import Arrays
from layercompiler.derivatives.operator import jacobian

PROBES = 4


@dataclass(frozen=True)
class Certificate:
    """Bounds for every instance; arrays of the batch shape.

    Attributes:
        residual: |F|.
        sigma_min: Smallest singular value of dF/dy.
        iterate_bound: Bound on |y - y*|.
        jacobian_bound: Bound on the spectral norm of the error of dy/dtheta.
        beta: Lipschitz constant of dF/dtheta that was used (given, or estimated by differences in random directions).
        gamma: Lipschitz constant of dF/dy that was used.
    """

    residual: np.ndarray
    sigma_min: np.ndarray
    iterate_bound: np.ndarray
    jacobian_bound: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray


def certify(
    xp: Arrays,
    F: Callable[..., Any],
    y: Any,
    theta: tuple[Any, ...],
    batch: int = 0,
    *,
    beta: float | None = None,
    gamma: float | None = None,
) -> Certificate:
    """The certificate of a point y for F(y, *theta).

    Constants that are not given are estimated: the largest rate of change of the Jacobians between y and points at the distance of the
    iterate bound in random directions. Estimated constants make an estimate of a bound, not a proof.

    Cost: dense Jacobian blocks by y, for each of the probes, and products with dF/dtheta.
    """
    host = xp.numpy
    floating = [i for i, t in enumerate(theta) if xp.is_floating(t)]
    lead = tuple(int(s) for s in y.shape[:batch])

    def blocks(point: Any) -> np.ndarray:
        return host(jacobian(xp, lambda v: F(v, *theta), point, batch).blocks)

    def by_theta(point: Any) -> np.ndarray:
        rows = [_theta_jacobian(xp, F, point, theta, i, batch) for i in floating]
        return np.concatenate(rows, axis=-1) if rows else np.zeros((*lead, 1, 1))

    flat = host(F(y, *theta)).reshape(*lead, -1)
    residual = np.linalg.norm(flat, axis=-1)
    A, B = blocks(y), by_theta(y)
    alpha = np.linalg.svd(A, compute_uv=False)[..., -1] if A.shape[-1] else np.full(lead, np.inf)
    size = np.linalg.norm(B, 2, axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = residual / alpha
    estimates = np.zeros((2, *lead))
    if beta is None or gamma is None:
        rng = np.random.default_rng(0)
        reach = np.where(np.isfinite(distance), np.maximum(distance, 1e-6 * (1 + np.linalg.norm(host(y).reshape(*lead, -1), axis=-1))), 1.0)
        for _ in range(PROBES):
            d = rng.standard_normal((*lead, flat.shape[-1]))
            d *= (reach / np.linalg.norm(d, axis=-1))[..., None]
            point = y + xp.reshape(xp.new(d, y), tuple(y.shape))
            moved = [np.linalg.norm(by_theta(point) - B, 2, axis=(-2, -1)), np.linalg.norm(blocks(point) - A, 2, axis=(-2, -1))]
            estimates = np.maximum(estimates, np.array(moved) / reach)
    b = estimates[0] if beta is None else np.full(lead, float(beta))
    g = estimates[1] if gamma is None else np.full(lead, float(gamma))
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = (b / alpha + g * size / alpha**2) * distance
    return Certificate(residual, alpha, distance, bound, b, g)


def _theta_jacobian(xp: Arrays, F: Callable[..., Any], y: Any, theta: tuple[Any, ...], i: int, batch: int) -> np.ndarray:
    """(batch..., n, k): dF/dtheta_i of every instance; row by row of F, for all instances at once."""
    lead, n = tuple(int(s) for s in y.shape[:batch]), int(np.prod(y.shape[batch:]))
    count = int(np.prod(lead))
    rows = []
    _, pull = xp.vjp(lambda t: F(y, *theta[:i], t, *theta[i + 1 :]), theta[i])
    for b in range(count):
        for k in range(n):
            e = np.zeros((count, n))
            e[b, k] = 1.0
            rows.append(xp.numpy(pull(xp.reshape(xp.new(e, y), tuple(y.shape)))[0]).reshape(-1))
    return np.array(rows).reshape(*lead, n, -1)
