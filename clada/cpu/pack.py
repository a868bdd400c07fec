"""A model's weights at the precision they are decoded at, held once for the kernels and for the dense prefill.

`pack` copies the weights of a transformers model into the rows that the kernels read, and makes a second, weightless
transformers model around them: its linear layers widen their rows to float32 when they run. Nothing refers to the model
that was packed, so that its memory is free once the caller lets go of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from clada.cpu.fused import fused_again
from clada.cpu.kernels.arguments import Constants, Tensors
from clada.cpu.precision import PRECISIONS, Precision
from clada.cpu.sources import Source, source_of
from clada.cpu.storage import AnyRows, BlockRows, PackedEmbedding, PackedLinear, Rows
from clada.cpu.weights import Rotary, Weights
from clada.errors import ModelError
from clada.methods.observed import norms_of
from clada.methods.screen import Basis, Screen
from clada.methods.selection import BY_INPUT, BY_MATRIX, Norms
from clada.models.anatomy import ACTIVATIONS, Anatomy, Projection, anatomy, rotary_frequencies
from clada.models.architectures import Family

LAYOUTS = {"matrix": BY_MATRIX, "input": BY_INPUT}

NO_WINDOW = 2**62


@dataclass(frozen=True)
class PackedModel(Weights):
    """Packed weights, and what computes with them in torch: prompts, statistics, the reference.

    Attributes:
        model: a transformers model on the memory of `tensors`.
        stack: the part of it that maps tokens to the last hidden states.
        qkv: of `model`, by layer, the query, key and value projections.
        gate: the gate projections, None where there are none.
        up: the up-projections.
        down: the down-projections, whose inputs are the activations.
        outputs: the attention's output projections.
        screen: of the head.
        activation: of the MLP.
    """

    model: Any
    stack: Any
    qkv: list[list[Any]]
    gate: list[Any]
    up: list[Any]
    down: list[Any]
    outputs: list[Any]
    screen: Screen
    activation: str


class _Shell:
    """The model again on the same tensors, whose parts can be replaced without changing the model."""

    def __init__(self, model: Any) -> None:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model: Any = copy.deepcopy(model, shared).eval()  # the caller may be training
        self._names = {module: name for name, module in model.named_modules()}

    def replace(self, module: nn.Module, packed: nn.Module) -> None:
        """Put a packed layer in the place of the model's."""
        self.model.set_submodule(self._names[module], packed)

    def counterpart(self, module: Any) -> Any:
        """What is in the place of one of the model's modules; None for None."""
        return module and self.model.get_submodule(self._names[module])

    def copy_parameters(self) -> None:
        """Copy what is still the model's: one norm would keep the whole file that it is part of in memory."""
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


@dataclass(frozen=True)
class _RowsOf:
    """Makes rows of a model's matrices.

    Attributes:
        precision: that they are stored at.
        source: of blocks; None where the precision has none.
    """

    precision: Precision
    source: Source | None

    def empty(self, layers: Sequence[Sequence[Projection]], *, transposed: bool = False) -> AnyRows:
        """Room for a matrix of every layer, whose parts lie below each other (transposed: side by side)."""
        shapes = [projection.matrix.shape for projection in layers[0]]
        outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
        if self.source is not None:
            kinds = [[(self.source.kind(part), len(part.matrix)) for part in parts] for parts in layers]
            return BlockRows.empty(kinds, inputs, transposed=transposed)
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        return Rows.empty(self.precision, len(layers), *shape, transposed=transposed)

    def put(self, rows: AnyRows, parts: Sequence[Projection]) -> None:
        """Store the matrix of one layer."""
        if isinstance(rows, BlockRows):
            assert self.source is not None
            rows.put([self.source.coded(part) for part in parts])
            return
        merged = parts[0].matrix if len(parts) == 1 else torch.cat([part.matrix for part in parts])
        rows.put(merged.t() if rows.transposed else merged)

    def one(self, module: Any) -> AnyRows:
        """The packed matrix of a module that no layer has."""
        rows = self.empty([[Projection(module)]])[0]
        self.put(rows, [Projection(module)])
        return rows


@dataclass(frozen=True)
class _Layers:
    """Weights of all layers; `gate` and its bias are those of `up` without a gate. Shapes as in `Tensors`."""

    qkv: AnyRows
    output: AnyRows
    gate: AnyRows
    up: AnyRows
    down: AnyRows
    qkv_bias: torch.Tensor
    output_bias: torch.Tensor
    gate_bias: torch.Tensor
    up_bias: torch.Tensor
    down_bias: torch.Tensor
    norms: torch.Tensor
    head_norms: torch.Tensor

    @classmethod
    def empty(cls, parts: Anatomy, hidden: int, rows_of: _RowsOf, input_major: bool) -> _Layers:
        """Memory for the weights: matrices uninitialised, as packing fills them; biases and norms zero."""
        n, gated = len(parts.layers), parts.layers[0].gate is not None
        width, kv_width = parts.heads * parts.head_dim, parts.kv_heads * parts.head_dim
        neurons = len(parts.layers[0].up.matrix)
        up = rows_of.empty([[layer.up] for layer in parts.layers], transposed=input_major)
        up_bias = torch.zeros(n, neurons)
        return cls(
            qkv=rows_of.empty([layer.qkv for layer in parts.layers], transposed=input_major),
            output=rows_of.empty([[layer.output] for layer in parts.layers], transposed=True),
            gate=rows_of.empty([[layer.gate] for layer in parts.layers if layer.gate], transposed=input_major)
            if gated
            else up,
            up=up,
            down=rows_of.empty([[layer.down] for layer in parts.layers], transposed=True),
            qkv_bias=torch.zeros(n, width + 2 * kv_width),
            output_bias=torch.zeros(n, hidden),
            gate_bias=torch.zeros(n, neurons) if gated else up_bias,
            up_bias=up_bias,
            down_bias=torch.zeros(n, hidden),
            norms=torch.zeros(n, 6, 2, hidden),
            head_norms=torch.zeros(n, 2, 2, width if parts.family.head_norms == "width" else parts.head_dim),
        )

    def pack(self, i: int, parts: Anatomy, rows_of: _RowsOf, shell: _Shell) -> dict[Projection, PackedLinear]:
        """Copy layer i, and put packed layers in the place of its projections, which are returned."""
        layer = parts.layers[i]
        linear = self._pack_qkv(i, layer.qkv, rows_of)
        for projection, rows, bias in (
            (layer.output, self.output[i], self.output_bias[i]),
            (layer.gate, self.gate[i], self.gate_bias[i]),
            (layer.up, self.up[i], self.up_bias[i]),
            (layer.down, self.down[i], self.down_bias[i]),
        ):
            if projection is None:
                continue
            rows_of.put(rows, [projection])
            _put_bias(bias, projection.bias)
            linear[projection] = PackedLinear(rows, bias)
        for module, packed in fused_again(linear):
            shell.replace(module, packed)
        for place, norm in enumerate(layer.norms):
            if norm is not None:
                _put_norm(self.norms[i, place], norm, parts.family)
        for which, norm in enumerate(layer.head_norms or ()):
            _put_norm(self.head_norms[i, which, :, : len(norm.weight)], norm, parts.family)
        return linear

    def _pack_qkv(self, i: int, projections: Sequence[Projection], rows_of: _RowsOf) -> dict[Projection, PackedLinear]:
        """Copy queries, keys and values side by side, as the kernels read them in one pass."""
        rows, begin, linear = self.qkv[i], 0, {}
        rows_of.put(rows, projections)
        for projection in projections:
            part = slice(begin, begin + len(projection.matrix))
            _put_bias(self.qkv_bias[i, part], projection.bias)
            linear[projection] = PackedLinear(rows.outputs(part), self.qkv_bias[i, part])
            begin = part.stop
        return linear


@dataclass(frozen=True)
class _Ends:
    """Weights before the first layer and after the last one. Shapes as in `Tensors`."""

    embedding: AnyRows
    positions: torch.Tensor
    before_layers: AnyRows
    final_norm: torch.Tensor
    before_head: AnyRows
    head: AnyRows

    @classmethod
    def pack(cls, parts: Anatomy, hidden: int, rows_of: _RowsOf, shell: _Shell) -> _Ends:
        """Copy them, and put packed layers in their place."""
        final_norm = torch.zeros(2, hidden)
        if parts.final_norm is not None:
            _put_norm(final_norm, parts.final_norm, parts.family)
        embedding = head = rows_of.one(parts.head)
        shell.replace(parts.head, PackedLinear(head))
        if not parts.tied:
            embedding = rows_of.one(parts.embedding)
        shell.replace(parts.embedding, PackedEmbedding(embedding, parts.embedding_factor))
        table = torch.empty(0, hidden) if parts.positions is None else parts.positions.detach().float().cpu().clone()
        # Small: scales for one matrix of its own would be one more case in the kernels.
        unscaled = rows_of.precision.unscaled
        before_layers = _projection(parts.project_in, parts.head.weight.shape[1], unscaled, shell)
        before_head = _projection(parts.project_out, hidden, unscaled, shell)
        return cls(embedding, table, before_layers, final_norm, before_head, head)


def _projection(module: Any, inputs: int, precision: Precision, shell: _Shell) -> AnyRows:
    """A projection that most families have not, packed; no rows where it is absent."""
    if module is None:
        return Rows.empty(precision, 0, inputs)
    rows = _RowsOf(precision, None).one(module)
    shell.replace(module, PackedLinear(rows))
    return rows


@torch.inference_mode()
def pack(model: Any, dtype: str, basis: Basis | None = None, *, layout: str = "matrix") -> PackedModel:
    """Copy a model's weights into the layout of the kernels.

    Args:
        model: a transformers model in float32, of a supported family; it is not changed.
        dtype: of `PRECISIONS`, what the weights are stored at.
        basis: adds a screen to the output head; None leaves it out.
        layout: of `LAYOUTS`, how the projections lie in memory: `matrix` by rows, `input` by columns, so that inputs
            can be left out instead of neurons.

    Raises:
        ModelError: the engine cannot decode this model, or a weight of it is not a finite number, or what a GGUF file
            is asked for is not there.
    """
    parts = anatomy(model)
    norms = norms_of(parts)
    _check_finite(model, parts, norms)
    # Products, beside copies that wait for memory.
    making_screen = ThreadPoolExecutor(1).submit(Screen.of, _matrix(parts.head), basis)
    hidden, precision, shell = model.config.hidden_size, PRECISIONS[dtype], _Shell(model)
    rows_of = _RowsOf(precision, source_of(model, parts, precision) if precision.in_blocks else None)
    packed = _Layers.empty(parts, hidden, rows_of, input_major=layout == "input")
    by_layer = [(packed.pack(i, parts, rows_of, shell), layer) for i, layer in enumerate(parts.layers)]
    ends = _Ends.pack(parts, hidden, rows_of, shell)
    screen = making_screen.result()
    shell.copy_parameters()

    kinds = tuple(dict.fromkeys(layer.rotary for layer in parts.layers if layer.rotary is not None))
    return PackedModel(
        **vars(norms),
        tensors=_tensors(packed, ends, screen),
        memory=_memory(packed, ends),
        constants=_constants(parts, kinds, layout),
        dtype=dtype,
        rotation=Rotary(*rotary_frequencies(parts.stack, kinds)),
        model=shell.model,
        stack=shell.counterpart(parts.stack),
        qkv=[[linear[part] for part in layer.qkv] for linear, layer in by_layer],
        gate=[layer.gate and linear[layer.gate] for linear, layer in by_layer],
        up=[linear[layer.up] for linear, layer in by_layer],
        down=[linear[layer.down] for linear, layer in by_layer],
        outputs=[linear[layer.output] for linear, layer in by_layer],
        screen=screen,
        activation=parts.activation,
    )


def _check_finite(model: Any, parts: Anatomy, norms: Norms) -> None:
    """Refuse a model with weights that are NaN or infinite, which would end in numbers that look like results.

    The norms say whether the layers' matrices have any, as one such weight makes a norm so; the rest is summed. Weights
    themselves are looked at only where a norm or sum is not finite, as those can overflow too.

    Raises:
        ModelError: names the first such tensor, with the number of its layer.
    """
    in_norms = {
        id(projection.module.weight)
        for layer in parts.layers
        for projection in (*layer.qkv, layer.output, layer.gate, layer.up, layer.down)
        if projection is not None
    }
    others = [parameter for parameter in model.parameters() if id(parameter) not in in_norms]
    if all(np.isfinite(norm).all() for norm in vars(norms).values()) and all(p.sum().isfinite() for p in others):
        return
    for name, parameter in model.named_parameters():
        wrong = parameter.numel() - int(parameter.isfinite().sum())
        if wrong:
            raise ModelError(
                f"{wrong:,} of the {parameter.numel():,} numbers in {name} are NaN or infinite, so the model computes "
                "nothing; download or convert it again"
            )


def _constants(parts: Anatomy, kinds: Sequence[str], layout: str) -> Constants:
    layers = parts.layers
    return Constants(
        embedding_factor=np.float32(parts.embedding_factor),
        heads=parts.heads,
        kv_heads=parts.kv_heads,
        head_dim=parts.head_dim,
        activation=ACTIVATIONS[parts.activation],
        has_norm=np.array([norm is not None for norm in layers[0].norms], np.int64),
        has_head_norms=int(parts.family.head_norms is not None),
        norms_of_width=int(parts.family.head_norms == "width"),
        has_final_norm=int(parts.final_norm is not None),
        rms=int(parts.family.rms),
        eps=float(parts.eps),
        scaling=np.array([layer.scaling for layer in layers], np.float32),
        softcap=np.float32(parts.softcap),
        final_softcap=np.float32(parts.final_softcap),
        window=np.array([layer.window or NO_WINDOW for layer in layers], np.int64),
        gated=int(layers[0].gate is not None),
        parallel=int(parts.parallel),
        layout=LAYOUTS[layout],
        rotary=np.array([-1 if layer.rotary is None else kinds.index(layer.rotary) for layer in layers], np.int64),
    )


def _tensors(layers: _Layers, ends: _Ends, screen: Screen) -> Tensors:
    return Tensors(
        ends.embedding.array, ends.embedding.scales, ends.positions.numpy(), ends.before_layers.array,
        layers.qkv.array, layers.qkv.scales, layers.qkv_bias.numpy(),
        layers.output.array, layers.output.scales, layers.output_bias.numpy(),
        layers.gate.array, layers.gate.scales, layers.gate_bias.numpy(),
        layers.up.array, layers.up.scales, layers.up_bias.numpy(),
        layers.down.array, layers.down.scales, layers.down_bias.numpy(),
        layers.norms.numpy(), layers.head_norms.numpy(), ends.final_norm.numpy(),
        ends.before_head.array, ends.head.array, ends.head.scales,
        screen.codes, screen.scale, screen.basis, screen.offset, screen.weight, screen.mean,
    )  # fmt: skip


def _memory(layers: _Layers, ends: _Ends) -> dict[str, np.ndarray]:
    rows = {
        "embedding": ends.embedding, "qkv": layers.qkv, "output": layers.output, "gate": layers.gate, "up": layers.up,
        "down": layers.down, "head": ends.head,
    }  # fmt: skip
    return {name: matrix.memory for name, matrix in rows.items() if isinstance(matrix, BlockRows)}


def _matrix(module: nn.Module) -> torch.Tensor:
    """A linear layer's weight in memory, also of a model that does not lie there."""
    return module.get_parameter("weight").detach().cpu()


def _put_bias(values: torch.Tensor, bias: torch.Tensor | None) -> None:
    if bias is not None:
        values.copy_(bias.detach())


def _put_norm(values: torch.Tensor, norm: Any, family: Family) -> None:
    weight = norm.weight  # OPT can have norms without one
    values[0] = 1.0 if weight is None else weight.detach().float() + (1.0 if family.unit_offset else 0.0)
    _put_bias(values[1], None if family.rms else norm.bias)
