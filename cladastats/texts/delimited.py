"""Tables of text as people have them: separators, decimal signs, quotes and encodings are detected.

What was detected is said in the table's notes. Every cell stays as it is in the file, so that ids like `001` and the
words `NA` and `null` keep what they are; `as_numbers` turns a column into numbers where numbers are wanted.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from clada.errors import InputError

SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}

# As R, pandas, spreadsheets, databases and the reports of EyeLink write it.
MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "."})

OTHER_KINDS = {b"PK\x03\x04": "a workbook or an archive", b"PAR1": "a Parquet file", b"\x1f\x8b": "compressed"}

CHUNK = 1 << 20  # bytes

HEAD = 65_536  # characters of a file that its form is read from

_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class DelimitedTable:
    """A table of text.

    Attributes:
        frame: every cell as it stands in the file, an empty one "".
        separator: of cells.
        decimal: `.` or `,`.
        notes: what was detected and is not the usual, one sentence each.
    """

    frame: pd.DataFrame
    separator: str
    decimal: str
    notes: tuple[str, ...] = ()


def read_delimited(
    path: str | Path, *, columns: Sequence[str] | None = None, quoted: bool | None = None
) -> DelimitedTable:
    """Read a table whose separator, decimal sign and encoding are detected.

    Args:
        path: the file.
        columns: those to keep, where the file has them; None: all. Large files need less memory so.
        quoted: whether quotes around a cell are no part of it; None: where they are balanced in every line.

    Raises:
        InputError: it cannot be read, has no header, a column twice, or a row with another number of cells.
    """
    encoding, notes = _encoding(path)
    with _opened(path, encoding) as file:
        head = file.read(HEAD)
        whole = not file.read(1)
    lines = head.split("\n")
    if not lines or not lines[0].strip():
        raise InputError(f"{path} is empty or begins with an empty line; its first line must name the columns")
    separator = max(SEPARATORS, key=lambda sign: lines[0].count(sign))
    if separator == ";":
        notes.append(f"{path}: cells are separated by semicolons")
    if quoted is None:
        quoted = _is_quoted(head if whole else head[: head.rfind("\n")], separator)
    header = next(csv.reader(lines[:1], delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE))
    first = next(csv.reader(lines[1:2], delimiter=separator), [])
    if '"' in lines[0] and len(first) == len(header) + 1:  # R's write.table gives the column of row names no name
        header = ["row_name", *header]
    header = [name.strip() or f"unnamed_{i}" for i, name in enumerate(header, 1)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path} has the column {twice[0]} twice; give every column its own name")
    with _opened(path, encoding) as file:
        _check_rows(file, path, separator, len(header), quoted=quoted)
    frame = _parsed(path, encoding, separator, header, columns, quoted=quoted)
    decimal = _decimal(frame, separator, path)
    if decimal == ",":
        notes.append(f"{path}: numbers have a decimal comma")
    return DelimitedTable(frame, separator, decimal, tuple(notes))


def as_numbers(column: pd.Series, name: str, path: str | Path, decimal: str = ".") -> pd.Series:
    """A column as numbers; what stands in `MISSING` is a missing value.

    Args:
        column: of text or of numbers.
        name: what messages call it.
        path: the file, for messages.
        decimal: the file's decimal sign.

    Raises:
        InputError: a cell is no number, or an infinite one; its row is named, the first below the header being 1.
    """
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.astype(float)
    else:
        text = column.astype(str).str.strip()
        text = text.where(~text.isin(MISSING), "")
        if decimal == ",":  # a point would be one of thousands, or a slip
            text = text.where(~text.str.contains(".", regex=False), "no number").str.replace(",", ".", regex=False)
        numbers = pd.to_numeric(text.where(text != "", np.nan), errors="coerce").astype(float)
        bad = numbers.isna() & (text != "")
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise InputError(
                f"the column {name} of {path} holds what is no number: {str(column.iloc[row])!r} in row {row + 1} "
                f"({int(bad.sum())} such cells); mend the file"
            )
    if np.isinf(numbers.to_numpy()).any():
        raise InputError(f"the column {name} of {path} holds an infinite number; mend the file")
    return numbers


def is_numeric(column: pd.Series, decimal: str = ".") -> bool:
    """Whether every cell of a column is a number or missing, and one is a number."""
    try:
        return bool(as_numbers(column, "", "", decimal).notna().any())
    except InputError:
        return False


def _encoding(path: str | Path) -> tuple[str, list[str]]:
    """How a file is encoded: UTF-8, UTF-16 with its mark (Excel's "Unicode text"), else as Windows writes it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with Path(path).open("rb") as file:
            chunk = file.read(CHUNK)
            kind = next((kind for mark, kind in OTHER_KINDS.items() if chunk.startswith(mark)), None)
            if kind is not None:
                raise InputError(f"{path} is {kind}, and no table of text; save it as CSV")
            if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "utf-16", [f"{path}: read as UTF-16"]
            if b"\0" in chunk:
                raise InputError(f"{path} is no text (it holds null bytes); save the table as CSV, in UTF-8")
            while chunk:
                decoder.decode(chunk)
                chunk = file.read(CHUNK)
            decoder.decode(b"", final=True)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}; check the path") from None
    except UnicodeDecodeError:
        return "cp1252", [f"{path}: not UTF-8, read as Windows-1252"]
    return "utf-8-sig", []


def _opened(path: str | Path, encoding: str) -> TextIO:
    """A file as lines, however they end in it; a large one is never in memory as a whole."""
    return Path(path).open(encoding=encoding, errors="replace")


def _is_quoted(head: str, separator: str) -> bool:
    """Whether the quotes of a file enclose cells: they are balanced, and cells are then alike in number."""
    if '"' not in head:
        return True
    first, *lines = head.split("\n")
    # Who writes quotes that no cell needs, writes them in the header too.
    cells = (cell for line in lines if '"' in line for cell in line.split(separator))
    if '"' not in first and any(re.fullmatch(r'"[^"]*"', cell) for cell in cells):
        return False
    try:
        rows = list(csv.reader(io.StringIO(head, newline=""), delimiter=separator, strict=True))
    except csv.Error:
        return False
    within = any("\n" in cell for row in rows for cell in row)
    return not within and len({len(row) for row in rows if row}) <= 2  # a header may lack the name of row names


def _parsed(
    path: str | Path, encoding: str, separator: str, header: list[str], columns: Sequence[str] | None, *, quoted: bool
) -> pd.DataFrame:
    wanted = header if columns is None else [name for name in header if name in columns]
    try:
        frame = pd.read_csv(
            path,
            encoding=encoding,
            encoding_errors="replace",
            sep=separator,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            header=None,
            skiprows=1,
            names=header,
            index_col=False,
            usecols=wanted or header[:1],
            dtype=str,
            keep_default_na=False,
            na_filter=False,
        )
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame(columns=wanted, dtype=str)
    except ValueError as problem:  # pandas' own errors are ValueErrors
        said = (str(problem).splitlines() or [""])[0].removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"cannot read {path}: {said}; give every row as many cells as the header has") from None
    return frame[wanted]


def _check_rows(file: TextIO, path: str | Path, separator: str, cells: int, *, quoted: bool) -> None:
    """Refuse rows with more or fewer cells than the header, which pandas would cut or fill in silence."""
    for number, line in enumerate(file, 1):
        found = line.count(separator) + 1
        if found == cells or number == 1 or line == "\n":
            continue
        if quoted and '"' in line:
            found = len(next(csv.reader([line], delimiter=separator)))
        if found != cells:
            raise InputError(
                f"{path}: line {number} has {found} cells and the header {cells}; give every row as many cells as the "
                "header has"
            )


def _decimal(frame: pd.DataFrame, separator: str, path: str | Path) -> str:
    """The sign of a file's decimals: a comma where a column of numbers has it."""
    if separator == ",":
        return "."
    for name in frame:
        cells = frame[name].str.strip()
        cells = cells[~cells.isin(MISSING)]
        commas = cells.str.fullmatch(_COMMA)
        if not commas.any():
            continue
        whole, points = cells.str.fullmatch(_WHOLE), cells.str.fullmatch(_POINT)
        if (commas | whole).all():
            return ","
        if points.any() and (commas | whole | points).all():
            raise InputError(f"the column {name} of {path} has decimal points and commas; write one of them")
    return "."
