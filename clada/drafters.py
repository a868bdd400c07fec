"""Who drafts tokens for `clada.speculation`: the text so far, or a cheaper form of the model.

Greedy text often repeats what stood there before. Where the end of the text is found again, what followed it is a draft
that costs nothing but its check. Elsewhere a cheaper form of the same weights drafts.

Which of both, and how many tokens, is a question of speed. A draft of n tokens that are each accepted with probability
a gives a + a^2 + ... + a^n tokens more than none. It takes time to draft them, and to check more positions, and in that
time decoding as it goes on the whole gives tokens too. The draft is made that gains most beyond those, which makes the
speed on the whole the highest (`Pace.best`). Where none gains, nothing is drafted.

How likely tokens are to be accepted follows from what was accepted so far (`Chance`). Tokens of the model's drafts that
were under load are counted apart from others: this is the load rule. How long things take is measured (`Pace`).
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from clada.cpu.decoder import Decoder, State
from clada.decoding import LoadRule, Sampler, decide
from clada.methods.policy import Policy

LONGEST = 7  # tokens of a draft: with the token before them eight positions, which a check computes well together

# What a position more adds to a check until it was measured, in steps of one position, where a weight has so many
# bytes: it takes as long to compute whatever they are, while a step of fewer bytes is shorter.
CHECKED, CHECKED_BYTES = 0.06, 4

ACCEPTED_BEFORE, DRAFTED_BEFORE = 4, 5  # drafted tokens as whose acceptance a chance begins
LATEST = 256  # tokens of which a chance is: older ones count half

SHORTEST_MATCH, LONGEST_MATCH = 2, 8  # tokens at the end of a text that are looked for earlier in it

TRIED = 32  # drafts that are left out after which one is made, as it may be worth its time by now

SURE = 3  # times of which the shortest counts: the first step of weights fetches them from their file
TIMES = 32  # latest ones that are remembered
DECAY = 0.98  # of what earlier checks count for the speed on the whole, from one to the next


@dataclass(eq=False)
class Chance:
    """How likely tokens of a kind are accepted, if those before them are.

    Attributes:
        accepted: how many of them were.
        checked: how many the dense model looked at; it looks at a token only if it accepted those before it.
        left_out: drafts in turn that were not worth their time.
    """

    accepted: float = ACCEPTED_BEFORE
    checked: float = DRAFTED_BEFORE
    left_out: int = 0

    @property
    def share(self) -> float:
        """As a probability."""
        return self.accepted / self.checked

    def learn(self, accepted: bool) -> None:
        """Count a token that was checked."""
        self.accepted, self.checked = self.accepted + accepted, self.checked + 1
        if self.checked > LATEST:
            self.accepted, self.checked = self.accepted / 2, self.checked / 2

    def is_due(self, worth_it: bool) -> bool:
        """Whether to draft: what is worth it, and now and then what is not."""
        self.left_out = 0 if worth_it else (self.left_out + 1) % TRIED
        return self.left_out == 0


@dataclass
class Draft:
    """Tokens that somebody guessed.

    Attributes:
        tokens: at most `LONGEST`.
        kinds: of each token, whose acceptance its own tells of; none where nobody wants to know.
        seconds: that drafting took.
        gain: tokens that were expected beyond what the time gives on the whole.
    """

    tokens: list[int] = field(default_factory=list)
    kinds: list[Chance] = field(default_factory=list)
    seconds: float = 0.0
    gain: float = 0.0

    def learn(self, accepted: int) -> None:
        """Hear how many of the tokens were accepted, the first ones; nobody looked at those after the first refused."""
        for place, kind in enumerate(self.kinds[: accepted + 1]):
            kind.learn(place < accepted)


class Pace:
    """How long drafts and checks take, in steps of the dense model over one position.

    The shortest of the latest times count, as whatever else the machine does only adds to them.

    Args:
        added: what a position more adds to a check, until checks of so many positions were timed.
        drafted: what drafting a token with a model costs, until that was timed.
    """

    def __init__(self, added: float = CHECKED, drafted: float = 1.0) -> None:
        self.added, self.drafted = added, drafted
        self.checks = 1 + added * np.arange(LONGEST + 1)  # of so many drafted tokens and the one before them
        self._step = math.nan  # seconds of a step over one position
        self._check_seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=TIMES))  # by positions
        self._draft_seconds: deque[float] = deque(maxlen=TIMES)
        self._tokens = self._steps = 1.0  # tokens of late, and the steps that they took

    def draft(self) -> float:
        """What drafting a token with a model costs."""
        if len(self._draft_seconds) < SURE or math.isnan(self._step):
            return self.drafted
        return min(self._draft_seconds) / self._step

    def speed(self) -> float:
        """Tokens in the time of a step of late; at least one, which decoding without drafts gives."""
        return max(1.0, self._tokens / self._steps)

    def best(self, chance: float, cost: float, most: int, drafted: int = 0, likely: float = 1.0) -> tuple[int, float]:
        """How many tokens more to draft, and what they gain beyond what the time gives on the whole; 0 and 0 for none.

        Args:
            chance: that a token is accepted if those before it are.
            cost: of drafting a token.
            most: at most so many.
            drafted: tokens of the draft so far.
            likely: how likely they are all accepted.
        """
        counts = np.arange(1, min(most, LONGEST - drafted) + 1)
        if len(counts) == 0:
            return 0, 0.0
        time = self.checks[drafted + counts] - self.checks[drafted] + cost * counts
        gains = likely * np.cumsum(chance**counts) - self.speed() * time
        best = int(gains.argmax())
        return (best + 1, float(gains[best])) if gains[best] > 0 else (0, 0.0)

    def see_draft(self, seconds: float) -> None:
        """Hear how long a model drafted a token."""
        self._draft_seconds.append(seconds)

    def see_check(self, draft: Draft, accepted: int, seconds: float) -> None:
        """Hear how long the check of a draft took, and how many of its tokens were accepted."""
        self._check_seconds[len(draft.tokens) + 1].append(seconds)
        known = {n: min(times) for n, times in sorted(self._check_seconds.items()) if len(times) >= SURE}
        if not known:
            return
        fewest, most = min(known), max(known)
        self._step = known[fewest] / (1 + self.added * (fewest - 1))
        points = {1: 1.0} | {n: of / self._step for n, of in known.items()}
        positions = np.arange(1, LONGEST + 2)  # between two that were timed on a line
        line = np.interp(positions, list(points), list(points.values()))
        self.checks = line + self.added * np.maximum(0, positions - most)
        self._tokens = DECAY * self._tokens + accepted + 1
        self._steps = DECAY * self._steps + (seconds + draft.seconds) / self._step


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
        calm: chance of tokens that are not under load.
        loaded: of those that are.
    """

    decoder: Decoder
    policy: Policy
    rule: LoadRule | None = None
    pace: Pace = field(default_factory=Pace)
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    calm: Chance = field(default_factory=Chance)
    loaded: Chance = field(default_factory=Chance)

    @property
    def chance(self) -> float:
        """Of a token whose load is not known yet."""
        return (self.calm.accepted + self.loaded.accepted) / (self.calm.checked + self.loaded.checked)

    def gain(self, most: int) -> float:
        """What a draft is expected to gain, as `Draft.gain`."""
        return self.pace.best(self.chance, self.pace.draft(), most)[1]

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:
        """As `Drafter.draft`."""
        draft, likely = Draft(gain=self.gain(most)), 1.0
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
            self.pace.see_draft(now - begin - draft.seconds)
            draft.seconds = now - begin
            likely *= draft.kinds[-1].share
            if len(draft.tokens) == most or not self.goes_on(draft, likely):
                return draft

    def goes_on(self, draft: Draft, likely: float) -> bool:
        """Whether to draft more tokens.

        Args:
            draft: so far.
            likely: how likely all of it is accepted.
        """
        return self.pace.best(self.chance, self.pace.draft(), LONGEST, len(draft.tokens), likely)[0] > 0


@dataclass
class NgramDrafter:
    """Drafts what followed the last tokens where they were in the text before; costs nothing.

    Where a longer end of the text is found again, more is drafted: at most as many tokens as it has.

    Attributes:
        pace: see `Drafter`.
        bytes_read: see `Drafter`; none.
        chances: by how many tokens of the end were found again.
    """

    pace: Pace = field(default_factory=Pace)
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    chances: dict[int, Chance] = field(default_factory=lambda: defaultdict(Chance))

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:  # noqa: ARG002
        """As `Drafter.draft`."""
        found, follows = found_again([*state.tokens[0], token])
        most = min(most, found)
        if most == 0:
            return Draft()
        chance = self.chances[found]
        length, gain = self.pace.best(chance.share, 0.0, most)
        if not chance.is_due(length > 0):
            return Draft()
        if length == 0:
            length, gain = 1, math.inf  # a trial, which must be made to tell
        # Where the end overlaps with what was found, the text repeats what follows.
        tokens = [follows[place % len(follows)] for place in range(length)]
        return Draft(tokens, [chance] * length, gain=gain)


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
