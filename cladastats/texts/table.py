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
from cladastats.language import Language
from cladastats.language import language as language_of
from cladastats.texts.effort import effort_rule
from cladastats.texts.layers import MOST_WORDS, layer_tables
from cladastats.texts.meter import opened_meter
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
    what the model reads in one go::

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
    for missing values, and 001 for the number 1. From R, with reticulate, a data frame is given as it is::

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
    stimuli = _stimuli(frame_or_text, spoken, word_column, by, context_column, segment)
    settings = Settings(model, revision, device, window, layers, effort)
    measured = measure_stimuli(stimuli, spoken, settings)
    table = measured.words if measured.layers is None else measured.layers
    table.attrs["words"] = describe(table, measured.facts, None)
    return table


def _stimuli(
    given: pd.DataFrame | str,
    language: Language,
    word_column: str | None,
    by: str | Sequence[str],
    context_column: str | None,
    segment: bool,
) -> Stimuli:
    if isinstance(given, str):
        if not given.strip():
            raise InputError("the text has no words; give another one")
        return running_texts({"1": given}, language, segment, "the text")
    if not isinstance(given, pd.DataFrame):
        kind = type(given).__name__
        raise InputError(f"word_table takes a pandas data frame or a string, not {kind}; convert it, as by to_pandas()")
    return table_texts(
        _as_table(given), "the frame", language, word_column=word_column,
        by=(by,) if isinstance(by, str) else tuple(by), context_column=context_column, segment=segment,
    )  # fmt: skip


def _as_table(frame: pd.DataFrame) -> TableFile:
    names = list(frame.columns)
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise InputError(f"the frame has more than one column {twice[0]!r}; rename all but one")
    if frame.empty:
        raise InputError("the frame has no rows; give one with a row per word")
    return TableFile(frame, tuple(f"row {label!r}" for label in frame.index))


@dataclass(frozen=True)
class Measured:
    """Stimuli with what was measured of them.

    Attributes:
        words: a row per word, with the stimuli's columns.
        layers: the same per word and layer; None where layers are not asked for.
        map: of the first text, what `layer_figure` draws; None likewise.
        facts: what was measured with.
    """

    words: pd.DataFrame
    layers: pd.DataFrame | None
    map: pd.DataFrame | None
    facts: dict[str, Any]


def measure_stimuli(stimuli: Stimuli, language: Language, settings: Settings) -> Measured:
    """Measure stimuli; what has to be said of them goes to stderr before.

    Texts that are the same, as those that several people read, are measured once.

    Raises:
        CladaError: what the language, the model or the device lacks.
    """
    for note in stimuli.notes:
        _say(note)
    if language.has_frequencies:
        language.zipf_frequency("a")  # what its list needs is missed now, not after the texts
    else:
        _say(f"no word frequencies for {language.name}: the column frequency_zipf is empty")
    distinct: dict[tuple[Any, ...], Text] = {}
    same = [distinct.setdefault((text.words, text.spacing, text.context), text).text_id for text in stimuli.texts]
    words, long, facts = _measure(list(distinct.values()), language, settings)
    if "frequency_zipf" not in words:
        words["frequency_zipf"] = np.nan
    facts = {
        "model": settings.model,
        "revision": model_revision(settings.model, settings.revision),
        "device": settings.device,
        **facts,
        "language": language.code,
        "texts": len(stimuli.texts),
    }
    table = _beside(stimuli, words, same, said=True)
    if long is None:
        return Measured(table, None, None, facts)
    first = long[(long["text_id"] == same[0]) & (long["word_index"] <= MOST_WORDS)]
    return Measured(table, _beside(stimuli, long, same, said=False), first, facts)


def _beside(stimuli: Stimuli, measured: pd.DataFrame, same: Sequence[str], said: bool) -> pd.DataFrame:
    """What was measured of distinct texts, for every text of the stimuli, with the columns of their table before it.

    Args:
        stimuli: the texts, and their table.
        measured: `text_id` of a distinct text, `word_index`, and the rest; a row, or several, per word.
        same: of every text of the stimuli, the id of the distinct text that it is.
        said: whether columns that are called otherwise are named on stderr.
    """
    rows = measured.groupby("text_id", sort=False).indices
    parts = [np.sort(rows[text_id]) for text_id in same]
    table = measured.iloc[np.concatenate(parts)].reset_index(drop=True)
    text = np.repeat(np.arange(len(same)), list(map(len, parts)))
    table["text_id"] = pd.Series([stimuli.texts[i].text_id for i in text], dtype="str")
    if stimuli.frame is None:
        return table
    begins = np.cumsum([0, *(len(text.words) for text in stimuli.texts[:-1])])
    own = stimuli.frame.iloc[begins[text] + table["word_index"].to_numpy() - 1]
    called = {}
    for name in table.columns:
        if name not in own.columns:
            called[name] = name
        elif not (name == stimuli.word_column == "word" or _same(own[name], table[name])):
            called[name] = f"{name}_measured"
            while called[name] in own.columns:
                called[name] += "_measured"
    changed = {name: new for name, new in called.items() if name != new}
    if changed and said:
        theirs = ", ".join(map(str, changed))
        _say(f"the table has columns {theirs} of its own; the measured ones are {', '.join(changed.values())}")
    ours = table[list(called)].rename(columns=called)
    ours.index = own.index
    return pd.concat([own, ours], axis=1)


def _same(own: pd.Series, measured: pd.Series) -> bool:
    return list(map(str, own)) == list(map(str, measured))


def _say(note: str) -> None:
    print(f"cladastats: {note}", file=sys.stderr)


def _measure(
    texts: Sequence[Text], language: Language, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    """The one place where texts meet the model: rows in the order of texts and words; a long table of layers."""
    coefficients = resolve_coefficients(settings.coefficients)
    rule = None
    if settings.effort and not settings.calibrate:
        rule = effort_rule(
            settings.model, settings.plan, settings.max_loss, settings.keep, coefficients, settings.revision
        )
    meter = opened_meter(
        settings.model, texts, settings.revision, settings.device, window=settings.window, effort=rule,
        language=language.code if language.has_frequencies else None,
    )  # fmt: skip
    if settings.calibrate:
        meter.calibrate(texts, settings.keep, coefficients)
    words, long = layer_tables(meter, texts) if settings.layers else (meter.measure(texts), None)
    return words, long, {**meter.facts(), "tokenizer": list(meter.aligner.notes.values())}
