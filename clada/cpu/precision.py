"""The precisions that weights are decoded at: an object each, which alone knows how its numbers are stored.

To add one, write a class with its storage, its scales, `pack`, `widen` and the instructions of `to_float32`, and put
an object of it into `PRECISIONS`. Packing, transformers' modules on packed weights, the key-value cache and the kernels
find it there: by its name, by torch's type of what is stored (`of_tensor`) or by numba's (`of_element`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import types

from clada.cpu.llvm import FLOAT, INDEX, INT, vector_of

if TYPE_CHECKING:
    import torch  # where packing needs it: kernels on packed weights do without


def _constant(value: int, lanes: int) -> Any:
    return ir.Constant(vector_of(INT, lanes), value if lanes == 1 else [value] * lanes)


class Precision(ABC):
    """How numbers are stored, and how they become float32 again.

    Attributes:
        name: as users give it, and torch's name of a stored number's type.
        element: numba's type of a stored number, which is also numpy's.
        llvm: LLVM's type of a stored number.
        scaled: whether every output of a matrix has a float32 scale, which all its inputs share.
        copied: whether widening makes a copy.
        in_blocks: a stored number says where a whole row lies, see `clada.cpu.blocks`.
        coded: weights are whole numbers times scales; see `clada.cpu.blocks.tiles` for how prompts multiply them.
    """

    name: str
    element: Any
    llvm: Any
    scaled = False
    copied = True
    in_blocks = False
    coded = False

    @property
    def storage(self) -> torch.dtype:
        """Torch's type of a stored number."""
        import torch

        kind: torch.dtype = getattr(torch, self.name)
        return kind

    @property
    def unscaled(self) -> Precision:
        """The precision beside this one for keys, values and small matrices, which have no scales."""
        return self

    @property
    def itemsize(self) -> int:
        """Bytes of a stored number."""
        return int(self.element.bitwidth) // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the arrays that kernels read."""
        return np.dtype(self.element.name)

    def scales(self, *outputs: int) -> torch.Tensor | None:
        """Uninitialised scales, float32 [*outputs]; None without any."""
        import torch

        return torch.empty(outputs) if self.scaled else None

    def pack(self, matrix: torch.Tensor, rows: Any) -> None:
        """Store a float32 matrix [rows, columns] in rows of this precision."""
        rows.values.copy_(matrix)  # torch rounds to nearest, ties to even

    def widen(self, values: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """Stored values [..., columns] as float32; `scale` broadcasts to them. No copy of what is float32."""
        return values.float() if scale is None else values.float() * scale

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """What float32 numbers become when they are stored and read, without scales."""
        return x.to(self.storage).float()

    def array(self, values: torch.Tensor) -> np.ndarray:
        """Stored values for the kernels, on the same memory."""
        return values.numpy()

    def stored(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers in float32 as keys and values are stored, in an array."""
        raise NotImplementedError(f"{self.name} does not store keys and values")

    # -- instructions of the kernels --------------------------------------------------------------------------------

    @abstractmethod
    def to_float32(self, builder: Any, v: Any, lanes: int) -> Any:
        """Instructions that make float32 of a vector of stored numbers; of one number if `lanes` is 1."""

    def from_float32(self, _builder: Any, _v: Any) -> Any:
        """Instructions that make a stored number of a float32, as `pack` does; what keys and values are stored at."""
        raise NotImplementedError(f"{self.name} does not store keys and values")

    def load(self, builder: Any, start: Any, j: Any, lanes: int) -> Any:
        """Instructions that load so many numbers from element `start + j` on as float32."""
        place = builder.bitcast(builder.gep(start, [j]), vector_of(self.llvm, lanes).as_pointer())
        return self.to_float32(builder, builder.load(place, align=self.itemsize), lanes)


class Float32(Precision):
    """Weights as they were trained."""

    name, element, llvm, copied = "float32", types.float32, FLOAT, False

    def stored(self, numbers: np.ndarray) -> np.ndarray:
        """The same."""
        return numbers

    def to_float32(self, _builder: Any, v: Any, _lanes: int) -> Any:
        """None."""
        return v

    def from_float32(self, _builder: Any, v: Any) -> Any:
        """None."""
        return v


class BFloat16(Precision):
    """The upper half of a float32; as uint16 in arrays, as neither numpy nor numba has such a type."""

    name, element, llvm = "bfloat16", types.uint16, ir.IntType(16)

    def array(self, values: torch.Tensor) -> np.ndarray:
        """As uint16."""
        import torch

        return values.view(torch.int16).numpy().view(np.uint16)

    def stored(self, numbers: np.ndarray) -> np.ndarray:
        """Rounded as `from_float32` does."""
        bits = numbers.view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )

    def to_float32(self, builder: Any, v: Any, lanes: int) -> Any:
        """Shift the bits to where a float32 has them."""
        bits = builder.shl(builder.zext(v, vector_of(INT, lanes)), _constant(16, lanes))
        return builder.bitcast(bits, vector_of(FLOAT, lanes))

    def from_float32(self, builder: Any, v: Any) -> Any:
        """Add a little less than half of the last kept bit, and what it lacks to half where that bit is set."""
        bits = builder.bitcast(v, INT)
        last = builder.and_(builder.lshr(bits, INT(16)), INT(1))
        rounded = builder.add(builder.add(bits, INT(0x7FFF)), last)
        return builder.trunc(builder.lshr(rounded, INT(16)), self.llvm)


class Int8(Precision):
    """127 steps either way of an output's largest weight.

    Scales are of outputs, wherever these lie: massive activations are a few outputs of the down-projection that dwarf
    the others, and a scale across outputs would round the others away.
    """

    name, element, llvm, scaled, coded = "int8", types.int8, ir.IntType(8), True, True

    @property
    def unscaled(self) -> Precision:
        """bfloat16."""
        return PRECISIONS["bfloat16"]

    def pack(self, matrix: torch.Tensor, rows: Any) -> None:
        """Round to the nearest step."""
        import torch

        assert rows.scale is not None
        inputs = 0 if rows.transposed else 1
        rows.scale.copy_(matrix.abs().amax(inputs) / 127)
        step = rows.scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(inputs)
        rows.values.copy_((matrix / step).round_())

    def to_float32(self, builder: Any, v: Any, lanes: int) -> Any:
        """As steps, without the scale."""
        return builder.sitofp(builder.sext(v, vector_of(INT, lanes)), vector_of(FLOAT, lanes))


class Blocks(Precision):
    """Codes of a few bits in groups with a scale each, at addresses that the kernels' arrays give.

    Args:
        name: as users give it.
    """

    element, llvm, in_blocks, coded = types.int64, INDEX, True, True

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def unscaled(self) -> Precision:
        """bfloat16."""
        return PRECISIONS["bfloat16"]

    def to_float32(self, _builder: Any, _v: Any, _lanes: int) -> Any:
        """None: an address is no weight."""
        raise NotImplementedError("weights in blocks are read by rows")


PRECISIONS: dict[str, Precision] = {
    precision.name: precision for precision in (Float32(), BFloat16(), Int8(), Blocks("int4"), Blocks("file"))
}


def of_tensor(values: torch.Tensor) -> Precision:
    """The precision that a tensor of weights is stored at."""
    return next(p for p in PRECISIONS.values() if not p.in_blocks and p.storage == values.dtype)


def of_element(element: Any) -> Precision:
    """The precision whose numbers have this type in the kernels.

    Raises:
        TypeError: none has; numba says where such an array came from.
    """
    for precision in PRECISIONS.values():
        if precision.element == element:
            return precision
    raise TypeError(f"no weights are stored as {element}")
