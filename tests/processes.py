"""Processes that start at once: forked from one that has loaded the libraries, and nothing of the packages.

Loading torch, transformers and the rest takes several seconds of a core; a test that starts six processes would spend
most of its time on that. What a module does under `python -m` it does here in a process of its own too: with arguments,
folder, environment, standard output and error, signals and exit code of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LIBRARIES = [
    "torch",
    "transformers.cache_utils",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.tokenization_gpt2",
    "scipy.stats",
    "pandas",
    "pyarrow.parquet",
    "statsmodels.api",
    "linearmodels",
    "matplotlib.figure",
    "seaborn",
    "numba",
    "gguf",
    "ftfy",
    "tqdm.auto",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES)


class Running:
    """A started module.

    Attributes:
        pid: of its process.
    """

    def __init__(self, process: multiprocessing.process.BaseProcess, out: Path, err: Path) -> None:
        self._process, self._out, self._err = process, out, err
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has said so far on standard error."""
        return self._err.read_text()

    def wait(self, seconds: float = 1800) -> int:
        """Wait until it ends; the limit only ends a test that hangs."""
        self._process.join(seconds)
        assert self.returncode is not None, f"still running after {seconds} s: {self.stderr}"
        return self.returncode


def _run(module: str, arguments: list[str], out: str, err: str, folder: str, environment: dict[str, str]) -> None:
    for number, path in ((1, out), (2, err)):
        with Path(path).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # A shell that runs the tests in the background lets its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextmanager
def running(
    folder: Path, module: str, *arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`python -m module arguments` in the background; it is gone afterwards, with its children.

    Args:
        folder: for what it prints.
        module: its name.
        arguments: of the command line.
        cwd: its working folder; None for this process's.
        environment: variables; None for this process's.
    """
    number = len(list(folder.glob("process-*.out")))
    out, err = (folder / f"process-{number}.{kind}" for kind in ("out", "err"))
    for path in (out, err):
        path.touch()
    given = [*map(str, arguments)], str(out), str(err), str(cwd or Path.cwd()), dict(environment or os.environ)
    process = _context.Process(target=_run, args=(module, *given))
    process.start()
    try:
        yield Running(process, out, err)
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.join()


def finished(folder: Path, module: str, *arguments: object, **options: object) -> Running:
    """`python -m module arguments`, waited for."""
    with running(folder, module, *arguments, **options) as process:
        process.wait()
    return process
