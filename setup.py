"""Builds the compiled kernels as an optional part: without a C++ compiler the package installs and runs on its other engines."""

import os
import platform
import sys
import warnings

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = "layercompiler/kernels/src"
PLAIN = [
    *("ordering.cpp", "symbolic.cpp", "program.cpp", "residual.cpp", "pool.cpp", "targets.cpp"),
    *("api.cpp", "api_dense_qp.cpp", "api_matrices.cpp", "api_ffi.cpp", "api_grid.cpp", "simplex.cpp", "least_squares.cpp", "machine.cpp"),
    *("gather.cpp", "pullback.cpp", "scaling.cpp", "substitution.cpp", "routes.cpp", "express.cpp", "express_adjoint.cpp"),
    *("ffi_dense.cpp", "ffi_express.cpp"),
]
PER_TARGET = ["target.cpp", "dense_target.cpp", "grid_target.cpp", "tape_target.cpp"]
# gnu++17 with contraction off: every fused multiply-add is written as one, so that an instance gives the same bits in every pack width.
FLAGS = [
    "-std=gnu++17",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-g0",
]
# "strided": what a thread of a GPU would run, for the tests; see View in vec.hpp.
TARGETS = {"scalar": [], "strided": ["-DLC_STRIDED", "-O1"]}
if platform.machine().lower() in ("x86_64", "amd64"):
    TARGETS["avx2"] = ["-mavx2", "-mfma"]
    TARGETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"]
elif platform.machine().lower() in ("aarch64", "arm64"):
    TARGETS["neon"] = []
wanted = os.environ.get("LAYERCOMPILER_KERNEL_TARGETS")  # a subset, for builds that are slow to compile
TARGETS = {name: flags for name, flags in TARGETS.items() if name in ("scalar", "strided") or not wanted or name in wanted.split(",")}


class BuildKernels(build_ext):
    """One translation unit per instruction set, each with its own flags, linked into one plain shared library."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library is loaded by ctypes and depends on no Python version."""
        return os.path.join(*fullname.split(".")) + (".dll" if sys.platform == "win32" else ".so")

    def get_export_symbols(self, ext: Extension) -> list:
        """No Python module is initialised."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links; a failure only warns."""
        extra = os.environ.get("LAYERCOMPILER_KERNEL_FLAGS", "").split()
        wide = os.environ.get("LAYERCOMPILER_WIDE_FLAGS", "").split()
        have = [("LC_HAVE_" + name.upper(), "1") for name in TARGETS if name != "scalar"]
        try:
            objects = []
            for name in PLAIN:
                objects += self.compiler.compile(
                    [f"{SOURCES}/{name}"],
                    output_dir=self.build_temp,
                    macros=have,
                    extra_postargs=[*FLAGS, "-pthread", *extra],
                    depends=ext.depends,
                )
            for target, flags in TARGETS.items():
                objects += self.compiler.compile(
                    [f"{SOURCES}/{name}" for name in (PER_TARGET if target != "strided" else PER_TARGET[:1])],
                    output_dir=os.path.join(self.build_temp, target),
                    macros=[("LC_TARGET", target)],
                    extra_postargs=FLAGS + flags + extra + (wide if target == "avx512" else []),
                    depends=ext.depends,
                )
            self.compiler.link_shared_object(
                objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread", *extra], target_lang="c++"
            )
        except Exception as error:
            warnings.warn(f"the compiled kernels were not built ({error}); layercompiler runs without them", stacklevel=1)


setup(
    ext_modules=[
        Extension(
            "layercompiler.kernels._lanes",
            sources=[f"{SOURCES}/{name}" for name in [*PLAIN, *PER_TARGET]],
            depends=[os.path.join(SOURCES, name) for name in sorted(os.listdir(SOURCES))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
