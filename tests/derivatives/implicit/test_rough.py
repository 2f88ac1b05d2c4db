"""Single precision only makes dense solves faster: solutions are as precise as the operator, and hopeless cases are done over."""

import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.derivatives import solves
from layercompiler.derivatives.operator import Operator, jacobian
from layercompiler.errors import DerivativeError

N = 160
KINDS = {"definite": 0, "general": 0, "ill-conditioned": 1, "beyond single": 1}


def system(kind):
    rng = np.random.default_rng(0)
    M = rng.standard_normal((N, N))
    if kind == "definite":
        return M @ M.T / N + 0.1 * np.eye(N)
    A = M / np.sqrt(N) + 2 * np.eye(N)
    if kind == "ill-conditioned":
        Q = np.linalg.qr(M)[0]
        return Q @ (np.logspace(0, -9, N)[:, None] * Q.T)
    return A * 1e200 if kind == "beyond single" else A


@pytest.fixture
def exact(monkeypatch):
    calls, exactly = [], solves._Dense.exactly
    monkeypatch.setattr(solves._Dense, "exactly", lambda self, A, b: calls.append(1) or exactly(self, A, b))
    return calls


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("kind", KINDS)
def test_solutions_have_the_precision_of_the_operator(framework, kind, exact):
    pytest.importorskip(framework)
    xp, A = arrays.get(framework), system(kind)
    b = np.random.default_rng(1).standard_normal(N)
    b /= np.linalg.norm(b)
    matrix = xp.new(A)
    op = jacobian(xp, lambda v: xp.matmul(matrix, v), xp.new(np.zeros(N)), 0).T
    x = xp.numpy(solves._Dense().solve(op, xp.new(b)))
    residual = np.linalg.norm(A.T @ x - b)
    assert residual < 1e-12 * max(1.0, np.linalg.norm(A, 2) * np.linalg.norm(x))
    assert len(exact) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_traced_and_mapped_in_jax(kind):
    jax = pytest.importorskip("jax")
    xp, A = arrays.get("jax"), system(kind)
    b = np.random.default_rng(1).standard_normal((2, N))
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    matrix = xp.new(A)

    def one(r):
        _, push = jax.linearize(lambda v: matrix @ v, r)
        pull = jax.linear_transpose(push, r)
        return solves._Dense().solve(Operator(xp, r, 0, lambda v: pull(v)[0], push), r)

    for x in (np.stack([jax.jit(one)(xp.new(r)) for r in b]), np.asarray(jax.jit(jax.vmap(one))(xp.new(b)))):
        residual = np.linalg.norm(x @ A - b, axis=1)
        assert np.all(residual < 1e-12 * np.maximum(1.0, np.linalg.norm(A, 2) * np.linalg.norm(x, axis=1)))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_singular_matrix_is_found(framework):
    pytest.importorskip(framework)
    xp, A = arrays.get(framework), system("definite")
    A[3] = A[:, 3] = 0.0
    matrix = xp.new(A)
    op = jacobian(xp, lambda v: xp.matmul(matrix, v), xp.new(np.zeros(N)), 0)
    with pytest.raises(DerivativeError):
        solves.solve(solves.Auto(), op, xp.new(np.ones(N)))
