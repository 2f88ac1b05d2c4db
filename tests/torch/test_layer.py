"""The layer as a module: shapes, dtypes, devices, arguments, copies, checkpoints, failures."""

import copy
import gc
import io
import pickle
import threading

import numpy as np
import pytest
import torch

from layercompiler.errors import DtypeError, InputError, ShapeError, SolveError, StoreError, UnsupportedTransformError
from layercompiler.torch import Layer
from tests.torch.fake import FakeProblem, closed_form, data, difference


@pytest.fixture
def layer():
    return Layer(FakeProblem())


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.mark.parametrize("batch", [(), (0,), (1,), (5,), (2, 5)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_batches_and_dtypes(layer, batch, dtype):
    values = [v.to(dtype).requires_grad_() for v in data(*batch)]
    outputs = layer(*values)
    assert [o.dtype for o in outputs] == [dtype] * 3
    assert [o.shape for o in outputs] == [(*batch, 3), (*batch, 2), batch]
    gradients = torch.autograd.grad(sum(o.sum() for o in outputs), values)
    assert [(g.dtype, g.shape) for g in gradients] == [(dtype, v.shape) for v in values]
    assert difference([o.double() for o in outputs], closed_form(*[v.double() for v in values])) < TOLERANCE[dtype]


def test_broadcasting(layer):
    wide, single, rows = data(5), data(), data(2, 1)
    values = [wide[0], single[1], rows[2], wide[3][:1], single[4]]
    values = [v.requires_grad_() for v in values]
    assert layer(*values)[0].shape == (2, 5, 3)
    ours = torch.autograd.grad(sum(o.pow(2).sum() for o in layer(*values)), values)
    assert difference(ours, torch.autograd.grad(sum(o.pow(2).sum() for o in closed_form(*values)), values)) < 1e-12


def test_arguments_of_every_kind(layer):
    values = data()
    expected = closed_form(*values)
    P, q, A, b, s = values
    for call in (
        lambda: layer(P.tolist(), q.numpy(), A, b, float(s)),
        lambda: layer(P=P, q=q, A=A, b=b, s=s),
        lambda: layer(P, q, s=s, b=b, A=A),
        lambda: layer(*[v.numpy() for v in values]),
        lambda: layer(*[torch.nn.Parameter(v) for v in values]),
    ):
        assert difference(call(), expected) < 1e-12
    assert layer(*[v.tolist() for v in values])[0].dtype == torch.get_default_dtype()
    assert layer(P.float(), q.tolist(), A.numpy(), b.float(), s.float())[0].dtype == torch.float32  # tensors decide
    assert layer(P.float(), q, A.float(), b.float(), s.float())[0].dtype == torch.float64
    integers = [P.float(), q.float(), A.float(), torch.ones(2, dtype=torch.int64), torch.tensor(True)]
    assert difference([o.double() for o in layer(*integers)], closed_form(*[i.double() for i in integers])) < 1e-5


def test_arrays_that_torch_cannot_hold(layer):
    """Negative strides and foreign byte order are numbers of numpy all the same."""
    arrays = [v.numpy() for v in data(4)]
    turned = [np.ascontiguousarray(a[::-1])[::-1] for a in arrays]
    assert all(a.strides[0] < 0 for a in turned)
    for given in (turned, [a.astype(">f8") for a in arrays]):
        assert difference(layer(*given), layer(*arrays)) == 0.0


def test_wrong_arguments_raise(layer):
    P, q, A, b, s = data()
    with pytest.raises(ShapeError):
        layer(P, q, A, b)
    with pytest.raises(ShapeError):
        layer(P, q, A, b, z=s)
    with pytest.raises(ShapeError, match="'q'"):
        layer(P, q[:2], A, b, s)
    with pytest.raises(DtypeError, match="complex"):
        layer(P, q * 1j, A, b, s)
    with pytest.raises(DtypeError, match="complex"):
        layer(P, [1j, 0, 0], A, b, s)
    with pytest.raises(DtypeError, match="'b'"):
        layer(P, q, A, "b", s)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device():
    layer = Layer(FakeProblem())
    values = [v.cuda().requires_grad_() for v in data(4)]
    outputs = layer(*values)
    assert all(o.is_cuda for o in outputs)
    gradients = torch.autograd.grad(sum(o.sum() for o in outputs), values)
    assert all(g.is_cuda for g in gradients)
    host = [v.detach().cpu().requires_grad_() for v in values]
    assert difference([g.cpu() for g in gradients], torch.autograd.grad(sum(o.sum() for o in closed_form(*host)), host)) < 1e-12
    assert layer(values[0], *[v.detach().cpu() for v in values[1:]])[0].is_cuda


def test_tensors_of_two_devices_raise(layer):
    values = data()
    with pytest.raises((InputError, NotImplementedError)):
        layer(values[0].to("meta"), *values[1:])


def test_autocast(layer):
    linear = torch.nn.Linear(4, 3)
    P, _, A, b, s = (v.float() for v in data())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = linear(torch.randn(6, 4))
        x, *_ = layer(P.bfloat16(), q, A.bfloat16(), b.bfloat16(), s.bfloat16())
        assert q.dtype == x.dtype == torch.bfloat16
        x.float().pow(2).sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    assert linear.weight.grad.abs().sum() > 0


def test_repr_and_copies(layer):
    assert repr(layer) == "Layer(5 parameters (P (3, 3), ...), outputs x (3,))"
    values = data(2, grad=True)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    moved = copy.deepcopy(layer).to(torch.float32).train().eval()
    for other in (moved, pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert difference(other(*values), closed_form(*values)) < 1e-12
        assert other._bound.name == layer._bound.name
    x, *_ = layer(*values)
    copy.deepcopy(layer)  # also with a graph alive
    x.sum().backward()


def test_state_dict_holds_the_fingerprint_alone_and_checks_it(layer):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layer)
    state = model.state_dict()
    assert set(state) == {"0.weight", "0.bias", "1._extra_state"}
    assert state["1._extra_state"] == layer.compiled.fingerprint
    model.load_state_dict(state)
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), Layer(FakeProblem(4, 2)))
    with pytest.raises(StoreError, match="another problem"):
        other.load_state_dict(state)
    assert list(layer.parameters()) == list(layer.buffers()) == []


def test_solve_tells_about_each_instance(layer):
    values = data(4, grad=True)
    solution = layer.solve(*values)
    assert solution.status.tolist() == [0, 0, 0, 0]
    assert solution.info.ok.all()
    assert set(solution.values) == {"x", "y", "t"}
    assert difference(solution.outputs, closed_form(*values)) < 1e-12
    solution.values["x"].sum().backward()
    assert values[1].grad.shape == (4, 3)
    assert difference(layer(*values, warm_start=solution), solution.outputs) < 1e-12
    with pytest.raises(UnsupportedTransformError, match="solve"):
        torch.func.grad(lambda q: layer.solve(values[0], q, *values[2:]).outputs[0].sum())(values[1].detach())


def test_solve_of_an_empty_batch(layer):
    solution = layer.solve(*data(0))
    assert solution.status.shape == (0,)
    assert solution.outputs[0].shape == (0, 3)


@pytest.mark.parametrize("flagged", [False, True])
def test_a_failed_instance(flagged):
    layer = Layer(FakeProblem(on_error="flag" if flagged else "raise"))
    values = data(4)
    values[3][2, 0] = 1e9
    values = [v.requires_grad_() for v in values]
    if not flagged:
        with pytest.raises(SolveError) as caught:
            layer(*values)
        assert caught.value.indices == ((2,),)
        return
    outputs = layer(*values)
    assert [o.isnan().reshape(4, -1).all(1).tolist() for o in outputs] == [[False, False, True, False]] * 3
    gradients = torch.autograd.grad(sum(o.sum() for o in outputs), values)
    rest = [v.detach()[[0, 1, 3]].requires_grad_() for v in values]
    alone = torch.autograd.grad(sum(o.sum() for o in layer(*rest)), rest)
    assert all(torch.equal(g[2], torch.zeros_like(g[2])) for g in gradients)
    assert all(torch.equal(g[[0, 1, 3]], a) for g, a in zip(gradients, alone, strict=True))


def test_an_unused_output_costs_nothing_and_gives_zero(layer):
    values = data(grad=True)
    x, y, t = layer(*values)
    assert difference(torch.autograd.grad(t, values), torch.autograd.grad(closed_form(*values)[2], values)) < 1e-12
    assert x.requires_grad and y.requires_grad


def test_no_gradient_where_none_is_wanted(layer):
    values = data()
    assert not any(o.requires_grad for o in layer(*values))
    values[1].requires_grad_()
    with torch.no_grad():
        assert not any(o.requires_grad for o in layer(*values))
    with torch.inference_mode():
        layer(*values)
    layer(*values)[0].sum().backward()
    assert values[1].grad is not None


def test_threads_share_one_layer(layer):
    results = {}

    def work(i):
        values = data(i + 1, seed=i, grad=True)
        results[i] = torch.autograd.grad(sum(o.pow(2).sum() for o in layer(*values)), values)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i in range(4):
        values = data(i + 1, seed=i, grad=True)
        alone = torch.autograd.grad(sum(o.pow(2).sum() for o in layer(*values)), values)
        assert all(torch.equal(a, b) for a, b in zip(results[i], alone, strict=True))


def test_evaluations_and_problems_are_released(layer):
    from layercompiler.torch import host, registry

    gc.collect()
    before = len(host._traces)
    x = layer(*data(grad=True))[0]
    assert len(host._traces) == before + 1
    del x
    assert len(host._traces) == before
    other = Layer(FakeProblem(6, 2))
    name = other._bound.name
    del other
    gc.collect()
    assert name not in registry._live


def test_a_graph_without_its_problem_says_so():
    with pytest.raises(UnsupportedTransformError, match="does not have"):
        torch.ops.layercompiler.solve(data(), None, "", "unknown")


def test_arrays_are_not_changed(layer):
    values = [v.numpy() for v in data(2)]
    before = [v.copy() for v in values]
    layer(*values)
    assert all(np.array_equal(a, b) for a, b in zip(values, before, strict=True))
