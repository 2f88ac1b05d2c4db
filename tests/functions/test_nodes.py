"""Closed forms against declarative nodes of the same problems, which go through the general rule."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler import functions as lf


def start(xp, x):
    return xp.mean(x, axis=-1, keepdims=True)


def pseudo_huber(xp, y, x):
    return xp.sum(xp.sqrt(1.0 + (y - x) ** 2) - 1.0, axis=-1)


def welsch(xp, y, x):
    return xp.sum(1.0 - xp.exp(-0.5 * (y - x) ** 2), axis=-1)


def compare(closed, layer, x):
    c = torch.randn(closed(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), closed(x), rtol=1e-7, atol=1e-8)
    a, b = (torch.func.grad(lambda v, f=f: (f(v) * c).sum())(x) for f in (closed, layer))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", ["pseudo-huber", "welsch"])
def test_pooling_is_its_declarative_node(penalty):
    objective = {"pseudo-huber": pseudo_huber, "welsch": welsch}[penalty]
    layer = lc.export(lc.Declarative(objective, init=start), "torch")
    x = torch.tensor(np.random.default_rng(0).standard_normal((3, 9)))
    compare(lambda x: lf.robust_pool(x, penalty)[..., None], layer, x)


def test_affine_projection_is_its_declarative_node():
    A, b = np.random.default_rng(1).standard_normal((2, 5)), np.ones(2)
    node = lc.Declarative(lambda xp, y, x: 0.5 * xp.sum((y - x) ** 2, axis=-1), linear=(A, b), init=lambda xp, x: xp.zeros_like(x))
    x = torch.tensor(np.random.default_rng(2).standard_normal((3, 5)))
    compare(lambda x: lf.project_affine(x, A, b), lc.export(node, "torch"), x)
