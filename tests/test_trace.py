"""Traces: the numbers on a page are those of the steps and tables, and no text leaves its place in it."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from test_engine import PROMPT, plan_of
from test_words_command import counted, stimuli
from tiny_models import tiny_model
from traces import FRAME, HOSTILE, a_step, data_of, values_of
from trial_tables import news_sentences, times_of

from clada import Engine, Trace
from clada.cli import main as run_clada
from clada.errors import InputError
from clada.methods.plan import Shares
from clada.trace.page import _digest
from cladastats.cli import main as run_cladastats
from cladastats.texts import table as table_module

# -- steps and tables -------------------------------------------------------------------------------------------------


def test_steps_have_the_share_of_every_layer_where_it_is_asked_for():
    model = tiny_model("llama", seed=4)
    engine = Engine(model, None, plan=plan_of(model, Shares(neurons=0.3)), threads=2)
    steps = [*engine.generate(PROMPT, 12, layers=True)]
    for step in steps:
        assert len(step.layer_shares) == 3
        assert np.mean(step.layer_shares) == pytest.approx(step.active_fraction, rel=1e-12)  # the order of sums
        assert all(0 < share <= 1 for share in step.layer_shares)
    assert len({step.layer_shares for step in steps}) > 1
    assert [step.layer_shares for step in engine.generate(PROMPT, 2)] == [None, None]
    dense = Engine(model, None, method="dense")
    assert [step.layer_shares for step in dense.generate(PROMPT, 2, layers=True)] == [(1.0, 1.0, 1.0)] * 2
    batch = [*engine.generate_batch([PROMPT, PROMPT[:7]], 3, layers=True)]
    assert [step.layer_shares for i, step in batch if i == 0] == [step.layer_shares for step in steps[:3]]


def test_a_trace_of_steps_has_their_numbers():
    model = tiny_model("llama", seed=4)
    steps = [*Engine(model, None, method="speculative", plan="none", threads=2).generate(PROMPT, 8, layers=True)]
    (text,) = Trace(iter(steps)).data()["texts"]
    assert text["tokens"] == [step.token for step in steps]
    assert text["kind"] == "token"
    found = values_of(text)
    assert list(found) == [
        "surprisal_bits", "entropy_bits", "active_fraction", "drafted", "load_surprisal", "load_entropy",
    ]  # fmt: skip
    for name, values in found.items():
        assert values == [float(getattr(step, name)) for step in steps]
    (layers,) = text["layers"]
    assert layers["values"] == [list(step.layer_shares) for step in steps]
    # What was not asked for, or cannot be, is not on the page.
    plain = [*Engine(model, None, method="dense").generate(PROMPT, 2)]
    (text,) = Trace(plain).data()["texts"]
    assert "drafted" not in values_of(text)
    assert text["layers"] == []


def test_a_table_of_words_becomes_its_texts():
    one, two = Trace(FRAME).data()["texts"]
    assert (one["tokens"], one["gaps"]) == (["NA", "dog", "."], ["", " ", ""])
    assert (two["tokens"], two["gaps"]) == (["null", "001"], ["", " "])
    assert values_of(one) == {"surprisal_bits": [None, 3.5, 0.25], "rt_ms": [300.5, None, 250.0]}
    assert [(each["label"], each["unit"]) for each in one["quantities"]] == [("surprisal", "bits"), ("rt_ms", "ms")]
    (effort,) = two["layers"]
    assert effort["values"] == [[0.4, 0.2], [0.5, 0.1]]
    japanese = FRAME.copy()
    japanese.attrs["words"] = {"language": "ja", "model": "m"}
    assert Trace(japanese).texts[0].gaps == ["", "", ""]
    assert Trace(japanese).texts[0].title == "m, a"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_file_of_words_is_read_back_as_it_was_written(suffix, tmp_path):
    from cladastats.texts.output import write_words

    path = tmp_path / f"words{suffix}"
    write_words(path, FRAME, {"model": "some/model", "language": "en"})
    found, expected = Trace(str(path)), Trace(FRAME)
    assert [text.title for text in found.texts] == ["some/model, a", "some/model, b"]
    for text, other in zip(found.data()["texts"], expected.data()["texts"], strict=True):
        assert {**text, "title": ""} == {**other, "title": ""}


def test_a_long_table_gives_every_layer():
    """As `word_table(layers=True)`: rows of a word follow each other, the last layer is the model itself."""
    rows = [("1", i, word, layer, 10.0 * i + layer) for i, word in enumerate(["The", "dog"], 1) for layer in range(3)]
    long = pd.DataFrame(rows, columns=["text_id", "word_index", "word", "layer", "surprisal_bits"])
    (text,) = Trace(long).data()["texts"]
    assert text["tokens"] == ["The", "dog"]
    assert values_of(text) == {"surprisal_bits": [12.0, 22.0]}
    assert text["layers"][0]["values"] == [[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]


def test_two_are_shown_side_by_side():
    steps = [a_step("x", 1.0)]
    trace = Trace(FRAME, {"model": "m", "method": "dense", "dtype": "int8", "prompt": "Go", "steps": steps})
    assert trace.data()["shown"] == [0, 2]
    assert (trace.texts[2].title, trace.texts[2].before) == ("m, dense, int8", "Go")
    assert Trace(FRAME).beside(steps).data()["shown"] == [0, 2]
    assert Trace(FRAME).data()["shown"] == [0, 1]
    assert Trace(steps).data()["shown"] == [0]
    assert repr(trace) == "<Trace of 6 tokens in 3 texts; save(FILE) writes a page>"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[]], "a text without tokens has no trace; give at least one step"),
        ([], "a trace is of steps or of a table of words; give one"),
        ([7], "a trace takes steps of an engine, or a table of words; give one of them"),
        ([{"text": "x"}], "a result without steps has no trace; give one of clada generate --json"),
        ([FRAME[["text_id"]]], "a table of words has a column 'word' (columns: text_id); give it that name"),
        ([FRAME[:0]], "a table without words has no trace; give one with rows"),
        (["words.docx"], "words.docx is no table of words; give one of .csv, .tsv, .parquet"),
        (["no.csv"], "cannot read no.csv: No such file or directory; check the path"),
    ],
    ids=str,
)
def test_what_has_no_trace_is_refused(given, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Trace(*given)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_text_cannot_leave_its_place_in_the_page():
    trace = Trace([a_step(token, 1.0) for token in HOSTILE])
    found, parts = data_of(trace.html())
    assert found == json.loads(json.dumps(trace.data()))
    assert found["texts"][0]["tokens"] == HOSTILE
    assert set(parts) == {"policy", "style", "application/json", "module"}
    # Nothing but the page's own style and script may run, and nothing may be fetched.
    assert parts["policy"] == (
        f"default-src 'none'; style-src '{_digest(parts['style'])}'; script-src '{_digest(parts['module'])}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = Trace({"model": "</title><script>", "steps": [a_step("x", 1.0)]}).html()
    assert "<title>Trace: &lt;/title&gt;&lt;script&gt;</title>" in title
    assert set(data_of(title)[1]) == set(parts)


def test_a_page_is_small_and_fetches_nothing():
    page = Trace([a_step("x", 1.0)]).html()
    assert len(page.encode()) < 100_000
    # A namespace of SVG is a name, not a place.
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<link|src=|@import|url\(", page.replace("url(#missing)", ""))


def test_a_page_that_cannot_be_written_is_refused_before_a_model_is_opened(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The dog barked.")
    file = tmp_path / "there" / "page.html"
    said = f"cannot write {file}: there is no folder {file.parent}; make it, or give another name\n"
    generate = ["generate", "--model", "no-such-model", "--prompt", "x", "--html", str(file)]
    assert run_clada(generate) == 2
    assert capsys.readouterr().err == f"clada: {said}"
    words = [
        "words",
        "--model",
        "no-such-model",
        "--text",
        str(text),
        "--html",
        str(file),
        "--out",
        str(tmp_path / "w.csv"),
    ]
    assert run_cladastats(words) == 2
    assert capsys.readouterr().err == f"cladastats: {said}"
    assert sorted(tmp_path.iterdir()) == [text]


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    """Control flow alone, as in the tests of the tables of words."""
    monkeypatch.setattr(table_module, "_measure", counted)


@pytest.mark.usefixtures("no_model")
def test_words_writes_the_page_of_its_table(tmp_path):
    stimuli(tmp_path)
    page = tmp_path / "text.html"
    table = ["--table", str(tmp_path / "stimuli.csv"), "--by", "item,cond", "--language", "de", "--layers"]
    assert run_cladastats(["words", *table, "--out", str(tmp_path / "w.csv"), "--html", str(page)]) == 0
    found, _ = data_of(page.read_text(encoding="utf-8"))
    one, two = found["texts"]
    assert found["shown"] == [0, 1]
    assert (one["title"], two["title"]) == ("smollm2-135m, 001_b", "smollm2-135m, 2_a")
    assert one["tokens"] == ["NA", "null", 'say "no"']
    assert one["gaps"] == ["", " ", " "]
    # The numbers of the table, the reading times with their decimal comma among them; no column that names a text.
    assert values_of(one) == {
        "surprisal_bits": [0, 2, 7], "length": [2, 4, 8], "tokens": [1, 1, 1], "rt": [1.5, 2, 3],
    }  # fmt: skip
    assert two["layers"][0]["values"] == [[0, 0.1, 0.2], [4, 4.1, 4.2], [11, 11.1, 11.2]]


@pytest.mark.usefixtures("no_model")
def test_words_shows_a_table_of_another_model_beside(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("One cat.", encoding="utf-8")
    page, table = tmp_path / "text.html", tmp_path / "w.csv"
    words = ["words", "--text", str(tmp_path / "text.txt"), "--out", str(table)]
    assert run_cladastats([*words, "--model", "gemma3-270m"]) == 0
    # The table itself is written anew; what it was before stands on the page.
    assert run_cladastats([*words, "--html", str(page), "--beside", str(table)]) == 0
    found, _ = data_of(page.read_text(encoding="utf-8"))
    assert [text["title"] for text in found["texts"]] == ["smollm2-135m", "gemma3-270m"]
    assert found["shown"] == [0, 1]
    assert values_of(found["texts"][0]) == values_of(found["texts"][1])
    capsys.readouterr()
    assert run_cladastats([*words, "--beside", str(table)]) == 2
    assert capsys.readouterr().err == (
        "cladastats: --beside is of the page, which nothing writes; give a file for it with --html\n"
    )
    assert run_cladastats([*words, "--html", str(page), "--beside", str(tmp_path / "no.csv")]) == 2
    assert (
        capsys.readouterr().err
        == f"cladastats: cannot read {tmp_path / 'no.csv'}: No such file or directory; check the path\n"
    )


@pytest.mark.usefixtures("no_model")
def test_words_of_a_corpus_have_its_reading_times(tmp_path):
    sentences = news_sentences(60)
    table = times_of(sentences, np.random.default_rng(0))
    table.to_csv(tmp_path / "ucl_et.part.tsv", sep="\t", index=False, quoting=3)
    page = tmp_path / "text.html"
    names = ["--text", "ucl_et", "--data", str(tmp_path), "--out", str(tmp_path / "w.csv"), "--html", str(page)]
    assert run_cladastats(["words", *names]) == 0
    text = data_of(page.read_text(encoding="utf-8"))[0]["texts"][3]
    gaze = next(each for each in text["quantities"] if each["name"] == "gaze_ms")
    assert gaze["unit"] == "ms"
    own = table[table["text_id"] == text["title"].rpartition(", ")[2]].sort_values("word_index")
    assert text["tokens"] == own["word"].tolist() == list(sentences[3])
    # Of this corpus the last two words of a sentence do not count, by its description.
    assert gaze["values"] == [*own["gaze_ms"].tolist()[:-2], None, None]
