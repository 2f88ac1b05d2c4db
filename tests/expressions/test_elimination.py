"""Derivatives by elimination equal those of forward mode, on random graphs and through branches that are not taken."""

import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.expressions.elimination import hessian, jacobian
from layercompiler.expressions.scalars import Scalars
from tests.expressions.test_scalars import run

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


def random_graph(rng, inputs, length):
    """A graph of smooth operations and branches, its inputs and last nodes."""
    graph = Scalars()
    x = [graph.input(i) for i in range(inputs)]
    nodes = [*x, graph.constant(0.7)]
    for _ in range(length):
        a, b, c = (nodes[max(0, len(nodes) - 1 - int(rng.exponential(6)))] for _ in range(3))
        name = ("add", "sub", "mul", "div", "atan2", "sin", "exp", "select", "sqrt", "min")[rng.integers(10)]
        if name in ("exp", "sin"):
            made = graph.call(name, graph.call("sin", a))
        elif name == "sqrt":
            made = graph.call("sqrt", graph.call("add", graph.constant(2.0), graph.call("sin", a)))
        elif name == "div":
            made = graph.call("div", a, graph.call("add", graph.constant(3.0), graph.call("cos", b)))
        elif name == "atan2":
            made = graph.call("atan2", graph.call("sin", a), graph.call("add", graph.constant(3.0), graph.call("mul", b, b)))
        elif name == "select":
            made = graph.call("select", graph.call("less", a, b), b, c)
        else:
            made = graph.call(name, graph.call("sin", a), b)
        nodes.append(made)
    return graph, x, nodes[-3:]


def table(rows, graph, columns):
    return [row.get(c, graph.zero) for row in rows for c in columns]


@pytest.mark.parametrize("seed", range(25))
def test_equal_to_forward_mode(seed):
    rng = np.random.default_rng(seed)
    graph, x, outputs = random_graph(rng, 5, int(rng.integers(4, 60)))
    columns = range(4)
    # seeds with numbers of their own, some of them in the middle of the graph, and two columns that move one input
    seeds = {k: {i % 4: graph.call("add", graph.one, graph.call("mul", x[0], k))} for i, k in enumerate(x)}
    seeds[x[1]][3] = graph.call("sin", x[2])
    middle = [k for k in graph.order(outputs) if graph.arguments[k] and k not in seeds]
    if seed % 2 and middle:
        node = middle[len(middle) // 2]
        (seeds[node],) = graph.forward([node], seeds)
    numbers = rng.uniform(0.2, 1.5, (3, 5))
    want = run(graph, table(graph.forward(outputs, seeds), graph, columns), numbers)
    np.testing.assert_allclose(run(graph, table(jacobian(graph, outputs, seeds), graph, columns), numbers), want, rtol=1e-10, atol=1e-11)

    (first,) = graph.forward(outputs[-1:], seeds)
    slopes = [first.get(c, graph.zero) for c in columns]
    along = run(graph, table(graph.forward(slopes, seeds), graph, columns), numbers)  # of slope i along j
    gradient, second = hessian(graph, outputs[-1], seeds)
    np.testing.assert_allclose(run(graph, table([gradient], graph, columns), numbers), run(graph, slopes, numbers), rtol=1e-10, atol=1e-11)
    found = run(graph, [second.get((j, i), graph.zero) for i in columns for j in columns], numbers)
    np.testing.assert_allclose(found, along, rtol=1e-9, atol=1e-10 * max(1, np.abs(along).max()))


def test_what_is_not_taken_spoils_nothing():
    graph = Scalars()
    x, y = graph.input(0), graph.input(1)
    positive = graph.call("less", graph.zero, x)
    # the root of a negative number is NaN, and at zero its slope infinite
    root = graph.call("select", positive, graph.call("sqrt", x), graph.call("mul", x, y))
    output = graph.call("mul", graph.call("sin", root), y)
    seeds = {x: {0: graph.one}, y: {1: graph.one}}
    gradient, second = hessian(graph, output, seeds)
    (row,) = jacobian(graph, [output], seeds)
    nodes = [gradient[0], gradient[1], row[0], row[1], *(second[pair] for pair in ((0, 0), (0, 1), (1, 1)))]
    for a, b in ((-0.5, 0.3), (0.0, 0.8)):
        s, c = np.sin(a * b), np.cos(a * b)
        slopes = [c * b * b, c * b * a + s]
        curvature = [-s * b**3, -s * a * b * b + 2 * c * b, -s * a * a * b + 2 * c * a]
        np.testing.assert_allclose(run(graph, nodes, [a, b])[0], [*slopes, *slopes, *curvature], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.0, 2.5), (2.0, 0.0), (1.5, -0.5), (-2.0, 2.0)])
def test_powers_at_the_ends_of_where_they_are_defined(x, y):
    import torch

    graph = Scalars()
    base, power = graph.input(0), graph.input(1)
    found = graph.forward([graph.call("pow", base, power)], {base: {0: graph.one}, power: {1: graph.one}})[0]
    a, b = torch.tensor([x, y], dtype=torch.float64).requires_grad_().unbind()
    want = torch.autograd.grad(a**b, (a, b))
    np.testing.assert_allclose(run(graph, [found[0], found[1]], [x, y])[0], want, rtol=1e-14)
