"""The files of a table of words: the table, the same with its types, and what it was measured with.

`words.csv` has `words.json` and `words.parquet` beside it. All are written, or none.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from clada.errors import InputError
from clada.system.files import check_target, replacing
from cladastats.texts.tablefile import check_excel

METADATA_SCHEMA = "cladastats/words-metadata/1"

SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")

MOST_EXCEL_ROWS = 1_048_575  # below the header

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "wordfreq", "jieba", "mecab-python3")

CORRECTION = (
    "log2 p(word) = log2 p(tokens) - log2 p(a word begins before it) + log2 p(one begins after it); "
    "Pimentel and Meister 2024, arXiv 2406.14561; Oh and Schuler 2024, arXiv 2406.10851"
)

UNITS = {
    "surprisal_bits": "bits",
    "surprisal_tokens_bits": "bits",
    "entropy_bits": "bits",
    "frequency_zipf": "log10 per billion words",
    "length": "letters and digits",
    "tokens": "tokens",
    "position": "words or regions, from 1 on",
}


def files_of(path: Path) -> tuple[Path, Path]:
    """The files beside a table: what it was measured with, and the same with its types."""
    return path.with_suffix(".json"), path.with_suffix(".parquet")


def check_output(path: Path, inputs: Sequence[Path] = (), rows: int = 0) -> None:
    """Refuse, before anything is measured, a name under which no table can be written.

    Args:
        path: of the table.
        inputs: files that must stay as they are.
        rows: how many there will be.

    Raises:
        InputError: with the remedy.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file with --out")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} has no suffix of a table; name one of {', '.join(SUFFIXES)} with --out")
    if path.suffix == ".xlsx":
        check_excel("writing")
        if rows > MOST_EXCEL_ROWS:
            raise InputError(f"{rows:,} words are more than a sheet of Excel has rows; write .csv or .parquet")
    for target in (path, *files_of(path)):
        check_target(target)
        for given in inputs:
            if target.resolve() == given.resolve():
                raise InputError(f"{target} would take the place of the input; give another name with --out")


def write_words(path: Path, table: pd.DataFrame, metadata: Mapping[str, Any]) -> None:
    """Write a table of words as its name says, what it was measured with, and the same with its types.

    Raises:
        InputError: it holds what Excel cannot hold.
        OSError: it cannot be written.
    """
    described, typed = files_of(path)
    with ExitStack() as files:
        _write_table(files.enter_context(replacing(path)), path.suffix, table)
        if typed != path:
            _write_table(files.enter_context(replacing(typed)), ".parquet", table)
        content = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False)
        files.enter_context(replacing(described)).write_text(content + "\n", encoding="utf-8")


def _write_table(path: Path, suffix: str, table: pd.DataFrame) -> None:
    if suffix == ".parquet":
        _of_one_type(table).to_parquet(path, index=False)
    elif suffix == ".xlsx":
        _write_excel(path, table)
    else:
        # Strings stand in quotation marks, numbers do not: so the word NA is not what is missing.
        separator = "\t" if suffix == ".tsv" else ","
        table.to_csv(path, index=False, sep=separator, quoting=csv.QUOTE_NONNUMERIC, encoding="utf-8")


def _of_one_type(table: pd.DataFrame) -> pd.DataFrame:
    """The table with cells of Excel's that are of several types in a column as they are written."""
    table = table.copy()
    for i, name in enumerate(table.columns):
        cells = table.iloc[:, i]
        if cells.dtype == object and not all(isinstance(cell, str) for cell in cells):
            table[name] = [None if pd.api.types.is_scalar(cell) and pd.isna(cell) else str(cell) for cell in cells]
    return table


def _write_excel(path: Path, table: pd.DataFrame) -> None:
    from openpyxl.utils.exceptions import IllegalCharacterError

    try:
        with pd.ExcelWriter(path, engine="openpyxl") as writer:
            table.to_excel(writer, index=False, sheet_name="words")
            for row in writer.sheets["words"].iter_rows():
                for cell in row:
                    if cell.data_type == "f":  # a word that begins with = is no formula
                        cell.data_type = "s"
    except IllegalCharacterError:
        raise InputError("a word holds a control character, which Excel cannot hold; write .csv or .parquet") from None


def write_figure(path: Path, drawn: pd.DataFrame) -> None:
    """Draw layers by words beside their table, as PDF and PNG.

    Args:
        path: of the long table.
        drawn: the rows of one text, without the stimuli's columns.
    """
    from cladastats.texts.layers import layer_figure

    figure = layer_figure(drawn)
    with ExitStack() as files:
        for suffix in (".pdf", ".png"):
            # The date of a PDF is left out, so that the same numbers make the same file.
            metadata = {"CreationDate": None} if suffix == ".pdf" else None
            temporary = files.enter_context(replacing(path.with_suffix(suffix)))
            figure.savefig(temporary, format=suffix[1:], dpi=200, metadata=metadata)


def describe(table: pd.DataFrame, measured: Mapping[str, Any], source: Path | None) -> dict[str, Any]:
    """What a table of words holds and how it was made, as JSON can say it.

    Args:
        table: of words.
        measured: what is known of the measurement.
        source: the file of the stimuli.
    """
    found: dict[str, Any] = {**measured, "schema": METADATA_SCHEMA}
    if source is not None:
        found["source"] = {"file": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    found["rows"] = len(table)
    found["columns"] = {str(name): str(table[name].dtype) for name in table.columns}
    found["units"] = {name: unit for name, unit in UNITS.items() if name in table.columns}
    if found.get("correction") != "none":
        found["correction"] = {"surprisal_bits": CORRECTION}
    found["packages"] = {"clada": _version("clada"), **{name: _version(name) for name in PACKAGES}}
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
