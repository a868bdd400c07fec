"""What a policy costs: loss of a text's own tokens, decoded by the engine's own steps, against the dense model's.

Windows of text are run as a prompt, dense, and then as the policy says: some tokens of each window in one step where
every token computes the same, else token by token, as loads are those of the policy's own distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from clada.cpu.decoder import Bookmark, Decoder, Outcome, State
from clada.decoding import decide, given, steps
from clada.methods.policy import Policy

BATCH = 8  # windows side by side: a row of weights is read once for all

PIECE = 2  # tokens of each window in a step, where they may be: more keep the processor no busier


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
        self.windows = [windows[i : i + BATCH] for i in range(0, len(windows), BATCH)]
        self.starts: list[tuple[State, Bookmark]] = []
        for batch in self.windows:
            room = len(batch[0]) - prompt
            state = decoder.prefill([w[:prompt] for w in batch], room, dense.dense(len(batch)), statistics)
            self.starts.append((state, decoder.bookmark(state)))

    def score(self, policy: Policy, reference: Policy | None = None) -> Loss:
        """Decode every window's own tokens as the policy says.

        Args:
            policy: of the weights that the decoder runs.
            reference: also measure the divergence from this one; costs its decoding on top.
        """
        return self.score_all([policy], reference)[0]

    def score_all(self, policies: Sequence[Policy], reference: Policy | None = None) -> list[Loss]:
        """The same for several policies, against one run of the reference."""
        parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in policies]
        for i, batch in enumerate(self.windows):
            windows = np.array(batch)
            expected: list[np.ndarray] = []
            if reference is not None:
                self._run(i, windows, reference, expected.append)
            for policy, measured in zip(policies, parts, strict=True):
                divergence: list[np.ndarray] = []

                see = partial(_compare, expected, divergence) if expected else None
                measured.append((*self._run(i, windows, policy, see), np.array(divergence).T))
            self.progress()
        return [self._loss(measured, reference is not None) for measured in parts]

    def _loss(self, parts: list[tuple[np.ndarray, ...]], diverges: bool) -> Loss:
        surprisal, entropy, active, divergence = (np.concatenate(values) for values in zip(*parts, strict=True))
        return Loss(
            nll=surprisal.mean(1) * math.log(2),
            kl=divergence.mean(1) if diverges else None,
            active=float(active.mean()) / self.decoder.weights.down_norm.size,
            tokens=surprisal.size,
            surprisal=surprisal,
            entropy=entropy,
        )

    def _run(
        self, i: int, windows: np.ndarray, policy: Policy, see: Callable[[np.ndarray], Any] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Surprisal and entropy of every scored token in bits, and neurons active in every step, [windows, steps].

        Args:
            i: number of the batch.
            windows: its token ids.
            policy: what is computed.
            see: given the log-probabilities [B, V] before every scored token.
        """
        state, mark = self.starts[i]
        self.decoder.rewind(state, mark)
        if not policy.coefficients.has_rule:
            return self._run_in_pieces(state, windows[:, self.prompt :], policy, see)
        own_tokens = given(windows[:, self.prompt :].T.tolist())

        def sampler(state: State, sequences: Sequence[int]) -> list[int]:
            if see is not None:
                outcome = state.outcome
                see((outcome.logits - outcome.log_total[:, None]).astype(np.float32))
            return own_tokens(state, sequences)

        # The last token is scored, but nothing follows that it would have to run for.
        active = []
        records = []
        for record in steps(self.decoder, policy, state, sampler, windows.shape[1] - self.prompt - 1):
            records.append(record)
            active.append(state.outcome.active.copy())
        rules = [policy.coefficients.loads] * len(windows)
        records.append(decide(state, list(range(len(windows))), sampler, rules))
        loads = [(record.surprisal, record.entropy) for record in records]
        surprisal, entropy = np.ascontiguousarray(np.array(loads).transpose(1, 2, 0))
        return surprisal, entropy, np.array(active or [np.zeros(len(windows))], float).T

    def _run_in_pieces(
        self, state: State, tokens: np.ndarray, policy: Policy, see: Callable[[np.ndarray], Any] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of a policy under which no load changes anything; `tokens` [windows, scored] follow the state."""
        n, length = tokens.shape
        selection = policy.selection([(False, False)] * n, policy.needed(state.statistics))
        loads, active = np.empty((2, n, length)), np.zeros((n, max(1, length - 1)))

        def look(outcome: Outcome, begin: int, count: int) -> None:
            """Note what was known before each of the tokens that follow `count` positions of every window."""
            outcome.check()
            for k in range(count):
                rows = np.arange(k, n * count, count)
                loads[:, :, begin + k] = [
                    *zip(
                        *(outcome.load(int(row), int(tokens[b, begin + k])) for b, row in enumerate(rows)), strict=True
                    )
                ]
                if see is not None:
                    see((outcome.logits[rows] - outcome.log_total[rows, None]).astype(np.float32))

        look(state.outcome, 0, 1)
        # The last token is scored, but nothing follows that it would have to run for.
        for begin in range(0, length - 1, PIECE):
            end = min(begin + PIECE, length - 1)
            outcome = self.decoder.run(state, tokens[:, begin:end].tolist(), selection)
            active[:, begin:end] = outcome.active.reshape(n, -1)
            look(outcome, begin + 1, end - begin)
        return loads[0], loads[1], active


def _compare(expected: list[np.ndarray], divergence: list[np.ndarray], log_p: np.ndarray) -> None:
    """Note the divergence of a step's log-probabilities [B, V] from those expected at that step."""
    reference = expected[len(divergence)]
    divergence.append(np.einsum("bv,bv->b", np.exp(reference), reference - log_p))
