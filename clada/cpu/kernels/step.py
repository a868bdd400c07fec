"""Some positions of some sequences through the whole model: a jitted function that several threads run side by side.

A column is one position of one sequence. Columns share every row of weights that is read: those of several sequences,
and consecutive positions of one sequence, which see each other's keys and values in the cache. What a column gets has
the same bits whatever runs beside it.

Decoding is bound by the bytes of weights read, so a weight that is not read is time saved. Every tensor is laid out
in rows that are read whole or not at all: a neuron is a row of W_gate, a row of W_up and a row of the transposed
W_down, and leaves early when its gate or its magnitude c_i = |h_i| ||w_down_i|| (Eq. 9) falls below a threshold. The
same test spares rows of the attention's output projection, and the output head computes in full only the words that
can still matter. Thresholds of zero leave nothing out: the dense model.

Each thread owns a slice of every tensor's rows; slices meet at a barrier. The residual stream is kept by every thread
for itself, computed the same way, which is cheaper than one more barrier.

Weights are float32, bfloat16 (held as uint16, numba has no such type), int8 with a float32 scale per output, or blocks
of `clada.cpu.blocks`, which lie where their arrays say. Arithmetic is float32 but for exact GELU (float64) and the
estimate of the vocabulary (codes of four bits).
"""

from __future__ import annotations

from numba import njit

from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.arguments import (
    AFTER_ATTENTION,
    AFTER_MLP,
    ATTENTION_RESIDUAL,
    BEFORE_ATTENTION,
    BEFORE_MLP,
    MLP_RESIDUAL,
    READ_ATTENTION,
)
from clada.cpu.kernels.attention import attend, attention_output
from clada.cpu.kernels.head import head_logits, merge_threads
from clada.cpu.kernels.mlp import mlp_by_input, mlp_of_batch, mlp_of_one
from clada.cpu.kernels.rows import copy_into, dot, normalise, prepared, project, project_inputs
from clada.cpu.kernels.scalars import FASTMATH, scale_of
from clada.cpu.kernels.team import barrier, barrier_before, begin_call, end_call
from clada.cpu.kernels.vectors import row_into
from clada.methods.selection import ATTENTION_INPUT, BY_INPUT


@njit(fastmath=FASTMATH)
def _into_residual(t, threads, layer, partial, rows, scales, bias, after, residual_after, w, c, s):  # type: ignore[no-untyped-def]
    """Add a sublayer's output, summed over threads, to this thread's residual stream."""
    for b in range(s.token.shape[0]):
        y = s.normed[t, b]
        y[:] = 0
        for other in range(threads):
            part = partial[other, b]
            for j in range(y.shape[0]):
                y[j] += part[j]
        for j in range(y.shape[0]):
            y[j] = y[j] * scale_of(rows, scales, j) + bias[j]
        if c.has_norm[after]:
            normalise(y, y, w.norms[layer, after], c.rms, c.eps)
        x = s.residual[t, b]
        for j in range(y.shape[0]):
            x[j] += y[j]
        if c.has_norm[residual_after]:
            normalise(x, x, w.norms[layer, residual_after], c.rms, c.eps)


@njit(fastmath=FASTMATH)
def _attention_into_residual(t, threads, layer, w, c, s):  # type: ignore[no-untyped-def]
    """Add what attention gave to this thread's residual stream."""
    _into_residual(
        t, threads, layer, s.after_attention, w.output[layer], w.output_scale[layer], w.output_bias[layer],
        AFTER_ATTENTION, ATTENTION_RESIDUAL, w, c, s,
    )  # fmt: skip


@njit(fastmath=FASTMATH)
def _into_normed(t, layer, before, w, c, s):  # type: ignore[no-untyped-def]
    """The input of a sublayer."""
    for b in range(s.token.shape[0]):
        if c.has_norm[before]:
            normalise(s.normed[t, b], s.residual[t, b], w.norms[layer, before], c.rms, c.eps)
        else:
            copy_into(s.normed[t, b], s.residual[t, b])


@njit(fastmath=FASTMATH)
def _embed_tokens(t, w, c, s):  # type: ignore[no-untyped-def]
    """What enters the first layer, the same in every thread."""
    for b in range(s.token.shape[0]):
        token, x = s.token[b], s.residual[t, b]
        scale = scale_of(w.embedding, w.embedding_scale, token) * c.embedding_factor
        if w.before_layers.shape[0] > 0:
            narrow = s.narrow[b]  # every thread writes the same
            row_into(narrow, w.embedding, token)
            for j in range(narrow.shape[0]):
                narrow[j] *= scale
            for i in range(x.shape[0]):
                x[i] = dot(w.before_layers[i], narrow)
        else:
            row_into(x, w.embedding, token)
            for j in range(x.shape[0]):
                x[j] *= scale
        if w.positions.shape[0] > 0:
            for j in range(x.shape[0]):
                x[j] += w.positions[s.position[b], j]


@kernel(nogil=True, announce=True)
def decode_step(t, threads, sync, w, c, s, select):  # type: ignore[no-untyped-def]
    """Run thread `t` of `threads` through the tokens of all columns; all of them must be called at once.

    Args:
        t: 0 to threads - 1.
        threads: how many run.
        sync: of the team, see `clada.cpu.kernels.team.Team`.
        w: `Tensors`, as all that follow boxed by `box`.
        c: `Constants`.
        s: `Scratch`; what comes before the caches is the input, what follows `reads` the output; the caches grow by
            the positions of the columns.
        select: `Selection`.
    """
    _step(t, threads, sync, w.value, c.value, s.value, select.value)


# What this calls is compiled with the same flags. Without reference counts, so that nothing can be allocated: counting
# those of all arrays in these tuples at every call is a good part of a token. Division as numpy's: a check for zero
# would keep loops from vectors.
@njit(fastmath=FASTMATH, _nrt=False, error_model="numpy")
def _step(t, threads, sync, w, c, s, select):  # type: ignore[no-untyped-def]
    begin_call(t, sync)
    if s.layers_done[0] == 0:
        _embed_tokens(t, w, c, s)
    for i in range(s.reads.shape[1]):
        s.reads[t, i] = 0
    rows = s.qkv.shape[1]
    begin, end = rows * t // threads, rows * (t + 1) // threads
    for layer in range(s.layers_done[0], w.qkv.shape[0]):
        _into_normed(t, layer, BEFORE_ATTENTION, w, c, s)
        if c.layout == BY_INPUT:
            s.reads[t, READ_ATTENTION] += project_inputs(
                s.qkv, w.qkv[layer], w.qkv_scale[layer], w.qkv_bias[layer], s.normed[t], s.sequence,
                select.input_weight[layer, ATTENTION_INPUT], select.input_threshold[:, layer, ATTENTION_INPUT],
                s.rows[t], begin, end,
            )  # fmt: skip
        else:
            x = prepared(s.normed[t], s.rounded[t], w.qkv)
            s.reads[t, READ_ATTENTION] += project(
                s.qkv, w.qkv[layer], w.qkv_scale[layer], w.qkv_bias[layer], x, s.columns, begin, end
            )
        barrier(sync, threads)
        attend(t, threads, sync, layer, w, c, s, select)
        barrier_before(w.output[layer], w.output.shape[1] * t // threads, sync, threads)
        attention_output(t, threads, layer, w, c, s, select)
        barrier_before(w.gate[layer], w.up.shape[1] * t // threads, sync, threads)
        if not c.parallel:
            _attention_into_residual(t, threads, layer, w, c, s)
        _into_normed(t, layer, BEFORE_MLP, w, c, s)
        if c.layout == BY_INPUT:
            mlp_by_input(t, threads, layer, w, c, s, select)
        elif s.token.shape[0] == 1:
            mlp_of_one(t, threads, layer, w, c, s, select)
        else:
            mlp_of_batch(t, threads, layer, w, c, s, select)
        barrier_before(w.qkv[min(layer + 1, w.qkv.shape[0] - 1)], begin, sync, threads)
        if c.parallel:
            _attention_into_residual(t, threads, layer, w, c, s)
        _into_residual(
            t, threads, layer, s.after_mlp, w.down[layer], w.down_scale[layer], w.down_bias[layer],
            AFTER_MLP, MLP_RESIDUAL, w, c, s,
        )  # fmt: skip
    head_logits(t, threads, sync, w, c, s, select)
    end_call(t, threads, sync)
    if t == 0:
        merge_threads(threads, s)
