"""Products of codes with the many inputs of a prompt, called from Python; see `clada.cpu.blocks.tiles`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

from clada.cpu.blocks.kinds import KIND_BITS, KINDS, SHARED
from clada.cpu.blocks.tiles import (
    OUTPUTS,
    SIDE_BY_SIDE,
    multiply_tile,
    put_codes_across,
    put_codes_along,
    put_numbers_across,
)
from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.rows import GROUPS, round_input
from clada.cpu.kernels.scalars import FASTMATH
from clada.cpu.kernels.vectors import where_row_lies
from clada.cpu.llvm import INDEX
from clada.cpu.precision import of_element

EACH = tuple(kind.each for kind in KINDS)


@intrinsic
def unpack_along(_context: Any, codes: Any, numbers: Any, rows: Any, _i: Any) -> Any:
    """Codes [width] of row i in blocks of an output, and its scales and minima [1 or 2, groups] at the beginning."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        codes, numbers = (context.make_array(signature.args[k])(context, builder, args[k]) for k in range(2))
        where = where_row_lies(context, builder, signature.args[2], args[2], args[3])
        put_codes_along(builder, where, builder.extract_value(codes.shape, 0), codes.data, numbers.data)
        return context.get_dummy_value()

    return types.void(codes, numbers, rows, types.int64), codegen


@intrinsic
def unpack_across(_context: Any, codes: Any, rows: Any, _i: Any) -> Any:
    """Codes [outputs] of row i in blocks of an input."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        codes = context.make_array(signature.args[0])(context, builder, args[0])
        where = where_row_lies(context, builder, signature.args[1], args[1], args[2])
        put_codes_across(builder, where, builder.extract_value(codes.shape, 0), codes.data)
        return context.get_dummy_value()

    return types.void(codes, rows, types.int64), codegen


@intrinsic
def numbers_across(_context: Any, numbers: Any, rows: Any, _i: Any) -> Any:
    """Scales and minima [2, outputs] of the group that row i in blocks of an input is of."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = context.make_array(signature.args[0])(context, builder, args[0])
        where = where_row_lies(context, builder, signature.args[1], args[1], args[2])
        put_numbers_across(builder, where, args[2], builder.extract_value(numbers.shape, 1), numbers.data)
        return context.get_dummy_value()

    return types.void(numbers, rows, types.int64), codegen


@intrinsic
def times_tile(_context: Any, sums: Any, inputs: Any, codes: Any, scales: Any, minima: Any) -> Any:
    """A tile of outputs times a tile of inputs: sums [SIDE_BY_SIDE, OUTPUTS]; see `clada.cpu.blocks.tiles`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, inputs, *tile = (
            context.make_array(kind)(context, builder, value) for kind, value in zip(signature.args, args, strict=True)
        )
        pairs, groups, least = (builder.extract_value(array.shape, 0) for array in tile)
        shared = builder.udiv(pairs, INDEX(SHARED // 2))
        has_minima = builder.icmp_signed(">", least, INDEX(0))
        each, (codes, scales, minima) = builder.udiv(groups, shared), (array.data for array in tile)
        multiply_tile(builder, sums.data, inputs.data, shared, each, codes, scales, minima, has_minima)
        return context.get_dummy_value()

    return types.void(sums, inputs, codes, scales, minima), codegen


@kernel(nogil=True, fastmath=FASTMATH)
def pack_inputs(x, room, line):  # type: ignore[no-untyped-def]
    """Round inputs x [B, width] into tiles of inputs, `room` int16 [B / SIDE_BY_SIDE, .]; zeros beyond the last input.

    `line` int16, as long as `clada.cpu.kernels.rows.prepared_size` says, is for what lies between.
    """
    filled = line.shape[0] * SHARED // (SHARED + 4)
    factors, pairs = line[filled:].view(np.float32), line[:filled].view(np.int32)
    if x.shape[0] % SIDE_BY_SIDE:
        room[-1, :] = 0
    for b in range(x.shape[0]):
        round_input(x[b], line[:filled], factors)
        tile, k = room[b // SIDE_BY_SIDE], b % SIDE_BY_SIDE
        numbers = tile[: filled * SIDE_BY_SIDE].view(np.int32)
        for pair in range(pairs.shape[0]):
            numbers[pair * SIDE_BY_SIDE + k] = pairs[pair]
        own, groups = tile[filled * SIDE_BY_SIDE :].view(np.float32), filled // SHARED
        for g in range(groups):
            own[2 * g * SIDE_BY_SIDE + k], own[(2 * g + 1) * SIDE_BY_SIDE + k] = factors[g], factors[groups + g]


@njit
def _copy_codes(codes, row):  # type: ignore[no-untyped-def]
    """Stored codes and zeros behind them."""
    for j in range(codes.shape[0]):
        codes[j] = row[j] if j < row.shape[0] else 0


def _codes_along(codes, numbers, rows, scale, i):  # type: ignore[no-untyped-def]
    """Unpack row i of an output; gives how many inputs share a scale, and how many numbers they have."""
    raise NotImplementedError


@overload(_codes_along)
def _typed_codes_along(codes, numbers, rows, scale, i):  # type: ignore[no-untyped-def]
    def in_blocks(codes, numbers, rows, scale, i):  # type: ignore[no-untyped-def]
        unpack_along(codes, numbers, rows, i)
        kind = rows[i, 0] & (2**KIND_BITS - 1)
        return GROUPS[kind], EACH[kind]

    def scaled(codes, numbers, rows, scale, i):  # type: ignore[no-untyped-def]
        _copy_codes(codes, rows[i])
        for g in range(codes.shape[0] // SHARED):
            numbers[g] = scale[i]
        return SHARED, 1

    return in_blocks if of_element(rows.dtype).in_blocks else scaled


def _codes_across(codes, rows, i):  # type: ignore[no-untyped-def]
    """Unpack the codes of row i of an input."""
    raise NotImplementedError


@overload(_codes_across)
def _typed_codes_across(codes, rows, i):  # type: ignore[no-untyped-def]
    if of_element(rows.dtype).in_blocks:
        return lambda codes, rows, i: unpack_across(codes, rows, i)
    return lambda codes, rows, i: _copy_codes(codes, rows[i])


def _numbers_across(numbers, rows, scale, i):  # type: ignore[no-untyped-def]
    """Unpack the scales and minima of all outputs in the group of row i of an input."""
    raise NotImplementedError


@overload(_numbers_across)
def _typed_numbers_across(numbers, rows, scale, i):  # type: ignore[no-untyped-def]
    def scaled(numbers, rows, scale, i):  # type: ignore[no-untyped-def]
        for j in range(numbers.shape[1]):
            numbers[0, j] = scale[j] if j < scale.shape[0] else 0

    if of_element(rows.dtype).in_blocks:
        return lambda numbers, rows, scale, i: numbers_across(numbers, rows, i)
    return scaled


@kernel(nogil=True)
def unpack_tiles_along(codes, scales, minima, rows, scale, begin, end, room, numbers):  # type: ignore[no-untyped-def]
    """Unpack some tiles of rows of outputs, see `clada.cpu.blocks.tiles`.

    `room` int16 [OUTPUTS, inputs] and `numbers` float32 [1, inputs / 8] are for what lies between.
    """
    inputs = room.shape[1]
    group = inputs // scales.shape[1]
    for tile in range(begin, end):
        for k in range(OUTPUTS):
            i = tile * OUTPUTS + k
            if i >= rows.shape[0]:  # filled up
                room[k, :] = 0
                numbers[0, :] = 0
                own, each = SHARED, 1
            else:
                own, each = _codes_along(room[k], numbers[0], rows, scale, i)
            for g in range(scales.shape[1]):
                scales[tile, g, k] = numbers[0, g * group // own]
            for g in range(minima.shape[1]):
                minima[tile, g, k] = numbers[0, inputs // own + g] if each > 1 else 0
        pairs, into = room.view(np.int32), codes[tile].view(np.int32)
        for pair in range(into.shape[0]):
            for k in range(OUTPUTS):
                into[pair, k] = pairs[k, pair]


@kernel(nogil=True)
def unpack_tiles_across(codes, scales, minima, rows, scale, begin, end, room, numbers):  # type: ignore[no-untyped-def]
    """Unpack some inputs of all tiles of rows of inputs: a multiple of SHARED, from a multiple of it on.

    `room` int16 [2, outputs filled up to UNIT] and `numbers` float32 [2, the same] are for what lies between.
    """
    tiles, group = codes.shape[0], 2 * codes.shape[1] // scales.shape[1]
    for i in range(begin, end, 2):
        for k in range(2):
            if i + k < rows.shape[0]:
                _codes_across(room[k], rows, i + k)
            else:
                room[k, :] = 0
        for tile in range(tiles):
            into = codes[tile, i // 2]
            for k in range(OUTPUTS):
                into[2 * k] = room[0, tile * OUTPUTS + k]
                into[2 * k + 1] = room[1, tile * OUTPUTS + k]
    for i in range(begin, end, group):
        numbers[:] = 0
        if i < rows.shape[0]:
            _numbers_across(numbers, rows, scale, i)
        for tile in range(tiles):
            for k in range(OUTPUTS):
                scales[tile, i // group, k] = numbers[0, tile * OUTPUTS + k]
            if minima.shape[1]:
                for k in range(OUTPUTS):
                    minima[tile, i // group, k] = numbers[1, tile * OUTPUTS + k]


@kernel(nogil=True, fastmath=FASTMATH)
def multiply_tiles(out, inputs, codes, scales, minima, bias, sums):  # type: ignore[no-untyped-def]
    """out[b, i] = the weights of output i times packed input b, + bias[i]; `sums` is what `times_tile` writes."""
    for tile in range(codes.shape[0]):
        begin = tile * OUTPUTS
        count = min(OUTPUTS, out.shape[1] - begin)
        for some in range(inputs.shape[0]):
            times_tile(sums, inputs[some], codes[tile], scales[tile], minima[tile])
            first = some * SIDE_BY_SIDE
            for k in range(min(SIDE_BY_SIDE, out.shape[0] - first)):
                for j in range(count):
                    out[first + k, begin + j] = sums[k, j] + bias[begin + j]
