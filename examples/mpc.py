"""A model-predictive controller as a batched quadratic program, whose cost is learned by imitating an expert.

A cart with a pole that hangs over (linearised, unstable) is steered by the first input of

    minimise sum_t |C x_t|^2 + |r u_t|^2   subject to   x_t+1 = A x_t + B u_t,  |u_t| <= 1,  x_0 given

written in CVXPY and compiled once. The expert is the same controller with a cost that the learner does not know; it sees states and the
expert's inputs. The learner starts from a wrong cost, and gradients go through the constrained optimal control problem: where an input is
at its limit it says nothing about the cost, and the layer's derivative knows that.

    python examples/mpc.py            a minute on two cores; writes mpc.png
    python examples/mpc.py --short    seconds
"""

import sys
import time

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import layercompiler as lc

HORIZON, STATES, STEP = 12, 4, 0.1
NAMES = ("position", "speed", "angle", "angular speed")
GRAVITY, LENGTH, SHARE = 9.81, 1.0, 0.3  # the last: weight of the pole over that of the cart
A = np.eye(STATES) + STEP * np.array(
    [[0, 1, 0, 0], [0, 0, -SHARE * GRAVITY, 0], [0, 0, 0, 1], [0, 0, (1 + SHARE) * GRAVITY / LENGTH, 0]], dtype=float
)
B = STEP * np.array([0, 4.0, 0, -4.0])


def controller():
    """The layer: (state, diagonal of C, r) to the inputs (HORIZON,)."""
    start, c, r = cp.Parameter(STATES, name="start"), cp.Parameter(STATES, name="c"), cp.Parameter(name="r")
    x, u = cp.Variable((HORIZON + 1, STATES)), cp.Variable(HORIZON, name="u")
    cost = sum(cp.sum_squares(cp.multiply(c, x[t + 1])) for t in range(HORIZON)) + cp.sum_squares(r * u)
    rules = [x[0] == start, x[1:].T == A @ x[:-1].T + cp.reshape(B, (STATES, 1), order="C") @ cp.reshape(u, (1, HORIZON), order="C")]
    problem = cp.Problem(cp.Minimize(cost), [*rules, u <= 1, u >= -1])
    return lc.export(problem, "torch", parameters=[start, c, r], variables=[u])


def drive(layer, states, c, r, steps):
    """States (steps + 1, batch, STATES) and inputs (steps, batch) of the closed loop."""
    path, inputs = [states], []
    with torch.no_grad():
        for _ in range(steps):
            inputs.append(layer(path[-1], c, r)[0][:, 0])
            path.append(path[-1] @ torch.tensor(A.T) + inputs[-1][:, None] * torch.tensor(B))
    return torch.stack(path), torch.stack(inputs)


def main(short=False):
    """The experiment; returns the losses and the learned cost."""
    torch.manual_seed(0)
    batch, drives, steps = (16, 8, 25) if short else (64, 25, 300)
    layer = controller()
    print(layer.compiled.describe())
    hidden, r = torch.tensor([2.0, 0.5, 4.0, 0.2], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    start = torch.tensor([0.6, 0.3, 0.08, 0.1], dtype=torch.float64) * (2 * torch.rand((batch, STATES), dtype=torch.float64) - 1)
    seen, acted = drive(layer, start, hidden, r, drives)
    seen, acted = seen[:-1].reshape(-1, STATES), acted.reshape(-1)
    print(f"{len(acted)} states of an expert; {float((acted.abs() > 1 - 1e-9).double().mean()):.0%} of its inputs are at the limit")

    log_c = torch.zeros(STATES, dtype=torch.float64, requires_grad=True)
    optimizer, losses, costs, began = torch.optim.Adam([log_c], lr=0.05), [], [], time.perf_counter()
    for step in range(steps):
        index = torch.randint(len(acted), (128,))
        optimizer.zero_grad()
        loss = (layer(seen[index], log_c.exp(), r)[0][:, 0] - acted[index]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        costs.append(log_c.detach().exp().clone())
        if (step + 1) % max(steps // 10, 1) == 0:
            took = 1e3 * (time.perf_counter() - began) / (step + 1)
            print(f"  step {step + 1:4d}/{steps}  imitation loss {loss.item():.2e}  {took:5.1f} ms a step", flush=True)
    learned = log_c.detach().exp()
    print(f"{'':16s}{'expert':>10s}{'learned':>10s}")
    for name, theirs, ours in zip(NAMES, hidden.tolist(), learned.tolist(), strict=True):
        print(f"{name:16s}{theirs:10.3f}{ours:10.3f}")
    fresh = torch.tensor([[0.6, 0.0, 0.05, 0.0]], dtype=torch.float64)
    paths = {n: drive(layer, fresh, c, r, 40) for n, c in (("expert", hidden), ("before", torch.ones(4).double()), ("learned", learned))}
    draw(losses, torch.stack(costs), hidden, paths)
    return losses, learned


def draw(losses, costs, hidden, paths):
    """Saves mpc.png: the loss, the weights, and a drive."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    axes[0, 0].semilogy(losses)
    axes[0, 0].set(xlabel="step", ylabel="imitation loss")
    for i, name in enumerate(NAMES):
        axes[0, 1].plot(costs[:, i], color=f"C{i}", label=name)
        axes[0, 1].axhline(float(hidden[i]), color=f"C{i}", linestyle="--", linewidth=0.8)
    axes[0, 1].set(xlabel="step", ylabel="weights of the cost (dashed: the expert's)")
    axes[0, 1].legend(fontsize="small")
    styles = {"expert": ("k", 3.0, "-"), "before": ("C0", 1.5, "-"), "learned": ("C3", 1.5, "--")}
    for name, (states, inputs) in paths.items():
        color, width, line = styles[name]
        axes[1, 0].plot(STEP * np.arange(len(states)), states[:, 0, 0], line, color=color, linewidth=width, label=name)
        axes[1, 1].step(STEP * np.arange(len(inputs)), inputs[:, 0], line, color=color, linewidth=width, where="post", label=name)
    axes[1, 0].set(xlabel="time", ylabel="position")
    axes[1, 1].set(xlabel="time", ylabel="input")
    axes[1, 0].legend()
    figure.savefig("mpc.png", dpi=130)
    print("The picture is in mpc.png")


if __name__ == "__main__":
    main(short="--short" in sys.argv)
