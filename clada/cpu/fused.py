"""Packed linear layers where transformers expects one module: as the model has fused them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import nn

from clada.cpu.storage import PackedLinear
from clada.models.anatomy import Projection


class PackedParts(nn.Module):
    """Several packed linear layers whose outputs are one module's, see `clada.models.anatomy.Projection`.

    Args:
        parts: of one width.
        groups: how many times they come.
    """

    def __init__(self, parts: Sequence[PackedLinear], groups: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply: x float32 [..., inputs] to [..., outputs]."""
        return torch.cat([part(x).unflatten(-1, (self.groups, -1)) for part in self.parts], -1).flatten(-2)


def fused_again(linear: Mapping[Projection, PackedLinear]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Modules of a layer, and what takes their place.

    Args:
        linear: the packed form of every projection, parts of one module next to each other.
    """
    for module, parts in groupby(linear, key=lambda part: part.module):
        of_module = list(parts)
        packed = [linear[part] for part in of_module]
        yield module, packed[0] if len(packed) == 1 else PackedParts(packed, of_module[0].groups)
