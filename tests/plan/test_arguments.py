"""Arguments of a call: binding, shapes, domains, non-finite values, and parameters held constant."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from layercompiler.status import Status
from tests.plan import families


@pytest.fixture(scope="module")
def problem():
    a, b, s = cp.Parameter(2, name="a"), cp.Parameter((2, 2), name="b"), cp.Parameter(name="s")
    x = cp.Variable(2, name="x")
    return lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(b @ x - a) + s * cp.sum(x)), [x >= -9]), parameters=[a, b, s])


A, B, S = np.array([1.0, 2.0]), np.array([[2.0, 1.0], [0.0, 1.0]]), np.array(0.5)


def test_positions_and_names_bind_alike(problem):
    expected = problem.solve(A, B, S).outputs[0]
    for args, named in (((A, B), {"s": S}), ((A,), {"s": S, "b": B}), ((), {"b": B, "s": S, "a": A})):
        np.testing.assert_array_equal(problem.solve(*args, **named).outputs[0], expected)
    np.testing.assert_allclose(expected, np.linalg.solve(B, A - np.linalg.solve(B.T, S / 2 * np.ones(2))), atol=1e-12)


@pytest.mark.parametrize(
    ("args", "named", "says"),
    [
        ((A, B), {}, "3 parameters"),
        ((A, B, S, S), {}, "3 parameters"),
        ((A, B), {"S": S}, "did you mean 's'"),
        ((A, B, S), {"a": A}, "given twice"),
        ((A,), {"s": S}, r"\['b'\] are missing"),
        ((A, B.T[:1], S), {}, "parameter 'b' has the wrong shape"),
        ((A, B, np.ones(3)), {"zz": 1}, "no parameter 'zz'"),
        ((np.ones((4, 2)), np.ones((3, 2, 2)), S), {}, "do not broadcast"),
        ((np.ones((2, 3)), B, S), {}, "parameter 'a' has the wrong shape"),
    ],
)
def test_what_does_not_bind_is_named(problem, args, named, says):
    with pytest.raises(errors.ShapeError, match=says):
        problem.solve(*args, **named)


@pytest.mark.parametrize("value", [np.array(["u", "v"]), np.array([1j, 0]), np.array([None, 1]), [[1.0], [1.0, 2.0]]])
def test_what_is_no_number_is_named(problem, value):
    with pytest.raises(errors.DtypeError, match="parameter 'a'"):
        problem.solve(value, B, S)


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite_are_located(problem, bad, word):
    a = np.ones((2, 3, 2))
    a[1, 2, 0] = a[0, 1, 1] = bad
    with pytest.raises(errors.NonFiniteInputError, match=rf"(?s){word}.*\(0, 1\), \(1, 2\)"):
        problem.evaluate([a, B, S])
    with pytest.raises(errors.NonFiniteInputError, match="parameter 's'"):
        problem.evaluate([a * 0 if np.isfinite(bad) else np.ones(2), B, np.array(bad)])


def test_huge_values_are_finite_and_infinities_of_both_signs_are_not(problem):
    flagged = lc.CompiledProblem(problem.program, on_error="flag")
    status = flagged.evaluate([np.array([[np.inf, -np.inf], [1e308, 1e308], [1.0, 1.0]]), B, S]).info.status
    assert status[0] == Status.NONFINITE_INPUT and status[1] != Status.NONFINITE_INPUT and status[2] == Status.SOLVED


DOMAINS = {
    "nonneg": (np.array([0.0, 1.0]), np.array([-1e-3, 1.0])),
    "nonpos": (np.array([0.0, -1.0]), np.array([1e-3, -1.0])),
    "pos": (np.array([1e-9, 1.0]), np.array([0.0, 1.0])),
    "neg": (np.array([-1e-9, -1.0]), np.array([0.0, -1.0])),
    "symmetric": (np.array([[1.0, 2.0], [2.0, -1.0]]), np.array([[1.0, 2.0], [2.1, -1.0]])),
    "diag": (np.diag([1.0, -1.0]), np.array([[1.0, 1e-3], [0.0, -1.0]])),
    "PSD": (np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 0.9]])),
    "NSD": (-np.array([[1.0, 1.0], [1.0, 1.0]]), -np.array([[1.0, 1.0], [1.0, 0.9]])),
}


@pytest.mark.parametrize("attribute", DOMAINS)
def test_declared_domains_are_checked(attribute):
    """The boundary passes (where it belongs to the domain), the outside is named with its batch index, and the check can be left out."""
    good, bad = DOMAINS[attribute]
    p = cp.Parameter(good.shape, name="p", **{attribute: True})
    x = cp.Variable(good.shape, name="x")
    problem = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p))))
    np.testing.assert_allclose(problem.evaluate([good]).outputs[0], good, atol=1e-12)
    np.testing.assert_allclose(problem.evaluate([good.astype(np.float32)]).outputs[0], good.astype(np.float32), atol=1e-7)
    with pytest.raises(errors.ParameterDomainError, match=rf"(?s)'p' was declared {attribute}.*batch index 1"):
        problem.evaluate([np.stack([good, bad, good])])
    assert problem.evaluate([bad], options=lc.Options(check_domain=False)).info.ok


def test_parameters_of_geometric_programs_are_positive_whatever_the_checks():
    """Their logarithm enters: without the domain check such an instance is flagged, never solved as something else."""
    problem = families.compiled("geometric", on_error="flag")
    a, b = families.case("geometric").theta
    bad = np.stack([a, a, a])
    bad[1, 0], bad[2, 0] = -1.0, 0.0
    evaluation = problem.evaluate([bad, b], options=lc.Options(check_domain=False))
    assert evaluation.info.status.tolist() == [0, Status.NONFINITE_INPUT, Status.NONFINITE_INPUT]
    assert np.isnan(evaluation.outputs[0][1:]).all()
    gradients = evaluation.vjp([np.ones(o.shape) for o in evaluation.outputs])
    alone = problem.evaluate([a, b]).vjp([np.ones(o.shape) for o in problem.outputs])
    np.testing.assert_array_equal(gradients[0][1:], 0.0)
    np.testing.assert_allclose(gradients[1], alone[1], rtol=1e-12)
    with pytest.raises(errors.ParameterDomainError, match="declared pos"):
        families.compiled("geometric").evaluate([bad, b], options=lc.Options(check_domain=False))


@pytest.mark.parametrize("name", [n for n in families.FAMILIES if n != "attributes"])
def test_parameters_left_out_are_constants_with_their_value(name):
    """The same solution and the same gradients for those that stay; constants may enter in ways that parameters may not."""
    case = families.case(name)
    full, evaluation = families.compiled(name), families.solve(name)
    g = case.cotangents(evaluation, 0)
    expected = evaluation.vjp(g)
    for kept in range(len(case.parameters)):
        for p, t in zip(case.parameters, case.theta, strict=True):
            p.value = None if p is case.parameters[kept] else t
        part = lc.compile(case.problem, parameters=[case.parameters[kept]], variables=case.outputs)
        other = part.evaluate([case.theta[kept]])
        assert [p.name for p in part.parameters] == [full.parameters[kept].name]
        for a, b in zip(other.outputs, evaluation.outputs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * (1 + np.abs(b).max()))
        np.testing.assert_allclose(other.vjp(g)[0], expected[kept], rtol=0, atol=1e-8 * (1 + np.abs(expected[kept]).max()))
    for p in case.parameters:
        p.value = None


@pytest.mark.parametrize("method", ["vjp", "jvp", "hvp", "second"])
def test_cotangents_and_tangents_are_checked(problem, method):
    evaluation = problem.evaluate([A, B, S])
    g, h = [np.ones(2)], [A, B, S]
    arguments = {"vjp": [g], "jvp": [h], "hvp": [g, h], "second": [h, h]}[method]
    getattr(evaluation, method)(*arguments)
    for i, good in enumerate(arguments):
        for bad in (good[:-1], [*good[:-1], np.ones(7)], [*good, None]):
            with pytest.raises(errors.ShapeError):
                getattr(evaluation, method)(*[bad if k == i else a for k, a in enumerate(arguments)])
