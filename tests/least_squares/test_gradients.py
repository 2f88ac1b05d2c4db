"""Derivatives at large residuals against differences of solutions, for every parameter."""

import numpy as np
import pytest

import layercompiler as lc
from tests.differences import directional
from tests.least_squares.problems import curve_fit, curves, pose_graph

FRAMEWORKS = ("torch", "jax")
RTOL = 1e-6


def gradients(layer, framework, theta, weights, **init):
    """Gradients of sum <weights, outputs> by reverse mode."""
    if framework == "torch":
        import torch

        inputs = [torch.tensor(t, requires_grad=True) for t in theta]
        outputs = layer(*inputs, **init)
        sum((torch.tensor(w) * o).sum() for w, o in zip(weights, outputs, strict=True)).backward()
        return [t.grad.numpy() for t in inputs]
    import jax

    return jax.grad(lambda a: sum((w * o).sum() for w, o in zip(weights, layer(*a, **init), strict=True)))(list(theta))


def outputs(layer, framework, theta, **init):
    return [np.asarray(o.detach() if framework == "torch" else o) for o in layer(*theta, **init)]


def check(problem, framework, theta, **init):
    layer = lc.export(problem, framework, options={"check_domain": False})  # differences of measured poses leave the group
    rng = np.random.default_rng(3)
    shapes = [o.shape for o in outputs(layer, framework, theta, **init)]
    weights = [rng.standard_normal(s) for s in shapes]
    found = gradients(layer, framework, theta, weights, **init)

    def loss(stacked):
        values = outputs(layer, framework, stacked, **init)
        inner = [(w * v).reshape(len(v), -1).sum(1) for w, v in zip(weights, values, strict=True)]
        return sum(inner)[:, None]

    for i, t in enumerate(theta):
        direction = [np.zeros_like(t) for t in theta]
        direction[i] = rng.standard_normal(t.shape)
        expected, error = directional(loss, theta, direction)
        got = float((np.asarray(found[i]) * direction[i]).sum())
        assert abs(got - expected[0]) <= RTOL * max(abs(expected[0]), 1e-2) + 3 * error[0], (i, got, expected, error)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_curve_fit_with_weights_and_a_robust_radius(framework):
    problem = lc.LeastSquares(
        curve_fit().variables,
        [lc.factor(curve_fit().factors[0].residual, on="x", data="y", weight=lc.Diagonal("w"), robust=lc.PseudoHuber("r"))],
        {"y": (100,), "w": (100,), "r": ()},
    )
    rng = np.random.default_rng(1)
    check(problem, framework, [curves(1, 0.5)[0], 1 + 0.3 * rng.uniform(size=100), np.array(3.0)])


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["SE2", "SE3"])
def test_pose_graph(framework, name):
    problem, measured, start = pose_graph(name, 8, 1, 0.5, robust=lc.Cauchy("r"))
    rng = np.random.default_rng(1)
    weights = 1 + 0.3 * rng.uniform(size=(measured.shape[1], problem.parameters["w"][1]))
    check(problem, framework, [measured[0], weights, np.array(3.0)], init={"X": start[0]})
