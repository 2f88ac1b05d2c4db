"""The array interior point as an engine: the corpus problems of its cones give the answers of the lanes and of Clarabel."""

import numpy as np
import pytest

from layercompiler.plan import CompiledProblem
from layercompiler.solvers import engine
from tests.corpus import stored


def mine(size):
    kind = engine("interior_point")
    return [name for name in stored.names(size) if kind.accepts(stored.compiled(size, name).structure)]


def test_the_corpus_has_problems_for_it():
    assert len(mine("small")) >= 20


@pytest.mark.parametrize("size", ["small", pytest.param("medium", marks=pytest.mark.slow)])
def test_three_engines_agree_on_the_corpus(size):
    for name in mine(size):
        program, points = stored.compiled(size, name).program, list(stored.points(size, name))
        theta = [np.stack(a) for a in zip(*(p.theta for p in points), strict=True)]
        found = {s: CompiledProblem(program, s).evaluate(theta) for s in ("interior_point", "lanes", "clarabel")}
        own = found["interior_point"]
        assert set(own.info.engine.ravel()) == {"interior_point"}, name
        assert own.info.residual.max() <= 1e-11, name
        w = [np.cos(1.0 + np.arange(o.size)).reshape(o.shape) for o in own.outputs]
        for other in (found["lanes"], found["clarabel"]):
            for a, b in zip((*own.outputs, *own.vjp(w)), (*other.outputs, *other.vjp(w)), strict=True):
                assert np.abs(a - b).max() <= 1e-7 * (1 + np.abs(b).max()), name
