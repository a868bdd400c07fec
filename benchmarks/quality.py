"""What leaving out costs on tasks: `clada evaluate` of every method, in one table (the paper's Tables 4 and 6).

    python benchmarks/quality.py --data DIR            # hours; goes on where it was, `--only LABEL` for a part of it
    python benchmarks/quality.py --data DIR --same     # dense through the adapter against the harness' own `hf`
    python benchmarks/quality.py                       # the tables from what is stored

`DIR` holds `TASK/*.jsonl`, as `clada evaluate` reads it. Methods are compared within a loss of perplexity (plans of 2
or 5 %) and at half of the neurons (`keep 0.5`), the share at which the paper compares. Items are drawn with seed 0:
1,000 for dense and CLADA's 2 % plan, 200 for the others. DejaVu's predictors are trained beforehand:

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
from stored import RESULTS
from tabulate import tabulate

from clada.harness import TASKS, CladaLM, local_task, read_documents
from clada.models import load_model

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


def evaluate(part: Part, data: str, out: str) -> list[dict[str, Any]]:
    """The rows of one part, scored now as far as they are not stored below `out`."""
    options = f"--model {part.model} --methods {part.methods} --tasks {part.tasks} --limit {part.limit} --seed 0"
    options += f" --protocol {part.protocol} {part.options}"
    if "--coefficients" not in options:
        options += " --coefficients none"
    command = [sys.executable, "-m", "clada.evaluate", "--data", data, "--out", out, "--json", *options.split()]
    print("clada evaluate", options, file=sys.stderr, flush=True)
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


def table(rows: list[dict[str, Any]]) -> str:
    """Value of dense and difference of the others, by method and task, with the share of neurons computed."""
    first = {(row["method"], row["task"]): row for row in reversed(rows)}
    tasks, lines = list(dict.fromkeys(row["task"] for row in rows)), []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for task in tasks:
            row = first[method, task]
            low, high = row["diff_ci"]
            shown = f"{100 * row['value']:.1f}"
            if method != "dense":
                shown += f" ({100 * row['diff_to_dense']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
            cells.append(shown)
        mean = first.get((method, "mean"), first[method, tasks[0]])
        kept = "" if mean["kept_above_chance"] is None else f"{mean['kept_above_chance']:.0%}"
        lines.append([f"`{method}`", *cells, kept, f"{mean['active_fraction']:.0%}"])
    counts = {row["task"]: row["n"] for row in rows}
    headers = ["method", *(f"{task}, {counts[task]}" for task in tasks), "above chance", "neurons"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Score what is asked for, print every table there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the tasks' documents; without it nothing is scored")
    parser.add_argument("--out", default="evaluations", help="where item scores are kept")
    parser.add_argument("--same", action="store_true", help="compare dense with the harness' own model, nothing else")
    parser.add_argument("--only", action="append", choices=[part.label for part in PARTS], help="of the parts")
    args = parser.parse_args()
    if args.same:
        same_as_hf(args.data)
        return
    for part in PARTS:
        path = RESULTS / f"quality-{part.label}.json"
        if args.data and (not args.only or part.label in args.only):
            path.write_text(json.dumps(evaluate(part, args.data, args.out), indent=1) + "\n", encoding="utf-8")
        if path.is_file():
            settings = f"{part.model}, protocol {part.protocol} {part.options}".rstrip()
            print(f"\n**{part.label}** ({settings})\n\n{table(json.loads(path.read_text(encoding='utf-8')))}")


if __name__ == "__main__":
    main()
