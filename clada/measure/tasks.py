"""The tasks of `clada evaluate` on local JSONL files, for EleutherAI's lm-evaluation-harness (extra `eval`)."""

from __future__ import annotations

import copy
from io import StringIO
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.tasks.hellaswag import utils as hellaswag
from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer
from lm_eval.tasks.super_glue.copa import utils as copa
from rouge_score.rouge_scorer import RougeScorer

from clada.errors import InputError
from clada.system.encoding import repair_encoding
from clada.system.files import read_text
from clada.system.jsonfile import json_lines

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

    documents = []
    for row in rows:
        questions, answers = turns(row["questions"]), turns(row["answers"])
        conversation = [f"Q: {q}\n\nA: {a}\n\n" for q, a in zip(questions, answers[:-1], strict=False)]
        golds = {answers[-1].lower(): answers[-1]}
        for more in (row.get("additional_answers") or {}).values():
            golds.setdefault(turns(more)[-1].lower(), turns(more)[-1])
        text = f"{row['story']}\n\n{''.join(conversation)}Q: {questions[-1]}\n\nA:"
        answers = list(golds.values())
        # As CoQA has it: what counts are the other people's answers, each left out in turn.
        rounds = [answers[:i] + answers[i + 1 :] for i in range(len(answers))] if len(answers) > 1 else [answers]
        documents.append({"text": text, "golds": rounds})
    return documents


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
    example = "".join(StringIO(read_text(path), newline=None).read() for path in sorted(folder.glob("*.txt"))[:1])
    return [
        {
            # Public copies of news articles have mangled encodings.
            "text": f"{example}###\nArticle: {repair_encoding(row[article])}\n\n"
            f"Summarize the above article in {size}.\n",
            "golds": [repair_encoding(row[summary])],
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
    scores = RougeScorer(ROUGE, use_stemmer=True).score(doc["golds"][0], results[0].strip())
    return {name: float(scores[name].fmeasure) for name in ROUGE}


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
    rows = [row for path in paths for _, row in json_lines(read_text(path), path)]
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
    fields = {key: value for key, value in TASKS[task].items() if key != "documents"}
    return {
        "task": task,
        "dataset_path": "local",
        "custom_dataset": lambda **_: {"validation": Dataset.from_list(documents)},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        **fields,
    }
