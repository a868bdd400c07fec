"""Stimuli on tiny models of transformers: regions, context, layers and thresholds of the texts themselves."""

import json

import numpy as np
import pandas as pd
import pytest
from word_models import bpe, fast, saved

import cladastats
from cladastats.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "olmo2", "olmo2")


WORDS = ["The", "old", "man", "the", "boats", "."]


def measured(folder, words, **columns):
    frame = pd.DataFrame({"word": words, "item": 1, **columns})
    return cladastats.word_table(frame, folder, by="item", context_column="c" if "c" in columns else None)


def test_a_region_is_the_sum_of_its_words(folder):
    """And a full stop in a row of its own is one of the word's tokens else: the same text is read."""
    words = measured(folder, WORDS)
    regions = measured(folder, ["The old man", "the boats."])
    sums = np.add.reduceat(words[["surprisal_bits", "surprisal_tokens_bits", "tokens"]].to_numpy(float), [0, 3])
    # float32 sums in another order
    np.testing.assert_allclose(regions[["surprisal_bits", "surprisal_tokens_bits", "tokens"]], sums, atol=1e-4)
    np.testing.assert_allclose(regions["entropy_bits"], words["entropy_bits"].iloc[[0, 3]], atol=1e-4)
    assert list(regions["length"]) == [9, 8]


def test_the_context_is_read_and_not_measured(folder):
    with_context = measured(folder, WORDS, c="It was late.")
    joined = measured(folder, ["It", "was", "late.", *WORDS])
    numbers = ["surprisal_bits", "entropy_bits", "tokens"]
    np.testing.assert_allclose(with_context[numbers], joined[numbers].iloc[3:], atol=1e-4)
    assert list(with_context["word"]) == WORDS
    assert (with_context["surprisal_bits"] - measured(folder, WORDS)["surprisal_bits"]).abs().max() > 0.01


def test_effort_is_there_on_request_alone(folder, tmp_path, capsys):
    path = tmp_path / "t.csv"
    pd.DataFrame({"word": WORDS, "item": 1}).to_csv(path, index=False)
    columns = {}
    for name, options in (("none", ["--no-effort"]), ("texts", ["--calibrate"])):
        out = tmp_path / f"{name}.csv"
        assert (
            main(["words", "--model", folder, "--table", str(path), "--by", "item", *options, "--out", str(out)]) == 0
        )
        columns[name] = list(pd.read_csv(out))
        assert "no columns of effort" not in capsys.readouterr().err
    assert set(columns["texts"]) - set(columns["none"]) == {
        "effort", "effort_load", "magnitude", "effort_00", "effort_01", "effort_02",
    }  # fmt: skip
    assert json.loads((tmp_path / "texts.json").read_text())["effort"].startswith("the texts themselves: 0.6")
    assert json.loads((tmp_path / "none.json").read_text())["effort"] is None


def test_layers_end_in_what_the_model_says(folder, tmp_path):
    path, out = tmp_path / "a.jsonl", tmp_path / "w.csv"
    path.write_text('{"text_id": "001", "text": "The committee met."}\n{"text_id": "2", "text": "Nobody knew."}\n')
    assert main(["words", "--model", folder, "--text", str(path), "--layers", "--no-effort", "--out", str(out)]) == 0
    long = pd.read_csv(tmp_path / "w-layers.csv", dtype={"text_id": str})
    words = pd.read_csv(out, dtype={"text_id": str})
    last = long[long["layer"] == 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(last[["text_id", "word_index", "word"]], words[["text_id", "word_index", "word"]])
    np.testing.assert_allclose(last["surprisal_bits"], words["surprisal_bits"], atol=1e-4)
    assert len(long) == 4 * len(words)
    assert (tmp_path / "w-layers.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "w-layers.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in tmp_path.iterdir()} == {
        "a.jsonl", "w.csv", "w.json", "w.parquet", "w-layers.csv", "w-layers.json", "w-layers.parquet", "w-layers.pdf",
        "w-layers.png",
    }  # fmt: skip


def test_rows_of_punctuation_that_are_one_token_together_are_words_of_their_own(tmp_path, capsys):
    tokenizer = fast(bpe())
    tokenizer.add_tokens(["..."])
    model = saved(tmp_path / "model", "olmo2", tokenizer)
    path, out = tmp_path / "t.csv", tmp_path / "w.csv"
    words = ["The", "man", ".", "No", ".", ".", "."]
    pd.DataFrame({"item": [7] * 3 + [8] * 4, "cond": "b", "word": words}).to_csv(path, index=False)
    options = ["--by", "item,cond", "--no-effort", "--out", str(out)]
    assert main(["words", "--model", model, "--table", str(path), *options]) == 0
    assert "attached words that shared their only token are read as tokens of their own" in capsys.readouterr().err
    table = pd.read_csv(out)
    assert table["word"].tolist() == words
    assert (table["surprisal_bits"] > 0).all()
    assert table["tokens"].tolist()[-3:] == [1, 1, 1]
