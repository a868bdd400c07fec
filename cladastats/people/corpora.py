"""Corpora of reading times and brain responses, as the user has them: read by their descriptions, and checked.

A corpus is either a table per word (`NAME.tsv`, `NAME.*.tsv`: `text_id, word_index, word` and the measures, averaged
over participants) with the running texts (`NAME_text*.jsonl`: `text_id` and `text`), or the trials of participants as
the authors published them (`cladastats.people.trials`). Several tables of a name are read together. The description of
a corpus (`cladastats.people.description`) says which is which; `corpora/human.md` says where the six come from, under
which licence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from clada.errors import InputError
from cladastats.language import PUNCTUATION, language
from cladastats.people.checks import check_columns, check_enough, misplaced, trimmed
from cladastats.people.description import Measure, Source, described, holds
from cladastats.people.trials import averaged, find_trials, read_trials
from cladastats.sequences.sources import read_records
from cladastats.texts.tablefile import as_numbers, read_data
from cladastats.texts.text import Text

LEAST_WORDS = 100  # five for each coefficient of the largest model

LEAST_TEXTS = 2

ENDS = (".", "!", "?", "…", "。", "！", "？", "।")  # of sentences, in languages that have no splitter


@dataclass(frozen=True)
class ReadingCorpus:
    """A corpus, checked.

    Attributes:
        name: of its description.
        texts: what a model reads, each by itself.
        table: `text_id`, `word_index` and `word` as in the texts, `item` (what random effects are of), `sentence`,
            `sentence_final`, `block` (a number for each sentence of the corpus), and the measures; NaN where they do
            not count. A row per word, or, with the further column `subject`, one per participant and word.
        measures: of the description, that these files have.
        dropped: how many rows' measures do not count, by the description's rule.
        source: its description.
    """

    name: str
    texts: list[Text]
    table: pd.DataFrame
    measures: tuple[Measure, ...]
    dropped: int
    source: Source = Source("", ())  # noqa: RUF009 - frozen


def open_corpus(name: str, data: str | Path, *, average: bool = False) -> ReadingCorpus:
    """Read a corpus from the user's folder and check it; what is left out is said on stderr.

    Args:
        name: of a corpus that comes with the package, or the path of a description.
        data: the folder of its files.
        average: whether trials are averaged over participants.

    Raises:
        InputError: no such corpus or no such files, or a table that is not in order: a column or a word is missing or
            there twice, words that are not those of the text, a measure in another unit, or one that follows the
            neighbouring word.
    """
    source, folder = described(name), Path(data)
    files = [path for path in sorted(folder.glob(f"{source.name}*.tsv")) if path.name.split(".")[0] == source.name]
    if files:
        table, words, measures, notes = _read_averages(source, folder, files)
        path = files[0]
    elif source.trials is not None and find_trials(source.trials, folder):
        trials = read_trials(source, folder)
        table, words, path, notes = trials.frame, trials.words, trials.path, list(trials.notes)
        measures = tuple(m for m in source.measures if m.published)
        for measure in measures:
            table[measure.column], said = trimmed(table[measure.column], measure, path)
            notes += said
        if average and "subject" in table:
            table = averaged(table, measures, words)
        elif "subject" in table:  # the spread over participants is in the rows
            measures = tuple(msgspec.structs.replace(m, spread=None) for m in measures)
        if not source.tried:
            notes.insert(
                0,
                f"the reader of {source.name}'s published files was written from the authors' description and never "
                "tried on the original files",
            )
    else:
        published = f" or {' or '.join(source.trials.files)}" if source.trials is not None else ""
        raise InputError(
            f"{folder} has no {source.name}.tsv, {source.name}.*.tsv{published}; corpora/human.md says where its files "
            "come from"
        )
    table = _with_sentences(table, words, source)
    table, dropped = _counting(table, source, measures, path)
    notes += _check_measures(table, source, measures, path)
    # A column of the user's with the name of one of ours would be in its place.
    numbers = {column for m in measures for column in (m.column, *m.covariates, *(m.spread or ()))}
    known = ["text_id", "word_index", "word", "item", "subject", "sentence", "sentence_final", "left", "block"]
    numbers |= set(source.counts) - {"left"}
    table = table[[name for name in (*known, *sorted(numbers)) if name in table]]
    texts = [Text(text_id, words[text_id]) for text_id in dict.fromkeys(table["text_id"])]
    for note in notes:
        print(f"cladastats: {note}", file=sys.stderr)
    return ReadingCorpus(source.name, texts, table, measures, dropped, source)


def _read_averages(
    source: Source, folder: Path, files: Sequence[Path]
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]], tuple[Measure, ...], list[str]]:
    """The tables of averages of a corpus: rows, the words of the texts, measures, and what is to be said."""
    parts = [read_data(path) for path in files]
    if len({part.decimal for part in parts}) > 1:
        raise InputError(f"{files[0]} and the other tables of {source.name} differ in their decimal sign; give one")
    table, path, decimal = pd.concat([part.frame for part in parts], ignore_index=True), files[0], parts[0].decimal
    notes = [note for part in parts for note in part.notes]
    numbers = {column for m in source.measures for column in (m.column, *m.covariates, *(m.spread or ()))}
    numbers |= set(source.counts) - {"left"}
    needed = {"text_id", *numbers} | (set() if source.targets else {"word_index", "word"})
    if source.targets:
        table = _targets(table, path)
    missing = needed - set(table.columns)
    if missing:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    if table[sorted(needed)].isna().any(axis=None):  # tables of one name with other columns
        raise InputError(
            f"{path} and the other tables of {source.name} differ in their columns; give them all the same"
        )
    for column in ("text_id", "word") if not source.targets else ("text_id",):
        blank = table[column].str.strip() == ""
        if blank.any():
            raise InputError(f"{path}: row {int(blank.argmax()) + 1} has no {column}; give every word its row")
    if not source.targets:
        table["word_index"] = as_numbers(table["word_index"], "word_index", path, decimal)
        if table["word_index"].isna().any():
            row = int(table["word_index"].isna().argmax()) + 1
            raise InputError(f"{path}: row {row} has no word_index; give every word its number")
    if source.targets:
        sentences = table["sentence_upto_target"]
        words = {text: tuple(sentence.split()) for text, sentence in zip(table["text_id"], sentences, strict=True)}
    elif source.texts:
        words = _read_running(folder, source.texts, set(table["text_id"]))
    else:
        ordered = table.sort_values(["text_id", "word_index"], kind="stable")
        words = {str(text_id): tuple(rows["word"]) for text_id, rows in ordered.groupby("text_id")}
    _check_words(table, words, path, whole=not source.targets)  # the table's own: in order, none lacking
    for column in sorted(numbers):
        table[column] = as_numbers(table[column], column, path, decimal)
    for measure in source.measures:
        table[measure.column], said = trimmed(table[measure.column], measure, path)
        notes += said
    return table, words, source.measures, notes


def _counting(table: pd.DataFrame, source: Source, measures: Sequence[Measure], path: Path) -> tuple[pd.DataFrame, int]:
    """The table without measures where the description says that they do not count, and how many rows these are."""
    if not source.counts:
        return table, 0
    left_out = ~holds(table, source.counts, path)
    values = [measure.column for measure in measures]
    return table.assign(**{name: table[name].where(~left_out) for name in values}), int(left_out.sum())


def _check_measures(table: pd.DataFrame, source: Source, measures: Sequence[Measure], path: Path) -> list[str]:
    """Refuse measures of too few words or texts, those that sit on the wrong words, and columns that are the same."""
    notes = []
    for measure in measures:
        lost = [f"left out: {source.dropped}"] if source.dropped else []
        check_enough(table[measure.column], measure.column, path, LEAST_WORDS, lost)
        if measure.covariates:
            notes += check_columns(table, [measure.column, *measure.covariates], path)
        if not source.targets and not measure.late:
            problem = misplaced(table, measure.column, source.language)
            if problem is not None:
                raise InputError(f"{path}: {problem}")
    if table["item"].nunique() < LEAST_TEXTS:
        raise InputError(
            f"{path} has {table['item'].nunique()} texts; {LEAST_TEXTS} are needed, to predict one from others"
        )
    return notes


def _read_running(folder: Path, name: str, wanted: set[str]) -> dict[str, tuple[str, ...]]:
    """The words of the running texts."""
    texts = {
        str(record.get("text_id")): tuple(record["text"].split())
        for path in sorted(folder.glob(f"{name}*.jsonl"))
        for record in read_records(path, "text")
    }
    lacking = sorted(wanted - set(texts))
    if lacking:
        raise InputError(f"{folder} has no text of {lacking[0]} in {name}*.jsonl ({len(lacking)} lack theirs)")
    return texts


def _targets(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Sentences with one word that is measured, their last: a text for each item and condition."""
    needed = {"text_id", "condition", "critical_word", "sentence_upto_target"}
    if not needed <= set(table.columns):
        raise InputError(f"{path} has no column {', '.join(sorted(needed - set(table.columns)))}; give the table anew")
    sentences = table["sentence_upto_target"].str.split()
    bad = sentences.str.len() == 0
    if bad.any():
        raise InputError(
            f"{path}: row {int(bad.argmax()) + 1} has no sentence_upto_target; give every row its sentence"
        )
    return table.assign(
        item=table["text_id"],
        text_id=table["text_id"].str.cat(table["condition"], sep="_"),
        word_index=sentences.str.len(),
        word=table["critical_word"],
    )


def _check_words(table: pd.DataFrame, words: dict[str, tuple[str, ...]], path: Path, *, whole: bool) -> None:
    """Refuse a table whose words are not those of its texts, each once."""
    twice = table.duplicated(["text_id", "word_index"])
    if twice.any():
        row = table[twice].iloc[0]
        raise InputError(
            f"{path}: word {row['word_index']:g} of {row['text_id']} is there twice ({int(twice.sum())} such rows); "
            "give one row per word"
        )
    for text_id, rows in table.groupby("text_id", sort=False):
        expected = words[str(text_id)]
        for index, word in zip(rows["word_index"], rows["word"], strict=True):
            there = expected[int(index) - 1] if index in range(1, len(expected) + 1) else None
            if there != word and str(there).strip(PUNCTUATION) != str(word).strip(PUNCTUATION):
                raise InputError(
                    f"{path}: word {index:g} of {text_id} is {word!r}, and {there!r} in its text; give the table and "
                    "the texts that belong together"
                )
        if whole and len(rows) != len(expected):
            lost = sorted(set(range(1, len(expected) + 1)) - set(rows["word_index"]))
            raise InputError(
                f"{path}: {text_id} lacks word {lost[0]} ({len(lost)} of {len(expected)}); give every word a row"
            )


def _with_sentences(table: pd.DataFrame, words: dict[str, tuple[str, ...]], source: Source) -> pd.DataFrame:
    """The table with the sentences of its texts."""
    if "item" not in table:
        table = table.assign(item=table["text_id"])
    by = [name for name in ("text_id", "word_index", "subject") if name in table]
    table = table.assign(word_index=table["word_index"].astype(int)).sort_values(by, kind="stable", ignore_index=True)
    return table.assign(**sentence_columns(table, words, isolated=source.isolated, code=source.language))


def sentence_columns(
    table: pd.DataFrame, words: dict[str, tuple[str, ...]], *, isolated: bool, code: str
) -> dict[str, np.ndarray]:
    """In which sentence the words of a table stand.

    Args:
        table: `text_id`, `word_index` from 1 on, and `item`.
        words: of every text.
        isolated: whether every text is one sentence.
        code: of the language.

    Returns:
        `sentence` (its number in the text), `left` (words after it in its sentence), `sentence_final`, `block` (a
        number for every sentence of an item).
    """
    ends_of = {text: _sentence_ends(words[text], code, isolated=isolated) for text in dict.fromkeys(table["text_id"])}
    places = table["word_index"].to_numpy() - 1
    sentence, left = np.zeros(len(table), int), np.zeros(len(table), int)
    for text_id, rows in table.groupby("text_id", sort=False).indices.items():
        ends = ends_of[str(text_id)]
        sentence[rows] = np.searchsorted(ends, places[rows])
        left[rows] = ends[sentence[rows]] - places[rows]
    block = table.assign(sentence=sentence).groupby(["item", "sentence"], sort=False).ngroup()
    return {"sentence": sentence, "left": left, "sentence_final": left == 0, "block": block.to_numpy()}


def _sentence_ends(words: tuple[str, ...], code: str, *, isolated: bool) -> np.ndarray:
    """Places of the words that end a sentence, the last word among them."""
    last = len(words) - 1
    if isolated:
        return np.array([last])
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    try:
        ends = {
            int(np.searchsorted(starts, sentence[-1].offset, side="right")) - 1
            for sentence in language(code).sentences(" ".join(words))
        }
    except InputError:  # nothing splits this language
        ends = {i for i, word in enumerate(words) if word.rstrip("\"'”’»)").endswith(ENDS)}
    return np.array(sorted({min(end, last) for end in ends} | {last}))
