"""LLVM's instructions for vectors of numbers, which the kernels and the precisions are written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

LANES = 16  # floats at a time in loops that are written out: two AVX2 registers, one of AVX-512, four of NEON

WIDE = 4 if binding.get_host_cpu_features().get("avx512f") else 2  # vectors of LANES: sums that registers hold

# An addition waits for the one before it, so the product of a row with an input is as many sums of their own. They are
# always as many: its bits do not depend on how many products are computed side by side.
CHAINS = 2

FLOAT, INT, INDEX, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)

CONTRACT = ("contract", "nsz")  # a product and a sum may be rounded once


def vector_of(kind: Any, lanes: int) -> Any:
    """LLVM's type of so many numbers, which is that of a number for one."""
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def spread(builder: Any, v: Any, lanes: int) -> Any:
    """Instructions for a vector of one value."""
    if lanes == 1:
        return v
    undefined = ir.Constant(vector_of(v.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, v, INT(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT, lanes), None))


def in_lanes(builder: Any, n: Any, most: Sequence[int], body: Any) -> None:
    """body(j, vectors, lanes) for n elements: so many vectors of LANES at a time, the most first, then one by one."""
    begin = INDEX(0)
    for vectors, lanes in (*((vectors, LANES) for vectors in dict.fromkeys((*most, 1))), (1, 1)):
        step = INDEX(vectors * lanes)
        end = builder.add(begin, builder.mul(builder.udiv(builder.sub(n, begin), step), step))
        with cgutils.for_range_slice(builder, begin, end, step, INDEX) as (j, _):
            body(j, vectors, lanes)
        begin = end


def sums_of_lanes(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Instructions for the sum of each vector's elements, halves at a time, of 1, 2, 4 or 8 vectors.

    Two vectors share the instructions of one: the halves of both are put side by side. The sums are the same bits
    whatever is beside them.
    """
    groups, width, todo = 1, LANES, list(vectors)  # sums in a vector, elements of each
    while width > 1:
        half = width // 2
        both = len(todo) > 1
        low = [v * groups * width + g * width + i for v in range(1 + both) for g in range(groups) for i in range(half)]
        nothing = ir.Constant(todo[0].type, ir.Undefined)
        pairs = zip(todo[::2], todo[1::2] if both else [nothing], strict=True)
        todo = [
            builder.fadd(
                *(
                    builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(low)), [i + at for i in low]))
                    for at in (0, half)
                )
            )
            for a, b in pairs
        ]
        groups, width = groups * (1 + both), half
    return [builder.extract_element(todo[0], INT(g)) for g in range(groups)]
