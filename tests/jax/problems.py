"""Small problems of every kind of cone, with data at which the solution map is differentiable twice; numpy, for any framework."""

import cvxpy as cp
import numpy as np

import layercompiler as lc


def qp():
    x, q, h, G = cp.Variable(3, name="x"), cp.Parameter(3, name="q"), cp.Parameter(3, name="h"), cp.Parameter((3, 3), name="G")
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [G @ x <= h])
    data = [[-1.0, 0.4, 0.3], [[1.0, 0.3, 0.1], [0.2, 1.0, 0.0], [0.0, 0.4, 1.0]], [0.5, 1.0, 1.0]]
    return problem, [q, G, h], [x], data


def socp():
    x, c, r = cp.Variable(3, name="x"), cp.Parameter(3, name="c"), cp.Parameter(nonneg=True, name="r")
    problem = cp.Problem(cp.Minimize(c @ x), [cp.norm(x - [0.1, 0.2, 0.3]) <= r])
    return problem, [c, r], [x, problem.constraints[0].dual_variables[0]], [[1.0, 0.5, -0.3], 0.7]


def exponential():
    x, c = cp.Variable(4, name="x"), cp.Parameter(4, name="c")
    return cp.Problem(cp.Minimize(c @ x - cp.sum(cp.entr(x))), [cp.sum(x) == 1]), [c], [x], [[0.3, -0.2, 0.5, 0.1]]


def sdp():
    X, S = cp.Variable((3, 3), symmetric=True, name="X"), cp.Parameter((3, 3), name="S")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - S)), [X >> 0])
    return problem, [S], [X], [[[1.0, 0.4, -0.2], [0.3, -0.8, 0.3], [-0.2, 0.1, 0.6]]]


KINDS = {"qp": qp, "socp": socp, "exponential": exponential, "sdp": sdp}


def exported(kind, framework, **settings):
    """The layer and the arrays of a problem."""
    problem, parameters, variables, data = KINDS[kind]()
    layer = lc.export(problem, framework, parameters=parameters, variables=variables, **settings)
    return layer, [np.asarray(a, float) for a in data]


def differences(f, x, step=1e-3):
    """The derivative of f at x by central differences, extrapolated twice (error of order step^6), f.shape + x.shape."""
    columns = []
    for i in np.ndindex(x.shape):
        e = np.zeros(x.shape)
        e[i] = 1
        d1, d2, d3 = ((np.asarray(f(x + k * e)) - np.asarray(f(x - k * e))) / (2 * k) for k in (step, step / 2, step / 4))
        e1, e2 = (4 * d2 - d1) / 3, (4 * d3 - d2) / 3
        columns.append((16 * e2 - e1) / 15)
    return np.stack(columns, -1).reshape((*np.shape(columns[0]), *x.shape))
