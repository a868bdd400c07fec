"""What leaving out costs on tasks: `clada evaluate` of every method (the paper's Tables 4 and 6).

    python benchmarks/quality.py --data DIR            # hours; goes on where it was, `--only LABEL` for a part of it
    python benchmarks/quality.py --data DIR --same     # dense through the adapter against the harness' own `hf`

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
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM
from quality_page import CHOICE, PARTS, SAME, SMALL, Part, options, publish, result

from clada.harness import CladaLM
from clada.measure.tasks import TASKS, local_task, read_documents
from clada.models.open import load_model


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


def main() -> None:
    """Score what is asked for, write the page of all that is stored."""
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
    for part in PARTS:
        if args.data and not args.same and (not args.only or part.label in args.only):
            rows = evaluate(part, args.data, args.out)
            result(part).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    publish()


if __name__ == "__main__":
    main()
