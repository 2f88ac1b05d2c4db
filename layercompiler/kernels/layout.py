"""Blocks of cones as the kernels name them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def cone_list(blocks: Iterable[tuple[Any, int]]) -> list[tuple[str, float]]:
    """The cones of `Conic` and `Newton` for (cone, count) blocks of `layercompiler.cones.Product`."""
    out: list[tuple[str, float]] = []
    for cone, count in blocks:
        match cone.name:
            case "second_order":
                out += [("second_order", cone.dim)] * count
            case "psd":
                out += [("psd", cone.order)] * count
            case "power":
                out += [("power", float(alpha)) for alpha in cone.alphas(count)]
            case name:
                out.append((name, count))
    return out
