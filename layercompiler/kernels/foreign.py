"""Calls that compiled programs of XLA make without Python: numbers in the program say which, and here is what they stand for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layercompiler.errors import BuildError
from layercompiler.kernels import library
from layercompiler.kernels.dense_qp import DenseFactors, DenseQP, DenseSolution, Operands
from layercompiler.kernels.express import Express
from layercompiler.kernels.maps import longs

MOST = 16  # parts of one call
_Callback = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_void_p))
_Six, _Sixteen = ctypes.c_int64 * 6, ctypes.c_int64 * MOST


class _Plan(ctypes.Structure):
    """`DenseCall` of api_ffi.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("derivative", "count", "n", "p", "m", "forms", "threads", "keep", "parameters")),
        *(("place", _Six), ("varies", _Six)),
        *(("parts", ctypes.c_int64), ("part", _Sixteen)),
        *(("wanted", ctypes.c_int64), ("which", _Six), ("own", _Six)),
        ("constants", ctypes.c_void_p * 6),
    ]


class Ledger:
    """Solved batches of one problem whose derivatives are to come, a few of them; any number of threads may share it."""

    def __init__(self) -> None:
        self._library = library.require()
        self._handle = self._library.lc_ledger_new()

    @property
    def handle(self) -> int:
        """What the kernels know it by."""
        return self._handle or 0

    def take(self, kernel: DenseQP, mark: int, operands: Sequence[np.ndarray]) -> DenseSolution | None:
        """The batch whose first point carries `mark`, solved at `operands`; it is no longer in the ledger.

        Args:
            kernel: That solved it.
            mark: See `DenseCall`.
            operands: See `DenseQP.solve`; what the factors are used with.
        """
        known = Operands.of(kernel, operands)
        count, rows, at = known.batch, kernel.rows, library.address
        x, v, y = np.empty((count, kernel.n)), np.empty((count, rows)), np.empty((count, rows))
        facts, status, iterations = np.empty((3, count)), np.empty(count, np.int8), np.empty(count, np.int32)
        found = self._library.lc_ledger_take(self._handle, mark, count, *map(at, (x, v, y, facts, status, iterations)))
        if not found:
            return None
        norm, margin, reach = facts
        return DenseSolution(x, v, y, status, iterations, norm, margin, reach, DenseFactors(kernel, found, known), 0)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_ledger_free(self._handle)
            self._handle = None


class DenseCall:
    """A batch of dense QPs, or the reverse derivative of one, as a compiled program calls it.

    The point of an instance is (x, v, mark), n + p + m + 1 numbers, of which the last is a whole number that says where its factors are.

    Args:
        kernel: The solver.
        ledger: Where solved batches wait for their derivative.
        count: Instances.
        place: Which operand of the kernel each parameter is.
        varies: Whether each instance has its own.
        constants: The numbers of the operands that are no parameters.
        parts: What each output, or each cotangent, shows: "x", or "y" and "z", the duals of equalities and inequalities.
        threads: Threads that share the packs.
        wanted: None to solve: parameters in, outputs and points out. Else the parameters whose cotangents are wanted, and whether for each
            instance or summed: parameters, points and cotangents in, cotangents of parameters out.
        keep: Whether a solve is remembered.
    """

    def __init__(
        self,
        kernel: DenseQP,
        ledger: Ledger,
        count: int,
        place: Sequence[int],
        varies: Sequence[bool],
        constants: Sequence[np.ndarray | None],
        parts: Sequence[str],
        threads: int,
        *,
        wanted: dict[int, bool] | None = None,
        keep: bool = False,
    ) -> None:
        self.kernel, self.ledger, self.parts = kernel, ledger, tuple(parts)
        self._constants = [None if c is None else np.ascontiguousarray(c, np.float64) for c in constants]
        chosen = wanted or {}
        self.plan = _Plan(
            *(int(wanted is not None), count, kernel.n, kernel.equalities, kernel.inequalities, kernel.forms + 4, threads, int(keep)),
            *(len(place), _Six(*place), _Six(*map(int, varies))),
            *(len(parts), _Sixteen(*("xyz".index(k) for k in parts))),
            *(len(chosen), _Six(*chosen), _Six(*map(int, chosen.values()))),
            (ctypes.c_void_p * 6)(*(None if c is None else library.address(c) for c in self._constants)),
        )

    def number(self, python: Any) -> int:
        """A number that stands for the call, and for `python` with what the kernel leaves open."""
        return library.require().lc_ffi_dense_new(python, ctypes.addressof(self.plan), self.kernel.handle, self.ledger.handle)


class ExpressCall:
    """A whole call of a layer, or its reverse derivative, as a compiled program calls it.

    The point of an instance is (z, mark), of which the mark is a whole number that says where its factors are.

    Args:
        express: The kernels of the problem as one.
        ledger: Where solved batches wait for their derivative.
        count: Instances.
        threads: Threads that share the batch.
        sources: Sizes of the parameters.
        varies: Whether each instance has its own.
        outputs: Sizes of the outputs.
        given: None to solve: parameters in, outputs and points out. Else the outputs whose cotangents come in: parameters, points and
            cotangents in, cotangents of parameters out.
        wanted: The parameters whose cotangents are wanted, and whether for each instance or summed.
        keep: Whether a solve is remembered.
    """

    def __init__(
        self,
        express: Express,
        ledger: Ledger,
        count: int,
        threads: int,
        sources: Sequence[int],
        varies: Sequence[bool],
        outputs: Sequence[int],
        *,
        given: Sequence[int] | None = None,
        wanted: dict[int, bool] | None = None,
        keep: bool = False,
    ) -> None:
        self.express, self.ledger = express, ledger
        ends, chosen = given or (), wanted or {}
        counts = (len(sources), len(outputs), len(ends), len(chosen))
        sizes = (*sources, *varies, *outputs)
        self._plan = longs([given is not None, count, threads, keep, *counts, *sizes, *ends, *chosen, *chosen.values()])

    def number(self, python: Any) -> int:
        """See `DenseCall.number`."""
        return library.require().lc_ffi_express_new(python, self._plan, self.express.handle, self.ledger.handle)


class Call:
    """A call that a compiled program can make, as long as this object lives.

    Args:
        python: What is called with the addresses of the arguments and of the results, which it writes; its exceptions become errors of
            the program.
        work: What is done instead, where it succeeds.

    Attributes:
        number: That stands for it in the program.
    """

    def __init__(self, python: Callable[[Any, Any], None], work: DenseCall | ExpressCall | None = None) -> None:
        self.number = -1
        self._library, self._work = library.require(), work
        fail = self._library.lc_ffi_fail

        def run(arguments: Any, results: Any) -> int:
            try:
                python(arguments, results)
            except BaseException as error:
                fail(f"{type(error).__name__}: {error}".encode())
                return -1
            return 0

        self._callback = _Callback(run)
        at = ctypes.cast(self._callback, ctypes.c_void_p)
        self.number = self._library.lc_ffi_call_new(at) if work is None else work.number(at)
        if self.number < 0:
            raise BuildError("a call is malformed", where="Call", got=library.reason())

    def __del__(self) -> None:
        if self.number >= 0:
            self._library.lc_ffi_call_free(self.number)


def handler() -> Any:
    """The function that XLA calls."""
    return library.require().lc_ffi_handler
