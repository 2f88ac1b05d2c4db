"""Programs spelled out in scalars equal the framework's own evaluation, derivatives included, and so do whole solves."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler import arrays, kernels
from layercompiler.solvers.least_squares.native import Native, UnsupportedError
from layercompiler.solvers.least_squares.solver import pull
from tests.least_squares.problems import curve_fit, curves, pose_graph
from tests.least_squares.test_dsl import PROBLEMS

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
TIGHT = 1e-12


def near(a, b):
    b = np.asarray(b)
    assert np.abs(a - b).max(initial=0.0) <= TIGHT * (np.abs(b).max(initial=0.0) + 1e-3)


def equal(program, theta, values, shared, widen=1.0):
    """The compiled evaluation of a program is torch's."""
    prepared = lc.plan.least_squares.Prepared(program, "torch", "levenberg_marquardt", "raise", lc.LeastSquaresOptions())
    e, xp = prepared.solver.evaluation, arrays.get("torch")
    native = Native(e)
    theta = [torch.tensor(np.asarray(t, float)) for t in theta]
    given = native.arrays(theta, shared, widen)
    found, want = native.evaluate(values, *given), e.linearize(torch.tensor(values), theta, shared, widen)
    for name in found._fields:
        near(getattr(found, name), getattr(want, name))
    n = native.structure.n
    light = [np.zeros(len(values)), np.zeros(len(values)), np.zeros((len(values), n)), np.zeros((len(values), n))]
    for tape in native.light:
        tape.run(len(values), [values, np.zeros((len(values), 0)), *given[0]], [values.shape[1], 0, *given[1]], light, [1, 1, n, n])
    for a, name in zip(light, ("cost", "energy", "gradient", "diagonal"), strict=True):
        near(a, getattr(want, name))
    cotangent = np.random.default_rng(1).standard_normal(values.shape)
    near(native.lift(values, cotangent), e.lift(values, cotangent))
    if widen == 1.0:
        near(native.hessian(values, *given), e.hessian(torch.tensor(values), theta, shared))
        u = np.random.default_rng(0).standard_normal((len(values), native.structure.n))
        for a, b in zip(native.pull(values, u, *given), pull(xp, e, torch.tensor(values), torch.tensor(u), theta, shared), strict=True):
            near(a, b)


def program(problem):
    return problem.lower("torch")


@pytest.mark.parametrize("loss", ["Huber", "PseudoHuber", "Cauchy", "Welsch", "GemanMcClure"])
def test_losses(loss):
    values = np.random.default_rng(0).uniform(0.5, 1.5, (3, 3))
    equal(program(curve_fit(robust=getattr(lc, loss)(2.0))), [curves(3, 0.1)], values, (False,))
    few = lc.GemanMcClure(2.0, graduated=True)
    equal(program(curve_fit(robust=few)), [curves(3, 0.1)], values, (False,), 64.0)


@pytest.mark.parametrize("name", ["SO2", "SE2", "SO3", "SE3"])
def test_groups_with_weights_of_every_kind(name):
    rng = np.random.default_rng(0)
    for kind in ("diagonal", "scale", "full"):
        problem, measured, start = pose_graph(name, 9, 2, 0.3, robust=lc.Huber("r"))
        (f,), E, dof = problem.factors, measured.shape[1], problem.parameters["w"][1]
        shape = {"diagonal": (E, dof), "scale": (E,), "full": (dof, dof)}[kind]
        wrapper = {"diagonal": lc.Diagonal, "scale": lc.Scale, "full": lc.Full}[kind]
        between = lc.factor(f.residual, on=f.on, index=np.stack(f.index, 1), data="Z", weight=wrapper("w"), robust=lc.Huber("r"))
        changed = lc.LeastSquares(problem.variables, [between], {**problem.parameters, "w": shape})
        w = np.eye(dof) + 0.3 * rng.standard_normal(shape) if kind == "full" else rng.uniform(0.5, 1.5, shape)
        equal(program(changed), [measured, w, 0.3], start.reshape(2, -1), (False, True, True))


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_problems_of_the_dsl(name):
    problem, parameters, outputs, _ = PROBLEMS[name]()
    inner = lc.compile(problem, parameters=parameters, variables=outputs).program.inner
    rng = np.random.default_rng(1)
    theta = [rng.uniform(0.5, 1.5, (2, *p.shape)) for p in inner.parameters]
    values = np.concatenate([v.init.reshape(-1) for v in inner.variables]) + 0.2 * rng.standard_normal((2, int(inner.ambient_offsets[-1])))
    equal(inner, theta, values, (False,) * len(theta))


def zoo(x, a, M):
    """Many operations of torch in one residual."""
    y = M @ x
    parts = [
        torch.where(y > 0.1, y * a, torch.exp(-y)),
        torch.atan2(y, 1 + a * a),
        (y**2 + 1) ** 0.3,
        torch.sigmoid(a * y).cumsum(0),
        y.sinh().asinh() - a,
        torch.maximum(y, a),
        torch.minimum(y, a * 0.3),
        torch.clamp(y, -0.2, 0.3),
        torch.linalg.norm(torch.stack([y, a]), dim=0),
        y.flip(0) / (1.5 + y.tanh()),
        torch.outer(y, a).diagonal(),
        (M @ M.T) @ y,
        torch.erf(y).abs(),
        2.0**y - 1.0,
        torch.log1p(y * y),
        torch.relu(y),
        torch.roll(y, 1)[[2, 0, 1]],
        torch.rsqrt(1 + y * y),
        torch.stack([y.amax(), a.prod(), y.mean()]),
    ]
    return torch.cat(parts)


def test_operations_of_torch():
    problem = lc.LeastSquares({"x": lc.Euclidean(3)}, [lc.factor(zoo, on="x", data=("a", "M"))], {"a": (3,), "M": (3, 3)})
    rng = np.random.default_rng(2)
    theta = [rng.uniform(0.5, 1.5, (4, 3)), rng.standard_normal((4, 3, 3))]
    equal(program(problem), theta, rng.standard_normal((4, 3)), (False, False))


def test_a_factor_that_reads_one_element_twice():
    problem = lc.LeastSquares(
        {"x": lc.Euclidean(3, 2)},
        [
            lc.factor(lambda xp, a, b: xp.sin(a) * b + 2 * a, on=("x", "x"), index=np.array([[0, 1], [1, 1], [2, 0]])),
            lc.factor(lambda xp, x, y: x * y - 1.0 + x, on=("x", "x")),
        ],
    )
    x = np.random.default_rng(0).standard_normal((2, 6))
    equal(program(problem), [], x, ())
    e = lc.compile(problem).prepare("torch").solver.evaluation
    s = e.structure
    H = np.zeros((2, 6, 6))
    H[:, s.rows, s.cols] = e.hessian(torch.tensor(x), (), ())
    for k in range(2):
        want = torch.autograd.functional.hessian(lambda v: e.objective(v[None], (), ())[0], torch.tensor(x[k]))
        np.testing.assert_allclose(np.triu(H[k]), np.triu(want), atol=1e-12)


def test_what_has_no_scalar_form_stays_with_the_framework():
    problem = lc.LeastSquares(
        {"x": lc.Euclidean(2, 2, init=np.eye(2))}, [lc.factor(lambda x, a: torch.linalg.inv(x) - a, on="x", data="a")], {"a": (2, 2)}
    )
    a = torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    prepared = lc.compile(problem).prepare("torch")
    with pytest.raises(UnsupportedError):
        Native(prepared.solver.evaluation)
    np.testing.assert_allclose(lc.export(problem, "torch")(a)[0], torch.linalg.inv(a), atol=1e-10)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton", "dogleg"])
def test_solves_are_those_of_the_framework(method):
    y = torch.tensor(curves(70, 0.3))
    fast, plain = (lc.export(curve_fit(), "torch", solver=method, on_error="flag", options={"trace": trace}) for trace in (True, False))
    a, b = fast.solve(y), plain.solve(y)
    np.testing.assert_array_equal(a.status, b.status)
    ok = a.info.ok
    assert ok.sum() > 60
    np.testing.assert_allclose(a.outputs[0][ok], b.outputs[0][ok], atol=1e-9)
    np.testing.assert_allclose(a.info.cost[ok], b.info.cost[ok], rtol=1e-12)
    assert np.abs(a.info.iterations - b.info.iterations)[ok].max() <= 1


def test_batches_are_singles_bit_for_bit():
    y = torch.tensor(curves(21, 0.3))
    layer = lc.export(curve_fit(), "torch")
    (x,) = layer(y)
    for i in (0, 5, 20):
        np.testing.assert_array_equal(layer(y[i])[0], x[i])


@pytest.mark.parametrize("solver", ["gauss_newton", "levenberg_marquardt"])
@pytest.mark.parametrize("name", ["SE2", "SE3"])
def test_packs_are_singles_bit_for_bit(name, solver):
    problem, measured, start = pose_graph(name, 14, 11, 0.05)
    rng = np.random.default_rng(2)
    start[3, 1:, -2:] += 4 * rng.standard_normal(start[3, 1:, -2:].shape)  # goes on when the others of its pack are done
    weights = torch.tensor(rng.uniform(0.5, 2, (11, *measured.shape[1:-1], problem.parameters["w"][-1])), requires_grad=True)
    layer, z = lc.export(problem, "torch", solver=solver, on_error="flag"), torch.tensor(measured)
    (x,) = layer(z, weights, torch.tensor(1.0), init={"X": start})
    (g,) = torch.autograd.grad((x * x).nansum(), weights)
    assert int(torch.isfinite(x).all(dim=(1, 2)).sum()) >= 10
    for i in (0, 3, 7, 8, 10):
        one = weights[i].detach().requires_grad_()
        (alone,) = layer(z[i], one, torch.tensor(1.0), init={"X": start[i]})
        np.testing.assert_array_equal(alone.detach(), x[i].detach())
        np.testing.assert_array_equal(torch.autograd.grad((alone * alone).nansum(), one)[0], g[i])


def test_instances_that_resist_newtons_method_converge_and_leave_the_others_alone():
    problem, measured, start = pose_graph("SE2", 300, 8, 0.2)
    weights, layer = torch.ones(measured.shape[1], 3, dtype=torch.float64), lc.export(problem, "torch", solver="gauss_newton")
    found = layer.solve(torch.tensor(measured), weights, torch.tensor(1.0), init={"X": start})
    assert found.residual.max() <= 1e-12
    assert found.info.iterations.max() > 1.5 * np.median(found.info.iterations)
    for i in range(8):
        one = layer.solve(torch.tensor(measured[i]), weights, torch.tensor(1.0), init={"X": start[i]})
        np.testing.assert_array_equal(one.outputs[0], found.outputs[0][i])
        for name in ("cost", "gradient", "residual", "iterations"):
            assert getattr(one.info, name) == getattr(found.info, name)[i]


def test_every_instance_is_solved_to_the_last_digits():
    """Steps with old factors must not end a solve early: the gradient is taken at the returned point."""
    problem, measured, start = pose_graph("SE2", 60, 256, 0.05)
    weights = torch.ones(measured.shape[1], problem.parameters["w"][1], dtype=torch.float64)
    solution = lc.export(problem, "torch", solver="gauss_newton").solve(
        torch.tensor(measured), weights, torch.tensor(1.0), init={"X": start}
    )
    assert solution.residual.max() <= 1e-12


def test_closed_over_numbers_that_change_are_seen():
    times, weights = torch.linspace(0, 1, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    factor = lc.factor(lambda x, y: weights * (x[0] * torch.exp(x[1] * times) - y), on="x", data="y")
    problem = lc.LeastSquares({"x": lc.Euclidean(2, init=[1.0, 0.0])}, [factor], {"y": (5,)})
    layer, y = lc.export(problem, "torch"), 2 * torch.exp(-times) + 0.3 * torch.sin(9 * times)
    before = layer(y)[0]
    weights[2] = 5.0
    (after,), (afresh,) = layer(y), lc.export(problem, "torch")(y)
    assert (after - before).abs().max() > 1e-2
    np.testing.assert_allclose(after, afresh, atol=1e-12)
