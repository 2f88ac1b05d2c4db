"""Random conic programs with known answers: solvable, primal infeasible and dual infeasible by construction."""

import numpy as np


def rows(cones):
    """Rows of a product cone."""
    size = {"zero": 1, "nonnegative": 1, "exponential": 3}
    return sum(
        k if kind == "second_order" else k * (k + 1) // 2 if kind == "psd" else 3 if kind == "power" else size[kind] * k
        for kind, k in cones
    )


def interior(rng, cones, dual=False):
    """A point inside the cone, or inside its dual."""
    parts = [np.zeros(0)]
    for kind, k in cones:
        if kind == "zero":
            parts.append(rng.normal(size=k) if dual else np.zeros(k))
        elif kind == "nonnegative":
            parts.append(rng.uniform(0.1, 2, k))
        elif kind == "second_order":
            z = rng.normal(size=k - 1)
            parts.append(np.r_[np.linalg.norm(z) + rng.uniform(0.1, 1), z])
        elif kind == "psd":
            m = rng.normal(size=(k, k))
            parts.append(svec(m @ m.T / k + 0.1 * np.eye(k)))
        elif kind == "exponential":
            for _ in range(k):
                a, b, c = rng.normal(), rng.uniform(0.3, 2), rng.uniform(0.1, 1)
                parts.append(np.array([-b, a, b * np.exp(-a / b - 1) + c] if dual else [a, b, b * np.exp(a / b) + c]))
        elif kind == "power":
            a, b, c = *rng.uniform(0.3, 2, 2), rng.uniform(-0.9, 0.9)
            parts.append(np.array([a, b, c * (a / k) ** k * (b / (1 - k)) ** (1 - k)] if dual else [a, b, c * a**k * b ** (1 - k)]))
    return np.concatenate(parts)


def svec(m):
    """Column-major lower triangle, off-diagonals times sqrt 2."""
    k = len(m)
    return np.array([m[i, j] * (1 if i == j else 2**0.5) for j in range(k) for i in range(j, k)])


def structure(rng, kinds):
    """Number of variables and cones; `kinds` is a string of z l q s e p."""
    cones = []
    cones += [("zero", int(rng.integers(1, 4)))] if "z" in kinds else []
    cones += [("nonnegative", int(rng.integers(1, 12)))] if "l" in kinds else []
    cones += [("second_order", int(rng.integers(1, 9))) for _ in range(rng.integers(1, 4))] if "q" in kinds else []
    cones += [("psd", int(rng.integers(1, 6))) for _ in range(rng.integers(1, 3))] if "s" in kinds else []
    cones += [("exponential", int(rng.integers(1, 5)))] if "e" in kinds else []
    cones += [("power", float(rng.uniform(0.1, 0.9))) for _ in range(rng.integers(1, 4))] if "p" in kinds else []
    return int(rng.integers(4, 12)), cones


def programs(rng, n, cones, batch, kind="solvable"):
    """Patterns (P, A) and data (P, q, A, b) of a batch; `kind` is solvable, primal (infeasible) or dual (infeasible)."""
    m = rows(cones)
    mask = rng.random((m, n)) < (rng.uniform(0.4, 1) if kind == "solvable" else 2)
    r, c = np.nonzero(mask)
    k = int(rng.integers(1, n + 1)) if kind != "dual" and rng.random() < 0.5 else 0
    pr, pc = np.nonzero(np.triu(np.ones((k, k))))
    out = []
    for _ in range(batch):
        a = np.where(mask, rng.normal(size=(m, n)), 0.0)
        half = rng.normal(size=(k, max(1, k // 2 + 1)))
        p = np.zeros((n, n))
        p[:k, :k] = half @ half.T / max(k, 1)
        x, s, y = rng.normal(size=n), interior(rng, cones), interior(rng, cones, dual=True)
        if kind == "primal":  # A'y = 0 and b'y < 0
            a -= np.outer(y, y @ a) / (y @ y)
        if kind == "dual":  # a direction with A d + s = 0, q'd < 0
            a += np.outer(-interior(rng, cones) - a @ x, x) / (x @ x)
        b, q = a @ rng.normal(size=n) + s, -(p @ x + a.T @ y)
        if kind == "primal":
            b = b - y * (y @ b + rng.uniform(0.5, 2)) / (y @ y)
        if kind == "dual":
            q = q - x * (q @ x + rng.uniform(0.5, 2)) / (x @ x)
        if kind == "solvable":
            b = a @ x + s
        out.append((p[pr, pc], q, a[r, c], b))
    return (pr, pc), (r, c), tuple(np.array(v).reshape(batch, -1) for v in zip(*out, strict=True))


def matrix_programs(rng, orders, batch, kind="solvable"):
    """As `programs`, with one PSD variable of each order as a cone's slack, which few other rows touch; n, cones, patterns and data."""
    sizes, free = [k * (k + 1) // 2 for k in orders], int(rng.integers(0, 4))
    cones = [("zero", int(rng.integers(2, 5))), ("nonnegative", int(rng.integers(1, 4)))]
    cones += [("second_order", 4)] if rng.random() < 0.5 else []
    others, own = rows(cones), sum(sizes)
    n, cones = own + free, cones + [("psd", k) for k in orders]
    mask = rng.random((others, n)) < 0.6
    mask[0] = True
    for i in range(cones[0][1], others):
        if kind == "solvable" and rng.random() < 0.3:  # bounds of single entries
            mask[i] = False
            mask[i, rng.integers(n)] = True
    mask = np.r_[mask, np.eye(own, n) > 0]
    r, c = np.nonzero(mask)
    pr, pc = np.nonzero(np.triu(np.ones((free, free))))
    out = []
    for _ in range(batch):
        a = np.where(mask, rng.normal(size=mask.shape), 0.0)
        slack = np.arange(own)
        a[others + slack, slack] = -rng.uniform(0.5, 2, own)
        half = rng.normal(size=(free, free + 1))
        p = np.zeros((n, n))
        p[own:, own:] = half @ half.T if kind != "dual" else 0.0
        x, s, y = rng.normal(size=n), interior(rng, cones), interior(rng, cones, dual=True)
        if kind == "primal":
            a[0] -= y @ a / y[0]
        if kind == "dual":
            x[:own] = -s[others:] / a[others + slack, slack]
            for i in range(others):
                a[i] -= mask[i] * x * (s[i] + a[i] @ x) / (x[mask[i]] @ x[mask[i]])
        b, q = a @ rng.normal(size=n) + s, -(p @ x + a.T @ y)
        if kind == "primal":
            b = b - y * (y @ b + rng.uniform(0.5, 2)) / (y @ y)
        if kind == "dual":
            q = q - x * (q @ x + rng.uniform(0.5, 2)) / (x @ x)
        if kind == "solvable":
            b = a @ x + s
        out.append((p[own + pr, own + pc], q, a[r, c], b))
    return n, cones, (own + pr, own + pc), (r, c), tuple(np.array(v).reshape(batch, -1) for v in zip(*out, strict=True))
