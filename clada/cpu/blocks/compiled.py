"""The kernels' instructions for weights in blocks: rows as float32, and products with rows.

A row is known by one whole number, where it lies times 16 plus the number of its kind. What is done with a row is a
function of the compiled module, which branches by the kind: kernels are compiled once for all of them. Every product
is that of the float32 which the blocks stand for, to the bit: scale times code is exact, and adding the minimum rounds
once, as in GGUF's own formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from clada.cpu.blocks.kinds import KIND_BITS, KINDS, STEPPED, UNIT, Kind
from clada.cpu.llvm import BYTE, CHAINS, CONTRACT, FLOAT, INDEX, INT, LANES, in_lanes, spread, sums_of_lanes, vector_of

_POINTER, _FLOATS = BYTE.as_pointer(), FLOAT.as_pointer()

_BYTES, _WIDE, _HALF = vector_of(BYTE, LANES), vector_of(FLOAT, LANES), ir.HalfType()


def _all_of(value: int, kind: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _times(builder: Any, count: Any, each: int) -> Any:
    return builder.mul(count, INDEX(each))


def _rounded_up(builder: Any, count: Any, to: int) -> Any:
    """A count's multiple of a power of two."""
    return builder.and_(builder.add(count, INDEX(to - 1)), INDEX(-to))


def _load(builder: Any, start: Any, offset: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(start, [offset]), kind.as_pointer()), align=1)


@dataclass(frozen=True)
class _Row:
    """A row while instructions are made: its kind, where its codes are, its weights filled up."""

    kind: Kind
    codes: Any
    filled: Any

    def _codes(self, builder: Any, j: Any) -> list[Any]:
        """Weights j to j + 31 (j a multiple of 32) without scale, as two vectors."""
        kind = self.kind
        if kind.bits == 8:
            both = [_load(builder, self.codes, builder.add(j, INDEX(at)), _BYTES) for at in (0, LANES)]
        else:
            low = _load(builder, self.codes, builder.lshr(j, INDEX(1)), _BYTES)
            both = [builder.and_(low, _all_of(15, _BYTES)), builder.lshr(low, _all_of(4, _BYTES))]
        if kind.high:
            both = [builder.or_(*pair) for pair in zip(both, self._high(builder, j), strict=True)]
        if kind.zero:
            both = [builder.sub(v, _all_of(kind.zero, _BYTES)) for v in both]
        return [builder.sitofp(builder.sext(v, vector_of(INT, LANES)), _WIDE) for v in both]

    def _high(self, builder: Any, j: Any) -> list[Any]:
        """The bits beyond the fourth of the same weights, in their place."""
        bits, kind = self.kind.bits - 4, self.kind
        shorts = ir.VectorType(ir.IntType(16), LANES // 2)
        at = builder.add(builder.lshr(self.filled, INDEX(1)), _times(builder, builder.udiv(j, INDEX(kind.high)), LANES))
        line = builder.bitcast(_load(builder, self.codes, at, _BYTES), shorts)
        which = builder.urem(builder.lshr(j, INDEX(4)), INDEX(kind.high // LANES))
        shift = spread(builder, builder.trunc(_times(builder, which, bits), ir.IntType(16)), LANES // 2)
        line = builder.lshr(line, shift)
        mask = _all_of((2**bits - 1) << 4, _BYTES)
        return [
            builder.and_(builder.bitcast(builder.shl(line, _all_of(4 - bits * part, shorts)), _BYTES), mask)
            for part in range(2)
        ]

    def weights(self, builder: Any, j: Any) -> list[Any]:
        """Weights j to j + 31 in float32, as two vectors."""
        made = []
        for code, (scale, least) in zip(self._codes(builder, j), self.scales(builder, j), strict=True):
            weight = builder.fmul(code, scale, flags=CONTRACT)
            made.append(weight if least is None else builder.fadd(weight, least, flags=CONTRACT))
        return made

    def scales(self, builder: Any, j: Any) -> list[tuple[Any, Any]]:
        """Scale and minimum, or None, of both vectors."""
        raise NotImplementedError


class _Along(_Row):
    """A row of an output; scales are of its groups."""

    def scales(self, builder: Any, j: Any) -> list[tuple[Any, Any]]:
        kind, filled = self.kind, self.filled
        high = _times(builder, builder.udiv(_rounded_up(builder, filled, kind.high), INDEX(kind.high)), 16)
        low = filled if kind.bits == 8 else builder.lshr(filled, INDEX(1))
        start = builder.gep(self.codes, [builder.add(low, high) if kind.high else low])
        groups = []
        for begin in range(0, UNIT, kind.group):
            group = builder.udiv(builder.add(j, INDEX(begin)), INDEX(kind.group))
            stored = vector_of(BYTE if kind.stepped else _HALF, kind.each)
            numbers = self._numbers(builder, start, _times(builder, group, kind.scale_bytes), stored)
            if kind.stepped:
                behind = _times(builder, builder.udiv(filled, INDEX(kind.group)), kind.scale_bytes)
                at = _times(builder, builder.udiv(j, INDEX(STEPPED)), 2 * kind.each)
                steps = self._numbers(builder, start, builder.add(behind, at), vector_of(_HALF, kind.each))
                numbers = [builder.fmul(a, b) for a, b in zip(numbers, steps, strict=True)]
            wide = [spread(builder, number, LANES) for number in numbers]
            groups.append((wide[0], wide[1] if kind.minimum else None))
        return groups * (2 // len(groups))

    def _numbers(self, builder: Any, start: Any, at: Any, stored: Any) -> list[Any]:
        """The one or two numbers of a group as float32."""
        each, loaded = self.kind.each, _load(builder, start, at, stored)
        if stored in (BYTE, vector_of(BYTE, 2)):
            loaded = builder.sitofp(builder.sext(loaded, vector_of(INT, each)), vector_of(FLOAT, each))
        else:
            loaded = builder.fpext(loaded, vector_of(FLOAT, each))
        return [loaded] if each == 1 else [builder.extract_element(loaded, INT(k)) for k in range(each)]


@dataclass(frozen=True)
class _Across(_Row):
    """A row of an input; scales are of its outputs, beside those of all rows of its group."""

    tile: Any
    steps: Any

    @classmethod
    def at(cls, builder: Any, kind: Kind, codes: Any, filled: Any, i: Any) -> _Across:
        """Row i of a matrix, whose codes lie there."""
        own = filled if kind.bits == 8 else builder.lshr(filled, INDEX(1))
        if kind.high:
            high = _times(builder, builder.udiv(_rounded_up(builder, filled, kind.high), INDEX(kind.high)), 16)
            own = builder.add(own, high)
        scales = _times(builder, filled, kind.scale_bytes)
        back = builder.add(scales, builder.mul(own, builder.urem(i, INDEX(kind.group))))
        tile = builder.gep(codes, [builder.neg(back)])
        if not kind.stepped:
            return cls(kind, codes, filled, tile, None)
        tile_bytes = builder.add(scales, _times(builder, own, kind.group))
        which = builder.udiv(builder.urem(i, INDEX(STEPPED)), INDEX(kind.group))
        back = builder.add(builder.mul(tile_bytes, which), _times(builder, filled, 2 * kind.each))
        return cls(kind, codes, filled, tile, builder.gep(tile, [builder.neg(back)]))

    def scales(self, builder: Any, j: Any) -> list[tuple[Any, Any]]:
        both = []
        for at in (0, LANES):
            numbers = []
            for which in range(self.kind.each):
                place = builder.add(builder.add(j, INDEX(at)), _times(builder, self.filled, which))
                steps = self._halves(builder, self.steps if self.kind.stepped else self.tile, place)
                if self.kind.stepped:
                    counts = builder.sext(_load(builder, self.tile, place, _BYTES), vector_of(INT, LANES))
                    steps = builder.fmul(builder.sitofp(counts, _WIDE), steps)
                numbers.append(steps)
            both.append((numbers[0], numbers[1] if self.kind.minimum else None))
        return both

    def _halves(self, builder: Any, start: Any, place: Any) -> Any:
        loaded = _load(builder, start, _times(builder, place, 2), ir.VectorType(_HALF, LANES))
        return builder.fpext(loaded, _WIDE)


# -- functions of the compiled module ---------------------------------------------------------------------------------


def _function(builder: Any, name: str, result: Any, arguments: Sequence[Any], body: Callable[..., None]) -> Any:
    """A function of the module, made where it is not there yet; `body` gets its builder and arguments."""
    module = builder.module
    name = f"clada_{name}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.linkage = "linkonce_odr"  # in all kernels alike
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    inner = ir.IRBuilder(function.append_basic_block("entry"))
    body(inner, *function.args)
    return function


def _by_kind(builder: Any, where: Any, body: Callable[[Kind, Any], None]) -> None:
    """A branch for every kind: body(kind, where the row lies)."""
    codes = builder.inttoptr(builder.lshr(where, INDEX(KIND_BITS)), _POINTER)
    number = builder.and_(where, INDEX(2**KIND_BITS - 1))
    end = builder.append_basic_block("end")
    branch = builder.switch(number, end)
    for k, kind in enumerate(KINDS):
        block = builder.append_basic_block(kind.name)
        branch.add_case(INDEX(k), block)
        builder.position_at_end(block)
        body(kind, codes)
        builder.branch(end)
    builder.position_at_end(end)


def _store(builder: Any, vector: Any, out: Any, j: Any) -> None:
    place = builder.bitcast(builder.gep(out, [j]), _WIDE.as_pointer())
    builder.store(vector, place, align=4)


def _put_all(builder: Any, row: _Row, begin: Any, count: Any, out: Any) -> None:
    """out[:count] = weights from `begin` on, a multiple of 32."""
    whole = builder.and_(count, INDEX(-UNIT))
    with cgutils.for_range_slice(builder, INDEX(0), whole, INDEX(UNIT), INDEX) as (j, _):
        for part, v in enumerate(row.weights(builder, builder.add(begin, j))):
            _store(builder, v, out, builder.add(j, INDEX(part * LANES)))
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        rest = _unit(builder, row, builder.add(begin, whole))
        with cgutils.for_range_slice(builder, whole, count, INDEX(1), INDEX) as (j, _):
            builder.store(builder.load(builder.gep(rest, [builder.sub(j, whole)])), builder.gep(out, [j]))


def _unit(builder: Any, row: _Row, j: Any) -> Any:
    """Where 32 weights from j on are put, of which not all are asked for."""
    rest = cgutils.alloca_once(builder, FLOAT, UNIT)
    for part, v in enumerate(row.weights(builder, j)):
        _store(builder, v, rest, INDEX(part * LANES))
    return rest


def put_along(builder: Any, where: Any, width: Any, begin: Any, count: Any, out: Any) -> None:
    """Instructions for out[:count] = weights of a row along, of so many in all, from `begin` on (a multiple of 32)."""

    def body(inner: Any, where: Any, width: Any, begin: Any, count: Any, out: Any) -> None:
        def of_kind(kind: Kind, codes: Any) -> None:
            _put_all(inner, _Along(kind, codes, _rounded_up(inner, width, kind.filled)), begin, count, out)

        _by_kind(inner, where, of_kind)
        inner.ret_void()

    function = _function(builder, "put_along", ir.VoidType(), [INDEX, INDEX, INDEX, INDEX, _FLOATS], body)
    builder.call(function, [where, width, begin, count, out])


def put_across(builder: Any, where: Any, i: Any, width: Any, begin: Any, count: Any, out: Any) -> None:
    """The same of a row across, that of input i."""

    def body(inner: Any, where: Any, i: Any, width: Any, begin: Any, count: Any, out: Any) -> None:
        filled = _rounded_up(inner, width, UNIT)

        def of_kind(kind: Kind, codes: Any) -> None:
            _put_all(inner, _Across.at(inner, kind, codes, filled, i), begin, count, out)

        _by_kind(inner, where, of_kind)
        inner.ret_void()

    function = _function(builder, "put_across", ir.VoidType(), [INDEX, INDEX, INDEX, INDEX, INDEX, _FLOATS], body)
    builder.call(function, [where, i, width, begin, count, out])


def dot_along(builder: Any, where: Any, width: Any, x: Any) -> Any:
    """Instructions for the product of a row along with x, in the order of sums of `dots_of_rows`."""

    def body(inner: Any, where: Any, width: Any, x: Any) -> None:
        wide = [cgutils.alloca_once_value(inner, ir.Constant(_WIDE, None)) for _ in range(CHAINS)]
        single = cgutils.alloca_once_value(inner, ir.Constant(FLOAT, 0.0))

        def of_kind(kind: Kind, codes: Any) -> None:
            row = _Along(kind, codes, _rounded_up(inner, width, kind.filled))
            whole = inner.and_(width, INDEX(-UNIT))

            def add(total: Any, weight: Any, place: Any) -> None:
                kind = weight.type
                input_ = inner.load(inner.bitcast(place, kind.as_pointer()), align=4)
                product = inner.fmul(weight, input_, flags=CONTRACT)
                inner.store(inner.fadd(inner.load(total), product, flags=CONTRACT), total)

            with cgutils.for_range_slice(inner, INDEX(0), whole, INDEX(UNIT), INDEX) as (j, _):
                for part, v in enumerate(row.weights(inner, j)):
                    add(wide[part % CHAINS], v, inner.gep(x, [inner.add(j, INDEX(part * LANES))]))
            with inner.if_then(inner.icmp_signed("<", whole, width)):
                rest = _unit(inner, row, whole)

                def finish(j: Any, _vectors: int, lanes: int) -> None:
                    v = inner.load(inner.bitcast(inner.gep(rest, [j]), vector_of(FLOAT, lanes).as_pointer()), align=4)
                    add(single if lanes == 1 else wide[0], v, inner.gep(x, [inner.add(whole, j)]))

                in_lanes(inner, inner.sub(width, whole), (1,), finish)

        _by_kind(inner, where, of_kind)
        total = inner.load(wide[0])
        for more in wide[1:]:
            total = inner.fadd(total, inner.load(more))
        inner.ret(inner.fadd(inner.load(single), sums_of_lanes(inner, [total])[0]))

    return builder.call(_function(builder, "dot_along", FLOAT, [INDEX, INDEX, _FLOATS], body), [where, width, x])


def add_across(builder: Any, out: Any, width: Any, rows: Sequence[tuple[Any, Any, Any]]) -> None:
    """Instructions for out[:width] += factor times row, one after the other, of some rows (where, input, factor).

    Several rows must be of one tile, whose scales are loaded once for them.
    """

    def body(inner: Any, out: Any, width: Any, *arguments: Any) -> None:
        filled, whole = _rounded_up(inner, width, UNIT), inner.and_(width, INDEX(-UNIT))
        some = list(zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True))

        def of_kind(kind: Kind, _codes: Any) -> None:
            starts = [inner.inttoptr(inner.lshr(where, INDEX(KIND_BITS)), _POINTER) for where, _, _ in some]
            first = _Across.at(inner, kind, starts[0], filled, some[0][1])
            rows = [_Across(kind, start, filled, first.tile, first.steps) for start in starts]
            factors = [spread(inner, factor, LANES) for _, _, factor in some]

            def summed(j: Any, totals: list[Any]) -> list[Any]:
                scales = first.scales(inner, j)
                for row, factor in zip(rows, factors, strict=True):
                    codes = row._codes(inner, j)
                    for part, (scale, least) in enumerate(scales):
                        weight = inner.fmul(codes[part], scale, flags=CONTRACT)
                        weight = weight if least is None else inner.fadd(weight, least, flags=CONTRACT)
                        product = inner.fmul(weight, factor, flags=CONTRACT)
                        totals[part] = inner.fadd(totals[part], product, flags=CONTRACT)
                return totals

            def loaded(start: Any, j: Any) -> list[Any]:
                places = [inner.gep(start, [inner.add(j, INDEX(part * LANES))]) for part in range(2)]
                return [inner.load(inner.bitcast(place, _WIDE.as_pointer()), align=4) for place in places]

            with cgutils.for_range_slice(inner, INDEX(0), whole, INDEX(UNIT), INDEX) as (j, _):
                for part, total in enumerate(summed(j, loaded(out, j))):
                    _store(inner, total, out, inner.add(j, INDEX(part * LANES)))
            with inner.if_then(inner.icmp_signed("<", whole, width)):
                rest, size = cgutils.alloca_once(inner, FLOAT, UNIT), inner.sub(width, whole)
                with cgutils.for_range_slice(inner, INDEX(0), size, INDEX(1), INDEX) as (j, _):
                    inner.store(inner.load(inner.gep(out, [inner.add(whole, j)])), inner.gep(rest, [j]))
                for part, total in enumerate(summed(whole, loaded(rest, INDEX(0)))):
                    _store(inner, total, rest, INDEX(part * LANES))
                with cgutils.for_range_slice(inner, INDEX(0), size, INDEX(1), INDEX) as (j, _):
                    inner.store(inner.load(inner.gep(rest, [j])), inner.gep(out, [inner.add(whole, j)]))

        _by_kind(inner, some[0][0], of_kind)
        inner.ret_void()

    kinds = [_FLOATS, INDEX, *[INDEX, INDEX, FLOAT] * len(rows)]
    function = _function(builder, f"add_across_{len(rows)}", ir.VoidType(), kinds, body)
    builder.call(function, [out, width, *(argument for row in rows for argument in row)])
