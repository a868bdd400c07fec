"""The kernels' instructions for products of weights' codes with many inputs in whole numbers, as prompts need them.

Steps read a row as it is stored. A prompt has hundreds of inputs for every row, so that a matrix is unpacked once, into
tiles of `OUTPUTS` outputs each (T of them, the last one filled up with zeros):

    codes    int16 [T, inputs / 2, OUTPUTS * 2], without what a code of zero is; two inputs of an output side by side
    scales   float32 [T, groups, OUTPUTS]; groups are as long as the shortest of the matrix
    minima   float32 [T, inputs / SHARED, OUTPUTS], or [T, 0, OUTPUTS]

Inputs are rounded as steps round them, see `clada.cpu.kernels.rows.prepared`: a group's sum is exact, and only the sum
of all groups is rounded. `SIDE_BY_SIDE` of them lie together, as a tile takes them: int16 [inputs / 2, SIDE_BY_SIDE, 2]
and behind them float32 [inputs / SHARED, 2, SIDE_BY_SIDE], what a step is and the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

from clada.cpu.blocks.kinds import SHARED, UNIT, BlockKind
from clada.cpu.blocks.rows import (
    EIGHT,
    FLOATS,
    SHORT,
    Across,
    Along,
    by_kind,
    counted,
    filled_up,
    floats,
    load,
    multiply,
    pairs,
    plus,
    shared_function,
    store,
    times,
)
from clada.cpu.llvm import FLOAT, INDEX, INT, spread

_FEATURES = binding.get_host_cpu_features()

# Whether one instruction multiplies pairs of int16 and adds them to a sum (vpdpwssd). Without it, it takes as many
# instructions as products of float32 do, and a BLAS is as fast.
IN_ONE_INSTRUCTION = any(_FEATURES.get(name) for name in ("avx512vnni", "avxvnni"))

_LONG = bool(_FEATURES.get("avx512f"))  # 32 registers of 16 numbers, else 16 of 8

_LANES, _VECTORS = 16 if _LONG else 8, 2

OUTPUTS = _LANES * _VECTORS  # of a tile

SIDE_BY_SIDE = 8 if _LONG else 4  # inputs: registers hold their sums, a tile's codes and an input

_FLOATS, _TWOS = ir.VectorType(FLOAT, _LANES), ir.VectorType(SHORT, 2 * _LANES)


def _call(builder: Any, name: str, of_kind: Callable[..., None], arguments: list[Any]) -> None:
    """Call a function of the compiled module, which branches by the kind of the row: its first argument."""

    def body(inner: Any, where: Any, *others: Any) -> None:
        by_kind(inner, where, lambda kind, start: of_kind(inner, kind, start, *others))

    builder.call(shared_function(builder, name, [argument.type for argument in arguments], body), arguments)


def put_codes_along(builder: Any, where: Any, width: Any, codes: Any, numbers: Any) -> None:
    """Instructions that unpack a row along.

    Args:
        builder: of LLVM.
        where: the row.
        width: how many weights, a multiple of UNIT.
        codes: int16* [width].
        numbers: float32*, scales of the row's own groups, then minima if there are any.
    """

    def of_kind(inner: Any, kind: BlockKind, start: Any, width: Any, codes: Any, numbers: Any) -> None:
        row = Along(kind, start, filled_up(inner, width, kind.filled))
        with counted(inner, width, UNIT) as (j, _):
            for k, v in enumerate(row.codes_of(inner, j)):
                store(inner, v, codes, inner.add(j, INDEX(16 * k)), align=2)
        groups = inner.udiv(width, INDEX(kind.group))
        with counted(inner, groups) as (group, _):
            for which, number in enumerate(row.numbers(inner, group, 1)):
                inner.store(number, inner.gep(numbers, [inner.add(group, times(inner, groups, which))]))

    _call(builder, "put_codes_along", of_kind, [where, width, codes, numbers])


def put_codes_across(builder: Any, where: Any, width: Any, codes: Any) -> None:
    """The same of a row across, but for its numbers."""

    def of_kind(inner: Any, kind: BlockKind, start: Any, width: Any, codes: Any) -> None:
        row = Across(kind, start, width, None, None)
        with counted(inner, width, UNIT) as (j, _):
            for k, v in enumerate(row.whole_codes_of(inner, j)):
                store(inner, v, codes, inner.add(j, INDEX(EIGHT * k)), align=2)

    _call(builder, "put_codes_across", of_kind, [where, width, codes])


def put_numbers_across(builder: Any, where: Any, i: Any, width: Any, numbers: Any) -> None:
    """Instructions for the scales of all outputs in the tile of row i across, then minima: float32* [1 or 2, width]."""

    def of_kind(inner: Any, kind: BlockKind, start: Any, i: Any, width: Any, numbers: Any) -> None:
        row = Across.at(inner, kind, start, width, i)
        with counted(inner, width, EIGHT) as (j, _):
            for which in range(kind.each):
                at = inner.add(j, times(inner, width, which))
                store(inner, row.numbers(inner, j, EIGHT)[which], numbers, at)

    _call(builder, "put_numbers_across", of_kind, [where, i, width, numbers])


def multiply_tile(
    builder: Any, sums: Any, inputs: Any, shared: Any, each: Any, codes: Any, scales: Any, minima: Any, has_minima: Any
) -> None:
    """Instructions for the products of a tile with some inputs.

    Args:
        builder: of LLVM.
        sums: float32* [SIDE_BY_SIDE, OUTPUTS], the results.
        inputs: int16*, as `clada.cpu.kernels.tiles.pack_inputs` makes them.
        shared: how many times SHARED inputs there are.
        each: groups in SHARED inputs.
        codes: int16*, of the tile.
        scales: float32*.
        minima: float32*.
        has_minima: whether there are any; a bit.
    """
    # Sums wait in memory while a group's are in registers, which are too few for both. It is the caller's memory, as
    # LLVM would put our own into registers.
    places = [(t, v, INDEX((t * _VECTORS + v) * _LANES)) for t in range(SIDE_BY_SIDE) for v in range(_VECTORS)]
    for _, _, place in places:
        store(builder, ir.Constant(_FLOATS, None), sums, place)
    steps = builder.bitcast(builder.gep(inputs, [times(builder, shared, SHARED * SIDE_BY_SIDE)]), FLOATS)
    length = builder.udiv(INDEX(SHARED // 2), each)  # of a group, in pairs of inputs
    with counted(builder, shared) as (which, _):
        own = builder.gep(steps, [times(builder, which, 2 * SIDE_BY_SIDE)])
        with counted(builder, each) as (part, _):
            group = builder.add(builder.mul(which, each), part)
            found = _group_sums(builder, inputs, codes, builder.mul(group, length), length)
            numbers = _vectors(builder, scales, group)
            for t, v, place in places:
                step = spread(builder, builder.load(builder.gep(own, [INDEX(t)])), _LANES)
                wide = builder.sitofp(found[t * _VECTORS + v], _FLOATS)
                total = plus(builder, floats(builder, sums, place, _FLOATS), wide, multiply(builder, numbers[v], step))
                store(builder, total, sums, place)
        with builder.if_then(has_minima):
            numbers = _vectors(builder, minima, which)
            for t, v, place in places:
                total = spread(builder, builder.load(builder.gep(own, [INDEX(SIDE_BY_SIDE + t)])), _LANES)
                store(builder, plus(builder, floats(builder, sums, place, _FLOATS), numbers[v], total), sums, place)


def _group_sums(builder: Any, inputs: Any, codes: Any, first: Any, length: Any) -> list[Any]:
    """The whole numbers that a group gives for every input, from a pair of inputs on; vectors in their order."""
    nothing = ir.Constant(ir.VectorType(INT, _LANES), None)
    sums = [cgutils.alloca_once(builder, nothing.type) for _ in range(SIDE_BY_SIDE * _VECTORS)]
    for total in sums:
        builder.store(nothing, total)
    with counted(builder, length) as (pair, _):
        at = builder.add(first, pair)
        start, twos = (
            builder.gep(p, [times(builder, at, 2 * n)]) for p, n in ((codes, OUTPUTS), (inputs, SIDE_BY_SIDE))
        )
        loaded = [load(builder, start, INDEX(2 * _LANES * v), _TWOS, align=2) for v in range(_VECTORS)]
        for t in range(SIDE_BY_SIDE):
            two = builder.bitcast(spread(builder, load(builder, twos, INDEX(2 * t), INT, align=4), _LANES), _TWOS)
            for v, own in enumerate(loaded):
                total = sums[t * _VECTORS + v]
                builder.store(builder.add(builder.load(total), pairs(builder, own, two)), total)
    return [builder.load(total) for total in sums]


def _vectors(builder: Any, numbers: Any, row: Any) -> list[Any]:
    """A row of scales or minima of a tile."""
    start = builder.gep(numbers, [times(builder, row, OUTPUTS)])
    return [floats(builder, start, INDEX(_LANES * v), _FLOATS) for v in range(_VECTORS)]
