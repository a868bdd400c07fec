"""What a prompt's tokens need between products of matrices: norms, heads, weights of attention, the nonlinearity."""

from __future__ import annotations

import numpy as np

from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.attention import make_queries, store_key_and_value
from clada.cpu.kernels.rows import normalise
from clada.cpu.kernels.scalars import FASTMATH, activate, fast_exp, fast_tanh, widen
from clada.cpu.kernels.vectors import LANES, highest


@kernel(nogil=True, fastmath=FASTMATH)
def widen_rows(out, rows):  # type: ignore[no-untyped-def]
    """out[i, j] = rows[i, j] as float32, without scales."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = widen(rows[i, j])


@kernel(nogil=True, fastmath=FASTMATH)
def normalise_rows(out, x, weights, rms, eps):  # type: ignore[no-untyped-def]
    """The norm of every row; `out` may be `x`."""
    for i in range(x.shape[0]):
        normalise(out[i], x[i], weights, rms, eps)


@kernel(nogil=True, fastmath=FASTMATH)
def make_heads(w, c, layer, first, qkv, rotary, query, keys, values):  # type: ignore[no-untyped-def]
    """Queries of consecutive tokens, and their keys and values into the cache.

    Args:
        w: `Tensors`, boxed.
        c: `Constants`, boxed.
        layer: whose.
        first: position of the first token.
        qkv: [B, Q + 2 K].
        rotary: [B, R, 2, rotary width].
        query: [B, heads, D], written.
        keys: [kv heads, C / 16, D * 16], as in `Scratch`, of a sequence.
        values: [kv heads, C, D].
    """
    for b in range(qkv.shape[0]):
        make_queries(query[b], layer, qkv[b], rotary[b], w.value, c.value)
        store_key_and_value(keys, values, first + b, layer, qkv[b], rotary[b], w.value, c.value)


@kernel(nogil=True, fastmath=FASTMATH)
def read_cache(keys, values, some_keys, some_values, begin, end):  # type: ignore[no-untyped-def]
    """Keys [D, C] and values [C, D] of some positions of a head in float32, from its cache."""
    for position in range(begin, end):
        block = some_keys[position // LANES]
        for j in range(values.shape[1]):
            keys[j, position] = widen(block[j * LANES + position % LANES])
            values[position, j] = widen(some_values[position, j])


@kernel(nogil=True, fastmath=FASTMATH)
def weigh(scores, totals, first, group, begin, window, softcap):  # type: ignore[no-untyped-def]
    """Turn attention's scores into weights, in place, but for the division by their sums, which `totals` gets.

    Args:
        scores: [B * group, n], of consecutive tokens' queries, of some heads each.
        totals: [B * group].
        first: position of the first token.
        group: heads.
        begin: position of the first key.
        window: positions that a token sees.
        softcap: 0 for none.
    """
    for r in range(scores.shape[0]):
        end = first + r // group + 1
        low, high = max(0, end - window - begin), end - begin
        scores[r, :low] = 0
        scores[r, high:] = 0
        row = scores[r, low:high]
        if softcap > 0:
            for i in range(row.shape[0]):
                row[i] = softcap * fast_tanh(row[i] / softcap)
        peak = highest(row)
        total = np.float32(0)
        for i in range(row.shape[0]):
            row[i] = fast_exp(row[i] - peak)
            total += row[i]
        totals[r] = total


@kernel(nogil=True, fastmath=FASTMATH)
def finish_neurons(h, factor, activation):  # type: ignore[no-untyped-def]
    """The nonlinearity of h [B, N], times a factor [B, N]; [0, N] for none."""
    for b in range(h.shape[0]):
        activate(h[b], activation)
        if factor.shape[0] > 0:
            for i in range(h.shape[1]):
                h[b, i] *= factor[b, i]
