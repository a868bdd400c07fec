"""Reading times: corpora in order or refused, the mixed model against statsmodels, effects that were put in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trial_tables import news_sentences, times_of

from clada.errors import InputError
from cladastats import human as module
from cladastats.cli import main
from cladastats.people.corpora import open_corpus
from cladastats.people.results import effect_table, read_results, verdicts

HUMAN = Path(__file__).parents[2] / "shared" / "data" / "human"


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences():
    return news_sentences(60)


@pytest.fixture
def folder(tmp_path, sentences):
    """The user's folder with one corpus."""
    write(tmp_path, times_of(sentences, np.random.default_rng(0)))
    return tmp_path


def write(folder, table, name="ucl_et.part.tsv"):
    table.to_csv(folder / name, sep="\t", index=False, quoting=3)


def changed(folder, change):
    path = folder / "ucl_et.part.tsv"
    table = pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False, na_values=[""])
    write(folder, change(table))


def test_a_corpus_in_order(folder, sentences):
    corpus = open_corpus("ucl_et", folder)
    assert [text.words for text in corpus.texts] == [tuple(words) for words in sentences]
    table = corpus.table
    assert corpus.dropped == 2 * len(sentences)  # the last two words of each
    left = table.groupby("text_id")["word_index"].transform("max") - table["word_index"]
    assert table.loc[left < 2, "gaze_ms"].isna().all()
    assert table.loc[left >= 2, "gaze_ms"].notna().all()
    assert table["sentence_final"].sum() == len(sentences)
    assert table["block"].nunique() == len(sentences)


def test_tables_of_one_corpus_are_read_together(folder, sentences):
    table = pd.read_csv(folder / "ucl_et.part.tsv", sep="\t", quoting=3)
    first = table["text_id"] < "ucl_030"
    write(folder, table[first])
    write(folder, table[~first], "ucl_et.rest.tsv")
    assert len(open_corpus("ucl_et", folder).texts) == len(sentences)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="go_past_ms"), "has no column go_past_ms"),
        (lambda t: pd.concat([t, t[t.index == 17]]), "is there twice (1 such rows)"),
        (lambda t: t.drop(index=3), "give the table and the texts that belong together"),
        (
            lambda t: t.assign(gaze_ms=t["gaze_ms"].astype(object).where(t.index != 5, "n/a?")),
            "holds what is no number",
        ),
        (lambda t: t.assign(word_index=t["word_index"].astype(object).where(t.index != 5, "x")), "column word_index"),
        (lambda t: t.assign(gaze_ms=np.nan), "has 0 values that count of "),
        (lambda t: t.assign(gaze_ms=1.0), "is the same in all "),
        (lambda t: t.assign(gaze_ms=t["gaze_ms"].where(t.index != 5, np.inf)), "holds an infinite number"),
        (lambda t: t[t["text_id"] < "ucl_005"], "and 100 are needed; left out: the last two words of each sentence"),
        (lambda t: t.assign(gaze_ms=t["gaze_ms"] / 1000), "its unit is ms; these may be seconds or logarithms"),
        (lambda t: t.assign(gaze_ms=-t["gaze_ms"]), "are outside 0 to 10000 ms; name their unit, or another range"),
        (lambda t: t.assign(word=t["word"].where(t.index != 5, "")), "row 6 has no word; give every word its row"),
        (lambda t: t.assign(gaze_ms=t.groupby("text_id")["gaze_ms"].shift(-1)), "follows the next word's length"),
        (lambda t: t.assign(gaze_ms=t.groupby("text_id")["gaze_ms"].shift(1)), "frequency of the word before"),
    ],
    ids=[
        "column",
        "twice",
        "lacking",
        "text",
        "index",
        "empty",
        "constant",
        "infinite",
        "few",
        "seconds",
        "negative",
        "blank",
        "one early",
        "one late",
    ],
)
def test_a_table_out_of_order_is_refused_in_one_line(folder, change, message, capsys):
    changed(folder, change)
    assert main(["human", "--corpus", "ucl_et", "--data", str(folder), "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not (folder / "out").exists()


def test_words_must_rebuild_their_text(tmp_path, sentences):
    table = times_of(sentences[:30], np.random.default_rng(1)).rename(columns={"gaze_ms": "gaze_mean0_ms"})
    table = table.assign(first_fix_mean0_ms=table["gaze_mean0_ms"], total_mean0_ms=table["go_past_ms"])
    write(tmp_path, table, "meco_en.tsv")
    lines = [json.dumps({"text_id": f"ucl_{n:03d}", "text": " ".join(w)}) for n, w in enumerate(sentences[:30], 1)]
    texts = tmp_path / "meco_en_text.jsonl"
    texts.write_text("\n".join(lines), encoding="utf-8")
    assert len(open_corpus("meco_en", tmp_path).texts) == 30
    word = sentences[4][3]
    for lost, message in (
        (lines[4].replace(f" {word} ", f" {word}x ", 1), f"word 4 of ucl_005 is '{word}', and '{word}x' in its text"),
        (lines[4].replace('"}', ' More."}'), f"ucl_005 lacks word {len(sentences[4]) + 1}"),
        ("", "has no text of ucl_005"),
        ("{", "line 5: not JSON"),
    ):
        texts.write_text("\n".join([*lines[:4], lost, *lines[5:]]) if lost else "\n".join(lines[:4] + lines[5:]))
        with pytest.raises(InputError, match=message):
            open_corpus("meco_en", tmp_path)


def brain_responses(folder, sentences):
    table = times_of(sentences, np.random.default_rng(3)).rename(
        columns={"gaze_ms": "N400_uV", "go_past_ms": "P600_uV"}
    )
    table = table.assign(
        N400_base_uV=np.random.default_rng(9).normal(0, 9, len(table)), N400_sd=30.0, erp_n=20, excluded_by_authors=0
    )
    lines = [json.dumps({"text_id": f"ucl_{n:03d}", "text": " ".join(w)}) for n, w in enumerate(sentences, 1)]
    (folder / "ucl_erp_text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return table


def test_covariates_that_are_the_same_are_refused_and_nearly_the_same_ones_said(tmp_path, sentences, capsys):
    table = brain_responses(tmp_path, sentences)
    write(tmp_path, table.assign(N400_base_uV=2 * table["N400_uV"] + 1), "ucl_erp.tsv")
    with pytest.raises(InputError, match=r"the columns N400_uV and N400_base_uV of .* are the same up to their unit"):
        open_corpus("ucl_erp", tmp_path)
    noise = np.random.default_rng(4).normal(0, 1, len(table))
    write(tmp_path, table.assign(N400_base_uV=table["N400_uV"] + noise), "ucl_erp.tsv")
    open_corpus("ucl_erp", tmp_path)
    assert "N400_uV and N400_base_uV are nearly the same (r = 1.000" in capsys.readouterr().err
    write(tmp_path, table.assign(N400_base_uV=3.0), "ucl_erp.tsv")
    with pytest.raises(InputError, match=r"the column N400_base_uV of .* is the same in every row that counts"):
        open_corpus("ucl_erp", tmp_path)
    write(tmp_path, table.assign(N400_base_uV=table["N400_uV"] - table["P600_uV"]), "ucl_erp.tsv")
    with pytest.raises(InputError, match=r"the column N400_uV of .* follows from P600_uV, N400_base_uV"):
        open_corpus("ucl_erp", tmp_path)


def test_tables_as_spreadsheets_write_them(folder, sentences, capsys):
    """Ids with zeros, decimal commas, semicolons, quotes, a byte-order mark, and every sign for a missing value."""
    path = folder / "ucl_et.part.tsv"
    table = pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False, dtype=str)
    table["text_id"] = table["text_id"].str[-3:]
    table.loc[4:8, "gaze_ms"] = ["NA", "NaN", ".", "", "N/A"]
    table.loc[3, "word"] = "NA"
    expected = open_corpus("ucl_et", folder).table["gaze_ms"].where(lambda gaze: ~gaze.index.isin(range(4, 9)))
    capsys.readouterr()
    commas = table.assign(**{c: table[c].astype(str).str.replace(".", ",") for c in ("gaze_ms", "go_past_ms")})
    commas.loc[6, "gaze_ms"] = "."
    commas.to_csv(path, sep=";", index=False, encoding="utf-8-sig", quoting=1)
    corpus = open_corpus("ucl_et", folder)
    assert corpus.texts[0].text_id == "001"
    assert corpus.texts[0].words[3] == "NA"
    np.testing.assert_array_equal(corpus.table["gaze_ms"], expected)
    said = capsys.readouterr().err
    assert "has semicolons between its columns" in said
    assert "has numbers with a decimal comma" in said


def test_columns_of_the_users_own_do_not_get_in_the_way(folder):
    changed(folder, lambda t: t.assign(length=1, effort="x", sentence=3))
    table = open_corpus("ucl_et", folder).table
    assert not {"length", "effort"} & set(table)
    assert table["sentence"].nunique() == 1


def test_a_brain_response_needs_its_columns(tmp_path, sentences):
    table = brain_responses(tmp_path, sentences)
    write(tmp_path, table, "ucl_erp.tsv")
    assert len(open_corpus("ucl_erp", tmp_path).measures) == 2
    for column in ("excluded_by_authors", "N400_sd", "N400_base_uV"):
        write(tmp_path, table.drop(columns=column), "ucl_erp.tsv")
        with pytest.raises(InputError, match=f"has no column {column}"):
            open_corpus("ucl_erp", tmp_path)


def test_items_need_their_sentences(tmp_path, sentences):
    rows = [
        (f"i{n}", "HC", words[-1].strip("."), " ".join(words), 800.0 + n, 9.0, 50) for n, words in enumerate(sentences)
    ]
    columns = ["text_id", "condition", "critical_word", "sentence_upto_target", "rt_sum3_mean_ms", "rt_sum3_sd_ms", "n"]
    table = pd.concat([pd.DataFrame(rows, columns=columns).assign(condition=c) for c in ("HC", "LC")])
    write(tmp_path, table, "brothers2021.tsv")
    corpus = open_corpus("brothers2021", tmp_path)
    assert corpus.table["item"].nunique() == len(sentences)
    assert len(corpus.texts) == 2 * len(sentences)
    for change, message in (
        (
            lambda t: t.assign(sentence_upto_target=t["sentence_upto_target"].where(t["text_id"] != "i4")),
            "row 5 has no sentence",
        ),
        (lambda t: t.assign(critical_word="zebra"), "give the table and the texts that belong together"),
    ):
        write(tmp_path, change(table), "brothers2021.tsv")
        with pytest.raises(InputError, match=message):
            open_corpus("brothers2021", tmp_path)


def test_unknown_and_absent_corpora(tmp_path, capsys):
    for name, message in (
        ("dundee", "unknown corpus 'dundee'"),
        ("provo", "has no provo.tsv, provo.*.tsv or Provo_Corpus-Eyetracking_Data.csv; corpora/human.md says where"),
    ):
        assert main(["human", "--corpus", name, "--data", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_goes_on_from_what_is_there(folder, sentences, capsys, monkeypatch):
    monkeypatch.setattr("cladastats.people.gains.SHUFFLES", 19)
    arguments = ["human", "--corpus", "ucl_et", "--data", str(folder), "--out", str(folder / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "gaze_ms" in said
    assert "of 2 measures are predicted better" in said
    out = folder / "out" / "smollm2-135m"
    result = json.loads((out / "ucl_et.json").read_text())
    assert not any(word in json.dumps(result) for word in sentences[0] if len(word) > 6)  # numbers, and no text
    assert result["measures"][0]["words"] > 300
    table = effect_table(out)
    assert list(table["predictor"]) == ["surprisal"] * 2 + ["entropy"] * 2 + ["effort"] * 2
    assert (table["p_holm"] >= table["p"]).all()
    assert len(verdicts(table)) == 4  # surprisal, effort, and effort of each measure

    def never(*_args, **_options):
        raise AssertionError

    monkeypatch.setattr(module, "analyse", never)
    monkeypatch.setattr(module, "measure_texts", never)
    assert main([*arguments, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("corpus,measure,predictor")
    (out / "ucl_et.json").write_text("{")
    assert main(arguments) == 2
    assert "is not a JSON file" in capsys.readouterr().err


@pytest.mark.skipif(not HUMAN.is_dir(), reason="no reading times beside the repository")
def test_known_effects_of_surprisal_come_out(tmp_path):
    """Longer gazes and reading, and a more negative N400, with 95 % intervals that leave out zero."""
    shutil.copytree(HUMAN, tmp_path / "data")
    names = ("naturalstories", "ucl_et", "ucl_erp")
    assert main(["human", "--corpus", ",".join(names), "--data", str(tmp_path / "data"), "--out", str(tmp_path)]) == 0
    seen = 0
    for result in read_results(tmp_path / "smollm2-135m", names):
        for measure in result["measures"]:
            row = measure["rows"][0]
            assert row["predictor"] == "surprisal"
            if measure["sign"]:
                assert measure["sign"] * row["effect"] > 0
                assert row["effect_low"] * row["effect_high"] > 0
                seen += 1
    assert seen == 5
