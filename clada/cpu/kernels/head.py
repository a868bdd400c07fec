"""The output head: logits, and what surprisal and entropy need, in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit

from clada.cpu.kernels.arguments import READ_HEAD
from clada.cpu.kernels.rows import copy_into, dot, normalise, prepared, project
from clada.cpu.kernels.scalars import FASTMATH, fast_exp, fast_tanh
from clada.cpu.kernels.screen import screen_head, softmax_sums
from clada.cpu.kernels.team import barrier


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
