"""clada in EleutherAI's lm-evaluation-harness (extra `eval`): the adapter `CladaLM`.

    python -m clada.harness --model clada --model_args pretrained=smollm2-135m,method=clada --tasks hellaswag

is `lm_eval` with this adapter registered. The harness' own tasks come from the hub; those of `clada.measure.tasks` take
documents of the same fields from local files.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from torch.nn.functional import log_softmax
from tqdm import tqdm

from clada.errors import CladaError, InputError
from clada.inplace import sparse
from clada.methods.coefficients import Coefficients
from clada.methods.plan import Plan
from clada.models.open import load_model
from clada.system.commandline import refuse

TOGETHER = 16  # endings of one context that are scored side by side

PROTOCOLS = {
    "answer": "the prompt dense, from its last token on sparse (GRIFFIN's)",
    "all": "every token sparse",
}


@register_model("clada")
class CladaLM(HFLM):
    """A model that computes only what each token needs, for the harness.

    A context that several endings share runs once, and once for all adapters beside each other that run it dense.
    Scores of method `dense` are those of the harness' `hf`.

    Args:
        pretrained: any name that `clada.load_model` opens.
        method: of `clada.methods.registry.EVALUATED`.
        plan: as for `clada.sparse`.
        coefficients: as for `clada.sparse`.
        protocol: of `PROTOCOLS`. Methods that choose neurons by a prompt choose them, under `all` too, by the context
            run dense once.
        max_loss: which of the plan's budgets; None for 2 %.
        keep: keep this share of the neurons instead.
        dtype: of the weights.
        device: `cpu`, or `cuda` where there is one.
        batch_size: prompts generated side by side.
        max_batch_size: ignored; the harness passes it.
        beside: another adapter, whose model is shared. Each answers as if it were alone.

    Attributes:
        together: requests that come now will come to all adapters beside this one for which this is true: the first one
            asked scores them for all.

    Raises:
        CladaError: the model, method, plan or coefficients cannot be used.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = "clada",
        plan: Plan | str | None = None,
        coefficients: Coefficients | str | None = None,
        protocol: str = "answer",
        max_loss: float | None = None,
        keep: float | None = None,
        dtype: str = "float32",
        device: str | None = "cpu",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # noqa: ARG002
        beside: CladaLM | None = None,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise InputError(f"unknown protocol '{protocol}'; use {', '.join(PROTOCOLS)}")
        for name, share in (("keep", keep), ("max_loss", max_loss)):
            if not isinstance(share, float | int | None):
                raise InputError(f"{name} {share!r} is not a number")
        if beside is None:
            # The harness' command asks for `cuda:0` unless told otherwise; its `hf` takes the CPU where there is none.
            on_cuda = (device or "").startswith("cuda") and torch.cuda.is_available()
            model, tokenizer = load_model(pretrained, dtype, "cuda" if on_cuda else "cpu")
        else:
            model, tokenizer = beside.model, beside.tokenizer
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.protocol, self.method = protocol, method
        self.together = False
        self._adapters: list[CladaLM] = [] if beside is None else beside._adapters
        self._adapters.append(self)
        self._scored: dict[Any, list[tuple[float, bool]]] = {}
        self._stack = ExitStack()
        self.sparse = None
        if method != "dense":
            inside = sparse(model, plan, coefficients, method=method, max_loss=max_loss, keep=keep)
            self.sparse = self._stack.enter_context(inside)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> CladaLM:
        """Of `--model_args`: the harness reads the word none as None, which means something else here."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> CladaLM:
        """The same, of options by name."""
        options = {**arg_dict, **{key: value for key, value in (additional_config or {}).items() if value is not None}}
        if "plan" in options and options["plan"] is None:
            options["plan"] = "none"
        known = inspect.signature(cls).parameters
        if unknown := [name for name in options if name not in known]:
            raise InputError(f"unknown model argument {unknown[0]}; there are {', '.join(known)}")
        if "pretrained" not in options:
            raise InputError("no model; give --model_args pretrained=NAME")
        return cls(**options)

    def close(self) -> None:
        """Give the model back as it was."""
        self._stack.close()
        self._adapters.remove(self)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probabilities of continuations of contexts, and whether each is what greedy decoding would give.

        Raises:
            InputError: a continuation is empty, or longer than the model's positions; `hf` asserts the same.
        """
        for request in requests:
            if not any(request.args):  # which has no first token to look at
                self._check(request.args, [], [])
        return list(super().loglikelihood(requests, disable_tqdm))

    def _check(self, texts: tuple[str, str] | None, context: Sequence[int], ending: Sequence[int]) -> None:
        """Refuse what has no score; nothing at all would have the best one there is."""
        after = f"after '{texts[0][-40:]}'" if texts else "of a text"
        if not ending:
            raise InputError(f"the continuation {after} has no tokens, so no score; give it words or leave it out")
        if not context:
            raise InputError(f"the context of '{texts[1][:40] if texts else ''}' has no tokens; give it words")
        if len(ending) > self.max_length:
            raise InputError(
                f"the continuation {after} has {len(ending):,} tokens, more than the {self.max_length:,} positions of "
                "the model; shorten it"
            )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,  # noqa: ARG002  # one context at a time
    ) -> list[tuple[float, bool]]:
        """Log-probabilities of continuations, and whether each is what greedy decoding would give."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (texts, context, ending) in enumerate(requests):
            self._check(texts, context, ending)
            room = self.max_length + 1 - len(ending)  # as `hf` cuts a context that is too long
            groups.setdefault(tuple(context[-room:]), []).append(i)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood") as progress:
            parts = [
                (list(context), members[i : i + TOGETHER])
                for context, members in groups.items()
                for i in range(0, len(members), TOGETHER)
            ]
            for context, members in parts:
                endings = [requests[i][2] for i in members]
                for i, score in zip(members, self._score(context, endings), strict=True):
                    scores[i] = score
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
                progress.update(len(members))
        return scores

    def _score(self, context: list[int], endings: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Of the endings of one context."""
        longest = max(map(len, endings))
        rows = [[context[-1], *ending[:-1]] for ending in endings]
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)

        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)

        def score(lm: CladaLM, cache: Any) -> list[tuple[float, bool]]:
            if lm.sparse is not None:
                lm.sparse.real = real
            if cache is not None and len(rows) > 1:
                cache.batch_repeat_interleave(len(rows))
            logits = self.model(padded, past_key_values=cache, use_cache=cache is not None).logits
            if lm.sparse is not None:
                lm.sparse.real = None
            scores = []
            for row, ending in zip(logits, endings, strict=True):
                log_p = log_softmax(row[: len(ending)], dim=-1, dtype=self.softmax_dtype)
                tokens = torch.tensor(ending, device=log_p.device)
                greedy = bool((log_p.argmax(-1) == tokens).all())
                scores.append((float(log_p.gather(1, tokens[:, None]).sum()), greedy))
            return scores

        request = (tuple(context), tuple(map(tuple, endings)))
        return list(self._run(request, torch.tensor([context], device=self.device), None, score))

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        """Generate after a prompt, its last token as the protocol says."""
        mask = options.get("attention_mask")
        others = sorted((name, repr(value)) for name, value in options.items() if name != "attention_mask")
        request = str((context.tolist(), None if mask is None else mask.tolist(), max_length, stop, others))

        def generate(lm: CladaLM, cache: Any) -> torch.Tensor:
            ids: torch.Tensor = HFLM._model_generate(lm, context, max_length, stop, past_key_values=cache, **options)
            return ids

        ids: torch.Tensor = self._run(request, context, mask, generate)
        return ids

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, every token of them sparse."""
        if self.sparse is not None and self.sparse.policy.shares.prompt:
            raise InputError(
                f"method {self.method} chooses neurons by a prompt, which whole texts lack; use another method or task"
            )
        return list(super().loglikelihood_rolling(requests, disable_tqdm))

    @torch.inference_mode()
    def _run(
        self, request: Any, context: torch.Tensor, mask: torch.Tensor | None, score: Callable[[CladaLM, Any], Any]
    ) -> Any:
        """What `score` gives after a context [B, T], for this adapter, and for those beside that are asked too.

        It is given the cache of all tokens but the last ones; None where nothing comes before these.
        """
        if not self.together:  # a request may come again to be answered otherwise, by chance
            lms = [self]
        elif request in self._scored:
            return self._scored[request]
        else:
            lms = [lm for lm in self._adapters if lm.together and request not in lm._scored]
        dense = [lm for lm in lms if lm.sparse is None or lm.protocol == "answer"] if context.shape[1] > 1 else []
        shared = self._context_cache(context, mask, dense) if dense else None
        results = {}
        for lm in lms:
            if lm not in dense:
                cache = self._context_cache(context, mask, [lm])
            elif lm is dense[-1]:
                cache = shared
            else:
                cache = copy.deepcopy(shared)
            self._activate([lm])
            results[lm] = score(lm, cache)
            if lm.together:
                lm._scored[request] = results[lm]
        return results[self]

    def _activate(self, active: Sequence[CladaLM]) -> None:
        """Let these, of all on the model, do what they do in the next pass."""
        for lm in self._adapters:
            if lm.sparse is not None:
                lm.sparse.paused = lm not in active

    def _context_cache(self, context: torch.Tensor, mask: torch.Tensor | None, active: Sequence[CladaLM]) -> Any:
        """The cache of a context but for its last tokens, as the protocol of these says; None if nothing is left."""
        # Those that `generate` goes on from: padding has none of its own.
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp_min(0)

        def run(length: int, *, use_cache: bool) -> Any:
            return self.model(
                context[:, :length],
                attention_mask=None if mask is None else mask[:, :length],
                position_ids=None if positions is None else positions[:, :length],
                use_cache=use_cache,
                logits_to_keep=1,
            ).past_key_values

        self._activate(active)
        before = context.shape[1] - 1
        for lm in active:
            if lm.sparse is None:
                continue
            chosen = lm.sparse.policy.shares.prompt > 0  # neurons, by a prompt that runs dense
            lm.sparse.prompt = "dense"
            lm.sparse.prompt_is_cut = lm.protocol == "answer"
            if lm.protocol == "all" and chosen and before:
                run(before + 1, use_cache=False)
            if (lm.protocol == "all" or not before) and (before or not chosen):
                lm.sparse.prompt = "sparse"
        return run(before, use_cache=True) if before else None


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except (CladaError, ValueError) as mistake:  # the harness' own for tasks that are none
        sys.exit(refuse("clada.harness", str(mistake).split("\n")[0]))
