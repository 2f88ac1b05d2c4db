"""The array interior point inside of torch, on the host: against the compiled lanes and against differences, in every mode."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc

torch = pytest.importorskip("torch")

N, M, K = 6, 7, 2


def layers(kind, **options):
    """(native layer, lanes layer) of one problem: "qp", "lp" or "cone"."""
    F, q, A, b, G, h = (cp.Parameter(s, name=n) for n, s in (("F", (4, N)), ("q", N), ("A", (K, N)), ("b", K), ("G", (M, N)), ("h", M)))
    x = cp.Variable(N)
    equal, less = A @ x == b, G @ x <= h
    objective, more = {
        "qp": (cp.sum_squares(F @ x) + 0.1 * cp.sum_squares(x) + q @ x, []),
        "lp": (q @ x, [x <= 3, x >= -3, cp.norm1(F @ x) <= 40]),
        "cone": (0.1 * cp.sum_squares(x) + q @ x, [cp.norm(F @ x) <= 2]),
    }[kind]
    problem = cp.Problem(cp.Minimize(objective), [equal, less, *more])
    variables = [x, equal.dual_variables[0], less.dual_variables[0], problem.objective]
    arguments = {"parameters": [F, q, A, b, G, h], "variables": variables, "on_error": "flag", **options}
    return tuple(lc.export(problem, "torch", solver=solver, **arguments) for solver in ("interior_point", "lanes"))


def values(batch, seed=0):
    r = np.random.default_rng(seed)
    F, q, A, G, x = (r.standard_normal((batch, *s)) for s in ((4, N), (N,), (K, N), (M, N), (N,)))
    x = 0.3 * x
    b, h = np.einsum("bij,bj->bi", A, x), np.einsum("bij,bj->bi", G, x) + r.random((batch, M))
    return [torch.tensor(a) for a in (F, q, A, b, G, h)]


def close(got, expected, tolerance=1e-9):
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).detach().abs().max()) <= tolerance * (1 + float(b.detach().abs().max()))


@pytest.mark.parametrize("kind", ["qp", "lp", "cone"])
def test_values_and_derivatives_to_second_order_are_those_of_the_lanes(kind):
    theta = [t.requires_grad_() for t in values(6)]
    generator = torch.Generator().manual_seed(0)
    like = lambda tensors: [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in tensors]  # noqa: E731
    pair = layers(kind)
    outputs = [layer(*theta) for layer in pair]
    close(*outputs)
    assert all(torch.isfinite(o).all() for o in outputs[0])
    w, directions = like(outputs[0]), like(theta)
    first = [torch.autograd.grad(o, theta, w, create_graph=True) for o in outputs]
    close(*first)
    close(*(torch.autograd.grad(sum((a * d).sum() for a, d in zip(g, directions, strict=True)), theta) for g in first), 1e-8)
    plain = tuple(t.detach() for t in theta)
    close(*(torch.func.jvp(lambda *a, layer=layer: layer(*a), plain, tuple(directions))[1] for layer in pair))
    told = pair[0].solve(*plain)
    assert (told.status == 0).all() and float(told.residual.max()) <= 1e-11
    assert set(told.info.engine) == {"interior_point"}
    close([told.value], [pair[1].solve(*plain).value])


@pytest.mark.parametrize("kind", ["qp", "cone"])
def test_transforms_nest(kind):
    native, lanes = layers(kind)
    theta = values(3, 1)
    total = lambda layer: lambda *a: sum((o * o).sum() for o in layer(*a))  # noqa: E731
    close(*([torch.func.vmap(torch.func.grad(total(layer)))(*theta)] for layer in (native, lanes)))
    one = [t[0] for t in theta]
    of_q = lambda layer: lambda q: layer(one[0], q, *one[2:])[0]  # noqa: E731
    exact = torch.func.jacrev(of_q(lanes))(one[1])
    close([torch.func.jacrev(of_q(native))(one[1]), torch.func.jacfwd(of_q(native))(one[1])], [exact, exact])
    cubed = lambda layer: lambda q: (of_q(layer)(q) ** 3).sum()  # noqa: E731
    H = torch.func.hessian(cubed(lanes))(one[1])
    for outer, inner in ((torch.func.jacfwd, torch.func.jacrev), (torch.func.jacrev, torch.func.jacrev), (torch.func.jacfwd,) * 2):
        close([outer(inner(cubed(native)))(one[1])], [H], 1e-8)


def test_gradients_of_shared_parameters_are_sums():
    native, _ = layers("qp")
    theta = values(8, 2)
    wide = [theta[0][:1].expand(8, -1, -1), theta[1], *(t[:1].expand(8, *t.shape[1:]) for t in theta[2:])]
    shared = [t if i == 1 else t[0] for i, t in enumerate(theta)]
    found = []
    for arguments in (wide, shared):
        leaves = [t.clone().requires_grad_() for t in arguments]
        found.append(torch.autograd.grad(native(*leaves)[0].square().sum(), leaves))
    close(found[1], [g if i == 1 else g.sum(0) for i, g in enumerate(found[0])])


@pytest.mark.parametrize(("m", "k"), [(20, 6), (20, 0), (0, 6)])
def test_gradients_of_wide_programs_are_those_of_single_ones(m, k):
    n, B = 28, 5
    layer = lc.export(lc.QP(n, m, k), "torch", solver="interior_point")
    g = torch.Generator().manual_seed(m + k)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    Q, x = make(B, n, n), make(B, n)
    data = [Q @ Q.mT + torch.eye(n), make(B, n)]
    if m:
        G = make(B, m, n)
        data += [G, (G @ x[:, :, None])[..., 0] + torch.rand(B, m, dtype=torch.float64, generator=g)]
    if k:
        data += [make(B, k, n), make(1, k)]  # a right-hand side that all share
    data, w = [a.requires_grad_() for a in data], make(B, n)
    whole = torch.autograd.grad(layer(*data)[0], data, w, retain_graph=True)
    for i in range(B):
        single = [a[i % len(a)][None] for a in data]
        parts = torch.autograd.grad(layer(*single)[0], single, w[i][None])
        for a, d, part in zip(data, whole, parts, strict=True):
            if len(a) == B:
                torch.testing.assert_close(d[i], part[0], rtol=1e-10, atol=1e-11)
    t = [make(*a.shape) for a in data]  # along them, forwards
    along = torch.func.jvp(lambda *d: layer(*d)[0], tuple(a.detach() for a in data), tuple(t))[1]
    torch.testing.assert_close(sum((d * c).sum() for d, c in zip(whole, t, strict=True)), (along * w).sum(), rtol=1e-9, atol=1e-9)


def test_a_failed_instance_is_flagged_or_raises_and_leaves_the_others():
    low, y = cp.Parameter(2, name="low"), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y)), [y >= low, y <= 1])
    flagged = lc.export(problem, "torch", solver="interior_point", on_error="flag")
    bounds = torch.tensor([[0.5, 0.5], [2.0, 2.0], [np.nan, 0.0]], dtype=torch.float64, requires_grad=True)
    (out,) = flagged(bounds)
    assert out[1:].isnan().all()
    (g,) = torch.autograd.grad(out.nan_to_num().sum(), bounds)
    close([out[0], g], [torch.full((2,), 0.5, dtype=torch.float64), torch.tensor([[1.0, 1], [0, 0], [0, 0]], dtype=torch.float64)])
    assert flagged.solve(bounds.detach()).status.tolist() == [0, 1, 6]
    with pytest.raises(lc.errors.SolveError, match="infeasible") as caught:
        lc.export(problem, "torch", solver="interior_point")(bounds.detach()[:2])
    assert caught.value.indices == ((1,),)
    (mapped,) = torch.func.vmap(flagged)(bounds.detach()[:2])
    assert mapped[1].isnan().all() and mapped[0].isfinite().all()


def test_dtypes_shapes_and_empty_batches():
    native, lanes = layers("qp")
    theta = values(6, 3)
    single = native(*(t.float() for t in theta))
    assert all(o.dtype == torch.float32 for o in single)
    close([o.double() for o in single], lanes(*(t.float().double() for t in theta)), 1e-5)
    for lead in ((), (0,), (2, 3), (1,)):
        count = int(np.prod(lead))
        shaped = [t[:count].reshape(*lead, *t.shape[1:]) for t in theta]
        close(native(*shaped), lanes(*shaped)) if count else None
        assert [o.shape for o in native(*shaped)] == [o.shape for o in lanes(*shaped)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qp", "lp", "cone"])
def test_on_a_gpu_nothing_leaves_it_and_results_are_those_of_the_host(kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    native, lanes = layers(kind, options={"check_domain": False})
    found = []
    for layer, device in ((native, "cuda"), (lanes, "cpu")):
        theta = [t.to(device).requires_grad_() for t in values(64)]
        outputs = layer(*theta)
        assert all(o.device.type == device for o in outputs)
        gradients = torch.autograd.grad(sum(o.square().sum() for o in outputs), theta)
        found.append([t.cpu() for t in (*outputs, *gradients)])
    close(*found)
