"""The compiled maps against the arrays that state them: data, points, gradients; batches against singles; threads."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from layercompiler.derivatives.scaling import Equilibrator
from layercompiler.plan.evaluation import Bound
from tests.corpus import stored

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
NAMES = stored.names("small")


def both(name, batch=3):
    """A compiled problem, the same without its compiled maps, and a batch of arguments in which the last one is shared."""
    c = stored.case("small", name)
    make = lambda: lc.compile(c.problem, parameters=c.parameters, variables=c.variables)  # noqa: E731
    compiled, plain = make(), make()
    plain.binding = None
    rng = np.random.default_rng(7)
    draws = [c.sample(rng) for _ in range(batch)]
    arrays = [np.stack([np.asarray(d[k], dtype=float) for d in draws]) for k in range(len(c.parameters))]
    return compiled, plain, arrays


def close(a, b, tolerance=1e-13):
    scale = max(float(np.abs(b).max(initial=0.0)), 1e-300)
    assert a.shape == b.shape
    assert float(np.abs(a - b).max(initial=0.0)) <= tolerance * scale


@pytest.mark.parametrize("name", NAMES)
def test_data_points_and_gradients_are_those_of_the_arrays(name):
    compiled, plain, arrays = both(name)
    mine, theirs = (Bound.of(p, p.reader.read(arrays, False, True)) for p in (compiled, plain))
    for part in ("P", "q", "d", "A", "b"):
        a, b = (getattr(k.reduction.data, part) for k in (mine, theirs))
        close(np.broadcast_to(a, b.shape) if len(a) == 1 else a, np.broadcast_to(b, a.shape) if len(b) == 1 else b)
    evaluation = plain.evaluate(arrays)
    again = plain.restore(arrays, evaluation.z)
    compared = compiled.restore(arrays, evaluation.z)
    rng = np.random.default_rng(1)
    for a, b in zip(compared.outputs, again.outputs, strict=True):
        close(a, b, 1e-12)
    g = [rng.standard_normal(o.shape) for o in evaluation.outputs]
    for a, b in zip(compared.vjp(g), again.vjp(g), strict=True):
        close(a, b, 1e-10)
    h = [rng.standard_normal(a.shape) if not p.attributes else np.zeros(a.shape) for a, p in zip(arrays, compiled.parameters, strict=True)]
    for a, b in zip(compared.jvp(h), again.jvp(h), strict=True):
        close(a, b, 1e-8)


def test_batches_are_singles_and_threads_do_not_matter():
    compiled, _, arrays = both("lasso" if "lasso" in NAMES else NAMES[0], 40)
    values = compiled.reader.read(arrays, False, True)
    bound = Bound.of(compiled, values)
    for i in (0, 17, 39):
        one = Bound.of(compiled, compiled.reader.read([a[i : i + 1] for a in arrays], False, True))
        for part in ("P", "q", "d", "A", "b"):
            whole, single = getattr(bound.scaled, part), getattr(one.scaled, part)
            np.testing.assert_array_equal(whole[i if len(whole) > 1 else 0], single[0])
    thetas = [np.repeat(t, 400, axis=0) if len(t) > 1 else t for t in bound.chain.thetas()]
    count = max(len(t) for t in thetas)
    few, many = (compiled.binding.bind(thetas, count, threads)[0].data for threads in (1, 2))
    for part in ("P", "q", "d", "A", "b"):
        np.testing.assert_array_equal(getattr(few, part), getattr(many, part))


def test_gradients_of_shared_parameters_are_sums():
    compiled, plain, arrays = both("lasso" if "lasso" in NAMES else NAMES[0], 4)
    shared = [arrays[0][0], *arrays[1:]]
    evaluation = compiled.evaluate(shared)
    g = [np.random.default_rng(2).standard_normal(o.shape) for o in evaluation.outputs]
    for a, b in zip(evaluation.vjp(g), plain.evaluate(shared).vjp(g), strict=True):
        close(a, b, 1e-9)


def test_equilibration_is_that_of_the_arrays():
    rng = np.random.default_rng(4)
    compiled, _, arrays = both(NAMES[0], 6)
    data = Bound.of(compiled, compiled.reader.read(arrays, False, True)).reduction.data
    size = np.exp(rng.uniform(-9, 9, (6, 1)))
    size[2] = 1.0
    rough = replace(data, b=np.broadcast_to(data.b, (6, data.b.shape[1])) * size, q=data.q * np.exp(rng.uniform(-9, 9, (6, 1))))
    plan = Equilibrator(compiled.structure)
    (mine, scaling), (theirs, expected) = plan(rough), plan.in_arrays(rough)
    assert scaling is not None and expected is not None
    for part in ("P", "q", "A", "b"):
        np.testing.assert_array_equal(getattr(mine, part), np.broadcast_to(getattr(theirs, part), getattr(mine, part).shape))
    for part in ("x", "y", "s", "r_x", "r_y"):
        np.testing.assert_array_equal(getattr(scaling, part), getattr(expected, part))


@pytest.mark.parametrize("rows, width, factor", [(150, 13, 1.0), (3, 40, 3.0), (64, 8, 1.0), (70, 1, 0.7)])
def test_squares_of_many_rows(rows, width, factor):
    """Tiles, blocks of rows, and coefficients that are no powers of two, against the arrays."""
    x, F, q = cp.Variable(width), cp.Parameter((rows, width)), cp.Parameter(width)
    y = cp.Variable(rows)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y) + q @ x + cp.sum_squares(x)), [factor * y == F @ x, x <= 1])
    make = lambda: lc.compile(problem, parameters=[F, q], variables=[x, y])  # noqa: E731
    compiled, plain = make(), make()
    plain.binding = None
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal((5, rows, width)) / np.sqrt(rows), rng.standard_normal((5, width))]
    mine, theirs = (Bound.of(p, p.reader.read(arrays, False, True)).reduction.data for p in (compiled, plain))
    for part in ("P", "q", "A", "b"):
        a, b = getattr(mine, part), getattr(theirs, part)
        close(np.broadcast_to(a, (5, a.shape[1])), np.broadcast_to(b, (5, b.shape[1])))
    one, other = compiled.evaluate(arrays), plain.evaluate(arrays)
    g = [rng.standard_normal(o.shape) for o in one.outputs]
    for a, b in zip([*one.outputs, *one.vjp(g)], [*other.outputs, *other.vjp(g)], strict=True):
        close(a, b, 1e-10)
