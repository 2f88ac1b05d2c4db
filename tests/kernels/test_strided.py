"""The numeric headers through another accessor: memory in which the numbers of eight instances take turns, as a GPU's threads see it.

Bit for bit what the scalar kernels give, which read and write through plain pointers.
"""

import numpy as np
import pytest

from layercompiler.kernels import LDL, Conic, Newton, available, instruction_set
from tests.kernels.random_programs import matrix_programs, programs, structure
from tests.kernels.test_ldl import quasi_definite
from tests.kernels.test_newton import case

pytestmark = pytest.mark.skipif(not available(), reason="the kernels are not built")
BOTH = ("scalar", "strided")


def same(a, b):
    for got, want in zip(b, a, strict=True):
        np.testing.assert_array_equal(got, want)


def test_it_is_a_target_of_its_own_that_is_never_chosen():
    assert instruction_set("strided") == "strided" != instruction_set()


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 21])
def test_factors_and_solutions(batch):
    rows, cols, signs, values = quasi_definite(np.random.default_rng(batch), 40, 50, 0.1, batch)
    rhs = np.random.default_rng(1).normal(size=(batch, 7, 90))
    found = []
    for isa in BOTH:
        factor = LDL(90, rows, cols, signs, isa=isa).factor(values)
        one = LDL(90, rows, cols, signs, isa=isa).factor(values[:1])
        found.append((factor.pivots, *factor.solve(rhs), *one.solve(rhs[:1]), *factor.solve(rhs[:, 0])))
    same(*found)


@pytest.mark.parametrize("kind", ["solvable", "primal", "dual"])
@pytest.mark.parametrize("kinds", ["l", "zlq", "zs", "e", "p", "zlqsep"])
def test_interior_points(kinds, kind):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        n, cones = structure(rng, kinds)
        P, A, data = programs(rng, n, cones, 11, kind)
        a, b = (Conic(n, P, A, cones, isa=isa).solve(*data) for isa in BOTH)
        same(*([r.status, r.iterations, r.x, r.y, r.s] for r in (a, b)))
        shared = [data[0][:1], data[1], data[2][:1], data[3]]
        same(*([r.status, r.x, r.y, r.s] for r in (Conic(n, P, A, cones, isa=isa).solve(*shared) for isa in BOTH)))
        warm = [Conic(n, P, A, cones, isa=isa).solve(*data, warm_start=(a.x, a.y, a.s)) for isa in BOTH]
        same(*([r.status, r.iterations, r.x, r.y, r.s] for r in warm))


def test_matrix_variables_that_cones_own():
    n, cones, P, A, data = matrix_programs(np.random.default_rng(3), (3, 5), 9)
    same(*([r.status, r.x, r.y, r.s] for r in (Conic(n, P, A, cones, isa=isa).solve(*data) for isa in BOTH)))


@pytest.mark.parametrize("kinds", ["zl", "q", "zs", "e", "p", "zlqsep"])
def test_refinement_and_derivatives(kinds):
    n, P, A, cones, data, x, v = case(kinds, 2)
    rng = np.random.default_rng(0)
    g, h = rng.normal(size=x.shape), rng.normal(size=v.shape)
    found = []
    for isa in BOTH:
        r = Newton(n, P, A, cones, isa=isa).refine(*data, x, v)
        found.append((r.x, r.v, r.y, r.norm, *r.linear.solve(g, h)))
    same(*found)
