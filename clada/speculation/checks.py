"""Speculative decoding: somebody drafts tokens cheaply, the dense model checks them all in one step.

A step over several positions reads each weight once, so that checking some tokens costs little more than decoding one.
What comes out is what the dense model would have given: the check decides every token as decoding one by one would,
from the same bits, and drafts that it would not have chosen are dropped. Drawn tokens too: both draw with the same
random numbers (`clada.sampling.Draws`), so that drafts of a model mostly draw the same word. What is given out is
always the dense model's.

Who drafts, and how many tokens, is the business of `clada.speculation.drafters`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from clada.cpu.decoder import Decoder, State
from clada.decoding import Ends, LoadRule, Record, Sampler, decide
from clada.methods.policy import Policy
from clada.speculation.drafters import Drafter
from clada.speculation.pace import LONGEST


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
            draft = self.drafter.draft(state, token, sampler, min(self.most, count - done - 1))
            drafts, begin = draft.tokens, perf_counter()
            checked = decoder.run(state, [[token, *drafts]], dense)
            seconds = perf_counter() - begin
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
            draft.learn(accepted)
            self.drafter.pace.see_check(draft, accepted, seconds)
