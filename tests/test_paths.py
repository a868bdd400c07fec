"""Studies at URLs: the same stages, the same bytes as in a folder. `memory://` is fsspec's own store of files."""

import pytest
from upath import UPath

from clada.errors import InputError
from clada.system.files import as_path, local_copy, replacing
from cladastats.cli import main
from cladastats.study import Study

URL = "memory://bucket/study"


@pytest.fixture(autouse=True)
def _empty_store():
    yield
    store = UPath("memory://bucket")
    if store.exists():
        store.fs.rm("/bucket", recursive=True)


def content(study):
    """What every file of a study holds, by its place in it."""
    return {
        f"{file.parent.name}/{file.name}"
        if file.parent.name in ("activations", "fits")
        else file.name: file.read_bytes()
        for pattern in ("*.parquet", "*.json", "fits/*.json", "activations/*")
        for file in study.folder.glob(pattern)
    }


def test_a_study_at_a_url_is_the_study_of_a_folder(tiny_study, monkeypatch):
    """Every stage of `run`, then the whole of it again, which finds all of it done."""
    size = ("--pairs", "6", "--length", "64", "--seed", "3")
    arguments = ["run", "--study", URL, "--model", tiny_study.config.model, *size]
    assert main(arguments) == 0
    here, there = content(tiny_study), content(Study(URL))
    own = {"coefficients.json", "study.json"}  # the folder's name is in one; the versions of packages in both
    assert there.keys() - {"population-cka.parquet"} <= here.keys()
    for name in there.keys() - own:
        assert there[name] == here[name], name
    assert {"activations/part-00000.safetensors", "panel-cka.parquet", "fits/cka.json"} <= there.keys()
    sent = []
    put = type(UPath(URL).fs).put_file
    monkeypatch.setattr(
        type(UPath(URL).fs),
        "put_file",
        lambda self, here, path, **more: (sent.append(path), put(self, here, path, **more)),
    )
    assert main(arguments) == 0
    assert not [path for path in sent if "activations" in path or "panel" in path or "corpus" in path]
    assert any("fits" in path for path in sent)  # which are made anew each time


def test_verify_extract_and_population_cka_work_at_a_url(tiny_copy, capsys):
    for file in (tiny_copy.folder / "activations").iterdir():
        with replacing(UPath(URL) / "activations" / file.name) as temporary:
            temporary.write_bytes(file.read_bytes())
    for name in ("corpus.parquet", "study.json"):
        (UPath(URL) / name).write_bytes((tiny_copy.folder / name).read_bytes())
    assert main(["verify", "--study", URL]) == 0
    part = UPath(URL) / "activations" / "part-00001.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-40])
    assert main(["verify", "--study", URL]) == 2
    assert f"{URL}/activations/part-00001.safetensors: is truncated or altered" in capsys.readouterr().out
    assert main(["extract", "--study", URL]) == 0
    assert part.read_bytes() == whole
    assert main(["similarity", "--study", URL, "--estimator", "population"]) == 0
    assert main(["similarity", "--study", str(tiny_copy.folder), "--estimator", "population"]) == 0
    kept = "population-cka.parquet"
    assert (UPath(URL) / kept).read_bytes() == (tiny_copy.folder / kept).read_bytes()


def test_parts_extracted_at_a_url_are_merged_into_a_folder(tiny_copy):
    """And the other way round the copy is one file at a time."""
    parts = tiny_copy.folder / "activations"
    expected = {file.name: file.read_bytes() for file in parts.iterdir()}
    for file in (*parts.iterdir(), tiny_copy.folder / "study.json", tiny_copy.folder / "corpus.parquet"):
        target = UPath(URL) / file.relative_to(tiny_copy.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    for file in parts.iterdir():
        file.unlink()
    assert main(["merge", "--study", str(tiny_copy.folder), URL, "--verify"]) == 0
    assert {file.name: file.read_bytes() for file in parts.iterdir()} == expected


def test_nothing_is_uploaded_when_writing_fails():
    def write():
        with replacing(UPath(URL) / "a.json") as temporary:
            temporary.write_text("{")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write()
    assert not (UPath(URL) / "a.json").exists()


def test_a_file_url_is_a_path_and_an_unknown_protocol_one_line(tmp_path, capsys):
    (tmp_path / "x").write_text("here")
    path = as_path(f"file://{tmp_path}/x")
    assert path == tmp_path / "x"
    with local_copy(path) as file:
        assert file == path
    with pytest.raises(InputError, match="cannot use nosuch://a/b: "):
        as_path("nosuch://a/b")
    assert main(["extract", "--study", "nosuch://a/b"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["extract", "--study", "memory://bucket/none"]) == 2
    assert "memory://bucket/none is not a study (no study.json)" in capsys.readouterr().err


def test_a_connection_that_breaks_is_one_line(small_study, monkeypatch, capsys):
    UPath(URL).mkdir(parents=True)
    (UPath(URL) / "study.json").write_bytes((small_study.folder / "study.json").read_bytes())

    def broken(self, *arguments, **options):
        raise RuntimeError("connection reset\nby peer")

    monkeypatch.setattr(type(UPath(URL).fs), "_open", broken)
    assert main(["verify", "--study", URL]) == 2
    expected = f"cannot read {URL}/study.json: connection reset; run the same command again"
    assert [expected in line for line in capsys.readouterr().err.splitlines()] == [True]
