"""A table of words, from stimuli and a model: the function that users call, and what the command is made of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError
from clada.methods.coefficients import resolve_coefficients
from clada.models.open import model_revision
from cladastats.language import PUNCTUATION, Language
from cladastats.language import language as language_of
from cladastats.texts.effort import effort_rule
from cladastats.texts.meter import measure_texts
from cladastats.texts.output import describe
from cladastats.texts.stimuli import Stimuli, running_texts, table_texts
from cladastats.texts.tablefile import TableFile
from cladastats.texts.text import Text


@dataclass(frozen=True)
class Settings:
    """How words are measured.

    Attributes:
        model: any name of a model.
        revision: of a hub id; None: its main branch.
        device: `cpu`, `cuda` or `mps`.
        window: tokens read at once; None: 2,048, or what the model's positions reach.
        layers: whether every layer is measured too.
        effort: whether effort is measured, where thresholds are there.
        calibrate: whether thresholds are measured on the texts.
        plan: whose calibration text the magnitudes' quantiles are of; None: the model's own plan.
        max_loss: rise of perplexity within which neurons below the threshold may be left out; None: 2 %.
        keep: share of the neurons to call needed instead.
        coefficients: the load rule of `effort_load`: a `coefficients.json`, or `paper`.
    """

    model: str
    revision: str | None = None
    device: str = "cpu"
    window: int | None = None
    layers: bool = False
    effort: bool = True
    calibrate: bool = False
    plan: str | None = None
    max_loss: float | None = None
    keep: float | None = None
    coefficients: str = "paper"


def word_table(
    frame_or_text: pd.DataFrame | str,
    model: str = "smollm2-135m",
    *,
    word_column: str | None = None,
    by: str | Sequence[str] = (),
    language: str = "en",
    layers: bool = False,
    context_column: str | None = None,
    segment: bool = False,
    revision: str | None = None,
    device: str = "cpu",
    window: int | None = None,
    effort: bool = True,
) -> pd.DataFrame:
    """Surprisal and entropy of every word of your stimuli, in a language model, beside your own columns.

    For an experiment with a row per word, name the column with the words and the columns that make one text, which is
    what the model reads in one go:

        import pandas as pd
        from cladastats import word_table

        stimuli = pd.DataFrame({
            "item": ["1", "1", "1", "1", "1", "1"],
            "condition": ["a", "a", "a", "b", "b", "b"],
            "word": ["The", "dog", "barked.", "The", "dog", "meowed."],
        })
        words = word_table(stimuli, model="smollm2-135m", by=["item", "condition"])
        words[["item", "condition", "word", "surprisal_bits"]]

    Punctuation may be part of a word (`barked.`) or a row of its own. A cell of several words is a region, and one
    unit: its surprisal is the sum over its words. Without `by`, every row is a sentence and is split at white space;
    then the result has a row per word. A string is one running text.

    Read a file with `pd.read_csv(path, dtype=str, keep_default_na=False)`: otherwise pandas takes the words NA and null
    for missing values, and 001 for the number 1. From R, with reticulate, a data frame is given as it is:

        cladastats <- reticulate::import("cladastats")
        words <- cladastats$word_table(stimuli, model = "smollm2-135m", by = list("item", "condition"))

    Args:
        frame_or_text: the stimuli, or a running text.
        model: `smollm2-135m`, `gemma3-270m`, a folder, a GGUF file, or a causal language model's id on the hub.
        word_column: of the words, or of the sentences; None: `word`.
        by: column, or columns, that make a text; its rows stand together, in the order of reading.
        language: code of ISO 639-1. Frequencies are of this language.
        layers: whether the table has a row per word and layer instead, with what each layer knows of the word.
        context_column: of what the model reads before each text, measured not; the same in all rows of a text.
        segment: whether the words of unspaced Chinese or Japanese are found by the library that wordfreq uses.
        revision: of a hub id, such as the checkpoint `step1000`.
        device: `cpu`, `cuda` or `mps`.
        window: tokens that the model reads at once; None: 2,048, or as many as it has positions.
        effort: whether effort is measured too, where thresholds of the model are there.

    Returns:
        the frame's columns and index as they are, in its order, and: `text_id`; `word_index` and `position`, from 1 on;
        `surprisal_bits` (of the word, corrected for the white space that tokens carry) and `surprisal_tokens_bits` (the
        plain sum over tokens); `entropy_bits`, of the distribution before the word; `length` in letters; `tokens`;
        `frequency_zipf` (log10 per billion words, 0 where the word is unknown, NaN where the language is); and effort.
        Where the frame has a column of that name, ours ends in `_measured`. `attrs["words"]` says what was measured
        with.

    Raises:
        InputError: a column is not there, a word is missing, the rows of a text do not stand together, or the language
            lacks what is needed; with the place.
        ModelError: no such model.
    """
    spoken = language_of(language)
    if isinstance(frame_or_text, str):
        if not frame_or_text.strip():
            raise InputError("the text has no words; give another one")
        stimuli = running_texts({"1": frame_or_text}, spoken, segment, "the text")
    elif isinstance(frame_or_text, pd.DataFrame):
        stimuli = table_texts(
            _as_table(frame_or_text), "the frame", spoken, word_column=word_column,
            by=(by,) if isinstance(by, str) else tuple(by), context_column=context_column, segment=segment,
        )  # fmt: skip
    else:
        kind = type(frame_or_text).__name__
        raise InputError(f"word_table takes a pandas data frame or a string, not {kind}; convert it, as by to_pandas()")
    settings = Settings(model, revision, device, window, layers, effort)
    words, long, measured = measure_stimuli(stimuli, spoken, settings)
    table = words if long is None else long
    table.attrs["words"] = describe(table, measured, None)
    return table


def _as_table(frame: pd.DataFrame) -> TableFile:
    names = list(frame.columns)
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise InputError(f"the frame has more than one column {twice[0]!r}; rename all but one")
    if frame.empty:
        raise InputError("the frame has no rows; give one with a row per word")
    return TableFile(frame, tuple(f"row {label!r}" for label in frame.index))


def measure_stimuli(
    stimuli: Stimuli, language: Language, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    """Measure stimuli; what has to be said of them goes to stderr before.

    Texts that are the same, as those that several people read, are measured once.

    Returns:
        a row per word; a row per word and layer, or None; what was measured with.

    Raises:
        CladaError: what the language, the model or the device lacks.
    """
    for note in stimuli.notes:
        _say(note)
    if language.has_frequencies:
        language.zipf_frequency("a")  # what its list needs is missed now, not after the texts
    else:
        _say(f"no word frequencies for {language.name}: the column frequency_zipf is empty")
    numbers: dict[tuple[Any, ...], int] = {}
    which = [numbers.setdefault((text.words, text.spacing, text.context), len(numbers)) for text in stimuli.texts]
    distinct = [Text(str(i), *key) for key, i in numbers.items()]
    words, long, measured = _measure(distinct, language, settings)
    if "frequency_zipf" not in words:
        words["frequency_zipf"] = np.nan
    described = {
        "model": settings.model,
        "revision": settings.revision or model_revision(settings.model),
        "device": settings.device,
        "language": language.code,
        "texts": len(stimuli.texts),
        **measured,
    }
    table = _beside(stimuli, words, which, said=True)
    return table, None if long is None else _beside(stimuli, long, which, said=False), described


def _beside(stimuli: Stimuli, measured: pd.DataFrame, which: Sequence[int], said: bool) -> pd.DataFrame:
    """What was measured of distinct texts, a row for every row of the stimuli, with their columns before it.

    Args:
        stimuli: the texts, and their table.
        measured: `text_id`, the number of a distinct text; `word_index`; and the rest; a row, or several, per word.
        which: of every text of the stimuli, the number of the distinct text that it is.
        said: whether columns that are called otherwise are named on stderr.
    """
    numbers = measured["text_id"].astype(int).to_numpy()
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(max(which) + 2))
    parts = [order[bounds[i] : bounds[i + 1]] for i in which]
    table = measured.iloc[np.concatenate(parts)].reset_index(drop=True)
    text = np.repeat(np.arange(len(which)), list(map(len, parts)))
    table["text_id"] = pd.Series([stimuli.texts[i].text_id for i in text], dtype="str")
    if stimuli.frame is None:
        return table
    begins = np.cumsum([0, *(len(text.words) for text in stimuli.texts[:-1])])
    result = stimuli.frame.iloc[begins[text] + table["word_index"].to_numpy() - 1].copy()
    called = {}
    for name in table.columns:
        if name in stimuli.frame.columns:
            if name == stimuli.word_column or _same(result[name], table[name]):
                continue
            called[name] = name
            while called[name] in result.columns:
                called[name] += "_measured"
        result[called.get(name, name)] = table[name].array
    if called and said:
        _say(
            f"the table has columns {', '.join(called)} of its own; the measured ones are {', '.join(called.values())}"
        )
    return result


def _same(own: pd.Series, measured: pd.Series) -> bool:
    return list(map(str, own)) == list(map(str, measured))


def _say(note: str) -> None:
    print(f"cladastats: {note}", file=sys.stderr)


def _measure(
    texts: Sequence[Text], language: Language, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    """The one place where texts meet the model: rows in the order of texts and words; a long table of layers."""
    thresholds, rule = effort_rule(
        settings.model, settings.plan, settings.max_loss, settings.keep, resolve_coefficients(settings.coefficients)
    )
    words = measure_texts(settings.model, texts, thresholds, rule, settings.window)
    if language.has_frequencies:
        words["frequency_zipf"] = [language.zipf_frequency(word.strip(PUNCTUATION)) for word in words["word"]]
    return words, None, {}
