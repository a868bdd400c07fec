"""The shape of the code: imports that point one way, small files and functions, rooms that say what they hold."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("clada", "cladastats")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FILES = [*MODULES, *sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))]
ROOMS = sorted(path.parent for path in MODULES if path.name == "__init__.py" and path.parent.parent != ROOT)

MOST_LINES = 600
MOST_LINES_OF_A_FUNCTION = 80
MOST_FILES_OF_A_ROOM = 12
MOST_FILES_OF_A_TOP = 18
# A longer function is allowed where a comment between its name and its first statement begins with these words.
LONG = "# Long, because "


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    """The module that a file is."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_files_are_short():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}


def is_excused(function, lines):
    """Whether a comment before the first statement of a function says why it is long."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    head = lines[function.lineno : first.lineno - 1]
    return any(line.strip().startswith(LONG) for line in head)


def test_functions_are_short():
    long = {}
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_excused(node, lines):
                long[f"{name_of(path)}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: number for name, number in long.items() if number > MOST_LINES_OF_A_FUNCTION} == {}


def test_folders_are_small():
    files = {name_of(room): len(list(room.glob("*.py"))) for room in ROOMS}
    assert {name: number for name, number in files.items() if number > MOST_FILES_OF_A_ROOM} == {}
    tops = {package: sum(path.is_file() for path in (ROOT / package).iterdir()) for package in PACKAGES}
    assert {name: number for name, number in tops.items() if number > MOST_FILES_OF_A_TOP} == {}


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_every_room_says_what_it_holds(room):
    """A first paragraph; a list that may follow it, of a line for each file and room in it, forgets none."""
    said = ast.get_docstring(tree(room / "__init__.py"))
    assert said
    assert said.split("\n\n")[0].endswith(".")
    listed = re.findall(r"^ {4}(\w+(?:\.py|/)) ", said, re.MULTILINE)
    held = {path.name for path in room.glob("*.py")} | {f"{path.parent.name}/" for path in room.glob("*/__init__.py")}
    assert sorted(listed) in ([], sorted(held - {"__init__.py"}))


def names_of(path):
    """The classes and constants at the top of a module."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_has_one_meaning(package):
    """No class is defined twice within a package, nor are the constants that every file could have one of."""
    places = {}
    for path in MODULES:
        if name_of(path).split(".")[0] == package:
            for name in names_of(path):
                places.setdefault(name, []).append(name_of(path))
    twice = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {name: at for name, at in twice.items() if name in ("SCHEMA", "METRICS") or not name.isupper()} == {}


def test_one_module_knows_the_names_of_architectures():
    """Another module that names a model type knows something the table should."""
    types = {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "opt", "gpt2", "gpt_neox", "olmo2",
        "phi3", "smollm3",
    }  # fmt: skip
    knowing = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in types
    }
    # Kinds of vocabulary in GGUF files have names of models.
    assert knowing == {"clada.models.architectures", "clada.models.gguf_statements"}


# -- The contracts of .importlinter ---------------------------------------------------------------------------------


def imports():
    """Each import of one module of the packages by another, in order: (importing, imported)."""
    paths = {name_of(path): path for path in MODULES}
    for name, path in paths.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                for imported in (f"{node.module}.{node.names[0].name}", node.module):
                    if imported in paths:
                        yield name, imported
                        break


def checked(folder):
    """What import-linter says of the packages in a folder: its exit code, what it printed, and of each contract whether
    it is kept."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line.rpartition(" ") for line in done.stdout.splitlines()]
    return done.returncode, done.stdout, {name: word for name, _, word in lines if word in ("KEPT", "BROKEN")}


CONTRACTS = {
    "clada: open < choose < compute < measure < commands",
    "cladastats: results < study < libraries < stages < commands",
    "clada never imports cladastats",
    "no siblings import each other in a circle",
}


def test_imports_keep_the_contracts():
    code, said, contracts = checked(ROOT)
    assert contracts == dict.fromkeys(CONTRACTS, "KEPT"), said
    assert code == 0


def within(package):
    """An import between two layers of a package."""

    def matches(importing, imported):
        of, to = importing.split("."), imported.split(".")
        return of[0] == to[0] == package and len(of) > 1 and len(to) > 1 and of[1] != to[1]

    return matches


def between_siblings(importing, imported):
    """An import between two files of one room, neither of which is the room itself."""
    folders = {importing.rpartition(".")[0], imported.rpartition(".")[0]}
    return len(folders) == 1 and folders & {name_of(room) for room in ROOMS}


@pytest.mark.parametrize(
    ("turned", "broken"),
    [
        (within("clada"), "clada: open < choose < compute < measure < commands"),
        (within("cladastats"), "cladastats: results < study < libraries < stages < commands"),
        (lambda a, b: a.startswith("cladastats.") and b.startswith("clada."), "clada never imports cladastats"),
        (between_siblings, "no siblings import each other in a circle"),
    ],
    ids=["between rooms of clada", "between rooms of cladastats", "between packages", "within a room"],
)
def test_an_import_turned_around_breaks_a_contract(tmp_path, turned, broken):
    """In a copy of the packages the imported module imports the importing one too, within a function."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "plans"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    importing, imported = next(pair for pair in imports() if turned(*pair))
    path = tmp_path.joinpath(*imported.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\ndef late():\n    import {importing}\n", encoding="utf-8")
    code, said, contracts = checked(tmp_path)
    assert contracts[broken] == "BROKEN", said
    assert code == 1
