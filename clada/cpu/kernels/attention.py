"""Attention of every column over the key-value cache of its sequence, which threads share by positions.

Of a prompt, what lies before and between the products of matrices (`clada.cpu.prompts`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.arguments import READ_ATTENTION, READ_CACHE
from clada.cpu.kernels.rows import FIRST, add_listed, add_rows, normalise, rotate, row_bytes
from clada.cpu.kernels.scalars import FASTMATH, fast_exp, fast_tanh, narrow, widen
from clada.cpu.kernels.team import barrier
from clada.cpu.kernels.vectors import LANES, highest, mix_values, prefetch_row, score_block

# What `_attend_some` does: everything, or in two goes, between which threads learn each other's sums.
ATTEND, WEIGH, MIX = range(3)


@njit(fastmath=FASTMATH)
def attend(t, threads, sync, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """Attention of every column over this thread's share of its positions."""
    group, batch = c.heads // c.kv_heads, s.token.shape[0]
    any_selective, consecutive = False, False
    for b in range(batch):
        any_selective |= _attends_selectively(layer, b, c, s, select)
        consecutive |= b > 0 and s.sequence[b] == s.sequence[b - 1]
    if consecutive:  # a column sees keys of others, of which any thread may have some in its share
        if t == threads - 1:
            for b in range(batch):
                _append_to_cache(b, layer, w, c, s)
        barrier(sync, threads)
    for go in range((1 + any_selective) * batch):
        b = go % batch
        if go >= batch and b == 0:
            barrier(sync, threads)
        selective = _attends_selectively(layer, b, c, s, select)
        if go >= batch and not selective:
            continue
        stage = ATTEND if not selective else WEIGH if go < batch else MIX
        if stage != MIX:
            make_queries(s.query[t], layer, s.qkv[b], s.rotary[b], w, c)
            if t == threads - 1 and not consecutive:  # its share ends with the token itself
                _append_to_cache(b, layer, w, c, s)
        # As many heads at a time as share keys and fit the registers.
        for kv in range(c.kv_heads):
            h, end = kv * group, (kv + 1) * group
            while end - h >= 3:
                _attend_some(stage, t, threads, layer, b, (h, h + 1, h + 2), c, s, select)
                h += 3
            if end - h == 2:
                _attend_some(stage, t, threads, layer, b, (h, h + 1), c, s, select)
            elif end - h == 1:
                _attend_some(stage, t, threads, layer, b, (h,), c, s, select)


@njit
def _attends_selectively(layer, b, c, s, select):  # type: ignore[no-untyped-def]
    """Whether a column sees so many positions that leaving values out saves more than finding them costs."""
    seen = min(s.position[b] + 1, c.window[layer])
    return select.attention_threshold[s.sequence[b]] > 0 and seen >= select.attention_from


@njit(fastmath=FASTMATH)
def make_queries(query, layer, qkv, rotary, w, c):  # type: ignore[no-untyped-def]
    """A column's queries [heads, D], from its part of what the projections gave."""
    dim = c.head_dim
    width = c.heads * dim
    if c.norms_of_width:
        normalise(query.reshape(width), qkv[:width], w.head_norms[layer, 0], c.rms, c.eps)
    for head in range(c.heads):
        q = query[head]
        if not c.norms_of_width:
            for j in range(dim):
                q[j] = qkv[head * dim + j]
            if c.has_head_norms:
                normalise(q, q, w.head_norms[layer, 0], c.rms, c.eps)
        if c.rotary[layer] >= 0:
            rotate(q, rotary[c.rotary[layer]])
        for j in range(dim):
            q[j] *= c.scaling[layer]


@njit(fastmath=FASTMATH)
def store_key_and_value(keys, values, position, layer, qkv, rotary, w, c):  # type: ignore[no-untyped-def]
    """Put a column's keys and values into a sequence's cache of a layer; `qkv` is changed."""
    dim = c.head_dim
    if c.norms_of_width:
        keys_of_all = qkv[c.heads * dim : (c.heads + c.kv_heads) * dim]
        normalise(keys_of_all, keys_of_all, w.head_norms[layer, 1], c.rms, c.eps)
    for kv in range(c.kv_heads):
        offset = (c.heads + kv) * dim
        k = qkv[offset : offset + dim]
        if c.has_head_norms and not c.norms_of_width:
            normalise(k, k, w.head_norms[layer, 1], c.rms, c.eps)
        if c.rotary[layer] >= 0:
            rotate(k, rotary[c.rotary[layer]])
        v = qkv[offset + c.kv_heads * dim : offset + c.kv_heads * dim + dim]
        block, value = keys[kv, position // LANES], values[kv, position]
        for j in range(dim):
            block[j * LANES + position % LANES] = narrow(k[j], block)
            value[j] = narrow(v[j], value)


@njit(fastmath=FASTMATH)
def _attend_some(stage, t, threads, layer, b, heads, c, s, select):  # type: ignore[no-untyped-def]
    """Attention of some heads that share keys and values."""
    end = s.position[b] + 1
    begin = max(0, end - c.window[layer])
    first_block, blocks = begin // LANES, (end - 1) // LANES + 1 - begin // LANES
    own, after = first_block + blocks * t // threads, first_block + blocks * (t + 1) // threads
    at = own * LANES
    first = max(begin, at)
    n = max(0, min(end, after * LANES) - first)

    group = c.heads // c.kv_heads
    kv = heads[0] // group
    block = kv * s.keys.shape[3]
    keys = s.keys[s.sequence[b], layer].reshape(-1, s.keys.shape[4])
    values, scores, which = s.values[s.sequence[b], layer, kv], s.scores[t, b], s.rows[t]
    if stage != MIX:
        if heads[0] == kv * group:  # what the other heads of a group read again lies in a near cache
            s.reads[t, READ_CACHE] += n * row_bytes(values)
        for i in range(own, after):
            later = block + min(i + 4, after - 1)
            # Which values will be read may not be known yet.
            asked, asked_first = (values, i * LANES) if stage == ATTEND else (keys, later)
            score_block(scores, i * LANES - at, s.query[t], heads, keys, block + i, later, asked, asked_first)
        for h in heads:
            weights = scores[h, first - at : first - at + n]
            if c.softcap > 0:
                for i in range(n):
                    weights[i] = c.softcap * fast_tanh(weights[i] / c.softcap)
            peak = highest(weights)
            total = np.float32(0)
            for i in range(n):
                weights[i] = fast_exp(weights[i] - peak)
                total += weights[i]
            s.peak[t, b, h] = peak
            s.total[t, b, h] = total
        if stage == WEIGH:
            return
    count, asked, asked_first, ahead = n, values, first, FIRST
    if stage == MIX:
        least = select.attention_threshold[s.sequence[b]] / np.float32(end - begin)
        count = _choose(t, threads, b, kv * group, group, first - at, n, least, s)
        for r in range(min(count, FIRST)):
            prefetch_row(values, first + which[r])
        for h in heads:
            kept = np.float32(0)
            for r in range(count):
                kept += scores[h, first - at + which[r]]
            s.kept[t, b, h] = kept
    else:
        for i in range(n):
            which[i] = i
        # Values were asked for while their keys were read; now it is the next head's keys.
        asked, asked_first, ahead = keys.reshape(-1, c.head_dim), (block + s.keys.shape[3] + own) * LANES, 0
    if heads[0] == kv * group:
        s.reads[t, READ_CACHE] += count * row_bytes(values)
    mix_values(s.mixed[t, b], heads, scores, first - at, values, first, count, which, asked, asked_first, ahead)


@njit(fastmath=FASTMATH)
def _choose(t, threads, b, first_head, group, at, n, threshold, s):  # type: ignore[no-untyped-def]
    """List this thread's positions that any head of a group gives a weight of at least `threshold`; returns how many.

    All heads that share the values, not only those whose sums are made together: what one needs all get.
    """
    relative, which = s.relative[t, :n], s.rows[t]
    relative[:] = 0
    for h in range(first_head, first_head + group):
        peak, total = _over_threads(threads, b, h, s)
        # Of weights that are relative to this thread's own peak.
        limit = threshold * total * fast_exp(peak - s.peak[t, b, h])
        factor = np.float32(1) / max(limit, np.float32(1e-37))
        weights = s.scores[t, b, h, at : at + n]
        for i in range(n):
            relative[i] = max(relative[i], weights[i] * factor)
    count = 0
    for i in range(n):
        which[count] = i
        count += relative[i] >= 1
    return count


@njit(fastmath=FASTMATH)
def _over_threads(threads, b, head, s):  # type: ignore[no-untyped-def]
    """Highest score of a head, and the sum of exp(score - highest), over all positions."""
    peak = s.peak[0, b, head]
    for other in range(1, threads):
        peak = max(peak, s.peak[other, b, head])
    total = np.float32(0)
    for other in range(threads):
        if s.total[other, b, head] > 0:  # a thread may have had no positions
            total += s.total[other, b, head] * fast_exp(s.peak[other, b, head] - peak)
    return peak, total


@njit(fastmath=FASTMATH)
def _append_to_cache(b, layer, w, c, s):  # type: ignore[no-untyped-def]
    """Append the column's key and value to the cache, and the value to the mean of those in the window."""
    position, sequence = s.position[b], s.sequence[b]
    follows = b > 0 and s.sequence[b - 1] == sequence
    before = s.value_sums[b - 1, layer] if follows else s.value_sum[sequence, layer]
    keys, values = s.keys[sequence, layer], s.values[sequence, layer]
    store_key_and_value(keys, values, position, layer, s.qkv[b], s.rotary[b], w, c)
    for kv in range(c.kv_heads):
        value = values[kv, position]
        total, mean, count = s.value_sums[b, layer, kv], s.value_mean[b, kv], min(position + 1, c.window[layer])
        for j in range(c.head_dim):
            total[j] = before[kv, j] + widen(value[j])
            mean[j] = total[j] / np.float32(count)
        if count == c.window[layer]:
            leaving = values[kv, position + 1 - count]  # at the next token
            for j in range(c.head_dim):
                total[j] -= widen(leaving[j])


@njit(fastmath=FASTMATH)
def attention_output(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """This thread's rows of the output projection, into its partial sums."""
    dim = c.head_dim
    width = c.heads * dim
    begin, end = width * t // threads, width * (t + 1) // threads
    rows, weight = w.output[layer], select.output_weight[layer]
    which, near, batch = s.rows[t], s.near[t, : end - begin], s.token.shape[0]
    near[:] = 0
    for b in range(batch):
        s.after_attention[t, b, :] = 0
        mine, selective = s.attended[b], _attends_selectively(layer, b, c, s, select)
        for head in range(begin // dim, (end - 1) // dim + 1):
            peak, total = _over_threads(threads, b, head, s)
            first, last = max(begin, head * dim), min(end, (head + 1) * dim)
            for i in range(first, last):
                mine[i] = 0
            share_kept = np.float32(0)
            for other in range(threads):
                if s.total[other, b, head] > 0:
                    share = fast_exp(s.peak[other, b, head] - peak) / total
                    mixed = s.mixed[other, b, head]
                    for i in range(first, last):
                        mine[i] += share * mixed[i - head * dim]
                    share_kept += share * s.kept[other, b, head]
            if selective:
                # Positions left out get the mean of all values in the place of their own.
                mean = s.value_mean[b, head // (c.heads // c.kv_heads)]
                for i in range(first, last):
                    mine[i] += (np.float32(1) - share_kept) * mean[i - head * dim]
        threshold = select.output_threshold[s.sequence[b], layer]
        for i in range(begin, end):
            kept = abs(mine[i]) * weight[i] >= threshold
            mine[i] = mine[i] if kept else np.float32(0)
            near[i - begin] |= kept
    n = 0
    for i in range(begin, end):  # no branch that a processor could guess wrong
        which[n] = i
        n += near[i - begin]
    if batch == 1:
        add_rows(s.after_attention[t, 0], rows, 0, which[:n], s.attended[0])
    else:
        add_listed(s.after_attention[t], rows, which[:n], s.attended)
    s.reads[t, READ_ATTENTION] += n * row_bytes(rows)


# -- of prompts, called from Python ------------------------------------------------------------------------------------


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
