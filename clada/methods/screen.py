"""The screen of the output head: a cheap estimate of all logits, which says what words to compute in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clada.methods.rules import keeps_term, keeps_word
from clada.system.machine import aligned

if TYPE_CHECKING:
    import torch  # where a screen is made, and in the reference: kernels on one that was made do without

CODES = 2  # of a byte of the screen

CODES_OF_SHORT = 4

CODE_OF_ZERO = 8

LARGEST_SUM = 32_000  # of codes times terms, in int16; with it a single term is not half-way between two steps

LINE = 64  # bytes of a cache line

BLOCK = LINE * CODES  # words whose codes of a term fill one

TERMS_AT_ONCE = 96  # of the screen: at once they are multiplied with the head, which is faster than one by one

# The largest code of a term, in its root mean squares: wider codes round the many words, narrower ones cut the few.
WIDEST_CODE = 3.5


@dataclass(frozen=True)
class Basis:
    """Directions of the head's input along which logits vary most, to screen the vocabulary with.

    Attributes:
        rows: float32 [K - 1, E], orthonormal.
        center: float32 [E], the mean input.
    """

    rows: np.ndarray
    center: np.ndarray


@dataclass(frozen=True)
class Screen:
    """What estimates all logits at a small part of the head's bytes; K terms, row 0 of the mean input, V words.

    Terms are held in four bits at every precision: they only say which words are worth the head's own weights, and what
    the negligible rest of the words gives.

    Attributes:
        codes: uint8 [K, V / 2], V rounded up to whole blocks; a block is a line of 16-bit numbers, whose lowest four
            bits are the codes of as many words, the next ones those of as many more. Without a screen all arrays are
            empty.
        scale: float32 [K], what a step of the code is; CODE_OF_ZERO is zero.
        basis: bfloat16 [K, E], held as uint16; row 0 is zero.
        offset: float32 [K], added to the products with the basis.
        weight: float32 [K], norms of the terms.
        mean: float32 [E], the head's mean row. It shifts all logits alike, and a screen that left out a part of it
            would move the words it screens against those computed in full.
        vocabulary: V.
    """

    codes: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    vocabulary: int

    @classmethod
    def of(cls, head: torch.Tensor, basis: Basis | None) -> Screen:
        """The screen of a float32 head [V, E]; an empty one without a basis."""
        import torch

        vocabulary, width = head.shape
        if basis is None:
            none = np.empty(0, np.float32)
            return cls(np.empty((0, 0), np.uint8), none, np.empty((0, width), np.uint16), none, none, none, vocabulary)
        center = torch.from_numpy(basis.center)
        rows = torch.cat([torch.zeros(1, width), torch.from_numpy(basis.rows)]).bfloat16()
        directions = torch.cat([center[None], rows[1:].float()])
        offset = torch.cat([torch.ones(1), -(directions[1:] @ center)])
        mean, weight = head.mean(0), torch.empty(len(rows))
        blocks = -(-vocabulary // BLOCK)
        codes = aligned((len(rows), blocks * LINE), np.dtype(np.uint8))
        step = WIDEST_CODE / math.sqrt(vocabulary) / (CODE_OF_ZERO - 1)
        for begin in range(0, len(rows), TERMS_AT_ONCE):
            part = slice(begin, begin + TERMS_AT_ONCE)
            terms = directions[part] @ head.t() - (directions[part] @ mean)[:, None]
            weight[part] = terms.norm(dim=1)
            # Cut off after half a step more, which rounds to nearest.
            terms.div_(step * weight[part, None]).add_(CODE_OF_ZERO + 0.5).clamp_(1, 2 * CODE_OF_ZERO - 0.5)
            stored = torch.nn.functional.pad(terms.to(torch.uint8), (0, blocks * BLOCK - vocabulary))
            stored = stored.view(len(terms), blocks, CODES_OF_SHORT // CODES, CODES, -1)
            halves = stored[:, :, :, 0] | (stored[:, :, :, 1] << 4)  # of the 16-bit numbers, the low ones first
            codes[part] = halves.transpose(2, 3).reshape(len(terms), -1).numpy()
        return cls(
            codes,
            (step * weight).numpy(),
            rows.view(torch.int16).numpy().view(np.uint16),
            offset.numpy(),
            weight.numpy(),
            mean.numpy(),
            vocabulary,
        )

    def wide(self) -> tuple[torch.Tensor, ...]:
        """In float32: codes [K, V] from zero, scale [K], basis [K, E], offset [K], weight [K] and mean row [E]."""
        import torch

        halves = torch.from_numpy(self.codes).view(len(self.codes), -1, LINE // 2, CODES_OF_SHORT // CODES)
        halves = halves.transpose(2, 3)
        codes = torch.stack([halves & 15, halves >> 4], 3).view(len(halves), -1)[:, : self.vocabulary]
        arrays = (self.scale, self.offset, self.weight, self.mean)
        scale, offset, weight, mean = (torch.from_numpy(array) for array in arrays)
        basis = torch.from_numpy(self.basis.view(np.int16)).view(torch.bfloat16).float()
        return codes.float() - CODE_OF_ZERO, scale, basis, offset, weight, mean


def screen_words(
    screen: Sequence[torch.Tensor], x: torch.Tensor, threshold: torch.Tensor, margin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cheap estimate of the logits of all words, for T tokens, and which words it finds near enough to compute.

    Args:
        screen: of `clada.methods.screen.Screen.wide`.
        x: float32 [T, E], the head's inputs.
        threshold: [T]; terms of the estimate below it are left out.
        margin: [T]; words are near whose estimate is at most so far below that of all words together.

    Returns:
        ([T, V], bool [T, V]).
    """
    codes, scale, basis, offset, weight, mean = screen
    z = x @ basis.t() + offset
    keep = keeps_term(z, weight, threshold[:, None])
    factors = z * scale * keep
    most = CODE_OF_ZERO - 1  # as in the kernels, whose sums are of 16 bits
    unit = (
        most
        * factors.abs().sum(1, keepdim=True).clamp_min(1e-30)
        / (LARGEST_SUM - most / 2 * keep.sum(1, keepdim=True))
    )
    estimate = (x @ mean)[:, None] + (factors / unit).round() * unit @ codes
    return estimate, keeps_word(estimate, estimate.logsumexp(1), margin)
