"""Forty bad or awkward inputs: each gets a clear coded error, a status with the other instances bitwise unchanged, or a right answer.

The list is data (tests/corpus/bad_inputs.json): what is handed in, what must happen, and words that the message must hold.
"""

import contextlib
import copy
import json
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog

import layercompiler as lc
from layercompiler import errors
from layercompiler.status import Status
from tests.bindings import FRAMEWORKS, solve

ITEMS = {i["id"]: i for i in json.loads((Path(__file__).parent / "corpus" / "bad_inputs.json").read_text())["items"]}
CHECKS = {}


def item(name):
    def keep(function):
        CHECKS[name] = function
        return function

    return keep


@pytest.fixture(scope="module", autouse=True)
def frameworks():
    """Import them before output is watched: TensorFlow speaks when it is imported and when it starts."""
    for name in ("torch", "jax", "tensorflow"):
        pytest.importorskip(name)
    pytest.importorskip("tensorflow").constant(0.0)


@pytest.mark.parametrize("name", ITEMS)
def test_bad_input(name, capfd):
    CHECKS[name](ITEMS[name])
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_every_item_is_checked():
    assert len(ITEMS) == 40
    assert set(CHECKS) == set(ITEMS)


# Problems ----------------------------------------------------------------------------------------------------------------


def lp():
    c, A, b, x = cp.Parameter(2, name="c"), cp.Parameter((4, 2), name="A"), cp.Parameter(4, name="b"), cp.Variable(2, name="x")
    return cp.Problem(cp.Minimize(c @ x), [A @ x <= b]), [c, A, b], [x]


def lp_data(rng):
    """A bounded feasible LP with a vertex solution."""
    A = rng.standard_normal((4, 2))
    A[3] = -A[:3].sum(axis=0)
    return [-A.T @ rng.uniform(0.1, 1.0, 4), A, rng.uniform(0.5, 1.5, 4)]


def qp():
    q, G, h, x = cp.Parameter(3, name="q"), cp.Parameter((3, 3), name="G"), cp.Parameter(3, name="h"), cp.Variable(3, name="x")
    return cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [G @ x <= h]), [q, G, h], [x]


def qp_data(rng):
    return [2 * rng.standard_normal(3), rng.standard_normal((3, 3)), rng.uniform(0.5, 1.5, 3)]


def projection():
    y, A, b, x = cp.Parameter(3, name="y"), cp.Parameter((2, 3), name="A"), cp.Parameter(2, name="b"), cp.Variable(3, name="x")
    return cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - y)), [A @ x == b]), [y, A, b], [x]


def projection_data(rng):
    return [rng.standard_normal(3), rng.standard_normal((2, 3)), rng.standard_normal(2)]


def compiled(built, **settings):
    problem, parameters, variables = built
    return lc.compile(problem, parameters=parameters, variables=variables, **settings)


def arrays(values):
    return [np.asarray(v, dtype=float) for v in values]


def stacked(*instances):
    return [np.stack(a) for a in zip(*instances, strict=True)]


def says(error, words):
    assert isinstance(error, errors.LayerCompilerError)
    assert error.code in str(error)
    for word in words:
        assert word in str(error), f"{word!r} is not in {error}"


# The contract of a failed instance ---------------------------------------------------------------------------------------


def flagged(built, sample, bad, status, words, frameworks=("numpy",), options=None):
    """One bad instance among good ones: its status, NaN, exactly zero gradient; the others keep every bit; "raise" names it."""
    rng = np.random.default_rng(5)
    good = [sample(rng) for _ in range(3)]
    with_bad, without = stacked(good[0], good[1], bad, good[2]), stacked(*good)
    rest = [0, 1, 3]
    layer = compiled(built, on_error="flag", options=options)
    for framework in frameworks:
        bound = lc.export(layer, framework)
        x, vjp, _ = solve(framework, bound, with_bad)
        x_good, vjp_good, _ = solve(framework, bound, without)
        w = [rng.standard_normal(a.shape) for a in x]
        gradient, gradient_good = vjp(w), vjp_good([a[rest] for a in w])
        for a, g in zip(x, x_good, strict=True):
            assert np.isnan(a[2]).all()
            np.testing.assert_array_equal(a[rest], g)
        for a, g in zip(gradient, gradient_good, strict=True):
            assert not a[2].any()
            np.testing.assert_array_equal(a[rest], g)
    solution = layer.solve(*with_bad)
    assert [Status(s) for s in solution.status] == [Status.SOLVED, Status.SOLVED, status, Status.SOLVED]
    assert all(np.isnan(v[2]).all() for v in solution.values.values())
    evaluation = layer.evaluate(with_bad)
    tangent = evaluation.jvp([rng.standard_normal(a.shape) for a in with_bad])
    assert not any(t[2].any() for t in tangent)
    if status is Status.NONFINITE_INPUT:
        return
    with pytest.raises(errors.SolveError) as caught:
        compiled(built, options=options).solve(*with_bad)
    says(caught.value, [*words, "instance 2"])
    assert caught.value.indices == ((2,),)
    np.testing.assert_array_equal(caught.value.solution.outputs[0], solution.outputs[0])


@item("infeasible_lp")
def _(it):
    flagged(lp(), lp_data, arrays(it["values"]), Status.PRIMAL_INFEASIBLE, it["says"], FRAMEWORKS)


@item("unbounded_lp")
def _(it):
    flagged(lp(), lp_data, arrays(it["values"]), Status.DUAL_INFEASIBLE, it["says"])


@item("infeasible_qp")
def _(it):
    flagged(qp(), qp_data, arrays(it["values"]), Status.PRIMAL_INFEASIBLE, it["says"])


@item("inconsistent_equalities")
def _(it):
    flagged(projection(), projection_data, arrays(it["values"]), Status.PRIMAL_INFEASIBLE, it["says"])


@item("infeasible_socp")
def _(it):
    p, x = cp.Parameter(name="p"), cp.Variable(3, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.norm2(x) <= 1, x[0] >= 2 + p])
    flagged((problem, [p], [x]), lambda rng: [np.array(rng.uniform(-2.5, -1.5))], arrays(it["values"]), Status.PRIMAL_INFEASIBLE, [])


@item("infeasible_sdp")
def _(it):
    p, X = cp.Parameter(name="p"), cp.Variable((3, 3), symmetric=True, name="X")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - np.diag([1.0, 2.0, 3.0]))), [X >> 0, cp.trace(X) <= -p])
    flagged((problem, [p], [X]), lambda rng: [np.array(rng.uniform(-4, -1))], arrays(it["values"]), Status.PRIMAL_INFEASIBLE, [])


@item("batch_one_nan")
def _(it):
    rng = np.random.default_rng(0)
    bad = qp_data(rng)
    bad[0][0] = np.nan
    flagged(qp(), qp_data, bad, Status.NONFINITE_INPUT, [], FRAMEWORKS)
    batch = stacked(*(qp_data(rng) for _ in range(4)))
    batch[0][2, 0] = np.nan
    with pytest.raises(errors.NonFiniteInputError) as caught:
        compiled(qp()).solve(*batch)
    says(caught.value, it["says"])


# Non-finite data ---------------------------------------------------------------------------------------------------------


@item("nan_linear")
def _(it):
    data = qp_data(np.random.default_rng(0))
    data[0][0] = np.nan
    with pytest.raises(errors.NonFiniteInputError) as caught:
        compiled(qp()).solve(*data)
    says(caught.value, it["says"])


@item("nan_matrix")
def _(it):
    data = qp_data(np.random.default_rng(0))
    data[1][0, 0] = np.nan
    with pytest.raises(errors.NonFiniteInputError) as caught:
        compiled(qp()).solve(*data)
    says(caught.value, it["says"])


@item("minus_inf_upper_bound")
def _(it):
    q, G, _text = it["values"]
    data = arrays([q, G, [-np.inf, 1, 1]])
    with pytest.raises(errors.NonFiniteInputError) as caught:
        compiled(qp()).solve(*data)
    says(caught.value, ["parameter 'h'"])
    assert compiled(qp(), on_error="flag").solve(*data).status in (Status.NONFINITE_INPUT, Status.PRIMAL_INFEASIBLE)


@item("nan_cotangent")
def _(it):
    rng = np.random.default_rng(0)
    data = stacked(*(qp_data(rng) for _ in range(3)))
    w = rng.standard_normal((3, 3))
    broken = w.copy()
    broken[1, 0] = np.nan
    layer = compiled(qp())
    for framework in FRAMEWORKS:
        _x, vjp, _ = solve(framework, lc.export(layer, framework), data)
        for a, b in zip(vjp([w]), vjp([broken]), strict=True):
            assert np.isnan(b[1]).any()
            np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])


# Shapes, types, counts ---------------------------------------------------------------------------------------------------


@item("too_few_params")
def _(it):
    data = qp_data(np.random.default_rng(0))
    for framework in FRAMEWORKS:
        with pytest.raises(errors.ShapeError) as caught:
            lc.export(compiled(qp()), framework)(*data[:2])
        says(caught.value, it["says"])


@item("wrong_length")
def _(it):
    _q, G, h = qp_data(np.random.default_rng(0))
    for framework in FRAMEWORKS:
        with pytest.raises(errors.ShapeError) as caught:
            lc.export(compiled(qp()), framework)(np.ones(4), G, h)
        says(caught.value, it["says"])


@item("batch_mismatch")
def _(it):
    q, G, h = qp_data(np.random.default_rng(0))
    for framework in FRAMEWORKS:
        with pytest.raises(errors.ShapeError) as caught:
            lc.export(compiled(qp()), framework)(np.stack([q] * 2), G, np.stack([h] * 3))
        says(caught.value, it["says"])


@item("two_batch_axes")
def _(it):
    rng = np.random.default_rng(0)
    data = stacked(*(qp_data(rng) for _ in range(4)))
    square = [a.reshape(2, 2, *a.shape[1:]) for a in data]
    w = rng.standard_normal((4, 3))
    for framework in FRAMEWORKS:
        layer = lc.export(compiled(qp()), framework)
        (flat,), vjp, _ = solve(framework, layer, data)
        (x,), vjp_square, _ = solve(framework, layer, square)
        np.testing.assert_array_equal(x.reshape(4, 3), flat)
        for a, b in zip(vjp_square([w.reshape(2, 2, 3)]), vjp([w]), strict=True):
            np.testing.assert_array_equal(a.reshape(b.shape), b)


@item("batch_one")
def _(it):
    data = [a[None] for a in qp_data(np.random.default_rng(0))]
    for framework in FRAMEWORKS:
        (x,), vjp, _ = solve(framework, lc.export(compiled(qp()), framework), data)
        assert x.shape == (1, 3)
        assert [g.shape for g in vjp([np.ones((1, 3))])] == [a.shape for a in data]


@item("float32")
def _(it):
    torch, jax, tf = pytest.importorskip("torch"), pytest.importorskip("jax"), pytest.importorskip("tensorflow")
    data = [a.astype(np.float32) for a in qp_data(np.random.default_rng(0))]
    layer = compiled(qp())
    assert lc.export(layer, "numpy")(*data)[0].dtype == np.float32
    tensors = [torch.tensor(a, requires_grad=True) for a in data]
    (x,) = lc.export(layer, "torch")(*tensors)
    x.sum().backward()
    assert {x.dtype, *(t.grad.dtype for t in tensors)} == {torch.float32}
    (y,), pull = jax.vjp(lc.export(layer, "jax"), *(jax.numpy.asarray(a) for a in data))
    assert {y.dtype, *(g.dtype for g in pull((y,)))} == {np.dtype("float32")}
    constants = [tf.constant(a) for a in data]
    with tf.GradientTape() as tape:
        tape.watch(constants)
        (z,) = lc.export(layer, "tensorflow")(*constants)
    assert {z.dtype, *(g.dtype for g in tape.gradient(z, constants))} == {tf.float32}


@item("int64")
def _(it):
    q, G, h = np.array([-2, 3, 1]), np.eye(3), np.ones(3)
    (expected,) = compiled(qp()).solve(q.astype(float), G, h).outputs
    for framework in FRAMEWORKS:
        with contextlib.suppress(errors.DtypeError):
            layer = lc.export(compiled(qp()), framework)
            np.testing.assert_allclose(
                np.asarray(layer(_constant(framework, q), _constant(framework, G), _constant(framework, h))[0]), expected, 1e-6
            )


def _constant(framework, a):
    if framework == "torch":
        return pytest.importorskip("torch").tensor(a)
    if framework == "tensorflow":
        return pytest.importorskip("tensorflow").constant(a)
    return a


@item("complex")
def _(it):
    q, G, h = qp_data(np.random.default_rng(0))
    for framework in FRAMEWORKS:
        with pytest.raises(errors.DtypeError) as caught:
            lc.export(compiled(qp()), framework)(_constant(framework, q + 1j), _constant(framework, G), _constant(framework, h))
        says(caught.value, it["says"])


@item("list_input")
def _(it):
    data = qp_data(np.random.default_rng(0))
    (expected,) = compiled(qp()).solve(*data).outputs
    for framework in FRAMEWORKS:
        with contextlib.suppress(errors.DtypeError):
            (x,) = lc.export(compiled(qp()), framework)(*(a.tolist() for a in data))
            np.testing.assert_allclose(np.asarray(x), expected, 1e-5)


# Declared attributes -----------------------------------------------------------------------------------------------------


@item("nonneg_negative")
def _(it):
    p, lam, x = cp.Parameter(2, name="p"), cp.Parameter(2, nonneg=True, name="lam"), cp.Variable(2, name="x")
    built = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + lam @ cp.abs(x))), [p, lam], [x]
    with pytest.raises(errors.ParameterDomainError) as caught:
        compiled(built).solve(np.ones(2), np.array([1.0, -1.0]))
    says(caught.value, it["says"])
    assert not compiled(built, on_error="flag", options={"check_domain": False}).solve(np.ones(2), -np.ones(2)).info.ok


@item("symmetric_asymmetric")
def _(it):
    S, X = cp.Parameter((2, 2), symmetric=True, name="S"), cp.Variable((2, 2), symmetric=True, name="X")
    built = cp.Problem(cp.Minimize(cp.sum_squares(X - S)), [X >> 0]), [S], [X]
    with pytest.raises(errors.ParameterDomainError) as caught:
        compiled(built).solve(np.asarray(it["values"], dtype=float))
    says(caught.value, it["says"])


@item("psd_not_psd")
def _(it):
    S, X = cp.Parameter((2, 2), PSD=True, name="S"), cp.Variable((2, 2), symmetric=True, name="X")
    built = cp.Problem(cp.Minimize(cp.trace(S @ X) + cp.sum_squares(X))), [S], [X]
    value = np.asarray(it["values"], dtype=float)
    try:
        np.testing.assert_allclose(compiled(built).solve(value).outputs[0], -value / 2, atol=1e-9)
    except errors.ParameterDomainError as error:
        says(error, it["says"])


# Build time --------------------------------------------------------------------------------------------------------------


@item("non_dcp")
def _(it):
    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    with pytest.raises(errors.NotDCPError) as caught:
        lc.compile(cp.Problem(cp.Maximize(cp.sum_squares(x - p)), [x <= 1]))
    says(caught.value, it["says"])


@item("quad_form_param")
def _(it):
    P, q, x = cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="q"), cp.Variable(3, name="x")
    rng = np.random.default_rng(0)
    root = rng.standard_normal((3, 3)) + 2 * np.eye(3)
    value, linear = root @ root.T, rng.standard_normal(3)
    layer = compiled((cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x)), [P, q], [x]))
    np.testing.assert_allclose(layer.solve(value, linear).outputs[0], -np.linalg.solve(value, linear) / 2, rtol=1e-9)
    with pytest.raises(errors.NotDPPError) as caught:
        lc.compile(cp.Problem(cp.Minimize(q @ x), [cp.quad_form(x, P) <= 1]))
    says(caught.value, it["says"])


@item("extra_parameter")
def _(it):
    problem, parameters, variables = qp()
    with pytest.raises(errors.ParameterMismatchError) as caught:
        lc.compile(problem, parameters=[*parameters, cp.Parameter(name="s")], variables=variables)
    says(caught.value, [f"'{word}'" for word in it["says"]])


@item("integer_variable")
def _(it):
    for attribute in ("integer", "boolean"):
        x, p = cp.Variable(2, name="choice", **{attribute: True}), cp.Parameter(2, name="p")
        with pytest.raises(errors.IntegerVariableError) as caught:
            lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x <= 1, x >= 0]))
        says(caught.value, [*it["says"], "choice"])


@item("complex_variable")
def _(it):
    x, p = cp.Variable(2, complex=True, name="x"), cp.Parameter(2, name="p")
    with pytest.raises(errors.UnsupportedConeError) as caught:
        lc.compile(cp.Problem(cp.Minimize(cp.norm2(x - p))))
    says(caught.value, it["says"])


@item("unconstrained_minimax")
def _(it):
    A, b, x = cp.Parameter((6, 2), name="A"), cp.Parameter(6, name="b"), cp.Variable(2, name="x")
    layer = compiled((cp.Problem(cp.Minimize(cp.max(A @ x - b))), [A, b], [x]))
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 2))
    a[5] = -a[:5].sum(axis=0)
    offset = rng.standard_normal(6)
    by_highs = linprog([0, 0, 1], np.c_[a, -np.ones(6)], offset, bounds=(None, None))
    np.testing.assert_allclose(layer.solve(a, offset).outputs[0], by_highs.x[:2], rtol=1e-9, atol=1e-9)


@item("not_a_problem")
def _(it):
    with pytest.raises(errors.BuildError) as caught:
        lc.compile("a string")
    assert isinstance(caught.value, TypeError)
    says(caught.value, it["says"])


# Degenerate but legal ----------------------------------------------------------------------------------------------------


@item("zero_equality_row")
def _(it):
    y, A, b = arrays(it["values"])
    layer = compiled(projection())
    solution = layer.solve(y, A, b)
    np.testing.assert_allclose(solution.outputs[0], y - (y.sum() - b[0]) / 3, rtol=1e-9)
    assert solution.info.ok.all()
    assert all(np.isfinite(g).all() for g in layer.vjp([y, A, b], [np.ones(3)]))


@item("licq_fails_vertex")
def _(it):
    layer = compiled(lp())
    solution = layer.solve(*arrays(it["values"]))
    np.testing.assert_allclose(solution.outputs[0], [1, 1], atol=1e-8)
    assert solution.info.degenerate.all()
    assert all(np.isfinite(g).all() for g in layer.vjp(arrays(it["values"]), [np.ones(2)]))


@item("lp_face_of_optima")
def _(it):
    layer = compiled(lp())
    solution, again = layer.solve(*arrays(it["values"])), layer.solve(*arrays(it["values"]))
    (x,) = solution.outputs
    np.testing.assert_array_equal(x, again.outputs[0])
    assert abs(x[0] - 1) < 1e-8
    assert abs(x[1]) <= 1 + 1e-8
    assert not solution.info.unique.any()
    assert all(np.isfinite(g).all() for g in layer.vjp(arrays(it["values"]), [np.ones(2)]))


@item("weakly_active")
def _(it):
    layer = compiled(qp())
    evaluation = layer.evaluate(arrays(it["values"]))
    np.testing.assert_allclose(evaluation.outputs[0], [1, 0, 0], atol=1e-6)
    dq, _dG, dh = evaluation.vjp([np.array([1.0, 0.0, 0.0])])
    t = dh[0]  # x1 = min(-q1, h1): the Clarke set is {(-(1 - t), t): 0 <= t <= 1}
    assert -1e-9 <= t <= 1 + 1e-9
    assert abs(dq[0] + (1 - t)) < 1e-6


# Scaling -----------------------------------------------------------------------------------------------------------------


@item("row_scale_1e8_1e-8")
def _(it):
    evaluation = compiled(qp()).evaluate(arrays(it["values"]))
    np.testing.assert_allclose(evaluation.outputs[0], [1, 1, 1], rtol=1e-6)
    J = np.array([evaluation.vjp([w])[2] for w in np.eye(3)])
    np.testing.assert_allclose(np.diag(J), [1e-8, 1, 1e8], rtol=1e-3)
    np.testing.assert_allclose(J * [1e8, 1, 1e-8], np.eye(3), atol=1e-3)


@item("solution_scale_1e6")
def _(it):
    solution = compiled(qp()).solve(*arrays(it["values"]))
    np.testing.assert_allclose(solution.outputs[0], [5e5, 1e6, 1e6], rtol=1e-9)


# Limits and options ------------------------------------------------------------------------------------------------------


@item("iteration_limit")
def _(it):
    data = qp_data(np.random.default_rng(0))
    data[2] -= 1.0
    solution = compiled(qp(), on_error="flag", options={"max_iterations": 1}).solve(*data)
    assert solution.status == Status.ITERATION_LIMIT
    assert np.isnan(solution.outputs[0]).all()
    with pytest.raises(errors.SolveError) as caught:
        compiled(qp(), options={"max_iterations": 1}).solve(*data)
    says(caught.value, it["says"])


@item("unknown_solver")
def _(it):
    with pytest.raises(errors.InputError) as caught:
        compiled(qp(), solver="NOPE")
    says(caught.value, it["says"])
    with pytest.raises(errors.OptionError) as caught:
        compiled(qp(), options={"max_iter": 10})
    says(caught.value, ["max_iter", "max_iterations"])


# Autodiff surface --------------------------------------------------------------------------------------------------------


@item("vmap")
def _(it):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    data = stacked(*(qp_data(rng) for _ in range(3)))
    layer = compiled(qp())
    (expected,) = layer.solve(*data).outputs
    by_torch = torch.func.vmap(lc.export(layer, "torch"))(*(torch.tensor(a) for a in data))[0]
    with jax.enable_x64(True):
        by_jax = jax.vmap(lc.export(layer, "jax"))(*(jax.numpy.asarray(a) for a in data))[0]
    np.testing.assert_array_equal(by_torch.numpy(), expected)
    np.testing.assert_array_equal(np.asarray(by_jax), expected)


@item("deepcopy_to")
def _(it):
    torch = pytest.importorskip("torch")
    data = [torch.tensor(a) for a in qp_data(np.random.default_rng(0))]
    layer = lc.export(compiled(qp()), "torch")
    twin = copy.deepcopy(layer).to(torch.float32)
    assert torch.equal(layer(*data)[0], twin(*data)[0])
