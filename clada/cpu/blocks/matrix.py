"""Matrices in blocks: from float32 or from a GGUF file's bytes to rows of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clada.cpu.blocks.kinds import BY_NAME, KIND_BITS, STEPPED, UNIT, BlockKind, up


@dataclass(frozen=True)
class Coded:
    """A matrix as codes and scales.

    Attributes:
        kind: of its blocks.
        codes: uint8, or int8 of 8 bits, [outputs, inputs filled up to whole units].
        scales: [outputs, groups, 1 or 2], a scale and perhaps a minimum: float16, or int8 numbers of steps.
        inputs: without those that were filled up.
        steps: float16 [outputs, inputs / 256, 1 or 2], else none; that of the minimum is negative.
    """

    kind: BlockKind
    codes: np.ndarray
    scales: np.ndarray
    inputs: int
    steps: np.ndarray | None = None


def coded(matrix: np.ndarray, name: str) -> Coded:
    """Round a float32 matrix [outputs, inputs] to Q4_1, from the least to the most of each group, or to Q8_0."""
    kind, outputs = BY_NAME[name], len(matrix)
    inputs = up(matrix.shape[1], UNIT)
    filled = _filled(matrix, 1, inputs).reshape(outputs, -1, kind.group)
    if kind.minimum:
        least = filled.min(2, keepdims=True).astype(np.float16)
        scale = ((filled.max(2, keepdims=True) - least.astype(np.float32)) / 15).astype(np.float16)
        numbers, low, high = np.concatenate([scale, least], 2), 0, 15
    else:
        scale = (np.abs(filled).max(2, keepdims=True) / 127).astype(np.float16)
        numbers, low, high = scale, -127, 127
        least = np.zeros_like(scale)
    step = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    codes = np.rint((filled - least.astype(np.float32)) / step).clip(low, high)
    codes = codes.reshape(outputs, inputs).astype(np.int8 if kind.bits == 8 else np.uint8)
    return Coded(kind, codes, numbers, matrix.shape[1])


def rows_along(matrix: Coded) -> np.ndarray:
    """Rows of outputs, uint8 [outputs, bytes]."""
    kind, outputs = matrix.kind, len(matrix.codes)
    codes, scales = _whole_units(matrix)
    parts = [_code_bytes(codes, kind, np.uint16), _bytes(scales.transpose(0, 2, 1), outputs)]
    if matrix.steps is not None:
        parts.append(_bytes(matrix.steps.transpose(0, 2, 1), outputs))
    return np.concatenate(parts, 1)


def rows_across(matrix: Coded) -> np.ndarray:
    """Rows of inputs, uint8 [bytes]; see `starts_across`."""
    kind = matrix.kind
    outputs = up(len(matrix.codes), UNIT)

    def by_input(array: np.ndarray) -> np.ndarray:  # [outputs, n, ...] to [n, ..., filled outputs]
        return np.ascontiguousarray(np.moveaxis(_filled(array, 0, outputs), 0, -1))

    by_output, scales = _whole_units(matrix)
    codes = _code_bytes(by_input(by_output), kind, np.uint32)
    tiles = len(codes) // kind.group
    tile = np.concatenate([_bytes(by_input(scales), tiles), codes.reshape(tiles, -1)], 1)
    if matrix.steps is None:
        return tile.reshape(-1)
    steps = _bytes(by_input(matrix.steps), matrix.steps.shape[1])
    return np.concatenate([steps, tile.reshape(len(steps), -1)], 1).reshape(-1)


def starts_along(kind: BlockKind, inputs: int, outputs: int) -> tuple[np.ndarray, int]:
    """Where the rows of `rows_along` begin, int64 [outputs], bytes from its beginning, and how many bytes it has."""
    size = kind.along_bytes(up(inputs, kind.filled))
    return np.arange(outputs) * size, outputs * size


def starts_across(kind: BlockKind, inputs: int, outputs: int) -> tuple[np.ndarray, int]:
    """The same of `rows_across`, int64 [inputs]."""
    outputs, i = up(outputs, UNIT), np.arange(inputs)
    steps = 2 * kind.each * outputs * (i // STEPPED + 1) if kind.stepped else 0
    starts = (
        steps
        + i // kind.group * kind.tile_bytes(outputs)
        + outputs * kind.scale_bytes
        + i % kind.group * kind.code_bytes(outputs)
    )
    return starts, kind.across_bytes(up(inputs, kind.filled), outputs)


def before_across(matrix: Coded) -> int:
    """Bytes of `rows_across` before its first row."""
    kind, outputs = matrix.kind, up(len(matrix.codes), UNIT)
    return outputs * (kind.scale_bytes + (2 * kind.each if kind.stepped else 0))


def at_addresses(starts: np.ndarray, memory: np.ndarray, sign: int = 1) -> np.ndarray:
    """Starts of rows in some memory as addresses, or with the sign -1 the other way.

    Both are times 2 ** KIND_BITS, plus the number of the kind.
    """
    return starts + sign * (memory.ctypes.data << KIND_BITS)


def _bytes(array: np.ndarray, rows: int) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8).reshape(rows, -1)


def _filled(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """An array with zeros behind it along an axis."""
    return np.pad(array, [(0, size - array.shape[axis]) if k == axis else (0, 0) for k in range(array.ndim)])


def _whole_units(matrix: Coded) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of inputs that are filled up."""
    inputs = up(matrix.codes.shape[1], matrix.kind.filled)
    return _filled(matrix.codes, 1, inputs), _filled(matrix.scales, 1, inputs // matrix.kind.group)


def _code_bytes(codes: np.ndarray, kind: BlockKind, words: type[np.unsignedinteger[Any]]) -> np.ndarray:
    """Codes [rows, n] as `codes` and `high` of rows, uint8."""
    if kind.bits == 8:
        return codes.view(np.uint8)
    low = _in_words(codes & 15, 4, words)
    if not kind.high:
        return low
    beyond = _filled(codes >> 4, 1, up(codes.shape[1], kind.high))
    return np.concatenate([low, _in_words(beyond, kind.bits - 4, words)], 1)


def _in_words(numbers: np.ndarray, bits: int, words: type[np.unsignedinteger[Any]]) -> np.ndarray:
    """Numbers [rows, n] of some bits in 32 bytes of words, the first ones in the lowest bits of every word; uint8."""
    lanes, each = 32 // np.dtype(words).itemsize, np.dtype(words).itemsize * 8 // bits
    split = numbers.reshape(len(numbers), -1, each, lanes).astype(words)
    packed = np.bitwise_or.reduce(split << (bits * np.arange(each, dtype=words))[:, None], 2)
    return _bytes(packed.astype(np.dtype(words).newbyteorder("<")), len(numbers))


# -- GGUF's types, as ggml-quants.c lays them out ----------------------------------------------------------------------


def coded_of_gguf(data: np.ndarray, name: str) -> Coded:
    """The codes and scales in a GGUF file's bytes [outputs, bytes of a row], of the type of that name.

    Raises:
        KeyError: no kind of that name.
    """
    kind = BY_NAME[name]
    outputs = len(data)
    if kind.stepped:
        return (_of_q6_k if kind.bits == 6 else _of_q45_k)(kind, data, outputs)
    head = 2 * kind.each
    block = head + (4 if kind.bits == 5 else 0) + (32 if kind.bits == 8 else 16)
    blocks = data.reshape(outputs, -1, block)
    scales = np.ascontiguousarray(blocks[:, :, :head]).view(np.float16)
    if kind.bits == 8:
        codes = np.ascontiguousarray(blocks[:, :, head:]).view(np.int8).reshape(outputs, -1)
        return Coded(kind, codes, scales, codes.shape[1])
    packed = blocks[:, :, -16:]
    codes = np.concatenate([packed & 15, packed >> 4], 2)
    if kind.bits == 5:
        codes |= np.unpackbits(blocks[:, :, head : head + 4], axis=2, bitorder="little") << 4
    codes = codes.reshape(outputs, -1)
    return Coded(kind, codes, scales, codes.shape[1])


def _of_q45_k(kind: BlockKind, data: np.ndarray, outputs: int) -> Coded:
    """Q4_K and Q5_K: steps, 8 scales and minima of 6 bits in 12 bytes, fifth bits, codes; minima are subtracted."""
    blocks = data.reshape(outputs, -1, 144 if kind.bits == 4 else 176)
    steps = np.ascontiguousarray(blocks[:, :, :4]).view(np.float16) * np.array([1, -1], np.float16)
    a, b, c = (blocks[:, :, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([a & 63, (c & 15) | a >> 6 << 4], 2)
    least = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], 2)
    packed = blocks[:, :, -128:].reshape(outputs, -1, 4, 1, 32)
    low = np.concatenate([packed & 15, packed >> 4], 3).reshape(outputs, -1, 8, 32)
    if kind.bits == 5:
        fifth = blocks[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
        low |= (fifth & 1) << 4
    scales = np.stack([scale, least], 3).reshape(outputs, -1, 2).view(np.int8)
    codes = low.reshape(outputs, -1)
    return Coded(kind, codes, scales, codes.shape[1], steps)


def _of_q6_k(kind: BlockKind, data: np.ndarray, outputs: int) -> Coded:
    """Q6_K: lower four bits of 256 codes, upper two, 16 scales, the step."""
    blocks = data.reshape(outputs, -1, 210)
    packed = blocks[:, :, :128].reshape(outputs, -1, 2, 1, 64)
    low = np.concatenate([packed & 15, packed >> 4], 3).reshape(outputs, -1, 2, 4, 32)
    shifts = 2 * np.arange(4, dtype=np.uint8)[:, None]
    high = blocks[:, :, 128:192].reshape(outputs, -1, 2, 1, 32) >> shifts & 3
    scales = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8).reshape(outputs, -1, 1)
    steps = np.ascontiguousarray(blocks[:, :, 208:]).view(np.float16)
    codes = (low | high << 4).reshape(outputs, -1)
    return Coded(kind, codes, scales, codes.shape[1], steps)
