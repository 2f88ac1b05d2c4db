"""Builds the kernels with AddressSanitizer and UBSan in a temporary folder and runs their tests (python tests/kernels/sanitize.py)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"


def main() -> int:
    """Returns pytest's exit status."""
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "setup.py", "build_ext", "--build-lib", f"{folder}/lib", "--build-temp", f"{folder}/temp"]
        subprocess.run(build, cwd=ROOT, env={**os.environ, "LAYERCOMPILER_KERNEL_FLAGS": FLAGS}, check=True, stdout=subprocess.DEVNULL)
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
