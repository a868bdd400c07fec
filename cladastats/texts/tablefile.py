"""Tables that users bring, every cell as it is written: `.csv`, `.tsv`, `.txt`, `.xlsx`, `.parquet`.

Nothing is guessed of a cell: `001`, `NA`, `null` and `1,5` are strings. What is found out of a file as a whole (its
delimiter, its encoding) stands in `TableFile.notes`, for the user to read.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from clada.errors import InputError
from clada.system.files import decode_text, read_bytes

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, ".xlsx", ".parquet")

DELIMITERS = {"\t": "tabs", ";": "semicolons", ",": "commas"}

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")

MOST_COLUMNS_NAMED = 20


@dataclass(frozen=True)
class TableFile:
    """A table as it is in its file.

    Attributes:
        frame: its columns; of a text file all are strings.
        places: where each row stands, for messages.
        notes: what was found out of the file, to be said.
    """

    frame: pd.DataFrame
    places: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> TableFile:
    """Read a table.

    Raises:
        InputError: it cannot be read, or is no table; with the line.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is not a table that can be read; give one of {', '.join(SUFFIXES)}")
    if path.suffix == ".xlsx":
        table = _read_excel(path)
    elif path.suffix == ".parquet":
        table = _read_parquet(path)
    else:
        table = _read_delimited(path)
    names = list(table.frame.columns)
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has more than one column {twice[0]!r}; rename all but one")
    if table.frame.empty:
        raise InputError(f"{path} has no row below its header; give a table with a row per word")
    return table


def columns_named(names: Sequence[object]) -> str:
    """The columns of a table, for messages."""
    shown = ", ".join(map(str, names[:MOST_COLUMNS_NAMED]))
    return f"{shown}, ..." if len(names) > MOST_COLUMNS_NAMED else shown


def decode_file(path: Path) -> tuple[str, list[str]]:
    """The text of a file in UTF-8, or in UTF-16 where a byte-order mark says so; without the mark.

    Returns:
        the text, and what to tell the user of its encoding.

    Raises:
        InputError: it cannot be read, or is of another encoding.
    """
    content = read_bytes(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16"), [f"{path} is read as UTF-16"]
        except UnicodeDecodeError:
            pass
    text = decode_text(content, path)
    if "\0" in text:
        raise InputError(f"{path} holds zero bytes, as UTF-16 without a mark does; save it as UTF-8")
    return text, []


def _read_delimited(path: Path) -> TableFile:
    text, notes = decode_file(path)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    header = text.lstrip("\n").partition("\n")[0]
    if header.lower().startswith("sep=") and len(header) == 5:  # a line for Excel alone
        raise InputError(f"{path} begins with the line {header!r}; remove it")
    if not header.strip(' \t,;"'):
        raise InputError(f"{path} is empty; give a table with a row per word")
    counts = {delimiter: len(_fields(header, delimiter)) for delimiter in DELIMITERS}
    delimiter = max(counts, key=lambda name: counts[name])
    # Without a delimiter in its header a table has one column, and commas belong to its words.
    several = counts[delimiter] > 1
    rows = _records(text, delimiter if several else "\t", path, notes)
    names, body = rows[0][1], rows[1:]
    for line, cells in body:
        if len(cells) != len(names):
            raise InputError(f"{path}, line {line:,}: {_wrong_width(body, cells, names)}")
    columns = list(zip(*(cells for _, cells in body), strict=True)) or [()] * len(names)
    # What spreadsheets leave behind: columns with neither a name nor a cell.
    kept = [i for i, name in enumerate(names) if name.strip() or any(map(str.strip, columns[i]))]
    if several and delimiter != {".csv": ",", ".tsv": "\t"}.get(path.suffix):
        notes.append(f"{path} has {DELIMITERS[delimiter]} between its columns")
    frame = pd.concat([pd.Series(columns[i], name=names[i], dtype=object) for i in kept], axis=1)
    if commas := [names[i] for i in kept if _decimal_commas(columns[i])]:
        notes.append(f"numbers with a decimal comma ({', '.join(commas)}) are kept as they are written")
    return TableFile(frame, tuple(f"line {line:,}" for line, _ in body), tuple(notes))


def _fields(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _records(text: str, delimiter: str, path: Path, notes: list[str]) -> list[tuple[int, list[str]]]:
    """The rows of a text that are not empty, each with the number of the line it begins at.

    Quotation marks are those of CSV. A table with tabs in which they cannot be is read with them as they stand, since
    many programs quote nothing there.
    """

    def parse(quoting: Literal[0, 3]) -> list[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        rows, begin = [], 1
        for cells in reader:
            if any(cells):
                rows.append((begin, cells))
            begin = reader.line_num + 1
        return rows

    limit = csv.field_size_limit(len(text) + 1)  # a mark that is never closed takes the rest of the file
    try:
        plain = parse(csv.QUOTE_NONE) if delimiter == "\t" else None
        try:
            rows = parse(csv.QUOTE_MINIMAL)
        except csv.Error:
            if plain is None:
                raise InputError(
                    f"{path} has a quotation mark that is never closed, or text after a closed one, near line "
                    f'{_unquoted(text, delimiter):,}; write the word " as """" in a table with {DELIMITERS[delimiter]}'
                ) from None
            return plain
        if plain is None or _widths(plain) != 1:
            return rows
        if _widths(rows) != 1 or len(rows) != len(plain):
            return plain
        if taken := _marks_taken(rows, plain):
            notes.append(
                f"{path}: quotation marks around a cell are no part of it, {taken:,} times; "
                'write three where they are: """Yes"""'
            )
        return rows
    finally:
        csv.field_size_limit(limit)


def _marks_taken(rows: list[tuple[int, list[str]]], plain: list[tuple[int, list[str]]]) -> int:
    """How many cells lost marks that no table needs, where not every cell of their column has them."""
    taken = 0
    for column in zip(
        *(zip(cells, raw, strict=True) for (_, cells), (_, raw) in zip(rows, plain, strict=True)), strict=True
    ):
        lost = [cell for cell, raw in column if raw == f'"{cell}"']
        if not all(raw.startswith('"') or not cell or cell.isdecimal() for cell, raw in column):
            taken += sum(not set(cell) & set('\t\n"') for cell in lost)
    return taken


def _widths(rows: list[tuple[int, list[str]]]) -> int:
    return len({len(cells) for _, cells in rows})


def _unquoted(text: str, delimiter: str) -> int:
    """The last line at which a record begins before quoting goes wrong."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for _ in reader:
            line = reader.line_num + 1
    except csv.Error:
        pass
    return line


def _wrong_width(body: list[tuple[int, list[str]]], cells: list[str], names: list[str]) -> str:
    said = f"{len(cells)} cells, and the header has {len(names)}"
    if len(body) > 1 and all(len(row) == len(names) + 1 for _, row in body):
        return f"{said}; R writes such a header, without row.names = FALSE: write the table again with it"
    return f"{said}; quote cells with a delimiter in them"


def _decimal_commas(cells: Sequence[str]) -> bool:
    """Whether a column is of numbers, some of them with a decimal comma."""
    if not any("," in cell for cell in cells):
        return False
    found = [cell.strip() for cell in cells if cell.strip() not in ("", "NA", "NaN", ".")]
    commas = [cell for cell in found if DECIMAL_COMMA.fullmatch(cell)]
    return bool(commas) and all(DECIMAL_COMMA.fullmatch(cell) or cell.lstrip("+-").isdecimal() for cell in found)


def _read_excel(path: Path) -> TableFile:
    check_excel("reading")
    from openpyxl import load_workbook

    read_bytes(path)  # its errors are those of any file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what else a workbook has, such as lists to choose a cell's value from
            book = load_workbook(path, read_only=True, data_only=True)
            sheets, sheet = len(book.worksheets), book.worksheets[0]
            rows = [(i, list(cells)) for i, cells in enumerate(sheet.iter_rows(values_only=True), 1)]
            title = sheet.title
            book.close()
    except Exception:  # of a damaged workbook there are errors of any kind
        raise InputError(f"{path} is not an Excel workbook; save it as .xlsx again") from None
    rows = [(i, cells) for i, cells in rows if any(cell not in (None, "") for cell in cells)]
    notes = [f"{path} has {sheets} sheets; {title!r} is read"] if sheets > 1 else []
    if not rows:
        raise InputError(f"{path} is empty; give a table with a row per word on its first sheet")
    header = ["" if cell is None else str(cell) for cell in rows[0][1]]
    width = max(i for i, name in enumerate(header, 1) if name)
    for i, cells in rows:
        if any(cell not in (None, "") for cell in cells[width:]):
            raise InputError(f"{path}, row {i:,}: a cell beyond the header's {width} columns; name it or remove it")
    body = [["" if cell is None else cell for cell in cells[:width]] for _, cells in rows[1:]]
    frame = pd.DataFrame(body, columns=header[:width], dtype=object)
    return TableFile(frame, tuple(f"row {i:,}" for i, _ in rows[1:]), tuple(notes))


def _read_parquet(path: Path) -> TableFile:
    read_bytes(path)
    try:
        frame = pd.read_parquet(path)
    except Exception:  # of a damaged file there are errors of any kind
        raise InputError(f"{path} is not a parquet file; write it again") from None
    frame = frame.reset_index(drop=isinstance(frame.index, pd.RangeIndex))
    return TableFile(frame, tuple(f"row {i:,}" for i in range(1, len(frame) + 1)))


def check_excel(what: str) -> None:
    """Refuse where Excel's files cannot be had.

    Args:
        what: `reading` or `writing`.

    Raises:
        InputError: openpyxl is not installed.
    """
    from importlib.util import find_spec

    if find_spec("openpyxl") is None:
        raise InputError(f"{what} .xlsx needs openpyxl; bring it with pip install 'clada[excel]'")
