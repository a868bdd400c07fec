"""The engine: prefill, then decode token by token, computing only the neurons each token needs.

    state = engine.prefill(prompt)      the prompt runs dense
    for step in engine.decode(state):   choose a token, know its load, run it through sparse MLPs
        ...
    engine.generate(prompt)             both

Attention, norms and embeddings run in transformers' own modules on its key-value cache; the MLPs are replaced for the
one forward pass of each decoded token, and only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clada.coefficients import NONE, Coefficients, resolve_coefficients
from clada.errors import InputError, ModelError
from clada.families import check_length, gate_activation, gated_mlps, replaced_forwards
from clada.kernels import GatedMLP, available_cores, set_threads, sparse_mlp
from clada.load import surprisal_and_entropy_bits
from clada.models import model_revision
from clada.plan import Plan, resolve_plan
from clada.policies import Policy, make_policy


@dataclass(frozen=True)
class Step:
    """One decoded token.

    Attributes:
        token_id: the token.
        token: the text it completes; empty for special tokens and within a character of several tokens.
        surprisal_bits: -log2 of the token's probability under the raw softmax.
        entropy_bits: of the distribution it was drawn from, raw softmax.
        active_fraction: share of MLP neurons that its forward pass computed.
        load_surprisal: whether its surprisal exceeds tau_s, so that lambda applies to its forward pass.
        load_entropy: whether the entropy exceeds tau_H, so that gamma applies.
    """

    token_id: int
    token: str
    surprisal_bits: float
    entropy_bits: float
    active_fraction: float
    load_surprisal: bool
    load_entropy: bool


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability; 1 keeps all.
        top_k: sample from so many tokens; 0 keeps all.
        seed: of the draws; None: another one every time.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise InputError("sampling needs a temperature of at least 0, top-p within (0, 1] and top-k of at least 0")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} is outside 0 to 2^63 - 1")

    def chooser(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function from logits [vocabulary] to the token chosen (a 0-d tensor)."""
        if self.temperature == 0:
            return torch.argmax
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)

        def choose(logits: torch.Tensor) -> torch.Tensor:
            scores = warpers(None, logits[None].float())[0]
            return torch.multinomial(scores.softmax(-1), 1, generator=generator)[0]

        return choose


GREEDY = Sampling()


@dataclass
class DecodeState:
    """Where decoding stands: the cache, and the distribution of the next token.

    Attributes:
        prompt_ids: tokens of the prompt.
        cache: keys and values so far.
        logits: [vocabulary], of the next token.
    """

    prompt_ids: list[int]
    cache: DynamicCache
    logits: torch.Tensor


class Engine:
    """Decodes with a model, computing only the neurons that each token needs.

    Args:
        model: a transformers causal language model of a family with gated MLPs, as `clada.load_model` opens it.
        tokenizer: its tokenizer; may be None when prompts are token ids.
        method: `clada` or `dense`.
        plan: base thresholds: a `Plan`, a file, "none" (nothing left out), or None for the shipped or cached plan.
        coefficients: the load rule: `Coefficients`, a file, "none", "paper", or None for those of the newest study.
        dtype: of the weights; float32.
        device: where to run, None for where the model is.
        threads: for torch and the kernels; None for all cores.

    Raises:
        ModelError: the family is not supported by the engine; it never runs dense in silence.
        InputError: a plan of another model, or a plan or coefficients that cannot be used.
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
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        if dtype != "float32" or model.dtype != torch.float32:
            asked = dtype if dtype != "float32" else model.dtype
            raise ModelError(f"the engine decodes in float32, not in {asked}; use --dtype float32")
        self._mlps = gated_mlps(model)
        if tokenizer is not None and not tokenizer.is_fast:
            raise InputError("the tokenizer has no fast version, which streaming text needs; give None and token ids")
        set_threads(threads or available_cores())
        self.model = model.to(device) if device is not None else model
        self.tokenizer = tokenizer
        self.method = method
        self._weights = [GatedMLP.from_module(mlp, gate_activation(model.config)) for mlp in self._mlps]
        self._neurons = sum(len(w.norm) for w in self._weights)
        self.policy = self._resolve_policy(plan, coefficients)
        # The first call compiles the loop; without this one that would count as decoding.
        sparse_mlp(self._weights[0], self._weights[0].gate.new_zeros(self._weights[0].gate.shape[1]), 0.0, 0.0)

    def _resolve_policy(self, plan: Plan | str | Path | None, coefficients: Coefficients | str | Path | None) -> Policy:
        name = self.model.name_or_path
        if self.method == "dense":
            plan, coefficients = "none", NONE
        if not isinstance(coefficients, Coefficients):
            coefficients = resolve_coefficients(coefficients, name)
        if not isinstance(plan, Plan) and plan != "none" and not name:
            raise InputError(
                "this model has no name to look its plan up by; give a Plan, or plan='none' (everything computed)"
            )
        revision = "" if plan == "none" or not name else model_revision(name)
        found = plan if isinstance(plan, Plan) else resolve_plan(plan, name, revision)
        if found is not None:
            found.check_model(revision or found.revision, len(self._mlps))
        self.plan = found
        return make_policy(self.method, found, coefficients, len(self._mlps))

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
        chat: bool = False,
    ) -> Iterator[Step]:
        """Continue a prompt; stops after `max_new_tokens` or with the end-of-text token, which is yielded too.

        Args:
            prompt: text, or token ids.
            max_new_tokens: at most so many.
            temperature: 0 is greedy.
            top_p: sample from the smallest set of tokens with this probability; 1 keeps all.
            top_k: sample from so many tokens; 0 keeps all.
            seed: of the sampling.
            chat: put the prompt into the model's chat template.

        Yields:
            a `Step` per token.

        Raises:
            InputError: an empty prompt, or sampling options out of range.
            ModelError: prompt and new tokens exceed the model's positions.
        """
        sampling = Sampling(temperature, top_p, top_k, seed)
        state = self.prefill(self.encode(prompt, chat=chat), max_new_tokens)
        yield from self.decode(state, max_new_tokens, sampling)

    def encode(self, prompt: str | Sequence[int], *, chat: bool = False) -> list[int]:
        """Token ids of a prompt; text as a user's turn of the model's chat template if `chat`.

        Raises:
            InputError: nothing in it, no tokenizer for text, no chat template, or ids outside the vocabulary.
        """
        if not isinstance(prompt, str):
            ids = [int(i) for i in prompt]
            if any(not 0 <= i < self.model.config.vocab_size for i in ids):
                raise InputError(f"the prompt has token ids outside the vocabulary of {self.model.config.vocab_size:,}")
        elif not prompt.strip():
            ids = []
        elif self.tokenizer is None:
            raise InputError("a prompt in text needs a tokenizer; give one, or token ids")
        elif chat:
            if self.tokenizer.chat_template is None:
                raise InputError("the model has no chat template; leave --chat out")
            turns = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            ids = self.tokenizer(prompt, verbose=False)["input_ids"]
        if not ids:
            raise InputError("the prompt is empty; give a text with at least one character")
        return list(ids)

    @torch.inference_mode()
    def prefill(self, prompt_ids: list[int], max_new_tokens: int = 0) -> DecodeState:
        """Run the prompt, dense.

        Args:
            prompt_ids: from `encode`.
            max_new_tokens: how many will follow, so that a model too short for them is refused before the work.
        """
        check_length(
            self.model.config, len(prompt_ids) + max_new_tokens, "shorten the prompt or ask for fewer new tokens"
        )
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([prompt_ids], device=self.model.device)
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        return DecodeState(prompt_ids, cache, logits)

    def decode(
        self,
        state: DecodeState,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
    ) -> Iterator[Step]:
        """Decode from a state, which moves along; ends and steps as in `generate`."""
        choose = sampling.chooser(state.logits.device)
        stops = self._stop_ids()
        text = _TextStream(self.tokenizer, state.prompt_ids)
        for _ in range(max_new_tokens):
            token = choose(state.logits)
            surprisal, entropy = surprisal_and_entropy_bits(state.logits, token)
            loads = self.policy.coefficients.loads(float(surprisal), float(entropy))
            active = self._decode_one(state, int(token), self.policy.thresholds(*loads))
            yield Step(int(token), text(int(token)), float(surprisal), float(entropy), active / self._neurons, *loads)
            if int(token) in stops:
                return

    @torch.inference_mode()
    def _decode_one(self, state: DecodeState, token: int, thresholds: list[tuple[float, float]]) -> int:
        """Run one token through sparse MLPs; the state moves along. Returns the number of active neurons."""
        active: list[int] = []

        def sparse(weights: GatedMLP, gate: float, magnitude: float) -> Any:
            def forward(x: torch.Tensor) -> torch.Tensor:
                y, n = sparse_mlp(weights, x.reshape(-1), gate, magnitude)
                active.append(n)
                return y.view_as(x)

            return forward

        forwards = [sparse(w, *limits) for w, limits in zip(self._weights, thresholds, strict=True)]
        ids = torch.tensor([[token]], device=self.model.device)
        with replaced_forwards(self._mlps, forwards):
            state.logits = self.model(ids, past_key_values=state.cache, use_cache=True).logits[0, -1]
        return sum(active)

    def _stop_ids(self) -> set[int]:
        """Tokens that end a text: those of the generation config, as in transformers' generate."""
        listed = self.model.generation_config.eos_token_id
        return set(listed if isinstance(listed, list) else [listed]) - {None}


class _TextStream:
    """Token ids to the text they complete, in the context of the prompt (a word's leading space depends on it)."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int]) -> None:
        self.tokenizer = tokenizer and tokenizer.backend_tokenizer
        self.stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)

    def __call__(self, token: int) -> str:
        return "" if self.tokenizer is None else self.stream.step(self.tokenizer, token) or ""
