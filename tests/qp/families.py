"""Random QPs of many kinds, and independent answers for them (Clarabel; equality-constrained KKT systems in extended precision)."""

import clarabel
import numpy as np
import scipy.linalg
import scipy.sparse as sp

NAMES = ("Q", "p", "G", "h", "A", "b")


def batch(kind, n, m, p, count, seed=0):
    """The families of the benchmark: std, ill (rank n/2 + 1e-4 I), optnet, dqp; all strictly convex and feasible."""
    r = np.random.default_rng(1000 * n + seed)
    normal = r.standard_normal
    if kind == "dqp":
        root = r.random((count, n, n))
        Q, q, G = root @ root.swapaxes(1, 2) + 1e-4 * np.eye(n), r.random((count, n)), r.random((count, m, n))
        z, s, A = np.ones((count, n)), np.ones((count, m)), r.random((count, p, n))
    elif kind == "optnet":
        L = np.tril(r.random((count, n, n))) + np.eye(n)
        Q, q, G = L @ L.swapaxes(1, 2) + 1e-3 * np.eye(n), normal((count, n)), normal((count, m, n))
        A, z, s = normal((count, p, n)), normal((count, n)), np.ones((count, m))
    else:
        k, shift = (n, 0.1) if kind == "std" else (max(n // 2, 1), 1e-4)
        L = normal((count, n, k)) / np.sqrt(n)
        Q, q = L @ L.swapaxes(1, 2) + shift * np.eye(n), normal((count, n))
        G, A = normal((count, m, n)) / np.sqrt(n), normal((count, p, n)) / np.sqrt(n)
        z, s = normal((count, n)), r.random((count, m))
    h, b = np.einsum("bmn,bn->bm", G, z) + s, np.einsum("bpn,bn->bp", A, z)
    return Q, q, G, h, A, b


def clarabel_answer(Q, p, G, h, A, b, tolerance=1e-10):
    """(status string, x, objective) of one instance."""
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = tolerance
    G, h, A, b = *_unit(G, h), *_unit(A, b)  # its tolerances are absolute
    cones = [clarabel.ZeroConeT(len(b)), clarabel.NonnegativeConeT(len(h))]
    rows = sp.csc_matrix(np.vstack([A, G])) if len(A) + len(G) else sp.csc_matrix((0, len(p)))
    found = clarabel.DefaultSolver(sp.csc_matrix(np.triu((Q + Q.T) / 2)), p, rows, np.r_[b, h], cones, options).solve()
    return str(found.status), np.array(found.x), found.obj_val


def _unit(M, v):
    size = np.abs(M).max(axis=1, initial=0.0)
    size = np.where(size > 0, size, 1.0)
    return M / size[:, None], v / size


def active_gradients(Q, p, G, h, A, b, x, z, v):
    """Gradients of v'x by the KKT system of the active inequalities {z > slack}, refined in long double."""
    on = np.flatnonzero(z > h - G @ x)
    C = np.vstack([A, G[on]])
    k = len(C)
    K = np.block([[Q, C.T], [C, np.zeros((k, k))]])

    def solve(right):
        lu = scipy.linalg.lu_factor(K)
        out = scipy.linalg.lu_solve(lu, right)
        for _ in range(3):
            rest = right.astype(np.longdouble) - K.astype(np.longdouble) @ out.astype(np.longdouble)
            out = out + scipy.linalg.lu_solve(lu, rest.astype(float))
        return out

    w = solve(np.r_[-p, b, h[on]])
    x, y, z = w[: len(p)], w[len(p) : len(p) + len(b)], np.zeros(len(h))
    z[on] = w[len(p) + len(b) :]
    d = solve(np.r_[-v, np.zeros(k)])
    dx, dy, dz = d[: len(p)], d[len(p) : len(p) + len(b)], np.zeros(len(h))
    dz[on] = d[len(p) + len(b) :]
    outer = np.outer
    return x, (
        (outer(dx, x) + outer(x, dx)) / 2,
        dx,
        outer(dz, x) + outer(z, dx),
        -dz,
        outer(dy, x) + outer(y, dx),
        -dy,
    )


KINDS = (
    *("std", "ill", "optnet", "dqp", "psd", "lp", "tall", "duplicated", "deficient", "weak"),
    *("infeasible", "inconsistent", "unbounded", "scaled", "box", "equalities", "free"),
)


def mixed(kind, n, r):
    """One instance of a kind, and what must become of it: "solved", "infeasible" or "unbounded"."""
    normal, m, p = r.standard_normal, max(1, n), n // 4
    if kind in ("std", "ill", "optnet", "dqp"):
        return tuple(a[0] for a in batch(kind, n, m, p, 1, int(r.integers(1 << 30)))), "solved"
    if kind == "tall":
        m = 20 * n
    L = normal((n, max(1, n // 2) if kind == "psd" else n)) / np.sqrt(n)
    Q = L @ L.T + (0.0 if kind == "psd" else 0.1) * np.eye(n)
    q, G, A, z = normal(n), normal((m, n)) / np.sqrt(n), normal((p, n)) / np.sqrt(n), normal(n)
    s = r.random(m)
    if kind == "lp":
        Q, G, s = np.zeros((n, n)), np.vstack([G, np.eye(n), -np.eye(n)]), np.r_[s, np.ones(2 * n)]
    if kind == "psd":
        G, s = np.vstack([G, np.eye(n), -np.eye(n)]), np.r_[s, 3 * np.ones(2 * n)]
    if kind == "box":
        G, s = np.vstack([np.eye(n), -np.eye(n)]), r.random(2 * n)
    h, b = G @ z + s, A @ z
    expected = "solved"
    match kind:
        case "duplicated":
            G, h = np.vstack([G, G[::2]]), np.r_[h, h[::2]]
        case "deficient" if p > 1:
            A, b = np.vstack([A, A[0] + A[1], 2 * A[0]]), np.r_[b, b[0] + b[1], 2 * b[0]]
        case "weak":  # the unconstrained solution lies on some rows
            A, b = A[:0], b[:0]
            h = G @ np.linalg.solve(Q, -q) + np.where(r.random(len(G)) < 0.5, 0.0, 1.0)
        case "infeasible":
            G, h, expected = np.vstack([G, -G[:1]]), np.r_[h, -h[0] - 0.1 - r.random()], "infeasible"
        case "inconsistent":
            row = A[:1] if p else normal((1, n))
            A, b, expected = np.vstack([A, row, row]), np.r_[b, 0.5, 0.7 + r.random()], "infeasible"
        case "unbounded":
            d = normal(n)
            d /= np.linalg.norm(d)
            N = np.eye(n) - np.outer(d, d)
            Q, A, q = N @ Q @ N, A @ N, q - (q @ d + 1) * d
            G = G - np.outer(np.maximum(G @ d, 0), d)
            h, b, expected = G @ z + s, A @ z, "unbounded"
        case "scaled":
            e, f = 10.0 ** r.uniform(-8, 8, len(G)), 10.0 ** r.uniform(-8, 8, len(A))
            G, h, A, b = G * e[:, None], h * e, A * f[:, None], b * f
        case "equalities":
            G, h = G[:0], h[:0]
        case "free":
            G, h, A, b = G[:0], h[:0], A[:0], b[:0]
    return (Q, q, G, h, A, b), expected
