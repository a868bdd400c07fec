"""`clada evaluate`: what leaving out costs in task accuracy, by method and task, each against dense on the same items.

One file per method and task holds every item's score, so that an interrupted run goes on and a table can be made again.
Differences to dense are paired, by a bootstrap over items, as all methods answer the same ones.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for torch
    from clada.cli import main as cli

    raise SystemExit(cli(["evaluate", *sys.argv[1:]]))

import argparse
import hashlib
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate
from tqdm import tqdm

from clada.coefficients import resolve_coefficients, to_json
from clada.errors import InputError
from clada.jsonfile import read_json, write_json
from clada.models import model_revision
from clada.plan import resolve_plan
from clada.policies import with_dense
from clada.threads import available_cores, set_threads

SCHEMA = "clada/evaluation/1"
# What blind guessing gets: accuracy above it is what a method can lose.
CHANCE = {"hellaswag": 0.25, "piqa": 0.5, "copa": 0.5, "arc_challenge": 0.25, "boolq": 0.5}
DRAWS = 10_000
HEADERS = ("method", "task", "metric", "value", "stderr", "n", "to dense", "95 %", "kept above chance", "neurons")


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    methods = with_dense(args.methods)
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative; give 0 or more")
    harness = _harness()
    folder = Path(args.data)
    tasks = args.tasks or [task for task in harness.TASKS if (folder / task).is_dir()]
    if not tasks:
        raise InputError(f"{folder} holds no folder of a known task; there are {', '.join(harness.TASKS)}")
    documents = {task: harness.read_documents(task, folder) for task in tasks}
    revision = model_revision(args.model)
    plan = None if methods == ["dense"] else resolve_plan(args.plan, args.model, revision)
    coefficients = resolve_coefficients(args.coefficients, args.model)
    set_threads(args.threads or available_cores())
    common = {
        "schema": SCHEMA,
        "model": args.model,
        "revision": revision,
        "dtype": args.dtype,
        "protocol": args.protocol,
        "limit": args.limit,
        "seed": args.seed,
    }
    results = []
    for method in methods:
        settings = {} if method == "dense" else {"max_loss": args.max_loss, "keep": args.keep}
        if method != "dense":
            settings["coefficients"] = to_json(coefficients)
            settings["plan"] = None if plan is None else hashlib.sha256(repr(plan.settings).encode()).hexdigest()[:16]
        todo = {}
        for task, rows in documents.items():
            digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
            wanted = {**common, **settings, "method": method, "task": task, "documents_sha256": digest}
            path = Path(args.out) / f"{Path(args.model).name}-{args.dtype}-{args.protocol}" / f"{method}-{task}.json"
            found = _finished(path, wanted)
            if found is None:
                todo[task] = (path, wanted)
            else:
                results.append(found)
        if todo:
            results += _run(harness, args, method, plan, coefficients, documents, todo)
    rows = compare(results)
    if args.format == "json":
        shown = {"model": args.model, "dtype": args.dtype, "protocol": args.protocol, "rows": rows}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print(as_table(rows, args.format))


def _harness() -> Any:
    try:
        from clada import harness
    except ImportError as problem:
        remedy = "install them with pip install 'clada[eval]'"
        raise InputError(f"evaluation needs more packages ({problem.name}); {remedy}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return harness


def _finished(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The result that an earlier run left for the same settings."""
    if not path.is_file():
        return None
    try:
        found = read_json(path, SCHEMA)
    except InputError:
        return None
    return found if all(found.get(key) == value for key, value in wanted.items()) else None


def _run(
    harness: Any,
    args: argparse.Namespace,
    method: str,
    plan: Any,
    coefficients: Any,
    documents: dict[str, list[dict[str, Any]]],
    todo: dict[str, tuple[Path, dict[str, Any]]],
) -> list[dict[str, Any]]:
    import lm_eval

    lm = harness.CladaLM(
        args.model, method, plan or "none", coefficients, args.protocol, args.max_loss, args.keep, args.dtype
    )
    results = []
    try:
        for task, (path, wanted) in tqdm(todo.items(), desc=method, unit="task", file=sys.stderr):
            rows = documents[task]
            # At random: files keep an order in which like items come together.
            chosen = sorted(random.Random(args.seed).sample(range(len(rows)), min(args.limit or len(rows), len(rows))))
            before = (0, 0) if lm.sparse is None else (lm.sparse.tokens, lm.sparse.neurons)
            found = lm_eval.simple_evaluate(
                model=lm, tasks=[harness.local_task(task, rows)], samples={task: chosen}, bootstrap_iters=0
            )
            names = [metric["metric"] for metric in harness.TASKS[task]["metric_list"]]
            samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
            items = {name: [float(sample[name]) for sample in samples] for name in names}
            active = 1.0
            if lm.sparse is not None and lm.sparse.tokens > before[0]:
                size = lm.sparse.policy.weight.size
                active = (lm.sparse.neurons - before[1]) / ((lm.sparse.tokens - before[0]) * size)
            result = {**wanted, "indices": [sample["doc_id"] for sample in samples], "items": items,
                      "active_fraction": active}  # fmt: skip
            write_json(path, result)
            results.append(result)
    finally:
        lm.close()
    return results


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per method, task and metric, with the difference to dense on the same items, and the mean over tasks.

    Args:
        results: of each method and task: `items`, a list of scores by metric, and `indices`.

    Returns:
        records: method, task, metric, value, stderr, n, diff_to_dense, diff_ci (95 %, paired bootstrap),
        kept_above_chance (share of dense's value above blind guessing), active_fraction, seed. Task `mean` is of the
        first metric of every task, its interval from resampling the items of each.
    """
    dense = {result["task"]: result for result in results if result["method"] == "dense"}
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        draws, references = [], []
        for result in own:
            task, rng = result["task"], np.random.default_rng(result["seed"])
            for place, (metric, values) in enumerate(result["items"].items()):
                scores, reference = np.array(values), np.array(dense[task]["items"][metric])
                sampled = rng.integers(0, len(scores), (DRAWS, len(scores)))
                difference = (scores - reference)[sampled].mean(1)
                value, wanted, chance = float(scores.mean()), float(reference.mean()), CHANCE.get(task, 0.0)
                row: dict[str, Any] = {
                    "method": method,
                    "task": task,
                    "metric": metric,
                    "value": value,
                    "stderr": float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None,
                    "n": len(scores),
                    **_difference(value - wanted, difference),
                    "kept_above_chance": _kept(value, wanted, chance),
                    "active_fraction": result["active_fraction"],
                    "seed": result["seed"],
                }
                rows.append(row)
                if place == 0:
                    draws.append(difference)
                    references.append((value, wanted, chance))
        if len(own) > 1:
            value, wanted, chance = (float(v) for v in np.mean(references, 0))
            rows.append(
                {
                    "method": method,
                    "task": "mean",
                    "metric": "first of each task",
                    "value": value,
                    "stderr": None,
                    "n": sum(len(result["indices"]) for result in own),
                    **_difference(value - wanted, np.mean(draws, 0)),
                    "kept_above_chance": _kept(value, wanted, chance),
                    "active_fraction": float(np.mean([result["active_fraction"] for result in own])),
                    "seed": own[0]["seed"],
                }
            )
    return rows


def _difference(value: float, draws: np.ndarray) -> dict[str, Any]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"diff_to_dense": float(value), "diff_ci": [float(low), float(high)]}


def _kept(value: float, reference: float, chance: float) -> float | None:
    """Share of the reference's score above chance; None where the reference has none."""
    return float((value - chance) / (reference - chance)) if reference > chance else None


def as_table(rows: list[dict[str, Any]], fmt: str) -> str:
    """The rows as `markdown`, `latex` or `csv`."""
    cells = [
        [
            row["method"],
            row["task"],
            row["metric"],
            f"{row['value']:.4f}",
            "" if row["stderr"] is None else f"{row['stderr']:.4f}",
            row["n"],
            f"{row['diff_to_dense']:+.4f}",
            f"{row['diff_ci'][0]:+.4f} to {row['diff_ci'][1]:+.4f}",
            "" if row["kept_above_chance"] is None else f"{row['kept_above_chance']:.1%}",
            f"{row['active_fraction']:.0%}",
        ]
        for row in rows
    ]
    if fmt == "csv":
        return pd.DataFrame(cells, columns=list(HEADERS)).to_csv(index=False)
    style = {"markdown": "github", "latex": "latex_booktabs"}[fmt]
    return tabulate(cells, list(HEADERS), tablefmt=style, disable_numparse=True)
