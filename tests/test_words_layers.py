"""Words layer by layer: the last layer is the model, the others are its final norm and head on their hidden states."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tiny_models import tiny_model
from word_models import ARCHITECTURES, TEXT, bpe, fast, random_model, saved

from clada.errors import InputError, ModelError
from clada.models.architectures import down_norms, down_projections
from cladastats.texts.layers import layer_figure, layer_tables
from cladastats.texts.meter import Meter, opened_meter
from cladastats.texts.text import Text

TEXTS = [Text("a", tuple(TEXT.split()[:9])), Text("b", tuple(TEXT.split()[9:40]))]

WINDOW = 24


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_is_the_model_and_others_differ(architecture):
    words, long = layer_tables(Meter(random_model(architecture), fast(bpe()), window=WINDOW), TEXTS)
    layers = 3
    assert list(long.columns) == [
        "text_id", "word_index", "word", "layer", "surprisal_bits", "entropy_bits", "hidden_norm",
    ]  # fmt: skip
    assert long["layer"].tolist() == list(range(layers + 1)) * len(words)
    for column in ("surprisal_bits", "entropy_bits", "hidden_norm"):
        by_layer = long[column].to_numpy().reshape(len(words), layers + 1)
        np.testing.assert_array_equal(by_layer[:, -1], words[column])
        # A layer that ends with a norm gives states of one length.
        assert (np.abs(np.diff(by_layer, axis=1)).max(0) > 1e-3).all() or (column, architecture) == (
            "hidden_norm", "openai-gpt",
        )  # fmt: skip
    np.testing.assert_array_equal(long["word"].to_numpy()[:: layers + 1], words["word"])


LENSES = {
    "gpt2": lambda model, h: model.lm_head(model.transformer.ln_f(h)),
    "opt": lambda model, h: model.lm_head(model.model.decoder.project_out(model.model.decoder.final_layer_norm(h))),
    "mamba": lambda model, h: model.lm_head(model.backbone.norm_f(h)),
    "gemma3_text": lambda model, h: 3.0 * torch.tanh(model.lm_head(model.model.norm(h)) / 3.0),
    "openai-gpt": lambda model, h: model.lm_head(h),
}


@pytest.mark.parametrize("architecture", LENSES)
def test_every_layer_is_norm_and_head_of_its_hidden_state(architecture):
    """By transformers' own hidden states, in a window that holds the text; plain sums, as nothing is corrected within
    words of one token."""
    model, tokenizer = random_model(architecture), fast(bpe())
    meter = Meter(model, tokenizer)
    text = TEXTS[0]
    _, long = layer_tables(meter, [text])
    ids = tokenizer(" ".join(text.words)).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    first = np.array([i for i, token in enumerate(tokens) if i == 0 or token.startswith("Ġ")])
    last = np.append(first[1:], len(ids)) - 1
    opening = [i for token, i in tokenizer.get_vocab().items() if token[0] in "ĠĊĉč"] + [0]
    with torch.no_grad():
        hidden = model(torch.tensor([[0, *ids]]), output_hidden_states=True).hidden_states
        if architecture == "mamba":  # its list begins with what the first layer gives
            hidden = (model.backbone.embeddings(torch.tensor([[0, *ids]])), *hidden)
    for layer in range(3):
        with torch.no_grad():
            log_p = torch.log_softmax(LENSES[architecture](model, hidden[layer])[0].double(), -1).numpy() / np.log(2)
        boundary = np.log2(np.exp2(log_p[:, opening]).sum(-1))
        surprisal = np.add.reduceat(-log_p[np.arange(len(ids)), ids], first)
        expected = surprisal + np.where(first == 0, 0, boundary[first]) - boundary[last + 1]
        rows = long[long["layer"] == layer]
        # float32 sums in another order
        np.testing.assert_allclose(rows["surprisal_bits"], expected, atol=1e-4)
        np.testing.assert_allclose(rows["entropy_bits"], -(np.exp2(log_p) * log_p).sum(-1)[first], atol=1e-4)
        norms = hidden[layer][0, 1:].norm(dim=-1).numpy()
        counts = np.bincount(np.repeat(np.arange(len(first)), last - first + 1))
        np.testing.assert_allclose(rows["hidden_norm"], np.add.reduceat(norms, first) / counts, rtol=1e-5)


def test_effort_of_a_layer_is_that_of_the_words(tmp_path):
    """Thresholds taken from the texts themselves; the share that is asked for is the share that is found."""
    model = tiny_model("llama", vocab_size=400)
    meter = Meter(model, fast(bpe()), window=64)
    meter.calibrate(TEXTS, keep=0.3)
    words, long = layer_tables(meter, TEXTS)
    assert long.loc[long["layer"] == 0, "effort"].isna().all()
    efforts = [f"effort_{i:02d}" for i in range(3)]
    for i, column in enumerate(efforts):
        np.testing.assert_array_equal(long.loc[long["layer"] == i + 1, "effort"], words[column])
    np.testing.assert_allclose(words["effort"], words[efforts].mean(axis=1))
    share = np.average(words["effort"], weights=words["tokens"])
    # fewer tokens than the thresholds are found on, and a quantile of 80 x 50 values: a third of a percent
    assert share == pytest.approx(0.3, abs=0.01)
    # by hooks of the test's own, in one run of each text
    norms, seen = down_norms(model), {}
    handles = [
        module.register_forward_pre_hook(lambda _m, inputs, i=i: seen.setdefault(i, []).append(inputs[0].flatten(0, 1)))
        for i, module in enumerate(down_projections(model))
    ]
    for text in TEXTS:
        with torch.no_grad():
            model(torch.tensor([[0, *meter.aligner.align(text).ids]]))
    for handle in handles:
        handle.remove()
    for i in range(3):
        c = torch.cat([part[1:].abs() * norms[i] for part in seen[i]])
        over = (c >= meter.effort.thresholds[i]).double().mean(-1)
        assert np.average(words[efforts[i]], weights=words["tokens"]) == pytest.approx(float(over.mean()), abs=1e-3)
    assert meter.facts()["effort"] == "the texts themselves: 0.3 of the neurons of their tokens"


def test_thresholds_of_texts_need_a_known_family():
    meter = Meter(random_model("gptj"), fast(bpe()))
    with pytest.raises(ModelError, match="model family 'gptj' is not supported"):
        meter.calibrate(TEXTS)
    known = Meter(tiny_model("llama", vocab_size=400), fast(bpe()))
    with pytest.raises(InputError, match=r"keep 1.5 is outside \(0, 1\]"):
        known.calibrate(TEXTS, keep=1.5)


def test_a_hundred_layers_and_more(tmp_path):
    """Columns are numbered, not counted by the width of their names."""
    folder = saved(tmp_path, "gpt2", n_layer=103, n_embd=8, n_head=1)
    words, long = layer_tables(opened_meter(folder, TEXTS[:1]), TEXTS[:1])
    assert long["layer"].max() == 103
    assert not [name for name in words if name.startswith("effort")]
    model = tiny_model("llama", vocab_size=400, num_hidden_layers=101, hidden_size=8, intermediate_size=8)
    meter = Meter(model, fast(bpe()))
    meter.calibrate(TEXTS[:1])
    table = meter.measure(TEXTS[:1])
    columns = [f"effort_{i:02d}" for i in range(101)]
    assert [name for name in table if name.startswith("effort_") and name != "effort_load"] == columns
    np.testing.assert_allclose(table["effort"], table[columns].mean(axis=1))


def test_a_model_whose_norm_is_not_found_is_refused_by_name(monkeypatch):
    model = random_model("gpt2")
    inner = model.transformer.forward

    def doubled(*args, **options):
        output = inner(*args, **options)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    monkeypatch.setattr(model.transformer, "forward", doubled)
    meter = Meter(model, fast(bpe()))
    assert len(meter.measure(TEXTS)) == 40  # without the lens it can be measured
    with pytest.raises(ModelError, match="which cannot be found in GPT2LMHeadModel; leave --layers out"):
        layer_tables(meter, TEXTS)


def test_the_figure_fits_a_column_and_shows_every_word():
    _, long = layer_tables(Meter(random_model("gpt2"), fast(bpe())), TEXTS)
    figure = layer_figure(long[long["text_id"] == "a"])
    FigureCanvasAgg(figure).draw()
    assert tuple(figure.get_size_inches()) == (3.5, 2.9)
    axis, bar = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == list(TEXTS[0].words)
    assert axis.get_ylabel() == "layer (0: embeddings)"
    assert bar.get_ylabel() == "surprisal (bits)"
    (image,) = axis.images
    rows = long[long["text_id"] == "a"].sort_values(["layer", "word_index"])
    np.testing.assert_array_equal(image.get_array(), rows["surprisal_bits"].to_numpy().reshape(4, 9))
    assert image.get_cmap().name == "Greys"
    assert min(label.get_fontsize() for label in axis.get_xticklabels()) >= 7  # points, as journals ask for
    with pytest.raises(InputError, match="a map is of one text, not of 2"):
        layer_figure(long)
    with pytest.raises(
        InputError, match="no 'effort' to draw; choose one of surprisal_bits, entropy_bits, hidden_norm"
    ):
        layer_figure(rows, "effort")
    longer = pd.concat([rows.assign(word_index=rows["word_index"] + 9 * i) for i in range(5)])
    with pytest.raises(InputError, match="45 words are too many"):
        layer_figure(longer)
