"""What the jax primitives call on the host: batches of instances in and out, as numpy arrays.

Every operand of one call has the same number of batch axes; an axis has length 1 where the operand is shared by all instances.
Derivatives are those of each instance. A result of `vjp` or `hvp` whose batch axis has length 1 is summed over that axis, which is
the transpose of sharing. Axes along which neither the parameters nor the point vary (jax.jacrev, jax.hessian) are a loop over right-hand
sides of one factorization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from layercompiler.jax.direct import Direct
from layercompiler.jax.native import Function
from layercompiler.memory import Memory
from layercompiler.plan.native import Native

Arrays = Sequence[np.ndarray]
Dims = tuple[int, ...]
Some = dict[int, np.ndarray]  # tangents by parameter or cotangents by output; those that are zero are left out
Results = tuple[np.ndarray, ...]


class Host:
    """One compiled problem as jax primitives see it: hashable by identity, with its recent evaluations.

    Args:
        problem: A `CompiledProblem`.
        options: `Options` of its solves instead of its own.

    Attributes:
        native: The problem as a pure jax function, None where it cannot be one.
        asked: Whether that is used on the host too, because the user asked for it.
        direct: Its kernels, where compiled code can call them without Python, or None.
        words: 32-bit words of a point and its mark, a number that tells compiled code where its factors are.
    """

    def __init__(self, problem: Any, options: Any = None) -> None:
        self.problem, self.options, self.memory = problem, options, Memory(problem)
        solver = problem.solver.lower()
        found = Native.of(problem, options) if solver in ("auto", "interior_point") else None
        self.native: Any = None if found is None else Function(found)
        self.asked = solver == "interior_point"
        self.shapes = tuple(p.shape for p in problem.parameters)
        self.results = tuple(o.shape for o in problem.outputs)
        self.direct = Direct.of(problem, options)
        self.words = 2 * problem.zsize + 2

    def __repr__(self) -> str:
        return f"<{self.problem.fingerprint[:12]}>"

    def solve(self, thetas: Arrays, start: np.ndarray | None, *, wrt: tuple[int, ...], spread: int) -> Results:
        """Solve every instance.

        Args:
            thetas: One array per parameter.
            start: A warm start, (batch..., zsize).
            wrt: Parameters whose derivatives will be asked for; where there are any, the evaluation is remembered.
            spread: Along that many leading axes each instance wants its own derivatives of the parameters in `wrt`.

        Returns:
            The outputs, and the bits of the point z and of its mark as 32-bit words, which survive `jax_enable_x64=False`.
        """
        dims = np.broadcast_shapes(*(lead(t, shape) for t, shape in zip(thetas, self.shapes, strict=True)))
        if start is not None and np.broadcast_shapes(dims, start.shape[:-1]) != dims:
            dims = np.broadcast_shapes(dims, start.shape[:-1])
            thetas = [np.broadcast_to(t, (*dims, *shape)) for t, shape in zip(thetas, self.shapes, strict=True)]
        if spread:
            thetas = [np.broadcast_to(t, (*dims[:spread], *t.shape[spread:])) if i in wrt else t for i, t in enumerate(thetas)]
        evaluation = self.memory.solve(thetas, keep=bool(wrt), warm_start=start, options=self.options)
        z = evaluation.z
        points = np.zeros((*z.shape[:-1], z.shape[-1] + 1))
        points[..., :-1] = z
        if wrt and (mark := self.memory.mark(evaluation)):
            points.view(np.uint64)[..., -1] = np.arange(mark, mark + math.prod(z.shape[:-1]), dtype=np.uint64).reshape(z.shape[:-1])
        return (*(np.asarray(y, thetas[0].dtype) for y in evaluation.outputs), points.view(np.uint32))

    def jvp(self, thetas: Arrays, words: np.ndarray, tangents: Some) -> Results:
        """J tangents, one per output."""
        batch = _Batch(self, thetas, words, [tangents])
        return batch.outputs(lambda index: batch.evaluation.jvp(batch.tangent(0, index)))

    def second(self, thetas: Arrays, words: np.ndarray, first: Some, other: Some) -> Results:
        """D^2 f [first, other], one per output."""
        batch = _Batch(self, thetas, words, [first, other])
        return batch.outputs(lambda index: batch.evaluation.second(batch.tangent(0, index), batch.tangent(1, index)))

    def vjp(self, thetas: Arrays, words: np.ndarray, cotangents: Some, wanted: dict[int, Dims]) -> Results:
        """J'cotangents for each of the `wanted` parameters, with the batch axes given there."""
        batch = _Batch(self, thetas, words, (), cotangents, wanted)
        return batch.parameters(lambda index: batch.evaluation.vjp(batch.cotangent(index)))

    def hvp(self, thetas: Arrays, words: np.ndarray, cotangents: Some, tangents: Some, wanted: dict[int, Dims]) -> Results:
        """The gradient of <cotangents, J tangents> for each of the `wanted` parameters, with the batch axes given there."""
        batch = _Batch(self, thetas, words, [tangents], cotangents, wanted)
        return batch.parameters(lambda index: batch.evaluation.hvp(batch.cotangent(index), batch.tangent(0, index)))


class _Batch:
    """The shapes of one derivative call: the batch axes that the instances vary along, and the loop over the others."""

    def __init__(
        self,
        host: Host,
        thetas: Arrays,
        words: np.ndarray,
        tangents: Sequence[dict[int, np.ndarray]] = (),
        cotangents: dict[int, np.ndarray] | None = None,
        wanted: dict[int, Dims] | None = None,
    ) -> None:
        self.host, self.tangents, self.cotangents, self.wanted = host, tangents, cotangents or {}, wanted or {}
        self.dtype = thetas[0].dtype
        leads = tuple(lead(t, shape) for t, shape in zip(thetas, host.shapes, strict=True))
        moves = tuple(tuple((i, lead(h, host.shapes[i])) for i, h in each.items()) for each in tangents)
        pulls = tuple(lead(g, host.results[k]) for k, g in self.cotangents.items())
        self.full, self.loop, self.base, self.joint = _layout(leads, words.shape[:-1], moves, pulls, tuple(self.wanted.items()))
        first = (0,) * len(self.loop)
        points = np.ascontiguousarray(self.take(words, first, words.shape[-1:])).view(np.float64)
        marks = points.view(np.uint64)[..., -1].reshape(-1)
        z, arrays = points[..., :-1], [self.take(t, first, shape) for t, shape in zip(thetas, host.shapes, strict=True)]
        self.evaluation = host.memory.at(
            [_spread(t, (*d, *shape)) for t, d, shape in zip(arrays, self.joint, host.shapes, strict=True)],
            _spread(z, (*self.base, z.shape[-1])),
            host.options,
            _first(marks),
            host.direct and partial(host.direct.recall, _first(marks), len(marks)),
        )

    def inner(self, dims: Dims) -> Dims:
        """`dims` without the axes of the loop."""
        return tuple(k for a, k in enumerate(dims) if a not in self.loop)

    def where(self, dims: Dims, index: Dims) -> tuple[int | slice, ...]:
        """The place of one turn of the loop in an array with batch axes `dims`."""
        turn = dict(zip(self.loop, index, strict=True))
        return tuple((turn[a] if k > 1 else 0) if a in turn else slice(None) for a, k in enumerate(dims))

    def take(self, a: np.ndarray, index: Dims, shape: Dims) -> np.ndarray:
        return a[self.where(lead(a, shape), index)] if self.loop else a

    def turns(self) -> Iterator[Dims]:
        return np.ndindex(*(self.full[a] for a in self.loop))

    def tangent(self, k: int, index: Dims) -> list[np.ndarray | None]:
        """The tangents of one turn, one per parameter, in the layout of the evaluation."""
        return [
            _spread(self.take(self.tangents[k][i], index, shape), (*dims, *shape)) if i in self.tangents[k] else None
            for i, (dims, shape) in enumerate(zip(self.joint, self.host.shapes, strict=True))
        ]

    def cotangent(self, index: Dims) -> list[np.ndarray | None]:
        """The cotangents of one turn, one per output."""
        return [
            _spread(self.take(self.cotangents[k], index, shape), (*self.base, *shape)) if k in self.cotangents else None
            for k, shape in enumerate(self.host.results)
        ]

    def outputs(self, rule: Callable[[Dims], Arrays]) -> Results:
        """Collect one tangent per output over the turns of the loop."""
        if not self.loop:
            return tuple(np.asarray(value, self.dtype) for value in rule(()))
        results = tuple(np.empty((*self.full, *shape), self.dtype) for shape in self.host.results)
        for index in self.turns():
            for result, value in zip(results, rule(index), strict=True):
                result[self.where(self.full, index)] = value
        return results

    def parameters(self, rule: Callable[[Dims], Arrays]) -> Results:
        """Collect one cotangent per wanted parameter over the turns of the loop, summed along the axes that it does not have."""
        if not self.loop:
            values = rule(())
            return tuple(np.asarray(self.fold(i, values[i]), self.dtype) for i in self.wanted)
        results = {i: np.zeros((*dims, *self.host.shapes[i])) for i, dims in self.wanted.items()}
        for index in self.turns():
            values = rule(index)
            for i, dims in self.wanted.items():
                results[i][self.where(dims, index)] += self.fold(i, values[i])
        return tuple(r.astype(self.dtype, copy=False) for r in results.values())

    def fold(self, i: int, value: np.ndarray) -> np.ndarray:
        """Sum over the axes along which parameter `i` varies and its wanted cotangent does not."""
        axes = tuple(a for a, (k, want) in enumerate(zip(self.joint[i], self.inner(self.wanted[i]), strict=True)) if k != want)
        return value.sum(axis=axes, keepdims=True) if axes else value


def lead(a: Any, shape: Dims) -> Dims:
    """The batch axes of an array whose instances have `shape`."""
    return tuple(a.shape[: a.ndim - len(shape)])


@lru_cache(maxsize=1024)
def _layout(
    leads: tuple[Dims, ...], point: Dims, moves: tuple[tuple[tuple[int, Dims], ...], ...], pulls: tuple[Dims, ...], wanted: Any
) -> tuple[Dims, Dims, Dims, list[Dims]]:
    """From the batch axes of parameters, point, tangents, cotangents and results: all axes, those of the loop, those of the evaluation,
    and those of each parameter in it."""
    base = np.broadcast_shapes(point, *leads)
    full = np.broadcast_shapes(base, *(d for each in moves for _, d in each), *pulls, *(d for _, d in wanted))
    loop = tuple(a for a, (b, f) in enumerate(zip(base, full, strict=True)) if b != f)

    def inner(dims: Dims) -> Dims:
        return tuple(k for a, k in enumerate(dims) if a not in loop)

    # A parameter is laid out along every axis along which it, its tangents or its wanted cotangent vary.
    own = dict(wanted)
    joint = [
        np.broadcast_shapes(inner(d), inner(own.get(i, d)), *(inner(each[i]) for each in map(dict, moves) if i in each))
        for i, d in enumerate(leads)
    ]
    return full, loop, inner(base), joint


def _first(marks: np.ndarray) -> int:
    """The mark of a batch, where its points are those of one evaluation in their order; else 0."""
    if len(marks) == 0:
        return 0
    first = int(marks[0])
    return first if len(marks) == 1 or (np.diff(marks) == 1).all() else 0


def _spread(a: np.ndarray, shape: Dims) -> np.ndarray:
    return a if a.shape == shape else np.broadcast_to(a, shape)
