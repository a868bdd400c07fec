"""What decoding must know of a model beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clada.models.architectures import Positions


@dataclass(frozen=True)
class Description:
    """What decoding must know of a model beside its weights.

    Attributes:
        name: it was opened by; plans are looked up by it.
        layers: of the decoder.
        vocabulary: words that its head predicts.
        positions: how long its sequences can be.
        generation: its generation config, whose values are attributes.
    """

    name: str
    layers: int
    vocabulary: int
    positions: Positions
    generation: Any

    @classmethod
    def of(cls, model: Any) -> Description:
        """Of a transformers model with an output head."""
        return cls(
            model.name_or_path,
            model.config.num_hidden_layers,
            int(model.get_output_embeddings().weight.shape[0]),
            Positions.of(model.config),
            model.generation_config,
        )
