"""How the next token is chosen from the model's distribution: pure functions on arrays, and who puts them together.

    penalised(logits, ids, penalty)         logits, those of tokens that were there before made less likely
    probabilities(logits, ids, sampling)    what a token is drawn from
    draw(probabilities, noise)              a token
    Chooser                                 these for one sequence, with what its model's generation config asks for

Definitions, and the order in which they apply, are those of the processors of transformers' `generate`. A test holds
these functions to them. transformers itself is imported only for what the rarer options of a generation config ask for.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clada.errors import InputError

# From logits [V] and the tokens so far, other logits.
Processors = Callable[[np.ndarray, Sequence[int]], np.ndarray]

# What transformers' greedy `generate` would obey in a generation config, and the engine does not: a value, and whether
# it asks for something.
UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "num_beams": lambda value: value > 1,
    "num_return_sequences": lambda value: value > 1,
    "guidance_scale": lambda value: value != 1,
    "penalty_alpha": lambda value: value > 0,
    "dola_layers": lambda _value: True,
    "constraints": lambda _value: True,
    "force_words_ids": lambda _value: True,
    "max_time": lambda _value: True,
    "token_healing": bool,
}

# What transformers has processors for in greedy `generate`, beside the repetition penalty: an option of a generation
# config, and the value, beside None, that asks for nothing.
PROCESSED: dict[str, Any] = {
    "sequence_bias": None,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "watermarking_config": None,
    "renormalize_logits": False,
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy, else at least 1e-6.
        top_p: sample from the smallest set of tokens with this probability; 1 keeps all.
        top_k: sample from so many tokens, and those as likely as the last of them; 0 keeps all.
        seed: of the draws; None: another one every time. Every prompt of a batch has a stream of draws of its own,
            made from the seed and the prompt's number.
        min_p: sample from tokens whose probability is at least this share of the likeliest one's (arXiv 2407.01082);
            0 keeps all.
        repetition_penalty: divides the positive logits of tokens of the prompt and of the text so far, and multiplies
            the negative ones, before all else and also where decoding is greedy (CTRL, arXiv 1909.05858, section 4.1);
            1 changes nothing; None: as the model's generation config says.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        # Below a millionth logits would leave the range of float32.
        temperate = self.temperature == 0 or 1e-6 <= self.temperature < math.inf
        if not (temperate and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise InputError(
                "sampling needs a temperature of 0 or at least 1e-6, top-p within (0, 1], top-k of at least 0 and "
                "min-p within [0, 1]"
            )
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise InputError(
                f"a repetition penalty of {self.repetition_penalty:g} is none; give a number above 0, where 1 changes "
                "nothing and more makes repetitions less likely"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} is outside 0 to 2^63 - 1")

    def noise(self, stream: int = 0) -> Noise:
        """Of the draws of a sequence; `stream` is its number, which makes it draw differently from others."""
        return Noise(np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream,))))


GREEDY = Sampling()

KEPT_PLACES = 32  # whose random numbers can be had again: more than a draft has


def penalised(logits: np.ndarray, ids: Sequence[int], penalty: float | None) -> np.ndarray:
    """Logits under a repetition penalty.

    Args:
        logits: float32 [V].
        ids: the tokens so far, prompt and text.
        penalty: see `Sampling.repetition_penalty`; None is 1.

    Returns:
        float32 [V]; the logits themselves where the penalty changes nothing.
    """
    if penalty is None or penalty == 1:
        return logits
    seen, factor = np.asarray(ids, np.int64), np.float32(penalty)
    seen = seen[seen < len(logits)]  # a table of embeddings may have more rows than the head
    changed, before = logits.copy(), logits[seen]
    changed[seen] = np.where(before < 0, before * factor, before / factor)
    return changed


def probabilities(logits: np.ndarray, ids: Sequence[int], sampling: Sampling) -> np.ndarray:
    """What a token is drawn from: penalty, temperature, top-k, top-p and min-p, in this order.

    Args:
        logits: float32 [V].
        ids: the tokens so far, prompt and text.
        sampling: with a temperature above 0.

    Returns:
        float64 [V], of sum 1; 0 for what is left out. Of equally likely tokens at the border of top-p, the first ones
        are kept; transformers leaves open which.
    """
    # In float32 up to here, as in transformers: rounding decides which tokens are equally likely.
    scores = penalised(logits, ids, sampling.repetition_penalty) / np.float32(sampling.temperature)
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    if 0 < sampling.top_k < len(scores):
        weights[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        total = weights.sum()
        # All tokens below this weight together have less than 1 - top_p: they need not be sorted.
        likely = np.flatnonzero(weights > (1 - sampling.top_p) * total / len(weights))
        falling = likely[np.argsort(-weights[likely], kind="stable")]
        reached = np.cumsum(weights[falling])
        left_out = np.ones(len(weights), bool)
        left_out[falling[: 1 + np.searchsorted(reached, sampling.top_p * total)]] = False
        weights[left_out] = 0
    weights[weights < sampling.min_p] = 0  # the likeliest token's weight is 1
    return np.asarray(weights / weights.sum())


class Noise:
    """Random numbers for draws, the same ones whenever a place of the text is asked for again.

    Args:
        generator: makes them, for one place after the other.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._first: int | None = None
        self._made: list[np.ndarray] = []  # of the places from the first on

    def __call__(self, place: int, words: int) -> np.ndarray:
        """Of a place, which is at most one further than those asked for before: float32 [words], exponential of mean 1.

        Places that lie `KEPT_PLACES` back are forgotten.

        Raises:
            IndexError: it is forgotten, or further on.
        """
        if self._first is None:
            self._first = place
        if place == self._first + len(self._made):
            self._made.append(self._generator.standard_exponential(words, np.float32))
            forgotten = max(0, len(self._made) - KEPT_PLACES)
            self._first, self._made = self._first + forgotten, self._made[forgotten:]
        if not 0 <= place - self._first < len(self._made):
            raise IndexError(f"the random numbers of place {place} are not at hand")
        return self._made[place - self._first]


def draw(probabilities: np.ndarray, noise: np.ndarray) -> int:
    """A token, from the probabilities of all [V] and as many exponential random numbers of mean 1.

    The exponential race, or Gumbel-max trick: the first of exponential times of rates p is i with probability p_i.
    Probabilities that differ a little give mostly the same token for the same noise, with probability of at least
    (1 - d) / (1 + d) where d is their total variation distance (Daliri et al. 2024, arXiv 2408.07978).
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a time of zero, which comes first whatever the rate
        return int(np.nanargmax(probabilities / noise))


def most_likely(logits: np.ndarray, count: int) -> np.ndarray:
    """The tokens with the highest logits [V], `count` of them, the likeliest first and of equals the lowest number."""
    count = min(count, len(logits))
    among = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    return among[np.argsort(-logits[among], kind="stable")][:count]


@dataclass(frozen=True)
class Chooser:
    """How the tokens of one sequence are chosen.

    Attributes:
        sampling: with the repetition penalty that applies.
        noise: of the draws.
        processors: change the logits before all else, as a generation config asks; None: they stay.
    """

    sampling: Sampling
    noise: Noise
    processors: Processors | None = None

    def __call__(self, logits: np.ndarray, best: int, ids: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: float32 [V].
            best: the token with the highest one.
            ids: the tokens so far, prompt and text.
        """
        if self.sampling.temperature > 0:
            return draw(self.probabilities(logits, ids), self.noise(len(ids), len(logits)))
        if self.processors is None and self.sampling.repetition_penalty in (None, 1):
            return best
        return int(penalised(self._processed(logits, ids), ids, self.sampling.repetition_penalty).argmax())

    def probabilities(self, logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """What the next token is drawn from, float64 [V]; arguments are those of a call."""
        return probabilities(self._processed(logits, ids), ids, self.sampling)

    def _processed(self, logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        return logits if self.processors is None else self.processors(logits, ids)


# -- what a model's generation config asks for -----------------------------------------------------------------------


def check_generation_config(config: Any) -> None:
    """Refuse what a model's generation config asks for and the engine does not do.

    Raises:
        InputError: which names it.
    """
    for name, asks in UNSUPPORTED.items():
        value = getattr(config, name, None)
        if value is not None and asks(value):
            raise InputError(
                f"the model's generation config asks for {name}={value!r}, which the engine does not do; set "
                f"model.generation_config.{name} to None"
            )


def as_configured(sampling: Sampling, config: Any) -> Sampling:
    """The sampling, with the repetition penalty of a generation config where it has none of its own.

    Raises:
        InputError: the config's value is no penalty.
    """
    penalty = getattr(config, "repetition_penalty", None)
    if sampling.repetition_penalty is not None or penalty is None:
        return sampling
    try:
        return replace(sampling, repetition_penalty=penalty)
    except (InputError, TypeError):
        raise InputError(
            f"the model's generation config cannot be used (repetition_penalty={penalty!r} is no number above 0); "
            "correct it"
        ) from None


def stop_strings(stop: str | Sequence[str] | None, config: Any) -> tuple[str, ...]:
    """The strings that end a text: those given, or where None is given, those of a generation config.

    Raises:
        InputError: one of them is empty, or no string.
    """
    if stop is None:
        stop = getattr(config, "stop_strings", None) or ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise InputError("a stop string is empty or no text, and would end every text; give at least a character")
    return strings


def asks_for_processors(config: Any) -> bool:
    """Whether a generation config asks for one of the rarer processors, which are transformers'."""
    return any(getattr(config, name, None) not in (None, neutral) for name, neutral in PROCESSED.items())


def chooser_of(
    sampling: Sampling, stream: int, model_config: Any, config: Any, prompt: Sequence[int], max_new_tokens: int
) -> Chooser:
    """How the tokens of a sequence are chosen, by the sampling and the model's generation config.

    Args:
        sampling: how tokens are chosen.
        stream: number of the sequence, see `Sampling.noise`.
        model_config: configuration of the model.
        config: its generation config.
        prompt: token ids.
        max_new_tokens: that will follow.

    Raises:
        InputError: the generation config has a value that cannot be used.
    """
    check_generation_config(config)
    sampling, noise = as_configured(sampling, config), sampling.noise(stream)
    if not asks_for_processors(config):
        return Chooser(sampling, noise)
    # The penalty is one of transformers' processors then, as some of them come before it and others after.
    penalty = sampling.repetition_penalty or 1.0
    processors = _processors(model_config, config, prompt, max_new_tokens, penalty)
    return Chooser(replace(sampling, repetition_penalty=1.0), noise, processors)


def _processors(
    model_config: Any, config: Any, prompt: Sequence[int], max_new_tokens: int, penalty: float
) -> Processors:
    """What transformers' `generate(do_sample=False)` would change logits with, by a model's generation config.

    Arguments are those of `chooser_of`; `penalty` takes the place of the config's repetition penalty.
    """
    import torch  # only here: nothing else of sampling needs it, nor transformers
    from transformers.generation import GenerationMixin

    config = copy.deepcopy(config)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    config.do_sample, config.max_length = False, len(prompt) + max_new_tokens
    config.repetition_penalty = float(penalty)
    ids = torch.tensor([list(prompt)])
    generating = GenerationMixin()  # all that processors are made of is in the configurations
    generating.config = model_config
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about options of encoders
            generating._prepare_special_tokens(config, device="cpu")
            processors = generating._get_logits_processor(
                config, input_ids_seq_length=ids.shape[1], encoder_input_ids=ids, device="cpu"
            )
    except (ValueError, TypeError) as problem:
        reason = str(problem).split("\n")[0]
        raise InputError(f"the model's generation config cannot be used ({reason}); correct it") from None

    def change(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        changed: np.ndarray = processors(torch.tensor([ids]), torch.from_numpy(logits)[None].clone())[0].numpy()
        return changed

    return change
