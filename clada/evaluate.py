"""`clada evaluate`: what leaving out costs in task accuracy, by method and task, each against dense on the same items.

One file per method and task holds the score of every item so far, so that an interrupted run goes on, a larger
`--limit` adds items to those there, and a table can be made again. Differences to dense are paired, by a bootstrap over
items, as all methods answer the same ones.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for torch
    from clada.cli import main as cli

    raise SystemExit(cli(["evaluate", *sys.argv[1:]]))

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import logging
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate
from tqdm import tqdm

from clada.bench import enter, race
from clada.coefficients import resolve_coefficients, to_json
from clada.errors import InputError
from clada.jsonfile import read_json, write_json
from clada.models import bos_tokens, check_device, load_model, load_tokenizer, model_revision
from clada.plan import resolve_plan
from clada.policies import METHODS, with_dense
from clada.texts import cut
from clada.threads import available_cores, set_threads

SCHEMA = "clada/evaluation/2"  # another number where the same documents would be scored otherwise
# What blind guessing gets: accuracy above it is what a method can lose.
CHANCE = {"hellaswag": 0.25, "piqa": 0.5, "copa": 0.5, "arc_challenge": 0.25, "boolq": 0.5}
DRAWS = 10_000
CHUNK = 20  # items that are written together, of all methods: a minute's work or two at most is lost
HEADERS = (
    "method", "task", "metric", "value", "stderr", "n", "to dense", "95 %", "kept above chance", "neurons", "speed"
)  # fmt: skip
SPEED = {"prompt_tokens": 256, "new_tokens": 64, "repeats": 7, "batch_size": 1}  # of `--speed`, as in `clada bench`


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    methods = with_dense(args.methods)
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative; give 0 or more")
    if args.speed and args.device != "cpu":
        raise InputError("--speed times the kernels, which run on the CPU; leave it or --device out")
    check_device(args.device)
    harness = _harness()
    folder = Path(args.data)
    tasks = args.tasks or [task for task in harness.TASKS if (folder / task).is_dir()]
    if not tasks:
        raise InputError(f"{folder} holds no folder of a known task; there are {', '.join(harness.TASKS)}")
    documents = {task: harness.read_documents(task, folder) for task in tasks}
    revision = model_revision(args.model)
    plan = None if methods == ["dense"] else resolve_plan(args.plan, args.model, revision, args.max_loss)
    coefficients = resolve_coefficients(args.coefficients, args.model)
    set_threads(args.threads or available_cores())
    windows = _windows(args.model, documents) if args.speed else []
    common = {"schema": SCHEMA, "model": args.model, "revision": revision, "dtype": args.dtype}
    common["harness"] = importlib.metadata.version("lm_eval")
    out = Path(args.out) / f"{Path(args.model).name}-{args.dtype}"
    work: dict[str, list[Scores]] = {}  # by method, tasks in the same order
    for method in methods:
        settings: dict[str, Any] = {}
        if method != "dense":  # which is the same under both protocols
            settings = {"protocol": args.protocol, "max_loss": args.max_loss, "keep": args.keep}
            settings["coefficients"] = to_json(coefficients)
            settings["plan"] = None if plan is None else plan.digest()
        work[method] = []
        for task, rows in documents.items():
            wanted = {**common, **settings, "method": method, "task": task}
            wanted["documents_sha256"] = _digest([rows, harness.description(task)])
            path = out / f"{method}-{task}-{_digest(wanted)[:8]}.json"
            work[method].append(Scores(path, wanted, rows, args.limit, args.seed))
    if any(scores.missing for todo in work.values() for scores in todo):
        _run(harness, args, plan, coefficients, work)
    rows = compare([scores.result() for todo in work.values() for scores in todo])
    if args.speed:
        ratios = _speeds(args, methods, plan, coefficients, windows)
        rows = [{**row, "speed_to_dense": ratios.get(row["method"])} for row in rows]
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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Scores:
    """Scores of one method on one task, in a file that grows.

    Args:
        path: the file.
        wanted: what the scores depend on; a file of anything else is begun anew.
        documents: of the task.
        limit: how many of them count, at random; None for all.
        seed: which ones.
    """

    def __init__(
        self, path: Path, wanted: dict[str, Any], documents: list[dict[str, Any]], limit: int | None, seed: int
    ) -> None:
        self.path, self.wanted, self.documents, self.seed = path, wanted, documents, seed
        # At random, as files keep an order in which like items come together; a smaller limit's are among a larger's.
        order = list(range(len(documents)))
        random.Random(seed).shuffle(order)
        self.chosen = order[:limit]
        self.items: dict[int, dict[str, float]] = {}
        self.tokens, self.computed = 0, 0.0
        try:
            found = read_json(path, SCHEMA) if path.is_file() else {}
            if all(found.get(key) == value for key, value in wanted.items()):
                items = {
                    int(index): {metric: float(score) for metric, score in item.items()}
                    for index, item in found["items"].items()
                }
                if len({frozenset(item) for item in items.values()}) > 1:
                    raise ValueError
                tokens, computed = int(found["sparse_tokens"]), float(found["computed_tokens"])
                float(tokens)
                self.tokens, self.computed = tokens, computed
                self.items = items
        except (InputError, KeyError, AttributeError, TypeError, ValueError, OverflowError):
            pass  # cut off or altered: done again

    @property
    def missing(self) -> list[int]:
        """Indices of the documents that count and have no score yet, in the order they are drawn in."""
        return [index for index in self.chosen if index not in self.items]

    def add(self, items: dict[int, dict[str, float]], tokens: int, computed: float) -> None:
        """Add scores, and write the file.

        Args:
            items: by index of the document, its score in every metric.
            tokens: that ran sparse for them.
            computed: neurons that these computed, in tokens' worth of all.
        """
        self.items |= items
        self.tokens, self.computed = self.tokens + tokens, self.computed + computed
        kept = {str(index): self.items[index] for index in sorted(self.items)}
        sums = {"sparse_tokens": self.tokens, "computed_tokens": self.computed}
        write_json(self.path, {**self.wanted, **sums, "items": kept})

    def result(self) -> dict[str, Any]:
        """What `compare` takes; the active share is that of all documents scored so far."""
        indices = sorted(self.chosen)
        names = self.items[indices[0]]
        return {
            **self.wanted,
            "seed": self.seed,
            "indices": indices,
            "items": {name: [self.items[index][name] for index in indices] for name in names},
            "active_fraction": self.computed / self.tokens if self.tokens else 1.0,
        }


def _run(harness: Any, args: argparse.Namespace, plan: Any, coefficients: Any, work: dict[str, list[Scores]]) -> None:
    """Score what is missing, item by item with every method, so that contexts which all run dense run once."""
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_defaults=False)  # or every call reads the descriptions of all the harness' tasks
    lms: dict[str, Any] = {}
    with ExitStack() as stack:
        for method, todo in work.items():
            if any(scores.missing for scores in todo):
                lms[method] = harness.CladaLM(
                    args.model, method, plan or "none", coefficients, args.protocol, args.max_loss, args.keep,
                    args.dtype, args.device, beside=next(iter(lms.values()), None),
                )  # fmt: skip
                stack.callback(lms[method].close)
        total = sum(len(scores.missing) for todo in work.values() for scores in todo)
        with tqdm(total=total, unit="item", file=sys.stderr) as progress:
            for some in zip(*(work[method] for method in lms), strict=True):  # a task's
                lacking = {method: set(scores.missing) for method, scores in zip(lms, some, strict=True)}

                def who(index: int, lacking: dict[str, set[int]] = lacking) -> tuple[str, ...]:
                    return tuple(method for method, missing in lacking.items() if index in missing)

                for asked, indices in itertools.groupby(some[0].chosen, who):
                    for method, lm in lms.items():
                        lm.asked = method in asked
                    chosen = list(indices)
                    for i in range(0, len(chosen) if asked else 0, CHUNK):
                        _run_some(
                            harness,
                            tasks,
                            {method: lms[method] for method in asked},
                            dict(zip(lms, some, strict=True)),
                            chosen[i : i + CHUNK],
                        )
                        progress.update(len(asked) * len(chosen[i : i + CHUNK]))


def _run_some(harness: Any, tasks: Any, lms: dict[str, Any], scores: dict[str, Scores], chosen: list[int]) -> None:
    """Score some documents of a task with some methods."""
    import lm_eval

    def counted(lm: Any) -> tuple[int, float]:
        return (lm.sparse.tokens, lm.sparse.neurons / lm.sparse.policy.weight.size) if lm.sparse else (0, 0.0)

    before = {method: counted(lm) for method, lm in lms.items()}
    found = {}
    for method, lm in lms.items():  # the first one finds the answers of all
        own = scores[method]
        task = harness.local_task(own.wanted["task"], [own.documents[index] for index in chosen])
        metrics = [metric["metric"] for metric in task["metric_list"]]
        done = lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=tasks, bootstrap_iters=0)
        samples = done["samples"][task["task"]]
        found[method] = {chosen[s["doc_id"]]: {m: float(s[m]) for m in metrics} for s in samples}
    for method, lm in lms.items():
        tokens, computed = (now - then for now, then in zip(counted(lm), before[method], strict=True))
        scores[method].add(found[method], int(tokens), computed)


def _windows(model: str, documents: dict[str, list[Any]]) -> list[list[int]]:
    """Text of the tasks to time methods on.

    Raises:
        InputError: there is too little of it.
    """
    texts = [value for rows in documents.values() for row in rows for value in row.values() if isinstance(value, str)]
    tokenizer, size, repeats = load_tokenizer(model), SPEED["prompt_tokens"] + SPEED["new_tokens"], SPEED["repeats"]
    ids = tokenizer("\n\n".join(texts[:2000]), add_special_tokens=False, verbose=False)["input_ids"]
    windows = cut(ids, bos_tokens(tokenizer), size)[:repeats]
    if len(windows) < repeats:
        raise InputError(
            f"the tasks' documents are too short to time methods on: {size * repeats} tokens needed; leave --speed out"
        )
    return windows


def _speeds(
    args: argparse.Namespace, methods: list[str], plan: Any, coefficients: Any, windows: list[list[int]]
) -> dict[str, float]:
    """Decoding speed over dense of every method that has kernels, in interleaved runs on text of the tasks."""
    model, _ = load_model(args.model)
    timed = argparse.Namespace(**SPEED, dtype=args.dtype, max_loss=args.max_loss, keep=args.keep)
    threads = args.threads or available_cores()
    contestants = enter(model, [m for m in methods if m in METHODS], plan, coefficients, timed, threads)
    race(contestants, windows, timed, model, [], threads)
    dense = float(np.median(contestants[0].speeds))
    return {contestant.method: float(np.median(contestant.speeds)) / dense for contestant in contestants}


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per method, task and metric, with the difference to dense on the same items, and the mean over tasks.

    Args:
        results: of each method and task: `items`, a list of scores by metric, and `indices`.

    Returns:
        records: method, task, metric, value, stderr, n, diff_to_dense, diff_ci (95 %, paired bootstrap),
        kept_above_chance (share of dense's value above blind guessing), active_fraction, seed. Task `mean` is of the
        first metric of every task, its interval from resampling the items of each; above chance only of tasks where
        dense is.
    """
    dense = {result["task"]: result for result in results if result["method"] == "dense"}
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        draws, references = [], []
        for result in own:
            task = result["task"]
            # Of its own for every task, the same for every method: the mean's draws are independent over tasks.
            rng = np.random.default_rng([result["seed"], int(_digest(task)[:8], 16)])
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
            value, wanted, _ = (float(v) for v in np.mean(references, 0))
            able = [reference for reference in references if reference[1] > reference[2]]
            rows.append(
                {
                    "method": method,
                    "task": "mean",
                    "metric": "first of each task",
                    "value": value,
                    "stderr": None,
                    "n": sum(len(result["indices"]) for result in own),
                    **_difference(value - wanted, np.mean(draws, 0)),
                    "kept_above_chance": _kept(*np.mean(able, 0)) if able else None,
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


def format_speed(ratio: float | None) -> str:
    """Of a method over dense; empty where it has none."""
    return "" if ratio is None else f"{ratio:.2f}"


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
            *([] if "speed_to_dense" not in row else [format_speed(row["speed_to_dense"])]),
        ]
        for row in rows
    ]
    headers = list(HEADERS[: len(cells[0])])
    if fmt == "csv":
        return pd.DataFrame(cells, columns=headers).to_csv(index=False)
    style = {"markdown": "github", "latex": "latex_booktabs"}[fmt]
    return tabulate(cells, headers, tablefmt=style, disable_numparse=True)
