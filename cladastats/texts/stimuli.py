"""Stimuli as people have them, as texts: running text, or a table with a row per word or per sentence.

What is wrong is refused with its place, before anything is measured. What is decided for the user stands in
`Stimuli.notes`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from clada.errors import InputError
from clada.system.jsonfile import text_records
from cladastats.language import CLOSING, OPENING, SEGMENTERS, Language, is_unspaced, letters_by_script
from cladastats.texts.tablefile import DELIMITERS, TableFile, columns_named, decode_file
from cladastats.texts.text import Text

WORD = re.compile(r"\S+")

# Files that are no running text, by their suffix: what to do with them.
NOT_TEXT = {
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".parquet"), "is a table; give it with --table"),
    ".json": "is JSON; give a line for each text (.jsonl), or a table with --table",
    **dict.fromkeys((".xls", ".ods"), "is a workbook; save it as .xlsx and give it with --table"),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pdf"), "is a document; save it as plain text, in UTF-8"),
    **dict.fromkeys((".html", ".htm", ".xml"), "has markup; save it as plain text, in UTF-8"),
}

# Characters of a script without white space between two white spaces, on average: words are shorter, as are phrases of
# Japanese, which are measured as regions.
LONGEST_MEAN = {"zh": 3}
LONGEST_MEAN_ELSE = 8
SHORTEST_LINE = 4

SHORTEST_REPEATED = 3  # words: shorter ones may be repeated by a writer

# Marks that open or close by what is open, each with the mark that opens its pair, and those that always do one.
IN_TURN = {'"': '"', "'": "'", "«": "«", "»": "«", "‹": "‹", "›": "‹", "„": "„", "“": "„", "‚": "‚", "‘": "‚"}
OPENS = set(OPENING) - set("«‹“‘") | {"`"}
CLOSES = set(CLOSING) - set("»›")
MARKS = OPENS | CLOSES | set(IN_TURN)

JOINERS = ("_", "/", "|", " ")  # between the columns that name a text


@dataclass(frozen=True)
class Stimuli:
    """Texts, and the table that they came from.

    Attributes:
        texts: in the input's order.
        frame: the input's columns, a row for each word of the texts, in their order; None for running text.
        word_column: the column of `frame` that holds the words themselves; None where it holds sentences, or there is
            no table.
        notes: what was decided for the user.
    """

    texts: list[Text]
    frame: pd.DataFrame | None
    word_column: str | None
    notes: tuple[str, ...]


def read_texts(name: str | Path, language: Language, segment: bool = False) -> Stimuli:
    """The running texts of a file: `.jsonl` with `text` and, if there is one, `text_id` in every line; else plain text.

    Args:
        name: of the file.
        language: of the texts.
        segment: whether the language's library finds the words.

    Raises:
        InputError: it cannot be read, holds no words, or is a table; with the line.
    """
    path = Path(name)
    if path.suffix.lower() in NOT_TEXT:
        raise InputError(f"{path} {NOT_TEXT[path.suffix.lower()]}")
    text, notes = decode_file(path)
    if path.suffix != ".jsonl":
        _refuse_no_prose(text, path)
        found = {path.stem: text}
    else:
        found = _identified(text_records(text, path, "text", "give it 'text'"), path, notes)
    if not found or not any(text.strip() for text in found.values()):
        raise InputError(f"{path} has no words; give another file")
    return running_texts(found, language, segment, path, notes)


def running_texts(
    found: dict[str, str], language: Language, segment: bool, name: object, notes: Sequence[str] = ()
) -> Stimuli:
    """Running texts by their ids, as their words.

    Raises:
        InputError: a text is of another script, its words are not told apart, or it holds half a character.
    """
    said = list(notes)
    found = {text_id: _line_ends(text) for text_id, text in found.items()}
    _check_characters(found.values(), name)
    language.check_script("".join(found.values()))
    if not segment:
        _check_spaced(found.values(), language, name)
    texts = [Text(text_id, *split_words(text, language, segment)) for text_id, text in found.items()]
    if language.unspaced and not segment and any(" " in text for text in found.values()):
        said.append(f"spaces between words of {language.name} tell them apart; the model reads them without")
    if sum(map(_broken_lines, found.values())) >= SHORTEST_REPEATED:
        said.append("the model reads line breaks within sentences as they stand; join lines that are only wrapped")
    return Stimuli(texts, None, None, tuple(said))


def _line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _broken_lines(text: str) -> int:
    """How many single line breaks stand within a sentence."""
    return len(re.findall(r"[\w,][^\S\n]*\n[^\S\n]*[^\W\d_A-Z]", text))


def _check_characters(texts: Any, name: object) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} holds half a character (a lone surrogate); mend the text") from None


def _refuse_no_prose(text: str, path: Path) -> None:
    """Refuse JSON and tables under the name of a text.

    Raises:
        InputError: it is one of them.
    """
    if text.lstrip().startswith(("[", "{")):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            raise InputError(f"{path} {NOT_TEXT['.json']}")
    lines = [line.strip(" \n\r") for line in text.splitlines() if line.strip()]
    for delimiter, called in DELIMITERS.items():
        counts = {line.count(delimiter) for line in lines}
        # Commas and semicolons of prose have a space after them; a tab at the beginning of a line is an indent.
        prose = any(delimiter + " " in line or line.startswith(delimiter) for line in lines)
        if len(lines) > 1 and len(counts) == 1 and counts != {0} and not prose:
            raise InputError(f"{path} looks like a table ({called} in every line); give it with --table")


def _identified(records: list[tuple[int, dict[str, Any]]], path: Path, notes: list[str]) -> dict[str, str]:
    """The texts of a JSONL file by their ids, as these are written; a line without one is named by its number."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    unnamed = 0
    for line, record in records:
        given = record.get("text_id")
        if not (given is None or isinstance(given, str | int)) or isinstance(given, bool) or given == "":
            raise InputError(f"{path}, line {line:,}: text_id is {json.dumps(given)}; give text or a whole number")
        unnamed += given is None
        text_id = str(line if given is None else given)
        if text_id in found:
            raise InputError(
                f"{path}, lines {lines[text_id]:,} and {line:,}: both texts are {text_id!r} (a line without text_id is "
                f"named by its number); give each an id of its own"
            )
        if not record["text"].strip():
            raise InputError(f"{path}, line {line:,}: its text has no words; remove the line")
        found[text_id], lines[text_id] = record["text"], line
    if unnamed:
        notes.append(f"{path}: {unnamed:,} texts without text_id are named by the numbers of their lines")
    return found


def _check_spaced(texts: Any, language: Language, name: object) -> None:
    """Refuse text without white space between its words.

    Raises:
        InputError: with the remedy.
    """
    runs, lines, whole = [], 0, 0
    for text in texts:
        letters = letters_by_script(text)
        if 2 * sum(map(is_unspaced, text)) <= sum(letters.values()):
            continue
        for line in text.splitlines():
            counts = [sum(map(is_unspaced, word)) for word in line.split()]
            runs += [count for count in counts if count]
            if sum(counts) >= SHORTEST_LINE:
                lines += 1
                whole += len(counts) == 1
    longest = LONGEST_MEAN.get(language.code, LONGEST_MEAN_ELSE)
    if runs and (sum(runs) > longest * len(runs) or 2 * whole > lines):
        remedy = "use --segment" if language.code in SEGMENTERS else "put white space between them"
        raise InputError(f"{name} has no white space between its words; {remedy}, or give --table with a row per word")


def split_words(text: str, language: Language, segment: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of running text, and what stands before each: its own white space, nothing before the first.

    Words are what white space separates. Of segmented text they have their punctuation attached, as others have.
    """
    words: list[str] = []
    gaps: list[str] = []
    end = 0
    for piece in WORD.finditer(text):
        gap = text[end : piece.start()] if words else ""
        end = piece.end()
        parts = attached(language.segment(piece[0])) if segment else [piece[0]]
        if not segment and language.unspaced and gap.strip(" ") == "" and words:
            gap = joint(words[-1], parts[0], language)
        words += parts
        gaps += [gap, *[""] * (len(parts) - 1)]
    return tuple(words), tuple(gaps)


def joint(before: str, after: str, language: Language) -> str:
    """What stands between two words of a sentence: a space, or nothing where the language has none."""
    if not language.unspaced:
        return " "
    foreign = before[-1].isalnum() and after[0].isalnum() and not (is_unspaced(before[-1]) or is_unspaced(after[0]))
    return " " if foreign else ""


def attached(words: Sequence[str]) -> list[str]:
    """Words of which punctuation stands apart, with it attached to them."""
    found: list[str] = []
    open_before = False
    for word, side in zip(words, sides(words), strict=True):
        if found and (open_before or side == "closing"):
            found[-1] += word
        else:
            found.append(word)
        open_before = side == "opening"
    return found


def sides(words: Sequence[str]) -> Iterator[str]:
    """Of each word whether it is punctuation alone: `closing` belongs to the word before, `opening` to the one after.

    Straight quotation marks and guillemets open and close in turn. What opens in English closes after a low mark.
    """
    opened: set[str] = set()
    for word in words:
        marks = set(word)
        groups = {IN_TURN[mark] for mark in marks if mark in IN_TURN}
        if not word or marks - MARKS:
            yield ""
        elif word == "''" or marks & CLOSES:
            opened -= groups
            yield "closing"
        elif marks & OPENS:
            opened |= groups
            yield "opening"
        elif groups & opened:
            opened -= groups
            yield "closing"
        else:
            opened |= groups - {IN_TURN["“"], IN_TURN["‘"]}
            yield "opening"


def table_texts(
    table: TableFile,
    name: object,
    language: Language,
    *,
    word_column: str | None = None,
    by: Sequence[str] = (),
    context_column: str | None = None,
    segment: bool = False,
) -> Stimuli:
    """The texts of a table.

    With `by`, the rows of a text are its words, in their order; a cell of several words is a region and one unit.
    Without, every row is a text, and white space, or segmentation, tells its words apart; rows of which most have one
    word are refused, as `by` is missing then.

    Args:
        table: with the places of its rows.
        name: of the table, for messages.
        language: of the words.
        word_column: of the words, or the texts; None: `word`.
        by: columns that make a text.
        context_column: of what the model reads before the text.
        segment: whether the language's library finds the words of a text in one row.

    Raises:
        InputError: a column is not there, a word is empty, or rows of a text do not stand together; with the place.
    """
    frame = table.frame
    column = "word" if word_column is None else word_column
    for asked in (column, *by, *filter(None, [context_column])):
        if asked not in frame.columns:
            option = "; name the column of words with --word-column" if asked == column and word_column is None else ""
            raise InputError(f"{name} has no column {asked!r}{option} (columns: {columns_named(list(frame.columns))})")
    cells = [_word(value, name, place) for value, place in zip(frame[column], table.places, strict=True)]
    contexts = [""] * len(cells)
    if context_column is not None:
        contexts = [_context(value) for value in frame[context_column]]
    _check_characters([*cells, *contexts], name)
    language.check_script("".join(cells))
    if by:
        if segment:
            raise InputError(f"{name} has a row per word with --by; leave out --segment, or give a text in each row")
        return _rows_of_words(table, name, language, column, tuple(by), cells, contexts)
    return _rows_of_texts(table, name, language, cells, contexts, segment)


def _rows_of_words(
    table: TableFile,
    name: object,
    language: Language,
    column: str,
    by: tuple[str, ...],
    cells: list[str],
    contexts: list[str],
) -> Stimuli:
    keys = _keys(table, name, by)
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    first: dict[tuple[str, ...], int] = {}
    for i in starts:
        if (before := first.setdefault(keys[i], i)) != i:
            raise InputError(
                f"{name}, {table.places[i]}: text {' '.join(keys[i])!r} began at {table.places[before]} and is "
                f"interrupted; put its rows together, or add the column that tells both apart to --by"
            )
    ids = _ids(list(first), name)
    texts, punctuation = [], 0
    for number, begin in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(keys)
        words, context = cells[begin:end], contexts[begin]
        different = next((i for i in range(begin, end) if contexts[i] != context), None)
        if different is not None:
            raise InputError(
                f"{name}, {table.places[different]}: the context of text {ids[number]!r} is another one than at "
                f"{table.places[begin]}; give all rows of a text the same"
            )
        if (repeats := _repeats(words)) > 1:
            raise InputError(
                f"{name}, {table.places[begin]}: text {ids[number]!r} is the same {len(words) // repeats} words "
                f"{repeats} times; if these are several readers', add their column to --by"
            )
        which = list(sides(words))
        punctuation += sum(map(bool, which))
        gaps = [
            "" if i == 0 or which[i] == "closing" or which[i - 1] == "opening" else joint(words[i - 1], word, language)
            for i, word in enumerate(words)
        ]
        texts.append(Text(ids[number], tuple(words), tuple(gaps), _before(context, words[0], which[0], language)))
    notes = [*table.notes]
    if punctuation:
        notes.append(
            f"rows of punctuation alone ({punctuation:,}): the model reads closing marks right after the word before, "
            f"opening ones right before the word after"
        )
    return Stimuli(texts, table.frame, column, tuple(notes))


def _rows_of_texts(
    table: TableFile, name: object, language: Language, cells: list[str], contexts: list[str], segment: bool
) -> Stimuli:
    single = sum(len(cell.split()) == 1 for cell in cells)
    if len(cells) > 1 and 2 * single > len(cells) and not segment:
        sentences = " (or use --segment, if rows are sentences)" if language.code in SEGMENTERS else ""
        raise InputError(
            f"{name} has one word in {single:,} of {len(cells):,} rows; name the columns that make a text with "
            f"--by{sentences} (columns: {columns_named(list(table.frame.columns))})"
        )
    ids = map(str, range(1, len(cells) + 1))
    notes = [*table.notes, "every row is a text of its own, since --by names no columns that make one"]
    found = running_texts(dict(zip(ids, cells, strict=True)), language, segment, name, notes)
    texts = []
    for text, context in zip(found.texts, contexts, strict=True):
        side = next(sides(text.words))
        texts.append(replace(text, context=_before(context, text.words[0], side, language)))
    rows = [row for row, text in enumerate(texts) for _ in text.words]
    return Stimuli(texts, table.frame.iloc[rows], None, found.notes)


def _text_of(value: object) -> str | None:
    """A cell as it is written; None where it is empty or missing.

    Raises:
        TypeError: it is no text and no number.
    """
    if isinstance(value, str):
        return value.strip() or None
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    if isinstance(value, Integral):
        return str(int(value))
    number = float(value)
    if math.isnan(number):
        return None
    return str(int(number)) if number.is_integer() else str(number)  # R has no other numbers than these


def _context(value: object) -> str:
    """A cell with what stands before a text; white space at its end is part of that."""
    context = _line_ends(value) if isinstance(value, str) else _text_of(value) or ""
    return context if context.strip() else ""


def _word(value: object, name: object, place: str) -> str:
    try:
        word = _text_of(value)
    except TypeError:
        raise InputError(f"{name}, {place}: the word is {value!r}; make its column one of text") from None
    if word is None:
        # pandas makes missing values of such words.
        remedy = "" if isinstance(value, str) else ", or read the words NA and null with keep_default_na=False"
        raise InputError(f"{name}, {place}: the word is empty; write one or remove the row{remedy}")
    return word


def _keys(table: TableFile, name: object, by: tuple[str, ...]) -> list[tuple[str, ...]]:
    columns = []
    for column in by:
        values = []
        for value, place in zip(table.frame[column], table.places, strict=True):
            try:
                key = _text_of(value)
            except TypeError:
                key = str(value)
            if key is None:
                raise InputError(f"{name}, {place}: {column} is empty; fill it in, since --by names it")
            values.append(key)
        columns.append(values)
    return list(zip(*columns, strict=True))


def _ids(keys: Sequence[tuple[str, ...]], name: object) -> list[str]:
    for joiner in JOINERS:
        ids = [joiner.join(key) for key in keys]
        if len(set(ids)) == len(ids):
            return ids
    raise InputError(f"{name}: the columns of --by make equal names of different texts; add a column of names")


def _repeats(words: Sequence[Hashable]) -> int:
    """How many times a text is the same words, where these are several."""
    for period in range(SHORTEST_REPEATED, len(words) // 2 + 1):
        if len(words) % period == 0 and list(words) == list(words[:period]) * (len(words) // period):
            return len(words) // period
    return 1


def _before(context: str, first: str, side: str, language: Language) -> str:
    """What the model reads before a text, with what stands between both."""
    if not context or context[-1].isspace() or side == "closing":
        return context
    return context + joint(context, first, language)
