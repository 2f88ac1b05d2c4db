"""First and second derivatives on a problem of every family, for every kind of output, against differences and by symmetry."""

import numpy as np
import pytest

from tests.differences import directional, flat
from tests.plan import families

every_family = pytest.mark.parametrize("name", families.FAMILIES)


def inner(a, b):
    return sum(float(np.sum(x * y)) for x, y in zip(a, b, strict=True))


def norm(a):
    return np.sqrt(inner(a, a))


def close(got, expected, error, rtol=1e-6):
    """To rtol plus the error that the differences estimate of themselves."""
    got, expected = np.concatenate([np.ravel(g) for g in got]), np.ravel(expected)
    size = max(np.linalg.norm(expected), 1e-3)
    assert np.linalg.norm(got - expected) <= rtol * size + 3 * np.linalg.norm(error), (got, expected, error)


def rows(gradients, batch):
    return np.concatenate([g.reshape(batch, -1) for g in gradients], axis=1)


@every_family
def test_the_point_is_a_good_one(name):
    """What the other tests of this file stand on: solved to rounding, unique, differentiable."""
    evaluation = families.solve(name)
    assert evaluation.info.ok and evaluation.info.residual < 1e-13
    assert evaluation.info.unique and not evaluation.info.degenerate


@every_family
def test_jvp_is_the_derivative(name):
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    for seed in range(2):
        h = case.direction(seed)
        expected, error = directional(lambda a: flat(problem.evaluate(a).outputs), case.theta, h)
        close(evaluation.jvp(h), expected, error)


@every_family
def test_vjp_is_the_transpose_of_jvp_for_every_output_and_parameter(name):
    case, evaluation = families.case(name), families.solve(name)
    for k in range(len(case.outputs)):
        g = [w if i == k else None for i, w in enumerate(case.cotangents(evaluation, k))]
        pulled = evaluation.vjp(g)
        for j in range(len(case.parameters)):
            h = [d if i == j else None for i, d in enumerate(case.direction(j))]
            pushed = evaluation.jvp(h)
            size = norm([g[k]]) * norm([pushed[k]]) + norm([pulled[j]]) * norm([h[j]]) + 0.01 * norm([g[k]]) * norm([h[j]])
            assert abs(inner([g[k]], [pushed[k]]) - inner([pulled[j]], [h[j]])) <= 1e-10 * size


@every_family
def test_gradients_lie_where_the_parameters_may_move(name):
    """Symmetric gradients of symmetric parameters, diagonal ones of diagonal parameters."""
    case, evaluation = families.case(name), families.solve(name)
    for p, g in zip(case.parameters, evaluation.vjp(case.cotangents(evaluation, 0)), strict=True):
        if any(p.attributes.get(a) for a in ("symmetric", "PSD", "NSD")):
            np.testing.assert_array_equal(g, g.T)
        if p.attributes.get("diag"):
            np.testing.assert_array_equal(g, np.diag(np.diag(g)))


@every_family
def test_hvp_is_the_derivative_of_vjp(name):
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    g, h = case.cotangents(evaluation, 0), case.direction(0)

    def pulled(a):
        batch = len(a[0])
        return rows(problem.evaluate(a).vjp([np.broadcast_to(w, (batch, *w.shape)) for w in g]), batch)

    expected, error = directional(pulled, case.theta, h)
    close(evaluation.hvp(g, h), expected, error, rtol=1e-5)


@every_family
def test_second_is_the_derivative_of_jvp(name):
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    h, k = case.direction(0), case.direction(1)

    def pushed(a):
        return flat(problem.evaluate(a).jvp([np.broadcast_to(d, x.shape) for d, x in zip(h, a, strict=True)]))

    expected, error = directional(pushed, case.theta, k)
    close(evaluation.second(h, k), expected, error, rtol=1e-5)


@every_family
def test_second_derivatives_are_symmetric(name):
    """<hvp(g, h), k> = <hvp(g, k), h> = <g, second(h, k)>, and second(h, k) = second(k, h)."""
    case, evaluation = families.case(name), families.solve(name)
    g, h, k = case.cotangents(evaluation, 0), case.direction(0), case.direction(1)
    one, other = inner(evaluation.hvp(g, h), k), inner(evaluation.hvp(g, k), h)
    both = evaluation.second(h, k)
    size = max(norm(evaluation.hvp(g, h)) * norm(k), norm(g) * norm(both), 1e-3)
    assert abs(one - other) <= 1e-8 * size
    assert abs(one - inner(g, both)) <= 1e-8 * size
    for a, b in zip(both, evaluation.second(k, h), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(norm(both), 1e-3))


@every_family
def test_derivatives_are_linear_in_their_arguments(name):
    case, evaluation = families.case(name), families.solve(name)
    g, g2, h, h2 = case.cotangents(evaluation, 0), case.cotangents(evaluation, 1), case.direction(0), case.direction(1)
    add = lambda a, b: [2 * x - 3 * y for x, y in zip(a, b, strict=True)]  # noqa: E731
    pairs = [
        (evaluation.vjp(add(g, g2)), add(evaluation.vjp(g), evaluation.vjp(g2))),
        (evaluation.jvp(add(h, h2)), add(evaluation.jvp(h), evaluation.jvp(h2))),
        (evaluation.hvp(add(g, g2), h), add(evaluation.hvp(g, h), evaluation.hvp(g2, h))),
        (evaluation.hvp(g, add(h, h2)), add(evaluation.hvp(g, h), evaluation.hvp(g, h2))),
        (evaluation.second(add(h, h2), h), add(evaluation.second(h, h), evaluation.second(h2, h))),
    ]
    for got, expected in pairs:
        assert norm([a - b for a, b in zip(got, expected, strict=True)]) <= 1e-8 * max(norm(expected), 1e-3)
    zero = evaluation.vjp([None] * len(g)), evaluation.jvp([None] * len(h)), evaluation.hvp(g, [None] * len(h))
    assert not any(a.any() for part in zero for a in part)


@every_family
def test_restored_derivatives_are_those_of_the_solve(name):
    """From the arrays and z alone, without solving, to rounding: compiled and numpy projections differ in the last bit."""
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    restored = problem.restore(case.theta, evaluation.z)
    g, h = case.cotangents(evaluation, 0), case.direction(0)
    for a, b in (
        (restored.outputs, evaluation.outputs),
        (restored.vjp(g), evaluation.vjp(g)),
        (restored.jvp(h), evaluation.jvp(h)),
        (restored.hvp(g, h), evaluation.hvp(g, h)),
        (restored.second(h, h), evaluation.second(h, h)),
    ):
        assert norm([x - y for x, y in zip(a, b, strict=True)]) <= 1e-9 * max(norm(b), 1e-3)
