"""The matrices of a layer as the products of many tokens take them: float32 for a BLAS, or tiles of whole numbers.

Weights that are stored as whole numbers are multiplied as such where the processor has an instruction for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from clada.cpu.blocks.kinds import KIND_BITS, KINDS, SHARED, UNIT, up
from clada.cpu.blocks.tiles import IN_ONE_INSTRUCTION, OUTPUTS, SIDE_BY_SIDE
from clada.cpu.kernels.rows import prepared_size, widen_rows
from clada.cpu.kernels.tiles import multiply_tiles, pack_inputs, unpack_tiles_across, unpack_tiles_along
from clada.cpu.precision import Precision

WIDENED = 2**17  # numbers of a matrix that a thread widens or unpacks at once

_SHORTEST_GROUP = min(kind.group for kind in KINDS)


class Wide(NamedTuple):
    """A matrix of a layer in float32, and what belongs to its outputs."""

    matrix: np.ndarray  # [inputs, outputs]
    scale: np.ndarray  # [outputs], or empty
    bias: np.ndarray  # [outputs]

    def prepared(self, x: np.ndarray) -> Any:
        """Inputs [B, inputs] as `times` takes them."""
        return x

    def times(self, x: Any) -> np.ndarray:
        """The outputs [B, outputs] of prepared inputs."""
        y: np.ndarray = x @ self.matrix
        if len(self.scale):
            y *= self.scale
        y += self.bias
        return y


class Packed(NamedTuple):
    """Inputs of `Tiles`, see `clada.cpu.kernels.tiles.pack_inputs`."""

    number: int
    inputs: np.ndarray


class Tiles(NamedTuple):
    """A matrix of a layer as whole numbers, see `clada.cpu.blocks.tiles`, and the bias of its outputs."""

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray
    bias: np.ndarray

    def prepared(self, x: np.ndarray) -> Any:
        """Inputs [B, inputs] as `times` takes them: rounded, which the matrices of one input share."""
        size = prepared_size(x.shape[1])
        inputs = np.empty((-(-len(x) // SIDE_BY_SIDE), SIDE_BY_SIDE * size), np.int16)
        pack_inputs(x, inputs, np.empty(size, np.int16))
        return Packed(len(x), inputs)

    def times(self, x: Any) -> np.ndarray:
        """The outputs [B, outputs] of prepared inputs."""
        y = np.empty((x.number, len(self.bias)), np.float32)
        multiply_tiles(y, x.inputs, *self, np.empty((SIDE_BY_SIDE, OUTPUTS), np.float32))
        return y


Matrix = Wide | Tiles

Work = list[Callable[[], None]]  # parts that threads may share


class Room(Protocol):
    """Memory that a matrix of every layer is made ready in, one after the other."""

    def of(self, rows: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[Matrix, Work]:
        """A layer's matrix as `clada.cpu.kernels.arguments.Tensors` has it, and the work to be done before its use."""
        ...


def room_for(precision: Precision, inputs: int, outputs: int, by_input: bool) -> Room:
    """Room for matrices of this precision and size, whose rows are of inputs or else of outputs."""
    kind = TileRoom if precision.coded and IN_ONE_INSTRUCTION else WideRoom
    return kind(precision, inputs, outputs, by_input)


class WideRoom:
    """`Room` for float32; see `room_for`."""

    def __init__(self, precision: Precision, inputs: int, outputs: int, by_input: bool) -> None:
        self.by_input = by_input
        shape = (inputs, outputs) if by_input else (outputs, inputs)
        self.buffer = np.empty(shape, np.float32) if precision.copied else None

    def of(self, rows: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[Wide, Work]:
        """Widened into the buffer; what is float32 as it is."""
        work: Work = []
        if self.buffer is not None:
            some = max(1, WIDENED // self.buffer.shape[1])
            work = [
                partial(widen_rows, self.buffer[i : i + some], rows, i, self.by_input)
                for i in range(0, len(self.buffer), some)
            ]
            rows = self.buffer
        return Wide(rows if self.by_input else rows.T, scale, bias), work


class TileRoom:
    """`Room` for tiles; see `room_for`."""

    def __init__(self, precision: Precision, inputs: int, outputs: int, by_input: bool) -> None:
        self.inputs, self.outputs, self.by_input = up(inputs, UNIT), up(outputs, UNIT), by_input
        self.in_blocks, self.tiles = precision.in_blocks, up(outputs, OUTPUTS) // OUTPUTS
        self.codes = np.empty((self.tiles, self.inputs // 2, OUTPUTS * 2), np.int16)
        self.scales = np.empty(self.tiles * OUTPUTS * self.inputs // _SHORTEST_GROUP, np.float32)
        self.minima = np.empty(self.tiles * OUTPUTS * self.inputs // SHARED, np.float32)

    def of(self, rows: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[Tiles, Work]:
        """Unpacked into the tiles."""
        group, minimum = SHARED, False
        if self.in_blocks:
            kinds = [KINDS[k] for k in np.unique(rows[:, 0] & (2**KIND_BITS - 1))]  # of queries, keys, values
            group, minimum = min(kind.group for kind in kinds), any(kind.minimum for kind in kinds)
        scales = self._of_groups(self.scales, self.inputs // group)
        minima = self._of_groups(self.minima, self.inputs // SHARED if minimum else 0)
        tiles = Tiles(self.codes, scales, minima, bias)
        if self.by_input:
            some, count, unpack = up(max(1, WIDENED // self.outputs), SHARED), self.inputs, unpack_tiles_across
            room, numbers = (2, self.outputs), (2, self.outputs)
        else:
            some, count, unpack = max(1, WIDENED // (self.inputs * OUTPUTS)), self.tiles, unpack_tiles_along
            room, numbers = (OUTPUTS, self.inputs), (1, self.inputs // 8)

        def some_of_them(begin: int) -> None:
            memory = np.empty(room, np.int16), np.empty(numbers, np.float32)
            unpack(self.codes, scales, minima, rows, scale, begin, min(begin + some, count), *memory)

        return tiles, [partial(some_of_them, begin) for begin in range(0, count, some)]

    def _of_groups(self, numbers: np.ndarray, groups: int) -> np.ndarray:
        return numbers[: self.tiles * groups * OUTPUTS].reshape(self.tiles, groups, OUTPUTS)
