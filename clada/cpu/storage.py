"""Matrices stored by rows at the precision they are decoded at, and transformers' layers on top of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from clada.system.machine import PAGE, aligned

STORED = {"float32": np.float32, "bfloat16": np.int16, "int8": np.int8}  # what arrays hold; bfloat16 is none of numpy's

DTYPES = tuple(STORED)

WIDEN_AT_ONCE = 2**24  # elements; a whole output head as float32 can be larger than the model


def _room(dtype: str, *shape: int) -> torch.Tensor:
    """An uninitialised tensor for weights, whose pages torch's threads asked for side by side.

    A virtual machine whose host took back what was free gets new memory at 0.4 GB/s in one thread: packing SmolLM2-135M
    in float32 takes 0.95 s there when pages are asked for as they are filled, 0.75 s with two threads.
    """
    array = aligned(shape, np.dtype(STORED[dtype]))
    pages, threads = array.reshape(-1).view(np.uint8)[::PAGE], torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(0), np.array_split(pages, threads)))
    return torch.from_numpy(array).view(getattr(torch, dtype))


@dataclass(frozen=True)
class Rows:
    """A matrix stored by rows, each read whole or not at all.

    Attributes:
        values: [..., rows, columns] in float32, bfloat16 or int8.
        scale: float32 of int8 values, one per output of the matrix; None for the others.
        transposed: outputs are columns, not rows. Massive activations are a few outputs of the down-projection that
            dwarf the others: a scale across outputs would round the others away (a divergence of 0.06 nats instead
            of 0.002 on SmolLM2-135M).
    """

    values: torch.Tensor
    scale: torch.Tensor | None
    transposed: bool = False

    @classmethod
    def empty(cls, dtype: str, *shape: int, transposed: bool = False) -> Rows:
        """Room for a matrix; the last two dimensions are rows and columns."""
        outputs = (*shape[:-2], shape[-1] if transposed else shape[-2])
        scale = torch.empty(outputs) if dtype == "int8" else None
        return cls(_room(dtype, *shape), scale, transposed)

    def __getitem__(self, index: Any) -> Rows:
        return Rows(self.values[index], None if self.scale is None else self.scale[index], self.transposed)

    def put(self, matrix: torch.Tensor) -> None:
        """Store a float32 [rows, columns]; int8 rounds to 127 steps of the output's largest weight."""
        if self.scale is None:
            self.values.copy_(matrix)
            return
        inputs = 0 if self.transposed else 1
        self.scale.copy_(matrix.abs().amax(inputs) / 127)
        step = self.scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(inputs)
        self.values.copy_((matrix / step).round_())

    def wide(self, index: Any = slice(None)) -> torch.Tensor:
        """Rows as float32, without a copy where that is what they are."""
        values = self.values[index].float()
        if self.scale is None:
            return values
        return values * (self.scale if self.transposed else self.scale[index][..., None])

    @property
    def array(self) -> np.ndarray:
        """For the kernels: bfloat16 as uint16."""
        if self.values.dtype == torch.bfloat16:
            return self.values.view(torch.int16).numpy().view(np.uint16)
        return self.values.numpy()

    @property
    def scales(self) -> np.ndarray:
        """For the kernels: empty, of as many dimensions, where there are none."""
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
        block = n if rows.values.dtype == torch.float32 else max(1, WIDEN_AT_ONCE // width)
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
