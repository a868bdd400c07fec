"""The MLP of one token: neurons leave early, by their gate or by their magnitude."""

from __future__ import annotations

import numpy as np
from numba import njit

from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.arguments import READ_MLP
from clada.cpu.kernels.rows import (
    WAITING,
    add_listed,
    add_rows,
    prepared,
    project_inputs,
    project_listed,
    project_rows,
    row_bytes,
)
from clada.cpu.kernels.scalars import FASTMATH, activate
from clada.cpu.kernels.vectors import LANES, prefetch_row
from clada.methods.selection import MLP_INPUT


@njit
def _list_needed(t, layer, begin, end, s, select):  # type: ignore[no-untyped-def]
    """List the neurons that any column may need; of several, `alive` says which one does. Returns how many."""
    batch, rows, masked = s.token.shape[0], s.rows[t], select.needed.shape[0] > 0
    count = 0
    if not masked:
        for i in range(begin, end):
            rows[i - begin] = i
        count = end - begin
        if batch > 1:
            s.alive[:, begin:end] = 1
    elif batch == 1:
        needed = select.needed[0, layer]
        for i in range(begin, end):
            rows[count] = i
            count += needed[i]
    else:
        for i in range(begin, end):
            any_needed = 0
            for b in range(batch):
                s.alive[b, i] = select.needed[s.sequence[b], layer, i]
                any_needed |= s.alive[b, i]
            rows[count] = i
            count += any_needed
    return count


@njit(fastmath=FASTMATH)
def _still_needed(t, begin, end, weight, thresholds, s):  # type: ignore[no-untyped-def]
    """Set h to zero where it is below its column's threshold, and list the neurons that any needs. Returns how many."""
    rows, near = s.rows[t], s.near[t, : end - begin]
    near[:] = 0
    for b in range(s.h.shape[0]):
        alive, h, limit = s.alive[b, begin:end], s.h[b, begin:end], thresholds[s.sequence[b]]
        for i in range(near.shape[0]):
            alive[i] &= np.uint8(abs(h[i]) * weight[begin + i] >= limit)
            h[i] = h[i] if alive[i] else np.float32(0)
            near[i] |= alive[i]
    count = 0
    for i in range(near.shape[0]):
        rows[count] = begin + i
        count += near[i]
    return count


@njit(fastmath=FASTMATH)
def mlp_of_batch(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """This thread's neurons, into its partial sums; each row that any column needs is read once.

    It is multiplied with all of them, as that takes less time than telling those that need it from the others.
    """
    x, batch, neurons = prepared(s.normed[t], s.rounded[t], w.up), s.token.shape[0], w.up.shape[1]
    begin, end = neurons * t // threads, neurons * (t + 1) // threads
    rows, up = s.rows[t], w.up[layer]
    count = _list_needed(t, layer, begin, end, s, select)
    for b in range(batch):
        s.h[b, begin:end] = 0
    if c.gated:
        gate = w.gate[layer]
        s.reads[t, READ_MLP] += count * row_bytes(gate)
        project_listed(s.h, gate, w.gate_scale[layer], w.gate_bias[layer], x, s.columns, rows, 0, count)
        for b in range(batch):
            activate(s.h[b, begin:end], c.activation)
        count = _still_needed(t, begin, end, select.gate_weight[layer], select.gate_threshold[:, layer], s)
        project_listed(s.up, up, w.up_scale[layer], w.up_bias[layer], x, s.columns, rows, 0, count)
        for b in range(batch):
            h, factor = s.h[b, begin:end], s.up[b, begin:end]
            for i in range(h.shape[0]):
                h[i] *= factor[i]
    else:
        project_listed(s.h, up, w.up_scale[layer], w.up_bias[layer], x, s.columns, rows, 0, count)
        for b in range(batch):
            activate(s.h[b, begin:end], c.activation)
    s.reads[t, READ_MLP] += count * row_bytes(up)
    count = _still_needed(t, begin, end, select.weight[layer], select.threshold[:, layer], s)
    down = w.down[layer]
    s.reads[t, READ_MLP] += count * row_bytes(down)
    for b in range(batch):
        s.after_mlp[t, b, :] = 0
        alive, computed = s.alive[b, begin:end], 0
        for i in range(alive.shape[0]):
            computed += alive[i]
        s.computed[t, b, layer] = computed
    add_listed(s.after_mlp[t], down, rows[:count], s.h)


@njit(fastmath=FASTMATH)
def _list_kept(rows, count, h, factor, activation, weight, threshold, later):  # type: ignore[no-untyped-def]
    """Finish h of the listed neurons, by their factor or the nonlinearity, and list those above a threshold.

    Rows of `later` that are on the new list are fetched into a cache at once: memory would idle meanwhile. Returns how
    many neurons are on it.
    """
    kept, prefetched = 0, 0
    for begin in range(0, count, LANES * 4):
        end = min(begin + LANES * 4, count)
        part = slice(rows[begin], rows[end - 1] + 1)  # with what lies between, which nothing reads
        values = h[part]
        if factor.shape[0] > 0:
            factors = factor[part]
            for i in range(values.shape[0]):
                values[i] *= factors[i]
        else:
            activate(values, activation)
        if threshold > 0:
            for r in range(begin, end):  # no branch that a processor could guess wrong
                i = rows[r]
                rows[kept] = i
                kept += abs(h[i]) * weight[i] >= threshold
        else:
            kept = end
        while prefetched < min(kept, WAITING):
            prefetch_row(later, rows[prefetched])
            prefetched += 1
    return kept


@njit(fastmath=FASTMATH)
def mlp_of_one(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """This thread's neurons of a single column, into its partial sums; without the lists that several need."""
    x, h, factor, neurons = prepared(s.normed[t], s.rounded[t], w.up), s.h[0], s.up[0], w.up.shape[1]
    begin, end = neurons * t // threads, neurons * (t + 1) // threads
    rows, up, down = s.rows[t], w.up[layer], w.down[layer]
    count = _list_needed(t, layer, begin, end, s, select)
    up_scale, up_bias = w.up_scale[layer], w.up_bias[layer]
    if c.gated:
        gate = w.gate[layer]
        s.reads[t, READ_MLP] += count * row_bytes(gate)
        project_rows(h, gate, w.gate_scale[layer], w.gate_bias[layer], x, rows[:count])
        weight, threshold = select.gate_weight[layer], select.gate_threshold[0, layer]
        count = _list_kept(rows, count, h, factor[:0], c.activation, weight, threshold, up)
        project_rows(factor, up, up_scale, up_bias, x, rows[:count])
    else:
        project_rows(h, up, up_scale, up_bias, x, rows[:count])
        factor = factor[:0]
    s.reads[t, READ_MLP] += count * row_bytes(up)
    weight, threshold = select.weight[layer], select.threshold[0, layer]
    count = _list_kept(rows, count, h, factor, c.activation, weight, threshold, down)
    s.computed[t, 0, layer] = count
    s.reads[t, READ_MLP] += count * row_bytes(down)
    out = s.after_mlp[t, 0]
    out[:] = 0
    add_rows(out, down, 0, rows[:count], h)


@njit(fastmath=FASTMATH)
def mlp_by_input(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """This thread's neurons on input-major tensors, into its partial sums: inputs are left out, not neurons."""
    x, batch, neurons = s.normed[t], s.token.shape[0], w.down.shape[1]
    begin, end = neurons * t // threads, neurons * (t + 1) // threads
    rows = s.rows[t]
    weight, threshold = select.input_weight[layer, MLP_INPUT], select.input_threshold[:, layer, MLP_INPUT]
    s.reads[t, READ_MLP] += project_inputs(
        s.h, w.up[layer], w.up_scale[layer], w.up_bias[layer], x, s.sequence, weight, threshold, rows, begin, end
    )
    gated = c.gated
    if gated:
        s.reads[t, READ_MLP] += project_inputs(
            s.up, w.gate[layer], w.gate_scale[layer], w.gate_bias[layer], x, s.sequence, weight, threshold,
            rows, begin, end,
        )  # fmt: skip
    down, weight = w.down[layer], select.weight[layer]
    read = 0
    for b in range(batch):
        if gated:
            activate(s.up[b, begin:end], c.activation)
            for i in range(begin, end):
                s.h[b, i] *= s.up[b, i]
        else:
            activate(s.h[b, begin:end], c.activation)
        n = 0
        for i in range(begin, end):
            if abs(s.h[b, i]) * weight[i] >= select.threshold[s.sequence[b], layer]:
                rows[n] = i
                n += 1
        out = s.after_mlp[t, b]
        out[:] = 0
        add_rows(out, down, 0, rows[:n], s.h[b])
        s.computed[t, b, layer] = n
        read += n
    s.reads[t, READ_MLP] += min(read, end - begin) * row_bytes(down)


# -- of prompts, called from Python ------------------------------------------------------------------------------------


@kernel(nogil=True, fastmath=FASTMATH)
def finish_neurons(h, factor, activation):  # type: ignore[no-untyped-def]
    """The nonlinearity of h [B, N], times a factor [B, N]; [0, N] for none."""
    for b in range(h.shape[0]):
        activate(h[b], activation)
        if factor.shape[0] > 0:
            for i in range(h.shape[1]):
                h[b, i] *= factor[b, i]
