"""Linear solves of the steps and of the derivative: Schur complements, conjugate gradients and LDL' give what dense Cholesky gives."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler import manifolds
from layercompiler.errors import DerivativeError, OptionError
from layercompiler.solvers.least_squares.choose import normal
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.structure import Structure
from tests.least_squares.problems import HOST

KINDS = ("lanes", "schur", "cg", "plain")


def seen(xp, camera, point, pixel):
    local = camera.act(point)
    return local[:2] / local[2:] - pixel


def bundle(cameras=4, points=14, batch=2, noise=1e-2, **options):
    """(problem, pixels (batch, observations, 2), start) of points in front of cameras, two of which are known."""
    rng = np.random.default_rng(0)
    cloud = rng.uniform([-1, -1, 4], [1, 1, 6], (points, 3))
    group = manifolds.SE3
    poses = group.retract(HOST, np.tile(group.identity(), (cameras, 1)), 0.3 * rng.standard_normal((cameras, 6)))
    edges = np.array([(c, p) for p in range(points) for c in range(cameras) if (c + p) % 4 or cameras < 4])
    local = np.stack([group.act(HOST, poses[c], cloud[p]) for c, p in edges])
    pixels = local[:, :2] / local[:, 2:] + noise * rng.standard_normal((batch, len(edges), 2))
    start = group.retract(HOST, poses, 0.02 * rng.standard_normal((cameras, 6)))
    start[:2] = poses[:2]
    rough = cloud + 0.05 * rng.standard_normal(cloud.shape)
    problem = lc.LeastSquares(
        {
            "C": lc.SE3(cameras, fixed=[0, 1], init=start),
            "P": lc.Euclidean(points, 3, init=rough),
        },
        [lc.factor(seen, on=("C", "P"), index=edges, data="uv", weight=lc.Scale("w"), **options)],
        {"uv": (len(edges), 2), "w": ()},
    )
    return problem, pixels


def system(definite=True):
    problem, _ = bundle()
    structure = Structure(problem.lower("torch"))
    rng, n = np.random.default_rng(1), structure.n
    K = np.zeros((3, n, n))
    for k in range(3):
        A = rng.standard_normal((n, n))
        full = A @ A.T / n + 2 * np.eye(n)
        K[k][structure.rows, structure.cols] = full[structure.rows, structure.cols]
        K[k] = np.triu(K[k]) + np.triu(K[k], 1).T
        K[k] += (0.5 - np.linalg.eigvalsh(K[k])[0]) * np.eye(n)
    if not definite:
        K[1] -= (np.linalg.eigvalsh(K[1])[0] + 0.3) * np.eye(n)
    scale = np.exp(rng.uniform(-3, 3, n))
    K = K * scale[:, None] * scale
    diagonal = rng.uniform(0, 0.1, (3, n)) * (scale**2 if definite else 0)
    return structure, K[:, structure.rows, structure.cols], diagonal, K + diagonal[:, :, None] * np.eye(n), rng.standard_normal((3, n))


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_the_dense_one(kind):
    structure, entries, diagonal, K, rhs = system()
    want = np.linalg.solve(K, rhs[..., None])[..., 0]
    factor = normal(structure, kind).factor(entries, diagonal)
    found = factor.solve(rhs, 1)
    assert np.abs(found - want).max() <= 1e-9 * np.abs(want).max()
    assert (factor.pivots > PIVOT).all()


@pytest.mark.parametrize("kind", [*KINDS, "dense"])
def test_a_matrix_that_is_not_definite_is_told_and_leaves_the_others(kind):
    structure, entries, diagonal, K, rhs = system(definite=False)
    factor = normal(structure, kind).factor(entries, diagonal)
    found = factor.solve(rhs)
    assert (factor.pivots > PIVOT).tolist() == [True, False, True]
    want = np.linalg.solve(K, rhs[..., None])[..., 0]
    assert np.abs(found - want)[[0, 2]].max() <= 1e-9 * np.abs(want[[0, 2]]).max()


def solved(linear, problem, pixels, **more):
    layer = lc.export(problem, "torch", options={"linear": linear, **more})
    uv, w = torch.tensor(pixels, requires_grad=True), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    C, P = layer(uv, w)
    (C.sin().sum() + (P * P).sum()).backward()
    return C.detach().numpy(), P.detach().numpy(), uv.grad.numpy(), w.grad.numpy()


@pytest.mark.parametrize("linear", ["schur", "cg", "dense"])
def test_bundle_adjustment_and_its_gradient(linear):
    problem, pixels = bundle(robust=lc.Cauchy(0.05))
    for a, b in zip(solved(linear, problem, pixels), solved("auto", problem, pixels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)


def test_what_is_eliminated_can_be_named():
    problem, pixels = bundle(batch=1)
    named = solved("schur", problem, pixels, eliminate="P")
    for a, b in zip(named, solved("dense", problem, pixels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)
    chain = lc.LeastSquares(
        {"x": lc.Euclidean(5, 2)},
        [lc.factor(lambda xp, a, b: xp.sin(a) - b, on=("x", "x"), index=np.stack([np.arange(4), np.arange(1, 5)], 1))],
    )
    with pytest.raises(OptionError, match="cannot be eliminated"):
        lc.export(chain, "torch", options={"eliminate": "x"}).solve()
    with pytest.raises(OptionError, match="no variable to eliminate"):
        lc.export(chain, "torch", options={"linear": "schur"}).solve()
    with pytest.raises(OptionError, match="only Schur"):
        lc.export(chain, "torch", options={"linear": "cg", "eliminate": "x"})


@pytest.mark.parametrize("linear", ["schur", "cg"])
def test_a_free_gauge_is_told(linear):
    problem, pixels = bundle(batch=1, noise=1e-3)
    C = problem.variables["C"]
    free = lc.LeastSquares({**problem.variables, "C": lc.SE3(4, init=C.init)}, problem.factors, problem.parameters)
    layer = lc.export(free, "torch", options={"linear": linear, "max_iterations": 200})
    uv = torch.tensor(pixels[0], requires_grad=True)
    _, P = layer(uv, torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(DerivativeError, match="not positive definite"):
        P.sum().backward()
