"""Words: surprisal against another library, effort against its definition, long texts against runs of their own."""

import warnings

import numpy as np
import pytest
import torch
from minicons.scorer import IncrementalLMScorer
from transformers import AutoConfig
from word_models import plain

from clada.errors import InputError, ModelError
from clada.models.architectures import down_norms, down_projections
from clada.models.open import load_model
from cladastats.cli import main
from cladastats.sequences.sources import load_documents
from cladastats.sequences.windows import separator_token
from cladastats.texts.alignment import Aligner, word_boundaries
from cladastats.texts.effort import effort_rule
from cladastats.texts.meter import Meter, lexical_columns
from cladastats.texts.text import Text

SENTENCE = "Yesterday's “unprecedented” storm, forecasters said, wasn't over: it grew."


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def opened(request):
    return load_model(request.param)


@pytest.fixture(scope="module")
def news():
    """The words of a news article, a few hundred tokens."""
    text = next(d for d in load_documents("news").texts if len(d.split()) > 300)
    return tuple(text.split()[:180])


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


def meter_of(opened, **options):
    return Meter(*opened, effort_rule(opened[0].name_or_path), **options)


def measured(meter, words):
    """The table of one text."""
    return meter.measure([Text("a", tuple(words))])


def aligned(tokenizer, words):
    """The tokens of a text, and the word of each."""
    found = Aligner(tokenizer).align(Text("a", tuple(words)))
    return found.ids, found.owner


def test_surprisal_is_that_of_minicons(opened, news):
    """Summed over tokens, and with the boundaries' correction: to 1e-4 bits, as both sum float32 logits."""
    model, tokenizer = opened
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may set a padding token
        scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    start = (
        tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else separator_token(tokenizer)
    )
    given = list(scorer.bow_subword_idx)  # its correction knows no end of a text
    for words in (SENTENCE.split(), news[:60]):
        table = measured(meter_of(opened, boundaries=given), words)
        _, owner = aligned(tokenizer, words)
        text = " ".join(words)
        prefixed = text if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else start + text
        for column, corrected in (("surprisal_tokens_bits", False), ("surprisal_bits", True)):
            scores = scorer.compute_stats(scorer.prepare_text([prefixed]), base_two=True, bow_correction=corrected)[0]
            expected = np.bincount(owner, -np.array(scores))
            np.testing.assert_allclose(table[column], expected, atol=1e-4)


def test_the_correction_moves_chance_between_neighbours(smollm2):
    """What one word gains the one before it loses: the sum changes by the text's last boundary alone."""
    meter = meter_of(smollm2)
    table = measured(meter, SENTENCE.split())
    moved = table["surprisal_tokens_bits"] - table["surprisal_bits"]
    ids, _ = aligned(smollm2[1], SENTENCE.split())
    with torch.inference_mode():
        logits = smollm2[0](torch.tensor([[meter.start, *ids]])).logits[0, -1].double()
    last = torch.log_softmax(logits, -1)[word_boundaries(smollm2[1])].logsumexp(-1) / np.log(2)
    assert moved.sum() == pytest.approx(float(last), abs=1e-4)
    assert moved.abs().max() > 0.1


def test_effort_is_the_share_of_neurons_above_the_threshold(opened):
    """From hooks of the test's own, token by token, over a run of the whole sentence."""
    model, tokenizer = opened
    effort = effort_rule(model.name_or_path)
    thresholds, rule = effort.thresholds, effort.rule
    words = SENTENCE.split()
    table = measured(Meter(model, tokenizer, effort), words)
    ids, owner = aligned(tokenizer, words)
    meter, seen = meter_of(opened), {}
    handles = [
        layer.register_forward_pre_hook(lambda _m, inputs, i=i: seen.__setitem__(i, inputs[0][0]))
        for i, layer in enumerate(down_projections(model))
    ]
    with torch.inference_mode():
        hidden = model(torch.tensor([[meter.start, *ids]]), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert len(hidden) == len(seen) + 1
    norms = down_norms(model)
    for word in range(len(words)):
        tokens = [1 + i for i in np.flatnonzero(owner == word)]
        c = torch.stack([seen[layer][tokens].abs() * norms[layer] for layer in seen])  # [layers, tokens, neurons]
        share = (c >= torch.from_numpy(thresholds)[:, None, None]).double().mean(-1).mean(1)
        # A neuron at the threshold may fall on either side: float32 sums in another order.
        found = table.loc[word, [f"effort_{i:02d}" for i in seen]].to_numpy(float)
        np.testing.assert_allclose(found, share.numpy(), atol=2.5 / c.shape[-1])
        assert table.loc[word, "effort"] == pytest.approx(found.mean())
        assert table.loc[word, "magnitude"] == pytest.approx(float(c.sum(-1).mean()), rel=1e-4)
        assert table.loc[word, "tokens"] == len(tokens)
        if len(tokens) == 1:
            load = table.loc[word, "surprisal_tokens_bits"], table.loc[word, "entropy_bits"]
            lowered = rule.factor(*rule.loads(*load)) * torch.from_numpy(thresholds)[:, None, None]
            with_rule = float((c >= lowered).double().mean())
            assert table.loc[word, "effort_load"] == pytest.approx(with_rule, abs=2.5 / c.shape[-1])
    assert (table["effort_load"] > table["effort"] + 0.02).any()  # surprising words need more
    assert (rule.lambda_, rule.gamma) == (-0.8, -0.12)  # the paper's, where none are given


def test_pieces_change_nothing_and_long_texts_have_half_a_window_of_context(smollm2, news, monkeypatch):
    whole = measured(meter_of(smollm2), news)
    monkeypatch.setattr("cladastats.texts.reading.LOGITS", 17 * 49152)  # logits of 17 tokens at once
    numbers = [name for name in whole if name not in ("word", "text_id")]
    monkeypatch.setattr("cladastats.texts.reading.LEAST_ROWS", 1)
    pieces = measured(meter_of(smollm2), news)
    # float32 sums in another order; a neuron at its threshold may flip, one of 1,536 in one of 30 layers
    np.testing.assert_allclose(pieces[numbers], whole[numbers], rtol=1e-3, atol=2e-3)

    window = 80
    found = measured(meter_of(smollm2, window=window), news)
    ids, owner = aligned(smollm2[1], news)
    assert len(ids) > 2 * window
    meter, (before, _) = meter_of(smollm2), plain(smollm2[0], meter_of(smollm2).start, ids, window)
    expected = -before[np.arange(len(ids)), ids]
    np.testing.assert_allclose(found["surprisal_tokens_bits"], np.bincount(owner, expected), atol=1e-4)
    # and it is context that counts: after two windows only some words are as surprising as after all before them
    assert (found["surprisal_tokens_bits"] - whole["surprisal_tokens_bits"]).abs().max() > 0.5
    assert meter.window == 2048


def test_windows_that_cannot_be_measured(smollm2, tmp_path, capsys):
    with pytest.raises(ModelError, match="shorter --window"):
        meter_of(smollm2, window=100_000)
    (tmp_path / "a.txt").write_text("a b c")
    for options, message in (
        (["--out", str(tmp_path)], "is a folder; name a file with --out"),
        (["--window", "1"], "a window of 1 tokens is too short"),
        (["--keep", "1.5"], "keep 1.5 is outside (0, 1]"),
    ):
        assert main(["words", "--text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "o.csv"), *options]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_model_without_a_plan_has_no_effort_and_one_line_says_what_would_bring_it(tmp_path, capsys):
    assert effort_rule("smollm2-135m", plan="none") is None
    assert capsys.readouterr().err == ""
    for architecture, why in (
        ("llama", "has no plan; --calibrate, or 'clada calibrate --model"),
        ("gptj", "the family 'gptj' of"),
    ):
        AutoConfig.for_model(architecture).save_pretrained(tmp_path)
        assert effort_rule(str(tmp_path)) is None
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("cladastats: no columns of effort, as ")
        assert why in line
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no plan for"):
        effort_rule(str(tmp_path), keep=0.5)


def test_frequencies_are_of_a_language():
    words = ["The", "cat,"]
    english = lexical_columns(words, "en")
    assert english["length"] == [3, 3]
    assert english["frequency_zipf"][0] > english["frequency_zipf"][1] > 3
    assert list(lexical_columns(["--", "cat"], None).items()) == [("length", [2, 3])]


def test_thresholds_that_were_not_measured_are_said(capsys):
    """Gemma's shipped plan was measured with `clada` alone."""
    effort_rule("gemma3-270m")
    assert "was not measured with the magnitude test alone (method tt)" in capsys.readouterr().err
    effort_rule("smollm2-135m")
    effort_rule("gemma3-270m", keep=0.5)
    assert capsys.readouterr().err == ""
