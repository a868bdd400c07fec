"""Texts with a number, or several, for each of their tokens or words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clada.errors import InputError

if TYPE_CHECKING:
    from clada.engine import Step

SHARE, FLAG = "%", "yes or no"  # units whose values are from 0 to 1, and true or false


class Known(NamedTuple):
    """What a column is called on the page, and its unit."""

    label: str
    unit: str


# In the order in which the page offers them.
KNOWN = {
    "surprisal_bits": Known("surprisal", "bits"),
    "entropy_bits": Known("entropy", "bits"),
    "active_fraction": Known("neurons computed", SHARE),
    "effort": Known("neurons needed", SHARE),
    "effort_load": Known("neurons needed, with the load rule", SHARE),
    "drafted": Known("draft accepted", FLAG),
    "load_surprisal": Known("surprisal above its threshold", FLAG),
    "load_entropy": Known("entropy above its threshold", FLAG),
    "surprisal_tokens_bits": Known("surprisal, sum over tokens", "bits"),
    "frequency_zipf": Known("frequency", "Zipf"),
    "length": Known("length", "letters"),
    "tokens": Known("tokens of the word", ""),
    "hidden_norm": Known("norm of the last layer's output", ""),
    "magnitude": Known("sum of the neurons' magnitudes", ""),
}
STEP_FIELDS = ("surprisal_bits", "entropy_bits", "active_fraction", "drafted", "load_surprisal", "load_entropy")

# Columns of a table of words that say which word it is.
PLACES = {"text_id", "word_index", "position", "item", "subject", "sentence", "layer"}

UNITS = {"_bits": "bits", "_ms": "ms", "_uV": "µV"}  # of other columns, by how their names end

UNSPACED = ("zh", "ja")  # languages without a space between words

CLOSING = set(".,;:!?…)]}%”’»")  # punctuation that stands by itself in a row has no space before it


@dataclass(frozen=True)
class Quantity:
    """A number for each token.

    Attributes:
        name: of its field or column.
        label: what it is.
        unit: of the values; `%` for shares, which are from 0 to 1 here, `yes or no` for 0 and 1.
        values: one a token; None where there is none.
    """

    name: str
    label: str
    unit: str
    values: list[float | None]


@dataclass(frozen=True)
class LayerQuantity:
    """A number for each token and layer.

    Attributes:
        name: of the field, or of the columns without the layer's number.
        label: what it is.
        unit: as of `Quantity`.
        values: a list a token, with a number for each layer from 0 on.
    """

    name: str
    label: str
    unit: str
    values: list[list[float | None]]


@dataclass(frozen=True)
class TracedText:
    """A text and its numbers.

    Attributes:
        title: what it is of: a model and its method, a text's id.
        before: what the model read before, of which there are no numbers.
        kind: of its tokens, `token` or `word`.
        tokens: as they are shown.
        gaps: white space before each of them that belongs to none.
        quantities: what there is of every token.
        layers: the same of every layer.
    """

    title: str
    before: str
    kind: str
    tokens: list[str]
    gaps: list[str]
    quantities: list[Quantity]
    layers: list[LayerQuantity]


def texts_of(given: Any) -> list[TracedText]:
    """What a user has, as texts.

    Args:
        given: a text; steps of an engine; a result of `clada generate --json`; a table of words, with a row per word or
            per word and layer; or the name of a file that `cladastats words` wrote.

    Raises:
        InputError: nothing in it, or no such things.
    """
    if isinstance(given, TracedText):
        return [given]
    if isinstance(given, str | Path):
        return _of_file(Path(given))
    if isinstance(given, Mapping):
        return [_of_result(given)]
    if hasattr(given, "columns") and hasattr(given, "attrs"):  # a data frame; pandas is not imported to ask
        return _of_frame(given, dict(given.attrs.get("words", {})))
    return [of_steps(given)]


def of_steps(steps: Iterable[Step | Mapping[str, Any]], title: str = "generated text", before: str = "") -> TracedText:
    """Steps of an engine, or of JSON, as a text.

    Raises:
        InputError: there are none, or they are no steps.
    """
    try:
        fields = [dict(step) if isinstance(step, Mapping) else dict(vars(step)) for step in steps]
        tokens = [step["token"] for step in fields]
    except (TypeError, KeyError):
        raise InputError("a trace takes steps of an engine, or a table of words; give one of them") from None
    if not tokens:
        raise InputError("a text without tokens has no trace; give at least one step")
    quantities = [_quantity(name, [step.get(name) for step in fields]) for name in STEP_FIELDS]
    shares = [list(step.get("layer_shares") or ()) for step in fields]
    layers = [LayerQuantity("layer_shares", "neurons computed", SHARE, _rounded(shares))] if shares[0] else []
    return TracedText(title, before, "token", tokens, [""] * len(tokens), _told(quantities), layers)


def _of_result(result: Mapping[str, Any]) -> TracedText:
    """A result of `clada generate --json`; with `prompt`, its text is shown too."""
    if "steps" not in result:
        raise InputError("a result without steps has no trace; give one of clada generate --json")
    title = ", ".join(str(result[name]) for name in ("model", "method", "dtype") if name in result)
    return of_steps(result["steps"], title or "generated text", str(result.get("prompt", "")))


def _of_file(path: Path) -> list[TracedText]:
    """The table of words of a file, with what the file beside it says."""
    import pandas as pd

    readers = {
        ".csv": lambda: pd.read_csv(path, **_AS_WRITTEN),
        ".tsv": lambda: pd.read_csv(path, sep="\t", **_AS_WRITTEN),
        ".parquet": lambda: pd.read_parquet(path),
    }
    if path.suffix not in readers:
        raise InputError(f"{path} is no table of words; give one of {', '.join(readers)}")
    try:
        frame = readers[path.suffix]()
        about = path.with_suffix(".json")
        known = json.loads(about.read_bytes()) if about.exists() else {}
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or 'no such file'}; check the path") from None
    except ValueError:
        raise InputError(f"{path} is no table that 'cladastats words' wrote; give one") from None
    return _of_frame(frame, {"model": path.stem, **(known if isinstance(known, dict) else {})})


# The words NA and null are words, 001 is no number.
_AS_WRITTEN: dict[str, Any] = {
    "keep_default_na": False,
    "na_values": [""],
    "dtype": {"word": str, "text_id": str, "item": str, "subject": str},
}


def _of_frame(frame: Any, known: Mapping[str, Any]) -> list[TracedText]:
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    return of_words(columns, str(known.get("model", "")), language=str(known.get("language", "en")))


def of_words(
    columns: Mapping[str, Sequence[Any]],
    title: str = "",
    *,
    language: str = "en",
    gaps: Sequence[str] | None = None,
    before: Mapping[str, str] | None = None,
    long: Mapping[str, Sequence[Any]] | None = None,
    known: Mapping[str, Known] | None = None,
) -> list[TracedText]:
    """A table of words as its texts.

    Args:
        columns: of the table, all of one length: `word`, `text_id` where there are several texts, and numbers.
        title: what all of them are of.
        language: of the words, which says whether there is a space between them.
        gaps: what stands before each word; None: a space where the language has one.
        before: by a text's id, what the model read before it.
        long: the same words once for each `layer`, in the same order; None: `columns` has what there is of layers.
        known: labels and units of further columns.

    Raises:
        InputError: no words, or no column of them.
    """
    if "word" not in columns:
        raise InputError(f"a table of words has a column 'word' (columns: {', '.join(columns)}); give it that name")
    if not len(columns["word"]):
        raise InputError("a table without words has no trace; give one with rows")
    if "layer" in columns and long is None:
        long, last = columns, max(columns["layer"])
        rows = [i for i, layer in enumerate(columns["layer"]) if layer == last]
        columns = {name: [values[i] for i in rows] for name, values in columns.items()}
    words = [str(word) for word in columns["word"]]
    ids = [str(name) for name in columns.get("text_id", [""] * len(words))]
    labels = {**KNOWN, **(known or {})}
    numbered = {name: _numbers(values) for name, values in columns.items() if name not in PLACES and name != "word"}
    order = [name for name in labels if name in numbered] + [name for name in numbered if name not in labels]
    names = [name for name in order if numbered[name] and not _layer_of(name)]
    layers = _layers(columns, long, labels)
    spaces = list(gaps) if gaps is not None else _spaces(words, ids, language)
    found = []
    rows_of: dict[str, list[int]] = {}
    for i, text_id in enumerate(ids):
        rows_of.setdefault(text_id, []).append(i)
    for text_id, rows in rows_of.items():
        quantities = [_quantity(name, [numbered[name][i] for i in rows], labels.get(name)) for name in names]
        of_layers = [LayerQuantity(each.name, each.label, each.unit, [each.values[i] for i in rows]) for each in layers]
        found.append(
            TracedText(
                ", ".join(filter(None, (title, text_id if len(rows_of) > 1 or not title else ""))) or "text",
                (before or {}).get(text_id, ""),
                "word",
                [words[i] for i in rows],
                [spaces[i] for i in rows],
                _told(quantities),
                of_layers,
            )
        )
    return found


def _spaces(words: Sequence[str], ids: Sequence[str], language: str) -> list[str]:
    """What stands before each word: a space, but at the beginning of a text and before punctuation by itself."""
    between = "" if language in UNSPACED else " "
    return [between if i and ids[i] == ids[i - 1] and not set(word) <= CLOSING else "" for i, word in enumerate(words)]


def _layers(
    columns: Mapping[str, Sequence[Any]], long: Mapping[str, Sequence[Any]] | None, labels: Mapping[str, Known]
) -> list[LayerQuantity]:
    """What a table has of every layer: columns `effort_00`, `effort_01`, ..., or a row per word and layer."""
    found = []
    efforts = sorted(name for name in columns if _layer_of(name))
    if efforts:
        values = [_numbers(columns[name]) for name in efforts]
        if all(values):
            found.append(_of_layers("effort", [list(each) for each in zip(*values, strict=True)], labels))
    if long is not None:
        count = len(set(long["layer"]))
        for name in ("surprisal_bits", "entropy_bits", "effort"):
            numbers = _numbers(long[name]) if name in long and not (name == "effort" and efforts) else []
            if numbers:
                rows = [numbers[i : i + count] for i in range(0, len(numbers), count)]
                found.append(_of_layers(name, rows, labels))
    return found


def _of_layers(name: str, values: list[list[float | None]], labels: Mapping[str, Known]) -> LayerQuantity:
    return LayerQuantity(name, labels[name].label, labels[name].unit, _rounded(values))


def _layer_of(name: str) -> str:
    """The number of a column of a layer's effort; else nothing."""
    stem, _, number = name.rpartition("_")
    return number if stem == "effort" and number.isdecimal() else ""


def _quantity(name: str, values: list[float | None], known: Known | None = None) -> Quantity:
    known = known or KNOWN.get(name)
    if known is None:
        known = Known(name, next((unit for end, unit in UNITS.items() if name.endswith(end)), ""))
    return Quantity(name, known.label, known.unit, [None if value is None else float(value) for value in values])


def _told(quantities: Sequence[Quantity]) -> list[Quantity]:
    """Those of which there is a number."""
    return [quantity for quantity in quantities if any(value is not None for value in quantity.values)]


def _numbers(values: Sequence[Any]) -> list[float | None]:
    """A column as numbers, None where one is missing; nothing if it holds anything else, or no number at all."""
    found: list[float | None] = []
    for value in values:
        if isinstance(value, str):
            return []
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan  # None, or what pandas calls missing
        found.append(number if math.isfinite(number) else None)
    return found if any(number is not None for number in found) else []


def _rounded(rows: Iterable[Sequence[float | None]]) -> list[list[float | None]]:
    """Numbers of layers with as many digits as a page can show: a page of thousands of tokens stays small."""
    return [[None if value is None else round(value, 4) for value in row] for row in rows]
