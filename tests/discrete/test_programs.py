"""Mixed-integer CVXPY problems: exact solutions, recognition, outputs, errors."""

import copy
import importlib.util
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors, kernels
from layercompiler.status import Status
from tests.discrete.problems import PROBLEMS, general, knapsack, shortest_path, subset, tour_mtz

GENERAL = "simplex" if kernels.available() else "highs"  # what solves a program without a pattern


def compiled_of(name, estimator=None, **settings):
    problem, c, x = PROBLEMS[name]()
    return problem, c, x, lc.compile(problem, parameters=[c], variables=[x], estimator=estimator or lc.IMLE(samples=2), **settings)


@pytest.mark.parametrize("solver", ["auto", "simplex", "highs"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_solutions_are_optimal(name, solver):
    problem, c, x, compiled = compiled_of(name, solver=solver)
    costs = np.random.default_rng(0).uniform(0.1, 1.0, (5, *c.shape))
    solution = compiled.solve(costs)
    for i, cost in enumerate(costs):
        c.value = cost
        problem.solve(solver=cp.HIGHS)
        assert solution.value[i] == pytest.approx(problem.value, rel=1e-7, abs=1e-7)
        x.value = solution.outputs[0][i]
        assert name in ("tour", "general") or all(k.violation().max() < 1e-7 for k in problem.constraints)
    if x.attributes["boolean"] or x.attributes["integer"]:
        np.testing.assert_array_equal(solution.outputs[0], np.rint(solution.outputs[0]))


def test_patterns_are_recognised_only_where_they_are_certain():
    expected = {"path": "shortest path (DAG)", "path relaxed": "shortest path (DAG)", "subset": "top-k", "assignment": "assignment"}
    for name in PROBLEMS:
        compiled = compiled_of(name)[3]
        assert compiled.space.oracle == expected.get(name, GENERAL)
        assert ("recognised" in compiled.report()) == (name in expected)
    c, x = cp.Parameter(6), cp.Variable(6, boolean=True)
    almost = {
        "weights": [np.array([1, 1, 1, 1, 1, 2.0]) @ x == 3],
        "inequality": [cp.sum(x) <= 3],
        "not all": [cp.sum(x[:5]) == 3],
        "another row": [cp.sum(x) == 3, x[0] + x[1] <= 1],
        "fixed": [cp.sum(x) == 3, x[0] == 1],
    }
    for what, constraints in almost.items():
        assert lc.compile(cp.Problem(cp.Minimize(c @ x), constraints), estimator=lc.DBB()).space.oracle == GENERAL, what
    problem, c, x = shortest_path(3)
    cycle = cp.Problem(problem.objective, [problem.constraints[0], x[0] <= 0])
    assert lc.compile(cycle, estimator=lc.DBB()).space.oracle == GENERAL


def test_batches_equal_singles_whatever_the_workers():
    for make in (lambda: knapsack(10), lambda: tour_mtz(5), general):
        problem, c, x = make()
        compiled = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB())
        costs = np.random.default_rng(1).uniform(0.1, 1, (150, *c.shape))
        one = compiled.solve(costs).outputs[0]
        np.testing.assert_array_equal(one, compiled.solve(costs, options={"workers": 2}).outputs[0])
        np.testing.assert_allclose(one[3], compiled.solve(costs[3]).outputs[0], atol=1e-9)


def test_constants_and_affine_outputs_and_maximisation():
    problem, c, x = general()
    both = lc.compile(
        problem, parameters=[c], variables=[x, x[0] + 2 * x[1], problem.variables()[1]], estimator=lc.Identity(project="none")
    )
    costs = np.random.default_rng(0).uniform(0.1, 1, (3, 4))
    sample = both.sample([costs])
    x0, combined, y = sample.outputs
    np.testing.assert_allclose(combined, x0[:, 0] + 2 * x0[:, 1], atol=1e-7)
    assert y.shape == (3, 3)
    g = both.pull([costs], sample.solutions, sample.noise, [None, np.ones(3), None])[0]
    assert g.shape == (3, 4)


def test_gradients_of_an_affine_cost_follow_the_chain_rule():
    theta, x = cp.Parameter(3, name="theta"), cp.Variable(5, boolean=True, name="x")
    M = np.random.default_rng(0).standard_normal((5, 3))
    problem = cp.Problem(cp.Minimize((M @ theta + np.arange(5.0)) @ x), [cp.sum(x) == 2])
    compiled = lc.compile(problem, estimator=lc.DBB(step=1.5, scaling="raw"))
    value, dy = np.array([0.3, -1.0, 0.5]), np.random.default_rng(1).standard_normal(5)

    def z(cost):
        out = np.zeros(5)
        out[np.argsort(cost)[:2]] = 1
        return out

    cost = M @ value + np.arange(5.0)
    sample = compiled.sample([value])
    np.testing.assert_array_equal(sample.outputs[0], z(cost))
    expected = M.T @ ((z(cost + 1.5 * dy) - z(cost)) / 1.5)
    np.testing.assert_allclose(compiled.pull([value], sample.solutions, sample.noise, [dy])[0], expected, atol=1e-12)


def test_parameters_in_constraints_are_for_estimators_that_differentiate_the_noise():
    c, w, x = cp.Parameter(6, name="c"), cp.Parameter(6, name="w"), cp.Variable(6, boolean=True)
    problem = cp.Problem(cp.Maximize(c @ x), [w @ x <= 6.0])
    for estimator in (lc.IMLE(), lc.DBB(), lc.Identity(), lc.StraightThrough()):
        with pytest.raises(errors.BuildError, match="constraints"):
            lc.compile(problem, estimator=estimator)
    compiled = lc.compile(problem, parameters=[c, w], estimator=lc.Perturbed(samples=60, temperature=0.3))
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(1, 2, 6), rng.uniform(1, 3, 6)]
    sample = compiled.sample(arrays, [0])
    g = compiled.pull(arrays, sample.solutions, sample.noise, [np.ones(6)])
    assert g[1].sum() < 0  # heavier items: fewer of them
    c.value, w.value = arrays
    assert compiled.solve(*arrays).value == pytest.approx(problem.solve(solver=cp.HIGHS))


# ---------------------------------------------------------------------------------------------------------------------- errors


def test_what_is_no_mixed_integer_linear_program_is_refused():
    c, x, b = cp.Parameter(3), cp.Variable(3, integer=True, name="x"), cp.Variable(3, boolean=True)
    for problem in (
        cp.Problem(cp.Minimize(c @ x), [cp.norm(x) <= 2]),
        cp.Problem(cp.Minimize(cp.sum(cp.exp(x)) + c @ x), [x <= 2]),
    ):
        with pytest.raises(errors.UnsupportedConeError, match="linear"):
            lc.compile(problem, estimator=lc.IMLE())
    with pytest.raises(errors.NotDCPError):
        lc.compile(cp.Problem(cp.Minimize(c @ x + x[0] * x[1]), [x <= 2]), estimator=lc.IMLE())
    with pytest.raises(errors.BuildError, match="returns"):
        problem = cp.Problem(cp.Minimize(c @ b), [cp.sum(b) == 1])
        lc.compile(problem, variables=[problem.objective], estimator=lc.IMLE())


def quadratic(integer=True, seed=0):
    """min |M x - t|^2 + c'x + 3 over a small box with a budget."""
    rng = np.random.default_rng(seed)
    M, t = rng.standard_normal((4, 3)), rng.standard_normal(4)
    c, x = cp.Parameter(3, name="c"), cp.Variable(3, integer=integer, name="x")
    return cp.Problem(cp.Minimize(cp.sum_squares(M @ x - t) + c @ x + 3.0), [x >= -2, x <= 2, cp.sum(x) <= 1]), c, x, M, t


def test_convex_quadratic_objectives_by_enumeration():
    pytest.importorskip("pyscipopt")
    problem, c, x, M, t = quadratic()
    compiled = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB(step=1.5, scaling="raw"))
    assert compiled.space.oracle == "scip" and "quadratic" in compiled.report()
    points = np.array([z for z in itertools.product(range(-2, 3), repeat=3) if sum(z) <= 1], dtype=float)
    costs = 3 * np.random.default_rng(1).standard_normal((12, 3))

    def best(cost):
        values = ((points @ M.T - t) ** 2).sum(1) + points @ cost + 3.0
        return points[values.argmin()], values.min()

    solution = compiled.solve(costs)
    for cost, z, value in zip(costs, solution.outputs[0], solution.value, strict=True):
        np.testing.assert_array_equal(z, best(cost)[0])
        assert value == pytest.approx(best(cost)[1], abs=1e-9)
    dy = np.random.default_rng(2).standard_normal((12, 3))
    sample = compiled.sample([costs])
    expected = [(best(c + 1.5 * d)[0] - best(c)[0]) / 1.5 for c, d in zip(costs, dy, strict=True)]
    np.testing.assert_allclose(compiled.pull([costs], sample.solutions, sample.noise, [dy])[0], expected, atol=1e-12)
    with pytest.raises(errors.BuildError, match="linear objectives"):
        compiled.loss(lc.losses.SPOPlus(), [costs], {"true": [costs]})


def test_quadratic_objectives_are_refused_where_no_engine_takes_them():
    problem = quadratic()[0]
    for solver in ("highs", "simplex"):
        with pytest.raises(errors.UnsupportedConeError, match=r"quadratic(.|\n)*pyscipopt"):
            lc.compile(problem, estimator=lc.IMLE(), solver=solver)
    if importlib.util.find_spec("pyscipopt") is None:
        with pytest.raises(errors.UnsupportedConeError, match="none of the installed"):
            lc.compile(problem, estimator=lc.IMLE())
    w, x = cp.Parameter(nonneg=True), cp.Variable(2, integer=True)
    with pytest.raises(errors.UnsupportedConeError, match="parameters in the quadratic part"):
        lc.compile(cp.Problem(cp.Minimize(w * cp.sum_squares(x)), [x <= 2, x >= 1]), estimator=lc.Perturbed())


def test_an_estimator_is_needed_and_must_be_one():
    problem = subset()[0]
    with pytest.raises(errors.IntegerVariableError):
        lc.compile(problem)
    with pytest.raises(errors.OptionError, match="estimator"):
        lc.compile(problem, estimator="imle")
    with pytest.raises(errors.OptionError, match="estimator"):
        lc.export(lc.BlackBox(lambda v: v), "numpy")
    with pytest.raises(errors.OptionError, match="solver"):
        lc.compile(problem, estimator=lc.IMLE(), solver="cplex")
    with pytest.raises(errors.NotAProblemError):
        lc.compile(42, estimator=lc.IMLE())


def test_infeasible_and_unbounded_programs_are_named():
    c, x = cp.Parameter(2, name="c"), cp.Variable(2, integer=True)
    infeasible = lc.compile(cp.Problem(cp.Minimize(c @ x), [x[0] + x[1] >= 0.2, x[0] + x[1] <= 0.8]), estimator=lc.DBB(), on_error="flag")
    solution = infeasible.solve(np.ones((2, 2)))
    assert (solution.status == Status.PRIMAL_INFEASIBLE).all() and np.isnan(solution.outputs[0]).all()
    half = lc.compile(cp.Problem(cp.Minimize(c @ x), [x >= 0]), estimator=lc.DBB())
    with pytest.raises(errors.SolveError, match="1 of 3") as caught:
        half.solve(np.array([[1.0, 1.0], [1.0, -1.0], [2.0, 0.5]]))
    assert caught.value.indices == ((1,),)
    assert "unbounded" in str(caught.value)


def test_nan_costs_name_the_instance_and_keep_the_others():
    for name in ("knapsack", "subset"):
        _, c, _, strict = compiled_of(name)
        costs = np.random.default_rng(0).uniform(0.1, 1, (4, *c.shape))
        bad = costs.copy()
        bad[2, 0] = np.nan
        with pytest.raises(errors.NonFiniteInputError, match="batch index 2"):
            strict.sample([bad], [0])
        flagging = compiled_of(name, on_error="flag")[3]
        sample, clean = flagging.sample([bad], [0]), flagging.sample([costs], [0])
        assert sample.status.tolist() == [0, 0, Status.NONFINITE_INPUT, 0]
        keep = [0, 1, 3]
        np.testing.assert_array_equal(sample.outputs[0][keep], clean.outputs[0][keep])
        assert np.isnan(sample.outputs[0][2]).all()
        dy = [np.random.default_rng(1).standard_normal(costs.shape)]
        g = flagging.pull([bad], sample.solutions, sample.noise, dy)[0]
        np.testing.assert_array_equal(g[keep], flagging.pull([costs], clean.solutions, clean.noise, dy)[0][keep])
        assert (g[2] == 0).all()


def test_time_limits_are_kept():
    problem, c, x = knapsack(60, 3, 60.0)
    compiled = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB(), options={"time_limit": 0.05}, on_error="flag")
    solution = compiled.solve(np.random.default_rng(0).uniform(1.0, 1.2, (200, 60)))
    assert (solution.status == Status.TIME_LIMIT).any()
    assert solution.info.time < 5


def test_parameters_in_the_constraints_share_the_time_limit():
    c, w, x = cp.Parameter(60), cp.Parameter((3, 60)), cp.Variable(60, boolean=True)
    problem, estimator = cp.Problem(cp.Maximize(c @ x), [w @ x <= 60.0]), lc.Perturbed(samples=2)
    compiled = lc.compile(problem, parameters=[c, w], estimator=estimator, options={"time_limit": 0.2}, on_error="flag")
    rng = np.random.default_rng(0)
    solution = compiled.solve(rng.uniform(1.0, 1.1, (200, 60)), rng.uniform(3, 8, (200, 3, 60)))
    assert (solution.status == Status.TIME_LIMIT).any() and solution.info.time < 5


def test_empty_batches_and_copies():
    for name in ("knapsack", "path"):
        _, c, _, compiled = compiled_of(name)
        sample = compiled.sample([np.zeros((0, *c.shape))], [0])
        assert sample.outputs[0].shape == (0, *c.shape)
        assert compiled.pull([np.zeros((0, *c.shape))], sample.solutions, sample.noise, [sample.outputs[0]])[0].shape == (0, *c.shape)
        costs = np.random.default_rng(0).uniform(0.1, 1, (2, *c.shape))
        for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
            np.testing.assert_array_equal(other.sample([costs], [4]).outputs[0], compiled.sample([costs], [4]).outputs[0])
            assert other.fingerprint == compiled.fingerprint
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, k=compiled, a=costs: k.sample([a], [4]).outputs[0], range(8)):
                np.testing.assert_array_equal(found, compiled.sample([costs], [4]).outputs[0])


def test_scip_agrees():
    pytest.importorskip("pyscipopt")
    for name in PROBLEMS:
        costs = np.random.default_rng(0).uniform(0.1, 1.0, (4, *PROBLEMS[name]()[1].shape))
        ours, theirs = (compiled_of(name, solver=solver)[3].solve(costs).value for solver in ("highs", "scip"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_an_engine_from_outside_is_one_registration():
    import scipy.optimize

    from layercompiler.solvers.mixed_integer import MixedIntegerEngine, register_mixed_integer

    @register_mixed_integer
    class Scipy(MixedIntegerEngine):
        name = "scipy"

        def prepare(self):
            return self

        def batch(self, costs, deadline):
            p = self.program
            rows = [scipy.optimize.LinearConstraint(p.A.toarray(), p.low, p.high)] if p.m else []
            bounds = scipy.optimize.Bounds(p.lower, p.upper)
            x = [scipy.optimize.milp(c, integrality=p.integer, bounds=bounds, constraints=rows).x for c in costs]
            return np.array(x), np.zeros(len(x), np.int8), np.zeros(len(x), int)

    for name in ("knapsack", "general"):
        costs = np.random.default_rng(0).uniform(0.1, 1.0, (4, *PROBLEMS[name]()[1].shape))
        ours, theirs = (compiled_of(name, solver=solver)[3].solve(costs).value for solver in ("highs", "scipy"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
