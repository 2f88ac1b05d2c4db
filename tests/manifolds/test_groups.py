"""The Lie groups against numbers of jaxlie 1.5.0 (`jaxlie.json`), the laws of groups, and derivatives at zero and near pi."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from layercompiler import arrays, manifolds

GROUPS = ("SO2", "SE2", "SO3", "SE3")
REFERENCE = json.loads((Path(__file__).parent / "jaxlie.json").read_text())
HOST = arrays.get("numpy")
ANGLES = (0.0, 1e-9, 1e-4, 0.199, 0.201, 1.0, 3.0, np.pi - 1e-3, np.pi - 1e-6)


def same(x, y):
    """Rotations of space are stored twice, with either sign."""
    x, y = np.asarray(x), np.asarray(y)
    return min(np.abs(x - y).max(), np.abs(x * np.where(np.arange(len(x)) < 4, -1, 1) - y).max() if len(x) in (4, 7) else np.inf)


@pytest.mark.parametrize("name", GROUPS)
def test_equal_to_jaxlie(name):
    G = getattr(manifolds, name)
    for row in REFERENCE[name]:  # small angles are not among them: jaxlie loses digits there
        v, u, p = (np.array(row[k]) for k in "vup")
        x, y = G.exp(HOST, v), G.exp(HOST, u)
        assert same(x, row["exp"]) < 1e-12 and same(G.compose(HOST, x, y), row["compose"]) < 1e-12
        assert same(G.inverse(HOST, x), row["inverse"]) < 1e-12
        np.testing.assert_allclose(G.act(HOST, x, p), row["act"], atol=1e-12)
        np.testing.assert_allclose(G.matrix(HOST, x), row["matrix"], atol=1e-12)
        np.testing.assert_allclose(G.adjoint(HOST, x), row["adjoint"], atol=1e-12)
        np.testing.assert_allclose(G.log(HOST, G.compose(HOST, x, y)), row["log"], atol=1e-12)


def tangent(G, angle, rng):
    v = rng.standard_normal(G.dof)
    turn = v[-3:] if G.points == 3 else v[-1:]
    turn *= angle / np.linalg.norm(turn)
    return v


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("angle", ANGLES)
def test_derivatives_at_zero_and_near_pi(name, angle):
    G, xp, rng = getattr(manifolds, name), arrays.get("torch"), np.random.default_rng(1)
    v = torch.tensor(tangent(G, angle, rng), requires_grad=True)
    w = torch.tensor(0.3 * rng.standard_normal(G.dof), requires_grad=True)
    p = torch.tensor(rng.standard_normal(G.points), requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda v: G.exp(xp, v), (v,), atol=1e-7)
    if angle < np.pi - 1e-4:  # a difference of 1e-6 would step over the cut
        assert check(lambda v: G.log(xp, G.exp(xp, v)), (v,), atol=1e-7)
    assert check(lambda v, w: G.compose(xp, G.exp(xp, v), G.inverse(xp, G.exp(xp, w))), (v, w), atol=1e-7)
    assert check(lambda v, p: G.act(xp, G.exp(xp, v), p), (v, p), atol=1e-7)
    J = torch.autograd.functional.jacobian(lambda d: G.log(xp, G.exp(xp, d)), v)
    np.testing.assert_allclose(J, np.eye(G.dof), atol=1e-8)
    H = torch.autograd.functional.hessian(lambda d: (G.log(xp, G.exp(xp, d)) * p.detach().sum()).sum(), v)
    np.testing.assert_allclose(H, 0.0, atol=1e-5)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("angle", ANGLES)
def test_tangents_and_jacobians(name, angle):
    G, xp, rng = getattr(manifolds, name), arrays.get("torch"), np.random.default_rng(2)
    v = torch.tensor(tangent(G, angle, rng))
    x, zero = G.exp(xp, v), torch.zeros(G.dof, dtype=torch.float64)
    by_formula = torch.stack([G.tangent(xp, x, e) for e in torch.eye(G.dof, dtype=torch.float64)], dim=1)
    np.testing.assert_allclose(torch.func.jacrev(lambda d: G.retract(xp, x, d))(zero), by_formula, atol=1e-12)
    right = torch.func.jacrev(lambda d: G.log(xp, G.compose(xp, x, G.exp(xp, d))))(zero)
    np.testing.assert_allclose(G.inverse_jacobian(xp, v), right, atol=1e-8)
    np.testing.assert_allclose(G.jacobian(xp, v) @ G.inverse_jacobian(xp, v), np.eye(G.dof), atol=1e-10)


@pytest.mark.parametrize("name", GROUPS)
def test_brackets_are_derivatives_of_adjoints(name):
    G, rng, h = getattr(manifolds, name), np.random.default_rng(4), 1e-4
    u, v = rng.standard_normal((2, G.dof))

    def slope(h):
        return (G.adjoint(HOST, G.exp(HOST, h * u)) - G.adjoint(HOST, G.exp(HOST, -h * u))) @ v / (2 * h)

    np.testing.assert_allclose(G.bracket(HOST, u, v), (4 * slope(h / 2) - slope(h)) / 3, atol=1e-10)


@pytest.mark.parametrize("name", GROUPS)
def test_interpolation_ends_at_its_ends_and_composes(name):
    G, rng = getattr(manifolds, name), np.random.default_rng(3)
    x, y = G.random(rng), G.random(rng)
    assert same(G.interpolate(HOST, x, y, 0.0), x) < 1e-12 and same(G.interpolate(HOST, x, y, 1.0), y) < 1e-12
    half = G.interpolate(HOST, x, y, 0.5)
    assert same(G.interpolate(HOST, half, y, 0.5), G.interpolate(HOST, x, y, 0.75)) < 1e-12
    element = manifolds.Element(G, HOST, x)
    assert same((element @ element.inverse()).data, G.identity()) < 1e-12


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("angle", (0.0, 1e-9, 1e-4, 1.0, np.pi - 1e-3, np.pi - 1e-5))
def test_derivatives_of_interpolation_at_zero_and_near_pi(name, angle):
    """y = x exp(v): the point at s is x exp(s v), and so are its derivatives along x, v and s."""
    G, xp, rng = getattr(manifolds, name), arrays.get("torch"), np.random.default_rng(4)
    v, u = torch.tensor(tangent(G, angle, rng)), torch.tensor(0.5 * rng.standard_normal(G.dof))
    s, moves = torch.tensor(0.4), torch.tensor(rng.standard_normal((3, G.dof)))

    def geodesic(u, v, s):
        x = G.exp(xp, u)
        return G.retract(xp, x, s * v)

    def interpolated(u, v, s):
        x = G.exp(xp, u)
        return G.interpolate(xp, x, G.retract(xp, x, v), s)

    assert same(interpolated(u, v, s), geodesic(u, v, s)) < 1e-10
    for at, d in ((0, moves[0]), (1, moves[1]), (2, moves[2, 0])):
        tangents = [torch.zeros_like(a) for a in (u, v, s)]
        tangents[at] = d
        found, want = (torch.func.jvp(f, (u, v, s), tuple(tangents))[1] for f in (interpolated, geodesic))
        np.testing.assert_allclose(found, want, atol=1e-8)
