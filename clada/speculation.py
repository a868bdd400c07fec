"""Speculative decoding: a cheap form of the model drafts tokens, the dense model checks them all in one step.

A step over several positions reads each weight once, so that checking some tokens costs little more than decoding one.
What comes out is what the dense model would have given: the check decides every token as decoding one by one would,
from the same bits, and drafts that it would not have chosen are dropped. Drawn tokens too: both draw with the same
random numbers (`clada.sampling.Draws`), so that they mostly draw the same word, and always the dense model's.

How far to draft is a rule of load: a draft ends where one more token is no longer likely enough to be accepted to pay
for its drafting. How likely it is follows from what was accepted so far, of tokens under load and of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from clada.cpu.decoder import Decoder, State
from clada.decoding import Ends, LoadRule, Record, Sampler, decide
from clada.methods.policy import Policy

LONGEST = 7  # tokens of a draft: with the token before them eight positions, which a check computes well together

# What a position more adds to a check, in steps of one position, where a weight has so many bytes. It takes as long to
# compute whatever they are, while a step of fewer bytes is shorter. `benchmarks/speculation.py` measures it.
CHECKED, CHECKED_BYTES = 0.06, 4

ACCEPTED_BEFORE, DRAFTED_BEFORE = 4, 5  # drafted tokens as whose acceptance a drafter begins

SHORTEST_MATCH, LONGEST_MATCH = 2, 8  # tokens at the end of a text that are looked for earlier in it


class Drafter(Protocol):
    """Whoever guesses what comes next.

    Attributes:
        bytes_read: for all drafts so far, of attention weights, MLP, output head and cache, [4].
    """

    bytes_read: np.ndarray

    def learn(self, accepted: int) -> None:
        """Hear how many tokens of the last draft were accepted: its first ones."""

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:
        """Guess the tokens that follow `token`, which is chosen and not run.

        Args:
            state: of the dense model, of a single sequence; it stays as it is, but for caches beyond its tokens.
            token: the next one.
            sampler: how tokens are chosen.
            most: at most so many.
        """


@dataclass
class ModelDrafter:
    """Drafts by decoding a cheaper form of the same model: lower precision, perhaps less computed.

    Attributes:
        decoder: of the cheap form.
        policy: what it computes.
        rule: of load; None: no token is under load.
        checked: what a position more adds to a check, in steps of one position.
        bytes_read: see `Drafter`.
        tallies: by whether they were under load, tokens that were accepted and all that were checked. The dense model
            looks at a token only if it accepted those before it, so others are not among them.
    """

    decoder: Decoder
    policy: Policy
    rule: LoadRule | None = None
    checked: float = CHECKED
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    tallies: np.ndarray = field(default_factory=lambda: np.full((2, 2), (ACCEPTED_BEFORE, DRAFTED_BEFORE)))
    under_load: list[bool] = field(default_factory=list, init=False)  # tokens of the last draft

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:
        """As `Drafter.draft`."""
        follower, drafted, likely = self.decoder.follow(state), list[int](), 1.0
        rules: list[LoadRule] = [self.rule or (lambda _surprisal, _entropy: (False, False))]
        selection, whole = self.policy.selection([(False, False)], None), int(state.outcome.bytes_read.sum())
        self.under_load = []
        while len(drafted) < most:
            self.decoder.step(follower, [token], selection)
            self.bytes_read += follower.outcome.bytes_read
            guess = decide(follower, [0], sampler, rules)
            (token,) = guess.tokens
            drafted.append(token)
            self.under_load.append(any(guess.loads[0]))
            likely *= self._acceptance(self.under_load[-1])
            if not self.goes_on(likely, int(follower.outcome.bytes_read.sum()) / whole):
                break
        return drafted

    def goes_on(self, likely: float, cost: float) -> bool:
        """Whether to draft one more token: it saves a step of the dense model if it is accepted.

        Args:
            likely: how likely all drafted so far are accepted.
            cost: of drafting it, in steps of the dense model: as the bytes that are read.
        """
        accepted, known = self.tallies.sum(0)
        return bool(likely * accepted / known > cost + self.checked)

    def _acceptance(self, under_load: bool) -> float:
        accepted, checked = self.tallies[int(under_load)]
        return float(accepted / checked)

    def learn(self, accepted: int) -> None:
        """As `Drafter.learn`."""
        for place, loaded in enumerate(self.under_load[: accepted + 1]):
            self.tallies[int(loaded)] += (place < accepted, 1)


@dataclass
class NgramDrafter:
    """Drafts what followed the last tokens where they were in the text before; costs nothing.

    Where a longer end of the text is found again, more is drafted: as many tokens as it has.

    Attributes:
        bytes_read: see `Drafter`; none.
    """

    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:  # noqa: ARG002
        """As `Drafter.draft`."""
        ids = [*state.tokens[0], token]
        for length in range(min(LONGEST_MATCH, len(ids) - 1), SHORTEST_MATCH - 1, -1):
            end = ids[-length:]
            for begin in range(len(ids) - length - 1, -1, -1):  # the latest first
                if ids[begin : begin + length] == end:
                    return ids[begin + length :][: min(most, length)]
        return []

    def learn(self, accepted: int) -> None:
        """Nothing."""


@dataclass
class Speculation:
    """Decodes speculatively, and counts.

    Attributes:
        drafter: guesses.
        most: tokens of a draft, at most.
        checks: how many there were.
        tokens: that were given out.
        drafted: tokens that were checked.
        accepted: those of them that the dense model would have given.
        bytes_read: for drafts and checks, of attention weights, MLP, output head and cache, [4].
    """

    drafter: Drafter
    most: int = LONGEST
    checks: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64), init=False)

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that the dense model would have given; NaN before any were drafted."""
        return self.accepted / self.drafted if self.drafted else math.nan

    def steps(
        self,
        decoder: Decoder,
        policy: Policy,
        state: State,
        sampler: Sampler,
        count: int,
        rules: Sequence[LoadRule],
        ends: Ends,
    ) -> Iterator[Record]:
        """The records of `clada.decoding.steps` with the same arguments, of a single sequence.

        The sampler must choose the same where it is asked again with the same outcome and tokens.
        """
        dense, done = policy.dense(1), 0
        record = decide(state, [0], sampler, rules)._replace(drafted=False)
        while done < count:
            (token,) = record.tokens
            before = self.drafter.bytes_read.copy()
            drafts = self.drafter.draft(state, token, sampler, min(self.most, count - done - 1))
            checked = decoder.run(state, [[token, *drafts]], dense)
            self.bytes_read += checked.bytes_read + self.drafter.bytes_read - before
            self.checks, self.drafted, accepted = self.checks + 1, self.drafted + len(drafts), 0
            while True:
                decoder.keep(state, [accepted + 1])
                done, self.tokens = done + 1, self.tokens + 1
                yield record
                if done == count or ends(0, record.tokens[0]):
                    return
                record = decide(state, [0], sampler, rules)
                drafted = accepted < len(drafts) and record.tokens[0] == drafts[accepted]
                record = record._replace(drafted=drafted)
                if not drafted:
                    break
                accepted += 1
                self.accepted += 1
            self.drafter.learn(accepted)
