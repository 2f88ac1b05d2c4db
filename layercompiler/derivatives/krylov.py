"""Krylov iterations for batches of independent systems: one loop, inner products per instance, converged instances stand still.

Written once over array functions; in jax they trace into one loop, in torch and TensorFlow they run eagerly. Right-hand sides are expected
with unit norm (`derivatives.solves` scales them), so tolerances are absolute.

Sources: Hestenes & Stiefel 1952 (CG); van der Vorst 1992 (BiCGSTAB); Saad & Schultz 1986 (GMRES); Fong & Saunders 2011 (LSMR).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layercompiler.derivatives.operator import Operator

Product = Callable[[Any], Any]


def safe(xp: Any, a: Any, b: Any) -> Any:
    """A / b, and 0 where b is 0."""
    zero = b == 0
    return xp.where(zero, xp.zeros_like(a), a / xp.where(zero, xp.ones_like(b), b))


def cg(A: Operator, b: Any, tol: float, limit: int, M: Product | None = None, near: float = 0.0) -> Any:
    """Preconditioned conjugate gradients for positive definite A.

    They also stop where |r| <= near * lambda * |x|, with lambda the least Rayleigh quotient of the directions so far: a relative error of
    x of about `near`. Of a residual alone, tol must be smaller than the error that is wanted by the condition of A.
    """
    if A.batch == 0 and M is None and A.xp.name == "torch" and not A.xp.traced(b):
        return _cg_alone(A.matvec, b, tol, limit, near)
    return _cg(A, A.matvec, b, tol, limit, M, near)


def _cg_alone(product: Product, b: Any, tol: float, limit: int, near: float) -> Any:
    """Of one system, eagerly and in place: where calls cost as much as products, half of the calls."""
    x, r, p = 0 * b, 1 * b, 1 * b
    rv, pv, xv = r.reshape(-1), p.reshape(-1), x.reshape(-1)  # views
    rr = float(rv.dot(rv))
    least, goal = float("inf"), tol**2
    while limit > 0 and rr > goal:
        q = product(p)
        pq = float(pv.dot(q.reshape(-1)))
        if pq == 0:  # a direction that A does not see
            break
        alpha = rr / pq
        least = min(least, pq / float(pv.dot(pv)))
        x.add_(p, alpha=alpha)
        r.sub_(q, alpha=alpha)
        before, rr = rr, float(rv.dot(rv))
        if rr < 1e4 * near**2 and least > 0:
            goal = max(tol**2, (near * least) ** 2 * float(xv.dot(xv)))
        p.mul_(rr / before).add_(r)
        limit -= 1
    return x


def _cg(A: Operator, product: Product, b: Any, tol: float, limit: int, M: Product | None, near: float = 0.0) -> Any:
    xp = A.xp
    held = _held(A)
    z = b if M is None else M(b)
    rz = A.dot(b, z)

    def go(k: Any, x: Any, r: Any, p: Any, rz: Any, least: Any, active: Any) -> Any:
        return (k < limit) & xp.any(active)

    def step(k: Any, x: Any, r: Any, p: Any, rz: Any, least: Any, active: Any) -> Any:
        q = product(p)
        pq = A.dot(p, q)
        alpha = held(active, safe(xp, rz, pq))
        x, r = xp.axpy(alpha, p, x), xp.axpy(-alpha, q, r)
        new = A.dot(r, r) if M is None else A.dot(r, z := M(r))
        rr = new if M is None else A.dot(r, r)
        more = (rr > tol**2) & (pq != 0)  # else a direction that A does not see
        if near:
            slope = pq / A.dot(p, p)
            least = xp.where(active & (slope < least), slope, least)
            more = more & ((rr > (near * least) ** 2 * A.dot(x, x)) | (least <= 0))
        return k + 1, x, r, xp.axpy(held(active, safe(xp, new, rz)), p, r if M is None else z), new, least, active & more

    start = A.dot(b, b)
    return xp.while_loop(go, step, (xp.zero, xp.zeros_like(b), b, z, rz, 0 * start + float("inf"), start > tol**2))[1]


def _held(A: Operator) -> Callable[[Any, Any], Any]:
    """Step lengths of which only those of active instances count; a single instance is active as long as the loop runs."""
    xp = A.xp
    return (lambda active, value: xp.where(active, value, xp.zeros_like(value))) if A.batch else lambda active, value: value


def normal_cg(A: Operator, b: Any, tol: float, limit: int, M: Product | None = None) -> Any:
    """Conjugate gradients on A'A x = A'b: any A, at the price of the squared condition number."""
    rhs = A.rmatvec(b)
    size = A.norm(rhs)
    return _cg(A, lambda v: A.rmatvec(A.matvec(v)), safe(A.xp, rhs, size), tol, limit, M) * size


def bicgstab(A: Operator, b: Any, tol: float, limit: int, M: Product | None = None) -> Any:
    """Stabilised bi-conjugate gradients for any square A: short recurrences, two products a step."""
    xp = A.xp
    M = M or (lambda r: r)
    held = _held(A)
    rr = A.dot(b, b)

    def go(k: Any, x: Any, r: Any, p: Any, rho: Any, active: Any) -> Any:
        return (k < limit) & xp.any(active)

    def step(k: Any, x: Any, r: Any, p: Any, rho: Any, active: Any) -> Any:
        ph = M(p)
        v = A.matvec(ph)
        alpha = held(active, rho / A.dot(b, v))
        s = xp.axpy(-alpha, v, r)
        sh = M(s)
        t = A.matvec(sh)
        tt = A.dot(t, t)
        omega = xp.where(active & (tt > 0), A.dot(t, s) / tt, xp.zeros_like(tt))
        x, r = xp.axpy(omega, sh, xp.axpy(alpha, ph, x)), xp.axpy(-omega, t, s)
        new = A.dot(b, r)
        active = active & (A.dot(r, r) > tol**2)
        going = active & (xp.abs(new) > 1e-30) & (omega != 0)  # else the shadow residual is used up: start afresh from r
        beta = xp.where(going, (new / rho) * (alpha / omega), xp.zeros_like(new))
        p = xp.axpy(beta, xp.axpy(-omega, v, p), r)
        return k + 1, x, r, p, xp.where(active & ~going, A.dot(b, r), new), active

    return xp.while_loop(go, step, (xp.zero, xp.zeros_like(b), b, b, rr, rr > tol**2))[1]


def gmres(A: Operator, b: Any, tol: float, limit: int, M: Product | None = None, restart: int = 30) -> Any:
    """Restarted generalised minimal residuals for any square A, preconditioned from the right."""
    xp = A.xp
    M = M or (lambda r: r)
    m = max(1, min(restart, A.size))
    if A.batch == 0 and xp.name == "torch" and not xp.traced(b):
        return _gmres_alone(A, b, tol, limit, M, m)

    def go(k: Any, x: Any, r: Any, rr: Any) -> Any:
        return (k < limit) & xp.any(rr > tol)

    def cycle(k: Any, x: Any, r: Any, rr: Any) -> Any:
        x = xp.where(rr > tol, x + M(_arnoldi(A, lambda v: A.matvec(M(v)), r, rr, tol, m)), x)
        r = b - A.matvec(x)
        return k + m, x, r, A.norm(r)

    return xp.while_loop(go, cycle, (xp.zero, xp.zeros_like(b), b, A.norm(b)))[1]


def _gmres_alone(A: Operator, b: Any, tol: float, limit: int, M: Product, m: int) -> Any:
    """Of one system, eagerly and in place: products with the basis, one call each."""
    x, r = 0 * b, b
    size = float(A.norm(r))
    V = b.new_zeros((m + 1, A.size))
    while limit > 0 and size > tol:
        V[0] = r.reshape(-1) / size
        H, c, left, j = np.zeros((m + 1, m)), np.zeros(m + 1), size, 0
        c[0] = 1.0
        while j < m and left > tol:
            w = A.matvec(M(V[j].reshape(A.shape))).reshape(-1)
            before, basis = float(w.dot(w)) ** 0.5, V[: j + 1]
            h = basis @ w
            w = w - h @ basis
            again = basis @ w  # twice is enough (Kahan)
            w = w - again @ basis
            n = float(w.dot(w)) ** 0.5
            H[: j + 1, j] = (h + again).tolist()
            j += 1
            if not n > 10 * A.eps * before:  # the space is invariant
                break
            V[j] = w / n
            H[j, j - 1] = n
            c[j] = -(c[:j] @ H[:j, j - 1]) / n
            left = size / np.sqrt(c[: j + 1] @ c[: j + 1])
        if not np.isfinite(H).all():
            break
        target = np.zeros(j + 1)
        target[0] = size
        y = np.linalg.lstsq(H[: j + 1, :j], target, rcond=None)[0]
        x = x + M((A.xp.new(y, b) @ V[:j]).reshape(A.shape))
        r = b - A.matvec(x)
        limit, size = limit - j, float(A.norm(r))
    return x


def _arnoldi(A: Operator, product: Product, r: Any, beta: Any, tol: float, m: int) -> Any:
    """The minimiser of |r - A x| over one Krylov space of dimension at most m.

    The left null vector c of the Hessenberg matrix gives the residual without rotations: |r_j| = beta / |c|.
    """
    xp = A.xp
    unit = np.eye(m + 1).reshape(m + 1, m + 1, *(1,) * len(A.shape))
    units = xp.new(unit, r)  # units[j]: one-hot over the leading axis
    first = safe(xp, r, beta)
    axes = tuple(a + 1 for a in A.axes)
    inner = (lambda V, w: xp.sum(V * w[None], axis=axes, keepdims=True)) if axes else (lambda V, w: V * w[None])

    def go(j: Any, V: Any, H: Any, c: Any, left: Any) -> Any:
        return (j < m) & xp.any(left > tol)

    def step(j: Any, V: Any, H: Any, c: Any, left: Any) -> Any:
        w = product(V[j])
        size = A.norm(w)
        h = inner(V, w)
        w = w - xp.sum(h * V, axis=0)
        again = inner(V, w)  # twice is enough (Kahan): orthogonal to rounding
        w, h = w - xp.sum(again * V, axis=0), h + again
        n = A.norm(w)
        n = xp.where((left > tol) & (n > 10 * A.eps * size), n, xp.zeros_like(n))
        one = units[j + 1]
        grown = safe(xp, -xp.sum(c * h, axis=0), n)
        c = c + one * grown[None]
        done = (n == 0) | (left <= tol)
        left = xp.where(done, xp.zeros_like(left), safe(xp, beta, xp.sqrt(xp.sum(c * c, axis=0))))
        return j + 1, V + one * safe(xp, w, n)[None], H + units[j][:m][:, None] * (h + one * n[None])[None], c, left

    V = units[0] * first[None]
    H = xp.zeros_like(units[:m] * beta[None, None])
    c = units[0] * xp.ones_like(beta)[None]
    _, V, H, _, _ = xp.while_loop(go, step, (xp.zero, V, H, c, beta))
    matrix = xp.reshape(H, (m, m + 1, *A.shape[: A.batch]))
    matrix = xp.permute_dims(matrix, (*range(2, 2 + A.batch), 1, 0))  # (batch..., m + 1, m)
    Q, R = xp.linalg.qr(matrix)
    diagonal = xp.linalg.diagonal(R)
    R = R + xp.eye_like(r, m) * xp.where(xp.abs(diagonal) <= 1e-14, xp.ones_like(diagonal), xp.zeros_like(diagonal))[..., None]
    y = xp.solve_triangular(R, xp.matrix_transpose(Q)[..., :, :1], lower=False)[..., 0] * xp.reshape(beta, (*A.shape[: A.batch], 1))
    y = xp.reshape(xp.moveaxis(y, -1, 0), (m, *A.shape[: A.batch], *(1,) * len(A.axes)))
    return xp.sum(y * V[:m], axis=0)


def lsmr(A: Operator, b: Any, tol: float, limit: int) -> Any:
    """Least squares by Golub-Kahan bidiagonalisation: any A, singular ones too (minimum-norm solution)."""
    xp = A.xp
    beta = A.norm(b)
    u = safe(xp, b, beta)
    v = A.rmatvec(u)
    alpha = A.norm(v)
    v = safe(xp, v, alpha)
    one, zero = xp.ones_like(beta), xp.zeros_like(beta)

    def go(k: Any, *s: Any) -> Any:
        return (k < limit) & xp.any(s[-1] > tol)

    def step(
        k: Any, x: Any, h: Any, hb: Any, u: Any, v: Any, alpha: Any, ab: Any, zb: Any, rho: Any, rb: Any, cb: Any, sb: Any, e: Any
    ) -> Any:
        u = A.matvec(v) - alpha * u
        beta = A.norm(u)
        u = safe(xp, u, beta)
        v = A.rmatvec(u) - beta * v
        alpha = A.norm(v)
        v = safe(xp, v, alpha)
        before = rho
        rho = xp.sqrt(ab**2 + beta**2)
        c, s = safe(xp, ab, rho), safe(xp, beta, rho)
        theta, ab = s * alpha, c * alpha
        theta_b, before_b = sb * rho, rb
        rb = xp.sqrt((cb * rho) ** 2 + theta**2)
        cb, sb = safe(xp, cb * rho, rb), safe(xp, theta, rb)
        z, zb = cb * zb, -sb * zb
        hb = h - safe(xp, theta_b * rho, before * before_b) * hb
        moved = xp.where(e > tol, safe(xp, z, rho * rb), xp.zeros_like(z))
        x, h = x + moved * hb, v - safe(xp, theta, rho) * h
        return k + 1, x, h, hb, u, v, alpha, ab, zb, rho, rb, cb, sb, xp.where(e > tol, xp.abs(zb), e)

    start = (xp.zero, xp.zeros_like(b), v, xp.zeros_like(b), u, v, alpha, alpha, alpha * beta, one, one, one, zero, alpha * beta)
    return xp.while_loop(go, step, start)[1]


def neumann(A: Operator, b: Any, terms: int) -> Any:
    """sum_{k < terms} (I - A)^k b: for A = I - T' with a contraction T, truncated on purpose."""
    xp = A.xp

    def step(k: Any, x: Any, r: Any) -> Any:
        r = r - A.matvec(r)
        return k + 1, x + r, r

    return xp.while_loop(lambda k, x, r: k < terms - 1, step, (xp.zero, b, b))[1]


def series(A: Operator, b: Any, tol: float, limit: int = 100) -> tuple[Any, Any]:
    """(x, b - A x) for sums x of (I - A)^k b, |b| = 1, up to the tolerance, given up where terms fall by less than a quarter on average."""
    xp = A.xp

    def go(k: Any, x: Any, r: Any, e: Any, pace: Any) -> Any:
        return (k < limit) & (e > tol) & (e < pace)

    def step(k: Any, x: Any, r: Any, e: Any, pace: Any) -> Any:
        new = r - A.matvec(r)
        return k + 1, x + r, new, xp.max(A.norm(new)), 0.75 * pace

    r = b - A.matvec(b)
    e = xp.max(A.norm(r))
    found = xp.while_loop(go, step, (xp.zero, b, r, e, 4 + 0 * e))  # the first terms may well grow
    return found[1], found[2]
