"""Programs of every cone whose whole data P, q, A and b are parameters: derivatives of x, y and the value with respect to all of them."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler.programs.affine import AffineMap, Block, Channel
from layercompiler.programs.cone import ConeProgram, OutputSpec, ParameterSpec
from tests.derivatives import programs
from tests.differences import directional, flat

every_cone = pytest.mark.parametrize("cones", programs.CONES)


def build(cones, seed=0):
    """A compiled program, and parameter values at which it has a known strictly complementary solution."""
    rng = np.random.default_rng(seed)
    blocks = programs.CONES[cones]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks) + 2, rng, density=0.4)
    d = programs.data(s, 1, rng)
    x, v = rng.standard_normal(s.n), rng.standard_normal(s.m)
    y = s.cones.project_dual(v[None]).y[0]
    P, A = programs.dense(s, d, 0)
    theta = [d.P[0], -P @ x - A.T @ y, d.A[0], A @ x + y - v]

    def whole(channel, size):
        return AffineMap(np.zeros(size), (Block(channel, np.arange(size), np.arange(size), np.ones(size), size),))

    sizes = [len(t) for t in theta]
    maps = [whole(i, k) for i, k in enumerate(sizes)]
    identity = lambda name, source, k: OutputSpec(name, (k,), source, np.arange(k), np.arange(k), np.ones(k))  # noqa: E731
    value = OutputSpec("value", (), "value")
    program = ConeProgram(
        s,
        P=maps[0],
        q=maps[1],
        d=AffineMap(np.array([2.5]), ()),
        A=maps[2],
        b=maps[3],
        parameters=tuple(ParameterSpec(name, (k,)) for name, k in zip("PqAb", sizes, strict=True)),
        channels=tuple(Channel(i, k) for i, k in enumerate(sizes)),
        outputs=(identity("x", "primal", s.n), identity("y", "dual", s.m), value),
        value=value,
    )
    return lc.CompiledProblem(program), theta, x, y


def inner(a, b):
    return sum(float(np.sum(x * y)) for x, y in zip(a, b, strict=True))


@every_cone
def test_the_known_solution_is_found(cones):
    problem, (P, q, A, b), x, y = build(cones)
    evaluation = problem.evaluate([P, q, A, b])
    assert evaluation.info.ok and evaluation.info.residual < 1e-12 and evaluation.info.unique and not evaluation.info.degenerate
    np.testing.assert_allclose(evaluation.outputs[0], x, atol=1e-9)
    np.testing.assert_allclose(evaluation.outputs[1], y, atol=1e-8)
    s = problem.program.structure
    quadratic = np.sum(np.where(s.P_rows == s.P_cols, 0.5, 1.0) * P * x[s.P_rows] * x[s.P_cols])
    np.testing.assert_allclose(evaluation.outputs[2], quadratic + q @ x + 2.5, atol=1e-8)


@every_cone
def test_first_derivatives_with_respect_to_all_data(cones):
    problem, theta, *_ = build(cones)
    evaluation = problem.evaluate(theta)
    rng = np.random.default_rng(1)
    g = [rng.standard_normal(o.shape) for o in evaluation.outputs]
    pulled = evaluation.vjp(g)
    for k in range(4):
        h = [rng.standard_normal(t.shape) if i == k else None for i, t in enumerate(theta)]
        full = [np.zeros_like(t) if d is None else d for d, t in zip(h, theta, strict=True)]
        expected, error = directional(lambda a: flat(problem.evaluate(a).outputs), theta, full)
        tangent = evaluation.jvp(h)
        off = np.linalg.norm(np.concatenate([np.ravel(t) for t in tangent]) - expected)
        assert off <= 1e-6 * np.linalg.norm(expected) + 3 * np.linalg.norm(error)
        assert abs(inner(g, tangent) - np.sum(pulled[k] * full[k])) <= 1e-9 * (1 + abs(inner(g, tangent)))


@every_cone
def test_second_derivatives_with_respect_to_all_data(cones):
    """Along pairs of data, so that every mixed term is met: hvp against differences of vjp, second against hvp."""
    problem, theta, *_ = build(cones)
    evaluation = problem.evaluate(theta)
    rng = np.random.default_rng(2)
    g = [rng.standard_normal(o.shape) for o in evaluation.outputs]
    h, k = ([rng.standard_normal(t.shape) for t in theta] for _ in range(2))

    def pulled(a):
        gradients = problem.evaluate(a).vjp([np.broadcast_to(w, (len(a[0]), *w.shape)) for w in g])
        return np.concatenate(gradients, axis=1)

    expected, error = directional(pulled, theta, h)
    product = evaluation.hvp(g, h)
    assert np.linalg.norm(np.concatenate(product) - expected) <= 1e-5 * np.linalg.norm(expected) + 3 * np.linalg.norm(error)
    for i in range(4):
        for j in range(4):
            a = [d if n == i else None for n, d in enumerate(h)]
            b = [d if n == j else None for n, d in enumerate(k)]
            second = inner(g, evaluation.second(a, b))
            other = float(np.sum(evaluation.hvp(g, a)[j] * k[j]))
            size = 1 + np.linalg.norm(np.concatenate(evaluation.hvp(g, a))) * np.linalg.norm(k[j])
            assert abs(second - other) <= 1e-9 * size


@every_cone
def test_the_value_alone_needs_no_linear_system_to_be_right(cones):
    """Its gradient is that of the Lagrangian: x x'/2, x, y x', -y."""
    problem, theta, x, y = build(cones)
    s = problem.program.structure
    P, q, A, b = problem.evaluate(theta).vjp([None, None, np.ones(())])
    weight = np.where(s.P_rows == s.P_cols, 0.5, 1.0)
    np.testing.assert_allclose(P, weight * x[s.P_rows] * x[s.P_cols], atol=1e-7)
    np.testing.assert_allclose(q, x, atol=1e-7)
    np.testing.assert_allclose(A, y[s.A_rows] * x[s.A_cols], atol=1e-7)
    np.testing.assert_allclose(b, -y, atol=1e-7)
