"""Descriptions of corpora: what a table measures, how its files look, which of its rows count, and why.

A description is a TOML file. Those of `cladastats/people/descriptions/` come with the package; users write their own
(`corpora/README.md` says how). Nothing else in the package knows the name of a corpus or of its columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pandas as pd

from clada.errors import InputError
from cladastats.texts.tablefile import as_numbers

SIX = ("naturalstories", "ucl_et", "ucl_erp", "provo", "meco_en", "brothers2021")  # the confirmatory ones, in order

PLAUSIBLE = {"ms": (0.0, 10_000.0)}  # of a measure whose description says nothing else, by its unit

FOLDER = Path(__file__).parent / "descriptions"


class Between(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range of numbers, its ends within.

    Attributes:
        least: the smallest; None: no limit.
        most: the largest; None: no limit.
    """

    least: float | None = None
    most: float | None = None


Condition = Between | tuple[str | float, ...]  # in a description: {least = 5}, or a list of values


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One dependent variable.

    Attributes:
        column: its name in tables.
        label: what it is, for figures; "": the column.
        unit: `ms`, `microvolt` or another.
        covariates: columns that belong in every model of it.
        spread: columns of the standard deviation over participants and of their number, for the reliability; or None.
        reliability: as published, where the table does not give it: odd against even participants, Spearman-Brown.
        sign: that surprisal's effect is known to have; 0: none is agreed on.
        late: it is measured when the next word is there already, so that it may follow that.
        confirmatory: belongs to the measures that were fixed before any result was seen.
        least: values below are implausible, and missing; None: 0 for `ms`, no limit for other units.
        most: values above are implausible, and missing; None: 10,000 for `ms`, no limit for other units.
        source: its column in the published trials; "": the same name.
        published: whether the published trials have it.
        only: of the published trials, those that it counts in.
        otherwise: its value in the others; None: missing.
    """

    column: str
    label: str = ""
    unit: str = "ms"
    covariates: tuple[str, ...] = ()
    spread: tuple[str, str] | None = None
    reliability: float | None = None
    sign: int = 1
    late: bool = False
    confirmatory: bool = False
    least: float | None = None
    most: float | None = None
    source: str = ""
    published: bool = True
    only: dict[str, Condition] = {}
    otherwise: float | None = None

    @property
    def plausible(self) -> tuple[float, float]:
        """The smallest and the largest value that counts."""
        least, most = PLAUSIBLE.get(self.unit, (float("-inf"), float("inf")))
        return least if self.least is None else self.least, most if self.most is None else self.most


class WordFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file with the words of the texts, where the trials do not say them.

    Attributes:
        file: its name.
        text: the columns that make a text, as those of the trials do.
        word_index: the column of a word's number.
        word: the column of the word.
    """

    file: str
    text: tuple[str, ...]
    word_index: str
    word: str


class People(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that says which participants count.

    Attributes:
        file: its name; without it all count, which is said.
        subject: the column of the participant.
        keep: which rows are of participants that count.
    """

    file: str
    subject: str
    keep: dict[str, Condition]


class Trials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files with a row for each trial and word.

    Attributes:
        files: patterns of their names; the files that match the first pattern that any matches are read together.
        text: columns that make a text, each of their combinations one.
        word_index: column of a word's number in its text.
        word: column of the word; "": only the word file has it.
        subject: column of the participant; "": a row is an average already.
        item: column that random intercepts are of; "": the text.
        prefix: what the names of texts begin with; numbers are then filled up with zeros.
        numbering: `whole`: a number that is left out is a word that is missing; `jumps`: numbers only give the order.
        blank_words: `refuse`, or `drop`: rows without a word are of no word.
        quoted: whether quotes around a cell are no part of it; None: detected.
        also: further columns of the table, and what they are called in the files.
        keep: which rows are read.
        words: a file with the words.
        people: a file that says which participants count.
    """

    files: tuple[str, ...]
    text: tuple[str, ...]
    word_index: str
    word: str = ""
    subject: str = ""
    item: str = ""
    prefix: str = ""
    numbering: Literal["whole", "jumps"] = "whole"
    blank_words: Literal["refuse", "drop"] = "refuse"
    quoted: bool | None = None
    also: dict[str, str] = {}
    keep: dict[str, Condition] = {}
    words: WordFile | None = None
    people: People | None = None


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a corpus.

    Attributes:
        name: of the corpus, and of the tables of averages.
        title: its name in figures; "": the same.
        measures: the dependent variables.
        language: ISO 639-1 code.
        isolated: every text is one sentence.
        texts: name of the running texts' files that belong to tables of averages; "": the words of the table make them.
        targets: tables of averages have a row for each item and condition, with the sentence up to the measured word.
        counts: conditions on a table with `left` (words after it in its sentence); elsewhere measures do not count.
        dropped: why.
        trials: how files of trials look; None: there are none.
        samples: languages of the samples of a corpus that holds several, by the name of the sample.
        sample: column of the trials that names the sample.
        citation: of the corpus.
        licence: of the corpus, as its authors state it.
        tried: whether the description of the trials was tried on the original files.
    """

    name: str
    measures: tuple[Measure, ...]
    title: str = ""
    language: str = "en"
    isolated: bool = False
    texts: str = ""
    targets: bool = False
    counts: dict[str, Condition] = {}
    dropped: str = ""
    trials: Trials | None = None
    samples: dict[str, str] = {}
    sample: str = ""
    citation: str = ""
    licence: str = ""
    tried: bool = False

    @property
    def confirmatory(self) -> tuple[Measure, ...]:
        """The measures that were fixed before any result was seen."""
        return tuple(measure for measure in self.measures if measure.confirmatory)


def read_description(path: str | Path) -> Source:
    """Read a description.

    Raises:
        InputError: it cannot be read, is not TOML, or a field is missing, unknown or holds something else.
    """
    path = Path(path)
    try:
        source = msgspec.toml.decode(path.read_bytes(), type=Source)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}; check the path") from None
    except msgspec.ValidationError as problem:
        what, _, place = str(problem).replace("`", "").partition(" - at ")
        field = f", {place.replace('$.', '')}" if place else ""
        raise InputError(
            f"{path}{field}: {what[0].lower()}{what[1:]}; corpora/README.md names every field of a description"
        ) from None
    except ValueError as problem:  # not TOML, or not UTF-8
        raise InputError(f"{path} is not TOML ({problem}); mend it") from None
    if not source.measures:
        raise InputError(f"{path} has no measures; describe at least one in [[measures]]")
    twice = [m.column for m in source.measures if [n.column for n in source.measures].count(m.column) > 1]
    if twice:
        raise InputError(f"{path} has the measure {twice[0]} twice; give every measure its own column")
    if not source.name or Path(source.name).name != source.name:
        raise InputError(f"{path}: the name {source.name!r} cannot be part of a file's name; give another one")
    return source


def described(name: str) -> Source:
    """The description of a corpus.

    Args:
        name: of a corpus that comes with the package, such as `provo`; of a sample of one, such as `meco_du`; or the
            path of a `.toml` file, and after a colon the sample.

    Raises:
        InputError: no such corpus or sample, or a description that is not in order.
    """
    path, _, sample = name.rpartition(":") if not name.endswith(".toml") else (name, "", "")
    if path.endswith(".toml"):
        source = read_description(path)
        return _sample(source, sample, name) if sample else source
    if (FOLDER / f"{name}.toml").is_file() and "/" not in name:
        return read_description(FOLDER / f"{name}.toml")
    corpus, _, sample = name.partition("_")
    if sample and (FOLDER / f"{corpus}.toml").is_file():
        return _sample(read_description(FOLDER / f"{corpus}.toml"), sample, name)
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    raise InputError(f"unknown corpus '{name}'; use {', '.join(known)}, a sample like meco_du, or a .toml file")


def _sample(source: Source, sample: str, name: str) -> Source:
    if sample not in source.samples:
        raise InputError(
            f"unknown corpus '{name}': {source.name} has no sample {sample!r}; it has {', '.join(source.samples)}"
        )
    assert source.trials is not None
    keep = {**source.trials.keep, source.sample: (sample,)}
    whole = f"{source.name}_{sample}"
    trials = msgspec.structs.replace(source.trials, keep=keep, prefix=f"{whole}_")
    language = source.samples[sample]
    return msgspec.structs.replace(source, name=whole, language=language, trials=trials, samples={})


def holds(frame: pd.DataFrame, conditions: dict[str, Condition], path: str | Path, decimal: str = ".") -> pd.Series:
    """Which rows of a table meet all conditions.

    A list of numbers is compared as numbers, a list of texts as text. A missing value meets no condition.

    Raises:
        InputError: the table has no such column, or it holds what is no number.
    """
    met = pd.Series(True, index=frame.index)
    for column, condition in conditions.items():
        if column not in frame:
            raise InputError(f"{path} has no column {column}; it has {', '.join(map(str, frame.columns))}")
        if isinstance(condition, Between):
            values = as_numbers(frame[column], column, path, decimal)
            least = float("-inf") if condition.least is None else condition.least
            most = float("inf") if condition.most is None else condition.most
            met &= values.between(least, most)
        elif all(isinstance(value, (int, float)) for value in condition):
            met &= as_numbers(frame[column], column, path, decimal).isin(condition)
        else:
            met &= frame[column].astype(str).str.strip().isin([str(value) for value in condition])
    return met


SOURCES: dict[str, Source] = {name: described(name) for name in SIX}

FAMILY: tuple[tuple[str, str], ...] = tuple(
    (name, measure.column) for name, source in SOURCES.items() for measure in source.confirmatory
)
"""The confirmatory family: (corpus, measure) of the six, whatever a command asks for."""
