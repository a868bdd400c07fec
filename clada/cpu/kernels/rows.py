"""Products of rows of a matrix with inputs, each row read whole or not at all, and what else works on vectors."""

from __future__ import annotations

import numpy as np
from numba import njit

from clada.cpu.kernels.scalars import FASTMATH, bias_of, scale_of, widen
from clada.cpu.kernels.vectors import add_scaled_rows, dots_of_rows

AHEAD = 7 * 1024  # bytes between the row that is used and the one that is fetched into a cache

FIRST = 12  # rows that are fetched ahead when a part begins, terms of the screen before they are added

WAITING = 64  # rows that are fetched ahead at most, while there is nothing else to do


@njit
def row_bytes(rows):  # type: ignore[no-untyped-def]
    """Bytes of a stored row; int8's scales, four bytes a row, are not counted."""
    return rows.shape[1] * rows.itemsize


@njit(inline="always")
def rows_ahead(rows):  # type: ignore[no-untyped-def]
    """Rows between the one that is used and the one that is fetched into a cache."""
    return max(4, AHEAD // row_bytes(rows))  # four are read side by side


@njit(inline="always")
def four_from(i, last):  # type: ignore[no-untyped-def]
    """Four numbers from i on, the last one again where there are fewer."""
    return min(i, last), min(i + 1, last), min(i + 2, last), min(i + 3, last)


@njit(inline="always")
def four_of(which, r):  # type: ignore[no-untyped-def]
    """Four entries from the r-th on, the last one again where there are fewer."""
    r0, r1, r2, r3 = four_from(r, which.shape[0] - 1)
    return which[r0], which[r1], which[r2], which[r3]


@njit(inline="always")
def eight_of(which, r):  # type: ignore[no-untyped-def]
    """Eight entries from the r-th on, the last one again where there are fewer."""
    return four_of(which, r) + four_of(which, r + 4)


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
def dot(row, x):  # type: ignore[no-untyped-def]
    """A stored row times a float32 vector."""
    s = np.float32(0)
    for j in range(row.shape[0]):
        s += widen(row[j]) * x[j]
    return s


@njit(fastmath=FASTMATH)
def project_rows(out, rows, scales, bias, x, which):  # type: ignore[no-untyped-def]
    """out[i] = rows[i] x[0] + bias[i] for the listed rows i, of one sequence."""
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


@njit(fastmath=FASTMATH)
def dots_with_sequences(out, rows, scale, bias, i, ahead, x, which, n):  # type: ignore[no-untyped-def]
    """out[b, i] = row i times x[b] for the n listed sequences b; row `ahead` comes later."""
    r = 0
    while r + 4 <= n:
        b0, b1, b2, b3 = which[r], which[r + 1], which[r + 2], which[r + 3]
        d0, d1, d2, d3 = dots_of_rows(rows, (i,), x, (b0, b1, b2, b3), (ahead,))
        out[b0, i], out[b1, i] = d0 * scale + bias, d1 * scale + bias
        out[b2, i], out[b3, i] = d2 * scale + bias, d3 * scale + bias
        r += 4
    while r < n:
        b = which[r]
        (d,) = dots_of_rows(rows, (i,), x, (b,), (ahead,))
        out[b, i] = d * scale + bias
        r += 1


@njit(fastmath=FASTMATH)
def four_rows_times_all(out, rows, scales, bias, x, four, ahead):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for four rows i and all sequences b.

    Two sequences at a time, so that a row is widened to float32 once for both.
    """
    batch = x.shape[0]
    i0, i1, i2, i3 = four
    a0, a1 = scale_of(rows, scales, i0), scale_of(rows, scales, i1)
    a2, a3 = scale_of(rows, scales, i2), scale_of(rows, scales, i3)
    c0, c1, c2, c3 = bias_of(bias, i0), bias_of(bias, i1), bias_of(bias, i2), bias_of(bias, i3)
    for b in range(0, batch - 1, 2):
        d0, e0, d1, e1, d2, e2, d3, e3 = dots_of_rows(rows, four, x, (b, b + 1), ahead)
        out[b, i0], out[b, i1], out[b, i2], out[b, i3] = d0 * a0 + c0, d1 * a1 + c1, d2 * a2 + c2, d3 * a3 + c3
        out[b + 1, i0], out[b + 1, i1] = e0 * a0 + c0, e1 * a1 + c1
        out[b + 1, i2], out[b + 1, i3] = e2 * a2 + c2, e3 * a3 + c3
    if batch % 2:
        b = batch - 1
        d0, d1, d2, d3 = dots_of_rows(rows, four, x, (b,), ahead)
        out[b, i0], out[b, i1], out[b, i2], out[b, i3] = d0 * a0 + c0, d1 * a1 + c1, d2 * a2 + c2, d3 * a3 + c3


@njit(fastmath=FASTMATH)
def add_rows(out, rows, begin, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows, from column `begin` on, to out; row i times factors[i]."""
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
def project(out, rows, scales, bias, x, begin, end):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for a slice of rows, each read once for all sequences. Returns bytes read."""
    ahead = rows_ahead(rows)
    last = end - 1
    if x.shape[0] == 1:
        for i in range(begin, end):
            (d,) = dots_of_rows(rows, (i,), x, (0,), (min(i + ahead, last),))
            out[0, i] = d * scale_of(rows, scales, i) + bias_of(bias, i)
    else:
        for i in range(begin, end, 4):  # a row that comes twice gets the same products again
            four_rows_times_all(out, rows, scales, bias, x, four_from(i, last), four_from(i + ahead, last))
    return (end - begin) * row_bytes(rows)


@njit(fastmath=FASTMATH)
def project_inputs(out, rows, scales, bias, x, weight, threshold, which, begin, end):  # type: ignore[no-untyped-def]
    """out[b, i] = the inputs x[b] times column i + bias[i] for a slice of columns of input-major rows.

    Inputs are left out where |x[b, j]| weight[j] is below the sequence's threshold. Returns bytes read.
    """
    read = 0
    for b in range(x.shape[0]):
        n = 0
        for j in range(x.shape[1]):
            if abs(x[b, j]) * weight[j] >= threshold[b]:
                which[n] = j
                n += 1
        y = out[b, begin:end]
        y[:] = 0
        add_rows(y, rows, begin, which[:n], x[b])
        for i in range(y.shape[0]):
            y[i] = y[i] * scale_of(rows, scales, begin + i) + bias[begin + i]
        read += n
    # Rows stay in a near cache from one sequence to the next: at most all are read.
    return min(read, x.shape[1]) * (end - begin) * rows.itemsize


@njit(fastmath=FASTMATH)
def project_listed(out, rows, scales, bias, x, which):  # type: ignore[no-untyped-def]
    """out[b, i] = rows[i] x[b] + bias[i] for the listed rows i, of all sequences."""
    ahead = rows_ahead(rows)
    for r in range(0, which.shape[0], 4):  # a row that comes twice gets the same products again
        four_rows_times_all(out, rows, scales, bias, x, four_of(which, r), four_of(which, r + ahead))


@njit(fastmath=FASTMATH)
def add_listed(out, rows, which, factors):  # type: ignore[no-untyped-def]
    """Add the listed rows to out[b] of all sequences b, row i times factors[b, i]."""
    ahead = rows_ahead(rows)
    batch, fours = out.shape[0], which.shape[0] - which.shape[0] % 4
    for r in range(0, fours, 4):
        i0, i1, i2, i3 = four = (which[r], which[r + 1], which[r + 2], which[r + 3])
        later = four_of(which, r + ahead)
        for b in range(0, batch - 1, 2):
            f, g = factors[b], factors[b + 1]
            eight = (f[i0], f[i1], f[i2], f[i3], g[i0], g[i1], g[i2], g[i3])
            add_scaled_rows(out, (b, b + 1), rows, 0, four, eight, later)
        if batch % 2:
            f = factors[batch - 1]
            add_scaled_rows(out, (batch - 1,), rows, 0, four, (f[i0], f[i1], f[i2], f[i3]), later)
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
