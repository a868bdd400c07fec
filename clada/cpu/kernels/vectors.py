"""Instructions written out in vectors, where LLVM makes slower ones of a loop in Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from clada.cpu.blocks.compiled import add_across, dots_along, put_across, put_along
from clada.cpu.blocks.kinds import KIND_BITS, SHARED
from clada.cpu.llvm import (
    BYTE,
    CHAINS,
    CONTRACT,
    FLOAT,
    INDEX,
    INT,
    LANES,
    WIDE,
    in_lanes,
    spread,
    sums_of_lanes,
    vector_of,
)
from clada.cpu.precision import of_element
from clada.methods.screen import CODES, CODES_OF_SHORT, LINE

# Where rows are fetched to, in LLVM's numbers: the second cache (2), or past all caches but the first (0) on Zen 5,
# whose first cache has the places for it. benchmarks/selection-log.md has what each gives.
NEAR = 0 if binding.get_host_cpu_name() == "znver5" else 2

_BYTE = BYTE.as_pointer()


def _element_bytes(stored: Any) -> int:
    return int(stored.bitwidth) // 8


def _load_wide(builder: Any, start: Any, j: Any, stored: Any, lanes: int) -> Any:
    """Instructions that load elements from `start + j` on as float32."""
    return of_element(stored).load(builder, start, j, lanes)


def _row_start(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> Any:
    """Instructions for the address of an element of a two-dimensional array."""
    made = context.make_array(array_type)(context, builder, array)
    stride = builder.extract_value(made.strides, 0)
    size = _element_bytes(array_type.dtype)
    kind = FLOAT if array_type.dtype == types.float32 else ir.IntType(8 * size)
    offset = builder.add(builder.mul(row, stride), builder.mul(column, INDEX(size)))
    return builder.inttoptr(builder.add(builder.ptrtoint(made.data, INDEX), offset), kind.as_pointer())


def where_row_lies(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    """Instructions for the number that says where a row in blocks lies, and of what kind it is."""
    return builder.load(_row_start(context, builder, array_type, array, row, INDEX(0)))


def _row_in_bytes(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> tuple[Any, Any]:
    """Instructions for the address of a row, and how many bytes it has."""
    shape = context.make_array(array_type)(context, builder, array).shape
    if not of_element(array_type.dtype).in_blocks:
        start = _row_start(context, builder, array_type, array, row, INDEX(0))
        size = builder.mul(builder.extract_value(shape, 1), INDEX(_element_bytes(array_type.dtype)))
        return builder.bitcast(start, _BYTE), size
    # To where the next one begins.
    last = builder.sub(builder.extract_value(shape, 0), INDEX(1))
    following = builder.add(row, INDEX(1))
    following = builder.select(builder.icmp_signed("<", following, last), following, last)
    begin, end = (
        builder.lshr(where_row_lies(context, builder, array_type, array, i), INDEX(KIND_BITS)) for i in (row, following)
    )
    return builder.inttoptr(begin, _BYTE), builder.sub(end, begin)


def _prefetch_whole(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> None:
    """Instructions that fetch a row."""
    start, size = _row_in_bytes(context, builder, array_type, array, row)
    with cgutils.for_range_slice(builder, INDEX(0), size, INDEX(LINE), INDEX) as (j, _):
        _prefetch(builder, builder.gep(start, [j]))


def _prefetch(builder: Any, address: Any, near: int = 2) -> None:
    """An instruction that fetches a line, into the second cache unless told otherwise."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE, INT, INT, INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [address, INT(0), INT(near), INT(1)])  # for reading, data


def _prefetch_lines(builder: Any, start: Any, j: Any, stored: Any, count: int) -> None:
    """Instructions that fetch the lines that `count` elements from `start + j` on fill; none if they fill less."""
    line = LINE // _element_bytes(stored)
    for at in range(0, count // line * line, line):
        _prefetch(builder, builder.bitcast(builder.gep(start, [builder.add(j, INDEX(at))]), _BYTE), NEAR)


def _vectors_of_line(stored: Any) -> int:
    """Vectors of LANES that a cache line fills."""
    return LINE // _element_bytes(stored) // LANES


@intrinsic
def add_scaled_rows(
    _context: Any, out: Any, sequences: Any, rows: Any, _begin: Any, indices: Any, _factors: Any, rows_ahead: Any
) -> Any:
    """out[b, j] += sum over k of factors[k] rows[indices[k], begin + j]; fetches `rows_ahead` meanwhile.

    For some sequences b, with factors of the first one first; or of a single one, whose `out` has one dimension.
    Written out in vectors, as LLVM makes slower code of the same loop in Python. Some rows share one pass over `out`,
    which would else be loaded and stored for each.
    """
    count, batch = indices.count, sequences.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out_type, _, rows_type, _, _, _, _ = signature.args
        array = context.make_array(out_type)(context, builder, args[0])
        outs = (
            [array.data]
            if out_type.ndim == 1
            else [
                _row_start(context, builder, out_type, args[0], builder.extract_value(args[1], b), INDEX(0))
                for b in range(batch)
            ]
        )
        stored = rows_type.dtype
        factors = [builder.extract_value(args[5], k) for k in range(count * batch)]
        width = builder.extract_value(array.shape, out_type.ndim - 1)
        starts, ahead = (
            [
                _row_start(context, builder, rows_type, args[2], builder.extract_value(args[i], k), args[3])
                for k in range(count)
            ]
            for i in (4, 6)
        )

        def accumulate(j: Any, vectors: int, lanes: int) -> None:
            parts = [builder.add(j, INDEX(part * lanes)) for part in range(vectors)]
            places = [
                [builder.bitcast(builder.gep(start, [at]), vector_of(FLOAT, lanes).as_pointer()) for at in parts]
                for start in outs
            ]
            totals = [[builder.load(place, align=4) for place in some] for some in places]
            for k, (start, later) in enumerate(zip(starts, ahead, strict=True)):
                _prefetch_lines(builder, later, j, stored, vectors * lanes)
                for part, at in enumerate(parts):
                    v = _load_wide(builder, start, at, stored, lanes)
                    for b in range(batch):
                        product = builder.fmul(v, spread(builder, factors[b * count + k], lanes), flags=CONTRACT)
                        totals[b][part] = builder.fadd(totals[b][part], product, flags=CONTRACT)
            for of_sequence, places_of_sequence in zip(totals, places, strict=True):
                for total, place in zip(of_sequence, places_of_sequence, strict=True):
                    builder.store(total, place, align=4)

        in_lanes(builder, width, (_vectors_of_line(stored),), accumulate)
        return context.get_dummy_value()

    i, f = types.UniTuple(types.int64, count), types.UniTuple(types.float32, count * batch)
    return types.void(out, sequences, rows, types.int64, i, f, i), codegen


@intrinsic
def add_tile(_context: Any, out: Any, rows: Any, which: Any, _after: Any, factors: Any) -> Any:
    """out[b] += the sum over listed rows i of factors[b, i] rows[i], of rows in blocks that are of one tile.

    As many rows more are in the list behind its end: those are fetched meanwhile.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def of(k: int) -> Any:
            return context.make_array(signature.args[k])(context, builder, args[k])

        def stride(k: int) -> Any:
            return builder.udiv(builder.extract_value(of(k).strides, 0), INDEX(4))

        (batch, width), (count,) = (cgutils.unpack_tuple(builder, of(k).shape) for k in (0, 2))
        data = [of(k).data for k in range(5) if k != 3]
        add_across(builder, data[0], stride(0), data[3], stride(4), batch, width, data[1], data[2], count, args[3])
        return context.get_dummy_value()

    return types.void(out, rows, which, types.int64, factors), codegen


@intrinsic
def add_codes(_context: Any, out: Any, rows: Any, _begin: Any, indices: Any, _factors: Any, rows_ahead: Any) -> Any:
    """out[j] += sum over k of factors[k] times code begin + j of rows[indices[k]]; fetches `rows_ahead`.

    In int16, which wraps around. `out` has whole blocks: a line of codes is CODES_OF_SHORT vectors of int16, of whose
    bits the first vector of words has the lowest.
    """
    count = indices.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out_type, rows_type = signature.args[:2]
        array = context.make_array(out_type)(context, builder, args[0])
        first = builder.udiv(args[2], INDEX(CODES))
        starts, ahead = (
            [
                _row_start(context, builder, rows_type, args[1], builder.extract_value(args[i], k), first)
                for k in range(count)
            ]
            for i in (3, 5)
        )
        shorts = LINE // 2
        kind = ir.VectorType(ir.IntType(16), shorts)
        factors = [spread(builder, builder.extract_value(args[4], k), shorts) for k in range(count)]
        lowest = ir.Constant(kind, [15] * shorts)
        n = builder.udiv(builder.extract_value(array.shape, 0), INDEX(CODES))
        with cgutils.for_range_slice(builder, INDEX(0), n, INDEX(LINE), INDEX) as (at, _):
            for later in ahead:
                _prefetch(builder, builder.gep(later, [at]))
            words = builder.gep(array.data, [builder.mul(at, INDEX(CODES))])
            places = [
                builder.bitcast(builder.gep(words, [INDEX(part * shorts)]), kind.as_pointer())
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
                vector, undefined, ir.Constant(ir.VectorType(INT, lanes), list(range(at, at + lanes)))
            )
            for at in (0, lanes)
        )
        vector = join(low, high)
    return builder.extract_element(vector, INT(0))


@intrinsic
def highest(_context: Any, values: Any) -> Any:
    """The highest of some float32, -inf of none; LLVM, which minds NaN, makes no vectors of the loop."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        least = float("-inf")
        wide = cgutils.alloca_once_value(builder, ir.Constant(vector_of(FLOAT, LANES), [least] * LANES))
        single = cgutils.alloca_once_value(builder, ir.Constant(FLOAT, least))

        def higher(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def compare(j: Any, _vectors: int, lanes: int) -> None:
            highest = single if lanes == 1 else wide
            v = _load_wide(builder, array.data, j, types.float32, lanes)
            builder.store(higher(v, builder.load(highest)), highest)

        in_lanes(builder, builder.extract_value(array.shape, 0), (), compare)
        return higher(builder.load(single), _fold_lanes(builder, builder.load(wide), higher))

    return types.float32(values), codegen


@intrinsic
def largest_of_shared(_context: Any, x: Any, _begin: Any) -> Any:
    """The size of the largest of SHARED inputs; NaN if one is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = context.make_array(x)(context, builder, args[0]).data
        whole = vector_of(INT, LANES)
        all_but_signs = ir.Constant(whole, [0x7FFFFFFF] * LANES)
        sizes = []
        for at in range(0, SHARED, LANES):
            v = _load_wide(builder, start, builder.add(args[1], INDEX(at)), types.float32, LANES)
            # As whole numbers the bits of sizes are in the same order, with NaN above all.
            sizes.append(builder.and_(builder.bitcast(v, whole), all_but_signs))

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_signed(">", a, b), a, b)

        return builder.bitcast(_fold_lanes(builder, reduce(larger, sizes), larger), FLOAT)

    return types.float32(x, types.int64), codegen


@intrinsic
def round_shared(_context: Any, numbers: Any, x: Any, _begin: Any, _factor: Any) -> Any:
    """Inputs times a factor as int16, for SHARED of them from the same place on; gives the numbers' sum."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, start = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1))
        wide, whole, factor = vector_of(FLOAT, LANES), vector_of(INT, LANES), spread(builder, args[3], LANES)
        nearest = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(wide, [wide]), f"llvm.rint.v{LANES}f32"
        )
        total = ir.Constant(whole, None)
        for at in range(0, SHARED, LANES):
            j = builder.add(args[2], INDEX(at))
            scaled = builder.fmul(_load_wide(builder, start, j, types.float32, LANES), factor)
            rounded = builder.fptosi(builder.call(nearest, [scaled]), whole)
            total = builder.add(total, rounded)
            short = vector_of(ir.IntType(16), LANES)
            place = builder.bitcast(builder.gep(out, [j]), short.as_pointer())
            builder.store(builder.trunc(rounded, short), place, align=2)
        return _fold_lanes(builder, total, builder.add)

    return types.int32(numbers, x, types.int64, types.float32), codegen


@intrinsic
def dots_of_rows(_context: Any, rows: Any, which: Any, x: Any, columns: Any, _rows_ahead: Any) -> Any:
    """Some rows times x[b] for some b; fetches as many `_rows_ahead` into a cache meanwhile.

    Inputs of rows in blocks are rounded, see `clada.cpu.kernels.rows.prepared`.

    The products of the first row with every b, then those of the next; a row is loaded and widened once.
    """
    count, batch = which.count, columns.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows_type, _, x_type, _, _ = signature.args
        stored = rows_type.dtype
        inputs = [
            _row_start(context, builder, x_type, args[2], builder.extract_value(args[3], k), INDEX(0))
            for k in range(batch)
        ]
        which, later_rows = ([builder.extract_value(args[i], k) for k in range(count)] for i in (1, 4))
        n = builder.extract_value(context.make_array(x_type)(context, builder, args[2]).shape, 1)
        if of_element(stored).in_blocks:
            for row in later_rows:
                _prefetch_whole(context, builder, rows_type, args[0], row)
            width, dots = builder.udiv(builder.mul(n, INDEX(SHARED)), INDEX(SHARED + 4)), []
            for row in which:
                dots += dots_along(builder, where_row_lies(context, builder, rows_type, args[0], row), width, inputs)
            return cgutils.pack_array(builder, dots)
        starts, ahead = (
            [_row_start(context, builder, rows_type, args[0], row, INDEX(0)) for row in some]
            for some in (which, later_rows)
        )
        vector = vector_of(FLOAT, LANES)
        sums = count * batch
        wide = [[cgutils.alloca_once(builder, vector) for _ in range(sums)] for _ in range(CHAINS)]
        single = [cgutils.alloca_once(builder, FLOAT) for _ in range(sums)]
        for totals, zero in ((single, ir.Constant(FLOAT, 0.0)), *((w, ir.Constant(vector, None)) for w in wide)):
            for total in totals:
                builder.store(zero, total)

        def accumulate(j: Any, vectors: int, lanes: int) -> None:
            parts = [builder.add(j, INDEX(part * lanes)) for part in range(vectors)]
            loaded: dict[tuple[int, int], Any] = {}  # inputs, which all rows share
            for k, row in enumerate(starts):
                _prefetch_lines(builder, ahead[k], j, stored, vectors * lanes)
                for part, at in enumerate(parts):
                    v = _load_wide(builder, row, at, stored, lanes)
                    for b, start in enumerate(inputs):
                        if k == 0:
                            loaded[part, b] = _load_wide(builder, start, at, types.float32, lanes)
                        total = (single if lanes == 1 else wide[part % CHAINS])[k * batch + b]
                        product = builder.fmul(v, loaded[part, b], flags=CONTRACT)
                        builder.store(builder.fadd(builder.load(total), product, flags=CONTRACT), total)

        line = _vectors_of_line(stored)
        # Of several rows two lines of each in turn: processors fetch lines in pairs.
        most = (max(line if count == 1 else 2 * line, CHAINS), line)
        in_lanes(builder, n, most, accumulate)
        joined = []
        for k in range(sums):
            total = builder.load(wide[0][k])
            for totals in wide[1:]:
                total = builder.fadd(total, builder.load(totals[k]))
            joined.append(total)
        folded = sums_of_lanes(builder, joined)
        dots = [builder.fadd(builder.load(own), total) for own, total in zip(single, folded, strict=True)]
        return cgutils.pack_array(builder, dots)

    i = types.UniTuple(types.int64, count)
    return types.UniTuple(types.float32, count * batch)(rows, i, x, columns, i), codegen


@intrinsic
def score_block(
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

    Meanwhile a later block of keys, and the values of this one's positions from the first on, are fetched into a cache.
    """
    count = heads.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores_type, _, query_type, _, keys_type, _, _, values_type, _ = signature.args
        stored = keys_type.dtype
        block = _row_start(context, builder, keys_type, args[4], args[5], INDEX(0))
        later = _row_start(context, builder, keys_type, args[4], args[6], INDEX(0))
        first = _row_start(context, builder, values_type, args[7], args[8], INDEX(0))
        queries = [
            _row_start(context, builder, query_type, args[2], builder.extract_value(args[3], k), INDEX(0))
            for k in range(count)
        ]
        vector = vector_of(FLOAT, LANES)
        # Even and odd dimensions apart: an addition waits for the one before it.
        totals = [[cgutils.alloca_once(builder, vector) for _ in range(count)] for _ in range(2)]
        for total in (*totals[0], *totals[1]):
            builder.store(ir.Constant(vector, None), total)

        def accumulate(d: Any, parity: int) -> None:
            j = builder.mul(d, INDEX(LANES))
            both = LANES * _element_bytes(stored) == LINE
            for start in (later, first) if both else (first,) if parity else (later,):  # every line once
                _prefetch(builder, builder.bitcast(builder.gep(start, [j]), _BYTE))
            v = _load_wide(builder, block, j, stored, LANES)
            for start, total in zip(queries, totals[parity], strict=True):
                product = builder.fmul(v, spread(builder, builder.load(builder.gep(start, [d])), LANES), flags=CONTRACT)
                builder.store(builder.fadd(builder.load(total), product, flags=CONTRACT), total)

        width = builder.extract_value(context.make_array(query_type)(context, builder, args[2]).shape, 1)
        even = builder.and_(width, INDEX(-2))
        with cgutils.for_range_slice(builder, INDEX(0), even, INDEX(2), INDEX) as (d, _):
            accumulate(d, 0)
            accumulate(builder.add(d, INDEX(1)), 1)
        with cgutils.for_range_slice(builder, even, width, INDEX(1), INDEX) as (d, _):
            accumulate(d, 0)
        for k in range(count):
            place = _row_start(context, builder, scores_type, args[0], builder.extract_value(args[3], k), args[1])
            total = builder.fadd(builder.load(totals[0][k]), builder.load(totals[1][k]))
            builder.store(total, builder.bitcast(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    i, some = types.int64, types.UniTuple(types.int64, count)
    return types.void(scores, i, query, some, keys, i, i, values, i), codegen


@intrinsic
def mix_values(
    _context: Any,
    mixed: Any,
    heads: Any,
    scores: Any,
    _at: Any,
    values: Any,
    _first: Any,
    _n: Any,
    which: Any,
    prefetched: Any,
    _prefetched_first: Any,
    rows_ahead: Any,
) -> Any:
    """mixed[h] = sum over the first n positions i in `which` of scores[h, at + i] values[first + i], for heads h.

    Some heads, which share values. The sums stay in registers over all positions, some dimensions at a time.
    Meanwhile rows of `prefetched` are fetched into a cache, at the positions that come so many later in `which`.
    """
    count = heads.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mixed_type, _, scores_type, _, values_type, _, _, which_type, prefetched_type, _, _ = signature.args
        stored = values_type.dtype
        n = args[6]
        positions = context.make_array(which_type)(context, builder, args[7]).data

        def rows_of(kind: Any, array: Any, column: Any) -> list[Any]:
            return [
                _row_start(context, builder, kind, array, builder.extract_value(args[1], k), column)
                for k in range(count)
            ]

        outs, weights = rows_of(mixed_type, args[0], INDEX(0)), rows_of(scores_type, args[2], args[3])
        width = builder.extract_value(context.make_array(values_type)(context, builder, args[4]).shape, 1)

        def some_dimensions(d: Any, lanes: int, vectors: int) -> None:
            kind, read = vector_of(FLOAT, lanes), lanes * vectors * _element_bytes(stored)
            totals = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(count)]
            for head in totals:
                for total in head:
                    builder.store(ir.Constant(kind, 0.0 if lanes == 1 else None), total)
            with cgutils.for_range_slice(builder, INDEX(0), n, INDEX(1), INDEX) as (r, _):
                i = builder.load(builder.gep(positions, [r]))
                later, last = builder.add(r, args[10]), builder.sub(n, INDEX(1))
                later = builder.select(builder.icmp_signed("<", later, last), later, last)
                later = builder.add(args[9], builder.load(builder.gep(positions, [later])))
                start = builder.bitcast(_row_start(context, builder, prefetched_type, args[8], later, d), _BYTE)
                for line in range(0, read, LINE) if read >= LINE else ():
                    _prefetch(builder, builder.gep(start, [INDEX(line)]))
                row = _row_start(context, builder, values_type, args[4], builder.add(args[5], i), d)
                loaded = [_load_wide(builder, row, INDEX(v * lanes), stored, lanes) for v in range(vectors)]
                for start, head in zip(weights, totals, strict=True):
                    weight = spread(builder, builder.load(builder.gep(start, [i])), lanes)
                    for value, total in zip(loaded, head, strict=True):
                        product = builder.fmul(value, weight, flags=CONTRACT)
                        builder.store(builder.fadd(builder.load(total), product, flags=CONTRACT), total)
            for start, head in zip(outs, totals, strict=True):
                for v, total in enumerate(head):
                    place = builder.gep(start, [builder.add(d, INDEX(v * lanes))])
                    builder.store(builder.load(total), builder.bitcast(place, kind.as_pointer()), align=4)

        begin = INDEX(0)
        for lanes, vectors in ((LANES, WIDE), (LANES, 1), (1, 1)):
            step = lanes * vectors
            end = builder.add(begin, builder.mul(builder.udiv(builder.sub(width, begin), INDEX(step)), INDEX(step)))
            with cgutils.for_range_slice(builder, begin, end, INDEX(step), INDEX) as (d, _):
                some_dimensions(d, lanes, vectors)
            begin = end
        return context.get_dummy_value()

    i, some = types.int64, types.UniTuple(types.int64, count)
    return types.void(mixed, some, scores, i, values, i, i, which, prefetched, i, i), codegen


def _row_into(context: Any, builder: Any, signature: Any, args: Any, put: Any) -> Any:
    """Instructions that make float32 of a row; `put(where, width, data)` of one in blocks."""
    out_type, rows_type, _ = signature.args
    array = context.make_array(out_type)(context, builder, args[0])
    width = builder.extract_value(array.shape, 0)
    if of_element(rows_type.dtype).in_blocks:
        put(where_row_lies(context, builder, rows_type, args[1], args[2]), width, array.data)
        return context.get_dummy_value()
    start = _row_start(context, builder, rows_type, args[1], args[2], INDEX(0))

    def copy(j: Any, _vectors: int, lanes: int) -> None:
        v = _load_wide(builder, start, j, rows_type.dtype, lanes)
        place = builder.bitcast(builder.gep(array.data, [j]), vector_of(FLOAT, lanes).as_pointer())
        builder.store(v, place, align=4)

    in_lanes(builder, width, (1,), copy)
    return context.get_dummy_value()


@intrinsic
def row_into(_context: Any, out: Any, rows: Any, _i: Any) -> Any:
    """out[:] = row i as float32, without its scale; in blocks of one that is of an output."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _row_into(context, builder, signature, args, partial(put_along, builder))

    return types.void(out, rows, types.int64), codegen


@intrinsic
def row_across_into(_context: Any, out: Any, rows: Any, _i: Any) -> Any:
    """The same; in blocks of one that is of an input."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def put(where: Any, width: Any, data: Any) -> None:
            put_across(builder, where, args[2], width, data)

        return _row_into(context, builder, signature, args, put)

    return types.void(out, rows, types.int64), codegen


@intrinsic
def prefetch_row(_context: Any, rows: Any, _i: Any) -> Any:
    """Fetch row i into a cache, without waiting for it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch_whole(context, builder, signature.args[0], *args)
        return context.get_dummy_value()

    return types.void(rows, types.int64), codegen
