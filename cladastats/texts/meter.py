"""What every word of a text costs a model.

Columns of the table, a row per word (words are what white space separates):

surprisal_bits          of the word, its boundary corrected: summed over its tokens, as the tokens of most models carry
                        the space before a word, the chance that a word begins is moved to the word before it (Pimentel
                        and Meister 2024, arXiv 2406.14561; Oh and Schuler 2024, arXiv 2406.10851)
surprisal_tokens_bits   the plain sum over its tokens
entropy_bits            of the distribution that predicts its first token
effort                  share of the neurons with magnitude c_i = |h_i| ||w_down_i|| >= tau_l (Eqs. 9 and 10 of arXiv
                        2502.19078), mean over its tokens and the layers; the load rule is off, or surprisal would be
                        built in
effort_00, ...          the same of each layer
effort_load             as effort, thresholds times 1 + lambda [s > tau_s] + gamma [H > tau_H] (Eq. 11) of the token,
                        by the paper's lambda and gamma unless others are given
magnitude               mean over layers of the summed c_i, mean over its tokens
hidden_norm             of the last layer's output, mean over its tokens
tokens                  how many
length                  letters and digits, or all characters where there are none
frequency_zipf          log10 per billion words (wordfreq), without punctuation; 0 where unknown
position                in its text, from 1 on
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import DynamicCache

from clada.errors import InputError
from clada.methods.coefficients import Coefficients, resolve_coefficients
from clada.methods.rules import magnitude
from clada.models.architectures import check_length, decoder_layers, down_norms, positions_of
from clada.models.hooks import Hooks, observe_activations
from clada.models.open import bos_tokens, load_model
from clada.surprisal import surprisal_and_entropy_bits
from cladastats.activations.attention import causal_blocks
from cladastats.language import PUNCTUATION, language
from cladastats.texts.alignment import end_of_text, tokens_of, word_boundaries
from cladastats.texts.effort import effort_rule
from cladastats.texts.text import Text

WORDS_SCHEMA = "cladastats/words/1"  # what the columns are, for tables that are kept

WINDOW = 2048  # tokens; longer texts are read in windows that overlap by half

LEAST_WINDOW = 16

# Tokens whose logits are in memory at once: 134 MB in float32 at Gemma's 262,144 words, with copies in float64.
SEGMENT = 128


def word_table(
    model: str,
    texts: Sequence[Text],
    *,
    plan: str | None = None,
    max_loss: float | None = None,
    keep: float | None = None,
    coefficients: str = "paper",
    window: int | None = None,
) -> pd.DataFrame:
    """Measure texts on a model, each by itself.

    Args:
        model: any name of a model.
        texts: the texts.
        plan: whose calibration text the magnitudes' quantiles are of; None: the model's own plan.
        max_loss: rise of perplexity within which neurons below the threshold may be left out; None: 2 %.
        keep: share of the neurons to call needed instead, over the plan's calibration text.
        coefficients: the load rule of `effort_load`: a `coefficients.json`, or `paper`.
        window: tokens; None: 2,048, or what the model's positions reach.

    Returns:
        `text_id`, `word_index` (from 1 on), `word`, and the columns above.

    Raises:
        ModelError, InputError: no such model, or no plan of it.
    """
    thresholds, rule = effort_rule(model, plan, max_loss, keep, resolve_coefficients(coefficients))
    return measure_texts(model, texts, thresholds, rule, window)


def measure_texts(
    model: str, texts: Sequence[Text], thresholds: np.ndarray, rule: Coefficients, window: int | None = None
) -> pd.DataFrame:
    """Measure texts by thresholds and a load rule that are known, as `word_table` does.

    Args:
        model: any name of a model.
        texts: the texts.
        thresholds: [layers], of magnitudes.
        rule: of `effort_load`, with its taus.
        window: tokens; None: 2,048, or what the model's positions reach.

    Raises:
        ModelError, InputError: no such model, or a window that it cannot read.
    """
    opened, tokenizer = load_model(model)
    meter = Meter(opened, tokenizer, thresholds, rule, window)
    tables = []
    for text in tqdm(texts, unit="text", desc="words", file=sys.stderr, leave=False):
        table = meter.measure(text.words)
        table.insert(0, "text_id", text.text_id)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Tokens:
    """What is measured at each of n tokens, L layers.

    Attributes:
        surprisal: [n] bits.
        entropy: [n] bits, of the distribution that predicts it.
        boundary_before: [n] log2 of the chance that a word begins there.
        boundary_after: [n] the same after it.
        effort: [n, L].
        effort_load: [n].
        magnitude: [n].
        hidden_norm: [n].
    """

    surprisal: np.ndarray
    entropy: np.ndarray
    boundary_before: np.ndarray
    boundary_after: np.ndarray
    effort: np.ndarray
    effort_load: np.ndarray
    magnitude: np.ndarray
    hidden_norm: np.ndarray


class Meter:
    """Measures words on an open model.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer, a fast one.
        thresholds: [layers], of magnitudes.
        rule: of `effort_load`, with its taus.
        window: tokens read at once; None: 2,048, or what the model's positions reach.
        boundaries: ids of the tokens that begin a word; None: those that begin with white space, and the end of a text.

    Raises:
        ModelError: the window is longer than the model's positions.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        thresholds: np.ndarray,
        rule: Coefficients,
        window: int | None = None,
        boundaries: Sequence[int] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.rule = model, tokenizer, rule
        self.thresholds = torch.from_numpy(np.asarray(thresholds, np.float32)).to(model.device)
        self.norms = down_norms(model).to(model.device)
        positions = positions_of(model.config) or WINDOW
        self.window = min(WINDOW, positions) if window is None else window
        if self.window < LEAST_WINDOW:
            raise InputError(f"a window of {self.window} tokens is too short; use --window {LEAST_WINDOW} or more")
        check_length(model.config, self.window, "use a shorter --window")
        # A text begins after the token that stands between documents, where the tokenizer has none of its own.
        self.start = bos_tokens(tokenizer) or [end_of_text(tokenizer)]
        chosen = word_boundaries(tokenizer) if boundaries is None else boundaries
        self.boundaries = torch.tensor(sorted(chosen), device=model.device)

    def measure(self, words: Sequence[str]) -> pd.DataFrame:
        """Measure one text.

        Args:
            words: without white space in them.

        Returns:
            a row per word: `word_index`, `word` and the columns of this module.

        Raises:
            InputError: a token of this tokenizer reaches over two words.
        """
        ids, owner = tokens_of(words, self.tokenizer)
        tokens = self._tokens(ids)
        n = len(words)
        first = np.searchsorted(owner, np.arange(n))
        last = np.searchsorted(owner, np.arange(n), side="right") - 1
        count = np.bincount(owner, minlength=n)

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(owner, values, n)

        plain = total(tokens.surprisal)
        before = tokens.boundary_before[first]
        before[0] = 0.0  # a text begins with a word
        effort = np.stack([total(layer) / count for layer in tokens.effort.T], 1)
        bare = [word.strip(PUNCTUATION) for word in words]
        letters = [sum(map(str.isalnum, word)) for word in words]
        return pd.DataFrame(
            {
                "word_index": np.arange(1, n + 1),
                "word": list(words),
                # log2 p(word) = log2 p(tokens) - log2 p(a word begins before it) + log2 p(one begins after it)
                "surprisal_bits": plain + before - tokens.boundary_after[last],
                "surprisal_tokens_bits": plain,
                "entropy_bits": tokens.entropy[first],
                "effort": effort.mean(1),
                "effort_load": total(tokens.effort_load) / count,
                "magnitude": total(tokens.magnitude) / count,
                "hidden_norm": total(tokens.hidden_norm) / count,
                "tokens": count,
                "length": [n_letters or len(word) for n_letters, word in zip(letters, words, strict=True)],
                "frequency_zipf": [language().zipf_frequency(word) for word in bare],
                "position": np.arange(1, n + 1),
                **{f"effort_{i:02d}": effort[:, i] for i in range(effort.shape[1])},
            }
        )

    def _tokens(self, ids: Sequence[int]) -> Tokens:
        """Measure tokens, each after at least half a window of what is before it, or all of that."""
        room = self.window - len(self.start)
        if len(ids) <= room:
            return self._window(ids)
        kept: list[Tokens] = []
        done = 0
        while done < len(ids):
            begin = max(0, min(done - room // 2, len(ids) - room))
            end = begin + room
            window = self._window(ids[begin:end])
            kept.append(Tokens(**{name: value[done - begin :] for name, value in vars(window).items()}))
            done = end
        return Tokens(**{name: np.concatenate([getattr(part, name) for part in kept]) for name in vars(kept[0])})

    @torch.inference_mode()
    def _window(self, ids: Sequence[int]) -> Tokens:
        device = self.model.device
        everything = torch.tensor([*self.start, *ids], dtype=torch.long, device=device)
        skipped, layers = len(self.start), len(self.thresholds)
        efforts = torch.zeros(len(everything), layers)
        factors = self.rule.factors()  # of the four states of load
        loaded = torch.zeros(len(everything), len(factors))
        magnitudes, norms = torch.zeros(len(everything), layers), torch.zeros(len(everything))
        begin = 0

        def seen(layer: int, activations: torch.Tensor) -> None:
            c = magnitude(activations.float(), self.norms[layer])
            rows = slice(begin, begin + len(c))
            efforts[rows, layer] = (c >= self.thresholds[layer]).float().mean(-1).cpu()
            magnitudes[rows, layer] = c.sum(-1).cpu()
            for state, factor in enumerate(factors):
                loaded[rows, state] += (c >= factor * self.thresholds[layer]).float().mean(-1).cpu() / layers

        def left(_module: Any, _inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            states = states.reshape(-1, states.shape[-1])
            norms[begin : begin + len(states)] = states.float().norm(dim=-1).cpu()

        cache = DynamicCache(config=self.model.config)
        surprisal, entropy, boundary = [], [], []
        with causal_blocks(self.model), observe_activations(self.model, seen), Hooks() as hooks:
            hooks.after(decoder_layers(self.model)[-1], left)
            for begin in range(0, len(everything), SEGMENT):
                segment = everything[begin : begin + SEGMENT]
                logits = self.model(segment[None], past_key_values=cache, use_cache=True).logits[0]
                # The token that each position predicts; the last position's is not known and not used.
                targets = torch.cat([everything[begin + 1 : begin + 1 + len(segment)], segment[-1:]])[: len(segment)]
                s, h = surprisal_and_entropy_bits(logits, targets)
                mass = logits.double().logsumexp(-1)
                begins = logits[:, self.boundaries].double().logsumexp(-1)
                surprisal.append(s.cpu())
                entropy.append(h.cpu())
                boundary.append(((begins - mass) / math.log(2)).cpu())
        before = slice(skipped - 1, -1)  # the positions that predict the tokens
        chance = torch.cat(boundary).numpy()
        bits, uncertainty = torch.cat(surprisal).numpy()[before], torch.cat(entropy).numpy()[before]
        states = [2 * by_surprisal + by_entropy for by_surprisal, by_entropy in map(self.rule.loads, bits, uncertainty)]
        return Tokens(
            surprisal=bits,
            entropy=uncertainty,
            effort_load=loaded[skipped:].double().numpy()[np.arange(len(ids)), states],
            boundary_before=chance[before],
            boundary_after=chance[skipped:],
            effort=efforts[skipped:].double().numpy(),
            magnitude=magnitudes[skipped:].double().mean(1).numpy(),
            hidden_norm=norms[skipped:].double().numpy(),
        )
