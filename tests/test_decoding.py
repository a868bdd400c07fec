"""What an engine is given and how it goes on: text as it comes, generation configs, seeds, threads, mistakes."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_engine import PROMPT, plan_of, transformers_greedy
from tiny_models import tiny_model, tokens
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoModel, PreTrainedTokenizerFast

import clada
from clada.assembly import plan_and_rule
from clada.decoding import given, steps
from clada.engine import Engine
from clada.errors import InputError, ModelError
from clada.measure.loss import Scorer
from clada.methods.coefficients import Coefficients
from clada.methods.plan import Shares
from clada.models.open import load_model
from clada.sampling import Sampling
from clada.streaming import StoppingStream, TextStream, special_ids


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def byte_fallback():
    """A tokenizer as LLaMA's: pieces with a mark for spaces, and bytes for what has no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a", "b", "▁b", "é", "▁é"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def streamed(tokenizer, prompt, new):
    stream = TextStream(tokenizer, prompt, special_ids(tokenizer))
    return [stream(token, last=i == len(new) - 1) for i, token in enumerate(new)]


def expected_text(tokenizer, prompt, new):
    """Of all tokens, without what it has in common with that of the prompt."""
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *new]))
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
    return whole[same:]


# -- text as it comes ------------------------------------------------------------------------------------------------


def test_a_prompt_that_ends_inside_a_character_goes_on_with_the_character(smollm2):
    _, tokenizer = smollm2
    ids = tokenizer("The price in 日本 is 3 € 😀 today")["input_ids"]
    for cut in range(1, len(ids)):
        prompt, new = ids[:cut], ids[cut:]
        pieces = streamed(tokenizer, prompt, new)
        assert "".join(pieces) == expected_text(tokenizer, prompt, new)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    broken = next(cut for cut in range(len(ids)) if tokenizer.decode(ids[:cut]).endswith("\N{REPLACEMENT CHARACTER}"))
    assert streamed(tokenizer, ids[:broken], ids[broken:])[-1] != ""


def test_what_ends_inside_a_character_is_given_out_as_it_is(smollm2):
    _, tokenizer = smollm2
    ids = tokenizer("a 😀")["input_ids"]
    cut = next(n for n in range(2, len(ids)) if tokenizer.decode(ids[:n]).endswith("\N{REPLACEMENT CHARACTER}"))
    pieces = streamed(tokenizer, ids[:1], ids[1:cut])
    assert pieces[-1].endswith("\N{REPLACEMENT CHARACTER}")
    assert tokenizer.decode(ids[:1]) + "".join(pieces) == tokenizer.decode(ids[:cut])


def test_bytes_that_are_no_text_come_as_the_tokenizer_decodes_them(byte_fallback):
    ids = {name: byte_fallback.convert_tokens_to_ids(name) for name in ("<0x0A>", "<0xF0>", "a", "▁a", "é", "▁")}
    new = [ids["<0x0A>"], ids["<0xF0>"], ids["a"]]
    pieces = streamed(byte_fallback, [ids["▁a"]], new)
    assert "".join(pieces) == byte_fallback.decode([ids["▁a"], *new])[1:] == "\N{REPLACEMENT CHARACTER}" * 2 + "a"
    emoji = [byte_fallback.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "😀".encode()]
    assert streamed(byte_fallback, [ids["▁a"]], [*emoji, ids["▁"], ids["é"]]) == ["", "", "", "", "😀 ", "é"]
    assert streamed(byte_fallback, [ids["▁a"]], emoji) == ["", "", "", "😀"]
    assert streamed(byte_fallback, [ids["▁a"], *emoji[:2]], [*emoji[2:], ids["a"]]) == ["", "", "😀a"]


@pytest.mark.parametrize("which", ["bytes", "fallback"])
def test_pieces_put_together_are_the_text_whatever_the_tokens(which, smollm2, byte_fallback):
    tokenizer = smollm2[1] if which == "bytes" else byte_fallback
    rng = np.random.default_rng(0)
    for _ in range(60):
        ids = rng.integers(0, len(tokenizer), 40).tolist()
        if which == "bytes":  # single bytes are the first tokens but the special ones
            ids = np.where(rng.random(40) < 0.6, rng.integers(17, 273, 40), ids).tolist()
        cut = int(rng.integers(1, 20))
        assert "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == expected_text(tokenizer, ids[:cut], ids[cut:])


@pytest.mark.parametrize("which", ["bytes", "fallback"])
def test_text_ends_with_the_token_that_completes_a_stop_string(which, smollm2, byte_fallback):
    """Against a search in the text of all tokens so far, after each of them."""
    tokenizer = smollm2[1] if which == "bytes" else byte_fallback
    rng = np.random.default_rng(1)
    ended = 0
    for _ in range(150):
        ids = rng.integers(0, len(tokenizer), 40).tolist()
        if which == "bytes":  # single bytes, as in the test above
            ids = np.where(rng.random(40) < 0.6, rng.integers(17, 273, 40), ids).tolist()
        prompt, new = ids[:10], ids[10:]
        text = expected_text(tokenizer, prompt, new)
        cuts = rng.integers(0, len(text) - 4, 2)
        strings = [text[cut : cut + length] for cut, length in zip(cuts, (2, 4), strict=True)]
        stream = StoppingStream(TextStream(tokenizer, prompt, special_ids(tokenizer)), strings)
        pieces = []
        for number, token in enumerate(new, 1):
            pieces.append(stream(token, last=number == len(new)))
            so_far = expected_text(tokenizer, prompt, new[:number])
            found = [so_far.index(string) for string in strings if string in so_far]
            assert stream.ended == bool(found)
            if found:
                assert "".join(pieces) == so_far[: min(found)]
                break
            assert not any(string in "".join(pieces) for string in strings)
        ended += stream.ended
    assert ended > 100  # bytes that turn out to be part of a character can take a string away again


def test_what_could_begin_a_stop_string_is_held_back_until_it_does_not(smollm2):
    _, tokenizer = smollm2

    def pieces(strings, *texts):
        stream = StoppingStream(TextStream(tokenizer, [], special_ids(tokenizer)), strings)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        assert all(len(of_text) == 1 for of_text in ids)
        given = [stream(of_text[0], last=n == len(ids)) for n, of_text in enumerate(ids, 1)]
        return given, stream.ended

    assert pieces(["one two four"], " one", " two", " three") == ([" ", "", "one two three"], False)
    assert pieces(["one two four"], " one", " two", " four") == ([" ", "", ""], True)
    assert pieces(["one two four"], " one", " two") == ([" ", "one two"], False)  # the last: nothing more can come
    assert pieces(["on"], " two", " one") == ([" tw", "o "], True)
    assert pieces(["\n\n", "two\n"], " one", "\n", " two", "\n") == ([" one", "", "\n ", ""], True)
    assert pieces(["ee t", "two"], " three", " two") == ([" thr", ""], True)  # both at once: it ends before the first
    assert pieces([], " one", " two") == ([" one", " two"], False)


def test_a_long_text_is_decoded_by_its_end(smollm2, monkeypatch):
    _, tokenizer = smollm2
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: decoded.append(len(ids)) or decode(ids, **options))
    new = tokenizer("The minister said on Monday that the railway line would be late again. " * 40)["input_ids"]
    assert "".join(streamed(tokenizer, new[:300], new)) == decode(new)
    assert sum(decoded) < 2 * 300 + 10 * len(new)


def test_the_engine_streams_the_text_of_its_tokens(smollm2):
    model, tokenizer = smollm2
    engine = Engine(model, tokenizer, plan="none", coefficients="none", dtype="int8")
    ids = tokenizer("Write ten emojis: 😀😁")["input_ids"][:-1]
    steps_ = list(engine.generate(ids, 24, temperature=1.5, seed=3))
    new = [step.token_id for step in steps_]
    assert "".join(step.token for step in steps_) == expected_text(tokenizer, ids, new)


# -- how tokens are chosen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 2.0},
        {"encoder_no_repeat_ngram_size": 1},
        {"suppress_tokens": "greedy"},
        {"begin_suppress_tokens": "greedy"},
        {"bad_words_ids": "greedy"},
        {"eos_token_id": "third", "min_new_tokens": 8},
        {"eos_token_id": "third", "min_length": 50},
        {"forced_eos_token_id": 7},
        {"sequence_bias": "greedy"},
        {"eos_token_id": 5, "exponential_decay_length_penalty": (4, 3.0)},
    ],
    ids=lambda options: "-".join(options),
)
def test_generation_configs_are_obeyed_as_transformers_greedy_does(options):
    model = tiny_model("llama", seed=3)
    free = transformers_greedy(model, PROMPT, 12)
    options = dict(options)
    for name, value in options.items():
        if value == "greedy":
            chosen = {"bad_words_ids": [[free[0]], free[1:3]], "sequence_bias": [[[free[0]], -50.0]]}
            options[name] = chosen.get(name, free[:2])
        elif value == "third":
            options[name] = free[2]
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    expected = transformers_greedy(model, PROMPT, 12)
    engine = Engine(model, None, plan="none", coefficients="none")
    found = list(engine.generate(PROMPT, 12))
    assert [step.token_id for step in found] == expected
    assert expected != free
    # Surprisal and entropy are those of the raw softmax.
    state = engine.prefill([PROMPT], 1)
    assert found[0].surprisal_bits == state.outcome.load(0, expected[0])[0]
    several = [[], []]
    for index, step in engine.generate_batch([PROMPT, tokens(45, seed=1)], 12):
        several[index].append(step.token_id)
    assert several == [expected, transformers_greedy(model, tokens(45, seed=1), 12)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 4), ("guidance_scale", 1.5), ("max_time", 3.0), ("penalty_alpha", 0.6)],
)
def test_what_a_generation_config_asks_for_in_vain_is_refused_by_name(name, value):
    model = tiny_model("llama")
    engine = Engine(model, None, plan="none", coefficients="none")
    setattr(model.generation_config, name, value)
    with pytest.raises(InputError, match=f"asks for {name}=.*which the engine does not do"):
        Engine(model, None, plan="none", coefficients="none")
    with pytest.raises(InputError, match=f"set model.generation_config.{name} to None"):
        list(engine.generate(PROMPT, 2))
    setattr(model.generation_config, name, None)
    for option, wrong, reason in (
        ("repetition_penalty", -1.0, "repetition_penalty=-1.0 is no number above 0"),
        ("repetition_penalty", "much", "repetition_penalty='much' is no number above 0"),
        ("encoder_repetition_penalty", -1.0, r"`penalty` has to be a strictly positive float, but is -1\.0"),
    ):
        changed = copy.deepcopy(model.generation_config)
        setattr(model.generation_config, option, wrong)
        with pytest.raises(InputError, match=rf"generation config cannot be used \({reason}\); correct it"):
            list(engine.generate(PROMPT, 2))
        setattr(model.generation_config, option, getattr(changed, option))


def test_every_prompt_of_a_batch_draws_for_itself():
    engine = Engine(tiny_model("llama"), None, plan="none", coefficients="none")
    sampling = Sampling(temperature=1.0, seed=1)

    def texts(prompts, first=0):
        found = [[] for _ in prompts]
        state = engine.prefill(prompts, 12)
        for index, step in engine.decode(state, 12, sampling, first):
            found[index].append(step.token_id)
        return found

    four = texts([PROMPT] * 4)
    assert len(set(map(tuple, four))) == 4
    assert texts([PROMPT] * 4) == four
    assert texts([PROMPT]) == four[:1] == [[s.token_id for s in engine.generate(PROMPT, 12, temperature=1.0, seed=1)]]
    # However many are decoded side by side, a prompt's own stream goes with its number.
    assert texts([PROMPT] * 2) + texts([PROMPT] * 2, first=2) == four


# -- one iterator ----------------------------------------------------------------------------------------------------


def test_teacher_forcing_is_a_sampler_and_its_loss_that_of_generation():
    model = tiny_model("llama", seed=5)
    model.generation_config.eos_token_id = None
    plan = plan_of(model, Shares(neurons=0.3), {"0.7": {"surprisal_bits": 5.0, "entropy_bits": 5.0}})
    engine = Engine(model, None, plan=plan, coefficients=Coefficients(-0.5, 0.2))
    free = list(engine.generate(PROMPT, 10, temperature=1.0, seed=2))
    ids = [step.token_id for step in free]
    state = engine.prefill([PROMPT], 10)
    records = list(steps(engine.decoder, engine.policy, state, given([[i] for i in ids]), 10))
    assert [r.tokens for r in records] == [[i] for i in ids]
    assert [r.surprisal[0] for r in records] == [step.surprisal_bits for step in free]
    assert [r.loads[0] for r in records] == [(step.load_surprisal, step.load_entropy) for step in free]
    assert len({load for r in records for load in r.loads}) > 1
    scorer = Scorer(engine.decoder, [PROMPT + ids], len(PROMPT), engine.policy)
    loss = scorer.score(engine.policy)
    assert loss.surprisal[0].tolist() == [step.surprisal_bits for step in free]
    assert loss.entropy[0].tolist() == [step.entropy_bits for step in free]
    assert loss.active == pytest.approx(np.mean([step.active_fraction for step in free[:-1]]), rel=1e-12)


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["clada", "griffin"])
def test_an_engine_serves_several_threads(method):
    model = tiny_model("llama", seed=3)
    model.generation_config.eos_token_id = None
    plan = plan_of(model, Shares(neurons=0.1, prompt=0.3), methods=[method])
    engine = Engine(model, None, method=method, plan=plan, coefficients="none", threads=2)
    prompts = [tokens(20 + i, seed=i) for i in range(6)]
    alone = [[step.token_id for step in engine.generate(prompt, 16)] for prompt in prompts]

    def ids_of(prompt):
        return [step.token_id for step in engine.generate(prompt, 16)]

    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert list(pool.map(ids_of, prompts, timeout=300)) == alone
    assert [ids_of(prompt) for prompt in prompts] == alone


def test_generators_go_on_in_turn_from_one_thread_and_from_several():
    model = tiny_model("llama", seed=3)
    model.generation_config.eos_token_id = None
    plan = plan_of(model, Shares(neurons=0.1, prompt=0.3))
    engine = Engine(model, None, plan=plan, coefficients="none", threads=2)
    prompts = [tokens(20 + i, seed=i) for i in range(2)]
    alone = [[step.token_id for step in engine.generate(prompt, 12)] for prompt in prompts]
    running = [engine.generate(prompt, 12) for prompt in prompts]
    found = [[], []]
    for _ in range(12):
        for row, generator in zip(found, running, strict=True):
            row.append(next(generator).token_id)
    assert found == alone
    running, found = [engine.generate(prompt, 12) for prompt in prompts], [[], []]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for _ in range(12):
            for row, generator, thread in zip(found, running, (one, other), strict=True):
                row.append(thread.submit(next, generator).result(timeout=300).token_id)
    assert found == alone


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_tokens_without_an_embedding_are_refused_wherever_they_come_from(smollm2):
    model, tokenizer = smollm2
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<added>"])
    engine = Engine(model, larger, plan="none", coefficients="none", dtype="int8")
    with pytest.raises(InputError, match=r"outside the vocabulary of 49,152 \(49152\); use the model's own tokenizer"):
        next(engine.generate("some <added> text", 2))
    small = tiny_model("llama")
    small.config.vocab_size = 10_000  # says more than the table has
    engine = Engine(small, None, plan="none", coefficients="none")
    for ids in ([1, 311], [1, -1], [311, 1]):
        with pytest.raises(InputError, match="outside the vocabulary of 311"):
            next(engine.generate(ids, 2))
        with pytest.raises(InputError, match="not all of the model's 311"):
            engine.prefill([ids], 2)
    state = engine.prefill([[1, 2]], 2)
    with pytest.raises(InputError, match="not all of the model's 311"):
        engine.decoder.step(state, [311], engine.policy.dense(1))
    small.config.vocab_size = 5  # says less
    assert next(engine.generate([1, 310], 2)).active_fraction == 1


def test_a_model_in_training_mode_is_evaluated_and_left_in_it():
    model = tiny_model("gpt2", seed=2)  # with dropout of 0.1 where it is trained
    model.generation_config.eos_token_id = None
    assert model.config.resid_pdrop == 0.1
    plan = plan_of(model, Shares(neurons=0.1))
    expected = [s.token_id for s in Engine(model, None, plan=plan, coefficients="none").generate(PROMPT, 12)]
    quiet = model.transformer.h[0].mlp
    model.train()
    quiet.eval()
    engine = Engine(model, None, plan=plan, coefficients="none")
    assert [s.token_id for s in engine.generate(PROMPT, 12)] == expected
    with clada.sparse(model, plan, "none"):
        assert not model.training
        ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert ids[0, len(PROMPT) :].tolist() == expected
    assert model.training
    assert model.transformer.h[1].mlp.training
    assert not quiet.training


def test_logits_that_are_no_numbers_are_refused():
    model = tiny_model("llama")
    engine = Engine(model, None, plan="none", coefficients="none")
    generator = engine.generate(PROMPT, 8)
    next(generator)
    engine.weights.tensors.down[1, 3, 5] = np.nan  # arises while running: packing refuses it
    with pytest.raises(ModelError, match="logits are not finite numbers"):
        list(generator)
    head = Engine(model, None, plan="none", coefficients="none")
    head.weights.tensors.head[17] = np.nan  # one word alone
    with pytest.raises(ModelError, match="logits are not finite numbers"):
        next(head.generate(PROMPT, 2))


def test_a_plan_belongs_to_the_weights(smollm2):
    model, tokenizer = smollm2
    assert Engine(model, tokenizer, coefficients="none", dtype="int8").measured
    changed = copy.deepcopy(model)
    changed.name_or_path = model.name_or_path
    # As an edit that leaves no trace in the tensor's version: one neuron of one layer.
    changed.model.layers[7].mlp.down_proj.weight.data[:, 11] *= 3
    with pytest.raises(InputError, match="the weights of this model are not those of smollm2-135m"):
        Engine(changed, tokenizer, coefficients="none", dtype="int8")
    with pytest.raises(InputError, match="not those of smollm2-135m"), clada.sparse(changed, coefficients="none"):
        pass
    given_plan, _ = plan_and_rule(model.name_or_path, model.config.num_hidden_layers, "clada", None, "none")
    with pytest.warns(UserWarning, match="made of other weights of smollm2-135m"):
        engine = Engine(changed, tokenizer, plan=given_plan, coefficients="none", dtype="int8")
    assert not engine.measured
    assert Engine(changed, tokenizer, plan="none", coefficients="none", dtype="int8").measured
    with clada.sparse(model.to(torch.bfloat16), coefficients="none"):  # rounded, but the same
        pass
    model.float()


def test_devices_threads_heads_and_lengths_are_checked():
    model = tiny_model("llama")

    def engine(**options):
        return Engine(model, None, plan="none", coefficients="none", **options)

    for device in ("cpu", torch.device("cpu"), torch.device("cpu", 0), None):
        assert type(engine(device=device).decoder).__name__ == "Decoder"
    if not torch.cuda.is_available():
        for device in ("cuda", torch.device("cuda", 0)):
            with pytest.raises(ModelError, match="no CUDA device that torch can use: choose device cpu"):
                engine(device=device)
    for device, message in (("gpu", "unknown device 'gpu'"), ("meta", "cannot compute on device 'meta'")):
        with pytest.raises(ModelError, match=f"{message}.*choose cpu or cuda"):
            engine(device=device)
    for threads in (-1, 0):
        with pytest.raises(InputError, match=f"{threads} threads decode nothing; give at least 1"):
            engine(threads=threads)
    headless = AutoModel.from_config(model.config)
    with pytest.raises(ModelError, match=r"LlamaModel has no output head.*AutoModelForCausalLM"):
        Engine(headless, None, plan="none", coefficients="none")
    with (
        pytest.raises(ModelError, match="LlamaModel has no output head"),
        clada.sparse(headless, plan="none", coefficients="none"),
    ):
        pass
    ready = engine()
    for call in (ready.generate(PROMPT, -1), ready.generate_batch([PROMPT], -1)):
        with pytest.raises(InputError, match="-1 new tokens are none; give at least 1"):
            next(call)
    with pytest.raises(InputError, match="-1 new tokens"):
        ready.prefill([PROMPT], -1)
    assert list(ready.generate(PROMPT, 0)) == []


@pytest.mark.parametrize("method", ["clada", "griffin"])
def test_embeddings_in_the_place_of_ids_are_sparse_or_refused(method):
    model = tiny_model("llama", seed=2)
    shares = Shares(prompt=0.4) if method == "griffin" else Shares(neurons=0.2)
    plan = plan_of(model, shares, methods=(method,))
    ids = torch.tensor([PROMPT])
    embeddings = model.get_input_embeddings()(ids)
    with clada.sparse(model, plan, "none", method=method) as run:
        if method == "griffin":
            model(inputs_embeds=embeddings)
            chosen = run.tokens
            run.prompt = "sparse"
            found = model(inputs_embeds=embeddings).logits
            run.prompt = "dense"
            model(ids)
            run.prompt = "sparse"
            expected = model(ids).logits
            assert chosen == 0
        else:
            run.prompt = "sparse"
            found, expected = model(inputs_embeds=embeddings).logits, model(ids).logits
        assert run.tokens == 2 * len(PROMPT)
        assert run.active_fraction < 1
    assert torch.equal(found, expected)
    if method == "clada":
        rule = Coefficients(-0.5, 0.0, 3.0, 3.0)
        refused = pytest.raises(InputError, match="load of tokens that come as embeddings is not known; give input_ids")
        with refused, clada.sparse(model, plan, rule, prompt="sparse"):
            model(inputs_embeds=embeddings)
