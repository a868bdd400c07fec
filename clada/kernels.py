"""One decoded token through the whole model: a jitted function that several threads run side by side.

Decoding is bound by the bytes of weights read, so a weight that is not read is time saved. Every tensor is laid out
in rows that are read whole or not at all: a neuron is a row of W_gate, a row of W_up and a row of the transposed
W_down, and leaves early when its gate or its magnitude c_i = |h_i| ||w_down_i|| (Eq. 9) falls below a threshold. The
same test spares rows of the attention's output projection, and the output head computes in full only the words that
can still matter. Thresholds of zero leave nothing out: the dense model.

Each thread owns a slice of every tensor's rows; slices meet at a barrier. The residual stream is kept by every thread
for itself, computed the same way, which is cheaper than one more barrier.

Weights are float32, bfloat16 (held as uint16, numba has no such type) or int8 with a float32 scale per output;
arithmetic is float32 but for exact GELU (float64) and the estimate of the vocabulary (codes of four bits).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.experimental import structref
from numba.extending import intrinsic, overload

# Sums may be reordered into vector lanes; infinities and NaN keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

# Places of a layer's norms in `Tensors.norms`.
BEFORE_ATTENTION, AFTER_ATTENTION, ATTENTION_RESIDUAL, BEFORE_MLP, AFTER_MLP, MLP_RESIDUAL = range(6)

# Columns of `Scratch.reads`: bytes of weights and cache read.
READ_ATTENTION, READ_MLP, READ_HEAD, READ_CACHE = range(4)

# The two inputs that `Selection.input_threshold` is about.
ATTENTION_INPUT, MLP_INPUT = range(2)

# Where the weights that may be left out lie, see `clada.weights.pack`.
BY_MATRIX, BY_INPUT = range(2)


class Tensors(NamedTuple):
    """Weights of a model; L layers, H hidden, N neurons, Q and K the widths of all query and all key heads.

    Scales hold one float32 per output (of the screen: per term) for int8 and are empty otherwise. Absent parts are
    empty. By input, qkv, gate and up are transposed ([L, H, Q + 2 K], [L, H, N]).
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
    head_norms: np.ndarray  # [L, 2, 2, D], of queries and of keys, weight and bias
    final_norm: np.ndarray  # [2, H]
    before_head: np.ndarray  # [E, H], or [0, H]: what is between the final norm and the head
    head: np.ndarray  # [V, E]
    head_scale: np.ndarray  # [V]
    # The screen of the head, by which words are found whose logits matter: logits are about head_mean x + the sum over
    # some k of z_k screen_scale[k] (screen[k] - CODE_OF_ZERO), z = screen_basis x + screen_offset.
    screen: np.ndarray  # [K, V / 2] uint8, two codes a byte, see `clada.weights.Screen`; or [0, 0] without one
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
    has_final_norm: int
    rms: int  # 1: RMSNorm, 0: LayerNorm
    eps: float
    scaling: np.ndarray  # [L], of attention scores
    softcap: Any  # float32, of attention scores, 0 for none
    final_softcap: Any  # float32, of logits
    window: np.ndarray  # [L], sliding windows in tokens, a huge number for none
    rotary: np.ndarray  # [L], row of `Scratch.rotary`, -1 for none
    gated: int
    layout: int


class Selection(NamedTuple):
    """Which rows a token of each sequence needs; B sequences."""

    gate_weight: np.ndarray  # [L, N]
    gate_threshold: np.ndarray  # [B, L], on |act(gate_i)| gate_weight_i
    weight: np.ndarray  # [L, N]
    threshold: np.ndarray  # [B, L], on |h_i| weight_i
    output_weight: np.ndarray  # [L, Q]
    output_threshold: np.ndarray  # [B, L], on |a_j| output_weight_j
    input_weight: np.ndarray  # [L, 2, H], by input
    input_threshold: np.ndarray  # [B, L, 2], on |x_j| input_weight_j
    needed: np.ndarray  # [B, L, N] uint8, 0: never computed; or [0, L, N]
    attention_threshold: np.ndarray  # [B], on attention weights, as a share of their average
    attention_from: int  # positions from which on it counts
    screen_threshold: np.ndarray  # [B], on |z_k| screen_weight_k
    head_margin: np.ndarray  # [B], words whose screened log-probability is below the negative of it keep it


class Scratch(NamedTuple):
    """Inputs, outputs and what lies between; T threads, C positions."""

    token: np.ndarray  # [B]
    position: np.ndarray  # [B]
    rotary: np.ndarray  # [B, R, 2, rotary width], cosines and sines
    keys: np.ndarray  # [B, L, kv heads, C / 16, D * 16], blocks of positions, which lie side by side for each of D
    values: np.ndarray  # [B, L, kv heads, C, D]
    residual: np.ndarray  # [T, B, H]
    normed: np.ndarray  # [T, B, H]
    qkv: np.ndarray  # [B, Q + 2 K]
    query: np.ndarray  # [T, heads, D]
    value_sum: np.ndarray  # [B, L, kv heads, D] float32, of the values in the window
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
    alive: np.ndarray  # [B, N] uint8, neurons that a sequence needs
    rows: np.ndarray  # [T, N], neurons to read
    sequences: np.ndarray  # [T, B], those that need a row
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
    computed: np.ndarray  # [T, B], neurons that added to the output
    reads: np.ndarray  # [T, 4], bytes read
    logits: np.ndarray  # [B, V]
    log_total: np.ndarray  # [B], log of the sum of exp(logits)
    entropy: np.ndarray  # [B], nats
    best: np.ndarray  # [B], most likely token
    active: np.ndarray  # [B]
    bytes_read: np.ndarray  # [4]


@structref.register
class _HeldType(types.StructRef):
    pass


class Held(structref.StructRefProxy):
    """One of the tuples above as compiled functions see it, made by `hold`.

    To take a hundred arrays out of Python's objects at every call, in one thread after the other as Python's lock
    demands, with caches that the weights have just swept, takes 2 % of a token in int8.
    """


structref.define_proxy(Held, _HeldType, ["value"])


@njit(cache=True)
def hold(value):  # type: ignore[no-untyped-def]  # numba infers the types, here and below
    """A `Held` of a tuple; its arrays live as long."""
    return Held(value)


# -- numbers -------------------------------------------------------------------------------------------------------


@intrinsic
def _bits_to_float(_context: Any, _bits: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _float_to_bits(_context: Any, _value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


def _widen(v):  # type: ignore[no-untyped-def]
    """A stored weight as float32, without its scale."""
    raise NotImplementedError


@overload(_widen, inline="always")
def _widen_typed(v):  # type: ignore[no-untyped-def]
    if v == types.uint16:
        return lambda v: _bits_to_float(np.uint32(v) << np.uint32(16))
    return lambda v: np.float32(v)


def _narrow(v, like):  # type: ignore[no-untyped-def]
    """A float32 in the type of the array `like`; bfloat16 rounds to nearest, ties to even."""
    raise NotImplementedError


@overload(_narrow, inline="always")
def _narrow_typed(v, like):  # type: ignore[no-untyped-def]
    if like.dtype == types.uint16:

        def to_bfloat16(v, like):  # type: ignore[no-untyped-def]
            bits = _float_to_bits(np.float32(v))
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return to_bfloat16
    return lambda v, like: v


def _scale(rows, scales, i):  # type: ignore[no-untyped-def]
    """The scale of output i, 1 where weights have none."""
    raise NotImplementedError


@overload(_scale, inline="always")
def _scale_typed(rows, scales, i):  # type: ignore[no-untyped-def]
    if rows.dtype == types.int8:
        return lambda rows, scales, i: scales[i]
    return lambda rows, scales, i: np.float32(1)


def _bias(bias, i):  # type: ignore[no-untyped-def]
    """The bias of output i, of biases or of the one that all outputs have."""
    raise NotImplementedError


@overload(_bias, inline="always")
def _bias_typed(bias, i):  # type: ignore[no-untyped-def]
    if isinstance(bias, types.Array):
        return lambda bias, i: bias[i]
    return lambda bias, i: bias


@njit(fastmath=FASTMATH, inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """Exp in float32 to 2 units in the last place; unlike math.exp it turns into vector instructions.

    Cephes' expf: x = n ln 2 + r, exp(r) by a polynomial, 2^n by its bits. Below -87 the result is not exactly zero.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _bits_to_float(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


@njit(fastmath=FASTMATH, inline="always")
def _tanh(x):  # type: ignore[no-untyped-def]
    # Large arguments go to 1 by themselves; near zero the difference of near equals costs 1e-7 absolute, no more.
    return np.float32(1) - np.float32(2) / (_exp(np.float32(2) * x) + np.float32(1))


@njit(fastmath=FASTMATH)
def _activate(values, activation):  # type: ignore[no-untyped-def]
    """The MLP's nonlinearity, in place."""
    if activation == 0:
        for i in range(values.shape[0]):
            values[i] = values[i] / (np.float32(1) + _exp(-values[i]))
    elif activation == 1:
        for i in range(values.shape[0]):
            v = values[i]
            inner = np.float32(0.7978845608028654) * (v + np.float32(0.044715) * v * v * v)
            values[i] = np.float32(0.5) * v * (np.float32(1) + _tanh(inner))
    elif activation == 2:
        for i in range(values.shape[0]):
            values[i] = max(values[i], np.float32(0))
    else:
        for i in range(values.shape[0]):
            v = values[i]
            values[i] = np.float32(0.5 * v * (1.0 + math.erf(v * 0.7071067811865476)))


@njit(fastmath=FASTMATH)
def _dot(row, x):  # type: ignore[no-untyped-def]
    s = np.float32(0)
    for j in range(row.shape[0]):
        s += _widen(row[j]) * x[j]
    return s


CODES = 2  # of a byte of the screen
CODES_OF_SHORT = 4
CODE_OF_ZERO = 8
LARGEST_SUM = 32_000  # of codes times terms, in int16; with it a single term is not half-way between two steps
SCREEN_TILE = 8192  # words whose estimates stay in a near cache while terms are added; their codes fill a page
LANES = 16  # floats at a time in the loops written out below: two AVX2 registers, one of AVX-512, four of NEON
WIDE = 4 if binding.get_host_cpu_features().get("avx512f") else 2  # vectors of LANES: sums that registers hold
LINE = 64  # bytes of a cache line
BLOCK = LINE * CODES  # words whose codes of a term fill one
AHEAD = 7 * 1024  # bytes between the row that is used and the one that is asked for
FIRST = 12  # rows that are asked for before a part begins, terms of the screen before they are added
WAITING = 64  # the same at most, while there is nothing else to do
# Where rows are asked to, in LLVM's numbers: into the second cache (2); on Zen 5, whose first cache has the places for
# it, past all others (0), which is about 5 % of a token in bfloat16 and nothing in int8. On Zen 4 that was slower.
NEAR = 0 if binding.get_host_cpu_name() == "znver5" else 2
_F32, _I32, _INDEX = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_BYTE = ir.IntType(8).as_pointer()
_CONTRACT = ("contract", "nsz")


def _shaped(kind: Any, lanes: int) -> Any:
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def _item_bytes(stored: Any) -> int:
    return 4 if stored == types.float32 else int(stored.bitwidth) // 8


def _load_wide(builder: Any, start: Any, j: Any, stored: Any, lanes: int) -> Any:
    """Instructions that load elements from `start + j` on as float32."""
    size = _item_bytes(stored)
    kind = _F32 if stored == types.float32 else ir.IntType(8 * size)
    place = builder.bitcast(builder.gep(start, [j]), _shaped(kind, lanes).as_pointer())
    v = builder.load(place, align=size)
    if stored == types.uint16:
        shift = ir.Constant(_shaped(_I32, lanes), 16 if lanes == 1 else [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(v, _shaped(_I32, lanes)), shift), _shaped(_F32, lanes))
    if stored == types.int8:
        return builder.sitofp(builder.sext(v, _shaped(_I32, lanes)), _shaped(_F32, lanes))
    return v


def _spread(builder: Any, v: Any, lanes: int) -> Any:
    """Instructions for a vector of one value."""
    if lanes == 1:
        return v
    undefined = ir.Constant(_shaped(v.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, v, _I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, lanes), None))


def _row_start(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> Any:
    """Instructions for the address of an element of a two-dimensional array."""
    made = context.make_array(array_type)(context, builder, array)
    stride = builder.extract_value(made.strides, 0)
    size = _item_bytes(array_type.dtype)
    kind = _F32 if array_type.dtype == types.float32 else ir.IntType(8 * size)
    offset = builder.add(builder.mul(row, stride), builder.mul(column, _INDEX(size)))
    return builder.inttoptr(builder.add(builder.ptrtoint(made.data, _INDEX), offset), kind.as_pointer())


def _ask_for(builder: Any, address: Any, near: int = 2) -> None:
    """An instruction that fetches a line, into the second cache unless told otherwise."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [address, _I32(0), _I32(near), _I32(1)])  # for reading, data


def _ask_lines(builder: Any, start: Any, j: Any, stored: Any, count: int) -> None:
    """Ask for the lines that `count` elements from `start + j` on fill; for none if they fill less than one."""
    line = LINE // _item_bytes(stored)
    for at in range(0, count // line * line, line):
        _ask_for(builder, builder.bitcast(builder.gep(start, [builder.add(j, _INDEX(at))]), _BYTE), NEAR)


def _in_lanes(builder: Any, n: Any, most: Sequence[int], body: Any) -> None:
    """body(j, vectors, lanes) for n elements: so many vectors of LANES at a time, the most first, then one by one."""
    begin = _INDEX(0)
    for vectors, lanes in (*((vectors, LANES) for vectors in dict.fromkeys((*most, 1))), (1, 1)):
        step = _INDEX(vectors * lanes)
        end = builder.add(begin, builder.mul(builder.udiv(builder.sub(n, begin), step), step))
        with cgutils.for_range_slice(builder, begin, end, step, _INDEX) as (j, _):
            body(j, vectors, lanes)
        begin = end


def _vectors_of_line(stored: Any) -> int:
    """Vectors of LANES that a cache line fills."""
    return LINE // _item_bytes(stored) // LANES


@intrinsic
def _add_some(
    _context: Any, out: Any, sequences: Any, rows: Any, _begin: Any, indices: Any, _factors: Any, _ahead: Any
) -> Any:
    """out[b, j] += sum over k of factors[k] rows[indices[k], begin + j]; rows `ahead` are asked for meanwhile.

    For some sequences b, with factors of the first one first; or of a single one, whose `out` has one dimension.
    Written out in vectors: of the same loop in Python LLVM makes code that reads two thirds slower. Some rows share
    one pass over `out`, which would else be loaded and stored for each.
    """
    count, batch = indices.count, sequences.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out_type, _, rows_type, _, _, _, _ = signature.args
        array = context.make_array(out_type)(context, builder, args[0])
        outs = (
            [array.data]
            if out_type.ndim == 1
            else [
                _row_start(context, builder, out_type, args[0], builder.extract_value(args[1], b), _INDEX(0))
                for b in range(batch)
            ]
        )
        stored = rows_type.dtype
        starts, ahead = (
            [
                _row_start(context, builder, rows_type, args[2], builder.extract_value(args[i], k), args[3])
                for k in range(count)
            ]
            for i in (4, 6)
        )
        factors = [builder.extract_value(args[5], k) for k in range(count * batch)]

        def accumulate(j: Any, vectors: int, lanes: int) -> None:
            parts = [builder.add(j, _INDEX(part * lanes)) for part in range(vectors)]
            places = [
                [builder.bitcast(builder.gep(start, [at]), _shaped(_F32, lanes).as_pointer()) for at in parts]
                for start in outs
            ]
            totals = [[builder.load(place, align=4) for place in some] for some in places]
            for k, (start, later) in enumerate(zip(starts, ahead, strict=True)):
                _ask_lines(builder, later, j, stored, vectors * lanes)
                for part, at in enumerate(parts):
                    v = _load_wide(builder, start, at, stored, lanes)
                    for b in range(batch):
                        product = builder.fmul(v, _spread(builder, factors[b * count + k], lanes), flags=_CONTRACT)
                        totals[b][part] = builder.fadd(totals[b][part], product, flags=_CONTRACT)
            for own, some in zip(totals, places, strict=True):
                for total, place in zip(own, some, strict=True):
                    builder.store(total, place, align=4)

        _in_lanes(
            builder, builder.extract_value(array.shape, out_type.ndim - 1), (_vectors_of_line(stored),), accumulate
        )
        return context.get_dummy_value()

    i, f = types.UniTuple(types.int64, count), types.UniTuple(types.float32, count * batch)
    return types.void(out, sequences, rows, types.int64, i, f, i), codegen


@intrinsic
def _add_codes(_context: Any, out: Any, rows: Any, _begin: Any, indices: Any, _factors: Any, _ahead: Any) -> Any:
    """out[j] += sum over k of factors[k] times code begin + j of rows[indices[k]]; rows `ahead` are asked for.

    In int16, which wraps around. `out` has whole blocks: a line of codes is CODES_OF_SHORT vectors of int16, of whose
    bits the first vector of words has the lowest.
    """
    count = indices.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out_type, rows_type = signature.args[:2]
        array = context.make_array(out_type)(context, builder, args[0])
        first = builder.udiv(args[2], _INDEX(CODES))
        starts, ahead = (
            [
                _row_start(context, builder, rows_type, args[1], builder.extract_value(args[i], k), first)
                for k in range(count)
            ]
            for i in (3, 5)
        )
        shorts = LINE // 2
        kind = ir.VectorType(ir.IntType(16), shorts)
        factors = [_spread(builder, builder.extract_value(args[4], k), shorts) for k in range(count)]
        lowest = ir.Constant(kind, [15] * shorts)
        n = builder.udiv(builder.extract_value(array.shape, 0), _INDEX(CODES))
        with cgutils.for_range_slice(builder, _INDEX(0), n, _INDEX(LINE), _INDEX) as (at, _):
            for later in ahead:
                _ask_for(builder, builder.gep(later, [at]))
            words = builder.gep(array.data, [builder.mul(at, _INDEX(CODES))])
            places = [
                builder.bitcast(builder.gep(words, [_INDEX(part * shorts)]), kind.as_pointer())
                for part in range(CODES_OF_SHORT)
            ]
            totals = [builder.load(place, align=2) for place in places]
            for start, factor in zip(starts, factors, strict=True):
                line = builder.load(builder.bitcast(builder.gep(start, [at]), kind.as_pointer()), align=1)
                for part in range(CODES_OF_SHORT):
                    code = builder.and_(builder.lshr(line, ir.Constant(kind, [4 * part] * shorts)), lowest)
                    totals[part] = builder.add(totals[part], builder.mul(code, factor))
            for total, place in zip(totals, places, strict=True):
                builder.store(total, place, align=2)
        return context.get_dummy_value()

    i, f = types.UniTuple(types.int64, count), types.UniTuple(types.int16, count)
    return types.void(out, rows, types.int64, i, f, i), codegen


def _fold_lanes(builder: Any, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Instructions that join a vector's elements, halves at a time."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(
                vector, undefined, ir.Constant(ir.VectorType(_I32, lanes), list(range(at, at + lanes)))
            )
            for at in (0, lanes)
        )
        vector = join(low, high)
    return builder.extract_element(vector, _I32(0))


@intrinsic
def _highest(_context: Any, values: Any) -> Any:
    """The highest of some float32, -inf of none; LLVM, which minds NaN, makes no vectors of the loop."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        least = float("-inf")
        wide = cgutils.alloca_once_value(builder, ir.Constant(_shaped(_F32, LANES), [least] * LANES))
        single = cgutils.alloca_once_value(builder, ir.Constant(_F32, least))

        def higher(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def compare(j: Any, _vectors: int, lanes: int) -> None:
            highest = single if lanes == 1 else wide
            v = _load_wide(builder, array.data, j, types.float32, lanes)
            builder.store(higher(v, builder.load(highest)), highest)

        _in_lanes(builder, builder.extract_value(array.shape, 0), (), compare)
        return higher(builder.load(single), _fold_lanes(builder, builder.load(wide), higher))

    return types.float32(values), codegen


@intrinsic
def _dots_of_rows(_context: Any, rows: Any, which: Any, x: Any, sequences: Any, _ahead: Any) -> Any:
    """Some rows times x[b] for some sequences b; as many rows `ahead` are asked for meanwhile.

    The products of the first row with every sequence, then those of the next; a row is loaded once.
    """
    count, batch = which.count, sequences.count
    chains = max(1, 4 // batch) if count == 1 else 2  # an addition waits for the one before it: more than one at a time

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows_type, _, x_type, _, _ = signature.args
        stored = rows_type.dtype
        starts, ahead = (
            [
                _row_start(context, builder, rows_type, args[0], builder.extract_value(args[i], k), _INDEX(0))
                for k in range(count)
            ]
            for i in (1, 4)
        )
        inputs = [
            _row_start(context, builder, x_type, args[2], builder.extract_value(args[3], k), _INDEX(0))
            for k in range(batch)
        ]
        vector = _shaped(_F32, LANES)
        sums = count * batch
        wide = [[cgutils.alloca_once(builder, vector) for _ in range(sums)] for _ in range(chains)]
        single = [cgutils.alloca_once(builder, _F32) for _ in range(sums)]
        for totals, zero in ((single, ir.Constant(_F32, 0.0)), *((w, ir.Constant(vector, None)) for w in wide)):
            for total in totals:
                builder.store(zero, total)

        def accumulate(j: Any, vectors: int, lanes: int) -> None:
            parts = [builder.add(j, _INDEX(part * lanes)) for part in range(vectors)]
            loaded: dict[tuple[int, int], Any] = {}  # inputs, which all rows share
            for k, (row, later) in enumerate(zip(starts, ahead, strict=True)):
                _ask_lines(builder, later, j, stored, vectors * lanes)
                for part, at in enumerate(parts):
                    v = _load_wide(builder, row, at, stored, lanes)
                    for b, start in enumerate(inputs):
                        if k == 0:
                            loaded[part, b] = _load_wide(builder, start, at, types.float32, lanes)
                        total = (single if lanes == 1 else wide[part % chains])[k * batch + b]
                        product = builder.fmul(v, loaded[part, b], flags=_CONTRACT)
                        builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)

        n = builder.extract_value(context.make_array(rows_type)(context, builder, args[0]).shape, 1)
        line = _vectors_of_line(stored)
        # Of several rows two lines of each in turn: processors fetch lines in pairs.
        _in_lanes(builder, n, (max(line if count == 1 else 2 * line, chains), line), accumulate)
        dots = []
        for k in range(sums):
            total = builder.load(wide[0][k])
            for totals in wide[1:]:
                total = builder.fadd(total, builder.load(totals[k]))
            dots.append(builder.fadd(builder.load(single[k]), _fold_lanes(builder, total, builder.fadd)))
        return cgutils.pack_array(builder, dots)

    i = types.UniTuple(types.int64, count)
    return types.UniTuple(types.float32, count * batch)(rows, i, x, sequences, i), codegen


@intrinsic
def _score_block(
    _context: Any,
    scores: Any,
    _at: Any,
    query: Any,
    heads: Any,
    keys: Any,
    _block: Any,
    _later: Any,
    values: Any,
    _first: Any,
) -> Any:
    """scores[heads[k], at + i] = query[heads[k]] times key i of a block, for some heads that share keys.

    Meanwhile a later block of keys, and the values of this one's positions, from the first on, are asked for.
    """
    count = heads.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores_type, _, query_type, _, keys_type, _, _, values_type, _ = signature.args
        stored = keys_type.dtype
        block = _row_start(context, builder, keys_type, args[4], args[5], _INDEX(0))
        later = _row_start(context, builder, keys_type, args[4], args[6], _INDEX(0))
        first = _row_start(context, builder, values_type, args[7], args[8], _INDEX(0))
        queries = [
            _row_start(context, builder, query_type, args[2], builder.extract_value(args[3], k), _INDEX(0))
            for k in range(count)
        ]
        vector = _shaped(_F32, LANES)
        # Even and odd dimensions apart: an addition waits for the one before it.
        totals = [[cgutils.alloca_once(builder, vector) for _ in range(count)] for _ in range(2)]
        for total in (*totals[0], *totals[1]):
            builder.store(ir.Constant(vector, None), total)

        def accumulate(d: Any, parity: int) -> None:
            j = builder.mul(d, _INDEX(LANES))
            both = LANES * _item_bytes(stored) == LINE
            for start in (later, first) if both else (first,) if parity else (later,):  # every line once
                _ask_for(builder, builder.bitcast(builder.gep(start, [j]), _BYTE))
            v = _load_wide(builder, block, j, stored, LANES)
            for start, total in zip(queries, totals[parity], strict=True):
                product = builder.fmul(
                    v, _spread(builder, builder.load(builder.gep(start, [d])), LANES), flags=_CONTRACT
                )
                builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)

        width = builder.extract_value(context.make_array(query_type)(context, builder, args[2]).shape, 1)
        even = builder.and_(width, _INDEX(-2))
        with cgutils.for_range_slice(builder, _INDEX(0), even, _INDEX(2), _INDEX) as (d, _):
            accumulate(d, 0)
            accumulate(builder.add(d, _INDEX(1)), 1)
        with cgutils.for_range_slice(builder, even, width, _INDEX(1), _INDEX) as (d, _):
            accumulate(d, 0)
        for k in range(count):
            place = _row_start(context, builder, scores_type, args[0], builder.extract_value(args[3], k), args[1])
            total = builder.fadd(builder.load(totals[0][k]), builder.load(totals[1][k]))
            builder.store(total, builder.bitcast(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    i, some = types.int64, types.UniTuple(types.int64, count)
    return types.void(scores, i, query, some, keys, i, i, values, i), codegen


@intrinsic
def _mix_values(
    _context: Any,
    mixed: Any,
    heads: Any,
    scores: Any,
    _at: Any,
    values: Any,
    _first: Any,
    _n: Any,
    which: Any,
    asked: Any,
    _asked_first: Any,
    _ahead: Any,
) -> Any:
    """mixed[h] = sum over the first n positions i in `which` of scores[h, at + i] values[first + i], for heads h.

    Some heads, which share values. The sums stay in registers over all positions, some dimensions at a time.
    Meanwhile rows of `asked` are asked for, at the positions that come so many later in `which`.
    """
    count = heads.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mixed_type, _, scores_type, _, values_type, _, _, which_type, asked_type, _, _ = signature.args
        stored = values_type.dtype
        n = args[6]
        positions = context.make_array(which_type)(context, builder, args[7]).data

        def rows_of(kind: Any, array: Any, column: Any) -> list[Any]:
            return [
                _row_start(context, builder, kind, array, builder.extract_value(args[1], k), column)
                for k in range(count)
            ]

        outs, weights = rows_of(mixed_type, args[0], _INDEX(0)), rows_of(scores_type, args[2], args[3])
        width = builder.extract_value(context.make_array(values_type)(context, builder, args[4]).shape, 1)

        def some_dimensions(d: Any, lanes: int, vectors: int) -> None:
            kind, read = _shaped(_F32, lanes), lanes * vectors * _item_bytes(stored)
            totals = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(count)]
            for head in totals:
                for total in head:
                    builder.store(ir.Constant(kind, 0.0 if lanes == 1 else None), total)
            with cgutils.for_range_slice(builder, _INDEX(0), n, _INDEX(1), _INDEX) as (r, _):
                i = builder.load(builder.gep(positions, [r]))
                later, last = builder.add(r, args[10]), builder.sub(n, _INDEX(1))
                later = builder.select(builder.icmp_signed("<", later, last), later, last)
                later = builder.add(args[9], builder.load(builder.gep(positions, [later])))
                start = builder.bitcast(_row_start(context, builder, asked_type, args[8], later, d), _BYTE)
                for line in range(0, read, LINE) if read >= LINE else ():
                    _ask_for(builder, builder.gep(start, [_INDEX(line)]))
                row = _row_start(context, builder, values_type, args[4], builder.add(args[5], i), d)
                loaded = [_load_wide(builder, row, _INDEX(v * lanes), stored, lanes) for v in range(vectors)]
                for start, head in zip(weights, totals, strict=True):
                    weight = _spread(builder, builder.load(builder.gep(start, [i])), lanes)
                    for value, total in zip(loaded, head, strict=True):
                        product = builder.fmul(value, weight, flags=_CONTRACT)
                        builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)
            for start, head in zip(outs, totals, strict=True):
                for v, total in enumerate(head):
                    place = builder.gep(start, [builder.add(d, _INDEX(v * lanes))])
                    builder.store(builder.load(total), builder.bitcast(place, kind.as_pointer()), align=4)

        begin = _INDEX(0)
        for lanes, vectors in ((LANES, WIDE), (LANES, 1), (1, 1)):
            step = lanes * vectors
            end = builder.add(begin, builder.mul(builder.udiv(builder.sub(width, begin), _INDEX(step)), _INDEX(step)))
            with cgutils.for_range_slice(builder, begin, end, _INDEX(step), _INDEX) as (d, _):
                some_dimensions(d, lanes, vectors)
            begin = end
        return context.get_dummy_value()

    i, some = types.int64, types.UniTuple(types.int64, count)
    return types.void(mixed, some, scores, i, values, i, i, which, asked, i, i), codegen


@intrinsic
def _ask_row(_context: Any, rows: Any, _i: Any) -> Any:
    """Ask for row i."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        start = builder.bitcast(_row_start(context, builder, kind, args[0], args[1], _INDEX(0)), _BYTE)
        shape = context.make_array(kind)(context, builder, args[0]).shape
        length = builder.mul(builder.extract_value(shape, 1), _INDEX(_item_bytes(kind.dtype)))
        with cgutils.for_range_slice(builder, _INDEX(0), length, _INDEX(LINE), _INDEX) as (j, _):
            _ask_for(builder, builder.gep(start, [j]))
        return context.get_dummy_value()

    return types.void(rows, types.int64), codegen


@njit
def _row_bytes(rows):  # type: ignore[no-untyped-def]
    """Of the weights; int8's scales, four bytes a row, are not counted."""
    return rows.shape[1] * rows.itemsize


@njit(inline="always")
def _ahead(rows):  # type: ignore[no-untyped-def]
    """Rows between the one that is used and the one that is asked for."""
    return max(4, AHEAD // _row_bytes(rows))  # four are read side by side


@njit(inline="always")
def _four_from(i, last):  # type: ignore[no-untyped-def]
    """Four numbers from i on, the last one again where there are fewer."""
    return min(i, last), min(i + 1, last), min(i + 2, last), min(i + 3, last)


@njit(inline="always")
def _four(which, r):  # type: ignore[no-untyped-def]
    """Four entries from the r-th on, the last one again where there are fewer."""
    r0, r1, r2, r3 = _four_from(r, which.shape[0] - 1)
    return which[r0], which[r1], which[r2], which[r3]


@njit(inline="always")
def _eight(which, r):  # type: ignore[no-untyped-def]
    """The same, eight entries."""
    return _four(which, r) + _four(which, r + 4)


@njit(inline="always")
def _side_by_side(which):  # type: ignore[no-untyped-def]
    """How many of the listed rows to read four side by side: none if no row is missing between them, else all fours.

    One after the other, rows with gaps look like a stream to the processor, which fetches the gaps too; side by side
    they do not. Without gaps a stream is faster. benchmarks/selection-log.md has the times.
    """
    count = which.shape[0]
    if count > 0 and which[count - 1] - which[0] == count - 1:
        return 0
    return count - count % 4


@njit(fastmath=FASTMATH)
def _project_rows(out, rows, scales, bias, x, which):  # type: ignore[no-untyped-def]
    """out[i] = rows[i] x[0] + bias[i] for the listed rows i, of one sequence."""
    ahead = _ahead(rows)
    n = which.shape[0]
    fours = _side_by_side(which)
    for r in range(0, fours, 4):
        i0, i1, i2, i3 = which[r], which[r + 1], which[r + 2], which[r + 3]
        d0, d1, d2, d3 = _dots_of_rows(rows, (i0, i1, i2, i3), x, (0,), _four(which, r + ahead))
        out[i0] = d0 * _scale(rows, scales, i0) + _bias(bias, i0)
        out[i1] = d1 * _scale(rows, scales, i1) + _bias(bias, i1)
        out[i2] = d2 * _scale(rows, scales, i2) + _bias(bias, i2)
        out[i3] = d3 * _scale(rows, scales, i3) + _bias(bias, i3)
    for r in range(fours, n):
        i = which[r]
        (d,) = _dots_of_rows(rows, (i,), x, (0,), (which[min(r + ahead, n - 1)],))
        out[i] = d * _scale(rows, scales, i) + _bias(bias, i)


@njit(fastmath=FASTMATH)
def _dots(out, rows, scale, bias, i, ahead, x, which, n):  # type: ignore[no-untyped-def]
    """out[b, i] = row i times x[b] for the n listed sequences b; row `ahead` comes later."""
    r = 0
    while r + 4 <= n:
        b0, b1, b2, b3 = which[r], which[r + 1], which[r + 2], which[r + 3]
        d0, d1, d2, d3 = _dots_of_rows(rows, (i,), x, (b0, b1, b2, b3), (ahead,))
        out[b0, i], out[b1, i] = d0 * scale + bias, d1 * scale + bias
        out[b2, i], out[b3, i] = d2 * scale + bias, d3 * scale + bias
        r += 4
    while r < n:
        b = which[r]
        (d,) = _dots_of_rows(rows, (i,), x, (b,), (ahead,))
        out[b, i] = d * scale + bias
        r += 1


@njit(fastmath=FASTMATH)
def _four_times_all(out, rows, scales, bias, x, four, ahead):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for four rows i and all sequences b.

    Two sequences at a time, so that a row is widened for both: a product takes half the time of one row's with one.
    """
    batch = x.shape[0]
    i0, i1, i2, i3 = four
    a0, a1 = _scale(rows, scales, i0), _scale(rows, scales, i1)
    a2, a3 = _scale(rows, scales, i2), _scale(rows, scales, i3)
    c0, c1, c2, c3 = _bias(bias, i0), _bias(bias, i1), _bias(bias, i2), _bias(bias, i3)
    for b in range(0, batch - 1, 2):
        d0, e0, d1, e1, d2, e2, d3, e3 = _dots_of_rows(rows, four, x, (b, b + 1), ahead)
        out[b, i0], out[b, i1], out[b, i2], out[b, i3] = d0 * a0 + c0, d1 * a1 + c1, d2 * a2 + c2, d3 * a3 + c3
        out[b + 1, i0], out[b + 1, i1] = e0 * a0 + c0, e1 * a1 + c1
        out[b + 1, i2], out[b + 1, i3] = e2 * a2 + c2, e3 * a3 + c3
    if batch % 2:
        b = batch - 1
        d0, d1, d2, d3 = _dots_of_rows(rows, four, x, (b,), ahead)
        out[b, i0], out[b, i1], out[b, i2], out[b, i3] = d0 * a0 + c0, d1 * a1 + c1, d2 * a2 + c2, d3 * a3 + c3


@njit(fastmath=FASTMATH)
def _add_rows(out, rows, begin, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows, from column `begin` on, to out; row i times factors[i]."""
    ahead = _ahead(rows)
    n = which.shape[0]
    fours = _side_by_side(which)
    for r in range(0, fours, 4):
        i0, i1, i2, i3 = which[r], which[r + 1], which[r + 2], which[r + 3]
        four = (factors[i0], factors[i1], factors[i2], factors[i3])
        _add_some(out, (0,), rows, begin, (i0, i1, i2, i3), four, _four(which, r + ahead))
    for r in range(fours, n):
        i = which[r]
        _add_some(out, (0,), rows, begin, (i,), (factors[i],), (which[min(r + ahead, n - 1)],))


@njit(fastmath=FASTMATH)
def _norm(out, x, weights, rms, eps):  # type: ignore[no-untyped-def]
    n = x.shape[0]
    mean = np.float32(0)
    if rms == 0:
        for j in range(n):
            mean += x[j]
        mean /= np.float32(n)
    square = np.float32(0)
    for j in range(n):
        square += (x[j] - mean) * (x[j] - mean)
    scale = np.float32(1) / np.sqrt(square / np.float32(n) + np.float32(eps))
    weight, bias = weights[0], weights[1]
    for j in range(n):
        out[j] = (x[j] - mean) * scale * weight[j] + bias[j]


@njit
def _copy(out, x):  # type: ignore[no-untyped-def]
    """out[:] = x, which numba compiles only where arrays can be allocated: x might overlap out."""
    for j in range(x.shape[0]):
        out[j] = x[j]


@njit(fastmath=FASTMATH)
def _rotate(x, rotary):  # type: ignore[no-untyped-def]
    """Rotary position embedding of one head, in place: pairs are (j, j + width / 2)."""
    cos, sin = rotary[0], rotary[1]
    half = cos.shape[0] // 2
    for j in range(half):
        a, b = x[j], x[j + half]
        x[j] = a * cos[j] - b * sin[j]
        x[j + half] = b * cos[j + half] + a * sin[j + half]


# -- threads -------------------------------------------------------------------------------------------------------


@intrinsic
def _atomic_add(_context: Any, _array: Any, _value: Any) -> Any:
    """Add to the first element of an int64 array; returns what was there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(types.Array(types.int64, 1, "C"), types.int64), codegen


@intrinsic
def _atomic_load(_context: Any, _array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(data, "seq_cst", 8)

    return types.int64(types.Array(types.int64, 1, "C")), codegen


AWAKE = 1 << 20  # looks at a number that others change: about a millisecond

# A thread that waits for another one gives its core away now and then, in case the other one needs it.
_yield_core = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


@njit(inline="always")
def _arrive(sync, threads):  # type: ignore[no-untyped-def]
    """Say that this thread has come to a barrier, whose number it returns; the last one ends it."""
    number = _atomic_load(sync[1])
    if _atomic_add(sync[0], 1) == threads - 1:
        _atomic_add(sync[0], -threads)
        _atomic_add(sync[1], 1)
    return number


@njit
def _barrier(sync, threads):  # type: ignore[no-untyped-def]
    """Wait for all threads."""
    number, spins = _arrive(sync, threads), 0
    while _atomic_load(sync[1]) == number:
        spins += 1
        if spins % 4096 == 0:
            _yield_core()


@njit
def _barrier_before(rows, begin, sync, threads):  # type: ignore[no-untyped-def]
    """The same, asking for the rows that the next part begins with: a few, and more for as long as others work."""
    for i in range(begin, min(begin + FIRST, rows.shape[0])):
        _ask_row(rows, i)
    number, spins = _arrive(sync, threads), 0
    i, end = begin + FIRST, min(begin + WAITING, rows.shape[0])
    while _atomic_load(sync[1]) == number:
        if i < end:
            _ask_row(rows, i)
            i += 1
        spins += 1
        if spins % 4096 == 0:
            _yield_core()


@njit(inline="always")
def begin_call(t, sync):  # type: ignore[no-untyped-def]
    """What a function for a team begins with: threads that wait in `end_call` come too.

    Said from here, where Python's lock is free: a thread that gets it at once need not sleep for it.
    """
    if t == 0:
        _atomic_add(sync[2], 1)


@njit
def end_call(t, threads, sync):  # type: ignore[no-untyped-def]
    """What it ends with: wait for all, then all but the first for the next call, which follows soon while decoding.

    Waking a thread that sleeps takes a tenth of a millisecond, some per cent of a token; after a while it sleeps.
    """
    seen, spins = _atomic_load(sync[2]), 0
    _barrier(sync, threads)
    while t > 0 and spins < AWAKE and _atomic_load(sync[2]) == seen:
        spins += 1
        if spins % 4096 == 0:
            _yield_core()


# -- the parts of a layer ------------------------------------------------------------------------------------------


@njit(fastmath=FASTMATH)
def _project(out, rows, scales, bias, x, begin, end):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for a slice of rows, each read once for all sequences. Returns bytes read."""
    ahead = _ahead(rows)
    last = end - 1
    if x.shape[0] == 1:
        for i in range(begin, end):
            (d,) = _dots_of_rows(rows, (i,), x, (0,), (min(i + ahead, last),))
            out[0, i] = d * _scale(rows, scales, i) + _bias(bias, i)
    else:
        for i in range(begin, end, 4):  # a row that comes twice gets the same products again
            _four_times_all(out, rows, scales, bias, x, _four_from(i, last), _four_from(i + ahead, last))
    return (end - begin) * _row_bytes(rows)


@njit(fastmath=FASTMATH)
def _project_inputs(out, rows, scales, bias, x, weight, threshold, which, begin, end):  # type: ignore[no-untyped-def]
    """The same for columns begin to end of input-major rows, leaving out inputs below a threshold."""
    read = 0
    for b in range(x.shape[0]):
        n = 0
        for j in range(x.shape[1]):
            if abs(x[b, j]) * weight[j] >= threshold[b]:
                which[n] = j
                n += 1
        y = out[b, begin:end]
        y[:] = 0
        _add_rows(y, rows, begin, which[:n], x[b])
        for i in range(y.shape[0]):
            y[i] = y[i] * _scale(rows, scales, begin + i) + bias[begin + i]
        read += n
    # Rows stay in a near cache from one sequence to the next: at most all are read.
    return min(read, x.shape[1]) * (end - begin) * rows.itemsize


# What `_attend_some` does: everything, or in two goes, between which threads learn each other's sums.
ATTEND, WEIGH, MIX = range(3)


@njit(fastmath=FASTMATH)
def _attend(t, threads, sync, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """Attention of every sequence over this thread's share of its positions."""
    group, batch, selective = c.heads // c.kv_heads, s.token.shape[0], _attends_selectively(layer, c, s, select)
    for go in range((1 + selective) * batch):
        b = go % batch
        stage = ATTEND if not selective else WEIGH if go < batch else MIX
        if stage != MIX:
            _ask(t, b, layer, w, c, s)
            if t == threads - 1:  # its share ends with the token itself
                _remember(b, layer, w, c, s)
        elif b == 0:
            _barrier(sync, threads)
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
def _attends_selectively(layer, c, s, select):  # type: ignore[no-untyped-def]
    """Whether any sequence sees so many positions that leaving values out saves more than finding them costs."""
    selective = False
    for b in range(s.token.shape[0]):
        seen = min(s.position[b] + 1, c.window[layer])
        selective |= select.attention_threshold[b] > 0 and seen >= select.attention_from
    return selective


@njit(fastmath=FASTMATH)
def _ask(t, b, layer, w, c, s):  # type: ignore[no-untyped-def]
    """A sequence's queries, in every thread."""
    dim = c.head_dim
    for head in range(c.heads):
        q = s.query[t, head]
        for j in range(dim):
            q[j] = s.qkv[b, head * dim + j]
        if c.has_head_norms:
            _norm(q, q, w.head_norms[layer, 0], c.rms, c.eps)
        if c.rotary[layer] >= 0:
            _rotate(q, s.rotary[b, c.rotary[layer]])
        for j in range(dim):
            q[j] *= c.scaling[layer]


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
    keys = s.keys[b, layer].reshape(-1, s.keys.shape[4])
    values, scores, which = s.values[b, layer, kv], s.scores[t, b], s.rows[t]
    if stage != MIX:
        if heads[0] == kv * group:  # what the other heads of a group read again lies in a near cache
            s.reads[t, READ_CACHE] += n * _row_bytes(values)
        for i in range(own, after):
            later = block + min(i + 4, after - 1)
            # Which values will be read may not be known yet.
            asked, asked_first = (values, i * LANES) if stage == ATTEND else (keys, later)
            _score_block(scores, i * LANES - at, s.query[t], heads, keys, block + i, later, asked, asked_first)
        for h in heads:
            weights = scores[h, first - at : first - at + n]
            if c.softcap > 0:
                for i in range(n):
                    weights[i] = c.softcap * _tanh(weights[i] / c.softcap)
            peak = _highest(weights)
            total = np.float32(0)
            for i in range(n):
                weights[i] = _exp(weights[i] - peak)
                total += weights[i]
            s.peak[t, b, h] = peak
            s.total[t, b, h] = total
        if stage == WEIGH:
            return
    count, asked, asked_first, ahead = n, values, first, FIRST
    if stage == MIX:
        least = select.attention_threshold[b] if end - begin >= select.attention_from else np.float32(0)
        count = _choose(t, threads, b, kv * group, group, first - at, n, least / np.float32(end - begin), s)
        for r in range(min(count, FIRST)):
            _ask_row(values, first + which[r])
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
        s.reads[t, READ_CACHE] += count * _row_bytes(values)
    _mix_values(s.mixed[t, b], heads, scores, first - at, values, first, count, which, asked, asked_first, ahead)


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
        limit = threshold * total * _exp(peak - s.peak[t, b, h])
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
            total += s.total[other, b, head] * _exp(s.peak[other, b, head] - peak)
    return peak, total


@njit(fastmath=FASTMATH)
def _remember(b, layer, w, c, s):  # type: ignore[no-untyped-def]
    """Append the token's key and value to the cache, and the value to the mean of those in the window."""
    dim, position = c.head_dim, s.position[b]
    for kv in range(c.kv_heads):
        offset = (c.heads + kv) * dim
        k = s.qkv[b, offset : offset + dim]
        if c.has_head_norms:
            _norm(k, k, w.head_norms[layer, 1], c.rms, c.eps)
        if c.rotary[layer] >= 0:
            _rotate(k, s.rotary[b, c.rotary[layer]])
        v = s.qkv[b, offset + c.kv_heads * dim : offset + c.kv_heads * dim + dim]
        keys, values = s.keys[b, layer, kv, position // LANES], s.values[b, layer, kv, position]
        for j in range(dim):
            keys[j * LANES + position % LANES] = _narrow(k[j], keys)
            values[j] = _narrow(v[j], values)
        total, mean, count = s.value_sum[b, layer, kv], s.value_mean[b, kv], min(position + 1, c.window[layer])
        for j in range(dim):
            total[j] += _widen(values[j])
            mean[j] = total[j] / np.float32(count)
        if count == c.window[layer]:
            leaving = s.values[b, layer, kv, position + 1 - count]  # at the next token
            for j in range(dim):
                total[j] -= _widen(leaving[j])


@njit(fastmath=FASTMATH)
def _attention_output(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """This thread's rows of the output projection, into its partial sums."""
    dim = c.head_dim
    width = c.heads * dim
    begin, end = width * t // threads, width * (t + 1) // threads
    rows, weight = w.output[layer], select.output_weight[layer]
    mine = s.query[t].reshape(width)  # done with as queries
    which = s.rows[t]
    read, selective = 0, _attends_selectively(layer, c, s, select)
    for b in range(s.token.shape[0]):
        s.after_attention[t, b, :] = 0
    for b in range(s.token.shape[0]):
        for head in range(begin // dim, (end - 1) // dim + 1):
            peak, total = _over_threads(threads, b, head, s)
            first, last = max(begin, head * dim), min(end, (head + 1) * dim)
            for i in range(first, last):
                mine[i] = 0
            kept = np.float32(0)
            for other in range(threads):
                if s.total[other, b, head] > 0:
                    share = _exp(s.peak[other, b, head] - peak) / total
                    mixed = s.mixed[other, b, head]
                    for i in range(first, last):
                        mine[i] += share * mixed[i - head * dim]
                    kept += share * s.kept[other, b, head]
            if selective:
                # Positions left out get the mean of all values in the place of their own.
                mean = s.value_mean[b, head // (c.heads // c.kv_heads)]
                for i in range(first, last):
                    mine[i] += (np.float32(1) - kept) * mean[i - head * dim]
        threshold = select.output_threshold[b, layer]
        n = 0
        for i in range(begin, end):  # no branch that a processor could guess wrong
            which[n] = i
            n += abs(mine[i]) * weight[i] >= threshold
        _add_rows(s.after_attention[t, b], rows, 0, which[:n], mine)
        read += n
    # Rows stay in a near cache from one sequence to the next: at most all are read.
    s.reads[t, READ_ATTENTION] += min(read, end - begin) * _row_bytes(rows)


@njit
def _listed(t, layer, begin, end, s, select):  # type: ignore[no-untyped-def]
    """List the neurons that any sequence may need; of several, `alive` says which one does. Returns how many."""
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
                s.alive[b, i] = select.needed[b, layer, i]
                any_needed |= s.alive[b, i]
            rows[count] = i
            count += any_needed
    return count


@njit(fastmath=FASTMATH)
def _project_listed(out, rows, scales, bias, x, which):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for the listed rows i, of all sequences."""
    ahead = _ahead(rows)
    for r in range(0, which.shape[0], 4):  # a row that comes twice gets the same products again
        _four_times_all(out, rows, scales, bias, x, _four(which, r), _four(which, r + ahead))


@njit(fastmath=FASTMATH)
def _add_listed(out, rows, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows to out[b] of all sequences b, row i times factors[b, i]."""
    ahead = _ahead(rows)
    batch, fours = out.shape[0], which.shape[0] - which.shape[0] % 4
    for r in range(0, fours, 4):
        i0, i1, i2, i3 = four = (which[r], which[r + 1], which[r + 2], which[r + 3])
        later = _four(which, r + ahead)
        for b in range(0, batch - 1, 2):
            f, g = factors[b], factors[b + 1]
            eight = (f[i0], f[i1], f[i2], f[i3], g[i0], g[i1], g[i2], g[i3])
            _add_some(out, (b, b + 1), rows, 0, four, eight, later)
        if batch % 2:
            f = factors[batch - 1]
            _add_some(out, (batch - 1,), rows, 0, four, (f[i0], f[i1], f[i2], f[i3]), later)
    for r in range(fours, which.shape[0]):
        i = which[r]
        for b in range(batch):
            _add_some(out, (b,), rows, 0, (i,), (factors[b, i],), (i,))


@njit(fastmath=FASTMATH)
def _still_needed(t, begin, end, weight, thresholds, s):  # type: ignore[no-untyped-def]
    """Set h to zero where it is below a sequence's threshold, and list the neurons that any needs. Returns how many."""
    rows, near = s.rows[t], s.near[t, : end - begin]
    near[:] = 0
    for b in range(s.h.shape[0]):
        alive, h, limit = s.alive[b, begin:end], s.h[b, begin:end], thresholds[b]
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
def _mlp(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """This thread's neurons, into its partial sums; each row that any sequence needs is read once.

    It is multiplied with all of them, as that takes less time than telling those that need it from the others.
    """
    x, batch, neurons = s.normed[t], s.token.shape[0], w.up.shape[1]
    begin, end = neurons * t // threads, neurons * (t + 1) // threads
    rows, up = s.rows[t], w.up[layer]
    count = _listed(t, layer, begin, end, s, select)
    for b in range(batch):
        s.h[b, begin:end] = 0
    if c.gated:
        gate = w.gate[layer]
        s.reads[t, READ_MLP] += count * _row_bytes(gate)
        _project_listed(s.h, gate, w.gate_scale[layer], w.gate_bias[layer], x, rows[:count])
        for b in range(batch):
            _activate(s.h[b, begin:end], c.activation)
        count = _still_needed(t, begin, end, select.gate_weight[layer], select.gate_threshold[:, layer], s)
        _project_listed(s.up, up, w.up_scale[layer], w.up_bias[layer], x, rows[:count])
        for b in range(batch):
            h, factor = s.h[b, begin:end], s.up[b, begin:end]
            for i in range(h.shape[0]):
                h[i] *= factor[i]
    else:
        _project_listed(s.h, up, w.up_scale[layer], w.up_bias[layer], x, rows[:count])
        for b in range(batch):
            _activate(s.h[b, begin:end], c.activation)
    s.reads[t, READ_MLP] += count * _row_bytes(up)
    count = _still_needed(t, begin, end, select.weight[layer], select.threshold[:, layer], s)
    down = w.down[layer]
    s.reads[t, READ_MLP] += count * _row_bytes(down)
    for b in range(batch):
        s.after_mlp[t, b, :] = 0
        alive, computed = s.alive[b, begin:end], 0
        for i in range(alive.shape[0]):
            computed += alive[i]
        s.computed[t, b] += computed
    _add_listed(s.after_mlp[t], down, rows[:count], s.h)


@njit(fastmath=FASTMATH)
def _keep(rows, count, h, factor, activation, weight, threshold, later):  # type: ignore[no-untyped-def]
    """Finish h of the listed neurons, by their factor or the nonlinearity, and list those above a threshold.

    Rows of `later` that are on the new list are asked for at once: memory would idle meanwhile. Returns how many are.
    """
    kept, asked = 0, 0
    for begin in range(0, count, LANES * 4):
        end = min(begin + LANES * 4, count)
        part = slice(rows[begin], rows[end - 1] + 1)  # with what lies between, which nothing reads
        values = h[part]
        if factor.shape[0] > 0:
            factors = factor[part]
            for i in range(values.shape[0]):
                values[i] *= factors[i]
        else:
            _activate(values, activation)
        if threshold > 0:
            for r in range(begin, end):  # no branch that a processor could guess wrong
                i = rows[r]
                rows[kept] = i
                kept += abs(h[i]) * weight[i] >= threshold
        else:
            kept = end
        while asked < min(kept, WAITING):
            _ask_row(later, rows[asked])
            asked += 1
    return kept


@njit(fastmath=FASTMATH)
def _mlp_of_one(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """The same for a single sequence, without the books that a batch needs: a quarter of its time."""
    x, h, factor, neurons = s.normed[t], s.h[0], s.up[0], w.up.shape[1]
    begin, end = neurons * t // threads, neurons * (t + 1) // threads
    rows, up, down = s.rows[t], w.up[layer], w.down[layer]
    count = _listed(t, layer, begin, end, s, select)
    up_scale, up_bias = w.up_scale[layer], w.up_bias[layer]
    if c.gated:
        gate = w.gate[layer]
        s.reads[t, READ_MLP] += count * _row_bytes(gate)
        _project_rows(h, gate, w.gate_scale[layer], w.gate_bias[layer], x, rows[:count])
        weight, threshold = select.gate_weight[layer], select.gate_threshold[0, layer]
        count = _keep(rows, count, h, factor[:0], c.activation, weight, threshold, up)
        _project_rows(factor, up, up_scale, up_bias, x, rows[:count])
    else:
        _project_rows(h, up, up_scale, up_bias, x, rows[:count])
        factor = factor[:0]
    s.reads[t, READ_MLP] += count * _row_bytes(up)
    weight, threshold = select.weight[layer], select.threshold[0, layer]
    count = _keep(rows, count, h, factor, c.activation, weight, threshold, down)
    s.computed[t, 0] += count
    s.reads[t, READ_MLP] += count * _row_bytes(down)
    out = s.after_mlp[t, 0]
    out[:] = 0
    _add_rows(out, down, 0, rows[:count], h)


@njit(fastmath=FASTMATH)
def _mlp_by_input(t, threads, layer, w, c, s, select):  # type: ignore[no-untyped-def]
    """The same on input-major tensors: inputs of the three projections are left out, not neurons."""
    x, batch, neurons = s.normed[t], s.token.shape[0], w.down.shape[1]
    begin, end = neurons * t // threads, neurons * (t + 1) // threads
    rows = s.rows[t]
    weight, threshold = select.input_weight[layer, MLP_INPUT], select.input_threshold[:, layer, MLP_INPUT]
    s.reads[t, READ_MLP] += _project_inputs(
        s.h, w.up[layer], w.up_scale[layer], w.up_bias[layer], x, weight, threshold, rows, begin, end
    )
    gated = c.gated
    if gated:
        s.reads[t, READ_MLP] += _project_inputs(
            s.up, w.gate[layer], w.gate_scale[layer], w.gate_bias[layer], x, weight, threshold, rows, begin, end
        )
    down, weight = w.down[layer], select.weight[layer]
    read = 0
    for b in range(batch):
        if gated:
            _activate(s.up[b, begin:end], c.activation)
            for i in range(begin, end):
                s.h[b, i] *= s.up[b, i]
        else:
            _activate(s.h[b, begin:end], c.activation)
        n = 0
        for i in range(begin, end):
            if abs(s.h[b, i]) * weight[i] >= select.threshold[b, layer]:
                rows[n] = i
                n += 1
        out = s.after_mlp[t, b]
        out[:] = 0
        _add_rows(out, down, 0, rows[:n], s.h[b])
        s.computed[t, b] += n
        read += n
    s.reads[t, READ_MLP] += min(read, end - begin) * _row_bytes(down)


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
            y[j] = y[j] * _scale(rows, scales, j) + bias[j]
        if c.has_norm[after]:
            _norm(y, y, w.norms[layer, after], c.rms, c.eps)
        x = s.residual[t, b]
        for j in range(y.shape[0]):
            x[j] += y[j]
        if c.has_norm[residual_after]:
            _norm(x, x, w.norms[layer, residual_after], c.rms, c.eps)


@njit(fastmath=FASTMATH)
def _into_normed(t, layer, before, w, c, s):  # type: ignore[no-untyped-def]
    """The input of a sublayer."""
    for b in range(s.token.shape[0]):
        if c.has_norm[before]:
            _norm(s.normed[t, b], s.residual[t, b], w.norms[layer, before], c.rms, c.eps)
        else:
            _copy(s.normed[t, b], s.residual[t, b])


@njit(fastmath=FASTMATH)
def _softmax_sums(t, b, begin, end, s):  # type: ignore[no-untyped-def]
    """Of this thread's logits: the highest, and the sums that surprisal and entropy are made of."""
    logits = s.logits[b, begin:end]
    peak = _highest(logits)
    total = np.float32(0)
    weighted = np.float32(0)
    for i in range(logits.shape[0]):
        p = _exp(logits[i] - peak)
        total += p
        weighted += p * (logits[i] - peak)
    s.load[t, b, 0], s.load[t, b, 1], s.load[t, b, 2] = peak, total, weighted
    return peak


@njit
def _screen_unit(total, n):  # type: ignore[no-untyped-def]
    """What a step of int16 is of n terms with that sum of sizes, so that no sum of theirs with codes is out of range.

    A code is at most CODE_OF_ZERO - 1 from zero, and a term that was rounded to whole steps half a step larger: some
    9,000 terms at most. `clada.decoder.screen_words` rounds as this does.
    """
    most = np.float32(CODE_OF_ZERO - 1)
    return most * max(total, np.float32(1e-30)) / (np.float32(LARGEST_SUM) - np.float32(0.5) * most * np.float32(n))


@njit(fastmath=FASTMATH)
def _screen(t, threads, sync, x, w, s, select):  # type: ignore[no-untyped-def]
    """Logits by the screen's largest terms, then in full where the probability they give is not negligible."""
    batch, terms, vocabulary = s.token.shape[0], w.screen.shape[0], w.head.shape[0]
    first, last = terms * t // threads, terms * (t + 1) // threads
    s.reads[t, READ_HEAD] += _project(s.screened, w.screen_basis, w.screen_scale, w.screen_offset, x, first, last)
    _barrier(sync, threads)
    which, factors, steps, estimates = s.rows[t], s.terms[t], s.steps[t], s.estimates[t]
    means, floors, near, sequences = s.means[t], s.floors[t], s.near[t, :64], s.sequences[t]
    for b in range(batch):
        means[b] = 0
        for j in range(x.shape[1]):
            means[b] += w.head_mean[j] * x[b, j]
    blocks = w.screen.shape[1] // LINE
    begin, end = blocks * t // threads * BLOCK, blocks * (t + 1) // threads * BLOCK
    read = 0
    for tile in range(begin, end, SCREEN_TILE):  # read once for all sequences
        read, size = 0, min(SCREEN_TILE, end - tile)
        for b in range(batch):
            n, total = 0, np.float32(0)
            for k in range(terms):
                z = s.screened[b, k]
                if k == 0 or abs(z) * w.screen_weight[k] >= select.screen_threshold[b]:
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
                later = _eight(which[:n], r + FIRST)
                _add_codes(estimates[:size], w.screen, tile, _eight(which[:n], r), eight, later)
            logits = s.logits[b, tile : min(tile + size, vocabulary)]
            for i in range(logits.shape[0]):
                logits[i] = means[b] + unit * estimates[i]
    for b in range(batch):
        _softmax_sums(t, b, begin, min(end, vocabulary), s)
    s.reads[t, READ_HEAD] += min(read, terms) * (end - begin) // CODES
    _barrier(sync, threads)
    for b in range(batch):
        peak = s.load[0, b, 0]
        for other in range(1, threads):
            peak = max(peak, s.load[other, b, 0])
        total = np.float32(0)
        for other in range(threads):
            total += s.load[other, b, 1] * _exp(s.load[other, b, 0] - peak)
        floors[b] = peak + np.log(total) - select.head_margin[b]
    count = 0
    # Frequent words tend to come first, so blocks in turn give every thread its share of the likely ones.
    for block in range(t * 64, vocabulary, threads * 64):
        size = min(64, vocabulary - block)
        near[:] = 0
        for b in range(batch):
            estimates = s.logits[b, block : block + size]
            for i in range(size):
                near[i] |= estimates[i] >= floors[b]
        for i in range(size):
            which[count] = block + i
            count += near[i]
    if batch == 1:
        _project_rows(s.logits[0], w.head, w.head_scale, np.float32(0), x, which[:count])
    else:
        ahead = _ahead(w.head)
        for r in range(count):
            i, n = which[r], 0
            for b in range(batch):
                if s.logits[b, i] >= floors[b]:
                    sequences[n] = b
                    n += 1
            later = which[min(r + ahead, count - 1)]
            _dots(s.logits, w.head, _scale(w.head, w.head_scale, i), np.float32(0), i, later, x, sequences, n)
    s.reads[t, READ_HEAD] += count * _row_bytes(w.head)
    _barrier(sync, threads)


@njit(fastmath=FASTMATH)
def _head(t, threads, sync, w, c, s, select):  # type: ignore[no-untyped-def]
    """Logits, and what surprisal and entropy need, in the same pass."""
    batch, vocabulary = s.token.shape[0], w.head.shape[0]
    for b in range(batch):
        if c.has_final_norm:
            _norm(s.normed[t, b], s.residual[t, b], w.final_norm, c.rms, c.eps)
        else:
            _copy(s.normed[t, b], s.residual[t, b])
    x = s.normed[t]
    inputs = w.before_head.shape[0]
    if inputs > 0:
        s.reads[t, READ_HEAD] += inputs * x.shape[1] * w.before_head.itemsize // threads
        for i in range(inputs * t // threads, inputs * (t + 1) // threads):
            for b in range(batch):
                s.narrow[b, i] = _dot(w.before_head[i], x[b])
        _barrier(sync, threads)
        x = s.narrow
    begin, end = vocabulary * t // threads, vocabulary * (t + 1) // threads
    if w.screen.shape[0] > 0 and select.head_margin[0] < np.inf:
        _screen(t, threads, sync, x, w, s, select)
    else:
        s.reads[t, READ_HEAD] += _project(s.logits, w.head, w.head_scale, np.float32(0), x, begin, end)
    for b in range(batch):
        logits = s.logits[b, begin:end]
        if c.final_softcap > 0:
            for i in range(logits.shape[0]):
                logits[i] = c.final_softcap * _tanh(logits[i] / c.final_softcap)
        peak = _softmax_sums(t, b, begin, end, s)
        best = 0
        while best < logits.shape[0] - 1 and logits[best] != peak:
            best += 1
        s.peaks[t, b] = begin + best


@njit(fastmath=FASTMATH)
def _merge(threads, s):  # type: ignore[no-untyped-def]
    """Put together what the threads found."""
    for b in range(s.token.shape[0]):
        s.active[b] = 0
        peak = np.float32(-np.inf)
        for t in range(threads):
            s.active[b] += s.computed[t, b]
            if s.load[t, b, 0] > peak:
                peak = s.load[t, b, 0]
                s.best[b] = s.peaks[t, b]
        total, mean = np.float32(0), np.float32(0)
        for t in range(threads):
            share, shift = _exp(s.load[t, b, 0] - peak), s.load[t, b, 0] - peak
            total += share * s.load[t, b, 1]
            mean += share * (s.load[t, b, 2] + shift * s.load[t, b, 1])  # a thread's sums are about its own peak
        s.log_total[b] = peak + np.log(total)
        s.entropy[b] = max(np.log(total) - mean / total, np.float32(0))
    for i in range(s.bytes_read.shape[0]):
        s.bytes_read[i] = 0
        for t in range(threads):
            s.bytes_read[i] += s.reads[t, i]


@njit(fastmath=FASTMATH)
def _embed(t, w, c, s):  # type: ignore[no-untyped-def]
    """What enters the first layer, the same in every thread."""
    for b in range(s.token.shape[0]):
        token, x = s.token[b], s.residual[t, b]
        row, scale = w.embedding[token], _scale(w.embedding, w.embedding_scale, token) * c.embedding_factor
        if w.before_layers.shape[0] > 0:
            narrow = s.narrow[b]  # every thread writes the same
            for j in range(row.shape[0]):
                narrow[j] = _widen(row[j]) * scale
            for i in range(x.shape[0]):
                x[i] = _dot(w.before_layers[i], narrow)
        else:
            for j in range(x.shape[0]):
                x[j] = _widen(row[j]) * scale
        if w.positions.shape[0] > 0:
            for j in range(x.shape[0]):
                x[j] += w.positions[s.position[b], j]


@njit(nogil=True, cache=True)
def decode_step(t, threads, sync, w, c, s, select):  # type: ignore[no-untyped-def]
    """Run thread `t` of `threads` through one token of every sequence; all of them must be called at once.

    Args:
        t: 0 to threads - 1.
        threads: how many run.
        sync: of the team, see `clada.decoder.Team`.
        w: `Tensors`, as all that follow held by `hold`.
        c: `Constants`.
        s: `Scratch`; `token`, `position` and `rotary` are the input, what follows `reads` the output; the caches grow
            by one position.
        select: `Selection`.
    """
    _step(t, threads, sync, w.value, c.value, s.value, select.value)


# What this calls is compiled with the same flags. Without reference counts, so that nothing can be allocated: those of
# the arrays in these tuples cost a microsecond a call, a tenth of a token in int8. Division as numpy's: a check
# for zero would keep loops from vectors.
@njit(fastmath=FASTMATH, _nrt=False, error_model="numpy")
def _step(t, threads, sync, w, c, s, select):  # type: ignore[no-untyped-def]
    begin_call(t, sync)
    _embed(t, w, c, s)
    for b in range(s.token.shape[0]):
        s.computed[t, b] = 0
    for i in range(s.reads.shape[1]):
        s.reads[t, i] = 0
    rows = s.qkv.shape[1]
    begin, end = rows * t // threads, rows * (t + 1) // threads
    for layer in range(w.qkv.shape[0]):
        _into_normed(t, layer, BEFORE_ATTENTION, w, c, s)
        if c.layout == BY_INPUT:
            s.reads[t, READ_ATTENTION] += _project_inputs(
                s.qkv, w.qkv[layer], w.qkv_scale[layer], w.qkv_bias[layer], s.normed[t],
                select.input_weight[layer, ATTENTION_INPUT], select.input_threshold[:, layer, ATTENTION_INPUT],
                s.rows[t], begin, end,
            )  # fmt: skip
        else:
            s.reads[t, READ_ATTENTION] += _project(
                s.qkv, w.qkv[layer], w.qkv_scale[layer], w.qkv_bias[layer], s.normed[t], begin, end
            )
        _barrier(sync, threads)
        _attend(t, threads, sync, layer, w, c, s, select)
        _barrier_before(w.output[layer], w.output.shape[1] * t // threads, sync, threads)
        _attention_output(t, threads, layer, w, c, s, select)
        _barrier_before(w.gate[layer], w.up.shape[1] * t // threads, sync, threads)
        _into_residual(
            t, threads, layer, s.after_attention, w.output[layer], w.output_scale[layer], w.output_bias[layer],
            AFTER_ATTENTION, ATTENTION_RESIDUAL, w, c, s,
        )  # fmt: skip
        _into_normed(t, layer, BEFORE_MLP, w, c, s)
        if c.layout == BY_INPUT:
            _mlp_by_input(t, threads, layer, w, c, s, select)
        elif s.token.shape[0] == 1:
            _mlp_of_one(t, threads, layer, w, c, s, select)
        else:
            _mlp(t, threads, layer, w, c, s, select)
        _barrier_before(w.qkv[min(layer + 1, w.qkv.shape[0] - 1)], begin, sync, threads)
        _into_residual(
            t, threads, layer, s.after_mlp, w.down[layer], w.down_scale[layer], w.down_bias[layer],
            AFTER_MLP, MLP_RESIDUAL, w, c, s,
        )  # fmt: skip
    _head(t, threads, sync, w, c, s, select)
    end_call(t, threads, sync)
    if t == 0:
        _merge(threads, s)
