"""Files that were altered: what `benchmarks/fuzz.py` found, each ending in one line or in the same result as before."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest

from clada.errors import InputError, StudyError
from clada.measure.scores import EVALUATION_SCHEMA, Scores
from clada.measure.texts import read_windows
from clada.models.open import load_tokenizer
from clada.system.jsonfile import check_checksum, with_checksum
from cladastats.cli import main
from cladastats.regress import regress
from cladastats.study import Study, is_current, read_table, write_table


def flipped(content, place):
    """The same with one bit another."""
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["corpus.parquet", "activations/index.parquet", "panel-cka.parquet"])
def test_a_table_with_a_flipped_bit_is_refused_or_says_the_same(small_copy, name):
    """Pages have checksums, so that no value changes in silence.

    Names of columns are not in pages; a column of another name is missed where it is used.
    """
    path = small_copy.folder / name
    content, whole = path.read_bytes(), read_table(path)
    refused = []
    for place in np.random.default_rng(1).integers(4, len(content), 120):
        path.write_bytes(flipped(content, int(place)))
        try:
            found = small_copy.table(name, "corpus")
        except StudyError as problem:
            refused.append(str(problem))
        else:
            pd.testing.assert_frame_equal(found.set_axis(whole.columns, axis=1), whole)
        assert is_current(path, "other inputs") is False
    assert len(refused) > 60
    assert not any("\n" in message for message in refused)
    path.write_bytes(content)
    pd.testing.assert_frame_equal(read_table(path), whole)


def test_text_of_a_damaged_study_is_refused(small_copy):
    """The text of a study is read for calibration and benchmarks."""
    tokenizer, revision = load_tokenizer("smollm2-135m"), small_copy.config.revision
    path = small_copy.folder / "corpus.parquet"
    content = path.read_bytes()
    whole, refused = read_windows(str(small_copy.folder), tokenizer, revision, 8, 2), []
    for place in np.random.default_rng(2).integers(4, len(content), 120):
        path.write_bytes(flipped(content, int(place)))
        try:
            assert read_windows(str(small_copy.folder), tokenizer, revision, 8, 2) == whole
        except InputError as problem:
            refused.append(str(problem))
    assert refused
    assert not any("\n" in message for message in refused)


def test_text_that_is_not_utf8_is_found_when_a_table_is_read(tmp_path):
    """Not only when its words are looked at, later and elsewhere."""
    path = tmp_path / "study" / "t.parquet"
    write_table(path, pd.DataFrame({"sequence_id": ["aaaa", "bbbb"]}))
    content = path.read_bytes()
    assert content.count(b"bbbb") >= 1
    path.write_bytes(content.replace(b"bbbb", b"\xff\xfe\xb3\xb3"))
    with pytest.raises(Exception, match=r"(?i)checksum|utf"):
        read_table(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": ["smollm2-135m"]},
        {"model": 1.5},
        {"threads": "2"},
        {"ratios": None},
        {"ratios": ["x"]},
        {"corpus": []},
    ],
    ids=str,
)
def test_a_study_with_a_value_of_another_kind_is_refused(small_copy, change, capsys):
    path = small_copy.folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StudyError, match="is damaged"):
        Study(small_copy.folder)
    assert main(["extract", "--study", str(small_copy.folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "change", [{"items": {"0": {"acc": 1.0}, "1": {"f1": 1.0}}}, {"sparse_tokens": 10**400}, {"computed_tokens": "x"}]
)
def test_scores_that_do_not_fit_together_are_made_again(tmp_path, change):
    wanted = {"schema": EVALUATION_SCHEMA, "method": "dense"}
    kept = {"sparse_tokens": 0, "computed_tokens": 0.0, "items": {"0": {"acc": 1.0}, "1": {"acc": 0.0}}}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({**wanted, **kept}))
    assert Scores(path, wanted, [{}, {}], None, 0).missing == []
    path.write_text(json.dumps({**wanted, **kept, **change}))
    assert sorted(Scores(path, wanted, [{}, {}], None, 0).missing) == [0, 1]


def test_checksums_of_json_see_every_change():
    value = with_checksum({"a": {1: [0.1, None]}, "b": "x"})
    check_checksum(json.loads(json.dumps(value)))
    for change in ({"b": "y"}, {"c": 1}, {"a": {"1": [0.1, 0]}}, {"sha256": "0"}):
        with pytest.raises(ValueError, match="altered"):
            check_checksum(json.loads(json.dumps(value)) | change)
    with pytest.raises(ValueError, match="altered"):
        check_checksum({"a": 1})


def refuse_access(monkeypatch):
    """The folder says that it cannot be written to."""
    monkeypatch.setattr("clada.system.files.os.access", lambda *_args, **_options: False)


def refuse_writing(monkeypatch):
    """The file system turns out to be read-only."""

    def mkstemp(**_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "study")

    monkeypatch.setattr("clada.system.files.tempfile.mkstemp", mkstemp)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("refuse", [refuse_access, refuse_writing])
def test_a_read_only_study_is_shown(small_copy, refuse, monkeypatch, capsys):
    """What is printed does not depend on what can be written; one line says what was not kept."""
    folder = str(small_copy.folder)
    assert main(["regress", "--study", folder, "--format", "latex"]) == 0
    shown = capsys.readouterr().out
    before = contents(small_copy.folder)
    refuse(monkeypatch)
    assert main(["regress", "--study", folder, "--format", "latex"]) == 0
    out, err = capsys.readouterr()
    assert out == shown
    assert out.startswith(r"\begin{table}")
    assert len(err.splitlines()) == 1
    assert err.startswith("cladastats: the fit and its coefficients not kept: ")
    assert regress(small_copy, "cosine", "away").columns  # a fit that the study does not have
    assert capsys.readouterr().err.startswith("cladastats: cosine-away.json not kept: ")
    assert main(["similarity", "--study", folder]) == 0  # the panels are there
    assert main(["run", "--study", folder]) == 0
    out, err = capsys.readouterr()
    assert "Prefix (1,000 tokens)" in out
    assert "cladastats: coefficients and figures not kept: " in err
    assert contents(small_copy.folder) == before
    # A command whose purpose is a file is refused.
    assert main(["figures", "--study", folder]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_full_disk_is_no_read_only_study(small_copy, monkeypatch, capsys):
    def mkstemp(**_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "study")

    monkeypatch.setattr("clada.system.files.tempfile.mkstemp", mkstemp)
    assert main(["regress", "--study", str(small_copy.folder)]) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_a_study_kept_without_its_texts_is_shown(small_copy, capsys):
    """As the repository's studies are: the thresholds of load need the corpus, the table does not."""
    (small_copy.folder / "corpus.parquet").unlink()
    coefficients = (small_copy.folder / "coefficients.json").read_bytes()
    assert main(["regress", "--study", str(small_copy.folder)]) == 0
    out, err = capsys.readouterr()
    assert "Prefix (1,000 tokens)" in out
    assert err.startswith("cladastats: coefficients.json not kept: ")
    assert "has no corpus.parquet" in err
    assert len(err.splitlines()) == 1
    assert (small_copy.folder / "coefficients.json").read_bytes() == coefficients
