"""Shortest paths on a map under sum-of-gamma noise, and learning the map's weights from a single path.

The upper row shows the marginals of sampled paths at temperatures 0, 1, 2 and 5: how probable it is for each tile to be on the path. The
rows below learn weights from random ones by the Hamming loss to one given path, with I-MLE, and show path and weights as they go. Takes
a few seconds and writes discrete_map.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE, STEPS = 20, 120


def terrain(rng):
    """A smooth random map of costs between 0.5 and 9."""
    waves = sum(
        np.outer(np.sin(np.linspace(0, a, SIDE) + p), np.cos(np.linspace(0, b, SIDE) + q))
        for a, b, p, q in rng.uniform((2, 2, 0, 0), (9, 9, 6, 6), (6, 4))
    )
    return 0.5 + 8.5 * (waves - waves.min()) / np.ptp(waves)


def marginals(weights, temperature):
    """Sampled paths' mean."""
    estimator = lc.IMLE(samples=200, noise=lc.noise.SumOfGamma(k=1.3 * SIDE, terms=100), temperature=temperature)
    return lc.export(lc.oracles.GridPath(SIDE, SIDE), "numpy", estimator=estimator)(weights, seed=0)[0]


def learn(goal):
    """Weights whose shortest path is the goal, from random ones; what was seen on the way."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(1.0 + torch.rand(SIDE, SIDE))
    estimator = lc.IMLE(samples=30, noise=lc.noise.SumOfGamma(k=1.3 * SIDE, terms=100), temperature=1.0, step=1.0)
    layer = lc.export(lc.oracles.GridPath(SIDE, SIDE), "torch", estimator=estimator)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    target = torch.tensor(goal, dtype=torch.float32)
    seen, losses = [], []
    for step in range(STEPS + 1):
        (path,) = layer(weights)
        loss = (path * (1 - target) + (1 - path) * target).sum()
        if step in (0, 5, 20, STEPS):
            seen.append((step, path.detach().numpy().copy(), weights.detach().numpy().copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = layer.solve(weights.detach().numpy()).outputs[0]
    return seen, losses, found


def main():
    """Sample, learn, draw."""
    weights = terrain(np.random.default_rng(3))
    goal = lc.oracles.GridPath(SIDE, SIDE)(weights)
    seen, losses, found = learn(goal)
    wrong = int(np.abs(found - goal).sum())
    print(f"one path of {int(goal.sum())} tiles: Hamming loss {losses[0]:.1f} -> {losses[-1]:.2f}, without noise {wrong} tiles wrong")
    figure, axes = plt.subplots(3, 5, figsize=(13, 8))
    axes[0, 0].imshow(weights, cmap="gray_r")
    axes[0, 0].set_title("the map (black: costly)")
    for ax, temperature in zip(axes[0, 1:], (0, 1, 2, 5), strict=True):
        ax.imshow(marginals(weights, temperature), cmap="magma", vmin=0, vmax=1)
        ax.set_title(f"marginals, temperature {temperature}")
    axes[1, 0].imshow(goal, cmap="magma")
    axes[1, 0].set_title("the path to learn from")
    for (step, path, learned), top, low in zip(seen, axes[1, 1:], axes[2, 1:], strict=True):
        top.imshow(path, cmap="magma", vmin=0, vmax=1)
        top.set_title(f"paths after {step} steps")
        low.imshow(learned, cmap="gray_r")
        low.set_title("weights")
    for ax in axes.ravel():
        ax.set_xticks([]), ax.set_yticks([])
    axes[2, 0].plot(losses)
    axes[2, 0].set_title("Hamming loss")
    figure.tight_layout()
    figure.savefig("discrete_map.png", dpi=70)


if __name__ == "__main__":
    main()
