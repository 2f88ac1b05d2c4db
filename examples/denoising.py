"""Denoises piecewise constant signals: total variation as a layer, and its difference operator learned from examples (OptNet, section 4.2).

A signal x is recovered from a noisy y as

    minimise 1/2 |x - y|^2 + weight |D x|_1

with D the finite differences for total variation, and any 99 x 100 matrix once it is learned. What is compiled is the dual problem, a
quadratic program in one price u per row of D with box constraints; x = y - D'u. All signals of a batch share D.

    python examples/denoising.py            the experiment, some minutes on two cores; writes denoising.png
    python examples/denoising.py --short    a few steps on few signals, seconds
"""

import sys
import time

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import layercompiler as lc

LENGTH, BATCH = 100, 150
PAPER = {  # train and test error as the paper prints them (Amos and Kolter 2017, table 1)
    "fully connected network": (18.5, 29.8),
    "pure OptNet": (52.9, 53.3),
    "total variation": (16.3, 16.5),
    "OptNet, tuned from total variation": (13.8, 14.4),
}


def data(count):
    """(clean, noisy), (count, 100) each, as the paper's authors draw them: numpy's legacy generator, seed 0."""
    rng = np.random.RandomState(0)
    clean, noisy = np.zeros((count, LENGTH)), np.zeros((count, LENGTH))
    for i in range(count):
        pieces = rng.randint(1, 10)
        inner = rng.choice(LENGTH - 2, pieces - 1, replace=False) + 1
        bounds = [0, *sorted(inner), LENGTH]
        heights = rng.randint(10, 100, pieces)
        for j, height in enumerate(heights):
            clean[i, bounds[j] : bounds[j + 1]] = height
        noisy[i] = clean[i] + rng.normal(0, 10, LENGTH)
    return torch.tensor(clean), torch.tensor(noisy)


class Denoiser(torch.nn.Module):
    """The quadratic program as a layer, with the operator D as its weight."""

    def __init__(self):
        super().__init__()
        rows = LENGTH - 1
        D, c, weight = cp.Parameter((rows, LENGTH), name="D"), cp.Parameter(rows, name="c"), cp.Parameter(nonneg=True, name="weight")
        u = cp.Variable(rows, name="u")
        problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(D.T @ u) - c @ u), [u <= weight, u >= -weight])
        self.layer = lc.export(problem, "torch", parameters=[D, c, weight], variables=[u])
        self.D = torch.nn.Parameter(torch.diff(torch.eye(LENGTH, dtype=torch.float64), dim=0))

    def forward(self, y, weight):
        """Denoised signals for y (B, 100) and a weight or (B,) of them."""
        (u,) = self.layer(self.D, y @ self.D.T, torch.as_tensor(weight, dtype=torch.float64))
        return y - u @ self.D


def best_weight(model, clean, noisy, weights):
    """The weight of total variation with the smallest error."""
    errors = []
    with torch.no_grad():
        for weight in weights:
            errors.append((model(noisy, float(weight)) - clean).square().mean().item())
    return float(weights[int(np.argmin(errors))])


def error(function, clean, noisy):
    """Mean squared error over a set, in batches."""
    with torch.no_grad():
        parts = [(function(n) - c).square().sum().item() for c, n in zip(clean.split(500), noisy.split(500), strict=True)]
    return sum(parts) / clean.numel()


def learn(parameters, function, penalty, clean, noisy, steps, rate, report):
    """Adam on the mean squared error, the rate falling to a twentieth; the losses of the steps."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.05, final_div_factor=20.0)
    generator, losses, began = torch.Generator().manual_seed(0), [], time.perf_counter()
    for step in range(steps):
        index = torch.randint(len(clean), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = (function(noisy[index]) - clean[index]).square().mean()
        (loss + penalty()).backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if report and (step + 1) % report == 0:
            took = 1e3 * (time.perf_counter() - began) / (step + 1)
            print(f"  step {step + 1:5d}/{steps}  error on the batches {np.mean(losses[-report:]):6.2f}  {took:5.1f} ms a step", flush=True)
    return losses


def main(short=False):
    """The experiment; returns the errors by method."""
    torch.manual_seed(0)
    count, held_out, steps, network_steps = (600, 100, 40, 200) if short else (10_000, 1_000, 600, 6_000)
    clean, noisy = data(count)
    train, test = (clean[:-held_out], noisy[:-held_out]), (clean[-held_out:], noisy[-held_out:])
    found = {"no denoising": (error(lambda n: n, *train), error(lambda n: n, *test))}

    network = torch.nn.Sequential(
        torch.nn.Linear(LENGTH, 200), torch.nn.BatchNorm1d(200), torch.nn.ReLU(), torch.nn.Linear(200, LENGTH)
    ).double()
    learn(network.parameters(), network, lambda: 0.0, *train, network_steps, 1e-2, 0)
    network.eval()
    found["fully connected network"] = error(network, *train), error(network, *test)

    model = Denoiser()
    weight = best_weight(model, train[0][:200], train[1][:200], np.linspace(0, 100, 101)[:: 10 if short else 1])
    print(f"total variation: best weight {weight:g} of those from 0 to 100")
    variation = lambda n: model(n, weight)  # noqa: E731
    found["total variation"] = error(variation, *train), error(variation, *test)
    before = variation(test[1][:3]).detach()

    print(f"\nlearning the operator ({BATCH} quadratic programs a step):")
    sparse = lambda: 0.01 * model.D.abs().sum()  # noqa: E731
    losses = learn([model.D], variation, sparse, *train, steps, 3e-4, max(steps // 10, 1))
    found["OptNet, tuned from total variation"] = error(variation, *train), error(variation, *test)

    print(f"\nmean squared error{'':22s}{'train':>8s}{'test':>8s}    paper:{'train':>8s}{'test':>8s}")
    for name in {**found, **PAPER}:
        ours = "".join(f"{e:8.1f}" for e in found[name]) if name in found else f"{'not run':>16s}"
        theirs = "".join(f"{e:8.1f}" for e in PAPER.get(name, ()))
        print(f"{name:40s}{ours}          {theirs}")
    draw(test, before, variation(test[1][:3]).detach(), losses, model.D.detach(), found)
    return found


def draw(test, before, after, losses, D, found):
    """Saves denoising.png: signals, the loss, and the operator."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for i, axis in enumerate(axes[0]):
        axis.plot(test[1][i], ".", color="0.7", label="noisy")
        axis.plot(test[0][i], color="k", linewidth=1, label="true")
        axis.plot(before[i], color="C0", label="total variation")
        axis.plot(after[i], color="C3", label="learned operator")
        axis.set(title=f"held-out signal {i + 1}")
    axes[0, 0].legend(fontsize="small")
    width = max(len(losses) // 50, 1)
    axes[1, 0].plot(np.convolve(losses, np.ones(width) / width, "valid"))
    axes[1, 0].axhline(found["total variation"][0], color="C0", linestyle="--", label="total variation")
    axes[1, 0].set(xlabel="step", ylabel="training error")
    axes[1, 0].legend(fontsize="small")
    limit = float(D.abs().max())
    axes[1, 1].imshow(D, cmap="RdBu", vmin=-limit, vmax=limit)
    axes[1, 1].set(title="learned operator", xlabel="position in the signal", ylabel="row")
    for row in (20, 50, 80):
        axes[1, 2].plot(np.arange(LENGTH) - row, D[row], label=f"row {row}")
    axes[1, 2].set(xlim=(-15, 15), title="some rows of it", xlabel="position relative to the row")
    axes[1, 2].legend(fontsize="small")
    figure.savefig("denoising.png", dpi=130)
    print("The picture is in denoising.png")


if __name__ == "__main__":
    main(short="--short" in sys.argv)
