"""What the process takes of the machine: threads of torch and the kernels, and memory."""

from __future__ import annotations

import ctypes
import os

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
