"""Cones: projections with exact derivatives, batched, one file per cone."""

from dataclasses import fields
from typing import Any

from layercompiler.cones.base import Cone, Expansion, Projection
from layercompiler.cones.exponential import Exponential
from layercompiler.cones.nonnegative import Nonnegative
from layercompiler.cones.power import Power
from layercompiler.cones.product import Product, ProductProjection
from layercompiler.cones.psd import PSD
from layercompiler.cones.second_order import SecondOrder
from layercompiler.cones.zero import Zero

__all__ = [
    "PSD",
    "Cone",
    "Expansion",
    "Exponential",
    "Nonnegative",
    "Power",
    "Product",
    "ProductProjection",
    "Projection",
    "SecondOrder",
    "Zero",
    "cone_from_record",
    "cone_record",
    "register",
]

_CONES: dict[str, type[Cone]] = {cone.name: cone for cone in (Zero, Nonnegative, SecondOrder, PSD, Exponential, Power)}


def register(kind: type[Cone]) -> type[Cone]:
    """Make a cone known by its name, so that saved layers can hold it; usable as a class decorator."""
    _CONES[kind.name] = kind
    return kind


def cone_record(cone: Cone) -> tuple[str, list[Any]]:
    """A cone as JSON-able values: its name and its constructor's arguments."""
    arguments = [getattr(cone, field.name) for field in fields(cone)]  # type: ignore[arg-type]
    return cone.name, [list(a) if isinstance(a, tuple) else a for a in arguments]


def cone_from_record(name: str, arguments: list[Any]) -> Cone:
    """The inverse of `cone_record`."""
    return _CONES[name](*(tuple(a) if isinstance(a, list) else a for a in arguments))  # type: ignore[abstract]
