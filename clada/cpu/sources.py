"""Where the blocks of a model's matrices come from: rounded from float32, or from the model's GGUF file."""

from __future__ import annotations

from typing import Any, Protocol

import gguf
import numpy as np
import torch

from clada.cpu.blocks.kinds import BY_NAME
from clada.cpu.blocks.matrix import Coded, coded, coded_of_gguf
from clada.cpu.precision import Precision
from clada.errors import ModelError
from clada.models.anatomy import Anatomy, Projection
from clada.models.gguf_blocks import Stored, StoredMatrices
from clada.models.open import OF_FILE


class Source(Protocol):
    """Whoever gives matrices in blocks."""

    def kind(self, projection: Projection) -> str:
        """The name of the kind of a matrix' blocks."""

    def coded(self, projection: Projection) -> Coded:
        """A matrix in blocks."""


class Rounded:
    """Blocks of four bits with a scale and a minimum; the embedding and the output head in eight bits.

    In four bits the head would cost more loss than all layers together. llama.cpp's files have it in more bits too.

    Args:
        parts: of the model.
    """

    def __init__(self, parts: Anatomy) -> None:
        self._ends: list[Any] = [parts.embedding, parts.head]

    def kind(self, projection: Projection) -> str:
        """As `Source.kind`."""
        return "Q8_0" if any(projection.module is end for end in self._ends) else "Q4_1"

    def coded(self, projection: Projection) -> Coded:
        """As `Source.coded`."""
        return coded(projection.matrix.float().numpy(), self.kind(projection))


class OfFile:
    """The blocks of the GGUF file that a model was opened from.

    Args:
        model: whose weights are those of the file.

    Raises:
        ModelError: as for `StoredMatrices`.
    """

    def __init__(self, model: Any) -> None:
        self._matrices = StoredMatrices(model)

    def kind(self, projection: Projection) -> str:
        """As `Source.kind`.

        Raises:
            ModelError: the file has the matrix in a type that is none of the kinds.
        """
        return self._stored(projection).kind

    def coded(self, projection: Projection) -> Coded:
        """As `Source.coded`.

        Raises:
            ModelError: the model's weights are not the file's.
        """
        stored = self._stored(projection)
        order = projection.of(torch.from_numpy(stored.order)).numpy()
        # The first and the last row tell another order, and weights that were changed or trained as a whole.
        for row in (0, len(order) - 1):
            own = projection.matrix[row].float().numpy()
            if not np.array_equal(_dequantised(stored, order[row]), own):
                raise ModelError(
                    f"the model's weights are not those of {stored.name} in {self._matrices.path.name}; use another "
                    "dtype"
                )
        data = stored.data if np.array_equal(order, np.arange(len(stored.data))) else stored.data[order]
        return coded_of_gguf(data, stored.kind)

    def _stored(self, projection: Projection) -> Stored:
        stored = self._matrices.of(projection.module.weight)
        if stored.kind not in BY_NAME:
            raise ModelError(
                f"{stored.name} in {self._matrices.path.name} is of type {stored.kind}, and dtype file reads "
                f"{', '.join(sorted(BY_NAME))}; use another dtype"
            )
        return stored


def source_of(model: Any, parts: Anatomy, precision: Precision) -> Source:
    """Where a model's blocks come from at a precision.

    Raises:
        ModelError: as for `OfFile`.
    """
    return OfFile(model) if precision.name == OF_FILE else Rounded(parts)


def _dequantised(stored: Stored, row: int) -> np.ndarray:
    return gguf.quants.dequantize(stored.data[row : row + 1], gguf.GGMLQuantizationType[stored.kind])[0]
