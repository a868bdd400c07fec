"""What the kernels are given: weights, constants of the architecture, buffers; as named tuples of arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.experimental import structref

from clada.cpu.kernel_cache import kernel

# Places of a layer's norms in `Tensors.norms`.
BEFORE_ATTENTION, AFTER_ATTENTION, ATTENTION_RESIDUAL, BEFORE_MLP, AFTER_MLP, MLP_RESIDUAL = range(6)

# Columns of `Scratch.reads`: bytes of weights and cache read.
READ_ATTENTION, READ_MLP, READ_HEAD, READ_CACHE = range(4)


class Tensors(NamedTuple):
    """Weights of a model; L layers, H hidden, N neurons, Q and K the widths of all query and all key heads.

    Scales box one float32 per output (of the screen: per term) for int8 and are empty otherwise. Absent parts are
    empty. Matrices in blocks are int64 with a last dimension of 1: where every row lies. By input, qkv, gate and up are
    transposed ([L, H, Q + 2 K], [L, H, N]).
    """

    embedding: np.ndarray  # [V, E]; the head again where they are one
    embedding_scale: np.ndarray  # [V]
    positions: np.ndarray  # [P, H] float32, learned; or [0, H]
    before_layers: np.ndarray  # [H, E], or [0, E]: what is between the embedding and the first layer
    qkv: np.ndarray  # [L, Q + 2 K, H]
    qkv_scale: np.ndarray
    qkv_bias: np.ndarray  # [L, Q + 2 K]
    output: np.ndarray  # [L, Q, H], the attention's output projection, transposed
    output_scale: np.ndarray
    output_bias: np.ndarray  # [L, H]
    gate: np.ndarray  # [L, N, H]; without a gate this, its scale and bias are those of up
    gate_scale: np.ndarray
    gate_bias: np.ndarray  # [L, N]
    up: np.ndarray  # [L, N, H]
    up_scale: np.ndarray
    up_bias: np.ndarray  # [L, N]
    down: np.ndarray  # [L, N, H], transposed
    down_scale: np.ndarray
    down_bias: np.ndarray  # [L, H]
    norms: np.ndarray  # [L, 6, 2, H], weight and bias
    head_norms: np.ndarray  # [L, 2, 2, D or Q], of queries and of keys, weight and bias
    final_norm: np.ndarray  # [2, H]
    before_head: np.ndarray  # [E, H], or [0, H]: what is between the final norm and the head
    head: np.ndarray  # [V, E]
    head_scale: np.ndarray  # [V]
    # The screen of the head, by which words are found whose logits matter: logits are about head_mean x + the sum over
    # some k of z_k screen_scale[k] (screen[k] - CODE_OF_ZERO), z = screen_basis x + screen_offset.
    screen: np.ndarray  # [K, V / 2] uint8, two codes a byte, see `clada.methods.screen.Screen`; or [0, 0] without one
    screen_scale: np.ndarray  # [K] float32
    screen_basis: np.ndarray  # [K, E] bfloat16; row 0 is zero
    screen_offset: np.ndarray  # [K] float32; 1 for row 0, which is always read
    screen_weight: np.ndarray  # [K] float32
    head_mean: np.ndarray  # [E] float32


class Constants(NamedTuple):
    """What else the architecture says."""

    embedding_factor: Any  # float32, of all embeddings
    heads: int
    kv_heads: int
    head_dim: int
    activation: int
    has_norm: np.ndarray  # [6], which norms a layer has
    has_head_norms: int
    norms_of_width: int  # 1: they are of the width of all heads, 0: of each head
    has_final_norm: int
    rms: int  # 1: RMSNorm, 0: LayerNorm
    eps: float
    scaling: np.ndarray  # [L], of attention scores
    softcap: Any  # float32, of attention scores, 0 for none
    final_softcap: Any  # float32, of logits
    window: np.ndarray  # [L], sliding windows in tokens, a huge number for none
    rotary: np.ndarray  # [L], row of `Scratch.rotary`, -1 for none
    gated: int
    parallel: int  # 1: the MLP's input is the residual stream before attention is added
    layout: int


class Scratch(NamedTuple):
    """Inputs, outputs and what lies between; S sequences, B columns, T threads, C positions.

    A column is a position of a sequence; those of one sequence follow each other, by position.
    """

    token: np.ndarray  # [B]
    sequence: np.ndarray  # [B], ascending
    position: np.ndarray  # [B]
    columns: np.ndarray  # [B], 0 to B - 1: lists of them are arguments
    asked_from: np.ndarray  # [1], the first column whose logits are asked for; later ones are too
    layers_done: np.ndarray  # [1], layers that ran elsewhere, which `residual` comes out of; 0: columns begin as tokens
    rotary: np.ndarray  # [B, R, 2, rotary width], cosines and sines
    keys: np.ndarray  # [S, L, kv heads, C / 16, D * 16], blocks of positions, which lie side by side for each of D
    values: np.ndarray  # [S, L, kv heads, C, D]
    value_sum: np.ndarray  # [S, L, kv heads, D] float32, of the values in the next token's window without its own
    residual: np.ndarray  # [T, B, H]
    normed: np.ndarray  # [T, B, H]
    rounded: np.ndarray  # [T, B, .] int16, the same for products with weights in blocks
    rounded_narrow: np.ndarray  # [T, B, .] int16, the head's input likewise
    qkv: np.ndarray  # [B, Q + 2 K]
    query: np.ndarray  # [T, heads, D], of a column
    attended: np.ndarray  # [B, Q], what attention gave, each thread's part
    value_sums: np.ndarray  # [B, L, kv heads, D] float32, what `value_sum` is after each column
    value_mean: np.ndarray  # [B, kv heads, D], of a layer
    scores: np.ndarray  # [T, B, heads, C / T], of a thread's share of the positions
    relative: np.ndarray  # [T, C / T], the highest weight of some heads, as a share of what makes it count
    peak: np.ndarray  # [T, B, heads]
    total: np.ndarray  # [T, B, heads]
    kept: np.ndarray  # [T, B, heads], the part of it whose values are read
    mixed: np.ndarray  # [T, B, heads, D]
    after_attention: np.ndarray  # [T, B, H], partial sums
    after_mlp: np.ndarray  # [T, B, H]
    h: np.ndarray  # [B, N], activations
    up: np.ndarray  # [B, N]
    alive: np.ndarray  # [B, N] uint8, neurons that a column needs
    rows: np.ndarray  # [T, N], neurons to read
    some_columns: np.ndarray  # [T, B], those that need a row
    near: np.ndarray  # [T, max(N, 64)] uint8, neurons or words that any of them needs
    means: np.ndarray  # [T, B], what the screen gives to every word
    floors: np.ndarray  # [T, B], logits of the screen from which on a word is computed
    narrow: np.ndarray  # [B, E], token embeddings, later the head's input, where E is not H
    screened: np.ndarray  # [B, K]
    terms: np.ndarray  # [T, K], of those that are read, with the screen's scales
    steps: np.ndarray  # [T, K + 7] int16, the same in units of their own
    estimates: np.ndarray  # [T, SCREEN_TILE] int16, of some words
    load: np.ndarray  # [T, B, 3], sums of the softmax
    peaks: np.ndarray  # [T, B], most likely token
    computed: np.ndarray  # [T, B, L], neurons that added to the output
    reads: np.ndarray  # [T, 4], bytes read
    logits: np.ndarray  # [B, V]
    log_total: np.ndarray  # [B], log of the sum of exp(logits)
    entropy: np.ndarray  # [B], nats
    best: np.ndarray  # [B], most likely token
    neurons: np.ndarray  # [B, L], the same of all threads together
    bytes_read: np.ndarray  # [4]


@structref.register
class _BoxedType(types.StructRef):
    pass


class Boxed(structref.StructRefProxy):
    """One of the tuples above as compiled functions see it, made by `box`.

    numba takes a tuple's hundred arrays out of Python's objects at every call, in one thread after the other as
    Python's lock demands. It takes one field out of a box, which is made once for many calls.
    """


structref.define_proxy(Boxed, _BoxedType, ["value"])


@kernel()
def box(value):  # type: ignore[no-untyped-def]  # numba infers the types, here and below
    """A `Boxed` of a tuple; the tuple's arrays live as long as the box."""
    return Boxed(value)
