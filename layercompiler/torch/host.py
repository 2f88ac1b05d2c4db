"""The five functions of a solution map on the host: tensors in, numpy inside, tensors out; no autograd here.

With f the solution map theta -> outputs: solve gives f and z, vjp gives J'g, jvp gives Jh, hvp gives (d^2 <g, f>) h and second
gives D^2 f [h, k]. Each derivative first looks for the `Evaluation` that made z, so that a backward pass reuses the factorisation
of the forward pass, and restores it from theta and z where that is gone (another process, a checkpoint, a copy).

Cotangents and tangents may have further leading dimensions before those of the batch (jacrev and its like): one evaluation serves
them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from layercompiler.torch.registry import Bound

Parts = Sequence[Tensor | None]
Arrays = list[np.ndarray | None]


class _Trace(np.ndarray):
    """The memory of one z tensor. The tensor's storage owns it, so the evaluation lives exactly as long as z does."""

    evaluation: Any
    shapes: list[tuple[int, ...]]


_traces: WeakValueDictionary[int, _Trace] = WeakValueDictionary()  # by address: unique among the living


def _array(tensor: Tensor) -> np.ndarray:
    # forward mode makes tensors that are zero and have no memory, of which numpy would read what lies there
    return np.zeros(tensor.shape) if tensor._is_zerotensor() else tensor.numpy(force=True)


class _Rounded:
    """A float64 array of numbers that were rounded to `dtype`: the checks of declared attributes allow for it."""

    __slots__ = ("array", "dtype")

    def __init__(self, array: np.ndarray, code: str) -> None:
        self.array, self.dtype = array, np.dtype(code)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))  # a copy: the caller may write to it


def _remember(evaluation: Any, arrays: Sequence[np.ndarray]) -> Tensor:
    z = evaluation.z
    trace = np.array(z, dtype=np.float64, order="C", copy=not z.flags.writeable).view(_Trace)
    trace.evaluation, trace.shapes = evaluation, [a.shape for a in arrays]
    tensor = torch.from_numpy(trace)
    _traces[_address(tensor)] = trace
    return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()  # unlike that of the tensor, not zero for an empty batch


def _recall(z: Tensor) -> _Trace | None:
    trace = _traces.get(_address(z))
    return trace if trace is not None and trace.shape == z.shape and z.is_contiguous() else None


def recall(z: Tensor) -> Any | None:
    """The evaluation that made z, or None."""
    trace = _recall(z)
    return None if trace is None else trace.evaluation


def _evaluation(bound: Bound, theta: Sequence[Tensor], z: Tensor) -> Any:
    trace = _recall(z)
    if trace is not None and trace.shapes == [t.shape for t in theta]:
        return trace.evaluation
    return bound.compiled.restore([_array(t) for t in theta], _array(z), bound.options)


def solve(theta: Sequence[Tensor], warm: Tensor | None, dtypes: str, bound: Bound) -> list[Tensor]:
    """Outputs and z of a problem at `theta`, starting from `warm`.

    Args:
        theta: One float64 tensor per parameter.
        warm: z of an earlier solve, or None.
        dtypes: One character per parameter, the numpy code of the dtype that it was given in; empty where all were float64.
        bound: The problem.
    """
    arrays = [_array(t) for t in theta]
    for a in arrays:  # autograd refuses a derivative at tensors that were written to, so nobody needs copies
        a.flags.writeable = False
    given = [a if c == "d" else _Rounded(a, c) for a, c in zip(arrays, dtypes, strict=True)] if dtypes else arrays
    evaluation = bound.compiled.evaluate(given, warm_start=None if warm is None else _array(warm), options=bound.options)
    return [*map(_tensor, evaluation.outputs), _remember(evaluation, arrays)]


def vjp(theta: Sequence[Tensor], z: Tensor, g: Parts, bound: Bound) -> list[Tensor]:
    """J'g for each parameter."""
    evaluation = _evaluation(bound, theta, z)
    if getattr(evaluation, "fresh", False):
        lead = z.ndim - 1
        for part, output in zip(g, bound.compiled.outputs, strict=True):
            if part is not None and part.ndim > lead + len(output.shape):
                break
        else:
            found = evaluation.vjp([None if p is None else _array(p) for p in g])
            return [torch.from_numpy(a) if a.flags.writeable else _tensor(a) for a in found]
    return _each(evaluation.vjp, (g, output_ranks(bound, z)))


def jvp(theta: Sequence[Tensor], z: Tensor, h: Parts, bound: Bound) -> list[Tensor]:
    """Jh for each output."""
    return _each(_evaluation(bound, theta, z).jvp, (h, ranks(theta)))


def hvp(theta: Sequence[Tensor], z: Tensor, g: Parts, h: Parts, bound: Bound) -> list[Tensor]:
    """(d^2 <g, f> / dtheta^2) h for each parameter."""
    return _each(_evaluation(bound, theta, z).hvp, (g, output_ranks(bound, z)), (h, ranks(theta)))


def second(theta: Sequence[Tensor], z: Tensor, h: Parts, k: Parts, bound: Bound) -> list[Tensor]:
    """D^2 f [h, k] for each output."""
    return _each(_evaluation(bound, theta, z).second, (h, ranks(theta)), (k, ranks(theta)))


def ranks(theta: Sequence[Tensor]) -> list[int]:
    """Ranks of tangents without leading dimensions of their own."""
    return [t.ndim for t in theta]


def output_ranks(bound: Bound, z: Tensor) -> list[int]:
    """Ranks of cotangents without leading dimensions of their own."""
    return [z.ndim - 1 + len(output.shape) for output in bound.compiled.outputs]


def extra(parts: Parts, ranks: Sequence[int]) -> tuple[int, ...]:
    """The leading dimensions of cotangents or tangents beyond their own ranks; all of `parts` share them."""
    return next((tuple(p.shape[: p.ndim - r]) for p, r in zip(parts, ranks, strict=True) if p is not None), ())


def _each(function: Callable[..., Sequence[np.ndarray]], *groups: tuple[Parts, Sequence[int]]) -> list[Tensor]:
    leads = [extra(parts, ranks) for parts, ranks in groups]
    arrays: list[Arrays] = [[None if p is None else _array(p) for p in parts] for parts, _ in groups]
    if not any(leads):
        return [_tensor(a) for a in function(*arrays)]
    lead, ranks = np.broadcast_shapes(*leads), [r for _, r in groups]
    results = [function(*sliced) for sliced in _slices(arrays, ranks, lead)]
    if not results:  # an empty leading dimension: the shapes are those of zeros
        results = [function(*([None] * len(a) for a in arrays))]
        return [_tensor(np.zeros((*lead, *a.shape))) for a in results[0]]
    return [_tensor(np.stack(column).reshape(*lead, *column[0].shape)) for column in zip(*results, strict=True)]


def _slices(arrays: list[Arrays], ranks: list[Sequence[int]], lead: tuple[int, ...]) -> Iterator[list[Arrays]]:
    wide = [
        [None if a is None else np.broadcast_to(a, lead + a.shape[a.ndim - r :]) for a, r in zip(group, rank, strict=True)]
        for group, rank in zip(arrays, ranks, strict=True)
    ]
    for index in np.ndindex(*lead):
        yield [[None if a is None else a[index] for a in group] for group in wide]
