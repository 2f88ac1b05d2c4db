"""Expressions of the CVXPY DSL as residuals, spelled out in scalars: cvxpy's values, and torch's derivatives of first and second order."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler import arrays, kernels
from layercompiler.expressions.sparsity import color, columns_of, pattern
from layercompiler.manifolds.euclidean import Vectors
from layercompiler.plan.least_squares import Prepared
from layercompiler.programs.least_squares import Argument, Block, LeastSquaresProgram, ParameterSpec, Sparsity, VariableSpec
from layercompiler.programs.nonlinear import GraphResidual
from layercompiler.solvers.least_squares.native import Native, UnsupportedError
from layercompiler.solvers.least_squares.solver import pull
from tests.expressions.cases import CASES
from tests.expressions.test_cases import _reference, translated

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")


def test_most_expressions_have_a_scalar_form():
    spelled = [name for name in CASES if native(name) is not None]
    assert len(spelled) >= 90, sorted(set(CASES) - set(spelled))


def program(name):
    _, graph, variables, parameters, values = translated(name)
    structure = pattern(graph, *columns_of([v.shape for v in variables]))
    rows = np.repeat(np.arange(structure.shape[0]), np.diff(structure.indptr))
    residual, specs = GraphResidual(graph), []
    for k, v in enumerate(variables):
        width = int(np.prod(v.shape[1:], dtype=int)) if len(v.shape) > 1 else 1
        specs.append(VariableSpec(f"v{k}", Vectors(width), v.shape, values[k]))
    block = Block(
        name,
        lambda xp, *a: xp.reshape(residual(xp, *a), (structure.shape[0],)),
        tuple(range(len(variables))),
        structure.shape[0],
        arguments=tuple(Argument(parameter=k) for k in range(len(parameters))),
        separable=True,
        sparsity=Sparsity(rows, structure.indices.astype(np.int64), color(structure)),
    )
    names = tuple(s.name for s in specs)
    return LeastSquaresProgram(tuple(specs), tuple(ParameterSpec(f"p{k}", p.shape) for k, p in enumerate(parameters)), (block,), names)


CACHE = {}


def native(name):
    if name not in CACHE:
        prepared = Prepared(program(name), "torch", "levenberg_marquardt", "raise", lc.LeastSquaresOptions())
        try:
            CACHE[name] = Native(prepared.solver.evaluation)
        except UnsupportedError:
            CACHE[name] = None
    return CACHE[name]


@pytest.mark.parametrize("name", list(CASES))
def test_values_and_derivatives(name):
    made = native(name)
    if made is None:
        return
    expression, _, variables, parameters, values = translated(name)
    x = np.concatenate([v.reshape(-1) for v in values[: len(variables)]])[None]
    theta, shared = [torch.tensor(v) for v in values[len(variables) :]], (True,) * len(parameters)
    given, e, xp = made.arrays(theta, shared), made.evaluation, arrays.get("torch")
    point = made.evaluate(x, *given)
    want = float((_reference(expression) ** 2).sum() / 2)
    assert abs(point.cost[0] - want) <= 1e-12 * max(want, 1e-3)
    slow = e.linearize(torch.tensor(x), theta, shared)
    u = np.random.default_rng(0).standard_normal((1, made.structure.n))
    pairs = [(getattr(point, f), getattr(slow, f)) for f in point._fields]
    pairs.append((made.hessian(x, *given), e.hessian(torch.tensor(x), theta, shared)))
    pairs += list(zip(made.pull(x, u, *given), pull(xp, e, torch.tensor(x), torch.tensor(u), theta, shared), strict=True))
    for a, b in pairs:
        b = np.asarray(b)
        assert np.abs(a - b).max(initial=0.0) <= 1e-10 * (np.abs(b).max(initial=0.0) + 1e-3)
