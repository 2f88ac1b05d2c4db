"""Denoises piecewise constant signals: total variation as a layer, tuned from examples (OptNet, Amos and Kolter 2017, section 4.2).

A signal x is recovered from a noisy y as

    minimise 1/2 |x - y|^2 + weight |D x|_1

with D the finite differences for total variation, and any 99 x 100 matrix once it is learned. What is compiled is the dual problem, a
quadratic program in one price u per row of D within box constraints; x = y - D'u. All signals of a batch share D, whose gradient is a
sum over them. Learned are:

- D alone, from random numbers ("pure OptNet": the authors' weight 13, rate and penalty on |D|_1);
- from total variation, D with a linear layer before the program and one behind it. The authors' tuned model learns a linear layer and
  every number of the program; a quadratic term they learn, x'Qx, is a linear layer behind the program by a change of variable;
- its parts: D alone, for which differences are about the best there is on signals held out, and the layers alone.

    python examples/denoising.py            the experiment, seven minutes on one core; writes denoising.png
    python examples/denoising.py --short    a few steps on few signals, seconds
"""

import sys
import time

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import layercompiler as lc

LENGTH, ROWS, BATCH, RATE = 100, 99, 150, 5e-3
PAPER = {  # train and test error as the paper prints them (table 1)
    "fully connected network": (18.5, 29.8),
    "pure OptNet": (52.9, 53.3),
    "total variation": (16.3, 16.5),
    "OptNet, tuned from total variation": (13.8, 14.4),
}
TUNED = {  # what is learned from total variation
    "its operator alone": ("D",),
    "linear layers around it alone": ("before", "behind"),
    "OptNet, tuned from total variation": ("D", "before", "behind"),
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


class Network(torch.nn.Module):
    """The fully connected rival: one hidden layer, on levels brought to the size of 1."""

    def __init__(self, width=500):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(LENGTH, width), torch.nn.ReLU(), torch.nn.Linear(width, LENGTH))

    def forward(self, y):
        """Denoised signals for y (B, 100)."""
        return 55 + 30 * self.net(((y - 55) / 30).float()).double()


class Denoiser(torch.nn.Module):
    """The quadratic program as a layer, with the operator D (99, 100) as its weight."""

    def __init__(self, operator, weight):
        super().__init__()
        D, c, price = cp.Parameter((ROWS, LENGTH), name="D"), cp.Parameter(ROWS, name="c"), cp.Parameter(nonneg=True, name="weight")
        u = cp.Variable(ROWS, name="u")
        problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(D.T @ u) - c @ u), [u <= price, u >= -price])
        self.layer = lc.export(problem, "torch", parameters=[D, c, price], variables=[u])
        self.D, self.weight = torch.nn.Parameter(operator.clone()), torch.tensor(float(weight), dtype=torch.float64)

    def solve(self, y, D, weight=None):
        """Denoised signals for y (B, 100), an operator, and a weight."""
        (u,) = self.layer(D, y @ D.T, self.weight if weight is None else torch.tensor(weight, dtype=torch.float64))
        return y - u @ D

    def forward(self, y):
        """Denoised signals for y (B, 100)."""
        return self.solve(y, self.D)


class Tuned(Denoiser):
    """The same between two linear layers, all learned as changes from total variation.

    Levels of a signal vary far more than its jumps, so steps of one size in D spoil the levels long before they move the jumps. The
    changes are therefore learned in coordinates S (x - mean) where the spread of the directions is nearer to equal: S is the covariance
    of signals to the power -1/4. (With the power -1/2 noise is learned as fast as signals; with 0 it takes several times the steps.)
    """

    def __init__(self, start, clean):
        super().__init__(torch.zeros_like(start.D), start.weight)
        self.start, self.mean = start.D.detach(), clean.mean(0)
        spread, axes = torch.linalg.eigh(torch.cov(clean.T) + 10 * torch.eye(LENGTH, dtype=torch.float64))
        self.S = (axes * (spread * spread.min()) ** -0.25) @ axes.T
        self.before, self.behind = (torch.nn.Linear(LENGTH, LENGTH, dtype=torch.float64) for _ in range(2))
        for value in (*self.before.parameters(), *self.behind.parameters()):
            torch.nn.init.zeros_(value)

    @property
    def operator(self):
        """D as it is now."""
        return self.start + self.D @ self.S

    def forward(self, y):
        """Denoised signals for y (B, 100)."""
        x = self.solve(y + self.before((y - self.mean) @ self.S), self.operator)
        return x + self.behind((x - self.mean) @ self.S)


def best_weight(model, clean, noisy, weights):
    """The weight of total variation with the smallest error."""
    with torch.no_grad():
        errors = [(model.solve(noisy, model.D, float(weight)) - clean).square().mean().item() for weight in weights]
    return float(weights[int(np.argmin(errors))])


def error(function, clean, noisy):
    """Mean squared error over a set, in batches."""
    with torch.no_grad():
        parts = [(function(n) - c).square().sum().item() for c, n in zip(clean.split(500), noisy.split(500), strict=True)]
    return sum(parts) / clean.numel()


def learn(name, model, clean, noisy, steps, rate, penalty=0.0):
    """Adam on the mean squared error, the rate falling to nothing; the losses of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.05, final_div_factor=100.0)
    generator, losses, began, order = torch.Generator().manual_seed(0), [], time.perf_counter(), []
    for step in range(1, steps + 1):
        order = order if len(order) else list(torch.randperm(len(clean), generator=generator).split(BATCH))
        index = order.pop()
        optimizer.zero_grad()
        loss = (model(noisy[index]) - clean[index]).square().mean()
        (loss + penalty * model.D.abs().sum() if penalty else loss).backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        part = max(steps // 5, 1)
        if step % part == 0:
            took = 1e3 * (time.perf_counter() - began) / step
            print(
                f"  {name:36s} step {step:5d}/{steps}  error on its batches {np.mean(losses[-part:]):6.2f}  {took:5.1f} ms a step",
                flush=True,
            )
    return losses


def main(short=False):
    """The experiment; returns the errors (train, test) by method."""
    torch.manual_seed(0)
    count, held_out, divisor = (600, 100, 50) if short else (10_000, 1_000, 1)
    clean, noisy = data(count)
    train, test = (clean[:-held_out], noisy[:-held_out]), (clean[-held_out:], noisy[-held_out:])
    models, losses = {}, {}
    print(f"learning from {count - held_out} signals, {BATCH} a step:")

    models["fully connected network"] = (Network(), 12_000, 1e-3, 0.0)
    scattered = 0.3 * torch.randn(ROWS, LENGTH, dtype=torch.float64)
    models["pure OptNet"] = (Denoiser(scattered, 13.0), 1000, 1e-2, 0.01)
    variation = Denoiser(torch.diff(torch.eye(LENGTH, dtype=torch.float64), dim=0), 1.0)
    weight = best_weight(variation, train[0][:200], train[1][:200], np.linspace(0, 100, 101)[:: 10 if short else 1])
    variation.weight = torch.tensor(weight, dtype=torch.float64)
    models["total variation"] = (variation, 0, 0.0, 0.0)
    for name, parts in TUNED.items():
        model = Tuned(variation, train[0])
        for part, value in model.named_parameters():
            value.requires_grad_(part.split(".")[0] in parts)
        models[name] = (model, 1000, RATE, 0.0)

    found = {"no denoising": (error(lambda n: n, *train), error(lambda n: n, *test))}
    for name, (model, steps, rate, penalty) in models.items():
        if steps:
            losses[name] = learn(name, model, *train, max(steps // divisor, 10), rate, penalty)
        model.eval()
        found[name] = error(model, *train), error(model, *test)

    print(f"\ntotal variation: best weight {weight:g} of those from 0 to 100")
    print(f"mean squared error{'':22s}{'steps':>6s}{'train':>8s}{'test':>8s}    paper:{'train':>8s}{'test':>8s}")
    for name, ours in found.items():
        theirs = "".join(f"{e:8.1f}" for e in PAPER.get(name, ()))
        print(f"{name:40s}{len(losses.get(name, ())):6d}{''.join(f'{e:8.1f}' for e in ours)}          {theirs}")
    draw(test, models, losses, found)
    return found


def draw(test, models, losses, found):
    """Saves denoising.png: the table, signals, the losses, and the operators."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    variation, tuned = models["total variation"][0], models["OptNet, tuned from total variation"][0]
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    with torch.no_grad():
        before, after, change = variation(test[1][:2]), tuned(test[1][:2]), tuned.operator - tuned.start
    for i, axis in enumerate(axes[0, :2]):
        axis.plot(test[1][i], ".", color="0.7", label="noisy")
        axis.plot(test[0][i], color="k", linewidth=1, label="true")
        axis.plot(before[i], color="C0", label="total variation")
        axis.plot(after[i], color="C3", label="tuned")
        axis.set(title=f"held-out signal {i + 1}")
    axes[0, 0].legend(fontsize="small")
    names = [name for name in found if name != "no denoising"]
    at = np.arange(len(names))
    for k, (kind, color) in enumerate((("train", "C0"), ("test", "C3"))):
        axes[0, 2].barh(at + 0.2 * k - 0.3, [found[n][k] for n in names], 0.18, color=color, label=f"{kind}, here")
        there = [PAPER.get(n, (0.0, 0.0))[k] for n in names]
        axes[0, 2].barh(at + 0.2 * k + 0.1, there, 0.18, color=color, alpha=0.35, label=f"{kind}, paper")
    axes[0, 2].set(title="mean squared error", yticks=at, yticklabels=[n.replace(", ", ",\n") for n in names])
    axes[0, 2].invert_yaxis()
    axes[0, 2].legend(fontsize="small")
    for name in TUNED:
        width = max(len(losses[name]) // 30, 1)
        axes[1, 0].plot(np.convolve(losses[name], np.ones(width) / width, "valid"), label=name)
    axes[1, 0].axhline(found["total variation"][0], color="k", linestyle="--", label="total variation")
    axes[1, 0].set(xlabel=f"step of {BATCH} signals", ylabel="error on its batches")
    axes[1, 0].legend(fontsize="small", loc="upper right")
    for axis, D, title in (
        (axes[1, 1], change, "change by tuning"),
        (axes[1, 2], models["pure OptNet"][0].D.detach(), "from random numbers"),
    ):
        limit = float(D.abs().max())
        shown = axis.imshow(D, cmap="RdBu", vmin=-limit, vmax=limit)
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set(title=f"operator, {title}", xlabel="position in the signal", ylabel="row")
    figure.savefig("denoising.png", dpi=130)
    print("The picture is in denoising.png")


if __name__ == "__main__":
    main(short="--short" in sys.argv)
