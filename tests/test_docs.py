"""README, CONTRIBUTING, docs, results and docstrings of rooms: what they name exists, and what exists is named."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import examples
import pytest

from clada.cli import COMMANDS as CLADA_COMMANDS
from clada.system.commandline import Parser
from cladastats.cli import COMMANDS as CLADASTATS_COMMANDS

ROOT = Path(__file__).parent.parent
COMMANDS = {"clada": CLADA_COMMANDS, "cladastats": CLADASTATS_COMMANDS}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(path for folder in ("docs", "corpora") for path in (ROOT / folder).glob("*.md")),
]
RESULTS = ROOT / "figures" / "RESULTS.md"
MEASURED = [ROOT / "figures" / name for name in ("SPEED.md", "QUALITY.md")]
TABLES = sorted((ROOT / "figures" / "tables").glob("*.md"))
FOLDERS = ("clada", "cladastats", "docs", "corpora", "notebooks", "figures", "benchmarks", "tests", ".ci")
WIDEST_ROW = 120  # characters: more are no longer one line on a screen
LONGEST_README = 150  # lines
LARGEST_README = 9_000  # bytes
LONGEST_RESULTS = 130  # lines: one page to read; the full tables are beside it

every_page = pytest.mark.parametrize(
    "page", [*PAGES, RESULTS, *MEASURED, *TABLES], ids=lambda page: str(page.relative_to(ROOT))
)


def prose_and_code(page):
    """The lines of a page outside of code blocks, and those within."""
    prose, code, fenced = [], [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        else:
            (code if fenced or line.startswith("    ") else prose).append(line)
    assert not fenced, f"{page.name} has a code block without an end"
    return prose, code


def spans(page):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", "\n".join(prose_and_code(page)[0]))


def anchors(page):
    """What links to headings of a page are called."""
    headings = [line.lstrip("# ") for line in prose_and_code(page)[0] if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(page):
    """(package, arguments) of every command of ours in a page's code, one after the other on a line included."""
    code = "\n".join(line.strip() for line in prose_and_code(page)[1]).replace("\\\n", " ")
    for line in code.splitlines():
        for part in re.split(r" && | \| ", line):
            words = shlex.split(part, comments=True) if re.match(r"(python -m )?clada", part) else []
            if ">" in words:
                words = words[: words.index(">")]
            if words[:2] == ["python", "-m"]:
                package, _, name = words[2].partition(".")
                if name in COMMANDS[package]:  # not `clada.harness`, whose options are lm_eval's
                    yield package, [name, *words[3:]]
            elif words and words[0] in COMMANDS:
                yield words[0], words[1:]


def parser_of(package, name):
    parser = Parser(prog=f"{package} {name}")
    COMMANDS[package][name][1](parser)
    return parser


def options_of(package, name):
    return {option for action in parser_of(package, name)._actions for option in action.option_strings}


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_README
    assert len(text.encode()) <= LARGEST_README
    assert [line for line in text.splitlines() if len(line) > WIDEST_ROW] == []


def test_results_are_one_page():
    assert len(RESULTS.read_text(encoding="utf-8").splitlines()) <= LONGEST_RESULTS


def test_every_table_is_linked_from_the_results():
    """Pages from the results, CSV files from a page."""
    linked = {
        (page.parent / target).resolve()
        for page in (RESULTS, *TABLES)
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    }
    there = {path for path in (ROOT / "figures" / "tables").iterdir() if path.suffix in (".md", ".csv")}
    assert there  # so that a change of its place does not leave the tests without any table
    assert there <= linked


def test_every_page_is_listed_and_the_readme_leads_to_the_list():
    index = ROOT / "docs" / "index.md"
    listed = {
        (index.parent / f"{name}.md").resolve()
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(encoding="utf-8"), re.DOTALL)
        for name in block.split()  # its options too, which are no files
    }
    assert {*PAGES, RESULTS, *MEASURED, *TABLES} - {ROOT / "README.md", index} <= listed
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index.read_text("utf-8"))}
    assert {path for path in PAGES if path.parent == index.parent} - {
        index
    } <= linked  # lists alone are no links on GitHub
    assert "](docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


# -- Examples: `make docs` runs them ----------------------------------------------------------------------------------

EXAMPLES = [block for page in examples.pages() for block in examples.blocks(page)]
of_examples = pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"{block.page.name}:{block.line}")


def test_every_page_with_a_command_has_its_examples_run():
    """So that no command stands where nothing runs it: in another kind of block, or on a page without a place."""
    run = {(block.page, tuple(words)) for block in EXAMPLES if block.language == "bash" for words in block.commands}
    for page in PAGES:
        for package, words in command_lines(page):
            forms = {(page, (package, *words)), (page, ("python", "-m", f"{package}.{words[0]}", *words[1:]))}
            assert forms & run, f"{page.name}: {package} {' '.join(words)}"


@of_examples
def test_an_example_that_is_not_run_names_a_test_of_its_commands(block):
    if not block.reason:
        return
    path = ROOT / block.test
    assert path.is_file(), f"{block.page.name}:{block.line} names {block.test}"
    tested = path.read_text(encoding="utf-8")
    for words in block.commands:
        if words[0] in COMMANDS:
            assert re.search(rf"\b{words[1]}\b", tested), f"{block.test} has no '{words[1]}'"


def test_options_for_examples_are_added_and_reasons_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run with: --pairs 2 -->\n```bash\nclada a \\\n  b && clada c  # why\n```\n\n```output\nx\n```\n\n"
        "<!-- not run: slow; tests/test_x.py -->\n```python\n1\n```\n\n```toml\ny\n```\n",
        encoding="utf-8",
    )
    first, output, last = examples.blocks(page)
    assert (first.line, first.options, first.commands) == (3, "--pairs 2", [["clada", "a", "b"], ["clada", "c"]])
    assert (output.language, output.code, output.options, output.reason) == ("output", "x", "", "")
    assert (last.language, last.reason, last.test) == ("python", "slow; tests/test_x.py", "tests/test_x.py")


def test_an_example_that_fails_is_said(tmp_path, capsys, monkeypatch):
    page = examples.ROOT / "docs" / "words.md"
    found = [
        examples.Block(page, 1, "python", "print(1 + 1)"),
        examples.Block(page, 2, "output", "2"),
        examples.Block(page, 3, "output", "3"),
        examples.Block(page, 4, "bash", "clada nothing"),
        examples.Block(page, 5, "python", "undefined", reason="not run"),
    ]
    monkeypatch.setattr(examples, "pages", lambda: [page])
    monkeypatch.setattr(examples, "blocks", lambda _page: found)
    monkeypatch.setattr(examples, "prepare", lambda _folder: None)
    monkeypatch.setattr("sys.argv", ["examples.py"])
    monkeypatch.chdir(tmp_path)
    assert examples.main() == 1
    said = [line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("docs/words.md")]
    assert len(said) == 4
    assert [line.endswith("runs") for line in said] == [True, True, False, False]


# -- Changes ------------------------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere_and_has_its_changes():
    import clada
    import cladastats

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\S+) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert re.findall(r"^## (.*)$", changes, re.MULTILINE)[0] == "Unreleased"
    kinds = set(re.findall(r"^### (.*)$", changes, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert {clada.__version__, cladastats.__version__, cited, versions[0]} == {project}


# -- Numbers ------------------------------------------------------------------------------------------------------

# Versions of Python, the paper's number, and constants of rules that are explained where they stand.
NO_RESULTS = {"3.11", "3.13", "2502.19078"}


@pytest.mark.parametrize(
    "name", ["README.md", "docs/start.md", "docs/findings.md", "docs/speed-and-quality.md", "docs/decode.md"]
)
def test_a_number_in_prose_is_in_a_table_of_results(name):
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", "\n".join(prose_and_code(ROOT / name)[0]))
    numbers = set(re.findall(r"\d+\.\d+", prose)) - NO_RESULTS
    tables = "\n".join(path.read_text(encoding="utf-8") for path in (RESULTS, *MEASURED, *TABLES))
    assert {number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", tables)} == set()


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose_and_code(page)[0])):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


@every_page
def test_paths_exist(page):
    """Of what stands in backticks, that which begins with a folder of the repository (`clada/plan/3` is a schema)."""
    named = [s for s in spans(page) if re.fullmatch(r"[\w.*/-]+", s) and s.partition("/")[0] in FOLDERS and "/" in s]
    named = [s for s in named if not re.search(r"/\d+$", s)]
    named += re.findall(r"python (benchmarks/\w+\.py)", page.read_text(encoding="utf-8"))
    missing = [s for s in named if not list(ROOT.glob(s.rstrip("/")))]
    assert missing == []


@every_page
def test_command_lines_parse(page):
    for package, (name, *arguments) in command_lines(page):
        parser_of(package, name).parse_args(arguments)  # ends the test with the parser's message where it cannot


def test_command_lines_are_found():
    """The README's, so that a change of its form does not leave the test above without any."""
    assert [(package, arguments[0]) for package, arguments in command_lines(ROOT / "README.md")] == [
        ("cladastats", "words"),
        ("cladastats", "human"),
        ("cladastats", "run"),
        ("cladastats", "regress"),
        ("clada", "generate"),
    ]


@every_page
def test_options_exist(page):
    """Of `clada generate --chat` that command's, of `--chat` alone any command's; the paper's have underscores."""
    everywhere = {
        option for package, names in COMMANDS.items() for name in names for option in options_of(package, name)
    }
    for span in spans(page):
        words = span.split()
        known = everywhere
        if words[0] in COMMANDS and len(words) > 1:
            known = options_of(words[0], words[1])
        elif not words[0].startswith("--"):
            continue
        unknown = {w for w in words if re.fullmatch(r"--[a-z-]+", w)} - known
        assert not unknown, f"{page.name}: `{span}`"


@every_page
def test_tables_fit_a_screen(page):
    assert [line for line in prose_and_code(page)[0] if line.startswith("|") and len(line) > WIDEST_ROW] == []


def test_the_documentation_lists_what_the_code_has():
    """Each family, method, precision and metric, by the name that users give."""
    from clada.cpu import precision
    from clada.methods import registry
    from clada.models import architectures
    from cladastats.similarities import metrics

    pages = {"models": {*architectures.FAMILIES}, "engine": {*registry.EVALUATED, *precision.PRECISIONS}}
    by_name = (name for name, metric in metrics.METRICS.items() if metric.estimator is None)
    pages["statistics"] = {*by_name, *metrics.ESTIMATORS}
    for page, names in pages.items():
        first_cells = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.M)
        named = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
        assert names <= named, f"docs/{page}.md lacks {', '.join(sorted(names - named))}"


def test_the_readme_names_every_file_and_folder():
    """Of the two packages: each room, and each file beside them, has its line in the tree."""
    tree = re.search(r"```\n(clada/ .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    named, top = set(), ""
    for line in tree.splitlines():
        path = line.split()[0]
        top = path if not line.startswith(" ") else top
        named.add(path if path == top else top + path)
    there = {f"{package}/" for package in COMMANDS}
    for package in COMMANDS:
        for path in (ROOT / package).iterdir():
            if path.is_dir() and any(path.glob("*.*")) and path.name != "__pycache__":
                there.add(f"{package}/{path.name}/")
            elif path.suffix == ".py" and not path.name.startswith("__"):
                there.add(f"{package}/{path.name}")
    assert there == {path for path in named if path.split("/")[0] in COMMANDS}
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "room",
    [init.parent for package in COMMANDS for init in sorted((ROOT / package).rglob("*/__init__.py"))],
    ids=lambda room: str(room.relative_to(ROOT)),
)
def test_a_room_names_its_files_and_what_it_must_not_know(room):
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    names = {f"{path.name}{'/' * path.is_dir()}" for path in room.iterdir()} - {"__init__.py", "__pycache__/"}
    assert set(re.findall(r"^ {4}(\S+) ", said, re.MULTILINE)) == names
    assert re.search(r"Must not (know|run)", said)
