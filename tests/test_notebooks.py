"""Notebooks: executed without warnings, and cells that a reader can copy. `make check` tests those it has executed."""

import ast
import builtins
import json
import os
import re
import symtable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXECUTED = Path(os.environ.get("CLADA_NOTEBOOKS", ROOT / "notebooks"))
NAMES = (
    "01_flocking", "02_cognitive_load", "03_visual_evidence", "04_from_coefficients_to_engine", "05_human_reading",
    "06_your_own_experiment",
)  # fmt: skip
OF_A_STUDY = NAMES[:4]


def code_cells(folder, name):
    cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source_of(cell):
    return "".join(line for line in cell["source"] if not line.startswith("%"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_executed_from_top_to_bottom_without_warnings(name):
    cells = code_cells(EXECUTED, name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    # Warnings are on stderr. Where words are measured there are progress bars and notes too, meant to be read.
    told = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stderr")
    assert not [line for line in told.splitlines() if re.search("warning", line, re.IGNORECASE)]
    assert told == "" or name not in OF_A_STUDY


@pytest.mark.parametrize("name", OF_A_STUDY)
def test_a_cell_runs_by_itself_on_the_study_that_it_names(name):
    for cell in code_cells(ROOT / "notebooks", name):
        table = symtable.symtable(source_of(cell), name, "exec")
        # Jupyter itself knows `display`.
        known = {"STUDY", "display", *vars(builtins)} | {s.get_name() for s in table.get_symbols() if s.is_assigned()}
        known |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_imported()}
        assert not {symbol for scope in scopes(table) for symbol in global_names(scope)} - known, source_of(cell)


def scopes(table):
    return [table, *(scope for child in table.get_children() for scope in scopes(child))]


def global_names(table):
    top = table.get_type() == "module"
    return [s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())]


@pytest.mark.parametrize("name", OF_A_STUDY)
def test_the_study_is_a_kept_one_or_the_readers_own(name, monkeypatch):
    chosen = source_of(code_cells(ROOT / "notebooks", name)[0])
    line = next(node for node in ast.parse(chosen).body if isinstance(node, ast.Assign))
    code = compile(ast.Module([line], []), name, "exec")

    def study():
        names = {"os": os}
        exec(code, names)
        return names["STUDY"]

    monkeypatch.delenv("CLADA_STUDY", raising=False)
    assert study() == "../figures/studies/news-512-smollm2-135m"
    assert (ROOT / "notebooks" / study() / "study.json").is_file()
    monkeypatch.setenv("CLADA_STUDY", "mine")
    assert study() == "mine"
