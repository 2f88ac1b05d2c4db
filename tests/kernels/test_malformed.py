"""No structure that contradicts itself reaches a kernel's loops: dense programs, simplex, and the maps between parameters and data."""

import numpy as np
import pytest
import scipy.sparse as sp

from layercompiler import kernels
from layercompiler.errors import BuildError
from layercompiler.kernels import DenseQP, Equilibration, Gather, Layout, Pullback, Simplex, Substitution

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
COUNT = 2000


def far(rng, size):
    """An index outside of [0, size), some so far that a conversion to fewer bits brings it back inside."""
    return int(rng.choice([-1, -size - 1, size, size + 1, 2**31, 2**32, 2**40, -(2**40)]))


def spoiled(rng, index, size):
    out = np.array(index, dtype=np.int64)
    out[rng.integers(len(out))] = far(rng, size)
    return out


def refused(make):
    with pytest.raises((BuildError, OverflowError, ValueError)):
        make()


def test_dense_programs():
    rng = np.random.default_rng(1)
    for _ in range(COUNT):
        n, p, m = (int(k) for k in rng.integers(1, 6, 3))
        Q, A, G = ([np.array([0]), np.array([n - 1])], [np.array([p - 1]), np.array([0])], [np.array([0]), np.array([n - 1])])
        match int(rng.integers(6)):
            case 0:
                Q[int(rng.integers(2))] = spoiled(rng, [0], n)
            case 1:
                A[0] = spoiled(rng, A[0], p)
            case 2:
                G[1] = spoiled(rng, G[1], n)
            case 3:
                A[0] = np.r_[A[0], 0]
            case 4:
                n, Q = n + 1, [np.array([n]), np.array([0])]
            case 5:
                n = -n
        refused(lambda n=n, p=p, m=m, Q=Q, A=A, G=G: DenseQP(n, p, m, Q=tuple(Q), A=tuple(A), G=tuple(G)))


def test_simplex():
    rng = np.random.default_rng(2)
    for _ in range(COUNT):
        n, m = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        A = sp.csr_array(rng.standard_normal((m, n)))
        low, high, lower, upper, whole = np.full(m, -9.0), np.full(m, 9.0), np.zeros(n), np.ones(n), np.zeros(n, bool)
        match int(rng.integers(6)):
            case 0:
                A.indices[rng.integers(A.nnz)] = rng.choice([-1, n, n + 1, 2**31 - 1])
            case 1:
                A.indptr[-1] = A.indptr[-1] + 5
            case 2:
                low = low[:-1]
            case 3:
                whole = np.r_[whole, True]
            case 4:
                upper[rng.integers(n)] = -1.0
            case 5:
                A.data[rng.integers(A.nnz)] = np.inf
        refused(lambda A=A, rest=(low, high, lower, upper, whole): Simplex(A, *rest))


def test_maps():
    rng = np.random.default_rng(3)
    for _ in range(COUNT):
        sizes, parts = rng.integers(1, 5, 2), rng.integers(1, 5, 2)
        rows, source, cols = np.array([0, parts[0] - 1]), np.array([0, 1]), np.array([0, sizes[1] - 1])
        match int(rng.integers(4)):
            case 0:
                rows = spoiled(rng, rows, int(parts[0]))
            case 1:
                source = spoiled(rng, source, 2)
            case 2:
                cols = spoiled(rng, cols, int(sizes.max()))
            case 3:
                rows = rows[:-1]
        entries = [kernels.Entries(rows, source, cols, np.ones(2)), kernels.Entries(*(np.zeros(0, int),) * 3, np.zeros(0))]
        refused(lambda sizes=sizes, parts=parts, entries=entries: Gather(sizes, [np.zeros(k) for k in parts], entries))


def test_pullbacks_and_scalings():
    rng = np.random.default_rng(4)
    for _ in range(COUNT):
        n, m, size = (int(k) for k in rng.integers(1, 6, 3))
        kind, i, j, column = np.array([3, 0]), np.array([m - 1, 0]), np.array([n - 1, 0]), np.array([0, size - 1])
        match int(rng.integers(5)):
            case 0:
                kind = spoiled(rng, kind, 5)
            case 1:
                i = spoiled(rng, i, max(n, m))
            case 2:
                j = spoiled(rng, j, n)
            case 3:
                column = spoiled(rng, column, size)
            case 4:
                i = i[:-1]
        refused(lambda n=n, m=m, size=size, e=(kind, i, j, column): Pullback(n, m, [size], [(*e, np.ones(2))]))
        P, A, cone = [[0], [n - 1]], [[m - 1], [0]], np.zeros(m, int)
        match int(rng.integers(3)):
            case 0:
                P[int(rng.integers(2))] = spoiled(rng, [0], n)
            case 1:
                A[0] = spoiled(rng, A[0], m)
            case 2:
                cone = spoiled(rng, cone, 1)
        refused(lambda n=n, P=P, A=A, cone=cone: Equilibration(n, tuple(P), tuple(A), 1, cone))


def test_substitutions():
    rng = np.random.default_rng(5)
    good = {
        "full": (5, 4),
        "size": (3, 2),
        "keep_x": [0, 1, 2],
        "keep_y": [2, 3],
        "variable": [3, 4],
        "row": [0, 1],
        "c": [1.0, -2.0],
        "start": [0, 2, 4],
        "column": [0, 2, 0, 2],
        "P_size": 4,
        "place": [0, 3],
        "groups": [(np.array([0, 1]), np.array([0, 1, 3]))],
    }
    arrays = ("keep_x", "keep_y", "variable", "row", "start", "column", "place")
    Substitution(Layout(**{k: np.array(v) if k in (*arrays, "c") else v for k, v in good.items()}))
    limits = {"keep_x": 5, "keep_y": 4, "variable": 5, "row": 4, "start": 5, "column": 3, "place": 4}
    for _ in range(COUNT):
        plan = {k: np.array(v) if k in (*arrays, "c") else v for k, v in good.items()}
        match int(rng.integers(5)):
            case 0 | 1:
                name = str(rng.choice(arrays))
                plan[name] = spoiled(rng, plan[name], limits[name])
            case 2:
                plan["c"] = np.array([1.0, 0.0])
            case 3:
                plan["groups"] = [(spoiled(rng, [0, 1], 2), np.array([0, 1, 3]))]
            case 4:
                plan["groups"] = [(np.array([0, 1]), spoiled(rng, [0, 1, 3], 4))]
        refused(lambda plan=plan: Substitution(Layout(**plan)))
