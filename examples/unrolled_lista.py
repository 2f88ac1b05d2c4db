"""Learns sixteen steps of sparse coding that do the work of hundreds: LISTA beside ISTA and FISTA.

Sparse vectors of length 100 (one entry in ten is not zero) are seen through 50 noiseless measurements. ISTA and FISTA solve the lasso by
iteration; LISTA learns a matrix and a threshold for each of sixteen steps. The error is 10 log10(sum of squared errors / sum of squares)
on 1000 new
vectors. Gregor and LeCun 2010 need about 20 steps for what takes ISTA hundreds; -20 dB after 16 steps is the mark set here. Takes under
a minute and
writes unrolled_lista.png.
"""

import time

import matplotlib
import numpy as np
import torch

from layercompiler import functions

matplotlib.use("Agg")
import matplotlib.pyplot as plt

M, N, LAYERS, STEPS = 50, 100, 16, 3000


def sample(A, count, generator):
    """Sparse vectors and their measurements."""
    x = torch.randn(count, N, generator=generator) * (torch.rand(count, N, generator=generator) < 0.1)
    return x, x @ A.T


def decibels(x, truth):
    """Relative squared error."""
    return 10 * np.log10(float((x - truth).square().sum() / truth.square().sum()))


def classical(A, y, truth, count, fast, penalty=0.05):
    """Errors of ISTA or FISTA after each iteration."""
    L = torch.linalg.matrix_norm(A, 2) ** 2
    x = z = torch.zeros_like(truth)
    t, errors = 1.0, []
    for _ in range(count):
        after = functions.prox_lasso(z - (z @ A.T - y) @ A / L, penalty, 1.0 / float(L))
        t_after = (1 + (1 + 4 * t * t) ** 0.5) / 2
        z = after + (t - 1) / t_after * (after - x) if fast else after
        x, t = after, t_after
        errors.append(decibels(x, truth))
    return errors


def main():
    """Learn, compare, draw."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(M, N, generator=generator) / M**0.5
    A = A / A.norm(dim=0)
    truth, y = sample(A, 1000, generator)
    ista, fista = classical(A, y, truth, 1000, False), classical(A, y, truth, 300, True)

    L = float(torch.linalg.matrix_norm(A, 2) ** 2)
    W = torch.nn.Parameter((A / L).repeat(LAYERS, 1, 1))
    level = torch.nn.Parameter(torch.full((LAYERS, 1), 0.05))

    def lista(y, errors=None):
        x = torch.zeros(*y.shape[:-1], N)
        for k in range(LAYERS):
            x = functions.prox_lasso(x + (y - x @ A.T) @ W[k], level[k])
            if errors is not None:
                errors.append(decibels(x, truth))
        return x

    optimizer = torch.optim.Adam([W, level], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    began, curve = time.perf_counter(), []
    for step in range(STEPS):
        x, measured = sample(A, 128, generator)
        loss = (lista(measured) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == STEPS - 1:
            with torch.no_grad():
                curve.append((step, decibels(lista(y), truth)))
    took, learned = time.perf_counter() - began, []
    with torch.no_grad():
        lista(y, learned)
    same = [next((k + 1 for k, e in enumerate(errors) if e <= learned[-1]), None) for errors in (ista, fista)]
    print(f"after 16 steps: LISTA {learned[-1]:.1f} dB (mark: -20 dB), ISTA {ista[15]:.1f} dB, FISTA {fista[15]:.1f} dB")
    names = same[0] or f"over 1000 ({ista[-1]:.1f} dB)", same[1] or f"over 300 ({fista[-1]:.1f} dB)"
    print(f"steps to the same error: ISTA {names[0]}, FISTA {names[1]}; {took:.0f} s of training")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, errors in (("ISTA", ista), ("FISTA", fista), ("LISTA", learned)):
        left.semilogx(np.arange(1, len(errors) + 1), errors, label=name)
    left.set(xlabel="step", ylabel="error, dB")
    left.legend()
    right.plot(*zip(*curve, strict=True))
    right.set(xlabel="training step", ylabel="error after 16 steps, dB")
    figure.tight_layout()
    figure.savefig("unrolled_lista.png", dpi=70)


if __name__ == "__main__":
    main()
