"""Generation as people know it, held to transformers: penalties, min-p, stop strings, ends of text, logprobs."""

import inspect
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_engine import PROMPT, transformers_greedy
from tiny_models import VOCABULARY, tiny_model, tokens
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from clada.cli import main as clada
from clada.engine import Engine
from clada.errors import InputError
from clada.models.open import load_model
from clada.sampling import (
    KEPT_PLACES,
    PROCESSED,
    UNSUPPORTED,
    Chooser,
    Sampling,
    as_configured,
    chooser_of,
    draw,
    most_likely,
    penalised,
    probabilities,
)

TEXT = "The minister said on Monday that"
LIST = "Here is a list:\n"  # goes on with numbers, marks of code and empty lines


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def engine(smollm2):
    return Engine(*smollm2, plan="none", coefficients="none")


@pytest.fixture
def settings(engine, smollm2):
    """The generation config of `engine`, as it was afterwards."""
    config = smollm2[0].generation_config
    before = dict(vars(config))
    yield config
    vars(config).clear()
    vars(config).update(before)


def transformers_ids(model, prompt, n, **options):
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=n,
        do_sample=False, **options,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def ids_of(steps):
    return [step.token_id for step in steps]


def text_of(steps):
    return "".join(step.token for step in steps)


def processed(model, logits, ids, **options):
    """Logits as the processors of transformers' `generate(do_sample=True)` change them."""
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **options})
    config.update(**config._get_default_generation_params(), defaults_only=True)
    model._prepare_special_tokens(config, device="cpu")
    history = torch.tensor([ids])
    change = model._get_logits_processor(config, len(ids), encoder_input_ids=history, device="cpu")
    return change(history, torch.from_numpy(logits)[None].clone())[0]


# -- what a token is drawn from --------------------------------------------------------------------------------------

# Shares are such that no sum of probabilities comes near them: at the border, rounding would decide.
DRAWN = [
    {},
    {"temperature": 0.7},
    {"temperature": 1e-3},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 10_000},
    {"top_p": 0.8317},
    {"top_p": 1e-6},
    {"min_p": 0.0713},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.9123, "min_p": 0.0317, "repetition_penalty": 1.2},
    {"temperature": 0.6, "top_p": 0.9517, "repetition_penalty": 1.1},
]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("options", DRAWN, ids=lambda options: "-".join(options) or "plain")
def test_probabilities_are_those_of_transformers_processors(options, ties):
    rng, model = np.random.default_rng(5), tiny_model("llama")
    for size in (7, 300, 5_000):
        for _ in range(5):
            logits = (3 * rng.standard_normal(size)).astype(np.float32)
            if ties:
                logits = np.round(2 * logits) / 2
            ids = rng.integers(0, size, 12).tolist()
            before = logits.copy()
            found = probabilities(logits, ids, Sampling(**{"temperature": 1.0, **options}))
            expected = processed(model, logits, ids, **options).double().softmax(0).numpy()
            assert found.dtype == np.float64
            assert np.array_equal(logits, before)
            if "top_p" in options and ties:  # which of equals at the border stay is open in transformers
                found, expected = np.sort(found), np.sort(expected)
            assert np.array_equal(found > 0, expected > 0)
            # Two softmaxes in float64 of the same float32 numbers.
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_of_equals_at_the_border_of_top_p_the_first_stay():
    logits = np.log(np.array([0.1, 0.2, 0.1, 0.3, 0.1, 0.2], np.float32))
    found = probabilities(logits, [], Sampling(temperature=1.0, top_p=0.75))
    # 0.3 + 0.2 + 0.2 are less than 0.75, so one more of 0.1; a float32 logarithm has 7 digits.
    assert found == pytest.approx(np.array([0.1, 0.2, 0, 0.3, 0, 0.2]) / 0.8, rel=1e-6)


def test_a_penalty_is_that_of_transformers_bit_for_bit():
    rng = np.random.default_rng(6)
    logits, ids = rng.standard_normal(500).astype(np.float32), rng.integers(0, 500, 80).tolist()
    logits[ids[0]] = 0
    scores = processed(tiny_model("llama"), logits, ids, repetition_penalty=1.37)
    assert np.array_equal(penalised(logits, ids, 1.37), scores.numpy())
    assert penalised(logits, ids, 1) is penalised(logits, ids, None) is logits
    # By hand, with a token that has an embedding and no logit.
    found = penalised(np.array([2, -2, 3, 4], np.float32), [0, 1, 0, 9], 2.0)
    assert found.tolist() == [1, -4, 3, 4]


def test_draws_follow_the_probabilities_and_the_seed():
    p = np.array([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    noise = Sampling(seed=3).noise()
    counts = np.bincount([draw(p, noise(place, 6)) for place in range(20_000)], minlength=6)
    assert counts[p == 0].sum() == 0
    # One seed, so the test always ends alike; a wrong probability of a hundredth gives a p below 1e-4.
    assert chisquare(counts[p > 0], 20_000 * p[p > 0]).pvalue > 0.01
    streams = [[float(Sampling(seed=seed).noise(n)(0, 1)[0]) for n in range(3)] for seed in (3, 3, 4)]
    assert streams[0] == streams[1]
    assert len({*streams[0], *streams[2]}) == 6
    assert Sampling().noise()(0, 1) != Sampling().noise()(0, 1)


def test_a_place_has_the_same_random_numbers_again_until_it_is_long_past():
    noise, again = Sampling(seed=3).noise(), Sampling(seed=3).noise()
    first = noise(7, 5)  # wherever a text begins
    assert not np.array_equal(noise(8, 5), again(0, 5))
    assert np.array_equal(noise(7, 5), first)
    assert np.array_equal(again(0, 5), first)
    for place in range(9, 9 + KEPT_PLACES):
        noise(place, 5)
    for place in (7, 9 + KEPT_PLACES + 1):  # long past, and further than the next
        with pytest.raises(IndexError):
            noise(place, 5)


def test_a_word_whose_time_is_zero_comes_first_and_one_that_is_left_out_never():
    assert draw(np.array([0.0, 0.5, 0.5]), np.array([0.0, 0.0, 1e-9], np.float32)) == 1


def test_the_likeliest_tokens_come_in_order_and_of_equals_the_first():
    logits = np.array([1, 5, 3, 5, 3, 3, -2], np.float32)
    assert [most_likely(logits, n).tolist() for n in (1, 3, 4)] == [[1], [1, 3, 2], [1, 3, 2, 4]]
    assert most_likely(logits, 50).tolist() == [1, 3, 2, 4, 5, 0, 6]


def test_sampling_imports_neither_torch_nor_transformers():
    code = (
        "import sys; import numpy as np; import clada.streaming; from types import SimpleNamespace\n"
        "from clada.sampling import Sampling, chooser_of\n"
        "config = SimpleNamespace(repetition_penalty=1.2, eos_token_id=2, stop_strings=['.'])\n"
        "for temperature in (0.0, 1.0):\n"
        "    sampling = Sampling(temperature, 0.9, 5, 1, 0.1)\n"
        "    chooser_of(sampling, 0, None, config, [1], 3)(np.arange(9, dtype=np.float32), 8, [1])\n"
        "print(*{'torch', 'transformers', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# -- what a generation config asks for -------------------------------------------------------------------------------


def test_every_option_that_transformers_has_a_processor_for_is_known():
    """A processor of a later transformers, of an option that is in no list, would be left out in silence."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    asked = set(re.findall(r"generation_config\.([a-z]\w*)", source))
    read = {"do_sample", "max_length", "use_cache"}  # say how processors work; ask for none
    sampled = {"temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    assert asked == {*PROCESSED, *(UNSUPPORTED.keys() & asked), "repetition_penalty", *read, *sampled}


@pytest.mark.parametrize("penalty", [1.2, 1.5, 0.7])
def test_a_repetition_penalty_is_that_of_transformers_greedy_generate(penalty):
    model = tiny_model("llama", seed=3)
    model.generation_config.eos_token_id = None
    engine = Engine(model, None, plan="none", coefficients="none")
    free = transformers_greedy(model, PROMPT, 40)
    expected = transformers_ids(model, PROMPT, 40, repetition_penalty=penalty)
    assert ids_of(engine.generate(PROMPT, 40, repetition_penalty=penalty)) == expected != free
    others = [PROMPT, tokens(9, seed=4)]
    found = [[], []]
    for index, step in engine.generate_batch(others, 20, Sampling(repetition_penalty=penalty)):
        found[index].append(step.token_id)
    assert found == [transformers_ids(model, prompt, 20, repetition_penalty=penalty) for prompt in others]
    # The generation config's applies where none is given; 1 switches it off.
    model.generation_config.repetition_penalty = penalty
    assert ids_of(engine.generate(PROMPT, 40)) == expected
    assert ids_of(engine.generate(PROMPT, 40, repetition_penalty=1.0)) == free
    assert ids_of(engine.generate(PROMPT, 40, repetition_penalty=2.0)) == transformers_ids(
        model, PROMPT, 40, repetition_penalty=2.0
    )


def test_a_penalty_keeps_its_place_among_other_processors():
    model = tiny_model("llama", seed=3)
    model.generation_config.eos_token_id = None
    free = transformers_greedy(model, PROMPT, 20)
    model.generation_config.sequence_bias = [[[i], 30.0] for i in free[:3]]  # comes before a penalty
    model.generation_config.no_repeat_ngram_size = 2  # after
    engine = Engine(model, None, plan="none", coefficients="none")
    expected = transformers_ids(model, PROMPT, 20, repetition_penalty=1.4)
    assert ids_of(engine.generate(PROMPT, 20, repetition_penalty=1.4)) == expected
    assert expected != transformers_greedy(model, PROMPT, 20) != free


def test_what_is_drawn_from_has_all_that_the_config_and_the_options_ask_for():
    model = tiny_model("llama", seed=3)
    logits = (3 * np.random.default_rng(1).standard_normal(VOCABULARY)).astype(np.float32)
    config, options = model.generation_config, {"temperature": 0.8, "top_p": 0.9123, "repetition_penalty": 1.3}
    config.suppress_tokens = most_likely(logits, 3).tolist()
    chooser = chooser_of(Sampling(**options, seed=4), 2, model.config, config, PROMPT, 5)
    scores = processed(model, logits, PROMPT, suppress_tokens=config.suppress_tokens, **options)
    found = chooser.probabilities(logits, PROMPT)
    assert np.array_equal(found > 0, scores.numpy() > -np.inf)
    # The same float32 scores, a softmax of them in float64 each.
    assert found == pytest.approx(scores.double().softmax(0).numpy(), rel=1e-12, abs=1e-15)
    assert found[config.suppress_tokens].sum() == 0
    noise = Sampling(seed=4).noise(2)
    texts = [[*PROMPT, *PROMPT[:n]] for n in range(20)]  # the same tokens were there before in all
    drawn = [chooser(logits, 0, text) for text in texts]
    assert drawn == [draw(found, noise(len(text), len(found))) for text in texts]
    assert len(set(drawn)) > 1


def test_greedy_takes_the_first_of_equally_likely_tokens_after_the_penalty():
    logits = np.array([1, 4, 2, 2, 0], np.float32)
    chooser = Chooser(Sampling(repetition_penalty=2.0), Sampling().noise())
    assert chooser(logits, 1, [1]) == 1  # 4 / 2, as likely as tokens 2 and 3
    assert chooser(logits, 1, [1, 1, 2]) == 1
    assert chooser(logits - 3, 1, [1, 2, 3]) == 1
    assert chooser(np.array([1, 3, 2, 2, 0], np.float32), 1, [1]) == 2
    assert as_configured(Sampling(), GenerationConfig()).repetition_penalty in (None, 1.0)


# -- ends of a text --------------------------------------------------------------------------------------------------


def test_any_of_several_end_tokens_ends_a_text_as_in_transformers():
    model = tiny_model("gemma3_text", seed=2)
    model.generation_config.eos_token_id = None
    free = transformers_greedy(model, PROMPT, 24)
    model.generation_config.eos_token_id = [free[20], free[9], VOCABULARY - 1]
    expected = transformers_greedy(model, PROMPT, 24)
    assert len(expected) <= 10
    engine = Engine(model, None, plan="none", coefficients="none")
    assert ids_of(engine.generate(PROMPT, 24)) == expected


def test_a_chat_ends_its_turn_as_in_transformers(smollm2, engine, settings):
    model, tokenizer = smollm2
    turns = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    expected = transformers_greedy(model, ids, 60)
    steps = list(engine.generate(turns[0]["content"], 60, chat=True))
    assert ids_of(steps) == expected
    assert tokenizer.decode(expected[-1]) == "<|im_end|>" == tokenizer.eos_token
    assert len(expected) < 60
    assert text_of(steps) == tokenizer.decode(expected, skip_special_tokens=True)
    # With more ends beside it, of which one comes earlier.
    settings.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>"), expected[3]]
    earlier = transformers_greedy(model, ids, 60)
    assert ids_of(engine.generate(turns[0]["content"], 60, chat=True)) == earlier == expected[: len(earlier)]
    assert len(earlier) <= 4


@pytest.mark.parametrize(
    ("prompt", "strings"),
    [
        (TEXT, ['"']),
        (TEXT, ["he trouble", "closet", "working to"]),
        (LIST, [".\n\n", "```\n\nT"]),
    ],
    ids=repr,
)
def test_a_stop_string_ends_a_text_where_transformers_ends_it(smollm2, engine, settings, prompt, strings):
    model, tokenizer = smollm2
    ids = tokenizer(prompt)["input_ids"]
    expected = transformers_ids(model, ids, 50, stop_strings=strings, tokenizer=tokenizer)
    whole = tokenizer.decode(ids + expected)[len(prompt) :]
    places = [whole.index(string) for string in strings if string in whole]
    steps = list(engine.generate(prompt, 50, stop=strings))
    assert ids_of(steps) == expected
    assert text_of(steps) == whole[: min(places)]
    assert len(expected) < 50
    # The generation config's strings, where none are given.
    settings.stop_strings = strings
    assert list(engine.generate(prompt, 50)) == steps
    assert len(list(engine.generate(prompt, 50, stop=()))) == 50


def test_stop_strings_end_each_text_of_a_batch_by_itself(engine):
    prompts = [TEXT, "Once upon a time", "def main():\n", "2, 4, 6, 8,"]
    alone = [list(engine.generate(prompt, 24, stop=[".", "\n", "12"])) for prompt in prompts]
    found = [[] for _ in prompts]
    for index, step in engine.generate_batch(prompts, 24, stop=[".", "\n", "12"]):
        found[index].append(step)
    assert [ids_of(steps) for steps in found] == [ids_of(steps) for steps in alone]
    assert list(map(text_of, found)) == list(map(text_of, alone))
    assert len(set(map(len, found))) > 2
    assert not any(string in text_of(steps) for steps in found for string in (".", "\n", "12"))


def test_a_prompt_is_no_part_of_the_text_that_a_stop_string_ends(engine):
    steps = list(engine.generate(TEXT, 6, stop=["Monday that", "minister"]))
    assert len(steps) == 6


def test_the_name_of_a_special_token_is_a_stop_string(smollm2, engine, settings):
    settings.eos_token_id = None
    ask = "What is the capital of France? Answer in one sentence."
    free = list(engine.generate(ask, 40, chat=True))
    end = smollm2[1].eos_token_id
    assert len(free) == 40
    steps = list(engine.generate(ask, 40, chat=True, stop="<|im_end|>"))
    assert ids_of(steps) == ids_of(free)[: ids_of(free).index(end) + 1]


def test_stop_strings_that_cannot_be_used_are_refused(engine):
    for stop in ("", ["a", ""], [3]):
        with pytest.raises(InputError, match=r"^a stop string is empty or no text, .*; give at least a character$"):
            next(engine.generate(TEXT, 2, stop=stop))
    model = tiny_model("llama")
    without = Engine(model, None, plan="none", coefficients="none")
    model.generation_config.stop_strings = ["."]
    with pytest.raises(
        InputError, match=r"^stop strings need a tokenizer, and the engine has none; give it one, or stop=\(\)$"
    ):
        next(without.generate(PROMPT, 2))
    assert len(list(without.generate(PROMPT, 2, stop=()))) == 2


# -- log probabilities -----------------------------------------------------------------------------------------------


def test_steps_list_the_likeliest_tokens_of_the_raw_softmax():
    model = tiny_model("qwen2")
    model.generation_config.eos_token_id = None
    engine = Engine(model, None, plan="none", coefficients="none")
    prompts = [PROMPT, tokens(9, seed=4)]
    sampling = Sampling(temperature=2.0, top_k=4, seed=1, repetition_penalty=1.5)
    found = [[], []]
    for index, step in engine.generate_batch(prompts, 10, sampling, logprobs=7):
        found[index].append(step)
    for prompt, steps in zip(prompts, found, strict=True):
        logits = model(torch.tensor([prompt + ids_of(steps)])).logits[0, len(prompt) - 1 : -1]
        expected = logits.double().log_softmax(-1).topk(7)
        assert [[c.token_id for c in step.top] for step in steps] == expected.indices.tolist()
        listed = torch.tensor([[c.logprob for c in step.top] for step in steps], dtype=torch.float64)
        # Whole pass against cached steps: float32 sums in another order; logits are of order 10.
        torch.testing.assert_close(listed, expected.values, atol=1e-4, rtol=1e-4)
        for step in steps:
            for candidate in step.top:
                assert candidate == (candidate.token_id, "", candidate.logprob)  # without a tokenizer there is no text
                if candidate.token_id == step.token_id:
                    assert -candidate.logprob / np.log(2) == pytest.approx(step.surprisal_bits, abs=1e-6)
    assert all(step.top == () for step in engine.generate(PROMPT, 2))
    assert len(next(engine.generate(PROMPT, 2, logprobs=50)).top) == 50
    for count in (-1, 51):
        with pytest.raises(InputError, match=f"^a step lists 0 to 50 of the likeliest tokens, not {count}; give"):
            next(engine.generate(PROMPT, 2, logprobs=count))


def test_listed_tokens_have_the_text_that_they_would_complete(smollm2, engine):
    steps = list(engine.generate(TEXT, 12, logprobs=5))
    for step in steps:
        assert step.top[0][:2] == (step.token_id, step.token)
        assert all(smollm2[1].decode(c.token_id) == c.token for c in step.top)  # spaces are parts of these tokens
    steps = list(engine.generate("What is the capital of France? Answer in one sentence.", 60, chat=True, logprobs=2))
    assert steps[-1].token == ""
    assert steps[-1].top[0].token == "<|im_end|>"


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_has_all_of_it(capsys, tmp_path, engine):
    metrics = tmp_path / "tokens.csv"
    options = ["--repetition-penalty", "1.3", "--stop", ",", "--stop", "the g", "--logprobs", "3"]
    args = ["generate", "--prompt", TEXT, "--plan", "none", "--coefficients", "none", "--max-new-tokens", "20"]
    assert clada([*args, *options, "--json", "--metrics", str(metrics)]) == 0
    found = json.loads(capsys.readouterr().out)
    steps = list(engine.generate(TEXT, 20, repetition_penalty=1.3, stop=[",", "the g"], logprobs=3))
    assert [step["token_id"] for step in found["steps"]] == ids_of(steps)
    assert found["text"] == text_of(steps)
    assert found["steps"][0]["top"] == [candidate._asdict() for candidate in steps[0].top]
    assert list(found["steps"][0]["top"][0]) == ["token_id", "token", "logprob"]
    assert metrics.read_text().splitlines()[0].endswith(",load_surprisal,load_entropy")
    assert clada([*args, "--max-new-tokens", "4", "--temperature", "1", "--min-p", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [step["token_id"] for step in found["steps"]] == ids_of(engine.generate(TEXT, 4))
    assert "top" not in found["steps"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-p", "1.5"], "sampling needs a temperature of 0 or at least 1e-6, .* and min-p within [0, 1]"),
        (["--min-p", "nan"], "sampling needs a temperature of 0 or at least 1e-6, .* and min-p within [0, 1]"),
        (["--repetition-penalty", "0"], "a repetition penalty of 0 is none; give a number above 0, where 1 changes "
         "nothing and more makes repetitions less likely"),
        (["--repetition-penalty", "nan"], "a repetition penalty of nan is none; give a number above 0, .*"),
        (["--stop", ""], "a stop string is empty or no text, and would end every text; give at least a character"),
        (["--logprobs", "3"], "--logprobs are part of the JSON output; add --json"),
        (["--logprobs", "51", "--json"], "a step lists 0 to 50 of the likeliest tokens, not 51; give another number"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_mistakes_are_one_line(capsys, options, message):
    assert clada(["generate", "--prompt", "a", *options]) == 2
    said = capsys.readouterr()
    pattern = re.escape(f"clada: {message}\n").replace(re.escape(".*"), ".*")
    assert re.fullmatch(pattern, said.err)
    assert said.out == ""
