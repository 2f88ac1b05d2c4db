"""Random structures with data, and points on either side of every cone: what the tests of the linear systems run on."""

import numpy as np

from layercompiler.cones import PSD, Exponential, Nonnegative, Power, Product, SecondOrder, Zero
from layercompiler.programs.cone import Data, Structure

CONES = {
    "zero": ((Zero(), 3),),
    "nonnegative": ((Nonnegative(), 6),),
    "second_order": ((SecondOrder(1), 1), (SecondOrder(2), 2), (SecondOrder(5), 2)),
    "psd": ((PSD(1), 1), (PSD(3), 2), (PSD(4), 1)),
    "exponential": ((Exponential(), 3),),
    "power": ((Power((0.3, 0.5, 0.9)), 3),),
    "all": ((Zero(), 2), (Nonnegative(), 3), (SecondOrder(4), 2), (PSD(3), 1), (Exponential(), 2), (Power((0.2, 0.7)), 2)),
}


def structure(blocks, n, rng, density=0.5):
    """A pattern with every row and every column used, and P with a full diagonal."""
    cones = Product(blocks)
    mask = rng.random((cones.m, n)) < density
    mask[rng.integers(0, cones.m, n), np.arange(n)] = True
    mask[np.arange(cones.m), np.arange(cones.m) % n] = True
    A_rows, A_cols = np.nonzero(mask)
    upper = np.triu(rng.random((n, n)) < density, 1) | np.eye(n, dtype=bool)
    P_cols, P_rows = np.nonzero(upper.T)
    return Structure(n, P_rows, P_cols, A_rows, A_cols, cones)


def data(s, batch, rng, shared=()):
    """Numbers with a definite P; `shared` names what the batch has in common."""
    count = {name: 1 if name in shared else batch for name in "PAb"}
    P = rng.uniform(-0.3, 0.3, (count["P"], len(s.P_rows)))
    P[:, s.P_rows == s.P_cols] = rng.uniform(1, 3, (count["P"], s.n))
    A, b = rng.standard_normal((count["A"], len(s.A_rows))), rng.standard_normal((count["b"], s.m))
    return Data(P, rng.standard_normal((batch, s.n)), np.zeros((1, 1)), A, b)


def dense(s, d, i):
    """(P, A) of instance i as matrices."""
    values = d.one(i)
    P, A = np.zeros((s.n, s.n)), np.zeros((s.m, s.n))
    P[s.P_rows, s.P_cols] = P[s.P_cols, s.P_rows] = values[0]
    A[s.A_rows, s.A_cols] = values[3]
    return P, A


def derivative(cones, v):
    """D as a matrix (m, m) at one point v (m,), column by column."""
    projection = cones.project_dual(v[None])
    return np.stack([projection.apply(e[None])[0] for e in np.eye(cones.m)], axis=1)


def solution(P, A, D, r_x, h):
    """(u, t) of [[P, A'S], [S A, -(I - D)]] [u; sigma] = [r_x; S h], t = S sigma: the least-norm one where it is singular."""
    w, Q = np.linalg.eigh(D)
    S = (Q * np.sqrt(np.clip(w, 0, 1))) @ Q.T
    K = np.block([[P, A.T @ S], [S @ A, D - np.eye(len(D))]])
    z = np.linalg.lstsq(K, np.r_[r_x, S @ h], rcond=1e-11)[0]
    return z[: len(P)], S @ z[len(P) :]
