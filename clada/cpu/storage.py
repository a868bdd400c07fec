"""Matrices stored by rows at the precision they are decoded at, and transformers' layers on top of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

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


class PackedLinear(nn.Module):
    """A linear layer on packed rows.

    Args:
        rows: the weight as [outputs, inputs], or as [inputs, outputs] if transposed.
        bias: [outputs] or None.
    """

    def __init__(self, rows: Rows, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.transposed = rows.transposed
        self.values: torch.Tensor
        self.scale: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.register_buffer("values", rows.values)
        self.register_buffer("scale", rows.scale)
        self.register_buffer("bias", bias)

    @property
    def rows(self) -> Rows:
        """The weight."""
        return Rows(self.values, self.scale, self.transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply: x float32 [..., inputs] to [..., outputs]."""
        rows = self.rows
        n, width = rows.values.shape
        if self.transposed:
            return nn.functional.linear(x, rows.wide().t(), self.bias)
        block = n if not rows.precision.copied else max(1, WIDEN_AT_ONCE // width)
        parts = [nn.functional.linear(x, rows.wide(slice(i, i + block))) for i in range(0, n, block)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if self.bias is None else y + self.bias


class PackedEmbedding(nn.Module):
    """Token embeddings from packed rows.

    Args:
        rows: [V, E].
        scale: what the model multiplies embeddings with.
    """

    def __init__(self, rows: Rows, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.table = PackedLinear(rows)

    @property
    def weight(self) -> torch.Tensor:
        """For transformers, which asks an embedding for its dtype and device."""
        return self.table.values

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [...] to float32 [..., E]."""
        return self.table.rows.wide(ids) * self.scale
