"""How many threads torch and the kernels use."""

from __future__ import annotations

import os

import torch


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Let torch use this many; it and the kernels run in turn, so each may have all of them."""
    torch.set_num_threads(threads)
