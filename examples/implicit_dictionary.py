"""A dictionary learned for its task beats one learned for reconstruction: sparse codes inside a classifier of tumours.

Each of 569 tumours (scikit-learn's breast-cancer data, 30 features) is coded by a few atoms of a dictionary: the elastic net's solution,
a proximal
fixed point. Beside the 30 features stand 40 that vary together and have nothing to do with the disease, as most of gene expression does. A
logistic classifier reads the codes. Two stages learn the dictionary by reconstruction first; task-driven learning sends
the classifier's
gradient through the codes into the dictionary. Mairal, Bach and Ponce 2012; Blondel et al. 2022 (section 4.3) report AUC 73.2
task-driven, 72.4 logistic
regression and 68.3 two-stage on gene expression data. Takes under a minute and writes implicit_dictionary.png.
"""

import time

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit

import layercompiler as lc
from layercompiler import functions

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ATOMS, LASSO, RIDGE, STEPS, TRAIN = 3, 0.3, 0.05, 40, 150


def step_of(D):
    """A step that makes the fixed-point map a contraction."""
    return 1.0 / (D @ D.T).detach().abs().sum(-1).max()


def proximal_step(codes, X, D, step):
    """One step of the proximal gradient method for |X - codes D|^2 / 2 + elastic net."""
    return functions.prox_elastic_net(codes - step * (codes @ D - X) @ D.T, LASSO, RIDGE, step)


def accelerated(codes, X, D, step):
    """FISTA until nothing moves."""
    z, t = codes, 1.0
    for _ in range(300):
        after = proximal_step(z, X, D, step)
        t_after = (1 + (1 + 4 * t * t) ** 0.5) / 2
        moved = float((after - codes).abs().max())
        z = after + (t - 1) / t_after * (after - codes)
        codes, t = after, t_after
        if moved < 1e-6:
            break
    return proximal_step(codes, X, D, step)


encode = lc.custom_fixed_point(proximal_step, batch=1)(accelerated)


def learn(X, y, driven, seed):
    """Dictionary and classifier, together (driven) or one after the other."""
    torch.manual_seed(seed)
    D = torch.nn.functional.normalize(X[torch.randperm(len(X))[:ATOMS]], dim=-1).clone().requires_grad_()
    w = torch.zeros(ATOMS + 1, requires_grad=True)
    optimizer = torch.optim.Adam([D], lr=0.05)
    for _ in range(STEPS):
        step = step_of(D)
        codes = encode(torch.zeros(len(X), ATOMS), X, D, step)
        loss = (X - codes @ D).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            D /= D.norm(dim=-1, keepdim=True).clamp(min=1.0)
    optimizer = torch.optim.Adam([{"params": [w], "lr": 0.1}, {"params": [D] if driven else [], "lr": 0.03}])
    for _ in range(2 * STEPS):
        codes = encode(torch.zeros(len(X), ATOMS), X, D if driven else D.detach(), step_of(D))
        logits = codes @ w[1:] + w[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y) + 1e-3 * w[1:].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            D /= D.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return D.detach(), w.detach()


def main():
    """Compare on several splits, draw."""
    torch.set_default_dtype(torch.float64)
    X, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    nuisance = rng.standard_normal((len(y), 4)) @ rng.standard_normal((4, 40)) + 0.3 * rng.standard_normal((len(y), 40))
    X = np.hstack([X, nuisance])
    began, rows, shown = time.perf_counter(), [], {}
    for seed, (train, test) in enumerate(StratifiedShuffleSplit(2, train_size=TRAIN, test_size=400, random_state=0).split(X, y)):
        mean, scale = X[train].mean(0), X[train].std(0)
        A, B = torch.tensor((X[train] - mean) / scale), torch.tensor((X[test] - mean) / scale)
        scores = {}
        for name, driven in (("two-stage", False), ("task-driven", True)):
            D, w = learn(A, torch.tensor(y[train], dtype=torch.float64), driven, seed)
            codes = encode(torch.zeros(len(B), ATOMS), B, D, step_of(D))
            scores[name] = (codes @ w[1:] + w[0]).numpy()
            shown[name] = codes.numpy(), w.numpy(), y[test]
        scores["logistic regression"] = LogisticRegression(C=1.0, max_iter=1000).fit(A, y[train]).decision_function(B)
        rows.append([100 * roc_auc_score(y[test], s) for s in scores.values()])
    mean = np.mean(rows, axis=0)
    print(f"{TRAIN} tumours to learn from, {ATOMS} atoms, mean of {len(rows)} splits, {time.perf_counter() - began:.0f} s")
    for name, value, paper in zip(scores, mean, (68.3, 73.2, 72.4), strict=True):
        print(f"{name:20s} AUC {value:.2f} (paper, gene expression: {paper})")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for ax, (name, (codes, w, labels)) in zip(axes, shown.items(), strict=True):
        score = codes @ w[1:] + w[0]
        ax.hist([score[labels == 0], score[labels == 1]], bins=40, stacked=True, label=["malignant", "benign"])
        ax.set(title=name, xlabel="score of unseen tumours")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig("implicit_dictionary.png", dpi=70)


if __name__ == "__main__":
    main()
