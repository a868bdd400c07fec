"""Corpora of reading times and brain responses, as the user has them: what each measures, and is it in order?

A corpus is a table per word (`NAME.tsv`, `NAME.*.tsv`: `text_id, word_index, word` and the measures, averaged over
participants; tab separated, nothing quoted, an empty cell is a missing value) with the running texts
(`NAME_text*.jsonl`: `text_id` and `text`). Several tables of a name are read together. Without them the files that a
corpus' authors published are read (`cladastats.people.published`). `corpora/human.md` says where each comes from, under
which licence.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError
from cladastats.language import PUNCTUATION, language
from cladastats.people.published import PUBLISHED
from cladastats.sequences.sources import read_records
from cladastats.texts.text import Text

TABLE_WORDS = ""  # in the place of a file's name: the texts are what the words of the table make


@dataclass(frozen=True)
class Measure:
    """One dependent variable.

    Attributes:
        column: in the table.
        unit: `ms` or `microvolt`.
        covariates: columns that belong in every model of it.
        spread: columns of the standard deviation over participants and of their number, for the reliability; or None.
        reliability: as published, where the table does not give it: odd against even participants, Spearman-Brown.
        sign: that surprisal's effect is known to have; 0: none is agreed on.
        late: it is measured when the next word is there already, so that it may follow that.
    """

    column: str
    unit: str = "ms"
    covariates: tuple[str, ...] = ()
    spread: tuple[str, str] | None = None
    reliability: float | None = None
    sign: int = 1
    late: bool = False


@dataclass(frozen=True)
class Source:
    """What is known of a corpus.

    Attributes:
        measures: the first are confirmatory: fixed before any result was seen.
        confirmatory: how many of them.
        texts: name of its texts' files, or `TABLE_WORDS`; None: the table's column `sentence_upto_target`.
        drop: rows whose measures do not count, of a table with `sentence`, `left` (words after it in its sentence).
        dropped: why.
        isolated: every text is one sentence.
        needs: columns that `drop` looks at.
    """

    measures: tuple[Measure, ...]
    confirmatory: int
    texts: str | None
    drop: Callable[[pd.DataFrame], pd.Series] | None = None
    dropped: str = ""
    isolated: bool = False
    needs: tuple[str, ...] = ()


LEAST_WORDS = 100  # five for each coefficient of the largest model

LEAST_TEXTS = 2

SOURCES: dict[str, Source] = {
    "naturalstories": Source(
        (
            Measure("spr_rt_mean_ms", spread=("spr_rt_sd_ms", "spr_n")),
            Measure("maze_rt_mean_ms", reliability=0.77),
        ),
        2,
        "naturalstories_text",
    ),
    "ucl_et": Source(
        (Measure("gaze_ms", reliability=0.79), Measure("go_past_ms", reliability=0.89)),
        2,
        TABLE_WORDS,  # those of the brain responses differ in a few words
        lambda table: table["left"] < 2,
        "the last two words of each sentence, where wrap-up fakes an effect of the next word",
        isolated=True,
    ),
    "ucl_erp": Source(
        (
            Measure("N400_uV", "microvolt", ("N400_base_uV",), ("N400_sd", "erp_n"), sign=-1),
            # The N400 spills into the P600's window.
            Measure("P600_uV", "microvolt", ("N400_base_uV", "N400_uV"), sign=0, late=True),
        ),
        2,
        "ucl_erp_text",
        lambda table: table["excluded_by_authors"] != 0,
        "words that the corpus' authors excluded",
        isolated=True,
        needs=("excluded_by_authors",),
    ),
    "provo": Source(
        (
            Measure("gaze_ms"),
            Measure("go_past_cond_ms"),
            Measure("motr_gaze_ms", reliability=0.55),
            Measure("first_fix_cond_ms"),
            Measure("total_cond_ms"),
        ),
        3,
        "provo_text",
    ),
    "meco_en": Source(
        (Measure("gaze_mean0_ms"), Measure("total_mean0_ms"), Measure("first_fix_mean0_ms")), 2, "meco_en_text"
    ),
    "brothers2021": Source((Measure("rt_sum3_mean_ms", spread=("rt_sum3_sd_ms", "n")),), 1, None, isolated=True),
}


@dataclass(frozen=True)
class ReadingCorpus:
    """A corpus, checked.

    Attributes:
        name: of `SOURCES`.
        texts: what a model reads, each by itself.
        table: `text_id`, `word_index` and `word` as in the texts, `item` (what random effects are of), `sentence`,
            `sentence_final`, `block` (a number for each sentence of the corpus), and the measures; NaN where they do
            not count.
        measures: of the source, that these files have.
        dropped: how many rows' measures do not count, by the source's rule.
    """

    name: str
    texts: list[Text]
    table: pd.DataFrame
    measures: tuple[Measure, ...]
    dropped: int

    @property
    def source(self) -> Source:
        """What is known of it."""
        return SOURCES[self.name]


def open_corpus(name: str, data: str | Path) -> ReadingCorpus:
    """Read a corpus from the user's folder and check it.

    Args:
        name: Of `SOURCES`.
        data: The folder.

    Raises:
        InputError: No such corpus or no such files, or a table that is not in order: a column or a word is missing or
            there twice, words that are not those of the text, a measure that follows the neighbouring word.
    """
    if name not in SOURCES:
        raise InputError(f"unknown corpus '{name}'; use {', '.join(SOURCES)}")
    source, folder = SOURCES[name], Path(data)
    table, path, published = _read_files(name, folder)
    measures = source.measures
    if published:  # which may lack a measure
        measures = tuple(m for m in measures if {m.column, *m.covariates} <= set(table.columns))
    numbers = {column for m in measures for column in (m.column, *m.covariates, *(m.spread or ()))}
    numbers |= set(source.needs)
    table, words = _with_words(table, source, folder, numbers, path, published=published)
    for column in sorted(numbers):
        table[column] = _numbers(table, column, path)
    table = _with_sentences(table, words, isolated=source.isolated)
    dropped = 0
    if source.drop is not None:
        mask = source.drop(table)
        dropped = int(mask.sum())
        table.loc[mask, [measure.column for measure in measures]] = np.nan
    _check_measures(table, source, measures, path)
    # A column of the user's with the name of one of ours would be in its place.
    known = ["text_id", "word_index", "word", "item", "sentence", "sentence_final", "left", "block", *sorted(numbers)]
    table = table[known]
    texts = [Text(text_id, words[text_id]) for text_id in dict.fromkeys(table["text_id"])]
    return ReadingCorpus(name, texts, table, measures, dropped)


def _read_files(name: str, folder: Path) -> tuple[pd.DataFrame, Path, bool]:
    """The table of a corpus, a file to name in messages, and whether it is as the corpus' authors published it."""
    files = [path for path in sorted(folder.glob(f"{name}*.tsv")) if path.name.split(".")[0] == name]
    if files:
        return pd.concat([_read_table(path) for path in files], ignore_index=True), files[0], False
    known_by, read_published = PUBLISHED.get(name, (None, None))
    if known_by is not None and read_published is not None and (folder / known_by).is_file():
        return read_published(folder), folder / known_by, True
    raise InputError(
        f"{folder} has no {name}.tsv, {name}.*.tsv{f' or {known_by}' if known_by else ''}; corpora/human.md says "
        "where its files come from"
    )


def _with_words(
    table: pd.DataFrame, source: Source, folder: Path, numbers: set[str], path: Path, *, published: bool
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """The table with its words checked against those of the texts, and these by `text_id`."""
    needed = {"text_id", *numbers}
    if source.texts is None:
        table = _targets(table, path)
        sentences = table["sentence_upto_target"]
        words = {text: tuple(sentence.split()) for text, sentence in zip(table["text_id"], sentences, strict=True)}
    else:
        needed |= {"word_index", "word"}
    missing = needed - set(table.columns)
    if missing:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    table["text_id"] = table["text_id"].astype(str)
    if source.texts is not None:
        table["word_index"] = _numbers(table, "word_index", path)
    if published or source.texts == TABLE_WORDS:
        words = {str(text_id): tuple(rows["word"]) for text_id, rows in table.groupby("text_id")}
    elif source.texts is not None:
        words = _read_running(folder, source.texts, set(table["text_id"]))
    _check_words(table, words, path, whole=source.texts is not None)  # the table's own: in order, none lacking
    return table, words


def _check_measures(table: pd.DataFrame, source: Source, measures: Sequence[Measure], path: Path) -> None:
    """Refuse measures of too few words or texts, and those that sit on the wrong words."""
    for measure in measures:
        values = table[measure.column].dropna()
        if len(values) < LEAST_WORDS or values.nunique() < 2:
            raise InputError(
                f"the column {measure.column} of {path} has {values.nunique()} different values at {len(values)} "
                f"words that count; at least {LEAST_WORDS} words are needed"
            )
        if source.texts is not None and not measure.late:
            _check_alignment(table, measure.column, path)
    if table["item"].nunique() < LEAST_TEXTS:
        raise InputError(
            f"{path} has {table['item'].nunique()} texts; {LEAST_TEXTS} are needed, to predict one from others"
        )


def _numbers(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    try:
        numbers = pd.to_numeric(table[column])
    except (ValueError, TypeError):
        raise InputError(f"the column {column} of {path} holds what is no number; mend the file") from None
    if np.isinf(numbers.to_numpy(float)).any():
        raise InputError(f"the column {column} of {path} holds an infinite number; mend the file")
    return numbers


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as problem:  # pandas' own errors are ValueErrors, not UTF-8 is one too
        raise InputError(f"cannot read {path}: {(str(problem).splitlines() or [''])[0]}; give the table anew") from None


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
    bad = [not isinstance(sentence, str) or not sentence.split() for sentence in table["sentence_upto_target"]]
    if any(bad):
        raise InputError(f"{path}: row {bad.index(True) + 1} has no sentence_upto_target; give every row its sentence")
    sentences = table["sentence_upto_target"].str.split()
    return table.assign(
        item=table["text_id"],
        text_id=table["text_id"].astype(str) + "_" + table["condition"].astype(str),
        word_index=sentences.str.len(),
        word=table["critical_word"],
    )


def _check_words(table: pd.DataFrame, words: dict[str, tuple[str, ...]], path: Path, *, whole: bool) -> None:
    """Refuse a table whose words are not those of its texts, each once."""
    twice = table.duplicated(["text_id", "word_index"])
    if twice.any():
        row = table[twice].iloc[0]
        raise InputError(
            f"{path}: word {row['word_index']} of {row['text_id']} is there twice ({int(twice.sum())} such rows); "
            "give one row per word"
        )
    for text_id, rows in table.groupby("text_id", sort=False):
        expected = words[str(text_id)]
        for index, word in zip(rows["word_index"], rows["word"], strict=True):
            there = expected[int(index) - 1] if index in range(1, len(expected) + 1) else None
            same = there == word if whole else str(there).strip(PUNCTUATION) == str(word).strip(PUNCTUATION)
            if not same:
                raise InputError(
                    f"{path}: word {index} of {text_id} is {word!r}, and {there!r} in its text; give the table and the "
                    "texts that belong together"
                )
        if whole and len(rows) != len(expected):
            lost = sorted(set(range(1, len(expected) + 1)) - set(rows["word_index"]))
            raise InputError(
                f"{path}: {text_id} lacks word {lost[0]} ({len(lost)} of {len(expected)}); give every word a row"
            )


def _with_sentences(table: pd.DataFrame, words: dict[str, tuple[str, ...]], *, isolated: bool) -> pd.DataFrame:
    """The table with the sentences of its texts."""
    if "item" not in table:
        table = table.assign(item=table["text_id"])
    table = table.sort_values(["text_id", "word_index"], kind="stable", ignore_index=True)
    sentence, left = [], []
    ends_of = {text_id: _sentence_ends(words[text_id], isolated=isolated) for text_id in set(table["text_id"])}
    for text_id, index in zip(table["text_id"], table["word_index"], strict=True):
        ends = ends_of[text_id]
        number = int(np.searchsorted(ends, index - 1))
        sentence.append(number)
        left.append(int(ends[number] - (index - 1)))
    table = table.assign(sentence=sentence, left=left, sentence_final=np.array(left) == 0)
    return table.assign(block=table.groupby(["item", "sentence"], sort=False).ngroup())


def _sentence_ends(words: tuple[str, ...], *, isolated: bool) -> np.ndarray:
    """Places of the words that end a sentence, the last word among them."""
    last = len(words) - 1
    if isolated:
        return np.array([last])
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    ends = {
        int(np.searchsorted(starts, sentence[-1].offset, side="right")) - 1
        for sentence in language().sentences(" ".join(words))
    }
    return np.array(sorted({min(end, last) for end in ends} | {last}))


def _check_alignment(table: pd.DataFrame, column: str, path: Path) -> None:
    """Refuse a measure that follows the length and frequency of the next word, which nobody has seen yet.

    The positive control of an alignment: what a word's own properties explain beyond its neighbours'. What the word
    before explains is spillover, and may well be more, but not many times as much.
    """
    itself, following = (explained_by_offset(table, column, offset) for offset in (0, 1))
    if following > max(AHEAD * itself, LEAST_EXPLAINED):
        raise InputError(
            f"{path}: {column} follows the next word's length and frequency ({following:.1%} of its variance; its own "
            f"word's: {itself:.1%}); the column sits on the wrong words, shift it"
        )
    before = explained_by_offset(table, column, -1)
    if before > max(SPILLOVER * itself, LEAST_EXPLAINED):
        raise InputError(
            f"{path}: {column} follows the length and frequency of the word before ({before:.1%} of its variance; its "
            f"own word's: {itself:.1%}); the column sits on the wrong words, shift it"
        )


# In the six corpora the next word's share is at most 0.14 of the word's own, that of the word before at most 1.7 times.
# With a column shifted by one word they are at least 0.57 of it, and 9 times as much.
LEAST_EXPLAINED = 0.02  # of the variance; less is noise

AHEAD, SPILLOVER = 0.3, 4.0


def explained_by_offset(table: pd.DataFrame, column: str, offset: int) -> float:
    """Share of a measure's variance that only the word at an offset explains, by its length and frequency.

    Args:
        table: of a corpus.
        column: the measure.
        offset: 0 the word itself, 1 the next one, -1 the one before.
    """
    frequency = language().zipf_frequency
    bare = table["word"].astype(str).str.strip(PUNCTUATION)
    facts = pd.DataFrame({"length": bare.str.len(), "zipf": [frequency(word) for word in bare]})
    groups = table["text_id"]
    parts: dict[int, Any] = {k: facts.groupby(groups).shift(-k) for k in (-1, 0, 1)}
    everything = pd.concat([*parts.values(), table[column]], axis=1).to_numpy(float)
    everything = everything[np.isfinite(everything).all(1)]
    y = everything[:, -1] - everything[:, -1].mean()
    x = everything[:, :-1] - everything[:, :-1].mean(0)
    if len(y) < 20:
        return 0.0

    def unexplained(kept: list[int]) -> float:
        beta = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
        return float(((y - x[:, kept] @ beta) ** 2).sum())

    place = 2 * [-1, 0, 1].index(offset)
    rest = [i for i in range(6) if i not in (place, place + 1)]
    return (unexplained(rest) - unexplained(list(range(6)))) / float((y**2).sum())
