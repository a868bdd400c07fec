"""`with clada.sparse(model, plan): model.generate(...)`: a transformers model, sparse in place, undone on exit.

The model keeps its own weights and its own code; hooks set to zero what the engine would not compute. That is for
quality, not for speed: whatever runs the model (pipelines, evaluations, notebooks) sees the choices of the engine.
Beam search reorders sequences between passes, which is not followed: with a load rule, a beam's load is judged by the
distribution of the beam that had its place before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.activations import ACT2FN

from clada.assembly import check_head, choose, is_of_weights, plan_and_rule, vocabulary_of
from clada.errors import InputError
from clada.methods.coefficients import Coefficients
from clada.methods.dejavu import guess, predictors
from clada.methods.observed import neuron_statistics, norms_of, weight_sums
from clada.methods.plan import Plan
from clada.methods.policy import Policy
from clada.methods.registry import check_leaves_out, method_of
from clada.methods.rules import keeps_gated, keeps_input, keeps_neuron
from clada.methods.screen import Screen, screen_words
from clada.methods.selection import ATTENTION_INPUT, MLP_INPUT, Selection
from clada.models.anatomy import Layer, anatomy
from clada.models.hooks import Hooks, evaluating
from clada.surprisal import surprisal_and_entropy_bits

PROMPTS = ("dense", "sparse")

SCREENED = 64  # tokens whose words are estimated together: more are no faster, and need more memory


class Sparse:
    """What a model computes while it is sparse.

    Attributes:
        policy: what is left out.
        prompt: as `sparse` was asked; may be changed between passes.
        paused: while it is true the model computes everything, and nothing is noted of what passes.
        prompt_is_cut: the prompts that run dense lack their last token, which comes by itself. The engine runs it with
            the prompt; either way neurons are chosen by those before it.
        real: bool [B, T], which tokens of the next passes are somebody's and count; None: what attention masks say.
        tokens: that ran sparse so far.
        neurons: that they computed, of all layers together.
    """

    def __init__(self, policy: Policy, prompt: str) -> None:
        self.policy = policy
        self.prompt = prompt
        self.paused = self.prompt_is_cut = False
        self.real: torch.Tensor | None = None
        self.tokens = 0
        self.neurons = 0

    @property
    def active_fraction(self) -> float:
        """The share of neurons computed, over the tokens that ran sparse; 1 before any did."""
        return self.neurons / (self.tokens * self.policy.weight.size) if self.tokens else 1.0


@contextmanager
def sparse(
    model: Any,
    plan: Plan | str | Path | None = None,
    coefficients: Coefficients | str | Path | None = None,
    *,
    method: str = "clada",
    max_loss: float | None = None,
    keep: float | None = None,
    prompt: str = "dense",
) -> Iterator[Sparse]:
    """Within the block the model computes only what each token needs.

    Args:
        model: any supported transformers model, at any float dtype, on any device; in evaluation mode within the block,
            and as it was after it.
        plan: what may be left out: a `Plan`, a file, "none" (nothing), or None for the shipped or cached plan.
        coefficients: the load rule: `Coefficients`, a file, "paper", or "none" or None for no rule.
        method: of `clada.methods.registry.EVALUATED`.
        max_loss: which of the plan's budgets; None for 2 %.
        keep: keep this share of the neurons instead.
        prompt: `dense`: tokens before anything is cached are a prompt and run dense, as in the engine, and tokens that
            follow are sparse; `sparse`: every token is, so that evaluations that never generate are sparse too. Where
            several tokens run at once, attention is whole. Methods that choose neurons by a prompt take those of the
            last prompt that ran dense.

    Yields:
        what was left out, counted.

    Raises:
        ModelError: the model is not supported.
        InputError: a plan of another model, a plan, coefficients or options that cannot be used, or, when the model
            runs, a sparse prompt where the method needs a dense one first.
    """
    check_leaves_out(method)
    if prompt not in PROMPTS:
        raise InputError(f"prompt '{prompt}' is neither of {', '.join(PROMPTS)}")
    check_head(model)
    parts = anatomy(model)
    looked_up = plan is None
    layers = model.config.num_hidden_layers
    resolved, coefficients = plan_and_rule(model.name_or_path, layers, method, plan, coefficients, max_loss)
    dtype = str(model.dtype).removeprefix("torch.")
    choice = choose(method, resolved, coefficients, vocabulary_of(model), dtype, max_loss, keep)
    norms = norms_of(parts)
    is_of_weights(
        lambda: weight_sums(model, norms), resolved, rounded=model.dtype != torch.float32, looked_up=looked_up
    )
    policy = choice.policy(norms)
    run = _Run(model, policy, Sparse(policy, prompt))
    if method_of(method).predicted and resolved is not None:
        run.predictors = [table.to(model.device) for table in predictors(resolved)]
    if choice.basis is not None:
        screen = Screen.of(parts.head.weight.detach().float().cpu(), choice.basis)
        run.screen = [tensor.to(parts.head.weight.device) for tensor in screen.wide()]
    with Hooks() as hooks:
        hooks.change(model.config, "_attn_implementation", run.attention)  # passes that attend selectively change it
        hooks.before(model, run.begin, with_kwargs=True)
        hooks.after(model, run.end, with_kwargs=True, always_call=True)
        hooks.after(parts.head, run.at_head)
        for i, layer in enumerate(parts.layers):
            run.hook_layer(hooks, i, layer, ACT2FN[parts.activation])
        with evaluating(model):
            yield run.counted


class PromptStatistics:
    """What neurons did over the prompts of a batch but for their last tokens, as the engine collects it.

    Args:
        kind: see `clada.methods.rules.statistics_of_sums`.
        down_norm: [L, N].
        mask: attention mask [B, T] or None; padding counts for nothing.
        shape: sequences and tokens.
        cut: the last tokens are not among them.
    """

    def __init__(
        self, kind: str, down_norm: np.ndarray, mask: torch.Tensor | None, shape: tuple[int, int], *, cut: bool
    ) -> None:
        self.kind, self.down_norm, self.shape = kind, down_norm, shape
        self.length = shape[1] if cut else shape[1] - 1
        self.real = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
        self.values = np.zeros((shape[0], *down_norm.shape), np.float32)

    def add(self, layer: int, h: torch.Tensor) -> None:
        """Of one layer, activations [B * T, N] in any shape."""
        rows = h.reshape(*self.shape, h.shape[-1])[:, : self.length].float()
        for b, z in enumerate(rows):
            z = z[self.real[b, : self.length].to(z.device)]
            if len(z):
                self.values[b, layer] = neuron_statistics(z, self.kind, self.down_norm[layer])


class _Run:
    """The hooks, and what they share during a forward pass."""

    def __init__(self, model: Any, policy: Policy, counted: Sparse) -> None:
        self.model, self.policy, self.counted = model, policy, counted
        self.attention = model.config._attn_implementation
        self.screen: list[torch.Tensor] | None = None
        self.predictors: list[torch.Tensor] | None = None
        self.selection: Selection | None = None  # None: dense
        self.shape = (0, 0)  # sequences and tokens of this pass
        self.previous: torch.Tensor | None = None  # logits [B, V] that the next tokens are drawn from
        self.statistics: PromptStatistics | None = None
        self.needed: np.ndarray | None = None
        self.real: torch.Tensor | None = None  # [B * T], tokens that count
        self.kept: torch.Tensor | None = None  # of the layer that runs, [B * T, N]
        self.inside = False  # a pass of our own

    # -- around the whole model ---------------------------------------------------------------------------------------

    def begin(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Decide what this pass computes."""
        if self.inside:
            return None
        self.selection = None
        if self.counted.paused:
            return None
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeddings = kwargs.get("inputs_embeds")
        tokens = embeddings if ids is None else ids
        if tokens is None:  # the model will say so
            return None
        self.shape = tuple(tokens.shape[:2])
        past = kwargs.get("past_key_values")
        follows = past is not None and past.get_seq_length() > 0
        if not follows:
            self.previous = None
        if follows or self.counted.prompt == "sparse":
            self.selection = self._select(ids, args, kwargs)
            if self.shape[1] == 1:
                kwargs = self._attend(kwargs)
            mask = kwargs.get("attention_mask") if self.counted.real is None else self.counted.real
            self.real = None if mask is None else mask[:, -self.shape[1] :].flatten().bool()
            self.counted.tokens += self.shape[0] * self.shape[1] if self.real is None else int(self.real.sum())
        elif kind := self.policy.statistics:
            cut = self.counted.prompt_is_cut
            mask = kwargs.get("attention_mask")
            self.statistics = PromptStatistics(kind, self.policy.weight, mask, self.shape, cut=cut)
        return args, kwargs

    def end(self, _model: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        """Keep what the next token's load is known from."""
        if self.inside or self.counted.paused:
            return
        self.model.config._attn_implementation = self.attention
        logits = getattr(output, "logits", None)  # None: the pass failed
        self.previous = None if logits is None else logits[:, -1].detach()
        if self.statistics is not None:
            statistics, self.statistics = self.statistics, None
            self.needed = self.policy.needed(statistics.values)

    def _select(self, ids: torch.Tensor | None, args: Any, kwargs: dict[str, Any]) -> Selection:
        """What tokens [B, T] need, given the loads of each; ids are None where embeddings are given in their place."""
        if self.policy.shares.prompt and self.needed is None:
            raise InputError(
                f"method {self.policy.method} chooses neurons by a prompt that runs dense; use prompt='dense' first"
            )
        # A prompt of one sequence may be gone on with by several.
        tokens = self.shape[0] * self.shape[1]
        repeated = None if self.needed is None else np.repeat(self.needed, tokens // len(self.needed), 0)
        rule = self.policy.coefficients
        if ids is None:
            if rule.lambda_ or rule.gamma:
                raise InputError(
                    "the load of tokens that come as embeddings is not known; give input_ids, or coefficients 'none'"
                )
            return self.policy.selection([(False, False)] * tokens, repeated)
        if self.shape[1] == 1 or not (rule.lambda_ or rule.gamma):
            return self.policy.selection(self._loads(ids, None), repeated)
        # A token's load is known from the token before, whose logits depend on its own load, and so on. Every pass
        # settles one token more at least, and nearly all of them at once.
        loads = self._loads(ids, None)
        self.inside = True
        try:
            for _ in range(self.shape[1]):
                self.selection = self.policy.selection(loads, repeated)
                past = copy.deepcopy(kwargs.get("past_key_values"))
                options = {**kwargs, "past_key_values": past, "labels": None, "logits_to_keep": 0}
                settled = self._loads(ids, self.model(*args, **options).logits)
                if settled == loads:
                    break
                loads = settled
        finally:
            self.inside = False
        return self.policy.selection(loads, repeated)

    def _loads(self, ids: torch.Tensor, logits: torch.Tensor | None) -> list[tuple[bool, bool]]:
        """By surprisal and entropy, of tokens [B, T] under the logits before them; none where these are not known.

        Args:
            ids: the tokens.
            logits: [B, T, V], of these tokens; None: only what came before them is known.
        """
        rows = [[(False, False)] * ids.shape[1] for _ in ids]
        if self.previous is not None:
            before = self.previous.expand(len(ids), -1)
            for row, load in zip(rows, self._load(before, ids[:, 0]), strict=True):
                row[0] = load
        if logits is not None:
            following = self._load(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            for b, row in enumerate(rows):
                row[1:] = following[b * (ids.shape[1] - 1) :][: ids.shape[1] - 1]
        return [load for row in rows for load in row]

    def _load(self, logits: torch.Tensor, ids: torch.Tensor) -> list[tuple[bool, bool]]:
        surprisal, entropy = surprisal_and_entropy_bits(logits, ids)
        rule = self.policy.coefficients.loads
        return [rule(max(0.0, s), h) for s, h in zip(surprisal.tolist(), entropy.tolist(), strict=True)]

    def _attend(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Let one token give the mean to positions of little weight."""
        assert self.selection is not None
        least = self.selection.attention_threshold
        if not least.any():
            return kwargs
        self.model.config._attn_implementation = "clada"
        weight = torch.as_tensor(least, device=self.model.device).view(-1, 1, 1, 1)
        return {**kwargs, "least_weight": weight, "least_positions": self.selection.attention_from}

    # -- inside a layer -----------------------------------------------------------------------------------------------

    def hook_layer(self, hooks: Hooks, i: int, layer: Layer, activation: Any) -> None:
        """Hook a layer to leave out what the selection says; without one it computes everything."""

        def inputs(module: Any, weight: str, threshold: str, place: tuple[int, ...] = ()) -> None:
            def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
                if self.selection is None:
                    return None
                x = args[0]
                limit = self._rows(getattr(self.selection, threshold)[(slice(None), i, *place)], x)
                norms = self._at(getattr(self.selection, weight)[(i, *place)], x)
                return (x * keeps_input(x.reshape(-1, x.shape[-1]).float(), norms, limit).view(x.shape),)

            hooks.before(module, hook)

        def at_gate(_module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self.selection is None:
                return
            y = activation(output).reshape(-1, output.shape[-1]).float()
            limit = self._rows(self.selection.gate_threshold[:, i], y)
            self.kept = keeps_gated(y, self._at(self.selection.gate_weight[i], y), limit)
            needed = self._needed(i, args[0])
            if needed is not None:
                self.kept &= needed

        def at_up(_module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self.selection is None:
                return None
            if layer.gate is None:
                self.kept = self._needed(i, args[0])
            return output if self.kept is None else output * self.kept.view(output.shape)

        def at_down(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
            h = args[0]
            if self.statistics is not None:
                self.statistics.add(i, h)
            if self.selection is None:
                return None
            flat, limit = h.reshape(-1, h.shape[-1]).float(), self._rows(self.selection.threshold[:, i], h)
            keep = keeps_neuron(flat, self._at(self.selection.weight[i], h), limit)
            if self.kept is not None:
                keep &= self.kept
            self.kept = None
            if not self.inside:
                self.counted.neurons += int((keep if self.real is None else keep[self.real]).sum())
            return (h * keep.view(h.shape),)

        inputs(layer.output, "output_weight", "output_threshold")
        if method_of(self.policy.method).inputs:
            for place, parts in ((ATTENTION_INPUT, layer.qkv), (MLP_INPUT, (layer.gate, layer.up))):
                for module in dict.fromkeys(part.module for part in parts if part is not None):
                    inputs(module, "input_weight", "input_threshold", (place,))
        else:
            if layer.gate is not None:
                hooks.after(layer.gate, at_gate)
            hooks.after(layer.up, at_up)
        hooks.before(layer.down, at_down)

    def at_head(self, _head: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Words that the screen finds improbable get its estimate for a logit."""
        select = self.selection
        if select is None or self.screen is None or not np.isfinite(select.head_margin).any():
            return None
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        whole = output.reshape(-1, output.shape[-1]).float()
        # Of a prompt's tokens perhaps only the last ones of each sequence were asked for.
        tokens = np.arange(len(select.head_margin)).reshape(self.shape)[:, -args[0].shape[1] :].ravel()
        limits = [self._at(limit[tokens], x).split(SCREENED) for limit in (select.screen_threshold, select.head_margin)]
        rows = []
        for part, exact, threshold, margin in zip(x.split(SCREENED), whole.split(SCREENED), *limits, strict=True):
            estimate, near = screen_words(self.screen, part, threshold, margin)
            rows.append(torch.where(near, exact, estimate))
        return torch.cat(rows).to(output.dtype).view(output.shape)

    def _needed(self, i: int, x: torch.Tensor) -> torch.Tensor | None:
        """Neurons that a prompt or a predictor chose for layer i, whose MLP is given x; None for all."""
        assert self.selection is not None
        if self.predictors is not None:
            into, out = (table[i] for table in self.predictors)
            size = round((1 - self.policy.shares.neurons) * out.shape[1])
            return guess(x, into, out, size)
        if not len(self.selection.needed):
            return None
        return torch.as_tensor(self.selection.needed[:, i], device=x.device).bool()

    @staticmethod
    def _at(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(array, device=like.device)

    @staticmethod
    def _rows(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """One limit per token, [B * T, 1]."""
        return torch.as_tensor(array, device=like.device)[:, None]
