"""Matrices stored by rows at the precision they are decoded at, and transformers' layers on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from clada.cpu.blocks.kinds import BY_NAME, KIND_BITS, KINDS
from clada.cpu.blocks.matrix import (
    Coded,
    at_addresses,
    before_across,
    rows_across,
    rows_along,
    starts_across,
    starts_along,
)
from clada.cpu.kernels.rows import widen_rows
from clada.cpu.precision import Precision, of_tensor
from clada.system.machine import PAGE, aligned

WIDEN_AT_ONCE = 2**24  # elements; a whole output head as float32 can be larger than the model


def _empty_pages(precision: Precision, *shape: int) -> torch.Tensor:
    """An uninitialised tensor for weights, whose pages are touched by as many threads as torch has.

    New memory can be slow to come, and comes faster to several threads (benchmarks/selection-log.md has the times).
    """
    array = aligned((*shape[:-1], shape[-1] * precision.itemsize), np.dtype(np.uint8))
    pages, threads = array.reshape(-1)[::PAGE], torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(0), np.array_split(pages, threads)))
    return torch.from_numpy(array).view(precision.storage)


@dataclass(frozen=True)
class Rows:
    """A matrix stored by rows, each read whole or not at all.

    Attributes:
        values: [..., rows, columns] as the precision stores them.
        scale: float32 [..., outputs] where the precision has scales, else None.
        transposed: outputs are columns, not rows.
    """

    values: torch.Tensor
    scale: torch.Tensor | None
    transposed: bool = False

    @classmethod
    def empty(cls, precision: Precision, *shape: int, transposed: bool = False) -> Rows:
        """Uninitialised matrices; the last two dimensions are rows and columns."""
        scale = precision.scales(*shape[:-2], shape[-1] if transposed else shape[-2])
        return cls(_empty_pages(precision, *shape), scale, transposed)

    @property
    def precision(self) -> Precision:
        """What the values are stored at."""
        return of_tensor(self.values)

    def __getitem__(self, index: Any) -> Rows:
        return Rows(self.values[index], None if self.scale is None else self.scale[index], self.transposed)

    def outputs(self, part: slice) -> Rows:
        """Some of the outputs."""
        scale = None if self.scale is None else self.scale[part]
        return Rows(self.values[:, part] if self.transposed else self.values[part], scale, self.transposed)

    def put(self, matrix: torch.Tensor) -> None:
        """Store a float32 [rows, columns]."""
        self.precision.pack(matrix, self)

    def wide(self, index: Any = slice(None)) -> torch.Tensor:
        """Rows as float32, without a copy where that is what they are."""
        scale = self.scale
        if scale is not None and not self.transposed:
            scale = scale[index][..., None]
        return self.precision.widen(self.values[index], scale)

    @property
    def array(self) -> np.ndarray:
        """The values for the kernels."""
        return self.precision.array(self.values)

    @property
    def scales(self) -> np.ndarray:
        """The scales for the kernels; empty, of as many dimensions, where there are none."""
        if self.scale is None:
            return np.empty((*self.values.shape[:-2], 0), np.float32)
        return self.scale.numpy()


@dataclass(frozen=True)
class BlockRows:
    """A matrix in blocks, or one of every layer, stored by rows (`clada.cpu.blocks`).

    Attributes:
        memory: uint8 [bytes], of all matrices.
        starts: int64 [..., rows, 1], where rows begin in it, times 16, plus the number of their kind.
        width: weights of a row.
        transposed: outputs are columns, not rows.
    """

    memory: np.ndarray
    starts: np.ndarray
    width: int
    transposed: bool = False

    scale: ClassVar[None] = None

    @classmethod
    def empty(cls, layers: Sequence[Sequence[tuple[str, int]]], inputs: int, *, transposed: bool = False) -> BlockRows:
        """Room for the matrices of some layers.

        Args:
            layers: of every one, the kind and the outputs of parts that lie below each other; one part if transposed.
            inputs: of all.
            transposed: store them by inputs.
        """
        at, starts, width = 0, [], 0
        for parts in layers:
            of_layer = []
            for name, outputs in parts:
                kind = BY_NAME[name]
                begins, size = (
                    starts_across(kind, inputs, outputs) if transposed else starts_along(kind, inputs, outputs)
                )
                of_layer.append((at + begins << KIND_BITS) + KINDS.index(kind))
                at += size
            starts.append(np.concatenate(of_layer))
            width = parts[0][1] if transposed else inputs
        return cls(aligned((at,), np.dtype(np.uint8)), np.stack(starts)[..., None], width, transposed)

    def put(self, parts: Sequence[Coded]) -> None:
        """Store the matrix of a layer, whose parts lie below each other."""
        row = 0
        for part in parts:
            rows = rows_across(part) if self.transposed else rows_along(part)
            begin = int(self.starts[row, 0] >> KIND_BITS) - (before_across(part) if self.transposed else 0)
            self.memory[begin : begin + rows.size] = rows.reshape(-1)
            row += len(part.codes)

    def __getitem__(self, index: Any) -> BlockRows:
        return BlockRows(self.memory, self.starts[index], self.width, self.transposed)

    def outputs(self, part: slice) -> BlockRows:
        """Some of the outputs; not of a matrix that is transposed."""
        return self[part]

    @property
    def array(self) -> np.ndarray:
        """Where the kernels find the rows; valid as long as the memory lives."""
        return at_addresses(self.starts, self.memory)

    @property
    def scales(self) -> np.ndarray:
        """None: they are among the codes."""
        return np.empty((*self.starts.shape[:-2], 0), np.float32)

    def wide(self, index: Any = slice(None)) -> torch.Tensor:
        """Rows as float32."""
        rows = self.array
        if not isinstance(index, slice):
            if self.transposed:
                return self.wide()[index]
            rows, index = rows[np.asarray(index).reshape(-1)], slice(None)
        first, end, _ = index.indices(len(rows))
        out = torch.empty(max(0, end - first), self.width)
        widen_rows(out.numpy(), rows, first, self.transposed)
        return out


AnyRows = Rows | BlockRows


class PackedLinear(nn.Module):
    """A linear layer on packed rows.

    Args:
        rows: the weight as [outputs, inputs], or as [inputs, outputs] if transposed.
        bias: [outputs] or None.
    """

    def __init__(self, rows: AnyRows, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.transposed = rows.transposed
        self.values: torch.Tensor
        self.scale: torch.Tensor | None
        self.bias: torch.Tensor | None
        self._blocks = rows if isinstance(rows, BlockRows) else None
        self.register_buffer("values", torch.empty(0) if isinstance(rows, BlockRows) else rows.values)
        self.register_buffer("scale", rows.scale)
        self.register_buffer("bias", bias)

    @property
    def rows(self) -> AnyRows:
        """The weight."""
        return self._blocks or Rows(self.values, self.scale, self.transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply: x float32 [..., inputs] to [..., outputs]."""
        rows = self.rows
        if self.transposed:
            return nn.functional.linear(x, rows.wide().t(), self.bias)
        n, width = (len(rows.starts), rows.width) if isinstance(rows, BlockRows) else rows.values.shape
        copied = isinstance(rows, BlockRows) or rows.precision.copied
        block = max(1, WIDEN_AT_ONCE // width) if copied else n
        parts = [nn.functional.linear(x, rows.wide(slice(i, i + block))) for i in range(0, n, block)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if self.bias is None else y + self.bias


class PackedEmbedding(nn.Module):
    """Token embeddings from packed rows.

    Args:
        rows: [V, E].
        scale: what the model multiplies embeddings with.
    """

    def __init__(self, rows: AnyRows, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.table = PackedLinear(rows)

    @property
    def weight(self) -> torch.Tensor:
        """For transformers, which asks an embedding for its dtype and device."""
        return self.table.values

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [...] to float32 [..., E]."""
        rows = self.table.rows
        wide = rows.wide(ids)
        return wide.view(*ids.shape, -1) * self.scale
