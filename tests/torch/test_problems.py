"""Real problems of every kind through the torch layer: both modes, both orders, vmap, compile, batch against singles."""

import copy
import pickle

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_map

from layercompiler.torch import Layer
from tests.torch.fake import difference
from tests.torch.problems import PROBLEMS, compiled_with_data


@pytest.fixture(scope="module", params=PROBLEMS)
def case(request):
    """A function of the parameters, and double tensors at which it is smooth."""
    compiled, values = compiled_with_data(request.param)
    layer = Layer(compiled)
    if request.param != "sdp":
        return layer, values
    return (lambda S: layer((S + S.mT) / 2)), values  # a symmetric parameter: probe it inside its domain


def every(values):
    return tuple(range(len(values)))


def cubed(function):
    return lambda *a: sum(o.pow(3).sum() for o in function(*a))


def stacked(values):
    return [torch.stack([v, 1.01 * v, 0.98 * v]) for v in values]


def one_by_one(function, batch):
    return tree_map(lambda *parts: torch.stack(parts), *(function(*[b[i] for b in batch]) for i in range(3)))


def test_first_order(case):
    function, values = case
    values = [v.clone().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True, check_batched_grad=True)


def test_second_order(case):
    function, values = case
    leaves = [v.clone().requires_grad_() for v in values]
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)
    reference = jacrev(jacrev(function, every(values)), every(values))(*values)
    for outer, inner in ((jacrev, jacfwd), (jacfwd, jacrev), (jacfwd, jacfwd)):
        assert difference(outer(inner(function, every(values)), every(values))(*values), reference) < 1e-10


def test_batch_and_vmap_equal_singles(case):
    function, values = case
    batch = stacked(values)
    assert difference(function(*batch), one_by_one(function, batch)) < 1e-12
    for transform in (lambda f: f, lambda f: grad(cubed(f), every(values)), lambda f: hessian(cubed(f), every(values))):
        assert difference(vmap(transform(function))(*batch), one_by_one(transform(function), batch)) < 1e-10


def test_compiled(case):
    function, values = case
    torch._dynamo.reset()
    leaves = [v.clone().requires_grad_() for v in values]
    whole = torch.compile(cubed(function), fullgraph=True, backend="aot_eager")
    assert difference(torch.autograd.grad(whole(*leaves), leaves), torch.autograd.grad(cubed(function)(*leaves), leaves)) < 1e-12
    tangent = torch.compile(lambda *h: jvp(function, tuple(values), h)[1], fullgraph=True, backend="aot_eager")
    assert difference(tangent(*values), jvp(function, tuple(values), tuple(values))[1]) < 1e-12


@pytest.mark.parametrize("kind", PROBLEMS)
def test_single_precision_copies_and_warm_starts(kind):
    compiled, values = compiled_with_data(kind)
    layer = Layer(compiled)
    expected = layer(*values)
    single = layer(*[v.float() for v in values])
    assert {o.dtype for o in single} == {torch.float32}
    assert difference([o.double() for o in single], expected) < 1e-5
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(torch.equal(a, b) for a, b in zip(other(*values), expected, strict=True))
    solution = layer.solve(*values)
    again = layer.solve(*values, warm_start=solution)
    assert again.info.iterations == 0
    assert difference(again.outputs, expected) < 1e-12
    assert float(solution.residual) < 1e-11
    assert difference(solution.value, torch.as_tensor(compiled.solve(*[v.numpy() for v in values]).value)) < 1e-12


def test_a_single_precision_matrix_is_symmetric_up_to_its_rounding():
    compiled, (S,) = compiled_with_data("sdp")
    S = S.float()
    S[0, 1] *= 1 + 1e-6
    assert Layer(compiled)(S)[0].dtype == torch.float32
    assert Layer(compiled)(S.bfloat16())[0].dtype == torch.bfloat16
    compiled_graph = torch.compile(Layer(compiled), fullgraph=True, backend="aot_eager")
    assert compiled_graph(S)[0].dtype == torch.float32


def test_options_of_a_call():
    compiled, values = compiled_with_data("qp", on_error="flag")
    layer = Layer(compiled)
    solution = layer.solve(*values, options={"max_iterations": 1})
    assert solution.status.tolist() == 3
    assert solution.outputs[0].isnan().all()
    assert not layer(*values)[0].isnan().any()


def test_a_layer_of_no_parameters():
    import cvxpy as cp

    from layercompiler.export import export

    x = cp.Variable(2, name="x")
    layer = export(cp.Problem(cp.Minimize(cp.sum_squares(x - 1))), "torch")
    assert difference(layer()[0].double(), torch.ones(2, dtype=torch.float64)) < 1e-7


def test_problems_that_differ_in_a_sign_are_not_mixed_up():
    import cvxpy as cp

    from layercompiler.export import export

    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    distance = cp.sum_squares(x - p) + cp.sum(x)
    near, far = cp.Problem(cp.Minimize(distance)), cp.Problem(cp.Maximize(-distance))
    layers = [export(problem, "torch", variables=[problem.objective]) for problem in (near, far)]
    values = [layer(torch.zeros(2, dtype=torch.float64))[0] for layer in layers]
    assert difference(values[0], -values[1]) < 1e-12
    again = pickle.loads(pickle.dumps(layers[1]))
    assert again._bound.name == layers[1]._bound.name != layers[0]._bound.name
