"""Words: surprisal against another library, effort against its definition, long texts against runs of their own."""

import warnings

import numpy as np
import pytest
import torch
from minicons.scorer import IncrementalLMScorer

from clada.errors import InputError, ModelError
from clada.models.architectures import down_norms, down_projections
from clada.models.open import load_model
from cladastats.cli import main
from cladastats.sequences.sources import load_documents
from cladastats.sequences.windows import separator_token
from cladastats.texts.alignment import tokens_of, word_boundaries
from cladastats.texts.effort import effort_rule
from cladastats.texts.meter import Meter

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
    return Meter(*opened, *effort_rule(opened[0].name_or_path), **options)


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
        table = meter_of(opened, boundaries=given).measure(words)
        _, owner = tokens_of(words, tokenizer)
        text = " ".join(words)
        prefixed = text if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else start + text
        for column, corrected in (("surprisal_tokens_bits", False), ("surprisal_bits", True)):
            scores = scorer.compute_stats(scorer.prepare_text([prefixed]), base_two=True, bow_correction=corrected)[0]
            expected = np.bincount(owner, -np.array(scores))
            np.testing.assert_allclose(table[column], expected, atol=1e-4)


def test_the_correction_moves_chance_between_neighbours(smollm2):
    """What one word gains the one before it loses: the sum changes by the text's last boundary alone."""
    meter = meter_of(smollm2)
    table = meter.measure(SENTENCE.split())
    moved = table["surprisal_tokens_bits"] - table["surprisal_bits"]
    ids, _ = tokens_of(SENTENCE.split(), smollm2[1])
    with torch.inference_mode():
        logits = smollm2[0](torch.tensor([[*meter.start, *ids]])).logits[0, -1].double()
    last = torch.log_softmax(logits, -1)[word_boundaries(smollm2[1])].logsumexp(-1) / np.log(2)
    assert moved.sum() == pytest.approx(float(last), abs=1e-4)
    assert moved.abs().max() > 0.1


def test_effort_is_the_share_of_neurons_above_the_threshold(opened):
    """From hooks of the test's own, token by token, over a run of the whole sentence."""
    model, tokenizer = opened
    thresholds, rule = effort_rule(model.name_or_path)
    words = SENTENCE.split()
    table = Meter(model, tokenizer, thresholds, rule).measure(words)
    ids, owner = tokens_of(words, tokenizer)
    meter, seen = meter_of(opened), {}
    handles = [
        layer.register_forward_pre_hook(lambda _m, inputs, i=i: seen.__setitem__(i, inputs[0][0]))
        for i, layer in enumerate(down_projections(model))
    ]
    with torch.inference_mode():
        hidden = model(torch.tensor([[*meter.start, *ids]]), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert len(hidden) == len(seen) + 1
    norms = down_norms(model)
    for word in range(len(words)):
        tokens = [len(meter.start) + i for i in np.flatnonzero(owner == word)]
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


def test_segments_change_nothing_and_long_texts_have_half_a_window_of_context(smollm2, news, monkeypatch):
    whole = meter_of(smollm2).measure(news)
    monkeypatch.setattr("cladastats.texts.meter.SEGMENT", 17)
    numbers = [name for name in whole if name not in ("word", "text_id")]
    pieces = meter_of(smollm2).measure(news)
    # float32 sums in another order; a neuron at its threshold may flip, one of 1,536 in one of 30 layers
    np.testing.assert_allclose(pieces[numbers], whole[numbers], rtol=1e-3, atol=2e-3)

    window = 80
    found = meter_of(smollm2, window=window).measure(news)
    ids, owner = tokens_of(news, smollm2[1])
    room = window - 1
    assert len(ids) > 2 * window
    meter = meter_of(smollm2)
    expected = meter._window(ids[:room]).surprisal
    while len(expected) < len(ids):
        begin = min(len(expected) - room // 2, len(ids) - room)
        expected = np.append(expected, meter._window(ids[begin : begin + room]).surprisal[len(expected) - begin :])
    np.testing.assert_allclose(found["surprisal_tokens_bits"], np.bincount(owner, expected), atol=1e-3)
    # and it is context that counts: after two windows only some words are as surprising as after all before them
    assert (found["surprisal_tokens_bits"] - whole["surprisal_tokens_bits"]).abs().max() > 0.5


def test_words_and_windows_that_cannot_be_measured(smollm2, tmp_path, capsys):
    with pytest.raises(InputError, match="word 2 is 'b c'"):
        tokens_of(("a", "b c"), smollm2[1])
    with pytest.raises(InputError, match="word 1 is ''"):
        tokens_of(("",), smollm2[1])
    with pytest.raises(ModelError, match="shorter --window"):
        meter_of(smollm2, window=100_000)
    (tmp_path / "a.txt").write_text("a b c")
    for options, message in (
        (["--plan", "none"], "effort needs thresholds"),
        (["--out", str(tmp_path)], "is a folder; name a file with --out"),
        (["--window", "1"], "a window of 1 tokens is too short"),
    ):
        assert main(["words", "--text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "o.csv"), *options]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_thresholds_that_were_not_measured_are_said(capsys):
    """Gemma's shipped plan was measured with `clada` alone."""
    effort_rule("gemma3-270m")
    assert "was not measured with the magnitude test alone (method tt)" in capsys.readouterr().err
    effort_rule("smollm2-135m")
    effort_rule("gemma3-270m", keep=0.5)
    assert capsys.readouterr().err == ""
