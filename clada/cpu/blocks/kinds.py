"""The kinds of blocks: a weight is scale * (code - zero) + minimum, which is float32 of GGUF's type of that name.

Blocks lie in rows. A row is the weights of one output ("along"), as the file has them, or of one input ("across"), as
the kernels leave inputs out of the projections that are transposed. Groups of weights that share a scale are always of
one output. Along, a row is

    codes     4 bits: 16 numbers of 16 bits for 64 weights, whose lowest four bits are the first 16 weights, and so on;
              8 bits: a byte each
    high      what is beyond 4 bits, likewise: 16 numbers of 16 bits for 256 weights (128 of 6 bits)
    scales    by group, float16 or the whole number of steps of one; then minima, likewise
    steps     float16 by 256 weights, where scales are numbers of steps; then those of minima

Across, the rows of a group (a tile) follow each other behind the scales of all outputs; tiles of 256 rows follow the
steps of all outputs. A row is `codes` and `high`, of 8 numbers of 32 bits each. Rows are filled up to 64 weights with
zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT = 64  # weights that are unpacked together

SHARED = 32  # inputs that are rounded with one step when a row along is multiplied with them

KIND_BITS = 4  # of the number that stands for a row, its lowest: the kind

STEPPED = 256  # weights whose scales are multiples of one step


@dataclass(frozen=True)
class BlockKind:
    """A kind of block.

    Attributes:
        name: GGUF's.
        bits: of a code.
        zero: the code of zero.
        minimum: whether a group has a minimum beside its scale.
        stepped: whether scales are whole numbers of a step that 256 weights share.
        group: weights that share a scale.
    """

    name: str
    bits: int
    zero: int = 0
    minimum: bool = False
    stepped: bool = False
    group: int = 32

    @property
    def high(self) -> int:
        """Weights whose bits beyond four lie in 32 bytes; 0 without any."""
        return 0 if self.bits in (4, 8) else 256 // (self.bits - 4)

    @property
    def each(self) -> int:
        """Numbers of a group: a scale, perhaps a minimum."""
        return 1 + self.minimum

    @property
    def scale_bytes(self) -> int:
        """Bytes of a group's numbers."""
        return self.each * (1 if self.stepped else 2)

    @property
    def filled(self) -> int:
        """Inputs are filled up to a multiple of this."""
        return STEPPED if self.stepped else UNIT

    def low_bytes(self, weights: int) -> int:
        """Bytes of `codes` in a row of so many weights, a multiple of UNIT."""
        return weights if self.bits == 8 else weights // 2

    def code_bytes(self, weights: int) -> int:
        """Bytes of `codes` and `high`."""
        return self.low_bytes(weights) + (32 * -(-weights // self.high) if self.high else 0)

    def along_bytes(self, inputs: int) -> int:
        """Bytes of a row along, of inputs that are filled up."""
        steps = 2 * self.each * (inputs // STEPPED) if self.stepped else 0
        return self.code_bytes(inputs) + inputs // self.group * self.scale_bytes + steps

    def tile_bytes(self, outputs: int) -> int:
        """Bytes of a tile across, of outputs that are filled up."""
        return outputs * self.scale_bytes + self.group * self.code_bytes(outputs)

    def across_bytes(self, inputs: int, outputs: int) -> int:
        """Bytes of a whole matrix across, of inputs and outputs that are filled up."""
        steps = 2 * self.each * outputs * (inputs // STEPPED) if self.stepped else 0
        return inputs // self.group * self.tile_bytes(outputs) + steps


# The place in this list is what kernels know a kind by: at most 2 ** KIND_BITS.
KINDS = (
    BlockKind("Q4_1", 4, minimum=True),
    BlockKind("Q4_0", 4, zero=8),
    BlockKind("Q5_0", 5, zero=16),
    BlockKind("Q5_1", 5, minimum=True),
    BlockKind("Q8_0", 8),
    BlockKind("Q4_K", 4, minimum=True, stepped=True),
    BlockKind("Q5_K", 5, minimum=True, stepped=True),
    BlockKind("Q6_K", 6, zero=32, stepped=True, group=16),
)

LONGEST_GROUP = max(kind.group for kind in KINDS)

BY_NAME = {kind.name: kind for kind in KINDS}


def up(count: int, to: int) -> int:
    """The multiple of `to` that is not below a count."""
    return -(-count // to) * to
