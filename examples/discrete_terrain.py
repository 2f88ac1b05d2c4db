"""Learns what terrain costs from pictures and the paths taken: a synthetic stand-in for the Warcraft maps.

A map has 12x12 tiles of five kinds with costs between 0.8 and 9.2, each rendered as a noisy 6x6 patch. A small network sees the picture and
predicts a cost per tile; the only supervision is the shortest path (8 neighbours). The same network is trained by the Hamming loss through
I-MLE, black-box differentiation and perturbed optimizers, and by the perturbed Fenchel-Young loss.

The gradient of a perturbed optimizer through a loss is unbiased but noisy: of 144 costs each sample says only whether all its noise
together was good. Two independent estimates with five samples have a cosine of 0.00 here, with 50 samples 0.06, with 500 samples 0.52
(noise of standard deviation 1), so it takes 64 samples of noise half as large where the others take five. The perturbed Fenchel-Young loss
has the difference of paths itself as its gradient, which five samples estimate well: with a known best path it is the loss to use. Steps
and temperatures were chosen on maps of their own. Takes a minute and writes discrete_terrain.png.
"""

import time

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE, PATCH, EPOCHS = 12, 6, 30
COSTS = np.array([0.8, 1.5, 3.0, 6.0, 9.2])


def maps(count, rng):
    """Pictures (count, 1, 72, 72), tile costs and shortest paths."""
    looks = np.random.default_rng(7).uniform(0, 1, (5, PATCH, PATCH))
    coarse = rng.integers(0, 5, (count, SIDE // 2, SIDE // 2)).repeat(2, 1).repeat(2, 2)
    kinds = np.where(rng.random(coarse.shape) < 0.6, coarse, rng.integers(0, 5, coarse.shape))
    picture = looks[kinds].transpose(0, 1, 3, 2, 4).reshape(count, 1, SIDE * PATCH, SIDE * PATCH)
    picture = picture + 0.4 * rng.standard_normal(picture.shape)
    costs = COSTS[kinds]
    return torch.tensor(picture, dtype=torch.float32), costs, torch.tensor(lc.oracles.GridPath(SIDE, SIDE)(costs), dtype=torch.float32)


class Between(torch.nn.Module):
    """Costs between 0.5 and 10: without bounds, all costs may sink to zero, where every path is as good."""

    def forward(self, x):
        """Squeezed numbers."""
        return 0.5 + 9.5 * torch.sigmoid(x)


def network():
    """Costs of tiles from a picture."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, PATCH, PATCH), torch.nn.ReLU(), torch.nn.Conv2d(16, 1, 1), torch.nn.Flatten(1, 2), Between()
    )


def quality(model, picture, costs, best):
    """Share of optimal paths, and mean excess cost in per cent."""
    with torch.no_grad():
        paths = lc.oracles.GridPath(SIDE, SIDE)(model(picture).numpy())
    paid, least = (costs * paths).sum((1, 2)), (costs * best.numpy()).sum((1, 2))
    return 100 * (paid <= least + 1e-9).mean(), 100 * (paid / least - 1).mean()


def main():
    """Train in four ways, draw."""
    rng = np.random.default_rng(0)
    train, _, goal = maps(1500, rng)
    test, costs, best = maps(200, rng)
    young = lc.losses.PerturbedFenchelYoung(samples=5, temperature=1.0)

    def hamming(layer, predicted, path):
        return (layer(predicted)[0] * (1 - 2 * path)).sum((1, 2)).mean()

    methods = {
        "I-MLE (5 samples)": (lc.IMLE(samples=5, noise=lc.noise.SumOfGamma(1.3 * SIDE, 100), step=0.3), hamming),
        "black box": (lc.DBB(step=10.0), hamming),
        "perturbed (64 samples)": (lc.Perturbed(samples=64, temperature=0.5), hamming),
        "perturbed Fenchel-Young": (lc.Identity(), lambda layer, predicted, path: layer.loss(young, predicted, solution=path).mean()),
    }
    curves, shown = {}, None
    for name, (estimator, loss_of) in methods.items():
        torch.manual_seed(0)
        model = network()
        layer = lc.export(lc.oracles.GridPath(SIDE, SIDE), "torch", estimator=estimator)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        curves[name] = [quality(model, test, costs, best)]
        began = time.perf_counter()
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train)).split(32):
                loss = loss_of(layer, model(train[rows]), goal[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            curves[name].append(quality(model, test, costs, best))
        spent = time.perf_counter() - began
        print(f"{name:24s} optimal paths {curves[name][-1][0]:5.1f} %, excess cost {curves[name][-1][1]:5.2f} %, {spent:.1f} s", flush=True)
        if shown is None:
            shown = model(test[:1]).detach().numpy()[0]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6))
    axes[0].imshow(test[0, 0], cmap="gray")
    axes[0].set_title("what is seen")
    axes[1].imshow(costs[0], cmap="gray_r")
    axes[1].plot(*np.nonzero(best[0].numpy())[::-1], "o", color="red")
    axes[1].set_title("true costs and path")
    axes[2].imshow(shown, cmap="gray_r")
    axes[2].plot(*np.nonzero(lc.oracles.GridPath(SIDE, SIDE)(shown))[::-1], "o", color="red")
    axes[2].set_title("learned with I-MLE")
    for name, curve in curves.items():
        axes[3].plot([q[0] for q in curve], label=name)
    axes[3].set(title="optimal paths on test maps, %", xlabel="epoch")
    axes[3].legend()
    for ax in axes[:3]:
        ax.set_xticks([]), ax.set_yticks([])
    figure.tight_layout()
    figure.savefig("discrete_terrain.png", dpi=70)


if __name__ == "__main__":
    main()
