"""What every word of a text costs a model, any causal language model that transformers opens.

Columns of the table, a row per word:

surprisal_bits          of the word. Where tokens carry the white space before a word, its boundaries are corrected:
                        the chance that a word begins is moved to the word before it (Pimentel and Meister 2024, arXiv
                        2406.14561; Oh and Schuler 2024, arXiv 2406.10851). Nothing is corrected where two words are
                        attached to each other, where white space is a token of its own that belongs to no word (a
                        paragraph break), and with a tokenizer whose tokens carry no white space
surprisal_tokens_bits   the plain sum over its tokens
entropy_bits            of the distribution that predicts its first token
tokens                  how many
hidden_norm             of the last layer's output, mean over its tokens; absent where the layers cannot be told
position                in its text, from 1 on
length                  letters and digits, or all characters where there are none
frequency_zipf          log10 per billion words (wordfreq), without punctuation; 0 where unknown; absent where there is
                        no list of the language

Where the neurons of the model's family are known, and thresholds of them:

effort                  share of the neurons with magnitude c_i = |h_i| ||w_down_i|| >= tau_l (Eqs. 9 and 10 of arXiv
                        2502.19078), mean over its tokens and the layers; the load rule is off, or surprisal would be
                        built in
effort_load             as effort, thresholds times 1 + lambda [s > tau_s] + gamma [H > tau_H] (Eq. 11) of the token,
                        by the paper's lambda and gamma unless others are given
magnitude               mean over layers of the summed c_i, mean over its tokens
effort_00, ...          effort of each layer

A text begins after the start token (`alignment.start_token`), so that its first word has a surprisal too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError, ModelError
from clada.methods.coefficients import PAPER, Coefficients
from clada.models.architectures import check_length, positions_of
from clada.models.open import check_device as check_name
from clada.models.open import load_model
from cladastats.language import PUNCTUATION, language
from cladastats.texts.alignment import Aligned, Aligner, start_token, word_boundaries
from cladastats.texts.effort import EffortRule, calibrated_rule
from cladastats.texts.reading import Reader, Tokens, check_device
from cladastats.texts.text import Text

WORDS_SCHEMA = "cladastats/words/2"  # what the columns are, for tables that are kept

WINDOW = 2048  # tokens; longer texts are read in windows that overlap by half

LEAST_WINDOW = 16


def measure_texts(
    model: str,
    texts: Sequence[Text],
    *,
    revision: str | None = None,
    device: str = "cpu",
    window: int | None = None,
    effort: EffortRule | None = None,
    language: str | None = "en",
) -> pd.DataFrame:
    """Measure texts on a model, each by itself.

    Args:
        model: any name of a causal language model that `clada.load_model` opens.
        texts: the texts.
        revision: branch, tag or commit of a hub id.
        device: "cpu", "cuda" or "mps".
        window: tokens read at once; None: 2,048, or what the model's positions reach.
        effort: thresholds, of `effort_rule`; None: no columns of effort.
        language: code that word frequencies are looked up by; None: no such column.

    Returns:
        `text_id`, `word_index` (from 1 on), `word`, and the columns above, in the order of texts and words;
        `attrs["words"]` has what `Meter.facts` says.

    Raises:
        ModelError, InputError: no such model, or a text, window or device that it cannot read.
    """
    return opened_meter(model, texts, revision, device, window=window, effort=effort, language=language).measure(texts)


def opened_meter(
    model: str, texts: Sequence[Text], revision: str | None = None, device: str = "cpu", **options: Any
) -> Meter:
    """A model opened and made ready to measure texts; on another device than the CPU only where both agree.

    Args:
        model: as in `measure_texts`.
        texts: the first is measured on both devices.
        revision: as there.
        device: as there.
        **options: of `Meter`.

    Raises:
        ModelError: surprisal differs from the CPU's by more than 1e-3 bits.
    """
    if device != "mps":
        check_name(device)
    elif not _has_mps():
        raise ModelError("this machine has no MPS device that torch can use: choose device cpu")
    opened, tokenizer = load_model(model, revision=revision)
    meter = Meter(opened, tokenizer, **options)
    if device == "cpu":
        return meter
    some = [meter.aligner.align(text).ids[: meter.window - 1] for text in texts[:1]]
    on_cpu = meter.reader().read(some)[0]
    meter = Meter(opened.to(device), tokenizer, **options)
    check_device(on_cpu, meter.reader().read(some)[0], device)
    return meter


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


class Meter:
    """Measures words on an open model.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        effort: thresholds of its neurons; None: no columns of effort.
        window: tokens read at once, the start token included; None: 2,048, or what the model's positions reach.
        language: code that word frequencies are looked up by; None: no such column.
        boundaries: ids of the tokens that begin a word; None: those that begin with white space, and the end of a text.

    Attributes:
        aligner: gives words their tokens.
        window: the tokens.
        start: the token that every text begins after.

    Raises:
        ModelError: the window is longer than the model's positions.
        InputError: it is too short, or the tokenizer has no token that a text could begin after.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        effort: EffortRule | None = None,
        window: int | None = None,
        language: str | None = "en",
        boundaries: Sequence[int] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.effort, self.language = model, tokenizer, effort, language
        self.window = min(WINDOW, positions_of(model.config) or WINDOW) if window is None else window
        if self.window < LEAST_WINDOW:
            raise InputError(f"a window of {self.window} tokens is too short; use --window {LEAST_WINDOW} or more")
        check_length(model.config, self.window, "use a shorter --window")
        self.start, self.aligner, self._said = start_token(tokenizer), Aligner(tokenizer), set[str]()
        self._boundaries = word_boundaries(tokenizer) if boundaries is None else list(boundaries)

    def calibrate(self, texts: Sequence[Text], keep: float | None = None, rule: Coefficients = PAPER) -> None:
        """Take thresholds from texts, as `calibrated_rule` does.

        Args:
            texts: in the language that will be measured.
            keep: share of the neurons to call needed; None: 0.6.
            rule: of the load; where it has no taus, they are found on the texts too.

        Raises:
            ModelError: where this model's neurons are is not known.
        """
        ids = [[self.start, *self.aligner.align(text).ids[: self.window - 1]] for text in texts]
        self.effort = calibrated_rule(self.model, ids, keep, rule)

    def reader(self, lens: bool = False) -> Reader:
        """What reads the texts' tokens; with a lens, every layer."""
        return Reader(self.model, self.start, self.window, self._boundaries, self.effort, lens)

    def measure(self, texts: Sequence[Text]) -> pd.DataFrame:
        """Measure texts.

        Args:
            texts: each is read by itself.

        Returns:
            as `measure_texts`.

        Raises:
            InputError: a word has no token of its own, or a token reaches over two words.
        """
        aligned, read = self.read(texts)
        return self.table(texts, aligned, read)

    def read(self, texts: Sequence[Text], lens: bool = False) -> tuple[list[Aligned], list[Tokens]]:
        """The tokens of texts, and what the model gives at each; what should be said of them goes to stderr.

        Args:
            texts: the texts.
            lens: of every layer.
        """
        if not texts:
            raise InputError("there are no texts to measure; give at least one")
        aligned = [self.aligner.align(text) for text in texts]
        for kind, line in self.aligner.notes.items():
            if kind not in self._said:
                print(f"cladastats: {line}", file=sys.stderr)
        self._said |= self.aligner.notes.keys()
        return aligned, self.reader(lens).read([a.ids for a in aligned])

    def table(self, texts: Sequence[Text], aligned: Sequence[Aligned], read: Sequence[Tokens]) -> pd.DataFrame:
        """The table of words, of what was read."""
        words = Words(aligned)
        found = {
            "surprisal_bits": words.corrected([t.surprisal[-1] for t in read], read, -1),
            "surprisal_tokens_bits": words.total([t.surprisal[-1] for t in read]),
            "entropy_bits": words.first([t.entropy[-1] for t in read]),
            "tokens": words.tokens,
        }
        if read[0].hidden_norm is not None:
            found["hidden_norm"] = words.mean([t.hidden_norm[-1] for t in read if t.hidden_norm is not None])
        if read[0].effort is not None:
            efforts = [t.effort for t in read if t.effort is not None]
            layers = np.stack([words.mean([e[i] for e in efforts]) for i in range(len(efforts[0]))])
            found["effort"] = layers.mean(0)
            found["effort_load"] = words.mean([t.effort_load for t in read if t.effort_load is not None])
            found["magnitude"] = words.mean([t.magnitude for t in read if t.magnitude is not None])
        table = word_rows(texts)
        named = lexical_columns(table["word"].tolist(), self.language)
        columns = {**found, "position": table["word_index"].to_numpy(), **named}
        if read[0].effort is not None:
            columns |= {f"effort_{i:02d}": layer for i, layer in enumerate(layers)}
        table = pd.concat([table, pd.DataFrame(columns)], axis=1)
        table.attrs["words"] = self.facts()
        return table

    def facts(self) -> dict[str, Any]:
        """What the numbers are of, for metadata: start token, window, correction, device, dtype, thresholds."""
        return {
            "schema": WORDS_SCHEMA,
            "model": self.model.name_or_path,
            "model_class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "unit": "bits",
            "start_token": self.tokenizer.convert_ids_to_tokens(self.start),
            "window": self.window,
            "correction": "white space before words" if self._boundaries else "none",
            "effort": None if self.effort is None else self.effort.source,
            "language": self.language,
        }


def word_rows(texts: Sequence[Text]) -> pd.DataFrame:
    """`text_id`, `word_index` and `word` of every word."""
    return pd.DataFrame(
        {
            "text_id": [text.text_id for text in texts for _ in text.words],
            "word_index": np.concatenate([np.arange(1, len(text.words) + 1) for text in texts]),
            "word": [word for text in texts for word in text.words],
        }
    )


def lexical_columns(words: Sequence[str], code: str | None) -> dict[str, Any]:
    """What is known of words without a model: `length`, and `frequency_zipf` where there is a list of the language.

    Args:
        words: as they stand in the text.
        code: of the language; None: no frequencies.

    Raises:
        InputError: there is no language of that code.
    """
    letters = [sum(map(str.isalnum, word)) for word in words]
    columns: dict[str, Any] = {"length": [n or len(word) for n, word in zip(letters, words, strict=True)]}
    # Without a list of the language there is no frequency, which is not a frequency of zero.
    if code is not None and (known := language(code)).has_frequencies:
        columns["frequency_zipf"] = [known.zipf_frequency(word.strip(PUNCTUATION)) for word in words]
    return columns


class Words:
    """Sums over the tokens of words, of W words of several texts.

    Args:
        aligned: the texts.

    Attributes:
        tokens: [W] how many each has.
    """

    def __init__(self, aligned: Sequence[Aligned]) -> None:
        before = np.cumsum([0, *(len(a.opens) for a in aligned)])
        owner = np.concatenate([np.where(a.owner < 0, -1, a.owner + n) for a, n in zip(aligned, before, strict=False)])
        self._owned = np.flatnonzero(owner >= 0)
        self._owner = owner[self._owned]
        self.tokens = np.bincount(self._owner, minlength=int(before[-1]))
        ends = np.cumsum(self.tokens)
        self._first, self._last = self._owned[ends - self.tokens], self._owned[ends - 1]
        self._opens = np.concatenate([a.opens for a in aligned])
        self._closes = np.concatenate([a.closes for a in aligned])

    def total(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[W] sums of values of tokens, text by text."""
        return np.bincount(self._owner, np.concatenate(values)[self._owned], len(self.tokens))

    def mean(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[W] means over the tokens."""
        return self.total(values) / self.tokens

    def first(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[W] values of the first tokens."""
        return np.concatenate(values)[self._first]

    def corrected(self, surprisal: Sequence[np.ndarray], read: Sequence[Tokens], readout: int) -> np.ndarray:
        """[W] surprisal, boundaries corrected.

        log2 p(word) = log2 p(tokens) - log2 p(a word begins before it) + log2 p(one begins after it).

        Args:
            surprisal: of tokens, text by text.
            read: has the chances.
            readout: of them, which.
        """
        before = np.concatenate([tokens.boundary_before[readout] for tokens in read])[self._first]
        after = np.concatenate([tokens.boundary_after[readout] for tokens in read])[self._last]
        return self.total(surprisal) + np.where(self._opens, before, 0.0) - np.where(self._closes, after, 0.0)
