"""Files of trials as authors publish them, made after their descriptions: read, kept apart by reader, checked."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
import rdata
from trial_tables import news_sentences, trials_of

from clada.errors import InputError
from cladastats.people.corpora import open_corpus
from cladastats.people.description import (
    FAMILY,
    FOLDER,
    SOURCES,
    Measure,
    People,
    Source,
    Trials,
    WordFile,
    described,
    read_description,
)

COUNT = 30


@pytest.fixture(scope="module")
def sentences():
    return news_sentences(COUNT)


@pytest.fixture
def rows(sentences):
    return trials_of(sentences, np.random.default_rng(2))


def write_provo(folder, rows, **changes):
    frame = pd.DataFrame(
        {
            "RECORDING_SESSION_LABEL": "x", "Participant_ID": "Sub" + rows["subj"].astype(str).str.zfill(2),
            "Text_ID": rows["sentence"], "IA_ID": rows["word_index"] + (rows["word_index"] > 5),
            "IA_LABEL": rows["word"] + " ", "IA_SKIP": rows["skipped"].astype(int),
            "IA_FIRST_RUN_DWELL_TIME": rows["time"].astype(object).where(~rows["skipped"], "NA"),
            "IA_FIRST_FIXATION_DURATION": rows["time"], "IA_REGRESSION_PATH_DURATION": rows["time"],
            "IA_DWELL_TIME": rows["time"],
        }
    )  # fmt: skip
    frame.assign(**changes).to_csv(folder / "Provo_Corpus-Eyetracking_Data.csv", index=False, encoding="cp1252")


def write_ucl_et(folder, rows):
    pd.DataFrame(
        {
            "subj_nr": rows["subj"], "sent_nr": rows["sentence"], "word_pos": rows["word_index"],
            "word": rows["word"] + " ", "RTfirstpass": rows["time"].where(~rows["skipped"], 0),
            "RTgopast": rows["time"].where(~rows["skipped"], 0) * 2,
        }
    ).to_csv(folder / "eyetracking.RT.txt", sep="\t", index=False, quoting=3)  # fmt: skip


def write_ucl_erp(folder, rows):
    pd.DataFrame(
        {
            "subj_nr": rows["subj"], "sent_nr": rows["sentence"], "word_pos": rows["word_index"],
            "word": rows["word"], "N400": rows["time"], "baseline": 1.0 + rows["subj"] + 0.01 * rows["time"] % 1,
            "reject_data": rows["skipped"].astype(int), "reject_word": (rows["word_index"] == 1).astype(int),
        }
    ).to_csv(folder / "data_EEG.csv", sep="\t", index=False, quoting=3)  # fmt: skip


def meco_frame(rows, sample="en", number="ianum", word="ia"):
    return pd.DataFrame(
        {
            "uniform_id": sample + "_" + rows["subj"].astype(str), "lang": sample, "trialid": rows["sentence"],
            number: rows["word_index"], word: rows["word"], "skip": rows["skipped"].astype(int),
            "firstrun.skip": rows["skipped"].astype(int), "firstrun.dur": rows["time"], "firstfix.dur": rows["time"],
            "firstrun.gopast": rows["time"], "dur": rows["time"],
        }
    )  # fmt: skip


def write_naturalstories(folder, rows):
    words = rows[rows["subj"] == 1]
    table = pd.DataFrame({"word": words["word"], "zone": words["word_index"], "item": words["sentence"]})
    table.to_csv(folder / "all_stories.tok", sep="\t", index=False, quoting=3)
    pd.DataFrame(
        {
            "WorkerId": "A" + rows["subj"].astype(str), "correct": 6 - (rows["subj"] == 4) * 3,
            "item": rows["sentence"], "zone": rows["word_index"], "RT": rows["time"].where(~rows["skipped"], 5000.0),
            "word": rows["word"],
        }
    ).to_csv(folder / "processed_RTs.tsv", sep="\t", index=False, quoting=3)  # fmt: skip


def means(rows, values):
    return values.groupby([rows["sentence"], rows["word_index"]]).mean()


def check(corpus, column, want, prefix):
    """Means over the readers of a corpus are those wanted, where its description counts a word."""
    table = corpus.table
    found = table[column].groupby([table["text_id"], table["word_index"]]).mean().dropna()
    numbers = found.index.get_level_values(0).str.removeprefix(prefix).astype(int)
    assert len(found) > 100
    np.testing.assert_allclose(found, want.loc[list(zip(numbers, found.index.get_level_values(1), strict=True))])


@pytest.mark.parametrize(
    ("name", "column", "write"),
    [
        ("ucl_et", "gaze_ms", write_ucl_et),
        ("ucl_erp", "N400_uV", write_ucl_erp),
        ("provo", "gaze_ms", write_provo),
        ("naturalstories", "spr_rt_mean_ms", write_naturalstories),
    ],
)
def test_trials_are_kept_or_averaged(tmp_path, rows, sentences, capsys, name, column, write):
    write(tmp_path, rows)
    counted = rows[rows["subj"] < 4] if name == "naturalstories" else rows  # the fourth answered too little
    expected = means(counted[~counted["skipped"]], counted.loc[~counted["skipped"], "time"])
    prefix = "ucl_" if name.startswith("ucl") else f"{name}_"
    corpus = open_corpus(name, tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        f"cladastats: the reader of {name}'s published files was written from the authors' description and never tried "
        "on the original files"
    )
    assert corpus.table["subject"].nunique() == counted["subj"].nunique()
    assert len(corpus.table) == len(counted)
    assert [text.words for text in corpus.texts] == [tuple(words) for words in sentences]
    check(corpus, column, expected, prefix)
    average = open_corpus(name, tmp_path, average=True)
    assert "subject" not in average.table
    assert len(average.table) == sum(map(len, sentences))
    check(average, column, expected, prefix)
    assert average.texts == corpus.texts


def test_ucl_erp_has_no_p600_and_keeps_the_authors_exclusions(tmp_path, rows):
    write_ucl_erp(tmp_path, rows)
    corpus = open_corpus("ucl_erp", tmp_path)
    assert [measure.column for measure in corpus.measures] == ["N400_uV"]
    assert corpus.dropped == 4 * COUNT  # the first word of each sentence, of four readers
    assert open_corpus("ucl_erp", tmp_path, average=True).dropped == COUNT
    assert corpus.table.loc[corpus.table["word_index"] == 1, "N400_uV"].isna().all()


def test_averages_have_their_spread(tmp_path, rows):
    write_ucl_erp(tmp_path, rows)
    table = open_corpus("ucl_erp", tmp_path, average=True).table
    place = (table["text_id"] == "ucl_02") & (table["word_index"] == 4)  # which the first reader rejected
    there = rows[(rows["sentence"] == 2) & (rows["word_index"] == 4) & ~rows["skipped"]]["time"]
    assert table.loc[place, "erp_n"].item() == 3
    assert table.loc[place, "N400_sd"].item() == pytest.approx(there.std())


def test_only_native_speakers_of_ucl_count(tmp_path, rows, capsys):
    write_ucl_et(tmp_path, rows)
    open_corpus("ucl_et", tmp_path)
    assert "eyetracking.subj.txt is not there to say which participants count (age_en)" in capsys.readouterr().err
    pd.DataFrame({"subj_nr": [1, 2, 3, 4], "age_en": [0, 0, 7, 0]}).to_csv(
        tmp_path / "eyetracking.subj.txt", sep="\t", index=False
    )
    corpus = open_corpus("ucl_et", tmp_path)
    assert set(corpus.table["subject"]) == {"1", "2", "4"}
    assert "1 participants do not count, by eyetracking.subj.txt" in capsys.readouterr().err


# -- MECO, OneStop ------------------------------------------------------------------------------------------------


def test_meco_counts_a_skip_as_zero_or_not_at_all(tmp_path, rows):
    both = pd.concat([meco_frame(rows), meco_frame(rows[rows["subj"] < 3], "du")])
    both.to_csv(tmp_path / "joint_data_trimmed.csv", index=False)
    corpus = open_corpus("meco_en", tmp_path)
    assert corpus.table["subject"].str.startswith("en_").all()
    check(corpus, "gaze_mean0_ms", means(rows, rows["time"].where(~rows["skipped"], 0.0)), "meco_en_")


@pytest.mark.parametrize("form", ["csv", "rda"])
def test_a_sample_of_meco_is_read_from_r_and_from_text(tmp_path, rows, form):
    frame = pd.concat([meco_frame(rows, "en", "wordnum", "word"), meco_frame(rows, "du", "wordnum", "word")])
    gap = frame.iloc[[5]].assign(wordnum=99, word="")  # a double space between two sentences
    frame = pd.concat([frame, gap.assign(dur=np.nan)], ignore_index=True)
    if form == "csv":
        frame.to_csv(tmp_path / "joint_l1_data_trimmed_version2.1.csv", index=False)
    else:
        plain = frame.astype(dict.fromkeys(("uniform_id", "word"), object)).astype({"lang": "category"})
        rdata.write_rda(tmp_path / "joint_l1_data_trimmed_version2.1.rda", {"joint.data": plain})
    source = described("meco_du")
    assert source.language == "nl"
    corpus = open_corpus(str(english_meco(tmp_path)), tmp_path)
    assert set(corpus.table["subject"]) == {f"du_{n}" for n in range(1, 5)}
    check(corpus, "gaze_ms", means(rows[~rows["skipped"]], rows.loc[~rows["skipped"], "time"]), "own_du_")


def english_meco(folder):
    """The description of MECO with its Dutch sample said to be English, as its words are here."""
    text = (FOLDER / "meco.toml").read_text().replace('name = "meco"', 'name = "own"').replace('du = "nl"', 'du = "en"')
    (folder / "own.toml").write_text(text)
    return f"{folder / 'own.toml'}:du"


def test_an_r_file_without_its_reader_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "joint_l1_data_trimmed_version2.1.rda").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(InputError, match=r"is an R file; install its reader with pip install 'clada\[people\]'"):
        open_corpus("meco_ge", tmp_path)


def test_a_damaged_r_file_is_refused(tmp_path):
    (tmp_path / "joint_data_trimmed_wave2_version2.1.rda").write_bytes(b"RDX3\nno")
    with pytest.raises(InputError, match=r"cannot read .*wave2_version2.1.rda: .*; get it anew"):
        open_corpus("meco2_da", tmp_path)


def test_one_stop_is_read_with_the_points_of_eyelink(tmp_path, rows):
    frame = pd.DataFrame(
        {
            "participant_id": "l" + rows["subj"].astype(str) + "_7",
            "unique_paragraph_id": "1_" + rows["sentence"].astype(str) + "_Adv_1", "IA_ID": rows["word_index"],
            "IA_LABEL": rows["word"], "IA_SKIP": rows["skipped"].astype(int),
            "IA_FIRST_RUN_DWELL_TIME": rows["time"].astype(object).where(~rows["skipped"], "."),
            "IA_FIRST_FIXATION_DURATION": rows["time"].astype(object).where(~rows["skipped"], "."),
            "IA_REGRESSION_PATH_DURATION": rows["time"].astype(object).where(~rows["skipped"], "."),
            "IA_DWELL_TIME": rows["time"].where(~rows["skipped"], 0), "gpt2_surprisal": 1.0,
        }
    )  # fmt: skip
    frame.to_csv(tmp_path / "ia_Paragraph_ordinary.csv", index=False)
    corpus = open_corpus("onestop", tmp_path)
    assert len(corpus.measures) == 4
    assert corpus.table["total_ms"].isna().sum() == rows["skipped"].sum()
    assert "onestop_1_1_Adv_1" in {text.text_id for text in corpus.texts}


# -- what goes wrong ----------------------------------------------------------------------------------------------


def late(rows, reader, sentence=None):
    """One reader's words numbered one too high, everywhere or in one text."""
    at = (rows["subj"] == reader) & (True if sentence is None else rows["sentence"] == sentence)
    return rows.assign(word_index=rows["word_index"] + at)


@pytest.mark.parametrize("sentence", [None, 7])
def test_a_reader_numbered_one_word_late_does_not_count(tmp_path, rows, sentences, capsys, sentence):
    write_provo(tmp_path, late(rows, 3, sentence))
    corpus = open_corpus("provo", tmp_path, average=True)
    assert [text.words for text in corpus.texts] == [tuple(words) for words in sentences]
    others = rows[~rows["skipped"] & ((rows["subj"] != 3) | (rows["sentence"] != (sentence or rows["sentence"])))]
    check(corpus, "gaze_ms", means(others, others["time"]), "provo_")
    said = capsys.readouterr().err
    texts = COUNT if sentence is None else 1
    assert f"reader Sub03 has other words at most places of {texts} texts than the other readers" in said
    wrong = int(((rows["subj"] == 3) & ((rows["sentence"] == sentence) | (sentence is None))).sum())
    assert f"{wrong:,} rows do not count" in said


def test_a_few_rows_with_another_word_do_not_count(tmp_path, rows, capsys):
    at = rows.index[(rows["subj"] == 2) & (rows["sentence"] == 3) & (rows["word_index"] == 5)]
    write_provo(tmp_path, rows.assign(word=rows["word"].where(~rows.index.isin(at), "zebra")))
    corpus = open_corpus("provo", tmp_path)
    assert len(corpus.table) == len(rows) - 1
    said = capsys.readouterr().err
    assert "word 5 of text 3 is 'zebra', and" in said
    assert "1 rows with another word, of reader Sub02, do not count" in said


def test_two_readers_who_disagree_are_refused(tmp_path, rows):
    write_provo(tmp_path, late(rows[rows["subj"] < 3], 2, 4))
    with pytest.raises(InputError, match=r"readers disagree about word 2 of text 4 \('.*' has no majority; "):
        open_corpus("provo", tmp_path)


def test_a_blank_label_is_refused_with_its_place(tmp_path, rows):
    blank = (rows["sentence"] == 3) & (rows["word_index"] == 4)
    write_provo(tmp_path, rows.assign(word=rows["word"].where(~blank, "")))
    row = int(blank.to_numpy().argmax()) + 1
    with pytest.raises(InputError, match=rf"row {row}, word 4 of text 3, has an empty IA_LABEL \(4 such rows\)"):
        open_corpus("provo", tmp_path)
    write_ucl_et(tmp_path, rows.assign(word=rows["word"].where(~blank, "")))
    with pytest.raises(InputError, match=rf"row {row}, word 4 of text 3, has an empty word \(4 such rows\)"):
        open_corpus("ucl_et", tmp_path)
    one = blank & (rows["subj"] == 2)  # the others know the word
    write_provo(tmp_path, rows.assign(word=rows["word"].where(~one, "")))
    assert len(open_corpus("provo", tmp_path).table) == len(rows) - 1


def test_a_word_that_no_row_is_of_is_refused(tmp_path, rows):
    write_ucl_et(tmp_path, rows[(rows["sentence"] != 5) | (rows["word_index"] != 6)])
    with pytest.raises(InputError, match=r"ucl_05 lacks word 6 .1 such places."):
        open_corpus("ucl_et", tmp_path)
    write_ucl_et(tmp_path, rows[(rows["sentence"] != 5) | (rows["word_index"] > 1)])
    with pytest.raises(InputError, match=r"ucl_05 lacks word 1 .1 such places."):
        open_corpus("ucl_et", tmp_path)


def test_copies_of_rows_count_once_and_two_values_of_a_word_are_refused(tmp_path, rows, capsys):
    again = rows[rows["subj"] == 4]
    write_provo(tmp_path, pd.concat([rows, again], ignore_index=True))
    assert len(open_corpus("provo", tmp_path).table) == len(rows)
    assert f"{len(again):,} rows are copies of others" in capsys.readouterr().err
    write_provo(tmp_path, pd.concat([rows, again.assign(time=again["time"] + 1)], ignore_index=True))
    with pytest.raises(InputError, match="word 1 of text 1 of participant Sub04 is there twice, in row"):
        open_corpus("provo", tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda t: t / 1000, "its unit is ms; these may be seconds or logarithms"),
        (lambda t: -t, "are outside 0 to 10000 ms; name their unit, or another range"),
        (lambda t: t.astype(object).where(t.index != 3, "slow"), "holds what is no number: 'slow' in row 4 (1 such"),
        (lambda t: t * 0 + 250, "is the same in all"),
    ],
    ids=["seconds", "negative", "text", "constant"],
)
def test_times_in_another_unit_are_refused(tmp_path, rows, values, message):
    write_provo(tmp_path, rows, IA_FIRST_RUN_DWELL_TIME=values(rows["time"]))
    with pytest.raises(InputError) as refused:
        open_corpus("provo", tmp_path)
    assert message in str(refused.value)


def test_implausible_times_are_left_out_by_a_rule_that_is_said(tmp_path, rows, capsys):
    times = rows["time"].where(~rows.index.isin([8, 9]), 4_000_000.0).where(rows.index != 20, -5.0)
    write_provo(tmp_path, rows, IA_FIRST_RUN_DWELL_TIME=times)
    table = open_corpus("provo", tmp_path).table
    assert table["gaze_ms"].max() < 1000
    assert "gaze_ms: values outside 0 to 10000 ms do not count: 1 below, 2 above, of" in capsys.readouterr().err


def test_a_column_that_is_lacking_is_named(tmp_path, rows):
    write_provo(tmp_path, rows)
    path = tmp_path / "Provo_Corpus-Eyetracking_Data.csv"
    path.write_bytes(path.read_bytes().replace(b"IA_LABEL", b"LABEL", 1))
    with pytest.raises(InputError, match=r"has no column IA_LABEL; it has RECORDING_SESSION_LABEL, Participant_ID, "):
        open_corpus("provo", tmp_path)


def test_the_file_of_words_belongs_to_the_trials(tmp_path, rows):
    write_naturalstories(tmp_path, rows)
    (tmp_path / "all_stories.tok").unlink()
    with pytest.raises(InputError, match=r"has no all_stories.tok, which holds the words of naturalstories"):
        open_corpus("naturalstories", tmp_path)


def test_trials_of_one_story_that_is_off_by_one_do_not_count(tmp_path, rows, capsys):
    write_naturalstories(tmp_path, late(rows, 2, 3))
    wrong = ((rows["sentence"] == 3) & (rows["subj"] == 2)).sum()
    words = rows.loc[(rows["sentence"] == 3) & (rows["subj"] == 1), "word"].to_list()
    assert all(a != b for a, b in pairwise(words))
    assert len(open_corpus("naturalstories", tmp_path).table) == (rows["subj"] < 4).sum() - wrong
    said = capsys.readouterr().err
    assert f"{wrong - 1} rows with another word, of reader A2, do not count" in said
    assert "1 rows are of no word of the texts" in said


# -- descriptions -------------------------------------------------------------------------------------------------


def test_the_family_is_twelve_measures_of_six_corpora():
    assert len(FAMILY) == 12
    assert FAMILY[0] == ("naturalstories", "spr_rt_mean_ms")
    assert [name for name, _ in FAMILY].count("provo") == 3
    assert list(SOURCES) == list(dict.fromkeys(name for name, _ in FAMILY))


def test_every_description_of_the_package_is_read():
    names = {path.stem for path in FOLDER.glob("*.toml")}
    assert names == {*SOURCES, "meco", "meco2", "onestop"}
    for name in names:
        source = described(name)
        assert source.name == name
        assert source.citation
        assert source.licence
        assert not source.tried
        assert source.confirmatory
    assert len(described("meco").samples) == 13
    assert len(described("meco2").samples) == 16
    assert described("meco2_hi_iitk").language == "hi"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3\nmeasures = []", "own.toml, name: expected str, got int; corpora/README.md names every field"),
        ('name = "x"', "own.toml: object missing required field measures"),
        ('name = "x"\nmeasures = []', "own.toml has no measures"),
        (
            'name = "x"\n[[measures]]\ncolumn = "rt"\nwidth = 3',
            "own.toml, measures[0]: object contains unknown field width",
        ),
        ('name = "x"\n[[measures]]\ncolumn = "rt"\n[[measures]]\ncolumn = "rt"', "has the measure rt twice"),
        ('name = "a/b"\n[[measures]]\ncolumn = "rt"', "the name 'a/b' cannot be part of a file's name"),
        ("name =", "own.toml is not TOML"),
    ],
)
def test_a_description_that_is_not_in_order_is_refused(tmp_path, text, message):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        read_description(tmp_path / "own.toml")
    assert message in str(refused.value)


def test_unknown_corpora_and_samples_are_refused():
    with pytest.raises(InputError, match=r"unknown corpus 'dundee'; use brothers2021, meco, .* or a .toml file"):
        described("dundee")
    with pytest.raises(InputError, match="unknown corpus 'meco_xx': meco has no sample 'xx'; it has du, ee, en"):
        described("meco_xx")
    with pytest.raises(InputError, match=r"cannot read no.toml: No such file"):
        described("no.toml")


# -- the page that says how to write one ----------------------------------------------------------------------------


def page():
    return (Path(__file__).parent.parent / "corpora" / "README.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_is_read(tmp_path, rows, sentences):
    (text,) = re.findall(r"```toml\n(.*?)```", page(), re.DOTALL)
    (tmp_path / "mystudy.toml").write_text(text, encoding="utf-8")
    (header,) = re.findall(r"^```text\n(participant,.*)$", page(), re.MULTILINE)
    assert header == "participant,list,item,condition,position,word,rt,correct"
    frame = pd.DataFrame(
        {
            "participant": "P" + rows["subj"].astype(str), "list": 1, "item": rows["sentence"],
            "condition": np.where(rows["sentence"] % 2, "match", "other"), "position": rows["word_index"],
            "word": rows["word"], "rt": rows["time"].where(~rows["skipped"], 5000.0),
            "correct": (rows["subj"] != 3).astype(int),
        }
    )  # fmt: skip
    frame.to_csv(tmp_path / "mystudy_1.csv", index=False)
    corpus = open_corpus(str(tmp_path / "mystudy.toml"), tmp_path)
    assert [measure.column for measure in corpus.source.confirmatory] == ["rt"]
    assert set(corpus.table["subject"]) == {"P1", "P2", "P4"}
    assert set(corpus.table["item"]) == {str(n) for n in range(1, COUNT + 1)}
    assert corpus.table["rt"].isna().sum() == rows["skipped"].sum()
    assert {text.text_id: text.words for text in corpus.texts}["2_other"] == tuple(sentences[1])


def test_the_page_names_every_field():
    named = set(re.findall(r"`(\w+)`", page()))
    for kind in (Source, Measure, Trials, WordFile, People):
        assert {field.name for field in msgspec.structs.fields(kind)} <= named | {"measures", "trials"}, kind
