"""What layers of QPs elsewhere got wrong, held here: shared gradients, weak rows, infeasible and semidefinite instances, dtypes, duals."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import Status, kernels
from tests import differences
from tests.qp import families

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
EYE = np.eye(2)


def layer(n, m, p=0, **settings):
    return lc.export(lc.QP(n, m, p), "torch", **settings)


def tensors(*arrays, dtype=torch.float64):
    return [torch.tensor(np.asarray(a), dtype=dtype, requires_grad=True) for a in arrays]


def test_gradients_of_what_the_batch_shares_are_sums():
    """Averages, elsewhere."""
    Q, p, G, h, A, b = families.batch("std", 6, 5, 2, 8)
    G, A, Q = G[0], A[0], Q[0]
    h, b = G @ p[0] + 1, A @ p[0]
    shared = tensors(Q, p, G, h, A, b)
    w = torch.tensor(np.random.default_rng(0).standard_normal(p.shape))
    qp = layer(6, 5, 2)
    plain = torch.autograd.grad(qp(*shared)[0], shared, w)
    wide = [t if t.shape[:1] == (8,) and t.ndim == 2 and i == 1 else t.expand(8, *t.shape) for i, t in enumerate(shared)]
    expanded = torch.autograd.grad(qp(*[t.contiguous() for t in wide])[0], shared, w)
    for a, c in zip(plain, expanded, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)


def test_a_weakly_active_row_is_no_obstacle():
    """min |x|^2 / 2 - x_1 with x_1 <= 1, x_2 <= 5: x = (1, 0), not (1, 2.5)."""
    compiled = lc.compile(lc.QP(2, 2))
    found = compiled.solve(EYE, np.array([-1.0, 0.0]), EYE, np.array([1.0, 5.0]))
    np.testing.assert_allclose(found.outputs[0], [1, 0], rtol=0, atol=1e-12)
    assert found.info.degenerate and found.info.unique


def test_duplicated_active_rows():
    rows = np.array([[1.0, 0], [1, 0], [0, 1]])
    compiled = lc.compile(lc.QP(2, 3), variables=["x", "z"])
    found = compiled.evaluate([EYE, np.array([-2.0, 0.0]), rows, np.array([1.0, 1.0, 5.0])])
    np.testing.assert_allclose(found.outputs[0], [1, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.outputs[1][:2].sum(), 1, rtol=0, atol=1e-12)
    gradients = found.vjp([np.array([1.0, 1.0]), None])
    np.testing.assert_allclose(gradients[1], [0, -1], atol=1e-9)
    np.testing.assert_allclose(gradients[3].sum(), 1, atol=1e-9)


def test_gradients_of_G_are_right():
    """A sign or a factor elsewhere."""
    Q, p, G, h, A, b = (a[0] for a in families.batch("std", 6, 6, 1, 1))
    compiled = lc.compile(lc.QP(6, 6, 1))
    rng = np.random.default_rng(0)
    arrays, w = [Q, p, G, h, A, b], rng.standard_normal(6)
    gradients = compiled.evaluate(arrays).vjp([w])
    for k, name in enumerate("QpGhAb"):
        directions = [np.zeros_like(a) for a in arrays]
        directions[k] = rng.standard_normal(arrays[k].shape)
        slope, error = differences.directional(lambda a: np.array([compiled.evaluate(a).outputs[0] @ w]), arrays, directions)
        assert abs(float(slope[0]) - float(np.sum(gradients[k] * directions[k]))) <= 10 * float(error[0]) + 1e-8, name


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("kind", ["std", "ill", "dqp", "optnet"])
def test_gradients_are_exact_in_every_family(kind, n):
    """To 1e-9, through the layer, where 1e-6 to 1e-4 is common."""
    arrays = families.batch(kind, n, n, n // 4, 6)
    w = np.random.default_rng(1).standard_normal((6, n))
    given = tensors(*arrays)
    x, z = layer(n, n, n // 4, variables=["x", "z"])(*given)
    gradients = torch.autograd.grad(x, given, torch.tensor(w))
    for i in range(6):
        one = [a[i] for a in arrays]
        exact, expected = families.active_gradients(*one, x[i].detach().numpy(), z[i].detach().numpy(), w[i])
        np.testing.assert_allclose(x[i].detach().numpy(), exact, rtol=0, atol=1e-9 * (1 + np.abs(exact).max()))
        for got, reference in zip(gradients, expected, strict=True):
            assert np.linalg.norm(got[i].numpy() - reference) <= 1e-9 * np.linalg.norm(reference)


def test_float32_tensors_are_solved_in_float64():
    """Solution and gradient to the rounding of float32; 1e-2 elsewhere. The gradients have the dtype of the tensors."""
    arrays = families.batch("std", 10, 10, 2, 4)
    rounded = [a.astype(np.float32) for a in arrays]
    w = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    low, high = tensors(*rounded, dtype=torch.float32), tensors(*rounded)
    qp = layer(10, 10, 2)
    (x,), (y,) = qp(*low), qp(*high)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), y, rtol=1e-6, atol=1e-6)
    first, second = torch.autograd.grad(x, low, torch.tensor(w)), torch.autograd.grad(y, high, torch.tensor(w).double())
    for a, b in zip(first, second, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_an_infeasible_instance_is_flagged_beside_a_good_one():
    """Zeros and finite gradients, or a banner on the terminal, elsewhere."""
    rows, p = np.array([[1.0, 0], [-1, 0]]), np.array([1.0, 0.0])
    given = tensors(EYE, p, rows, np.array([[-1.0, -1.0], [1.0, 1.0]]))
    qp = layer(2, 2, on_error="flag")
    (x,) = qp(*given)
    assert torch.isnan(x[0]).all() and torch.allclose(x[1], torch.tensor([-1.0, 0.0], dtype=torch.float64))
    found = qp.solve(*given)
    assert [Status(int(s)) for s in found.status] == [Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    gradients = torch.autograd.grad(x[1].sum(), given)
    assert all(torch.isfinite(g).all() for g in gradients) and not gradients[3][0].any()
    with pytest.raises(lc.errors.SolveError) as raised:
        layer(2, 2)(*given)
    assert raised.value.indices == ((0,),)


def test_semidefinite_and_linear_objectives():
    """'Q is not SPD', elsewhere."""
    compiled = lc.compile(lc.QP(2, 2))
    found = compiled.solve(np.diag([1.0, 0.0]), np.array([-2.0, 1.0]), np.array([[1.0, 0], [0, -1]]), np.ones(2))
    np.testing.assert_allclose(found.outputs[0], [1, -1], rtol=0, atol=1e-12)
    found = compiled.solve(0 * EYE, np.array([-1.0, -1.0]), EYE, np.array([1.0, 2.0]))
    np.testing.assert_allclose(found.outputs[0], [1, 2], rtol=0, atol=1e-12)


def test_duals_are_outputs_with_gradients():
    arrays = families.batch("std", 5, 6, 2, 3)
    given = tensors(*arrays)
    qp = layer(5, 6, 2, variables=["x", "y", "z", "value"])
    x, y, z, value = qp(*given)
    Q, p, G, _, A, _ = given
    stationarity = torch.einsum("bij,bj->bi", Q, x) + p + torch.einsum("bmi,bm->bi", G, z) + torch.einsum("bpi,bp->bi", A, y)
    assert stationarity.abs().max() < 1e-12
    # The value's gradient is that of the Lagrangian: p -> x, h -> -z, b -> -y.
    gradients = torch.autograd.grad(value.sum(), given, retain_graph=True)
    for got, expected in ((gradients[1], x), (gradients[3], -z), (gradients[5], -y)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(lambda *t: qp(*t)[1:3], given, eps=1e-6, atol=1e-5)


def test_every_binding_agrees():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    arrays = families.batch("std", 5, 5, 1, 3)
    compiled = lc.compile(lc.QP(5, 5, 1))
    w = np.random.default_rng(0).standard_normal((3, 5))
    expected, gradients = compiled.to("numpy")(*arrays)[0], compiled.evaluate(arrays).vjp([w])
    call = compiled.to("jax")
    np.testing.assert_array_equal(jax.jit(call)(*arrays)[0], expected)
    found = jax.grad(lambda *a: (call(*a)[0] * w).sum(), argnums=tuple(range(6)))(*arrays)
    for a, b in zip(found, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    tf = pytest.importorskip("tensorflow")
    variables = [tf.Variable(a) for a in arrays]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(compiled.to("tensorflow")(*variables)[0] * w)
    for a, b in zip(tape.gradient(loss, variables), gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_constants_and_names():
    Q, p, G, h, A, b = (a[0] for a in families.batch("std", 4, 4, 1, 1))
    full = lc.compile(lc.QP(Q, p, G, h, A, b)).evaluate([Q, p, G, h, A, b])
    part = lc.compile(lc.QP(Q, p, G, h, A, b), parameters=["p", "h"])
    found = part.evaluate([np.stack([p, p]), h])
    np.testing.assert_allclose(found.outputs[0][1], full.outputs[0], rtol=0, atol=1e-12)
    w = np.ones(4)
    np.testing.assert_allclose(found.vjp([np.stack([w, 0 * w])])[0][0], full.vjp([w])[1], atol=1e-10)
    with pytest.raises(lc.errors.BuildError):
        lc.compile(lc.QP(Q, p), parameters=["G"])
    with pytest.raises(lc.errors.BuildError):
        lc.compile(lc.QP(3, 2), parameters=["p"])
    with pytest.raises(lc.errors.ShapeError):
        lc.QP(Q, p, G[:, :2], h)


def test_arrays_may_change_after_the_call():
    Q, p, G, h, A, b = (np.array(a) for a in families.batch("std", 6, 5, 2, 8))
    compiled, w = lc.compile(lc.QP(6, 5, 2)), np.ones((8, 6))
    arrays = [{"Q": Q, "p": p, "G": G, "h": h, "A": A, "b": b}[k.name] for k in compiled.parameters]
    evaluation = compiled.evaluate(arrays)
    cotangents = [w, *[None] * (len(evaluation.outputs) - 1)]
    before = evaluation.vjp(cotangents)
    evaluation = compiled.evaluate(arrays)
    for array in arrays:
        array *= 1.5
    for got, expected in zip(evaluation.vjp(cotangents), before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_gradients_have_the_dtype_of_the_tensors():
    """Rounded to the default dtype, elsewhere."""
    assert torch.get_default_dtype() == torch.float32
    given = tensors(*families.batch("std", 8, 8, 2, 3))
    gradients = torch.autograd.grad(layer(8, 8, 2)(*given)[0].sum(), given)
    assert all(g.dtype == torch.float64 for g in gradients)
    arrays, w = [t.detach().numpy() for t in given], np.ones((3, 8))
    for got, expected in zip(gradients, lc.compile(lc.QP(8, 8, 2)).evaluate(arrays).vjp([w]), strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)


def test_a_warm_start_outlives_a_backward_pass():
    """Lost after the first derivative, elsewhere."""
    arrays = families.batch("std", 8, 8, 2, 3)
    qp = layer(8, 8, 2)
    cold = qp.solve(*tensors(*arrays))
    given = tensors(*arrays)
    qp(*given)[0].sum().backward()
    moved = [a if k != 1 else a + 1e-6 for k, a in enumerate(arrays)]
    warm = qp.solve(*tensors(*moved), warm_start=cold)
    assert (np.asarray(cold.info.iterations) > 0).all() and (np.asarray(warm.info.iterations) == 0).all()
    torch.testing.assert_close(warm.outputs[0], qp.solve(*tensors(*moved)).outputs[0], rtol=0, atol=1e-10)


def test_active_sets_are_resolved_in_a_batch():
    """Single gradients of a batch of sixteen are 40 % off, elsewhere."""
    arrays = families.batch("std", 10, 10, 2, 16, seed=3)
    given, w = tensors(*arrays), np.random.default_rng(1).standard_normal((16, 10))
    x, z = layer(10, 10, 2, variables=["x", "z"])(*given)
    gradients = torch.autograd.grad(x, given, torch.tensor(w))
    for i in range(16):
        _, expected = families.active_gradients(*(a[i] for a in arrays), x[i].detach().numpy(), z[i].detach().numpy(), w[i])
        for got, reference in zip(gradients, expected, strict=True):
            assert np.linalg.norm(got[i].numpy() - reference) <= 1e-9 * np.linalg.norm(reference)


def test_failures_leave_finite_gradients_and_training_goes_on():
    """NaN in every parameter after one bad instance, elsewhere."""
    Q, p, G, h, A, b = (np.array(a) for a in families.batch("std", 6, 6, 1, 4))
    G[0, 1], h[0, 0], h[0, 1] = -G[0, 0], -1.0, 0.5
    given = tensors(Q[1], p, G, h, A, b)
    (x,) = layer(6, 6, 1, on_error="flag")(*given)
    ok = ~torch.isnan(x).any(1)
    assert ok.tolist() == [False, True, True, True]
    gradients = torch.autograd.grad(torch.where(ok[:, None], x, 0.0).square().sum(), given)
    assert all(torch.isfinite(g).all() for g in gradients) and gradients[0].abs().max() > 0


def families_of_many():
    """Programs of which the solution is one of many: who solves them, and how, is not the same for all."""
    rng = np.random.default_rng(3)
    for n, m, p, rank in ((16, 1, 5, 0), (16, 2, 8, 0), (50, 2, 0, 16), (15, 0, 0, 14), (60, 0, 0, 59), (6, 3, 2, 0)):
        for _ in range(3):
            M, point = rng.standard_normal((rank, n)), rng.standard_normal(n)
            Q, G, A = M.T @ M, rng.standard_normal((m, n)), rng.standard_normal((p, n))
            q = -Q @ point - G.T @ rng.random(m) - A.T @ rng.standard_normal(p)
            yield (n, m, p), [Q, q, *([G, G @ point] if m else []), *([A, A @ point] if p else [])]


def test_whoever_solves_it_says_that_a_solution_is_one_of_many():
    """Pivots of a singular matrix are rounding and no proof that it is regular, and what another engine says is passed on."""
    for sizes, values in families_of_many():
        info = lc.compile(lc.QP(*sizes), variables=["x"]).evaluate(values).info
        assert info.ok and info.degenerate and not info.unique, (sizes, info)


def test_what_another_engine_says_survives_singular_neighbours():
    """Singular instances are looked at; those beside them that another engine has solved have been looked at there."""
    rng = np.random.default_rng(3)
    found = set()
    for _ in range(6):
        G, A, point = rng.standard_normal((1, 16)), rng.standard_normal((5, 16)), rng.standard_normal(16)
        both = np.stack([np.zeros((16, 16)), np.diag(np.arange(16.0) > 8)])
        q = -both @ point - G.T @ rng.random(1) - A.T @ rng.standard_normal(5)
        info = lc.compile(lc.QP(16, 1, 5), variables=["x"]).evaluate([both, q, G, G @ point, A, A @ point]).info
        assert info.ok.all() and not info.unique.any()
        found |= set(map(str, info.engine))
    assert "dense_qp" in found and len(found) > 1  # both kinds were there


def test_unlikely_pivots():
    """Of 200 singular matrices of order 60, about one in twenty has a last pivot above 1e-13 of the diagonal."""
    rng = np.random.default_rng(0)
    M, point = rng.standard_normal((200, 59, 60)), rng.standard_normal((200, 60, 1))
    Q = M.swapaxes(1, 2) @ M
    info = lc.compile(lc.QP(60, 0), variables=["x"]).evaluate([Q, -(Q @ point)[..., 0]]).info
    assert info.ok.all() and not info.unique.any()


def test_a_free_program_that_falls_without_end():
    """Without any row there is none to violate."""
    compiled = lc.compile(lc.QP(3, 0), variables=["x"], on_error="flag")
    status = compiled.solve(np.stack([np.diag([1.0, 1.0, 0.0]), np.diag([0.0, 2.0, 0.0])]), np.ones((2, 3))).info.status
    assert (status == Status.DUAL_INFEASIBLE).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 200.0])
def test_doubled_rows_are_seen_whatever_the_size_of_others(scale):
    """Their multipliers are not unique, and rows of another size beside them do not hide it."""
    rows = np.array([[1.0, 0.5, 0.2], [2.0, 1.0, 0.4], [0.0, 1e-3, 0.0]]) * np.array([[scale], [scale], [1.0]])
    info = lc.compile(lc.QP(3, 3), variables=["x"]).evaluate([np.eye(3), -np.ones(3), rows, rows @ np.full(3, 0.4) + [0, 0, 1e-3]]).info
    assert info.ok and info.unique and info.degenerate


@pytest.mark.parametrize("solver", ["lanes", "clarabel", "interior_point", "dense_qp"])
@pytest.mark.parametrize("built", [True, False])
def test_gradients_whatever_the_size_of_the_cost(solver, built, monkeypatch):
    """Where the row binds x = h / g, and p is so small beside Q that the multiplier towers over everything in the scaled program."""
    if not built:
        if solver in ("lanes", "dense_qp"):
            pytest.skip("a compiled engine")
        monkeypatch.setattr(kernels, "available", lambda: False)
    g, h = np.array([[[-1.5]]]), np.array([-3.7])
    p = (10.0 ** -np.arange(19.0))[:, None]
    compiled = lc.compile(lc.QP(1, 1), solver=solver, variables=["x", "value"])
    found = compiled.evaluate([np.array([[375.3]]), p, np.repeat(g, len(p), 0), np.repeat(h[None], len(p), 0)])
    dQ, dp, dG, dh = found.vjp([np.ones((len(p), 1)), np.zeros(len(p))])
    np.testing.assert_allclose(dh, np.full((len(p), 1), -1 / 1.5), rtol=1e-9)
    np.testing.assert_allclose(dG, np.full((len(p), 1, 1), 3.7 / -(1.5**2) * -1.0), rtol=1e-9)
    np.testing.assert_allclose(dp, 0.0, atol=1e-12)
    assert abs(dQ).max() < 1e-12 and not found.info.degenerate.any()


@pytest.mark.parametrize("solver", ["lanes", "clarabel", "interior_point", "auto"])
def test_a_definite_objective_does_not_fall_without_end(solver):
    """Beside a cost of 1e6 the curvature is small, and engines take it for none."""
    rng = np.random.default_rng(0)
    M = rng.standard_normal((40, 6, 6))
    Q = (M @ np.swapaxes(M, 1, 2) + np.eye(6)) * 10.0 ** rng.integers(-2, 5, (40, 1, 1))
    G, h = 1e3 * rng.standard_normal((40, 4, 6)), -1e-3 * abs(rng.standard_normal((40, 4)))
    status = lc.compile(lc.QP(6, 4), solver=solver, on_error="flag").evaluate([Q, 1e6 * rng.standard_normal((40, 6)), G, h]).info.status
    assert not np.isin(status, [lc.Status.DUAL_INFEASIBLE, lc.Status.PRIMAL_INFEASIBLE]).any()


def test_a_semidefinite_objective_that_falls_without_end_beside_a_large_cost():
    rng = np.random.default_rng(1)
    M = rng.standard_normal((20, 6, 3))
    for solver in ("lanes", "clarabel", "auto"):
        compiled = lc.compile(lc.QP(6, 0), solver=solver, on_error="flag")
        status = compiled.evaluate([1e-3 * M @ np.swapaxes(M, 1, 2), 1e4 * rng.standard_normal((20, 6))]).info.status
        assert (status == lc.Status.DUAL_INFEASIBLE).all(), solver


@pytest.mark.parametrize("sizes", [(2, 0), (2, 1)])
def test_second_derivatives_where_a_kind_of_row_is_missing(sizes):
    """As a pure function of jax: what no tangent reaches, and what is empty, once stopped a second derivative."""
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        compiled = lc.compile(lc.QP(*sizes), solver="interior_point", variables=["value"])
        arrays = [rng.standard_normal(p.shape) for p in compiled.parameters]
        arrays[0] = np.diag([1.0, 2.0])
        along, f = rng.standard_normal(2), compiled.to("jax")
        gradient = jax.grad(lambda p: f(arrays[0], p, *arrays[2:])[0])
        tangents = [along if k == 1 else None for k in range(len(arrays))]
        expected = compiled.evaluate(arrays).hvp([np.ones(())], tangents)[1]
        if sizes[1]:
            found = jax.grad(lambda p: gradient(p) @ along)(arrays[1])
        else:
            found = jax.jvp(gradient, (arrays[1],), (along,))[1]
        np.testing.assert_allclose(found, expected, atol=1e-9)
