"""Tables that users bring, every cell as it is written: text with any delimiter, `.xlsx`, `.parquet`.

Nothing is guessed of a cell: `001`, `NA`, `null` and `1,5` are strings, and `as_numbers` turns a column into numbers
where numbers are wanted. What is found out of a file as a whole (its encoding, its delimiter, its decimal sign) stands
in `TableFile.notes`, for the user to read. A large text file is never in memory as a whole, only its columns are.
"""

from __future__ import annotations

import codecs
import csv
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
import pandas as pd

from clada.errors import InputError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, ".xlsx", ".parquet")

DELIMITERS = {"\t": "tabs", ";": "semicolons", ",": "commas"}

# As R, pandas, spreadsheets, databases and the reports of EyeLink write it.
MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "."})

OTHER_KINDS = {b"PK\x03\x04": "a workbook or an archive", b"PAR1": "a Parquet file", b"\x1f\x8b": "compressed"}

CHUNK = 1 << 20  # bytes

LONGEST_CELL = 1 << 24  # characters; a quotation mark that is never closed takes no more of a file into memory

MOST_COLUMNS_NAMED = 20

_COMMA = r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?"
_POINTS_OF_THOUSANDS = r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+"
_THOUSANDS = r"[+-]?[1-9]\d{0,2},\d{3}"  # or a number with a decimal comma
_POINT = r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?"
_WHOLE = r"[+-]?\d+(?:[eE][+-]?\d+)?"

Quoting = Literal[0, 3]  # of Python's csv, as QUOTE_MINIMAL and QUOTE_NONE


class Places(Sequence[str]):
    """Where the rows of a table stand, for messages; a large table has too many for a string each.

    Args:
        kind: `line` or `row`.
        numbers: of each row, from 1 on.
    """

    def __init__(self, kind: str, numbers: Sequence[int]) -> None:
        self.kind, self.numbers = kind, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # nobody takes slices
        return f"{self.kind} {self.numbers[index]:,}"


@dataclass(frozen=True)
class TableFile:
    """A table as it is in its file.

    Attributes:
        frame: its columns; of a text file all are strings, an empty cell "".
        places: where each row stands, for messages.
        notes: what was found out of the file, to be said.
        decimal: the sign of its decimals, `.` or `,`.
    """

    frame: pd.DataFrame
    places: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    decimal: str = "."


def read_table(path: Path) -> TableFile:
    """Read a table of stimuli. Cells of workbooks and of Parquet files keep their types.

    Raises:
        InputError: it cannot be read, is no table, or is neither UTF-8 nor UTF-16; with the line.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} is not a table that can be read; give one of {', '.join(SUFFIXES)}")
    if suffix in TEXT_SUFFIXES:
        return _read_text(path, None, None, data=False)
    return _read_excel(path) if suffix == ".xlsx" else _read_parquet(path)


def read_data(path: Path, columns: Sequence[str] | None = None, quoted: bool | None = None) -> TableFile:
    """Read a table of what people did or of what words cost, all cells as strings.

    Args:
        path: the file: `.xlsx`, `.parquet`, else text.
        columns: those to read; None: all. Large files need less memory so.
        quoted: whether quotation marks around a cell are no part of it; None: detected.

    Raises:
        InputError: it cannot be read, is no table, lacks one of the columns, or has decimal points and commas in one.
    """
    suffix = path.suffix.lower()
    if suffix not in (".xlsx", ".parquet"):
        return _read_text(path, columns, quoted, data=True)
    table = _read_excel(path) if suffix == ".xlsx" else _read_parquet(path)
    frame = with_columns(table.frame, columns, path)
    cells = {name: pd.Series(list(map(_as_text, frame[name])), dtype=str) for name in frame}
    return TableFile(pd.DataFrame(cells), table.places, table.notes)


def with_columns(frame: pd.DataFrame, columns: Sequence[str] | None, path: Path) -> pd.DataFrame:
    """A table's columns of these names, or all.

    Raises:
        InputError: it lacks some.
    """
    if columns is None:
        return frame
    _check_there(columns, list(frame.columns), path)
    return frame[list(dict.fromkeys(columns))]


def columns_named(names: Sequence[object]) -> str:
    """The columns of a table, for messages."""
    shown = ", ".join(map(str, names[:MOST_COLUMNS_NAMED]))
    return f"{shown}, ..." if len(names) > MOST_COLUMNS_NAMED else shown


def decode_file(path: Path) -> tuple[str, list[str]]:
    """The text of a file in UTF-8, or in UTF-16 where a byte-order mark says so; without the mark.

    Returns:
        the text, its line ends as they are, and what to tell the user of its encoding.

    Raises:
        InputError: it cannot be read, or is of another encoding.
    """
    encoding, notes = _encoding(path, windows=False)
    with path.open(encoding=encoding, newline="") as file:
        return file.read(), notes


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
        if decimal == "," and not _has_points(text):
            # a point would be one of thousands, or a slip
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


def _has_points(cells: pd.Series) -> bool:
    """Whether a column has decimal points in a file whose other columns have commas.

    So it is where measured columns stand beside a user's, each as it was written. Points of thousands are none.
    """
    points = cells.str.contains(".", regex=False)
    if not points.any() or cells.str.contains(",", regex=False).any():
        return False
    return not cells[points].str.fullmatch(_POINTS_OF_THOUSANDS).all()


def is_numeric(column: pd.Series, decimal: str = ".") -> bool:
    """Whether every cell of a column is a number or missing, and one is a number."""
    try:
        return bool(as_numbers(column, "", "", decimal).notna().any())
    except InputError:
        return False


def _read_text(path: Path, columns: Sequence[str] | None, quoted: bool | None, *, data: bool) -> TableFile:
    """A table of text.

    What is no UTF-8 is read as Windows writes it where it is `data`: published files are so, and figures are taken from
    them, or words that are compared with those of the texts. Stimuli are refused instead. Every file of one encoding of
    bytes is one of another, so that nothing would show that the model reads other letters than the participants did.
    """
    _check_kind(path)
    encoding, notes = _encoding(path, windows=data)

    def opened() -> TextIO:  # as lines, however they end
        return path.open(encoding=encoding, errors="replace" if encoding == "cp1252" else "strict")

    with opened() as file:
        header = next((line for line in file if line != "\n"), "").rstrip("\n")
    if header.lower().startswith("sep=") and len(header) == 5:  # a line for Excel alone
        raise InputError(f"{path} begins with the line {header!r}; remove it")
    if not header.strip(' \t,;"'):
        raise _empty(path)
    with _long_cells(path):
        counts = {sign: len(next(csv.reader([header], delimiter=sign))) for sign in DELIMITERS}
        delimiter = max(counts, key=lambda sign: counts[sign])
        several = counts[delimiter] > 1
        # Without a delimiter in its header a table has one column, and commas belong to its words.
        rows = _scanned(opened, delimiter if several else "\t", quoted, path, notes)
    if '"' in header and rows.widths == {len(rows.names) + 1}:
        rows = replace(rows, names=["row_name", *rows.names], wrong=None)
        notes.append(f"{path}: its first column, which R gives no name, is called row_name")
    if rows.wrong is not None:
        raise InputError(f"{path}, line {rows.wrong[0]:,}: {_wrong_width(rows)}")
    frame = _parsed(opened, rows, columns, path)
    if several and delimiter != {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower()):
        notes.append(f"{path} has {DELIMITERS[delimiter]} between its columns")
    signs = {str(name): _decimals(frame[name]) for name in frame}
    if data and "both" in signs.values():
        name = next(name for name, sign in signs.items() if sign == "both")
        raise InputError(f"the column {name} of {path} has decimal points and commas; write one of them")
    # Where commas separate the cells, 1,234 is rather a thousand.
    commas = [name for name, sign in signs.items() if sign == "comma" or (sign == "thousands" and delimiter != ",")]
    if commas:
        notes.append(f"{path} has numbers with a decimal comma ({columns_named(commas)})")
    return TableFile(frame, Places("line", rows.lines), tuple(notes), "," if commas else ".")


def _check_kind(path: Path) -> None:
    """Refuse what is no text by its first bytes, and what cannot be read at all."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}; check the path") from None
    kind = next((kind for mark, kind in OTHER_KINDS.items() if head.startswith(mark)), None)
    if kind is not None and path.suffix.lower() not in (".xlsx", ".parquet"):
        raise InputError(f"{path} is {kind}, and no table of text; save it as CSV")


def _encoding(path: Path, *, windows: bool) -> tuple[str, list[str]]:
    """How a file is encoded, and what to say of that: UTF-8, or UTF-16 with its mark (Excel's "Unicode text").

    Args:
        path: the file.
        windows: whether it is read as Windows-1252 else, and not refused.
    """
    done = 0
    try:
        with path.open("rb") as file:
            chunk = file.read(CHUNK)
            wide = chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8")()
            while True:
                if b"\0" in chunk and not wide:
                    raise InputError(f"{path} holds zero bytes, as UTF-16 without a mark does; save it as UTF-8")
                pending = len(decoder.getstate()[0])  # of a character that lies in two chunks
                decoder.decode(chunk, final=not chunk)
                done += len(chunk)
                if not chunk:
                    break
                chunk = file.read(CHUNK)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}; check the path") from None
    except UnicodeDecodeError as problem:
        if windows and not wide:
            return "cp1252", [f"{path} is not UTF-8 and is read as Windows-1252"]
        where = 0 if wide else done - pending + problem.start
        raise InputError(f"{path} is not UTF-8 (byte {where:,}); convert it, with iconv for instance") from None
    return ("utf-16", [f"{path} is read as UTF-16"]) if wide else ("utf-8-sig", [])


@dataclass(frozen=True)
class _Rows:
    """What is known of a table before its cells are kept.

    Attributes:
        delimiter: between cells.
        quoting: of Python's csv.
        names: the cells of the header.
        header: its number among all rows.
        lines: of each row below it that is not empty, the line it begins at.
        empty: the numbers of the other rows, 0 being the first below the header.
        widths: different numbers of cells below the header.
        wrong: line and number of cells of the first row that has not as many as the header.
    """

    delimiter: str
    quoting: Quoting
    names: list[str]
    header: int
    lines: Sequence[int]
    empty: list[int]
    widths: set[int]
    wrong: tuple[int, int] | None


def _scanned(opened: Callable[[], TextIO], delimiter: str, quoted: bool | None, path: Path, notes: list[str]) -> _Rows:
    """The rows of a file, and whether its quotation marks are those of CSV.

    They are, but in a table with tabs in which they cannot be: many programs quote nothing there.
    """
    if quoted is False:
        return _counted(opened, delimiter, csv.QUOTE_NONE)
    try:
        rows = _counted(opened, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error:
        if delimiter == "\t" and quoted is None:
            return _counted(opened, delimiter, csv.QUOTE_NONE)
        raise InputError(
            f"{path} has a quotation mark that is never closed, or text after a closed one, near line "
            f'{_unquoted(opened, delimiter):,}; write the word " as """" in a table with {DELIMITERS[delimiter]}'
        ) from None
    if delimiter != "\t" or quoted or not _has_marks(opened):
        return rows
    plain = _counted(opened, delimiter, csv.QUOTE_NONE)
    # Who writes marks that no cell needs, writes them in the header too.
    if plain.wrong is not None or all(map(_is_marked, plain.names)):
        return rows
    if rows.wrong is not None or len(rows.lines) != len(plain.lines):
        return plain
    if taken := _marks_taken(opened, delimiter):
        notes.append(
            f"{path}: quotation marks around a cell are no part of it, {taken:,} times; "
            'write three where they are: """Yes"""'
        )
    return rows


@contextmanager
def _long_cells(path: Path) -> Iterator[None]:
    """Python's csv with cells as long as a book, while the block runs."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    except csv.Error:
        raise InputError(f"{path} has a cell of more than {LONGEST_CELL:,} characters; give it in parts") from None
    finally:
        csv.field_size_limit(limit)


def _has_marks(opened: Callable[[], TextIO]) -> bool:
    with opened() as file:
        return any('"' in line for line in file)


def _counted(opened: Callable[[], TextIO], delimiter: str, quoting: Quoting) -> _Rows:
    names: list[str] = []
    header = begin = 0
    lines, empty, widths, wrong = array("q"), [], set(), None
    with opened() as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        for number, cells in enumerate(reader):
            line, begin = begin + 1, reader.line_num
            if not names:
                if any(cells):
                    names, header = cells, number
            elif any(cells):
                lines.append(line)
                widths.add(len(cells))
                if wrong is None and len(cells) != len(names):
                    wrong = line, len(cells)
            else:
                empty.append(number - header - 1)
    return _Rows(delimiter, quoting, names, header, lines, empty, widths, wrong)


def _is_marked(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _marks_taken(opened: Callable[[], TextIO], delimiter: str) -> int:
    """How many cells lose marks that no table needs, in columns whose header has none."""
    taken = 0
    columns: list[int] = []
    with opened() as one, opened() as other:
        marked = csv.reader(one, delimiter=delimiter, strict=True)
        plain = csv.reader(other, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
        for cells, raw in zip(marked, plain, strict=False):  # either may end with rows that are empty
            columns = columns or [i for i, cell in enumerate(raw) if not _is_marked(cell)]
            if cells != raw and len(cells) == len(raw):
                lost = [cells[i] for i in columns if i < len(raw) and raw[i] == f'"{cells[i]}"']
                taken += sum(not set(cell) & set('\t\n"') for cell in lost)
    return taken


def _unquoted(opened: Callable[[], TextIO], delimiter: str) -> int:
    """The last line at which a record begins before quoting goes wrong."""
    line = 1
    with opened() as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error:
            pass
    return line


def _wrong_width(rows: _Rows) -> str:
    assert rows.wrong is not None
    said = f"{rows.wrong[1]} cells, and the header has {len(rows.names)}"
    if len(rows.lines) > 1 and rows.widths == {len(rows.names) + 1}:
        return f"{said}; R writes such a header, without row.names = FALSE: write the table again with it"
    return f"{said}; quote cells with a delimiter in them"


def _parsed(opened: Callable[[], TextIO], rows: _Rows, columns: Sequence[str] | None, path: Path) -> pd.DataFrame:
    """The cells of the rows that are not empty; pandas, since it keeps no cell of columns that are not asked for."""
    names = _named(rows.names, path)
    if not rows.lines:
        raise _no_rows(path)
    if columns is not None:
        _check_there(columns, names, path)
    wanted = range(len(names)) if columns is None else [names.index(name) for name in dict.fromkeys(columns)]
    with opened() as file:
        frame = pd.read_csv(
            file,
            sep=rows.delimiter,
            quoting=rows.quoting,
            header=None,
            skiprows=rows.header + 1,
            skip_blank_lines=False,
            names=range(len(names)),
            index_col=False,
            usecols=list(wanted),
            dtype=str,
            na_filter=False,
        )
    if rows.empty:
        frame = frame.drop(index=[row for row in rows.empty if row < len(frame)]).reset_index(drop=True)
    assert len(frame) == len(rows.lines)
    frame = frame[list(wanted)].set_axis([names[i] for i in wanted], axis=1)
    return frame if columns is not None else _without_nothing(frame, rows.names)


def _named(names: Sequence[str], path: Path) -> list[str]:
    """The names of columns, each its own."""
    found = [name.strip() or f"unnamed_{i}" for i, name in enumerate(names, 1)]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise InputError(f"{path} has more than one column {twice[0]!r}; rename all but one")
    return found


def _without_nothing(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A table without what spreadsheets leave behind: columns with neither a name nor a cell."""
    there = [bool(name.strip()) or frame.iloc[:, i].astype(str).str.strip().any() for i, name in enumerate(names)]
    return frame.loc[:, there]


def _check_there(columns: Sequence[str], names: Sequence[object], path: Path) -> None:
    lacking = [name for name in dict.fromkeys(columns) if name not in names]
    if lacking:
        raise InputError(f"{path} has no column {', '.join(lacking)}; it has {columns_named(names)}")


def _empty(path: Path) -> InputError:
    return InputError(f"{path} is empty; give a table whose first row names the columns")


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path} has no row below its header; give a table with rows")


def _decimals(column: pd.Series) -> str:
    """What the commas of a column of numbers are: `comma`, of decimals; `thousands`, perhaps; `both`, with points."""
    cells = column.str.strip()
    commas = cells.str.contains(",", regex=False)
    if not commas.any():
        return ""
    cells = cells[~cells.isin(MISSING)]
    commas, whole = cells.str.fullmatch(_COMMA), cells.str.fullmatch(_WHOLE)
    if not commas.any():
        return ""
    if (commas | whole).all():
        return "thousands" if cells[commas].str.fullmatch(_THOUSANDS).all() else "comma"
    return "both" if (commas | whole | cells.str.fullmatch(_POINT)).all() else ""


def _read_excel(path: Path) -> TableFile:
    check_excel("reading")
    from openpyxl import load_workbook

    _check_kind(path)  # its errors are those of any file
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
        raise _empty(path)
    header = ["" if cell is None else str(cell) for cell in rows[0][1]]
    width = max(i for i, name in enumerate(header, 1) if name)
    for i, cells in rows:
        if any(cell not in (None, "") for cell in cells[width:]):
            raise InputError(f"{path}, row {i:,}: a cell beyond the header's {width} columns; name it or remove it")
    names = _named(header[:width], path)
    body = [["" if cell is None else cell for cell in cells[:width]] for _, cells in rows[1:]]
    if not body:
        raise _no_rows(path)
    frame = _without_nothing(pd.DataFrame(body, columns=names, dtype=object), header[:width])
    return TableFile(frame, Places("row", [i for i, _ in rows[1:]]), tuple(notes))


def _read_parquet(path: Path) -> TableFile:
    _check_kind(path)
    try:
        frame = pd.read_parquet(path)
    except Exception:  # of a damaged file there are errors of any kind
        raise InputError(f"{path} is not a parquet file; write it again") from None
    frame = frame.reset_index(drop=isinstance(frame.index, pd.RangeIndex))
    frame.columns = _named(list(map(str, frame.columns)), path)
    if frame.empty:
        raise _no_rows(path)
    return TableFile(frame, Places("row", range(1, len(frame) + 1)))


def _as_text(value: object) -> str:
    """A cell that has a type, as a table of text has it; whole numbers without a point, as programs show them."""
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, Real) and not isinstance(value, bool | Integral):
        number = float(value)
        if np.isnan(number):
            return ""
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value)


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
