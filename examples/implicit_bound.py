"""How far is a derivative off when the solver stops early? A bound that can be computed, on the diabetes data.

The setting is theorem 1 of Blondel et al. 2022.

Ridge regression with one weight per feature is solved by gradient descent that stops after t steps. The Jacobian of the coefficients
with respect to
the weights is taken by the implicit rule at the unfinished point and by differentiating the t steps. The error of the implicit one is at
most |F(x)| beta / alpha^2 for this F (alpha the smallest singular value of dF/dx, beta the Lipschitz constant of dF/dtheta in x, here
1): a bound from the
residual alone. Takes some seconds and writes implicit_bound.png.
"""

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_diabetes

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = (1, 3, 10, 30, 100, 300, 1000, 3000)


def main():
    """Both errors and the bound after each number of steps."""
    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    H, b = torch.tensor(X.T @ X / len(y)), torch.tensor(X.T @ y / len(y))
    theta = torch.full((10,), 0.01, dtype=torch.float64)
    A = H + torch.diag(theta)
    solution = torch.linalg.solve(A, b)
    truth = -torch.linalg.solve(A, torch.diag(solution))
    alpha, step = float(torch.linalg.eigvalsh(A)[0]), 1.0 / float(torch.linalg.eigvalsh(A)[-1])

    def residual(x, theta):
        return H @ x - b + theta * x

    def descend(theta, count):
        x = torch.zeros_like(theta)
        for _ in range(count):
            x = x - step * residual(x, theta)
        return x

    # Differentiating the steps: the recursion of the Jacobian, which is what forward mode computes.
    x, unrolled, rows = torch.zeros_like(theta), torch.zeros(10, 10, dtype=torch.float64), []
    for t in range(1, max(STEPS) + 1):
        unrolled = unrolled - step * (A @ unrolled + torch.diag(x))
        x = x - step * residual(x, theta)
        if t in STEPS:
            # A point that is no root is what this is about: the check is off.
            solver = lc.custom_root(residual, structure=["symmetric", "psd"], tolerance=None)(lambda init, theta, t=t: descend(theta, t))
            implicit = torch.func.jacrev(lambda v, solver=solver: solver(torch.zeros_like(v), v))(theta)
            error, error_unrolled = (float(torch.linalg.matrix_norm(J - truth, 2)) for J in (implicit, unrolled))
            bound = float(residual(x, theta).norm()) / alpha**2
            rows.append((t, float((x - solution).norm()), error, error_unrolled, bound))
    same = torch.func.jacrev(lambda v: descend(v, 30))(theta)
    print(f"the recursion is autodiff through the steps to {float((same - _unrolled(A, residual, theta, step, 30)).abs().max()):.0e}")
    print("steps  |x - x*|  implicit error  unrolled error  our bound      ratio  bound/error")
    for t, off, error, error_unrolled, bound in rows:
        print(
            f"{t:5d}  {off:8.1e}  {error:14.2e}  {error_unrolled:14.2e}  {bound:9.2e}  {error_unrolled / error:9.1f}  {bound / error:11.2f}"
        )
    found = rows[-1]
    print(f"after {found[0]} steps the unrolled Jacobian is {found[3] / found[2]:.1f} times as far off (research figure 14.8),", end=" ")
    print(f"the bound within {found[4] / found[2]:.2f} of the error (1.65)")
    assert all(bound >= error * (1 - 1e-9) for _, _, error, _, bound in rows)
    t, _, error, error_unrolled, bound = np.array(rows).T
    plt.figure(figsize=(5, 3.4))
    plt.loglog(t, error_unrolled, "o-", label="differentiating the steps")
    plt.loglog(t, error, "o-", label="implicit rule")
    plt.loglog(t, bound, "k--", label="bound from the residual")
    plt.xlabel("steps of the solver")
    plt.ylabel("error of the Jacobian")
    plt.legend()
    plt.tight_layout()
    plt.savefig("implicit_bound.png", dpi=70)


def _unrolled(A, residual, theta, step, count):
    x, J = torch.zeros_like(theta), torch.zeros(10, 10, dtype=torch.float64)
    for _ in range(count):
        J = J - step * (A @ J + torch.diag(x))
        x = x - step * residual(x, theta)
    return J


if __name__ == "__main__":
    main()
