"""Nonlinear least squares, Theseus, optimistix and us, in one run on one pinned core; writes a section of RESULTS.md.

    python -m benchmarks.least_squares [--only graph,curve,scene] [--seconds 2] [--out benchmarks/RESULTS.md]

All solve the same data in float64. Layers take turns call by call, and the smallest time of each is reported, in milliseconds for the whole
batch: forward alone, and forward with backward. Poses: gradients by the weights of the edges; curves: by the samples. `gap` is the largest
difference of a layer's solution from ours, `gradient` the relative difference of its gradient from central differences along one direction
of solutions of ours at tolerance 1e-13. Peers that are not installed are left out (README.md says how to install Theseus).
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import os
import platform
import time
import warnings

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="2")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import cvxpy as cp
import numpy as np
import torch
from scipy.spatial.transform import Rotation

import layercompiler as lc
from benchmarks import least_squares_peers as peers
from benchmarks import least_squares_problems as problems
from benchmarks import results as results_file

GRAPHS = [("SE2", n, b) for n in (100, 500, 1000) for b in (1, 8, 16)] + [("SE3", 256, b) for b in (1, 8, 16)]
CURVES = (1, 128, 1024)
SCENES = ((6, 100), (20, 2000))
LARGEST = {"Theseus (dense scene)": 700, "Theseus (dense)": 100}  # factors or poses beyond which a peer takes minutes


class OursGraph:
    """A pose graph as factors; the first pose is fixed where Theseus pins it by a prior (its residual there is zero)."""

    def __init__(self, graph, **options):
        kind = getattr(lc, graph.group)
        self.planar = graph.group == "SE2"
        count, factors = graph.start.shape[1], len(graph.edges)
        problem = lc.LeastSquares(
            variables={"X": kind(count, fixed=[0])},
            factors=[
                lc.factor(lambda xp, a, b, z: z.local(a.between(b)), on=("X", "X"), index=graph.edges, data="Z", weight=lc.Diagonal("w"))
            ],
            parameters={"Z": kind(factors), "w": graph.weights.shape[1:]},
        )
        self.layer = lc.export(problem, "torch", solver="gauss_newton", options=options or None)
        self.start, self.measured = self.numbers(graph.start), self.numbers(graph.measured)
        self.weights = torch.tensor(graph.weights, requires_grad=True)
        self.cotangent = torch.tensor(np.random.default_rng(5).standard_normal((len(graph.start), count, 2 if self.planar else 3)))

    def numbers(self, matrices):
        R, t = matrices[..., :-1, :-1], matrices[..., :-1, -1]
        if self.planar:
            return torch.tensor(np.concatenate([R[..., :, 0], t], axis=-1))
        q = Rotation.from_matrix(R.reshape(-1, 3, 3)).as_quat(scalar_first=True).reshape(*R.shape[:-2], 4)
        return torch.tensor(np.concatenate([q, t], axis=-1))

    def forward(self):
        return self.layer(self.measured, self.weights, init={"X": self.start})[0]

    def positions(self, value):
        return value[..., 2:] if self.planar else value[..., 4:]

    def backward(self, value):
        return torch.autograd.grad((self.positions(value) * self.cotangent).sum(), self.weights)[0]

    def moved(self, direction, h):
        """Positions with the weights moved."""
        with torch.no_grad():
            return self.positions(self.layer(self.measured, self.weights + h * direction, init={"X": self.start})[0])


class OursCurve:
    """A curve fit, from a residual function or from the DSL."""

    def __init__(self, curve, dsl=False, **options):
        if dsl:
            x, y = cp.Variable(3, name="x"), cp.Parameter(len(curve.t), name="y")
            objective = cp.Minimize(cp.sum_squares(x[0] * cp.exp(-x[1] * curve.t) + x[2] - y))
            x.value = curve.start[0]
            self.layer = lc.export(cp.Problem(objective), "torch", solver="levenberg_marquardt", options=options or None)
        else:
            t = torch.tensor(curve.t)
            problem = lc.LeastSquares(
                variables={"x": lc.Euclidean(3, init=curve.start[0])},
                factors=[lc.factor(lambda x, y: x[0] * torch.exp(-x[1] * t) + x[2] - y, on="x", data="y")],
                parameters={"y": curve.t.shape},
            )
            self.layer = lc.export(problem, "torch", options=options or None)
        self.y = torch.tensor(curve.y, requires_grad=True)

    def forward(self):
        return self.layer(self.y)[0]

    def positions(self, value):
        return value

    def backward(self, value):
        return torch.autograd.grad((value * value).sum(), self.y)[0]


class OursJaxCurve:
    """A curve fit by our jax layer, under jit as jax users have it."""

    def __init__(self, curve):
        import jax

        jax.config.update("jax_enable_x64", True)
        t = jax.numpy.asarray(curve.t)
        problem = lc.LeastSquares(
            variables={"x": lc.Euclidean(3, init=curve.start[0])},
            factors=[lc.factor(lambda x, y: x[0] * jax.numpy.exp(-x[1] * t) + x[2] - y, on="x", data="y")],
            parameters={"y": curve.t.shape},
        )
        layer = lc.export(problem, "jax", on_error="flag")
        self.y = jax.numpy.asarray(curve.y)
        self.solve = jax.jit(lambda y: layer(y)[0])
        self.both = jax.jit(jax.value_and_grad(lambda y: (layer(y)[0] ** 2).sum()))

    def forward(self):
        return self.solve(self.y).block_until_ready()

    def whole(self):
        """Forward and backward in one compiled call."""
        return self.both(self.y)[1].block_until_ready()


class OursScene:
    """A bundle adjustment; the points are eliminated by Schur complements, or not."""

    def __init__(self, scene, linear="schur"):
        kind = lc.SE3(len(scene.cameras), fixed=list(range(scene.known)))

        def seen(xp, camera, point, pixel):
            local = camera.act(point)
            return local[:2] / local[2:] - pixel

        problem = lc.LeastSquares(
            variables={"C": kind, "P": lc.Euclidean(*scene.points.shape)},
            factors=[lc.factor(seen, on=("C", "P"), index=scene.seen, data="uv")],
            parameters={"uv": scene.pixels.shape},
            outputs=["P"],
        )
        options = {"linear": linear, **({"eliminate": "P"} if linear == "schur" else {})}
        self.layer = lc.export(problem, "torch", options=options)
        R = scene.start_cameras[:, :3, :3]
        q = Rotation.from_matrix(R).as_quat(scalar_first=True)
        self.init = {"C": np.concatenate([q, scene.start_cameras[:, :3, 3]], axis=1), "P": scene.start_points}
        self.pixels = torch.tensor(scene.pixels, requires_grad=True)

    def forward(self):
        return self.layer(self.pixels, init=self.init)[0]

    def positions(self, value):
        return value

    def backward(self, value):
        return torch.autograd.grad((value * value).sum(), self.pixels)[0]


def clock(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, 1e3 * (time.perf_counter() - began)


def build(makers):
    """Layers by name; those that cannot be made or run are told and left out."""
    layers = {}
    for name, make in makers.items():
        try:
            layer = make()
            value = layer.forward()
            if hasattr(layer, "backward"):
                layer.backward(value)
            layers[name] = layer
        except Exception as error:
            print(f"    {name}: {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)
    return layers


def measure(layers, seconds):
    """Smallest forward and forward-with-backward milliseconds of each layer, taking turns."""
    best = {name: [np.inf, np.inf] for name in layers}
    gc.collect()
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or (time.perf_counter() - began < seconds * len(layers) and rounds < 200):
        for name, layer in layers.items():
            value, forward = clock(layer.forward)
            if hasattr(layer, "whole"):
                _, both = clock(layer.whole)
            else:
                _, backward = clock(layer.backward, value)
                both = forward + backward
            best[name] = [min(best[name][0], forward), min(best[name][1], both)]
        rounds += 1
    return best


def rows(layers, best, ours, gap, slope):
    """One line of a table per layer."""
    out = []
    for name in layers:
        forward, both = best[name]
        ratio = "" if name == ours else f"{both / best[ours][1]:.1f}"
        out.append(f"| {name} | {forward:.2f} | {both:.2f} | {ratio} | {gap[name]} | {slope[name]} |")
    return out


HEAD = ["| | forward | forward + backward | times ours | gap | gradient |", "|---|---|---|---|---|---|"]


def number(value):
    return f"{value:.0e}"


def graphs(seconds, sizes):
    lines = ["### Pose graphs (Gauss-Newton)", ""]
    for group, count, batch in sizes:
        graph = problems.pose_graph(group, count, batch)
        makers = {"layercompiler": lambda graph=graph: OursGraph(graph)}
        if importlib.util.find_spec("theseus"):
            makers["Theseus (CHOLMOD, implicit)"] = lambda graph=graph: peers.TheseusGraph(graph)
            if count <= LARGEST["Theseus (dense)"]:
                makers["Theseus (dense, implicit)"] = lambda graph=graph: peers.TheseusGraph(graph, "dense")
        layers = build(makers)
        if "layercompiler" not in layers:
            continue
        best = measure(layers, seconds)
        ours = layers["layercompiler"]
        exact, gap, slope = ours.positions(ours.forward()).detach(), {}, {}
        direction = torch.tensor(np.random.default_rng(1).standard_normal(ours.weights.shape))
        h = 1e-4
        want = ((ours.moved(direction, h) - ours.moved(direction, -h)) / (2 * h) * ours.cotangent).sum()
        for name, layer in layers.items():
            value = layer.forward()
            gap[name] = number(float((layer.positions(value).detach() - exact).abs().max()))
            found = float((layer.backward(value) * direction).sum())
            slope[name] = number(abs(found - float(want)) / abs(float(want)))
        lines += [
            f"{group}, {count} poses, {len(graph.edges)} edges, batch {batch}:",
            "",
            *HEAD,
            *rows(layers, best, "layercompiler", gap, slope),
            "",
        ]
        print("\n".join(lines[-len(layers) - 5 :]), flush=True)
    return lines


def curve_gradient(curve, x):
    """Largest component of the gradient of each fit at x."""
    E = np.exp(-x[:, 1:2] * curve.t)
    r = x[:, :1] * E + x[:, 2:] - curve.y
    return np.abs(np.stack([(r * E).sum(1), (-x[:, :1] * curve.t * E * r).sum(1), r.sum(1)], axis=1)).max(axis=1)


def tuned(curve):
    """The best of six settings of Theseus' Levenberg-Marquardt: most fits converged, then fastest."""
    tries = []
    for damping, ellipsoidal in ((0.001, False), (0.1, False), (1.0, False), (10.0, False), (0.1, True), (1.0, True)):
        layer = peers.TheseusCurve(curve, damping=damping, ellipsoidal=ellipsoidal)
        x = layer.forward().detach().numpy()
        _, spent = clock(layer.forward)
        tries.append((-int((curve_gradient(curve, x) < 1e-4).sum()), spent, damping, ellipsoidal))
    return min(tries)


def curves(seconds, sizes):
    lines = ["### Curve fitting (100 samples, three unknowns)", ""]
    for batch in sizes:
        curve = problems.curve(batch)
        makers = {"layercompiler": lambda c=curve: OursCurve(c), "layercompiler (DSL)": lambda c=curve: OursCurve(c, dsl=True)}
        if importlib.util.find_spec("theseus"):
            _, _, damping, ellipsoidal = tuned(curve)
            kind = "ellipsoidal damping" if ellipsoidal else "damping"
            makers[f"Theseus (best of six: {kind} {damping:g})"] = lambda c=curve, d=damping, e=ellipsoidal: peers.TheseusCurve(
                c, damping=d, ellipsoidal=e
            )
            makers["Theseus (Gauss-Newton)"] = lambda c=curve: peers.TheseusCurve(c, method="gn")
        if importlib.util.find_spec("optimistix"):
            for method in ("LevenbergMarquardt", "Dogleg"):
                makers["layercompiler (jax, jit)"] = lambda c=curve: OursJaxCurve(c)
                makers[f"optimistix ({method}, jit)"] = lambda c=curve, m=method: peers.OptimistixCurve(c, m)
        layers = build(makers)
        best = measure(layers, seconds)
        lines += [
            f"Batch {batch}:",
            "",
            "| | forward | forward + backward | times ours | converged (gradient < 1e-4) |",
            "|---|---|---|---|---|",
        ]
        for name, layer in layers.items():
            value = layer.forward()
            x = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            forward, both = best[name]
            ratio = f"{both / best['layercompiler'][1]:.2f}" if "layercompiler" in best and name != "layercompiler" else ""
            lines.append(f"| {name} | {forward:.2f} | {both:.2f} | {ratio} | {int((curve_gradient(curve, x) < 1e-4).sum())} of {batch} |")
        lines.append("")
        print("\n".join(lines[-len(layers) - 5 :]), flush=True)
    return lines


def scenes(seconds, sizes):
    lines = ["### Bundle adjustment (each point seen by six cameras, two cameras known)", ""]
    for cameras, points in sizes:
        scene = problems.scene(cameras, points)
        makers = {
            "layercompiler": lambda s=scene: OursScene(s, "auto"),
            "layercompiler (Schur)": lambda s=scene: OursScene(s),
        }
        if 6 * cameras + 3 * points < 1000:
            makers["layercompiler (dense)"] = lambda s=scene: OursScene(s, "dense")
        if importlib.util.find_spec("theseus"):
            makers["Theseus (CHOLMOD, implicit)"] = lambda s=scene: peers.TheseusScene(s)
            if len(scene.seen) <= LARGEST["Theseus (dense scene)"]:
                makers["Theseus (dense, implicit)"] = lambda s=scene: peers.TheseusScene(s, solver="dense")
        layers = build(makers)
        first = next(iter(layers), None)
        if first is None:
            continue
        best = measure(layers, seconds)
        exact = layers[first].positions(layers[first].forward()).detach()
        lines += [f"{cameras} cameras, {points} points, {len(scene.seen)} observations:", ""]
        lines += ["| | forward | forward + backward | times ours | gap |", "|---|---|---|---|---|"]
        for name, layer in layers.items():
            gap = float((layer.positions(layer.forward()).detach() - exact).abs().max())
            forward, both = best[name]
            lines.append(f"| {name} | {forward:.1f} | {both:.1f} | {both / best[first][1]:.2f} | {gap:.0e} |")
        lines.append("")
        print("\n".join(lines[-len(layers) - 5 :]), flush=True)
    return lines


def versions():
    found = []
    for name in ("theseus-ai", "optimistix", "jax", "torch", "numpy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="graph,curve,scene")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="the smallest size of each")
    parser.add_argument("--out", default=str(results_file.PATH))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_default_dtype(torch.float64)
    only, few = arguments.only.split(","), 1 if arguments.quick else None
    lines = ["## Nonlinear least squares", "", f"{platform.machine()}, one core, float64, milliseconds per batch. {versions()}.", ""]
    lines += graphs(arguments.seconds, GRAPHS[:few]) if "graph" in only else []
    lines += curves(arguments.seconds, CURVES[:few]) if "curve" in only else []
    lines += scenes(arguments.seconds, SCENES[:few]) if "scene" in only else []
    results_file.write("least_squares", "\n".join(lines), arguments.out)


if __name__ == "__main__":
    main()
