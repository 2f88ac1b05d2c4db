"""Implicit differentiation, the peers and us, in one run on one pinned core; writes a section of RESULTS.md.

    python -m benchmarks.implicit [--repeats 15] [--out benchmarks/RESULTS.md]

Two problems. Logistic regression with one penalty per feature (bilevel hyper-gradient), to |g| < 1e-10 by dense Newton steps, and by
Newton steps with conjugate gradients, as one solves it without matrices. The solvers are timed, and by itself the gradient of a loss
through a layer whose solver returns the root found before, in rounds, each layer once a round, behind a run of the dense solver that is
not timed and leaves the caches as it does in use; the VJP is that time less that of the loss. It is never less than the gradient of the
loss alone, which has a row of its own; what is written out by hand evaluates F once, refines once with the factor and checks nothing. An
equilibrium layer z = tanh(W z + U x), batch 32, d = 200. Errors are relative to a dense solve, and to autograd through 300 iterations.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import warnings

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import torch

import layercompiler as lc
from benchmarks import results
from layercompiler import arrays
from layercompiler.derivatives.factors import Factor
from layercompiler.derivatives.rule import attach
from layercompiler.implicit import Anderson, Picard

jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
warnings.filterwarnings("ignore")
DEQ_STEPS = (10, 30, 100, 300)


def rounds(calls, repeats, before=None):
    """Seconds of each call in every round, interleaved so that what the machine does meanwhile falls on all alike.

    `before` is run, untimed, ahead of every call.
    """
    taken = {}
    for name, call in list(calls.items()):
        try:
            call()
        except Exception as error:
            print(f"    {name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            del calls[name]
    gc.collect()
    gc.disable()
    for _ in range(repeats):
        for name, call in calls.items():
            if before is not None:
                before(name)
            began = time.perf_counter()
            call()
            taken.setdefault(name, []).append(time.perf_counter() - began)
    gc.enable()
    return {name: np.array(seconds) for name, seconds in taken.items()}


class Regression:
    """Data, residual, Hessian and Newton in numpy, jax and torch."""

    def __init__(self, n, p):
        rng = np.random.default_rng(0)
        self.p, self.X = p, 3 * rng.standard_normal((n, p)) / np.sqrt(p)
        w0 = rng.standard_normal(p)
        self.y = np.sign(self.X @ w0 + 0.5 * rng.standard_normal(n))
        self.Xv = 3 * rng.standard_normal((200, p)) / np.sqrt(p)
        self.yv = np.sign(self.Xv @ w0)
        self.theta = np.full(p, -1.0)

    def in_torch(self):
        X, y, Xv, yv = (torch.tensor(a) for a in (self.X, self.y, self.Xv, self.yv))

        def F(w, theta):
            return theta.exp() * w - X.T @ (y * torch.sigmoid(-y * (X @ w)))

        def H(w, theta):
            s = torch.sigmoid(-y * (X @ w))
            return (X.T * (s * (1 - s))) @ X + torch.diag(theta.exp())

        def outer(w):
            return torch.nn.functional.softplus(-yv * (Xv @ w)).mean()

        def newton(theta):
            w = torch.zeros(self.p)
            L = None
            for _ in range(50):
                g = F(w, theta)
                if float(g.norm()) < 1e-10:
                    break
                L = torch.linalg.cholesky(H(w, theta))
                w = w - torch.cholesky_solve(g[:, None], L)[:, 0]
            return w, L

        def newton_cg(theta):
            w = torch.zeros(self.p)
            for _ in range(50):
                g = F(w, theta)
                size = float(g.norm())
                if size < 1e-10:
                    break
                s = torch.sigmoid(-y * (X @ w))
                s, t = s * (1 - s), theta.exp()
                d, r, q = torch.zeros(self.p), g, g
                rr, goal = float(g @ g), min(0.1, size**0.5) * size
                while rr > goal**2:
                    v = t * q + X.T @ (s * (X @ q))
                    alpha = rr / float(q @ v)
                    d, r = d + alpha * q, r - alpha * v
                    before, rr = rr, float(r @ r)
                    q = r + (rr / before) * q
                w = w - d
            return w

        return F, H, outer, newton, newton_cg

    def in_jax(self):
        X, y, Xv, yv = (jnp.asarray(a) for a in (self.X, self.y, self.Xv, self.yv))

        def F(w, theta):
            return jnp.exp(theta) * w - X.T @ (y * jax.nn.sigmoid(-y * (X @ w)))

        def H(w, theta):
            s = jax.nn.sigmoid(-y * (X @ w))
            return (X.T * (s * (1 - s))) @ X + jnp.diag(jnp.exp(theta))

        def outer(w):
            return jax.nn.softplus(-yv * (Xv @ w)).mean()

        def newton(theta):
            def step(state):
                k, w, g, _ = state
                L = jnp.linalg.cholesky(H(w, theta))
                w = w - jax.scipy.linalg.cho_solve((L, True), g)
                return k + 1, w, F(w, theta), L

            start = (0, jnp.zeros(self.p), F(jnp.zeros(self.p), theta), jnp.eye(self.p))
            return jax.lax.while_loop(lambda s: (s[0] < 50) & (jnp.linalg.norm(s[2]) >= 1e-10), step, start)[1::2]

        def newton_cg(theta):
            def step(state):
                k, w, g = state
                s, size = jax.nn.sigmoid(-y * (X @ w)), jnp.linalg.norm(g)
                s, t = s * (1 - s), jnp.exp(theta)
                product = lambda v: t * v + X.T @ (s * (X @ v))  # noqa: E731
                w = w - jax.scipy.sparse.linalg.cg(product, g, tol=jnp.minimum(0.1, size**0.5))[0]
                return k + 1, w, F(w, theta)

            start = (0, jnp.zeros(self.p), F(jnp.zeros(self.p), theta))
            return jax.lax.while_loop(lambda s: (s[0] < 50) & (jnp.linalg.norm(s[2]) >= 1e-10), step, start)[1]

        return F, H, outer, newton, newton_cg


def hypergradients(n, p, repeats):
    """{name: (forward ms, forward without matrices ms, vjp ms, error)}"""
    case = Regression(n, p)
    F, H, outer, newton, newton_cg = case.in_torch()
    theta = torch.tensor(case.theta)
    w, L = newton(theta)
    leaf = w.clone().requires_grad_()
    (c,) = torch.autograd.grad(outer(leaf), leaf)
    want = (-theta.exp() * w * torch.linalg.solve(H(w, theta), c)).numpy()
    found = {}  # gradients of the loss at the root
    layers = {
        "ours torch, factor": lambda t: attach(arrays.get("torch"), F, w, (t,), factor=Factor("cholesky", (L,))),
        "ours torch, default": lambda t: attach(arrays.get("torch"), F, w, (t,)),
        "ours torch, CG, psd": lambda t: attach(arrays.get("torch"), F, w, (t,), structure=("psd",), linear_solve=lc.linear.CG()),
        "ours torch, LU": lambda t: attach(arrays.get("torch"), F, w, (t,), linear_solve=lc.linear.LU()),
    }
    try:
        import torchopt

        for name, solve in {
            "torchopt normal CG (default)": torchopt.linear_solve.solve_normal_cg(),
            "torchopt CG 1e-10": torchopt.linear_solve.solve_cg(rtol=1e-10, atol=1e-10),
            "torchopt inverse": torchopt.linear_solve.solve_inv(),
        }.items():
            root = torchopt.diff.implicit.custom_root(F, argnums=1, solve=solve)(lambda init, t: init)
            layers[name] = lambda t, root=root: root(w, t)
    except ImportError as error:
        print(f"    torchopt: {error}")
    for name, layer in layers.items():

        def gradient(layer=layer):
            t = theta.clone().requires_grad_()
            return torch.autograd.grad(outer(layer(t)), t)[0].numpy()

        found[name] = gradient

    def alone():
        leaf = w.clone().requires_grad_()
        return torch.autograd.grad(outer(leaf), leaf)[0]

    def by_hand():
        t, leaf, y = theta.clone().requires_grad_(), w.clone().requires_grad_(), w.clone().requires_grad_()
        (c,) = torch.autograd.grad(outer(leaf), leaf)
        factor, value = Factor("cholesky", (L,)), F(y, t)
        u = factor.solve(arrays.get("torch"), c)
        u = u + factor.solve(arrays.get("torch"), c - torch.autograd.grad(value, y, u, retain_graph=True)[0])
        return -torch.autograd.grad(value, t, u)[0]

    found["torch, gradient of the loss alone"] = alone
    found["torch, factor, written out by hand"] = by_hand
    jF, _, jouter, jnewton, jnewton_cg = case.in_jax()
    jtheta = jnp.asarray(case.theta)
    jw, jL = jnewton(jtheta)
    roots = {
        "ours jax, factor": None,
        "ours jax, default": lc.custom_root(jF)(lambda init, t: init),
        "ours jax, CG, psd": lc.custom_root(jF, solve=lc.linear.CG(), structure=("psd",))(lambda init, t: init),
    }
    try:
        import jaxopt
        from jaxopt import linear_solve

        for name, solve in {
            "jaxopt normal CG (default)": None,
            "jaxopt CG 1e-10": lambda A, b: linear_solve.solve_cg(A, b, tol=1e-10),
            "jaxopt LU": linear_solve.solve_lu,
        }.items():
            options = {} if solve is None else {"solve": solve}
            roots[name] = jaxopt.implicit_diff.custom_root(jF, **options)(lambda init, t: init)
    except ImportError as error:
        print(f"    jaxopt: {error}")
    for name, root in roots.items():

        def loss(t, w, L, root=root):
            layer = attach(arrays.get("jax"), jF, w, (t,), factor=Factor("cholesky", (L,))) if root is None else root(w, t)
            return jouter(layer)

        value = jax.jit(jax.grad(loss))
        found[name] = lambda value=value: value(jtheta, jw, jL).block_until_ready()
    by_w = jax.jit(jax.grad(jouter))
    found["jax, gradient of the loss alone"] = lambda: by_w(jw).block_until_ready()

    @jax.jit
    def jax_by_hand(t, w, L):
        c, (_, pull), factor = jax.grad(jouter)(w), jax.vjp(jF, w, t), Factor("cholesky", (L,))
        u = factor.solve(arrays.get("jax"), c)
        return -pull(u + factor.solve(arrays.get("jax"), c - pull(u)[0]))[1]

    found["jax, factor, written out by hand"] = lambda: jax_by_hand(jtheta, jw, jL).block_until_ready()
    only = jax.jit(lambda t: jouter(jnewton(t)[0]))
    free = jax.jit(lambda t: jouter(jnewton_cg(t)))
    jloss = jax.jit(jouter)
    forward = {
        "torch": lambda: outer(newton(theta)[0]),
        "jax": lambda: only(jtheta).block_until_ready(),
        "torch free": lambda: outer(newton_cg(theta)),
        "jax free": lambda: free(jtheta).block_until_ready(),
        "torch loss": lambda: outer(w),
        "jax loss": lambda: jloss(jw).block_until_ready(),
    }
    whole = {}
    try:
        import optimistix as optx

        def root(t):
            newton = optx.Newton(rtol=1e-10, atol=1e-10)
            return optx.root_find(lambda w, t: jF(w, t), newton, jnp.zeros(p), t, max_steps=50, adjoint=optx.ImplicitAdjoint()).value

        value = jax.jit(jax.grad(lambda t: jouter(root(t))))
        plain = jax.jit(lambda t: jouter(root(t)))
        name = "optimistix Newton, implicit (default)"
        whole = {name: lambda: value(jtheta).block_until_ready(), (name, "forward"): lambda: plain(jtheta).block_until_ready()}
    except ImportError as error:
        print(f"    optimistix: {error}")

    def before(name):
        if name in found or str(name).endswith("loss"):
            forward["torch" if "torch" in name else "jax"]()

    times = rounds({**forward, **found, **whole}, repeats, before)
    table = {}
    for name in found:
        if name in times:
            kind = "torch" if "torch" in name else "jax"
            pull = times[name].min() - times[f"{kind} loss"].min()
            off = np.nan if name.endswith("alone") else np.linalg.norm(np.asarray(found[name]()) - want) / np.linalg.norm(want)
            table[name] = 1e3 * times[kind].min(), 1e3 * times[f"{kind} free"].min(), 1e3 * pull, off
    for name in (k for k in whole if isinstance(k, str) and k in times):
        base = times[(name, "forward")]
        off = np.linalg.norm(np.asarray(whole[name]()) - want) / np.linalg.norm(want)
        table[name] = 1e3 * base.min(), np.nan, 1e3 * (times[name].min() - base.min()), off
    return table


def equilibrium(repeats):
    """{name: (forward + vjp ms, error)}"""
    rng = np.random.default_rng(0)
    B, d = 32, 200
    W, U = 0.45 * rng.standard_normal((d, d)) / np.sqrt(d), rng.standard_normal((d, d)) / np.sqrt(d)
    x, c = rng.standard_normal((2, B, d))
    Wt, Ut, xt, ct = (torch.tensor(a) for a in (W, U, x, c))

    def step(z, W, x):
        return torch.tanh(z @ W.T + x @ Ut.T)

    def hoisted(z, W, u):
        return torch.tanh(torch.addmm(u, z, W.T))

    def gradient(call):
        leaf = Wt.clone().requires_grad_()
        return torch.autograd.grad((call(leaf) * ct).sum(), leaf)[0]

    def unrolled(W, steps=300):
        z = torch.zeros(B, d)
        for _ in range(steps):
            z = step(z, W, xt)
        return z

    want = gradient(unrolled)
    start = lambda *_: torch.zeros(B, d)  # noqa: E731
    calls = {"torch, unrolled 60": lambda: gradient(lambda W: unrolled(W, 60))}
    for name, solver in {"Picard": Picard(tol=1e-9), "Anderson": Anderson(tol=1e-9)}.items():
        options = {"init": start, "batch": 1, "linear_solve": lc.linear.Neumann(None, tol=1e-9)}
        layer = lc.export(lc.FixedPoint(hoisted, solver, **options), "torch")
        calls[f"ours torch, {name}"] = lambda layer=layer: gradient(lambda W: layer(W, xt @ Ut.T))
    try:
        from torchdeq import get_deq

        for name in ("fixed_point_iter", "anderson", "broyden"):
            deq = get_deq(ift=True, f_solver=name, b_solver=name, f_tol=1e-9, b_tol=1e-9, f_max_iter=200, b_max_iter=200)
            calls[f"torchdeq {name}, ift"] = lambda deq=deq: gradient(lambda W: deq(lambda z: step(z, W, xt), torch.zeros(B, d))[0][-1])

            def once(deq=deq):  # what does not depend on z taken out of the cell, as in ours
                u = xt @ Ut.T
                return gradient(lambda W: deq(lambda z: hoisted(z, W, u), torch.zeros(B, d))[0][-1])

            calls[f"torchdeq {name}, ift, our cell"] = once
        default = get_deq(f_tol=1e-9, f_max_iter=200)
        calls["torchdeq default (phantom)"] = lambda: gradient(lambda W: default(lambda z: step(z, W, xt), torch.zeros(B, d))[0][-1])
    except ImportError as error:
        print(f"    torchdeq: {error}")
    jW, jU, jx, jc = (jnp.asarray(a) for a in (W, U, x, c))

    def jstep(z, W, x):
        return jnp.tanh(z @ W.T + x @ jU.T)

    layer = lc.export(
        lc.FixedPoint(
            lambda z, W, u: jnp.tanh(z @ W.T + u),
            Picard(tol=1e-9),
            init=np.zeros((B, d)),
            batch=1,
            linear_solve=lc.linear.BiCGSTAB(tol=1e-9),
        ),
        "jax",
    )
    ours = jax.jit(jax.grad(lambda W: (layer(W, jx @ jU.T) * jc).sum()))
    calls["ours jax, Picard"] = lambda: ours(jW).block_until_ready()
    try:
        import jaxopt
        from jaxopt import linear_solve

        for name, options in {
            "default": {},
            "BiCGSTAB": {"implicit_diff_solve": lambda A, b: linear_solve.solve_bicgstab(A, b, tol=1e-9)},
        }.items():
            run = jaxopt.FixedPointIteration(jstep, maxiter=200, tol=1e-9, **options)
            value = jax.jit(jax.grad(lambda W, run=run: (run.run(jnp.zeros((B, d)), W, jx).params * jc).sum()))
            calls[f"jaxopt fixed point, {name}"] = lambda value=value: value(jW).block_until_ready()
    except ImportError as error:
        print(f"    jaxopt: {error}")
    times = rounds(calls, repeats)
    want = want.numpy()
    return {k: (1e3 * t.min(), float(np.linalg.norm(np.asarray(calls[k]()) - want) / np.linalg.norm(want))) for k, t in times.items()}


def memory():
    """{iterations: (megabytes that autograd keeps unrolled, and with our layer)} for batch 32, d = 256."""
    rng = np.random.default_rng(0)
    W, x = torch.tensor(0.4 * rng.standard_normal((256, 256)) / 16, requires_grad=True), torch.tensor(rng.standard_normal((32, 256)))

    def step(z, W, x):
        return torch.tanh(z @ W.T + x)

    def kept(call):
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.update({t.untyped_storage().data_ptr(): t}) or t, lambda t: t):
            result = call()
        del result
        return sum(t.untyped_storage().nbytes() for t in seen.values()) / 2**20

    found = {}
    for steps in DEQ_STEPS:

        def unrolled(steps=steps):
            z = torch.zeros(32, 256)
            for _ in range(steps):
                z = step(z, W, x)
            return z

        solver = Picard(tol=0.0, maxiter=steps)
        layer = lc.export(lc.FixedPoint(step, solver, init=lambda *_: torch.zeros(32, 256), batch=1, tolerance=None), "torch")
        found[steps] = kept(unrolled), kept(lambda layer=layer: layer(W, x))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", default=str(results.PATH))
    options = parser.parse_args()
    lines = [
        "## Implicit differentiation",
        "",
        "Written by `python -m benchmarks.implicit`; milliseconds, the least of interleaved rounds, one core. At small sizes a framework's",
        "own calls are most of a VJP: see the rows written out by hand, which do not check their solve.",
        "",
    ]
    for n, p, share in ((500, 100, 1), (1000, 300, 1), (2000, 1000, 3)):
        print(f"logistic regression {n} x {p}", flush=True)
        table = hypergradients(n, p, max(3, options.repeats // share))
        lines += [
            f"Hyper-gradient of logistic regression, n = {n}, p = {p}:",
            "",
            "| | forward, dense | forward, matrix-free | VJP | VJP / dense | VJP / matrix-free | error |",
            "|-|-|-|-|-|-|-|",
        ]
        lines += [f"| {k} | {f:.2f} | {m:.2f} | {b:.2f} | {b / f:.3f} | {b / m:.3f} | {e:.1e} |" for k, (f, m, b, e) in table.items()]
        lines += [""]
    print("equilibrium layer", flush=True)
    table = equilibrium(options.repeats)
    lines += ["Equilibrium layer z = tanh(W z + U x), batch 32, d = 200, tolerance 1e-9:", "", "| | forward + VJP | error |", "|-|-|-|"]
    lines += [f"| {k} | {t:.2f} | {e:.1e} |" for k, (t, e) in table.items()] + [""]
    found = memory()
    lines += [
        "Memory kept for the backward pass, MiB:",
        "",
        "| iterations | " + " | ".join(map(str, found)) + " |",
        "|-" * (len(found) + 1) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(f"{v[i]:.2f}" for v in found.values()) + " |" for i, name in enumerate(("unrolled", "ours"))]
    text = "\n".join(lines)
    print(text)
    results.write("implicit", text, options.out)


if __name__ == "__main__":
    main()
