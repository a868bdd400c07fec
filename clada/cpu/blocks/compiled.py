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
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from clada.cpu.blocks.kinds import KIND_BITS, KINDS, LONGEST_GROUP, SHARED, STEPPED, UNIT, BlockKind
from clada.cpu.llvm import BYTE, CONTRACT, FLOAT, INDEX, INT, spread

_SHORT = ir.IntType(16)

_POINTER, _FLOATS, _INDICES, _SHORTS = (kind.as_pointer() for kind in (BYTE, FLOAT, INDEX, _SHORT))

_EIGHT = 8  # float32 of an AVX2 register

_FLOAT8, _INT8, _SHORT16 = ir.VectorType(FLOAT, _EIGHT), ir.VectorType(INT, _EIGHT), ir.VectorType(_SHORT, 16)

_HALF = ir.HalfType()


def _all_of(value: int, kind: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _times(builder: Any, count: Any, each: int) -> Any:
    return builder.mul(count, INDEX(each))


def _load(builder: Any, start: Any, offset: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(start, [offset]), kind.as_pointer()), align=1)


def _floats(builder: Any, start: Any, offset: Any, kind: Any = _FLOAT8) -> Any:
    return builder.load(builder.bitcast(builder.gep(start, [offset]), kind.as_pointer()), align=4)


def _store(builder: Any, value: Any, out: Any, j: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(out, [j]), value.type.as_pointer()), align=4)


def _add(builder: Any, a: Any, b: Any) -> Any:
    """A sum of floats that nobody reorders: numba's fast arithmetic changes instructions without flags."""
    return builder.fadd(a, b, flags=CONTRACT)


def _multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b, flags=CONTRACT)


def _plus(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return _add(builder, total, _multiply(builder, a, b))


@dataclass(frozen=True)
class _Row:
    """A row while instructions are made: its kind, where its codes are, its weights filled up to whole units."""

    kind: BlockKind
    codes: Any
    filled: Any

    def _low_bytes(self, builder: Any) -> Any:
        return self.filled if self.kind.bits == 8 else builder.lshr(self.filled, INDEX(1))

    def _code_bytes(self, builder: Any) -> Any:
        low, unit = self._low_bytes(builder), self.kind.high
        if not unit:
            return low
        units = builder.udiv(builder.add(self.filled, INDEX(unit - 1)), INDEX(unit))
        return builder.add(low, _times(builder, units, 32))

    def _bits(self, builder: Any, j: Any, lanes: Any) -> list[Any]:
        """The codes of weights j to j + 63 of less than 8 bits, in the lanes that they are stored in."""
        each = lanes.element.width // 4
        low = _load(builder, self.codes, builder.lshr(j, INDEX(1)), lanes)
        codes = []
        for k in range(each):
            shifted = builder.lshr(low, _all_of(4 * k, lanes)) if k else low
            codes.append(builder.and_(shifted, _all_of(15, lanes)) if k < each - 1 else shifted)
        unit, bits = self.kind.high, self.kind.bits - 4
        if not unit:
            return codes
        at = builder.add(self._low_bytes(builder), _times(builder, builder.udiv(j, INDEX(unit)), 32))
        high = _load(builder, self.codes, at, lanes)
        before = _times(builder, builder.udiv(builder.urem(j, INDEX(unit)), INDEX(lanes.count)), bits)
        high = builder.lshr(high, spread(builder, builder.trunc(before, lanes.element), lanes.count))
        for k in range(each):
            shifted = builder.lshr(high, _all_of(k * bits, lanes)) if k else high
            own = builder.and_(shifted, _all_of(2**bits - 1, lanes))
            codes[k] = builder.or_(codes[k], builder.shl(own, _all_of(4, lanes)))
        return codes


class _Along(_Row):
    """A row of an output; scales are of its groups."""

    def codes_of(self, builder: Any, j: Any) -> list[Any]:
        """Codes of weights j to j + 63 from zero, int16 in four vectors."""
        kind = self.kind
        if kind.bits == 8:
            bytes16 = ir.VectorType(BYTE, 16)
            parts = [_load(builder, self.codes, builder.add(j, INDEX(at)), bytes16) for at in range(0, UNIT, 16)]
            return [builder.sext(part, _SHORT16) for part in parts]
        codes = self._bits(builder, j, _SHORT16)
        return [builder.sub(v, _all_of(kind.zero, _SHORT16)) for v in codes] if kind.zero else codes

    def numbers(self, builder: Any, group: Any, count: int) -> list[Any]:
        """Scales of so many groups from one on, and minima if there are any; float32, in vectors if there are several.

        Several begin at a multiple of their number.
        """
        kind, start = self.kind, builder.gep(self.codes, [self._code_bytes(builder)])
        groups, made = builder.udiv(self.filled, INDEX(kind.group)), []
        for which in range(kind.each):
            place = builder.add(group, _times(builder, groups, which))
            if not kind.stepped:
                made.append(self._halves(builder, start, _times(builder, place, 2), count))
                continue
            stored = ir.VectorType(BYTE, count) if count > 1 else BYTE
            wide = _INT8 if count > 1 else INT
            counts = builder.sitofp(
                builder.sext(_load(builder, start, place, stored), wide), _FLOAT8 if count > 1 else FLOAT
            )
            steps, per = builder.udiv(self.filled, INDEX(STEPPED)), STEPPED // kind.group
            at = builder.add(builder.udiv(group, INDEX(per)), _times(builder, steps, which))
            at = builder.add(_times(builder, groups, kind.each), _times(builder, at, 2))
            step = self._halves(builder, start, at, 1)
            made.append(_multiply(builder, counts, spread(builder, step, count)))
        return made

    def _halves(self, builder: Any, start: Any, offset: Any, count: int) -> Any:
        if count == 1:
            return builder.fpext(_load(builder, start, offset, _HALF), FLOAT)
        return builder.fpext(_load(builder, start, offset, ir.VectorType(_HALF, count)), _FLOAT8)

    def weights(self, builder: Any, j: Any) -> list[Any]:
        """Weights j to j + 63 in float32, as vectors that follow each other."""
        kind, made = self.kind, []
        for k, codes in enumerate(self.codes_of(builder, j)):
            wide = builder.sitofp(builder.sext(codes, ir.VectorType(INT, 16)), ir.VectorType(FLOAT, 16))
            group = builder.udiv(builder.add(j, INDEX(16 * k)), INDEX(kind.group))
            numbers = [spread(builder, number, 16) for number in self.numbers(builder, group, 1)]
            weight = _multiply(builder, wide, numbers[0])
            made.append(_add(builder, weight, numbers[1]) if kind.minimum else weight)
        return made


@dataclass(frozen=True)
class _Across(_Row):
    """A row of an input; scales are of its outputs, beside those of all rows of its group."""

    tile: Any
    steps: Any

    @classmethod
    def at(cls, builder: Any, kind: BlockKind, codes: Any, filled: Any, i: Any) -> _Across:
        """Row i of a matrix, whose codes lie there."""
        own = _Row(kind, codes, filled)._code_bytes(builder)
        scales = _times(builder, filled, kind.scale_bytes)
        back = builder.add(scales, builder.mul(own, builder.urem(i, INDEX(kind.group))))
        tile = builder.gep(codes, [builder.neg(back)])
        if not kind.stepped:
            return cls(kind, codes, filled, tile, None)
        tile_bytes = builder.add(scales, _times(builder, own, kind.group))
        which = builder.udiv(builder.urem(i, INDEX(STEPPED)), INDEX(kind.group))
        back = builder.add(builder.mul(tile_bytes, which), _times(builder, filled, 2 * kind.each))
        return cls(kind, codes, filled, tile, builder.gep(tile, [builder.neg(back)]))

    def power(self, k: int) -> int:
        """The power of two that `codes_of` is too large by in vector k: codes of four bits stay where they are."""
        return 4 * k if self.kind.bits == 4 and k < _EIGHT - 1 else 0

    def codes_of(self, builder: Any, j: Any) -> list[Any]:
        """Codes of weights j to j + 63, zero not taken off, float32 in eight vectors; see `power`."""
        kind = self.kind
        if kind.bits == 8:
            bytes8 = ir.VectorType(BYTE, _EIGHT)
            parts = [_load(builder, self.codes, builder.add(j, INDEX(at)), bytes8) for at in range(0, UNIT, _EIGHT)]
            codes = [builder.sext(part, _INT8) for part in parts]
        elif kind.bits == 4:
            low = _load(builder, self.codes, builder.lshr(j, INDEX(1)), _INT8)
            codes = [builder.and_(low, _all_of(15 << 4 * k, _INT8)) for k in range(_EIGHT - 1)]
            codes.append(builder.lshr(low, _all_of(28, _INT8)))
        else:
            codes = self._bits(builder, j, _INT8)
        return [builder.sitofp(v, _FLOAT8) for v in codes]

    def numbers(self, builder: Any, j: Any) -> list[Any]:
        """Scales of outputs j to j + 7, and what all their weights have added to the codes' part, None for nothing."""
        kind, made = self.kind, []
        for which in range(kind.each):
            place = builder.add(j, _times(builder, self.filled, which))
            halves = _load(
                builder, self.steps if kind.stepped else self.tile, _times(builder, place, 2), ir.VectorType(_HALF, 8)
            )
            number = builder.fpext(halves, _FLOAT8)
            if kind.stepped:
                counts = builder.sext(_load(builder, self.tile, place, ir.VectorType(BYTE, _EIGHT)), _INT8)
                number = _multiply(builder, builder.sitofp(counts, _FLOAT8), number)
            made.append(number)
        if kind.zero:
            made.append(_multiply(builder, made[0], ir.Constant(_FLOAT8, [-float(kind.zero)] * _EIGHT)))
        return made if len(made) > 1 else [*made, None]

    def scaled(self, builder: Any, scale: Any, k: int) -> Any:
        """A scale for what `codes_of` has in vector k."""
        return (
            _multiply(builder, scale, ir.Constant(_FLOAT8, [2.0 ** -self.power(k)] * _EIGHT))
            if self.power(k)
            else scale
        )

    def weights(self, builder: Any, j: Any) -> list[Any]:
        """Weights j to j + 63 in float32, as vectors that follow each other."""
        made = []
        for k, codes in enumerate(self.codes_of(builder, j)):
            scale, least = self.numbers(builder, builder.add(j, INDEX(_EIGHT * k)))
            weight = _multiply(builder, codes, self.scaled(builder, scale, k))
            made.append(weight if least is None else _add(builder, weight, least))
        return made


# -- functions of the compiled module ---------------------------------------------------------------------------------


def _function(builder: Any, name: str, arguments: Sequence[Any], body: Callable[..., None]) -> Any:
    """A function of the module, made where it is not there yet; `body` gets its builder and arguments."""
    module = builder.module
    name = f"clada_{name}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "linkonce_odr"  # in all kernels alike
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    inner = ir.IRBuilder(function.append_basic_block("entry"))
    body(inner, *function.args)
    inner.ret_void()
    return function


def _by_kind(builder: Any, where: Any, body: Callable[[BlockKind, Any], None]) -> None:
    """A branch for every kind: body(kind, where the row lies)."""
    codes = _address(builder, where)
    end = builder.append_basic_block("end")
    branch = builder.switch(builder.and_(where, INDEX(2**KIND_BITS - 1)), end)
    for k, kind in enumerate(KINDS):
        block = builder.append_basic_block(kind.name)
        branch.add_case(INDEX(k), block)
        builder.position_at_end(block)
        body(kind, codes)
        builder.branch(end)
    builder.position_at_end(end)


def _address(builder: Any, where: Any) -> Any:
    return builder.inttoptr(builder.lshr(where, INDEX(KIND_BITS)), _POINTER)


def _range(builder: Any, end: Any, step: int = 1) -> Any:
    return cgutils.for_range_slice(builder, INDEX(0), end, INDEX(step), INDEX)


def _up(builder: Any, count: Any, to: int) -> Any:
    """A count's multiple of a power of two."""
    return builder.and_(builder.add(count, INDEX(to - 1)), INDEX(-to))


def _copy(builder: Any, out: Any, source: Any, count: Any) -> None:
    with _range(builder, count) as (j, _):
        builder.store(builder.load(builder.gep(source, [j])), builder.gep(out, [j]))


def _put(builder: Any, row: _Row, width: Any, out: Any) -> None:
    """out[:width] = a row in float32."""
    rest = cgutils.alloca_once(builder, FLOAT, UNIT)
    with _range(builder, width, UNIT) as (j, _):
        left = builder.sub(width, j)
        whole = builder.icmp_signed(">=", left, INDEX(UNIT))
        target = builder.select(whole, builder.gep(out, [j]), rest)
        at = 0
        for v in row.weights(builder, j):  # type: ignore[attr-defined]
            _store(builder, v, target, INDEX(at))
            at += v.type.count
        with builder.if_then(builder.not_(whole)):
            _copy(builder, builder.gep(out, [j]), rest, left)


def put_along(builder: Any, where: Any, width: Any, out: Any) -> None:
    """Instructions for out[:width] = a row along."""

    def body(inner: Any, where: Any, width: Any, out: Any) -> None:
        _by_kind(
            inner,
            where,
            lambda kind, codes: _put(inner, _Along(kind, codes, _up(inner, width, kind.filled)), width, out),
        )

    builder.call(_function(builder, "put_along", [INDEX, INDEX, _FLOATS], body), [where, width, out])


def put_across(builder: Any, where: Any, i: Any, width: Any, out: Any) -> None:
    """Instructions for out[:width] = a row across, that of input i."""

    def body(inner: Any, where: Any, i: Any, width: Any, out: Any) -> None:
        filled = _up(inner, width, UNIT)
        _by_kind(inner, where, lambda kind, codes: _put(inner, _Across.at(inner, kind, codes, filled, i), width, out))

    builder.call(_function(builder, "put_across", [INDEX, INDEX, INDEX, _FLOATS], body), [where, i, width, out])


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
        _by_kind(inner, where, lambda kind, codes: _dots(inner, _Along(kind, codes, width), width, inputs, out))

    kinds = [INDEX, INDEX, _FLOATS, *[_SHORTS] * batch]
    out = cgutils.alloca_once(builder, FLOAT, 8)
    builder.call(_function(builder, f"dots_along_{batch}", kinds, body), [where, width, out, *inputs])
    return [builder.load(builder.gep(out, [INDEX(b)])) for b in range(batch)]


def _dots(builder: Any, row: _Along, width: Any, inputs: Sequence[Any], out: Any) -> None:
    kind = row.kind
    groups = builder.udiv(width, INDEX(kind.group))
    shared = builder.udiv(width, INDEX(SHARED))
    steps = [builder.bitcast(builder.gep(start, [width]), _FLOATS) for start in inputs]
    scales = [builder.alloca(FLOAT, groups) for _ in inputs]
    least = [cgutils.alloca_once_value(builder, ir.Constant(_FLOAT8, None)) for _ in inputs]
    rest = [cgutils.alloca_once_value(builder, ir.Constant(FLOAT, 0.0)) for _ in inputs]

    def scale(group: Any, count: int) -> None:
        numbers, each = row.numbers(builder, group, count), SHARED // kind.group
        at = builder.udiv(group, INDEX(each))
        vector = FLOAT if count == 1 else ir.VectorType(FLOAT, count // each)
        for b, start in enumerate(steps):
            step = _floats(builder, start, at, vector)
            if count > 1 and each > 1:
                twice = ir.Constant(ir.VectorType(INT, count), [k // each for k in range(count)])
                step = builder.shuffle_vector(step, ir.Constant(vector, ir.Undefined), twice)
            _store(builder, _multiply(builder, numbers[0], step), scales[b], group)
            if kind.minimum:
                total = rest[b] if count == 1 else least[b]
                sums = _floats(builder, start, builder.add(shared, at), vector)
                builder.store(_plus(builder, builder.load(total), numbers[1], sums), total)

    eights = builder.and_(groups, INDEX(-_EIGHT))
    with _range(builder, eights, _EIGHT) as (group, _):
        scale(group, _EIGHT)
    with cgutils.for_range_slice(builder, eights, groups, INDEX(1), INDEX) as (group, _):
        scale(group, 1)

    # Two sums: an addition waits for the one before it.
    totals = [[cgutils.alloca_once_value(builder, ir.Constant(_FLOAT8, None)) for _ in range(2)] for _ in inputs]
    with _range(builder, width, UNIT) as (j, _):
        codes = row.codes_of(builder, j)
        first = builder.udiv(j, INDEX(kind.group))
        for b, start in enumerate(inputs):
            products = []
            for k, v in enumerate(codes):
                place = builder.gep(start, [builder.add(j, INDEX(16 * k))])
                x = builder.load(builder.bitcast(place, _SHORT16.as_pointer()), align=2)
                products.append(_pairs(builder, v, x))
            if kind.group == 32:
                products = [builder.add(*products[:2]), builder.add(*products[2:])]
            for g, product in enumerate(products):
                number = builder.load(builder.gep(scales[b], [builder.add(first, INDEX(g))]))
                total = totals[b][g % 2]
                wide = builder.sitofp(product, _FLOAT8)
                builder.store(_plus(builder, builder.load(total), wide, spread(builder, number, _EIGHT)), total)
    for b in range(len(inputs)):
        total = _add(builder, builder.load(totals[b][0]), builder.load(totals[b][1]))
        if kind.minimum:
            total = _add(builder, total, builder.load(least[b]))
        builder.store(_add(builder, _sum(builder, total), builder.load(rest[b])), builder.gep(out, [INDEX(b)]))


def _pairs(builder: Any, a: Any, b: Any) -> Any:
    """Products of 16 int16 each, neighbours added: one instruction of most processors."""
    wide = ir.VectorType(INT, 16)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    nothing = ir.Constant(wide, ir.Undefined)
    return builder.add(
        *(builder.shuffle_vector(products, nothing, ir.Constant(_INT8, list(range(first, 16, 2)))) for first in (0, 1))
    )


def _sum(builder: Any, vector: Any) -> Any:
    """The sum of a vector's elements, halves at a time."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        nothing = ir.Constant(vector.type, ir.Undefined)
        indices = ir.VectorType(INT, lanes)
        vector = _add(
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
    kinds = [_FLOATS, INDEX, _FLOATS, INDEX, INDEX, INDEX, _INDICES, _INDICES, INDEX, INDEX]
    builder.call(_function(builder, "add_across", kinds, _add_body), arguments)


def _add_body(
    builder: Any, out: Any, stride: Any, factors: Any, apart: Any, batch: Any, width: Any, rows: Any, which: Any,
    count: Any, after: Any,
) -> None:  # fmt: skip
    filled = _up(builder, width, UNIT)
    first = builder.load(which)
    last = builder.sub(builder.add(count, after), INDEX(1))
    wheres = cgutils.alloca_once(builder, _POINTER, LONGEST_GROUP)
    later = cgutils.alloca_once(builder, _POINTER, LONGEST_GROUP)
    with _range(builder, count) as (r, _):
        following = builder.add(r, count)
        following = builder.select(builder.icmp_signed("<", following, last), following, last)
        for places, at in ((wheres, r), (later, following)):
            row = builder.load(builder.gep(which, [at]))
            builder.store(_address(builder, builder.load(builder.gep(rows, [row]))), builder.gep(places, [r]))
    own = cgutils.alloca_once(builder, FLOAT, LONGEST_GROUP)
    buffer = cgutils.alloca_once(builder, FLOAT, LONGEST_GROUP * UNIT)

    def of_kind(kind: BlockKind, codes: Any) -> None:
        tile = _Across.at(builder, kind, codes, filled, first)
        alone = builder.icmp_signed("==", batch, INDEX(1))
        with builder.if_then(builder.not_(alone)), _range(builder, filled, UNIT) as (j, _):
            with _range(builder, count) as (r, _):
                row = _Across(kind, builder.load(builder.gep(wheres, [r])), filled, None, None)
                for k, v in enumerate(row.codes_of(builder, j)):
                    at = builder.add(_times(builder, r, UNIT), INDEX(_EIGHT * k))
                    _store(builder, v, buffer, at)

            def buffered(r: Any) -> list[Any]:
                places = [builder.add(_times(builder, r, UNIT), INDEX(_EIGHT * k)) for k in range(_EIGHT)]
                return [_floats(builder, buffer, place) for place in places]

            with _range(builder, batch) as (b, _):
                total = listed(b)
                _add_unit(
                    builder, tile, count, j, width, builder.gep(out, [builder.mul(b, stride)]), own, total, buffered
                )
        with builder.if_then(alone):
            total = listed(INDEX(0))
            with _range(builder, filled, UNIT) as (j, _):

                def unpacked(r: Any) -> list[Any]:
                    row = _Across(kind, builder.load(builder.gep(wheres, [r])), filled, None, None)
                    ahead = builder.load(builder.gep(later, [r]))
                    _fetch(builder, builder.gep(ahead, [builder.lshr(j, INDEX(0 if kind.bits == 8 else 1))]))
                    return row.codes_of(builder, j)

                _add_unit(builder, tile, count, j, width, out, own, total, unpacked)

    def listed(b: Any) -> Any:
        """Put the factors of the listed rows side by side; gives their sum."""
        total = cgutils.alloca_once(builder, FLOAT)
        builder.store(ir.Constant(FLOAT, 0.0), total)
        start = builder.gep(factors, [builder.mul(b, apart)])
        with _range(builder, count) as (r, _):
            factor = builder.load(builder.gep(start, [builder.load(builder.gep(which, [r]))]))
            builder.store(factor, builder.gep(own, [r]))
            builder.store(_add(builder, builder.load(total), factor), total)
        return builder.load(total)

    _by_kind(builder, builder.load(builder.gep(rows, [first])), of_kind)


def _add_unit(
    builder: Any, tile: _Across, count: Any, j: Any, width: Any, out: Any, factors: Any, total: Any,
    codes_of: Callable[[Any], list[Any]],
) -> None:  # fmt: skip
    """Add 64 outputs of a tile to out[j:]."""
    sums = [cgutils.alloca_once(builder, _FLOAT8) for _ in range(_EIGHT)]
    for one in sums:
        builder.store(ir.Constant(_FLOAT8, None), one)
    with _range(builder, count) as (r, _):
        factor = spread(builder, builder.load(builder.gep(factors, [r])), _EIGHT)
        for one, codes in zip(sums, codes_of(r), strict=True):
            builder.store(_plus(builder, builder.load(one), codes, factor), one)
    all_factors = spread(builder, total, _EIGHT)
    rest, left = cgutils.alloca_once(builder, FLOAT, UNIT), builder.sub(width, j)
    whole, place = builder.icmp_signed(">=", left, INDEX(UNIT)), builder.gep(out, [j])
    with builder.if_then(builder.not_(whole)):
        _copy(builder, rest, place, left)
    target = builder.select(whole, place, rest)
    for k, one in enumerate(sums):
        scale, least = tile.numbers(builder, builder.add(j, INDEX(_EIGHT * k)))
        v = _floats(builder, target, INDEX(_EIGHT * k))
        v = _plus(builder, v, builder.load(one), tile.scaled(builder, scale, k))
        if least is not None:
            v = _plus(builder, v, least, all_factors)
        _store(builder, v, target, INDEX(_EIGHT * k))
    with builder.if_then(builder.not_(whole)):
        _copy(builder, place, rest, left)


def _fetch(builder: Any, address: Any) -> None:
    """An instruction that fetches a line into the second cache."""
    kind = ir.FunctionType(ir.VoidType(), [_POINTER, INT, INT, INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [address, INT(0), INT(2), INT(1)])
