"""How long a draft should be: what its tokens gain, and what their time would give otherwise.

A draft of n tokens that are each accepted with probability a gives a + a^2 + ... + a^n tokens more than none (Leviathan
et al. 2023, Eq. 1). It takes time to draft them, and to check more positions, and in that time decoding as it goes on
the whole gives tokens too. The draft is made that gains most beyond those, which makes the speed on the whole the
highest (the renewal-reward theorem; `Pace.best`).

How likely tokens are to be accepted follows from what was accepted so far (`Acceptance`). How long things take is
measured.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np

LONGEST = 7  # tokens of a draft: with the token before them eight positions, which a check computes well together

# What a position more adds to a check until it was measured, in steps of one position, where a weight has so many
# bytes: it takes as long to compute whatever they are, while a step of fewer bytes is shorter.
CHECKED, CHECKED_BYTES = 0.06, 4

ACCEPTED_BEFORE, CHECKED_BEFORE = 4, 5  # tokens as whose acceptance an estimate begins
LATEST = 256  # tokens of which an estimate is: older ones count half

TRIED = 32  # drafts that are left out after which one is made, as it may be worth its time by now

SURE = 3  # times of which the shortest counts: the first step of weights fetches them from their file
TIMES = 32  # latest ones that are remembered
DECAY = 0.98  # of what earlier checks count for the speed on the whole, from one to the next


@dataclass(eq=False)
class Acceptance:
    """How likely tokens of a kind are accepted, if those before them are.

    Attributes:
        accepted: how many of them were.
        checked: how many the dense model looked at; it looks at a token only if it accepted those before it.
        left_out: drafts in turn that were not worth their time.
    """

    accepted: float = ACCEPTED_BEFORE
    checked: float = CHECKED_BEFORE
    left_out: int = 0

    @property
    def rate(self) -> float:
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
        kinds: the acceptance of tokens like each of them, which learns whether it was accepted; may be left out.
        seconds: that drafting took.
        gain: of a draft from the text, tokens that are expected beyond what the time gives on the whole.
    """

    tokens: list[int] = field(default_factory=list)
    kinds: list[Acceptance] = field(default_factory=list)
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
        position_cost: what a position more adds to a check, until checks of so many positions were timed.
        token_cost: what drafting a token with a model costs, until that was timed.

    Attributes:
        check_costs: of checks of 0 to `LONGEST` drafted tokens and the one before them, [LONGEST + 1].
    """

    def __init__(self, position_cost: float = CHECKED, token_cost: float = 1.0) -> None:
        self.position_cost, self._token_cost = position_cost, token_cost
        self.check_costs = 1 + position_cost * np.arange(LONGEST + 1)
        self._step = math.nan  # seconds of a step over one position
        self._check_seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=TIMES))  # by positions
        self._token_seconds: deque[float] = deque(maxlen=TIMES)
        self._tokens = self._steps = 1.0  # tokens of late, and the steps that they took

    def token_cost(self) -> float:
        """What drafting a token with a model costs."""
        if len(self._token_seconds) < SURE or math.isnan(self._step):
            return self._token_cost
        return min(self._token_seconds) / self._step

    def speed(self) -> float:
        """Tokens in the time of a step of late; at least one, which decoding without drafts gives."""
        return max(1.0, self._tokens / self._steps)

    def best(self, rate: float, cost: float, most: int, drafted: int = 0, likely: float = 1.0) -> tuple[int, float]:
        """How many tokens more to draft, and what they gain beyond what the time gives on the whole; 0 and 0 for none.

        Args:
            rate: how likely a token is accepted if those before it are.
            cost: of drafting a token.
            most: at most so many.
            drafted: tokens of the draft so far.
            likely: how likely they are all accepted.
        """
        counts = np.arange(1, min(most, LONGEST - drafted) + 1)
        if len(counts) == 0:
            return 0, 0.0
        time = self.check_costs[drafted + counts] - self.check_costs[drafted] + cost * counts
        gains = likely * np.cumsum(rate**counts) - self.speed() * time
        best = int(gains.argmax())
        return (best + 1, float(gains[best])) if gains[best] > 0 else (0, 0.0)

    def see_token(self, seconds: float) -> None:
        """Hear how long a model drafted a token."""
        self._token_seconds.append(seconds)

    def see_check(self, draft: Draft, accepted: int, seconds: float) -> None:
        """Hear how long the check of a draft took, and how many of its tokens were accepted."""
        self._check_seconds[len(draft.tokens) + 1].append(seconds)
        known = {n: min(times) for n, times in sorted(self._check_seconds.items()) if len(times) >= SURE}
        if not known:
            return
        fewest, most = min(known), max(known)
        self._step = known[fewest] / (1 + self.position_cost * (fewest - 1))
        points = {1: 1.0} | {n: of / self._step for n, of in known.items()}
        positions = np.arange(1, LONGEST + 2)  # between two that were timed on a line
        line = np.interp(positions, list(points), list(points.values()))
        self.check_costs = line + self.position_cost * np.maximum(0, positions - most)
        self._tokens = DECAY * self._tokens + accepted + 1
        self._steps = DECAY * self._steps + (seconds + draft.seconds) / self._step
