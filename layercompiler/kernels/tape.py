"""Straight-line programs of scalar operations for many factors and instances, and least-squares solves made of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.kernels import library
from layercompiler.kernels.ldl import LDL, Factor


@dataclass(frozen=True)
class Slot:
    """Where a program reads or adds a number: array `array`, at place `table[factor]`, or `table[0]` where all factors share it.

    A negative place reads zero, and drops what is added.
    """

    array: int
    table: np.ndarray


class Tape:
    """A program, run for `factors` factors of every instance.

    Args:
        code: (length, 5) instructions (`layercompiler.expressions.scalars.program`).
        constants: What the first registers hold.
        registers: How many there are.
        inputs: Slots read.
        outputs: Slots added to.
        factors: Factors of one instance.
        isa: Instruction set; the best one of the machine by default.
        machine: Whether to make machine code of it, where that can be done (AVX-512, on Linux); it is interpreted else.

    Immutable and thread safe. For one instance, numbers are added in an order that does not depend on the batch.
    """

    def __init__(
        self,
        code: np.ndarray,
        constants: np.ndarray,
        registers: int,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        factors: int,
        isa: str | None = None,
        machine: bool = True,
    ) -> None:
        self._handle = None
        self._library = library.require()
        pieces, starts, size = [np.zeros(0, np.int32)], {}, 0
        at, step = [], []
        for slot in (*inputs, *outputs):
            key = slot.table.tobytes()
            if key not in starts:
                starts[key] = size
                pieces.append(np.asarray(slot.table, np.int32))
                size += len(slot.table)
            at.append(starts[key])
            step.append(0 if len(slot.table) == 1 else 1)
        table = np.concatenate(pieces)
        arrays = np.array([s.array for s in (*inputs, *outputs)], np.int32)
        ats, steps = np.array(at, np.int64), np.array(step, np.int32)
        code, constants = np.ascontiguousarray(code, np.int32), np.ascontiguousarray(constants, np.float64)
        self.length, self.factors, self.registers = len(code), factors, registers
        halves = []
        for part in (slice(0, len(inputs)), slice(len(inputs), None)):
            halves += [[np.ascontiguousarray(x[part]) for x in (arrays, steps, ats)]]
        a = library.address
        self._handle = self._library.lc_tape_new(
            len(code), a(code), registers, len(constants), a(constants), len(inputs), *map(a, halves[0]), len(outputs), *map(a, halves[1]),
            len(table), a(table), factors, machine, library.instruction_set(isa).encode(),
        )  # fmt: skip
        if not self._handle:
            raise MemoryError(library.reason())

    @property
    def handle(self) -> int:
        """For other kernels; valid while the tape lives."""
        assert self._handle is not None
        return self._handle

    def run(
        self, count: int, inputs: Sequence[np.ndarray], strides: Sequence[int], outputs: Sequence[np.ndarray], steps: Sequence[int]
    ) -> None:
        """Add to the outputs, contiguous float64; `strides` and `steps` are the distances of instances, 0 for what they share."""
        if self._library.lc_tape_run(self._handle, count, *_pointers(inputs, strides), *_pointers(outputs, steps)):
            raise MemoryError(library.reason())

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_tape_free(self._handle)
            self._handle = None


def _pointers(arrays: Sequence[np.ndarray], strides: Sequence[int]) -> tuple[Any, Any]:
    return (ctypes.c_void_p * len(arrays))(*[x.__array_interface__["data"][0] for x in arrays]), (ctypes.c_int64 * len(arrays))(*strides)


class Descent:
    """Levenberg-Marquardt and Gauss-Newton, whole, for batches: what `solvers.least_squares.solver` does step by step, without bounds.

    Args:
        linear: Tapes that add (cost, energy, gradient, entries) at the values.
        light: Tapes that add (cost, energy, gradient, diagonal of the entries).
        second: Tapes that add the entries of the exact Hessian.
        move: Tapes that write moved elements of groups.
        ldl: Factorisation of matrices with `entries` places and one more for each diagonal number.
        sizes: (n, numbers of a value, entries).
        diagonal: (n,) place of (i, i) among the entries, or -1.
        coordinate: (n,) place of column i among the values, or -1 where it is no coordinate.
        plain: Places of Euclidean numbers among the values, and their columns (-1: fixed).
    """

    def __init__(
        self,
        linear: Sequence[Tape],
        light: Sequence[Tape],
        second: Sequence[Tape],
        move: Sequence[Tape],
        ldl: LDL,
        sizes: tuple[int, int, int],
        diagonal: np.ndarray,
        coordinate: np.ndarray,
        plain: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self._handle = None
        self._library = library.require()
        self._kept = (*linear, *light, *second, *move, ldl)
        self.ldl = ldl
        self.n, self.ambient, self.entries = sizes
        counts = np.array([*sizes, len(plain[0]), len(linear), len(light), len(second), len(move)], np.int64)
        tapes = np.array([t.handle for t in (*linear, *light, *second, *move)], np.uint64)
        arrays = [np.ascontiguousarray(x, np.int32) for x in (diagonal, coordinate, *plain)]
        a = library.address
        self._handle = self._library.lc_nls_new(a(counts), *map(a, arrays), a(tapes), ldl._handle)
        if not self._handle:
            raise MemoryError(library.reason())

    @property
    def handle(self) -> int:
        """For calls that have their own addresses; valid while the object lives."""
        assert self._handle is not None
        return self._handle

    def solve(
        self,
        values: np.ndarray,
        inputs: Sequence[np.ndarray],
        strides: Sequence[int],
        tolerance: float,
        damping: float,
        max_iterations: int,
        adaptive: bool,
        ellipsoidal: bool,
        polish: bool,
        gauss_newton: bool,
    ) -> tuple[Any, ...]:
        """(values, status, measure, largest gradient, cost, iterations, refinements of the batch) from the values (B, ambient)."""
        batch = len(values)
        found = np.array(values, np.float64, order="C")
        status, iterations, refinements = np.empty(batch, np.int8), np.empty(batch, np.int64), np.zeros(1, np.int64)
        measure, largest, cost = (np.empty(batch) for _ in range(3))
        a = library.address
        if self._library.lc_nls_solve(
            self._handle, batch, a(found), len(inputs), *_pointers(inputs, strides), tolerance, damping, max_iterations, adaptive,
            ellipsoidal, polish, gauss_newton, *map(a, (status, measure, largest, cost, iterations, refinements)),
        ):  # fmt: skip
            raise MemoryError(library.reason())
        return found, status, measure, largest, cost, iterations, int(refinements[0])

    def factor(self, values: np.ndarray, inputs: Sequence[np.ndarray], strides: Sequence[int]) -> Factor:
        """Factors of the exact Hessians at the values (B, ambient)."""
        values = np.ascontiguousarray(values, np.float64)
        given = (self._handle, len(values), library.address(values), len(inputs), *_pointers(inputs, strides))
        return Factor(self.ldl, len(values), lambda pivots: self._library.lc_nls_factor(*given, pivots))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_nls_free(self._handle)
            self._handle = None
