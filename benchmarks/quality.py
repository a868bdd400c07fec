"""What leaving out costs on tasks: `clada evaluate` of every method, in one table (the paper's Tables 4 and 6).

    python benchmarks/quality.py --data DIR            # hours; goes on where it was, `--only LABEL` for a part of it
    python benchmarks/quality.py --data DIR --same     # dense through the adapter against the harness' own `hf`
    python benchmarks/quality.py                       # `figures/QUALITY.md` from what is stored

`DIR` holds `TASK/*.jsonl`, as `clada evaluate` reads it. Methods are compared within a loss of perplexity (plans of 2
or 5 %) and at half of the neurons (`keep 0.5`), the share at which the paper compares. Items are drawn with seed 0:
1,000 for SmolLM2's 2 % plan on tasks that choose, 100 for tasks that write, 200 otherwise. Parts may run side by side,
where one with as many items has scored dense before. DejaVu's predictors are trained beforehand:

    clada calibrate --methods dejavu --text jsonl:articles.jsonl:body --out dejavu.json

Item scores stay in `--out`; `benchmarks/results/quality-LABEL.json` keeps the rows of a part.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM
from stored import FIGURES, RESULTS
from tabulate import tabulate

from clada.harness import CladaLM
from clada.measure.tasks import TASKS, local_task, read_documents
from clada.models.open import load_model

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


def evaluate(part: Part, data: str, out: str) -> list[dict[str, Any]]:
    """The rows of one part, scored now as far as they are not stored below `out`."""
    command = [sys.executable, "-m", "clada.evaluate", "--data", data, "--out", out, "--json", *options(part).split()]
    print("clada evaluate", options(part), file=sys.stderr, flush=True)
    return list(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["rows"])


def same_as_hf(data: str, limit: int = 200) -> None:
    """Compare dense through the adapter with the harness' own model, item by item; a line a task in `SAME`."""
    model, tokenizer = load_model(SMALL)
    ours, theirs = CladaLM(SMALL, method="dense"), HFLM(pretrained=model, tokenizer=tokenizer)
    lines = []
    for task in CHOICE.split(","):
        documents = read_documents(task, Path(data))
        random.Random(0).shuffle(documents)
        own, other = (
            lm_eval.simple_evaluate(model=lm, tasks=[local_task(task, documents[:limit])], bootstrap_iters=0)
            for lm in (ours, theirs)
        )
        pairs = list(zip(own["samples"][task], other["samples"][task], strict=True))
        names = [metric["metric"] for metric in TASKS[task]["metric_list"]]
        lines.append(
            {
                "task": task,
                "items": len(pairs),
                "different_scores": sum(a[name] != b[name] for a, b in pairs for name in names),
                "largest_difference_nats": max(
                    abs(float(x[0][0]) - float(y[0][0]))
                    for a, b in pairs
                    for x, y in zip(a["resps"], b["resps"], strict=True)
                ),
                **{name: float(np.mean([a[name] for a, _ in pairs])) for name in names},
            }
        )
        print(json.dumps(lines[-1]))
        SAME.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _shown(row: dict[str, Any]) -> str:
    """A score; of the others than dense, also the difference to it and its interval."""
    shown, (low, high) = f"{100 * row['value']:.1f}", row["diff_ci"]
    if row["method"] != "dense":
        shown += f" ({100 * row['diff_to_dense']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
    return shown


def _last_columns(row: dict[str, Any]) -> list[str]:
    kept = row["kept_above_chance"]
    return ["" if kept is None else f"{kept:.0%}", f"{row['active_fraction']:.0%}"]


LAST = ["kept above chance", "neurons"]


def by_task(rows: list[dict[str, Any]]) -> str:
    """A part's methods by tasks, the first metric of each."""
    first = {(row["method"], row["task"]): row for row in reversed(rows)}
    counts = {row["task"]: row["n"] for row in rows}
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [first[method, task] for task in counts]
        lines.append([f"`{method}`", *map(_shown, own), *_last_columns(own[-1])])
    named = {task: first["dense", task]["metric"].replace("first of each task", "") for task in counts}
    headers = ["method", *(f"{task} {named[task]}".strip() + f", {n:,}" for task, n in counts.items()), *LAST]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def means(parts: dict[Part, list[dict[str, Any]]]) -> str:
    """A line for every method of every part: the mean over tasks of their first metrics."""
    lines = [
        [part.label, part.model, part.protocol, f"`{row['method']}`", f"{row['n']:,}", _shown(row), *_last_columns(row)]
        for part, rows in parts.items()
        for row in rows
        if row["task"] == "mean"
    ]
    headers = ["part", "model", "protocol", "method", "items", "mean (to dense [95 %])", *LAST]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def report(parts: dict[Part, list[dict[str, Any]]]) -> str:
    """All that was scored, as Markdown."""
    same = [json.loads(line) for line in SAME.read_text(encoding="utf-8").splitlines()] if SAME.is_file() else []
    text = [
        "# Quality",
        "Written by `python benchmarks/quality.py`, which says how, from `benchmarks/results/quality-*.json`. "
        "Accuracies (tasks that choose), F1 and ROUGE-1 (tasks that write) in per cent; in brackets the difference to "
        "dense on the same items and its 95 % interval from a paired bootstrap over them. Means are over the tasks' "
        "first metrics; what is kept above chance is of the tasks in which dense is above it (blind guessing; in BoolQ "
        "always saying yes gets 62 %). Scored with earlier plans, made before the estimate of the vocabulary had four "
        "bits.",
        "## Means over tasks",
        means(parts),
    ]
    for part, rows in parts.items():
        text += [f"## {part.label}", f"`clada evaluate --data DIR {options(part)}`", by_task(rows)]
    if same:
        text += [
            "## Dense through the adapter, and the harness' own model",
            "`python benchmarks/quality.py --data DIR --same`: the same items by both.",
            tabulate(same, headers="keys", tablefmt="github", floatfmt=".3g"),
        ]
    return "\n\n".join(text) + "\n"


def main() -> None:
    """Score what is asked for, write the report of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the tasks' documents; without it nothing is scored")
    parser.add_argument("--out", default="evaluations", help="where item scores are kept")
    parser.add_argument("--same", action="store_true", help="compare dense with the harness' own model, nothing else")
    parser.add_argument("--only", action="append", choices=[part.label for part in PARTS], help="of the parts")
    args = parser.parse_args()
    if args.same:
        if not args.data:
            parser.error("--same needs --data")
        same_as_hf(args.data)
    stored = {}
    for part in PARTS:
        path = RESULTS / f"quality-{part.label}.json"
        if args.data and not args.same and (not args.only or part.label in args.only):
            path.write_text(json.dumps(evaluate(part, args.data, args.out), indent=1) + "\n", encoding="utf-8")
        if path.is_file():
            stored[part] = json.loads(path.read_text(encoding="utf-8"))
    (FIGURES / "QUALITY.md").write_text(report(stored), encoding="utf-8")


if __name__ == "__main__":
    main()
