"""Where the first Newton step leaves rounding magnified, one more on the whole batch ends it."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler.solvers.interior_point import dual
from tests.qp import families


@pytest.mark.parametrize(("kind", "n", "count"), [("dqp", 10, 128), ("ill", 50, 32)])
def test_one_more_step_makes_all_exact(kind, n, count, monkeypatch):
    arrays = families.batch(kind, n, n, n // 4, count)
    taken = []
    again = dual._again

    def watched(xp, cone, *held):
        *best, exact = again(xp, cone, *held)
        taken.append((np.max(held[9]), np.max(best[3])))
        return *best, exact

    monkeypatch.setattr(dual, "_again", watched)
    monkeypatch.setattr(dual, "_polished", lambda *_: pytest.fail("a step of the whole batch should do"))
    info = lc.compile(lc.QP(n, n, n // 4), solver="interior_point").evaluate(arrays).info
    assert info.ok.all() and taken and all(before > dual.EXACT >= after for before, after in taken)
