"""Directional derivatives by central differences with two Richardson levels, and an estimate of their error."""

import numpy as np

STEPS = (1.0, -1.0, 0.5, -0.5, 0.25, -0.25)


def directional(f, theta, direction, steps=(1.6e-2, 4e-3, 1e-3, 2.5e-4)):
    """Derivative of `f(list of batched arrays) -> (batch, size)` along a direction, and the estimate of its error, both (size,).

    All points are evaluated as one batch. For each entry the step with the smallest estimate is kept.
    """
    points = [[t + s * h * d for t, d in zip(theta, direction, strict=True)] for h in steps for s in STEPS]
    values = f([np.stack(a) for a in zip(*points, strict=True)]).reshape(len(steps), len(STEPS), -1)
    best, error = None, None
    for h, (a, b, c, d, e, g) in zip(steps, values, strict=True):
        d1, d2, d3 = (a - b) / (2 * h), (c - d) / h, (e - g) / (h / 2)
        r1, r2 = (4 * d2 - d1) / 3, (4 * d3 - d2) / 3
        estimate, value = np.abs(r2 - r1), (16 * r2 - r1) / 15
        estimate = np.where(np.isfinite(estimate), estimate, np.inf)
        if best is None:
            best, error = value, estimate
        else:
            better = estimate < error
            best, error = np.where(better, value, best), np.where(better, estimate, error)
    return best, error


def flat(outputs):
    """Batched outputs side by side, (batch, size)."""
    return np.concatenate([o.reshape(len(o), -1) for o in outputs], axis=1)


def check_derivatives(compiled, theta, directions, rtol=1e-6):
    """Forward and reverse derivatives of every output against differences; the tolerance is rtol plus the differences' own error."""
    theta = [np.asarray(t, dtype=float) for t in theta]
    evaluation = compiled.evaluate(theta)
    rng = np.random.default_rng(11)
    for direction in directions:
        expected, error = directional(lambda a: flat(compiled.evaluate(a).outputs), theta, direction)
        tangent = np.concatenate([np.ravel(t) for t in evaluation.jvp(direction)])
        size = max(np.linalg.norm(expected), 1e-3)
        assert np.linalg.norm(tangent - expected) <= rtol * size + 3 * np.linalg.norm(error), (tangent, expected, error)
        w = [rng.standard_normal(o.shape) for o in evaluation.outputs]
        pulled = sum(float(np.sum(g * d)) for g, d in zip(evaluation.vjp(w), direction, strict=True))
        pushed = float(np.concatenate([np.ravel(a) for a in w]) @ tangent)
        assert abs(pulled - pushed) <= 1e-9 * max(abs(pushed), size)
    return evaluation
