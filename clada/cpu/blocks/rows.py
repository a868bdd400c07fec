"""Rows of weights in blocks as instructions read them: codes, scales, minima; and what all functions on them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from clada.cpu.blocks.kinds import KIND_BITS, KINDS, STEPPED, UNIT, BlockKind
from clada.cpu.llvm import BYTE, CONTRACT, FLOAT, INDEX, INT, spread

SHORT = ir.IntType(16)

POINTER, FLOATS, INDICES, SHORTS = (kind.as_pointer() for kind in (BYTE, FLOAT, INDEX, SHORT))

EIGHT = 8  # float32 of an AVX2 register

FLOAT8, INT8, SHORT16 = ir.VectorType(FLOAT, EIGHT), ir.VectorType(INT, EIGHT), ir.VectorType(SHORT, 16)

HALF = ir.HalfType()


def all_of(value: float, kind: Any) -> Any:
    """A vector of one number."""
    return ir.Constant(kind, [value] * kind.count)


def times(builder: Any, count: Any, each: int) -> Any:
    """A count times a number."""
    return builder.mul(count, INDEX(each))


def load(builder: Any, start: Any, offset: Any, kind: Any, align: int = 1) -> Any:
    """What lies at `start + offset`, at no particular address unless one is said."""
    return builder.load(builder.bitcast(builder.gep(start, [offset]), kind.as_pointer()), align=align)


def floats(builder: Any, start: Any, offset: Any, kind: Any = FLOAT8) -> Any:
    """The float32 from `start + offset` on."""
    return load(builder, start, offset, kind, align=4)


def store(builder: Any, value: Any, out: Any, j: Any, align: int = 4) -> None:
    """Store a vector from `out + j` on."""
    builder.store(value, builder.bitcast(builder.gep(out, [j]), value.type.as_pointer()), align=align)


def add(builder: Any, a: Any, b: Any) -> Any:
    """A sum of floats that nobody reorders: numba's fast arithmetic changes instructions without flags."""
    return builder.fadd(a, b, flags=CONTRACT)


def multiply(builder: Any, a: Any, b: Any) -> Any:
    """Their product, which may be rounded together with a sum."""
    return builder.fmul(a, b, flags=CONTRACT)


def plus(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """A sum and a product."""
    return add(builder, total, multiply(builder, a, b))


@dataclass(frozen=True)
class BlockRow:
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
        return builder.add(low, times(builder, units, 32))

    def _bits(self, builder: Any, j: Any, lanes: Any) -> list[Any]:
        """The codes of weights j to j + 63 of less than 8 bits, in the lanes that they are stored in."""
        each = lanes.element.width // 4
        low = load(builder, self.codes, builder.lshr(j, INDEX(1)), lanes)
        codes = []
        for k in range(each):
            shifted = builder.lshr(low, all_of(4 * k, lanes)) if k else low
            codes.append(builder.and_(shifted, all_of(15, lanes)) if k < each - 1 else shifted)
        unit, bits = self.kind.high, self.kind.bits - 4
        if not unit:
            return codes
        at = builder.add(self._low_bytes(builder), times(builder, builder.udiv(j, INDEX(unit)), 32))
        high = load(builder, self.codes, at, lanes)
        before = times(builder, builder.udiv(builder.urem(j, INDEX(unit)), INDEX(lanes.count)), bits)
        high = builder.lshr(high, spread(builder, builder.trunc(before, lanes.element), lanes.count))
        for k in range(each):
            shifted = builder.lshr(high, all_of(k * bits, lanes)) if k else high
            own = builder.and_(shifted, all_of(2**bits - 1, lanes))
            codes[k] = builder.or_(codes[k], builder.shl(own, all_of(4, lanes)))
        return codes


class Along(BlockRow):
    """A row of an output; scales are of its groups."""

    def codes_of(self, builder: Any, j: Any) -> list[Any]:
        """Codes of weights j to j + 63 from zero, int16 in four vectors."""
        kind = self.kind
        if kind.bits == 8:
            bytes16 = ir.VectorType(BYTE, 16)
            parts = [load(builder, self.codes, builder.add(j, INDEX(at)), bytes16) for at in range(0, UNIT, 16)]
            return [builder.sext(part, SHORT16) for part in parts]
        codes = self._bits(builder, j, SHORT16)
        return [builder.sub(v, all_of(kind.zero, SHORT16)) for v in codes] if kind.zero else codes

    def numbers(self, builder: Any, group: Any, count: int) -> list[Any]:
        """Scales of so many groups from one on, and minima if there are any; float32, in vectors if there are several.

        Several begin at a multiple of their number.
        """
        kind, start = self.kind, builder.gep(self.codes, [self._code_bytes(builder)])
        groups, made = builder.udiv(self.filled, INDEX(kind.group)), []
        for which in range(kind.each):
            place = builder.add(group, times(builder, groups, which))
            if not kind.stepped:
                made.append(self._halves(builder, start, times(builder, place, 2), count))
                continue
            stored = ir.VectorType(BYTE, count) if count > 1 else BYTE
            wide = INT8 if count > 1 else INT
            counts = builder.sitofp(
                builder.sext(load(builder, start, place, stored), wide), FLOAT8 if count > 1 else FLOAT
            )
            steps, per = builder.udiv(self.filled, INDEX(STEPPED)), STEPPED // kind.group
            at = builder.add(builder.udiv(group, INDEX(per)), times(builder, steps, which))
            at = builder.add(times(builder, groups, kind.each), times(builder, at, 2))
            step = self._halves(builder, start, at, 1)
            made.append(multiply(builder, counts, spread(builder, step, count)))
        return made

    def _halves(self, builder: Any, start: Any, offset: Any, count: int) -> Any:
        if count == 1:
            return builder.fpext(load(builder, start, offset, HALF), FLOAT)
        return builder.fpext(load(builder, start, offset, ir.VectorType(HALF, count)), FLOAT8)

    def weights(self, builder: Any, j: Any) -> list[Any]:
        """Weights j to j + 63 in float32, as vectors that follow each other."""
        kind, made = self.kind, []
        for k, codes in enumerate(self.codes_of(builder, j)):
            wide = builder.sitofp(builder.sext(codes, ir.VectorType(INT, 16)), ir.VectorType(FLOAT, 16))
            group = builder.udiv(builder.add(j, INDEX(16 * k)), INDEX(kind.group))
            numbers = [spread(builder, number, 16) for number in self.numbers(builder, group, 1)]
            weight = multiply(builder, wide, numbers[0])
            made.append(add(builder, weight, numbers[1]) if kind.minimum else weight)
        return made


@dataclass(frozen=True)
class Across(BlockRow):
    """A row of an input; scales are of its outputs, beside those of all rows of its group."""

    tile: Any
    steps: Any

    @classmethod
    def at(cls, builder: Any, kind: BlockKind, codes: Any, filled: Any, i: Any) -> Across:
        """Row i of a matrix, whose codes lie there."""
        own = BlockRow(kind, codes, filled)._code_bytes(builder)
        scales = times(builder, filled, kind.scale_bytes)
        back = builder.add(scales, builder.mul(own, builder.urem(i, INDEX(kind.group))))
        tile = builder.gep(codes, [builder.neg(back)])
        if not kind.stepped:
            return cls(kind, codes, filled, tile, None)
        tile_bytes = builder.add(scales, times(builder, own, kind.group))
        which = builder.udiv(builder.urem(i, INDEX(STEPPED)), INDEX(kind.group))
        back = builder.add(builder.mul(tile_bytes, which), times(builder, filled, 2 * kind.each))
        return cls(kind, codes, filled, tile, builder.gep(tile, [builder.neg(back)]))

    def codes_of(self, builder: Any, j: Any, lanes: int) -> list[Any]:
        """Codes of weights j to j + 63, zero not taken off, float32 in vectors of 8 or 16; see `scaled`."""
        if self.kind.bits == 4:  # most stay where they are among the bits of the numbers that they lie in
            stored = load(builder, self.codes, builder.lshr(j, INDEX(1)), INT8)
            if lanes > EIGHT:
                stored = _joined(builder, stored, stored)
            codes = [stored] * (UNIT // lanes)
            # The last vector's begin at the lowest bit, as the highest bit would be a sign.
            codes[-1] = builder.lshr(stored, all_of(32 - lanes // 2, stored.type))
            codes = [
                builder.and_(v, ir.Constant(v.type, [15 << power for power in self._powers(k, lanes)]))
                for k, v in enumerate(codes)
            ]
        else:
            codes = self._codes(builder, j, lanes)
        return [builder.sitofp(v, ir.VectorType(FLOAT, lanes)) for v in codes]

    def whole_codes_of(self, builder: Any, j: Any) -> list[Any]:
        """Codes of weights j to j + 63 from zero, int16 in eight vectors."""
        codes = self._codes(builder, j, EIGHT)
        if self.kind.zero:
            codes = [builder.sub(v, all_of(self.kind.zero, INT8)) for v in codes]
        return [builder.trunc(v, ir.VectorType(SHORT, EIGHT)) for v in codes]

    def _codes(self, builder: Any, j: Any, lanes: int) -> list[Any]:
        """The codes themselves, int32."""
        if self.kind.bits < 8:
            eights = self._bits(builder, j, INT8)
            if lanes == EIGHT:
                return eights
            return [_joined(builder, *two) for two in zip(eights[::2], eights[1::2], strict=True)]
        some = ir.VectorType(BYTE, lanes)
        parts = [load(builder, self.codes, builder.add(j, INDEX(at)), some) for at in range(0, UNIT, lanes)]
        return [builder.sext(part, ir.VectorType(INT, lanes)) for part in parts]

    def numbers(self, builder: Any, j: Any, lanes: int) -> list[Any]:
        """Scales of outputs from j on, and what all their weights have added to the codes' part, None for nothing."""
        kind, made = self.kind, []
        wide = ir.VectorType(FLOAT, lanes)
        for which in range(kind.each):
            place = builder.add(j, times(builder, self.filled, which))
            halves = load(
                builder, self.steps if kind.stepped else self.tile, times(builder, place, 2), ir.VectorType(HALF, lanes)
            )
            number = builder.fpext(halves, wide)
            if kind.stepped:
                stored = load(builder, self.tile, place, ir.VectorType(BYTE, lanes))
                counts = builder.sitofp(builder.sext(stored, ir.VectorType(INT, lanes)), wide)
                number = multiply(builder, counts, number)
            made.append(number)
        if kind.zero:
            made.append(multiply(builder, made[0], all_of(-float(kind.zero), wide)))
        return made if len(made) > 1 else [*made, None]

    def scaled(self, builder: Any, scale: Any, k: int) -> Any:
        """A scale for what `codes_of` has in vector k, whose codes may be too large by powers of two."""
        powers = self._powers(k, scale.type.count)
        if not any(powers):
            return scale
        return multiply(builder, scale, ir.Constant(scale.type, [2.0**-power for power in powers]))

    def _powers(self, k: int, lanes: int) -> list[int]:
        """The power of two by which `codes_of` is too large, for every lane of vector k."""
        if self.kind.bits != 4:
            return [0] * lanes
        first = 0 if k == UNIT // lanes - 1 else k * lanes // 2
        return [first + 4 * (lane // EIGHT) for lane in range(lanes)]

    def weights(self, builder: Any, j: Any) -> list[Any]:
        """Weights j to j + 63 in float32, as vectors that follow each other."""
        made = []
        for k, codes in enumerate(self.codes_of(builder, j, EIGHT)):
            scale, least = self.numbers(builder, builder.add(j, INDEX(EIGHT * k)), EIGHT)
            weight = multiply(builder, codes, self.scaled(builder, scale, k))
            made.append(weight if least is None else add(builder, weight, least))
        return made


def _joined(builder: Any, a: Any, b: Any) -> Any:
    """Two vectors as one."""
    places = list(range(2 * a.type.count))
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(places)), places))


def pairs(builder: Any, a: Any, b: Any) -> Any:
    """Products of int16 each, neighbours added: one instruction of most processors."""
    count = a.type.count
    wide = ir.VectorType(INT, count)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    nothing, half = ir.Constant(wide, ir.Undefined), ir.VectorType(INT, count // 2)
    return builder.add(
        *(
            builder.shuffle_vector(products, nothing, ir.Constant(half, list(range(first, count, 2))))
            for first in (0, 1)
        )
    )


# -- functions of the compiled module ---------------------------------------------------------------------------------


def shared_function(builder: Any, name: str, arguments: Sequence[Any], body: Callable[..., None]) -> Any:
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


def by_kind(builder: Any, where: Any, body: Callable[[BlockKind, Any], None]) -> None:
    """A branch for every kind: body(kind, where the row lies)."""
    codes = address_of(builder, where)
    end = builder.append_basic_block("end")
    branch = builder.switch(builder.and_(where, INDEX(2**KIND_BITS - 1)), end)
    for k, kind in enumerate(KINDS):
        block = builder.append_basic_block(kind.name)
        branch.add_case(INDEX(k), block)
        builder.position_at_end(block)
        body(kind, codes)
        builder.branch(end)
    builder.position_at_end(end)


def address_of(builder: Any, where: Any) -> Any:
    """Where a row's codes lie."""
    return builder.inttoptr(builder.lshr(where, INDEX(KIND_BITS)), POINTER)


def counted(builder: Any, end: Any, step: int = 1) -> Any:
    """A loop from 0 on."""
    return cgutils.for_range_slice(builder, INDEX(0), end, INDEX(step), INDEX)


def filled_up(builder: Any, count: Any, to: int) -> Any:
    """A count's multiple of a power of two."""
    return builder.and_(builder.add(count, INDEX(to - 1)), INDEX(-to))
