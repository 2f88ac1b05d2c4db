"""Forty problems, LP to SDP, with default settings and on the lanes engine, in every framework, against stored references.

The references come from Clarabel at 1e-12 and Richardson differences with their own error estimate (tests/corpus/reference.py). Directions
respect symmetry, so the gradient check does not depend on how the gradient of a symmetric parameter is split over its entries.
"""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from tests.bindings import FRAMEWORKS, solve
from tests.corpus import stored

CASES = [
    pytest.param(
        *(size, name, framework, solver),
        id=f"{size}-{name}-{framework}-{solver}",
        marks=[pytest.mark.slow] if size == "medium" or solver != "auto" else [],
    )
    for solver in ("auto", "lanes")
    for size in stored.SIZES
    for name in stored.names(size)
    for framework in FRAMEWORKS
]


def relative(got, expected):
    """Norm of the difference over the norm of the expected, which counts as 1e-3 at least."""
    off = np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in zip(got, expected, strict=True)))
    return off / max(np.sqrt(sum(float(np.sum(np.square(b))) for b in expected)), 1e-3)


def along(gradient, direction):
    return sum(float(np.sum(g * d)) for g, d in zip(gradient, direction, strict=True))


@pytest.mark.parametrize(("size", "name", "framework", "solver"), CASES)
def test_values_gradients_residuals_and_batches(size, name, framework, solver):
    if solver == "lanes" and not kernels.available():
        pytest.skip("the kernels are not built")
    layer = lc.export(stored.compiled(size, name, solver), framework)
    points = list(stored.points(size, name))
    singles = []
    for point in points:
        x, vjp, residual = solve(framework, layer, point.theta)
        off = relative(x, point.x)
        assert off <= 1e-6, "value"
        assert np.max(residual) <= 1e-11
        gradients = [vjp(w) for w in point.cotangents]
        G = np.array([[along(g, d) for d in point.directions] for g in gradients])
        off = np.linalg.norm(G - point.G) / np.linalg.norm(point.G)
        assert off <= max(1e-5, 3 * point.error), "gradient"
        singles.append((x, gradients[0]))
    x, vjp, _ = solve(framework, layer, [np.stack(a) for a in zip(*(p.theta for p in points), strict=True)])
    gradients = vjp([np.stack(w) for w in zip(*(p.cotangents[0] for p in points), strict=True)])
    for i, (x_single, g_single) in enumerate(singles):
        off = relative([a[i] for a in x], x_single)
        assert off <= 1e-9, "value of the batch"
        off = relative([g[i] for g in gradients], g_single)
        assert off <= 1e-7, "gradient of the batch"


def test_the_corpus_is_whole():
    assert len(stored.names("small")) == 40
    assert len(stored.names("medium")) == 38
