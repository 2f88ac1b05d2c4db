"""How do 128 packed soft spheres move when their diameters change? Forward-mode derivatives of an energy minimum.

Two kinds of disks (diameters 1 and 0.6) in a periodic box push each other apart; the FIRE method and a few steps of Newton's find a minimum
of the energy. The derivative of all positions along a change of the smaller diameter is one forward-mode product through the implicit
rule. Blondel et al. 2022 (section 4.4) found that differentiating the steps of FIRE does not converge; how far it is
off here after how many
steps is shown. Takes half a minute and writes implicit_spheres.png.
"""

import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)
COUNT, STEPS, DENSITY = 128, 3000, 1.0
LARGE, SMALL = 1.0, 0.6
SIDE = float(np.sqrt(COUNT / 2 * np.pi / 4 * (LARGE**2 + SMALL**2) / DENSITY))


def energy(x, small):
    """Soft spheres: (1 - r / d)^2 / 2 for every pair at r < d, the mean of their diameters."""
    x = x.reshape(COUNT, 2)
    diameter = jnp.where(jnp.arange(COUNT) < COUNT // 2, LARGE, small)
    between = x[:, None] - x[None]
    between = between - SIDE * jnp.round(between / SIDE)
    square = jnp.sum(between**2, -1) + jnp.eye(COUNT)
    reach = 0.5 * (diameter[:, None] + diameter[None])
    touching = (square < reach**2) & ~jnp.eye(COUNT, dtype=bool)
    gap = 1.0 - jnp.sqrt(jnp.where(touching, square, 1.0)) / reach
    return 0.25 * jnp.sum(jnp.where(touching, gap**2, 0.0))


force = jax.grad(energy)


def residual(x, small):
    """Zero at a minimum; the mean position, which no force holds, stays where it is."""
    drift = jnp.mean(x.reshape(COUNT, 2), 0) - SIDE / 2
    return force(x, small) + jnp.tile(drift, COUNT)


def fire(x, small, steps=STEPS):
    """Fast inertial relaxation: a damped motion that is stopped whenever it goes uphill (Bitzek et al. 2006)."""

    def body(_, state):
        x, v, dt, alpha, good = state
        f = -residual(x, small)
        v = v + dt * f
        power = jnp.vdot(f, v)
        size = jnp.sqrt(jnp.vdot(v, v) / (jnp.vdot(f, f) + 1e-300))
        v = (1 - alpha) * v + alpha * f * size
        uphill = power <= 0
        quick = good > 5
        dt = jnp.where(uphill, 0.5 * dt, jnp.where(quick, jnp.minimum(1.1 * dt, 0.1), dt))
        alpha = jnp.where(uphill, 0.1, jnp.where(quick, 0.99 * alpha, alpha))
        v = jnp.where(uphill, 0.0, v)
        return x + dt * v, v, dt, alpha, jnp.where(uphill, 0, good + 1)

    return jax.lax.fori_loop(0, steps, body, (x, jnp.zeros_like(x), 0.05, 0.1, 0))[0]


def polish(x, small):
    """Newton's method, from where FIRE leaves off to rounding."""
    return jax.lax.fori_loop(0, 6, lambda _, x: x - jnp.linalg.solve(jax.jacfwd(residual)(x, small), residual(x, small)), x)


def main():
    """Minimise, differentiate three ways, draw."""
    start = jnp.asarray(np.random.default_rng(0).uniform(0, SIDE, 2 * COUNT))
    start = start - jnp.tile(jnp.mean(start.reshape(COUNT, 2), 0) - SIDE / 2, COUNT)
    minimum = jax.jit(lambda x: polish(fire(x, SMALL), SMALL))(start)
    size = float(jnp.linalg.norm(residual(minimum, SMALL)))
    print(f"energy {float(energy(start, SMALL)):.2f} -> {float(energy(minimum, SMALL)):.5f}, force left {size:.0e}")
    curvature = jnp.linalg.eigvalsh(jax.jacfwd(residual)(minimum, SMALL))
    print(f"stiffness from {float(curvature[0]):.1e} to {float(curvature[-1]):.1e}")

    solve = lc.custom_root(residual, structure=["symmetric"])(lambda init, small: polish(fire(init, small), small))
    tangent = jax.jit(lambda d: jax.jvp(lambda d: solve(start, d), (d,), (1.0,))[1])
    implicit = tangent(SMALL).block_until_ready()
    began = time.perf_counter()
    implicit = tangent(SMALL).block_until_ready()
    took = time.perf_counter() - began

    nudged = jax.jit(lambda d: polish(minimum, d))  # the same minimum, followed
    h = 1e-5
    difference = (8 * (nudged(SMALL + h) - nudged(SMALL - h)) - (nudged(SMALL + 2 * h) - nudged(SMALL - 2 * h))) / (12 * h)
    scale = float(jnp.linalg.norm(difference))
    counts, errors = (250, 500, 1000, 2000), []
    for count in counts:
        unrolled = jax.jit(lambda d, count=count: jax.jvp(lambda d: fire(start, d, count), (d,), (1.0,))[1])(SMALL)
        errors.append(float(jnp.linalg.norm(unrolled - difference)) / scale)
    off = float(jnp.linalg.norm(implicit - difference)) / scale
    print(f"implicit derivative of {2 * COUNT} coordinates: {took:.1f} s with the minimisation, off differences by {off:.1e}")
    print("unrolled FIRE after", ", ".join(f"{c} steps: {e:.1e}" for c, e in zip(counts, errors, strict=True)))
    print("(paper: the unrolled derivative does not converge; torch peers have no forward mode)")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2))
    x = np.mod(np.asarray(minimum).reshape(COUNT, 2), SIDE)
    for i, (a, b) in enumerate(x):
        left.add_patch(
            plt.Circle((a, b), (LARGE if i < COUNT // 2 else SMALL) / 2, color="C0" if i < COUNT // 2 else "C1", alpha=0.5, lw=0)
        )
    move = np.asarray(implicit).reshape(COUNT, 2)
    left.quiver(*x.T, *move.T, width=4e-3)
    left.set(xlim=(0, SIDE), ylim=(0, SIDE), title="motion as the small disks grow", xticks=[], yticks=[])
    left.set_aspect("equal")
    right.semilogy(counts, errors, "o-", label="differentiating FIRE")
    right.axhline(max(off, 1e-16), color="k", linestyle="--", label="implicit rule")
    right.set(xlabel="steps", ylabel="relative error of the derivative")
    right.legend()
    figure.tight_layout()
    figure.savefig("implicit_spheres.png", dpi=70)


if __name__ == "__main__":
    main()
