"""A table of one's own: read however it was written, merged with its words by position, checked, fitted."""

import json

import numpy as np
import pandas as pd
import pytest
from trial_tables import news_sentences, words_of

from clada.errors import InputError
from cladastats.cli import main
from cladastats.people.mixed import mixed_model
from cladastats.people.own import Asked, default_formula, model_frame, read_own

COUNT, READERS = 24, 6


@pytest.fixture(scope="module")
def words():
    return words_of(news_sentences(COUNT), np.random.default_rng(1))


@pytest.fixture(scope="module")
def trials(words):
    """Six readers of all words, as a lab has them: ids with zeros, a skip here and there."""
    rng = np.random.default_rng(2)
    base = words[["text_id", "word_index", "word", "surprisal_bits", "length"]].rename(columns={"text_id": "item"})
    speed, hard = rng.normal(0, 20, READERS), dict(zip(base["item"].unique(), rng.normal(0, 15, COUNT), strict=True))
    rows = []
    for reader in range(READERS):
        rt = 300 + 6 * base["surprisal_bits"] + 8 * base["length"] + speed[reader] + base["item"].map(hard)
        rows.append(base.assign(subject=f"{reader + 1:03d}", rt=(rt + rng.normal(0, 25, len(base))).round(2)))
    table = pd.concat(rows, ignore_index=True).drop(columns=["surprisal_bits", "length"])
    return table.assign(condition=np.where(table["item"].astype(int) % 2, "a", "b"), trial=np.arange(len(table)))


@pytest.fixture
def files(tmp_path, words, trials):
    words.rename(columns={"text_id": "item"}).to_csv(tmp_path / "words.csv", index=False)
    trials.to_csv(tmp_path / "trials.csv", index=False)
    return tmp_path


def asked(folder, **more):
    known = {"table": folder / "trials.csv", "words": folder / "words.csv", "measures": ("rt",)}
    return Asked(**(known | more))


def refused(folder, **more):
    with pytest.raises(InputError) as problem:
        read_own(asked(folder, **more))
    return str(problem.value)


def rewrite(folder, table, **options):
    table.to_csv(folder / "trials.csv", index=False, **options)


# -- reading and merging ------------------------------------------------------------------------------------------


def test_every_trial_gets_its_word(files, words, trials):
    own = read_own(asked(files))
    assert own.subject == "subject"
    assert own.item == "item"
    assert own.notes == ()
    assert len(own.frame) == len(trials)
    assert own.frame["subject"].to_list() == trials["subject"].to_list()
    by_place = words.set_index(["text_id", "word_index"])
    place = list(zip(trials["item"], trials["word_index"], strict=True))
    np.testing.assert_array_equal(own.frame["surprisal_bits"], by_place.loc[place, "surprisal_bits"])
    before = [(item, index - 2) for item, index in place]
    expected = by_place["entropy_bits"].reindex(before).to_numpy()
    np.testing.assert_array_equal(own.frame["entropy_bits_2"], expected)
    assert np.isnan(expected).sum() == 2 * COUNT * READERS


@pytest.mark.parametrize("form", ["semicolons", "tabs", "quoted", "utf-16", "windows"])
def test_a_table_is_read_however_it_was_written(files, trials, form):
    expected = read_own(asked(files)).frame
    if form == "semicolons":
        rewrite(files, trials, sep=";", decimal=",", encoding="utf-8-sig")
    elif form == "tabs":
        rewrite(files, trials, sep="\t", quoting=3)
    elif form == "quoted":
        rewrite(files, trials, quoting=1)
    elif form == "utf-16":
        rewrite(files, trials, sep="\t", encoding="utf-16")
    else:
        rewrite(files, trials.assign(place="Zürich"), encoding="cp1252")
    own = read_own(asked(files))
    pd.testing.assert_frame_equal(own.frame[list(expected)], expected)
    said = {
        "semicolons": ["has semicolons between its columns", "has numbers with a decimal comma (rt)"],
        "tabs": ["has tabs between its columns"],
        "utf-16": ["is read as UTF-16", "has tabs between its columns"],
        "windows": ["is not UTF-8 and is read as Windows-1252"],
    }
    assert [note.removeprefix(f"{files / 'trials.csv'} ") for note in own.notes] == said.get(form, [])


@pytest.mark.parametrize("suffix", [".xlsx", ".parquet"])
def test_a_table_with_types_is_read_as_one_of_text(files, words, trials, suffix):
    trials = trials.assign(rt=trials["rt"].where(trials.index != 40), block=trials["trial"] % 2 == 0)
    rewrite(files, trials)
    expected = read_own(asked(files)).frame
    named = words.rename(columns={"text_id": "item"})
    trials = trials.assign(word_index=trials["word_index"].astype(float))  # R has no other numbers
    for frame, name in ((trials, "trials"), (named, "words")):
        if suffix == ".xlsx":
            frame.to_excel(files / f"{name}.xlsx", index=False)
        else:
            frame.to_parquet(files / f"{name}.parquet")
    own = read_own(asked(files, table=files / f"trials{suffix}", words=files / f"words{suffix}"))
    pd.testing.assert_frame_equal(own.frame, expected)
    assert own.notes == ()
    kind = {".xlsx": "an Excel workbook; save it as .xlsx again", ".parquet": "a parquet file; write it again"}
    (files / f"trials{suffix}").write_bytes(b"PK")
    assert refused(files, table=files / f"trials{suffix}") == f"{files / f'trials{suffix}'} is not {kind[suffix]}"


@pytest.mark.parametrize("sign", ["NA", "NaN", ".", "", "N/A"])
def test_missing_values_are_missing(files, trials, sign):
    rewrite(files, trials.assign(rt=trials["rt"].astype(object).where(trials.index != 40, sign)))
    own = read_own(asked(files))
    assert own.frame["rt"].isna().to_list() == (trials.index == 40).tolist()


def test_words_that_look_like_missing_values_are_words(tmp_path, words, trials):
    at = (words["text_id"] == "002") & (words["word_index"] == 3)
    named = trials["word"].where((trials["item"] != "002") | (trials["word_index"] != 3), "NA")
    words.rename(columns={"text_id": "item"}).assign(word=words["word"].where(~at, "NA")).to_csv(
        tmp_path / "words.csv", index=False
    )
    trials.assign(word=named).to_csv(tmp_path / "trials.csv", index=False)
    own = read_own(asked(tmp_path))
    assert (own.frame["word"] == "NA").sum() == READERS
    assert own.corpus.texts[1].words[2] == "NA"


def test_a_table_of_words_with_a_column_of_times_needs_no_second_table(tmp_path, words):
    rng = np.random.default_rng(3)
    rt = 300 + 6 * words["surprisal_bits"] + 9 * words["length"] + rng.normal(0, 20, len(words))
    words.assign(rt=rt.round(2)).to_csv(tmp_path / "trials.csv", sep="\t", index=False)
    own = read_own(asked(tmp_path, words=None))
    assert own.subject is None
    assert own.item == "text_id"
    assert own.frame["text_id"].iloc[0] == "001"
    np.testing.assert_array_equal(own.frame["surprisal_bits"], words["surprisal_bits"])
    formula, _ = default_formula(own, "rt")
    assert formula.endswith("tokens + (1 | text_id)")


def test_words_are_read_with_their_types_and_their_language(files, words):
    expected = read_own(asked(files)).frame
    words.rename(columns={"text_id": "item"}).to_parquet(files / "words.parquet")
    (files / "words.json").write_text(json.dumps({"language": "en"}))
    own = read_own(asked(files, words=files / "words.parquet"))
    pd.testing.assert_frame_equal(own.frame, expected)
    assert own.corpus.source.language == "en"


def test_columns_may_have_other_names(files, trials):
    expected = read_own(asked(files)).frame["surprisal_bits"]
    rewrite(files, trials.rename(columns={"item": "Story no", "word_index": "zone", "subject": "ID", "word": "Word"}))
    own = read_own(asked(files, subject="ID", item="Story no", on=(("Story no", "item"), ("zone", "word_index"))))
    np.testing.assert_array_equal(own.frame["surprisal_bits"], expected)
    assert default_formula(own, "rt")[0].endswith("(1 | ID) + (1 | `Story no`)")


def test_the_columns_must_say_which_word_a_row_is_of(files, words, trials):
    both = pd.concat([words.assign(condition=c) for c in "ab"]).rename(columns={"text_id": "item"})
    both.to_csv(files / "words.csv", index=False)
    rewrite(files, trials.drop(columns="condition"))
    said = refused(files)
    assert said.startswith(f"item, word_index do not tell the words of {files / 'words.csv'} apart: word 1 of text 001")
    assert "name more columns with --on" in said
    rewrite(files, trials)
    own = read_own(asked(files))
    assert {text.text_id for text in own.corpus.texts} > {"001_a", "001_b"}
    assert own.frame["item"].nunique() == COUNT
    rewrite(files, trials.drop(columns="word_index"))
    assert "share item, condition of text_id, text, item, condition, word_index" in refused(files)
    assert f"{files / 'trials.csv'} has no column zone; it has item," in refused(files, on=(("zone", "word_index"),))


# -- what does not fit --------------------------------------------------------------------------------------------


def test_a_few_other_words_are_left_out_and_many_are_refused(files, trials):
    few = trials.index[:20]
    rewrite(files, trials.assign(word=trials["word"].where(~trials.index.isin(few), "zebra")))
    own = read_own(asked(files))
    assert len(own.frame) == len(trials) - 20
    assert len(own.notes) == 1
    assert f"word 1 of text 001 is 'zebra', and {trials['word'][0]!r} in its text; 20 rows" in own.notes[0]
    late = trials["word_index"] + (trials["subject"] == "004")  # one of six readers, a word late
    rewrite(files, trials.assign(word_index=late))
    said = refused(files)
    assert f"word 2 of text 001 is {trials['word'][0]!r}, and {trials['word'][1]!r} in its text (" in said
    assert "rows with another word, of reader 004, are too many); mend the numbers of words" in said


def test_capitals_and_punctuation_make_no_other_word(files, trials):
    rewrite(files, trials.assign(word=trials["word"].str.strip(".,").str.upper()))
    assert len(read_own(asked(files)).frame) == len(trials)


def test_rows_of_no_word_are_left_out_and_said(files, trials):
    practice = trials.head(30).assign(item="practice")
    rewrite(files, pd.concat([practice, trials]))
    own = read_own(asked(files))
    assert len(own.frame) == len(trials)
    assert "30 rows are of no word of the texts, the first word 1 of text practice" in own.notes[0]
    rewrite(files, trials.assign(item=trials["item"].astype(int)))  # 1 is not 001
    assert f"no row of {files / 'trials.csv'} is of a word of {files / 'words.csv'}; compare" in refused(files)


def test_without_words_in_the_table_nothing_is_checked_and_that_is_said(files, trials):
    rewrite(files, trials.drop(columns="word"))
    (note,) = read_own(asked(files)).notes
    assert note == f"{files / 'trials.csv'} has no column word, so that nothing checks which word a row is of"


def test_several_rows_of_a_word_need_their_subjects(files, trials):
    rewrite(files, trials.rename(columns={"subject": "who"}))
    said = refused(files)
    assert "has several rows of one word (" in said
    assert said.endswith("and no column of subjects; name it with --subject")
    assert len(read_own(asked(files, subject="who")).frame) == len(trials)
    rewrite(files, pd.concat([trials, trials.head(7).assign(rt=1.5)]))
    assert read_own(asked(files)).notes == (
        f"{files / 'trials.csv'}: 7 rows are of a subject and word that have another row too",
    )


def test_a_shift_by_a_word_is_a_warning_that_can_be_answered(files, trials):
    shifted = trials.assign(rt=trials.groupby(["subject", "item"])["rt"].shift(-1))
    rewrite(files, shifted)
    (note,) = read_own(asked(files)).notes
    assert "rt follows the next word's length and frequency" in note
    assert note.endswith("shift it, or say with --no-shift-check why it is right")
    (note,) = read_own(asked(files, no_shift_check="parafoveal preview")).notes
    assert note == "not checked for a shift by a word: parafoveal preview"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rt: rt / 1000, "and its unit is ms; these may be seconds or logarithms: give milliseconds, or name"),
        (lambda rt: np.log(rt), "and its unit is ms; these may be seconds or logarithms"),
        (lambda rt: -rt, "are outside 0 to 10000 ms; name their unit, or another range"),
        (lambda rt: rt * 0 + 350, "is the same in all"),
        (lambda rt: rt.where(rt.index < 20), "has 20 values that count of"),
        (lambda rt: rt.astype(object).where(rt.index != 3, "slow"), "holds what is no number: 'slow' in row 4 (1 such"),
        (lambda rt: rt.where(rt.index != 3, np.inf), "holds an infinite number"),
    ],
    ids=["seconds", "logarithms", "negative", "constant", "few", "text", "infinite"],
)
def test_a_measure_that_cannot_be_one_is_refused(files, trials, change, message):
    rewrite(files, trials.assign(rt=change(trials["rt"])))
    assert message in refused(files)


def test_implausible_values_are_left_out_by_a_rule_that_is_said(files, trials):
    rt = trials["rt"].where(trials.index != 5, 4_000_000).where(~trials.index.isin([7, 9]), -20)
    rewrite(files, trials.assign(rt=rt))
    own = read_own(asked(files))
    rule = f"rt: values outside 0 to 10000 ms do not count: 2 below, 1 above, of {len(trials):,}"
    assert own.notes == (rule,)
    assert own.frame["rt"].isna().sum() == 3
    own = read_own(asked(files, plausible=(200.0, 450.0)))
    assert own.frame["rt"].dropna().between(200, 450).all()
    own = read_own(asked(files, unit="microvolt"))
    assert own.frame["rt"].max() == 4_000_000


def test_words_with_quotes_are_words(tmp_path, words, trials):
    """Written by pandas (quoted where needed) and as tables of corpora are (nothing is quoted)."""
    at = {3: '"Two', 4: 'patches"'}
    for options in ({}, {"sep": "\t", "quoting": 3}):
        changed = words.assign(word=words["word_index"].map(at).fillna(words["word"]))
        changed.rename(columns={"text_id": "item"}).to_csv(tmp_path / "words.csv", index=False)
        same = trials.assign(word=trials["word_index"].map(at).fillna(trials["word"]))
        rewrite(tmp_path, same, **options)
        own = read_own(asked(tmp_path))
        assert own.corpus.texts[0].words[2:4] == ('"Two', 'patches"')
        assert own.frame["word"].to_list() == same["word"].to_list()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a table whose first row names the columns"),
        (b"item,rt\n", "has no row below its header; give a table with rows"),
        (b"item,rt\n1,2,3\n", ", line 2: 3 cells, and the header has 2; quote cells with a delimiter in them"),
        (b"item,rt\n1\n", ", line 2: 1 cells, and the header has 2; quote cells with a delimiter in them"),
        (b"item,rt,rt\n1,2,3\n", "has more than one column 'rt'; rename all but one"),
        (b"item;rt\n1;2,5\n2;2.5\n", "has decimal points and commas; write one of them"),
        (b"PK\x03\x04xl/workbook", "is a workbook or an archive, and no table of text; save it as CSV"),
        (b"item\0,rt\n", "holds zero bytes, as UTF-16 without a mark does; save it as UTF-8"),
    ],
    ids=["empty", "header", "long", "short", "twice", "decimals", "xlsx", "null"],
)
def test_a_file_that_is_no_table_is_refused(files, content, message):
    (files / "trials.csv").write_bytes(content)
    assert message in refused(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(subject=t["subject"].where(t.index != 8, "")), "row 9 has no subject (1 such rows)"),
        (lambda t: t.drop(columns="rt"), "has no column rt; it has item, word_index, word, subject, condition"),
        (lambda t: t.assign(word_index=t["word_index"].astype(object).where(t.index != 2, "x")), "'x' in row 3"),
    ],
    ids=["subject", "measure", "index"],
)
def test_rows_must_say_what_they_are_of(files, trials, change, message):
    rewrite(files, change(trials))
    assert message in refused(files)


def test_words_must_be_a_table_of_words(files, words):
    words.drop(columns="surprisal_bits").to_csv(files / "words.csv", index=False)
    assert "has no column surprisal_bits; give a table that 'cladastats words' wrote" in refused(files)
    assert "name the table of words with --words" in refused(files, words=None)
    words.rename(columns={"text_id": "item"}).drop(index=4).to_csv(files / "words.csv", index=False)
    assert "text 001 lacks a word before word 6; give all words of the texts" in refused(files)
    assert "cannot read" in refused(files, words=files / "none.csv")


# -- the model ----------------------------------------------------------------------------------------------------


def test_columns_that_came_with_the_stimuli_are_in_formulas(files, words, trials):
    """Numbers are numbers there, with a decimal comma too, and not categories; the trials' own columns win."""
    beside = words.rename(columns={"text_id": "item"}).assign(
        rating=[f"{i % 7},5" for i in range(len(words))],
        region=np.where(words["word_index"] < 3, "early", "late"),
        trial=0,
    )
    beside.to_csv(files / "words.csv", index=False)
    own = read_own(asked(files))
    expected = own.frame.merge(
        beside[["item", "word_index", "rating"]], on=["item", "word_index"], suffixes=("", "_is")
    )
    assert own.frame["rating"].tolist() == expected["rating_is"].str.replace(",", ".").astype(float).tolist()
    assert set(own.frame["region"]) == {"early", "late"}
    assert own.frame["trial"].tolist() == trials["trial"].tolist()
    formula = "rt ~ surprisal_bits + rating + region + (1 | subject)"
    frame, _, _ = model_frame(own, formula, files / "trials.csv", scaled=False)
    fit = mixed_model(frame, formula)
    assert fit.coef.index.tolist() == ["(Intercept)", "surprisal_bits", "rating", "regionlate"]


def test_the_default_model_is_that_of_its_formula(files):
    own = read_own(asked(files))
    formula, notes = default_formula(own, "rt")
    assert notes == []
    assert formula == (
        "rt ~ surprisal_bits + surprisal_bits_1 + surprisal_bits_2 + entropy_bits + entropy_bits_1 + effort + effort_1 "
        "+ effort_2 + length + length_1 + frequency_zipf + frequency_zipf_1 + position + tokens + (1 | subject) + "
        "(1 | item)"
    )
    frame, scales, notes = model_frame(own, formula, files, scaled=True)
    lost = 2 * COUNT * READERS
    assert notes == [
        f"{lost:,} of {len(own.frame):,} rows lack a value of the model; words that begin a text have none before them",
        "predictors are in standard deviations; a --formula takes columns as they are",
    ]
    scaled, plain = mixed_model(frame, formula), mixed_model(own.frame, formula)
    for name, scale in scales.items():  # the same model in other units
        assert scaled.coef[name] / scale["sd"] == pytest.approx(plain.coef[name], rel=1e-4, abs=1e-4)
    assert plain.coef["surprisal_bits"] == pytest.approx(6, abs=4 * plain.se["surprisal_bits"])
    assert plain.coef["length"] == pytest.approx(8, abs=4 * plain.se["length"])


def test_what_does_not_vary_is_left_out_of_the_default_formula(files, words):
    words.rename(columns={"text_id": "item"}).assign(tokens=1).to_csv(files / "words.csv", index=False)
    formula, notes = default_formula(read_own(asked(files)), "rt")
    assert "tokens" not in formula
    assert notes == ["tokens: the same in every row, left out of the formula"]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("rt ~ surprisal_bits + twice + (1 | subject)", "the columns surprisal_bits and twice of"),
        ("rt ~ same + (1 | subject)", "the column same of"),
        ("rt ~ rt2 + (1 | subject)", "the columns rt and rt2 of"),
        ("rt ~ surprisal_bits + length + total + (1 | subject)", "the column total of"),
        ("rt ~ zebra + (1 | subject)", "names zebra, and the columns are item, word_index, word, subject, rt,"),
    ],
)
def test_predictors_that_are_the_same_are_refused_by_name(files, words, trials, formula, message):
    at = trials.merge(words.rename(columns={"text_id": "item"}), on=["item", "word_index"], how="left")
    table = trials.assign(
        twice=2 * at["surprisal_bits"] + 1, same=3, rt2=trials["rt"], total=at["surprisal_bits"] + at["length"]
    )
    rewrite(files, table)
    with pytest.raises(InputError) as problem:
        model_frame(read_own(asked(files)), formula, files, scaled=False)
    assert message in str(problem.value)


def test_predictors_that_are_nearly_the_same_are_said(files, words, trials):
    at = trials.merge(words.rename(columns={"text_id": "item"}), on=["item", "word_index"], how="left")
    noise = np.random.default_rng(5).normal(0, 0.1, len(at))
    rewrite(files, trials.assign(near=at["surprisal_bits"] + noise))
    _, _, notes = model_frame(read_own(asked(files)), "rt ~ surprisal_bits + near + (1 | subject)", files, scaled=False)
    assert notes == ["surprisal_bits and near are nearly the same (r = 0.999); their effects are uncertain"]


# -- the command --------------------------------------------------------------------------------------------------


def command(folder, *more):
    arguments = ["human", "--table", str(folder / "trials.csv"), "--words", str(folder / "words.csv")]
    return main([*arguments, "--out", str(folder / "out"), *more])


@pytest.fixture(scope="module")
def kept(tmp_path_factory, words, trials):
    """A folder in which the command was done on two measures; effort is left out of the words, which takes long."""
    folder = tmp_path_factory.mktemp("own")
    plain = words[[name for name in words if not name.startswith("effort")]]
    plain.rename(columns={"text_id": "item"}).to_csv(folder / "words.csv", index=False)
    trials.assign(log_rt=np.log(trials["rt"]) * 100).to_csv(folder / "trials.csv", index=False)
    assert shown(folder, "--json") == 0
    return folder


def shown(folder, *more):
    return command(folder, "--measure", "rt,log_rt", "--no-shift-check", "known", *more)


def test_the_command_keeps_what_it_found(kept, capsys):
    assert shown(kept, "--json") == 0
    told = capsys.readouterr()
    assert "confirmatory family: 2 measures (rt, log_rt), those of --measure" in told.err
    result = json.loads(told.out)
    assert result == json.loads((kept / "out" / "trials" / "trials.json").read_text())
    assert result["no_shift_check"] == "known"
    assert [fit["measure"] for fit in result["mixed"]] == ["rt", "log_rt"]
    term = {row["term"]: row for row in result["mixed"][0]["terms"]}["surprisal_bits"]
    scale = result["mixed"][0]["scaled"]["surprisal_bits"]["sd"]
    assert term["coef"] / scale == pytest.approx(6, abs=4 * term["se"] / scale)
    gains = result["measures"][0]
    assert gains["subjects"] == READERS
    surprisal = gains["rows"][0]
    assert surprisal["predictor"] == "surprisal"
    assert surprisal["ci_low"] > 0  # it was put in
    assert not any(word in told.out for word in news_sentences(1)[0] if len(word) > 7)  # numbers, and no text


def test_nothing_is_computed_twice(kept, capsys, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("cladastats.human.analyse", never)
    signs = {
        "text": "Effort beyond", "markdown": "|:---", "latex": r"\toprule", "html": "<table", "csv": "term,coef,se,df",
    }  # fmt: skip
    for fmt, sign in signs.items():
        assert shown(kept, "--format", fmt) == 0
        out = capsys.readouterr().out
        assert sign in out or (fmt == "text" and "surprisal" in out), fmt
    assert out.splitlines()[0] == "term,coef,se,df,t,p,ci_low,ci_high,measure"
    assert [line.rsplit(",", 1)[1] for line in out.splitlines()[1:]] == ["rt"] * 12 + ["log_rt"] * 12


def test_a_design_without_two_words_before_has_a_model_and_no_gains(files, trials, capsys):
    """One measured word in each text, the second: the model stands, and it is said why there are no gains."""
    rewrite(files, trials[trials["word_index"] == 2])
    formula = "rt ~ surprisal_bits + (1 | subject) + (1 | item)"
    assert command(files, "--measure", "rt", "--formula", formula, "--json") == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["mixed"][0]["n"] == COUNT * READERS
    assert result["measures"] == []
    assert result["no_gains"]["rt"].startswith("rt has 0 words with two words before them")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name the column of the dependent variable with --measure"),
        (["--measure", "rt", "--corpus", "provo"], "leave out --data, --corpus and --average"),
        (["--measure", "rt,b", "--formula", "rt ~ a"], "give one --measure with it"),
        (["--measure", "rt", "--formula", "log(rt) ~ a"], "is not of rt; begin it with 'rt ~'"),
        (["--measure", "rt", "--range", "300,100"], "--range takes two numbers, the lower one first, as in 100,3000"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(files, capsys, more, message):
    assert command(files, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_command_without_data_says_what_it_needs(capsys):
    assert main(["human"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("name the folder of the corpora with --data, or your own trials with --table")
