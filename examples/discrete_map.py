"""Shortest paths on a map under sum-of-gamma noise, and learning the map's weights from a single path.

Writes two pictures. discrete_map.png has one column per temperature 0, 1, 2 and 5: a single sampled path, the marginals (how probable it
is for each tile to be on the path), and how the Hamming loss to one given path falls when weights are learned from random ones by I-MLE
at that temperature. discrete_map_learning.png has one strip per temperature: paths and weights after 0, 5, 20 and 120 steps. Takes half
a minute.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE, STEPS = 20, 120
TEMPERATURES, SHOWN = (0, 1, 2, 5), (0, 5, 20, 120)


def terrain(rng):
    """A smooth random map of costs between 0.5 and 9."""
    waves = sum(
        np.outer(np.sin(np.linspace(0, a, SIDE) + p), np.cos(np.linspace(0, b, SIDE) + q))
        for a, b, p, q in rng.uniform((2, 2, 0, 0), (9, 9, 6, 6), (6, 4))
    )
    return 0.5 + 8.5 * (waves - waves.min()) / np.ptp(waves)


def noisy(temperature, samples):
    """I-MLE with sum-of-gamma noise."""
    return lc.IMLE(samples=samples, noise=lc.noise.SumOfGamma(k=1.3 * SIDE, terms=100), temperature=temperature, output="all")


def learn(goal, temperature):
    """Weights whose shortest path is the goal, from random ones; what was seen on the way."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(1.0 + torch.rand(SIDE, SIDE))
    layer = lc.export(lc.oracles.GridPath(SIDE, SIDE), "torch", estimator=noisy(temperature, 30))
    optimizer = torch.optim.Adam([weights], lr=0.05)
    target = torch.tensor(goal, dtype=torch.float32)
    seen, losses = [], []
    for step in range(STEPS + 1):
        path = layer(weights)[0].mean(0)
        loss = (path * (1 - target) + (1 - path) * target).sum()
        if step in SHOWN:
            seen.append((path.detach().numpy().copy(), weights.detach().numpy().copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return seen, losses, layer.solve(weights.detach().numpy()).outputs[0]


def main():
    """Sample, learn, draw."""
    weights = terrain(np.random.default_rng(3))
    goal = lc.oracles.GridPath(SIDE, SIDE)(weights)
    figure, axes = plt.subplots(3, 5, figsize=(13, 8))
    strip, cells = plt.subplots(2 * len(TEMPERATURES), len(SHOWN), figsize=(8, 16))
    axes[0, 0].imshow(weights, cmap="gray_r")
    axes[0, 0].set_title("the map (black: costly)")
    axes[1, 0].imshow(goal, cmap="magma")
    axes[1, 0].set_title("its shortest path")
    axes[2, 0].set_axis_off()
    for column, temperature in enumerate(TEMPERATURES):
        paths = lc.export(lc.oracles.GridPath(SIDE, SIDE), "numpy", estimator=noisy(temperature, 200))(weights, seed=0)[0]
        seen, losses, found = learn(goal, temperature)
        wrong = int(np.abs(found - goal).sum())
        print(
            f"temperature {temperature}: Hamming loss to a path of {int(goal.sum())} tiles {losses[0]:.1f} -> {losses[-1]:.2f}, "
            f"without noise {wrong} tiles wrong"
        )
        one, many, curve = axes[:, column + 1]
        one.imshow(paths[0], cmap="magma", vmin=0, vmax=1)
        one.set_title(f"a path, temperature {temperature}")
        many.imshow(paths.mean(0), cmap="magma", vmin=0, vmax=1)
        many.set_title("marginals")
        curve.plot(losses)
        curve.set_title("learning from one path: loss")
        for k, (path, learned) in enumerate(seen):
            cells[2 * column, k].imshow(path, cmap="magma", vmin=0, vmax=1)
            cells[2 * column, k].set_title(f"T = {temperature}, step {SHOWN[k]}")
            cells[2 * column + 1, k].imshow(learned, cmap="gray_r")
    for ax in [*axes[:2].ravel(), *cells.ravel()]:
        ax.set_xticks([]), ax.set_yticks([])
    for drawn, name in ((figure, "discrete_map.png"), (strip, "discrete_map_learning.png")):
        drawn.tight_layout()
        drawn.savefig(name, dpi=70)


if __name__ == "__main__":
    main()
