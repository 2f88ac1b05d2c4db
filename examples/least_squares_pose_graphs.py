"""Pose graphs in the plane, on a sphere and in a cube, with false loop closures, and a robust loss whose radius is learned.

Some of the loops were closed between places that are not the same. Geman and McClure's loss ignores them, if its radius is right; the
radius is learned from graphs whose truth is known, through the exact derivative of the optimum. Each graph is written as a g2o file and
read again. Takes under a minute and writes least_squares_pose_graphs.png.
"""

import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch

import layercompiler as lc
from layercompiler import arrays
from layercompiler.inspect.scenes import PoseGraph, read_g2o, write_g2o
from layercompiler.manifolds import SE2, SE3

matplotlib.use("Agg")
import matplotlib.pyplot as plt

XP, STEPS = arrays.get("numpy"), 4
GROUPS = {"SE2": SE2, "SE3": SE3}


def turned(forward, up):
    """Quaternions (n, 4) of frames that look along `forward` with `up` above."""
    from scipy.spatial.transform import Rotation

    x = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    y = np.cross(up, x)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return Rotation.from_matrix(np.stack([x, y, np.cross(x, y)], axis=2)).as_quat(scalar_first=True)


def grid(side=6):
    """A walk to and fro over the plane."""
    places = np.array([(i, j if i % 2 == 0 else side - 1 - j) for i in range(side) for j in range(side)], float)
    step = np.gradient(places, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    return "SE2", np.concatenate([step, places], axis=1)


def sphere(rings=5, around=8):
    """A spiral over a sphere."""
    k = np.arange(rings * around)
    height, angle = 1 - 2 * (k + 0.5) / len(k), 2 * np.pi * k / around
    places = 4 * np.stack([np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height], axis=1)
    return "SE3", np.concatenate([turned(np.gradient(places, axis=0), places + 1e-3), places], axis=1)


def cube(side=3):
    """A walk through all places of a cube."""
    places = []
    for i in range(side):
        for j in range(side)[:: 1 if i % 2 == 0 else -1]:
            places += [(i, j, k) for k in range(side)[:: 1 if (i * side + j) % 2 == 0 else -1]]
    places = np.array(places, float)
    return "SE3", np.concatenate([turned(np.gradient(places, axis=0), np.array([[0.3, 0.5, 0.8]])), places], axis=1)


def measured(group, truth, rng, false=0.15, noise=0.03):
    """A graph with odometry, loops between neighbours, and false loops; the start follows the odometry."""
    kind, n = GROUPS[group], len(truth)
    place = truth[:, 2:] if group == "SE2" else truth[:, 4:]
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = np.argwhere((distance < 1.9) & (np.subtract.outer(np.arange(n), np.arange(n)) < -2))
    loops = near[rng.permutation(len(near))[:n]]
    edges = np.concatenate([np.stack([np.arange(n - 1), np.arange(1, n)], axis=1), loops])
    between = kind.compose(XP, kind.inverse(XP, truth[edges[:, 0]]), truth[edges[:, 1]])
    z = kind.retract(XP, between, noise * rng.standard_normal((len(edges), kind.dof)))
    wrong = n - 1 + np.flatnonzero(rng.random(len(loops)) < false)
    z[wrong] = kind.retract(XP, z[wrong], rng.standard_normal((len(wrong), kind.dof)))
    start = [truth[0]]
    for k in range(n - 1):
        start.append(kind.compose(XP, start[-1], z[k]))
    return PoseGraph(group, np.stack(start), edges, z, np.broadcast_to(np.eye(kind.dof) / noise**2, (len(edges), kind.dof, kind.dof)))


def solver(graph, noise=0.03):
    """Odometry by squares, loops by a robust loss."""
    n, kind = len(graph.poses), getattr(lc, graph.group)

    def error(xp, a, b, z):
        return z.local(a.between(b)) / noise

    loops = len(graph.edges) - (n - 1)
    problem = lc.LeastSquares(
        variables={"X": kind(n, init=graph.poses, fixed=list(graph.fixed))},
        factors=[
            lc.factor(error, on=("X", "X"), index=graph.edges[: n - 1], data="odometry", name="odometry"),
            lc.factor(error, on=("X", "X"), index=graph.edges[n - 1 :], data="loops", robust=lc.GemanMcClure("radius"), name="loops"),
        ],
        parameters={"odometry": kind(n - 1), "loops": kind(loops), "radius": ()},
    )
    return lc.export(problem, "torch", on_error="flag", options={"max_iterations": 25, "trace": False})


def main():
    """Learn a radius for each graph, draw."""
    rng = np.random.default_rng(1)
    figure, axes = plt.subplots(1, 4, figsize=(16, 4))
    curves = axes[3]
    for axis, (name, make) in zip(axes[:3], {"grid": grid, "sphere": sphere, "cube": cube}.items(), strict=True):
        group, truth = make()
        with tempfile.TemporaryDirectory() as folder:
            write_g2o(Path(folder) / "graph.g2o", measured(group, truth, rng))
            graph = read_g2o(Path(folder) / "graph.g2o")
        layer, n = solver(graph), len(truth)
        given = [torch.tensor(graph.measured[: n - 1]), torch.tensor(graph.measured[n - 1 :])]
        log_radius = torch.tensor(np.log(30.0), requires_grad=True)
        optimizer = torch.optim.Adam([log_radius], lr=0.9)
        place = slice(2, None) if group == "SE2" else slice(4, None)
        errors, found = [], []
        for _ in range(STEPS):
            (X,) = layer(*given, log_radius.exp())
            loss = (X[:, place] - torch.tensor(truth[:, place])).square().sum(dim=1).mean().sqrt()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(loss.item())
            found.append(X.detach().numpy()[:, place])
        print(f"{name}: {len(graph.edges)} edges, error of positions {errors[0]:.3f} at first, {errors[-1]:.3f} learned")
        for places, style in ((truth[:, place], "k:"), (found[0], "C3-"), (found[int(np.nanargmin(errors))], "C0-")):
            axis.plot(places[:, 0], places[:, 1] + (0.3 * places[:, 2] if group == "SE3" else 0), style, lw=1)
        axis.set(title=f"{name} (truth dotted, first red, learned blue)", aspect="equal")
        axis.title.set_fontsize(8)
        curves.plot(errors, ".-", label=name)
        assert np.nanmin(errors) <= errors[0]
    curves.set(xlabel="step", ylabel="error of positions", yscale="log")
    curves.legend()
    figure.tight_layout()
    figure.savefig("least_squares_pose_graphs.png", dpi=120)


if __name__ == "__main__":
    main()
