"""The activations of a study, one pair at a time: what similarities are computed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cladastats.activations.parts import Part, read_parts
from cladastats.study import Study


@dataclass(frozen=True)
class Block:
    """The activations of one pair.

    Attributes:
        group: "nls" or "rts".
        pair: its number in the group.
        matrices: [layers, neurons] in float64, under "A", "B", "matched", and for each hybrid under the tuple of its
            values of `panel_keys` from `ratio` on.
    """

    group: str
    pair: int
    matrices: dict[str | tuple[Any, ...], np.ndarray]

    @property
    def hybrids(self) -> list[tuple[Any, ...]]:
        """Keys of the hybrids, in order."""
        return sorted(key for key in self.matrices if isinstance(key, tuple))


def panel_keys(study: Study) -> list[str]:
    """Names of the columns that tell the rows of a study's panel apart."""
    return ["group", "pair", "ratio", *(["placebo"] if "placebos" in study.config.corpus else [])]


def read_blocks(study: Study) -> Iterator[Block]:
    """The activations of every pair of a study, part by part.

    Raises:
        StudyError: Activations are missing or damaged.
    """
    hybrid_keys = panel_keys(study)[2:]
    for part, members in read_parts(study):
        for rows in members:
            group, pair = rows["group"].iloc[0], int(rows["pair"].iloc[0])
            yield Block(group, pair, _matrices(part, rows, hybrid_keys))


def _matrices(part: Part, rows: pd.DataFrame, hybrid_keys: list[str]) -> dict[str | tuple[Any, ...], np.ndarray]:
    row_of = {sequence_id: row for row, sequence_id in enumerate(part.sequence_ids)}
    names = [
        role if role != "hybrid" else tuple(key)
        for role, *key in rows[["role", *hybrid_keys]].itertuples(index=False, name=None)
    ]
    return {
        name: part.tensors["activations"][row_of[sequence_id]].astype(float)
        for name, sequence_id in zip(names, rows["sequence_id"], strict=True)
    }
