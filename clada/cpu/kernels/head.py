"""The output head: which words are computed in full, logits, and what surprisal and entropy need."""

from __future__ import annotations

import numpy as np
from numba import njit

from clada.cpu.kernels.arguments import READ_HEAD
from clada.cpu.kernels.rows import (
    FIRST,
    copy_into,
    dot,
    eight_of,
    normalise,
    prepared,
    project,
    project_rows,
    row_bytes,
    row_times,
    rows_ahead,
)
from clada.cpu.kernels.scalars import FASTMATH, fast_exp, fast_tanh
from clada.cpu.kernels.team import barrier
from clada.cpu.kernels.vectors import add_codes, highest
from clada.methods.screen import BLOCK, CODE_OF_ZERO, CODES, LARGEST_SUM, LINE

SCREEN_TILE = 8192  # words whose estimates stay in a near cache while terms are added; their codes fill a page


@njit(fastmath=FASTMATH)
def softmax_sums(t, b, begin, end, s):  # type: ignore[no-untyped-def]
    """The highest of this thread's logits, and the sums that surprisal and entropy are made of."""
    logits = s.logits[b, begin:end]
    peak = highest(logits)
    total = np.float32(0)
    weighted = np.float32(0)
    for i in range(logits.shape[0]):
        p = fast_exp(logits[i] - peak)
        total += p
        weighted += p * (logits[i] - peak)
    s.load[t, b, 0], s.load[t, b, 1], s.load[t, b, 2] = peak, total, weighted
    return peak


@njit
def _screen_unit(total, n):  # type: ignore[no-untyped-def]
    """What a step of int16 is of n terms with that sum of sizes, so that no sum of theirs with codes is out of range.

    A code is at most CODE_OF_ZERO - 1 from zero, and a term that was rounded to whole steps half a step larger: some
    9,000 terms at most. `clada.methods.screen.screen_words` rounds as this does.
    """
    most = np.float32(CODE_OF_ZERO - 1)
    return most * max(total, np.float32(1e-30)) / (np.float32(LARGEST_SUM) - np.float32(0.5) * most * np.float32(n))


@njit(fastmath=FASTMATH)
def screen_head(t, threads, sync, x, w, s, select):  # type: ignore[no-untyped-def]
    """Logits by the screen's largest terms, then in full where the probability they give is not negligible."""
    batch, terms, vocabulary, asked = s.token.shape[0], w.screen.shape[0], w.head.shape[0], s.asked_from[0]
    first, last = terms * t // threads, terms * (t + 1) // threads
    s.reads[t, READ_HEAD] += project(
        s.screened, w.screen_basis, w.screen_scale, w.screen_offset, x, s.columns[asked:], first, last
    )
    barrier(sync, threads)
    which, factors, steps, estimates = s.rows[t], s.terms[t], s.steps[t], s.estimates[t]
    means, floors, near, columns = s.means[t], s.floors[t], s.near[t, :64], s.some_columns[t]
    for b in range(asked, batch):
        means[b] = 0
        for j in range(x.shape[1]):
            means[b] += w.head_mean[j] * x[b, j]
    blocks, read = w.screen.shape[1] // LINE, 0
    begin, end = blocks * t // threads * BLOCK, blocks * (t + 1) // threads * BLOCK
    for tile in range(begin, end, SCREEN_TILE):  # read once for all columns
        read, size = 0, min(SCREEN_TILE, end - tile)
        for b in range(asked, batch):
            n, total = 0, np.float32(0)
            for k in range(terms):
                z = s.screened[b, k]
                if k == 0 or abs(z) * w.screen_weight[k] >= select.screen_threshold[s.sequence[b]]:
                    which[n], factors[n] = k, z * w.screen_scale[k]
                    total += abs(factors[n])
                    n += 1
            read += n
            unit, lowest = _screen_unit(total, n), 0
            for r in range(n):
                steps[r] = np.int16(np.rint(factors[r] / unit))
                lowest -= CODE_OF_ZERO * steps[r]
            steps[n : n + 7] = 0  # of the last term, which comes again where there are fewer than eight
            estimates[:size] = np.int16(lowest)
            for r in range(0, n, 8):
                f = steps[r : r + 8]
                eight = (f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7])
                later = eight_of(which[:n], r + FIRST)
                add_codes(estimates[:size], w.screen, tile, eight_of(which[:n], r), eight, later)
            logits = s.logits[b, tile : min(tile + size, vocabulary)]
            for i in range(logits.shape[0]):
                logits[i] = means[b] + unit * estimates[i]
    for b in range(asked, batch):
        softmax_sums(t, b, begin, min(end, vocabulary), s)
    s.reads[t, READ_HEAD] += min(read, terms) * (end - begin) // CODES
    barrier(sync, threads)
    for b in range(asked, batch):
        peak = s.load[0, b, 0]
        for other in range(1, threads):
            peak = max(peak, s.load[other, b, 0])
        total = np.float32(0)
        for other in range(threads):
            total += s.load[other, b, 1] * fast_exp(s.load[other, b, 0] - peak)
        floors[b] = peak + np.log(total) - select.head_margin[s.sequence[b]]
    count = 0
    # Frequent words tend to come first, so blocks in turn give every thread its share of the likely ones.
    for block in range(t * 64, vocabulary, threads * 64):
        size = min(64, vocabulary - block)
        near[:] = 0
        for b in range(asked, batch):
            estimates = s.logits[b, block : block + size]
            for i in range(size):
                near[i] |= estimates[i] >= floors[b]
        for i in range(size):
            which[count] = block + i
            count += near[i]
    inputs = prepared(x, s.rounded_narrow[t], w.head)
    if batch == 1:
        project_rows(s.logits[0], w.head, w.head_scale, np.float32(0), inputs, which[:count])
    else:
        ahead = rows_ahead(w.head)
        for r in range(count):
            i, n = which[r], 0
            for b in range(asked, batch):
                if s.logits[b, i] >= floors[b]:
                    columns[n] = b
                    n += 1
            later = which[min(r + ahead, count - 1)]
            row_times(s.logits, w.head, w.head_scale, np.float32(0), i, later, inputs, columns[:n])
    s.reads[t, READ_HEAD] += count * row_bytes(w.head)
    barrier(sync, threads)


@njit(fastmath=FASTMATH)
def head_logits(t, threads, sync, w, c, s, select):  # type: ignore[no-untyped-def]
    """Logits of this thread's words, and its part of what surprisal and entropy need, of the columns asked for."""
    batch, vocabulary, first = s.token.shape[0], w.head.shape[0], s.asked_from[0]
    if first == batch:
        return
    for b in range(first, batch):
        if c.has_final_norm:
            normalise(s.normed[t, b], s.residual[t, b], w.final_norm, c.rms, c.eps)
        else:
            copy_into(s.normed[t, b], s.residual[t, b])
    x = s.normed[t]
    inputs = w.before_head.shape[0]
    if inputs > 0:
        s.reads[t, READ_HEAD] += inputs * x.shape[1] * w.before_head.itemsize // threads
        for i in range(inputs * t // threads, inputs * (t + 1) // threads):
            for b in range(first, batch):
                s.narrow[b, i] = dot(w.before_head[i], x[b])
        barrier(sync, threads)
        x = s.narrow
    begin, end = vocabulary * t // threads, vocabulary * (t + 1) // threads
    if w.screen.shape[0] > 0 and select.head_margin[0] < np.inf:
        screen_head(t, threads, sync, x, w, s, select)
    else:
        s.reads[t, READ_HEAD] += project(
            s.logits,
            w.head,
            w.head_scale,
            np.float32(0),
            prepared(x, s.rounded_narrow[t], w.head),
            s.columns[first:],
            begin,
            end,
        )
    for b in range(first, batch):
        logits = s.logits[b, begin:end]
        if c.final_softcap > 0:
            for i in range(logits.shape[0]):
                logits[i] = c.final_softcap * fast_tanh(logits[i] / c.final_softcap)
        peak = softmax_sums(t, b, begin, end, s)
        best = 0
        while best < logits.shape[0] - 1 and logits[best] != peak:
            best += 1
        s.peaks[t, b] = begin + best


@njit(fastmath=FASTMATH)
def merge_threads(threads, s):  # type: ignore[no-untyped-def]
    """Put together what the threads have of every column."""
    for b in range(s.token.shape[0]):
        for layer in range(s.neurons.shape[1]):
            s.neurons[b, layer] = 0
            for t in range(threads):
                s.neurons[b, layer] += s.computed[t, b, layer]
        # The last one's of a sequence stays.
        copy_into(s.value_sum[s.sequence[b]].reshape(-1), s.value_sums[b].reshape(-1))
    for b in range(s.asked_from[0], s.token.shape[0]):
        peak = np.float32(-np.inf)
        for t in range(threads):
            if s.load[t, b, 0] > peak:
                peak = s.load[t, b, 0]
                s.best[b] = s.peaks[t, b]
        total, mean = np.float32(0), np.float32(0)
        for t in range(threads):
            share, shift = fast_exp(s.load[t, b, 0] - peak), s.load[t, b, 0] - peak
            total += share * s.load[t, b, 1]
            mean += share * (s.load[t, b, 2] + shift * s.load[t, b, 1])  # a thread's sums are about its own peak
        s.log_total[b] = peak + np.log(total)
        s.entropy[b] = max(np.log(total) - mean / total, np.float32(0))
    for i in range(s.bytes_read.shape[0]):
        s.bytes_read[i] = 0
        for t in range(threads):
            s.bytes_read[i] += s.reads[t, i]
