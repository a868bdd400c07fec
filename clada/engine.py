"""The engine: prefill, then decode token by token, computing only the neurons each token needs.

    state = engine.prefill(prompt)      the prompt runs dense
    for step in engine.decode(state):   choose a token, know its load, run it through sparse MLPs
        ...
    engine.generate(prompt)             both

Attention, norms and embeddings run in transformers' own modules on its key-value cache; the MLPs are replaced for the
one forward pass of each decoded token, and only then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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

from clada.coefficients import Coefficients, resolve_coefficients
from clada.errors import InputError, ModelError
from clada.families import check_length, gate_activation, gated_mlps, replaced_forwards
from clada.kernels import GatedMLP, set_threads, sparse_mlp
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
        InputError: a plan or coefficients that are not of this model, or cannot be read.
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
        set_threads(threads or os.cpu_count() or 1)
        self.model = model.to(device) if device is not None else model
        self.tokenizer = tokenizer
        self.method = method
        self._weights = [GatedMLP.from_module(mlp, gate_activation(model.config)) for mlp in self._mlps]
        self._neurons = sum(len(w.norm) for w in self._weights)
        self.policy = self._resolve_policy(plan, coefficients)

    def _resolve_policy(self, plan: Plan | str | Path | None, coefficients: Coefficients | str | Path | None) -> Policy:
        name = self.model.name_or_path
        if not isinstance(coefficients, Coefficients):
            coefficients = resolve_coefficients(coefficients, name)
        if self.method == "dense":
            plan = "none"
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
        state = self.prefill(self.encode(prompt, chat=chat), max_new_tokens)
        yield from self.decode(state, max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)

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
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Iterator[Step]:
        """Decode from a state, which moves along; arguments and steps as in `generate`."""
        choose = _chooser(temperature, top_p, top_k, seed, state.logits.device)
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
        """Tokens that end a text: those of the generation config, and the tokenizer's own."""
        listed = self.model.generation_config.eos_token_id
        ids = set(listed if isinstance(listed, list) else [listed])
        if self.tokenizer is not None:
            ids.add(self.tokenizer.eos_token_id)
        return ids - {None}


def _chooser(temperature: float, top_p: float, top_k: int, seed: int | None, device: torch.device) -> Any:
    """A function from logits [vocabulary] to the token chosen (a 0-d tensor)."""
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise InputError("sampling needs temperature >= 0, 0 < top-p <= 1 and top-k >= 0")
    if temperature == 0:
        return torch.argmax
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def choose(logits: torch.Tensor) -> torch.Tensor:
        scores = warpers(None, logits[None].float())[0]
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)[0]

    return choose


class _TextStream:
    """Token ids to the text they complete, in the context of the prompt (a word's leading space depends on it)."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int]) -> None:
        self.tokenizer = tokenizer and tokenizer.backend_tokenizer
        self.stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)

    def __call__(self, token: int) -> str:
        return "" if self.tokenizer is None else self.stream.step(self.tokenizer, token) or ""
