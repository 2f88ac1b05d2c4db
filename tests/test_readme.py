"""The README's tour: its code blocks run, in order, and print what the text blocks behind them say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_tour():
    for name in ("torch", "jax", "tensorflow"):
        pytest.importorskip(name)
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, re.DOTALL)
    assert len(blocks) >= 8
    namespace = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        if expected:
            assert printed.getvalue() == expected


def test_the_two_commands_come_first():
    assert re.search(r"# layercompiler\n\n```\nmake demo .*\nmake test .*\n```", README)
