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
import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clada.errors import InputError
from clada.measure.comparison import prepare, time_all
from clada.measure.scores import SCHEMA, Scores, as_table, compare, digest_of
from clada.measure.texts import cut
from clada.methods.coefficients import resolve_coefficients, to_json
from clada.methods.plan import resolve_plan
from clada.methods.registry import METHODS, with_dense
from clada.models.open import bos_tokens, check_device, load_model, load_tokenizer, model_revision
from clada.system.machine import available_cores, set_threads

CHUNK = 20  # items that are written together, of all methods: a minute's work or two at most is lost

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
    local = _local_tasks()
    folder = Path(args.data)
    tasks = args.tasks or [task for task in local.TASKS if (folder / task).is_dir()]
    if not tasks:
        raise InputError(f"{folder} holds no folder of a known task; there are {', '.join(local.TASKS)}")
    documents = {task: local.read_documents(task, folder) for task in tasks}
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
            wanted["documents_sha256"] = digest_of([rows, local.description(task)])
            path = out / f"{method}-{task}-{digest_of(wanted)[:8]}.json"
            work[method].append(Scores(path, wanted, rows, args.limit, args.seed))
    if any(scores.missing for todo in work.values() for scores in todo):
        _run(local, args, plan, coefficients, work)
    rows = compare([scores.result() for todo in work.values() for scores in todo])
    if args.speed:
        ratios = _speeds(args, methods, plan, coefficients, windows)
        rows = [{**row, "speed_to_dense": ratios.get(row["method"])} for row in rows]
    if args.format == "json":
        shown = {"model": args.model, "dtype": args.dtype, "protocol": args.protocol, "rows": rows}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print(as_table(rows, args.format))


def _local_tasks() -> Any:
    """The module of the tasks, which needs packages that only evaluation needs."""
    try:
        from clada.measure import tasks
    except ImportError as problem:
        remedy = "install them with pip install 'clada[eval]'"
        raise InputError(f"evaluation needs more packages ({problem.name}); {remedy}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return tasks


def _run(local: Any, args: argparse.Namespace, plan: Any, coefficients: Any, work: dict[str, list[Scores]]) -> None:
    """Score what is missing, item by item with every method, so that contexts which all run dense run once."""
    from lm_eval.tasks import TaskManager

    from clada.harness import CladaLM

    tasks = TaskManager(include_defaults=False)  # or every call reads the descriptions of all the harness' tasks
    lms: dict[str, Any] = {}
    with ExitStack() as stack:
        for method, todo in work.items():
            if any(scores.missing for scores in todo):
                lms[method] = CladaLM(
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
                            local,
                            tasks,
                            {method: lms[method] for method in asked},
                            dict(zip(lms, some, strict=True)),
                            chosen[i : i + CHUNK],
                        )
                        progress.update(len(asked) * len(chosen[i : i + CHUNK]))


def _run_some(local: Any, tasks: Any, lms: dict[str, Any], scores: dict[str, Scores], chosen: list[int]) -> None:
    """Score some documents of a task with some methods."""
    import lm_eval

    def counted(lm: Any) -> tuple[int, float]:
        return (lm.sparse.tokens, lm.sparse.neurons / lm.sparse.policy.weight.size) if lm.sparse else (0, 0.0)

    before = {method: counted(lm) for method, lm in lms.items()}
    found = {}
    for method, lm in lms.items():  # the first one finds the answers of all
        own = scores[method]
        task = local.local_task(own.wanted["task"], [own.documents[index] for index in chosen])
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
    entries = prepare(model, [m for m in methods if m in METHODS], plan, coefficients, timed, threads)
    time_all(entries, windows, timed, model, [], threads)
    dense = float(np.median(entries[0].speeds))
    return {entry.method: float(np.median(entry.speeds)) / dense for entry in entries}
