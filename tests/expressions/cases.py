"""Expressions in the CVXPY DSL, one for every rule of the translation and for the usual ways to combine them."""

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

N = 6
_rng = np.random.default_rng(3)
W = _rng.standard_normal((5, 3))
SPARSE = sp.random_array((10, N), density=0.15, rng=np.random.default_rng(1)).tocsr()
KERNEL = _rng.standard_normal(3)


def x():
    return cp.Variable(N, name="x")


def y():
    return cp.Variable(N, name="y")


def X():
    return cp.Variable((3, 4), name="X")


def S():
    return cp.Variable((3, 3), name="S", symmetric=True)


def p():
    return cp.Parameter(N, name="p")


def s():
    return cp.Variable(name="s")


def T():
    return cp.Variable((2, 3, 4), name="T")


def _unicycle():
    states, controls = cp.Variable((5, 3)), cp.Variable((4, 2))
    v, turn, heading = controls[:, 0], controls[:, 1], states[:-1, 2]
    steps = [cp.multiply(v, cp.nlp.cos(heading)), cp.multiply(v, cp.nlp.sin(heading)), turn]
    return states[1:] - states[:-1] - 0.1 * cp.vstack(steps).T


def _shared():
    a = cp.exp(x())
    return cp.multiply(a, a) + 1 / (1 + a)


def _loop():
    v = x()
    return cp.hstack([v[k + 1] - v[k] - 0.1 * cp.nlp.sin(v[k]) for k in range(N - 1)])


CASES = {
    # elementwise
    "sin": lambda: cp.nlp.sin(x()),
    "cos": lambda: cp.nlp.cos(X()),
    "tan": lambda: cp.nlp.tan(0.1 * x()),
    "sinh": lambda: cp.nlp.sinh(x()),
    "tanh": lambda: cp.nlp.tanh(x()),
    "asinh": lambda: cp.nlp.asinh(x()),
    "atanh": lambda: cp.nlp.atanh(cp.nlp.tanh(x())),
    "normcdf": lambda: cp.nlp.normcdf(x() - 0.5),
    "exp and log": lambda: cp.log(1 + cp.exp(x())),
    "log1p": lambda: cp.log1p(cp.exp(x())),
    "logistic": lambda: cp.logistic(x() - p()),
    "entr": lambda: cp.entr(x()),
    "rel_entr": lambda: cp.rel_entr(x(), y()),
    "kl_div": lambda: cp.kl_div(cp.exp(x()), y()),
    "xexp": lambda: cp.xexp(x()),
    "huber": lambda: cp.huber(x() - p(), 0.2),
    "huber with a parameter": lambda: cp.huber(x() - 0.3, cp.Parameter(nonneg=True, name="M")),
    "abs": lambda: cp.abs(x() - 0.5),
    "maximum": lambda: cp.maximum(x(), y(), 0.3),
    "minimum": lambda: cp.minimum(x(), p(), s()),
    "scalene": lambda: cp.scalene(x() - 0.5, 2, 3),
    "square and cube": lambda: cp.square(x()) + x() ** 3,
    "one_minus_pos": lambda: cp.one_minus_pos(cp.nlp.sin(x())),
    "square root": lambda: cp.sqrt(cp.exp(x())),
    "inverse": lambda: cp.inv_pos(x()) + cp.power(y(), -2),
    "fractional power": lambda: cp.power(x(), 1.7),
    "parameter as exponent": lambda: cp.power(2.0 + x(), cp.Parameter(name="q")),
    "loggamma": lambda: cp.loggamma(1 + x()),
    "log_normcdf": lambda: cp.log_normcdf(x()),
    # products and quotients
    "bilinear": lambda: cp.multiply(x(), y()) - p(),
    "quotient": lambda: x() / (1 + cp.square(y())),
    "scalar times vector": lambda: s() * x() + s(),
    "constant matrix": lambda: W @ X() - 2,
    "parameter matrix": lambda: cp.Parameter((8, N), name="A") @ cp.nlp.tanh(x()) - 1,
    "sparse matrix": lambda: SPARSE @ cp.nlp.cos(x()),
    "matrix from the right": lambda: X() @ np.arange(4.0) + x()[:3] @ W.T[:, :3],
    "gram matrix": lambda: X().T @ cp.nlp.sinh(X()),
    "outer product": lambda: cp.outer(x(), y()),
    "inner product": lambda: x() @ y(),
    "quadratic form": lambda: cp.quad_form(cp.nlp.sin(x()), np.diag(np.arange(1.0, 7)) + 0.1),
    "quadratic form of a parameter": lambda: cp.quad_form(x(), cp.Parameter((N, N), PSD=True, name="P")),
    "kron": lambda: cp.kron(np.array([[1.0, 0.0], [2.0, 3.0]]), X()),
    "convolve": lambda: cp.convolve(KERNEL, cp.nlp.sin(x())),
    "gmatmul": lambda: cp.gmatmul(W[:, :3], cp.Variable(3, pos=True, name="g")),
    "three axes": lambda: cp.sum(cp.nlp.sin(T()), axis=1) @ W[:4, :2],
    "broadcast": lambda: cp.multiply(X(), np.ones((1, 4)) * 2.0) + x()[:3].reshape((3, 1), order="F"),
    "broadcast_to": lambda: cp.broadcast_to(cp.exp(x()), (2, N)),
    # movement
    "slices": lambda: x()[1:5] * s() + y()[::-1][:4],
    "fancy index": lambda: x()[[0, 2, 2, 5]] - y()[[1, 1, 3, 0]],
    "mask": lambda: x()[np.array([1, 0, 1, 0, 1, 1], bool)],
    "block of a matrix": lambda: cp.nlp.sin(X())[1:, [0, 3]],
    "new axis": lambda: x()[:, None] - y()[None, :],
    "hstack": lambda: cp.hstack([x(), y()[2], s()]),
    "vstack": lambda: cp.vstack([x(), cp.nlp.cos(y())]),
    "bmat": lambda: cp.bmat([[a := X(), a], [2 * a, -a]]),
    "concatenate": lambda: cp.concatenate([X(), np.ones((3, 2)), cp.exp(X())], axis=1),
    "stack": lambda: cp.stack([x(), cp.exp(y())], axis=-1),
    "reshape in Fortran order": lambda: cp.reshape(X(), (2, 6), order="F"),
    "reshape in C order": lambda: cp.reshape(cp.nlp.sin(X()), (6, 2), order="C"),
    "vec": lambda: cp.vec(cp.exp(X()), order="F"),
    "diag of a vector": lambda: cp.diag(cp.exp(x()), 1) + 1,
    "diag of a matrix": lambda: cp.diag(X()[:, :3], -1),
    "upper_tri": lambda: cp.upper_tri((a := X())[:, :3] @ a[:, 1:]),
    "transpose": lambda: cp.exp(X()).T - X().T,
    "permutation of axes": lambda: cp.transpose(cp.exp(T()), (2, 0, 1)),
    "trace": lambda: cp.trace(X()[:, :3] @ W[:3]),
    "trace of a nonlinear one": lambda: cp.trace(cp.exp(S())),
    "partial trace": lambda: cp.partial_trace(cp.Variable((6, 6)) ** 2, (2, 3), axis=0),
    "diff": lambda: cp.diff(cp.nlp.sin(x()), 2),
    # reductions
    "sum along an axis": lambda: cp.sum(cp.vstack([x(), y(), p()]), axis=0),
    "mean": lambda: cp.mean(cp.nlp.sin(X()), axis=1, keepdims=True),
    "variance": lambda: cp.var(x()),
    "prod": lambda: cp.prod(x()) + cp.prod(X(), axis=1)[0],
    "max and min": lambda: cp.max(X(), axis=0) - cp.min(X()),
    "log_sum_exp": lambda: cp.log_sum_exp(X(), axis=1),
    "cumsum": lambda: cp.cumsum(cp.nlp.sin(X()), axis=1),
    "cumsum of all": lambda: cp.cumsum(X(), axis=None),
    "cumprod": lambda: cp.cumprod(X(), axis=0),
    "cummax": lambda: cp.cummax(x()),
    "sum_squares": lambda: cp.sum_squares(cp.nlp.sin(X())),
    "quad_over_lin": lambda: cp.quad_over_lin(x(), 1 + cp.square(s())),
    "norms": lambda: cp.hstack([cp.norm(x() - p()), cp.norm1(x()), cp.norm_inf(x()), cp.pnorm(x(), 3), cp.pnorm(x(), 0.5)]),
    "norms along an axis": lambda: cp.norm(X(), 2, axis=1),
    "mixed norm": lambda: cp.mixed_norm(X(), 2, 1),
    "total variation": lambda: cp.tv(X()),
    "geo_mean": lambda: cp.geo_mean(x(), [1, 2, 0, 1, 1, 3]),
    "harmonic_mean": lambda: cp.harmonic_mean(x()),
    "inv_prod": lambda: cp.inv_prod(x()),
    "sum_largest": lambda: cp.sum_largest(x(), 2) + cp.sum_smallest(y(), 3),
    "sum_largest of a fraction": lambda: cp.sum_largest(X(), 2.5),
    "cvar": lambda: cp.cvar(x(), 0.6),
    "dotsort": lambda: cp.dotsort(x(), [1.0, 2.0, 0.5]),
    "ptp": lambda: cp.ptp(x()),
    "dist_ratio": lambda: cp.dist_ratio(x(), np.zeros(N), np.full(N, 2.0)),
    # matrices
    "log_det": lambda: cp.log_det(S()),
    "lambda_max": lambda: cp.lambda_max(S()) - cp.lambda_min(S()),
    "lambda_sum_largest": lambda: cp.lambda_sum_largest(S(), 2),
    "condition_number": lambda: cp.condition_number(S()),
    "sigma_max": lambda: cp.sigma_max(X()),
    "norm_nuc": lambda: cp.normNuc(X()),
    "matrix_frac": lambda: cp.matrix_frac(x()[:3], S()),
    "tr_inv": lambda: cp.tr_inv(S()),
    "von_neumann_entr": lambda: cp.von_neumann_entr(0.1 * S()),
    "eye_minus_inv": lambda: cp.eye_minus_inv(0.1 * X()[:, :3]),
    # whole models
    "unicycle": _unicycle,
    "shared subexpression": _shared,
    "loop": _loop,
    "homography": lambda: (X() @ np.ones(4))[:2] / (X() @ np.arange(4.0))[2],
}
