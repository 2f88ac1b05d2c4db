"""Derivatives of a compiled problem against finite differences that know their own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.errors import SolveError

_SHRINK = 2.0
_LEVELS = 7
_FIRST = 2e-2  # of the size of the parameter
_CONFIDENCE = 3.0  # multiples of the error estimate that a difference may be off


@dataclass(frozen=True)
class Comparison:
    """The derivative of one output along one direction of one parameter; arrays have the batch shape.

    Attributes:
        parameter: Name of the parameter that moved.
        output: Name of the output.
        error: Largest entry of (derivative - finite difference), over one plus the largest entry of the difference.
        uncertainty: Error estimate of the finite difference on the same scale; infinite where it could not be formed.
    """

    parameter: str
    output: str
    error: np.ndarray
    uncertainty: np.ndarray

    def verdict(self, tolerance: float) -> np.ndarray:
        """Per instance "ok", "wrong", or "unknown" where the difference itself is not known to the tolerance."""
        agrees = self.error <= tolerance + np.minimum(_CONFIDENCE * self.uncertainty, tolerance)
        sharp = _CONFIDENCE * self.uncertainty <= tolerance
        apart = self.error > tolerance + _CONFIDENCE * self.uncertainty
        return np.where(agrees, "ok", np.where(sharp | (apart & np.isfinite(self.uncertainty)), "wrong", "unknown"))


@dataclass(frozen=True)
class Gradients:
    """The comparison of all derivatives.

    Attributes:
        comparisons: One per parameter and output.
        adjointness: |<g, J h> - <J'g, h>| over the size of its terms, the largest of the parameters.
        unique: Batch shape, False where the program has many solutions and differences may follow another one.
        tolerance: What was accepted.
    """

    comparisons: tuple[Comparison, ...]
    adjointness: float
    unique: np.ndarray
    tolerance: float

    @property
    def apart(self) -> np.ndarray:
        """True where a derivative contradicts a finite difference that is sharp enough to tell; batch shape."""
        verdicts = [c.verdict(self.tolerance) == "wrong" for c in self.comparisons]
        return np.any(verdicts, axis=0) if verdicts else np.zeros(self.unique.shape, bool)

    @property
    def wrong(self) -> np.ndarray:
        """Where `apart` cannot be explained by a program with many solutions; batch shape."""
        return self.apart & self.unique

    @property
    def ok(self) -> bool:
        """No derivative is wrong, and forward and reverse mode are each other's transposes."""
        return not self.wrong.any() and self.adjointness <= self.tolerance

    def __str__(self) -> str:
        """A table: one line per parameter and output."""
        lines = [f"derivatives against Richardson differences (tolerance {self.tolerance:g})"]
        for c in self.comparisons:
            verdicts = c.verdict(self.tolerance)
            counts = ", ".join(f"{int((verdicts == v).sum())} {v}" for v in ("ok", "unknown", "wrong") if (verdicts == v).any())
            worst = _largest(c.error), _largest(c.uncertainty)
            lines.append(f"  d {c.output} / d {c.parameter}: error {worst[0]:.1e}, known to {worst[1]:.1e}: {counts or 'no instance'}")
        lines.append(f"  forward against reverse mode: {self.adjointness:.1e}")
        excused = int((self.apart & ~self.unique).sum())
        if excused:
            lines.append(f"  {excused} instances disagree where the program has many solutions: their derivative is one of many")
        return "\n".join(lines)


def gradients(compiled: Any, arrays: Sequence[Any], *, tolerance: float = 1e-5, seed: int = 0) -> Gradients:
    """Hold JVP and VJP of a compiled problem to central differences with Richardson extrapolation.

    Each parameter moves alone along a random direction that respects its declared attributes; all instances of the batch
    move at once. The step that extrapolates best is chosen for each instance and output (Ridders 1982), and its error
    estimate decides whether a disagreement means anything: across a kink the difference does not settle and says so.

    Args:
        compiled: A `CompiledProblem`.
        arrays: One array per parameter, as for `evaluate`.
        tolerance: Accepted relative error.
        seed: Of the random directions.

    Returns:
        The comparison; `print` it for a table.

    Cost:
        14 solves of the batch per parameter.
    """
    rng = np.random.default_rng(seed)
    values = [np.asarray(a, dtype=float) for a in arrays]
    evaluation = _evaluate(compiled, values)
    if isinstance(evaluation, SolveError):
        raise evaluation
    comparisons, gap = [], 0.0
    cotangents = [rng.standard_normal(o.shape) for o in evaluation.outputs]
    pulled = evaluation.vjp(cotangents)
    for k, spec in enumerate(compiled.parameters):
        direction = _direction(spec, values[k], rng)
        tangents = [direction if i == k else None for i in range(len(values))]
        pushed = evaluation.jvp(tangents)
        forward = sum(float(np.sum(g * t)) for g, t in zip(cotangents, pushed, strict=True))
        reverse = float(np.sum(pulled[k] * direction))
        size = sum(float(np.sum(np.abs(g * t))) for g, t in zip(cotangents, pushed, strict=True))
        gap = max(gap, abs(forward - reverse) / (1.0 + size))
        differences = _richardson(lambda step, k=k, d=direction: _outputs(compiled, values, k, d, step), evaluation.outputs)
        for spec_out, tangent, (difference, doubt) in zip(compiled.outputs, pushed, differences, strict=True):
            axes = tuple(range(tangent.ndim - len(spec_out.shape), tangent.ndim))
            scale = 1.0 + np.abs(difference).max(axis=axes, initial=0.0)
            error = np.abs(tangent - difference).max(axis=axes, initial=0.0) / scale
            comparisons.append(Comparison(spec.name, spec_out.name, error, doubt.max(axis=axes, initial=0.0) / scale))
    return Gradients(tuple(comparisons), gap, np.asarray(evaluation.info.unique), tolerance)


def _evaluate(compiled: Any, values: Sequence[np.ndarray]) -> Any:
    try:
        return compiled.evaluate(values)
    except SolveError as error:
        return error


def _outputs(compiled: Any, values: Sequence[np.ndarray], k: int, direction: np.ndarray, step: float) -> tuple[np.ndarray, ...]:
    moved = [v + step * direction if i == k else v for i, v in enumerate(values)]
    found = _evaluate(compiled, moved)
    source: Any = found.solution if isinstance(found, SolveError) else found
    return source.outputs


def _direction(spec: Any, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random direction of the parameter's own size along which it keeps its attributes for small steps."""
    d = rng.standard_normal(value.shape)
    declared = set(spec.attributes)
    if declared & {"nonneg", "nonpos", "pos", "neg"}:
        return d * value / 2
    if declared & {"symmetric", "PSD", "NSD"}:
        d = (d + np.swapaxes(d, -1, -2)) / 2
    if declared & {"PSD", "NSD"}:  # congruence keeps the signature: (I + tE)' M (I + tE) to first order
        return (value @ d + d @ value) / (2 * value.shape[-1])
    if "diag" in declared:
        d = d * np.eye(value.shape[-1])
    return d * max(1.0, float(np.abs(value).max(initial=0.0))) / 2


def _richardson(f: Callable[[float], tuple[np.ndarray, ...]], center: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Derivative of each output at 0 and its error estimate, entry by entry.

    Central differences with steps h, h/2, ... have errors in even powers of h; the tableau removes one power per column.
    The entry whose neighbours agree best is taken (Ridders 1982). At a kink central differences settle too, between the
    two slopes: half the difference of the one-sided slopes, extrapolated to h = 0, is added to the estimate.
    """
    best = [(np.full(o.shape, np.nan), np.full(o.shape, np.inf)) for o in center]
    rows: list[list[np.ndarray]] = [[] for _ in center]
    bends: list[list[np.ndarray]] = [[] for _ in center]
    step = _FIRST
    for _ in range(_LEVELS):
        for o, (up, down) in enumerate(zip(f(step), f(-step), strict=True)):
            bends[o].append((up + down - 2 * center[o]) / (2 * step))
            row, before = [(up - down) / (2 * step)], rows[o]
            for j, coarse in enumerate(before):
                factor = _SHRINK ** (2 * j + 2)
                row.append((factor * row[j] - coarse) / (factor - 1))
                doubt = np.maximum(np.abs(row[-1] - row[-2]), np.abs(row[-1] - coarse))
                value, least = best[o]
                best[o] = np.where(doubt < least, row[-1], value), np.minimum(doubt, least)
            rows[o] = row
        step /= _SHRINK
    kinks = [np.abs(_SHRINK * b[-1] - b[-2]) / (_SHRINK - 1) for b in bends]
    return [(value, doubt + np.where(np.isnan(kink), np.inf, kink)) for (value, doubt), kink in zip(best, kinks, strict=True)]


def _largest(a: np.ndarray) -> float:
    return float(a[~np.isnan(a)].max()) if np.any(~np.isnan(a)) else float("nan")
