"""Projections onto transport polytopes {P >= 0, P 1 = rows, P'1 = columns}, Euclidean and entropic (Sinkhorn)."""

from __future__ import annotations

from typing import Any

from layercompiler.errors import ShapeError
from layercompiler.functions.iteration import iterate
from layercompiler.functions.operands import infeasible, operands, product, square_matrices, transposed


def optimal_transport(cost: Any, rows: Any, columns: Any, epsilon: Any = 0.1, limit: int = 500) -> Any:
    """The plan P that minimises sum(P * cost) + epsilon * sum(P (log P - 1)) with marginals rows and columns.

    Sinkhorn's iteration in logarithms, with Newton's method on the marginals, finds the potentials to full precision; the derivative is
    that
    of the marginal equations, exact to second order, whatever the number of iterations.

    Args:
        cost: (..., m, n).
        rows: (..., m), positive, with the sum of columns; both are differentiated along changes that keep the sums equal. Where
            the sums differ by more than 1e-6 of their size the plan is NaN.
        columns: (..., n), positive.
        epsilon: (...), positive.
        limit: Most steps; a step is one of Sinkhorn's and one of Newton's. Inside torch.func.vmap, which can read no numbers, 60 are taken.

    Returns:
        (..., m, n). NaN where the marginals are not met to 1e-8 of their size (1e-3 in float32).
    Units and scaling: epsilon is in the units of cost.
    Cost: O(mn min(m, n)) for a step, of which ten or twenty are needed (more where epsilon is far below the costs), and for derivatives.
    Source: Cuturi 2013; Luise, Rudi, Pontil, Ciliberto 2018 (derivatives).
    """
    xp, cost, rows, columns, epsilon = operands(cost, rows, columns, epsilon)
    _check(cost, rows, columns)
    if cost.shape[-1] > cost.shape[-2]:  # the linear systems are of the number of columns
        return transposed(xp, optimal_transport(transposed(xp, cost), columns, rows, epsilon, limit))
    scores = -cost / epsilon[..., None, None]
    f, g = _potentials(xp, xp.stop_gradient(scores), xp.stop_gradient(rows), xp.stop_gradient(columns), limit)
    for _ in range(2):  # value unchanged; each step doubles the order to which derivatives are exact
        f, g = _newton(xp, scores, rows, columns, f, g)
    P = xp.exp(scores + f[..., :, None] + g[..., None, :])
    fixed, tolerance = xp.stop_gradient(P), 1e-8 if "64" in str(P.dtype) else 1e-3
    missed = xp.max(xp.abs(xp.sum(fixed, axis=-1) - rows), axis=-1) + xp.max(xp.abs(xp.sum(fixed, axis=-2) - columns), axis=-1)
    unmet = ~(missed <= tolerance * xp.max(rows, axis=-1))
    return infeasible(xp, unmet[..., None, None], P)


def _potentials(xp: Any, scores: Any, rows: Any, columns: Any, limit: int) -> tuple[Any, Any]:
    """The potentials f (..., m) and g (..., n) at which exp(scores + f + g) has the marginals.

    Scores are scaled down until they are tame, and up again by doubling as each problem is solved; a step is one of Sinkhorn's and
    one of Newton's, no longer than 1.
    """
    log_rows, log_columns = xp.log(rows), xp.log(columns)
    scores = scores + xp.zeros_like(log_rows)[..., :, None] + xp.zeros_like(log_columns)[..., None, :]
    spread = xp.max(scores, axis=(-2, -1)) - xp.min(scores, axis=(-2, -1))
    part = (4.0 / xp.maximum(spread, 4.0 * xp.ones_like(spread)))[..., None]
    enough = 1e-13 if "64" in str(scores.dtype) else 1e-5

    def rowwise(part: Any, g: Any) -> Any:
        return log_rows - xp.logsumexp(part[..., None] * scores + g[..., None, :], axis=-1)

    def body(f: Any, g: Any, part: Any, moved: Any) -> tuple[Any, ...]:
        tame = part[..., None] * scores
        swept = log_columns - xp.logsumexp(tame + f[..., :, None], axis=-2)
        _, g1 = _newton(xp, tame, rows, columns, rowwise(part, swept), swept)
        size = xp.max(xp.abs(g1 - swept), axis=-1, keepdims=True)
        sound = size < xp.inf
        size = xp.maximum(xp.where(sound, size, xp.ones_like(size)), xp.ones_like(size))
        g1 = swept + xp.where(sound, g1 - swept, xp.zeros_like(swept)) / size
        moved = xp.max(xp.abs(g1 - g), axis=-1, keepdims=True)
        moved = moved / (1.0 + xp.max(xp.abs(g1), axis=-1, keepdims=True))
        after = xp.where(moved < 1e-2, xp.minimum(2.0 * part, xp.ones_like(part)), part)
        moved = xp.where(after > part, xp.ones_like(moved), moved)
        g1 = g1 * (after / part)
        return rowwise(after, g1), g1, after, moved

    g = xp.zeros_like(scores[..., 0, :])
    state = rowwise(part, g), g, part, xp.ones_like(part)
    f, g, _, _ = iterate(xp, lambda f, g, part, moved: xp.any(moved > enough), body, state, limit, 60)
    return f, g


def _newton(xp: Any, scores: Any, rows: Any, columns: Any, f: Any, g: Any) -> tuple[Any, Any]:
    """A step for the marginal equations; the last g stays, since adding to f what is taken from g changes nothing."""
    P = xp.exp(scores + f[..., :, None] + g[..., None, :])
    r, c = xp.sum(P, axis=-1), xp.sum(P, axis=-2)
    lead = P[..., :-1] / r[..., None]
    shift = (1e-15 if "64" in str(P.dtype) else 1e-7) * xp.max(xp.stop_gradient(c), axis=-1)[..., None, None]
    diagonal = c[..., None, :-1] + shift  # a plan close to an assignment has a matrix close to singular
    matrix = xp.eye_like(P, P.shape[-1] - 1) * diagonal - xp.matmul(transposed(xp, P[..., :-1]), lead)
    right = (columns - c)[..., :-1] - xp.sum(lead * (rows - r)[..., None], axis=-2)
    dg = xp.linalg.solve(matrix, right[..., None])[..., 0]
    df = (rows - r) / r - product(xp, lead, dg)
    return f + df, g + xp.concat([dg, xp.zeros_like(dg[..., :1])], axis=-1)


def project_kl_transport(x: Any, rows: Any, columns: Any) -> Any:
    """The plan with marginals rows and columns nearest to exp(x) in Kullback-Leibler divergence; see `optimal_transport`."""
    _, x, rows, columns = operands(x, rows, columns)
    return optimal_transport(-x, rows, columns, 1.0)


def project_kl_birkhoff(x: Any) -> Any:
    """The doubly stochastic matrix nearest to exp(x) (..., n, n) in Kullback-Leibler divergence: Sinkhorn's operator.

    Source: Mena, Belanger, Linderman, Snoek 2018.
    """
    xp, x = operands(x)
    square_matrices(x)
    ones = xp.stop_gradient(xp.ones_like(x[..., 0]))
    return optimal_transport(-x, ones, ones, 1.0)


def project_transport(x: Any, rows: Any, columns: Any) -> Any:
    """The plan with marginals rows and columns nearest to x in the Euclidean norm.

    P = max(x + f 1' + 1 g', 0). A semismooth Newton method with line search on the dual finds the support; on it, the
    potentials solve a linear
    system, whose derivative is exact (the projection is piecewise linear).

    Args:
        x: (..., m, n).
        rows: (..., m), not negative, with the sum of columns; both are differentiated along changes that keep the sums equal.
        columns: (..., n), not negative.

    Returns:
        (..., m, n). NaN where the marginals are not met to 1e-8 of their size.
    Differentiability: not where an entry of x + f 1' + 1 g' is 0; there, the derivative with that entry of P at 0.
    Cost: O((m + n)^3) for a Newton step, of which about ten are needed; as much for a derivative.
    """
    xp, x, rows, columns = operands(x, rows, columns)
    _check(x, rows, columns)
    m, n = x.shape[-2:]
    zero = xp.zeros_like(x[..., :1, :1] + rows[..., :1, None] + columns[..., :1, None])
    x, rows, columns = x + zero, rows + zero[..., 0], columns + zero[..., 0]
    fixed, r, c = (xp.stop_gradient(v) for v in (x, rows, columns))
    # The duals depend on scale; a common shift of x is a shift of f.
    scale = 1.0 + xp.max(xp.abs(r), axis=-1, keepdims=True)
    dual = xp.concat([r / n, 0.0 * c], axis=-1)
    tolerance, floor = (1e-13, 1e-12) if "64" in str(x.dtype) else (1e-6, 1e-6)

    def gradient(dual: Any) -> tuple[Any, Any, Any]:
        P = fixed + dual[..., :m, None] + dual[..., None, m:]
        alive = P > 0
        P = xp.where(alive, P, xp.zeros_like(P))
        missed = xp.concat([xp.sum(P, axis=-1) - r, xp.sum(P, axis=-2) - c], axis=-1)
        objective = 0.5 * xp.sum(P * P, axis=(-2, -1)) - xp.sum(dual[..., :m] * r, axis=-1) - xp.sum(dual[..., m:] * c, axis=-1)
        return missed, alive, objective

    def body(dual: Any, error: Any) -> tuple[Any, Any]:
        missed, alive, objective = gradient(dual)
        size = xp.max(xp.abs(missed), axis=-1, keepdims=True) / scale
        H = _support_matrix(xp, alive, fixed)
        shift = floor + 1e-3 * xp.minimum(size, xp.ones_like(size))
        way = -xp.linalg.solve(H + shift[..., None] * xp.eye_like(H, m + n), missed[..., None])[..., 0]
        slope = xp.sum(way * missed, axis=-1)
        best = xp.zeros_like(dual)
        found = slope > xp.abs(slope)  # none yet
        step = xp.ones_like(slope)
        for _ in range(12):
            trial = gradient(dual + step[..., None] * way)
            good = (trial[2] <= objective + 1e-4 * step * slope) | (
                xp.max(xp.abs(trial[0]), axis=-1) <= 0.5 * xp.max(xp.abs(missed), axis=-1)
            )
            fresh = good & ~found
            best = xp.where(fresh[..., None], step[..., None] * way, best)
            found = found | good
            step = 0.5 * step
        dual = dual + xp.where(found[..., None], best, step[..., None] * way)
        return dual, xp.abs(gradient(dual)[0]) / scale

    far = xp.ones_like(dual)
    dual, _ = iterate(xp, lambda dual, error: xp.any(error > tolerance), body, (dual, far), 60)
    _, alive, _ = gradient(dual)
    inside = xp.where(alive, x + dual[..., :m, None] + dual[..., None, m:], xp.zeros_like(x))
    missed = xp.concat([xp.sum(inside, axis=-1) - rows, xp.sum(inside, axis=-2) - columns], axis=-1)
    H = _support_matrix(xp, alive, fixed)
    w, Q = xp.linalg.eigh(H)
    sound = w > 1e-9 * (m + n)
    w = xp.where(sound, 1.0 / xp.where(sound, w, xp.ones_like(w)), xp.zeros_like(w))
    move = -product(xp, Q * w[..., None, :], xp.sum(Q * missed[..., :, None], axis=-2))
    P = xp.where(alive, inside + move[..., :m, None] + move[..., None, m:], xp.zeros_like(x))
    fixed = xp.stop_gradient(P)
    wrong = xp.max(xp.abs(xp.sum(fixed, axis=-1) - r), axis=-1) + xp.max(xp.abs(xp.sum(fixed, axis=-2) - c), axis=-1)
    unmet = ~(wrong <= (1e-8 if "64" in str(x.dtype) else 1e-3) * scale[..., 0])
    return infeasible(xp, unmet[..., None, None], P)


def project_birkhoff(x: Any) -> Any:
    """The doubly stochastic matrix nearest to x (..., n, n) in the Euclidean norm; see `project_transport`."""
    xp, x = operands(x)
    square_matrices(x)
    ones = xp.stop_gradient(xp.ones_like(x[..., 0]))
    return project_transport(x, ones, ones)


def _support_matrix(xp: Any, alive: Any, like: Any) -> Any:
    """(diag(S1) S; S' diag(S'1)) of a support S (..., m, n)."""
    S = xp.where(alive, xp.ones_like(like), xp.zeros_like(like))
    m, n = S.shape[-2:]
    top = xp.concat([xp.sum(S, axis=-1, keepdims=True) * xp.eye_like(S, m), S], axis=-1)
    low = xp.concat([transposed(xp, S), xp.sum(S, axis=-2)[..., None] * xp.eye_like(S, n)], axis=-1)
    return xp.concat([top, low], axis=-2)


def _check(cost: Any, rows: Any, columns: Any) -> None:
    if len(cost.shape) < 2 or rows.shape[-1:] != cost.shape[-2:-1] or columns.shape[-1:] != cost.shape[-1:]:
        got = ", ".join(str(tuple(v.shape)) for v in (cost, rows, columns))
        raise ShapeError("matrix and marginals do not fit", expected="(..., m, n), (..., m), (..., n)", got=got)
