"""Random QPs of seventeen kinds beside Clarabel: right to 1e-8 or rightly flagged, none silent."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import Status, kernels
from tests.qp import families

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
FLAGS = {"infeasible": Status.PRIMAL_INFEASIBLE, "unbounded": Status.DUAL_INFEASIBLE}
FLAGGED = ("infeasible", "inconsistent")  # left to the homogeneous embedding of the lanes engine
SIZES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 120)


def objective(Q, p, x):
    return x @ ((Q + Q.T) @ x) / 4 + p @ x


def violation(Q, p, G, h, A, b, x):
    """Largest violation of a row beside the size of that row."""
    rows = np.concatenate([np.maximum(G @ x - h, 0.0), np.abs(A @ x - b)])
    size = np.concatenate([np.abs(G) @ np.abs(x) + np.abs(h), np.abs(A) @ np.abs(x) + np.abs(b)])
    return np.max(rows / np.maximum(size, 1e-300), initial=0.0)


def optimality(Q, p, G, h, A, b, x, duals):
    """Stationarity, signs and complementarity beside the sizes of their terms, by plain products."""
    y, z = duals[: len(b)], duals[len(b) :]
    terms = (Q + Q.T) @ x / 2, p, G.T @ z, A.T @ y
    stationarity = np.max(np.abs(sum(terms)) / (1 + sum(np.abs(t) for t in terms)))
    size = np.max(np.abs(G), axis=1, initial=0.0) * z  # of the multiplier, whatever the unit of its row
    slack = (h - G @ x) / np.maximum(np.abs(G) @ np.abs(x) + np.abs(h), 1e-300)
    return max(stationarity, np.max(-z, initial=0.0), np.max(np.minimum(np.abs(slack), np.abs(size)), initial=0.0))


def check(kind, n, instances):
    """What went wrong, as text; empty where all is right."""
    expected = instances[0][1]
    stacked = [np.stack(a) for a in zip(*(arrays for arrays, _ in instances), strict=True)]
    m, p = stacked[3].shape[1], stacked[5].shape[1]
    compiled = lc.compile(lc.QP(n, m, p), variables=["x", *(["y"] if p else []), *(["z"] if m else [])], on_error="flag")
    values = dict(zip(families.NAMES, stacked, strict=True))
    found = compiled.solve(*(values[k.name] for k in compiled.parameters))
    wrong = []
    for i, (arrays, _) in enumerate(instances):
        status, x = Status(int(found.status[i])), found.outputs[0][i]
        if expected in FLAGS:
            if status != FLAGS[expected]:
                wrong.append(f"{kind} n={n}: {status.name} instead of {expected}")
            continue
        if status != Status.SOLVED:
            wrong.append(f"{kind} n={n}: {status.name} ({found.residual[i]:.0e})")
            continue
        if found.residual[i] > 1e-8 or violation(*arrays, x) > 1e-8:
            wrong.append(f"{kind} n={n}: silently violated by {violation(*arrays, x):.0e}")
        duals = np.concatenate([o[i] for o in found.outputs[1:]]) if m + p else np.zeros(0)
        if optimality(*arrays, x, duals) > 1e-8:
            wrong.append(f"{kind} n={n}: optimality conditions off by {optimality(*arrays, x, duals):.0e}")
        name, y, _ = families.clarabel_answer(*arrays)
        if name != "Solved":
            continue  # the reference itself gives up; optimality was checked by our own residual
        Q, q = arrays[:2]
        ours, theirs = objective(Q, q, x), objective(Q, q, y)
        size = 1 + abs(theirs) + np.abs(q) @ np.abs(y)
        if ours - theirs > 1e-8 * size:
            wrong.append(f"{kind} n={n}: objective {ours:.12g} above {theirs:.12g}")
    return wrong, int(np.sum(found.info.engine == "dense_qp"))


@pytest.mark.parametrize("kind", families.KINDS)
def test_every_kind_is_right_or_rightly_flagged(kind):
    rng = np.random.default_rng(families.KINDS.index(kind))
    wrong, fast, count = [], 0, 0
    for n in (1, 2, 5, 13, 30):
        bad, ours = check(kind, n, [families.mixed(kind, n, rng) for _ in range(4)])
        wrong, fast, count = wrong + bad, fast + ours, count + 4
    assert not wrong
    if kind not in FLAGGED:
        assert fast >= 0.5 * count, f"{fast} of {count} by the dense kernel"


@pytest.mark.slow
@pytest.mark.parametrize("kind", families.KINDS)
def test_ten_thousand_of_them(kind):
    """54 instances of each of 11 sizes and 17 kinds: 10,098."""
    rng = np.random.default_rng(1000 + families.KINDS.index(kind))
    wrong, fast = [], 0
    for n in SIZES:
        bad, ours = check(kind, n, [families.mixed(kind, n, rng) for _ in range(54)])
        wrong, fast = wrong + bad, fast + ours
    print(f"{kind}: {fast} of {54 * len(SIZES)} by the dense kernel")
    assert not wrong, "\n".join(wrong[:20])
