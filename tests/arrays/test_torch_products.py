"""Replayed products of a Jacobian are those of autograd, and code that decides by numbers is never replayed."""

import pytest
import torch

from layercompiler.arrays.torch_linear import Product, Program, Push, _Slot

torch.manual_seed(0)
A, B = torch.randn(2, 7, 5, dtype=torch.float64)
D = torch.rand(7, dtype=torch.float64)
S = torch.eye(5, dtype=torch.float64) + 0.1 * torch.randn(5, 5, dtype=torch.float64)

MAPS = {
    "logistic": lambda y: 0.3 * y - A.T @ (D * torch.sigmoid(-D * (A @ y))),
    "cell": lambda y: y - torch.tanh(S @ y + 1.0),
    "broadcast": lambda y: y / y.sum() - torch.softmax(S @ (y * y), -1),
    "indexed": lambda y: torch.cat([y[2:] * y[:1], y[:2].exp()]) - y.flip(0),
    "identity": lambda y: y * 1.0,
    "square root": lambda y: (y.abs() + 1).sqrt() @ S,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kind", [Product, Push])
def test_products_and_rows_are_those_of_autograd(name, kind):
    y = torch.randn(5, dtype=torch.float64, requires_grad=True)
    value = MAPS[name](y)
    J = torch.autograd.functional.jacobian(MAPS[name], y.detach())
    J = J.mT if kind is Push else J
    product = kind(value, y)
    for _ in range(5):
        c = torch.randn(5, dtype=torch.float64)
        given = c.clone()
        found = product(c)
        torch.testing.assert_close(found, c @ J, rtol=1e-12, atol=1e-13)
        found += 1.0  # results and operands may be changed in place
        torch.testing.assert_close(c, given, rtol=0, atol=0)
    for fresh in (product, kind(value, y)):
        rows = fresh.rows()
        if rows is not None:
            torch.testing.assert_close(rows, J, rtol=1e-12, atol=1e-13)
    assert name not in ("logistic", "cell") or product.program is not None


def test_a_product_of_zeros_vouches_for_no_record(monkeypatch):
    of = Program.of.__func__

    def wrong(cls, recorded, c, result):
        program = of(cls, recorded, c, result)
        program.result = program.add(torch.neg, [_Slot(program.result)], {})
        return program

    monkeypatch.setattr(Program, "of", classmethod(wrong))
    y = torch.randn(5, dtype=torch.float64, requires_grad=True)
    product = Product(S @ y, y)
    for c in (torch.zeros(5, dtype=torch.float64), *torch.eye(5, dtype=torch.float64)):
        torch.testing.assert_close(product(c), c @ S)


@pytest.mark.parametrize("off", [0.0, 1e-6])
def test_rows_in_single_precision_vouch_for_no_product_in_double(monkeypatch, off):
    of = Program.of.__func__

    def nearly(cls, recorded, c, result):
        program = of(cls, recorded, c, result)
        program.result = program.add(torch.mul, [_Slot(program.result), 1 + off], {})
        return program

    monkeypatch.setattr(Program, "of", classmethod(nearly))
    y = torch.randn(5, dtype=torch.float64, requires_grad=True)
    product = Product(S @ y, y)
    rows = product.rows(single=True)
    assert (rows is None) == (off > 0)
    c = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(product(c), c @ S)
    if rows is not None:
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, S.float(), rtol=1e-6, atol=1e-7)


class _Decides(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return S @ y

    @staticmethod
    def backward(ctx, c):
        return S.mT @ c if float(c[0]) > 0 else 2 * (S.mT @ c) - torch.from_numpy((S.mT @ c).numpy())


def test_python_within_the_graph_is_left_to_the_engine():
    y = torch.randn(5, dtype=torch.float64, requires_grad=True)
    product = Product(_Decides.apply(y) - y, y)
    for k in range(4):
        c = (-1.0) ** k * torch.ones(5, dtype=torch.float64)
        torch.testing.assert_close(product(c), S.mT @ c - c)
    assert product.program is None and product.rows() is None
