"""Black boxes: what a user's solver may do wrong, and where it may run."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from layercompiler.status import Status


def solver(c):
    z = np.zeros(c.shape)
    z[np.arange(len(c)), c.argmin(axis=1)] = 1
    return z


COSTS = np.random.default_rng(0).standard_normal((6, 5))


def box(function=solver, on_error="raise", **settings):
    return lc.compile(lc.BlackBox(function), estimator=lc.DBB(), on_error=on_error, **settings)


def test_any_length_and_any_batch():
    compiled = box()
    for shape in ((5,), (2, 5), (2, 3, 7), (0, 4)):
        c = np.random.default_rng(0).standard_normal(shape)
        sample = compiled.sample([c])
        assert sample.outputs[0].shape == shape
        assert compiled.pull([c], sample.solutions, sample.noise, [c])[0].shape == shape
    shaped = lc.compile(lc.BlackBox(lambda c: c > 0, shape=(3, 4)), estimator=lc.Identity())
    assert shaped.sample([np.ones((2, 3, 4))]).outputs[0].shape == (2, 3, 4)
    with pytest.raises(errors.ShapeError, match="costs"):
        shaped.sample([np.ones((2, 3, 5))])


def test_an_instance_that_raises_is_named_and_the_others_are_kept():
    def picky(c):
        if (c[:, 0] > 10).any():
            raise ValueError("too large")
        return solver(c)

    bad = COSTS.copy()
    bad[[1, 4], 0] = 99.0
    with pytest.raises(errors.SolveError, match="2 of 6") as caught:
        box(picky).sample([bad])
    assert caught.value.indices == ((1,), (4,))
    assert "ValueError: too large" in str(caught.value)
    sample = box(picky, "flag").sample([bad])
    assert sample.status.tolist() == [0, Status.FAILED, 0, 0, Status.FAILED, 0]
    np.testing.assert_array_equal(sample.outputs[0][[0, 2, 3, 5]], solver(COSTS)[[0, 2, 3, 5]])


def test_failures_of_the_backward_pass_are_named_too():
    calls = []

    def second(c):
        calls.append(len(c))
        if len(calls) > 1:
            raise RuntimeError("only once")
        return solver(c)

    compiled = box(second)
    sample = compiled.sample([COSTS])
    with pytest.raises(errors.SolveError, match="backward"):
        compiled.pull([COSTS], sample.solutions, sample.noise, [np.ones(COSTS.shape)])


@pytest.mark.parametrize(
    "wrong", [lambda c: solver(c)[:, :2], lambda c: solver(c)[0], lambda c: None, lambda c: "path", lambda c: [[1], [1, 2]]]
)
def test_wrong_shapes_are_refused(wrong):
    with pytest.raises(errors.ShapeError, match="wrong shape"):
        box(wrong, "flag").sample([COSTS])


def test_a_single_solution_of_the_wrong_shape_is_named_and_the_others_are_kept():
    def ragged(c):
        return [z[:3] if row[0] == COSTS[2, 0] else z for row, z in zip(c, solver(c), strict=True)]

    with pytest.raises(errors.SolveError, match=r"1 of 6(.|\n)*shape \(3,\) instead of \(5,\)") as caught:
        box(ragged).sample([COSTS])
    assert caught.value.indices == ((2,),)
    sample = box(ragged, "flag").sample([COSTS])
    assert sample.status.tolist() == [0, 0, Status.FAILED, 0, 0, 0]
    np.testing.assert_array_equal(np.delete(sample.outputs[0], 2, 0), np.delete(solver(COSTS), 2, 0))
    np.testing.assert_array_equal(box(lambda c: list(solver(c))).sample([COSTS]).outputs[0], solver(COSTS))


def test_a_solution_that_is_nan_fails_alone():
    def sometimes(c):
        z = solver(c)
        z[c[:, 0] == COSTS[3, 0]] = np.nan
        return z

    assert box(sometimes, "flag").sample([COSTS]).status.tolist() == [0, 0, 0, Status.FAILED, 0, 0]
    with pytest.raises(errors.SolveError, match="NaN"):
        box(sometimes).sample([COSTS])


def test_a_solver_that_hangs_meets_its_time_limit():
    def hangs(c):
        time.sleep(3)
        return solver(c)

    began = time.perf_counter()
    with pytest.raises(errors.SolveError, match="time limit"):
        box(hangs, options={"time_limit": 0.1}).sample([COSTS])
    with ThreadPoolExecutor(2) as pool:
        sample = box(hangs, "flag", options={"time_limit": 0.1, "executor": pool}).sample([COSTS])
        assert time.perf_counter() - began < 2
    assert (sample.status == Status.TIME_LIMIT).all()


def test_an_instance_that_hangs_costs_only_its_own_part_of_an_executor():
    def hangs(c):
        if (c[:, 0] == COSTS[3, 0]).any():
            time.sleep(1.5)
        return solver(c)

    with ThreadPoolExecutor(2) as pool:
        sample = box(hangs, "flag", options={"time_limit": 0.3, "executor": pool, "workers": 2}).sample([COSTS])
    assert sample.status.tolist() == [0, 0, 0, Status.TIME_LIMIT, 0, 0]
    np.testing.assert_array_equal(np.delete(sample.outputs[0], 3, 0), np.delete(solver(COSTS), 3, 0))


def test_nan_costs_never_reach_the_solver():
    def strict(c):
        assert np.isfinite(c).all()
        return solver(c)

    bad = COSTS.copy()
    bad[1, 2], bad[4, 0] = np.nan, np.inf
    with pytest.raises(errors.NonFiniteInputError, match="batch ind"):
        box(strict).sample([bad])
    sample = box(strict, "flag").sample([bad])
    assert sample.status.tolist() == [0, Status.NONFINITE_INPUT, 0, 0, Status.NONFINITE_INPUT, 0]
    np.testing.assert_array_equal(sample.outputs[0][[0, 2, 3, 5]], solver(COSTS)[[0, 2, 3, 5]])


def test_executors_of_processes():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        other = box(options={"executor": pool, "workers": 1})
        sample = other.sample([COSTS])
        np.testing.assert_array_equal(sample.outputs[0], solver(COSTS))
        dy = np.random.default_rng(1).standard_normal(COSTS.shape)
        found = other.pull([COSTS], sample.solutions, sample.noise, [dy])[0]
    np.testing.assert_array_equal(found, box().pull([COSTS], sample.solutions, sample.noise, [dy])[0])


def test_executors_give_the_same():
    with ThreadPoolExecutor(2) as pool:
        other = box(options={"executor": pool, "workers": 2})
        np.testing.assert_array_equal(other.sample([COSTS]).outputs[0], solver(COSTS))


def test_declarations_are_checked():
    with pytest.raises(errors.NotAProblemError):
        lc.BlackBox(3)
    with pytest.raises(errors.OptionError):
        lc.BlackBox(solver, sense="best")
    with pytest.raises(errors.OptionError):
        lc.BlackBox(solver, arrays="mxnet")
    assert lc.BlackBox(lc.oracles.TopK(4, 2)).sense == "max"
