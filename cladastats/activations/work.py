"""Neuron activations, surprisal and entropy at the target token (paper, sections 2.1.2 and 2.2.1): tasks and workers.

Within a block, work that sequences share is done once: B runs in segments that end where a hybrid leaves it, its keys
and values are copied there as the start of the hybrid, and once more at the end as the context of B*.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import DynamicCache

from clada.errors import StudyError
from clada.models.architectures import check_length, down_norms
from clada.models.hooks import capture_last_activations
from clada.models.open import load_model, model_revision
from clada.surprisal import surprisal_and_entropy_bits, surprisal_bits
from cladastats.activations.attention import causal_blocks
from cladastats.activations.parts import Part
from cladastats.sequences.tokenizer import check_tokenizer

# Tokens at the end whose surprisal is kept while running: the previous one is a control, and what is one token here
# may be several of an independent model.
RECENT = 8


@dataclass(frozen=True)
class Measurement:
    """What was measured of one sequence at its target token.

    Attributes:
        activations: float [layers, neurons], input of each layer's down-projection at the target token.
        recent_bits: surprisal of the last tokens, at most `RECENT`; the last is that of the target.
        entropy_bits: of the distribution that predicts the target.
        target_id: the target token.
    """

    activations: np.ndarray
    recent_bits: np.ndarray
    entropy_bits: float
    target_id: int

    @property
    def surprisal_bits(self) -> float:
        """Surprisal of the target in bits."""
        return float(self.recent_bits[-1])

    @property
    def previous_surprisal_bits(self) -> float:
        """Surprisal in bits of the token before the target; NaN where nothing predicts it."""
        return float(self.recent_bits[-2]) if len(self.recent_bits) > 1 else float("nan")


class PrefixSharingRunner:
    """Runs sequences through a model; what several of them begin with runs once.

    Attributes:
        token_forwards: tokens that went through the model so far.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.token_forwards = 0

    @torch.inference_mode()
    def measure(self, sequences: Mapping[str, np.ndarray]) -> dict[str, Measurement]:
        """Measure sequences, each under its name.

        Args:
            sequences: token ids of at least two tokens by name; the last is the target.

        Returns:
            measurements by name.
        """
        measured: dict[str, Measurement] = {}
        with causal_blocks(self.model), capture_last_activations(self.model) as captured:
            self._run_branches(sequences, 0, DynamicCache(config=self.model.config), [], captured, measured)
        return measured

    def _run_branches(
        self,
        sequences: Mapping[str, np.ndarray],
        begin: int,
        cache: DynamicCache,
        tail: list[torch.Tensor],
        captured: list[torch.Tensor],
        measured: dict[str, Measurement],
    ) -> None:
        """Run sequences on from the tokens they share, one branch for each token in which they then differ.

        Args:
            sequences: token ids by name; all begin with the same `begin` tokens.
            begin: tokens that ran already.
            cache: keys and values of these.
            tail: logits after the last of these, at most `RECENT` + 1, each [vocabulary].
            captured: activations of the last token that ran, a tensor [neurons] per layer.
            measured: where what is found is put, by name.
        """
        first = next(iter(sequences.values()))
        end = begin + _shared_tokens([ids[begin:] for ids in sequences.values()])
        if end > begin:
            # Logits, costly where the vocabulary is large, are needed only where a sequence ends soon.
            keep = RECENT + 1 if min(map(len, sequences.values())) - end <= RECENT else 1
            tail = [*tail, *self._forward(first[begin:end], cache, keep)][-RECENT - 1 :]
        branches: dict[int, dict[str, np.ndarray]] = {}
        for name, ids in sequences.items():
            if len(ids) == end:
                measured[name] = _measurement(captured, tail, ids)
            else:
                branches.setdefault(int(ids[end]), {})[name] = ids
        # The branch of most sequences takes the cache itself, last, so that there is one copy at a time.
        ordered = sorted(branches.values(), key=len)
        for i, branch in enumerate(ordered):
            branch_cache = cache if i == len(ordered) - 1 else copy.deepcopy(cache)
            self._run_branches(branch, end, branch_cache, tail, captured, measured)

    def _forward(self, token_ids: np.ndarray, cache: DynamicCache, keep: int) -> torch.Tensor:
        """Run tokens after a cache; logits [positions, vocabulary] of the last of them, at most `keep`."""
        ids = torch.tensor(token_ids, dtype=torch.long, device=self.model.device)[None]
        self.token_forwards += len(token_ids)
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0]


def _shared_tokens(sequences: Sequence[np.ndarray]) -> int:
    """Number of tokens that all of these sequences begin with."""
    shortest = min(map(len, sequences))
    ids = np.stack([sequence[:shortest] for sequence in sequences])
    differ = (ids != ids[0]).any(0)
    return int(differ.argmax()) if differ.any() else shortest


def _measurement(captured: list[torch.Tensor], tail: list[torch.Tensor], ids: np.ndarray) -> Measurement:
    last = torch.tensor(ids[1:][-RECENT:], dtype=torch.long, device=tail[0].device)
    logits = torch.stack(tail[-len(last) - 1 : -1])
    before = surprisal_bits(logits[:-1], last[:-1])
    target, entropy = surprisal_and_entropy_bits(logits[-1:], last[-1:])
    activations = torch.stack(captured).float().cpu().numpy()
    recent = torch.cat((before, target)).cpu().numpy()
    return Measurement(activations, recent, float(entropy), int(ids[-1]))


Sequences = dict[str, np.ndarray]  # token ids by sequence_id


def sequences_of(blocks: list[pd.DataFrame]) -> list[Sequences]:
    """The sequences of each block."""
    return [dict(zip(block["sequence_id"], block["token_ids"], strict=True)) for block in blocks]


@dataclass(frozen=True)
class Task:
    """What measuring a shard depends on besides its sequences: with these the same everywhere, so are the results.

    Attributes:
        model, revision, dtype, storage_dtype, threads, length: as `StudyConfig` has them.
        tokenizer_sha256: the same; None: the tokenizer is not compared.
    """

    model: str
    revision: str
    dtype: str
    storage_dtype: str
    threads: int
    length: int
    tokenizer_sha256: str | None = None

    def worker(self) -> Worker:
        """Open the model.

        Raises:
            StudyError: the name opens another model here, or another tokenizer.
            ModelError: it cannot be opened, or its positions do not reach the length.
        """
        if model_revision(self.model) != self.revision:
            raise StudyError(
                f"the study is of {self.model} at {self.revision[:20]}, which is not what that name opens here; "
                "use another --study folder, or the model it was made with"
            )
        model, tokenizer = load_model(self.model, dtype=self.dtype)
        if self.tokenizer_sha256 is not None:
            check_tokenizer(tokenizer, self.tokenizer_sha256, self.model)
        check_length(model.config, self.length + 1, "make a study with a shorter --length")
        return Worker(self, PrefixSharingRunner(model), down_norms(model).numpy())


@dataclass
class Worker:
    """An open model that measures shards.

    Attributes:
        task: what it was opened for.
        runner: of the model.
        norms: of the columns of each layer's down-projection, [layers, neurons].
    """

    task: Task
    runner: PrefixSharingRunner
    norms: np.ndarray

    def part(self, blocks: Sequence[Sequences]) -> tuple[Part, int]:
        """Measure the blocks of one shard.

        Returns:
            its part, and how many tokens went through the model for it.

        Raises:
            StudyError: an activation is not finite, or too large for the storage dtype.
        """
        torch.set_num_threads(self.task.threads)  # of this very thread
        before = self.runner.token_forwards
        measured: dict[str, Measurement] = {}
        for block in blocks:
            measured |= self.runner.measure(block)
        ids = list(dict.fromkeys(sequence_id for block in blocks for sequence_id in block))
        rows = [measured[sequence_id] for sequence_id in ids]
        activations = np.stack([m.activations for m in rows])
        storage_dtype = self.task.storage_dtype
        with np.errstate(over="ignore"):  # an overflow becomes inf and is reported below
            stored = activations.astype(storage_dtype)
        if not np.isfinite(stored).all():
            largest = np.abs(activations).max()
            raise StudyError(
                f"an activation of {largest:.3g} does not fit {storage_dtype}; make the study with --storage-dtype "
                "float32"
                if np.isfinite(largest)
                else "the model gives activations that are not numbers; try another dtype or model"
            )
        part = Part(
            ids,
            {
                "activations": stored,
                "surprisal_bits": np.array([m.surprisal_bits for m in rows]),
                "entropy_bits": np.array([m.entropy_bits for m in rows]),
                "previous_surprisal_bits": np.array([m.previous_surprisal_bits for m in rows]),
                "target_id": np.array([m.target_id for m in rows]),
            },
        )
        return part, self.runner.token_forwards - before
