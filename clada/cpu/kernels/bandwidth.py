"""What the machine can read from memory, as the kernels read: a pass over an array."""

from __future__ import annotations

import numpy as np

from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.scalars import FASTMATH
from clada.cpu.kernels.team import begin_call, end_call


@kernel(nogil=True, fastmath=FASTMATH)
def read_all(t, threads, sync, values, sums):  # type: ignore[no-untyped-def]
    """Read thread `t`'s part of `values`; its sum goes to sums[t, 0], so that the reading is not left out."""
    begin_call(t, sync)
    part = values[len(values) * t // threads : len(values) * (t + 1) // threads]
    s = np.float32(0)
    for i in range(part.shape[0]):
        s += part[i]
    sums[t, 0] = s
    end_call(t, threads, sync)
