"""Reading times: corpora in order or refused, the mixed model against statsmodels, effects that were put in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clada.errors import InputError
from cladastats import human as module
from cladastats.cli import main
from cladastats.people.corpora import open_corpus
from cladastats.people.results import effect_table, read_results, verdicts
from cladastats.sequences.sources import load_documents

HUMAN = Path(__file__).parents[2] / "shared" / "data" / "human"


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences():
    """Sentences of the news, as lists of words."""
    found = []
    for text in load_documents("news").texts:
        for line in text.replace("\n", " ").split(". "):
            words = f"{line.strip()}.".split()
            if 8 <= len(words) <= 14 and line.isascii():
                found.append(words)
        if len(found) >= 60:
            return found[:60]
    raise AssertionError


def times_of(sentences, rng):
    """A table as of eye-tracking: time grows with the length of a word, a little with that of the one before."""
    rows = []
    for number, words in enumerate(sentences, 1):
        for index, word in enumerate(words, 1):
            spill = len(words[index - 2]) if index > 1 else 0
            gaze = 200 + 12 * len(word) + 4 * spill + rng.normal(0, 15)
            rows.append((f"ucl_{number:03d}", index, word, round(gaze, 3), round(gaze + abs(rng.normal(0, 40)), 3)))
    return pd.DataFrame(rows, columns=["text_id", "word_index", "word", "gaze_ms", "go_past_ms"])


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
        (lambda t: t.assign(gaze_ms=np.nan), "has 0 different values at 0 words"),
        (lambda t: t.assign(gaze_ms=1.0), "has 1 different values"),
        (lambda t: t.assign(gaze_ms=t["gaze_ms"].where(t.index != 5, np.inf)), "holds an infinite number"),
        (lambda t: t[t["text_id"] < "ucl_005"], "words are needed"),
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


def test_columns_of_the_users_own_do_not_get_in_the_way(folder):
    changed(folder, lambda t: t.assign(length=1, effort="x", sentence=3))
    table = open_corpus("ucl_et", folder).table
    assert not {"length", "effort"} & set(table)
    assert table["sentence"].nunique() == 1


def test_a_brain_response_needs_its_columns(tmp_path, sentences):
    table = times_of(sentences, np.random.default_rng(3)).rename(
        columns={"gaze_ms": "N400_uV", "go_past_ms": "P600_uV"}
    )
    table = table.assign(N400_base_uV=0.1 * table["P600_uV"], N400_sd=30.0, erp_n=20, excluded_by_authors=0)
    lines = [json.dumps({"text_id": f"ucl_{n:03d}", "text": " ".join(w)}) for n, w in enumerate(sentences, 1)]
    (tmp_path / "ucl_erp_text.jsonl").write_text("\n".join(lines), encoding="utf-8")
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
        ("provo", "has no provo.tsv, provo.*.tsv or Provo_Corpus"),
    ):
        assert main(["human", "--corpus", name, "--data", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


# -- published formats: files made after the authors' descriptions --------------------------------------------------


def test_published_files_are_averaged_over_participants(tmp_path, sentences):
    """Each reader on a file of its format: three participants, with skips, rejected trials and numbers that jump."""
    rng = np.random.default_rng(2)
    table = times_of(sentences[:30], rng)
    people = [table.assign(subj=n, time=(table["gaze_ms"] + rng.normal(0, 5, len(table))).round(1)) for n in (1, 2, 3)]
    rows = pd.concat(people, ignore_index=True)
    rows["sentence"] = rows["text_id"].str[-3:].astype(int)
    skipped = (rows["subj"] == 1) & (rows["word_index"] == 4)
    expected = rows[~skipped].groupby(["text_id", "word_index"])["time"].mean()
    with_zero = rows["time"].where(~skipped, 0.0).groupby([rows["text_id"], rows["word_index"]]).mean()

    def check(name, column, want, prefix):
        found = open_corpus(name, tmp_path).table.set_index(["text_id", "word_index"])[column].dropna()
        want = want.rename(lambda text: prefix + text[-3:].lstrip("0").zfill(2), level=0)
        assert len(found) > 100
        np.testing.assert_allclose(found, want.loc[found.index])

    pd.DataFrame(
        {
            "subj_nr": rows["subj"], "sent_nr": rows["sentence"], "word_pos": rows["word_index"],
            "word": rows["word"] + " ",
            "RTfirstpass": rows["time"].where(~skipped, 0), "RTgopast": rows["time"].where(~skipped, 0) * 2,
        }
    ).to_csv(tmp_path / "eyetracking.RT.txt", sep="\t", index=False, quoting=3)  # fmt: skip
    check("ucl_et", "gaze_ms", expected, "ucl_")

    pd.DataFrame(
        {
            "sent_nr": rows["sentence"], "word_pos": rows["word_index"], "word": rows["word"], "N400": rows["time"],
            "baseline": 1.0 + rows["subj"], "reject_data": skipped.astype(int),
            "reject_word": (rows["word_index"] == 1).astype(int),
        }
    ).to_csv(tmp_path / "data_EEG.csv", sep="\t", index=False, quoting=3)  # fmt: skip
    check("ucl_erp", "N400_uV", expected, "ucl_")
    corpus = open_corpus("ucl_erp", tmp_path)
    assert [measure.column for measure in corpus.measures] == ["N400_uV"]  # a P600 is not published there
    assert corpus.dropped == 30

    pd.DataFrame(
        {
            "Participant_ID": rows["subj"], "Text_ID": rows["sentence"],
            "IA_ID": rows["word_index"] + (rows["word_index"] > 5),
            "IA_LABEL": rows["word"] + " ", "IA_SKIP": skipped.astype(int), "IA_FIRST_RUN_DWELL_TIME": rows["time"],
            "IA_FIRST_FIXATION_DURATION": rows["time"], "IA_REGRESSION_PATH_DURATION": rows["time"],
            "IA_DWELL_TIME": rows["time"],
        }
    ).to_csv(tmp_path / "Provo_Corpus-Eyetracking_Data.csv", index=False, encoding="cp1252")  # fmt: skip
    check("provo", "gaze_ms", expected, "provo_")

    pd.DataFrame(
        {
            "lang": np.where(rows["subj"] < 4, "en", "ee"), "trialid": rows["sentence"], "ianum": rows["word_index"],
            "ia": rows["word"], "skip": skipped.astype(int), "firstrun.skip": skipped.astype(int),
            "firstrun.dur": rows["time"], "firstfix.dur": rows["time"], "dur": rows["time"],
        }
    ).to_csv(tmp_path / "joint_data_trimmed.csv", index=False)  # fmt: skip
    check("meco_en", "gaze_mean0_ms", with_zero, "meco_en_")

    words = table.assign(zone=table["word_index"], item=table["text_id"].str[-3:].astype(int))
    words[["word", "zone", "item"]].to_csv(tmp_path / "all_stories.tok", sep="\t", index=False, quoting=3)
    pd.DataFrame(
        {"WorkerId": rows["subj"], "correct": 5, "item": rows["sentence"], "zone": rows["word_index"],
         "RT": rows["time"].where(~skipped, 5000.0), "word": rows["word"]}
    ).to_csv(tmp_path / "processed_RTs.tsv", sep="\t", index=False, quoting=3)  # fmt: skip
    check("naturalstories", "spr_rt_mean_ms", expected, "naturalstories_")

    for name in ("eyetracking.RT.txt", "data_EEG.csv", "Provo_Corpus-Eyetracking_Data.csv", "joint_data_trimmed.csv"):
        content = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text(
            "\n".join([content[0].replace("word", "wrd").replace("IA_LABEL", "L").replace("ia,", "i,"), *content[1:]])
        )
    for corpus_name in ("ucl_et", "ucl_erp", "provo", "meco_en"):  # a column is named otherwise
        with pytest.raises(InputError, match="has no column"):
            open_corpus(corpus_name, tmp_path)
    times = pd.read_csv(tmp_path / "processed_RTs.tsv", sep="\t", quoting=3)
    times["RT"] = times["RT"].astype(object).where(times.index != 3, "slow")
    times.to_csv(tmp_path / "processed_RTs.tsv", sep="\t", index=False, quoting=3)
    with pytest.raises(InputError, match=r"the column RT of .* holds what is no number"):
        open_corpus("naturalstories", tmp_path)


def test_published_rows_without_a_word_do_not_count(tmp_path, sentences):
    table = times_of(sentences[:30], np.random.default_rng(5)).assign(subj_nr=1)
    table["sent_nr"] = table["text_id"].str[-3:].astype(int)
    table = table.rename(columns={"word_index": "word_pos", "gaze_ms": "RTfirstpass", "go_past_ms": "RTgopast"})
    table.loc[3, "word"] = None
    table.to_csv(tmp_path / "eyetracking.RT.txt", sep="\t", index=False, quoting=3)
    words = open_corpus("ucl_et", tmp_path).texts[0].words
    assert words == (*sentences[0][:3], *sentences[0][4:])
    table.assign(word=None).to_csv(tmp_path / "eyetracking.RT.txt", sep="\t", index=False, quoting=3)
    with pytest.raises(InputError, match="has no row with a text, a number and a word"):
        open_corpus("ucl_et", tmp_path)


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
