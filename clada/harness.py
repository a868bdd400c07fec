"""clada in EleutherAI's lm-evaluation-harness: the adapter, and its tasks on local JSONL files (extra `eval`).

    python -m clada.harness --model clada --model_args pretrained=smollm2-135m,method=clada --tasks hellaswag

is `lm_eval` with this adapter registered. The harness' own tasks come from the hub; those below take documents of the
same fields from local files.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from ftfy import fix_text
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.hellaswag import utils as hellaswag
from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer
from lm_eval.tasks.super_glue.copa import utils as copa
from lm_eval.utils import simple_parse_args_string
from rouge_score.rouge_scorer import RougeScorer
from torch.nn.functional import log_softmax
from tqdm import tqdm

from clada.commandline import refuse
from clada.errors import CladaError, InputError
from clada.inplace import sparse
from clada.models import load_model
from clada.plan import Plan

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
        method: of `clada.policies.EVALUATED`.
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
        asked: among those that will be asked the same questions: each answers along when one of them is asked first.

    Raises:
        CladaError: the model, method, plan or coefficients cannot be used.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = "clada",
        plan: Plan | str | None = None,
        coefficients: str | None = "none",
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
        self.asked = False
        self._company: list[CladaLM] = [] if beside is None else beside._company
        self._company.append(self)
        self._answers: dict[Any, list[tuple[float, bool]]] = {}
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
        for name in ("plan", "coefficients"):
            if name in options and options[name] is None:
                options[name] = "none"
        known = inspect.signature(cls).parameters
        if unknown := [name for name in options if name not in known]:
            raise InputError(f"unknown model argument {unknown[0]}; there are {', '.join(known)}")
        if "pretrained" not in options:
            raise InputError("no model; give --model_args pretrained=NAME")
        return cls(**options)

    def close(self) -> None:
        """Give the model back as it was."""
        self._stack.close()
        self._company.remove(self)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,  # noqa: ARG002  # one context at a time
    ) -> list[tuple[float, bool]]:
        """Log-probabilities of continuations, and whether each is what greedy decoding would give."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, ending) in enumerate(requests):
            room = max(1, self.max_length + 1 - len(ending))  # as `hf` cuts a context that is too long
            groups.setdefault(tuple(context[-room:]), []).append(i)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood") as progress:
            parts = [
                (list(context), members[i : i + TOGETHER])
                for context, members in groups.items()
                for i in range(0, len(members), TOGETHER)
            ]
            for context, members in parts:
                answers = self._score(context, [requests[i][2] for i in members])
                for i, answer in zip(members, answers, strict=True):
                    found[i] = answer
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                progress.update(len(members))
        return found

    def _score(self, context: list[int], endings: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Of the endings of one context."""
        longest = max(map(len, endings))
        rows = [[context[-1], *ending[:-1]] for ending in endings]
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)

        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)

        def answer(lm: CladaLM, cache: Any) -> list[tuple[float, bool]]:
            if lm.sparse is not None:
                lm.sparse.real = real
            if cache is not None and len(rows) > 1:
                cache.batch_repeat_interleave(len(rows))
            logits = self.model(padded, past_key_values=cache, use_cache=cache is not None).logits
            if lm.sparse is not None:
                lm.sparse.real = None
            answers = []
            for row, ending in zip(logits, endings, strict=True):
                log_p = log_softmax(row[: len(ending)], dim=-1, dtype=self.softmax_dtype)
                wanted = torch.tensor(ending, device=log_p.device)
                greedy = bool((log_p.argmax(-1) == wanted).all())
                answers.append((float(log_p.gather(1, wanted[:, None]).sum()), greedy))
            return answers

        question = (tuple(context), tuple(map(tuple, endings)))
        return list(self._answer(question, torch.tensor([context], device=self.device), None, answer))

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        """Generate after a prompt, its last token as the protocol says."""
        mask = options.get("attention_mask")
        others = sorted((name, repr(value)) for name, value in options.items() if name != "attention_mask")
        question = str((context.tolist(), None if mask is None else mask.tolist(), max_length, stop, others))

        def answer(lm: CladaLM, cache: Any) -> torch.Tensor:
            found: torch.Tensor = HFLM._model_generate(lm, context, max_length, stop, past_key_values=cache, **options)
            return found

        found: torch.Tensor = self._answer(question, context, mask, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, every token of them sparse."""
        if self.sparse is not None and self.sparse.policy.shares.prompt:
            raise InputError(
                f"method {self.method} chooses neurons by a prompt, which whole texts lack; use another method or task"
            )
        return list(super().loglikelihood_rolling(requests, disable_tqdm))

    @torch.inference_mode()
    def _answer(
        self, question: Any, context: torch.Tensor, mask: torch.Tensor | None, answer: Callable[[CladaLM, Any], Any]
    ) -> Any:
        """What `answer` gives after a context [B, T], for this adapter, and for those beside that are asked too.

        It is given the cache of all tokens but the last ones; None where nothing comes before these.
        """
        if not self.asked:  # alone; a question may be asked again to be answered otherwise, by chance
            lms = [self]
        elif question in self._answers:
            return self._answers[question]
        else:
            lms = [lm for lm in self._company if lm.asked and question not in lm._answers]
        dense = [lm for lm in lms if lm.sparse is None or lm.protocol == "answer"] if context.shape[1] > 1 else []
        shared = self._begun(context, mask, dense) if dense else None
        answers = {}
        for lm in lms:
            if lm not in dense:
                cache = self._begun(context, mask, [lm])
            elif lm is dense[-1]:
                cache = shared
            else:
                cache = copy.deepcopy(shared)
            self._wake([lm])
            answers[lm] = answer(lm, cache)
            if lm.asked:
                lm._answers[question] = answers[lm]
        return answers[self]

    def _wake(self, awake: Sequence[CladaLM]) -> None:
        """Let these, of all on the model, do what they do in the next pass."""
        for lm in self._company:
            if lm.sparse is not None:
                lm.sparse.paused = lm not in awake

    def _begun(self, context: torch.Tensor, mask: torch.Tensor | None, awake: Sequence[CladaLM]) -> Any:
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

        self._wake(awake)
        before = context.shape[1] - 1
        for lm in awake:
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


# -- tasks on local files -----------------------------------------------------------------------------------------


Documents = list[dict[str, Any]]


def _hellaswag(rows: Documents, _folder: Path) -> Documents:
    """The harness' documents; files without the parts of a context have them cut where the last sentence breaks off."""
    for row in rows:
        if "ctx_a" not in row:
            head, dot, tail = row["ctx"].rpartition(". ")
            broken = bool(tail) and tail.rstrip()[-1:] not in '.!?"' and tail[0].islower()
            row["ctx_a"], row["ctx_b"] = (head + dot.rstrip(), tail) if broken else (row["ctx"], "")
    return list(hellaswag.process_docs(Dataset.from_list(rows)))


def _coqa(rows: Documents, _folder: Path) -> Documents:
    """The story, the conversation but for its last answer, and what counts as that: the harness' CoQA."""

    def turns(value: Any) -> list[str]:
        return value["input_text"] if isinstance(value, dict) else [turn["input_text"] for turn in value]

    found = []
    for row in rows:
        questions, answers = turns(row["questions"]), turns(row["answers"])
        asked = [f"Q: {q}\n\nA: {a}\n\n" for q, a in zip(questions, answers[:-1], strict=False)]
        golds = {answers[-1].lower(): answers[-1]}
        for more in (row.get("additional_answers") or {}).values():
            golds.setdefault(turns(more)[-1].lower(), turns(more)[-1])
        text = f"{row['story']}\n\n{''.join(asked)}Q: {questions[-1]}\n\nA:"
        answers = list(golds.values())
        # As CoQA has it: what counts are the other people's answers, each left out in turn.
        rounds = [answers[:i] + answers[i + 1 :] for i in range(len(answers))] if len(answers) > 1 else [answers]
        found.append({"text": text, "golds": rounds})
    return found


def _qasper(rows: Documents, _folder: Path) -> Documents:
    """A question about a paper with the paragraphs that hold its answer; a span of them is wanted."""
    return [
        {"text": "\n".join(row["evidence"]) + f"\n\nQ: {row['question']}\n\nA:", "golds": [row["extractive_spans"]]}
        for row in rows
    ]


def _xsum(rows: Documents, folder: Path) -> Documents:
    return _summaries(rows, folder, "document", "summary", "1 sentences")


def _cnn(rows: Documents, folder: Path) -> Documents:
    return _summaries(rows, folder, "article", "highlights", "3 sentences")


def _summaries(rows: Documents, folder: Path, article: str, summary: str, size: str) -> Documents:
    """GRIFFIN's prompt: an example from a `.txt` file beside the documents where there is one, then the article."""
    example = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))[:1])
    return [
        {
            # Public copies of news articles have mangled encodings.
            "text": f"{example}###\nArticle: {fix_text(row[article])}\n\nSummarize the above article in {size}.\n",
            "golds": [fix_text(row[summary])],
        }
        for row in rows
    ]


def _overlap(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match and F1 of words, as SQuAD has them, with the best of the right answers; mean over sets of these."""
    said, rounds = results[0].strip().split("\n")[0], doc["golds"]
    exact = [max(float(normalize_answer(gold) == normalize_answer(said)) for gold in golds) for golds in rounds]
    shared = [max(float(f1_abstractive([said], [gold])) for gold in golds) for golds in rounds]
    return {"f1": sum(shared) / len(shared), "em": sum(exact) / len(exact)}


ROUGE = ("rouge1", "rouge2", "rougeL")


def _rouge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F of ROUGE (Google's implementation, with stemming)."""
    found = RougeScorer(ROUGE, use_stemmer=True).score(doc["golds"][0], results[0].strip())
    return {name: float(found[name].fmeasure) for name in ROUGE}


def _means(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _written(documents: Any, score: Any, until: list[str], tokens: int, *names: str) -> dict[str, Any]:
    """A task whose answer is generated."""
    return {
        "documents": documents,
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{golds[0]}}",
        "process_results": score,
        "generation_kwargs": {"until": until, "max_gen_toks": tokens, "do_sample": False},
        "metric_list": _means(*names),
    }


ACCURACY = _means("acc", "acc_norm")
TASKS: dict[str, dict[str, Any]] = {
    "hellaswag": {"documents": _hellaswag, "doc_to_text": "{{query}}", "doc_to_target": "{{gold}}",
                  "doc_to_choice": "choices", "metric_list": ACCURACY},
    "piqa": {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_target": "label",
             "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": ACCURACY},
    "copa": {"doc_to_text": copa.doc_to_text, "doc_to_target": copa.doc_to_target,
             "doc_to_choice": copa.doc_to_choice, "metric_list": ACCURACY[:1]},
    "arc_challenge": {"doc_to_text": "Question: {{question}}\nAnswer:",
                      "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}",
                      "metric_list": ACCURACY},
    "boolq": {"doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:", "doc_to_target": "label",
              "doc_to_choice": ["no", "yes"], "metric_list": ACCURACY[:1]},
    "coqa": _written(_coqa, _overlap, ["\nQ:"], 32, "f1", "em"),
    "qasper_evidence": _written(_qasper, _overlap, ["\n"], 32, "f1", "em"),
    "xsum": _written(_xsum, _rouge, ["\n", "###"], 64, *ROUGE),
    "cnn_dailymail": _written(_cnn, _rouge, ["###", "Article:"], 128, *ROUGE),
}  # fmt: skip
"""Prompts, answers and metrics of each task: the harness' own, but for CoQA's answers, of which the harness too counts
the first line and which end after 32 tokens here, for summaries, whose prompts are GRIFFIN's,
and for QASPER, whose evidence is given."""


# What the tasks that take documents as they are need of them; the others read it when they prepare theirs.
FIELDS = {
    "piqa": ("goal", "sol1", "sol2"),
    "copa": ("premise", "choice1", "choice2"),
    "arc_challenge": ("question", "choices", "answerKey"),
    "boolq": ("passage", "question"),
}


def _check(task: str, row: dict[str, Any]) -> None:
    """Raise what says why a document cannot be asked."""
    for field in FIELDS.get(task, ()):
        row[field]
    if task in ("piqa", "copa", "boolq") and row["label"] not in (0, 1):
        raise ValueError(f"label {row['label']}")
    if task == "copa" and row["question"] not in ("cause", "effect"):
        raise ValueError(f"question {row['question']}")
    if task == "arc_challenge":
        row["choices"]["label"].index(row["answerKey"])
    if task == "qasper_evidence" and not row["extractive_spans"]:
        raise ValueError("no extractive_spans")


def read_documents(task: str, folder: Path) -> list[dict[str, Any]]:
    """All documents of a task.

    Args:
        task: of `TASKS`.
        folder: with `TASK/*.jsonl`, one JSON object a line, of the published fields.

    Raises:
        InputError: no such task, no file, or a line that is not a document.
    """
    if task not in TASKS:
        raise InputError(f"no local task '{task}'; there are {', '.join(TASKS)}")
    paths = sorted((folder / task).glob("*.jsonl"))
    if not paths:
        raise InputError(f"no documents of {task}: {folder / task} has no .jsonl file; put one there, or leave it out")
    rows = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8").rstrip("\n")
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8; convert it") from None
        # Not `splitlines`, which cuts at separators that JSON may hold.
        for number, line in enumerate(text.split("\n") if text else [], start=1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise InputError(f"{path}, line {number}, is not a JSON object; mend or remove it") from None
    prepare = TASKS[task].get("documents")
    if not rows:
        raise InputError(f"{paths[0]} is empty; it needs a document a line")
    try:
        for row in rows:
            _check(task, row)
        return prepare(copy.deepcopy(rows), folder / task) if prepare else rows
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(
            f"{paths[0]} lacks a field of {task}, or holds something else in it ({reason}); it needs the published "
            "ones, of a split with answers"
        ) from None


def description(task: str) -> str:
    """What a task asks and counts, in words that change when it does."""
    return repr(sorted((key, getattr(value, "__qualname__", value)) for key, value in TASKS[task].items()))


def local_task(task: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration that `lm_eval.simple_evaluate(tasks=[...])` takes."""
    own = {key: value for key, value in TASKS[task].items() if key != "documents"}
    return {
        "task": task,
        "dataset_path": "local",
        "custom_dataset": lambda **_: {"validation": Dataset.from_list(documents)},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        **own,
    }


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except (CladaError, ValueError) as mistake:  # the harness' own for tasks that are none
        sys.exit(refuse("clada.harness", str(mistake).split("\n")[0]))
