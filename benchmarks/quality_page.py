"""`figures/QUALITY.md`: what leaving out costs on tasks, from `benchmarks/results/quality-*.json` alone.

    python benchmarks/quality_page.py

`PARTS` is the list of what is scored, by `quality.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from measured import note, read, when_and_where
from results_tables import markdown
from stored import FIGURES, RESULTS

CHOICE = "hellaswag,piqa,copa,arc_challenge,boolq"
WRITTEN = "coqa,qasper_evidence,xsum,cnn_dailymail"
HALF = "clada,clada-mlp,tt,top-p,cats,griffin,teal,wina"
SMALL, GEMMA = "smollm2-135m", "gemma3-270m"


@dataclass(frozen=True)
class Part:
    """One call of `clada evaluate`."""

    label: str
    methods: str
    options: str = ""
    limit: int = 200
    tasks: str = CHOICE
    protocol: str = "answer"
    model: str = SMALL


PARTS = (
    Part("clada-2", "clada", limit=1000),
    Part("others-2", "clada-mlp,tt,top-p,cats,wina", "--max-loss 0.02"),
    Part("budget-5", "clada,tt,top-p,cats", "--max-loss 0.05"),
    Part("half", HALF, "--keep 0.5"),
    Part("half-dejavu", "dejavu", "--keep 0.5 --plan dejavu.json"),
    Part("paper-rule-2", "clada", "--max-loss 0.02 --coefficients paper"),
    Part("all-2", "clada", limit=1000, protocol="all"),
    Part("all-half", "clada,griffin", "--keep 0.5", protocol="all"),
    Part("written-2", "clada", limit=100, tasks=WRITTEN),
    Part("written-half", "clada,griffin,cats", "--keep 0.5", limit=100, tasks=WRITTEN),
    Part("gemma-2", "clada", model=GEMMA),
    Part("gemma-half", "clada,griffin", "--keep 0.5", model=GEMMA),
)
SAME = RESULTS / "quality-same.jsonl"


def options(part: Part) -> str:
    """Of `clada evaluate`."""
    rule = "" if "--coefficients" in part.options else "--coefficients none"
    words = (
        f"--model {part.model} --methods {part.methods} --tasks {part.tasks} --limit {part.limit} --seed 0 "
        f"--protocol {part.protocol} {part.options} {rule}"
    )
    return " ".join(words.split())


def result(part: Part) -> Path:
    """Where its rows are stored."""
    return RESULTS / f"quality-{part.label}.json"


def _score(row: dict[str, Any]) -> dict[str, str]:
    """A score in per cent; of the others than dense, also the difference to it and its interval."""
    low, high = row["diff_ci"]
    difference = f"{100 * row['diff_to_dense']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return {"score": f"{100 * row['value']:.1f}", "to dense": "" if row["method"] == "dense" else difference}


def means(parts: dict[Part, list[dict[str, Any]]]) -> str:
    """A line for every method of every part: the mean over tasks of their first metrics."""
    lines = [
        {
            "part": part.label,
            "protocol": part.protocol,
            "method": f"`{row['method']}`",
            "items": f"{row['n']:,}",
            **_score(row),
            "kept": "" if row["kept_above_chance"] is None else f"{row['kept_above_chance']:.0%}",
            "neurons": f"{row['active_fraction']:.0%}",
        }
        for part, rows in parts.items()
        for row in rows
        if row["task"] == "mean"
    ]
    return markdown(pd.DataFrame(lines), "means over tasks")


def by_task(rows: list[dict[str, Any]], title: str) -> str:
    """A line for every task and method of a part: the first metric of the task."""
    first = {(row["task"], row["method"]): row for row in reversed(rows) if row["task"] != "mean"}
    lines = [
        {"task": task, "method": f"`{method}`", "metric": row["metric"], "items": f"{row['n']:,}", **_score(row)}
        for (task, method), row in reversed(first.items())
    ]
    return markdown(pd.DataFrame(lines).sort_values("task", kind="stable"), title)


INTRODUCTION = """\
# Quality

What leaving out costs on tasks. This page is written by `python benchmarks/quality_page.py` from
`benchmarks/results/quality-*.json`. All parts were scored with earlier plans, made before the estimate of the
vocabulary had four bits.

Scores are in per cent: accuracy of tasks that choose, F1 or ROUGE-1 of tasks that write. *To dense* is the difference
on the same items, with a 95 % interval from a paired bootstrap over them. `DIR` holds `TASK/*.jsonl`."""
MEANS = """\
Each row is a method in a part, with the mean of the tasks' first metrics. Parts are of SmolLM2-135M but for those of
Gemma 3 270M. *Kept* is the share of dense's score above blind guessing, of the tasks in which dense is above it. In
BoolQ, always saying yes counts as guessing."""


def report() -> str:
    """The page, of everything that is stored."""
    parts = {part: read(result(part)) for part in PARTS if result(part).is_file()}
    text = [INTRODUCTION, "## Means over tasks", MEANS, means(parts)]
    for part, rows in parts.items():
        text += [
            f"## Part {part.label}",
            f"Each row is a task and a method: {part.model}, protocol `{part.protocol}`.",
            f"Measured {when_and_where([result(part)])}:",
            f"    clada evaluate --data DIR \\\n      {_wrapped(options(part))}",
            by_task(rows, part.label),
        ]
    if SAME.is_file():
        text += [
            "## Dense through the adapter, and the harness' own model",
            "Each row is a task, whose items both scored. The scores of an item differ by so many nats at most.",
            f"Measured {when_and_where([SAME])}:",
            "    python benchmarks/quality.py --data DIR --same",
            markdown(pd.DataFrame(read(SAME)).rename(columns=lambda name: name.replace("_", " ")), "same"),
        ]
    return "\n\n".join(text) + "\n"


def _wrapped(words: str) -> str:
    """Options, broken before the tasks, so that a line fits a screen."""
    return words.replace(" --tasks", " \\\n      --tasks").replace(" --limit", " \\\n      --limit")


def publish() -> None:
    """Note what is new, write the page."""
    note(path for path in (SAME, *map(result, PARTS)) if path.is_file())
    (FIGURES / "QUALITY.md").write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    publish()
