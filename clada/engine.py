"""The engine: prefill, then decode token by token, computing only what each token needs.

    state = engine.prefill(prompts)     the prompts run dense
    for step in engine.decode(state):   choose a token, know its load, run it as the policy says
        ...
    engine.generate(prompt)             both, for one prompt
    engine.generate_batch(prompts)      both, for several side by side

Prompts run many tokens at once, in products of matrices (`clada.cpu.prompts`); short ones in one step of the kernels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clada.assembly import (
    Choice,
    Parts,
    assemble,
    assemble_kept,
    check_head,
    choose,
    device_of,
    drafter_of,
    is_of_weights,
    plan_and_rule,
    who_drafts,
)
from clada.cpu.decoder import Outcome, State
from clada.cpu.kept import Kept, NotKeptError, find_kept, keep_packed
from clada.cpu.precision import PRECISIONS
from clada.cpu.weights import Weights
from clada.decoding import steps
from clada.errors import InputError, ModelError
from clada.methods.coefficients import Coefficients
from clada.methods.plan import Plan
from clada.methods.policy import RollingLoad
from clada.methods.registry import check_method, layout_of, method_of
from clada.methods.screen import Basis
from clada.methods.selection import Norms
from clada.models.architectures import family_of
from clada.models.description import Description
from clada.models.open import OF_FILE, gguf_file
from clada.models.tokenizer import Tokenizer
from clada.sampling import (
    GREEDY,
    Sampling,
    asks_for_processors,
    check_generation_config,
    chooser_of,
    most_likely,
    stop_strings,
)
from clada.speculation.checks import Speculation
from clada.streaming import StoppingStream, TextStream, special_ids, special_named
from clada.system.machine import available_cores, set_threads

if TYPE_CHECKING:
    import torch

MOST_LOGPROBS = 50  # tokens that a step may list


class Candidate(NamedTuple):
    """A token that could have been the next one.

    Attributes:
        token_id: the token.
        token: the text that it would complete; of a special token its name.
        logprob: natural logarithm of its probability under the raw softmax.
    """

    token_id: int
    token: str
    logprob: float


def check_logprobs(count: int) -> None:
    """Refuse a number of tokens that a step cannot list.

    Raises:
        InputError: it is out of range.
    """
    if not 0 <= count <= MOST_LOGPROBS:
        raise InputError(f"a step lists 0 to {MOST_LOGPROBS} of the likeliest tokens, not {count}; give another number")


@dataclass(frozen=True)
class Step:
    """One decoded token.

    Attributes:
        token_id: the token.
        token: the text it completes; empty for special tokens, within a character of several tokens, and while the
            text may be the beginning of a stop string. No text of a stop string or behind it is in any step.
        surprisal_bits: -log2 of the token's probability under the raw softmax.
        entropy_bits: of the distribution it was drawn from, raw softmax.
        active_fraction: share of MLP neurons that its forward pass computed.
        load_surprisal: whether its surprisal exceeds tau_s, so that lambda applies to its forward pass.
        load_entropy: whether the entropy exceeds tau_H, so that gamma applies.
        top: the likeliest tokens under the raw softmax, the likeliest first, as many as were asked for.
        layer_shares: share of every layer's neurons that its forward pass computed, if asked for; else None.
        drafted: whether a draft proposed it and the check accepted it; None where the method drafts nothing.
    """

    token_id: int
    token: str
    surprisal_bits: float
    entropy_bits: float
    active_fraction: float
    load_surprisal: bool
    load_entropy: bool
    top: tuple[Candidate, ...] = ()
    layer_shares: tuple[float, ...] | None = None
    drafted: bool | None = None


class Engine:
    """Decodes with a model, computing only what each token needs.

    The weights are copied at `dtype`; the engine keeps no reference to `model`, whose memory is free once the caller
    lets go of it.

    Args:
        model: a transformers causal language model in float32, as `clada.load_model` opens it; `Engine.open` takes a
            name.
        tokenizer: its tokenizer; may be None when prompts are token ids.
        method: of `clada.methods.registry.METHODS`.
        plan: what may be left out: a `Plan`, a file, "none" (nothing), or None for the shipped or cached plan.
        coefficients: the load rule: `Coefficients`, a file, "paper", or "none" or None for no rule.
        dtype: of the weights: `float32`, `bfloat16`, `int8`, `int4`, or `file` for the blocks of the GGUF file that the
            model is.
        draft: for method `speculative`, the precision of the weights that draft, or "text" for the text alone; None
            for the usual one.
        device: where to run, None for where the model is; the CPU runs the fused kernels, others plain torch.
        threads: for torch and the kernels; None for all cores.
        max_loss: which of the plan's budgets; None for 2 %.
        keep: keep this share of the neurons instead of what the plan's budget says.
        update_window: judge load by quantiles of so many last tokens instead of the corpus'.
        surprisal_quantile: surprisal is high above this quantile of the plan's text; None: as the coefficients say.
        entropy_quantile: the same of entropy.

    Attributes:
        speculation: of method `speculative`, with what was drafted and accepted so far; else None.

    An engine may be used by several threads, and several of its generators in turn: each step waits for the one that
    runs.

    Raises:
        ModelError: the model is not supported by the engine; it never runs dense in silence.
        InputError: a plan of another model, or a plan, coefficients or options that cannot be used.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        method: str = "clada",
        plan: Plan | str | Path | None = None,
        coefficients: Coefficients | str | Path | None = None,
        dtype: str = "float32",
        draft: str | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        max_loss: float | None = None,
        keep: float | None = None,
        update_window: int | None = None,
        surprisal_quantile: float | None = None,
        entropy_quantile: float | None = None,
    ) -> None:
        check_method(method)
        if dtype not in PRECISIONS:
            raise InputError(f"unknown dtype '{dtype}'; use {', '.join(PRECISIONS)}")
        kept = model if isinstance(model, Kept) else None
        description = model.description if kept is not None else _described(model)
        check_generation_config(description.generation)
        if tokenizer is not None and not tokenizer.is_fast:
            raise InputError("the tokenizer has no fast version, which streaming text needs; give None and token ids")
        if update_window is not None and update_window < 1:
            raise InputError(f"an update window of {update_window} tokens has no quantiles; give at least 1")
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads decode nothing; give at least 1, or None for all cores")
        on = "cpu" if kept is not None else device_of(model, device)
        drafts_by = who_drafts(dtype, draft, on) if method_of(method).drafts else None
        if draft is not None and drafts_by is None:
            raise InputError(f"method {method} drafts nothing; leave draft out, or use method speculative")
        if PRECISIONS[dtype].in_blocks and on != "cpu":
            raise InputError(f"weights in {dtype} are decoded on the CPU, not on {on}; use another dtype there")
        threads = threads or available_cores()
        if kept is None:
            set_threads(threads)
        self.tokenizer, self.method, self.name = tokenizer, method, description.name
        self.description, self.update_window = description, update_window
        self._load_quantiles = (surprisal_quantile, entropy_quantile)
        self._generation_config = description.generation
        self._config = None if kept is not None else model.config  # for what a kept model does not ask for
        looked_up = plan is None
        self.plan, coefficients = plan_and_rule(self.name, description.layers, method, plan, coefficients, max_loss)
        if surprisal_quantile is not None or entropy_quantile is not None:
            coefficients = self._with_taus(coefficients, surprisal_quantile, entropy_quantile)
        choice = choose(method, self.plan, coefficients, description.vocabulary, dtype, max_loss, keep)

        self._packed: list[tuple[Weights, str, Basis | None]] = []  # weights with their layout, and the screen's basis

        def assembled(choice: Choice, dtype: str) -> Parts:
            layout = layout_of(choice.method)
            if kept is None:
                (parts,) = assemble(model, [choice], dtype, threads, on)
            else:
                parts = assemble_kept(kept.at(dtype, layout), choice, threads)
            self._packed.append((parts.weights, layout, choice.basis))
            return parts

        parts = assembled(choice, dtype)
        self._keep: threading.Thread | None = None  # begun once a prompt has run: a mistake says so alone
        self.speculation: Speculation | None = None
        if drafts_by is not None:
            self.speculation = Speculation(drafter_of(assembled, description, dtype, drafts_by, plan, coefficients))
        self.setting, self.policy, self.decoder, self.weights = (
            choice.setting, parts.policy, parts.decoder, parts.weights,
        )  # fmt: skip
        self._of_weights = is_of_weights(
            lambda: kept.about.sums if kept is not None else _sums(model, self.weights), self.plan, looked_up=looked_up
        )
        self._neurons = self.weights.down_norm.size
        self._special = frozenset[int]() if tokenizer is None else special_ids(tokenizer)
        # The first step compiles the kernels, or loads them; without this one that would count as prefill.
        self.decoder.prefill([[0]], 0, self.policy.dense(1))

    @classmethod
    def open(
        cls, name: str, *, method: str = "clada", dtype: str = "float32", device: str = "cpu", **options: Any
    ) -> Engine:
        """An engine of a model by its name; within a second or so from the second time on.

        The first time at a precision, the model is opened and packed. Once a prompt has run, its packed weights are
        written into the cache in the background, which is said on stderr. From then on they are mapped from there, and
        neither torch nor transformers is imported.

        Args:
            name: as for `clada.load_model`.
            method: as for the class.
            dtype: as there.
            device: "cpu" or "cuda"; packed weights are kept for the kernels of the CPU alone.
            **options: others of the class.

        Raises:
            ModelError: the model is unknown or not supported.
            AssetError: an embedded model cannot be fetched.
            InputError: as for the class.
        """
        check_method(method)
        chosen = {"method": method, "dtype": dtype, **options}
        if dtype == OF_FILE:
            gguf_file(name)
        on_kernels = device == "cpu" and dtype in PRECISIONS
        kept = find_kept(name, dtype, layout_of(method)) if on_kernels else None
        if kept is not None:
            with contextlib.suppress(NotKeptError):
                return cls(kept, kept.tokenizer, **chosen)
        from clada.models.open import load_model

        model, tokenizer = load_model(name, device=device)
        engine = cls(model, tokenizer, device=device, **chosen)
        if on_kernels:
            engine._keep = engine._keeper(model)
        return engine

    def _keeper(self, model: Any) -> threading.Thread | None:
        """What writes the packed weights into the cache, if all that decoding needs can be written.

        The thread is waited for at the end of the process, so that a short command keeps them too.
        """
        tokenizer = Tokenizer.of(self.tokenizer)
        if tokenizer is None or asks_for_processors(self._generation_config):  # which transformers computes
            return None
        sums = _sums(model, self.weights)

        def keep() -> None:
            for packed in self._packed:
                keep_packed(*packed, self.description, tokenizer, sums)

        return threading.Thread(target=keep, name="clada-keep")

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return self.weights.dtype

    @property
    def measured(self) -> bool:
        """Whether the plan's loss was measured with what is left out here, under this load rule or a more careful one.

        True when nothing is left out; false where the plan was made of other weights.
        """
        if self.plan is None:
            return True
        if self.setting is None or not self._of_weights:
            return False
        return self.setting.covers(self.policy.coefficients, rolling=self.update_window is not None)

    def _with_taus(
        self, coefficients: Coefficients, surprisal_quantile: float | None, entropy_quantile: float | None
    ) -> Coefficients:
        if self.plan is None:
            raise InputError(
                "quantiles of load are those of a plan's calibration text, which method dense and plan none have not; "
                "leave one or the other out"
            )
        tau_s, tau_h = coefficients.tau_surprisal_bits, coefficients.tau_entropy_bits
        if surprisal_quantile is not None:
            tau_s = self.plan.load_quantile("surprisal_bits", surprisal_quantile)
        if entropy_quantile is not None:
            tau_h = self.plan.load_quantile("entropy_bits", entropy_quantile)
        return replace(coefficients, tau_surprisal_bits=tau_s, tau_entropy_bits=tau_h)

    # -- the main path --------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int = 0,
        layers: bool = False,
        chat: bool = False,
    ) -> Iterator[Step]:
        """Continue a prompt; stops after `max_new_tokens` or with an end-of-text token, which is yielded too.

        Args:
            prompt: text, or token ids.
            max_new_tokens: at most so many.
            temperature: 0 is greedy.
            top_p: sample from the smallest set of tokens with this probability; 1 keeps all.
            top_k: sample from so many tokens; 0 keeps all.
            seed: of the sampling.
            min_p: sample from tokens at least this share as likely as the likeliest; 0 keeps all.
            repetition_penalty: of tokens that were there before, see `Sampling`; None: as the model's generation
                config says.
            stop: strings that end the text as soon as it has one of them; they are not given out, but the tokens that
                were run are yielded. The name of a special token is one too. None: those of the generation config.
            logprobs: list so many of the likeliest tokens in every step, at most 50.
            layers: give the share of neurons of every layer in every step.
            chat: put the prompt into the model's chat template.

        Yields:
            a `Step` per token.

        Raises:
            InputError: an empty prompt, or options out of range.
            ModelError: prompt and new tokens exceed the model's positions.
        """
        sampling = Sampling(temperature, top_p, top_k, seed, min_p, repetition_penalty)
        state = self.prefill([self.encode(prompt, chat=chat)], max_new_tokens)
        for _index, step in self.decode(state, max_new_tokens, sampling, stop=stop, logprobs=logprobs, layers=layers):
            yield step

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        logprobs: int = 0,
        layers: bool = False,
    ) -> Iterator[tuple[int, Step]]:
        """Continue several prompts side by side: a row of weights is read once for all that need it.

        Args:
            prompts: texts, or token ids.
            max_new_tokens: at most so many each.
            sampling: how tokens are chosen; None: greedy.
            stop: strings that end a text, as in `generate`.
            logprobs: list so many of the likeliest tokens in every step, at most 50.
            layers: give the share of neurons of every layer in every step.

        Yields:
            (index of the prompt, step); greedy steps are those of the prompt by itself.
        """
        state = self.prefill([self.encode(prompt) for prompt in prompts], max_new_tokens)
        yield from self.decode(state, max_new_tokens, sampling or GREEDY, stop=stop, logprobs=logprobs, layers=layers)

    def encode(self, prompt: str | Sequence[int], *, chat: bool = False) -> list[int]:
        """Token ids of a prompt; text as a user's turn of the model's chat template if `chat`.

        Raises:
            InputError: nothing in it, half a character, no tokenizer for text, no chat template, or ids outside the
                vocabulary.
        """
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise InputError("the prompt holds half a character (a lone surrogate); give text in UTF-8") from None
        if not isinstance(prompt, str):
            ids = [int(i) for i in prompt]
        elif not prompt.strip():
            raise InputError(f"the prompt is {'blank' if prompt else 'empty'}; give a text with words in it")
        elif self.tokenizer is None:
            raise InputError("a prompt in text needs a tokenizer; give one, or token ids")
        elif chat:
            if self.tokenizer.chat_template is None:
                raise InputError("the model has no chat template; leave --chat out")
            turns = [{"role": "user", "content": prompt}]
            options = {"add_generation_prompt": True, "return_dict": True}
            with self.decoder.lock:
                ids = self.tokenizer.apply_chat_template(turns, **options)["input_ids"]
        else:
            with self.decoder.lock:  # a tokenizer of one thread
                ids = self.tokenizer(prompt, verbose=False)["input_ids"]
        if not ids:
            raise InputError("the prompt has no tokens; give it at least one")
        rows = self.weights.embedding_rows
        beyond = next((i for i in ids if not 0 <= i < rows), None)
        if beyond is not None:
            remedy = "use the model's own tokenizer, or model.resize_token_embeddings before the engine is made"
            raise InputError(f"the prompt has token ids outside the vocabulary of {rows:,} ({beyond}); {remedy}")
        return list(ids)

    def check_lengths(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Refuse prompts too long for the model.

        Raises:
            InputError: there are none.
            ModelError: one does not fit with the new tokens.
        """
        if not prompts:
            raise InputError("there are no prompts; give at least one")
        if max_new_tokens < 0:
            raise InputError(f"{max_new_tokens} new tokens are none; give at least 1")
        for prompt in prompts:
            self.description.positions.check(
                len(prompt) + max_new_tokens, "shorten the prompt or ask for fewer new tokens"
            )

    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> State:
        """Run prompts, dense.

        Args:
            prompts: token ids, from `encode`.
            max_new_tokens: how many will follow each, so that a model too short for them is refused before the work.

        Raises:
            InputError: there are none.
            ModelError: one is too long for the model.
        """
        self.check_lengths(prompts, max_new_tokens)
        dense = self.policy.dense(len(prompts))
        state = self.decoder.prefill(prompts, max_new_tokens, dense, self.policy.statistics)
        keep, self._keep = self._keep, None
        if keep is not None:
            keep.start()
        return state

    def decode(
        self,
        state: State,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        first: int = 0,
        *,
        stop: str | Sequence[str] | None = None,
        logprobs: int = 0,
        layers: bool = False,
    ) -> Iterator[tuple[int, Step]]:
        """Decode from a state, which moves along; ends and steps as in `generate_batch`.

        Args:
            state: from `prefill`.
            max_new_tokens: at most so many for each prompt; `prefill` was asked for room for them.
            sampling: how tokens are chosen.
            first: number of the first prompt among all that are sampled with this seed, where batches follow another.
            stop: strings that end a text, as in `generate`.
            logprobs: list so many of the likeliest tokens in every step, at most 50.
            layers: give the share of neurons of every layer in every step.

        Raises:
            InputError: a stop string or a number of logprobs that cannot be used, or stop strings without a tokenizer.
        """
        check_logprobs(logprobs)
        strings = self._stop_strings(stop)
        stops = self._stop_ids() | special_named(self.tokenizer, strings)
        configs = (self._config, self._generation_config)
        choosers = [
            chooser_of(sampling, first + i, *configs, tokens, max_new_tokens) for i, tokens in enumerate(state.tokens)
        ]
        streams = [TextStream(self.tokenizer, tokens, self._special) for tokens in state.tokens]
        texts = [StoppingStream(stream, strings) for stream in streams]
        rules = [self._load_rule() for _ in state.tokens]
        top: dict[tuple[int, int], tuple[Candidate, ...]] = {}  # by sequence and place, before the token is run

        def sampler(state: State, going: Sequence[int]) -> list[int]:
            outcome, ids = state.outcome, state.tokens
            best = outcome.best
            if logprobs:
                top.update(
                    ((i, len(ids[row])), self._candidates(outcome, row, logprobs, streams[i]))
                    for row, i in enumerate(going)
                )
            return [choosers[i](outcome.logits[row], int(best[row]), ids[row]) for row, i in enumerate(going)]

        def ends(sequence: int, token: int) -> bool:
            return token in stops or texts[sequence].ended

        decoder, policy = self.decoder, self.policy
        if self.speculation is None:
            decoded = steps(decoder, policy, state, sampler, max_new_tokens, rules, ends)
        elif len(state.tokens) > 1:
            raise InputError(
                f"method speculative decodes one prompt at a time, not {len(state.tokens)} side by side; use method "
                "dense, or give one prompt after the other"
            )
        else:
            decoded = self.speculation.steps(decoder, policy, state, sampler, max_new_tokens, rules, ends)
        for number, record in enumerate(decoded, 1):
            active = state.outcome.active / self._neurons
            shares = state.outcome.neurons / self.weights.down_norm.shape[1] if layers else None
            for row, (i, token, surprisal, entropy, load) in enumerate(zip(*record[:5], strict=True)):
                text = texts[i](token, last=token in stops or number == max_new_tokens)
                listed = top.pop((i, len(state.tokens[row]) - 1), ())
                of_layers = None if shares is None else tuple(shares[row].tolist())
                share = float(active[row])
                yield i, Step(token, text, surprisal, entropy, share, *load, listed, of_layers, record.drafted)

    def _candidates(self, outcome: Outcome, row: int, count: int, stream: TextStream) -> tuple[Candidate, ...]:
        """The likeliest next tokens of a sequence; `stream` has its tokens so far."""
        logits, total = outcome.logits[row], float(outcome.log_total[row])
        ids = most_likely(logits, count).tolist()
        texts = [self.tokenizer.convert_ids_to_tokens(i) if i in self._special else stream.rest(i) for i in ids]
        return tuple(Candidate(i, text, min(0.0, float(logits[i]) - total)) for i, text in zip(ids, texts, strict=True))

    def _stop_strings(self, stop: str | Sequence[str] | None) -> tuple[str, ...]:
        """The strings that end a text; arguments and exceptions are those of `decode`."""
        strings = stop_strings(stop, self._generation_config)
        if strings and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and the engine has none; give it one, or stop=()")
        return strings

    def _load_rule(self) -> Callable[[float, float], tuple[bool, bool]]:
        coefficients = self.policy.coefficients
        if self.update_window is None:
            return coefficients.loads
        surprisal, entropy = (coefficients.tau_quantile if q is None else q for q in self._load_quantiles)
        return RollingLoad(self.update_window, surprisal, entropy)

    def _stop_ids(self) -> set[int]:
        """Tokens that end a text: those of the generation config, as in transformers' generate."""
        listed = self._generation_config.eos_token_id
        return set(listed if isinstance(listed, list) else [listed]) - {None}


def _described(model: Any) -> Description:
    """The description of a transformers model.

    Raises:
        ModelError: the engine cannot decode it.
    """
    import torch

    family_of(model.config)
    check_head(model)
    if model.dtype != torch.float32:
        raise ModelError(f"the engine packs models in float32, not in {model.dtype}; load the model in float32")
    return Description.of(model)


def _sums(model: Any, norms: Norms) -> list[list[float]]:
    from clada.methods.observed import weight_sums

    return weight_sums(model, norms)
