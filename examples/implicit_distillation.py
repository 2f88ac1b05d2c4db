"""Ten pictures that teach ten digits: dataset distillation by the gradient of a trained classifier.

Logistic regression trained on ten synthetic pictures, one per digit, should do well on all of scikit-learn's digits; the pictures are
learned by the gradient of its loss there. The classifier is found by L-BFGS from SciPy, which knows nothing of gradients of its solution,
and differentiated at the optimum; the other way is to differentiate gradient descent that is run to the same accuracy. Blondel et al. 2022
(section 4.2) report 4 times for MNIST. Takes under a minute and writes implicit_distillation.png.
"""

import time

import matplotlib
import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PENALTY, STEPS = 1e-2, 60
LABELS = torch.arange(10)


def objective(w, pictures):
    """Regularised logistic loss of weights (640,) on the synthetic pictures (10, 64)."""
    W = w.reshape(64, 10)
    return torch.nn.functional.cross_entropy(pictures @ W, LABELS) + 0.5 * PENALTY * W.square().sum()


gradient = torch.func.grad(objective)


def lbfgs(init, pictures):
    """The classifier by SciPy."""
    P, eye = pictures.detach().numpy(), np.eye(10)

    def value(w):
        scores = P @ w.reshape(64, 10)
        top = scores.max(1, keepdims=True)
        p = np.exp(scores - top)
        loss = np.mean(np.log(p.sum(1)) + top[:, 0] - np.diag(scores)) + 0.5 * PENALTY * w @ w
        return loss, (P.T @ (p / p.sum(1, keepdims=True) - eye) / 10).ravel() + PENALTY * w

    found = minimize(value, init.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 0, "gtol": 1e-8})
    return torch.tensor(found.x)


def descent(init, pictures, tolerance=1e-4):
    """The classifier by gradient descent, every step on the tape."""
    w = init
    step = 1.0 / (PENALTY + 0.5 * float(torch.linalg.matrix_norm(pictures.detach(), 2)) ** 2 / 10)
    for k in range(2000):
        g = gradient(w, pictures)
        w = w - step * g
        if k % 20 == 0 and float(g.detach().abs().max()) < tolerance:
            break
    return w


def main():
    """Time both gradients, learn, draw."""
    torch.set_default_dtype(torch.float64)
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    X, y = torch.tensor(images[order] / 16), torch.tensor(digits[order])
    train, test = slice(0, 1200), slice(1200, None)
    init = torch.zeros(640)
    implicit = lc.custom_root(gradient, structure=["symmetric", "psd"], solve=lc.linear.CG())(lbfgs)

    def loss(solve, pictures):
        return torch.nn.functional.cross_entropy(X[train] @ solve(init, pictures).reshape(64, 10), y[train])

    torch.manual_seed(0)
    pictures = (0.5 + 0.1 * torch.randn(10, 64)).requires_grad_()
    found = {}
    for _ in range(3):
        for name, solve in (("implicit", implicit), ("unrolled", descent)):
            began = time.perf_counter()
            (g,) = torch.autograd.grad(loss(solve, pictures), pictures)
            took = time.perf_counter() - began
            found[name] = min(found.get(name, (np.inf, g)), (took, g), key=lambda pair: pair[0])
    (fast, g), (slow, h) = found["implicit"], found["unrolled"]
    off = float((g - h).norm() / g.norm())
    print(f"gradient: implicit {1e3 * fast:.0f} ms, unrolled {1e3 * slow:.0f} ms: {slow / fast:.1f} times (paper: 4); off by {off:.0e}")

    optimizer = torch.optim.Adam([pictures], lr=0.1)
    began, curve = time.perf_counter(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(implicit, pictures)
        value.backward()
        optimizer.step()
        with torch.no_grad():
            W = implicit(init, pictures).reshape(64, 10)
            curve.append(100 * float(((X[test] @ W).argmax(-1) == y[test]).double().mean()))
    print(f"held-out digits right: {curve[0]:.1f} % -> {curve[-1]:.1f} % in {STEPS} steps, {time.perf_counter() - began:.0f} s")
    means = torch.stack([X[train][y[train] == d].mean(0) for d in range(10)])
    W = lbfgs(init, means).reshape(64, 10)
    print(f"(by the ten mean pictures: {100 * float(((X[test] @ W).argmax(-1) == y[test]).double().mean()):.1f} %)")
    figure, axes = plt.subplots(2, 5, figsize=(8, 3.4))
    for d, ax in enumerate(axes.ravel()):
        ax.imshow(pictures[d].detach().reshape(8, 8), cmap="gray")
        ax.set(title=str(d), xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig("implicit_distillation.png", dpi=70)


if __name__ == "__main__":
    main()
