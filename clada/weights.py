"""A model's weights at the precision they are decoded at, held once for the kernels and for the dense prefill.

`pack` copies the weights of a transformers model into the rows that `clada.kernels` reads, and makes a second,
weightless transformers model around them: its linear layers widen their rows to float32 when they run. Nothing refers
to the model that was packed, so that its memory is free once the caller lets go of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from clada.families import ACTIVATIONS, Anatomy, anatomy, rotary_rows
from clada.kernels import (
    BLOCK,
    BY_INPUT,
    BY_MATRIX,
    CODE_OF_ZERO,
    CODES,
    CODES_OF_SHORT,
    LINE,
    Constants,
    Tensors,
)

STORED = {"float32": np.float32, "bfloat16": np.int16, "int8": np.int8}  # what arrays hold; bfloat16 is none of numpy's
DTYPES = tuple(STORED)
LAYOUTS = {"matrix": BY_MATRIX, "input": BY_INPUT}
NO_WINDOW = 2**62
PAGE = 4096
TERMS_AT_ONCE = 96  # of the screen: at once they are multiplied with the head, which is faster than one by one
# The largest code of a term, in its root mean squares: wider codes round the many words, narrower ones cut the few.
WIDEST_CODE = 3.5
WIDEN_AT_ONCE = 2**24  # elements; a whole output head as float32 can be larger than the model


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array that begins on a memory page, so that no row lies across more cache lines than it must.

    Large arrays of numpy, unlike those of torch, are in huge pages where the system has them: looking up small ones
    costs 7 % of a token.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + PAGE, np.uint8)
    begin = -room.ctypes.data % PAGE
    return room[begin : begin + size].view(dtype).reshape(shape)


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


@dataclass(frozen=True)
class Basis:
    """Directions of the head's input along which logits vary most, to screen the vocabulary with.

    Attributes:
        rows: float32 [K - 1, E], orthonormal.
        center: float32 [E], the mean input.
    """

    rows: torch.Tensor
    center: torch.Tensor


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
        vocabulary, width = head.shape
        if basis is None:
            none = np.empty(0, np.float32)
            return cls(np.empty((0, 0), np.uint8), none, np.empty((0, width), np.uint16), none, none, none, vocabulary)
        rows = torch.cat([torch.zeros(1, width), basis.rows]).bfloat16()
        directions = torch.cat([basis.center[None], rows[1:].float()])
        offset = torch.cat([torch.ones(1), -(directions[1:] @ basis.center)])
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
            stored = nn.functional.pad(terms.to(torch.uint8), (0, blocks * BLOCK - vocabulary))
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
        halves = torch.from_numpy(self.codes).view(len(self.codes), -1, LINE // 2, CODES_OF_SHORT // CODES)
        halves = halves.transpose(2, 3)
        codes = torch.stack([halves & 15, halves >> 4], 3).view(len(halves), -1)[:, : self.vocabulary]
        arrays = (self.scale, self.offset, self.weight, self.mean)
        scale, offset, weight, mean = (torch.from_numpy(array) for array in arrays)
        basis = torch.from_numpy(self.basis.view(np.int16)).view(torch.bfloat16).float()
        return codes.float() - CODE_OF_ZERO, scale, basis, offset, weight, mean


@dataclass(frozen=True)
class Norms:
    """Norms of a model's weights, which tests of magnitude weigh with; L layers.

    Attributes:
        input_norm: [L, 2, H], of the columns of the query, key and value and of the gate and up projections.
        output_norm: [L, Q], of the columns of the attention's output projection.
        down_norm: [L, N], ||w_down[:, i]||.
    """

    input_norm: np.ndarray
    output_norm: np.ndarray
    down_norm: np.ndarray


@torch.inference_mode()
def norms_of(parts: Anatomy) -> Norms:
    """The norms of a model that was taken apart, in float32."""

    def of(*modules: Any) -> np.ndarray:
        columns = [_matrix(module).float().square().sum(0) for module in modules if module is not None]
        return torch.stack(columns).sum(0).sqrt().cpu().numpy()

    layers = parts.layers
    return Norms(
        np.stack([np.stack([of(*layer.qkv), of(layer.gate, layer.up)]) for layer in layers]),
        np.stack([of(layer.output) for layer in layers]),
        np.stack([of(layer.down) for layer in layers]),
    )


@dataclass(frozen=True)
class Weights(Norms):
    """A packed model.

    Attributes:
        tensors: for the kernels; arrays share memory with `model`.
        constants: for the kernels.
        model: a transformers model on the same memory.
        stack: the part of it that maps tokens to the last hidden states.
        dtype: of the weights.
        rotary_kinds: layer types that `rotary_rows` is asked for.
        qkv: of `model`, by layer, the query, key and value projections.
        gate: the gate projections, None where there are none.
        up: the up-projections.
        down: the down-projections, whose inputs are the activations.
        outputs: the attention's output projections.
        screen: of the head.
        activation: of the MLP.
    """

    tensors: Tensors
    constants: Constants
    model: Any
    stack: Any
    dtype: str
    rotary_kinds: tuple[str, ...]
    qkv: list[list[Any]]
    gate: list[Any]
    up: list[Any]
    down: list[Any]
    outputs: list[Any]
    screen: Screen
    activation: str

    def rotary(self, positions: torch.Tensor) -> np.ndarray:
        """Cosines and sines of positions for the kernels, float32 [n, kinds, 2, rotary width]."""
        if not self.rotary_kinds:
            return np.empty((len(positions), 0, 2, 0), np.float32)
        return np.ascontiguousarray(rotary_rows(self.stack.rotary_emb, self.rotary_kinds, positions).numpy())


@torch.inference_mode()
def pack(model: Any, dtype: str, basis: Basis | None = None, *, layout: str = "matrix") -> Weights:
    """Copy a model's weights into the layout of the kernels.

    Args:
        model: a transformers model in float32, of a supported family; it is not changed.
        dtype: `float32`, `bfloat16` or `int8` (one scale per output, its largest weight is 127).
        basis: adds a screen to the output head; None leaves it out.
        layout: of `LAYOUTS`, how the projections lie in memory: `matrix` by rows, `input` by columns, so that inputs
            can be left out instead of neurons.

    Raises:
        ModelError: the engine cannot decode this model.
    """
    parts = anatomy(model)
    # Products, beside copies that wait for memory: a tenth of a second of a start.
    making_screen = ThreadPoolExecutor(1).submit(Screen.of, _matrix(parts.head), basis)
    layers, hidden = parts.layers, model.config.hidden_size
    width, kv_width = parts.heads * parts.head_dim, parts.kv_heads * parts.head_dim
    neurons = _matrix(layers[0].up).shape[0]
    gated = layers[0].gate is not None
    n = len(layers)
    input_major = layout == "input"

    def room(outputs: int) -> Rows:
        shape = (hidden, outputs) if input_major else (outputs, hidden)
        return Rows.empty(dtype, n, *shape, transposed=input_major)

    qkv = room(width + 2 * kv_width)
    output = Rows.empty(dtype, n, width, hidden, transposed=True)
    up, down = room(neurons), Rows.empty(dtype, n, neurons, hidden, transposed=True)
    gate = room(neurons) if gated else up
    qkv_bias, output_bias = torch.zeros(n, width + 2 * kv_width), torch.zeros(n, hidden)
    up_bias, down_bias = torch.zeros(n, neurons), torch.zeros(n, hidden)
    gate_bias = torch.zeros(n, neurons) if gated else up_bias
    norms, head_norms = torch.zeros(n, 6, 2, hidden), torch.zeros(n, 2, 2, parts.head_dim)

    shell = _shell(model)
    name_of = {module: name for name, module in model.named_modules()}

    def place(module: nn.Module, packed: nn.Module) -> None:
        shell.set_submodule(name_of[module], packed)

    for i, layer in enumerate(layers):
        merged = torch.cat([_matrix(module) for module in layer.qkv])
        qkv[i].put(merged.t() if input_major else merged)
        at = 0
        for module in layer.qkv:
            part = slice(at, at + len(_matrix(module)))
            _put_bias(qkv_bias[i, part], module)
            whole = qkv[i]
            scale = None if whole.scale is None else whole.scale[part]
            rows = Rows(whole.values[:, part] if input_major else whole.values[part], scale, input_major)
            place(module, PackedLinear(rows, qkv_bias[i, part]))
            at = part.stop
        for module, packed, bias in (
            (layer.output, output[i], output_bias[i]),
            (layer.gate, gate[i], gate_bias[i]),
            (layer.up, up[i], up_bias[i]),
            (layer.down, down[i], down_bias[i]),
        ):
            if module is None:
                continue
            matrix = _matrix(module)
            packed.put(matrix.t() if packed.transposed else matrix)
            _put_bias(bias, module)
            place(module, PackedLinear(packed, bias))
        for place_of_norm, norm in enumerate(layer.norms):
            if norm is not None:
                _put_norm(norms[i, place_of_norm], norm, parts)
        for which, norm in enumerate(layer.head_norms or ()):
            _put_norm(head_norms[i, which], norm, parts)

    final_norm = torch.zeros(2, hidden)
    if parts.final_norm is not None:
        _put_norm(final_norm, parts.final_norm, parts)
    vector_dtype = "float32" if dtype == "float32" else "bfloat16"  # int8 would need scales for one small matrix
    before_head = Rows.empty(vector_dtype, 0, hidden)
    if parts.project_out is not None:
        before_head = Rows.empty(vector_dtype, *parts.project_out.weight.shape)
        before_head.put(_matrix(parts.project_out))
        place(parts.project_out, PackedLinear(before_head))
    matrix = _matrix(parts.head)
    head = Rows.empty(dtype, *matrix.shape)
    head.put(matrix)
    place(parts.head, PackedLinear(head))
    embedding = head
    if not parts.tied:
        embedding = Rows.empty(dtype, *parts.embedding.weight.shape)
        embedding.put(parts.embedding.weight.detach().cpu())
    factor = getattr(parts.embedding, "scalar_embed_scale", 1.0)
    place(parts.embedding, PackedEmbedding(embedding, factor))
    screen = making_screen.result()
    before_layers = Rows.empty(vector_dtype, 0, matrix.shape[1])
    if parts.project_in is not None:
        before_layers = Rows.empty(vector_dtype, *parts.project_in.weight.shape)
        before_layers.put(_matrix(parts.project_in))
        place(parts.project_in, PackedLinear(before_layers))
    positions = torch.empty(0, hidden) if parts.positions is None else parts.positions.detach().float().cpu().clone()

    _own(shell)

    kinds = tuple(dict.fromkeys(layer.rotary for layer in layers if layer.rotary is not None))
    constants = Constants(
        embedding_factor=np.float32(factor),
        heads=parts.heads,
        kv_heads=parts.kv_heads,
        head_dim=parts.head_dim,
        activation=ACTIVATIONS[parts.activation],
        has_norm=np.array([norm is not None for norm in layers[0].norms], np.int64),
        has_head_norms=int(layers[0].head_norms is not None),
        has_final_norm=int(parts.final_norm is not None),
        rms=int(parts.rms),
        eps=float(parts.eps),
        scaling=np.array([layer.scaling for layer in layers], np.float32),
        softcap=np.float32(parts.softcap),
        final_softcap=np.float32(parts.final_softcap),
        window=np.array([layer.window or NO_WINDOW for layer in layers], np.int64),
        gated=int(gated),
        layout=LAYOUTS[layout],
        rotary=np.array([-1 if layer.rotary is None else kinds.index(layer.rotary) for layer in layers], np.int64),
    )
    tensors = Tensors(
        embedding.array, embedding.scales, positions.numpy(), before_layers.array,
        qkv.array, qkv.scales, qkv_bias.numpy(),
        output.array, output.scales, output_bias.numpy(),
        gate.array, gate.scales, gate_bias.numpy(),
        up.array, up.scales, up_bias.numpy(),
        down.array, down.scales, down_bias.numpy(),
        norms.numpy(), head_norms.numpy(), final_norm.numpy(),
        before_head.array, head.array, head.scales,
        screen.codes, screen.scale, screen.basis, screen.offset, screen.weight, screen.mean,
    )  # fmt: skip
    return Weights(
        **vars(norms_of(parts)),
        tensors=tensors,
        constants=constants,
        model=shell,
        stack=shell.get_submodule(name_of[parts.stack]),
        dtype=dtype,
        rotary_kinds=kinds,
        qkv=[[shell.get_submodule(name_of[module]) for module in layer.qkv] for layer in layers],
        gate=[layer.gate and shell.get_submodule(name_of[layer.gate]) for layer in layers],
        up=[shell.get_submodule(name_of[layer.up]) for layer in layers],
        down=[shell.get_submodule(name_of[layer.down]) for layer in layers],
        outputs=[shell.get_submodule(name_of[layer.output]) for layer in layers],
        screen=screen,
        activation=parts.activation,
    )


def _shell(model: Any) -> Any:
    """The model again on the same tensors; parts can be replaced without changing the model."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _own(shell: nn.Module) -> None:
    """Copy the parameters that are still the model's: one norm would keep the whole file it is part of in memory."""
    for module in shell.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _matrix(module: Any) -> torch.Tensor:
    """A linear layer's weight as [outputs, inputs]; GPT-2's Conv1D keeps it transposed."""
    weight = module.weight.detach().cpu()  # what is packed lies in memory, also of a model that does not
    return weight.t() if type(module).__name__ == "Conv1D" else weight


def _put_bias(room: torch.Tensor, module: Any) -> None:
    if getattr(module, "bias", None) is not None:
        room.copy_(module.bias.detach())


def _put_norm(room: torch.Tensor, norm: Any, parts: Anatomy) -> None:
    weight = getattr(norm, "weight", None)  # OPT can have norms without one
    room[0] = 1.0 if weight is None else weight.detach().float() + (1.0 if parts.unit_offset else 0.0)
    _put_bias(room[1], norm)
