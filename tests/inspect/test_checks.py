"""The checks see what is right, what is wrong, and what cannot be told."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler.inspect import check, gradients, residuals

rng = np.random.default_rng(0)


def portfolio():
    """A problem with a quadratic form, a norm, exponentials and a dual output, and values for it."""
    x = cp.Variable(4, name="x")
    A, b = cp.Parameter((3, 4), name="A"), cp.Parameter(3, name="b")
    weight, P = cp.Parameter(nonneg=True, name="weight"), cp.Parameter((4, 4), PSD=True, name="P")
    ball = cp.norm(x) <= 1
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + cp.norm1(A @ x - b) + weight * cp.sum(cp.exp(x))), [ball])
    root = rng.standard_normal((5, 4, 4))
    values = [rng.standard_normal((5, 3, 4)), 3 * rng.standard_normal(3), np.array(0.3), root @ root.swapaxes(1, 2) / 9 + np.eye(4) / 9]
    return problem, [A, b, weight, P], [x, ball.dual_variables[0], problem.objective], values


def corner():
    """min |x - c|^2, x >= 0: a kink where c = 0."""
    x, c = cp.Variable(2, name="x"), cp.Parameter(2, name="c")
    return lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]))


class Skewed:
    """A compiled problem whose derivatives are wrong by a factor."""

    def __init__(self, compiled, forward=1.0, reverse=1.0):
        self.compiled, self.forward, self.reverse = compiled, forward, reverse

    def __getattr__(self, name):
        return getattr(self.compiled, name)

    def evaluate(self, arrays):
        return _SkewedEvaluation(self.compiled.evaluate(arrays), self.forward, self.reverse)


class _SkewedEvaluation:
    def __init__(self, evaluation, forward, reverse):
        self.evaluation, self.forward, self.reverse = evaluation, forward, reverse

    def __getattr__(self, name):
        return getattr(self.evaluation, name)

    def jvp(self, tangents):
        return tuple(self.forward * t for t in self.evaluation.jvp(tangents))

    def vjp(self, cotangents):
        return tuple(self.reverse * g for g in self.evaluation.vjp(cotangents))


def test_a_right_layer_passes():
    problem, parameters, outputs, values = portfolio()
    compiled = lc.compile(problem, parameters=parameters, variables=outputs)
    report = check(compiled, *values)
    assert report.ok, str(report)
    assert report.residuals.worst.shape == (5,)
    assert report.residuals.worst.max() < 1e-11
    assert len(report.gradients.comparisons) == 12
    sharp = [c for c in report.gradients.comparisons if c.uncertainty.max() < 1e-6]
    assert len(sharp) >= 8  # elsewhere an active set changes within the steps
    assert report.gradients.adjointness < 1e-12
    assert "d x / d A" in str(report)
    assert "all is well" in str(report)


def test_values_by_name_and_layers_are_taken():
    problem, parameters, outputs, values = portfolio()
    layer = lc.export(problem, "numpy", parameters=parameters, variables=outputs)
    named = dict(zip(["A", "b", "weight", "P"], values, strict=True))
    assert check(layer, **named).ok


def test_a_point_that_is_not_optimal_is_seen():
    compiled = corner()
    evaluation = compiled.evaluate([np.array([[1.0, -1.0], [0.5, 2.0]])])
    assert residuals(evaluation).worst.max() < 1e-14
    optimal = evaluation.x
    for shift, name in [(1e-3, "stationarity"), (-1e-3, "primal")]:
        evaluation.x = optimal + shift
        found = residuals(evaluation)
        assert (getattr(found, name) > 1e-4).any()
        assert (found.worst > 1e-4).all()
    evaluation.x, evaluation.y = optimal, evaluation.y - 1e-3
    assert (residuals(evaluation).dual > 1e-4).any()


@pytest.mark.parametrize(("forward", "reverse"), [(1.01, 1.01), (1.01, 1.0), (1.0, 1.01), (1 + 1e-4, 1 + 1e-4)])
def test_a_wrong_derivative_is_found(forward, reverse):
    compiled = corner()
    values = np.array([[1.0, -1.0], [0.5, 2.0]])
    assert gradients(compiled, [values]).ok
    assert not gradients(Skewed(compiled, forward, reverse), [values]).ok


def test_a_kink_is_no_error():
    """At c = 0 the projection on x >= 0 has two slopes; central differences settle between them, which proves nothing."""
    compiled = corner()
    report = gradients(compiled, [np.array([[1.0, 0.0], [1.0, 2.0]])])
    verdict = report.comparisons[0].verdict(1e-5)
    assert list(verdict) == ["unknown", "ok"]
    assert report.ok
    assert "1 unknown" in str(report)


def test_failed_instances_are_nan_and_raise_where_asked():
    x, p = cp.Variable(name="x"), cp.Parameter(name="p")
    problem = cp.Problem(cp.Minimize(x), [x >= p, x <= 1])
    flagged = lc.compile(problem, on_error="flag")
    found = residuals(flagged.evaluate([np.array([0.5, 2.0])]))
    assert np.isnan(found.worst[1])
    assert found.worst[0] < 1e-12
    assert "1 instances failed" in str(found)
    with pytest.raises(lc.errors.SolveError):
        check(lc.compile(problem), np.array([0.5, 2.0]))


def test_geometric_programs_and_symmetric_parameters():
    a, b = cp.Variable(pos=True, name="a"), cp.Variable(pos=True, name="b")
    u = cp.Parameter(pos=True, name="u")
    program = lc.compile(cp.Problem(cp.Minimize(a * b + u / a), [a * b**0.5 >= u, b >= 0.1]), variables=[a, b])
    assert check(program, np.array([0.7, 1.3])).ok
    X, S = cp.Variable((3, 3), PSD=True, name="X"), cp.Parameter((3, 3), symmetric=True, name="S")
    M = rng.standard_normal((3, 3))
    nearest = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(X - S))))
    assert check(nearest, M + M.T).ok
