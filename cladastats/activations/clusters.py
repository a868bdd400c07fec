"""Where shards are computed when it is not here: Dask workers, local, of a scheduler, or of a job queue.

Workers are given token ids and give back parts, which the process that started them writes: they need the model under
its name and no shared disk. A shard whose worker dies is given to another one.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from clada.errors import InputError, StudyError
from cladastats.activations.parts import Part
from cladastats.activations.work import Sequences, Task, Worker

QUEUES = {"slurm": ("SLURMCluster", "sbatch"), "pbs": ("PBSCluster", "qsub"), "lsf": ("LSFCluster", "bsub")}

CONNECT_SECONDS = 10

QUEUED_SHARDS = 2  # shards a worker is given beyond the one it computes

WORKER_DEATHS = 20  # of workers, while computing the same shard, after which the shard is to blame

Results = Iterator[tuple[int, tuple[Part, int]]]

_MODEL_LOCK = threading.Lock()  # a worker may have several threads, a model has one set of hooks


@contextmanager
def measured_on_cluster(
    task: Task, work: Mapping[int, Sequence[Sequences]], name: str
) -> Iterator[tuple[np.ndarray, Results]]:
    """Measure shards on the workers of a cluster, which is there for as long as the block runs.

    Args:
        task: what all of them depend on.
        work: blocks by number of the shard.
        name: of the cluster, see `connect`.

    Yields:
        the norms of the down-projections, as `Worker.norms`, and every shard's number with what `Worker.part` gives,
        in the order in which they are done.

    Raises:
        InputError: no such cluster.
        StudyError: the scheduler is lost, or a shard kills every worker.
    """
    distributed = _distributed()
    with connect(name) as client:
        print(f"cladastats: dashboard {client.dashboard_link}", file=sys.stderr)

        def results() -> Results:
            shards = iter(work.items())
            pending = distributed.as_completed()

            def submit_more() -> None:
                """Give the workers that are there now as much as they can have; those of a queue come one by one."""
                with _loss_as_study_error():
                    limit = max(1, len(client.nthreads())) * (1 + QUEUED_SHARDS)
                    for number, blocks in islice(shards, max(0, limit - pending.count())):
                        pending.add(client.submit(_measure, task, number, list(blocks), pure=False))

            submit_more()
            for future in pending:
                with _loss_as_study_error():
                    result = future.result()
                yield result
                future.release()
                submit_more()

        with _loss_as_study_error():
            norms = client.submit(_norms, task, pure=False).result()
        yield norms, results()


@contextmanager
def _loss_as_study_error() -> Iterator[None]:
    """Turn a lost scheduler, or a shard that kills every worker, into a `StudyError`; whatever was asked of them."""
    distributed = _distributed()
    try:
        yield
    except distributed.KilledWorker:
        raise StudyError(
            "several workers died of the same shard, most likely for want of memory; give them more, and run the same "
            "command again"
        ) from None
    except (CancelledError, distributed.comm.CommClosedError):
        raise StudyError(
            "the scheduler is gone; finished parts are kept: run the same command again when there is one"
        ) from None


@cache
def _open_worker(task: Task) -> Worker:
    return task.worker()


def _norms(task: Task) -> np.ndarray:
    with _MODEL_LOCK:
        return _open_worker(task).norms


def _measure(task: Task, number: int, blocks: list[Sequences]) -> tuple[int, tuple[Part, int]]:
    with _MODEL_LOCK:
        return number, _open_worker(task).part(blocks)


@contextmanager
def connect(name: str) -> Iterator[Any]:
    """A Dask client of a cluster.

    Args:
        name: `local:N`, N processes on this machine; `tcp://HOST:PORT`, a running scheduler; `slurm:FILE`, `pbs:FILE`
            or `lsf:FILE`, jobs of a queue: a JSON object with `jobs`, how many, and the options of dask-jobqueue's
            cluster (`cores`, `memory`, `walltime`, `queue`, ...).

    Raises:
        InputError: none of these, a file that cannot be read, or nobody answers.
    """
    distributed = _distributed()
    kind, _, rest = name.partition(":")
    # Workers that come and go are expected here; what matters is said by us.
    for talker in logging.root.manager.loggerDict:
        if talker == "asyncio" or talker.startswith("distributed"):
            logging.getLogger(talker).setLevel(logging.CRITICAL)
    import dask

    settings = {
        "distributed.scheduler.allowed-failures": WORKER_DEATHS,
        "distributed.comm.timeouts.connect": CONNECT_SECONDS,
    }
    with dask.config.set(settings):
        if kind == "local":
            if not rest.isdecimal() or int(rest) < 1:
                raise InputError(f"--cluster {name}: give the number of processes, as in local:2")
            with (
                distributed.LocalCluster(
                    n_workers=int(rest), threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
                ) as cluster,
                distributed.Client(cluster) as client,
            ):
                yield client
        elif kind in QUEUES:
            cluster_class, options, jobs = read_queue(kind, rest)
            with make_queue(cluster_class, options, rest) as cluster, distributed.Client(cluster) as client:
                cluster.scale(jobs=jobs)
                print(f"cladastats: waiting for the first of {jobs} jobs", file=sys.stderr)
                client.wait_for_workers(1)
                yield client
        elif kind in ("tcp", "tls"):
            try:
                client = distributed.Client(name, timeout=CONNECT_SECONDS)
            except (OSError, ValueError):
                raise InputError(f"no Dask scheduler answers at {name}; start one with 'dask scheduler'") from None
            with client:
                if not client.nthreads():
                    raise InputError(f"the scheduler at {name} has no workers; start some with 'dask worker {name}'")
                yield client
        else:
            raise InputError(f"--cluster {name} is none of local:N, tcp://HOST:PORT, {', '.join(QUEUES)}:FILE")


def read_queue(kind: str, file: str) -> tuple[Callable[..., Any], dict[str, Any], int]:
    """What a file says of a job queue's cluster.

    Args:
        kind: of `QUEUES`.
        file: see `connect`.

    Returns:
        dask-jobqueue's class, its options, and how many jobs.

    Raises:
        InputError: the file cannot be read or has other options, or jobs cannot be submitted here.
    """
    try:
        options = json.loads(Path(file).read_bytes())  # with or without a byte-order mark
        jobs = options.pop("jobs")
        if not (isinstance(jobs, int) and jobs > 0):
            raise ValueError(f"jobs is {jobs!r}")
        if missing := {"cores", "memory"} - set(options):
            raise ValueError(f"no {' and '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as problem:
        raise InputError(
            f"{file} does not describe a {kind} cluster ({problem}); it is a JSON object such as "
            '{"jobs": 8, "cores": 4, "memory": "16GB", "walltime": "04:00:00"}'
        ) from None
    try:
        import dask_jobqueue
    except ImportError:
        raise InputError("job queues need dask-jobqueue; install it with pip install 'clada[cluster]'") from None
    cluster_name, command = QUEUES[kind]
    if shutil.which(command) is None:
        raise InputError(f"there is no {command} here; run this where {kind} jobs are submitted")
    cluster = getattr(dask_jobqueue, cluster_name)
    takers = (*cluster.__mro__, *cluster.job_cls.__mro__)
    known = {name for taker in takers for name in signature(taker.__init__).parameters}
    if unknown := sorted(set(options) - known):
        raise InputError(f"{file}: no option {', '.join(unknown)}; it takes those of dask-jobqueue's {cluster_name}")
    return cluster, options, jobs


def make_queue(cluster: Callable[..., Any], options: dict[str, Any], file: str) -> Any:
    """The cluster of a job queue.

    Raises:
        InputError: an option has a value that dask-jobqueue cannot use.
    """
    try:
        return cluster(**options)
    except (ValueError, TypeError, RuntimeError, OSError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(f"{file} does not describe a cluster ({reason}); mend the option's value") from None


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise InputError("--cluster needs Dask; install it with pip install 'clada[cluster]'") from None
    return distributed
