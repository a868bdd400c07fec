"""The wheel: everything of both packages is in it, and it works where the checkout is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("clada", "cladastats")
PLANS = {f"clada/plans/{model}.{kind}" for model in ("smollm2-135m", "gemma3-270m") for kind in ("json", "safetensors")}


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools takes what an earlier build left in the folder into the next wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the wheel, installed; its libraries are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture
def elsewhere(installed, tmp_path):
    """Options of a process that finds the installed packages before the checkout, in an empty folder."""
    return {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(installed)}}


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    described = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cladastats").rglob("*.toml")}
    assert "cladastats/people/descriptions/provo.toml" in described
    page = {f"clada/trace/page.{kind}" for kind in ("html", "css", "js")}
    assert held == modules | described | PLANS | page | {"clada/py.typed", "cladastats/py.typed"}


def test_every_module_is_imported_from_the_wheel(installed, elsewhere):
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    print(name, importlib.import_module(name).__file__)\n"
    paths = {
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__"): str(path)
        for package in PACKAGES
        for path in sorted((installed / package).rglob("*.py"))
        if path.name != "__main__.py"  # runs the command
    }
    found = dict(line.split(" ", 1) for line in run(sys.executable, "-c", code, *paths, **elsewhere).splitlines())
    assert found == paths


def test_the_commands_of_the_wheel_start(installed, elsewhere):
    for program in PACKAGES:
        assert run(installed / "bin" / program, "--help", **elsewhere).startswith(f"usage: {program} ")
        assert run(sys.executable, "-m", program, "--help", **elsewhere).startswith(f"usage: {program} ")
    for module in ("clada.generate", "cladastats.regress"):
        said = run(sys.executable, "-m", module, "--help", **elsewhere)
        assert said.startswith(f"usage: {module.replace('.', ' ')} ")
