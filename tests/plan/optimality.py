"""Optimality conditions of a standard-form cone program, from CVXPY's own data and with no code of the package."""

import cvxpy as cp
import numpy as np


def data(problem, gp=False):
    """(P, q, A, b, dims) as CVXPY hands them to SCS: minimise x'Px / 2 + q'x, Ax + s = b, PSD blocks as lower triangles."""
    d, _, _ = problem.get_problem_data(cp.SCS, gp=gp, solver_opts={"use_quad_obj": True})
    n = len(d["c"])
    P = d["P"].toarray() if d.get("P") is not None else np.zeros((n, n))
    return (P + P.T - np.diag(np.diag(P)) if not P[np.tril_indices(n, -1)].any() else P), d["c"], d["A"].toarray(), d["b"], d["dims"]


def blocks(v, dims):
    """(kind, rows of v) of every cone, in the order of SCS."""
    at = 0
    sizes = [("zero", 1)] * dims.zero + [("nonneg", 1)] * dims.nonneg + [("soc", k) for k in dims.soc]
    sizes += [("psd", k * (k + 1) // 2) for k in dims.psd] + [("exp", 3)] * dims.exp + [(float(a), 3) for a in dims.p3d]
    for kind, size in sizes:
        yield kind, v[at : at + size]
        at += size
    assert at == len(v)


def matrix(v):
    k = int((np.sqrt(8 * len(v) + 1) - 1) / 2)
    M = np.zeros((k, k))
    cols, rows = np.triu_indices(k)
    M[rows, cols] = np.where(rows == cols, 1, np.sqrt(0.5)) * v
    return M + np.tril(M, -1).T


def primal_margin(kind, v):
    """How far inside the cone a point is (negative: outside)."""
    if kind == "zero":
        return -abs(v[0])
    if kind == "nonneg":
        return v[0]
    if kind == "soc":
        return v[0] - np.linalg.norm(v[1:])
    if kind == "psd":
        return np.linalg.eigvalsh(matrix(v))[0]
    if kind == "exp":
        return min(v[1], v[2] - v[1] * np.exp(v[0] / v[1])) if v[1] > 1e-9 else min(-v[0], v[2])
    return min(v[0], v[1], max(v[0], 0) ** kind * max(v[1], 0) ** (1 - kind) - abs(v[2]))


def dual_margin(kind, v):
    if kind == "zero":
        return np.inf
    if kind == "exp":
        return min(-v[0], np.e * v[2] + v[0] * np.exp(v[1] / v[0])) if v[0] < -1e-9 else min(v[1], v[2])
    if isinstance(kind, float):
        return primal_margin(kind, np.array([v[0] / kind, v[1] / (1 - kind), v[2]]))
    return primal_margin(kind, v)


def violation(problem, x, y, gp=False):
    """Largest violation of: Px + A'y + q = 0, s = b - Ax in K, y in K*, <y, s> = 0."""
    P, q, A, b, dims = data(problem, gp)
    s = b - A @ x
    stationarity = np.abs(P @ x + A.T @ y + q).max()
    primal = max((-primal_margin(kind, v) for kind, v in blocks(s, dims)), default=0.0)
    dual = max((-dual_margin(kind, v) for kind, v in blocks(y, dims)), default=0.0)
    return max(stationarity, primal, dual, abs(y @ s))
