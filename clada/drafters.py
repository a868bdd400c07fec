"""Who drafts tokens for `clada.speculation`: a cheaper form of the model, or the text so far.

Greedy text often repeats what stood there before. Where the end of the text is found again, what followed it is a draft
that costs nothing but its check. Elsewhere a cheaper form of the same weights drafts.

Which of both, and how many tokens, is a question of speed. A draft of n tokens that are each accepted with probability
a gives 1 + a + ... + a^n tokens on average, in the time of n drafted tokens and of a step over n + 1 positions. Drafts
are chosen for the most tokens in a time (`best_draft`). Where even one token is not worth its time, nothing is drafted,
so that decoding is no slower than dense.

How likely tokens are to be accepted follows from what was accepted so far. Tokens of the model's drafts that were under
load are counted apart from others: this is the load rule.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from clada.cpu.decoder import Decoder, State
from clada.decoding import LoadRule, Sampler, decide
from clada.methods.policy import Policy

LONGEST = 7  # tokens of a draft: with the token before them eight positions, which a check computes well together

# What a position more adds to a check, in steps of one position, where a weight has so many bytes. It takes as long to
# compute whatever they are, while a step of fewer bytes is shorter. `benchmarks/speculation.py` measures it.
CHECKED, CHECKED_BYTES = 0.06, 4

ACCEPTED_BEFORE, DRAFTED_BEFORE = 4, 5  # drafted tokens as whose acceptance a drafter begins

SHORTEST_MATCH, LONGEST_MATCH = 2, 8  # tokens at the end of a text that are looked for earlier in it

TIMED = 8  # times that are known before they count: the first step of weights fetches them from their file
REMEMBERED = 32  # latest times of which the shortest counts
TRIED = 32  # checks with nothing drafted after which one token is, to see whether it is worth it by now


class Drafter(Protocol):
    """Whoever guesses what comes next."""

    @property
    def bytes_read(self) -> np.ndarray:
        """For all drafts so far, of attention weights, MLP, output head and cache, [4]."""

    def learn(self, accepted: int, seconds: float) -> None:
        """Hear how many tokens of the last draft were accepted, its first ones, and how long their check took."""

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:
        """Guess the tokens that follow `token`, which is chosen and not run.

        Args:
            state: of the dense model, of a single sequence; it stays as it is, but for caches beyond its tokens.
            token: the next one.
            sampler: how tokens are chosen.
            most: at most so many.
        """


def best_draft(accepted: float, cost: float, checked: float, most: int) -> tuple[int, float]:
    """The draft that gives the most tokens in a time: how many tokens it has, and the speed over no drafts.

    Args:
        accepted: how likely a token is accepted if those before it were.
        cost: of drafting a token, in steps of the dense model.
        checked: what a position more adds to a check, in such steps.
        most: tokens of a draft, at most.
    """
    lengths = np.arange(most + 1)
    speeds = np.cumsum(accepted**lengths) / (1 + (cost + checked) * lengths)
    best = int(speeds.argmax())
    return best, float(speeds[best])


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
    _share: float = field(default=0.0, init=False)  # of the dense model's bytes, that a drafted token reads
    _drafted: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED), init=False)  # seconds of a token
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED), init=False)  # of the dense model
    _idle: int = field(default=0, init=False)  # checks in turn with nothing drafted

    def cost(self) -> float:
        """Of drafting a token, in steps of the dense model.

        At first the share of bytes that it reads. Once some were timed, the time: where computing takes longer than
        reading, half the bytes are not half the time. The shortest times count, as other work of the machine only adds
        to them.
        """
        if min(len(self._drafted), len(self._steps)) < TIMED:
            return self._share
        return min(self._drafted) / min(self._steps)

    def best(self, most: int) -> tuple[int, float]:
        """As `best_draft`, as far as is known."""
        accepted, known = self.tallies.sum(0)
        return best_draft(accepted / known, self.cost(), self.checked, most)

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:
        """As `Drafter.draft`."""
        self.under_load, drafted, likely = [], list[int](), 1.0
        self._idle = 0 if self.goes_on(likely) else self._idle + 1
        if most == 0 or self._idle % TRIED:
            return drafted
        follower = self.decoder.follow(state)
        rules: list[LoadRule] = [self.rule or (lambda _surprisal, _entropy: (False, False))]
        selection, whole = self.policy.selection([(False, False)], None), int(state.outcome.bytes_read.sum())
        while True:
            begin = perf_counter()
            self.decoder.step(follower, [token], selection)
            guess = decide(follower, [0], sampler, rules)
            self._drafted.append(perf_counter() - begin)
            self.bytes_read += follower.outcome.bytes_read
            self._share = int(follower.outcome.bytes_read.sum()) / whole
            (token,) = guess.tokens
            drafted.append(token)
            self.under_load.append(any(guess.loads[0]))
            likely *= self._acceptance(self.under_load[-1])
            if len(drafted) == most or not self.goes_on(likely):
                return drafted

    def goes_on(self, likely: float) -> bool:
        """Whether to draft one more token: whether it gives more tokens in its time than drafts do on the whole.

        Args:
            likely: how likely all drafted so far are accepted; 1 before the first.
        """
        accepted, known = self.tallies.sum(0)
        _, speed = self.best(LONGEST)
        return bool(likely * accepted / known > speed * (self.cost() + self.checked))

    def _acceptance(self, under_load: bool) -> float:
        accepted, checked = self.tallies[int(under_load)]
        return float(accepted / checked)

    def learn(self, accepted: int, seconds: float) -> None:
        """As `Drafter.learn`."""
        self.learn_time(len(self.under_load), seconds)
        for place, loaded in enumerate(self.under_load[: accepted + 1]):
            self.tallies[int(loaded)] += (place < accepted, 1)

    def learn_time(self, drafted: int, seconds: float) -> None:
        """Hear how long a check of so many drafted tokens took, whoever drafted them."""
        self._steps.append(seconds / (1 + self.checked * drafted))


@dataclass
class NgramDrafter:
    """Drafts what followed the last tokens where they were in the text before; costs nothing.

    Where a longer end of the text is found again, more is drafted: at most as many tokens as it has.

    Attributes:
        checked: what a position more adds to a check, in steps of one position.
        bytes_read: see `Drafter`; none.
        tallies: by how many tokens were found again, those of drafts that were accepted and that were checked.
    """

    checked: float = CHECKED
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    tallies: np.ndarray = field(
        default_factory=lambda: np.full((LONGEST_MATCH + 1, 2), (ACCEPTED_BEFORE, DRAFTED_BEFORE))
    )
    speed: float = field(default=1.0, init=False)  # that the last draft promised, over no drafts
    _found: int = field(default=0, init=False)  # tokens of the end that were found again
    drafted: int = field(default=0, init=False)  # tokens of the last draft

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:  # noqa: ARG002
        """As `Drafter.draft`."""
        self._found, follows = found_again([*state.tokens[0], token])
        accepted, checked = self.tallies[self._found]
        most = min(most, self._found, len(follows))
        self.drafted, self.speed = best_draft(accepted / checked, 0.0, self.checked, most)
        return follows[: self.drafted]

    def learn(self, accepted: int, seconds: float) -> None:  # noqa: ARG002
        """As `Drafter.learn`; the time does not matter."""
        self.tallies[self._found] += (accepted, min(accepted + 1, self.drafted))


def found_again(ids: list[int]) -> tuple[int, list[int]]:
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
                return length, ids[at // size + length :]
            at += len(end) - 1  # between two tokens: look before it
    return 0, []


@dataclass
class TextOrModelDrafter:
    """Takes the draft of the text where that promises more tokens in a time, and else the model's.

    Attributes:
        model: drafts where the text has nothing.
        text: drafts from the text.
    """

    model: ModelDrafter
    text: NgramDrafter
    _from_text: bool = field(default=False, init=False)  # the last draft

    @property
    def bytes_read(self) -> np.ndarray:
        """See `Drafter`."""
        return self.model.bytes_read

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> list[int]:
        """As `Drafter.draft`."""
        found = self.text.draft(state, token, sampler, most)
        self._from_text = bool(found) and self.text.speed >= self.model.best(most)[1]
        return found if self._from_text else self.model.draft(state, token, sampler, most)

    def learn(self, accepted: int, seconds: float) -> None:
        """As `Drafter.learn`."""
        if self._from_text:
            self.text.learn(accepted, seconds)
            self.model.learn_time(self.text.drafted, seconds)
        else:
            self.model.learn(accepted, seconds)
