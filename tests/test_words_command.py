"""Tables of words: the columns that come with stimuli, the files and what reads them, and what is refused before."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cladastats
from clada.errors import InputError
from cladastats.cli import main
from cladastats.texts import table as table_module
from cladastats.texts.output import check_output, write_words
from cladastats.texts.text import Text

ODD = ["NA", "null", 'say "no"', "=1+1", "Größe,", "None"]


def counted(texts, _language, settings):
    """In the place of a model: surprisal is how many characters it has read before the word."""
    counted.texts = list(texts)
    rows = []
    for text in texts:
        read = len(text.context)
        for i, (gap, word) in enumerate(zip(text.spacing, text.words, strict=True), 1):
            rows.append((text.text_id, i, word, float(read), 1, i, len(word)))
            read += len(gap + word)
    names = ["text_id", "word_index", "word", "surprisal_bits", "tokens", "position", "length"]
    words = pd.DataFrame(rows, columns=names)
    long = None
    if settings.layers:
        kept = words[["text_id", "word_index", "word"]]
        layers = [kept.assign(layer=i, surprisal_bits=words["surprisal_bits"] + i / 10) for i in range(3)]
        long = pd.concat(layers).sort_values(["text_id", "word_index", "layer"], ignore_index=True)
    return words, long, {"start_token": "<s>", "window": settings.window or 2048}


@pytest.fixture
def no_model(monkeypatch):
    """Control flow alone: what is measured, and beside which columns it is put."""
    monkeypatch.setattr(table_module, "_measure", counted)


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails where a model is asked before everything was checked."""

    def measured(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(table_module, "_measure", measured)


def stimuli(folder, name="stimuli.csv"):
    frame = pd.DataFrame(
        {
            "item": ["001"] * 3 + ["2"] * 3,
            "cond": ["b", "b", "b", "a", "a", "a"],
            "word": ODD,
            "rt": ["1,5", "2", "3"] * 2,
        }
    )
    frame.to_csv(folder / name, index=False, sep=";")
    return frame


def run(*arguments):
    return main(["words", *map(str, arguments)])


# What a user's table becomes


@pytest.mark.usefixtures("no_model")
def test_rows_and_columns_of_stimuli_stay_as_they_are(tmp_path, capsys):
    frame = stimuli(tmp_path)
    out = tmp_path / "w.csv"
    assert run("--table", tmp_path / "stimuli.csv", "--by", "item,cond", "--language", "de", "--out", out) == 0
    found = pd.read_csv(out, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(found[list(frame)], frame)
    assert list(found)[:8] == ["item", "cond", "word", "rt", "text_id", "word_index", "surprisal_bits", "tokens"]
    assert list(found["text_id"]) == ["001_b"] * 3 + ["2_a"] * 3
    assert list(found["surprisal_bits"]) == ["0.0", "2.0", "7.0", "0.0", "4.0", "11.0"]
    assert capsys.readouterr().err.splitlines() == [
        f"cladastats: {tmp_path / 'stimuli.csv'} has semicolons between its columns",
        f"cladastats: {tmp_path / 'stimuli.csv'} has numbers with a decimal comma (rt)",
        f"cladastats: 6 words of 2 texts in {out}",
    ]


@pytest.mark.usefixtures("no_model")
def test_texts_that_several_people_read_are_measured_once():
    frame = pd.DataFrame(
        {"subject": [1, 1, 2, 2, 2], "word": ["The", "dog", "The", "dog", "ran"], "item": [7, 7, 7, 7, 8]}
    )
    frame.index = [5, 5, 1, 0, 9]
    words = cladastats.word_table(frame, by=["subject", "item"])
    assert [text.words for text in counted.texts] == [("The", "dog"), ("ran",)]
    pd.testing.assert_frame_equal(words[list(frame)], frame)
    assert list(words["text_id"]) == ["1_7", "1_7", "2_7", "2_7", "2_8"]
    assert list(words["surprisal_bits"]) == [0, 3, 0, 3, 0]
    assert words.attrs["words"]["texts"] == 3
    assert frame.columns.tolist() == ["subject", "word", "item"]  # the user's own frame is not touched


@pytest.mark.usefixtures("no_model")
def test_columns_of_the_same_name_are_both_kept(capsys):
    frame = pd.DataFrame({
        "Wort": ["Der", "Hund"], "word": ["the", "dog"], "text_id": ["1", "1"], "length": ["x", "y"],
        "word_index": [1, 2], "length_measured": [8, 9],
    })  # fmt: skip
    words = cladastats.word_table(frame, word_column="Wort", by="text_id", language="de")
    assert list(words)[: len(frame.columns)] == list(frame)
    assert list(words["word_measured"]) == ["Der", "Hund"]
    assert list(words["length"]) == ["x", "y"]
    assert list(words["length_measured_measured"]) == [3, 4]
    # What is the same stands there once.
    assert "text_id_measured" not in words
    assert "word_index_measured" not in words
    assert capsys.readouterr().err == (
        "cladastats: the table has columns word, length of its own; the measured ones are word_measured, "
        "length_measured_measured\n"
    )


@pytest.mark.usefixtures("no_model")
def test_the_packages_own_table_is_a_table_of_stimuli(tmp_path, capsys):
    stimuli(tmp_path)
    first, again = tmp_path / "w.csv", tmp_path / "again.csv"
    assert run("--table", tmp_path / "stimuli.csv", "--by", "item,cond", "--language", "de", "--out", first) == 0
    capsys.readouterr()
    assert run("--table", first, "--by", "text_id", "--language", "de", "--out", again) == 0
    expected = pd.read_csv(first, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(pd.read_csv(again, dtype=str, keep_default_na=False)[list(expected)], expected)


@pytest.mark.usefixtures("no_model")
def test_a_table_of_sentences_becomes_one_of_words():
    frame = pd.DataFrame({"sentence": ["The dog ran.", "It rained all day."], "n": [1, 2]}, index=["a", "b"])
    words = cladastats.word_table(frame, word_column="sentence")
    assert list(words.index) == ["a"] * 3 + ["b"] * 4
    assert list(words["word"]) == ["The", "dog", "ran.", "It", "rained", "all", "day."]
    assert list(words["n"]) == [1, 1, 1, 2, 2, 2, 2]
    assert list(words["text_id"]) == ["1"] * 3 + ["2"] * 4


@pytest.mark.usefixtures("no_model")
def test_a_string_is_a_text_and_a_language_without_frequencies_has_none(capsys):
    words = cladastats.word_table("Tere õhtust.\n\nTere.", language="et")
    assert counted.texts == [Text("1", ("Tere", "õhtust.", "Tere."), ("", " ", "\n\n"))]
    assert words["frequency_zipf"].isna().all()
    assert capsys.readouterr().err == (
        "cladastats: no word frequencies for Estonian: the column frequency_zipf is empty\n"
    )


@pytest.mark.usefixtures("no_model")
def test_layers_are_a_long_table_with_the_stimulis_columns(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("cladastats.words.write_figure", lambda path, rows: drawn.append((path, rows)))
    stimuli(tmp_path)
    out = tmp_path / "w.xlsx"
    options = ("--by", "item,cond", "--language", "de", "--layers", "--out", out)
    assert run("--table", tmp_path / "stimuli.csv", *options) == 0
    long = pd.read_csv(tmp_path / "w-layers.csv", dtype={"item": str}, keep_default_na=False)
    assert list(long["word"]) == [word for word in ODD for _ in range(3)]
    assert list(long["layer"]) == [0, 1, 2] * 6
    assert list(long["item"]) == ["001"] * 9 + ["2"] * 9
    np.testing.assert_allclose(long["surprisal_bits"][3:6], [2, 2.1, 2.2])
    ((path, rows),) = drawn
    assert path == tmp_path / "w-layers.csv"
    assert rows["text_id"].unique().tolist() == ["001_b"]
    assert len(rows) == 9
    assert json.loads((tmp_path / "w-layers.json").read_text())["rows"] == 18


# Files


@pytest.fixture
def written(tmp_path, no_model):
    stimuli(tmp_path)
    for suffix in ("csv", "tsv", "xlsx", "parquet"):
        out = tmp_path / suffix / f"w.{suffix}"
        assert run("--table", tmp_path / "stimuli.csv", "--by", "item,cond", "--language", "de", "--out", out) == 0
    return tmp_path


def test_every_format_holds_the_same(written):
    types = {"item": str, "word": str, "rt": str, "text_id": str}
    options = {"keep_default_na": False, "na_values": [""], "dtype": types}
    expected = pd.read_parquet(written / "parquet" / "w.parquet")
    assert list(expected["word"]) == ODD
    assert list(expected["item"]) == ["001"] * 3 + ["2"] * 3
    assert expected["surprisal_bits"].dtype == float
    # The lines of docs/words.md.
    tables = [
        pd.read_csv(written / "csv" / "w.csv", **options),
        pd.read_csv(written / "tsv" / "w.tsv", sep="\t", **options),
        pd.read_excel(written / "xlsx" / "w.xlsx", **options),
        pd.read_parquet(written / "csv" / "w.parquet"),
    ]
    for table in tables:
        pd.testing.assert_frame_equal(table, expected, check_dtype=False)


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not there")
def test_r_reads_words_and_ids_as_they_are(written):
    script = """
    w <- read.csv("w.csv", na.strings = "", colClasses = c(item = "character", word = "character"), encoding = "UTF-8")
    stopifnot(is.numeric(w$surprisal_bits), w$surprisal_bits[2] == 2, nrow(w) == 6)
    con <- file("r.txt", "wb")
    writeBin(charToRaw(enc2utf8(paste(c(w$item[1], w$word), collapse = "\\n"))), con)
    close(con)
    """
    subprocess.run(["Rscript", "--vanilla", "-e", script], cwd=written / "csv", check=True, capture_output=True)
    assert (written / "csv" / "r.txt").read_text(encoding="utf-8").split("\n") == ["001", *ODD]


def test_the_metadata_say_what_was_measured_with(written):
    found = json.loads((written / "csv" / "w.json").read_text(encoding="utf-8"))
    assert found["schema"] == "cladastats/words-metadata/1"
    assert (found["model"], found["device"], found["language"]) == ("smollm2-135m", "cpu", "de")
    assert found["revision"].startswith("sha256:")
    assert (found["start_token"], found["window"], found["texts"], found["rows"]) == ("<s>", 2048, 2, 6)
    assert found["source"]["file"] == "stimuli.csv"
    assert len(found["source"]["sha256"]) == 64
    assert found["units"]["surprisal_bits"] == "bits"
    assert found["packages"]["transformers"] == importlib.metadata.version("transformers")
    assert found["columns"]["surprisal_bits"] == "float64"


def test_all_files_are_written_or_none(tmp_path):
    out = tmp_path / "w.xlsx"
    table = pd.DataFrame({"word": ["a", "b\x07"]})
    with pytest.raises(InputError, match="a word holds a control character, which Excel cannot hold"):
        write_words(out, table, {})
    with pytest.raises(ValueError, match="JSON"):
        write_words(tmp_path / "w.csv", table, {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_cells_of_several_types_are_written(tmp_path):
    """As those of an Excel column with numbers and text."""
    table = pd.DataFrame({"word": ["a", "b", "c"], "rt": [1, "x", None]}, dtype=object)
    write_words(tmp_path / "w.csv", table, {})
    assert list(pd.read_parquet(tmp_path / "w.parquet")["rt"])[:2] == ["1", "x"]
    assert (tmp_path / "w.csv").read_text() == '"word","rt"\n"a",1\n"b","x"\n"c",""\n'


# What is refused before anything is measured


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "w.txt"], "w.txt has no suffix of a table; name one of .csv, .tsv, .xlsx, .parquet with --out"),
        (["--out", "w"], "w has no suffix of a table; name one of .csv, .tsv, .xlsx, .parquet with --out"),
        (["--out", "w.CSV"], "w.CSV has no suffix of a table; name one of .csv, .tsv, .xlsx, .parquet with --out"),
        (["--out", "folder.csv"], "folder.csv is a folder; name a file with --out"),
        (["--out", "stimuli.csv"], "stimuli.csv would take the place of the input; give another name with --out"),
        (
            ["--out", "file/w.csv"],
            "cannot write file/w.csv: file is no folder that can be written to; give another name",
        ),
        (["--out", "taken.csv"], "cannot write taken.json, which is not a file; give another name"),
        (["--language", "xx"], "unknown language 'xx'; give a code of ISO 639-1 like 'de'; frequencies are there for"),
        (["--language", "ru"], "the text is written in Latin letters, which is not Russian; give its code with"),
        (["--text", "a.txt"], "give running text with --text, or a table of stimuli with --table"),
        (["--word-column", "Wort"], "stimuli.csv has no column 'Wort' (columns: item, cond, word, rt)"),
        (["--by", "items"], "stimuli.csv has no column 'items' (columns: item, cond, word, rt)"),
        (["--context-column", "c"], "stimuli.csv has no column 'c' (columns: item, cond, word, rt)"),
        (["--data", "."], "--data is of the corpora; name one with --text"),
        (["--segment"], "stimuli.csv has a row per word with --by; leave out --segment, or give a text in each row"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    stimuli(tmp_path)
    Path("folder.csv").mkdir()
    Path("taken.json").mkdir()
    Path("file").touch()
    Path("a.txt").write_text("A b.")
    before = sorted(tmp_path.rglob("*"))
    assert run("--table", "stimuli.csv", "--by", "item,cond", "--language", "de", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.removeprefix("cladastats: ").replace(f"{tmp_path}/", "").startswith(message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give running text with --text, or a table of stimuli with --table"),
        (["--text", "a.txt", "--by", "item"], "--by is of a table; give it with --table"),
        (["--text", "a.txt", "--word-column", "w"], "--word-column is of a table; give it with --table"),
        (["--text", "t.csv"], "t.csv is a table; give it with --table"),
        (
            ["--table", "a.jsonl"],
            "a.jsonl is not a table that can be read; give one of .csv, .tsv, .txt, .xlsx, .parquet",
        ),
        (
            ["--text", "a.txt", "--segment"],
            "no segmentation into words for English; its words have white space between",
        ),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("A b.")
    assert run(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cladastats: {message}")


def test_excel_without_its_library_or_with_too_many_rows(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="1,048,576 words are more than a sheet of Excel has rows"):
        check_output(tmp_path / "w.xlsx", rows=1_048_576)
    whole = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openpyxl" else whole(name))
    with pytest.raises(InputError) as refused:
        check_output(tmp_path / "w.xlsx")
    assert str(refused.value) == "writing .xlsx needs openpyxl; bring it with pip install 'clada[excel]'"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a b"], "word_table takes a pandas data frame or a string, not list; convert it, as by to_pandas()"),
        ("  ", "the text has no words; give another one"),
        (pd.DataFrame({"word": []}), "the frame has no rows; give one with a row per word"),
        (pd.DataFrame([["a", "b"]], columns=["word", "word"]),
         "the frame has more than one column 'word'; rename all but one"),
        (pd.DataFrame({"word": ["a"], "item": [1]}).set_index("word"),
         "the frame has no column 'word'; name the column of words with --word-column (columns: item)"),
    ],
)  # fmt: skip
def test_what_is_no_stimuli_for_python(given, message):
    with pytest.raises(InputError) as refused:
        cladastats.word_table(given)
    assert str(refused.value) == message


def test_the_command_writes_what_python_gives(tmp_path, capsys):
    """On a real model: the numbers of a table are those of the same words as running text."""
    lines = [{"text_id": "x", "text": "It  rained."}, {"text": "They left early."}]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "w.parquet"
    assert run("--text", tmp_path / "two.jsonl", "--out", out) == 0
    assert "5 words of 2 texts" in capsys.readouterr().err
    table = pd.read_parquet(out)
    frame = table[["text_id", "word"]].rename(columns={"text_id": "item"})
    words = cladastats.word_table(frame[2:], by="item")
    numbers = ["surprisal_bits", "entropy_bits", "frequency_zipf"]
    # float32 sums in another order
    np.testing.assert_allclose(words[numbers], table[numbers][2:], atol=1e-3)
    assert words["surprisal_bits"].gt(0).all()


def test_help_names_every_option():
    done = subprocess.run(
        [sys.executable, "-m", "cladastats.words", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--revision", "--table", "--word-column", "--by", "--context-column", "--language", "--segment",
                   "--calibrate", "--layers", "--no-effort", "--device", "--plan", "--out"):  # fmt: skip
        assert option in done.stdout
