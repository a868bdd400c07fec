"""The kernels' instructions for weights in blocks: rows as float32, and products with rows.

A row is known by one whole number, where it lies times 2 ** KIND_BITS plus the number of its kind. What is done with it
is a function of the compiled module, which branches by the kind: kernels are compiled once for all kinds.

Rows along are multiplied in whole numbers. Inputs are rounded to 16 bits of the largest of 32 (`clada.cpu.kernels.rows`
does it once for all rows), so that a group's sum with the codes is exact and only its scale is a float: an error of
1.5e-5 of the largest input, under that of float32 sums of some hundred weights. Rows across are added up as float32 of
the codes, a tile at a time, and multiplied with the scales once for all rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from clada.cpu.blocks.kinds import LONGEST_GROUP, SHARED, UNIT, BlockKind
from clada.cpu.blocks.rows import (
    EIGHT,
    FLOAT8,
    FLOATS,
    INDICES,
    POINTER,
    SHORT16,
    SHORTS,
    Across,
    Along,
    BlockRow,
    add,
    address_of,
    by_kind,
    counted,
    filled_up,
    floats,
    multiply,
    pairs,
    plus,
    shared_function,
    store,
)
from clada.cpu.llvm import FLOAT, INDEX, INT, LANES, WIDE, spread

# Columns that rows across are added to together; the registers of AVX2 hold the sums of one.
COLUMNS = (4, 2, 1) if WIDE == 4 else (1,)


def _copy(builder: Any, out: Any, source: Any, count: Any) -> None:
    with counted(builder, count) as (j, _):
        builder.store(builder.load(builder.gep(source, [j])), builder.gep(out, [j]))


def _put(builder: Any, row: BlockRow, width: Any, out: Any) -> None:
    """out[:width] = a row in float32."""
    rest = cgutils.alloca_once(builder, FLOAT, UNIT)
    with counted(builder, width, UNIT) as (j, _):
        left = builder.sub(width, j)
        whole = builder.icmp_signed(">=", left, INDEX(UNIT))
        target = builder.select(whole, builder.gep(out, [j]), rest)
        at = 0
        for v in row.weights(builder, j):  # type: ignore[attr-defined]
            store(builder, v, target, INDEX(at))
            at += v.type.count
        with builder.if_then(builder.not_(whole)):
            _copy(builder, builder.gep(out, [j]), rest, left)


def put_along(builder: Any, where: Any, width: Any, out: Any) -> None:
    """Instructions for out[:width] = a row along."""

    def body(inner: Any, where: Any, width: Any, out: Any) -> None:
        by_kind(
            inner,
            where,
            lambda kind, codes: _put(inner, Along(kind, codes, filled_up(inner, width, kind.filled)), width, out),
        )

    builder.call(shared_function(builder, "put_along", [INDEX, INDEX, FLOATS], body), [where, width, out])


def put_across(builder: Any, where: Any, i: Any, width: Any, out: Any) -> None:
    """Instructions for out[:width] = a row across, that of input i."""

    def body(inner: Any, where: Any, i: Any, width: Any, out: Any) -> None:
        filled = filled_up(inner, width, UNIT)
        by_kind(inner, where, lambda kind, codes: _put(inner, Across.at(inner, kind, codes, filled, i), width, out))

    builder.call(shared_function(builder, "put_across", [INDEX, INDEX, INDEX, FLOATS], body), [where, i, width, out])


def dots_along(builder: Any, where: Any, width: Any, inputs: Sequence[Any]) -> list[Any]:
    """Instructions for the products of a row along with some inputs.

    Args:
        builder: of LLVM.
        where: the row.
        width: of the inputs, filled up to whole units.
        inputs: each as `clada.cpu.kernels.rows` prepares it: int16 [width], then float32 [width / 32] twice, what a
            step is and the sums.
    """
    batch = len(inputs)

    def body(inner: Any, where: Any, width: Any, out: Any, *inputs: Any) -> None:
        by_kind(inner, where, lambda kind, codes: _dots(inner, Along(kind, codes, width), width, inputs, out))

    kinds = [INDEX, INDEX, FLOATS, *[SHORTS] * batch]
    out = cgutils.alloca_once(builder, FLOAT, batch)
    builder.call(shared_function(builder, f"dots_along_{batch}", kinds, body), [where, width, out, *inputs])
    return [builder.load(builder.gep(out, [INDEX(b)])) for b in range(batch)]


def _dots(builder: Any, row: Along, width: Any, inputs: Sequence[Any], out: Any) -> None:
    kind = row.kind
    groups = builder.udiv(width, INDEX(kind.group))
    shared = builder.udiv(width, INDEX(SHARED))
    steps = [builder.bitcast(builder.gep(start, [width]), FLOATS) for start in inputs]
    scales = [builder.alloca(FLOAT, groups) for _ in inputs]
    least = [cgutils.alloca_once_value(builder, ir.Constant(FLOAT8, None)) for _ in inputs]
    rest = [cgutils.alloca_once_value(builder, ir.Constant(FLOAT, 0.0)) for _ in inputs]

    def scale(group: Any, count: int) -> None:
        numbers, each = row.numbers(builder, group, count), SHARED // kind.group
        at = builder.udiv(group, INDEX(each))
        vector = FLOAT if count == 1 else ir.VectorType(FLOAT, count // each)
        for b, start in enumerate(steps):
            step = floats(builder, start, at, vector)
            if count > 1 and each > 1:
                twice = ir.Constant(ir.VectorType(INT, count), [k // each for k in range(count)])
                step = builder.shuffle_vector(step, ir.Constant(vector, ir.Undefined), twice)
            store(builder, multiply(builder, numbers[0], step), scales[b], group)
            if kind.minimum:
                total = rest[b] if count == 1 else least[b]
                sums = floats(builder, start, builder.add(shared, at), vector)
                builder.store(plus(builder, builder.load(total), numbers[1], sums), total)

    eights = builder.and_(groups, INDEX(-EIGHT))
    with counted(builder, eights, EIGHT) as (group, _):
        scale(group, EIGHT)
    with cgutils.for_range_slice(builder, eights, groups, INDEX(1), INDEX) as (group, _):
        scale(group, 1)

    # Two sums: an addition waits for the one before it.
    totals = [[cgutils.alloca_once_value(builder, ir.Constant(FLOAT8, None)) for _ in range(2)] for _ in inputs]
    with counted(builder, width, UNIT) as (j, _):
        codes = row.codes_of(builder, j)
        first = builder.udiv(j, INDEX(kind.group))
        for b, start in enumerate(inputs):
            products = []
            for k, v in enumerate(codes):
                place = builder.gep(start, [builder.add(j, INDEX(16 * k))])
                x = builder.load(builder.bitcast(place, SHORT16.as_pointer()), align=2)
                products.append(pairs(builder, v, x))
            if kind.group == 32:
                products = [builder.add(*products[:2]), builder.add(*products[2:])]
            for g, product in enumerate(products):
                number = builder.load(builder.gep(scales[b], [builder.add(first, INDEX(g))]))
                total = totals[b][g % 2]
                wide = builder.sitofp(product, FLOAT8)
                builder.store(plus(builder, builder.load(total), wide, spread(builder, number, EIGHT)), total)
    for b in range(len(inputs)):
        total = add(builder, builder.load(totals[b][0]), builder.load(totals[b][1]))
        if kind.minimum:
            total = add(builder, total, builder.load(least[b]))
        builder.store(add(builder, _sum(builder, total), builder.load(rest[b])), builder.gep(out, [INDEX(b)]))


def _sum(builder: Any, vector: Any) -> Any:
    """The sum of a vector's elements, halves at a time."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        nothing = ir.Constant(vector.type, ir.Undefined)
        indices = ir.VectorType(INT, lanes)
        vector = add(
            builder,
            *(
                builder.shuffle_vector(vector, nothing, ir.Constant(indices, list(range(at, at + lanes))))
                for at in (0, lanes)
            ),
        )
    return builder.extract_element(vector, INT(0))


def add_across(builder: Any, *arguments: Any) -> None:
    """Instructions for out[b, :width] += the sum over listed rows i across of factors[b, i] row i.

    All listed rows are of one tile. What a sum gives does not depend on rows whose factors are zero, nor on the number
    of sums.

    Args:
        builder: of LLVM.
        arguments: out float32*, its stride in elements, factors float32*, their stride, how many sums, width, rows
            int64* by input, the list int64*, how many it has, how many come after them in memory (which are fetched
            into a cache).
    """
    kinds = [FLOATS, INDEX, FLOATS, INDEX, INDEX, INDEX, INDICES, INDICES, INDEX, INDEX]
    builder.call(shared_function(builder, "add_across", kinds, _add_body), arguments)


def _add_body(
    builder: Any, out: Any, stride: Any, factors: Any, apart: Any, batch: Any, width: Any, rows: Any, which: Any,
    count: Any, after: Any,
) -> None:  # fmt: skip
    filled = filled_up(builder, width, UNIT)
    first = builder.load(which)
    last = builder.sub(builder.add(count, after), INDEX(1))
    wheres = cgutils.alloca_once(builder, POINTER, LONGEST_GROUP)
    later = cgutils.alloca_once(builder, POINTER, LONGEST_GROUP)
    with counted(builder, count) as (r, _):
        following = builder.add(r, count)
        following = builder.select(builder.icmp_signed("<", following, last), following, last)
        for places, at in ((wheres, r), (later, following)):
            row = builder.load(builder.gep(which, [at]))
            builder.store(address_of(builder, builder.load(builder.gep(rows, [row]))), builder.gep(places, [r]))

    def listed(b: Any) -> tuple[Any, Any]:
        """The factors of the listed rows side by side, and their sum."""
        own, total = cgutils.alloca_once(builder, FLOAT, LONGEST_GROUP), cgutils.alloca_once(builder, FLOAT)
        builder.store(ir.Constant(FLOAT, 0.0), total)
        start = builder.gep(factors, [builder.mul(b, apart)])
        with counted(builder, count) as (r, _):
            factor = builder.load(builder.gep(start, [builder.load(builder.gep(which, [r]))]))
            builder.store(factor, builder.gep(own, [r]))
            builder.store(add(builder, builder.load(total), factor), total)
        return own, builder.load(total)

    def of_kind(kind: BlockKind, codes: Any) -> None:
        tile = Across.at(builder, kind, codes, filled, first)

        def unpacked(r: Any, j: Any, lanes: int) -> list[Any]:
            row = Across(kind, builder.load(builder.gep(wheres, [r])), filled, None, None)
            ahead = builder.load(builder.gep(later, [r]))
            _fetch(builder, builder.gep(ahead, [builder.lshr(j, INDEX(0 if kind.bits == 8 else 1))]))
            return row.codes_of(builder, j, lanes)

        def of_columns(columns: Sequence[Any]) -> None:
            some = [_Sums(builder.gep(out, [builder.mul(b, stride)]), *listed(b)) for b in columns]
            with counted(builder, filled, UNIT) as (j, _):
                _add_unit(builder, tile, count, j, width, some, lambda r, lanes: unpacked(r, j, lanes))

        _by_columns(builder, batch, of_columns)

    by_kind(builder, builder.load(builder.gep(rows, [first])), of_kind)


def _by_columns(builder: Any, batch: Any, body: Callable[[Sequence[Any]], None]) -> None:
    """body(columns) for all of them, some at a time; three as four, the last one twice."""
    begin, last = INDEX(0), builder.sub(batch, INDEX(1))
    for n in COLUMNS:
        left = builder.add(builder.sub(batch, begin), INDEX(1 if n == 4 else 0))
        end = builder.add(begin, builder.and_(left, INDEX(-n)))
        with cgutils.for_range_slice(builder, begin, end, INDEX(n), INDEX) as (b, _):
            columns = [builder.add(b, INDEX(k)) for k in range(n)]
            body([builder.select(builder.icmp_signed("<", b, last), b, last) for b in columns])
        begin = builder.select(builder.icmp_signed("<", end, batch), end, batch)


class _Sums(NamedTuple):
    """Where a column's sums are added to, the factors of listed rows, and the sum of these."""

    out: Any
    factors: Any
    total: Any


def _add_unit(
    builder: Any, tile: Across, count: Any, j: Any, width: Any, columns: Sequence[_Sums],
    codes_of: Callable[[Any, int], list[Any]],
) -> None:  # fmt: skip
    """Add 64 outputs of a tile to out[j:] of some columns."""
    lanes = EIGHT if len(columns) == 1 else LANES  # of a single one, short vectors take less time with AVX-512 too
    vectors, wide = range(UNIT // lanes), ir.VectorType(FLOAT, lanes)
    sums = [[cgutils.alloca_once(builder, wide) for _ in vectors] for _ in columns]
    for one in chain(*sums):
        builder.store(ir.Constant(wide, None), one)
    with counted(builder, count) as (r, _):
        codes = codes_of(r, lanes)
        for column, own in zip(columns, sums, strict=True):
            factor = spread(builder, builder.load(builder.gep(column.factors, [r])), lanes)
            for one, v in zip(own, codes, strict=True):
                builder.store(plus(builder, builder.load(one), v, factor), one)
    left = builder.sub(width, j)
    whole = builder.icmp_signed(">=", left, INDEX(UNIT))
    places = [builder.gep(column.out, [j]) for column in columns]
    rests = [cgutils.alloca_once(builder, FLOAT, UNIT) for _ in columns]
    with builder.if_then(builder.not_(whole)):
        for rest, place in zip(rests, places, strict=True):
            _copy(builder, rest, place, left)
    targets = [builder.select(whole, place, rest) for place, rest in zip(places, rests, strict=True)]
    for k in vectors:
        scale, least = tile.numbers(builder, builder.add(j, INDEX(lanes * k)), lanes)
        scale, made = tile.scaled(builder, scale, k), []
        for column, own, target in zip(columns, sums, targets, strict=True):
            v = plus(builder, floats(builder, target, INDEX(lanes * k), wide), builder.load(own[k]), scale)
            made.append(v if least is None else plus(builder, v, least, spread(builder, column.total, lanes)))
        for v, target in zip(made, targets, strict=True):  # of a column that is there twice once all were loaded
            store(builder, v, target, INDEX(lanes * k))
    with builder.if_then(builder.not_(whole)):
        for rest, place in zip(rests, places, strict=True):
            _copy(builder, place, rest, left)


def _fetch(builder: Any, address: Any) -> None:
    """An instruction that fetches a line into the second cache."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, INT, INT, INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [address, INT(0), INT(2), INT(1)])
