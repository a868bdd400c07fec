"""DejaVu's predictors: which neurons a token needs, guessed from what enters the layer (Liu et al., arXiv 2310.17157).

A matrix of low rank per layer, (x, 1) -> (x, 1) P Q, trained by logistic regression to tell the half of the neurons
of the largest magnitude |h_i| ||w_down_i|| from the others; then the neurons of the highest scores are computed.
Where a neuron is active when one product is positive (ReLU), a linear guess can be right; the magnitude of a gated
neuron is a product of two. A baseline of quality: `clada.sparse` and `clada evaluate` run it, the kernels do not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from clada.errors import InputError
from clada.methods.observed import norms_of
from clada.methods.plan import Plan
from clada.methods.rules import keeps_neuron, magnitude
from clada.models.anatomy import anatomy
from clada.models.hooks import Hooks, evaluating

NEEDED = 0.5  # share of the neurons that count as needed in training; the scores rank them for any share

RANK = 4  # one in so many dimensions of the input

STEPS, BATCH, RATE = 640, 512, 3e-3

TABLES = ("predictor_in", "predictor_out")


@torch.inference_mode()
def _examples(model: Any, windows: Sequence[Sequence[int]], plan: Plan) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Per layer, inputs float16 [T, H + 1] and which neurons each needs, [T, N / 8] in packed bits."""
    parts = anatomy(model)
    limits, norms = plan.threshold("magnitude", NEEDED), norms_of(parts).down_norm
    inputs: list[list[torch.Tensor]] = [[] for _ in parts.layers]
    needed: list[list[np.ndarray]] = [[] for _ in parts.layers]
    with Hooks() as hooks:
        for i, layer in enumerate(parts.layers):

            def enters(_module: Any, args: tuple[torch.Tensor], i: int = i) -> None:
                inputs[i].append(_with_constant(args[0]).half())

            def leaves(_module: Any, args: tuple[torch.Tensor], i: int = i) -> None:
                h = args[0].reshape(-1, args[0].shape[-1]).float().numpy()
                # ReLU may leave more than half at zero, and these are not needed.
                kept = keeps_neuron(h, norms[i], limits[i]) & (magnitude(h, norms[i]) > 0)
                needed[i].append(np.packbits(kept, axis=1))

            hooks.before(layer.up, enters)
            hooks.before(layer.down, leaves)
        with evaluating(model):
            for window in tqdm(windows, unit="window", desc="dejavu", file=sys.stderr):
                parts.stack(torch.tensor(window)[None], use_cache=False)
    return [torch.cat(rows) for rows in inputs], [np.concatenate(rows) for rows in needed]


def train(
    model: Any, plan: Plan, windows: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], rank: int | None = None
) -> tuple[Plan, float]:
    """Train the predictors of every layer.

    Args:
        model: a transformers model in float32 on the CPU.
        plan: its tables say which magnitudes count as needed.
        windows: token ids to train on.
        held_out: token ids to judge by.
        rank: of the matrices; None for a quarter of the layer's input.

    Returns:
        the plan with `predictor_in` [L, H + 1, R] and `predictor_out` [L, R, N] in float16, and the share of the needed
        half of the neurons that are among the half of the highest scores, over `held_out`; guessing finds half.
    """
    inputs, needed = _examples(model, windows, plan)
    judged, truth = _examples(model, held_out, plan)
    width, neurons = inputs[0].shape[1], plan.tables["prior"].shape[1]
    rank = rank or width // RANK
    factors: dict[str, list[np.ndarray]] = {name: [] for name in TABLES}
    hits = total = 0
    generator = torch.Generator().manual_seed(0)
    for i in tqdm(range(len(inputs)), unit="layer", desc="dejavu", file=sys.stderr):
        x, scale = inputs[i].float(), inputs[i].float().square().mean(0).sqrt().clamp_min(1e-6)
        into = (torch.randn(width, rank, generator=generator) / width**0.5).requires_grad_()
        out = torch.zeros(rank, neurons).requires_grad_()
        optimizer = torch.optim.Adam([into, out], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            bits = np.unpackbits(needed[i][rows.numpy()], axis=1, count=neurons)
            loss = binary_cross_entropy_with_logits((x[rows] / scale) @ into @ out, torch.from_numpy(bits).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        into = into.detach() / scale[:, None]
        size = into.norm() / into.shape[1] ** 0.5  # float16 holds both factors well when they are near one
        tables = ((into / size).half(), (out.detach() * size).half())
        for name, table in zip(TABLES, tables, strict=True):
            factors[name].append(table.numpy())
        guessed = guess(judged[i][:, :-1], tables[0].float(), tables[1].float(), neurons // 2)
        bits = np.unpackbits(truth[i], axis=1, count=neurons).astype(bool)
        hits, total = hits + int((guessed.numpy() & bits).sum()), total + int(bits.sum())
    trained = {name: np.stack(rows) for name, rows in factors.items()}
    return replace(plan, tables={**plan.tables, **trained}), hits / total


def _with_constant(x: torch.Tensor) -> torch.Tensor:
    """[T, H + 1] float32 of inputs of any leading shape: the last column lets scores have a mean."""
    rows = x.reshape(-1, x.shape[-1]).float()
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def guess(x: torch.Tensor, into: torch.Tensor, out: torch.Tensor, size: int) -> torch.Tensor:
    """The neurons that inputs [..., H] are guessed to need: bool [T, N], so many of the highest scores each."""
    scores = _with_constant(x) @ into @ out
    chosen = scores.topk(size, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)


def predictors(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The predictors of a plan, float32 [L, H + 1, R] and [L, R, N].

    Raises:
        InputError: none were trained.
    """
    if TABLES[0] not in plan.tables:
        raise InputError(
            f"the plan of {plan.model} has no predictors; train them with 'clada calibrate --model {plan.model} "
            "--text FILE --methods clada,dejavu'"
        )
    into, out = (torch.from_numpy(plan.tables[name]).float() for name in TABLES)
    return into, out
