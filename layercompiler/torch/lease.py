"""Tensors whose memory is used again: fresh pages cost as much as the numbers that are written to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGE, _KEPT = 2**17, 2**28  # bytes of a tensor whose memory is used again, and of all such memory that waits

_waiting: dict[int, list[np.ndarray]] = {}


class _Lease(np.ndarray):
    """Memory of a tensor that is handed back when the tensor dies."""

    home: np.ndarray

    def __del__(self) -> None:
        home = self.__dict__.get("home")
        if home is not None and sum(size * len(group) for size, group in tuple(_waiting.items())) + home.nbytes <= _KEPT:
            _waiting.setdefault(home.nbytes, []).append(home)


def empty(shape: Sequence[int], dtype: Any = np.float64) -> Tensor:
    """A contiguous tensor on the host."""
    count = math.prod(shape)
    if 8 * count < _LARGE:
        return torch.from_numpy(np.empty(shape, dtype))  # in half the time of torch.empty
    size = count * dtype().itemsize
    try:
        home = _waiting[size].pop().view(dtype)
    except (KeyError, IndexError):
        home = np.empty(count, dtype)
    lease = home.view(_Lease)
    lease.home = home
    return torch.from_numpy(lease).view(shape)
