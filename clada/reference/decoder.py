"""Decoding in plain torch: for other devices, and as the reference that the kernels are tested against."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers.activations import ACT2FN

from clada.cpu.decoder import Outcome, State, check_tokens
from clada.cpu.pack import PackedModel
from clada.methods.observed import prompt_statistics
from clada.methods.rules import keeps_gated, keeps_input, keeps_neuron
from clada.methods.screen import screen_words
from clada.methods.selection import ATTENTION_INPUT, BY_INPUT, MLP_INPUT, Selection
from clada.models.hooks import Hooks
from clada.reference.attention import attention_of
from clada.reference.prompt import new_cache, run_prompt


class TorchDecoder:
    """The same in plain torch, for other devices and as the reference the kernels are tested against.

    Makes the same choices, by the formulas as they are written, and gathers only the rows that are needed.

    Args:
        weights: the packed model, on any device.
    """

    def __init__(self, weights: PackedModel) -> None:
        self.weights = weights
        self.activation = ACT2FN[weights.activation]
        self.lock = threading.RLock()  # the model's hooks and forwards are one for all states

    @torch.inference_mode()
    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,  # noqa: ARG002  # caches grow by themselves
        dense: Selection,
        statistics: str | None = None,
    ) -> State:
        """As `Decoder.prefill`."""
        for prompt in prompts:
            check_tokens(self.weights, prompt)
        caches, collected = [], []
        for prompt in prompts:
            caches.append(new_cache(self.weights))
            with self.lock, prompt_statistics(self.weights.down, self.weights.down_norm, statistics) as values:
                if len(prompt) > 1:
                    run_prompt(self.weights, torch.tensor([prompt[:-1]], device=self._device), caches[-1])
            collected.append(values)
        kept = None if statistics is None else np.stack([values for values in collected if values is not None])
        nothing = np.zeros(len(prompts))
        empty = Outcome(nothing, nothing, nothing, nothing, nothing[:, None], nothing)
        state = State([list(prompt[:-1]) for prompt in prompts], empty, kept, caches)
        self.step(state, [prompt[-1] for prompt in prompts], dense)
        return state

    @property
    def _device(self) -> torch.device:
        return self.weights.model.get_input_embeddings().weight.device

    @cached_property
    def _screen(self) -> list[torch.Tensor]:
        return [tensor.to(self._device) for tensor in self.weights.screen.wide()]

    @torch.inference_mode()
    def step(self, state: State, tokens: Sequence[int], selection: Selection) -> None:
        """As `Decoder.step`, one sequence after the other."""
        check_tokens(self.weights, tokens)
        logits, neurons = [], []
        for b, token in enumerate(tokens):
            counts: list[int] = []
            modules, forwards = self._forwards(b, selection, counts)
            ids = torch.tensor([[token]], device=self._device)
            attention = attention_of(self.weights, float(selection.attention_threshold[b]), selection.attention_from)
            with self.lock, Hooks() as hooks, attention as more:
                for module, forward in zip(modules, forwards, strict=True):
                    hooks.replace(module, forward)
                out = self.weights.model(ids, past_key_values=state.memory[b], use_cache=True, **more)
                logits.append(out.logits[0, -1])
            neurons.append(counts)
            state.tokens[b].append(token)
        stacked = torch.stack(logits).float()
        log_total = stacked.double().logsumexp(-1)
        p = (stacked.double() - log_total[:, None]).exp()
        state.outcome = Outcome(
            logits=stacked.cpu().numpy(),
            log_total=log_total.cpu().numpy(),
            entropy=(log_total - (p * stacked).sum(-1)).cpu().numpy(),
            best=stacked.argmax(-1).cpu().numpy(),
            neurons=np.array(neurons),
            bytes_read=np.zeros(4, np.int64),  # the device's caches decide that
        )

    def select(self, state: State, sequences: Sequence[int]) -> None:
        """Go on with some of the sequences only."""
        state.memory = [state.memory[b] for b in sequences]
        state.tokens = [state.tokens[b] for b in sequences]
        state.outcome = state.outcome.rows(sequences)
        if state.statistics is not None:
            state.statistics = state.statistics[list(sequences)]

    def _forwards(self, b: int, select: Selection, counts: list[int]) -> tuple[list[Any], list[Any]]:
        """Modules and what they compute instead, for one token of sequence b."""
        w = self.weights
        device = self._device

        def at(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, device=device)

        def gathered(module: Any, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            """X [1, 1, inputs] through a transposed matrix, reading only the rows of inputs that are kept."""
            kept = keep.nonzero().squeeze(1)
            y = x.reshape(-1)[kept] @ module.rows.wide(kept)
            return (y if module.bias is None else y + module.bias).view(1, 1, -1)

        def by_input(module: Any, weight: np.ndarray, limit: float) -> Any:
            return lambda x: gathered(module, x, keeps_input(x.reshape(-1), at(weight), limit))

        modules: list[Any] = []
        forwards: list[Any] = []
        for layer in range(len(w.down)):
            gate, up, down, output = w.gate[layer], w.up[layer], w.down[layer], w.outputs[layer]
            needed = at(select.needed[b, layer]).bool() if len(select.needed) else None
            kept: dict[str, torch.Tensor] = {}

            def run_gate(x, gate=gate, layer=layer, kept=kept, needed=needed):  # type: ignore[no-untyped-def]
                y = type(gate).forward(gate, x)
                limit = float(select.gate_threshold[b, layer])
                kept["up"] = keeps_gated(self.activation(y.reshape(-1)), at(select.gate_weight[layer]), limit)
                if needed is not None:
                    kept["up"] &= needed
                return y

            def run_up(x, up=up, kept=kept, needed=needed):  # type: ignore[no-untyped-def]
                keep = kept.get("up", needed)
                if keep is None:
                    return type(up).forward(up, x)
                rows = keep.nonzero().squeeze(1)
                y = torch.zeros(len(up.bias), device=x.device)
                y[rows] = up.rows.wide(rows) @ x.reshape(-1) + up.bias[rows]
                return y.view(1, 1, -1)

            def run_down(h, down=down, layer=layer, kept=kept, needed=needed):  # type: ignore[no-untyped-def]
                keep = keeps_neuron(h.reshape(-1), at(select.weight[layer]), float(select.threshold[b, layer]))
                keep &= kept.get("up", needed if needed is not None else torch.ones_like(keep))
                counts.append(int(keep.sum()))
                return gathered(down, h, keep)

            modules += [down, output]
            limit = float(select.output_threshold[b, layer])
            forwards += [run_down, by_input(output, select.output_weight[layer], limit)]
            if w.constants.layout == BY_INPUT:
                for place, parts in ((ATTENTION_INPUT, w.qkv[layer]), (MLP_INPUT, [gate, up])):
                    for module in parts:
                        if module is not None:
                            modules.append(module)
                            limit = float(select.input_threshold[b, layer, place])
                            forwards.append(by_input(module, select.input_weight[layer, place], limit))
            else:
                modules.append(up)
                forwards.append(run_up)
                if gate is not None:
                    modules.append(gate)
                    forwards.append(run_gate)
        if len(w.tensors.screen) and np.isfinite(select.head_margin[b]):
            head = w.model.get_output_embeddings()
            modules.append(head)
            forwards.append(lambda x: self._screened(head, x.reshape(-1), b, select).view(1, 1, -1))
        return modules, forwards

    def _screened(self, head: Any, x: torch.Tensor, b: int, select: Selection) -> torch.Tensor:
        """Logits as the kernels screen them."""
        limits = (
            torch.as_tensor(limit[b : b + 1], device=x.device)
            for limit in (select.screen_threshold, select.head_margin)
        )
        (logits,), (near,) = screen_words(self._screen, x[None], *limits)
        words = near.nonzero().squeeze(1)
        logits[words] = head.rows.wide(words) @ x
        return logits
