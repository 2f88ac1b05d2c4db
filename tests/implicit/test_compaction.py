"""Instances that have converged rest: fewer rows are evaluated, and solutions and derivatives are those of every instance by itself."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import arrays
from layercompiler.implicit import LBFGS, Anderson, Broyden, Gradient, Newton, Picard
from layercompiler.implicit.compaction import Instances, loop

COUNT, N = 96, 4
RNG = np.random.default_rng(0)
W = RNG.standard_normal((N, N)) / 4
RATE = np.where(np.arange(COUNT) % 8 == 0, 0.98, 0.3)[:, None]  # few instances contract slowly
B = RNG.standard_normal((COUNT, N))
SOLVERS = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden(), "newton": Newton()}
SOLVERS |= {"l-bfgs": LBFGS(tol=1e-11), "gradient": Gradient(tol=1e-11)}


def layers(solver, seen):
    def cell(xp, y, rate, b, w):
        seen.append(int(y.shape[0]))
        return rate * xp.tanh(xp.matmul(y, w)) + b

    return lc.FixedPoint(cell, solver, init=lambda xp, rate, b, *_: xp.zeros_like(b), batch=1)


def minimum(solver, seen):
    def objective(xp, y, rate, b, w):
        seen.append(int(y.shape[0]))
        z = xp.matmul(y - b, w)
        return 0.5 * xp.sum((1.02 - rate) * (y - b) ** 2 + 0.2 * z**2, axis=-1) + 0.25 * rate[:, 0] * xp.sum(y**4, axis=-1)

    prox = (lambda xp, v, t, *_: v / (1 + 0.1 * t)) if isinstance(solver, Gradient) else None
    return lc.Argmin(objective, prox=prox, solver=solver, init=lambda xp, rate, b, *_: xp.zeros_like(b), batch=1, tolerance=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_solutions_and_derivatives_are_those_of_singles(name):
    torch = pytest.importorskip("torch")
    seen = []
    layer = lc.export((minimum if SOLVERS[name].kind == "minimum" else layers)(SOLVERS[name], seen), "torch")

    def run(rows):
        given = [torch.tensor(a, requires_grad=True) for a in (RATE[rows], B[rows], W)]
        y = layer(*given)
        return y.detach(), torch.autograd.grad((y * torch.tensor(B[rows]) ** 2).sum(), given[:2])

    y, grads = run(slice(None))
    assert name == "newton" or min(seen) <= COUNT // 2
    for i in range(0, COUNT, 7):
        one, slopes = run(slice(i, i + 1))
        torch.testing.assert_close(y[i : i + 1], one, rtol=1e-8, atol=1e-9)
        for a, b in zip(grads, slopes, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_what_all_share_is_not_cut(framework):
    """A shared matrix with as many rows as there are instances looks like theirs; the numbers tell, and all go on together."""
    pytest.importorskip(framework)
    xp, seen = arrays.get(framework), []
    shared = xp.new(RNG.standard_normal((COUNT, N)))

    def F(v, m):
        seen.append(int(v.shape[0]))
        return v - xp.matmul(v, xp.matmul(m.T, m)) / 400 - 1.0

    y = xp.new(np.zeros((COUNT, N)))
    assert Instances(F, (shared,)).only(xp, y, xp.nonzero(xp.arange(COUNT) < 9)[0]) is None
    assert Instances(lambda v: v - shared, ()).only(xp, y, xp.nonzero(xp.arange(COUNT) < 9)[0]) is None  # captured, of all instances

    def active(k, v, e):
        return e > 1e-10

    def step(G, k, v, e):
        new = v - G(v)
        return k + 1, new, xp.abs(new - v)[:, :1]

    scale = xp.new(np.where(np.arange(COUNT) % 8 == 0, 1.0, 1e-14)[:, None])
    for G, least in ((Instances(F, (shared,)), COUNT), (Instances(lambda v, s: s * F(v, shared[:5] / 9), (scale,)), COUNT // 8)):
        seen.clear()
        found = loop(xp, G, active, step, (0, y, xp.zeros_like(y)[:, :1] + 1.0), 1, 200)
        plain = loop(xp, lambda v, G=G: G(v), active, step, (0, y, xp.zeros_like(y)[:, :1] + 1.0), 1, 200)
        assert min(seen) == least
        np.testing.assert_allclose(xp.numpy(found[1]), xp.numpy(plain[1]), rtol=1e-8, atol=1e-12)
