"""The compiled kernels alone: LDL' against a loop over qdldl, the lanes interior point against Clarabel called from Python.

CPU seconds of one thread, best of a few runs, per instance (python benchmarks/kernels.py [problem ...]).
"""

import os
import sys
import time

import clarabel
import numpy as np
import qdldl
import scipy.sparse as sp

from benchmarks import results
from layercompiler.kernels import LDL, Conic, instruction_set, peak_rate
from layercompiler.kernels.conic import COUNTS, PARTS


def mpc(rng, horizon=20, states=6, inputs=3):
    """Linear MPC with boxes: horizon 20."""
    n = horizon * (states + inputs)
    A, B, x0 = (
        0.9 * np.eye(states) + 0.1 * rng.normal(size=(states, states)),
        0.3 * rng.normal(size=(states, inputs)),
        rng.normal(size=states),
    )
    E, e = np.zeros((horizon * states, n)), np.zeros(horizon * states)
    for t in range(horizon):
        rows, at = slice(t * states, (t + 1) * states), horizon * inputs + t * states
        E[rows, at : at + states] = np.eye(states)
        E[rows, t * inputs : (t + 1) * inputs] = -B
        if t:
            E[rows, at - states : at] = -A
        else:
            e[rows] = A @ x0
    bound = np.r_[np.ones(horizon * inputs), np.full(horizon * states, 60.0)]
    weight = np.r_[np.tile(rng.uniform(0.1, 1, inputs), horizon), np.tile(rng.uniform(0.5, 2, states), horizon)]
    return (
        np.diag(weight),
        0.1 * rng.normal(size=n),
        np.vstack([E, np.eye(n), -np.eye(n)]),
        np.r_[e, bound, bound],
        [("zero", len(e)), ("nonnegative", 2 * n)],
    )


def portfolio(rng, n=100, factors=10):
    """Expected return under a bound on risk, one long second-order cone."""
    F, d = rng.normal(size=(factors, n)) / np.sqrt(factors), rng.uniform(0.5, 1, n)
    A = np.vstack([np.ones((1, n)), -np.eye(n), np.zeros((1, n)), -F, -np.diag(d)])
    b = np.r_[1, np.zeros(n), 0.35, np.zeros(factors + n)]
    return None, -0.3 * rng.normal(size=n), A, b, [("zero", 1), ("nonnegative", n), ("second_order", 1 + factors + n)]


def linear(rng, n=50):
    """A dense linear program with 2n rows."""
    G, x = rng.normal(size=(2 * n, n)), rng.normal(size=n)
    return None, -(G.T @ rng.uniform(size=2 * n)), G, G @ x + rng.uniform(size=2 * n), [("nonnegative", 2 * n)]


def robust(rng, n=20, cones=10, size=8):
    """A robust linear program with ten second-order cones."""
    rows, b = [np.eye(n), -np.eye(n)], [np.full(2 * n, 3.0)]
    for _ in range(cones):
        rows += [rng.normal(size=(1, n)), -0.3 * rng.normal(size=(size, n))]
        b += [[rng.uniform(1, 3)], np.zeros(size)]
    return None, rng.normal(size=n), np.vstack(rows), np.concatenate(b), [("nonnegative", 2 * n), *[("second_order", 1 + size)] * cones]


def dense_qp(rng, n=50):
    """A dense QP with n inequalities and n / 5 equalities."""
    L, G, A, x = rng.normal(size=(n, n)), rng.normal(size=(n, n)), rng.normal(size=(n // 5, n)), rng.normal(size=n)
    b = np.r_[A @ x, G @ x + rng.uniform(size=n)]
    return L @ L.T + 0.1 * np.eye(n), rng.normal(size=n) * np.sqrt(n), np.vstack([A, G]), b, [("zero", n // 5), ("nonnegative", n)]


def sparse_qp(rng, n=200):
    """A sparse QP with five entries a row."""
    G = (sp.random(n, n, 5 / n, random_state=1).toarray() + np.eye(n)) * rng.normal(size=(n, n))
    return np.diag(rng.uniform(0.1, 1, n)), rng.normal(size=n), G, G @ rng.normal(size=n) + rng.uniform(size=n), [("nonnegative", n)]


def logistic(rng, n=20, samples=100):
    """Logistic regression, two exponential cones a sample."""
    X = -np.sign(rng.normal(size=samples))[:, None] * np.c_[rng.normal(size=(samples, n)), np.ones(samples)]
    columns = n + 1 + 3 * samples
    T, U, V = n + 1 + np.arange(samples), n + 1 + samples + np.arange(samples), n + 1 + 2 * samples + np.arange(samples)
    A, b, j = np.zeros((7 * samples, columns)), np.zeros(7 * samples), np.arange(samples)
    A[j, U] = A[j, V] = b[j] = 1.0
    first, second = samples + 6 * j, samples + 6 * j + 3
    A[first[:, None], np.arange(n + 1)] = -X
    A[first, T], A[first + 2, U], A[second, T], A[second + 2, V] = 1.0, -1.0, 1.0, -1.0
    b[first + 1] = b[second + 1] = 1.0
    q = np.r_[np.zeros(n + 1), np.full(samples, 1 / samples), np.zeros(2 * samples)]
    return np.diag(np.r_[np.full(n + 1, 0.1), np.zeros(3 * samples)]), q, A, b, [("nonnegative", samples), ("exponential", 2 * samples)]


def semidefinite(rng, order=10):
    """A semidefinite program in one matrix with as many equalities as its order."""
    i, j = np.tril_indices(order)
    i, j = i[np.lexsort((i, j))], np.sort(j)
    svec = lambda M: M[i, j] * np.where(i == j, 1.0, np.sqrt(2.0))  # noqa: E731
    X, Z, E = rng.normal(size=(order, order)), rng.normal(size=(order, order)), rng.normal(size=(order, len(i)))
    b = np.r_[E @ svec(X @ X.T / order + 0.1 * np.eye(order)), np.zeros(len(i))]
    q = E.T @ rng.normal(size=order) + svec(Z @ Z.T / order)
    return None, q, np.vstack([E, -np.eye(len(i))]), b, [("zero", order), ("psd", order)]


PROBLEMS = {
    "MPC, horizon 20": mpc,
    "portfolio SOCP 100": portfolio,
    "LP 50": linear,
    "robust LP, 10 cones": robust,
    "dense QP 50": dense_qp,
    "sparse QP 200": sparse_qp,
    "logistic 20 x 100": logistic,
    "SDP 10": semidefinite,
    "SDP 20": lambda rng: semidefinite(rng, 20),
}


LDL_ONLY = {
    "portfolio SOCP 300": lambda rng: portfolio(rng, 300, 17),
    "sparse QP 1000": lambda rng: sparse_qp(rng, 1000),
}


def stack(instances):
    """One pattern and the data of a batch."""
    m, n = instances[0][2].shape
    quadratic = instances[0][0] is not None
    P_mask = np.triu(np.any([p[0] != 0 for p in instances], axis=0)) if quadratic else np.zeros((n, n), bool)
    P, A = np.nonzero(P_mask.T)[::-1], np.nonzero(np.any([p[2] != 0 for p in instances], axis=0).T)[::-1]
    values = [(p[0][P] if quadratic else np.zeros(0), p[1], p[2][A], p[3]) for p in instances]
    return n, m, P, A, [np.array(v) for v in zip(*values, strict=True)]


def best(call, runs):
    """Shortest CPU time of this thread, seconds."""
    times = []
    for _ in range(runs):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return min(times)


def reference(n, m, P, A, cones, data, i):
    """Clarabel on instance i: constructor and solve."""
    kinds = {
        "zero": clarabel.ZeroConeT,
        "nonnegative": clarabel.NonnegativeConeT,
        "second_order": clarabel.SecondOrderConeT,
        "psd": clarabel.PSDTriangleConeT,
    }
    order, built, row = [], [], 0
    for kind, size in cones:
        rows = size * (size + 1) // 2 if kind == "psd" else 3 * size if kind == "exponential" else size
        local = np.arange(rows)
        if kind == "psd":
            c, r = np.triu_indices(size)
            local = np.lexsort((c, r))
        order.append(row + local)
        built += [clarabel.ExponentialConeT()] * size if kind == "exponential" else [kinds[kind](size)]
        row += rows
    order = np.concatenate(order)
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    P_, A_ = sp.csc_matrix((data[0][i], P), shape=(n, n)), sp.csc_matrix(sp.csr_matrix((data[2][i], A), shape=(m, n))[order])
    return lambda: clarabel.DefaultSolver(P_, data[1][i], A_, data[3][i][order], built, settings).solve()


def _row(name, heads, cells):
    return f"{name:22s}" + "".join(f"{cell!s:>{max(len(head), 7) + 3}s}" for head, cell in zip(heads, cells, strict=True))


def profiled(conic, data, runs=3):
    """Seconds by part and counts of the fastest of a few solves."""
    found = []
    for _ in range(runs):
        found.append(np.zeros(len(PARTS) + len(COUNTS)))
        conic.solve(*data, profile=found[-1])
    return min(found, key=lambda p: p[: len(PARTS)].sum())


def rate(conic, profile):
    """Floating-point operations a second of factorisations and triangular solves, over the whole time."""
    factorizations, solves = profile[len(PARTS) : len(PARTS) + 2]
    return (conic.flops * factorizations + 4 * conic.factor_nnz * solves) / profile[: len(PARTS)].sum()


def _say_shares(say, names):
    """Where the time of each problem and batch goes, and what the arithmetic of the factors makes of the machine."""
    peak = peak_rate()
    say(f"\nmultiply-adds alone: {peak / 1e9:.0f} GFLOP/s on one thread; below: factorisations and triangular solves over the whole time")
    heads = ("batch", *PARTS, "lanes busy", "GFLOP/s", "% of peak")
    say(_row("share of the time, %", heads, heads))
    for name in names:
        rng = np.random.default_rng(0)
        instances = [PROBLEMS[name](rng) for _ in range(128)]
        n, _, P, A, data = stack(instances)
        conic = Conic(n, P, A, instances[0][4])
        for batch in (1, 8, 128):
            profile = profiled(conic, [d[:batch] for d in data])
            times, counts = profile[: len(PARTS)], dict(zip(COUNTS, profile[len(PARTS) :], strict=True))
            busy = counts["iterations"] / counts["iterations of lanes"]
            speed = rate(conic, profile)
            shares = [f"{100 * t:.0f}" for t in times / times.sum()]
            say(_row(name, heads, (batch, *shares, f"{100 * busy:.0f}", f"{speed / 1e9:.1f}", f"{100 * speed / peak:.0f}")))


def _say_threads(say, names):
    """Wall time of one thread over that of two, batch 128, calls in turns."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        say("\ntwo threads: this run has one core")
        return
    heads = ("one, ms", "two, ms", "ratio")
    say("\n" + _row("two threads, batch 128", heads, heads))
    for name in names:
        rng = np.random.default_rng(0)
        instances = [PROBLEMS[name](rng) for _ in range(128)]
        n, _, P, A, data = stack(instances)
        conic = Conic(n, P, A, instances[0][4])
        times = {1: [], 2: []}
        for _ in range(7):
            for threads, found in times.items():
                began = time.perf_counter()
                conic.solve(*data, threads=threads)
                found.append(time.perf_counter() - began)
        one, two = min(times[1]), min(times[2])
        say(_row(name, heads, (f"{one * 1e3:.2f}", f"{two * 1e3:.2f}", f"{one / two:.2f}")))


def _say_ldl(say, names):
    """LDL' of a batch of 128 against a loop over qdldl, update and solve."""
    heads = ("order", "flops", "factor us", "solve us", "qdldl us", "ratio", "GFLOP/s")
    say("\n" + _row("KKT matrix of", heads, heads))
    for name in names:
        rng = np.random.default_rng(0)
        build = {**PROBLEMS, **LDL_ONLY}[name]
        n, m, _, A, _ = stack([build(rng) for _ in range(2)])
        rows, cols = np.r_[np.arange(n + m), A[1]], np.r_[np.arange(n + m), n + A[0]]
        signs = np.r_[np.ones(n), -np.ones(m)].astype(int)
        values = np.concatenate([signs * rng.uniform(1, 2, (128, n + m)), rng.normal(size=(128, len(A[0])))], axis=1)
        rhs = rng.normal(size=(128, n + m))
        ldl = LDL(n + m, rows, cols, signs)
        factor = ldl.factor(values)
        runs = 2 if name in LDL_ONLY else 5
        t_factor, t_solve = best(lambda: ldl.factor(values), runs) / 128, best(lambda: factor.solve(rhs, refine=0), runs) / 128  # noqa: B023
        matrix = sp.csc_matrix((values[0], (rows, cols)), shape=(n + m, n + m))
        solver = qdldl.Solver(matrix, upper=True)
        theirs = best(lambda: (solver.update(matrix), solver.solve(rhs[0])), 4 * runs)  # noqa: B023
        ours = t_factor + t_solve
        times = tuple(f"{t * 1e6:.1f}" for t in (t_factor, t_solve, theirs))
        say(_row(name, heads, (n + m, ldl.flops, *times, f"{theirs / ours:.1f}", f"{ldl.flops / t_factor / 1e9:.1f}")))


def main(names):
    """Prints the tables; a run of all problems writes them to RESULTS.md."""
    lines = []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    say(f"instruction set {instruction_set()}; CPU time per instance on one thread")
    heads = ("batch", "ms", "Clarabel ms", "ratio", "iterations", "solved", "GFLOP/s of the factors")
    say(_row("problem", heads, heads))
    for name in names or PROBLEMS:
        rng = np.random.default_rng(0)
        instances = [PROBLEMS[name](rng) for _ in range(128)]
        n, m, P, A, data = stack(instances)
        cones = instances[0][4]
        conic = Conic(n, P, A, cones)
        theirs = min(best(reference(n, m, P, A, cones, data, i), 2) for i in range(4))
        for batch in (1, 8, 128):
            part = [d[:batch] for d in data]
            ours = best(lambda part=part, conic=conic: conic.solve(*part), 3) / batch
            found = conic.solve(*part)
            rate = conic.flops * found.iterations.mean() / ours / 1e9
            solved = f"{int((found.status == 0).sum())}/{batch}"
            times = (f"{ours * 1e3:.3f}", f"{theirs * 1e3:.3f}", f"{theirs / ours:.1f}")
            say(_row(name, heads, (batch, *times, f"{found.iterations.mean():.1f}", solved, f"{rate:.1f}")))
    _say_shares(say, names or PROBLEMS)
    _say_threads(say, names or PROBLEMS)
    _say_ldl(say, names or [*PROBLEMS, *LDL_ONLY])
    if not names:
        text = "The lanes interior point against Clarabel called from Python, where its time goes, and LDL' against a loop over qdldl."
        results.write("kernels", "\n".join(["## Kernels", "", text, "", "```text", *lines, "```"]))


if __name__ == "__main__":
    main(sys.argv[1:])
