"""Checks of a measure before it is analysed: its unit, implausible values, its place, columns that are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError
from cladastats.language import PUNCTUATION, language
from cladastats.people.description import Measure

MOST_IMPLAUSIBLE = 0.2  # of the values; with more the range is not that of the measure

LEAST_MEDIAN = 10.0  # milliseconds; below it times are seconds, or logarithms

# In the six corpora the next word's share is at most 0.14 of the word's own, that of the word before at most 1.7 times.
# With a column shifted by one word they are at least 0.57 of it, and 9 times as much.
LEAST_EXPLAINED = 0.02  # of the variance; less is noise

AHEAD, SPILLOVER = 0.3, 4.0

NEARLY_THE_SAME = 0.99  # of a correlation


def trimmed(values: pd.Series, measure: Measure, path: object) -> tuple[pd.Series, list[str]]:
    """A measure without its implausible values.

    Args:
        values: numbers, missing ones among them.
        measure: what they are.
        path: the file, for messages.

    Returns:
        the values, implausible ones missing, and the rule with its counts where it left any out.

    Raises:
        InputError: the values are not in the measure's unit.
    """
    least, most = measure.plausible
    there = values.dropna()
    median = float(there.median()) if len(there) else 0.0
    if measure.unit == "ms" and len(there) and abs(median) < LEAST_MEDIAN and there.nunique() > 1:
        raise InputError(
            f"the median of {measure.column} in {path} is {median:g}, and its unit is ms; these may be seconds or "
            "logarithms: give milliseconds, or name their unit"
        )
    low, high = there < least, there > most
    bad = int(low.sum() + high.sum())
    if not bad:
        return values, []
    if bad > MOST_IMPLAUSIBLE * len(there):
        raise InputError(
            f"{bad:,} of {len(there):,} values of {measure.column} in {path} are outside {least:g} to {most:g} "
            f"{measure.unit}; name their unit, or another range"
        )
    rule = (
        f"{measure.column}: values outside {least:g} to {most:g} {measure.unit} do not count: {int(low.sum()):,} "
        f"below, {int(high.sum()):,} above, of {len(there):,}"
    )
    return values.where(values.between(least, most)), [rule]


def check_enough(values: pd.Series, column: str, path: object, least: int, lost: Sequence[str] = ()) -> None:
    """Refuse a measure that does not vary, or has too few values, with the cause.

    Args:
        values: numbers, missing ones among them.
        column: the measure.
        path: the file, for messages.
        least: values needed.
        lost: what became of the others, for the message.

    Raises:
        InputError: as said.
    """
    there = values.dropna()
    if len(there) and there.nunique() == 1:
        raise InputError(
            f"{column} of {path} is the same in all {len(there):,} rows, {there.iloc[0]:g}; nothing varies"
        )
    if len(there) < least:
        why = "".join(f"; {reason}" for reason in lost)
        raise InputError(
            f"{column} of {path} has {len(there):,} values that count of {len(values):,} rows, and {least} are needed"
            f"{why}"
        )


def frequencies(code: str) -> Callable[[str], float] | None:
    """What tells a word's frequency in a language; None where nothing does."""
    try:
        frequency = language(code).zipf_frequency
        frequency("a")
    except InputError:
        return None
    return frequency


def misplaced(table: pd.DataFrame, column: str, code: str = "en") -> str | None:
    """Whether a measure follows the length and frequency of a neighbouring word, as if it sat on the wrong words.

    The positive control of an alignment: what a word's own properties explain beyond its neighbours'. What the word
    before explains is spillover, and may well be more, but not many times as much; the next word nobody has seen yet.

    Args:
        table: `text_id`, `word_index`, `word` and the measure; trials are averaged.
        column: the measure.
        code: of the language.

    Returns:
        a sentence; None where all is well.
    """
    key = ["text_id", "word_index"]
    if table.duplicated(key).any():
        table = table.groupby(key, as_index=False).agg({"word": "first", column: "mean"})
    table = table.sort_values(key, kind="stable", ignore_index=True)
    itself, following, before = (explained_by_offset(table, column, offset, code) for offset in (0, 1, -1))
    if following > max(AHEAD * itself, LEAST_EXPLAINED):
        return (
            f"{column} follows the next word's length and frequency ({following:.1%} of its variance; its own word's: "
            f"{itself:.1%}); the column sits on the wrong words, shift it"
        )
    if before > max(SPILLOVER * itself, LEAST_EXPLAINED):
        return (
            f"{column} follows the length and frequency of the word before ({before:.1%} of its variance; its own "
            f"word's: {itself:.1%}); the column sits on the wrong words, shift it"
        )
    return None


def explained_by_offset(table: pd.DataFrame, column: str, offset: int, code: str = "en") -> float:
    """Share of a measure's variance that only the word at an offset explains, by its length and frequency.

    Args:
        table: `text_id`, `word_index`, `word` and the measure, a row per word, in their order.
        column: the measure.
        offset: 0 the word itself, 1 the next one, -1 the one before.
        code: of the language; where nobody knows its frequencies, length alone is looked at.
    """
    bare = table["word"].astype(str).str.strip(PUNCTUATION)
    facts = pd.DataFrame({"length": bare.str.len()})
    frequency = frequencies(code)
    if frequency is not None:
        facts["zipf"] = [frequency(word) for word in bare]
    width = len(facts.columns)
    groups = table["text_id"]
    places = table["word_index"]
    parts: dict[int, Any] = {
        k: facts.groupby(groups).shift(-k).where(places.groupby(groups).shift(-k) == places + k) for k in (-1, 0, 1)
    }
    everything = pd.concat([*parts.values(), table[column]], axis=1).to_numpy(float)
    everything = everything[np.isfinite(everything).all(1)]
    y = everything[:, -1] - everything[:, -1].mean()
    x = everything[:, :-1] - everything[:, :-1].mean(0)
    if len(y) < 20:
        return 0.0

    def unexplained(kept: list[int]) -> float:
        beta = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
        return float(((y - x[:, kept] @ beta) ** 2).sum())

    place = width * [-1, 0, 1].index(offset)
    rest = [i for i in range(3 * width) if i not in range(place, place + width)]
    return (unexplained(rest) - unexplained(list(range(3 * width)))) / float((y**2).sum())


def check_columns(table: pd.DataFrame, columns: Sequence[str], path: object) -> list[str]:
    """Refuse predictors that do not vary, are the same, or are a sum of others; say which are nearly the same.

    Args:
        table: with the columns, numbers.
        columns: of one model.
        path: the file, for messages.

    Returns:
        pairs that correlate with 0.99 and more, one sentence each.

    Raises:
        InputError: a column is constant, two are the same up to their unit, or one follows from others.
    """
    values = table[list(columns)].dropna().to_numpy(float)
    if len(values) <= len(columns):
        return []
    for name, column in zip(columns, values.T, strict=True):
        if np.ptp(column) == 0:
            raise InputError(f"the column {name} of {path} is the same in every row that counts; leave it out")
    standard = (values - values.mean(0)) / values.std(0)
    notes = []
    for i, j in combinations(range(len(columns)), 2):
        r = float((standard[:, i] * standard[:, j]).mean())
        if abs(r) > 1 - 1e-10:
            raise InputError(
                f"the columns {columns[i]} and {columns[j]} of {path} are the same up to their unit; leave one out"
            )
        if abs(r) >= NEARLY_THE_SAME:
            notes.append(
                f"{columns[i]} and {columns[j]} are nearly the same (r = {r:.3f}); their effects are uncertain"
            )
    for i in range(1, len(columns)):
        others = standard[:, :i]
        left = standard[:, i] - others @ np.linalg.lstsq(others, standard[:, i], rcond=None)[0]
        if float((left**2).mean()) < 1e-18:  # of a variance of 1: rounding leaves about 1e-30
            raise InputError(f"the column {columns[i]} of {path} follows from {', '.join(columns[:i])}; leave one out")
    return notes
