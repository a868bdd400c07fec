"""The pages of speed and of quality: written from the stored results alone, and as committed."""

import json
from pathlib import Path

import measured
import pytest
import quality_page
import speed_page
import speed_rows

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("page", "name"), [(speed_page, "SPEED"), (quality_page, "QUALITY")])
def test_the_committed_page_is_what_the_stored_results_say(page, name):
    assert page.report() == (ROOT / "figures" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [*speed_page.TABLES, *speed_page.OLDER], ids=lambda table: table.title)
def test_a_table_has_results_for_each_of_its_patterns(table):
    assert [pattern for pattern in table.files if not list(speed_rows.RESULTS.glob(pattern))] == []
    assert len(table.text().splitlines()) > len(table.about.splitlines()) + 5


def test_cells_of_a_row():
    """By hand: the ratio of both speeds, the bytes of dense over the method's, the share of prefill."""
    dense = {"method": "dense", "tokens_per_s": 50.0, "bytes_per_token": 300.0, "prefill_s": 1.0}
    row = {**dense, "method": "clada", "tokens_per_s": 100.0, "bytes_per_token": 200.0, "prefill_s": 10.24}
    run = {"model": "m", "dtype": "int8", "prompt_tokens": 512, "batch_size": 1, "bandwidth_gb_s": 30.0}
    (made,) = speed_rows.beside_dense({"speed-int8-2.json": {**run, "rows": [dense, row]}})
    assert (made["dense"], made["bytes"], made["budget"], made["new"]) == (50.0, 1.5, "2 %", 1024)
    assert made["prefill_share"] == 0.5  # 10.24 s beside 1,024 tokens at 100 a second


def test_rounds_of_several_runs_are_pooled_and_their_ratios_taken_round_by_round():
    runs = [
        {"dtype": "int8", "rows": [method("dense", [10, 40]), method("clada", [20, 40])], "peers": [peer([5, 10])]},
        {"dtype": "int8", "rows": [method("dense", [20]), method("clada", [60])], "peers": [peer([10])]},
    ]
    stored = {f"speed-int8-2-run{number}.json": run for number, run in enumerate(runs, 1)}
    found = {row["engine"]: row for row in speed_rows.engines(stored)}
    # Ratios of the rounds: 10/5, 40/10, 20/10 and 20/5, 40/10, 60/10.
    assert found["other X"] == {"dtype": "int8", "engine": "other X", "speed": 10.0, "dense": 2.0, "clada": 4.0}
    (row,) = speed_rows.plans(stored)
    assert (row["ratio"], row["runs"], row["budget"]) == (2.0, "1.50 to 3.00", "2 %")


def method(name, speeds):
    return {"method": name, "tokens_per_s_all": speeds, "bytes_per_token": 1.0}


def peer(speeds):
    return {"name": "other", "dtype": "X", "tokens_per_s_all": speeds}


def test_a_result_that_was_not_noted_is_refused_until_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "NOTES", tmp_path / "measured.json")
    (tmp_path / "measured.json").write_text("{}\n", encoding="utf-8")
    result = tmp_path / "x.json"
    result.write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^x\.json: when was this measured\? Write the page anew, which notes it$"):
        measured.when_and_where([result])
    measured.note([result])
    noted = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))["x.json"]
    assert measured.when_and_where([result]) == f"{noted['date']} on {noted['machine']}"
    result.write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit, match="when was this measured"):
        measured.when_and_where([result])
