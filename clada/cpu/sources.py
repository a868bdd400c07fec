"""Where the blocks of a model's matrices come from: rounded from float32."""

from __future__ import annotations

from typing import Any, Protocol

from clada.cpu.blocks.matrix import Coded, coded
from clada.models.anatomy import Anatomy, Projection


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
