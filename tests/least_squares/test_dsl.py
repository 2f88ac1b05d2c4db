"""Problems of the CVXPY DSL, solved in batches and differentiated."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler.errors import NotDCPError, NotLeastSquaresError, ShapeError
from layercompiler.plan.compiled import CompiledProblem
from layercompiler.plan.nonlinear import CompiledNonlinear

sin, cos = cp.nlp.sin, cp.nlp.cos
T = 8


def unicycle():
    """Steering to a goal, the first state fixed, the speed bounded."""
    X, U = cp.Variable((T, 3), name="X"), cp.Variable((T - 1, 2), name="U")
    first, goal, w = cp.Parameter(3, name="first"), cp.Parameter(3, name="goal"), cp.Parameter(nonneg=True, name="w")
    v, turn, heading = U[:, 0], U[:, 1], X[:-1, 2]
    steps = cp.vstack([cp.multiply(v, cos(heading)), cp.multiply(v, sin(heading)), turn]).T
    dynamics = 100 * cp.sum_squares(X[1:] - X[:-1] - 0.25 * steps)
    smooth = cp.sum(cp.huber(X[2:5, 1] - 0.3, 0.1))
    problem = cp.Problem(
        cp.Minimize(dynamics + 10 * cp.sum_squares(X[-1] - goal) + w * cp.sum_squares(U) + smooth), [X[0] == first, v <= 1.0, v >= -1.0]
    )
    rng = np.random.default_rng(0)
    values = [0.1 * rng.standard_normal((3, 3)), np.array([1.0, 0.6, 0.4]) + 0.1 * rng.standard_normal((3, 3)), np.array(0.05)]
    return problem, [first, goal, w], [X, U, problem.objective], values


def growth():
    """Fitting a curve with large residuals, weights of samples and a robust loss."""
    t = np.linspace(0, 3, 25)
    x, y, w = cp.Variable(3, name="x"), cp.Parameter(25, name="y"), cp.Parameter(25, nonneg=True, name="w")
    radius = cp.Parameter(nonneg=True, name="radius")
    x.value = np.array([1.0, 1.0, 0.0])
    residual = x[0] * cp.exp(-x[1] * t) + x[2] - y
    problem = cp.Problem(cp.Minimize(w @ cp.square(residual) + 2 * cp.sum(cp.huber(residual, radius)) + 0.01 * cp.sum_squares(x)))
    rng = np.random.default_rng(1)
    values = [2 * np.exp(-1.2 * t) + 0.3 + 0.5 * rng.standard_normal((3, 25)), rng.uniform(0.5, 1.5, 25), np.array([0.4, 0.5, 0.6])]
    return problem, [y, w, radius], [x, x[0] + y[0]], values


def circles():
    """A point by its distances to beacons, inside bounds that are parameters."""
    x, low = cp.Variable(2, name="x"), cp.Parameter(2, name="low")
    beacons, ranges = cp.Parameter((4, 2), name="beacons"), cp.Parameter(4, name="ranges")
    x.value = np.array([0.4, 0.6])
    distance = cp.norm(beacons - cp.reshape(x, (1, 2), order="C"), 2, axis=1)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.log1p(cp.square(distance - ranges) / 0.25))), [x >= low])
    rng = np.random.default_rng(2)
    places = np.array([[0.0, 0.0], [2.0, 0.1], [1.9, 2.0], [0.1, 2.1]])
    truth = np.array([[0.9, 1.1], [0.6, 1.4], [1.3, 0.8]])
    ranges_ = np.linalg.norm(places - truth[:, None], axis=2) + 0.15 * rng.standard_normal((3, 4))
    return problem, [beacons, ranges, low], [x], [places, ranges_, np.array([0.75, 0.2])]


PROBLEMS = {"unicycle": unicycle, "growth": growth, "circles": circles}


class Torch:
    def __init__(self, problem, parameters, outputs, **options):
        self.torch = pytest.importorskip("torch")
        self.layer = lc.export(problem, "torch", parameters=parameters, variables=outputs, options=options or None)

    def outputs(self, values):
        return [o.detach().numpy() for o in self.layer(*[self.torch.tensor(v) for v in values])]

    def pull(self, values, cotangents):
        tensors = [self.torch.tensor(v, requires_grad=True) for v in values]
        outputs = self.layer(*tensors)
        return [g.numpy() for g in self.torch.autograd.grad(outputs, tensors, [self.torch.tensor(c) for c in cotangents])]


class Jax:
    def __init__(self, problem, parameters, outputs, **options):
        self.jax = pytest.importorskip("jax")
        self.layer = lc.export(problem, "jax", parameters=parameters, variables=outputs, options=options or None)

    def outputs(self, values):
        with self.jax.enable_x64(True):
            return [np.asarray(o) for o in self.layer(*map(self.jax.numpy.asarray, values))]

    def pull(self, values, cotangents):
        with self.jax.enable_x64(True):
            _, pull = self.jax.vjp(lambda *v: self.layer(*v), *map(self.jax.numpy.asarray, values))
            return [np.asarray(g) for g in pull(tuple(map(self.jax.numpy.asarray, cotangents)))]


class TensorFlow:
    def __init__(self, problem, parameters, outputs, **options):
        self.tf = pytest.importorskip("tensorflow")
        self.layer = lc.export(problem, "tensorflow", parameters=parameters, variables=outputs, options=options or None)

    def outputs(self, values):
        return [np.asarray(o) for o in self.layer(*map(self.tf.constant, values))]

    def pull(self, values, cotangents):
        tensors = [self.tf.constant(v) for v in values]
        with self.tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = self.layer(*tensors)
        return [np.asarray(g) for g in tape.gradient(list(outputs), tensors, list(map(self.tf.constant, cotangents)))]


FRAMEWORKS = {"torch": Torch, "jax": Jax, "tensorflow": TensorFlow}


QUICK = {*((name, "torch") for name in PROBLEMS), ("circles", "jax"), ("circles", "tensorflow")}


@pytest.mark.parametrize(
    ("name", "framework"),
    [pytest.param(n, f, marks=() if (n, f) in QUICK else pytest.mark.slow) for n in PROBLEMS for f in FRAMEWORKS],
)
def test_batches_are_singles_and_gradients_are_differences(name, framework):
    problem, parameters, outputs, values = PROBLEMS[name]()
    layer = FRAMEWORKS[framework](problem, parameters, outputs)
    found = layer.outputs(values)
    assert all(o.shape == (3, *getattr(w, "shape", ())) for o, w in zip(found, outputs, strict=True))
    ranks = [len(p.shape) for p in parameters]
    for i in range(3):
        single = layer.outputs([v[i] if v.ndim > k else v for v, k in zip(values, ranks, strict=True)])
        for many, one in zip(found, single, strict=True):
            np.testing.assert_allclose(many[i], one, rtol=0, atol=1e-8)

    rng = np.random.default_rng(4)
    cotangents = [rng.standard_normal(o.shape) for o in found]
    gradients = layer.pull(values, cotangents)
    for k, v in enumerate(values):
        direction = rng.standard_normal(v.shape)

        def along(h, k=k, direction=direction):
            moved = layer.outputs([a + h * direction if i == k else a for i, a in enumerate(values)])
            return sum(float(np.sum(o * c)) for o, c in zip(moved, cotangents, strict=True))

        coarse, fine = ((along(h) - along(-h)) / (2 * h) for h in (2e-4, 1e-4))
        want, error = (4 * fine - coarse) / 3, abs(fine - coarse)
        got = float(np.sum(gradients[k] * direction))
        assert error < 1e-4 * max(1.0, abs(want))
        assert abs(got - want) <= 1e-6 * max(1.0, abs(want)) + error / 10, (parameters[k].name(), got, want)


def test_the_solution_is_stationary_and_inside():
    problem, parameters, outputs, values = unicycle()
    compiled = lc.compile(problem, parameters=parameters, variables=outputs)
    solution = compiled.solve(*values)
    assert solution.info.ok.all()
    X, U, value = solution.outputs
    np.testing.assert_allclose(X[:, 0], values[0], atol=1e-12)
    assert np.abs(U[..., 0]).max() <= 1 + 1e-9
    np.testing.assert_allclose(solution.value, value)
    for p, v in zip(parameters, values, strict=True):
        p.value = v[0] if v.ndim > len(p.shape) else v
    problem.variables()[0].value, problem.variables()[1].value = X[0], U[0]
    assert float(problem.objective.value) == pytest.approx(float(value[0]), rel=1e-10)


def test_starts_are_given_by_the_names_of_variables():
    problem, parameters, outputs, values = circles()
    compiled = lc.compile(problem, parameters=parameters, variables=outputs)
    far, near = (compiled.solve(*values, init={"x": start}).outputs[0] for start in ([1.2, 1.0], np.ones((3, 2))))
    np.testing.assert_allclose(far, near, atol=1e-8)
    with pytest.raises(ShapeError, match="no variable 'z'"):
        compiled.solve(*values, init={"z": 1.0})
    with pytest.raises(ShapeError, match="wrong shape"):
        compiled.solve(*values, init={"x": np.ones(3)})


def test_which_path_a_problem_takes():
    x, p = cp.Variable(3, name="x"), cp.Parameter(3, name="p")
    convex = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0])
    assert isinstance(lc.compile(convex), CompiledProblem)
    assert isinstance(lc.compile(convex, solver="gauss_newton"), CompiledNonlinear)
    assert isinstance(lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(sin(x) - p)))), CompiledNonlinear)
    assert isinstance(lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x[0] * x[1:] - p[1:])))), CompiledNonlinear)
    with pytest.raises(NotDCPError):
        lc.compile(cp.Problem(cp.Maximize(cp.sum_squares(x - p)), [x <= 1]))
    with pytest.raises(NotDCPError):
        lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x[0] * x[1:] - p[1:]))), solver="clarabel")
    with pytest.raises(NotLeastSquaresError):
        lc.compile(cp.Problem(cp.Minimize(cp.sum(sin(x) - p))))
    np.testing.assert_allclose(
        lc.compile(convex, solver="gauss_newton").solve(np.array([1.0, -2.0, 3.0])).outputs[0], [1.0, 0.0, 3.0], atol=1e-9
    )


def test_the_report_tells_what_was_recognised():
    problem, parameters, outputs, _ = unicycle()
    report = lc.compile(problem, parameters=parameters, variables=outputs).report()
    assert "nonlinear least squares" in report
    assert "huber: huber(X[2:5, 1] - 0.3, 0.1), 3 rows" in report
    assert "colours" in report
    assert "with bounds" in report


def test_a_compiled_problem_pickles():
    import pickle

    problem, parameters, outputs, values = growth()
    compiled = lc.compile(problem, parameters=parameters, variables=outputs)
    again = pickle.loads(pickle.dumps(compiled))
    np.testing.assert_array_equal(again.solve(*values).outputs[0], compiled.solve(*values).outputs[0])


@pytest.mark.parametrize(
    "framework", ["torch", pytest.param("jax", marks=pytest.mark.slow), pytest.param("tensorflow", marks=pytest.mark.slow)]
)
def test_a_weight_of_zero_has_its_derivative(framework):
    x, y, w = cp.Variable(2, name="x"), cp.Parameter(5, name="y"), cp.Parameter(5, nonneg=True, name="w")
    radius, t = 0.3, np.linspace(0, 1, 5)
    residual = x[0] * cp.exp(x[1] * t) - y
    problem = cp.Problem(cp.Minimize(w @ cp.square(residual) + w @ cp.huber(residual - 0.1, radius) + 0.1 * cp.sum_squares(x)))
    layer = FRAMEWORKS[framework](problem, [y, w], [x])
    rng = np.random.default_rng(0)
    values = [1 + t + 0.3 * rng.standard_normal(5), np.array([1.0, 0.0, 2.0, 0.0, 0.5])]
    _, gradient = layer.pull(values, [np.array([1.0, -2.0])])

    def along(i, h):
        (found,) = layer.outputs([values[0], values[1] + h * np.eye(5)[i]])
        return float(found @ [1.0, -2.0])

    for i in range(5):
        h = 1e-4
        want = (-3 * along(i, 0.0) + 4 * along(i, h) - along(i, 2 * h)) / (2 * h)  # weights stay nonnegative
        assert abs(gradient[i] - want) < 1e-5 * max(1.0, abs(want))


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_bounds_that_meet_and_bounds_that_cross(framework):
    """A parameter may close an interval to a point, from a given start too; where it leaves nothing, there is no solution inside of it."""
    x, y = cp.Variable(2, name="x"), cp.Parameter(2, name="y")
    low, high = cp.Parameter(2, name="low"), cp.Parameter(2, name="high")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.exp(x) - y)), [x >= low, x <= high])
    layer = lc.export(problem, framework, parameters=[y, low, high], on_error="flag")
    lows, highs = np.array([[0.5, -5.0], [2.0, -5.0], [-5.0, -5.0]]), np.array([[0.5, 5.0], [1.0, 5.0], [5.0, 5.0]])
    expected = np.array([[0.5, np.log(2.0)], [np.nan, np.nan], np.log([3.0, 2.0])])
    for settings in ({}, {"init": {"x": np.full((3, 2), 0.5)}}):
        found = np.asarray(layer(*map(layer_input(framework), (np.array([3.0, 2.0]), lows, highs)), **settings)[0])
        known = slice(1, None) if framework == "tensorflow" else slice(None)  # which has no outputs where there is no derivative
        np.testing.assert_allclose(found[known], expected[known], atol=1e-7)


def layer_input(framework):
    if framework == "torch":
        return pytest.importorskip("torch").tensor
    return (lambda a: pytest.importorskip("jax").numpy.asarray(a)) if framework == "jax" else (lambda a: a)
