"""README, CONTRIBUTING, docs, results and docstrings of rooms: what they name exists, and what exists is named."""

import ast
import re
import shlex
from pathlib import Path

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
TABLES = sorted((ROOT / "figures" / "tables").glob("*.md"))
FOLDERS = ("clada", "cladastats", "docs", "corpora", "notebooks", "figures", "benchmarks", "tests", ".ci")
WIDEST_ROW = 120  # characters: more are no longer one line on a screen
LONGEST_RESULTS = 130  # lines: one page to read; the full tables are beside it

every_page = pytest.mark.parametrize("page", [*PAGES, RESULTS, *TABLES], ids=lambda page: page.name)


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
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


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


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", readme)}
    pages = {page for page in PAGES if page.parent != ROOT / "corpora"}  # whose folder docs/studies.md links
    assert pages - {ROOT / "README.md"} <= linked


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
