"""Every mix of forward mode, reverse mode and vmap up to order two equals the closed form; the third order raises."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from layercompiler.errors import UnsupportedTransformError
from layercompiler.torch import Layer
from tests.torch.fake import FakeProblem, closed_form, data, difference

ALL = tuple(range(5))
EXACT = 1e-11


@pytest.fixture
def problem(request):
    return FakeProblem(tag=request.node.name)  # a problem of its own, not an equal one that another test has left


@pytest.fixture
def layer(problem):
    return Layer(problem)


def cubed(function):
    return lambda *a: sum(o.pow(3).sum() for o in function(*a))


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: grad(cubed(f), ALL),
    "jacrev": lambda f: jacrev(f, ALL),
    "jacfwd": lambda f: jacfwd(f, ALL),
    "hessian": lambda f: hessian(cubed(f), ALL),
    "grad of grad": lambda f: grad(lambda *a: sum(g.pow(2).sum() for g in grad(cubed(f), ALL)(*a)), ALL),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f, ALL), ALL),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f, ALL), ALL),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f, ALL), ALL),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f, ALL), ALL),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_equal_the_closed_form(layer, name):
    transform, values = TRANSFORMS[name], data()
    assert difference(transform(layer)(*values), transform(closed_form)(*values)) < EXACT


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_of_transforms(layer, name):
    transform, shared, mapped = TRANSFORMS[name], data(seed=1), data(4, seed=2)
    values, dims = [mapped[0], shared[1], mapped[2].movedim(0, 1), shared[3], mapped[4]], (0, None, 1, None, 0)
    assert difference(vmap(transform(layer), dims)(*values), vmap(transform(closed_form), dims)(*values)) < EXACT


@pytest.mark.parametrize("name", ["value", "grad", "jacrev", "jacfwd", "hessian"])
def test_vmap_over_parameters_with_batch_dimensions_of_their_own(layer, name):
    transform, wide = TRANSFORMS[name], data(4, 2)
    values = [wide[0], wide[1][:, 0], wide[2][:, :1], wide[3][0], wide[4].movedim(0, 1)]  # batches (2,), (), (1,), (2,), (2,)
    dims = (0, 0, 0, None, 1)
    assert difference(vmap(transform(layer), dims)(*values), vmap(transform(closed_form), dims)(*values)) < EXACT


@pytest.mark.parametrize("name", ["value", "grad", "jacfwd of jacrev"])
def test_nested_vmap(layer, name):
    transform, first, other = TRANSFORMS[name], data(4, seed=1), data(3, seed=2)
    values = [first[0], other[1], data()[2], first[3], data()[4]]
    inner, outer = (None, 0, None, None, None), (0, None, None, 0, None)
    assert (
        difference(vmap(vmap(transform(layer), inner), outer)(*values), vmap(vmap(transform(closed_form), inner), outer)(*values)) < EXACT
    )


@pytest.mark.parametrize("name", ["grad", "jacrev", "hessian"])
def test_transforms_of_vmap(layer, name):
    transform, mapped = TRANSFORMS[name], data(4)
    values, dims = [mapped[0], data()[1], mapped[2], mapped[3], data()[4]], (0, None, 0, 0, None)
    assert difference(transform(vmap(layer, dims))(*values), transform(vmap(closed_form, dims))(*values)) < EXACT


def test_one_evaluation_serves_all_derivatives(problem, layer):
    mapped = data(4)
    vmap(hessian(cubed(layer), ALL))(*mapped)
    jacrev(layer, ALL)(*mapped)
    jacfwd(layer, ALL)(*mapped)
    cubed(layer)(*data(3, grad=True)).backward()
    assert (problem.evaluations, problem.restored) == (4, 0)


def test_gradcheck_in_both_modes(layer):
    values = data(2, grad=True)
    checks = {"check_batched_grad": True, "check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(layer, values, **checks)
    assert torch.autograd.gradgradcheck(layer, data(grad=True), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_autograd_functional(layer, strategy):
    values, functional = tuple(data()), torch.autograd.functional
    ours = functional.jacobian(layer, values, vectorize=True, strategy=strategy)
    assert difference(ours, functional.jacobian(closed_form, values)) < EXACT
    ours = functional.hessian(cubed(layer), values, vectorize=True, outer_jacobian_strategy=strategy)
    assert difference(ours, functional.hessian(cubed(closed_form), values)) < EXACT
    assert difference(functional.jvp(layer, values, values), functional.jvp(closed_form, values, values)) < EXACT


@pytest.mark.parametrize("wanted", [False, True])
def test_dual_numbers(layer, wanted):
    values, tangents = data(), data(seed=1)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v.clone().requires_grad_(wanted), t) for v, t in zip(values, tangents, strict=True)]
        ours = [forward_ad.unpack_dual(o).tangent for o in layer(*duals)]
    assert difference(ours, jvp(closed_form, tuple(values), tuple(tangents))[1]) < EXACT


@pytest.mark.parametrize("create_graph", [False, True])
def test_tangents_of_a_backward_pass(layer, create_graph):
    values, tangents = data(), data(seed=1)
    leaves = [v.clone().requires_grad_() for v in values]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v, t) for v, t in zip(leaves, tangents, strict=True)]
        gradients = torch.autograd.grad(cubed(layer)(*duals), leaves, create_graph=create_graph)
        ours = [forward_ad.unpack_dual(g).tangent for g in gradients]
    assert difference(ours, jvp(grad(cubed(closed_form), ALL), tuple(values), tuple(tangents))[1]) < EXACT


@pytest.mark.parametrize("outer, middle, inner", list(itertools.product([jacrev, jacfwd], repeat=3)))
def test_third_order_raises(layer, outer, middle, inner):
    with pytest.raises(UnsupportedTransformError, match="third derivative"):
        outer(middle(inner(layer)))(*data())


def test_functions_that_outlive_their_transform(layer):
    values, cotangents = tuple(data()), closed_form(*data(seed=1))
    expected = vjp(closed_form, *values)[1](cotangents)
    assert difference(vjp(layer, *values)[1](cotangents), expected) < EXACT
    assert difference(linearize(layer, *values)[1](*values), jvp(closed_form, values, values)[1]) < EXACT
    assert difference(jacrev(layer, ALL, chunk_size=1)(*values), jacrev(closed_form, ALL)(*values)) < EXACT
    assert difference(vmap(layer, chunk_size=2)(*data(5)), closed_form(*data(5))) < EXACT
    none = [c.expand(0, *c.shape) for c in cotangents]
    assert vmap(vjp(layer, *values)[1])(tuple(none))[0].shape == (0, 3, 3)


def test_third_order_of_a_graph_raises(layer):
    values = data(grad=True)
    first = torch.autograd.grad(cubed(layer)(*values), values, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), values, create_graph=True)
    with pytest.raises(UnsupportedTransformError, match="third derivative"):
        torch.autograd.grad(sum(g.pow(2).sum() for g in second), values)


def test_an_edit_in_place_between_forward_and_backward_raises(layer):
    P, *rest = data(grad=True)
    P = P.detach().clone()
    out = layer(P, *rest)[0].sum()
    P.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_outputs_may_be_edited_in_place(layer):
    values = data(grad=True)
    x, *_ = layer(*values)
    gradients = torch.autograd.grad(x.mul_(3).sum(), values)
    assert difference(gradients, grad(lambda *a: 3 * closed_form(*a)[0].sum(), ALL)(*[v.detach() for v in values])) < EXACT


def test_a_second_backward_needs_the_graph(layer):
    values = data(grad=True)
    out = cubed(layer)(*values)
    out.backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_checkpointing_and_offloading_restore_the_evaluation(layer):
    values = data(grad=True)
    expected = torch.autograd.grad(cubed(closed_form)(*values), values)
    again = torch.utils.checkpoint.checkpoint(cubed(layer), *values, use_reentrant=False)
    assert difference(torch.autograd.grad(again, values), expected) < EXACT
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        out = cubed(layer)(*values)
    assert difference(torch.autograd.grad(out, values), expected) < EXACT
    assert layer.compiled.restored == 1
