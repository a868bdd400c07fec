"""The examples of the pages, run: `python docs/examples.py`, which `make docs` calls.

Every block of code of a page is run, in the order of the pages, in one folder that holds the files of `docs/examples`
and stand-ins for what a reader would bring. Commands run in this process, which saves the imports of each. A block of
output that follows a block of code says what must be printed; `...` stands for anything.

A comment before a block changes how it is run:

    <!-- run with: --pairs 6 --length 64 -->      these options are added to its command
    <!-- not run: needs a queue; tests/test_cluster.py -->    the reason, and the test that runs the like
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FILES = Path(__file__).parent / "examples"
LANGUAGES = ("bash", "python", "output")
# Rules of comparison as doctest has them.
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: Where it stands.
        line: Its first line, from 1 on.
        language: `bash`, `python` or `output`, which is what the block before prints.
        code: Its lines.
        options: That are added to its command.
        reason: Why it is not run; empty: it is run.
    """

    page: Path
    line: int
    language: str
    code: str
    options: str = ""
    reason: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command, without comments; `&&` and the end of a line end one, a backslash goes on."""
        lines = self.code.replace("\\\n", " ").splitlines()
        parts = [part for line in lines for part in line.split(" && ")]
        return [words for words in (shlex.split(part, comments=True) for part in parts) if words]

    @property
    def test(self) -> str:
        """The test that runs the like of a block that is not run."""
        return self.reason.rpartition("; ")[2]


def pages() -> list[Path]:
    """The pages with examples, in the order in which a reader meets them."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"^(\.\./corpora/\w+|[\w-]+)$", index, re.MULTILINE)
    return [ROOT / "README.md", *((ROOT / "docs" / f"{name}.md").resolve() for name in named)]


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of `LANGUAGES` of a page."""
    comment, start, language, code = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and not start:
            start, language, code = number + 1, line.strip("`"), []
        elif line.startswith("```"):
            if language in LANGUAGES:
                found = re.fullmatch(r"<!-- (run with|not run): (.*) -->", comment)
                kind, said = found.groups() if found else ("", "")
                options, reason = (said, "") if kind == "run with" else ("", said)
                yield Block(page, start, language, "\n".join(code), options, reason)
            comment, start = "", 0
        elif start:
            code.append(line)
        elif line.strip():
            comment = line


def prepare(folder: Path) -> None:
    """What a reader would bring: the files of the examples, articles, a model in a folder, somebody's study."""
    from clada import load_model
    from clada.models.assets import fetch
    from cladastats.sequences.sources import load_documents

    shutil.copytree(FILES, folder / "docs" / "examples")
    news = load_documents("news").texts[:200]
    lines = (json.dumps({"body": text}) + "\n" for text in news)
    (folder / "articles.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "articles.txt").write_text("\n\n".join(news), encoding="utf-8")
    (folder / "my-model.gguf").symlink_to(fetch("smollm2-135m"))
    for part in load_model("smollm2-135m"):
        part.save_pretrained(folder / "my-model")


class Runner:
    """Runs blocks one after the other; Python blocks of a page share their names."""

    def __init__(self) -> None:
        self.page: Path | None = None
        self.names: dict[str, Any] = {}

    def run(self, block: Block) -> str:
        """What a block prints to stdout.

        Raises:
            AssertionError: A command ended with another exit code than 0.
        """
        if block.page != self.page:
            self.page, self.names = block.page, {}
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with contextlib.redirect_stdout(out):
            if block.language == "python":
                exec(compile(block.code, f"{block.page.name}:{block.line}", "exec"), self.names)
            else:
                for words in block.commands:
                    command([*words, *shlex.split(block.options)])
        out.seek(0)
        return out.read()


def command(words: list[str]) -> None:
    """Run a command of ours in this process.

    Raises:
        AssertionError: It ended with another exit code than 0, or it is none of ours.
    """
    from clada.cli import main as clada
    from cladastats.cli import main as cladastats

    mains: dict[str, Callable[[list[str]], int | None]] = {"clada": clada, "cladastats": cladastats}
    if words[:2] == ["python", "-m"]:
        package, _, name = words[2].partition(".")
        words = [package, name, *words[3:]]
    code: Any = None
    if words[0] == "echo":  # SENTENCE > FILE
        Path(words[3]).write_text(words[1] + "\n", encoding="utf-8")
        return
    try:
        if words[0] in mains:
            code = mains[words[0]](words[1:])
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            script = ROOT / words[1]
            with _arguments([str(script), *words[2:]], script.parent):
                runpy.run_path(str(script), run_name="__main__")
        else:
            raise AssertionError(f"cannot run {shlex.join(words)}")
    except SystemExit as ended:
        code = ended.code
    assert not code, f"exit code {code}: {shlex.join(words)}"


@contextlib.contextmanager
def _arguments(argv: list[str], folder: Path) -> Iterator[None]:
    before, path = sys.argv, list(sys.path)
    sys.argv = argv
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path


def main() -> int:
    """Run all, print a line for each; 1 if one failed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait give way to whoever shares the machine
    only = [Path(name).resolve() for name in sys.argv[1:]]
    checker, runner, failed = doctest.OutputChecker(), Runner(), 0
    ran: set[tuple[str, str]] = set()  # the same commands stand on several pages, and run once
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        os.chdir(folder)
        printed = ""
        for block in (block for page in only or pages() for block in blocks(page)):
            where, begin, problem = f"{block.page.relative_to(ROOT)}:{block.line}", time.perf_counter(), ""
            if block.reason or (block.language == "bash" and (block.code, block.options) in ran):
                continue
            if block.language == "output":
                if not checker.check_output(block.code + "\n", printed, SAME):
                    problem = f"printed\n{printed}"
            else:
                ran.add((block.code, block.options))
                try:
                    printed = runner.run(block)
                except (Exception, AssertionError) as error:
                    problem = f"{type(error).__name__}: {error}"
            failed += bool(problem)
            print(f"{where:36} {time.perf_counter() - begin:6.1f} s  {problem or 'runs'}", flush=True)
        os.chdir(ROOT)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
