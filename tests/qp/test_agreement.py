"""The linear and quadratic programs of the corpus: lanes, the dense kernel, the array interior point and Clarabel give one answer.

An engine may hand on an instance that it cannot take to rounding; the answer is still held against the others.
"""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from tests.corpus import stored

LINEAR = (
    *("lp_inequality", "linf_approximation", "chebyshev_centre", "min_cost_flow", "cvar_portfolio", "sparsemax", "dense_qp", "markowitz"),
    *("mpc", "lasso", "nn_ridge", "svm_primal", "tv_denoise", "huber_regression", "min_energy_control"),
)
ENGINES = ("lanes", "dense_qp", "interior_point", "clarabel")
pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")


def linear(structure):
    return all(cone.name in ("zero", "nonnegative") for cone, _ in structure.cones.blocks)


def test_these_are_all_of_them():
    assert tuple(n for n in stored.names("small") if linear(stored.compiled("small", n).structure)) == LINEAR


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("size", ["small", pytest.param("medium", marks=pytest.mark.slow)])
def test_four_engines_agree(name, size):
    if name not in stored.names(size):
        pytest.skip("it has no references of this size")
    case, points = stored.case(size, name), list(stored.points(size, name))
    theta = [np.stack(a) for a in zip(*(p.theta for p in points), strict=True)]
    w = [np.stack(a) for a in zip(*(p.cotangents[0] for p in points), strict=True)]
    answers = {}
    for engine in ENGINES:
        compiled = lc.compile(case.problem, parameters=case.parameters, variables=case.variables, solver=engine)
        found = compiled.evaluate(theta)
        assert found.info.ok.all() and found.info.residual.max() <= 1e-11
        assert engine in found.info.engine.ravel()
        answers[engine] = [*found.outputs], [*found.vjp(w)]
    for engine in ENGINES[1:]:
        for kind, tolerance in ((0, 1e-9), (1, 1e-7)):
            for got, expected in zip(answers[engine][kind], answers["lanes"][kind], strict=True):
                assert np.linalg.norm(got - expected) <= tolerance * (1 + np.linalg.norm(expected)), (
                    engine,
                    "gradient" if kind else "value",
                )
