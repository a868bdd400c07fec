"""Random sequences: quotas, tagged words and draws against slow recomputations."""

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from clada.errors import InputError
from clada.models.open import bos_tokens
from cladastats.sequences.random_words import Encoded, RandomSequences, TaggedWords, quotas, tag_words, total_variation
from cladastats.sequences.windows import Window

SEED = 7


@pytest.fixture(scope="session")
def news_words(articles: list[str]) -> TaggedWords:
    return tag_words(articles, 1, np.random.default_rng(SEED))


# -- quotas -------------------------------------------------------------------------------------------------------


def test_no_other_whole_numbers_are_nearer_than_quotas() -> None:
    rng = np.random.default_rng(SEED)
    for n, strata, _ in itertools.product(range(1, 8), range(1, 5), range(5)):
        ratio = rng.dirichlet(np.ones(strata))
        count = quotas(ratio, n)
        assert count.sum() == n
        every = (c for c in itertools.product(range(n + 1), repeat=strata) if sum(c) == n)
        nearest = min(sum(abs(part / n - share) for part, share in zip(c, ratio, strict=True)) / 2 for c in every)
        # 1e-12: rounding of sums of at most four shares.
        assert total_variation(count, ratio) == pytest.approx(nearest, abs=1e-12)


def test_quotas_that_can_be_met_are_met() -> None:
    # 0.29 * 100 is 28.999999999999996 in binary: rounding down must not lose a word.
    assert quotas(np.array([0.29, 0.01, 0.7]), 100).tolist() == [29, 1, 70]


def test_total_variation_runs_from_the_same_to_disjoint() -> None:
    assert total_variation(np.array([1, 3]), np.array([0.25, 0.75])) == 0
    assert total_variation(np.array([4, 0]), np.array([0.0, 1.0])) == 1
    assert total_variation(np.array([3, 1]), np.array([0.5, 0.5])) == 0.25


# -- tagged words -------------------------------------------------------------------------------------------------


def test_words_are_tagged_with_their_part_of_speech() -> None:
    text = 'The quick dog chased "the" cats, but I didn\'t see it.\n\nHe paid £5, OK?'
    pool = tag_words([text], 1, np.random.default_rng(SEED))
    tag = dict(zip((word.strip() for word in pool.text), (pool.strata[s] for s in pool.stratum), strict=True))
    # Tags of the British National Corpus (CLAWS C5).
    assert (tag["The"], tag["quick"], tag["dog"], tag["chased"]) == ("AT0", "AJ0", "NN1", "VVD")
    assert tag["The"] == tag["the"]
    assert {name for name, mark in zip(pool.strata, pool.punctuation, strict=True) if mark} == {
        'mark "',
        "mark ,",
        "mark .",
        "mark ?",
        "mark £",
    }


def test_no_character_of_the_documents_is_lost(articles: list[str]) -> None:
    texts = [*articles[:5], " leading space", '"Quoted" and well-known—dashed (in brackets)...\r\n- item\n\n\n- item']
    pool = tag_words(texts, 1, np.random.default_rng(SEED))
    # Documents come in the order of the draw, with their white space; sorted characters compare them all at once.
    assert sorted("".join("".join(pool.text).split())) == sorted("".join("".join(texts).split()))
    single = tag_words(articles[:1], 1, np.random.default_rng(SEED))
    assert "".join("".join(single.text).split()) == "".join(articles[0].split())


def test_no_word_can_grow_onto_the_one_before_it(news_words: TaggedWords) -> None:
    assert not [word for word in news_words.text if word[0].isalnum()]


def test_ratios_are_those_of_the_tagged_words(news_words: TaggedWords) -> None:
    count = Counter(news_words.stratum.tolist())
    assert news_words.ratio.tolist() == [count[s] / len(news_words.text) for s in range(len(news_words.strata))]


def test_tagging_stops_when_there_are_enough_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cladastats.sequences.random_words.TAGGED_WORDS", (20, 60))
    texts = [f"Ten words are in number {i} of these few texts ." for i in range(20)]
    for needed, words in [(1, 20), (35, 44), (1_000, 66)]:  # a text is taken whole: eleven words with its full stop
        assert len(tag_words(texts, needed, np.random.default_rng(SEED)).text) == -(-words // 11) * 11


# -- random sequences ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lettered_words() -> TaggedWords:
    """500 words whose first letter is their stratum, some of them twice, so that a decoded sequence can be counted."""
    text = [f" n{i}" for i in range(250)] + [f" v{i // 2}" for i in range(150)] + ["."] * 90 + [" rare"] * 10
    stratum = np.repeat([0, 1, 2, 3], [250, 150, 90, 10])
    return TaggedWords(text, stratum, ["n", "v", ".", "r"], np.bincount(stratum) / 500, np.array([0, 0, 1, 0], bool))


def decoded_words(tokenizer: Any, window: Window) -> list[str]:
    """The words of a sequence of `lettered_words`; the last may be cut."""
    text = tokenizer.decode(window.token_ids[len(bos_tokens(tokenizer)) :])
    words = re.findall(r" \w+|\.", text)
    assert "".join(words) == text
    return words


def slow_distance(share_of: Counter[str], pool: TaggedWords) -> float:
    total = share_of.total()
    shares = zip(pool.strata, pool.ratio, strict=True)
    return sum(abs(share_of[name] / total - ratio) for name, ratio in shares) / 2


def test_random_sequences_keep_the_ratios_and_no_word_beyond_its_count(
    lettered_words: TaggedWords, tokenizer: Any
) -> None:
    draw = RandomSequences(lettered_words, tokenizer, 300)
    punctuation = []
    for seed in range(20):
        window = draw(np.random.default_rng(seed))
        assert len(window.token_ids) == 301
        assert window.token_ids[: len(bos_tokens(tokenizer))].tolist() == bos_tokens(tokenizer)
        words = decoded_words(tokenizer, window)
        assert not Counter(words[:-1]) - Counter(lettered_words.text)
        count = Counter(word.strip()[0] for word in words)
        # 1e-12: order of summation.
        assert window.pos_distance == pytest.approx(slow_distance(count, lettered_words), abs=1e-12)
        # About 100 words of 3 tokens: four strata round to within 1/100; the cut takes at most two words more.
        assert window.pos_distance <= 0.03
        assert window.target_distance == 300 - len(bos_tokens(tokenizer))
        assert window.documents == [0]
        punctuation.append(abs(count["."] / len(words) - 0.18))
    assert draw.punctuation_max == pytest.approx(max(punctuation), abs=1e-12)


def test_random_sequences_come_in_random_order(lettered_words: TaggedWords, plain_tokenizer: Any) -> None:
    draw = RandomSequences(lettered_words, plain_tokenizer, 300)
    places: dict[str, list[float]] = {name: [] for name in lettered_words.strata}
    for seed in range(100):
        words = decoded_words(plain_tokenizer, draw(np.random.default_rng(seed)))
        for place, word in enumerate(words):
            places[word.strip()[0]].append((place + 0.5) / len(words))
    for name, found in places.items():
        # A uniform place has mean 1/2 and standard deviation 0.289; five standard errors.
        assert np.mean(found) == pytest.approx(0.5, abs=5 * 0.289 / len(found) ** 0.5), name


def test_random_news_keeps_parts_of_speech_as_far_as_whole_words_allow(
    news_words: TaggedWords, plain_tokenizer: Any
) -> None:
    fitted: list[list[int]] = []

    class Recorded(RandomSequences):
        def _fit(self, *args: Any, **options: Any) -> Encoded:
            found = super()._fit(*args, **options)
            fitted.append(found.words.tolist())
            return found

    draw = Recorded(news_words, plain_tokenizer, 512)
    distances = []
    for seed in range(20):
        window = draw(np.random.default_rng(seed))
        chosen = fitted[-1]
        assert len(set(chosen)) == len(chosen)
        # No word is cut off: the sequence is the text of all of them.
        assert plain_tokenizer.decode(window.token_ids) == "".join(news_words.text[i] for i in chosen)
        count = Counter(news_words.strata[news_words.stratum[i]] for i in chosen)
        assert window.pos_distance == pytest.approx(slow_distance(count, news_words), abs=1e-12)
        rounding = total_variation(quotas(news_words.ratio, len(chosen)), news_words.ratio)
        assert window.pos_distance == pytest.approx(rounding, abs=1e-12)
        distances.append(window.pos_distance)
    # 80 strata in about 400 words: whole words alone leave 0.023 (0.006 at length 2,048).
    assert max(distances) < 0.03
    assert draw.rounding_max == pytest.approx(max(distances), abs=1e-12)
    assert draw.punctuation_max < 0.02


def test_random_sequences_of_2048_tokens_are_within_two_hundredths(
    news_words: TaggedWords, plain_tokenizer: Any
) -> None:
    draw = RandomSequences(news_words, plain_tokenizer, 2048)
    distances = [draw(np.random.default_rng(seed)).pos_distance for seed in range(10)]
    assert max(distances) <= 0.02


def test_too_few_words_for_a_random_sequence_are_refused(lettered_words: TaggedWords, plain_tokenizer: Any) -> None:
    draw = RandomSequences(lettered_words, plain_tokenizer, 4096)
    with pytest.raises(InputError) as error:
        draw(np.random.default_rng(SEED))
    assert str(error.value) == (
        "too little text for random sequences of 4,097 tokens without repeating a word "
        "(the source has 500 words); use a shorter --length or more text"
    )
