"""Finds and loads the compiled kernels; everything that knows ctypes prototypes is here."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import numpy as np

from layercompiler.errors import MissingDependencyError, OptionError

ABI = 33
_POINTER, _LONG, _INT, _REAL, _TEXT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double, ctypes.c_char_p
_PROTOTYPES = {
    "lc_abi": (_INT, []),
    "lc_error": (_TEXT, []),
    "lc_target": (_TEXT, [_TEXT]),
    "lc_peak": (_REAL, [_TEXT]),
    "lc_ldl_new": (_POINTER, [_LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _TEXT]),
    "lc_ldl_free": (None, [_POINTER]),
    "lc_ldl_facts": (None, [_POINTER, _POINTER]),
    "lc_ldl_factor": (_POINTER, [_POINTER, _LONG, _POINTER, _REAL, _POINTER, _INT]),
    "lc_factor_free": (None, [_POINTER]),
    "lc_conic_new": (_POINTER, [_LONG] * 3 + [_POINTER] * 2 + [_LONG] + [_POINTER] * 2 + [_LONG] * 3 + [_POINTER] * 3 + [_TEXT]),
    "lc_conic_free": (None, [_POINTER]),
    "lc_conic_facts": (None, [_POINTER, _POINTER]),
    "lc_conic_solve": (_INT, [_POINTER, _LONG] + [_POINTER, _LONG] * 4 + [_POINTER] * 9 + [_REAL] * 3 + [_INT, _REAL, _INT, _POINTER]),
    "lc_newton_new": (_POINTER, [_LONG] * 3 + [_POINTER] * 2 + [_LONG] + [_POINTER] * 2 + [_LONG] * 3 + [_POINTER] * 4 + [_TEXT]),
    "lc_newton_free": (None, [_POINTER]),
    "lc_newton_facts": (None, [_POINTER, _POINTER]),
    "lc_newton_refine": (_POINTER, [_POINTER, _LONG] + [_POINTER, _LONG] * 4 + [_POINTER] * 10 + [_INT, _REAL, _REAL, _INT]),
    "lc_linearization_free": (None, [_POINTER]),
    "lc_linearization_solve": (_INT, [_POINTER] * 6 + [_INT, _REAL, _INT]),
    "lc_dense_new": (_POINTER, [_LONG] * 3 + [_INT] * 2 + [_LONG, _POINTER, _POINTER] * 3 + [_TEXT]),
    "lc_dense_free": (None, [_POINTER]),
    "lc_dense_facts": (None, [_POINTER, _POINTER]),
    "lc_dense_solve_within": (_POINTER, [_POINTER, _LONG] + [_POINTER] * 4 + [_INT] * 2 + [_REAL] + [_POINTER] * 9 + [_INT]),
    "lc_dense_factors_free": (None, [_POINTER]),
    "lc_dense_adjoint": (_INT, [_POINTER] * 11 + [_INT]),
    "lc_matrices_new": (_POINTER, [_POINTER, _REAL]),
    "lc_matrices_free": (None, [_POINTER]),
    "lc_matrices_forward": (_LONG, [_POINTER, _LONG, _TEXT, _INT]),
    "lc_solved_free": (None, [_POINTER]),
    "lc_solved_point": (_POINTER, [_POINTER] * 6),
    "lc_solved_adjoint": (_INT, [_POINTER, _TEXT, _INT]),
    "lc_ffi_handler": (_POINTER, [_POINTER]),
    "lc_ffi_fail": (None, [_TEXT]),
    "lc_ffi_call_new": (_LONG, [_POINTER]),
    "lc_ffi_dense_new": (_LONG, [_POINTER] * 4),
    "lc_ffi_express_new": (_LONG, [_POINTER] * 4),
    "lc_ffi_call_free": (None, [_LONG]),
    "lc_ledger_new": (_POINTER, []),
    "lc_ledger_free": (None, [_POINTER]),
    "lc_ledger_take": (_POINTER, [_POINTER, ctypes.c_uint64, _LONG] + [_POINTER] * 6),
    "lc_factor_solve": (_INT, [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _INT, _REAL, _INT]),
    "lc_tape_new": (
        _POINTER,
        [_LONG, _POINTER] + [_LONG] * 2 + [_POINTER] + ([_LONG] + [_POINTER] * 3) * 2 + [_LONG, _POINTER, _LONG, _INT, _TEXT],
    ),
    "lc_tape_free": (None, [_POINTER]),
    "lc_tape_run": (_INT, [_POINTER, _LONG] + [_POINTER] * 4),
    "lc_nls_new": (_POINTER, [_POINTER] * 7),
    "lc_nls_factor": (_POINTER, [_POINTER, _LONG, _POINTER, _LONG] + [_POINTER] * 3),
    "lc_nls_free": (None, [_POINTER]),
    "lc_nls_solve": (_INT, [_POINTER, _LONG, _POINTER, _LONG] + [_POINTER] * 2 + [_REAL] * 2 + [_LONG] + [_INT] * 4 + [_POINTER] * 6),
    "lc_gather_new": (_POINTER, [_LONG, _POINTER, _LONG] + [_POINTER] * 7),
    "lc_gather_free": (None, [_POINTER]),
    "lc_gather_apply": (_INT, [_POINTER, _LONG] + [_POINTER] * 4 + [_INT]),
    "lc_pullback_new": (_POINTER, [_LONG] * 3 + [_POINTER] * 7),
    "lc_pullback_free": (None, [_POINTER]),
    "lc_pullback_apply": (_INT, [_POINTER, _LONG] + [_POINTER] * 8 + [_INT]),
    "lc_substitution_new": (_POINTER, [_LONG] * 5 + [_POINTER] * 7 + [_LONG] * 2 + [_POINTER, _LONG] + [_POINTER] * 4),
    "lc_substitution_free": (None, [_POINTER]),
    "lc_substitution_bind": (_INT, [_POINTER, _LONG, _POINTER, _POINTER] + [_LONG] * 3 + [_POINTER] * 4 + [_INT]),
    "lc_substitution_expand": (
        _INT,
        [_POINTER, _LONG, _POINTER, _POINTER] + [_POINTER, _LONG] * 2 + [_REAL, _INT] + [_POINTER, _LONG] * 2 + [_POINTER] * 2 + [_INT],
    ),
    "lc_substitution_reduce": (_INT, [_POINTER, _LONG, _POINTER, _POINTER] + [_POINTER, _LONG] * 2 + [_POINTER] * 2 + [_INT]),
    "lc_scaling_new": (_POINTER, [_LONG] * 3 + [_POINTER] * 2 + [_LONG] + [_POINTER] * 2 + [_LONG, _POINTER]),
    "lc_scaling_free": (None, [_POINTER]),
    "lc_scaling_rough": (_INT, [_POINTER, _LONG] + [_POINTER] * 3 + [_INT]),
    "lc_scaling_apply": (_INT, [_POINTER, _LONG] + [_POINTER] * 5 + [_INT]),
    "lc_route_bind": (_INT, [_POINTER]),
    "lc_route_recover": (_INT, [_POINTER]),
    "lc_route_adjoint": (_INT, [_POINTER]),
    "lc_express_new": (_POINTER, [_POINTER] * 3),
    "lc_express_free": (None, [_POINTER]),
    "lc_express_forward": (_POINTER, [_POINTER, _LONG, _POINTER, _INT, _POINTER, _POINTER]),
    "lc_passage_free": (None, [_POINTER]),
    "lc_passage_point": (None, [_POINTER] * 2),
    "lc_passage_adjoint": (_INT, [_POINTER] * 2 + [_INT, _POINTER]),
    "lc_grid_paths": (_INT, [_LONG] * 3 + [_INT] + [_REAL] * 2 + [_POINTER] * 2 + [_TEXT, _INT]),
    "lc_simplex_new": (_POINTER, [_LONG] * 2 + [_POINTER] * 5 + [_LONG, _POINTER, _TEXT, _POINTER]),
    "lc_simplex_free": (None, [_POINTER]),
    "lc_simplex_solve": (_INT, [_POINTER, _LONG] + [_POINTER] * 4 + [_INT, _REAL]),
}


@cache
def load() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built or does not fit this version.

    The environment variable LAYERCOMPILER_KERNELS names the folder of another build (the sanitizer's, for instance).
    """
    for path in sorted(Path(os.environ.get("LAYERCOMPILER_KERNELS") or Path(__file__).parent).glob("_lanes*")):
        if path.suffix not in (".so", ".dylib", ".dll", ".pyd"):
            continue
        try:
            library = ctypes.CDLL(str(path))
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            if library.lc_abi() == ABI:
                return library
        except (OSError, AttributeError):
            continue
    return None


def available() -> bool:
    """Whether the compiled kernels are built and load on this machine."""
    return load() is not None


def require() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        MissingDependencyError: The kernels were not built.
    """
    library = load()
    if library is None:
        raise MissingDependencyError(
            "the compiled kernels are not available",
            where="layercompiler.kernels",
            mend="install a C++17 compiler and reinstall layercompiler, or use another solver",
        )
    return library


def instruction_set(name: str | None = None) -> str:
    """The instruction set used here: the best one this machine runs, or `name` itself if the machine runs it.

    Raises:
        OptionError: The machine or the build has no such instruction set.
    """
    found = require().lc_target(name.encode() if name else None)
    if found is None:
        raise OptionError(
            "unknown instruction set", where="isa", expected="avx512, avx2, neon or scalar, as the machine allows", got=repr(name)
        )
    return found.decode()


def peak_rate(name: str | None = None) -> float:
    """Floating-point operations a second of one thread that only multiplies and adds, measured now (a few milliseconds)."""
    return float(require().lc_peak(instruction_set(name).encode()))


def reason() -> str:
    """Why the last failing call of this thread failed."""
    return require().lc_error().decode()


def address(array: np.ndarray) -> int:
    """Where the numbers of a contiguous array lie."""
    return array.__array_interface__["data"][0]  # in a third of the time of array.ctypes.data
