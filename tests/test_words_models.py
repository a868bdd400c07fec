"""Words of any architecture: against transformers run plainly, a window after the other, and against minicons."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from minicons.scorer import IncrementalLMScorer
from transformers import BertConfig, BertLMHeadModel, GPT2LMHeadModel
from word_models import ARCHITECTURES, TEXT, bpe, fast, plain, random_model, saved

from clada.errors import InputError, ModelError
from clada.models.open import load_config, load_model, load_tokenizer, model_revision
from cladastats.texts.meter import Meter, measure_texts
from cladastats.texts.reading import Reader, check_device, read_out
from cladastats.texts.text import Text

WINDOW = 24

# Shorter than the window, as long, and several times as long; several of one length.
TEXTS = [
    Text(str(i), tuple(TEXT.split()[begin:end]))
    for i, (begin, end) in enumerate([(0, 3), (10, 15), (0, 60), (20, 21), (30, 35), (40, 45), (5, 70), (70, 82)])
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of models by architecture, made when they are asked for."""
    made = {}

    def folder(architecture):
        if architecture not in made:
            made[architecture] = saved(tmp_path_factory.mktemp("models") / architecture, architecture)
        return made[architecture]

    return folder


def expected_words(model, tokenizer, text, window):
    """Surprisal, corrected and plain, and entropy of words, by code that shares nothing with the package."""
    ids = tokenizer(" ".join(text.words)).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    begins = np.array([i == 0 or token.startswith("Ġ") for i, token in enumerate(tokens)])
    before, after = plain(model, 0, ids, window)
    surprisal, entropy = -before[np.arange(len(ids)), ids], -(np.exp2(before) * before).sum(-1)
    opening = [i for token, i in tokenizer.get_vocab().items() if token[0] in "ĠĊĉč"] + [0]
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(ids)) - 1
    moved = [np.log2(np.exp2(part[:, opening]).sum(-1)) for part in (before, after)]
    plain_sum = np.add.reduceat(surprisal, first)
    corrected = plain_sum + np.where(first == 0, 0, moved[0][first]) - moved[1][last]
    return plain_sum, corrected, entropy[first]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_words_of_every_architecture_are_those_of_transformers(folders, architecture):
    """To 1e-4 bits: float32 sums in another order, as texts are read together here and one by one there."""
    table = measure_texts(folders(architecture), TEXTS, window=WINDOW)
    model, tokenizer = random_model(architecture), load_tokenizer(folders(architecture))
    for text in TEXTS:
        rows = table[table["text_id"] == text.text_id]
        found = expected_words(model, tokenizer, text, WINDOW)
        assert tuple(rows["word"]) == text.words
        assert np.ptp(found[2]) > 0.02 or len(text.words) == 1  # predictions that are all alike would show nothing
        for column, values in zip(("surprisal_tokens_bits", "surprisal_bits", "entropy_bits"), found, strict=True):
            np.testing.assert_allclose(rows[column], values, atol=1e-4, err_msg=f"{column} of text {text.text_id}")
    assert list(dict.fromkeys(table["text_id"])) == [text.text_id for text in TEXTS]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_do_not_depend_on_what_is_read_together(folders, architecture):
    together = measure_texts(folders(architecture), TEXTS, window=WINDOW)
    alone = [measure_texts(folders(architecture), [text], window=WINDOW) for text in TEXTS[:4]]
    for number, table in enumerate(alone):
        rows = together[together["text_id"] == str(number)]
        for column in ("surprisal_bits", "entropy_bits"):
            np.testing.assert_allclose(rows[column], table[column], atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "mixtral"])
def test_words_are_those_of_minicons(folders, architecture):
    model, tokenizer = load_model(folders(architecture))
    table = measure_texts(folders(architecture), TEXTS[:2], window=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it sets a padding token
        scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    for text in TEXTS[:2]:
        sentence = " ".join(text.words)
        scores = scorer.compute_stats(scorer.prepare_text([f"<|endoftext|>{sentence}"]), base_two=True)[0]
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(sentence).input_ids)
        first = [i for i, token in enumerate(tokens) if i == 0 or token.startswith("Ġ")]
        found = table.loc[table["text_id"] == text.text_id, "surprisal_tokens_bits"]
        np.testing.assert_allclose(found, -np.add.reduceat(scores, first), atol=1e-4)


def test_weights_kept_in_half_precision_are_computed_in_float32(folders, tmp_path):
    model = random_model("gpt2").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    fast(bpe()).save_pretrained(tmp_path)
    table = measure_texts(str(tmp_path), TEXTS[:1])
    assert table.attrs["words"]["dtype"] == "float32"
    expected, _, _ = expected_words(model.float(), load_tokenizer(str(tmp_path)), TEXTS[0], 64)
    np.testing.assert_allclose(table["surprisal_tokens_bits"], expected, atol=1e-4)


class Reads:
    """What a base model is given, and may be changed to give."""

    def __init__(self, model, change=lambda states: states):
        self.given, self.forward, self.change = [], model.base_model.forward, change
        model.base_model.forward = self

    def __call__(self, input_ids=None, **options):
        self.given.append(input_ids)
        output = self.forward(input_ids=input_ids, **options)
        output.last_hidden_state = self.change(output.last_hidden_state)
        return output

    def of_texts(self):
        """The batches after the four runs that the model is tried in."""
        return self.given[4:]


def is_filled_up(ids):
    """No text ends with the start token."""
    return bool((ids[:, -1] == 0).any())


def test_short_texts_are_read_together_and_memory_has_a_bound(monkeypatch):
    monkeypatch.setattr("cladastats.texts.reading.BATCH", 100)
    monkeypatch.setattr("cladastats.texts.reading.LOGITS", 7 * 400)  # logits of seven tokens at once
    monkeypatch.setattr("cladastats.texts.reading.LEAST_ROWS", 1)
    rows = []

    def counted(logits, *rest):
        rows.append(len(logits))
        return read_out(logits, *rest)

    monkeypatch.setattr("cladastats.texts.reading.read_out", counted)
    model = random_model("gpt2")
    reads = Reads(model)
    Meter(model, fast(bpe()), window=WINDOW).measure(TEXTS)
    shapes = [tuple(ids.shape) for ids in reads.of_texts()]
    assert max(b * t for b, t in shapes) <= 100
    assert max(b for b, _ in shapes) > 2
    assert max(t for _, t in shapes) == WINDOW
    assert any(map(is_filled_up, reads.of_texts()))
    assert max(rows) == 7


def test_where_filling_up_is_not_exact_only_texts_of_one_length_are_read_together():
    """A model whose values move a little, but more than by rounding, with what follows."""
    model = random_model("gpt2")
    reads = Reads(model, lambda states: states + 1e-5 * states.shape[1] * torch.linspace(-1, 1, states.shape[2]))
    Meter(model, fast(bpe()), window=WINDOW).measure(TEXTS)
    assert not any(map(is_filled_up, reads.of_texts()))
    assert max(len(ids) for ids in reads.of_texts()) > 1


def test_a_model_that_looks_ahead_is_refused():
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.5,
    )  # fmt: skip
    model = BertLMHeadModel(config).eval()
    with pytest.raises(ModelError, match="BertLMHeadModel predicts a word from those after it too"):
        Meter(model, fast(bpe())).measure(TEXTS[:1])


class Skips(GPT2LMHeadModel):
    """Its head reads more than the hidden states, so it cannot be run apart from the rest."""

    def forward(self, input_ids=None, **options):
        output = super().forward(input_ids=input_ids, **options)
        output.logits[..., ::2] += 3 * self.transformer.wte(input_ids)[..., :1]
        return output


def test_a_class_whose_head_cannot_be_run_apart_is_read_whole():
    tokenizer, plain_model = fast(bpe()), random_model("gpt2")
    model = Skips(plain_model.config).eval()
    model.load_state_dict(plain_model.state_dict())
    table = Meter(model, tokenizer, window=WINDOW).measure(TEXTS[:3])
    for text in TEXTS[:3]:
        expected, _, _ = expected_words(model, tokenizer, text, WINDOW)
        found = table.loc[table["text_id"] == text.text_id, "surprisal_tokens_bits"]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    other = Meter(plain_model, tokenizer, window=WINDOW).measure(TEXTS[:3])
    assert (table["surprisal_tokens_bits"] - other["surprisal_tokens_bits"]).abs().max() > 0.01


def test_a_device_that_computes_otherwise_is_refused():
    """Two models on the CPU, one of which has a weight moved, in place of two devices."""
    start, ids = 0, [7, 8, 9, 10]
    on_cpu = Reader(random_model("gpt2"), start, 32, []).read([ids])[0]
    check_device(on_cpu, Reader(random_model("gpt2"), start, 32, []).read([ids])[0], "cuda")
    other = random_model("gpt2")
    other.transformer.h[0].mlp.c_fc.weight *= 1.01
    found = Reader(other, start, 32, []).read([ids])[0]
    with pytest.raises(ModelError, match=r"on cuda this model's surprisal differs from the CPU's by .* use device cpu"):
        check_device(on_cpu, found, "cuda")
    with pytest.raises(ModelError, match="differs from the CPU's by nan"):
        check_device(on_cpu, replace(on_cpu, surprisal=on_cpu.surprisal * np.nan), "mps")


def test_devices_that_are_not_there(folders):
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            measure_texts(folders("gpt2"), TEXTS[:1], device="cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(ModelError, match="no MPS device"):
            measure_texts(folders("gpt2"), TEXTS[:1], device="mps")
    with pytest.raises(ModelError, match="unknown device 'tpu'"):
        measure_texts(folders("gpt2"), TEXTS[:1], device="tpu")


def test_one_pass_over_logits_is_the_definition():
    """Against float64, and with words that are ruled out; float32 sums of 50,000 terms are good for 1e-5 bits."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(9, 50_000, generator=generator)
    logits[:3, ::2] = -torch.inf
    targets = torch.arange(1, 10) * 1001 // 2 * 2 + 1
    marked = (torch.arange(50_000) % 3 == 0).float()
    log_p = torch.log_softmax(logits.double(), -1)
    expected = torch.stack(
        [
            -log_p[torch.arange(9), targets],
            -torch.xlogy(log_p.exp(), log_p.exp()).sum(-1),
            log_p[:, marked > 0].logsumexp(-1),
        ]
    ) / np.log(2)
    torch.testing.assert_close(read_out(logits, targets, marked), expected, atol=1e-5, rtol=0)


def test_values_that_are_no_numbers_are_refused():
    model = random_model("gpt2")
    model.transformer.h[1].mlp.c_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="gives no number for the surprisal of text 1"):
        Meter(model, fast(bpe())).measure(TEXTS[:1])


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(InputError, match="the model has embeddings of 300; use the tokenizer that belongs"):
        Meter(random_model("gpt2", vocab_size=300), fast(bpe())).measure(TEXTS)


def test_revisions_are_of_hub_ids_alone(folders):
    folder = folders("gpt2")
    for opener in (load_model, load_config, load_tokenizer, model_revision):
        for name in (folder, "smollm2-135m"):
            with pytest.raises(ModelError, match="is no hub id, so it has no revision 'step1000'; leave"):
                opener(name, revision="step1000")
    with pytest.raises(ModelError, match="unknown model 'somebody/pythia' at revision 'step1000'"):
        load_config("somebody/pythia", revision="step1000")
