"""Pose graphs in the plane, on a sphere and in a cube, with false loop closures, and a robust loss whose radius is learned.

A sixth of the loops were closed between places that are not the same. Geman and McClure's loss ignores them, if its radius is right: too
wide, and false loops bend the map; too narrow, and true loops are thrown away. The radius is learned from four graphs whose truth is known,
through the exact derivative of the optimum, and judged on four others. One graph is written as a g2o file and read again. Takes under a
minute and writes least_squares_pose_graphs.png.
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

XP, TRAIN, TEST, STEPS = arrays.get("numpy"), 4, 4, 15
GROUPS = {"SE2": SE2, "SE3": SE3}


def turned(forward, up):
    """Quaternions (n, 4) of frames that look along `forward` with `up` above."""
    from scipy.spatial.transform import Rotation

    x = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    y = np.cross(up, x)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return Rotation.from_matrix(np.stack([x, y, np.cross(x, y)], axis=2)).as_quat(scalar_first=True)


def grid(side=10):
    """A walk to and fro over the plane."""
    places = np.array([(i, j if i % 2 == 0 else side - 1 - j) for i in range(side) for j in range(side)], float)
    step = np.gradient(places, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    return "SE2", np.concatenate([step, places], axis=1)


def sphere(rings=8, around=14):
    """A spiral over a sphere."""
    k = np.arange(rings * around)
    height, angle = 1 - 2 * (k + 0.5) / len(k), 2 * np.pi * k / around
    places = 4 * np.stack([np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height], axis=1)
    return "SE3", np.concatenate([turned(np.gradient(places, axis=0), places + 1e-3), places], axis=1)


def cube(side=4):
    """A walk through all places of a cube."""
    places = []
    for i in range(side):
        for j in range(side)[:: 1 if i % 2 == 0 else -1]:
            places += [(i, j, k) for k in range(side)[:: 1 if (i * side + j) % 2 == 0 else -1]]
    places = np.array(places, float)
    return "SE3", np.concatenate([turned(np.gradient(places, axis=0), np.array([[0.3, 0.5, 0.8]])), places], axis=1)


def measured(group, truth, rng, batch, false=0.15, noise=0.03):
    """(edges, measurements (batch, edges, ...), starts): odometry, loops between neighbours, some false; the start follows the odometry."""
    kind, n = GROUPS[group], len(truth)
    place = truth[:, 2:] if group == "SE2" else truth[:, 4:]
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = np.argwhere((distance < 1.9) & (np.subtract.outer(np.arange(n), np.arange(n)) < -2))
    loops = near[np.random.default_rng(0).permutation(len(near))[:n]]
    edges = np.concatenate([np.stack([np.arange(n - 1), np.arange(1, n)], axis=1), loops])
    between = kind.compose(XP, kind.inverse(XP, truth[edges[:, 0]]), truth[edges[:, 1]])
    between = np.broadcast_to(between, (batch, *between.shape))
    z = kind.retract(XP, between, noise * rng.standard_normal((batch, len(edges), kind.dof)))
    wrong = (np.arange(len(edges)) >= n - 1) & (rng.random((batch, len(edges))) < false)
    z[wrong] = kind.retract(XP, z[wrong], rng.standard_normal((int(wrong.sum()), kind.dof)))
    start = [np.broadcast_to(truth[0], (batch, len(truth[0])))]
    for k in range(n - 1):
        start.append(kind.compose(XP, start[-1], z[:, k]))
    return edges, z, np.stack(start, axis=1)


def through_a_file(group, edges, z, start, noise=0.03):
    """Write a graph as g2o and read it again."""
    information = np.broadcast_to(np.eye(GROUPS[group].dof) / noise**2, (len(edges), GROUPS[group].dof, GROUPS[group].dof))
    with tempfile.TemporaryDirectory() as folder:
        write_g2o(Path(folder) / "graph.g2o", PoseGraph(group, start, edges, z, information))
        graph = read_g2o(Path(folder) / "graph.g2o")
    assert (graph.edges == edges).all() and np.abs(graph.measured - z).max() < 1e-8
    return graph


def solver(group, n, edges, noise=0.03):
    """Odometry by squares, loops by a robust loss."""

    def error(xp, a, b, z):
        return z.local(a.between(b)) / noise

    kind = getattr(lc, group)
    problem = lc.LeastSquares(
        variables={"X": kind(n, fixed=[0])},
        factors=[
            lc.factor(error, on=("X", "X"), index=edges[: n - 1], data="odometry", name="odometry"),
            lc.factor(error, on=("X", "X"), index=edges[n - 1 :], data="loops", robust=lc.GemanMcClure("radius"), name="loops"),
        ],
        parameters={"odometry": kind(n - 1), "loops": kind(len(edges) - n + 1), "radius": ()},
    )
    return lc.export(problem, "torch", on_error="flag", options={"max_iterations": 200})


def main():
    """Learn a radius for each kind of graph, draw."""
    figure, axes = plt.subplots(1, 4, figsize=(16, 4))
    curves = axes[3]
    for axis, (name, make) in zip(axes[:3], {"grid": grid, "sphere": sphere, "cube": cube}.items(), strict=True):
        group, truth = make()
        n, place = len(truth), slice(2, None) if group == "SE2" else slice(4, None)
        edges, z, start = measured(group, truth, np.random.default_rng(1), TRAIN + TEST)
        graph = through_a_file(group, edges, z[-1], start[-1])
        z[-1], start[-1] = graph.measured, graph.poses
        layer = solver(group, n, edges)

        def solve(rows, radius, layer=layer, z=z, start=start, n=n, truth=truth, place=place):
            """Positions, and the error of each graph that converged."""
            (X,) = layer(torch.tensor(z[rows, : n - 1]), torch.tensor(z[rows, n - 1 :]), radius, init={"X": start[rows]})
            error = (X[..., place] - torch.tensor(truth[:, place])).square().sum(dim=-1).mean(dim=-1)
            good = torch.isfinite(error)
            return X.detach().numpy()[..., place], torch.where(good, error, 0.0).sum() / good.sum(), int(good.sum())

        log_radius = torch.tensor(np.log(60.0), requires_grad=True)
        optimizer = torch.optim.Adam([log_radius], lr=0.4)
        errors, radii, train, test = [], [], slice(0, TRAIN), slice(TRAIN, None)
        for _ in range(STEPS):
            _, loss, _ = solve(train, log_radius.exp())
            optimizer.zero_grad()
            loss.sqrt().backward()
            errors.append(float(loss.detach()) ** 0.5)
            radii.append(float(log_radius.detach().exp()))
            optimizer.step()
        best = torch.tensor(radii[int(np.argmin(errors))], dtype=torch.float64)
        with torch.no_grad():
            before, first, _ = solve(test, torch.tensor(60.0, dtype=torch.float64))
            after, last, good = solve(test, best)
        print(
            f"{name}: {n} poses, {len(edges)} edges; radius {radii[0]:.0f} to {float(best):.1f}; error of positions on other graphs "
            f"{float(first) ** 0.5:.3f} to {float(last) ** 0.5:.3f} ({good} of {TEST} converged)"
        )
        assert last < 0.5 * first and good == TEST
        for places, style in ((truth[:, place], "k:"), (before[-1], "C3-"), (after[-1], "C0-")):
            axis.plot(places[:, 0], places[:, 1] + (0.3 * places[:, 2] if group == "SE3" else 0), style, lw=1)
        axis.set(title=f"{name} (truth dotted, first red, learned blue)", aspect="equal")
        axis.title.set_fontsize(8)
        curves.plot(errors, ".-", label=name)
    curves.set(xlabel="step", ylabel="error of positions (training)", yscale="log")
    curves.legend()
    figure.tight_layout()
    figure.savefig("least_squares_pose_graphs.png", dpi=120)


if __name__ == "__main__":
    main()
