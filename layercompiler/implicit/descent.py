"""Solvers of minimisation problems on flat arrays: gradient and proximal steps, mirror descent, block coordinates, L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from layercompiler.arrays import Arrays
from layercompiler.implicit.compaction import Instances, loop
from layercompiler.implicit.iterations import Map, Result, Solver, norm


@dataclass(frozen=True)
class Gradient(Solver):
    """(Proximal) gradient steps y <- prox(y - t grad f(y), t), accelerated if wanted, with restarts.

    Args:
        step: Step length t, at most 1 / (Lipschitz constant of the gradient); None to find it by backtracking at every step.
        accelerated: Nesterov's momentum (FISTA), restarted where it points uphill.
        tol: Stop when |y - prox(y - t grad f(y), t)| <= tol * t * (1 + |y|).
        maxiter: Most iterations.

    Source: Beck & Teboulle 2009; O'Donoghue & Candes 2015 (adaptive restart).
    """

    step: float | None = None
    accelerated: bool = True
    tol: float = 1e-10
    maxiter: int = 5000
    kind = "minimum"

    def run(self, xp: Arrays, G: Map, y: Any, batch: int, prox: Callable[[Any, Any], Any] | None = None, f: Map | None = None) -> Result:
        """G is the gradient; f, the value per instance, is needed if step is None."""
        P, value_of = prox or Instances(lambda v, t: v, (), (1.0,)), f or Instances(lambda v: v, ())
        axes = tuple(range(batch, len(y.shape)))

        def dot(a: Any, b: Any) -> Any:
            return xp.sum(a * b, axis=axes, keepdims=True) if axes else a * b

        def advance(maps: tuple[Any, ...], v: Any, t: Any) -> tuple[Any, Any]:
            G, P, f = maps
            g = G(v)

            def value(v: Any) -> Any:
                return xp.reshape(f(v), (*v.shape[:batch], *(1,) * len(axes)))

            if self.step is not None:
                return P(v - t * g, t), t
            at = value(v)

            def test(t: Any) -> Any:
                new = P(v - t * g, t)
                d = new - v
                # the slack is rounding: near the solution both sides agree to the last digit
                return value(new) > at + dot(g, d) + dot(d, d) / (2 * t) + 1e-14 * (1 + xp.abs(at))

            def shrink(i: Any, t: Any, high: Any) -> tuple[Any, ...]:
                t = xp.where(high, 0.5 * t, t)
                return i + 1, t, test(t)

            _, t, _ = xp.while_loop(lambda i, t, high: (i < 60) & xp.any(high), shrink, (xp.new(0), t, test(t)))
            return P(v - t * g, t), t

        def moving(k: Any, y: Any, z: Any, a: Any, t: Any, e: Any) -> Any:
            return e > self.tol * (1 + norm(xp, y, batch))

        def step(maps: tuple[Any, ...], k: Any, y: Any, z: Any, a: Any, t: Any, e: Any) -> tuple[Any, ...]:
            new, t = advance(maps, z, t)
            moved = norm(xp, new - z, batch) / t
            active = moving(k, y, z, a, t, e)
            new = xp.where(active, new, y)
            after = 0.5 * (1 + xp.sqrt(1 + 4 * a * a))
            uphill = dot(z - new, new - y) > 0
            after = xp.where(uphill, xp.ones_like(a), after)
            momentum = xp.where(uphill, xp.zeros_like(a), (a - 1) / after)
            ahead = new + momentum * (new - y) if self.accelerated else new
            return k + 1, new, ahead, after, t, xp.where(active, moved, e)

        first = norm(xp, y, batch) * 0
        t = first + (1.0 if self.step is None else self.step)
        start = (xp.zero, y, y, first + 1.0, t, first + float("inf"))
        k, y, _, _, _, e = loop(xp, (G, P, value_of), moving, step, start, batch, self.maxiter)
        return Result(y, e, k)


@dataclass(frozen=True)
class MirrorDescent(Solver):
    """Exponentiated gradient on products of simplices: y <- softmax(log y - t grad f(y)) over the last dimension.

    Args:
        step: Step length t.
        tol: Stop when |y - next| <= tol * t.
        maxiter: Most iterations.
    """

    step: float = 1.0
    tol: float = 1e-12
    maxiter: int = 5000
    kind = "minimum"

    def run(self, xp: Arrays, G: Map, y: Any, batch: int, **_: Any) -> Result:
        """G is the gradient; y is inside the simplex."""
        return _repeat(xp, (G,), lambda G, v: kl_step(xp, v, G(v), self.step), y, batch, self.tol * self.step, self.maxiter)


@dataclass(frozen=True)
class BlockCoordinate(Solver):
    """Cyclic proximal steps on the rows of the unknown (batch..., blocks, ...), each with its own step length.

    Args:
        step: Step length, or one per block.
        tol: Stop when a sweep moves less than tol * (1 + |y|).
        maxiter: Most sweeps.
    """

    step: Any = 1.0
    tol: float = 1e-12
    maxiter: int = 2000
    kind = "minimum"

    def run(self, xp: Arrays, G: Map, y: Any, batch: int, prox: Callable[[Any, Any], Any] | None = None, **_: Any) -> Result:
        """G is the gradient; prox acts on the whole unknown and separates over blocks."""
        count = int(y.shape[batch])
        masks = [xp.reshape(xp.eye_like(y, count)[i], (count, *(1,) * (len(y.shape) - batch - 1))) for i in range(count)]
        steps = xp.reshape(xp.zeros_like(xp.eye_like(y, count)[0]) + self.step, (count, *(1,) * (len(y.shape) - batch - 1)))
        P = prox or Instances(lambda v, t: v, (), (1.0,))

        def sweep(G: Map, P: Any, v: Any) -> Any:
            for mask in masks:
                v = v + mask * (P(v - steps * G(v), steps) - v)
            return v

        return _repeat(xp, (G, P), sweep, y, batch, self.tol, self.maxiter)


@dataclass(frozen=True)
class LBFGS(Solver):
    """Limited-memory BFGS with an Armijo line search, per instance.

    Args:
        memory: Number of remembered pairs.
        tol: Stop when |grad f| <= tol * (1 + |y|).
        maxiter: Most iterations.

    Source: Liu & Nocedal 1989.
    """

    memory: int = 10
    tol: float = 1e-10
    maxiter: int = 1000
    kind = "minimum"

    def run(self, xp: Arrays, G: Map, y: Any, batch: int, f: Map | None = None, **_: Any) -> Result:
        """G is the gradient, f the value per instance."""
        axes = tuple(range(batch, len(y.shape)))
        m = self.memory

        def dot(a: Any, b: Any) -> Any:
            return xp.sum(a * b, axis=axes, keepdims=True) if axes else a * b

        def direction(g: Any, S: Any, Y: Any, rho: Any) -> Any:
            q, alphas = g, []
            for i in reversed(range(m)):
                alphas.append(rho[i] * dot(S[i], q))
                q = q - alphas[-1] * Y[i]
            curvature = dot(Y[m - 1], Y[m - 1]) * rho[m - 1]
            q = xp.where(curvature > 0, q / xp.where(curvature > 0, curvature, xp.ones_like(curvature)), q)
            for i in range(m):
                q = q + S[i] * (alphas[m - 1 - i] - rho[i] * dot(Y[i], q))
            return -q

        def moving(k: Any, y: Any, g: Any, e: Any, *memory: Any) -> Any:
            return e > self.tol * (1 + norm(xp, y, batch))

        def step(maps: tuple[Any, ...], k: Any, y: Any, g: Any, e: Any, *memory: Any) -> tuple[Any, ...]:
            G, f = maps
            S, Y, rho = memory[:m], memory[m : 2 * m], memory[2 * m :]

            def value(v: Any) -> Any:
                return xp.reshape(f(v), (*v.shape[:batch], *(1,) * len(axes)))

            d = direction(g, S, Y, rho)
            slope = dot(g, d)
            d = xp.where(slope < 0, d, -g)
            slope = dot(g, d)
            active, at = moving(k, y, g, e), value(y)

            def high(t: Any) -> Any:
                return active & ~(value(y + t * d) <= at + 1e-4 * t * slope + 1e-14 * (1 + xp.abs(at)))

            def shrink(i: Any, t: Any, bad: Any) -> tuple[Any, ...]:
                t = xp.where(bad, 0.5 * t, t)
                return i + 1, t, high(t)

            first = xp.ones_like(e)
            _, t, _ = xp.while_loop(lambda i, t, bad: (i < 50) & xp.any(bad), shrink, (xp.new(0), first, high(first)))
            new = xp.where(active, y + t * d, y)
            grad = G(new)
            s, q = new - y, grad - g
            sq = dot(s, q)
            keep = sq > 1e-16 * xp.sqrt(dot(s, s) * dot(q, q))
            inverse = xp.where(keep, 1.0 / xp.where(keep, sq, xp.ones_like(sq)), xp.zeros_like(sq))
            return k + 1, new, grad, norm(xp, grad, batch), *S[1:], s, *Y[1:], q, *rho[1:], inverse

        g = G(y)
        e = norm(xp, g, batch)
        memory = [xp.zeros_like(y)] * (2 * m) + [xp.zeros_like(e)] * m
        found = loop(xp, (G, f), moving, step, (xp.zero, y, g, e, *memory), batch, self.maxiter)
        return Result(found[1], found[3], found[0])


def kl_step(xp: Arrays, y: Any, g: Any, t: Any) -> Any:
    """softmax(log y - t g) over the last dimension."""
    z = xp.log(y) - t * g
    z = z - xp.max(z, axis=-1, keepdims=True)
    w = xp.exp(z)
    return w / xp.sum(w, axis=-1, keepdims=True)


def _repeat(xp: Arrays, maps: tuple[Any, ...], T: Callable[..., Any], y: Any, batch: int, tol: float, limit: int) -> Result:
    """Steps y <- T(*maps, y)."""

    def moving(k: Any, y: Any, e: Any) -> Any:
        return e > tol * (1 + norm(xp, y, batch))

    def step(maps: tuple[Any, ...], k: Any, y: Any, e: Any) -> tuple[Any, ...]:
        new, active = T(*maps, y), moving(k, y, e)
        return k + 1, xp.where(active, new, y), xp.where(active, norm(xp, new - y, batch), e)

    k, y, e = loop(xp, maps, moving, step, (xp.zero, y, norm(xp, y, batch) * 0 + float("inf")), batch, limit)
    return Result(y, e, k)
