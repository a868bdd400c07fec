"""What a policy costs: loss of a text's own tokens under the engine's own rules, against the dense model's.

Windows of text are run as a prompt, dense, and then as the policy says. Where loads change nothing, all tokens go
through the layers at once, and the kernels' own output head says what it makes of them; layers that leave nothing out
run once for all policies. Under a load rule a window is decoded token by token, as loads are those of the policy's own
distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from clada.cpu.decoder import Bookmark, Decoder, Outcome, State
from clada.cpu.prompts.layers import HiddenStates
from clada.decoding import decide, given, steps
from clada.methods.policy import Policy
from clada.methods.selection import Selection

BATCH = 8  # windows side by side: a row of weights is read once for all


@dataclass(frozen=True)
class Loss:
    """Of one policy.

    Attributes:
        nll: mean negative log-likelihood of each window's scored tokens in nats, [windows].
        kl: mean Kullback-Leibler divergence of each window from the reference in nats, [windows]; None without one.
        active: share of the neurons computed.
        tokens: scored.
        surprisal: of every scored token in bits, [windows, tokens].
        entropy: before every scored token in bits, the same shape.
    """

    nll: np.ndarray
    kl: np.ndarray | None
    active: float
    tokens: int
    surprisal: np.ndarray
    entropy: np.ndarray

    def rise(self, dense: Loss) -> tuple[float, float, float]:
        """Rise of perplexity over dense, as a share, with its 95 % interval.

        Windows are the units: tokens of one text are not independent. Paired, as both saw the same windows.
        """
        difference = self.nll - dense.nll
        mean = float(difference.mean())
        half = 0.0
        if len(difference) > 1:
            half = float(stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference)))
        return math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half)


class Scorer:
    """Scores policies on the same windows; prompts are run once.

    Args:
        decoder: of the packed model.
        windows: token ids, all of one length.
        prompt: how many of them are the prompt, run dense; at least 1.
        dense: a policy, of which only the dense selection is used here.
        statistics: kind of prompt statistics that policies will ask for, None for none.
        progress: called after every batch of windows.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Sequence[Sequence[int]],
        prompt: int,
        dense: Policy,
        statistics: str | None = None,
        progress: Callable[[], Any] = lambda: None,
    ) -> None:
        self.decoder, self.prompt, self.progress = decoder, prompt, progress
        self.windows = [np.array(windows[i : i + BATCH]) for i in range(0, len(windows), BATCH)]
        self.starts: list[tuple[State, Bookmark]] = []
        for batch in self.windows:
            room = batch.shape[1] - prompt
            state = decoder.prefill(batch[:, :prompt].tolist(), room, dense.dense(len(batch)), statistics)
            self.starts.append((state, decoder.bookmark(state)))
        self._dense: dict[int, HiddenStates] = {}  # by batch, of layers that leave nothing out

    def score(self, policy: Policy, reference: Policy | None = None) -> Loss:
        """Score every window's own tokens as the policy says.

        Args:
            policy: of the weights that the decoder runs.
            reference: also measure the divergence from this one, which has no load rule.
        """
        return self.score_all([policy], reference)[0]

    def score_all(
        self, policies: Sequence[Policy], reference: Policy | None = None, batches: int | None = None
    ) -> list[Loss]:
        """The same for several policies; `batches` of windows of `BATCH`, None for all of them."""
        parts: list[list[_Scored]] = [[] for _ in policies]
        for i in range(len(self.windows))[:batches]:
            for policy, scored in zip(policies, parts, strict=True):
                run = self._run_by_steps if policy.coefficients.has_rule else self._run_at_once
                scored.append(run(i, policy, reference))
            self.progress()
        return [self._loss(scored, diverges=reference is not None) for scored in parts]

    def _loss(self, parts: list[_Scored], *, diverges: bool) -> Loss:
        surprisal, entropy, active, divergence = (np.concatenate(values) for values in zip(*parts, strict=True))
        return Loss(
            nll=surprisal.mean(1) * math.log(2),
            kl=divergence.mean(1) if diverges else None,
            active=float(active.mean()) / self.decoder.weights.down_norm.size,
            tokens=surprisal.size,
            surprisal=surprisal,
            entropy=entropy,
        )

    def _run_by_steps(self, i: int, policy: Policy, reference: Policy | None) -> _Scored:
        """Score a batch of windows token by token."""
        state, mark = self.starts[i]
        tokens = self.windows[i][:, self.prompt :]
        own_tokens, divergence = given(tokens.T.tolist()), _Divergence(self._expected(i, reference))
        self.decoder.rewind(state, mark)  # the reference has moved it

        def sampler(state: State, sequences: Sequence[int]) -> list[int]:
            divergence.note(state.outcome)
            return own_tokens(state, sequences)

        # The last token is scored, but nothing follows that it would have to run for.
        active, records = [], []
        for record in steps(self.decoder, policy, state, sampler, tokens.shape[1] - 1):
            records.append(record)
            active.append(state.outcome.active.copy())
        rules = [policy.coefficients.loads] * len(tokens)
        records.append(decide(state, list(range(len(tokens))), sampler, rules))
        loads = [(record.surprisal, record.entropy) for record in records]
        surprisal, entropy = np.ascontiguousarray(np.array(loads).transpose(1, 2, 0))
        return _Scored(
            surprisal, entropy, np.array(active or [np.zeros(len(tokens))], float).T, divergence.of(len(tokens))
        )

    def _run_at_once(self, i: int, policy: Policy, reference: Policy | None) -> _Scored:
        """The same where no load changes anything: tokens of all windows side by side, one after the other."""
        tokens = self.windows[i][:, self.prompt :]
        n, following, loads = len(tokens), iter(tokens.T.ravel().tolist()), []
        divergence = _Divergence(self._expected(i, reference))
        selection = self._selection(i, policy)
        hidden = self._hidden_states(i, selection)
        for outcome in self._outcomes(i, selection, hidden):
            outcome.check()
            loads += [outcome.load(row, next(following)) for row in range(len(outcome.best))]
            divergence.note(outcome)
        surprisal, entropy = np.array(loads).T.reshape(2, -1, n).transpose(0, 2, 1)
        active = np.zeros((n, 1)) if hidden is None else hidden.neurons.sum(-1, dtype=float).reshape(n, -1)
        return _Scored(surprisal, entropy, active, divergence.of(n))

    def _selection(self, i: int, policy: Policy) -> Selection:
        """What a policy needs of a batch of windows, whatever the load."""
        state, _ = self.starts[i]
        return policy.selection([(False, False)] * len(self.windows[i]), policy.needed(state.statistics))

    def _hidden_states(self, i: int, selection: Selection) -> HiddenStates | None:
        """Of all tokens but the last, after which nothing is scored; None where there is one alone."""
        state, mark = self.starts[i]
        pieces = self.windows[i][:, self.prompt : -1].tolist()
        if not pieces[0]:
            return None
        dense = not selection.leaves_out_in_layers(self.windows[i].shape[1])
        if dense and i in self._dense:
            return self._dense[i]
        self.decoder.rewind(state, mark)
        hidden = self.decoder.read(state, pieces, None if dense else selection)
        if dense:
            self._dense[i] = hidden
        return hidden

    def _outcomes(self, i: int, selection: Selection, hidden: HiddenStates | None) -> Iterator[Outcome]:
        """What is known before every scored token, for some rows at a time: of all windows, position by position."""
        _, mark = self.starts[i]
        yield mark.outcome
        if hidden is not None:
            n = len(self.windows[i])
            order = np.arange(len(hidden.residual)).reshape(n, -1).T.ravel()
            windows = np.tile(np.arange(n), len(order) // n)
            yield from self.decoder.output_head(hidden.residual[order], windows, selection)

    def _expected(self, i: int, reference: Policy | None) -> Iterator[np.ndarray] | None:
        """Log-probabilities [V] before every scored token, in the order of `_outcomes`."""
        if reference is None:
            return None
        selection = self._selection(i, reference)
        outcomes = self._outcomes(i, selection, self._hidden_states(i, selection))
        return (_log_p(outcome, row) for outcome in outcomes for row in range(len(outcome.best)))


class _Scored(NamedTuple):
    """Of a batch of windows."""

    surprisal: np.ndarray  # [windows, tokens] bits
    entropy: np.ndarray  # [windows, tokens] bits
    active: np.ndarray  # [windows, steps], neurons
    divergence: np.ndarray  # [windows, tokens] nats, or [0, 0]


class _Divergence:
    """Notes the divergence of distributions from those expected at their places, nothing where none are."""

    def __init__(self, expected: Iterator[np.ndarray] | None) -> None:
        self.expected = expected
        self.noted: list[float] = []

    def note(self, outcome: Outcome) -> None:
        """Of the next rows."""
        if self.expected is not None:
            for row in range(len(outcome.best)):
                reference = next(self.expected)
                self.noted.append(float(np.exp(reference) @ (reference - _log_p(outcome, row))))

    def of(self, windows: int) -> np.ndarray:
        """All of it, [windows, tokens]."""
        return np.array(self.noted).reshape(-1, windows).T


def _log_p(outcome: Outcome, row: int) -> np.ndarray:
    return np.asarray(outcome.logits[row] - outcome.log_total[row], np.float32)
