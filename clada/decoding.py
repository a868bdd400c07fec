"""Decoding as an iterator of step records: choose a token, know its load, run it as the policy says.

Generation, teacher-forced loss and the bench are loops over `steps`; they differ in how tokens are chosen. A sampler is
a function of the state and the sequences that go on; teacher forcing is a sampler that returns given tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from clada.cpu.decoder import State
from clada.methods.policy import Policy
from clada.methods.selection import Selection

# Given a state and the numbers that its sequences had at the first step, the next token of each.
Sampler = Callable[[State, Sequence[int]], list[int]]

# Of a sequence: whether a token of this surprisal, drawn from a distribution of this entropy (bits), is under load.
LoadRule = Callable[[float, float], tuple[bool, bool]]

# Of a sequence's number and a token, which was run and whose record was taken: whether the sequence ends with it.
Ends = Callable[[int, int], bool]


class Runs(Protocol):
    """What a decoder does with a state; `clada.cpu.decoder.Decoder` has the documentation."""

    def step(self, state: State, tokens: Sequence[int], selection: Selection) -> None:
        """Run one token of every sequence."""

    def select(self, state: State, sequences: Sequence[int]) -> None:
        """Go on with some of the sequences only."""


class Record(NamedTuple):
    """One token of every sequence, chosen and run; lists are parallel to `sequences`."""

    sequences: list[int]  # numbers of those that go on, as the state had them at the first step
    tokens: list[int]
    surprisal: list[float]  # bits, under the raw softmax
    entropy: list[float]  # bits, of the distribution the token was drawn from
    loads: list[tuple[bool, bool]]  # by surprisal and by entropy
    drafted: bool | None = None  # of a single sequence, whether a draft had the token too; None where nothing drafts


def given(tokens: Sequence[Sequence[int]]) -> Sampler:
    """Teacher forcing: a sampler that returns the sequences' own tokens, one after the other.

    Args:
        tokens: of every step, one per sequence.
    """
    following = iter(tokens)
    return lambda _state, _sequences: list(next(following))


def most_likely_words(state: State, _sequences: Sequence[int]) -> list[int]:
    """A greedy sampler, without what a model's generation config asks for."""
    return [int(token) for token in state.outcome.best]


def steps(
    decoder: Runs,
    policy: Policy,
    state: State,
    sampler: Sampler,
    count: int,
    rules: Sequence[LoadRule] | None = None,
    ends: Ends = lambda _sequence, _token: False,
) -> Iterator[Record]:
    """Decode from a state, which moves along.

    Args:
        decoder: of the weights that the policy is of.
        policy: what each token computes, by its load.
        state: prompts that were run, with room for `count` tokens.
        sampler: chooses the tokens.
        count: at most so many steps.
        rules: of load, one a sequence; None: the policy's coefficients.
        ends: says where sequences end before that.

    Returns:
        a record per step. Before the first step the neurons that the prompts need are known.
    """
    needed = policy.needed(state.statistics)  # once for a prompt: rows that stay the same are copied when they change
    if rules is None:
        rules = [policy.coefficients.loads] * len(state.tokens)

    def run() -> Iterator[Record]:
        going, chosen = list(range(len(state.tokens))), needed
        for _ in range(count):
            record = decide(state, going, sampler, rules)
            decoder.step(state, record.tokens, policy.selection(record.loads, chosen))
            yield record
            kept = [row for row, (i, token) in enumerate(zip(going, record.tokens, strict=True)) if not ends(i, token)]
            if not kept:
                return
            if len(kept) < len(going):
                decoder.select(state, kept)
                going = [going[row] for row in kept]
                chosen = None if chosen is None else chosen[kept]

    return run()


def decide(state: State, going: list[int], sampler: Sampler, rules: Sequence[LoadRule]) -> Record:
    """The next tokens and their loads, before they are run; arguments are those of `steps` and of its sampler.

    Raises:
        ModelError: the logits are not finite.
    """
    state.outcome.check()
    tokens = sampler(state, going)
    known = [state.outcome.load(row, token) for row, token in enumerate(tokens)]
    loads = [rules[sequence](*load) for sequence, load in zip(going, known, strict=True)]
    return Record(going, tokens, [s for s, _ in known], [h for _, h in known], loads)
