"""Builders of the layer corpus: 41 parametrised DPP problems, LP to SDP (own code, no third-party text)."""

import cvxpy as cp
import numpy as np

from tests.corpus.case import Case, Registry, const_rng, spd, sym

REG = Registry()
case = REG.case


# ------------------------------------------------------------------ LP
@case("LP", 5, 30, "random bounded inequality LP, all data are parameters")
def lp_inequality(n, seed):
    m = 3 * n
    A, b, c = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter(n)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(c @ x), [A @ x <= b])

    def sample(rng):
        Av = rng.standard_normal((m, n))
        y = rng.uniform(0.1, 1.0, m)
        x0 = rng.standard_normal(n)
        return [Av, Av @ x0 + rng.uniform(0.2, 1.0, m), -Av.T @ y]

    return Case(prob, [A, b, c], [x], sample)


@case("LP", 3, 12, "Chebyshev (l-inf) approximation")
def linf_approximation(n, seed):
    m = 4 * n
    A, b = cp.Parameter((m, n)), cp.Parameter(m)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(cp.norm_inf(A @ x - b)))
    return Case(prob, [A, b], [x], lambda r: [r.standard_normal((m, n)), r.standard_normal(m)])


@case("LP", 3, 20, "largest ball in a polyhedron, right-hand side is the parameter")
def chebyshev_centre(n, seed):
    r0 = const_rng(seed)
    m = 4 * n
    A = r0.standard_normal((m, n))
    A = np.vstack([A, np.eye(n), -np.eye(n)])
    nrm = np.linalg.norm(A, axis=1)
    b = cp.Parameter(m + 2 * n)
    x, r = cp.Variable(n), cp.Variable()
    prob = cp.Problem(cp.Maximize(r), [A @ x + nrm * r <= b])
    return Case(prob, [b], [x, r], lambda g: [g.uniform(0.5, 1.5, m + 2 * n) * nrm])


@case("LP", 4, 9, "single-commodity min-cost flow on a grid; costs, capacities, supply are parameters")
def min_cost_flow(n, seed):
    nodes = n * n
    edges = []
    for i in range(n):
        for j in range(n):
            if j + 1 < n:
                edges.append((i * n + j, i * n + j + 1))
            if i + 1 < n:
                edges.append((i * n + j, (i + 1) * n + j))
    E = len(edges)
    inc = np.zeros((nodes, E))
    for k, (a, b) in enumerate(edges):
        inc[a, k], inc[b, k] = 1, -1
    cost, cap, flow = cp.Parameter(E, nonneg=True), cp.Parameter(E, nonneg=True), cp.Parameter(nonneg=True)
    f = cp.Variable(E)
    e = np.zeros(nodes)
    e[0] = 1
    prob = cp.Problem(cp.Minimize(cost @ f), [inc[:-1] @ f == flow * e[:-1], f >= 0, f <= cap])
    return Case(prob, [cost, cap, flow], [f], lambda r: [r.uniform(1, 3, E), r.uniform(0.8, 1.4, E), np.array(r.uniform(0.9, 1.2))])


@case("LP", 12, 60, "CVaR portfolio, scenario returns are the parameter")
def cvar_portfolio(n, seed):
    S, k = n, max(3, n // 3)
    R = cp.Parameter((S, k))
    w, t = cp.Variable(k), cp.Variable()
    beta = 0.73
    cvar = t + cp.sum(cp.pos(-R @ w - t)) / (S * (1 - beta))
    prob = cp.Problem(cp.Minimize(cvar), [cp.sum(w) == 1, w >= 0])
    return Case(prob, [R], [w], lambda r: [r.standard_normal((S, k)) * 0.2 + 0.05])


# ------------------------------------------------------------------ QP
@case("QP", 8, 200, "sparsemax = projection onto the simplex")
def sparsemax(n, seed):
    y = cp.Parameter(n)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, x >= 0])
    return Case(prob, [y], [x], lambda r: [r.standard_normal(n)])


@case("QP", 6, 30, "OptNet-form QP: every matrix a parameter")
def dense_qp(n, seed):
    me, mi = max(1, n // 3), n
    L, q, A, b, G, h = (
        cp.Parameter((n, n)),
        cp.Parameter(n),
        cp.Parameter((me, n)),
        cp.Parameter(me),
        cp.Parameter((mi, n)),
        cp.Parameter(mi),
    )
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(L @ x) + q @ x), [A @ x == b, G @ x <= h])

    def sample(r):
        x0 = r.standard_normal(n)
        Av, Gv = r.standard_normal((me, n)), r.standard_normal((mi, n))
        return [np.eye(n) + 0.3 * r.standard_normal((n, n)), r.standard_normal(n), Av, Av @ x0, Gv, Gv @ x0 + r.uniform(0.0, 0.6, mi)]

    return Case(prob, [L, q, A, b, G, h], [x], sample)


@case("QP", 6, 60, "Markowitz, long only; mean, factor, risk aversion are parameters")
def markowitz(n, seed):
    k = max(2, n // 2)
    mu, F, gam = cp.Parameter(n), cp.Parameter((n, k)), cp.Parameter(nonneg=True)
    d = const_rng(seed).uniform(0.2, 0.6, n)
    w, u = cp.Variable(n), cp.Variable(k)
    prob = cp.Problem(
        cp.Maximize(mu @ w - gam * (cp.sum_squares(cp.multiply(d, w))) - cp.sum_squares(u)), [F.T @ w == u, cp.sum(w) == 1, w >= 0]
    )
    return Case(prob, [mu, F, gam], [w], lambda r: [r.uniform(0, 0.5, n), 0.4 * r.standard_normal((n, k)), np.array(r.uniform(0.8, 1.5))])


@case("QP", 6, 25, "linear MPC with box input/state; initial state and B are parameters")
def mpc(n, seed):
    T, nx, nu = n, 3, 2
    r0 = const_rng(seed)
    A = np.eye(nx) + 0.15 * r0.standard_normal((nx, nx))
    B, x0 = cp.Parameter((nx, nu)), cp.Parameter(nx)
    X, U = cp.Variable((nx, T + 1)), cp.Variable((nu, T))
    cons = [X[:, 0] == x0, cp.abs(U) <= 0.4]
    for t in range(T):
        cons.append(X[:, t + 1] == A @ X[:, t] + B @ U[:, t])
    prob = cp.Problem(cp.Minimize(cp.sum_squares(X) + 0.3 * cp.sum_squares(U)), cons)
    return Case(prob, [B, x0], [U], lambda r: [0.5 * r.standard_normal((nx, nu)), r.uniform(-1.2, 1.2, nx)])


@case("QP", 5, 40, "lasso; design, response, weight are parameters")
def lasso(n, seed):
    m = 2 * n
    A, b, lam = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter(nonneg=True)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ x - b) + lam * cp.norm1(x)))

    def sample(r):
        Av = r.standard_normal((m, n))
        xt = r.standard_normal(n) * (r.uniform(size=n) < 0.6)
        return [Av, Av @ xt + 0.3 * r.standard_normal(m), np.array(r.uniform(0.8, 2.0))]

    return Case(prob, [A, b, lam], [x], sample)


@case("QP", 5, 60, "non-negative least squares with ridge")
def nn_ridge(n, seed):
    m = 2 * n
    A, b, lam = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter(nonneg=True)
    x = cp.Variable(n, nonneg=True)
    prob = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + lam * cp.sum_squares(x)))
    return Case(prob, [A, b, lam], [x], lambda r: [r.standard_normal((m, n)), r.standard_normal(m), np.array(r.uniform(0.1, 1))])


@case("QP", 12, 80, "soft-margin SVM, features are the parameter")
def svm_primal(n, seed):
    m, d = n, 3
    X, C = cp.Parameter((m, d)), cp.Parameter(nonneg=True)
    y = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
    w, b, xi = cp.Variable(d), cp.Variable(), cp.Variable(m, nonneg=True)  # slack form keeps C * xi DPP
    prob = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(w) + 0.05 * cp.square(b) + C * cp.sum(xi)), [xi >= 1 - cp.multiply(y, X @ w + b)])
    return Case(prob, [X, C], [w, b], lambda r: [r.standard_normal((m, d)) + 0.7 * y[:, None], np.array(r.uniform(0.3, 1.0))])


@case("QP", 12, 150, "1-D total-variation denoising")
def tv_denoise(n, seed):
    y, lam = cp.Parameter(n), cp.Parameter(nonneg=True)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - y) + lam * cp.norm1(cp.diff(x))))
    return Case(prob, [y, lam], [x], lambda r: [np.cumsum(r.standard_normal(n)), np.array(r.uniform(0.4, 1.0))])


@case("QP", 14, 80, "Huber regression")
def huber_regression(n, seed):
    m, d = n, 3
    A, b = cp.Parameter((m, d)), cp.Parameter(m)
    x = cp.Variable(d)
    prob = cp.Problem(cp.Minimize(cp.sum(cp.huber(A @ x - b, 0.7))))
    return Case(prob, [A, b], [x], lambda r: [r.standard_normal((m, d)), 1.5 * r.standard_normal(m)])


@case("QP", 5, 20, "minimum-energy control between two states; equality-only QP")
def min_energy_control(n, seed):
    T, nx = 2 * n, 3
    r0 = const_rng(seed)
    A = 0.7 * np.eye(nx) + 0.2 * r0.standard_normal((nx, nx))
    B = r0.standard_normal((nx, 1))
    x0, xf = cp.Parameter(nx), cp.Parameter(nx)
    X, U = cp.Variable((nx, T + 1)), cp.Variable((1, T))
    prob = cp.Problem(cp.Minimize(cp.sum_squares(U)), [X[:, 0] == x0, X[:, T] == xf, X[:, 1:] == A @ X[:, :-1] + B @ U])
    return Case(prob, [x0, xf], [U], lambda r: [r.standard_normal(nx), r.standard_normal(nx)])


# ------------------------------------------------------------------ SOCP
@case("SOCP", 4, 20, "robust LP with ellipsoidal uncertainty; c, centres and right-hand sides are parameters")
def robust_lp(n, seed):
    r0 = const_rng(seed)
    m = 2 * n
    P = [0.2 * r0.standard_normal((n, n)) for _ in range(m)]
    Abar, b, c = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter(n)
    x = cp.Variable(n)
    cons = [Abar[i] @ x + cp.norm2(P[i] @ x) <= b[i] for i in range(m)] + [cp.norm2(x) <= 3.0]
    prob = cp.Problem(cp.Minimize(c @ x), cons)
    return Case(prob, [Abar, b, c], [x], lambda r: [r.standard_normal((m, n)), r.uniform(0.5, 1.5, m), r.standard_normal(n)])


@case("SOCP", 6, 40, "geometric median of points in R^3")
def geometric_median(n, seed):
    pts, w = cp.Parameter((n, 3)), cp.Parameter(n, nonneg=True)
    x, t = cp.Variable((1, 3)), cp.Variable(n)
    prob = cp.Problem(cp.Minimize(w @ t), [cp.norm2(pts - np.ones((n, 1)) @ x, axis=1) <= t])
    return Case(prob, [pts, w], [x], lambda r: [r.standard_normal((n, 3)), r.uniform(0.6, 1.4, n)])


@case("SOCP", 6, 40, "smallest enclosing ball")
def enclosing_ball(n, seed):
    pts = cp.Parameter((n, 2))
    c, R = cp.Variable((1, 2)), cp.Variable()
    prob = cp.Problem(cp.Minimize(R), [cp.norm2(pts - np.ones((n, 1)) @ c, axis=1) <= R])
    return Case(prob, [pts], [c, R], lambda r: [r.standard_normal((n, 2))])


@case("SOCP", 4, 20, "group lasso")
def group_lasso(n, seed):
    g, m = 3, 4 * n
    A, b, lam = cp.Parameter((m, g * n)), cp.Parameter(m), cp.Parameter(nonneg=True)
    x = cp.Variable(g * n)
    pen = sum(cp.norm2(x[i * g : (i + 1) * g]) for i in range(n))
    prob = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ x - b) + lam * pen))
    return Case(prob, [A, b, lam], [x], lambda r: [r.standard_normal((m, g * n)), 2 * r.standard_normal(m), np.array(r.uniform(1.0, 3.0))])


@case("SOCP", 4, 25, "quad_over_lin allocation: minimise sum w_i^2/x_i under a budget")
def quad_over_lin_alloc(n, seed):
    w, B, c = cp.Parameter(n, nonneg=True), cp.Parameter(nonneg=True), cp.Parameter(n, nonneg=True)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(sum(cp.quad_over_lin(w[i], x[i]) for i in range(n)) + c @ x), [cp.sum(x) <= B])
    return Case(prob, [w, B, c], [x], lambda r: [r.uniform(0.5, 2, n), np.array(r.uniform(0.5, 1.5) * n / 2), r.uniform(0.1, 0.5, n)])


@case("SOCP", 4, 12, "geometric-mean utility over a polytope")
def geo_mean_polytope(n, seed):
    m = 2 * n
    A, b = cp.Parameter((m, n), nonneg=True), cp.Parameter(m, nonneg=True)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Maximize(cp.geo_mean(x)), [A @ x <= b])
    return Case(prob, [A, b], [x], lambda r: [r.uniform(0.1, 1, (m, n)), r.uniform(1, 2, m)])


@case("SOCP", 3, 8, "grasp force optimisation with friction cones; external wrench is the parameter")
def grasp_force(n, seed):
    r0 = const_rng(seed)
    m = n + 1
    Q, pos = [], []
    for i in range(m):
        th = 2 * np.pi * i / m + 0.1
        z = -np.array([np.cos(th), np.sin(th), 0.0])
        t1 = np.array([-np.sin(th), np.cos(th), 0.0])
        t2 = np.array([0, 0, 1.0])
        Q.append(np.stack([t1, t2, z], 1))
        pos.append(-z + 0.1 * r0.standard_normal(3))
    wrench, mu = cp.Parameter(6), 0.6
    F = cp.Variable((3, m))

    def skew(p):
        return np.array([[0, -p[2], p[1]], [p[2], 0, -p[0]], [-p[1], p[0], 0]])

    eq = [sum(Q[i] @ F[:, i] for i in range(m)) == -wrench[:3], sum(skew(pos[i]) @ Q[i] @ F[:, i] for i in range(m)) == -wrench[3:]]
    fr = [cp.norm2(F[:2, i]) <= mu * F[2, i] for i in range(m)]
    t = cp.Variable()
    prob = cp.Problem(cp.Minimize(t + 0.05 * cp.sum_squares(F)), eq + fr + [cp.norm2(F[:, i]) <= t for i in range(m)])
    return Case(prob, [wrench], [F], lambda r: [np.r_[0.3 * r.standard_normal(3), 0.1 * r.standard_normal(3)]])


# ------------------------------------------------------------------ EXP
@case("EXP", 6, 60, "softmax as an entropy-regularised LP over the simplex")
def softmax(n, seed):
    y, tau = cp.Parameter(n), cp.Parameter(nonneg=True)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(-y @ x - tau * cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    return Case(prob, [y, tau], [x], lambda r: [r.standard_normal(n), np.array(r.uniform(0.6, 1.5))])


@case("EXP", 12, 60, "l2-regularised logistic regression, features are the parameter")
def logistic_regression(n, seed):
    m, d = n, 3
    X, lam = cp.Parameter((m, d)), cp.Parameter(nonneg=True)
    y = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
    w = cp.Variable(d)
    prob = cp.Problem(cp.Minimize(cp.sum(cp.logistic(-cp.multiply(y, X @ w))) + lam * cp.sum_squares(w)))
    return Case(prob, [X, lam], [w], lambda r: [r.standard_normal((m, d)) + 0.4 * y[:, None], np.array(r.uniform(0.2, 1))])


@case("EXP", 6, 30, "KL projection of q onto linear constraints (q enters through a linear term)")
def kl_projection(n, seed):
    k = max(1, n // 3)
    logq, A = cp.Parameter(n), cp.Parameter((k, n))
    b = cp.Parameter(k)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(-cp.sum(cp.entr(x)) - logq @ x), [cp.sum(x) == 1, A @ x == b])

    def sample(r):
        Av = r.standard_normal((k, n))
        p = r.dirichlet(np.full(n, 3.0))
        return [np.log(r.dirichlet(np.full(n, 5.0)) + 0.02), Av, Av @ p]

    return Case(prob, [logq, A, b], [x], sample)


@case("EXP", 6, 60, "water filling")
def water_filling(n, seed):
    a, P = cp.Parameter(n, nonneg=True), cp.Parameter(nonneg=True)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Maximize(cp.sum(cp.log(a + x))), [x >= 0, cp.sum(x) == P])
    return Case(prob, [a, P], [x], lambda r: [r.uniform(0.3, 2.0, n), np.array(r.uniform(0.3, 0.7) * n)])


@case("EXP", 5, 30, "smooth max of affine functions with a quadratic prox")
def log_sum_exp_min(n, seed):
    m = 2 * n
    A, b = cp.Parameter((m, n)), cp.Parameter(m)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(cp.log_sum_exp(A @ x + b) + 0.1 * cp.sum_squares(x)))
    return Case(prob, [A, b], [x], lambda r: [r.standard_normal((m, n)), r.standard_normal(m)])


@case("EXP", 5, 16, "entropic optimal transport, one marginal row dropped")
def entropic_ot(n, seed):
    C, a, b = cp.Parameter((n, n)), cp.Parameter(n, nonneg=True), cp.Parameter(n, nonneg=True)
    X = cp.Variable((n, n))
    eps = 0.3
    prob = cp.Problem(
        cp.Minimize(cp.sum(cp.multiply(C, X)) - eps * cp.sum(cp.entr(X))), [cp.sum(X, axis=1) == a, cp.sum(X, axis=0)[:-1] == b[:-1]]
    )
    return Case(prob, [C, a, b], [X], lambda r: [r.uniform(0, 1, (n, n)), r.dirichlet(np.full(n, 6.0)), r.dirichlet(np.full(n, 6.0))])


# ------------------------------------------------------------------ GP
@case("GP", 3, 3, "box volume design")
def gp_box(n, seed):
    Aw, Af, al, be = (cp.Parameter(pos=True) for _ in range(4))
    h, w, d = (cp.Variable(pos=True) for _ in range(3))
    prob = cp.Problem(cp.Maximize(h * w * d), [2 * (h * w + h * d) <= Aw, w * d <= Af, al * w <= h, d <= be * w])
    return Case(
        prob,
        [Aw, Af, al, be],
        [h, w, d],
        lambda r: [np.array(r.uniform(80, 120)), np.array(r.uniform(8, 12)), np.array(r.uniform(0.4, 0.6)), np.array(r.uniform(1.5, 2.5))],
        gp=True,
    )


@case("GP", 4, 12, "sum of posynomials, vector parameters")
def gp_posynomial(n, seed):
    c, d = cp.Parameter(n, pos=True), cp.Parameter(n, pos=True)
    x = cp.Variable(n, pos=True)
    obj = cp.sum(cp.multiply(c, x)) + cp.sum(cp.multiply(d, x**-1.5)) + 0.5 / cp.prod(x)
    prob = cp.Problem(cp.Minimize(obj), [x <= 1.2])
    return Case(prob, [c, d], [x], lambda r: [r.uniform(0.5, 2, n), r.uniform(0.5, 2, n)], gp=True)


# ------------------------------------------------------------------ POWER
@case("POW", 3, 10, "l_p regression, p = 3")
def pnorm_regression(n, seed):
    m = 4 * n
    A, b = cp.Parameter((m, n)), cp.Parameter(m)
    x = cp.Variable(n)
    prob = cp.Problem(cp.Minimize(cp.pnorm(A @ x - b, 3)))
    return Case(prob, [A, b], [x], lambda r: [r.standard_normal((m, n)), r.standard_normal(m)])


@case("POW", 4, 20, "explicit 3-D power cones, Cobb-Douglas production with budget")
def power_cone_production(n, seed):
    alpha = const_rng(seed).uniform(0.25, 0.75, n)
    p, price, budget = cp.Parameter(n, nonneg=True), cp.Parameter((2, n), nonneg=True), cp.Parameter(nonneg=True)
    X, z = cp.Variable((2, n)), cp.Variable(n)
    prob = cp.Problem(
        cp.Maximize(p @ z - 0.1 * cp.sum_squares(X)), [cp.PowCone3D(X[0], X[1], z, alpha), cp.sum(cp.multiply(price, X)) <= budget]
    )
    return Case(
        prob, [p, price, budget], [X, z], lambda r: [r.uniform(1, 2, n), r.uniform(0.5, 1.5, (2, n)), np.array(r.uniform(0.5, 1.0) * n)]
    )


# ------------------------------------------------------------------ SDP
@case("SDP", 3, 10, "nearest correlation matrix")
def nearest_correlation(n, seed):
    C = cp.Parameter((n, n), symmetric=True)
    X = cp.Variable((n, n), PSD=True)
    prob = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) == 1])

    def sample(r):
        M = 0.9 * sym(r, n)
        np.fill_diagonal(M, 1.0)
        return [M]

    return Case(prob, [C], [X], sample)


@case("SDP", 4, 10, "minimise the largest eigenvalue of an affine matrix pencil")
def min_lambda_max(n, seed):
    r0 = const_rng(seed)
    k = max(2, n // 2)
    Ai = [sym(r0, n) for _ in range(k)]
    A0 = cp.Parameter((n, n), symmetric=True)
    x = cp.Variable(k)
    prob = cp.Problem(cp.Minimize(cp.lambda_max(A0 + sum(x[i] * Ai[i] for i in range(k))) + 0.2 * cp.sum_squares(x)))
    return Case(prob, [A0], [x], lambda r: [sym(r, n)])


@case("SDP", 5, 12, "max-cut relaxation")
def maxcut(n, seed):
    W = cp.Parameter((n, n), symmetric=True)
    X = cp.Variable((n, n), symmetric=True)
    prob = cp.Problem(cp.Minimize(cp.trace(W @ X)), [X >> 0, cp.diag(X) == 1])

    def sample(r):
        M = r.uniform(0.2, 1.0, (n, n))
        M = (M + M.T) / 2
        np.fill_diagonal(M, 0)
        return [M]

    return Case(prob, [W], [X], sample)


@case("SDP", 3, 8, "sparse inverse covariance (graphical lasso)")
def graphical_lasso(n, seed):
    S, lam = cp.Parameter((n, n), symmetric=True), cp.Parameter(nonneg=True)
    X = cp.Variable((n, n), symmetric=True)
    off = np.ones((n, n)) - np.eye(n)
    prob = cp.Problem(cp.Minimize(cp.trace(S @ X) - cp.log_det(X) + lam * cp.sum(cp.multiply(off, cp.abs(X)))))
    return Case(prob, [S, lam], [X], lambda r: [spd(r, n, 0.5, 2.0), np.array(r.uniform(0.05, 0.2))])


@case("SDP", 6, 16, "minimum-volume ellipsoid around points")
def min_volume_ellipsoid(n, seed):
    d = 2
    pts = cp.Parameter((n, d))
    A, b = cp.Variable((d, d), PSD=True), cp.Variable(d)
    prob = cp.Problem(cp.Minimize(-cp.log_det(A)), [cp.norm2(A @ pts[i] + b) <= 1 for i in range(n)])
    return Case(prob, [pts], [A, b], lambda r: [r.standard_normal((n, d))])


@case("SDP", 4, 8, "nuclear-norm matrix completion, regularised")
def nuclear_completion(n, seed):
    M, lam = cp.Parameter((n, n + 1)), cp.Parameter(nonneg=True)
    mask = (const_rng(seed).uniform(size=(n, n + 1)) < 0.75).astype(float)
    X = cp.Variable((n, n + 1))
    prob = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(cp.multiply(mask, X - M)) + lam * cp.normNuc(X) + 0.05 * cp.sum_squares(X)))
    return Case(prob, [M, lam], [X], lambda r: [r.standard_normal((n, 2)) @ r.standard_normal((2, n + 1)), np.array(r.uniform(0.3, 0.8))])


@case("SDP", 3, 6, "PhaseLift: real phase retrieval relaxation with noise")
def phaselift(n, seed):
    m = 4 * n
    Z = const_rng(seed).standard_normal((m, n))
    b, lam = cp.Parameter(m), cp.Parameter(nonneg=True)
    X = cp.Variable((n, n), PSD=True)
    meas = cp.sum(cp.multiply(Z @ X, Z), axis=1)
    prob = cp.Problem(cp.Minimize(cp.sum_squares(meas - b) + lam * cp.trace(X)))
    return Case(
        prob, [b, lam], [X], lambda r: [(Z @ r.standard_normal(n)) ** 2 + 0.1 * r.standard_normal(m), np.array(r.uniform(0.5, 1.5))]
    )


@case("SDP", 4, 8, "worst-case portfolio variance over a box of covariances with trace bound")
def worst_case_risk(n, seed):
    S0, dlt = cp.Parameter((n, n), symmetric=True), cp.Parameter(nonneg=True)
    W = cp.Parameter((n, n), symmetric=True)  # = w w^T supplied by the caller (keeps DPP)
    S = cp.Variable((n, n), PSD=True)
    prob = cp.Problem(cp.Maximize(cp.trace(W @ S) - 0.5 * cp.sum_squares(S - S0)), [cp.abs(S - S0) <= dlt])

    def sample(r):
        v = r.standard_normal(n)
        return [np.outer(v, v), spd(r, n, 0.05, 1.0), np.array(r.uniform(0.3, 0.6))]

    return Case(prob, [W, S0, dlt], [S], sample)


@case("SDP", 3, 6, "A-optimal design through matrix_frac")
def matrix_frac_design(n, seed):
    k = 3 * n
    c = cp.Parameter(n)
    V = const_rng(seed).standard_normal((k, n))
    x = cp.Variable(k)
    M = sum(x[i] * np.outer(V[i], V[i]) for i in range(k))
    prob = cp.Problem(cp.Minimize(cp.matrix_frac(c, M) + 0.3 * cp.sum_squares(x)), [cp.sum(x) == 1, x >= 0])
    return Case(prob, [c], [x], lambda r: [r.standard_normal(n)])
