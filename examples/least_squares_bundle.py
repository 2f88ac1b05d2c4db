"""Bundle adjustment: twenty cameras and two thousand points, the points eliminated by Schur complements.

The scene is written as a BAL file and read again. Cameras have poses, one known focal length and no distortion; a robust
loss bears wrong matches. Takes under a minute and writes least_squares_bundle.png.
"""

import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.spatial.transform import Rotation

import layercompiler as lc
from layercompiler.inspect.scenes import Bundle, read_bal, write_bal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CAMERAS, POINTS, VIEWS, KNOWN, FOCAL = 20, 2000, 6, 2, 500.0


def scene(rng):
    """A torus seen from an arc: the true scene, and what is known of it."""
    a, b = rng.uniform(0, 2 * np.pi, (2, POINTS))
    points = np.stack([(1 + 0.4 * np.cos(b)) * np.cos(a), 0.4 * np.sin(b), (1 + 0.4 * np.cos(b)) * np.sin(a)], axis=1)
    turns = np.stack([np.zeros(CAMERAS), np.linspace(-1.2, 1.2, CAMERAS), np.zeros(CAMERAS)], axis=1)
    cameras = np.zeros((CAMERAS, 9))
    cameras[:, :3], cameras[:, 5], cameras[:, 6] = turns, -5.0, FOCAL
    first = rng.integers(0, CAMERAS - VIEWS + 1, POINTS)
    seen = np.stack([(first[:, None] + np.arange(VIEWS)).reshape(-1), np.repeat(np.arange(POINTS), VIEWS)], axis=1)
    P = Rotation.from_rotvec(turns[seen[:, 0]]).apply(points[seen[:, 1]]) + cameras[seen[:, 0], 3:6]
    pixels = -FOCAL * P[:, :2] / P[:, 2:] + 0.5 * rng.standard_normal((len(seen), 2))
    wrong = rng.random(len(seen)) < 0.02
    pixels[wrong] += rng.uniform(-80, 80, (int(wrong.sum()), 2))
    start = cameras.copy()
    start[KNOWN:, :3] += 0.03 * rng.standard_normal((CAMERAS - KNOWN, 3))
    start[KNOWN:, 3:6] += 0.1 * rng.standard_normal((CAMERAS - KNOWN, 3))
    return points, cameras, Bundle(start, points + 0.1 * rng.standard_normal(points.shape), seen, pixels)


def main():
    """Solve, differentiate, draw."""
    points, _, bundle = scene(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        write_bal(Path(folder) / "problem.txt", bundle)
        bundle = read_bal(Path(folder) / "problem.txt")

    def error(xp, camera, point, pixel):
        p = camera.act(point)
        return -FOCAL * p[:2] / p[2:] - pixel

    quaternions = Rotation.from_rotvec(bundle.cameras[:, :3]).as_quat(scalar_first=True)
    problem = lc.LeastSquares(
        variables={
            "C": lc.SE3(CAMERAS, init=np.concatenate([quaternions, bundle.cameras[:, 3:6]], axis=1), fixed=list(range(KNOWN))),
            "P": lc.Euclidean(POINTS, 3, init=bundle.points),
        },
        factors=[lc.factor(error, on=("C", "P"), index=bundle.seen, data="pixels", robust=lc.Huber(1.5))],
        parameters={"pixels": bundle.pixels.shape},
    )
    layer = lc.export(problem, "torch", options={"linear": "schur", "eliminate": "P", "max_iterations": 30})
    pixels = torch.tensor(bundle.pixels, requires_grad=True)
    costs = []
    began = time.perf_counter()
    solution = layer.solve(pixels, callback=lambda step, cost, *rest: costs.append(float(cost[0])) or False)
    spent = time.perf_counter() - began
    found = solution.values["P"]
    began = time.perf_counter()
    influence = torch.autograd.grad(found.square().sum(), pixels)[0]
    print(f"{len(bundle.seen)} observations: {spent:.1f} s, gradient by every pixel {time.perf_counter() - began:.1f} s")
    before, after = (np.sqrt(np.mean((p - points) ** 2)) for p in (bundle.points, found.detach().numpy()))
    print(f"error of the points {before:.4f} at first, {after:.4f} solved")

    figure, axes = plt.subplots(1, 4, figsize=(16, 4))
    for axis, (name, p) in zip(axes, {"start": bundle.points, "solved": found.detach().numpy()}.items(), strict=False):
        axis.scatter(p[:, 0], p[:, 2], s=1, c=p[:, 1])
        axis.set(title=name, aspect="equal")
    axes[2].semilogy(costs)
    axes[2].set(xlabel="step", ylabel="cost")
    axes[3].hist(np.log10(influence.norm(dim=1).numpy() + 1e-12), bins=50)
    axes[3].set(xlabel="log10 of the influence of an observation", ylabel="observations")
    figure.tight_layout()
    figure.savefig("least_squares_bundle.png", dpi=120)
    assert after < 0.2 * before


if __name__ == "__main__":
    main()
