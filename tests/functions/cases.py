"""Every function with arguments at a point where it is differentiable; arguments are arrays whose leading dimension may become a batch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler import functions as lf


@dataclass(frozen=True)
class Case:
    """A function of arrays, its arguments, and whether its second derivative is not zero."""

    function: Any
    arguments: tuple
    curved: bool = True


def _spectrum(rng, values):
    Q = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return (Q * np.array(values)) @ Q.T


def cases():
    """By name."""
    rng = np.random.default_rng(5)
    n = rng.standard_normal
    x, r = 2 * n(6), np.array(1.3)
    A, b, G, h = n((2, 6)), n(2), n((4, 6)), 0.3 * n(4) + 0.5
    X = n((4, 3))
    rows, columns = np.array([0.2, 0.3, 0.1, 0.4]), np.array([0.5, 0.2, 0.3])
    flat = lambda f: lambda *a: _flat(f(*a))  # noqa: E731
    spread = np.array([[0.5, 0.1, -0.4], [0.0, 0.4, 0.1], [-0.2, -0.5, 0.6], [0.9, 0.2, -0.3]])
    weights = np.array([1.0, -0.5, 2.0, 0.7, 0.1, -1.0])
    found = {
        "nonnegative": Case(lf.project_nonnegative, (x,), False),
        "box": Case(lf.project_box, (x, -np.ones(6) + 0.1 * n(6), np.ones(6)), False),
        "hyperplane": Case(lf.project_hyperplane, (x, n(6), np.array(0.4))),
        "halfspace": Case(lf.project_halfspace, (x, x + n(6), np.array(0.4))),
        "affine": Case(lf.project_affine, (x, A, b)),
        "simplex": Case(lf.project_simplex, (x, r), False),
        "sparsemax": Case(lf.sparsemax, (x,), False),
        "l1 ball": Case(lf.project_l1_ball, (x, r), False),
        "l1 sphere": Case(lf.project_l1_sphere, (0.1 * x, r), False),
        "l2 ball": Case(lf.project_l2_ball, (x, r)),
        "l2 sphere": Case(lf.project_l2_sphere, (x, r)),
        "linf ball": Case(lf.project_linf_ball, (x, r), False),
        "linf sphere": Case(lf.project_linf_sphere, (0.1 * x, r), False),
        "box section": Case(lf.project_box_section, (x, -np.ones(6), np.ones(6) + 0.2 * n(6), weights, np.array(1.1))),
        "polyhedron": Case(lf.project_polyhedron, (x, A, b, G, h)),
        "second-order cone": Case(lf.project_second_order, (np.concatenate([[0.3], x]),)),
        "psd": Case(flat(lf.project_psd), (_spectrum(rng, [2.0, 1.0, 1.0, -0.5, -1.5]),)),
        "transport": Case(flat(lf.project_transport), (spread, rows, columns), False),
        "birkhoff": Case(flat(lf.project_birkhoff), (0.5 * n((4, 4)),), False),
        "optimal transport": Case(flat(lf.optimal_transport), (X, rows, columns, np.array(0.5))),
        "wide transport": Case(flat(lf.optimal_transport), (X.T, columns, rows, np.array(0.5))),
        "kl transport": Case(flat(lf.project_kl_transport), (X, rows, columns)),
        "kl birkhoff": Case(flat(lf.project_kl_birkhoff), (n((4, 4)),)),
        "lasso": Case(lf.prox_lasso, (x, np.abs(n(6)), np.full(6, 0.7))),
        "nonnegative lasso": Case(lf.prox_nonnegative_lasso, (x, np.abs(n(6)), np.full(6, 0.7))),
        "elastic net": Case(lf.prox_elastic_net, (x, np.abs(n(6)), np.abs(n(6)))),
        "nonnegative elastic net": Case(lf.prox_nonnegative_elastic_net, (x, np.abs(n(6)), np.abs(n(6)))),
        "ridge": Case(lf.prox_ridge, (x, np.abs(n(6)))),
        "nonnegative ridge": Case(lf.prox_nonnegative_ridge, (x, np.abs(n(6)))),
        "group lasso": Case(lf.prox_group_lasso, (x, r)),
        "nuclear": Case(flat(lf.prox_nuclear), (X, np.array(0.8))),
        "wide nuclear": Case(flat(lf.prox_nuclear), (n((2, 4)), np.array(0.4))),
        "isotonic": Case(lf.isotonic, (x, 1 + np.abs(n(6)))),
        "decreasing": Case(lambda y: lf.isotonic(y, increasing=False), (np.sort(x)[[3, 1, 5, 4, 0, 2]],), False),
        "least squares": Case(lf.least_squares, (n((7, 3)), n(7), np.abs(n(7)), np.array(0.3))),
        "eigenvalues": Case(lambda M: lf.eigen(M)[0], (_spectrum(rng, [2.0, 1.0, 0.4, -0.5]),)),
        "eigenspace": Case(flat(lambda M: lf.eigenspace(M, 2)), (_spectrum(rng, [2.0, 2.0, 0.4, 0.4]),)),
    }
    for penalty in ("quadratic", "pseudo-huber", "huber", "welsch", "truncated-quadratic"):
        found[f"{penalty} pooling"] = Case(
            lambda x, width, penalty=penalty: lf.robust_pool(x, penalty, width)[..., None],
            (np.array([0.1, 0.5, -0.3, 0.2, 4.0]), np.array(0.9)),
            penalty in ("pseudo-huber", "welsch"),
        )
    return found


def _flat(v):
    xp = arrays.of(v)
    return xp.reshape(v, (*v.shape[:-2], v.shape[-2] * v.shape[-1]))
