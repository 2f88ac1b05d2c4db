"""Affine maps of whole batches, in one pass each: parameters to data, points to outputs, cotangents and data gradients back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from layercompiler.errors import BuildError, ShapeError
from layercompiler.kernels import library


class Handle:
    """What the kernels keep of a structure, freed with this object."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self._handle = None
        self._library = library.require()
        self._free = getattr(self._library, f"lc_{name}_free")
        made = getattr(self._library, f"lc_{name}_new")
        self._handle = made(*(library.address(a) if isinstance(a, np.ndarray) else a for a in arguments))
        if not self._handle:
            raise BuildError("the structure is malformed", where=type(self).__name__, got=library.reason())

    @property
    def handle(self) -> int:
        """What the kernels know the structure by."""
        return self._handle or 0

    def call(self, name: str, *arguments: Any) -> None:
        """Call the kernels' function `name` with this structure first."""
        if getattr(self._library, name)(self._handle, *arguments):
            raise MemoryError(library.reason())

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._free(self._handle)
            self._handle = None


@cache
def _type(kind: Any, count: int) -> Any:
    return kind * count


def longs(values: Sequence[int]) -> Any:
    """Integers, addresses among them, as the kernels read them."""
    return _type(ctypes.c_int64, len(values))(*values)


def flags(values: Sequence[bool]) -> Any:
    """Truth values as the kernels read them."""
    return _type(ctypes.c_int8, len(values))(*values)


def pointers(arrays: Sequence[np.ndarray | None]) -> Any:
    """Addresses of contiguous arrays as the kernels read them."""
    return longs([0 if a is None else library.address(a) for a in arrays])


def strides(arrays: Sequence[np.ndarray | None]) -> Any:
    """From one instance to the next, in numbers; 0 where the batch shares the array."""
    return longs([a.shape[1] if a is not None and len(a) > 1 else 0 for a in arrays])


def route(name: str, *fields: Any) -> None:
    """A whole way through the library in one call; fields are integers, arrays, or what `longs`, `flags` and `pointers` return."""
    held = longs([f if type(f) is int else library.address(f) if isinstance(f, np.ndarray) else ctypes.addressof(f) for f in fields])
    loaded = library.require()
    if getattr(loaded, f"lc_route_{name}")(ctypes.addressof(held)):
        raise MemoryError(library.reason())


def contiguous(array: np.ndarray) -> np.ndarray:
    """Float64, row after row."""
    return array if array.dtype == np.float64 and array.flags.c_contiguous else np.ascontiguousarray(array, dtype=np.float64)


def integers(values: Any) -> np.ndarray:
    """A contiguous int64 array."""
    return np.ascontiguousarray(values, dtype=np.int64).reshape(-1)


@dataclass(frozen=True)
class Entries:
    """Entries of a linear map in coordinates: part[rows] += coefs * source[cols], for several sources.

    Attributes:
        rows: Integers (k,), and likewise `source`, `cols`, with `coefs` (k,) floats.
    """

    rows: np.ndarray
    source: np.ndarray
    cols: np.ndarray
    coefs: np.ndarray

    @classmethod
    def of(cls, blocks: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> Entries:
        """From (source, rows, cols, coefs) of each block, one after the other, each in an order that makes long runs."""
        rows, cols, coefs = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)], [np.zeros(0)]
        for _, r, c, k in blocks:
            order = running(r)
            rows.append(r[order])
            cols.append(c[order])
            coefs.append(k[order])
        source = np.repeat([b[0] for b in blocks], [len(b[1]) for b in blocks])
        return cls(integers(np.concatenate(rows)), integers(source), integers(np.concatenate(cols)), np.concatenate(coefs).astype(float))


def running(target: np.ndarray) -> np.ndarray:
    """An order of entries in which targets ascend: first the first entry of each target, then the second ones, and so on."""
    order = np.argsort(target, kind="stable")
    ordered = target[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    rank = np.arange(len(ordered)) - np.repeat(first, np.diff(first, append=len(ordered)))
    return order[np.argsort(rank, kind="stable")]


class Gather(Handle):
    """Vectors that are affine in others: part_p = constant_p + sum of coefficients times sources.

    Args:
        sources: Size of each source.
        constants: Constant of each part, 1-D; its length is that of the part.
        entries: Linear entries of each part.

    Raises:
        BuildError: An index is out of range.

    Cost: one pass over the entries; those that run on in both vectors are copied or added as runs.
    """

    def __init__(self, sources: Sequence[int], constants: Sequence[np.ndarray], entries: Sequence[Entries]) -> None:
        self.sources, self.sizes = tuple(int(s) for s in sources), [len(c) for c in constants]
        joined = Entries(
            *(np.concatenate([np.zeros(0, int), *(getattr(e, k) for e in entries)]) for k in ("rows", "source", "cols", "coefs"))
        )
        counts = integers([len(e.rows) for e in entries])
        if any(len({len(e.rows), len(e.source), len(e.cols), len(e.coefs)}) > 1 for e in entries) or len(entries) != len(constants):
            raise BuildError("the entries do not fit each other", where="Gather")
        self.reads = [sorted(set(e.source.tolist())) for e in entries]
        super().__init__(
            *("gather", len(self.sources), integers(self.sources), len(constants), integers(self.sizes)),
            np.concatenate([np.zeros(0), *constants]).astype(float),
            *(counts, integers(joined.rows), integers(joined.source), integers(joined.cols), joined.coefs.astype(float)),
        )

    def __call__(self, sources: Sequence[np.ndarray | None], batch: int, threads: int = 1, whole: bool = False) -> list[np.ndarray]:
        """Every part at the given sources.

        Args:
            sources: (1 or B, size) each; None for zero.
            batch: B.
            threads: Threads that share the batch.
            whole: Whether every part gets B rows; else one where no source that it reads has B.

        Returns:
            (B, size) or (1, size) for each part.
        """
        held = [None if s is None else contiguous(s) for s in sources]
        if any(
            s is not None and (s.ndim != 2 or s.shape[1] != k or len(s) not in (1, batch)) for s, k in zip(held, self.sources, strict=True)
        ):
            shapes = [None if s is None else s.shape for s in held]
            raise ShapeError("wrong source", where="Gather", expected=f"(1 or {batch}, {self.sources})", got=str(shapes))
        wide = [s is not None and len(s) > 1 for s in held]
        own = [whole or any([wide[k] for k in reads]) for reads in self.reads]
        out = [np.empty((batch if o else min(batch, 1), size)) for o, size in zip(own, self.sizes, strict=True)]
        self.call("lc_gather_apply", batch, pointers(held), strides(held), pointers(out), flags([not o for o in own]), threads)
        return out


KINDS = {"P": 0, "q": 1, "d": 2, "A": 3, "b": 4}


class Pullback(Handle):
    """Gradients of sources from the adjoint solution of a cone program, without forming those of the data.

    Args:
        n: Variables.
        m: Rows.
        sizes: Size of each source.
        entries: For each source `kind`, `i`, `j`, `column`, `coefficient`: the source's `column` adds coefficient times itself to the
            data entry (i, j) of that kind (`KINDS`; for the stored triangle of P the coefficient of a diagonal entry is halved).
    """

    def __init__(self, n: int, m: int, sizes: Sequence[int], entries: Sequence[tuple[np.ndarray, ...]]) -> None:
        self.n, self.m, self.sizes = n, m, list(sizes)
        if len(entries) != len(self.sizes) or any(len({len(a) for a in e}) > 1 for e in entries):
            raise BuildError("the entries do not fit each other", where="Pullback")
        kinds, i, j, column = (integers(np.concatenate([np.zeros(0, int), *(e[k] for e in entries)])) for k in range(4))
        coefficient = np.concatenate([np.zeros(0), *(e[4] for e in entries)]).astype(float)
        counts = integers([len(e[0]) for e in entries])
        super().__init__("pullback", n, m, len(self.sizes), integers(self.sizes), counts, kinds, i, j, column, coefficient)

    def __call__(
        self,
        *point: np.ndarray,
        value: np.ndarray | None = None,
        skip: np.ndarray | None = None,
        shared: Sequence[bool],
        threads: int = 1,
    ) -> list[np.ndarray]:
        """Gradients of the sources, (B, size), or their sum over the batch (1, size) where it is `shared`.

        Args:
            *point: x (B, n), y (B, m), u (B, n), t (B, m), see `layercompiler.derivatives.data_gradient`.
            value: (B,) cotangent of the optimal value.
            skip: (B,) bool, instances whose gradient is zero.
            shared: One flag for each source.
            threads: Threads that share the batch.
        """
        arrays = [contiguous(a) for a in point]
        batch = len(arrays[0])
        if [a.shape for a in arrays] != [(batch, self.n), (batch, self.m)] * 2:
            raise ShapeError("wrong point", where="Pullback", got=str([a.shape for a in arrays]))
        out = [np.empty((1 if s else batch, size)) for s, size in zip(shared, self.sizes, strict=True)]
        value = None if value is None else contiguous(value).reshape(batch)
        skip = None if skip is None else np.ascontiguousarray(skip, np.int8)
        extra = [None if a is None else library.address(a) for a in (value, skip)]
        self.call("lc_pullback_apply", batch, *map(library.address, arrays), *extra, pointers(out), flags(shared), threads)
        return out
