"""Problems of the least-squares tests: curve fits, and pose graphs with loops."""

import numpy as np

import layercompiler as lc
from layercompiler import arrays, manifolds

TIMES = np.linspace(0, 4, 100)
HOST = arrays.get("numpy")


def exponential(xp, x, y):
    """a exp(-b t) + c - y."""
    return x[0] * xp.exp(-x[1] * xp.new(TIMES, x)) + x[2] - y


def curve_fit(**options):
    return lc.LeastSquares(
        {"x": lc.Euclidean(3, init=[1.0, 1.0, 0.0])}, [lc.factor(exponential, on="x", data="y", **options)], {"y": (100,)}
    )


def curves(count, noise, seed=0):
    """(count, 100) noisy curves."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        x = rng.uniform(1, 3), rng.uniform(0.5, 1.5), rng.uniform(-0.5, 0.5)
        out.append(x[0] * np.exp(-x[1] * TIMES) + x[2] + noise * rng.standard_normal(100))
    return np.array(out)


def between(xp, a, b, z):
    """log(z^-1 a^-1 b)."""
    return z.local(a.between(b))


DECLARE = {"SO2": lc.SO2, "SE2": lc.SE2, "SO3": lc.SO3, "SE3": lc.SE3}


def pose_graph(name, count, batch, noise, seed=0, **options):
    """(problem, measurements (batch, E, ambient), start (batch, count, ambient)) of a curved chain with loops; pose 0 is fixed."""
    group, rng = getattr(manifolds, name), np.random.default_rng(seed)
    steps = 0.05 * rng.standard_normal((count - 1, group.dof))
    steps[:, 0] += 1
    steps[:, -1] += 0.15 * np.sin(np.arange(count - 1) / 7)
    poses = [group.identity()]
    for step in steps:
        poses.append(group.retract(HOST, poses[-1], step))
    poses = np.stack(poses)
    edges = {(i, i + 1) for i in range(count - 1)}
    edges |= {
        (int(a), min(count - 1, int(a + k)))
        for a, k in zip(rng.integers(0, count - 3, count // 4), rng.integers(3, 12, count // 4), strict=True)
    }
    edges |= {(int(rng.integers(0, count // 2)), int(rng.integers(count // 2, count))) for _ in range(3)}
    edges = np.array(sorted(edges))
    relative = group.compose(HOST, group.inverse(HOST, poses[edges[:, 0]]), poses[edges[:, 1]])
    measured = group.retract(
        HOST, np.broadcast_to(relative, (batch, *relative.shape)), noise * rng.standard_normal((batch, len(edges), group.dof))
    )
    start = group.retract(HOST, np.broadcast_to(poses, (batch, *poses.shape)), 0.015 * rng.standard_normal((batch, count, group.dof)))
    start[:, 0] = poses[0]
    declare = DECLARE[name]
    problem = lc.LeastSquares(
        {"X": declare(count, fixed=[0])},
        [lc.factor(between, on=("X", "X"), index=edges, data="Z", weight=lc.Diagonal("w"), **options)],
        {"Z": declare(len(edges)), "w": (len(edges), group.dof), "r": ()},
    )
    return problem, measured, start
