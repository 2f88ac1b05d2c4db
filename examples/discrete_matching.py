"""Learns what a dispatcher prefers from the assignments she made: a matching with a budget, written in CVXPY as it is.

Eight workers go to eight jobs; travel costs money and there is a budget. The dispatcher's liking of a pair is a hidden bilinear function
of their features. Only past assignments are seen. The layer is the mixed-integer program itself, through the perturbed Fenchel-Young
loss and through I-MLE. Takes under a minute and writes discrete_matching.png.
"""

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N, DIM, EPOCHS = 8, 4, 12


def program(travel, budget):
    """The dispatcher's problem."""
    liking, x = cp.Parameter((N, N), name="liking"), cp.Variable((N, N), boolean=True, name="x")
    each = [cp.sum(x, axis=0) == 1, cp.sum(x, axis=1) == 1]
    return cp.Problem(cp.Maximize(cp.sum(cp.multiply(liking, x))), [*each, cp.sum(cp.multiply(travel, x)) <= budget]), liking, x


def main():
    """Observe, learn, draw."""
    rng = np.random.default_rng(0)
    travel = rng.uniform(0, 1, (N, N))
    problem, liking, x = program(travel, 0.35 * N)
    hidden = rng.standard_normal((DIM, DIM))
    a, b = rng.standard_normal((2, 300, N, DIM))
    true = np.einsum("nid,de,nje->nij", a, hidden, b)
    solver = lc.export(problem, "numpy", parameters=[liking], variables=[x], estimator=lc.Identity())
    print(solver.compiled.report().splitlines()[-1])
    best = solver.solve(true).outputs[0]
    a, b, z = (torch.tensor(v, dtype=torch.float32) for v in (a, b, best))
    test = slice(200, 300)
    young = lc.losses.PerturbedFenchelYoung(samples=3)
    methods = {
        "perturbed Fenchel-Young": (lc.Identity(), lambda layer, p, z: layer.loss(young, p, solution=z).mean()),
        "I-MLE, Hamming loss": (lc.IMLE(samples=3), lambda layer, p, z: (layer(p)[0] * (1 - 2 * z)).sum((1, 2)).mean()),
        "identity, Hamming loss": (lc.Identity(), lambda layer, p, z: (layer(p)[0] * (1 - 2 * z)).sum((1, 2)).mean()),
    }
    curves, shown = {}, None
    for name, (estimator, loss) in methods.items():
        torch.manual_seed(0)
        guess = torch.nn.Parameter(0.1 * torch.randn(DIM, DIM))
        layer = lc.export(problem, "torch", parameters=[liking], variables=[x], estimator=estimator)
        optimizer = torch.optim.Adam([guess], lr=5e-2)
        curve = []
        for epoch in range(EPOCHS + 1):
            with torch.no_grad():
                found = solver.solve(torch.einsum("nid,de,nje->nij", a[test], guess, b[test]).double().numpy()).outputs[0]
            curve.append(100 * (found * best[test]).sum() / best[test].sum())
            if epoch == EPOCHS:
                break
            for rows in torch.randperm(200).split(20):
                value = loss(layer, torch.einsum("nid,de,nje->nij", a[rows], guess, b[rows]), z[rows])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
        curves[name] = curve
        way = guess.detach().numpy()
        cosine = (way * hidden).sum() / np.linalg.norm(way) / np.linalg.norm(hidden)
        print(
            f"{name:24s} pairs right on new days {curve[0]:.0f} -> {curve[-1]:.1f} %, cosine with the hidden preference {cosine:.3f}",
            flush=True,
        )
        shown = way if shown is None else shown
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=(1, 1, 2))
    axes[0].imshow(hidden, cmap="coolwarm")
    axes[0].set_title("hidden preference")
    axes[1].imshow(shown, cmap="coolwarm")
    axes[1].set_title("learned")
    for name, curve in curves.items():
        axes[2].plot(curve, label=name)
    axes[2].set(title="pairs assigned as the dispatcher would, %", xlabel="epoch")
    axes[2].legend()
    figure.tight_layout()
    figure.savefig("discrete_matching.png", dpi=70)


if __name__ == "__main__":
    main()
