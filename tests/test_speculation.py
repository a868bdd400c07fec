"""Speculative decoding: the dense model's tokens, whoever drafts them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_models import tiny_model, tokens

from clada import Engine, load_model
from clada.assembly import DENSE, assemble, drafter_of
from clada.decoding import decide, most_likely_words, steps
from clada.drafters import (
    CHECKED,
    LONGEST,
    TIMED,
    TRIED,
    ModelDrafter,
    NgramDrafter,
    TextOrModelDrafter,
    best_draft,
    found_again,
)
from clada.errors import InputError
from clada.methods.coefficients import Coefficients
from clada.models.description import Description
from clada.sampling import Sampling, draw
from clada.speculation import Speculation

PROMPT = tokens(30, seed=4)

NEVER = Coefficients(0.0, 0.0)


class Wrong:
    """Drafts what the dense model does not say, after some tokens that it does."""

    def __init__(self, right):
        self.right, self.bytes_read, self.heard = right, np.zeros(4, np.int64), []

    def learn(self, accepted, seconds):
        assert seconds > 0
        self.heard.append(accepted)

    def draft(self, state, token, sampler, most):
        good = self.right[len(state.tokens[0]) + 1 :][:2]
        return [*good, (good[-1] + 1) % 100 if good else 5, 7][:most]


def dense_parts(model, dtype="float32"):
    return assemble(model, [DENSE], dtype, 2)[0]


class Whole(ModelDrafter):
    """Drafts as many tokens as there is room for."""

    def goes_on(self, likely):
        return True


def whole(engine):
    """Of an engine's drafter its model, which drafts whatever that costs: as often on every machine."""
    model = engine.speculation.drafter.model
    return Whole(model.decoder, model.policy, model.rule)


def speculative_ids(parts, drafter, count, prompt=PROMPT, most=LONGEST):
    speculation = Speculation(drafter, most)
    state = parts.decoder.prefill([prompt], count, parts.policy.dense(1))
    rules = [NEVER.loads]
    records = speculation.steps(
        parts.decoder, parts.policy, state, most_likely_words, count, rules, lambda _sequence, _token: False
    )
    found = [(r.tokens[0], r.surprisal[0], r.entropy[0]) for r in records]
    assert state.tokens == [[*prompt, *(token for token, _, _ in found)]]
    return found, speculation


def dense_ids(parts, count, prompt=PROMPT):
    state = parts.decoder.prefill([prompt], count, parts.policy.dense(1))
    records = steps(parts.decoder, parts.policy, state, most_likely_words, count)
    return [(r.tokens[0], r.surprisal[0], r.entropy[0]) for r in records]


@pytest.mark.parametrize("most", [3, LONGEST])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "opt"])
def test_greedy_tokens_are_the_dense_models_whoever_drafts(family, most):
    model = tiny_model(family, seed=3)
    parts = dense_parts(model)
    dense = dense_ids(parts, 60)
    drafters = {
        "the engine's": drafter_of(
            lambda choice, dtype: assemble(model, [choice], dtype, 2)[0],
            Description.of(model),
            "float32",
            "int8",
            "none",
            NEVER,
        ),
        "int8": ModelDrafter(*_of_other_weights(family, 3)),
        "another model": Whole(*_of_other_weights(family, 4)),
        "the text": NgramDrafter(),
        "wrong": Wrong(PROMPT + [token for token, _, _ in dense]),
    }
    for name, drafter in drafters.items():
        found, speculation = speculative_ids(parts, drafter, 60, most=most)
        assert found == dense, name  # surprisal and entropy too, to the last bit
        assert 0 <= speculation.accepted <= speculation.drafted
        assert speculation.accepted + speculation.checks == 60


def _of_other_weights(family, seed):
    other = dense_parts(tiny_model(family, seed=seed), "int8")
    return other.decoder, other.policy


def test_drafts_that_are_refused_cost_checks_and_those_accepted_save_them():
    model = tiny_model("llama", seed=3)
    parts = dense_parts(model)
    right = PROMPT + [token for token, _, _ in dense_ids(parts, 40)]
    wrong = Wrong(right)
    _, speculation = speculative_ids(parts, wrong, 40)
    assert speculation.accepted == sum(wrong.heard) > 0
    assert speculation.drafted > speculation.accepted
    assert speculation.tokens == 40
    _, speculation = speculative_ids(parts, Whole(parts.decoder, parts.policy), 40)
    # The model drafts for itself: all is accepted, and checks are as few as can be.
    assert speculation.acceptance == 1
    assert speculation.checks == int(np.ceil(40 / (LONGEST + 1)))


def test_a_draft_is_as_long_as_its_tokens_are_likely_to_be_accepted():
    model = tiny_model("llama", seed=3)
    parts, cheap = dense_parts(model), dense_parts(model, "int8")
    state = parts.decoder.prefill([PROMPT], 20, parts.policy.dense(1))
    (token,) = decide(state, [0], most_likely_words, [NEVER.loads]).tokens
    drafter = ModelDrafter(cheap.decoder, cheap.policy)

    def length(accepted, checked):
        drafter.tallies[:] = [[accepted, checked], [0, 0]]
        return len(drafter.draft(state, token, most_likely_words, 20))

    drafter.draft(state, token, most_likely_words, 1)
    cost = drafter.bytes_read.sum() / state.outcome.bytes_read.sum()
    assert 0.2 < cost < 0.4  # a byte a weight in place of four, and scales, norms and the cache beside them
    for accepted in (50, 80, 95):
        expected, speed = best_draft(accepted / 100, cost, CHECKED, LONGEST)
        assert speed > 1
        found = length(accepted, 100)
        assert found == expected if expected < LONGEST else found >= LONGEST
    # Less likely than it costs: nothing is drafted, but for a token now and then.
    tried = [length(20, 100) for _ in range(2 * TRIED)]
    assert tried == 2 * [*[0] * (TRIED - 1), 1]


def test_the_best_draft_gives_the_most_tokens_in_a_time():
    assert best_draft(0.2, 0.2, 0.1, 7) == (0, 1.0)
    length, speed = best_draft(0.9, 0.3, 0.1, 7)
    speeds = [sum(0.9**k for k in range(n + 1)) / (1 + 0.4 * n) for n in range(8)]
    assert speeds[length] == max(speeds) == pytest.approx(speed, rel=1e-12)  # the same sums in another order
    # Where it ends: one token more gives no more tokens in its time than the draft does on the whole.
    assert 0.9**length > speed * 0.4 >= 0.9 ** (length + 1)
    assert best_draft(1.0, 0.3, 0.1, 7)[0] == 7


def test_drafting_costs_what_it_reads_until_times_are_known():
    parts = dense_parts(tiny_model("llama", seed=3))
    state = parts.decoder.prefill([PROMPT], 40, parts.policy.dense(1))
    (token,) = decide(state, [0], most_likely_words, [NEVER.loads]).tokens
    drafter = Whole(parts.decoder, parts.policy)
    drafter.draft(state, token, most_likely_words, 7)
    for place in range(TIMED):
        assert 1 <= drafter.cost() < 1.02  # the model itself, whose cache has grown by the draft
        # A check of four positions; the first ones take longer, as they do where weights come from a file.
        drafter.draft(state, token, most_likely_words, 3)
        drafter.learn(3, (1.0 if place > 2 else 9.0) * (1 + 3 * CHECKED))
    assert 0 < drafter.cost() == min(drafter._drafted) < 1  # a step of the dense model took a second


@pytest.mark.parametrize(("dtype", "times"), [("float32", 1), ("bfloat16", 2), ("int8", 4)])
def test_a_position_more_costs_a_check_the_more_the_fewer_bytes_a_step_reads(dtype, times):
    model = tiny_model("llama", seed=3)
    drafter = drafter_of(
        lambda choice, dtype: assemble(model, [choice], dtype, 2)[0],
        Description.of(model), dtype, "int4", "none", NEVER,
    )  # fmt: skip
    assert drafter.model.checked == drafter.text.checked == times * CHECKED
    for cost, worth in ((0.75, True), (0.85, False)):  # four of five are accepted at first
        drafter.model.cost = lambda cost=cost: cost - times * CHECKED
        assert drafter.model.goes_on(1.0) is worth


def test_drafters_learn_how_often_tokens_under_load_are_accepted():
    parts = dense_parts(tiny_model("llama", seed=3))
    drafter = ModelDrafter(parts.decoder, parts.policy)
    calm, loaded = drafter.tallies.tolist()
    drafter.under_load = [False, True, False, True]
    drafter.learn(2, 0.01)  # the third was refused, so that nobody looked at the fourth
    assert drafter.tallies.tolist() == [[calm[0] + 1, calm[1] + 2], [loaded[0] + 1, loaded[1] + 1]]
    drafter.learn(4, 0.01)
    assert drafter.tallies.tolist() == [[calm[0] + 3, calm[1] + 4], [loaded[0] + 3, loaded[1] + 3]]


def test_a_token_under_load_that_is_mostly_refused_ends_the_draft():
    model = tiny_model("llama", seed=3)
    parts = dense_parts(model)
    cheap = dense_parts(model, "int8")
    state = parts.decoder.prefill([PROMPT], 20, parts.policy.dense(1))
    (token,) = decide(state, [0], most_likely_words, [NEVER.loads]).tokens
    seen = []

    def rule(surprisal, entropy):
        seen.append((surprisal, entropy))
        return len(seen) == 4, False

    tallies = np.array([[98, 100], [1, 10]])
    drafter = ModelDrafter(cheap.decoder, cheap.policy, rule, tallies=tallies.copy())
    drafted = drafter.draft(state, token, most_likely_words, 8)
    assert len(drafted) == 4
    assert drafter.under_load == [False, False, False, True]
    assert state.tokens == [PROMPT]
    assert min(min(load) for load in seen) >= 0
    calm = ModelDrafter(cheap.decoder, cheap.policy, tallies=tallies.copy())
    longer = calm.draft(state, token, most_likely_words, 8)
    assert longer[:4] == drafted
    assert len(longer) == 8


def test_the_text_drafts_what_followed_its_end_before():
    state, drafter = SimpleNamespace(tokens=[[1, 2, 3, 4, 5, 6, 7, 2, 3]]), NgramDrafter()
    assert drafter.draft(state, 4, None, 8) == [5, 6, 7]  # three tokens found again give three
    assert drafter.draft(state, 4, None, 2) == [5, 6]
    assert drafter.draft(state, 9, None, 8) == []
    assert drafter.speed == 1


def test_the_end_of_a_text_is_found_where_it_stood_last():
    assert found_again([5, 6, 1, 5, 6, 2, 5, 6]) == (2, [2, 5, 6])
    assert found_again([5, 5, 5]) == (2, [5])  # it may overlap with itself
    assert found_again([1, 2, 3]) == found_again([1]) == (0, [])
    # Tokens are found as a whole: the bytes of 256, 1 are those of 1, 256 seen from a byte later.
    assert found_again([0x01000000, 0, 7, 0x00010000, 0x00000100, 1, 0]) == (0, [])
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, 3, rng.integers(1, 40)).tolist()
        places = [
            (n, max((i for i in range(len(ids) - n) if ids[i : i + n] == ids[-n:]), default=-1))
            for n in range(8, 1, -1) if n < len(ids)
        ]  # fmt: skip
        length, begin = next(((n, i) for n, i in places if i >= 0), (0, 0))
        assert found_again(ids) == (length, ids[begin + length :] if length else [])


def test_drafts_from_the_text_are_as_long_as_they_were_worth_it():
    state, drafter = SimpleNamespace(tokens=[[1, 2, 3, 4, 5, 6, 7, 2, 3]]), NgramDrafter(checked=0.2)
    before = drafter.tallies.copy()
    assert drafter.draft(state, 4, None, 8) == [5, 6, 7]
    drafter.learn(1, 0.01)  # the second was refused, so that nobody looked at the third
    assert (drafter.tallies - before)[3].tolist() == [1, 2]
    drafter.tallies[3] = 6, 10
    expected, speed = best_draft(0.6, 0.0, 0.2, 3)
    assert len(drafter.draft(state, 4, None, 8)) == expected < 3
    assert drafter.speed == speed > 1
    drafter.tallies[3] = 1, 10  # less than a position more costs
    assert drafter.draft(state, 4, None, 8) == []
    drafter.learn(0, 0.01)
    assert drafter.tallies[3].tolist() == [1, 10]


def test_the_text_drafts_where_that_promises_more_than_the_model():
    class Model:
        speed, heard = 1.5, ()

        def best(self, most):
            return 3, self.speed

        def draft(self, state, token, sampler, most):
            return [9]

        def learn(self, accepted, seconds):
            self.heard = (*self.heard, accepted)

        def learn_time(self, drafted, seconds):
            self.heard = (*self.heard, (drafted, seconds))

    state = SimpleNamespace(tokens=[[1, 2, 3, 4, 5, 6, 7, 2, 3]])
    drafter = TextOrModelDrafter(Model(), NgramDrafter())
    assert drafter.draft(state, 4, None, 8) == [5, 6, 7]  # 2.95 tokens in the time of 1.18 steps
    drafter.learn(2, 0.01)
    assert drafter.model.heard == ((3, 0.01),)
    assert drafter.draft(state, 1, None, 8) == [9]  # new text
    drafter.learn(1, 0.01)
    drafter.model.speed = 2.6
    assert drafter.draft(state, 4, None, 8) == [9]
    drafter.learn(0, 0.01)
    assert drafter.model.heard == ((3, 0.01), 1, 0)
    assert drafter.text.tallies.sum(0).tolist() == np.add(NgramDrafter().tallies.sum(0), (2, 3)).tolist()


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}]
)
def test_drawn_tokens_are_the_dense_models_with_the_same_seed(options):
    model = tiny_model("llama", seed=3)
    dense, speculative = (Engine(model, None, method=method, plan="none") for method in ("dense", "speculative"))
    speculative.speculation.drafter = whole(speculative)
    for seed in range(5):
        a, b = ([*engine.generate(PROMPT, 40, seed=seed, logprobs=3, **options)] for engine in (dense, speculative))
        assert a == [replace(step, drafted=None) for step in b]
    assert speculative.speculation.acceptance > 0.3  # draws of both with the same random numbers mostly agree


def test_steps_say_which_tokens_a_draft_had_too():
    """As the counts of drafts and checks do; the first token, and one after each check, are nobody's draft."""
    model = tiny_model("llama", seed=3)
    engine = Engine(model, None, method="speculative", plan="none", threads=2)
    steps = [*engine.generate(PROMPT, 40)]
    counted = engine.speculation
    assert sum(step.drafted for step in steps) == counted.accepted > 0
    assert len(steps) == counted.accepted + counted.checks
    assert not steps[0].drafted


def test_drawn_tokens_have_the_distribution_of_the_dense_model():
    """100,000 draws of a second token, after a drafted first one, against what the model says; ten words in all."""
    rng = np.random.default_rng(0)
    first, cheap = rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10))
    counts, agreed = np.zeros(10), 0
    for seed in range(100_000):
        noise = Sampling(seed=seed).noise()(0, 10)
        drafted, checked = draw(cheap, noise), draw(first, noise)
        agreed += drafted == checked
        counts[checked] += 1
    # One set of seeds, so the test always ends alike; a word drawn a hundredth more often gives a p below 1e-6.
    assert chisquare(counts, 100_000 * first).pvalue > 0.01
    distance = np.abs(first - cheap).sum() / 2
    assert agreed / 100_000 > (1 - distance) / (1 + distance) - 0.005  # the bound of Daliri et al., within noise


def test_stops_options_and_mistakes(tmp_path):
    model = tiny_model("llama", seed=3)
    engine = Engine(model, None, method="speculative", plan="none", dtype="bfloat16")
    dense = Engine(model, None, method="dense", plan="none", dtype="bfloat16")
    ids = [step.token_id for step in dense.generate(PROMPT, 30)]
    engine._generation_config.eos_token_id = dense._generation_config.eos_token_id = ids[11]
    stopped = [step.token_id for step in engine.generate(PROMPT, 30)]
    assert stopped == ids[: ids.index(ids[11]) + 1]
    assert [step.token_id for step in engine.generate(PROMPT, 1)] == ids[:1]
    assert [*engine.generate(PROMPT, 0)] == []
    with pytest.raises(InputError, match="one prompt at a time"):
        [*engine.generate_batch([PROMPT, PROMPT], 3)]
    with pytest.raises(InputError, match="lower precision"):
        Engine(model, None, method="speculative", plan="none", dtype="int4")
    with pytest.raises(InputError, match=r"^weights in float32 cannot draft for bfloat16; use int8 or int4$"):
        Engine(model, None, method="speculative", plan="none", dtype="bfloat16", draft="float32")
    with pytest.raises(InputError, match=r"^method clada drafts nothing; leave draft out, or use method speculative$"):
        Engine(model, None, plan="none", draft="int8")


@pytest.mark.parametrize("draft", ["bfloat16", "int4"])
def test_another_precision_drafts_where_it_is_asked_for(draft):
    model = tiny_model("llama", seed=3)
    dense = Engine(model, None, method="dense", plan="none")
    engine = Engine(model, None, method="speculative", plan="none", draft=draft)
    assert engine.speculation.drafter.model.decoder.weights.dtype == draft
    ids = [[step.token_id for step in each.generate(PROMPT, 30)] for each in (dense, engine)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_smollm2_says_the_same_with_its_shipped_plans_draft(dtype):
    model, tokenizer = load_model("smollm2-135m")
    dense = Engine(model, tokenizer, method="dense", dtype=dtype)
    speculative = Engine(model, tokenizer, method="speculative", dtype=dtype)
    for prompt in ("The minister said on Tuesday that", "Once upon a time", "1, 2, 3, 4, 5, 6, 7,"):
        texts = [[step.token_id for step in engine.generate(prompt, 48)] for engine in (dense, speculative)]
        assert texts[0] == texts[1]
    speculative.speculation = Speculation(whole(speculative))
    assert [step.token_id for step in speculative.generate(prompt, 48)] == texts[0]
    assert speculative.speculation.accepted > 24  # of 48: the draft is of use
    assert speculative.speculation.bytes_read.sum() > 0
