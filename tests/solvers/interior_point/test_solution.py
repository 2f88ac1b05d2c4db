"""The array interior point on dense programs: solutions, certificates, degenerate and badly scaled ones, and the linear solves."""

import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.solvers.interior_point import Program, Settings, Symmetric, linear_solve, solve
from layercompiler.solvers.interior_point.program import missing, unsolved
from layercompiler.status import Status
from tests.solvers.interior_point import programs


def run(framework, cone, *numbers, definite=True, compact=None):
    """The program and its solution, both in numpy."""
    xp = arrays.get(framework)
    program = Program(xp, cone, *(xp.new(a) for a in numbers))
    settings = Settings.of(xp, program.p, definite, 1e-8)
    if compact is not None:
        settings = Settings(definite, compact)
    found = solve(program, settings)
    return program, settings, found


@pytest.fixture(params=["numpy", "torch"])
def framework(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return request.param


@pytest.mark.parametrize("kind", ["std", "ill", "dqp", "optnet"])
def test_families_are_solved_to_rounding(framework, kind):
    numbers = programs.family(kind, 20, 20, 5, 8)
    _, _, found = run(framework, Symmetric(20), *numbers)
    x, v = np.asarray(found.point.x), np.asarray(found.point.v)
    assert (np.asarray(found.status) == 0).all() and np.asarray(found.by_dual).all()
    for i in range(8):
        one = [a[i] for a in numbers]
        expected, y, z, _, _ = programs.exact(*one, v[i] > 0)
        np.testing.assert_allclose(x[i], expected, atol=1e-10)
        np.testing.assert_allclose(np.maximum(v[i], 0), z, atol=1e-9 * (1 + np.abs(z).max()))
        np.testing.assert_allclose(np.asarray(found.point.y)[i], y, atol=1e-9 * (1 + np.abs(y).max()))


@pytest.mark.parametrize("kind", ["std", "ill", "dqp", "optnet"])
def test_both_forms_agree(kind):
    numbers = programs.family(kind, 15, 15, 3, 6)
    first, second = (run("numpy", Symmetric(15), *numbers, definite=d)[2] for d in (True, False))
    assert first.by_dual.all() and not second.by_dual.any()
    np.testing.assert_allclose(first.point.x, second.point.x, atol=1e-9)


def test_the_loop_without_compaction_gives_the_same(framework):
    numbers = programs.family("ill", 12, 12, 3, 9)
    points = [np.asarray(run(framework, Symmetric(12), *numbers, compact=c)[2].point.x) for c in (True, False)]
    np.testing.assert_allclose(points[0], points[1], atol=1e-11)


def test_a_batch_is_its_instances_and_neighbors_do_not_matter():
    numbers = [np.array(a) for a in programs.family("std", 10, 12, 3, 6)]
    numbers[3][2] *= 1e3  # equalities that the inequalities may contradict
    numbers[5][4] -= 50.0
    whole = run("numpy", Symmetric(12), *numbers)[2]
    for i in range(6):
        single = run("numpy", Symmetric(12), *(a[i : i + 1] for a in numbers))[2]
        assert single.status[0] == whole.status[i]
        if single.status[0] == 0:
            np.testing.assert_allclose(single.point.x[0], whole.point.x[i], atol=1e-11)


def box(n, batch, r):
    G = np.concatenate([np.eye(n), -np.eye(n)])[None]
    A = r.standard_normal((batch, 3, n))
    return A, np.einsum("bij,bj->bi", A, r.uniform(-0.5, 0.5, (batch, n))), G, np.ones((batch, 2 * n))


@pytest.mark.parametrize("quadratic", [False, True])
def test_rows_that_depend_on_each_other(framework, quadratic):
    r = np.random.default_rng(3)
    n, batch = 9, 5
    A, b, G, h = box(n, batch, r)
    A, b = np.concatenate([A, A[:, :1] + A[:, 1:2]], 1), np.concatenate([b, b[:, :1] + b[:, 1:2]], 1)
    Q, p = (np.eye(n) if quadratic else np.zeros((n, n)))[None], r.standard_normal((batch, n))
    _, _, found = run(framework, Symmetric(2 * n), Q, p, A, b, G, h, definite=quadratic)
    assert (np.asarray(found.status) == 0).all()
    assert np.asarray(found.point.residual).max() <= 1e-12
    b[:, -1] += 1.0
    _, _, found = run(framework, Symmetric(2 * n), Q, p, A, b, G, h, definite=quadratic)
    assert (np.asarray(found.status) == Status.PRIMAL_INFEASIBLE).all()
    y, z = np.asarray(found.point.y), np.maximum(np.asarray(found.point.v), 0)
    gain = -np.sum(b * y, 1) - np.sum(h * z, 1)
    push = np.einsum("bij,bi->bj", A, y) + np.einsum("ij,bi->bj", G[0], z)
    assert (gain > 0).all() and (np.abs(push).max(1) <= 1e-6 * gain).all()


def test_infeasible_unbounded_and_nonfinite_beside_a_good_one():
    eye = np.eye(2)
    G = np.array([[[1.0, 0], [-1, 0]]] * 3)
    h = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, np.nan]])
    _, _, found = run("numpy", Symmetric(2), eye[None], np.array([[1.0, 0]] * 3), np.zeros((1, 0, 2)), np.zeros((1, 0)), G, h)
    assert found.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.NONFINITE_INPUT]
    np.testing.assert_allclose(found.point.x[0], [-1.0, 0.0], atol=1e-14)
    _, _, found = run(
        "numpy", Symmetric(1), np.zeros((1, 2, 2)), np.array([[-1.0, 0], [1.0, 0]]), np.zeros((1, 0, 2)), np.zeros((1, 0)),
        np.array([[[-1.0, 0]]]), np.array([[0.0], [2.0]]), definite=False,
    )  # fmt: skip
    assert found.status.tolist() == [Status.DUAL_INFEASIBLE, Status.SOLVED]
    assert found.point.x[1, 0] == pytest.approx(-2.0, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "G", "h", "x"),
    [
        ([-2.0, 0], [[1.0, 0], [1, 0], [0, 1]], [1.0, 1, 5], [1.0, 0]),  # an active row twice
        ([-1.0, 0], [[1.0, 0], [0, 1]], [1.0, 5], [1.0, 0]),  # weakly active
    ],
)
def test_degenerate_corners(framework, p, G, h, x):
    none = np.zeros((1, 0, 2)), np.zeros((1, 0))
    _, _, found = run(framework, Symmetric(len(h)), np.eye(2)[None], np.array([p]), *none, np.array([G]), np.array([h]))
    assert int(found.status[0]) == 0
    np.testing.assert_allclose(np.asarray(found.point.x)[0], x, atol=1e-12)


def test_a_singular_objective_and_rows_of_all_sizes(framework):
    none = np.zeros((1, 0, 2)), np.zeros((1, 0))
    Q, p, G, h = np.diag([1.0, 0.0]), np.array([[-2.0, 1.0]]), np.array([[1.0, 0], [0, -1]]), np.array([1.0, 1.0])
    for scale in (1e-8, 1e-4, 1.0, 1e4, 1e8):
        D = np.array([scale, 1.0])
        _, _, found = run(framework, Symmetric(2), Q[None], p, *none, (D[:, None] * G)[None], (D * h)[None], definite=False)
        assert int(found.status[0]) == 0
        np.testing.assert_allclose(np.asarray(found.point.x)[0], [1.0, -1.0], atol=1e-9)


def test_many_more_rows_than_variables():
    r = np.random.default_rng(5)
    n, m, batch = 12, 240, 4
    G, Q = r.standard_normal((batch, m, n)), np.eye(n)[None]
    p, h = 10 * r.standard_normal((batch, n)), 1 + r.random((batch, m))
    _, _, found = run("numpy", Symmetric(m), Q, p, np.zeros((1, 0, n)), np.zeros((1, 0)), G, h)
    assert (found.status == 0).all() and not found.by_dual.any()
    for i in range(batch):
        expected, *_ = programs.exact(Q[0], p[i], np.zeros((0, n)), np.zeros(0), G[i], h[i], found.point.v[i] > 0)
        np.testing.assert_allclose(found.point.x[i], expected, atol=1e-11)


@pytest.mark.parametrize("kind", ["std", "ill", "lp", "duplicate"])
def test_linear_solves_are_symmetric_and_leave_nothing(framework, kind):
    r = np.random.default_rng(6)
    n, batch = 10, 6
    if kind in ("std", "ill"):
        numbers, cone = programs.family(kind, n, n, 3, batch), Symmetric(n)
    else:
        A, b, G, h = box(n, batch, r)
        numbers, cone = (np.zeros((1, n, n)), r.standard_normal((batch, n)), A, b, G, h), Symmetric(2 * n)
        if kind == "duplicate":
            numbers = (np.eye(n)[None], 3 * numbers[1], A[:, :0], b[:, :0], np.concatenate([G, G], 1), np.concatenate([h, h], 1))
            cone = Symmetric(4 * n)
    program, settings, found = run(framework, cone, *numbers, definite=kind != "lp")
    xp, sizes = program.xp, (n, numbers[2].shape[1], cone.m)
    rights = []
    for _ in range(2):
        r_z = r.standard_normal((batch, cone.m))
        if kind == "duplicate":  # rows that are one row twice must be asked for the same
            r_z = np.concatenate([r_z[:, : 2 * n]] * 2, 1)
        rights.append(tuple(xp.new(a) for a in (*(r.standard_normal((batch, s)) for s in sizes[:2]), r_z)))
    steps = [linear_solve(program, found.point.v, found.by_dual, found.factors, right, settings) for right in rights]
    left = unsolved(xp, missing(program, found.point.v, rights[0], steps[0]), rights[0])
    assert np.asarray(left).max() <= 1e-9
    one, other = (sum(np.asarray((a * b).sum(1)) for a, b in zip(steps[i], rights[1 - i], strict=True)) for i in (0, 1))
    np.testing.assert_allclose(one, other, atol=1e-8 * np.abs(one).max())
