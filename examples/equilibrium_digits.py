"""A network of endless depth reads digits, and its memory does not grow with its depth.

One layer, z = tanh(W z + U x + b), is applied until nothing changes, and differentiated at that point. On scikit-learn's digits it
is compared with the same weights unrolled; what either keeps for the backward pass is counted tensor by tensor. Bai, Kolter and Koltun
2019 make
the claim that memory is constant in depth (deep equilibrium models). Takes some seconds and writes equilibrium_digits.png.
"""

import time

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.utils.parametrizations import spectral_norm

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTH, BATCH, EPOCHS = 64, 64, 12


class Equilibrium(torch.nn.Module):
    """Digits (B, 64) to logits (B, 10) through an equilibrium."""

    def __init__(self):
        super().__init__()
        self.inner = spectral_norm(torch.nn.Linear(WIDTH, WIDTH, bias=False))
        self.outer = torch.nn.Linear(64, WIDTH)
        self.read = torch.nn.Linear(WIDTH, 10)

    def forward(self, x, depth=None, tolerance=1e-8):
        """Logits; with a depth, that of the unrolled network."""
        W, inject = 0.9 * self.inner.weight, self.outer(x)
        step = lambda z, W, u: torch.tanh(z @ W.T + u)  # noqa: E731
        z = torch.zeros_like(inject)
        if depth is not None:
            for _ in range(depth):
                z = step(z, W, inject)
            return self.read(z)

        def iterate(z, W, u):
            with torch.no_grad():
                for k in range(300):  # noqa: B007
                    after = step(z, W, u)
                    done = float((after - z).abs().max()) < tolerance
                    z = after
                    if done:
                        break
                self.steps = k + 1
            return z

        return self.read(lc.custom_fixed_point(step, batch=1)(iterate)(z, W, inject))


def kept(model, x, y, **how):
    """Bytes that wait for the backward pass of a batch."""
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = torch.nn.functional.cross_entropy(model(x, **how), y)
    loss.backward()
    model.zero_grad()
    return sum(seen.values())


def main():
    """Train, count, draw."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = torch.tensor(X[order] / 16), torch.tensor(y[order])
    model = Equilibrium()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    began, curve = time.perf_counter(), []
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(1400).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            curve.append(100 * float((model(X[1400:]).argmax(-1) == y[1400:]).double().mean()))
    print(
        f"held-out digits right: {curve[-1]:.1f} % after {EPOCHS} epochs, {time.perf_counter() - began:.0f} s; {model.steps} steps to 1e-8"
    )
    x, labels = X[:BATCH], y[:BATCH]
    depths = (10, 30, 100, 300)
    unrolled = [kept(model, x, labels, depth=d) / 1e6 for d in depths]
    ours = [kept(model, x, labels, tolerance=tol) / 1e6 for tol in (1e-2, 1e-4, 1e-8, 1e-12)]
    print("MB kept, unrolled at depth", ", ".join(f"{d}: {m:.2f}" for d, m in zip(depths, unrolled, strict=True)))
    print("MB kept, equilibrium to 1e-2, 1e-4, 1e-8, 1e-12:", ", ".join(f"{m:.2f}" for m in ours), "(torchdeq: constant too)")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(range(1, EPOCHS + 1), curve)
    left.set(xlabel="epoch", ylabel="held-out digits right, %")
    right.loglog(depths, unrolled, "o-", label="unrolled")
    right.loglog(depths, ours, "o-", label="equilibrium, ever tighter")
    right.set(xlabel="depth", ylabel="MB kept for the backward pass")
    right.legend()
    figure.tight_layout()
    figure.savefig("equilibrium_digits.png", dpi=70)


if __name__ == "__main__":
    main()
