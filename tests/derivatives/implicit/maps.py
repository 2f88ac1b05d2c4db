"""Residual maps written once for every framework, with solvers in numpy that know nothing of derivatives."""

import numpy as np

from layercompiler import arrays

FRAMEWORKS = ("torch", "jax", "tensorflow")
RNG = np.random.default_rng(0)
X, TARGET = RNG.standard_normal((20, 4)), RNG.standard_normal(20)
SKEW = np.random.default_rng(1).standard_normal((4, 4))
THETA = np.array([3.0, 0.7, -0.4])
DIRECTION, OTHER = np.array([0.3, -1.0, 0.5]), np.array([-0.6, 0.2, 1.1])
WEIGHTS = np.array([0.7, -1.2, 0.4, 0.9])


def root(xp, y, theta, *, symmetric=True):
    """X'(Xy - t) + theta_0 y + 10 y^3 + K y - theta_1 (1 + y_0^2) sin(theta_2), K = 0 and no theta_1 in y if symmetric."""
    A = xp.new(X, y)
    r = xp.sum(A * y, axis=1) - xp.new(TARGET, y)
    value = xp.sum(A * r[:, None], axis=0) + theta[0] * y + 10 * y**3
    if symmetric:
        return value - theta[1] * xp.sin(theta[2])
    return value + xp.sum(xp.new(SKEW, y) * y, axis=1) - theta[1] * (1 + y[0] ** 2) * xp.sin(theta[2])


def solve(theta, *, symmetric=True):
    """Newton in numpy."""
    host = arrays.get("numpy")
    y = np.zeros(4)
    for _ in range(100):
        J = X.T @ X + theta[0] * np.eye(4) + np.diag(30 * y**2)
        if not symmetric:
            J = J + SKEW
            J[:, 0] -= 2 * theta[1] * y[0] * np.sin(theta[2])
        y = y - np.linalg.solve(J, root(host, y, theta, symmetric=symmetric))
    return y


def slopes(f, h=2e-2):
    """First derivative of f at 0, and second, by central differences with two Richardson levels; with estimates of their errors."""
    at = {s: f(s * h) for s in (0.0, 1.0, -1.0, 0.5, -0.5, 0.25, -0.25)}
    first = [(at[s] - at[-s]) / (2 * s * h) for s in (1.0, 0.5, 0.25)]
    second = [(at[s] - 2 * at[0.0] + at[-s]) / (s * h) ** 2 for s in (1.0, 0.5, 0.25)]
    return tuple(_richardson(v) for v in (first, second))


def _richardson(v):
    a, b = (4 * v[1] - v[0]) / 3, (4 * v[2] - v[1]) / 3
    return (16 * b - a) / 15, np.max(np.abs(b - a))
