"""Builds the kernels with AddressSanitizer and UBSan in a temporary folder and runs their tests.

    python tests/kernels/sanitize.py [scalar,avx2,avx512 | native | all] [pytest's arguments]

By default (native) the scalar code and this machine's widest instruction set are compiled into one library; the tests are those
of the kernels and of the tapes that least squares records. Wide vectors are compiled without optimization, which the sanitizers
make several times as slow to compile and no more thorough. The build takes about one and a half minutes of one core.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O1 -g1 -fno-wrapv -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
TESTS = ("tests/kernels", "tests/least_squares/test_native.py")


def native() -> str:
    """The widest instruction set of this machine that the build knows."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "neon"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.exists() else ""
    return next((wide for wide, flag in (("avx512", "avx512dq"), ("avx2", "avx2")) if flag in flags), "scalar")


def main() -> int:
    """Returns pytest's exit status."""
    compiler = os.environ.get("CXX", "g++")
    wanted, chosen = (sys.argv[1] if len(sys.argv) > 1 else "native"), sys.argv[2:] or TESTS
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "setup.py", "build_ext", "--build-lib", f"{folder}/lib", "--build-temp", f"{folder}/temp"]
        targets = {} if wanted == "all" else {"LAYERCOMPILER_KERNEL_TARGETS": native() if wanted == "native" else wanted}
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
            [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-m", "not slow", *chosen],
            cwd=ROOT,
            env=environment,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
