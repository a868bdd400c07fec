"""The real studies: their list, and the page and the tables of results, which are written from the kept files."""

from pathlib import Path

import pandas as pd
import pytest
import results_page
import results_people
import results_tables
import study as real_studies

ROOT = Path(__file__).parent.parent
STUDIES = real_studies.STUDIES


@pytest.fixture(scope="module")
def kept():
    return results_page.kept_studies(STUDIES)


@pytest.fixture(scope="module")
def people():
    return results_page.kept_models()


def test_the_committed_page_is_what_the_kept_files_say(kept, people):
    """Also that `publish` needs nothing but these files."""
    assert results_page.page(STUDIES, kept, people) == (ROOT / "figures" / "RESULTS.md").read_text(encoding="utf-8")


def test_the_committed_tables_are_what_the_kept_files_say(kept, people, tmp_path):
    """CSV files have six digits, of which the last may be another elsewhere; their columns and rows may not."""
    results_tables.write_tables(tmp_path, kept, STUDIES)
    results_people.write_people_tables(tmp_path, results_page.KEPT / "human", people)
    committed = ROOT / "figures" / "tables"
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in committed.iterdir())
    for name in made:
        if name.endswith(".md"):
            assert (tmp_path / name).read_text(encoding="utf-8") == (committed / name).read_text(encoding="utf-8"), name
        else:
            pd.testing.assert_frame_equal(pd.read_csv(tmp_path / name), pd.read_csv(committed / name), rtol=1e-5)


def test_studies_that_are_not_finished_are_named(people):
    text = results_page.page(STUDIES, [], people)
    assert "No study of these models is finished." in text
    for row in STUDIES:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.name} "))
        assert line.rstrip(" |").endswith("not finished")


def test_a_primary_study_stands_before_the_contrast_in_its_place(kept):
    """A kept study given the part of the primary one: the answer is its, and the stream form has a table of its own."""
    contrast = next(one for one in kept if one.row.model == real_studies.SMOLLM2 and one.row.role == "contrast")
    primary = next(row for row in STUDIES if row.role == "primary" and row.model == contrast.row.model)
    text = results_page.page(STUDIES, [results_tables.Kept(primary, contrast.study), contrast], {})
    assert "**The primary studies are not finished** (news-512-gemma3-270m)." in text
    assert f"`figures/studies/{primary.name}/fits/cka.json`" in text
    assert "The verdicts in the paper's own form, windows of joined documents, by r²" in text
    assert f"`figures/studies/{contrast.row.name}` ({results_tables.separator_share(contrast.study)})" in text
    assert len(text.splitlines()) <= 130  # as tests/test_docs.py asks of the committed page


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"smollm2-135m": "undecided", "gemma3-270m": "undecided"}, "undecided on both models"),
        ({"smollm2-135m": "3 %", "gemma3-270m": "4 %"}, "3 % on SmolLM2-135M and 4 % on Gemma 3 270M"),
        ({"gemma3-270m": "4 %"}, "not yet known on SmolLM2-135M and 4 % on Gemma 3 270M"),
    ],
)
def test_what_is_said_of_models(said, words):
    assert results_tables.on_models(said) == words


def test_a_table_that_is_wider_than_a_screen_is_refused():
    results_tables.markdown(pd.DataFrame({"a": ["x" * 116]}), "narrow")
    with pytest.raises(ValueError, match="the table wide is wider than 120 characters"):
        results_tables.markdown(pd.DataFrame({"a": ["x" * 117]}), "wide")


# -- The list --------------------------------------------------------------------------------------------------------


def test_a_pilot_comes_before_the_studies_that_take_their_margin_from_it():
    names = [row.name for row in STUDIES]
    assert len(set(names)) == len(names)
    for model in real_studies.MODELS:
        roles = [row.role for row in STUDIES if row.model == model]
        assert roles[0] == "pilot"
        assert roles.count("primary") == 1


def test_long_prefixes_are_of_the_same_pairs_as_the_primary_study():
    for primary in (row for row in STUDIES if row.role == "primary"):
        whole = real_studies.whole_of(primary)
        assert whole.name == f"{primary.name}-all"
        assert whole.ratios == (0.25, 0.375, 0.5, 0.75, 0.9, 0.99)
        (longer,) = (row for row in STUDIES if row.role == "long" and row.whole == primary.whole)
        same = ("model", "source", "windows", "length", "pairs", "seed")
        assert [getattr(longer, name) for name in same] == [getattr(primary, name) for name in same]


def test_a_study_is_extracted_by_itself_where_the_others_of_its_pairs_are_kept(tmp_path, monkeypatch):
    primary, longer = (row for row in STUDIES if row.whole == "news-512-smollm2-135m-all")
    monkeypatch.setattr(real_studies, "FOLDER", tmp_path)
    monkeypatch.setattr(real_studies, "KEPT", tmp_path / "kept")
    assert real_studies.shared(longer) == real_studies.whole_of(longer)  # the other one is still to be made
    (tmp_path / "kept" / primary.name).mkdir(parents=True)
    (tmp_path / "kept" / primary.name / "study.json").touch()
    assert real_studies.shared(longer) is None
    assert real_studies.shared(primary) == real_studies.whole_of(primary)
    (tmp_path / longer.whole).mkdir()
    assert real_studies.shared(longer) == real_studies.whole_of(longer)  # here, so that it is taken from it
    assert real_studies.shared(next(row for row in STUDIES if not row.whole)) is None


def test_no_study_without_its_pilot_and_margin(tmp_path, monkeypatch):
    row = next(row for row in STUDIES if row.role == "primary")
    monkeypatch.setattr(real_studies, "FOLDER", tmp_path)
    monkeypatch.setattr(real_studies, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(real_studies, "MARGINS", {})
    with pytest.raises(SystemExit) as stopped:
        real_studies.refuse_without_margin(row)
    assert str(stopped.value) == (
        "news-512-smollm2-135m needs the pilot first; run 'python benchmarks/study.py run pilot-smollm2-135m'"
    )
    (tmp_path / "pilot-smollm2-135m" / "fits").mkdir(parents=True)
    (tmp_path / "pilot-smollm2-135m" / "fits" / "cka.json").touch()
    with pytest.raises(SystemExit, match="news-512-smollm2-135m has no equivalence margin"):
        real_studies.refuse_without_margin(row)
    monkeypatch.setattr(real_studies, "MARGINS", {row.name: (0.1, "the pilot")})
    real_studies.refuse_without_margin(row)
    assert real_studies.margin(row) == {"equivalence_margin": 0.1, "equivalence_margin_source": "the pilot"}


def test_a_source_that_was_not_named_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(real_studies, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match="pilot-smollm2-135m is of XSum documents; name them: --source"):
        real_studies.open_study(STUDIES[0], None)
