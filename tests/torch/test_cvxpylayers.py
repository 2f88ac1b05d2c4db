"""`CvxpyLayer` takes what the peer's class takes, and refuses what it refuses."""

import cvxpy as cp
import pytest
import torch

from layercompiler.compatibility import translate
from layercompiler.errors import OptionError, SolveError
from layercompiler.torch import CvxpyLayer
from tests.torch.fake import difference


@pytest.fixture(scope="module")
def case():
    x, c, A = cp.Variable(3, name="x"), cp.Parameter(3, name="c"), cp.Parameter((2, 3), name="A")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1, A @ x <= 1])
    g = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, dtype=torch.float64, generator=g), torch.randn(2, 3, dtype=torch.float64, generator=g)]
    return problem, [c, A], [x], [v.requires_grad_() for v in values]


def test_a_call_and_its_gradient(case):
    problem, parameters, variables, values = case
    layer = CvxpyLayer(problem, parameters, variables)
    (x,) = layer(*values)
    assert difference(x.sum(-1), torch.ones(4, dtype=torch.float64)) < 1e-12
    assert torch.autograd.gradcheck(layer, values)


@pytest.mark.parametrize(
    "arguments",
    [
        {"eps": 1e-8, "max_iters": 10000, "acceleration_lookback": 0},
        {"solve_method": "ECOS", "abstol": 1e-9, "n_jobs_forward": 1, "n_jobs_backward": 1},
        {"solve_method": "SCS", "eps": 1e-9, "mode": "lsqr"},
        {"solve_method": "Clarabel", "verbose": False, "time_limit_secs": 0},
    ],
)
def test_solver_arguments_of_the_peer(case, arguments):
    problem, parameters, variables, values = case
    expected = CvxpyLayer(problem, parameters, variables)(*values)
    assert difference(CvxpyLayer(problem, parameters, variables)(*values, solver_args=arguments), expected) < 1e-9
    assert difference(CvxpyLayer(problem, parameters, variables, solver="DIFFCP", solver_args=arguments)(*values), expected) < 1e-9


def test_the_engine_that_is_named_is_the_one_that_runs(case):
    problem, parameters, variables, values = case
    layer = CvxpyLayer(problem, parameters, variables, solver=cp.SCS)
    assert set(layer.solve(*values).info.engine) == {"scs"}
    assert set(layer.solve(*values, solver_args={"solve_method": "Clarabel"}).info.engine) == {"clarabel"}


def test_refusals_of_the_peer_are_value_errors(case):
    problem, parameters, variables, (c, A) = case
    layer = CvxpyLayer(problem, parameters, variables)
    for wrong in (
        lambda: CvxpyLayer(problem, parameters[:1], variables),
        lambda: CvxpyLayer(problem, [*parameters, cp.Parameter(name="other")], variables),
        lambda: CvxpyLayer(problem, set(parameters), variables),
        lambda: CvxpyLayer(problem, parameters, variables[0]),
        lambda: CvxpyLayer(problem, parameters, [cp.Variable(name="other")]),
        lambda: CvxpyLayer(cp.Problem(cp.Minimize(parameters[0] @ parameters[0] * variables[0][0])), [parameters[0]], variables),
        lambda: CvxpyLayer(problem, parameters, variables, solver="NOPE"),
        lambda: layer(c),
        lambda: layer(c, A[0]),
        lambda: layer(c, torch.zeros(3, 2, 3, dtype=torch.float64)),
        lambda: layer(c, A, warm_start=True),
        lambda: layer(c, A, solver_args={"epz": 1e-8}),
        lambda: layer(c, A, solver_args={"eps": -1}),
        lambda: layer(c, A, solver_args={"mode": "lpgd"}),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_a_warm_start_is_a_value(case):
    problem, parameters, variables, values = case
    layer = CvxpyLayer(problem, parameters, variables)
    first = layer.solve(*values)
    assert layer.solve(*values, warm_start=first).info.iterations.tolist() == [0] * 4
    assert difference(layer(*values, warm_start=first), first.outputs) < 1e-12
    assert difference(layer(*values, warm_start=False), first.outputs) < 1e-12


def test_failures_are_raised():
    x, p = cp.Variable(name="x"), cp.Parameter(name="p")
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x), [x >= 1, x <= p]), [p], [x])
    with pytest.raises(SolveError, match="infeasible"):
        layer(torch.tensor([2.0, 0.0]))


def test_geometric_program():
    x, y = cp.Variable(pos=True, name="x"), cp.Variable(pos=True, name="y")
    a, b = cp.Parameter(pos=True, name="a"), cp.Parameter(pos=True, name="b")
    problem = cp.Problem(cp.Minimize(x + y), [x * y >= a, x >= b * y])
    layer = CvxpyLayer(problem, [a, b], [x, y], gp=True)
    values = [torch.tensor([2.0, 3.0], dtype=torch.float64).requires_grad_(), torch.tensor(4.0, dtype=torch.float64).requires_grad_()]
    outputs = layer(*values)  # x = b y, x y = a: x = sqrt(a b), y = sqrt(a / b)
    assert difference(outputs, [(values[0] * values[1]).sqrt(), (values[0] / values[1]).sqrt()]) < 1e-9
    assert torch.autograd.gradcheck(layer, values)


def test_translation():
    assert translate(None, None) == (None, {})
    assert translate("SCS", {"eps": 1e-4, "max_iters": 5000}) == ("scs", {"tolerance": 1e-4, "max_iterations": 5000})
    assert translate("ECOS", {"max_iters": 5000, "eps": 1e-14}) == ("ecos", {"tolerance": 1e-11})
    assert translate(None, {"solve_method": "Clarabel", "max_iter": 50}) == ("clarabel", {"max_iterations": 50})
    assert translate("DIFFCP", {"n_jobs_forward": -1, "n_jobs_backward": 2, "eps_abs": 1e-5, "eps_rel": 1e-6}) == (
        None,
        {"workers": 2, "tolerance": 1e-6},
    )
    with pytest.raises(OptionError, match="eps_abs"):
        translate(None, {"eps_abz": 1})
    with pytest.raises(OptionError):
        translate(cp.Variable(), None)
