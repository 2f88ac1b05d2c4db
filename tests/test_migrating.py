"""docs/migrating.md: the code after runs, and where the other library is installed the code before gives the same numbers."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text()
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
# What is compared: a function of the names that a piece of code leaves behind; and how exact the peer is.
RESULTS = {
    "cvxpylayers": ("cvxpylayers", lambda n: [n["solution"], n["A_value"].grad], 1e-6),
    "qpth and other layers of matrices": ("qpth", lambda n: [n["x"], n["p"].grad], 1e-4),
    "Theseus": ("theseus", lambda n: [n["found"], n["seen"].grad], 1e-6),
    "JAXopt": ("jaxopt", lambda n: [*n["slopes"], n["near"]], 1e-8),
    "PyEPO": ("pyepo", lambda n: [n["loss"], n["predicted"].grad], 1e-6),
    "torch-imle": ("imle", lambda n: [n["theta"].grad], 1e-12),
}


@pytest.fixture(autouse=True)
def as_it_was():
    jax = pytest.importorskip("jax")
    wide = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", wide)


def results(title, code):
    namespace = {}
    exec(compile(code, f"migrating.md, {title}", "exec"), namespace)
    return [np.asarray(r.detach() if hasattr(r, "detach") else r, dtype=float) for r in RESULTS[title][1](namespace)]


def test_every_section_is_here():
    assert list(SECTIONS) == list(RESULTS)


@pytest.mark.parametrize("title", RESULTS)
def test_before_and_after(title):
    pytest.importorskip("torch")
    before, after = SECTIONS[title]
    found = results(title, after)
    assert all(np.isfinite(r).all() and r.any() for r in found)
    peer, _, tolerance = RESULTS[title]
    if importlib.util.find_spec(peer) is None:
        return
    for ours, theirs in zip(found, results(title, before), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
