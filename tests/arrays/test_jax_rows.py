"""Rows of a linear product in jax are those of its matrix, also where operations are left out."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

rng = np.random.default_rng(0)
M, W, D = rng.standard_normal((5, 5)), rng.standard_normal((7, 5)), rng.uniform(0.5, 2, 5)

PRODUCTS = {
    "matrix": lambda u: M @ u,
    "vector first": lambda u: u @ M,
    "scaled": lambda u: M @ (D * u),
    "negative": lambda u: M @ (-u) + (u * D) @ M,
    "negative of scaled": lambda u: W @ (-(u * D)),
    "divided": lambda u: W @ (u / D) - W @ u,
    "normal": lambda u: W.T @ (W @ u) + 0.3 * u,
    "indexed": lambda u: jnp.concatenate([u[2:], -u[:2]]) * D,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_rows_are_those_of_the_matrix(name):
    from layercompiler.arrays.jax_implicit import rows

    with jax.enable_x64(True):
        product = PRODUCTS[name]
        found = jax.jit(lambda: rows(product, jnp.ones(5)))()
        np.testing.assert_allclose(found, np.stack([product(jnp.asarray(e)) for e in np.eye(5)]), rtol=1e-13, atol=1e-14)
