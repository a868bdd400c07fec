"""What is read off a model in torch: norms of weights, sums that tell them apart, statistics of activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from clada.methods.rules import neuron_sums, statistics_of_sums
from clada.methods.selection import Norms
from clada.models.anatomy import Anatomy, Projection
from clada.models.hooks import Hooks


@torch.inference_mode()
def norms_of(parts: Anatomy) -> Norms:
    """The norms of a model that was taken apart, in float32."""

    def of(*parts: Projection | None) -> np.ndarray:
        columns = [part.matrix.float().square().sum(0) for part in parts if part is not None]
        return torch.stack(columns).sum(0).sqrt().cpu().numpy()

    layers = parts.layers
    return Norms(
        np.stack([np.stack([of(*layer.qkv), of(layer.gate, layer.up)]) for layer in layers]),
        np.stack([of(layer.output) for layer in layers]),
        np.stack([of(layer.down) for layer in layers]),
    )


@torch.inference_mode()
def weight_sums(model: Any, norms: Norms) -> list[list[float]]:
    """Numbers that change when a model's weights do, to tell whether a plan is of these weights.

    Args:
        model: a transformers model.
        norms: of its weights.

    Returns:
        per layer, mean norms of the columns of the attention's and the MLP's inputs, the output projection and the
        down-projection, each plain and weighted with a ramp, as permuted weights have the same means; last the sizes of
        embedding, output head and all vectors.
    """
    layers = []
    for attention, mlp, output, down in zip(
        norms.input_norm[:, 0], norms.input_norm[:, 1], norms.output_norm, norms.down_norm, strict=True
    ):
        vectors = [np.asarray(vector, np.float64) for vector in (attention, mlp, output, down)]
        layers.append([float(v.mean()) for v in vectors] + [float(v @ np.linspace(0, 2, len(v))) for v in vectors])
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    if matrices[0] is matrices[1]:  # tied
        matrices.pop()
    sizes = [float(torch.linalg.vector_norm(matrix, dtype=torch.float32)) for matrix in matrices]
    small = [parameter.detach().double().square().sum() for parameter in model.parameters() if parameter.dim() == 1]
    return [*layers, [*sizes, float(sum(small)) ** 0.5]]


def neuron_statistics(z: torch.Tensor, kind: str, down_norm: np.ndarray) -> np.ndarray:
    """The statistics of a layer's neurons over some tokens; see `clada.methods.rules.statistics_of_sums`.

    Args:
        z: activations [T, N], T at least 1.
        kind: `flocking` or `magnitude`.
        down_norm: [N].

    Returns:
        float32 [N].
    """
    return statistics_of_sums(neuron_sums(z, kind).cpu().numpy(), len(z), kind, down_norm)


@contextmanager
def prompt_statistics(
    down_projections: Sequence[torch.nn.Module], down_norm: np.ndarray, kind: str | None
) -> Iterator[np.ndarray | None]:
    """Within the block, the statistics of the tokens that run: float32 [L, N].

    Args:
        down_projections: of the model that runs, layer by layer.
        down_norm: [L, N].
        kind: `flocking` or `magnitude`, see `clada.methods.rules.statistics_of_sums`; None: nothing is collected.
    """
    if kind is None:
        yield None
        return
    values = np.zeros(down_norm.shape, np.float32)
    sums = np.zeros(down_norm.shape)
    seen = [0] * len(values)  # tokens, of each layer

    def hook_of(layer: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            z = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[layer] += neuron_sums(z, kind).cpu().numpy()
            seen[layer] += len(z)
            values[layer] = statistics_of_sums(sums[layer], seen[layer], kind, down_norm[layer])

        return hook

    with Hooks() as hooks:
        for i, module in enumerate(down_projections):
            hooks.before(module, hook_of(i))
        yield values
