"""A model's weights at the precision they are decoded at, held once for the kernels and for the dense prefill.

`pack` copies the weights of a transformers model into the rows that the kernels read, and makes a second, weightless
transformers model around them: its linear layers widen their rows to float32 when they run. Nothing refers to the model
that was packed, so that its memory is free once the caller lets go of it.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from clada.cpu.kernels.arguments import Constants, Tensors
from clada.cpu.storage import PackedEmbedding, PackedLinear, Rows
from clada.methods.screen import Basis, Screen
from clada.methods.selection import BY_INPUT, BY_MATRIX, Norms, norms_of
from clada.models.architectures import ACTIVATIONS, Anatomy, anatomy, matrix_of, rotary_rows

LAYOUTS = {"matrix": BY_MATRIX, "input": BY_INPUT}

NO_WINDOW = 2**62


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

    @property
    def embedding_rows(self) -> int:
        """How many tokens have an embedding; the tokenizer may know more, and the configuration say another number."""
        return len(self.tensors.embedding)

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
    making_screen = ThreadPoolExecutor(1).submit(Screen.of, matrix_of(parts.head), basis)
    layers, hidden = parts.layers, model.config.hidden_size
    width, kv_width = parts.heads * parts.head_dim, parts.kv_heads * parts.head_dim
    neurons = matrix_of(layers[0].up).shape[0]
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

    shell = _shell(model).eval()  # the caller may be training
    name_of = {module: name for name, module in model.named_modules()}

    def place(module: nn.Module, packed: nn.Module) -> None:
        shell.set_submodule(name_of[module], packed)

    for i, layer in enumerate(layers):
        merged = torch.cat([matrix_of(module) for module in layer.qkv])
        qkv[i].put(merged.t() if input_major else merged)
        at = 0
        for module in layer.qkv:
            part = slice(at, at + len(matrix_of(module)))
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
            matrix = matrix_of(module)
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
        before_head.put(matrix_of(parts.project_out))
        place(parts.project_out, PackedLinear(before_head))
    matrix = matrix_of(parts.head)
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
        before_layers.put(matrix_of(parts.project_in))
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


def _put_bias(room: torch.Tensor, module: Any) -> None:
    if getattr(module, "bias", None) is not None:
        room.copy_(module.bias.detach())


def _put_norm(room: torch.Tensor, norm: Any, parts: Anatomy) -> None:
    weight = getattr(norm, "weight", None)  # OPT can have norms without one
    room[0] = 1.0 if weight is None else weight.detach().float() + (1.0 if parts.unit_offset else 0.0)
    _put_bias(room[1], norm)
