"""`clada evaluate`: what leaving out costs in task accuracy, by method and task, each against dense on the same items.

One file per method and task holds the score of every item so far, so that an interrupted run goes on, a larger
`--limit` adds items to those there, and a table can be made again. Differences to dense are paired, by a bootstrap over
items, as all methods answer the same ones.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from clada.cli import main as cli

    raise SystemExit(cli(["evaluate", *sys.argv[1:]]))

import argparse
import importlib.metadata
import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from clada.errors import InputError
from clada.measure.comparison import prepare, time_all
from clada.measure.scores import EVALUATION_SCHEMA, Scores, as_table, compare, digest_of
from clada.measure.texts import cut
from clada.methods.coefficients import Coefficients, coefficients_for, to_json
from clada.methods.plan import Plan, resolve_plan
from clada.methods.registry import METHODS, check_leaves_out, with_dense
from clada.models.open import bos_tokens, check_device, load_model, load_tokenizer, model_revision
from clada.system.jsonfile import json_line
from clada.system.machine import available_cores, set_threads

if TYPE_CHECKING:
    from clada.harness import CladaLM  # needs the extra `eval`

CHUNK = 20  # items that are written together, of all methods: a minute's work or two at most is lost

SPEED = {"prompt_tokens": 256, "new_tokens": 64, "repeats": 7, "batch_size": 1}  # of `--speed`, as in `clada bench`


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    methods = with_dense(args.methods)
    for method in methods:
        check_leaves_out(method)
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative; give 0 or more")
    if args.speed and args.device != "cpu":
        raise InputError("--speed times the kernels, which run on the CPU; leave it or --device out")
    check_device(args.device)
    tasks = _tasks_module()
    documents = _documents(tasks, args)
    revision = model_revision(args.model)
    plan = None if methods == ["dense"] else resolve_plan(args.plan, args.model, revision, args.max_loss)
    coefficients = coefficients_for(args.coefficients, args.model)
    set_threads(args.threads or available_cores())
    windows = _windows(args.model, documents) if args.speed else []
    scores = {method: _stored_scores(tasks, args, method, plan, coefficients, documents) for method in methods}
    if any(task.missing for of_method in scores.values() for task in of_method):
        _score_missing(tasks, args, plan, coefficients, scores)
    rows = compare([task.result() for of_method in scores.values() for task in of_method])
    if args.speed:
        ratios = _speeds(args, methods, plan, coefficients, windows)
        rows = [{**row, "speed_to_dense": ratios.get(row["method"])} for row in rows]
    if args.format == "json":
        print(json_line({"model": args.model, "dtype": args.dtype, "protocol": args.protocol, "rows": rows}))
    else:
        print(as_table(rows, args.format))


def _tasks_module() -> ModuleType:
    """`clada.measure.tasks`, which needs packages that only evaluation needs."""
    try:
        from clada.measure import tasks
    except ImportError as problem:
        remedy = "install them with pip install 'clada[eval]'"
        raise InputError(f"evaluation needs more packages ({problem.name}); {remedy}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return tasks


def _documents(tasks: ModuleType, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The documents of every task asked for, or that there is a folder of."""
    folder = Path(args.data)
    names = args.tasks or [task for task in tasks.TASKS if (folder / task).is_dir()]
    if not names:
        raise InputError(f"{folder} holds no folder of a known task; there are {', '.join(tasks.TASKS)}")
    return {task: tasks.read_documents(task, folder) for task in names}


def _stored_scores(
    tasks: ModuleType,
    args: argparse.Namespace,
    method: str,
    plan: Plan | None,
    coefficients: Coefficients,
    documents: dict[str, list[dict[str, Any]]],
) -> list[Scores]:
    """What earlier runs scored of a method, task by task; a file's name says what its scores depend on."""
    common: dict[str, Any] = {
        "schema": EVALUATION_SCHEMA,
        "model": args.model,
        "revision": model_revision(args.model),
        "dtype": args.dtype,
        "harness": importlib.metadata.version("lm_eval"),
    }
    if method != "dense":  # which is the same under both protocols
        common |= {"protocol": args.protocol, "max_loss": args.max_loss, "keep": args.keep}
        common |= {"coefficients": to_json(coefficients), "plan": None if plan is None else plan.digest()}
    folder = Path(args.out) / f"{Path(args.model).name}-{args.dtype}"
    scores = []
    for task, rows in documents.items():
        identity = {**common, "method": method, "task": task}
        identity["documents_sha256"] = digest_of([rows, tasks.description(task)])
        path = folder / f"{method}-{task}-{digest_of(identity)[:8]}.json"
        scores.append(Scores(path, identity, rows, args.limit, args.seed))
    return scores


def _score_missing(
    tasks: ModuleType,
    args: argparse.Namespace,
    plan: Plan | None,
    coefficients: Coefficients,
    scores: dict[str, list[Scores]],
) -> None:
    """Score what is missing, item by item with every method, so that contexts which all run dense run once."""
    from lm_eval.tasks import TaskManager

    from clada.harness import CladaLM

    manager = TaskManager(include_defaults=False)  # or every call reads the descriptions of all the harness' tasks
    lms: dict[str, CladaLM] = {}
    with ExitStack() as stack:
        for method, of_method in scores.items():
            if any(task.missing for task in of_method):
                lms[method] = CladaLM(
                    args.model, method, plan or "none", coefficients, args.protocol, args.max_loss, args.keep,
                    args.dtype, args.device, beside=next(iter(lms.values()), None),
                )  # fmt: skip
                stack.callback(lms[method].close)
        total = sum(len(task.missing) for of_method in scores.values() for task in of_method)
        with tqdm(total=total, unit="item", file=sys.stderr) as progress:
            for of_task in zip(*(scores[method] for method in lms), strict=True):
                by_method = dict(zip(lms, of_task, strict=True))
                for chunk_methods, indices in _chunks(by_method):
                    for method, lm in lms.items():
                        lm.together = method in chunk_methods
                    _score_chunk(tasks, manager, {method: lms[method] for method in chunk_methods}, by_method, indices)
                    progress.update(len(chunk_methods) * len(indices))


def _chunks(scores: dict[str, Scores]) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Of one task: items in the order they are drawn in, at most `CHUNK`, with the methods that all lack them."""
    missing = {method: set(of_method.missing) for method, of_method in scores.items()}

    def lacking(index: int) -> tuple[str, ...]:
        return tuple(method for method, indices in missing.items() if index in indices)

    for methods, group in itertools.groupby(next(iter(scores.values())).sample, lacking):
        indices = list(group)
        for i in range(0, len(indices) if methods else 0, CHUNK):
            yield methods, indices[i : i + CHUNK]


def _score_chunk(
    tasks: ModuleType, manager: Any, lms: dict[str, CladaLM], scores: dict[str, Scores], indices: list[int]
) -> None:
    """Score some documents of a task with some methods."""
    import lm_eval

    def counted(lm: CladaLM) -> tuple[int, float]:
        return (lm.sparse.tokens, lm.sparse.neurons / lm.sparse.policy.weight.size) if lm.sparse else (0, 0.0)

    before = {method: counted(lm) for method, lm in lms.items()}
    items = {}
    for method, lm in lms.items():  # the first one finds the answers of all
        of_method = scores[method]
        task = tasks.local_task(of_method.identity["task"], [of_method.documents[index] for index in indices])
        metrics = [metric["metric"] for metric in task["metric_list"]]
        result = lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
        samples = result["samples"][task["task"]]
        items[method] = {indices[s["doc_id"]]: {m: float(s[m]) for m in metrics} for s in samples}
    for method, lm in lms.items():
        tokens, computed = (now - then for now, then in zip(counted(lm), before[method], strict=True))
        scores[method].add(items[method], int(tokens), computed)


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
    args: argparse.Namespace,
    methods: list[str],
    plan: Plan | None,
    coefficients: Coefficients,
    windows: list[list[int]],
) -> dict[str, float]:
    """Decoding speed over dense of every method that has kernels, in interleaved runs on text of the tasks."""
    model, _ = load_model(args.model)
    timed = argparse.Namespace(**SPEED, dtype=args.dtype, max_loss=args.max_loss, keep=args.keep)
    threads = args.threads or available_cores()
    entries = prepare(model, [m for m in methods if m in METHODS], plan, coefficients, timed, threads)
    time_all(entries, windows, timed, model, [], threads)
    dense = float(np.median(entries[0].speeds))
    return {entry.method: float(np.median(entry.speeds)) / dense for entry in entries}
