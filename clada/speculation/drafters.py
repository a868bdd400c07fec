"""Who drafts tokens: the text so far, or a cheaper form of the model.

Greedy text often repeats what stood there before. Where the end of the text is found again, what followed it is a draft
that costs nothing but its check (prompt lookup decoding, Saxena 2023). Elsewhere a cheaper form of the same weights
drafts (self-speculative decoding, Zhang et al. 2024). Which of both, and how many tokens, is a question of speed
(`clada.speculation.pace`). Where no draft is worth its time, none is made, but for a trial now and then.

Tokens of the model's drafts that were under load are counted apart from others: this is the load rule.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from clada.cpu.decoder import Decoder, State
from clada.decoding import LoadRule, Sampler, decide
from clada.methods.policy import Policy
from clada.speculation.pace import LONGEST, Acceptance, Draft, Pace

SHORTEST_MATCH, LONGEST_MATCH = 2, 8  # tokens at the end of a text that are looked for earlier in it


class Drafter(Protocol):
    """Whoever guesses what comes next."""

    @property
    def pace(self) -> Pace:
        """What is known of the time that drafts and checks take."""

    @property
    def bytes_read(self) -> np.ndarray:
        """For all drafts so far, of attention weights, MLP, output head and cache, [4]."""

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:
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
        pace: see `Drafter`.
        bytes_read: see `Drafter`.
        calm: acceptance of tokens that are not under load.
        loaded: of those that are.
    """

    decoder: Decoder
    policy: Policy
    rule: LoadRule | None = None
    pace: Pace = field(default_factory=Pace)
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    calm: Acceptance = field(default_factory=Acceptance)
    loaded: Acceptance = field(default_factory=Acceptance)

    @property
    def rate(self) -> float:
        """How likely a token is accepted whose load is not known yet."""
        return (self.calm.accepted + self.loaded.accepted) / (self.calm.checked + self.loaded.checked)

    def gain(self, most: int) -> float:
        """What a draft is expected to gain, as `Draft.gain`."""
        return self.pace.best(self.rate, self.pace.token_cost(), most)[1]

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:
        """As `Drafter.draft`."""
        draft, likely = Draft(), 1.0
        if most == 0 or not self.calm.is_due(self.goes_on(draft, likely)):
            return draft
        begin = perf_counter()
        follower = self.decoder.follow(state)
        rules: list[LoadRule] = [self.rule or (lambda _surprisal, _entropy: (False, False))]
        selection = self.policy.selection([(False, False)], None)
        while True:
            self.decoder.step(follower, [token], selection)
            guess = decide(follower, [0], sampler, rules)
            self.bytes_read += follower.outcome.bytes_read
            (token,) = guess.tokens
            draft.tokens.append(token)
            draft.kinds.append(self.loaded if any(guess.loads[0]) else self.calm)
            now = perf_counter()
            self.pace.see_token(now - begin - draft.seconds)
            draft.seconds = now - begin
            likely *= draft.kinds[-1].rate
            if len(draft.tokens) == most or not self.goes_on(draft, likely):
                return draft

    def goes_on(self, draft: Draft, likely: float) -> bool:
        """Whether to draft more tokens.

        Args:
            draft: so far.
            likely: how likely all of it is accepted.
        """
        return self.pace.best(self.rate, self.pace.token_cost(), LONGEST, len(draft.tokens), likely)[0] > 0


@dataclass
class NgramDrafter:
    """Drafts what followed the last tokens where they were in the text before; costs nothing.

    Where a longer end of the text is found again, more is drafted: at most as many tokens as it has.

    Attributes:
        pace: see `Drafter`.
        bytes_read: see `Drafter`; none.
        by_length: acceptance by how many tokens of the end were found again.
    """

    pace: Pace = field(default_factory=Pace)
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    by_length: dict[int, Acceptance] = field(default_factory=lambda: defaultdict(Acceptance))

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:  # noqa: ARG002
        """As `Drafter.draft`."""
        found, follows = found_again([*state.tokens[0], token])
        most = min(most, found)
        if most == 0:
            return Draft()
        acceptance = self.by_length[found]
        length, gain = self.pace.best(acceptance.rate, 0.0, most)
        if not acceptance.is_due(length > 0):
            return Draft()
        if length == 0:
            length, gain = 1, math.inf  # a trial, which must be made to tell
        # Where the end overlaps with what was found, the text repeats what follows.
        tokens = [follows[place % len(follows)] for place in range(length)]
        return Draft(tokens, [acceptance] * length, gain=gain)


def found_again(ids: Sequence[int]) -> tuple[int, list[int]]:
    """How much of the end of a text stands in it before, and what followed there, where it stood last.

    Args:
        ids: of the text.

    Returns:
        So many tokens of the end, at most `LONGEST_MATCH`, and all that follows them; 0 and nothing if even
        `SHORTEST_MATCH` tokens are new.
    """
    size = 4
    text = np.array(ids, np.int32).tobytes()
    for length in range(min(LONGEST_MATCH, len(ids) - 1), SHORTEST_MATCH - 1, -1):
        end, at = text[-size * length :], len(text) - size
        while (at := text.rfind(end, 0, at)) >= 0:
            if at % size == 0:
                return length, list(ids[at // size + length :])
            at += len(end) - 1  # between two tokens: look before it
    return 0, []


@dataclass
class TextOrModelDrafter:
    """Takes the draft of the text where that gains more, and else the model's.

    Attributes:
        model: drafts where the text has nothing.
        text: drafts from the text; its pace is the model's.
    """

    model: ModelDrafter
    text: NgramDrafter

    @property
    def pace(self) -> Pace:
        """See `Drafter`."""
        return self.model.pace

    @property
    def bytes_read(self) -> np.ndarray:
        """See `Drafter`."""
        return self.model.bytes_read

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:
        """As `Drafter.draft`."""
        found = self.text.draft(state, token, sampler, most)
        if found.tokens and found.gain >= self.model.gain(most):
            return found
        return self.model.draft(state, token, sampler, most)
