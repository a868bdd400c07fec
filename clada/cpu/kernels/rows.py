"""Products of rows of a matrix with inputs, each row read whole or not at all, and what else works on vectors."""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from clada.cpu.blocks.kinds import KIND_BITS, KINDS, SHARED, UNIT
from clada.cpu.kernel_cache import kernel
from clada.cpu.kernels.scalars import FASTMATH, bias_of, scale_of, widen
from clada.cpu.kernels.vectors import (
    add_scaled_rows,
    add_tile,
    dots_of_rows,
    largest_of_shared,
    round_shared,
    row_across_into,
    row_into,
)
from clada.cpu.llvm import WIDE
from clada.cpu.precision import of_element

AHEAD = 7 * 1024  # bytes between the row that is used and the one that is fetched into a cache

FIRST = 12  # rows that are fetched ahead when a part begins, terms of the screen before they are added

TOGETHER = 16  # rows that stay in the nearest cache while all columns have their turns with them

GROUPS = tuple(kind.group for kind in KINDS)

WAITING = 64  # rows that are fetched ahead at most, while there is nothing else to do


def row_bytes(rows):  # type: ignore[no-untyped-def]
    """Bytes of a stored row; int8's scales, four bytes a row, are not counted. In blocks the mean of all rows."""
    raise NotImplementedError


@overload(row_bytes, jit_options={"forceinline": True})
def _typed_row_bytes(rows):  # type: ignore[no-untyped-def]
    if of_element(rows.dtype).in_blocks:
        return lambda rows: max(1, ((rows[-1, 0] >> KIND_BITS) - (rows[0, 0] >> KIND_BITS)) // max(1, len(rows) - 1))
    return lambda rows: rows.shape[1] * rows.itemsize


@njit(forceinline=True)
def rows_ahead(rows):  # type: ignore[no-untyped-def]
    """Rows between the one that is used and the one that is fetched into a cache."""
    return max(4, AHEAD // row_bytes(rows))  # four are read side by side


@njit(forceinline=True)
def four_of(which, r):  # type: ignore[no-untyped-def]
    """Four entries from the r-th on, the last one again where there are fewer."""
    last = which.shape[0] - 1
    return which[min(r, last)], which[min(r + 1, last)], which[min(r + 2, last)], which[min(r + 3, last)]


@njit(forceinline=True)
def eight_of(which, r):  # type: ignore[no-untyped-def]
    """Eight entries from the r-th on, the last one again where there are fewer."""
    return four_of(which, r) + four_of(which, r + 4)


@njit(forceinline=True)
def _side_by_side(which):  # type: ignore[no-untyped-def]
    """How many of the listed rows to read four side by side: none if no row is missing between them, else all fours.

    One after the other, rows with gaps look like a stream to the processor, which fetches the gaps too; side by side
    they do not. Without gaps a stream is faster. benchmarks/selection-log.md has the times.
    """
    count = which.shape[0]
    if count > 0 and which[count - 1] - which[0] == count - 1:
        return 0
    return count - count % 4


def prepared(x, room, rows):  # type: ignore[no-untyped-def]
    """Inputs x[b] as products with rows take them: rounded into `room` for rows in blocks, else as they are.

    A step is a 32767th of the largest of SHARED inputs. `room` [B, `prepared_size`] gets int16, then float32 twice:
    steps, and sums of the rounded inputs.
    """
    raise NotImplementedError


@overload(prepared)
def _typed_prepared(x, room, rows):  # type: ignore[no-untyped-def]
    def round_them(x, room, rows):  # type: ignore[no-untyped-def]
        round_inputs(x, room)
        return room

    return round_them if of_element(rows.dtype).in_blocks else lambda x, room, rows: x


def prepared_size(width):  # type: ignore[no-untyped-def]
    """How many int16 `prepared` needs for so many inputs."""
    filled = (width + UNIT - 1) // UNIT * UNIT
    return filled + filled // SHARED * 4


@njit(fastmath=FASTMATH)
def round_inputs(x, room):  # type: ignore[no-untyped-def]
    """Round inputs into `room` as rows in blocks take them, see `prepared`."""
    filled = room.shape[1] * SHARED // (SHARED + 4)
    for b in range(x.shape[0]):
        round_input(x[b], room[b, :filled], room[b, filled:].view(np.float32))


@njit(fastmath=FASTMATH)
def round_input(x, numbers, factors):  # type: ignore[no-untyped-def]
    """Round an input: int16 `numbers`, zero where it ends; `factors` are steps, then sums of the rounded."""
    groups, whole = numbers.shape[0] // SHARED, x.shape[0] // SHARED
    for g in range(whole):
        most = largest_of_shared(x, g * SHARED)
        total = round_shared(numbers, x, g * SHARED, _steps_of_one(most))
        factors[g] = most / np.float32(32767)
        factors[groups + g] = factors[g] * total
    numbers[whole * SHARED :] = 0
    for g in range(whole, groups):
        begin = g * SHARED
        most, total = np.float32(0), np.int32(0)
        for j in range(begin, x.shape[0]):
            most = most if most > abs(x[j]) else abs(x[j])  # NaN stays
        inverse = _steps_of_one(most)
        for j in range(begin, x.shape[0]):
            number = np.int32(np.rint(x[j] * inverse))
            numbers[j] = number
            total += number
        factors[g] = most / np.float32(32767)
        factors[groups + g] = factors[g] * total


@njit(fastmath=FASTMATH, forceinline=True)
def _steps_of_one(most):  # type: ignore[no-untyped-def]
    """How many steps 1 is, where the largest is `most`."""
    return np.float32(32767) / most if most > 0 else np.float32(0)


@njit(fastmath=FASTMATH)
def dot(row, x):  # type: ignore[no-untyped-def]
    """A stored row times a float32 vector."""
    s = np.float32(0)
    for j in range(row.shape[0]):
        s += widen(row[j]) * x[j]
    return s


@njit(fastmath=FASTMATH)
def project_rows(out, rows, scales, bias, x, which):  # type: ignore[no-untyped-def]
    """out[i] = rows[i] x[0] + bias[i] for the listed rows i, of a single column."""
    ahead = rows_ahead(rows)
    n = which.shape[0]
    fours = _side_by_side(which)
    for r in range(0, fours, 4):
        i0, i1, i2, i3 = which[r], which[r + 1], which[r + 2], which[r + 3]
        d0, d1, d2, d3 = dots_of_rows(rows, (i0, i1, i2, i3), x, (0,), four_of(which, r + ahead))
        out[i0] = d0 * scale_of(rows, scales, i0) + bias_of(bias, i0)
        out[i1] = d1 * scale_of(rows, scales, i1) + bias_of(bias, i1)
        out[i2] = d2 * scale_of(rows, scales, i2) + bias_of(bias, i2)
        out[i3] = d3 * scale_of(rows, scales, i3) + bias_of(bias, i3)
    for r in range(fours, n):
        i = which[r]
        (d,) = dots_of_rows(rows, (i,), x, (0,), (which[min(r + ahead, n - 1)],))
        out[i] = d * scale_of(rows, scales, i) + bias_of(bias, i)


def _columns_at_once(rows, left):  # type: ignore[no-untyped-def]
    """How many columns share one pass over some rows, where so many are left.

    Three run as four, the last one twice: that takes less time than another pass. Of rows in blocks, whose products
    with four take longer than twice those with two as LLVM compiles them for AVX-512, two share one.
    """
    raise NotImplementedError


@overload(_columns_at_once, jit_options={"forceinline": True})
def _typed_columns_at_once(rows, left):  # type: ignore[no-untyped-def]
    if WIDE >= 4 and of_element(rows.dtype).in_blocks:
        return lambda rows, left: min(left, 2)
    return lambda rows, left: 4 if left >= 3 else min(left, 2)


@njit(fastmath=FASTMATH, forceinline=True)  # calls with so many arrays take as long as a row
def _row_times_some(out, rows, scales, bias, i, later, x, columns, r, n):  # type: ignore[no-untyped-def]
    """out[b, i] = row i times x[b], scaled, + bias for n listed columns b from the r-th on; beyond the last the last.

    The row is loaded and widened to float32 once for them. Row `later` is fetched into a cache meanwhile.
    """
    scale, more = scale_of(rows, scales, i), bias_of(bias, i)
    b0 = columns[r]
    if n == 1:
        (d0,) = dots_of_rows(rows, (i,), x, (b0,), (later,))
        out[b0, i] = d0 * scale + more
        return
    b1 = columns[r + 1]
    if n == 2:
        d0, d1 = dots_of_rows(rows, (i,), x, (b0, b1), (later,))
        out[b0, i], out[b1, i] = d0 * scale + more, d1 * scale + more
        return
    b2, b3 = columns[r + 2], columns[min(r + 3, columns.shape[0] - 1)]
    d0, d1, d2, d3 = dots_of_rows(rows, (i,), x, (b0, b1, b2, b3), (later,))
    out[b0, i], out[b1, i] = d0 * scale + more, d1 * scale + more
    out[b2, i], out[b3, i] = d2 * scale + more, d3 * scale + more


@njit(fastmath=FASTMATH, forceinline=True)
def _two_rows_times_some(out, rows, scales, bias, two, later, x, columns, r, n):  # type: ignore[no-untyped-def]
    """`_row_times_some` of two rows and at most four columns: inputs are loaded once for both."""
    i, k = two
    p, q, u, v = scale_of(rows, scales, i), scale_of(rows, scales, k), bias_of(bias, i), bias_of(bias, k)
    b0 = columns[r]
    if n == 1:
        d0, e0 = dots_of_rows(rows, two, x, (b0,), later)
        out[b0, i], out[b0, k] = d0 * p + u, e0 * q + v
        return
    b1 = columns[r + 1]
    if n == 2:
        d0, d1, e0, e1 = dots_of_rows(rows, two, x, (b0, b1), later)
    else:
        b2, b3 = columns[r + 2], columns[min(r + 3, columns.shape[0] - 1)]
        d0, d1, d2, d3, e0, e1, e2, e3 = dots_of_rows(rows, two, x, (b0, b1, b2, b3), later)
        out[b2, i], out[b3, i] = d2 * p + u, d3 * p + u
        out[b2, k], out[b3, k] = e2 * q + v, e3 * q + v
    out[b0, i], out[b1, i] = d0 * p + u, d1 * p + u
    out[b0, k], out[b1, k] = e0 * q + v, e1 * q + v


def _listed(which, at):  # type: ignore[no-untyped-def]
    """A row of a list; without a list, of all rows."""
    raise NotImplementedError


@overload(_listed, jit_options={"forceinline": True})
def _typed_listed(which, at):  # type: ignore[no-untyped-def]
    return (lambda which, at: at) if which in (None, types.none) else lambda which, at: which[at]


def _some_rows_times_some(out, rows, scales, bias, which, begin, end, last, x, columns, r, n):  # type: ignore[no-untyped-def]
    """`_row_times_some` of the begin-th to the end-th row of a list with the `last` one."""
    raise NotImplementedError


@overload(_some_rows_times_some, jit_options={"forceinline": True, "fastmath": FASTMATH})
def _typed_some_rows_times_some(out, rows, scales, bias, which, begin, end, last, x, columns, r, n):  # type: ignore[no-untyped-def]
    def one_by_one(out, rows, scales, bias, which, begin, end, last, x, columns, r, n):  # type: ignore[no-untyped-def]
        ahead = rows_ahead(rows)
        for at in range(begin, end):
            later = _listed(which, min(at + ahead, last))
            _row_times_some(out, rows, scales, bias, _listed(which, at), later, x, columns, r, n)

    def by_twos(out, rows, scales, bias, which, begin, end, last, x, columns, r, n):  # type: ignore[no-untyped-def]
        ahead = rows_ahead(rows)
        for at in range(begin, end, 2):  # of an odd number the last row twice
            two = _listed(which, at), _listed(which, min(at + 1, last))
            later = _listed(which, min(at + ahead, last)), _listed(which, min(at + ahead + 1, last))
            _two_rows_times_some(out, rows, scales, bias, two, later, x, columns, r, n)

    # Eight sums of two parts each fill half the registers of AVX-512, and all of AVX2.
    return one_by_one if WIDE < 4 or of_element(rows.dtype).in_blocks else by_twos


@njit(fastmath=FASTMATH)
def row_times(out, rows, scales, bias, i, later, x, columns):  # type: ignore[no-untyped-def]
    """out[b, i] = row i times x[b], scaled, + bias for the listed columns b; row `later` is fetched into a cache."""
    r = 0
    while r < columns.shape[0]:
        n = _columns_at_once(rows, columns.shape[0] - r)
        _row_times_some(out, rows, scales, bias, i, later, x, columns, r, n)
        r += n


def add_rows(out, rows, begin, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows, from column `begin` on, to out; row i times factors[i]. In blocks: from the first column."""
    raise NotImplementedError


@overload(add_rows)
def _typed_add_rows(out, rows, begin, which, factors):  # type: ignore[no-untyped-def]
    if of_element(rows.dtype).in_blocks:
        return lambda out, rows, begin, which, factors: _add_tiles(
            out.reshape(1, out.shape[0]), rows, which, factors.reshape(1, factors.shape[0])
        )
    return lambda out, rows, begin, which, factors: _add_plain_rows(out, rows, begin, which, factors)


@njit(fastmath=FASTMATH)
def _add_tiles(out, rows, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows in blocks, those of a tile at a time, to out[b]; row i times factors[b, i]."""
    r, n = 0, which.shape[0]
    while r < n:
        size = GROUPS[rows[which[r], 0] & (2**KIND_BITS - 1)]
        beyond, end = (which[r] // size + 1) * size, r + 1
        while end < n and which[end] < beyond:
            end += 1
        add_tile(out, rows, which[r:end], n - end, factors)
        r = end


@njit(fastmath=FASTMATH)
def _add_plain_rows(out, rows, begin, which, factors):  # type: ignore[no-untyped-def]
    """`add_rows` of rows that are not in blocks."""
    ahead = rows_ahead(rows)
    n = which.shape[0]
    fours = _side_by_side(which)
    for r in range(0, fours, 4):
        i0, i1, i2, i3 = which[r], which[r + 1], which[r + 2], which[r + 3]
        four = (factors[i0], factors[i1], factors[i2], factors[i3])
        add_scaled_rows(out, (0,), rows, begin, (i0, i1, i2, i3), four, four_of(which, r + ahead))
    for r in range(fours, n):
        i = which[r]
        add_scaled_rows(out, (0,), rows, begin, (i,), (factors[i],), (which[min(r + ahead, n - 1)],))


@njit(fastmath=FASTMATH)
def project(out, rows, scales, bias, x, columns, begin, end):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for a slice of rows, each read once for all columns b. Returns bytes read."""
    ahead = rows_ahead(rows)
    last = end - 1
    if x.shape[0] == 1:
        for i in range(begin, end):
            (d,) = dots_of_rows(rows, (i,), x, (0,), (min(i + ahead, last),))
            out[0, i] = d * scale_of(rows, scales, i) + bias_of(bias, i)
    else:
        project_listed(out, rows, scales, bias, x, columns, None, begin, end)
    return (end - begin) * row_bytes(rows)


@njit(fastmath=FASTMATH)
def project_inputs(out, rows, scales, bias, x, sequence, weight, threshold, which, begin, end):  # type: ignore[no-untyped-def]
    """out[b, i] = the inputs x[b] times column i + bias[i] for a slice of columns of input-major rows.

    Inputs are left out where |x[b, j]| weight[j] is below the threshold of b's sequence. Returns bytes read.
    """
    read = 0
    for b in range(x.shape[0]):
        n = 0
        for j in range(x.shape[1]):
            if abs(x[b, j]) * weight[j] >= threshold[sequence[b]]:
                which[n] = j
                n += 1
        y = out[b, begin:end]
        y[:] = 0
        add_rows(y, rows, begin, which[:n], x[b])
        for i in range(y.shape[0]):
            y[i] = y[i] * scale_of(rows, scales, begin + i) + bias[begin + i]
        read += n
    # Rows stay in a near cache from one column to the next: at most all are read.
    return min(read, x.shape[1]) * (end - begin) * rows.itemsize


@njit(fastmath=FASTMATH)
def project_listed(out, rows, scales, bias, x, columns, which, begin, end):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for the begin-th to the end-th listed row i, of all columns b."""
    for block in range(begin, end, TOGETHER):
        r = 0
        while r < columns.shape[0]:
            n = _columns_at_once(rows, columns.shape[0] - r)
            block_end = min(block + TOGETHER, end)
            _some_rows_times_some(out, rows, scales, bias, which, block, block_end, end - 1, x, columns, r, n)
            r += n


def add_listed(out, rows, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows to out[b] of all columns b, row i times factors[b, i]; a factor of zero adds nothing."""
    raise NotImplementedError


@overload(add_listed)
def _typed_add_listed(out, rows, which, factors):  # type: ignore[no-untyped-def]
    if of_element(rows.dtype).in_blocks:
        return lambda out, rows, which, factors: _add_tiles(out, rows, which, factors)
    return lambda out, rows, which, factors: _add_plain_listed(out, rows, which, factors)


@njit(fastmath=FASTMATH)
def _add_plain_listed(out, rows, which, factors):  # type: ignore[no-untyped-def]
    """`add_listed` of rows that are not in blocks."""
    ahead = rows_ahead(rows)
    batch, fours = out.shape[0], which.shape[0] - which.shape[0] % 4
    for block in range(0, fours, TOGETHER):
        b = 0
        while b < batch:
            n = _columns_at_once(rows, batch - b)
            for r in range(block, min(block + TOGETHER, fours), 4):
                i0, i1, i2, i3 = four = (which[r], which[r + 1], which[r + 2], which[r + 3])
                later = four_of(which, r + ahead)
                f = factors[b]
                own = (f[i0], f[i1], f[i2], f[i3])
                if n == 1:
                    add_scaled_rows(out, (b,), rows, 0, four, own, later)
                    continue
                f = factors[b + 1]
                two = own + (f[i0], f[i1], f[i2], f[i3])  # noqa: RUF005  # numba takes no starred tuples
                if n == 2:
                    add_scaled_rows(out, (b, b + 1), rows, 0, four, two, later)
                    continue
                last = min(b + 3, batch - 1)  # of three the third twice: each is loaded before any is stored
                p, q = factors[b + 2], factors[last]
                others = (p[i0], p[i1], p[i2], p[i3], q[i0], q[i1], q[i2], q[i3])
                add_scaled_rows(out, (b, b + 1, b + 2, last), rows, 0, four, two + others, later)
            b += n
    for r in range(fours, which.shape[0]):
        i = which[r]
        for b in range(batch):
            add_scaled_rows(out, (b,), rows, 0, (i,), (factors[b, i],), (i,))


@njit(fastmath=FASTMATH)
def normalise(out, x, weights, rms, eps):  # type: ignore[no-untyped-def]
    """RMSNorm or LayerNorm of a vector: weights [2, n] are weight and bias; `out` may be `x`."""
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
def copy_into(out, x):  # type: ignore[no-untyped-def]
    """out[:] = x, which numba itself compiles only where arrays can be allocated, as x might overlap out."""
    for j in range(x.shape[0]):
        out[j] = x[j]


@njit(fastmath=FASTMATH)
def rotate(x, rotary):  # type: ignore[no-untyped-def]
    """Rotary position embedding of one head, in place: pairs are (j, j + width / 2)."""
    cos, sin = rotary[0], rotary[1]
    half = cos.shape[0] // 2
    for j in range(half):
        a, b = x[j], x[j + half]
        x[j] = a * cos[j] - b * sin[j]
        x[j + half] = b * cos[j + half] + a * sin[j + half]


# -- of prompts, called from Python ------------------------------------------------------------------------------------


@kernel(nogil=True)
def widen_rows(out, rows, first, across):  # type: ignore[no-untyped-def]
    """out[k] = row first + k as float32, without scales of outputs; `across`: rows in blocks are of inputs."""
    for k in range(out.shape[0]):
        if across:
            row_across_into(out[k], rows, first + k)
        else:
            row_into(out[k], rows, first + k)


@kernel(nogil=True, fastmath=FASTMATH)
def normalise_rows(out, x, weights, rms, eps):  # type: ignore[no-untyped-def]
    """The norm of every row; `out` may be `x`."""
    for i in range(x.shape[0]):
        normalise(out[i], x[i], weights, rms, eps)
