"""What the process takes of the machine: threads of torch and the kernels, memory, arrays on page boundaries."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Let torch use this many; it and the kernels run in turn, so each may have all of them."""
    torch.set_num_threads(threads)


def return_memory() -> None:
    """Give freed memory back to the system; glibc keeps as much as the weights take after a model was packed."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library, which has its own ways
        return


PAGE = 4096


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array that begins on a memory page, so that no row lies across more cache lines than it must.

    Large arrays of numpy, unlike those of torch, are in huge pages where the system has them: looking up small ones
    costs 7 % of a token.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + PAGE, np.uint8)
    begin = -room.ctypes.data % PAGE
    return room[begin : begin + size].view(dtype).reshape(shape)
