"""A packed model as the kernels read it: arrays and numbers alone, which need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clada.cpu.kernels.arguments import Constants, Tensors
from clada.cpu.precision import PRECISIONS, Precision
from clada.methods.selection import Norms


@dataclass(frozen=True)
class Rotary:
    """Rotary embeddings whose frequencies are the same for every length of sequence, as `anatomy` lets no others pass.

    Attributes:
        frequencies: float32 [kinds, rotary width / 2], radians a position; kinds are types of layers.
        scaling: float32 [kinds], of cosines and sines.
    """

    frequencies: np.ndarray
    scaling: np.ndarray

    def rows(self, positions: Any) -> np.ndarray:
        """Cosines and sines of positions.

        Angles are products in float32, as transformers' modules compute them. Their cosines and sines are of float64,
        rounded: at most one unit in the last place from torch's, whose own depend on the machine's instructions.

        Args:
            positions: whole numbers [n].

        Returns:
            float32 [n, kinds, 2, rotary width].
        """
        angles = np.asarray(positions, np.float32)[:, None, None] * self.frequencies
        angles = np.concatenate([angles, angles], 2).astype(np.float64)
        rows = np.stack([np.cos(angles), np.sin(angles)], 2).astype(np.float32)
        return rows * self.scaling[:, None, None]


@dataclass(frozen=True)
class Weights(Norms):
    """A packed model for the kernels.

    Attributes:
        tensors: the weights.
        constants: what else the architecture says.
        dtype: name of the weights' precision.
        rotation: rotary embeddings; of no kinds where the model has none.
        memory: of matrices in blocks, by their names in `Tensors`, uint8 [bytes] that hold the rows; else empty.
    """

    tensors: Tensors
    constants: Constants
    dtype: str
    rotation: Rotary
    memory: dict[str, np.ndarray]

    @property
    def precision(self) -> Precision:
        """Of the weights."""
        return PRECISIONS[self.dtype]

    @property
    def embedding_rows(self) -> int:
        """How many tokens have an embedding; the tokenizer may know more, and the configuration say another number."""
        return len(self.tensors.embedding)

    def rotary(self, positions: Any) -> np.ndarray:
        """Cosines and sines of positions for the kernels, float32 [n, kinds, 2, rotary width]."""
        return self.rotation.rows(positions)
