"""Every example runs to its end and draws its picture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_runs_and_draws(name, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = ROOT / "examples" / f"{name}.py"
    short = ["--short"] if '"--short" in sys.argv' in script.read_text() else []
    done = subprocess.run([sys.executable, script, *short], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / f"{name}.png").stat().st_size > 2000
    assert done.stdout.strip()


def test_each_is_in_the_table():
    table = (ROOT / "examples" / "README.md").read_text()
    for name in EXAMPLES:
        assert f"[{name}]({name}.py)" in table, name
