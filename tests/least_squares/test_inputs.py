"""What is wrong with a problem or a call is said where it is wrong, and never answered."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler.errors import (
    BuildError,
    InputError,
    NotDCPError,
    NotLeastSquaresError,
    OptionError,
    ParameterDomainError,
    ShapeError,
    SolveError,
    UnsupportedExpressionError,
    UnsupportedResidualError,
)
from tests.least_squares.problems import pose_graph

Y = np.array([[1.0, 2.0], [3.0, 1.0]])
RADII, SCALES = np.array([1.0, 0.0]), np.array([1.0, -1.0])


def mistakes():
    x, y, p = cp.Variable(4, name="x"), cp.Variable(3, name="y"), cp.Parameter(3, name="p")
    X, Y, D = cp.Variable((3, 2), name="X"), cp.Variable((2, 3), name="Y"), cp.Parameter((3, 3), name="D")
    r = cp.sum_squares(x[0] * x[1:] - p)
    minimize = lambda e, *constraints: cp.Problem(cp.Minimize(e), list(constraints))  # noqa: E731
    return {
        "norm1": (minimize(r + cp.norm1(x)), NotLeastSquaresError, "norm1(x)"),
        "ceil": (minimize(r + cp.sum_squares(cp.ceil(x))), UnsupportedExpressionError, "ceil(x)"),
        "ceil of a factor": (minimize(cp.sum_squares(cp.ceil(x[0]) * x[1:] - p)), UnsupportedExpressionError, "ceil(x[0])"),
        "coupling": (minimize(cp.sum_squares(X @ Y - D), cp.sum(X) <= 1), NotLeastSquaresError, "sum(X) <= 1"),
        "cone": (minimize(r, cp.norm2(x) <= 1), NotLeastSquaresError, "norm(x) <= 1"),
        "product": (minimize(r, x[0] * x[1] <= 1), NotLeastSquaresError, "x[0] * x[1] <= 1"),
        "linear": (minimize(r + y[0]), NotLeastSquaresError, "y"),
        "negative": (minimize(r - cp.sum_squares(y)), NotLeastSquaresError, "sum_squares(y)"),
        "max": (minimize(r + cp.max(x)), NotLeastSquaresError, "max(x)"),
        "entropy": (minimize(cp.sum_squares(cp.multiply(x[1:], y) - p) - cp.sum(cp.entr(y))), NotLeastSquaresError, "entr(y)"),
        "bare": (minimize(cp.sum(cp.huber(x[0] * x[1:] - p)) + y[0] * y[1]), NotLeastSquaresError, "y[0] * y[1]"),
        "maximize": (cp.Problem(cp.Maximize(-r - cp.norm1(y))), NotLeastSquaresError, "norm1(y)"),
        # these were meant to be convex
        "root": (minimize(cp.sum_squares(y - p) + cp.sum(cp.sqrt(y))), NotDCPError, ""),
        "root above": (minimize(cp.sum_squares(y - p), cp.sqrt(y[0]) <= 1), NotDCPError, ""),
        "product alone": (minimize(x[0] * x[1] + cp.norm1(x)), NotDCPError, ""),
    }


@pytest.mark.parametrize("name", mistakes())
def test_the_error_names_what_is_no_residual(name):
    problem, kind, where = mistakes()[name]
    with pytest.raises(kind) as caught:
        lc.compile(problem)
    assert not where or caught.value.where == where


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ({"lower": 1, "upper": 0}, BuildError),
        ({"lower": np.nan}, BuildError),
        ({"upper": [0.0, np.nan]}, BuildError),
        ({"lower": np.inf}, BuildError),
        ({"lower": np.zeros(3)}, ShapeError),
        ({"fixed": [7]}, ShapeError),
        ({"init": [1.0]}, ShapeError),
    ],
)
def test_declarations_are_checked_when_built(declared, kind):
    with pytest.raises(kind) as caught:
        lc.LeastSquares({"x": lc.Euclidean(2, **declared)}, [lc.factor(lambda xp, x: x, on="x")])
    assert "'x'" in caught.value.where


def test_starts_and_radii_are_checked_when_built():
    with pytest.raises(BuildError, match="no elements of SE2"):
        lc.LeastSquares({"X": lc.SE2(2, init=np.ones((2, 4)))}, [lc.factor(lambda xp, x: x.log(), on="X")])
    for radius in (0.0, -1.0, np.nan, np.inf, [1.0, 0.0]):
        for loss in (lc.Huber, lc.Cauchy, lc.GemanMcClure):
            with pytest.raises(OptionError, match="radius"):
                loss(radius)


def robust_means():
    def residual(xp, x, y):
        return x - y

    factors = [lc.factor(residual, on="x", data="y", robust=lc.Huber("r"), weight=lc.Scale("s"))]
    return lc.LeastSquares({"x": lc.Euclidean(2)}, factors, {"y": (2,), "r": (), "s": ()})


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_radii_and_scales_have_a_domain(framework):
    pytest.importorskip(framework)
    import jax

    with jax.enable_x64(True):
        layer = lc.export(robust_means(), framework)
        np.testing.assert_allclose(np.asarray(layer(Y, np.ones(2), 1.0)[0]), Y, atol=1e-9)
        for r, s, name in ((RADII, 1.0, "r"), (-RADII, 1.0, "r"), (1.0, SCALES, "s")):
            with pytest.raises(ParameterDomainError, match=f"'{name}'") as caught:
                layer(Y, r, s)
            assert "(1,)" in caught.value.where
        loose = {"check_domain": False}
        x = np.asarray(lc.export(robust_means(), framework, on_error="flag", options=loose)(Y, RADII, SCALES)[0])
        np.testing.assert_allclose(x[0], Y[0], atol=1e-9)  # a radius that is no radius is not solved for, checked or not
        assert np.isnan(x[1]).all()
        with pytest.raises((SolveError, InputError)):
            lc.export(robust_means(), framework, options=loose)(Y, RADII, 1.0)


def test_where_nothing_can_be_raised_instances_outside_are_not_solved():
    jax, tf = pytest.importorskip("jax"), pytest.importorskip("tensorflow")
    with jax.enable_x64(True):
        layer = lc.export(robust_means(), "jax", on_error="flag")
        x = jax.jit(lambda r: layer(Y, r, 1.0)[0])(RADII)
        g = jax.grad(lambda r: jax.numpy.nansum(layer(Y, r, 1.0)[0]))(RADII)
    assert np.isnan(x).tolist() == [[False, False], [True, True]] and np.isfinite(g).all()
    layer = lc.export(robust_means(), "tensorflow", on_error="flag")
    x = tf.function(lambda r: layer(Y, r, 1.0)[0])(tf.constant(RADII))
    assert np.isnan(x).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("name", ["SO2", "SE2", "SO3", "SE3"])
def test_parameters_that_are_no_elements_are_refused(name):
    problem, measured, start = pose_graph(name, 5, 2, 0.05)
    w = torch.ones(measured.shape[1], measured.shape[-1] if name == "SO2" else {"SE2": 3, "SO3": 3, "SE3": 6}[name])
    w = w if name != "SO2" else torch.ones(measured.shape[1], 1)
    bad = measured.copy()
    bad[1, 2] *= 2
    rest = (w.double(), torch.tensor(1.0))
    layer = lc.export(problem, "torch")
    layer(torch.tensor(measured), *rest, init={"X": start})
    with pytest.raises(ParameterDomainError, match="'Z'") as caught:
        layer(torch.tensor(bad), *rest, init={"X": start})
    assert "(1,)" in caught.value.where and name in caught.value.where


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow", "numpy"])
def test_values_of_cvxpy_parameters_are_checked(framework):
    x, d, w = cp.Variable(2, name="x"), cp.Parameter(2, name="d"), cp.Parameter(2, nonneg=True, name="w")
    M = cp.Parameter(nonneg=True, name="M")
    x.value = np.ones(2)
    problem = cp.Problem(cp.Minimize(w @ cp.square(x[0] * x - d) + cp.sum(cp.huber(x[0] * x[1] - 1, M))))
    import jax

    with jax.enable_x64(True):
        layer = lc.export(problem, framework, parameters=[d, w, M])
        with pytest.raises(ParameterDomainError, match="'w'"):
            layer(np.array([1.0, 2.0]), np.array([[1.0, 1.0], [1.0, -1.0]]), np.array(1.0))
        with pytest.raises(ParameterDomainError, match="radius"):
            layer(np.array([1.0, 2.0]), np.ones(2), np.array(0.0))


def branching(xp, x, y):
    return x - y if x[0] > 0 else x + y


def leaving(xp, x, y):
    return xp.new(np.asarray(x)) - y


def counting(xp, x, y):
    return x * x[0].item() - y if hasattr(x[0], "item") else x * float(x[0]) - y


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
@pytest.mark.parametrize("residual", [branching, leaving, counting])
def test_residuals_that_look_at_numbers_are_refused(framework, residual):
    pytest.importorskip(framework)
    import jax

    problem = lc.LeastSquares({"x": lc.Euclidean(2, init=[1.0, 1.0])}, [lc.factor(residual, on="x", data="y")], {"y": (2,)})
    with jax.enable_x64(True), pytest.raises(UnsupportedResidualError, match="looks at the numbers") as caught:
        lc.export(problem, framework)(np.array([1.0, 2.0]))
    assert residual.__name__ in caught.value.where and "where" in caught.value.mend


def test_a_graduation_that_starts_at_a_whole_number_works_in_tensorflow():
    pytest.importorskip("tensorflow")
    problem, measured, start = pose_graph("SE2", 7, 2, 0.2, robust=lc.GemanMcClure("r", graduated=True, start=4))
    values = measured, np.ones((measured.shape[1], 3)), np.array(1.0)
    found, other = (lc.export(problem, f, on_error="flag").solve(*values, init={"X": start}) for f in ("tensorflow", "numpy"))
    np.testing.assert_allclose(found.outputs[0], other.outputs[0], atol=1e-8)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "dogleg"])
def test_a_kink_stalls(method):
    """|x| + 1 has a minimum without a small gradient, where no step lowers the cost: that is not converged."""
    problem = lc.LeastSquares({"x": lc.Euclidean(1)}, [lc.factor(lambda xp, x, s: abs(x - s) + 1.0, on="x", data="s")], {"s": (1,)})
    options = {"max_iterations": 1000}
    found = lc.export(problem, "torch", solver=method, on_error="flag", options=options).solve(torch.tensor([[0.3], [-0.7]]))
    assert (found.status == lc.Status.STALLED).all() and (found.residual > 0.5).all() and torch.isnan(found.outputs[0]).all()


def test_truncation_is_said_in_one_word():
    assert lc.LeastSquaresOptions(backward="truncated(7)") == lc.LeastSquaresOptions(backward="truncated", truncation=7)
    with pytest.raises(OptionError, match="backward"):
        lc.LeastSquaresOptions(backward="truncated(many)")


def test_elements_are_made_in_the_arrays_of_their_tangents():
    for kind, dof in ((lc.SO2, 1), (lc.SE2, 3), (lc.SO3, 3), (lc.SE3, 6)):
        v = 0.3 * np.random.default_rng(0).standard_normal((5, dof))
        x, y = kind.exp(v), kind.exp(torch.tensor(v))
        np.testing.assert_allclose(y, x, atol=1e-15)
        np.testing.assert_allclose(kind.element(y).log(), v, atol=1e-12)
        assert kind(5).shape == x.shape == kind.identity(5).shape == kind.random(np.random.default_rng(0), (5,)).shape


def test_a_start_that_the_batch_shares():
    """One start for all instances of a plain call of torch: every instance gets its own solution."""
    t = np.linspace(0.0, 1.0, 12)
    problem = lc.LeastSquares(
        variables={"c": lc.Euclidean(1, 2)},
        factors=[lc.factor(lambda c, x, y: c[:1] * (c[1:] * x).exp() - y, on="c", data=("x", "y"), index=np.zeros(12, int))],
        parameters={"x": (12,), "y": (12,)},
    )
    truth = np.stack([[1.0 + 0.1 * k, -0.7 + 0.2 * k] for k in range(6)])
    layer = lc.export(problem, "torch")
    seen = torch.tensor(truth[:, :1] * np.exp(truth[:, 1:] * t), requires_grad=True)
    for shape in ((6,), (2, 3), (6, 1)):
        (found,) = layer(torch.tensor(t), seen.reshape(*shape, 12), init={"c": np.array([[1.0, 0.0]])})
        assert found.is_contiguous()
        np.testing.assert_allclose(found.detach().numpy(), truth.reshape(*shape, 1, 2), atol=1e-9)
