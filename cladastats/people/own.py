"""Your own trials: a table of them merged with a table of words, checked, and ready for a mixed model.

A row of the table is a trial at a word; the words' table is what `cladastats words` writes. Both are put together by
position, the word itself must be the same, and implausible values are left out by a rule that is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from clada.errors import InputError
from cladastats.people.checks import check_columns, check_enough, misplaced, trimmed
from cladastats.people.corpora import ReadingCorpus, sentence_columns
from cladastats.people.description import Measure, Source
from cladastats.people.trials import joined_names, matching
from cladastats.texts.tablefile import MISSING, as_numbers, is_numeric, read_data
from cladastats.texts.text import Text

KEYS = ("text_id", "text", "item", "condition", "word_index")  # columns that say which word a row is of

LAGGED = ("surprisal_bits", "entropy_bits", "effort", "length", "frequency_zipf")

LAGS = (1, 2)

# The default formula's predictors of words, where the table of words has them.
PREDICTORS = (
    "surprisal_bits", "surprisal_bits_1", "surprisal_bits_2", "entropy_bits", "entropy_bits_1", "effort", "effort_1",
    "effort_2", "length", "length_1", "frequency_zipf", "frequency_zipf_1", "position", "tokens",
)  # fmt: skip

MEASURED = re.compile(
    r"surprisal_bits|surprisal_tokens_bits|entropy_bits|effort|effort_load|effort_\d{2,}|magnitude|hidden_norm|tokens|"
    r"length|frequency_zipf|position"
)

PLAIN = r"(?<![\w.])[A-Za-z_.][\w.]*"  # a name that needs no backticks in a formula

MOST_OTHER_WORDS = 0.05  # of the rows; more, and the tables do not belong together

LEAST_ROWS = 30  # two for each coefficient of the default formula


@dataclass(frozen=True)
class Asked:
    """What a user says of a table of trials.

    Attributes:
        table: its file.
        words: the file of the words; None: the table has their columns itself.
        measures: columns of dependent variables.
        subject: column of the participant; None: `subject`, where there is one.
        item: column of the item; None: `item`, where there is one, else the text.
        on: pairs of columns of the trials and of the words that say which word a row is of; (): those of `KEYS` that
            both have.
        unit: of the measures.
        plausible: the smallest and the largest value that counts; None: those of the unit.
        no_shift_check: why the measures may follow neighbouring words; None: it is checked.
    """

    table: Path
    words: Path | None
    measures: tuple[str, ...]
    subject: str | None = None
    item: str | None = None
    on: tuple[tuple[str, str], ...] = ()
    unit: str = "ms"
    plausible: tuple[float, float] | None = None
    no_shift_check: str | None = None


@dataclass(frozen=True)
class OwnTable:
    """Trials with what their words cost a model.

    Attributes:
        frame: a row per trial: the table's columns, numbers where every cell is one, those of the words, and these of
            the words before (`surprisal_bits_1`, `surprisal_bits_2`).
        words: `text_id`, `word_index`, `word` and the measured columns of every word.
        corpus: the same as a corpus, for held-out gains.
        subject: column of the participant; None: rows are averages.
        item: column of the item.
        notes: what was detected, left out and is doubtful, one sentence each.
    """

    frame: pd.DataFrame
    words: pd.DataFrame
    corpus: ReadingCorpus
    subject: str | None
    item: str
    notes: tuple[str, ...] = field(default=())


def read_own(asked: Asked) -> OwnTable:
    """Read and merge a user's table of trials.

    Raises:
        InputError: a file cannot be read; a column is missing; the columns do not say which word a row is of; words
            differ; a measure is in another unit, does not vary or has too few values.
    """
    table = read_data(asked.table)
    notes = list(table.notes)
    trials, decimal = table.frame, table.decimal
    subject, item = _named(asked, trials)
    if asked.words is None:
        pairs = asked.on or tuple((name, name) for name in KEYS if name in trials)
        words, code = _words_of_table(trials, [name for name, _ in pairs], asked, decimal), "en"
        of_words = decimal
    else:
        words, code, of_words, said = read_words(asked.words)
        notes += said
        pairs = asked.on or tuple((name, name) for name in KEYS if name in trials and name in words)
    rows, texts, beside = _keyed(trials, words, pairs, asked, decimal)
    rows["subject"] = _filled(trials, subject, asked.table) if subject is not None else ""
    rows, said = matching(rows, texts.rename(columns={"word_index": "place"}), asked.table, MOST_OTHER_WORDS)
    notes += said
    if not (rows["word"] != "").any():
        notes.append(f"{asked.table} has no column word, so that nothing checks which word a row is of")
    rows = rows[rows["place"].notna()]
    if rows.empty:
        raise InputError(f"no row of {asked.table} is of a word of {asked.words}; compare their {_listed(pairs)}")
    notes += _repeated(rows, subject, asked)
    known = {subject, item, *(name for name, _ in pairs), "word", *asked.measures}
    kept = [name for name in trials if name in known or not MEASURED.fullmatch(name)]
    frame = _numeric(trials.loc[rows.index, kept], known - set(asked.measures), decimal)
    key = ["text_id", "word_index"]
    lagged = with_lags(texts)
    place = rows.rename(columns={"place": "word_index"})[key].astype({"word_index": int})
    columns = [name for name in lagged if name not in frame and name not in key]
    at = place.merge(lagged[[*key, *columns]], on=key, how="left").set_index(frame.index)
    there = place.merge(beside, on=key, how="left").set_index(frame.index).drop(columns=key)
    # What came with the stimuli: a rating is a number in a formula, and a region a category.
    frame = pd.concat([frame, at[[name for name in at if name not in frame]], _numeric(there, known, of_words)], axis=1)
    frame = frame.assign(text_id=rows["text_id"], word_index=place["word_index"])
    if item is None:
        item = "item" if "item" in frame else "text_id"
    for name in asked.measures:
        measure = _measure(name, asked)
        values, said = trimmed(as_numbers(frame[name], name, asked.table, decimal), measure, asked.table)
        frame[name] = values
        check_enough(values, name, asked.table, LEAST_ROWS, [*said, *notes])
        notes += said
    corpus = _as_corpus(frame, place, rows, texts, asked, item, code, subject)
    notes += _shifts(corpus, texts, asked, code)
    return OwnTable(frame.reset_index(drop=True), texts, corpus, subject, item, tuple(dict.fromkeys(notes)))


def read_words(path: Path) -> tuple[pd.DataFrame, str, str, list[str]]:
    """A table of `cladastats words`: its rows, the language of its words, its decimal sign, and what is to be said.

    Raises:
        InputError: it cannot be read, or lacks the columns of such a table.
    """
    table = read_data(path)
    frame = table.frame
    lacking = [name for name in ("word", "word_index", "surprisal_bits") if name not in frame]
    if lacking:
        raise InputError(f"{path} has no column {', '.join(lacking)}; give a table that 'cladastats words' wrote")
    for name in frame:
        if MEASURED.fullmatch(str(name)):
            frame[name] = as_numbers(frame[name], str(name), path, table.decimal)
    return frame, _language(path), table.decimal, list(table.notes)


def with_lags(words: pd.DataFrame) -> pd.DataFrame:
    """Words with what the two words before them have: `surprisal_bits_1` and so on; missing where a text begins."""
    words = words.sort_values(["text_id", "word_index"], kind="stable")
    groups = words.groupby("text_id", sort=False)
    lags = {}
    for lag in LAGS:
        before = groups["word_index"].shift(lag) == words["word_index"] - lag
        for name in LAGGED:
            if name in words:
                lags[f"{name}_{lag}"] = groups[name].shift(lag).where(before)
    return words.assign(**lags)


def default_formula(own: OwnTable, measure: str) -> tuple[str, list[str]]:
    """The formula of the mixed model that is fitted where none is given, and what was left out of it.

    Surprisal with two words before, entropy with one, effort with two; length and frequency with one word before;
    position, number of tokens; random intercepts of subjects and items.

    Raises:
        InputError: there is no subject nor item that differs.
    """
    there = own.frame[own.frame[measure].notna()]
    left_out = [name for name in PREDICTORS if name in there and there[name].nunique() < 2]
    fixed = [name for name in PREDICTORS if name in there and name not in left_out]
    notes = [f"{', '.join(left_out)}: the same in every row, left out of the formula"] if left_out else []
    groups = [name for name in (own.subject, own.item) if name is not None and there[name].nunique() > 1]
    if not groups:
        raise InputError("a mixed model needs more than one subject or item; name their columns with --subject, --item")
    terms = [*fixed, *(f"(1 | {_quoted(name)})" for name in dict.fromkeys(groups))]
    return f"{_quoted(measure)} ~ {' + '.join(terms)}", notes


def _quoted(name: str) -> str:
    """A column as a formula names it."""
    return name if re.fullmatch(PLAIN, name) else f"`{name}`"


def model_frame(
    own: OwnTable, formula: str, path: Path, *, scaled: bool
) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """The rows and columns of a formula.

    Args:
        own: the trials.
        formula: lme4's.
        path: the table, for messages.
        scaled: whether predictors are in standard deviations from their mean.

    Returns:
        the rows without missing values, mean and standard deviation of every scaled column, and what is to be said.

    Raises:
        InputError: a name is no column, a predictor does not vary, two are the same, or too few rows are left.
    """
    names, fixed = _names(formula), _names(re.sub(r"\([^()]*\|[^()]*\)", "", formula))
    unknown = [name for name in names if name not in own.frame]
    if unknown:
        raise InputError(
            f"the formula '{formula}' names {', '.join(unknown)}, and the columns are "
            f"{', '.join(map(str, own.frame.columns))}"
        )
    outcome = names[0]
    frame = own.frame[names].copy()
    complete = frame.notna().all(axis=1)
    notes = []
    if not complete.all():
        notes.append(
            f"{int((~complete).sum()):,} of {len(frame):,} rows lack a value of the model; words that begin a text "
            "have none before them"
        )
    frame = frame[complete].reset_index(drop=True)
    check_enough(frame[outcome], outcome, path, LEAST_ROWS, notes)
    numbers = [name for name in fixed if pd.api.types.is_numeric_dtype(frame[name])]
    notes += check_columns(frame, numbers, path)  # the measure with them: it must not be one of its predictors
    scales: dict[str, Any] = {}
    if scaled:
        notes.append("predictors are in standard deviations; a --formula takes columns as they are")
        for name in numbers[1:]:
            mean, deviation = float(frame[name].mean()), float(frame[name].std())
            scales[name] = {"mean": mean, "sd": deviation}
            frame[name] = (frame[name] - mean) / deviation
    return frame, scales, notes


def _names(formula: str) -> list[str]:
    """The columns that a formula names: words that no bracket follows, and what stands in backticks."""
    found = re.findall(rf"`([^`]+)`|({PLAIN})(?![\w.])(?!\s*\()", formula)
    return list(dict.fromkeys(quoted or plain for quoted, plain in found))


def _named(asked: Asked, trials: pd.DataFrame) -> tuple[str | None, str | None]:
    """The columns of subject and item that the table has."""
    for name in (*asked.measures, asked.subject, asked.item):
        if name is not None and name not in trials:
            raise InputError(f"{asked.table} has no column {name}; it has {', '.join(trials.columns)}")
    subject = asked.subject or ("subject" if "subject" in trials else None)
    return subject, asked.item or ("item" if "item" in trials else None)


def _words_of_table(trials: pd.DataFrame, key: list[str], asked: Asked, decimal: str) -> pd.DataFrame:
    """The words of a table that has their columns itself."""
    lacking = [name for name in ("word", "word_index", "surprisal_bits") if name not in trials]
    if lacking:
        raise InputError(
            f"{asked.table} has no column {', '.join(lacking)}; name the table of words with --words, which "
            "'cladastats words' writes"
        )
    columns = [name for name in trials if name in (*key, "word") or MEASURED.fullmatch(name)]
    words = trials[columns].drop_duplicates(ignore_index=True)
    for name in columns:
        if MEASURED.fullmatch(name):
            words[name] = as_numbers(words[name], name, asked.table, decimal)
    return words


def _keyed(
    trials: pd.DataFrame, words: pd.DataFrame, pairs: Sequence[tuple[str, str]], asked: Asked, decimal: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Trials and words, each with the text and the number of its word.

    Returns:
        of the trials `text_id`, `place` and `word`; what was measured of the words, and the other columns of their
        table, which the trials lack, each with `text_id` and `word_index`.
    """
    source = asked.words or asked.table
    for name, other in pairs:
        for column, table, path in ((name, trials, asked.table), (other, words, source)):
            if column not in table:
                raise InputError(f"{path} has no column {column}; it has {', '.join(map(str, table.columns))}")
    index = [(name, other) for name, other in pairs if "word_index" in (name, other)]
    texts_by = [pair for pair in pairs if pair not in index]
    if len(index) != 1 or not texts_by:
        raise InputError(
            f"{asked.table} and {source} share {_listed(pairs) or 'no columns'} of {', '.join(KEYS)}; a word is known "
            "by its text and its number: name the columns with --on, as in --on item,condition,word_index, with "
            "COLUMN=WORDSCOLUMN where names differ"
        )
    (name, other), key = index[0], [column for _, column in texts_by]
    rows = pd.DataFrame(index=trials.index)
    rows["text_id"] = joined_names(trials, [column for column, _ in texts_by])
    rows["place"] = as_numbers(trials[name], name, asked.table, decimal)
    rows["row"] = trials.index + 1
    same = [column for column in trials if column.lower() == "word"]
    rows["word"] = trials[same[0]].str.strip() if same else ""
    measured = [column for column in words if MEASURED.fullmatch(str(column))]
    texts = pd.DataFrame({"text_id": joined_names(words, key)})
    texts["word_index"] = as_numbers(words[other], other, source, decimal if asked.words is None else ".").to_numpy()
    texts["word"] = words["word"].astype(str).to_numpy()
    texts[measured] = words[measured].to_numpy(float)
    twice = texts.duplicated(["text_id", "word_index"])
    if twice.any():
        first = texts[twice].iloc[0]
        raise InputError(
            f"{_listed(pairs)} do not tell the words of {source} apart: word {first['word_index']:g} of text "
            f"{first['text_id']} is there twice ({int(twice.sum())} such rows); name more columns with --on"
        )
    if texts["word_index"].isna().any() or (texts["word_index"] % 1 != 0).any():
        raise InputError(f"{source}: {other} must be a whole number in every row; mend the file")
    texts = texts.astype({"word_index": int})
    known = {*trials, *measured, *(column for _, column in pairs), "text_id", "word_index", "word"}
    others = [column for column in words if column not in known]
    beside = pd.concat([texts[["text_id", "word_index"]], words[others].set_axis(texts.index)], axis=1)
    return rows, texts, beside


def _filled(trials: pd.DataFrame, column: str, path: Path) -> pd.Series:
    blank = trials[column].str.strip().isin(MISSING)
    if blank.any():
        row = int(blank.to_numpy().argmax()) + 1
        raise InputError(f"{path}: row {row} has no {column} ({int(blank.sum())} such rows); mend the file")
    return joined_names(trials, [column])


def _repeated(rows: pd.DataFrame, subject: str | None, asked: Asked) -> list[str]:
    """Several rows of one word need a column that tells their subjects apart; of a subject and word, they are said."""
    again = int(rows.duplicated(["subject", "text_id", "place"]).sum())
    if again and subject is None:
        raise InputError(
            f"{asked.table} has several rows of one word ({again:,} too many), and no column of subjects; name it with "
            "--subject"
        )
    return [f"{asked.table}: {again:,} rows are of a subject and word that have another row too"] if again else []


def _numeric(table: pd.DataFrame, names: set[str | None], decimal: str) -> pd.DataFrame:
    """The columns of numbers as numbers, but for those that are names."""
    columns = {}
    for name in table:
        if name not in names and is_numeric(table[name], decimal):
            columns[name] = as_numbers(table[name], name, "", decimal)
        else:
            columns[name] = joined_names(table, [name])
    return pd.DataFrame(columns, index=table.index)


def _measure(name: str, asked: Asked) -> Measure:
    least, most = asked.plausible or (None, None)
    sign = 1 if asked.unit == "ms" else 0  # reading takes longer where words are more surprising
    return Measure(name, unit=asked.unit, sign=sign, confirmatory=True, least=least, most=most)


def _as_corpus(
    frame: pd.DataFrame, place: pd.DataFrame, rows: pd.DataFrame, texts: pd.DataFrame, asked: Asked, item: str,
    code: str, subject: str | None,
) -> ReadingCorpus:  # fmt: skip
    """The trials as a corpus whose family is the measures that were asked for."""
    measures = tuple(_measure(name, asked) for name in asked.measures)
    ordered = texts.sort_values(["text_id", "word_index"], kind="stable")
    words = {str(text): tuple(there["word"]) for text, there in ordered.groupby("text_id")}
    numbers = ordered.groupby("text_id").cumcount() + 1
    if not (numbers == ordered["word_index"]).all():
        first = ordered[numbers != ordered["word_index"]].iloc[0]
        raise InputError(
            f"{asked.words or asked.table}: text {first['text_id']} lacks a word before word {first['word_index']}; "
            "give all words of the texts"
        )
    table = place.assign(word=rows["word"], item=frame[item].astype(str))
    if subject is not None:
        table["subject"] = rows["subject"]
    table = table.assign(**sentence_columns(table, words, isolated=False, code=code))
    table = pd.concat([table, frame[list(asked.measures)]], axis=1)
    source = Source(asked.table.stem, measures, language=code, tried=True)
    read = [Text(text, there) for text, there in words.items()]
    return ReadingCorpus(asked.table.stem, read, table.reset_index(drop=True), measures, 0, source)


def _shifts(corpus: ReadingCorpus, texts: pd.DataFrame, asked: Asked, code: str) -> list[str]:
    """Warnings of measures that follow neighbouring words."""
    if asked.no_shift_check is not None:
        return [f"not checked for a shift by a word: {asked.no_shift_check}"]
    key = ["text_id", "word_index"]
    notes = []
    for name in asked.measures:
        means = corpus.table.groupby(key, as_index=False)[name].mean()
        problem = misplaced(texts[[*key, "word"]].merge(means, on=key, how="left"), name, code)
        if problem is not None:
            notes.append(f"{asked.table}: {problem}, or say with --no-shift-check why it is right")
    return notes


def _language(path: Path) -> str:
    """The language that the file beside a table of words says; English where there is none."""
    beside = path.with_suffix(".json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8")).get("language")
    except (OSError, ValueError, AttributeError):
        return "en"
    return said if isinstance(said, str) else "en"


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(name if name == other else f"{name}={other}" for name, other in pairs)
