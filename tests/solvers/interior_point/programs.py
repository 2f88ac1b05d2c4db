"""Dense programs for the tests: families of quadratic programs, and an exact reference by active sets."""

import numpy as np
import scipy.linalg


def family(kind, n, m, p, batch, seed=0):
    """(Q, p, A, b, G, h): "std" well conditioned, "ill" nearly singular Q, "dqp" and "optnet" as in those papers."""
    r = np.random.default_rng(1000 * n + seed)
    if kind == "dqp":
        P = r.random((batch, n, n))
        Q = P @ P.transpose(0, 2, 1) + 1e-4 * np.eye(n)
        q, G, A = r.random((batch, n)), r.random((batch, m, n)), r.random((batch, p, n))
        x, s = np.ones((batch, n)), np.ones((batch, m))
    elif kind == "optnet":
        L = np.tril(r.random((batch, n, n))) + np.eye(n)
        Q = L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n)
        q, G, A, x = (r.standard_normal(shape) for shape in ((batch, n), (batch, m, n), (batch, p, n), (batch, n)))
        s = np.ones((batch, m))
    else:
        L = r.standard_normal((batch, n, n if kind == "std" else n // 2)) / np.sqrt(n)
        Q = L @ L.transpose(0, 2, 1) + (0.1 if kind == "std" else 1e-4) * np.eye(n)
        q, x, s = r.standard_normal((batch, n)), r.standard_normal((batch, n)), r.random((batch, m))
        G, A = r.standard_normal((batch, m, n)) / np.sqrt(n), r.standard_normal((batch, p, n)) / np.sqrt(n)
    return Q, q, A, np.einsum("bpn,bn->bp", A, x), G, np.einsum("bmn,bn->bm", G, x) + s


def exact(Q, p, A, b, G, h, near):
    """(x, y, z, K, active): the solution at the active set that repair from a near one ends in, by long-double refinement."""
    n, k = len(p), len(b)
    active = near
    for _ in range(30):
        C = np.vstack([A, G[active]])
        K = np.block([[Q, C.T], [C, np.zeros((len(C), len(C)))]])
        w = refined(K, np.concatenate([-p, b, h[active]]))
        x, z = w[:n], np.zeros(len(h))
        z[active] = w[n + k :]
        slack = h - G @ x
        slack[active] = 0.0
        better = np.where(active, z >= -1e-11, slack < -1e-11)
        if (better == active).all():
            return x, w[n : n + k], z, K, active
        active = better
    raise AssertionError("the active set did not settle")


def gradients(Q, p, A, b, G, h, near, v):
    """Gradients of v'x with respect to (Q, p, A, b, G, h)."""
    x, y, z, K, active = exact(Q, p, A, b, G, h, near)
    n, k = len(p), len(b)
    d = refined(K, np.concatenate([-v, np.zeros(len(K) - n)]))
    dx, dy, dz = d[:n], d[n : n + k], np.zeros(len(h))
    dz[active] = d[n + k :]
    outer = np.outer
    return (outer(dx, x) + outer(x, dx)) / 2, dx, outer(dy, x) + outer(y, dx), -dy, outer(dz, x) + outer(z, dx), -dz


def refined(K, r):
    """Solve with residuals in long double."""
    lu = scipy.linalg.lu_factor(K)
    x, wide = scipy.linalg.lu_solve(lu, r), K.astype(np.longdouble)
    for _ in range(3):
        x = x + scipy.linalg.lu_solve(lu, (r.astype(np.longdouble) - wide @ x.astype(np.longdouble)).astype(float))
    return x
