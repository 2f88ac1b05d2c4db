"""Learns one penalty weight per feature of a lasso by gradient descent on the cross-validation loss, through the solution of the lasso.

The lasso is written once in CVXPY, compiled once, and exported to torch, jax and TensorFlow. The five folds are one batch of the layer. The
data are scikit-learn's diabetes data (442 patients, 10 features), which come with the package; the yardstick is scikit-learn's LassoCV on
the same folds, which chooses one weight for all features. Run `make demo`; takes a few seconds and writes quickstart.png.
"""

import contextlib
import os
import sys
import time

import cvxpy as cp
import jax
import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV

import layercompiler as lc

FOLDS, STEPS = 5, 150


@contextlib.contextmanager
def hushed():
    """Without what TensorFlow's C++ writes to standard error when it starts."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


with hushed():
    import tensorflow as tf


def data():
    """Five folds (batch, rows, features), and rows held out for the end; features and target in standard units."""
    X, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = X[order], y[order]
    X, y = (X - X[:340].mean(0)) / X[:340].std(0), (y - y[:340].mean()) / y[:340].std()
    parts = np.arange(340).reshape(FOLDS, -1)
    train = np.stack([np.setdiff1d(np.arange(340), part) for part in parts])
    splits = list(zip(train, parts, strict=True))
    return X[train], y[train], X[parts], y[parts], X[340:], y[340:], splits, X[:340], y[:340]


def lasso(rows, features):
    """The problem as a person writes it: one penalty weight per feature."""
    X, y = cp.Parameter((rows, features), name="X"), cp.Parameter(rows, name="y")
    penalty = cp.Parameter(features, nonneg=True, name="penalty")
    w = cp.Variable(features, name="w")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X @ w - y) / (2 * rows) + penalty @ cp.abs(w)))
    return problem, [X, y, penalty], [w]


def gradients(compiled, X, y, Xv, yv, penalty):
    """The gradient of the validation loss with respect to the penalty weights, by each framework."""
    found = {}
    layer = compiled.to("torch")
    p = torch.tensor(penalty, requires_grad=True)
    (w,) = layer(torch.tensor(X), torch.tensor(y), p)
    loss = ((torch.tensor(Xv) @ w[..., None])[..., 0] - torch.tensor(yv)).square().mean()
    loss.backward()
    found["torch"] = p.grad.numpy()

    jax_layer = compiled.to("jax")
    with jax.enable_x64(True):

        def validation(p):
            (w,) = jax_layer(X, y, p)
            return (((Xv @ w[..., None])[..., 0] - yv) ** 2).mean()

        found["jax"] = np.asarray(jax.jit(jax.grad(validation))(penalty))

    with hushed():
        tf.constant(0.0)
    tf_layer, p = compiled.to("tensorflow"), tf.Variable(penalty)
    with tf.GradientTape() as tape:
        (w,) = tf_layer(tf.constant(X), tf.constant(y), p)
        loss = tf.reduce_mean((tf.linalg.matvec(tf.constant(Xv), w) - yv) ** 2)
    found["tensorflow"] = tape.gradient(loss, p).numpy()
    return found


def bar(step, loss):
    """A progress bar on one line; a line every fifty steps where the output is no terminal."""
    if not sys.stdout.isatty():
        if step % 50 == 0:
            print(f"  step {step:3d}/{STEPS}  validation loss {loss:.4f}", flush=True)
        return
    done = 30 * step // STEPS
    end = "\n" if step == STEPS else ""
    print(f"\r  [{'#' * done}{'.' * (30 - done)}] {step:3d}/{STEPS}  validation loss {loss:.4f}", end=end, flush=True)


def main():
    """The whole story, printed."""
    X, y, Xv, yv, Xt, yt, splits, X_all, y_all = data()
    problem, parameters, variables = lasso(X.shape[1], X.shape[2])
    compiled = lc.compile(problem, parameters=parameters, variables=variables)
    print(compiled.report(), end="\n\n")

    start = np.full(X.shape[2], 0.1)
    found = gradients(compiled, X, y, Xv, yv, start)
    scale = np.abs(found["torch"]).max()
    apart = max(np.abs(g - found["torch"]).max() / scale for g in found.values())
    print(f"Gradients of the validation loss by {', '.join(found)}: largest relative difference {apart:.1e}")
    if not apart <= 1e-9:
        sys.exit("the frameworks disagree")

    layer = lc.export(compiled, "torch")
    train = torch.tensor(X), torch.tensor(y)
    Xv, yv = torch.tensor(Xv), torch.tensor(yv)
    raw = torch.tensor(np.log(start), requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    losses, best = [], (np.inf, start)
    began = time.perf_counter()
    print("\nLearning ten penalty weights through the layer (torch, one batch of five folds):")
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        (w,) = layer(*train, raw.exp())
        loss = ((Xv @ w[..., None])[..., 0] - yv).square().mean()
        loss.backward()
        losses.append(loss.item())
        best = min(best, (loss.item(), raw.exp().detach().numpy()), key=lambda pair: pair[0])
        optimizer.step()
        bar(step, losses[-1])
    took = time.perf_counter() - began

    peer = LassoCV(cv=splits, fit_intercept=False, alphas=200, tol=1e-8, max_iter=100_000).fit(X_all, y_all)
    by_peer = peer.mse_path_.mean(axis=1).min()
    refit = lc.compile(lasso(len(y_all), X.shape[2])[0])
    held_out = {
        "before (0.1 for every feature)": start,
        "scikit-learn LassoCV (one weight)": np.full_like(start, peer.alpha_),
        "after (ten learned weights)": best[1],
    }
    validation = dict(zip(held_out, (losses[0], by_peer, best[0]), strict=True))
    print(f"\n{'':36s}{'validation loss':>16s}{'held-out loss':>16s}")
    coefficients = {}
    for name, penalty in held_out.items():
        (coefficients[name],) = refit.solve(X_all, y_all, penalty).outputs
        print(f"{name:36s}{validation[name]:16.4f}{np.mean((Xt @ coefficients[name] - yt) ** 2):16.4f}")
    print(f"\n{STEPS + 1} steps in {took:.1f} s: {1e3 * took / (STEPS + 1):.1f} ms a step, forward and backward, five lassos each")
    draw(losses, by_peer, best[1], coefficients)


def draw(losses, by_peer, penalty, coefficients):
    """Saves quickstart.png: the loss over the steps, and what the learned weights do to the coefficients."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(losses, label="ten learned weights")
    left.axhline(by_peer, color="k", linestyle="--", label="scikit-learn LassoCV, one weight")
    left.set(xlabel="gradient step", ylabel="validation loss, mean of five folds")
    left.legend()
    names = load_diabetes().feature_names
    for shift, (name, w) in zip((-0.27, 0, 0.27), coefficients.items(), strict=True):
        right.bar(np.arange(len(names)) + shift, w, 0.25, label=name)
    right.set_xticks(range(len(names)), [f"{n}\n{p:.2g}" for n, p in zip(names, penalty, strict=True)], fontsize="small")
    right.set(xlabel="feature, and its learned penalty weight", ylabel="coefficient")
    right.axhline(0, color="k", linewidth=0.5)
    right.set_ylim(top=0.6)
    right.legend(fontsize="small", loc="upper right")
    figure.savefig("quickstart.png", dpi=150)
    print("The picture is in quickstart.png")


if __name__ == "__main__":
    main()
