"""torch.compile and torch.export: the whole graph, forward and backward, and what they cannot do raises."""

import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from layercompiler.torch import Layer
from tests.torch.fake import FakeProblem, closed_form, data, difference

ALL = tuple(range(5))
EXACT = 1e-11


@pytest.fixture
def layer(request):
    torch._dynamo.reset()
    return Layer(FakeProblem(tag=request.node.name))  # a problem of its own, not an equal one that another test has left


def cubed(function):
    return lambda *a: sum(o.pow(3).sum() for o in function(*a))


def whole(function, **options):
    return torch.compile(function, fullgraph=True, backend=options.pop("backend", "aot_eager"), **options)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_forward_and_backward_in_one_graph(layer, backend):
    values = data(3, grad=True)
    assert difference(whole(layer, backend=backend)(*values), closed_form(*values)) < EXACT
    ours = torch.autograd.grad(whole(cubed(layer), backend=backend)(*values), values)
    assert difference(ours, torch.autograd.grad(cubed(closed_form)(*values), values)) < EXACT
    assert layer.compiled.restored == 0  # the backward graph finds the evaluation of the forward graph


def test_calls_by_name_and_with_numbers(layer):
    P, q, A, b, _ = values = data()
    compiled = whole(lambda P, q, A, b: layer(P, b=b, A=A, q=q, s=0.5))
    assert difference(compiled(P, q, A, b), closed_form(*values[:4], torch.tensor(0.5, dtype=torch.float64))) < EXACT


def test_dynamic_batch_and_dtype(layer):
    compiled = whole(layer, dynamic=True)
    for size in (3, 5, 7):
        values = data(size)
        assert difference(compiled(*values), closed_form(*values)) < EXACT
    assert [o.dtype for o in compiled(*[v.float() for v in data(4)])] == [torch.float32] * 3


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(cubed(f), ALL),
        lambda f: vmap(f),
        lambda f: vmap(grad(cubed(f), ALL)),
        lambda f: jacrev(f, ALL),
        lambda f: jacfwd(f, ALL),
        lambda f: hessian(cubed(f), ALL),
        lambda f: lambda *a: jvp(f, a, a),
    ],
    ids=["grad", "vmap", "vmap of grad", "jacrev", "jacfwd", "hessian", "jvp"],
)
def test_transforms_inside_the_graph(layer, transform):
    values = data(2)
    assert difference(whole(transform(layer))(*values), transform(closed_form)(*values)) < EXACT


def test_forward_mode_inside_and_around_the_graph(layer):
    values, tangents = tuple(data()), tuple(data(seed=1))
    expected = jvp(closed_form, values, tangents)[1]

    def tangent_of(function, wanted=False):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(v.clone().requires_grad_(wanted), t) for v, t in zip(values, tangents, strict=True)]
            return [forward_ad.unpack_dual(o).tangent for o in function(*duals)]

    def inside(*a):
        with forward_ad.dual_level():
            out = layer(*[forward_ad.make_dual(v, t) for v, t in zip(a[:5], a[5:], strict=True)])
            return [forward_ad.unpack_dual(o).tangent for o in out]

    assert difference(whole(inside)(*values, *tangents), expected) < EXACT
    compiled = whole(layer)
    compiled(*values)
    assert difference(tangent_of(compiled), expected) < EXACT
    with pytest.raises(NotImplementedError):
        tangent_of(compiled, wanted=True)
    with pytest.raises(Exception, match=r"torch\.func\.jvp"):
        jvp(compiled, values, tangents)


def test_double_backward_through_a_graph_raises(layer):
    values = data(grad=True)
    first = torch.autograd.grad(whole(cubed(layer))(*values), values, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(sum(g.sum() for g in first), values)


@pytest.mark.parametrize("strict", [False, True])
def test_export(layer, strict):
    values, tangents = tuple(data()), tuple(data(seed=1))
    program = torch.export.export(layer, values, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    for module in (program.module(), program.run_decompositions().module(), torch.export.load(buffer).module()):
        assert difference(module(*values), closed_form(*values)) < EXACT
        assert difference(jvp(module, values, tangents), jvp(closed_form, values, tangents)) < EXACT
        assert difference(grad(cubed(module), ALL)(*values), grad(cubed(closed_form), ALL)(*values)) < EXACT


def test_export_with_a_dynamic_batch(layer):
    size = torch.export.Dim("batch")
    program = torch.export.export(layer, tuple(data(4)), dynamic_shapes={"tensors": ({0: size},) * 5})
    values = data(7)
    assert difference(program.module()(*values), closed_form(*values)) < EXACT


def test_an_exported_program_keeps_the_problem(layer):
    values = tuple(data())
    program = torch.export.export(Layer(FakeProblem(4, 2)), tuple(data(n=4)))
    del layer
    assert program.module()(*data(n=4))[0].shape == (4,)
    assert len(values) == 5


def test_make_fx_traces_operators(layer):
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(grad(cubed(layer), ALL))(*data())
    values = data(seed=3)
    assert difference(traced(*values), grad(cubed(closed_form), ALL)(*values)) < EXACT
    assert "layercompiler.solve" in traced.code


def test_compiled_autograd(layer):
    values = data(grad=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        cubed(layer)(*values).backward()
    assert difference([v.grad for v in values], torch.autograd.grad(cubed(closed_form)(*values), values)) < EXACT


@pytest.mark.filterwarnings("ignore")
def test_a_traced_module_bakes_no_numbers_in(layer):
    traced = torch.jit.trace(layer, tuple(data()))
    values = data(seed=1, grad=True)
    assert difference(traced(*values), closed_form(*values)) < EXACT
    ours = torch.autograd.grad(cubed(traced)(*values), values)
    assert difference(ours, torch.autograd.grad(cubed(closed_form)(*values), values)) < EXACT


def test_fake_tensors_have_shapes(layer):
    with FakeTensorMode() as mode:
        outputs = layer(*[mode.from_tensor(v) for v in data(4)])
    assert [tuple(o.shape) for o in outputs] == [(4, 3), (4, 2), (4,)]
    assert layer.compiled.evaluations == 0


def test_the_operators_keep_their_contract_with_torch(layer):
    values, name = data(2, grad=True), layer._bound.name
    *outputs, z = torch.ops.layercompiler.solve(values, None, "", name)
    outputs = [o.detach().clone() for o in outputs]
    for operator, arguments in (
        ("solve", (values, None, "", name)),
        ("vjp", (values, z, outputs, name)),
        ("jvp", (values, z, data(2, seed=1), name)),
    ):
        assert set(torch.library.opcheck(getattr(torch.ops.layercompiler, operator).default, arguments).values()) == {"SUCCESS"}
