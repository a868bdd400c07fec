"""Tables of a plan: quantiles of what methods test on a calibration text, and what they weigh tests with."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.activations import ACT2FN

from clada.methods.observed import norms_of, weight_sums
from clada.methods.plan import GRID, Plan
from clada.methods.rules import magnitude
from clada.methods.selection import Norms
from clada.models.anatomy import Anatomy, anatomy
from clada.models.hooks import Hooks, evaluating
from clada.models.open import model_revision
from clada.surprisal import surprisal_and_entropy_bits

SAMPLED = 512  # tokens for quantiles: 800,000 magnitudes a layer on the smallest model

SCREEN_PART = 2 / 3  # of the directions of the head's input are kept for the screen: memory, not bytes read

LOAD_QUANTILES = tuple(round(0.05 * i, 2) for i in range(1, 20))

WINDOW = 512  # tokens: a prompt, then as many again


def package_versions() -> dict[str, str]:
    """Of the packages that calibration depends on."""
    return {name: version(name) for name in ("clada", "torch", "transformers")}


@torch.inference_mode()
def tabulate(model: Any, name: str, windows: Sequence[Sequence[int]], provenance: dict[str, Any]) -> Plan:
    """Statistics of a text that thresholds are looked up in; a plan without settings.

    Args:
        model: a transformers model in float32.
        name: what it is called.
        windows: token ids.
        provenance: of the text.

    Returns:
        a plan whose tables are, for L layers, N neurons, Q inputs of the output projection and H inputs of the others:
        quantiles [L, G] at the shares `GRID` of `magnitude` |h_i| ||w_down_i|| (Eq. 9), `magnitude_plain` |h_i|,
        `gate` |act(gate_i)| gate_weight_i, `activation` |act(gate_i)|, `output`, `attention_input` and `mlp_input`
        |x_j| ||w_j|| and the same `_plain` without the norm, and of `screen` [1, G]; `gate_weight` [L, N] E|up_i|
        ||w_down_i||; `prior` [L, N], root mean square magnitudes; `basis` and `center` of the output head's screen.
    """
    parts = anatomy(model)
    norms = norms_of(parts)
    with evaluating(model):
        observed = _observe(parts, windows, norms.down_norm.shape)
    tables = _projection_tables(parts, norms, observed) | _screen_tables(parts, torch.cat(observed.inputs))
    loads = np.stack([np.concatenate(observed.surprisal), np.concatenate(observed.entropy)])
    names = ("surprisal_bits", "entropy_bits")
    quantiles = {str(q): dict(zip(names, np.quantile(loads, q, axis=1).tolist(), strict=True)) for q in LOAD_QUANTILES}
    sums = weight_sums(model, norms)
    provenance = {**provenance, "window": WINDOW, "packages": package_versions(), "weights": sums}
    return Plan(name, model_revision(name), (), quantiles, tables, provenance)


@dataclass
class _Observed:
    """What passed through a model while it read a text; L layers, N neurons, H inputs of the head.

    Attributes:
        squares: float64 [L, N], sums of h_i^2 over all tokens.
        tokens: how many these were.
        sampled: absolute values at sampled tokens, window by window [tokens, values], by kind and layer.
        inputs: of the head, window by window [tokens, H].
        surprisal: of the token after each sampled one, in bits, window by window.
        entropy: of the distribution before it, in bits, the same.
    """

    squares: torch.Tensor
    tokens: int = 0
    sampled: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)
    inputs: list[torch.Tensor] = field(default_factory=list)
    surprisal: list[np.ndarray] = field(default_factory=list)
    entropy: list[np.ndarray] = field(default_factory=list)

    def take(self, kind: str) -> list[torch.Tensor]:
        """The sampled values of a kind, layer by layer; their memory is the caller's from here on."""
        return [torch.cat(self.sampled.pop((kind, layer))) for layer in range(len(self.squares))]


def _observe(parts: Anatomy, windows: Sequence[Sequence[int]], neurons: tuple[int, ...]) -> _Observed:
    """Let a model of layers and `neurons` [L, N] read windows of a text."""
    activation, sample = ACT2FN[parts.activation], np.random.default_rng(0)
    per_window = math.ceil(SAMPLED / len(windows))
    observed = _Observed(torch.zeros(neurons, dtype=torch.float64))
    chosen = torch.zeros(0, dtype=torch.int64)

    def keep(kind: str, layer: int, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if kind == "magnitude":
            observed.squares[layer] += rows.double().square().sum(0)
        observed.sampled.setdefault((kind, layer), []).append(rows[chosen].abs())

    def on_input(kind: str, layer: int) -> Callable[..., None]:
        return lambda _module, args: keep(kind, layer, args[0])

    def on_output(kind: str, layer: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
        return lambda _module, _args, output: keep(kind, layer, function(output))

    with Hooks() as hooks:
        for i, layer in enumerate(parts.layers):
            for module, kind in (
                (layer.qkv[0], "attention_input"),
                (layer.output, "output"),
                (layer.up, "mlp_input"),
                (layer.down, "magnitude"),
            ):
                hooks.before(module, on_input(kind, i))
            if layer.gate is not None:
                hooks.after(layer.gate, on_output("activation", i, activation))
                hooks.after(layer.up, on_output("up", i, lambda x: x))
        for window in tqdm(windows, unit="window", desc="tables", file=sys.stderr):
            ids = torch.tensor(window)
            chosen = torch.from_numpy(sample.choice(len(window) - 1, min(per_window, len(window) - 1), replace=False))
            hidden = parts.stack(ids[None, :-1], use_cache=False).last_hidden_state[0]
            observed.inputs.append(hidden)
            observed.tokens += len(hidden)
            logits = parts.head(hidden[chosen])
            if parts.final_softcap:
                logits = parts.final_softcap * torch.tanh(logits / parts.final_softcap)
            surprisal, entropy = surprisal_and_entropy_bits(logits, ids[1:][chosen])
            observed.surprisal.append(surprisal.numpy())
            observed.entropy.append(entropy.numpy())
    return observed


def _quantiles(values: Sequence[np.ndarray]) -> np.ndarray:
    """Of each layer's values at the shares `GRID`, float32 [L, G]."""
    return np.stack([np.quantile(v, GRID) for v in values]).astype(np.float32)


def _projection_tables(parts: Anatomy, norms: Norms, observed: _Observed) -> dict[str, np.ndarray]:
    """The tables of what the projections of the layers read, and of the neurons."""
    tables: dict[str, np.ndarray] = {}
    gate_weight = np.ones_like(norms.down_norm)
    if parts.layers[0].gate is not None:
        for i, up in enumerate(observed.take("up")):
            gate_weight[i] = norms.down_norm[i] * up.mean(0).numpy()
        gates = [values.numpy() for values in observed.take("activation")]
        tables["activation"] = _quantiles(gates)
        tables["gate"] = _quantiles([magnitude(v, weight) for v, weight in zip(gates, gate_weight, strict=True)])
    else:  # the only test there is comes after the only product there is
        tables["activation"] = tables["gate"] = np.zeros((len(parts.layers), len(GRID)), np.float32)
    for kind, norm in (
        ("magnitude", norms.down_norm),
        ("output", norms.output_norm),
        ("attention_input", norms.input_norm[:, 0]),
        ("mlp_input", norms.input_norm[:, 1]),
    ):
        values = [values.numpy() for values in observed.take(kind)]
        tables[f"{kind}_plain"] = _quantiles(values)
        tables[kind] = _quantiles([magnitude(v, weight) for v, weight in zip(values, norm, strict=True)])
    tables["gate_weight"] = gate_weight
    tables["prior"] = ((observed.squares / observed.tokens).sqrt().numpy() * norms.down_norm).astype(np.float32)
    return tables


def _screen_tables(parts: Anatomy, x: torch.Tensor) -> dict[str, np.ndarray]:
    """The tables of the screen of the vocabulary, from inputs of the head [tokens, H]."""
    center = x.mean(0)
    width = x.shape[1]
    # Principal directions of the head's input: few of them make most of what differs between words.
    directions = torch.linalg.eigh((x - center).t().double() @ (x - center).double())[1].flip(1).t()
    basis = directions[: int(width * SCREEN_PART)].float()
    head = parts.head.weight.detach()
    size = (basis @ (head - head.mean(0)).t()).norm(dim=1)
    return {
        "basis": basis.numpy(),
        "center": center.numpy(),
        "screen": _quantiles([(((x - center) @ basis.t()).abs() * size).numpy()]),
    }
