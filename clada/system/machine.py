"""What the process takes of the machine: threads of torch and the kernels, memory, arrays on page boundaries."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def available_cores() -> int:
    """Cores this process may use, by its affinity and a container's CPU quota: fewer than the machine may have."""
    from loky import cpu_count  # takes a tenth of a second to import, and only who gives no --threads needs it

    return int(cpu_count())


def set_threads(threads: int) -> None:
    """Let torch use this many; it and the kernels run in turn, so each may have all of them."""
    import torch  # the kernels do without

    torch.set_num_threads(threads)
    _end_threads_before_fork()


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Within the block, torch computes with so many: sums of another number of parts differ in their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def return_memory() -> None:
    """Give freed memory back to the system; glibc keeps as much as the weights take after a model was packed."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library, which has its own ways
        return


@functools.cache  # once a process
def _end_threads_before_fork() -> None:
    """From now on, end torch's idle threads before this process forks; parent and child start new ones when needed.

    Torch computes with GNU's OpenMP on Linux, which waits for ever in a child for threads that only its parent has.
    Other libraries (Intel's, LLVM's) see to this themselves.
    """
    maps = Path("/proc/self/maps")
    if not (maps.exists() and hasattr(os, "register_at_fork")):
        return
    places = [line.split(maxsplit=5) for line in maps.read_text().splitlines()]
    libraries = [ctypes.CDLL(path) for path in {place[5] for place in places if "libgomp" in place[-1]}]
    hard = 2  # omp_pause_hard: threads end, settings stay

    def pause() -> None:
        for library in libraries:
            library.omp_pause_resource_all(hard)

    os.register_at_fork(before=pause)


PAGE = 4096


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array that begins on a memory page, so that no row lies across more cache lines than it must.

    Large arrays of numpy, unlike those of torch, are in huge pages where the system has them. Looking up small pages
    takes a good part of a token.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + PAGE, np.uint8)
    begin = -room.ctypes.data % PAGE
    return room[begin : begin + size].view(dtype).reshape(shape)
