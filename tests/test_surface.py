"""The public surface, and what an import or --help may load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import clada
import cladastats
from clada.cli import COMMANDS as CLADA_COMMANDS
from cladastats.cli import COMMANDS as CLADASTATS_COMMANDS

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "numpy", "pandas", "scipy", "numba", "matplotlib", "linearmodels", "pyarrow"}


def loaded_after(code):
    """Which heavy packages a fresh interpreter has loaded after running code."""
    script = f"{code}\nimport sys; print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return HEAVY & set(done.stderr.split())


def test_public_surface_is_frozen():
    assert clada.__all__ == ["CladaError", "Coefficients", "Engine", "Plan", "Step", "Trace", "load_model", "sparse"]
    assert cladastats.__all__ == ["Fit", "Study", "mixed_model", "word_table"]
    assert list(CLADA_COMMANDS) == ["generate", "calibrate", "evaluate", "bench"]
    assert list(CLADASTATS_COMMANDS) == [
        "run", "corpus", "extract", "merge", "verify", "similarity", "controls", "placebo", "regress", "words",
        "human", "figures",
    ]  # fmt: skip
    for package in (clada, cladastats):
        for name in package.__all__:
            assert getattr(package, name).__module__.split(".")[0] == package.__name__
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing


def test_notebooks_show_their_figures():
    """Figures are made without pyplot, so that nothing but the magic makes Jupyter show them as images."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 6
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = next(cell for cell in cells if cell["cell_type"] == "code")
        assert first["source"][0].strip() == "%matplotlib inline", path


@pytest.mark.parametrize("package", ["clada", "cladastats"])
def test_importing_a_package_loads_nothing_heavy(package):
    assert loaded_after(f"import {package}") == set()


@pytest.mark.parametrize(
    "command",
    [
        *(("clada", *args) for args in ([], *([name] for name in CLADA_COMMANDS))),
        *(("cladastats", *args) for args in ([], *([name] for name in CLADASTATS_COMMANDS))),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(command):
    package, *rest = command
    arguments = [*rest, "--help"]
    code = f"from {package}.cli import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert end.code == 0"
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "module",
    ["clada", *(f"clada.{n}" for n in CLADA_COMMANDS), "cladastats", *(f"cladastats.{n}" for n in CLADASTATS_COMMANDS)],
)
def test_every_stage_is_a_module_whose_help_loads_nothing_heavy(module):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--help"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & HEAVY
    assert done.stdout.startswith(f"usage: {module.replace('.', ' ')}")
