"""`clada calibrate`: base thresholds by an error-controlled search on the model's output (Eq. 10).

One number is searched, the share of neurons to drop; every layer's thresholds are the quantiles of its own magnitudes
at that share. It grows step by step as long as the loss stays within the budget: the rise of perplexity over the dense
model, its upper 95 % bound, on held text, with the load rule active and every token sparse. The steps are fixed and the
first failure ends the search (fixed-sequence testing), so the bound of the chosen step holds although several were
tried on the same text.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for torch
    from clada.cli import main as cli

    raise SystemExit(cli(["calibrate", *sys.argv[1:]]))

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy import stats
from tqdm import tqdm

from clada.coefficients import Coefficients, resolve_coefficients, to_json
from clada.errors import InputError
from clada.families import gate_activation, gated_mlps, replaced_forwards
from clada.kernels import GatedMLP, available_cores, neuron_mask, set_threads
from clada.load import surprisal_and_entropy_bits
from clada.models import bos_tokens, load_model, model_revision
from clada.plan import Plan, cached_plan_path
from clada.policies import make_policy

WINDOW = 512  # tokens with a growing context; long enough that most have hundreds of tokens before them
SCORED_TOKENS = 16_000  # least number for the loss, so that a 2 % budget stands well above its own uncertainty
SAMPLED_TOKENS = 1_024  # per layer for the quantiles: 1.5 million magnitudes on the smallest model
GATE_SHARE = 0.4  # of the neurons to drop, those the gate test drops: 20 of 50 % cost little more than none
SHARES = np.arange(0.15, 0.96, 0.03)  # of neurons to drop; fewer save too little to be worth a plan
QUANTILES = np.linspace(0, 1, 1001)
LOAD_QUANTILE = "0.7"


@dataclass(frozen=True)
class Loss:
    """What a setting loses against the dense model on held windows.

    Attributes:
        nll: mean negative log-likelihood of each window in nats, [windows].
        active: share of neurons computed.
    """

    nll: np.ndarray
    active: float


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    if not 0 < args.max_loss < 1:
        raise InputError(f"--max-loss {args.max_loss} is outside (0, 1); 0.02 allows perplexity to rise by 2 %")
    model, tokenizer = load_model(args.model)
    set_threads(args.threads or available_cores())
    windows, text_sha256 = read_windows(args.text, tokenizer, model_revision(args.model))
    coefficients = resolve_coefficients(args.coefficients, args.model)
    plan = calibrate(model, args.model, windows, args.max_loss, coefficients, {"text_sha256": text_sha256})
    out = Path(args.out) if args.out else cached_plan_path(plan.revision)
    plan.save(out)
    print(
        f"clada: {plan.loss['active_fraction']:.1%} of the neurons active, perplexity {plan.loss['ppl_rise']:+.2%} "
        f"(95 % bound {plan.loss['ppl_rise_upper']:+.2%}) on {plan.loss['scored_tokens']:,} tokens; plan in {out}",
        file=sys.stderr,
    )


def read_windows(name: str, tokenizer: Any, revision: str) -> tuple[list[list[int]], str]:
    """Windows of calibration text: half for the thresholds' quantiles, half held for the loss.

    Args:
        name: a UTF-8 text file, or the folder of a study of the same model, whose natural sequences are taken.
        tokenizer: of the model.
        revision: of the model.

    Returns:
        (windows of `WINDOW` + 1 token ids, each with BOS where the tokenizer puts one; SHA-256 of the tokens).

    Raises:
        InputError: no such file, not UTF-8, a study of another model, or too little text.
    """
    path = Path(name)
    bos = bos_tokens(tokenizer)
    try:
        if path.is_dir():
            if json.loads((path / "study.json").read_text(encoding="utf-8"))["revision"] != revision:
                raise InputError(
                    f"{name} is a study of another model, whose tokens mean something else; make one of this"
                )
            table = pq.read_table(path / "corpus.parquet", columns=["group", "role", "token_ids"]).to_pylist()
            texts = [
                row["token_ids"][len(bos) :] for row in table if row["group"] == "nls" and row["role"] in ("A", "B")
            ]
        else:
            text = path.read_text(encoding="utf-8")
            texts = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    except (OSError, ValueError, KeyError) as problem:
        raise InputError(
            f"cannot read calibration text from {name} ({problem}); give a UTF-8 file or a study folder"
        ) from None
    size = WINDOW + 1 - len(bos)
    windows = [bos + ids[i : i + size] for ids in texts for i in range(0, len(ids) - size + 1, size)]
    needed = 2 * math.ceil(SCORED_TOKENS / WINDOW)
    if len(windows) < needed:
        raise InputError(
            f"too little text: {name} gives {len(windows)} windows of {WINDOW + 1} tokens, {needed} needed; give more "
            f"text, or a study of at least {needed // 2} pairs at length {WINDOW}"
        )
    windows = windows[:needed]
    return windows, hashlib.sha256(np.array(windows, dtype="<i4").tobytes()).hexdigest()


def calibrate(
    model: Any,
    name: str,
    windows: Sequence[Sequence[int]],
    max_loss: float,
    coefficients: Coefficients,
    provenance: dict[str, Any],
) -> Plan:
    """Search the plan of a model.

    Args:
        model: a transformers model with gated MLPs.
        name: what it is called.
        windows: token ids; the first half sets quantiles, the second half is scored.
        max_loss: perplexity rise allowed, as a share.
        coefficients: the load rule, active while searching.
        provenance: of the text.

    Returns:
        the plan with the largest share dropped whose loss, upper 95 % bound, is within the budget.
    """
    mlps = gated_mlps(model)
    weights = [GatedMLP.from_module(mlp, gate_activation(model.config)) for mlp in mlps]
    half = len(windows) // 2
    with tqdm(
        total=len(windows) + (1 + len(SHARES)) * half, unit="window", desc="calibrate", file=sys.stderr
    ) as progress:
        gate_grid, magnitude_grid = _magnitude_quantiles(model, mlps, weights, windows[:half], progress)
        loads = _loads(model, windows, progress)
        pooled = np.concatenate([np.stack(load) for load in loads], axis=1)
        quantiles = {
            LOAD_QUANTILE: dict(
                zip(("surprisal_bits", "entropy_bits"), np.quantile(pooled, 0.7, axis=1).tolist(), strict=True)
            )
        }
        dense_nll = np.array([load[0].mean() * math.log(2) for load in loads[half:]])

        def plan_at(drop: float, loss: dict[str, Any]) -> Plan:
            gate, magnitude = (
                tuple(float(np.interp(share, QUANTILES, layer)) for layer in grid)
                for grid, share in ((gate_grid, GATE_SHARE * drop), (magnitude_grid, drop))
            )
            return Plan(
                name,
                model_revision(name),
                gate,
                magnitude,
                max_loss,
                loss,
                quantiles,
                to_json(coefficients),
                {
                    **provenance,
                    "window": WINDOW,
                    "packages": {p: version(p) for p in ("clada", "torch", "transformers")},
                },
            )

        def measure(drop: float) -> dict[str, Any]:
            found = _sparse_loss(
                model, mlps, weights, plan_at(drop, {}), coefficients, windows[half:], loads[half:], progress
            )
            return _loss_against(found, dense_nll)

        chosen, best = 0.0, None
        for share in SHARES:
            loss = measure(share)
            if loss["ppl_rise_upper"] > max_loss:
                break
            chosen, best = float(share), loss
        best = best or measure(0.0)
    return plan_at(chosen, {**best, "dropped_share": chosen, "scored_tokens": half * WINDOW})


def _loss_against(found: Loss, dense_nll: np.ndarray) -> dict[str, Any]:
    """Perplexity rise with its one-sided 95 % bound, windows as the units (tokens within one are dependent)."""
    difference = found.nll - dense_nll
    bound = stats.t.ppf(0.95, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference))
    return {
        "ppl_rise": math.expm1(difference.mean()),
        "ppl_rise_upper": math.expm1(difference.mean() + bound),
        "active_fraction": found.active,
    }


@torch.inference_mode()
def _magnitude_quantiles(
    model: Any, mlps: list[Any], weights: list[GatedMLP], windows: Sequence[Sequence[int]], progress: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of |act(gate)| * norm and of c, each [layers, len(QUANTILES)], over tokens spread over the windows."""
    every = max(1, len(windows) * WINDOW // SAMPLED_TOKENS)
    seen: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in mlps]

    def observing(layer: int) -> Any:
        w, mlp = weights[layer], mlps[layer]

        def forward(x: torch.Tensor) -> torch.Tensor:
            gate = mlp.act_fn(mlp.gate_proj(x))
            h = gate * mlp.up_proj(x)
            sampled = slice(every // 2, None, every)
            seen[layer].append(((gate[0, sampled].abs() * w.norm).numpy(), (h[0, sampled].abs() * w.norm).numpy()))
            return mlp.down_proj(h)

        return forward

    with replaced_forwards(mlps, [observing(i) for i in range(len(mlps))]):
        for window in windows:
            model.base_model(torch.tensor([window[:-1]]), use_cache=False)
            progress.update()
    grids = [[np.quantile(np.concatenate(values), QUANTILES) for values in zip(*layer, strict=True)] for layer in seen]
    return np.stack([g[0] for g in grids]), np.stack([g[1] for g in grids])


@torch.inference_mode()
def _loads(model: Any, windows: Sequence[Sequence[int]], progress: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Surprisal and entropy (bits) of tokens 1.. of each window under the dense model."""
    found = []
    for window in windows:
        ids = torch.tensor(window)
        s, h = surprisal_and_entropy_bits(model(ids[None, :-1], use_cache=False).logits[0], ids[1:])
        found.append((s.numpy(), h.numpy()))
        progress.update(0.5)
    return found


@torch.inference_mode()
def _sparse_loss(
    model: Any,
    mlps: list[Any],
    weights: list[GatedMLP],
    plan: Plan,
    coefficients: Coefficients,
    windows: Sequence[Sequence[int]],
    loads: Sequence[tuple[np.ndarray, np.ndarray]],
    progress: Any,
) -> Loss:
    """Score windows with every token sparse. Loads are the dense model's: one pass cannot know its own beforehand."""
    policy = make_policy("clada", plan, coefficients, len(mlps))
    nll, active = [], []
    for window, (surprisal, entropy) in zip(windows, loads, strict=True):
        # The first token was drawn from nothing, so it is under no load; the last one is only predicted.
        flags = [
            (False, False),
            *(policy.coefficients.loads(s, h) for s, h in zip(surprisal[:-1], entropy[:-1], strict=True)),
        ]
        factor = torch.tensor([policy.coefficients.factor(*f) for f in flags], dtype=torch.float32)
        ids = torch.tensor(window)
        with _masked_mlps(mlps, weights, policy.gate, policy.magnitude, factor) as shares:
            logits = model(ids[None, :-1], use_cache=False).logits[0]
        nll.append(float(torch.nn.functional.cross_entropy(logits, ids[1:])))
        active.append(np.mean(shares))
        progress.update()
    return Loss(np.array(nll), float(np.mean(active)))


@contextmanager
def _masked_mlps(
    mlps: list[Any], weights: list[GatedMLP], gates: Sequence[float], magnitudes: Sequence[float], factor: torch.Tensor
) -> Iterator[list[float]]:
    """Within the block the MLPs zero what the engine would not compute; yields the list of active shares."""
    shares: list[float] = []

    def masked(layer: int) -> Any:
        w, mlp = weights[layer], mlps[layer]

        def forward(x: torch.Tensor) -> torch.Tensor:
            gate = mlp.act_fn(mlp.gate_proj(x))
            h = gate * mlp.up_proj(x)
            mask = neuron_mask(w, gate[0], h[0], factor * gates[layer], factor * magnitudes[layer])
            shares.append(float(mask.float().mean()))
            return mlp.down_proj(h * mask)

        return forward

    with replaced_forwards(mlps, [masked(i) for i in range(len(mlps))]):
        yield shares
