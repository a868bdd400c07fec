"""Tables of a plan: quantiles of what methods test on a calibration text, and what they weigh tests with."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.activations import ACT2FN

from clada.methods.plan import GRID, Plan
from clada.methods.rules import magnitude
from clada.methods.selection import norms_of, weight_sums
from clada.models.architectures import anatomy
from clada.models.hooks import evaluating
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
    weights = norms_of(parts)
    activation, sample = ACT2FN[parts.activation], np.random.default_rng(0)
    n = len(parts.layers)
    per_window = math.ceil(SAMPLED / len(windows))
    rows: dict[tuple[str, int], list[torch.Tensor]] = {}
    squares, count = torch.zeros(n, weights.down_norm.shape[1], dtype=torch.float64), 0
    inputs: list[torch.Tensor] = []
    chosen = torch.zeros(0, dtype=torch.int64)

    def keep(kind: str, layer: int, x: torch.Tensor) -> None:
        rows.setdefault((kind, layer), []).append(x.reshape(-1, x.shape[-1])[chosen].abs())

    def taken(kind: str, layer: int, *, output: bool = False, act: bool = False) -> Any:
        def hook(_module: Any, args: tuple[torch.Tensor, ...], result: torch.Tensor | None = None) -> None:
            x = result if output and result is not None else args[0]
            if kind == "h":
                squares[layer] += x.reshape(-1, x.shape[-1]).double().square().sum(0)
            keep(kind, layer, activation(x) if act else x)

        return hook

    handles = []
    for i, layer in enumerate(parts.layers):
        handles += [
            layer.qkv[0].register_forward_pre_hook(taken("attention_input", i)),
            layer.output.register_forward_pre_hook(taken("output", i)),
            layer.up.register_forward_pre_hook(taken("mlp_input", i)),
            layer.down.register_forward_pre_hook(taken("h", i)),
        ]
        if layer.gate is not None:
            handles.append(layer.gate.register_forward_hook(taken("activation", i, output=True, act=True)))
            handles.append(layer.up.register_forward_hook(taken("up", i, output=True)))
    surprisal, entropy = [], []
    try:
        for window in tqdm(windows, unit="window", desc="tables", file=sys.stderr):
            ids = torch.tensor(window)
            chosen = torch.from_numpy(sample.choice(len(window) - 1, min(per_window, len(window) - 1), replace=False))
            with evaluating(model):
                hidden = parts.stack(ids[None, :-1], use_cache=False).last_hidden_state[0]
            inputs.append(hidden)
            count += len(hidden)
            logits = parts.head(hidden[chosen])
            if parts.final_softcap:
                logits = parts.final_softcap * torch.tanh(logits / parts.final_softcap)
            s, h = surprisal_and_entropy_bits(logits, ids[1:][chosen])
            surprisal.append(s.numpy())
            entropy.append(h.numpy())
    finally:
        for handle in handles:
            handle.remove()

    tables: dict[str, np.ndarray] = {}

    def put(name: str, values: list[np.ndarray]) -> None:
        tables[name] = np.stack([np.quantile(v, GRID) for v in values]).astype(np.float32)

    def both(name: str, kind: str, norms: np.ndarray) -> None:
        values = [torch.cat(rows.pop((kind, i))).numpy() for i in range(n)]
        put(f"{name}_plain", values)
        put(name, [magnitude(v, norm) for v, norm in zip(values, norms, strict=True)])

    gate_weight = np.ones_like(weights.down_norm)
    if parts.layers[0].gate is not None:
        for i in range(n):
            gate_weight[i] = weights.down_norm[i] * torch.cat(rows.pop(("up", i))).mean(0).numpy()
        gates = [torch.cat(rows.pop(("activation", i))).numpy() for i in range(n)]
        put("activation", gates)
        put("gate", [magnitude(v, weight) for v, weight in zip(gates, gate_weight, strict=True)])
    else:  # the only test there is comes after the only product there is
        tables["activation"] = tables["gate"] = np.zeros((n, len(GRID)), np.float32)
    both("magnitude", "h", weights.down_norm)
    both("output", "output", weights.output_norm)
    both("attention_input", "attention_input", weights.input_norm[:, 0])
    both("mlp_input", "mlp_input", weights.input_norm[:, 1])
    tables["gate_weight"] = gate_weight
    tables["prior"] = ((squares / count).sqrt().numpy() * weights.down_norm).astype(np.float32)

    x = torch.cat(inputs)
    center = x.mean(0)
    width = x.shape[1]
    # Principal directions of the head's input: few of them make most of what differs between words.
    directions = torch.linalg.eigh((x - center).t().double() @ (x - center).double())[1].flip(1).t()
    tables["basis"] = directions[: int(width * SCREEN_PART)].float().numpy()
    tables["center"] = center.numpy()
    head = parts.head.weight.detach()
    terms = torch.from_numpy(tables["basis"])
    size = (terms @ (head - head.mean(0)).t()).norm(dim=1)
    put("screen", [(((x - center) @ terms.t()).abs() * size).numpy()])

    loads = np.stack([np.concatenate(surprisal), np.concatenate(entropy)])
    names = ("surprisal_bits", "entropy_bits")
    quantiles = {str(q): dict(zip(names, np.quantile(loads, q, axis=1).tolist(), strict=True)) for q in LOAD_QUANTILES}
    sums = weight_sums(model, weights)
    provenance = {**provenance, "window": WINDOW, "packages": package_versions(), "weights": sums}
    return Plan(name, model_revision(name), (), quantiles, tables, provenance)
