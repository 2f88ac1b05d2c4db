"""The dual active-set method: right signs, also where rows depend on each other, and no answer where there is none."""

import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.solvers.interior_point.sweeping import begin, run, sweep


def _problem(count, m, rank, seed, repeated=0):
    """R = V V' with rows of length one, the last of which repeat the first, and a q with a solution: q = s0 - R z0, s0 and z0 positive."""
    r = np.random.default_rng(seed)
    V = r.standard_normal((count, m, rank))
    V[:, m - repeated :] = V[:, :repeated]
    V /= np.linalg.norm(V, axis=2, keepdims=True)
    R, z = V @ V.swapaxes(1, 2), r.random((count, m))
    s = r.random((count, m)) * (r.random((count, m)) < 0.3)
    q = s - (R @ z[:, :, None])[:, :, 0]
    return R, q / np.abs(q).max(axis=1, keepdims=True)


def _answer(R, q, active):
    """(z, s) at these active rows."""
    z = np.zeros(len(q))
    z[active] = -np.linalg.lstsq(R[np.ix_(active, active)], q[active], rcond=None)[0]
    return z, q + R @ z


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize(("m", "rank", "repeated"), [(1, 3, 0), (7, 10, 0), (12, 4, 0), (20, 20, 5), (45, 60, 0), (45, 20, 10)])
def test_signs_are_right_at_the_active_rows(framework, m, rank, repeated):
    xp = pytest.importorskip(framework) and arrays.get(framework)
    R, q = _problem(9, m, rank, 3, repeated)
    active, sure, steps = (np.asarray(a) for a in sweep(xp, xp.new(R), xp.new(q), xp.new(np.ones(9, bool))))
    assert sure.all() and (steps <= 3 * m).all()
    wide, all_idle = xp.new(np.concatenate([R, q[:, :, None]], axis=2)), xp.new(np.ones((9, m), bool))
    tableau, same, *_ = (np.asarray(a) for a in run(xp, begin(xp, wide, all_idle, xp.new(np.ones((9, 1), bool)))))
    assert np.array_equal(active, same)
    for i in range(9):
        z, s = _answer(R[i], q[i], active[i])
        assert z.min() > -1e-9 and s.min() > -1e-9 and np.abs(s[active[i]]).max(initial=0.0) < 1e-9
        np.testing.assert_allclose(tableau[i][:, m], np.where(active[i], -z, s), atol=1e-9)
        inverse = 2.0 * np.eye(active[i].sum()) - tableau[i][np.ix_(active[i], active[i])]
        assert np.abs(inverse @ R[i][np.ix_(active[i], active[i])] - np.eye(len(inverse))).max(initial=0.0) < 1e-7


def test_what_has_no_solution_is_not_sure_and_neighbors_do_not_matter():
    xp = arrays.get("numpy")
    R, q = _problem(3, 6, 6, 5)
    side = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    R[1], q[1] = np.outer(side, side), np.array([1.0, 0.5, 0.2, -0.1, 0.3, 0.4])  # x >= 0.1, and in the last row x <= -0.4
    q[1, 5] = -0.4
    idle = np.array([True, True, False])
    active, sure, steps = sweep(xp, R, q, idle)
    assert sure.tolist() == [True, False, False] and steps[2] == 0
    alone = sweep(xp, R[:1], q[:1], idle[:1])
    assert np.array_equal(alone[0][0], active[0]) and alone[2][0] == steps[0]


def test_halves_of_a_batch_find_what_singles_find():
    xp = arrays.get("numpy")
    R, q = _problem(70, 30, 40, 7)
    active, sure, steps = sweep(xp, R, q, np.ones(70, bool))
    assert sure.all() and len(set(steps.tolist())) > 3
    for i in range(0, 70, 9):
        alone = sweep(xp, R[i : i + 1], q[i : i + 1], np.ones(1, bool))
        assert np.array_equal(alone[0][0], active[i]) and alone[2][0] == steps[i]
