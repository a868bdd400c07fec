"""Trials of participants, as the authors of a corpus published them: read by its description, and checked word by word.

What the texts are is taken from the corpus' file of words, or, where there is none, from the readers: the word that
most of them have at a place. Readers whose words in a text are mostly others are numbered wrongly there, and do not
count in it; of the others, rows with another word do not count. All of this is counted and said.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError
from cladastats.language import PUNCTUATION
from cladastats.people.description import Measure, Source, Trials, holds
from cladastats.texts.tablefile import TableFile, as_numbers, read_data, with_columns

WRONGLY_NUMBERED = 0.5  # of a reader's words in a text: more that differ, and none of them counts


@dataclass(frozen=True)
class TrialTable:
    """Trials in order.

    Attributes:
        frame: a row per trial and word: `text_id`, `word_index` (from 1 on), `word`, `item`, `subject` where the files
            say it, further columns of the description, and the measures.
        words: of every text, by `text_id`.
        path: a file, for messages.
        notes: what was left out, one sentence each.
    """

    frame: pd.DataFrame
    words: dict[str, tuple[str, ...]]
    path: Path
    notes: tuple[str, ...]


def find_trials(trials: Trials, folder: Path) -> list[Path]:
    """The files of trials in a folder: those that match the first pattern that any matches."""
    for pattern in trials.files:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    return []


def read_trials(source: Source, folder: Path) -> TrialTable:
    """Read the trials of a corpus.

    Args:
        source: its description.
        folder: where its files are.

    Raises:
        InputError: a column is missing, holds what is no number, or a row says no word; a word is there twice; readers
            disagree about the words of a text; no row counts.
    """
    assert source.trials is not None
    trials, files = source.trials, find_trials(source.trials, folder)
    wanted = _columns(source)
    parts: list[pd.DataFrame] = []
    notes: list[str] = []
    for path in files:
        table = _read(path, wanted, quoted=trials.quoted)
        notes += table.notes
        parts.append(_kept(table, source, path))
    rows = pd.concat(parts, ignore_index=True)
    path = files[0]
    if rows.empty:
        raise InputError(f"{path} has no row that counts ({_conditions(trials)}); get the file anew")
    rows, said = _of_people(rows, trials, folder)
    notes += said
    rows, said = _without_blanks(rows, trials, path)
    notes += said
    rows, said = _once(rows, path)
    notes += said
    if trials.words is not None:
        texts = _word_file(source, folder)
    else:
        rows, texts, said = _by_readers(rows, path)
        notes += said
    rows, said = matching(rows, texts, path)
    notes += said
    rows = rows[rows["place"].notna()]
    names = _names(texts["text_id"], trials.prefix)
    numbers, words = _numbered(texts.assign(text_id=names), trials, path)
    rows = rows.assign(text_id=rows["text_id"].map(dict(zip(texts["text_id"], names, strict=True))))
    index = pd.MultiIndex.from_arrays([rows["text_id"], rows["place"].astype(float)])
    frame = rows.drop(columns=["place", "row"]).assign(word_index=numbers.reindex(index).to_numpy().astype(int))
    frame["word"] = [words[text][i - 1] for text, i in zip(frame["text_id"], frame["word_index"], strict=True)]
    frame["item"] = frame["item"].where(frame["item"] != "", frame["text_id"])
    return TrialTable(frame.reset_index(drop=True), words, path, tuple(dict.fromkeys(notes)))


def averaged(table: pd.DataFrame, measures: Sequence[Measure], words: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """Means over participants, a row for every word of the texts.

    Args:
        table: of `TrialTable.frame`.
        measures: those to average; a covariate is averaged over the trials in which its measure is there.
        words: of every text.

    Returns:
        `text_id`, `word_index`, `word`, `item`, the measures with their spread, and the other columns' means.
    """
    key = ["text_id", "word_index"]
    every = pd.DataFrame(
        [(text, i, word) for text, there in words.items() for i, word in enumerate(there, 1)], columns=[*key, "word"]
    )
    groups = table.groupby(key)
    columns: dict[str, pd.Series] = {}
    for measure in measures:
        columns[measure.column] = groups[measure.column].mean()
        if measure.spread is not None:
            deviation, number = measure.spread
            columns[deviation], columns[number] = groups[measure.column].std(), groups[measure.column].count()
        there = table[table[measure.column].notna()].groupby(key)
        columns |= {name: there[name].mean() for name in measure.covariates if name not in columns}
    known = {*key, "word", "item", "subject", *columns}
    columns |= {name: groups[name].mean() for name in table if name not in known}
    means = pd.DataFrame(columns)
    items = table.groupby("text_id")["item"].first()
    joined = every.merge(means.reset_index(), on=key, how="left")
    joined.insert(3, "item", joined["text_id"].map(items).fillna(joined["text_id"]))
    for measure in measures:
        if measure.spread is not None:
            joined[measure.spread[1]] = joined[measure.spread[1]].fillna(0)
    return joined


def comparable(words: pd.Series) -> pd.Series:
    """Words as they are compared: without punctuation around them and capitals, composed characters."""
    codes, different = pd.factorize(words.astype(str))
    bare = pd.Series([unicodedata.normalize("NFC", word.strip()) for word in different], dtype=object)
    stripped = bare.str.strip(PUNCTUATION)
    compared = stripped.where(stripped != "", bare).str.lower()
    return pd.Series(compared.to_numpy()[codes], index=words.index)


def _columns(source: Source) -> list[str]:
    """The columns of a file that are read."""
    assert source.trials is not None
    trials = source.trials
    wanted = [name for name in (*trials.text, trials.word_index, trials.word, trials.subject, trials.item) if name]
    wanted += [*trials.keep, *trials.also.values()]
    for measure in source.measures:
        if measure.published:
            wanted += [measure.source or measure.column, *measure.only]
    return list(dict.fromkeys(wanted))


def _read(path: Path, wanted: Sequence[str], *, quoted: bool | None) -> TableFile:
    """A file of trials: an R data frame, or a table."""
    if path.suffix.lower() in (".rda", ".rdata"):
        return TableFile(with_columns(_r_frame(path), wanted, path))
    return read_data(path, wanted, quoted)


def _r_frame(path: Path) -> pd.DataFrame:
    """The first data frame of a file that R's `save` wrote; its missing text is empty."""
    try:
        import rdata
    except ImportError:
        raise InputError(f"{path} is an R file; install its reader with pip install 'clada[people]'") from None
    try:
        held: dict[str, Any] = rdata.read_rda(path)
    except Exception as problem:  # of a damaged file there are errors of any kind
        raise InputError(f"cannot read {path}: {(str(problem).splitlines() or [''])[0]}; get it anew") from None
    frames = [value for value in held.values() if isinstance(value, pd.DataFrame)]
    if not frames:
        raise InputError(f"{path} holds no data frame but {', '.join(held) or 'nothing'}; give another file")
    frame = frames[0].reset_index(drop=True)
    for name in frame:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    return frame


def _kept(table: TableFile, source: Source, path: Path) -> pd.DataFrame:
    """The rows of a file that count, with the names of our tables."""
    trials, decimal = source.trials, table.decimal
    assert trials is not None
    frame = table.frame.reset_index(drop=True)
    frame = frame[holds(frame, trials.keep, path, decimal)]
    made: dict[str, Any] = {"text_id": joined_names(frame, trials.text), "row": frame.index + 1}
    made["place"] = as_numbers(frame[trials.word_index], trials.word_index, path, decimal)
    made["word"] = frame[trials.word].astype(str).str.strip() if trials.word else ""
    made["item"] = joined_names(frame, (trials.item,)) if trials.item else ""
    if trials.subject:
        made["subject"] = joined_names(frame, (trials.subject,))
    for name, column in trials.also.items():
        made[name] = as_numbers(frame[column], column, path, decimal)
    for measure in source.measures:
        if measure.published:
            column = measure.source or measure.column
            values = as_numbers(frame[column], column, path, decimal)
            counts = holds(frame, measure.only, path, decimal)
            missing = np.nan if measure.otherwise is None else measure.otherwise
            made[measure.column] = values.where(counts, missing)
    rows = pd.DataFrame(made, index=frame.index)
    unplaced = (rows["text_id"] == "") | rows["place"].isna()
    if unplaced.any():
        first = rows[unplaced].iloc[0]
        lacking = "text" if first["text_id"] == "" else "word number"
        raise InputError(
            f"{path}: row {first['row']} has no {lacking} ({int(unplaced.sum())} such rows); mend the file"
        )
    return rows


def joined_names(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Columns as one name; whole numbers as integers, as R and pandas may write them with a point."""
    parts = []
    for name in columns:
        column = frame[name]
        if pd.api.types.is_float_dtype(column):
            parts.append(column.map(lambda value: "" if np.isnan(value) else f"{value:.15g}"))
            continue
        text = column.astype(str).str.strip().where(column.notna(), "")
        whole = text.str.fullmatch(r"-?\d+\.0")
        parts.append(text.str.removesuffix(".0") if (whole | (text == "")).all() else text)
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.str.cat(part, sep="_")
    return joined


def _names(texts: pd.Series, prefix: str) -> pd.Series:
    """Names of texts; behind a prefix numbers are filled up, so that they sort."""
    if prefix and texts.str.fullmatch(r"\d+").all():
        texts = texts.str.zfill(max(2, int(texts.str.len().max())))
    return prefix + texts


def _conditions(trials: Trials) -> str:
    return ", ".join(trials.keep) or "none is there"


def _of_people(rows: pd.DataFrame, trials: Trials, folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the participants that count."""
    people = trials.people
    if people is None:
        return rows, []
    path = folder / people.file
    if not path.is_file():
        return rows, [f"{path} is not there to say which participants count ({', '.join(people.keep)}); all do"]
    table = read_data(path, [people.subject, *people.keep], trials.quoted)
    good = table.frame[holds(table.frame, people.keep, path, table.decimal)]
    count = rows["subject"].isin(joined_names(good, (people.subject,)))
    left_out = rows.loc[~count, "subject"].nunique()
    if not count.any():
        raise InputError(f"{path} keeps no participant of the trials; give the files that belong together")
    return rows[count], [f"{left_out} participants do not count, by {people.file}"] if left_out else []


def _without_blanks(rows: pd.DataFrame, trials: Trials, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Refuse a place of a text at which no reader has a word, or leave such rows out where the description says so."""
    if not trials.word:
        return rows, []
    blank = rows["word"] == ""
    if not blank.any():
        return rows, []
    if trials.blank_words == "drop":
        return rows[~blank], [f"{int(blank.sum()):,} rows without a word do not count"]
    named = rows[~blank].set_index(["text_id", "place"]).index
    nowhere = blank & ~pd.MultiIndex.from_frame(rows[["text_id", "place"]]).isin(named)
    if nowhere.any() and trials.words is None:
        first = rows[nowhere].iloc[0]
        raise InputError(
            f"{path}: row {first['row']}, {_at(first)}, has an empty {trials.word} "
            f"({int(nowhere.sum())} such rows); a text cannot be read without it, so mend the file"
        )
    return rows, []  # the others' word is known, and these rows differ from it


def _once(rows: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows without copies; two different ones of a participant and word are refused."""
    key = [name for name in ("subject", "text_id", "place") if name in rows]
    copies = rows.duplicated([name for name in rows if name != "row"])
    rows = rows[~copies]
    twice = rows.duplicated(key)
    if twice.any():
        first = rows[twice].iloc[0]
        who = f" of participant {first['subject']}" if "subject" in rows else ""
        raise InputError(
            f"{path}: {_at(first)}{who} is there twice, in row {first['row']} too "
            f"({int(twice.sum())} such rows); give one row per word"
        )
    return rows, [f"{int(copies.sum()):,} rows are copies of others, and do not count"] if copies.any() else []


def _by_readers(rows: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The words of the texts, and the rows without the readers who are numbered otherwise than most.

    Returns:
        the rows, the texts as `text_id`, `place` and `word`, and what is to be said.
    """
    rows = rows.assign(compared=comparable(rows["word"]))
    notes: list[str] = []
    texts = _voted(rows)
    if "subject" in rows:
        wrong = _misnumbered(rows, texts)
        if len(wrong):
            left_out = pd.MultiIndex.from_frame(rows[["subject", "text_id"]]).isin(wrong)
            who = sorted({str(subject) for subject, _ in wrong})
            notes.append(
                f"{path}: {_listed(who)} {'has' if len(who) == 1 else 'have'} other words at most places of "
                f"{len({text for _, text in wrong})} texts than the other readers, as if numbered wrongly; "
                f"{int(left_out.sum()):,} rows do not count"
            )
            rows = rows[~left_out]
            texts = _voted(rows)
    tied = texts[texts["tied"]]
    if len(tied):
        first = tied.iloc[0]
        raise InputError(
            f"{path}: readers disagree about {_at(first)} ({first['word']!r} has no "
            f"majority; {len(tied)} such places); mend the numbers of the words"
        )
    return rows.drop(columns="compared"), texts[["text_id", "place", "word"]], notes


def _voted(rows: pd.DataFrame) -> pd.DataFrame:
    """The word that most readers have at each place of a text, and whether another one has as many votes."""
    there = rows[rows["word"] != ""]
    place = ["text_id", "place"]
    spelled = there.groupby([*place, "compared", "word"]).size().rename("n").reset_index()
    spelled = spelled.sort_values([*place, "compared", "n"], ascending=[True, True, True, False], kind="stable")
    votes = spelled.drop_duplicates([*place, "compared"]).drop(columns="n")
    votes = votes.assign(votes=spelled.groupby([*place, "compared"])["n"].sum().to_numpy())
    leaders = votes[votes["votes"] == votes.groupby(place)["votes"].transform("max")]
    return leaders.assign(tied=leaders.duplicated(place, keep=False)).drop_duplicates(place).reset_index(drop=True)


def _misnumbered(rows: pd.DataFrame, texts: pd.DataFrame) -> pd.Index:
    """Pairs of reader and text whose words are mostly others than the text's."""
    there = rows[rows["word"] != ""]
    joined = there[["subject", "text_id", "place", "compared"]].merge(
        texts[["text_id", "place", "compared"]], on=["text_id", "place"], suffixes=("", "_there")
    )
    other = (joined["compared"] != joined["compared_there"]).groupby([joined["subject"], joined["text_id"]]).mean()
    return other[other > WRONGLY_NUMBERED].index


def _word_file(source: Source, folder: Path) -> pd.DataFrame:
    """The words of the texts, from the corpus' file of words."""
    assert source.trials is not None
    assert source.trials.words is not None
    trials, file = source.trials, source.trials.words
    path = folder / file.file
    needed = [*file.text, file.word_index, file.word]
    if not path.is_file():
        raise InputError(f"{folder} has no {file.file}, which holds the words of {source.name}; get it too")
    table = _read(path, needed, quoted=trials.quoted)
    frame = table.frame[(table.frame[file.text[0]] != "") & (table.frame[file.word_index] != "")]
    texts = pd.DataFrame(
        {
            "text_id": joined_names(frame, file.text),
            "place": as_numbers(frame[file.word_index], file.word_index, path, table.decimal),
            "word": frame[file.word].astype(str).str.strip(),
        }
    )
    blank = texts["word"] == ""
    if blank.any():
        first = texts[blank].iloc[0]
        raise InputError(
            f"{path}: row {blank[blank].index[0] + 1}, {_at(first)}, has an empty "
            f"{file.word} ({int(blank.sum())} such rows); a text cannot be read without it, so mend the file"
        )
    twice = texts.duplicated(["text_id", "place"])
    if twice.any():
        first = texts[twice].iloc[0]
        raise InputError(f"{path}: {_at(first)} is there twice; get the file anew")
    return texts


def matching(
    rows: pd.DataFrame, texts: pd.DataFrame, path: Path, most: float = WRONGLY_NUMBERED
) -> tuple[pd.DataFrame, list[str]]:
    """The rows whose place is one of their text, and whose word is the text's.

    Args:
        rows: `text_id`, `place`, `word` ("" where it is not known at all).
        texts: `text_id`, `place`, `word`.
        path: the file, for messages.
        most: the largest share of rows that may have another word.

    Returns:
        the rows, with `place` missing where they do not count, and what is to be said.

    Raises:
        InputError: more words are others than the texts'.
    """
    there = rows[["text_id", "place"]].merge(texts, on=["text_id", "place"], how="left")["word"].set_axis(rows.index)
    known = there.notna()
    checked = known if (rows["word"] != "").any() else pd.Series(False, index=rows.index)
    other = checked & (comparable(rows["word"]) != comparable(there.fillna("")))
    notes = []
    lost = ~known
    if lost.any():
        first = rows[lost].iloc[0]
        notes.append(
            f"{path}: {int(lost.sum()):,} rows are of no word of the texts, the first {_at(first)}; they do not count"
        )
    if other.any():
        first = rows[other].iloc[0]
        who = sorted(set(rows.loc[other, "subject"].astype(str))) if "subject" in rows else []
        count = f"{int(other.sum()):,} rows with another word{f', of {_listed(who)},' if who else ''}"
        place = f"{path}: {_at(first)} is {first['word']!r}, and {there[first.name]!r} in its text"
        if other.mean() > most:
            raise InputError(
                f"{place} ({count} are too many); mend the numbers of words, or give the text that was read"
            )
        notes.append(f"{place}; {count} do not count")
    return rows.assign(place=rows["place"].where(known & ~other)), notes


def _at(row: pd.Series) -> str:
    """Where a row is, for messages."""
    return f"word {row['place']:g} of text {row['text_id']}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"{'reader' if len(names) == 1 else 'readers'} {shown}"


def _numbered(texts: pd.DataFrame, trials: Trials, path: Path) -> tuple[pd.Series, dict[str, tuple[str, ...]]]:
    """The number of every place in its text, from 1 on, by `text_id` and place; and the words of every text."""
    texts = texts.sort_values(["text_id", "place"], kind="stable")
    steps = texts.groupby("text_id")["place"].diff().fillna(texts["place"])  # the first one is 0 or 1
    gap = (steps > 1) & (trials.numbering == "whole")
    if gap.any():
        first = texts[gap].iloc[0]
        raise InputError(
            f"{path}: {first['text_id']} lacks word {first['place'] - 1:g} ({int(gap.sum())} such places); give every "
            "word a row, or describe the numbers as numbering = 'jumps'"
        )
    numbers = texts.groupby("text_id").cumcount() + 1
    index = pd.MultiIndex.from_arrays([texts["text_id"], texts["place"].astype(float)])
    words = {str(text): tuple(rows["word"]) for text, rows in texts.groupby("text_id", sort=True)}
    return pd.Series(numbers.to_numpy(), index=index), words
