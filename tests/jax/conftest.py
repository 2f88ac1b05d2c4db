"""Every jax test runs in float64 unless it says otherwise."""

import pytest

jax = pytest.importorskip("jax")


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield
