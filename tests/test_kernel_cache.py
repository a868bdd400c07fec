"""The kernels' cache: its stamp covers all their sources, its folder is CLADA_CACHE's, and kernels work without it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba import njit
from numba.core.cpu import CPUContext

import clada
from clada.cpu import kernel_cache
from clada.cpu.kernels import arguments, bandwidth, step

PACKAGE = Path(clada.__file__).parent

# Compiles `read_all` alone, in a second or two, and says what its sums are and whether numba compiled it.
READ_ALL = """
import numpy as np
from clada.cpu.kernels.bandwidth import read_all
from clada.cpu.kernels.team import Team
sums = np.zeros((1, 16), np.float32)
Team(1).run(read_all, np.ones(64, np.float32), sums)
print(sums[0, 0], *(sum(n.values()) for n in (read_all.stats.cache_hits, read_all.stats.cache_misses)))
"""


def python(code, folder, **environment):
    """Standard output and error of a fresh process that imports the packages of a folder."""
    env = {**os.environ, "PYTHONPATH": str(folder), **{name: str(value) for name, value in environment.items()}}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of the package, whose sources may be edited."""
    shutil.copytree(PACKAGE, tmp_path / "copy" / "clada", ignore=shutil.ignore_patterns("__pycache__", "plans"))
    return tmp_path / "copy"


def imports_of(file):
    """The modules of ours that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("clada"))
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("clada"):
            yield node.module


def test_every_source_that_kernels_import_is_in_the_stamp():
    """A constant of another module is compiled into the kernels too; so is what the modules of instructions import."""
    seen, files = set(), list(kernel_cache.KERNELS.glob("*.py"))
    while files:
        for name in set(imports_of(files.pop())) - seen:
            seen.add(name)
            # The cache itself decides what is compiled when, not what it is compiled to.
            if name.startswith("clada.cpu.") and name != "clada.cpu.kernel_cache":
                files.append(PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py"))
    outside = {name for name in seen if not name.startswith("clada.cpu.kernels.")}
    assert outside == {module.__name__ for module in kernel_cache.COMPILED_IN} | {"clada.cpu.kernel_cache"}


def test_an_edited_callee_is_compiled_into_its_callers(copied, tmp_path):
    """numba itself looks at the file of the caller only, and would go on with the old code."""
    cache = tmp_path / "cache"
    assert python(READ_ALL, copied, CLADA_CACHE=cache) == ("64.0 0 1\n", "")
    assert python(READ_ALL, copied, CLADA_CACHE=cache) == ("64.0 1 0\n", "")
    (first,) = (cache / "kernels").iterdir()
    assert {file.suffix for file in first.iterdir()} == {".nbi", ".nbc"}
    # `end_call` of team.py is part of the compiled `read_all` of bandwidth.py, which does not change.
    team = copied / "clada" / "cpu" / "kernels" / "team.py"
    text = team.read_text(encoding="utf-8")
    assert text.count("def end_call(t, threads, sync):") == 1
    before, after = text.split("    seen, spins = _atomic_load(sync[2]), 0\n")
    team.write_text(
        f"{before}    sync[2, 7] = 5\n    seen, spins = _atomic_load(sync[2]), 0\n{after}", encoding="utf-8"
    )
    edited = READ_ALL.replace("Team(1).run", "team = Team(1); team.run").replace("sums[0, 0],", "team._sync[2, 7],")
    assert python(edited, copied, CLADA_CACHE=cache) == ("5 0 1\n", "")
    assert len(list((cache / "kernels").iterdir())) == 2
    # The first sources again: what was compiled of them is still there.
    team.write_text(text, encoding="utf-8")
    assert python(READ_ALL, copied, CLADA_CACHE=cache) == ("64.0 1 0\n", "")


@pytest.mark.parametrize("name", ["kernels/vectors.py", "kernels/new.py", "precision.py", "../methods/screen.py"])
def test_the_stamp_changes_with_any_source(copied, name):
    stamp = "from clada.cpu.kernel_cache import source_stamp; print(source_stamp())"
    before, _ = python(stamp, copied)
    assert before == f"{kernel_cache.source_stamp()}\n"  # of content, not of times and places
    with (copied / "clada" / "cpu" / name).open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert python(stamp, copied)[0] != before


def test_all_kernels_and_nothing_else_use_the_cache():
    from numba import njit
    from numba.core.caching import CacheImpl, FunctionCache

    @njit(cache=True)
    def theirs():
        return 1

    assert type(theirs._cache) is FunctionCache
    assert kernel_cache._Locator not in CacheImpl._locator_classes
    for ours in (arguments.box, step.decode_step, bandwidth.read_all):
        assert type(ours._cache) is kernel_cache.KernelCache


def test_damaged_files_are_made_again(copied, tmp_path):
    cache = tmp_path / "cache"
    python(READ_ALL, copied, CLADA_CACHE=cache)
    for suffix in ("nbi", "nbc"):
        (file,) = cache.glob(f"kernels/*/*.{suffix}")
        file.write_bytes(file.read_bytes()[:7])
        assert python(READ_ALL, copied, CLADA_CACHE=cache) == ("64.0 0 1\n", "")
        assert python(READ_ALL, copied, CLADA_CACHE=cache) == ("64.0 1 0\n", "")


def test_where_nothing_can_be_written_kernels_are_compiled_and_it_is_said_once(copied, tmp_path):
    """A container's user without a home. Root may write everywhere, so folders are below a file, which nobody can."""
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "cache"
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_models import tiny_model
from clada import Engine
for _ in range(2):
    engine = Engine(tiny_model("llama"), None, plan="none", coefficients="none", threads=2)
    print(*(step.token_id for step in engine.generate([3, 4, 5], 2)))
"""
    # Compiled without optimisation, which takes less time.
    out, err = python(code, copied, CLADA_CACHE=nowhere, HOME=nowhere, NUMBA_CACHE_DIR="", NUMBA_OPT="0")
    first, second = out.splitlines()
    assert first == second
    (line,) = (line for line in err.splitlines() if line.startswith("clada"))  # beside what torch says about HOME
    folder = nowhere / "kernels" / kernel_cache.source_stamp()[:16]
    assert line == (
        f"clada: compiling the kernels, at every start because {folder} cannot be written to (Not a directory; "
        "set CLADA_CACHE to a folder that you may write to): about half a minute"
    )


def test_a_cache_that_can_only_be_read_is_read(copied, tmp_path):
    """An image that was built with its kernels compiled, run as a user who cannot write there."""
    cache = tmp_path / "cache"
    python(READ_ALL, copied, CLADA_CACHE=cache)
    refusing = """
import os, tempfile
from pathlib import Path
def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
import clada.cpu.kernels.bandwidth
os.makedirs = os.mkdir = os.replace = tempfile.TemporaryFile = refuse
"""
    assert python(refusing + READ_ALL, copied, CLADA_CACHE=cache) == ("64.0 1 0\n", "")
    assert python(refusing + READ_ALL, copied, CLADA_CACHE=tmp_path / "other") == ("64.0 0 1\n", "")


def test_compiling_is_said_only_when_it_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path))

    def double(x):
        return 2 * x

    for said in ("clada: compiling the kernels, once for each precision: about half a minute\n", ""):
        assert kernel_cache.kernel(announce=True)(double)(21) == 42
        assert capsys.readouterr().err == said
    assert kernel_cache.kernel()(double)(1.5) == 3
    assert capsys.readouterr().err == ""
    # Another type: how long the last one took is known by then.
    assert kernel_cache.last_compilation()[1] == 0  # functions that it calls
    (tmp_path / "kernels" / "last-compilation").write_text("41.6 70")
    assert kernel_cache.kernel(announce=True)(double)(1j) == 2j
    assert capsys.readouterr().err == "clada: compiling the kernels, once for each precision: 42 s the last time\n"
    (tmp_path / "kernels" / "last-compilation").write_text("damaged")
    assert kernel_cache.last_compilation() == (0, 0)


def test_that_nothing_can_be_kept_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(kernel_cache.KernelCache, "_said_unwritable", False)
    double = kernel_cache.kernel(announce=True)(lambda x: 2 * x)
    assert (double(21), double(1.5)) == (42, 3)
    first, second = capsys.readouterr().err.splitlines()
    assert "at every start because" in first
    assert second == "clada: compiling the kernels, again: about half a minute"


def test_only_the_whole_kernel_is_wrapped_for_python(tmp_path, monkeypatch):
    """Functions that it calls are linked into it alone; Python that calls one of them compiles it again."""
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path))
    wrapped, wrap = [], CPUContext.create_cpython_wrapper

    def note(context, library, *args, **options):
        wrapped.append(library.name)
        wrap(context, library, *args, **options)

    monkeypatch.setattr(CPUContext, "create_cpython_wrapper", note)

    @njit
    def half(x):
        return x / 2

    @njit
    def quarter(x):
        return half(half(x))

    @kernel_cache.kernel()
    def eighth(x):
        return half(quarter(x))

    assert eighth(20.0) == 2.5
    assert wrapped == [eighth.py_func.__qualname__]
    (code,) = eighth.inspect_llvm().values()
    assert not [line for line in code.splitlines() if line.startswith("define") and "cfunc" in line]
    monkeypatch.undo()
    assert (half(20.0), quarter(20.0), eighth(40.0)) == (10, 5, 5)
