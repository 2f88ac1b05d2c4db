"""Graphs of scalars: values by the compiled interpreter, derivatives both ways against differences."""

import math

import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.expressions.scalars import NAMES, Scalars, TooLargeError, program
from layercompiler.kernels.tape import Slot, Tape

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
PLAIN = {
    "neg": np.negative, "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin,
    "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
    "acosh": lambda x: np.arccosh(1 + x), "atanh": np.arctanh, "log1p": np.log1p, "expm1": np.expm1, "erf": np.vectorize(math.erf),
    "abs": np.abs, "sign": np.sign, "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "atan2": np.arctan2,
    "pow": np.power, "less": lambda x, y: 1.0 * (x < y), "less_equal": lambda x, y: 1.0 * (x <= y), "equal": lambda x, y: 1.0 * (x == y),
    "min": np.minimum, "max": np.maximum, "select": lambda c, x, y: np.where(c > 0.5, x, y),
}  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "atan2", "pow", "less", "less_equal", "equal", "min", "max")


def run(graph, outputs, numbers):
    """Values (B, len(outputs)) at inputs (B, n) with the keys 0 ... n - 1."""
    numbers = np.atleast_2d(numbers)
    code, constants, registers, inputs, slots = program(graph, [(k, i) for i, k in enumerate(outputs)])
    tape = Tape(code, constants, registers, [Slot(0, np.array([i])) for i in inputs], [Slot(0, np.array([i])) for i in slots], 1)
    found = np.zeros((len(numbers), len(outputs)))
    tape.run(len(numbers), [np.ascontiguousarray(numbers)], [numbers.shape[1]], [found], [len(outputs)])
    return found


def made(name, graph):
    x = [graph.input(i) for i in range(3)]
    if name == "select":
        return graph.call("select", graph.call("less", graph.constant(0.5), x[0]), x[1], x[2])
    if name == "acosh":
        return graph.call("acosh", graph.call("add", graph.one, x[0]))
    return graph.call(name, *x[: 2 if name in BINARY else 1])


def test_every_operation_is_tested():
    assert {*PLAIN, "load", "store", "fma", "fms", "fnma"} == set(NAMES)


@pytest.mark.parametrize("name", sorted(PLAIN))
@pytest.mark.parametrize("count", [1, 5, 37])
def test_values(name, count):
    graph = Scalars()
    node = made(name, graph)
    numbers = np.random.default_rng(0).uniform(0.1, 0.9, (count, 3))
    want = PLAIN[name](*numbers[:, : 3 if name == "select" else 2 if name in BINARY else 1].T)
    np.testing.assert_allclose(run(graph, [node], numbers)[:, 0], want, rtol=2e-15, atol=1e-16)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_derivatives_both_ways(name):
    graph = Scalars()
    node = made(name, graph)
    inputs = [graph.input(i) for i in range(3)]
    both = graph.call("add", graph.call("mul", node, node), graph.call("sin", node))
    (forward,) = graph.forward([both], {k: {i: graph.one} for i, k in enumerate(inputs)})
    reverse = graph.reverse({both: graph.one}, inputs)
    nodes = [forward.get(i, graph.zero) for i in range(3)] + [reverse.get(k, graph.zero) for k in inputs]
    at = np.random.default_rng(1).uniform(0.1, 0.9, 3)
    found = run(graph, nodes, at)[0]
    h = 1e-3
    for i in range(3):
        ahead, behind = ([run(graph, [both], at + s * k * h * np.eye(3)[i])[0, 0] for k in (1, 2)] for s in (1, -1))
        want = (8 * (ahead[0] - behind[0]) - (ahead[1] - behind[1])) / (12 * h)
        np.testing.assert_allclose(found[[i, 3 + i]], want, rtol=1e-7, atol=1e-9)


def test_what_a_branch_leaves_out_does_not_spoil_the_derivative():
    graph = Scalars()
    x = graph.input(0)
    inside = graph.call("less", graph.zero, x)
    root = graph.call("select", inside, graph.call("sqrt", graph.call("select", inside, x, graph.one)), graph.zero)
    (d,) = graph.forward([root], {x: {0: graph.one}})
    np.testing.assert_allclose(run(graph, [root, d[0]], [[4.0], [-1.0], [0.0]]), [[2.0, 0.25], [0.0, 0.0], [0.0, 0.0]])


def test_equal_nodes_are_one_and_constants_fold():
    graph = Scalars()
    x, two = graph.input(0), graph.constant(2.0)
    assert graph.call("mul", x, two) == graph.call("mul", two, x)
    assert graph.call("add", x, graph.zero) == x and graph.call("mul", x, graph.zero) == graph.zero
    assert graph.number[graph.call("sin", two)] == np.sin(2.0)
    with pytest.raises(TooLargeError):
        small = Scalars(limit=10)
        small.total(small.input(i) for i in range(10))


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon"])
@pytest.mark.parametrize("factors", [1, 5, 21])
def test_factors_add_up_in_one_order_whatever_the_batch(factors, isa):
    try:
        kernels.instruction_set(isa)
    except Exception:
        pytest.skip("not on this machine")
    graph = Scalars()
    y = graph.call("mul", graph.call("exp", graph.input("x")), graph.input("w"))
    code, constants, registers, inputs, slots = program(graph, [(y, 0), (graph.call("sin", y), 1)])
    where = {"x": Slot(0, np.arange(factors)), "w": Slot(1, np.array([0]))}
    out = [Slot(0, np.zeros(1, int)), Slot(1, np.where(np.arange(factors) % 2, -1, np.arange(factors) // 4))]
    tape = Tape(code, constants, registers, [where[k] for k in inputs], [out[k] for k in slots], factors, isa)
    x, w = np.random.default_rng(0).standard_normal((19, factors)), np.array([0.7])

    def values(x):
        total, parts = np.zeros(len(x)), np.zeros((len(x), 8))
        tape.run(len(x), [np.ascontiguousarray(x), w], [factors, 0], [total, parts], [1, 8])
        return total, parts

    total, parts = values(x)
    np.testing.assert_allclose(total, (0.7 * np.exp(x)).sum(1), rtol=1e-14)
    want = np.zeros((19, 8))
    np.add.at(want, (slice(None), np.arange(0, factors, 2) // 4), np.sin(0.7 * np.exp(x[:, ::2])))
    np.testing.assert_allclose(parts, want, atol=1e-14)
    for i in (0, 7, 18):
        one = values(x[i : i + 1])
        assert (one[0] == total[i]).all() and (one[1] == parts[i]).all()
