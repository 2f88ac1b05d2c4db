"""The product of cones, and cones by name."""

from dataclasses import dataclass

import numpy as np
import pytest

from layercompiler import cones
from layercompiler.cones import (
    PSD,
    Cone,
    Exponential,
    Nonnegative,
    Power,
    Product,
    SecondOrder,
    Zero,
    cone_from_record,
    cone_record,
    register,
)
from layercompiler.errors import BuildError

BLOCKS = ((Zero(), 2), (Nonnegative(), 4), (SecondOrder(3), 2), (PSD(2), 1), (Exponential(), 2), (Power((0.3, 0.6)), 2))


def test_product_is_its_blocks():
    product = Product(BLOCKS)
    assert product.m == 2 + 4 + 6 + 3 + 6 + 6
    rng = np.random.default_rng(0)
    v, u, w = rng.standard_normal((3, 5, product.m))
    p = product.project_dual(v)
    assert [s.stop - s.start for s in product.slices] == [2, 4, 6, 3, 6, 6]
    for (cone, count), rows, part in zip(BLOCKS, product.slices, p.parts, strict=True):
        cut = lambda a, k=count, d=cone.dim, r=rows: a[..., r].reshape(*a.shape[:-1], k, d)  # noqa: E731
        one = cone.project_dual(cut(v))
        assert np.array_equal(cut(p.y), one.y) and np.array_equal(part.y, one.y)
        assert np.array_equal(cut(p.apply(u)), one.apply(cut(u)))
        assert np.array_equal(cut(p.second(u, w)), one.second(cut(u), cut(w)))
    stack = rng.standard_normal((7, 5, product.m))
    np.testing.assert_allclose(p.apply(stack)[3], p.apply(stack[3]), rtol=0, atol=1e-14)
    assert p.smooth.shape == (5,) and p.smooth.all()
    v[2, 3] = 0.0
    assert list(product.project_dual(v).smooth) == [True, True, False, True, True]


def test_violations_are_distances():
    product = Product(BLOCKS)
    v = np.random.default_rng(0).standard_normal((6, product.m))
    y = product.project_dual(v).y
    assert product.dual_violation(y).max() < 1e-14 and product.primal_violation(y - v).max() < 1e-14
    rays = Product(((Zero(), 1), (Nonnegative(), 2)))
    point = np.array([[-3.0, -2.0, 5.0]])
    assert rays.dual_violation(point) == 2.0 and rays.primal_violation(point) == 3.0


@pytest.mark.parametrize("blocks", [(), ((Nonnegative(), 3),)])
def test_small_products(blocks):
    product = Product(blocks)
    for batch in (0, 1, 3):
        p = product.project_dual(np.ones((batch, product.m)))
        assert p.y.shape == (batch, product.m) and p.smooth.shape == (batch,)
        assert p.apply(p.y).shape == p.y.shape and p.second(p.y, p.y).shape == p.y.shape
        assert product.dual_violation(p.y).shape == (batch,)


@pytest.mark.parametrize("cone", [cone for cone, _ in BLOCKS] + [Power(0.4)], ids=repr)
def test_records(cone):
    name, arguments = cone_record(cone)
    assert cone_from_record(name, arguments) == cone


def test_a_cone_from_outside(monkeypatch):
    monkeypatch.setattr(cones, "_CONES", dict(cones._CONES))

    @register
    @dataclass(frozen=True)
    class Nonpositive(Cone):
        name = "nonpositive"
        dim = 1
        expansion = Nonnegative().expansion

        def project_dual(self, v):
            raise NotImplementedError

    assert cone_from_record(*cone_record(Nonpositive())) == Nonpositive()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, float("nan"), (0.5, 1.5), ((0.5,),)])
def test_exponents_out_of_range(alpha):
    with pytest.raises(BuildError, match="exponent"):
        Power(alpha)
