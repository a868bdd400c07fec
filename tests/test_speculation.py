"""Speculative decoding: the dense model's tokens, whoever drafts them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_models import tiny_model, tokens

from clada import Engine, load_model
from clada.assembly import DENSE, assemble, drafter_of
from clada.decoding import decide, most_likely_words, steps
from clada.errors import InputError
from clada.methods.coefficients import Coefficients
from clada.models.description import Description
from clada.sampling import Sampling, draw
from clada.speculation.checks import Speculation
from clada.speculation.drafters import ModelDrafter, NgramDrafter, TextOrModelDrafter, found_again
from clada.speculation.pace import CHECKED, LATEST, LONGEST, SURE, TRIED, Acceptance, Draft, Pace

PROMPT = tokens(30, seed=4)

NEVER = Coefficients(0.0, 0.0)


class Wrong:
    """Drafts what the dense model does not say, after some tokens that it does."""

    def __init__(self, right):
        self.right, self.bytes_read, self.pace, self.kind = right, np.zeros(4, np.int64), Pace(), Acceptance(0, 0)

    def draft(self, state, token, sampler, most):
        good = self.right[len(state.tokens[0]) + 1 :][:2]
        tokens = [*good, (good[-1] + 1) % 100 if good else 5, 7][:most]
        return Draft(tokens, [self.kind] * len(tokens))


def dense_parts(model, dtype="float32"):
    return assemble(model, [DENSE], dtype, 2)[0]


class Whole(ModelDrafter):
    """Drafts as many tokens as there is room for."""

    def goes_on(self, draft, likely):
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
    assert speculation.accepted == wrong.kind.accepted > 0
    # Those before a refused one were accepted, and nobody looked at those after it.
    assert wrong.kind.checked == wrong.kind.accepted + speculation.checks - 1  # the last check tells nobody
    assert speculation.drafted > speculation.accepted
    assert speculation.tokens == 40
    _, speculation = speculative_ids(parts, Whole(parts.decoder, parts.policy), 40)
    # The model drafts for itself: all is accepted, and checks are as few as can be.
    assert speculation.acceptance == 1
    assert speculation.checks == int(np.ceil(40 / (LONGEST + 1)))


def test_the_best_draft_gains_most_beyond_what_its_time_gives():
    pace = Pace(position_cost=0.1)
    assert pace.best(0.2, 0.2, 7) == (0, 0.0)
    length, gain = pace.best(0.9, 0.3, 7)
    gains = [sum(0.9**k for k in range(1, n + 1)) - 0.4 * n for n in range(8)]
    assert gains[length] == max(gains) == pytest.approx(gain, rel=1e-12)  # the same sums in another order
    assert pace.best(0.9, 0.3, 2) == (2, pytest.approx(gains[2], rel=1e-12))
    # What is left of the same draft, and only if it is long enough.
    assert pace.best(0.9, 0.3, 7, drafted=2, likely=0.81)[0] == length - 2 > 0
    assert pace.best(0.9, 0.3, 7, drafted=LONGEST) == (0, 0.0)
    # Where decoding is faster on the whole, time is worth more.
    pace._tokens, pace._steps = 2.0, 1.0
    assert 0 < pace.best(0.9, 0.3, 7)[0] < length


def test_a_pace_goes_by_the_shortest_times_once_they_are_sure():
    pace = Pace(position_cost=0.1, token_cost=0.5)
    assert (pace.token_cost(), pace.speed(), pace.check_costs.tolist()) == (
        0.5,
        1,
        pytest.approx([1 + 0.1 * n for n in range(8)]),
    )
    for seconds in [9.0, *[2.0] * (SURE - 2)]:
        pace.see_check(Draft(), 0, seconds)
        pace.see_token(seconds / 4)
    assert (pace.token_cost(), pace.speed()) == (0.5, 1)
    pace.see_check(Draft(), 0, 3.0)
    pace.see_token(3.0)
    assert pace.token_cost() == 0.25  # half a second, of two for a step
    for _ in range(SURE):
        pace.see_check(Draft([1, 2, 3, 4]), 4, 2.6)
    # On lines between what is known, and as was said beyond.
    assert pace.check_costs.tolist() == pytest.approx([1, 1.075, 1.15, 1.225, 1.3, 1.4, 1.5, 1.6])
    for _ in range(500):
        pace.see_check(Draft([1, 2, 3, 4], seconds=1.4), 4, 2.6)
    assert pace.speed() == pytest.approx(2.5, rel=1e-3)  # five tokens in two steps; what came before fades


def test_a_pace_without_steps_of_one_position_infers_them():
    pace = Pace(position_cost=0.1)
    for _ in range(SURE):
        pace.see_check(Draft([1] * 7), 7, 1.7)
    assert pace.check_costs.tolist() == pytest.approx([1 + 0.1 * n for n in range(8)])
    for _ in range(SURE):
        pace.see_token(0.3)
    assert pace.token_cost() == pytest.approx(0.3)


def test_acceptance_is_of_late_and_is_tried_now_and_then():
    acceptance = Acceptance()
    for _ in range(10_000):
        acceptance.learn(True)
    assert acceptance.rate > 0.99
    for _ in range(LATEST):
        acceptance.learn(False)
    assert acceptance.rate < 0.5
    due = [acceptance.is_due(False) for _ in range(2 * TRIED)]
    assert due == 2 * [*[False] * (TRIED - 1), True]
    assert acceptance.is_due(True)


@pytest.fixture(scope="module")
def chosen():
    """A model's parts, those of its int8, a state after the prompt, and the token that is next."""
    model = tiny_model("llama", seed=3)
    parts = dense_parts(model)
    state = parts.decoder.prefill([PROMPT], 20, parts.policy.dense(1))
    (token,) = decide(state, [0], most_likely_words, [NEVER.loads]).tokens
    return parts, dense_parts(model, "int8"), state, token


def test_a_draft_is_as_long_as_its_tokens_are_likely_to_be_accepted(chosen):
    _, cheap, state, token = chosen

    def length(accepted):
        # What drafting takes on this machine is not asked.
        pace = SimpleNamespace(best=Pace(0.06).best, token_cost=lambda: 0.3, see_token=lambda seconds: None)
        drafter = ModelDrafter(
            cheap.decoder, cheap.policy, pace=pace, calm=Acceptance(accepted, 100), loaded=Acceptance(0, 0)
        )
        drafts = [drafter.draft(state, token, most_likely_words, 20) for _ in range(TRIED)]
        return [len(draft.tokens) for draft in drafts]

    for accepted in (50, 60, 80, 90):
        expected, gain = Pace(0.06).best(accepted / 100, 0.3, LONGEST)
        assert length(accepted) == [expected] * TRIED
        assert gain > 0
    assert length(30) == [*[0] * (TRIED - 1), 1]  # less likely than it costs


@pytest.mark.parametrize(("dtype", "times"), [("float32", 1), ("bfloat16", 2), ("int8", 4)])
def test_a_position_more_costs_a_check_the_more_the_fewer_bytes_a_step_reads(dtype, times):
    model = tiny_model("llama", seed=3)
    drafter = drafter_of(
        lambda choice, dtype: assemble(model, [choice], dtype, 2)[0],
        Description.of(model), dtype, "int4", "none", NEVER,
    )  # fmt: skip
    assert drafter.model.pace is drafter.text.pace is drafter.pace
    assert drafter.pace.position_cost == times * CHECKED
    assert drafter.pace.token_cost() == times * 0.625 / 4


def test_a_token_under_load_that_is_mostly_refused_ends_the_draft(chosen):
    _, cheap, state, token = chosen
    seen = []

    def rule(surprisal, entropy):
        seen.append((surprisal, entropy))
        return len(seen) == 4, False

    def drafter(rule):
        acceptances = {"calm": Acceptance(98, 100), "loaded": Acceptance(1, 10)}
        pace = SimpleNamespace(best=Pace(0.06).best, token_cost=lambda: 0.3, see_token=lambda seconds: None)
        return ModelDrafter(cheap.decoder, cheap.policy, rule, pace, **acceptances)

    loaded = drafter(rule)
    ends = loaded.draft(state, token, most_likely_words, 8)
    assert ends.kinds == [*[loaded.calm] * 3, loaded.loaded]
    assert state.tokens == [PROMPT]
    assert min(min(load) for load in seen) >= 0
    longer = drafter(None).draft(state, token, most_likely_words, 8)
    assert longer.tokens[:4] == ends.tokens
    assert len(longer.tokens) > 4
    assert longer.seconds > 0
    # The third was refused, so that nobody looked at the one under load; then that one was.
    ends.learn(2)
    assert (loaded.calm.accepted, loaded.calm.checked, loaded.loaded.checked) == (100, 103, 10)
    ends.learn(3)
    assert (loaded.calm.accepted, loaded.calm.checked) == (103, 106)
    assert (loaded.loaded.accepted, loaded.loaded.checked) == (1, 11)


def test_the_text_drafts_what_followed_its_end_before():
    state, drafter = SimpleNamespace(tokens=[[1, 2, 3, 4, 5, 6, 7, 2, 3]]), NgramDrafter()
    assert drafter.draft(state, 4, None, 8).tokens == [5, 6, 7]  # three tokens found again give three
    assert drafter.draft(state, 4, None, 2).tokens == [5, 6]
    assert drafter.draft(state, 4, None, 0).tokens == []
    assert drafter.draft(state, 9, None, 8).tokens == []
    # A text that repeats two tokens goes on doing so.
    state.tokens = [[3, 4] * 5]
    assert drafter.draft(state, 3, None, 7).tokens == [4, 3, 4, 3, 4, 3, 4]


def test_the_end_of_a_text_is_found_where_it_stood_last():
    assert found_again([5, 6, 1, 5, 6, 2, 5, 6]) == (2, [2, 5, 6])
    assert found_again([5, 5, 5]) == (2, [5])  # it may overlap with itself
    assert found_again([1, 2, 3]) == found_again([1]) == (0, [])
    # Tokens are found as a whole, though their bytes stand elsewhere too, from a byte later on.
    assert found_again([0x01000000, 0, 0, 7, 1, 0]) == (0, [])
    ones = 0x01010101
    assert found_again([ones, ones, 0x00010101, 7, ones, ones]) == (2, [0x00010101, 7, ones, ones])
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
    state, drafter = SimpleNamespace(tokens=[[1, 2, 3, 4, 5, 6, 7, 2, 3]]), NgramDrafter(Pace(0.3))
    drafter.draft(state, 4, None, 8).learn(1)  # the second was refused, so that nobody looked at the third
    assert (drafter.by_length[3].accepted, drafter.by_length[3].checked) == (
        Acceptance().accepted + 1,
        Acceptance().checked + 2,
    )
    drafter.by_length[3] = Acceptance(6, 10)
    expected, gain = Pace(0.3).best(0.6, 0.0, 3)
    draft = drafter.draft(state, 4, None, 8)
    assert len(draft.tokens) == expected < 3
    assert draft.gain == gain > 0
    drafter.by_length[3] = Acceptance(1, 10)  # less than a position more costs: one token now and then
    assert [len(drafter.draft(state, 4, None, 8).tokens) for _ in range(TRIED)] == [*[0] * (TRIED - 1), 1]


def test_the_text_drafts_where_that_gains_more_than_the_model():
    model = SimpleNamespace(gain=lambda most: 1.0, draft=lambda *_: Draft([9]))
    state = SimpleNamespace(tokens=[[1, 2, 3, 4, 5, 6, 7, 2, 3]])
    drafter = TextOrModelDrafter(model, NgramDrafter())
    assert drafter.draft(state, 4, None, 8).tokens == [5, 6, 7]  # which gain 1.77
    assert drafter.draft(state, 1, None, 8).tokens == [9]  # new text
    model.gain = lambda most: 2.0
    assert drafter.draft(state, 4, None, 8).tokens == [9]


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}]
)
def test_drawn_tokens_are_the_dense_models_with_the_same_seed(options):
    model = tiny_model("llama", seed=3)
    dense, speculative = (Engine(model, None, method=method, plan="none") for method in ("dense", "speculative"))
    drafters = speculative.speculation.drafter, whole(speculative)  # that of the engine first, then its model's
    for seed in range(5):
        speculative.speculation.drafter = drafters[seed > 1]
        a, b = ([*engine.generate(PROMPT, 40, seed=seed, logprobs=3, **options)] for engine in (dense, speculative))
        assert a == [replace(step, drafted=None) for step in b]
    assert speculative.speculation.acceptance > 0.3  # draws of both with the same random numbers mostly agree


def test_an_engine_that_drafts_serves_several_threads_and_generators_in_turn():
    model = tiny_model("llama", seed=3)
    model.generation_config.eos_token_id = None
    engine = Engine(model, None, method="speculative", plan="none", threads=2)
    prompts = [tokens(20 + i, seed=i) * 2 for i in range(4)]  # the text drafts too
    alone = [[step.token_id for step in engine.generate(prompt, 24)] for prompt in prompts]
    running = [engine.generate(prompt, 24) for prompt in prompts]
    found = [[step.token_id for step in steps] for steps in zip(*running, strict=True)]
    assert found == [list(row) for row in zip(*alone, strict=True)]

    def ids_of(prompt):
        return [step.token_id for step in engine.generate(prompt, 24)]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(ids_of, prompts, timeout=300)) == alone
    for acceptance in (engine.speculation.drafter.model.calm, *engine.speculation.drafter.text.by_length.values()):
        assert 0 <= acceptance.accepted <= acceptance.checked


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
    with pytest.raises(InputError, match=r"^weights in int8 cannot draft for int4; use text$"):
        Engine(model, None, method="speculative", plan="none", dtype="int4", draft="int8")
    with pytest.raises(InputError, match=r"^weights in float32 cannot draft for bfloat16; use int8 or int4 or text$"):
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_text_alone_drafts(dtype):
    model = tiny_model("llama", seed=3)
    dense = Engine(model, None, method="dense", plan="none", dtype=dtype)
    engine = Engine(model, None, method="speculative", plan="none", dtype=dtype, draft="text")
    assert isinstance(engine.speculation.drafter, NgramDrafter)
    again = PROMPT * 3  # text that stood there before
    ids = [[step.token_id for step in each.generate(again, 60)] for each in (dense, engine)]
    assert ids[0] == ids[1]
    assert engine.speculation.drafted > 0


def test_a_files_own_blocks_are_drafted_for_by_the_text():
    model, tokenizer = load_model("smollm2-135m")
    dense, speculative = (Engine(model, tokenizer, method=method, dtype="file") for method in ("dense", "speculative"))
    for prompt in ("Once upon a time", "red, green, blue, red, green, blue, red, green, blue, red,"):
        texts = [[step.token_id for step in engine.generate(prompt, 48)] for engine in (dense, speculative)]
        assert texts[0] == texts[1]
    assert speculative.speculation.accepted > 0  # colours go on; how often it is worth the time is measured


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
