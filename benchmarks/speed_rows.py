"""How a table of speeds is made: its columns' cells, its rows from stored results, and the table itself.

`speed_page.py` has the list of tables.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured import read, when_and_where
from results_tables import markdown
from stored import RESULTS

WIDTH = 120  # characters of a line of text
Row = Mapping[str, Any]
Cell = Callable[[Row], str]


# -- Cells ----------------------------------------------------------------------------------------------------------


def words(key: str) -> Cell:
    """As it is; nothing where it is not there."""
    return lambda row: str(row.get(key, ""))


def code(key: str) -> Cell:
    """In the type of code."""
    return lambda row: f"`{row[key]}`"


def number(key: str, digits: int = 0) -> Cell:
    """With so many decimals."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:,.{digits}f}"


def percent(key: str, digits: int = 0) -> Cell:
    """A share."""
    return lambda row: "" if row.get(key) is None else f"{100 * row[key]:.{digits}f} %"


def change(key: str, digits: int = 1) -> Cell:
    """A difference as a share, with its interval in `KEY_ci`."""

    def cell(row: Row) -> str:
        if row.get(key) is None:
            return ""
        low, high = row[f"{key}_ci"]
        return f"{100 * row[key]:+.{digits}f} % ({100 * low:+.{digits}f} to {100 * high:+.{digits}f})"

    return cell


# -- Rows: from the stored results of a table, by file name, to what its columns read ----------------------------------

Stored = Mapping[str, Any]


def lines(stored: Stored) -> Iterator[Row]:
    """Every line of JSONL files."""
    for found in stored.values():
        yield from found


def int4_rounds(stored: Stored) -> Iterator[Row]:
    """Lines of `int4.py`, with the range of their rounds."""
    for row in lines(stored):
        yield {**row, "range": f"{row['low']:.2f} to {row['high']:.2f}"}


def beside_dense(stored: Stored) -> Iterator[Row]:
    """Every method of runs of `clada bench`, with the settings of its run and the speed of dense in it."""
    for name, run in stored.items():
        dense, *others = run["rows"]
        for row in others:
            new = min(1024, CONTEXT_LIMITS.get(run["model"], 8192) - run["prompt_tokens"])
            yield {
                "file": name,
                **{key: run[key] for key in ("model", "dtype", "prompt_tokens", "batch_size", "bandwidth_gb_s")},
                **row,
                "dense": dense["tokens_per_s"],
                "bytes": dense["bytes_per_token"] / row["bytes_per_token"],
                "budget": _budget(name),
                "new": new,
                "prefill_share": row["prefill_s"] / (row["prefill_s"] + new / row["tokens_per_s"]),
            }


CONTEXT_LIMITS = {"smollm2-135m": 8192, "gemma3-270m": 32_768}


def _budget(name: str) -> str:
    """Of a file whose name ends in the budget, `-2` or `-2-run1`."""
    ends = [part for part in name.removesuffix(".json").split("-") if part.isdigit()]
    return f"{ends[-1]} %" if ends else ""


def _runs(stored: Stored) -> dict[tuple[str, str], list[Any]]:
    """Runs of the same precision and budget."""
    runs: dict[tuple[str, str], list[Any]] = {}
    for name, run in stored.items():
        if name.startswith("speed-"):
            runs.setdefault((run["dtype"], _budget(name.partition("-run")[0])), []).append(run)
    return runs


def pooled(runs: list[Any]) -> dict[str, np.ndarray]:
    """Tokens per second of every round of some runs, by engine; rounds of the same place belong together."""
    speeds: dict[str, list[float]] = {}
    for run in runs:
        for row in run["rows"]:
            speeds.setdefault(row["method"], []).extend(row["tokens_per_s_all"])
        for peer in run["peers"]:
            speeds.setdefault(f"{peer['name']} {peer['dtype']}", []).extend(peer["tokens_per_s_all"])
    return {engine: np.array(values) for engine, values in speeds.items()}


ENGINES = {"dense": "`clada`, dense", "clada": "`clada`, plan for 2 %"}


def engines(stored: Stored) -> Iterator[Row]:
    """Every engine of the runs that had other engines beside, with medians of the rounds' ratios."""
    for (dtype, _), runs in _runs(stored).items():
        if runs[0]["peers"]:
            yield from _engines(dtype, runs, ENGINES)


def one_command(stored: Stored) -> Iterator[Row]:
    """The same of single runs in which `clada` drafts too."""
    for run in stored.values():
        yield from _engines(run["dtype"], [run], {**ENGINES, "speculative": "`clada`, speculative"})


def _engines(dtype: str, runs: list[Any], named: Mapping[str, str]) -> Iterator[Row]:
    """Every engine of some runs at a precision, the slowest first, beside those of ours that have a name."""
    speeds = pooled(runs)
    for engine in sorted(speeds, key=lambda name: float(np.median(speeds[name]))):
        over = {ours: float(np.median(speeds[ours] / speeds[engine])) for ours in named}
        yield {"dtype": dtype, "engine": named.get(engine, engine), "speed": float(np.median(speeds[engine])), **over}


def plans(stored: Stored) -> Iterator[Row]:
    """Every precision and budget: the speed of its runs, and the loss of its precision's file."""
    for (dtype, budget), runs in _runs(stored).items():
        speeds, (dense, sparse) = pooled(runs), runs[0]["rows"]
        own = [pooled([run]) for run in runs]
        ratios = [float(np.median(one["clada"] / one["dense"])) for one in own]
        share = str(float(budget.split()[0]) / 100)
        yield {
            "dtype": dtype,
            "budget": budget,
            "speed": float(np.median(speeds["clada"])),
            "ratio": float(np.median(speeds["clada"] / speeds["dense"])),
            "runs": f"{min(ratios):.2f} to {max(ratios):.2f}",
            "bytes": dense["bytes_per_token"] / sparse["bytes_per_token"],
            **stored.get(f"loss-{dtype}.json", {}).get(share, {}),
        }


def methods(stored: Stored) -> Iterator[Row]:
    """Every method and budget: the speed of the runs of speed, the loss of the others."""
    speeds = {(row["budget"], row["method"]): row["ratio_to_dense"] for row in beside_dense(_named(stored, True))}
    found = list(beside_dense(_named(stored, False)))
    order = [row["method"] for row in found]
    for row in sorted(found, key=lambda row: order.index(row["method"])):
        yield {**row, "ratio_to_dense": speeds[row["budget"], row["method"]]}


def _named(stored: Stored, speed: bool) -> Stored:
    return {name: run for name, run in stored.items() if name.startswith("methods-speed-") == speed}


VARIANTS = {
    "none": "thresholds alone",
    "fitted": "load rule, fitted",
    "paper": "load rule, paper",
    "paper, quantile 0.5": "paper, load above the 0.5 quantile",
    "paper, quantile 0.9": "paper, load above the 0.9 quantile",
    "inverted": "load rule, inverted",
    "statistics, a tenth": "a tenth of the neurons out, by prompt",
    "statistics, a third": "a third of the neurons out, by prompt",
}


def ablations(stored: Stored) -> Iterator[Row]:
    """Every variant, by its name in words; none is not compared with itself."""
    for row in lines(stored):
        shown = {**row, "named": VARIANTS[row["variant"]]}
        yield {**shown, "against_none": None} if row["variant"] == "none" else shown


def precisions(stored: Stored) -> Iterator[Row]:
    """Every model at a precision in blocks."""
    for row in lines(stored):
        yield {**row, "matrix_mb": row["matrix_bytes"] / 1e6, "file_mb": row["file_bytes"] / 1e6}


def drafts(stored: Stored) -> Iterator[Row]:
    """Every kind of draft."""
    for run in lines(stored):
        for row in run["rows"]:
            yield {"model": run["model"], "dtype": run["dtype"], "drafts in": run["draft"], **row}


def positions(stored: Stored) -> Iterator[Row]:
    """What a step over some positions costs, in steps of one; from the first run of a model at a precision."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for run in lines(stored):
        first.setdefault((run["model"], run["dtype"]), run)
    for run in first.values():
        for count, seconds in run["seconds"].items():
            yield {
                "model": run["model"],
                "dtype": run["dtype"],
                "positions": count,
                "cost": seconds / run["seconds"]["1"],
            }


def shares(stored: Stored) -> Iterator[Row]:
    """Fixed shares left out, without the rows in which nothing is. Earlier results say not how rows lay."""
    return ({"rows": "gathered", **row} for row in lines(stored) if row["skipped_mlp"])


# -- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: Its heading.
        about: What a row is, what the numbers mean, and their uncertainty.
        command: What prints or stores the results.
        files: Their patterns below `benchmarks/results`, in the order of the rows.
        columns: Header and cell.
        rows: From the stored results, by file name, to rows.
        figure: A file in `figures` and its caption.
    """

    title: str
    about: str
    command: str
    files: tuple[str, ...]
    columns: tuple[tuple[str, Cell], ...]
    rows: Callable[[Stored], Iterator[Row]] = lines
    figure: tuple[str, str] | None = None

    def paths(self) -> list[Path]:
        """The stored results."""
        return [path for pattern in self.files for path in sorted(RESULTS.glob(pattern), key=_by_numbers)]

    def text(self) -> str:
        """The table as Markdown, with its heading."""
        paths = self.paths()
        stored = {path.name: read(path) for path in paths}
        cells = [{header: cell(row) for header, cell in self.columns} for row in self.rows(stored)]
        parts = [
            f"### {self.title}",
            textwrap.fill(self.about, WIDTH),
            f"Measured {when_and_where(paths)}:\n\n{textwrap.indent(self.command, ' ' * 4)}",
            markdown(pd.DataFrame(cells), self.title),
        ]
        if self.figure is not None:
            name, caption = self.figure
            parts.append(f"![{caption}]({name})")
        return "\n\n".join(parts)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """In the order of the numbers in their names."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.stem.split("-")]
