"""What a causal language model gives at every token of many texts: in batches, and with memory that has a bound.

Texts of similar length are read together, shorter ones filled up behind. No mask is given: in a causal model what comes
later changes nothing before, state-space models included. Whether that holds is tried on the first text of every
model: one that looks ahead is refused, and where values depend on what follows by more than rounding, only texts of
one length are read together. Logits are made and reduced a piece at a time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from clada.errors import InputError, ModelError
from clada.models.architectures import down_norms
from clada.models.hooks import evaluating, observe_activations
from clada.models.quiet import quiet_transformers
from cladastats.texts.effort import EffortRule
from cladastats.texts.lens import Lens

# Tokens read together, more only where one text alone is longer: of 2,048 a layer's activations no longer fit the
# caches, and SmolLM2 took a quarter longer.
BATCH = 512

LOGITS = 2**22  # that are in memory at once, so that all sums over them find them in the caches

LEAST_ROWS = 64  # of logits at once, or a large vocabulary's head would be read too often for too few tokens

STATES = 2**27  # numbers of hidden states of all layers that are kept at once, where one text alone is not more

TRIED = 128  # tokens that a model is tried on

SAME_BITS = 1e-4  # two runs of a model in float32 differ by less

LOOKS_AHEAD_BITS = 0.05  # what follows changes a surprisal by as much only where the model sees it

DEVICE_BITS = 1e-3


@dataclass(frozen=True)
class Tokens:
    """What is measured at each of n tokens.

    There are R readouts: the model's own alone, or those of layers 0 to L, of which the last is the model's own.

    Attributes:
        surprisal: [R, n] bits.
        entropy: [R, n] bits, of the distribution that predicts it.
        boundary_before: [R, n] log2 of the chance that a token begins with white space there, or the text ends.
        boundary_after: [R, n] the same after it.
        hidden_norm: [R, n] of the states that leave the layer; None where layers were not found.
        effort: [L, n] share of neurons at or above the threshold; None without thresholds.
        effort_load: [n] mean over layers, by the token's load.
        magnitude: [n] mean over layers of the summed magnitudes.
    """

    surprisal: np.ndarray
    entropy: np.ndarray
    boundary_before: np.ndarray
    boundary_after: np.ndarray
    hidden_norm: np.ndarray | None
    effort: np.ndarray | None
    effort_load: np.ndarray | None
    magnitude: np.ndarray | None


def read_out(logits: torch.Tensor, targets: torch.Tensor, boundaries: torch.Tensor | None) -> torch.Tensor:
    """Surprisal, entropy and the chance of a boundary, all from one pass over logits.

    As `clada.surprisal.surprisal_and_entropy_bits`, but in float32, whose sums of up to a million terms below one are
    good for 1e-5 bits, and without a copy in float64: these are most of the time that words take after the model.

    Args:
        logits: [n, V], overwritten.
        targets: [n], token ids.
        boundaries: [V] 1 where a token begins a word or ends the text, else 0; None: that chance is left at 1.

    Returns:
        float64 [3, n] on the CPU, in bits: surprisal, entropy, log2 of the chance.
    """
    x = logits.float()
    x -= x.amax(-1, keepdim=True)
    chosen = x.gather(-1, targets[:, None])[:, 0]
    p = x.exp()
    total = p.sum(-1)
    chance = (
        torch.ones_like(total) if boundaries is None else torch.linalg.vecdot(p, boundaries) / total
    )  # mv adds up terms one by one
    mean = torch.linalg.vecdot(p, x) / total
    if not torch.isfinite(mean).all():  # 0 times minus infinity, of words that a model rules out
        mean = torch.linalg.vecdot(p, x.clamp_(min=torch.finfo(x.dtype).min / 2)) / total
    bits = torch.stack([total.log() - chosen, total.log() - mean, chance.clamp(min=1e-38).log()])
    return bits.cpu().double() / math.log(2)


@dataclass(frozen=True)
class _Window:
    """A sequence that the model reads.

    Attributes:
        text: number of its text.
        ids: its tokens after the start token.
        first: of them, the first that is measured here.
    """

    text: int
    ids: Sequence[int]
    first: int


class Reader:
    """Reads texts as tokens.

    Args:
        model: a transformers causal language model.
        start: the token that every sequence begins with.
        window: tokens read at once, with the start token.
        boundaries: tokens that begin a word; empty for a tokenizer of which nobody knows.
        effort: thresholds of the neurons; None: effort is not measured.
        lens: every layer is read out.
    """

    def __init__(
        self,
        model: Any,
        start: int,
        window: int,
        boundaries: Sequence[int],
        effort: EffortRule | None = None,
        lens: bool = False,
    ) -> None:
        self.model, self.start, self.window, self.effort, self.lens = model, start, window, effort, lens
        self.parts = Lens(model)
        self.padding = True
        self._tried = False
        self._boundaries = sorted(boundaries)
        self._marked: torch.Tensor | None = None
        if effort is not None:
            self._thresholds = torch.from_numpy(np.asarray(effort.thresholds, np.float32)).to(model.device)
            self._norms = down_norms(model).to(model.device)
            if len(self._norms) != len(self._thresholds):
                raise InputError(
                    f"the thresholds are of {len(self._thresholds)} layers, the model has {len(self._norms)}; "
                    "give thresholds of this model"
                )

    def read(self, texts: Sequence[Sequence[int]]) -> list[Tokens]:
        """Measure texts, each after at least half a window of what is before it, or all of that.

        Args:
            texts: token ids of each, without the start token.

        Returns:
            of each text, in their order.

        Raises:
            ModelError: the model looks ahead, or its values are no numbers.
            InputError: a token that the model has no embedding of.
        """
        windows = [window for number, ids in enumerate(texts) for window in self._windows(number, ids)]
        self._check_ids(texts)
        found: list[list[Tokens]] = [[] for _ in texts]
        with torch.inference_mode(), evaluating(self.model), quiet_transformers():
            self._try(max(windows, key=lambda w: len(w.ids)).ids)
            done = dict[int, Tokens]()
            bar = tqdm(total=len(windows), unit="window", desc="words", file=sys.stderr, leave=False)
            with bar:
                for batch in self._batches(windows):
                    for number, tokens in zip(batch, self._read([windows[i] for i in batch]), strict=True):
                        done[number] = tokens
                    bar.update(len(batch))
        for number, window in enumerate(windows):  # of one text, in their order
            found[window.text].append(done.pop(number))
        return [_joined(parts) for parts in found]

    def _windows(self, number: int, ids: Sequence[int]) -> Iterable[_Window]:
        room, done = self.window - 1, 0
        while done < len(ids):
            begin = max(0, min(done - room // 2, len(ids) - room))
            yield _Window(number, ids[begin : begin + room], done - begin)
            done = begin + room

    def _batches(self, windows: Sequence[_Window]) -> Iterable[list[int]]:
        """Numbers of windows that are read together, of similar length."""
        order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))
        layers = len(self.parts.layers) + 1 if self.lens else 1
        width = self.model.get_input_embeddings().weight.shape[1]
        budget = min(BATCH, STATES // (layers * width))
        if not self.parts.split:
            budget = min(budget, 8 * LOGITS // self.model.get_input_embeddings().weight.shape[0])
        batch: list[int] = []
        for i in order:
            length = len(windows[i].ids) + 1
            alone = not self.padding and batch and len(windows[batch[0]].ids) + 1 != length
            if batch and ((len(batch) + 1) * length > budget or alone):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _check_ids(self, texts: Sequence[Sequence[int]]) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        highest = max((max(ids) for ids in texts if len(ids)), default=0)
        if highest >= rows:
            raise InputError(
                f"the tokenizer gives the token {highest}, the model has embeddings of {rows:,}; use the tokenizer "
                "that belongs to the model"
            )

    def _try(self, ids: Sequence[int]) -> None:
        """See on some tokens how this model may be read."""
        if self._tried:
            return
        some = list(ids[: TRIED - 1])
        self.parts.check(torch.tensor([[self.start, *some]], device=self.model.device), self.lens)
        half = max(1, len(some) // 2)
        whole, alone = (self._read([_Window(0, part, 0)])[0].surprisal[-1] for part in (some, some[:half]))
        ahead = float(np.abs(whole[:half] - alone).max())
        if ahead > LOOKS_AHEAD_BITS:
            raise ModelError(
                f"{type(self.model).__name__} predicts a word from those after it too (surprisal changes by "
                f"{ahead:.2g} bits); use a causal language model"
            )
        self.padding = ahead <= SAME_BITS
        self._tried = True

    def _read(self, windows: Sequence[_Window]) -> list[Tokens]:
        """Measure windows together, shorter ones filled up behind with the start token."""
        device, width = self.model.device, max(len(w.ids) for w in windows) + 1
        ids = torch.full((len(windows), width), self.start, dtype=torch.long)
        places = []  # rows of ids, flat, before the first token that is measured up to the last one
        for row, window in enumerate(windows):
            ids[row, 1 : len(window.ids) + 1] = torch.tensor(window.ids, dtype=torch.long)
            places.append(torch.arange(window.first, len(window.ids) + 1) + row * width)
        rows = torch.cat(places)
        targets = ids.flatten()[(rows + 1).clamp(max=ids.numel() - 1)].to(device)
        layers = len(self.parts.layers)
        wanted = tuple(range(layers + 1)) if self.lens else (layers,) if layers else ()
        seen = _Activations(self, rows) if self.effort is not None else None
        with ExitStack() as stack:
            if seen is not None:
                stack.enter_context(observe_activations(self.model, seen))
            hidden = self.parts.run(ids.to(device), wanted).flatten(0, 1)
        at = rows.to(device)
        states = {layer: self.parts.states[layer].flatten(0, 1)[at] for layer in wanted}
        self.parts.states = {}
        norms = [states[layer].float().norm(dim=-1).double().cpu().numpy() for layer in wanted]
        readouts = [self._read_out(self.parts.through_norm(states[layer]), targets) for layer in wanted[:-1]]
        readouts.append(self._read_out(hidden[at], targets))
        return self._split(windows, np.stack(readouts), np.stack(norms) if norms else None, seen)

    def _read_out(self, states: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        """[3, n], as `read_out`, of hidden states, or of logits of a class that is not split."""
        found, vocabulary = [], self.model.get_input_embeddings().weight.shape[0]
        piece = max(LEAST_ROWS, LOGITS // vocabulary)
        with self.parts.head() as head:
            for begin in range(0, len(states), piece):
                logits = head(states[begin : begin + piece])
                if self._marked is None and self._boundaries:
                    self._marked = torch.zeros(logits.shape[-1], device=logits.device)
                    self._marked[[i for i in self._boundaries if i < logits.shape[-1]]] = 1
                found.append(read_out(logits, targets[begin : begin + piece], self._marked))
        return torch.cat(found, 1).numpy()

    def _split(
        self, windows: Sequence[_Window], readouts: np.ndarray, norms: np.ndarray | None, seen: _Activations | None
    ) -> list[Tokens]:
        """What was found of a batch, window by window; readouts are [R, 3, rows]."""
        tokens, begin = [], 0
        for window in windows:
            n = len(window.ids) - window.first
            predicting, own = slice(begin, begin + n), slice(begin + 1, begin + n + 1)
            surprisal, entropy = readouts[:, 0, predicting], readouts[:, 1, predicting]
            if not (np.isfinite(surprisal[-1]).all() and np.isfinite(entropy[-1]).all()):
                raise ModelError(
                    f"the model gives no number for the surprisal of text {window.text + 1}: its weights may be "
                    "damaged, or it rules a word out; use another model"
                )
            tokens.append(
                Tokens(
                    surprisal,
                    entropy,
                    boundary_before=readouts[:, 2, predicting],
                    boundary_after=readouts[:, 2, own],
                    hidden_norm=None if norms is None else norms[:, own],
                    effort=None if seen is None else seen.effort[:, own],
                    effort_load=None if seen is None else seen.loaded(own, surprisal[-1], entropy[-1]),
                    magnitude=None if seen is None else seen.magnitude[:, own].mean(0),
                )
            )
            begin += n + 1
        return tokens


class _Activations:
    """What thresholds make of the neurons' activations while a batch is read.

    Args:
        reader: has thresholds and norms.
        rows: [n] of the batch, flat, that are looked at.

    Attributes:
        effort: [L, n].
        magnitude: [L, n] sums.
    """

    def __init__(self, reader: Reader, rows: torch.Tensor) -> None:
        assert reader.effort is not None
        self.rule = reader.effort.rule
        self._thresholds, self._norms = reader._thresholds, reader._norms
        self._rows = rows.to(self._thresholds.device)
        layers = len(self._thresholds)
        self._factors = self.rule.factors()  # of the four states of load
        self.effort, self.magnitude = np.zeros((layers, len(rows))), np.zeros((layers, len(rows)))
        self._loaded = np.zeros((len(self._factors), len(rows)))
        self._over: Any = None
        self._ones: Any = None

    def __call__(self, layer: int, activations: torch.Tensor) -> None:
        # `rules.magnitude`, in the place of a copy; temporary arrays would cost more than the sums.
        c = activations[self._rows].float().abs_().mul_(self._norms[layer])
        if self._over is None:
            self._over, self._ones = torch.empty_like(c), torch.ones(c.shape[1], device=c.device)
        self.magnitude[layer] = torch.mv(c, self._ones).cpu().numpy()
        shares = {factor: self._share(c, factor * self._thresholds[layer]) for factor in {1.0, *self._factors}}
        self.effort[layer] = shares[1.0]
        for state, factor in enumerate(self._factors):
            self._loaded[state] += shares[factor] / len(self._thresholds)

    def _share(self, c: torch.Tensor, threshold: torch.Tensor) -> np.ndarray:
        """[n] share of the neurons that reach a threshold; counts are exact in float32."""
        torch.ge(c, threshold, out=self._over)
        return torch.mv(self._over, self._ones).cpu().double().numpy() / c.shape[1]

    def loaded(self, rows: slice, surprisal: np.ndarray, entropy: np.ndarray) -> np.ndarray:
        """[n] effort by thresholds that follow each token's load."""
        loads = map(self.rule.loads, surprisal, entropy)
        states = [2 * by_surprisal + by_entropy for by_surprisal, by_entropy in loads]
        return self._loaded[:, rows][states, np.arange(len(surprisal))]


def _joined(parts: Sequence[Tokens]) -> Tokens:
    """Windows of one text, one after the other."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        name: None if value is None else np.concatenate([getattr(part, name) for part in parts], axis=-1)
        for name, value in vars(parts[0]).items()
    }
    return Tokens(**joined)


def check_device(on_cpu: Tokens, on_device: Tokens, device: str) -> None:
    """Refuse a device that gives other surprisals than the CPU.

    Args:
        on_cpu: of a text, in float32.
        on_device: of the same text and model.
        device: its name.

    Raises:
        ModelError: a surprisal differs by more than 1e-3 bits.
    """
    difference = float(np.abs(on_cpu.surprisal[-1] - on_device.surprisal[-1]).max())
    if not difference <= DEVICE_BITS:
        raise ModelError(
            f"on {device} this model's surprisal differs from the CPU's by {difference:.2g} bits, more than "
            f"{DEVICE_BITS:g}; use device cpu"
        )
