"""Builds the kernels with AddressSanitizer and UBSan in a temporary folder and runs their tests.

    python tests/kernels/sanitize.py [scalar,avx2,avx512]

Without an argument all instruction sets are compiled, each into one library; a subset saves compile time. Wide vectors are compiled without
optimisation, which the sanitizers make several times as slow to compile and no more thorough.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O1 -g1 -fno-wrapv -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"


def main() -> int:
    """Returns pytest's exit status."""
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "setup.py", "build_ext", "--build-lib", f"{folder}/lib", "--build-temp", f"{folder}/temp"]
        targets = {"LAYERCOMPILER_KERNEL_TARGETS": sys.argv[1]} if len(sys.argv) > 1 else {}
        settings = {**os.environ, **targets, "LAYERCOMPILER_KERNEL_FLAGS": FLAGS, "LAYERCOMPILER_WIDE_FLAGS": "-O0"}
        subprocess.run(build, cwd=ROOT, env=settings, check=True, stdout=subprocess.DEVNULL)
        runtimes = [
            subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip() for name in ("libasan.so", "libubsan.so")
        ]
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter leaks by design
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "LAYERCOMPILER_KERNELS": f"{folder}/lib/layercompiler/kernels",
        }
        check = "from layercompiler.kernels import available; assert available(), 'the sanitized build does not load'"
        subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=environment, check=True)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels"], cwd=ROOT, env=environment
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
