"""Small smooth problems of every kind, with data at which the solution map is differentiable twice."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import torch

from layercompiler.export import compile as compile_problem


def qp():
    """Quadratic program with inequalities, one active and two not."""
    x, q, h = cp.Variable(3, name="x"), cp.Parameter(3, name="q"), cp.Parameter(3, name="h")
    G = cp.Parameter((3, 3), name="G")
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [G @ x <= h])
    G0 = torch.tensor([[1.0, 0.3, 0.1], [0.2, 1.0, 0.0], [0.0, 0.4, 1.0]])
    return problem, [q, G, h], [x], [torch.tensor([-1.0, 0.4, 0.3]), G0, torch.tensor([0.5, 1.0, 1.0])]


def socp():
    """Second-order cone program with the cone active, and a scalar parameter."""
    x, c, r = cp.Variable(3, name="x"), cp.Parameter(3, name="c"), cp.Parameter(nonneg=True, name="r")
    problem = cp.Problem(cp.Minimize(c @ x), [cp.norm(x - [0.1, 0.2, 0.3]) <= r])
    return problem, [c, r], [x, problem.constraints[0].dual_variables[0]], [torch.tensor([1.0, 0.5, -0.3]), torch.tensor(0.7)]


def exponential():
    """Softmax as an entropy-regularised problem: exponential cones."""
    x, c = cp.Variable(4, name="x"), cp.Parameter(4, name="c")
    problem = cp.Problem(cp.Minimize(c @ x - cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    return problem, [c], [x], [torch.tensor([0.3, -0.2, 0.5, 0.1])]


def sdp():
    """Projection onto the PSD cone, at a matrix with eigenvalues of both signs."""
    X, S = cp.Variable((3, 3), PSD=True, name="X"), cp.Parameter((3, 3), symmetric=True, name="S")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - S)))
    return problem, [S], [X], [torch.tensor([[1.0, 0.4, -0.2], [0.4, -0.8, 0.3], [-0.2, 0.3, 0.6]])]


PROBLEMS: dict[str, Callable] = {"qp": qp, "socp": socp, "exponential": exponential, "sdp": sdp}


def compiled_with_data(kind: str, **options):
    """The compiled problem and double tensors at which it is smooth."""
    problem, parameters, variables, data = PROBLEMS[kind]()
    return compile_problem(problem, parameters=parameters, variables=variables, **options), [d.double() for d in data]
