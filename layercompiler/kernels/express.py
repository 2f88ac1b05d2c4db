"""A whole call of a layer in one crossing: parameters in, outputs out, and later cotangents in, gradients out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from layercompiler.kernels import library
from layercompiler.kernels.maps import Handle, longs

NONNEGATIVE, NONPOSITIVE, NOT_ZERO = 1, 2, 4
SPENT = ("data", "engine", "refinement and factorisation", "recovery", "derivative")
_DERIVATIVE = SPENT.index("derivative")
HARD = 3  # from this refusal on, the batch was tried and something in it is not at its best


class Express(Handle):
    """The handles of a program's maps and engine, as one.

    Args:
        plan: Handles and sizes in the order of `Plan` in express.hpp.
        settings: Tolerance of the engine, relative residuals at which a point is exact and at which refinement stops, regularisation
            of the linear system, and the relative residual up to which its solutions are taken.
        signs: Per source, what it was declared to be: the sum of `NONNEGATIVE`, `NONPOSITIVE` and `NOT_ZERO`.
        keep: Owners of the handles, kept alive.

    Attributes:
        profile: None, or a float64 array (5,) to which every call adds the seconds of `SPENT`.
    """

    profile: np.ndarray | None = None

    def __init__(self, plan: Sequence[int], settings: Sequence[float], signs: Sequence[int], keep: object) -> None:
        self._keep = keep
        super().__init__("express", longs(plan), np.array(settings, dtype=np.float64), np.array([*signs, 0], dtype=np.int8))
        lib = self._library
        self._forward, self._adjoint, self._free_passage = lib.lc_express_forward, lib.lc_passage_adjoint, lib.lc_passage_free

    def forward(self, batch: int, addresses: bytes, threads: int) -> int:
        """Solve a batch, or say why the general way has to be gone.

        Args:
            batch: B.
            addresses: 64-bit integers: addresses of the sources, their strides (0 where the batch shares a source), addresses of the
                outputs, (B, size) each.
            threads: Threads that share the batch; results do not depend on it.

        Returns:
            What a `Passage` is made of, positive; or minus a refusal: `HARD` or more where the batch was tried, less where its numbers
            are not what they should be.
        """
        refusal = ctypes.c_int32()
        handle = self._forward(self._handle, batch, addresses, threads, ctypes.byref(refusal), self._spent(0))
        if not handle and not refusal.value:
            raise MemoryError(library.reason())
        return handle or -refusal.value

    def _spent(self, part: int) -> int | None:
        return None if self.profile is None else library.address(self.profile) + 8 * part


class Passage:
    """A solved batch, with the factors that differentiate it.

    Args:
        express: What solved it.
        handle: What `Express.forward` returned.
    """

    __slots__ = ("_express", "_handle")

    def __init__(self, express: Express, handle: int) -> None:
        self._express, self._handle = express, handle

    def point(self, z: np.ndarray) -> None:
        """Write the primal-dual vector to `z`, contiguous, (B, n + m)."""
        self._express._library.lc_passage_point(self._handle, library.address(z))

    def pull(self, addresses: bytes, threads: int) -> bool:
        """Gradients of the sources; False where the linear system of an instance was not solved well.

        Args:
            addresses: 64-bit integers, addresses of the cotangents of the outputs (0 for zero), of the gradients (0 where none is wanted;
                summed over the batch where it shares the source), and of the sources, which hold the numbers that they held in `forward`.
            threads: Threads that share the batch.
        """
        express = self._express
        failed = express._adjoint(self._handle, addresses, threads, express._spent(_DERIVATIVE))
        if failed < 0:
            raise MemoryError(library.reason())
        return not failed

    def __del__(self) -> None:
        self._express._free_passage(self._handle)
