"""Evaluation: the adapter's scores are the harness' own, tables are paired, results are resumed, mistakes are named."""

import json
import math

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from processes import finished

import clada
from clada.cli import main
from clada.errors import InputError
from clada.harness import CladaLM
from clada.measure.scores import as_table, compare
from clada.measure.tasks import TASKS, local_task, read_documents
from clada.models.open import load_model

DOCUMENTS = {
    "hellaswag": [
        {"activity_label": "Baking bread", "ctx": "A man kneads dough on a table. he", "label": 1,
         "endings": ["swims across it.", "puts it into a bowl to rise.", "drives away in it.", "[step] sings to it."]},
        {"activity_label": "Fixing a bike", "ctx": "How to mend a flat tyre. Take the wheel off the bike.", "label": 0,
         "endings": ["Then lift the tyre off the rim.", "Then paint the wall.", "Eat the wheel.", "Buy a piano."]},
    ],
    "piqa": [
        {"goal": "To dry wet shoes,", "sol1": "fill them with newspaper.", "sol2": "fill them with soup.", "label": 0},
        {"goal": "To cool tea,", "sol1": "set fire to it.", "sol2": "blow on it.", "label": 1},
    ],
    "copa": [
        {"premise": "The glass fell off the table.", "choice1": "It broke.", "choice2": "It sang.",
         "question": "effect", "label": 0},
        {"premise": "The street was wet.", "choice1": "The sun shone.", "choice2": "It had rained.",
         "question": "cause", "label": 1},
    ],
    "arc_challenge": [
        {"question": "What do plants need to make food?", "answerKey": "B",
         "choices": {"text": ["Plastic", "Sunlight", "Coins", "Paper"], "label": ["A", "B", "C", "D"]}},
        {"question": "Which of these is a mammal?", "answerKey": "3",
         "choices": {"text": ["Trout", "Ant", "Whale"], "label": ["1", "2", "3"]}},
    ],
    "boolq": [
        {"passage": "Iron is a metal.", "question": "is iron a metal", "label": 1, "answer": True},
        {"passage": "Snow is frozen water.", "question": "is snow a kind of stone", "label": 0, "answer": False},
    ],
    "coqa": [
        {"story": "Tom has a red kite. He flies it on the hill.", "questions": [{"input_text": "Who has a kite?"},
         {"input_text": "What colour is it?"}], "answers": [{"input_text": "Tom"}, {"input_text": "red"}],
         "additional_answers": {"0": [{"input_text": "Tom"}, {"input_text": "Red"}],
                                "1": [{"input_text": "Tom does"}, {"input_text": "It is red"}]}},
    ],
    "qasper_evidence": [
        {"question": "Which corpora are used?", "extractive_spans": ["PTB", "WikiText"],
         "evidence": ["We train on PTB.", "We test on WikiText."]},
    ],
    "xsum": [
        {"document": "The bridge over the river was closed on Monday after a storm. It will open again in May.",
         "summary": "A bridge damaged by a storm stays closed until May."},
    ],
}  # fmt: skip
CHOSEN = [task for task, rows in DOCUMENTS.items() if task not in ("coqa", "qasper_evidence", "xsum")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of documents of our own in the published fields."""
    folder = tmp_path_factory.mktemp("data")
    for task, rows in DOCUMENTS.items():
        (folder / task).mkdir()
        (folder / task / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def log_likelihoods(lm, data):
    """By task, of every document, the log-likelihood of every choice."""
    tasks = [local_task(task, read_documents(task, data)) for task in CHOSEN]
    found = lm_eval.simple_evaluate(model=lm, tasks=tasks, bootstrap_iters=0)
    return {
        task: [[float(r[0][0]) for r in s["resps"]] for s in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in found["samples"].items()
    }, found["results"]


def test_dense_is_the_harness_own_model(data):
    model, tokenizer = load_model("smollm2-135m")
    theirs, results = log_likelihoods(HFLM(pretrained=model, tokenizer=tokenizer), data)
    lm = CladaLM("smollm2-135m", method="dense")
    ours, own = log_likelihoods(lm, data)
    for task in CHOSEN:
        for a, b in zip(ours[task], theirs[task], strict=True):
            # float32 sums in another order: the context runs once for all endings
            assert a == pytest.approx(b, abs=1e-3)
        for name, value in results[task].items():
            if name.startswith("acc") and "stderr" not in name:
                assert own[task][name] == value


@pytest.mark.parametrize("method", ["clada", "griffin"])
@pytest.mark.parametrize("protocol", ["answer", "all"])
def test_protocols_score_what_the_model_computes_in_place(data, method, protocol):
    """Against one ending at a time through `clada.sparse`, token by token."""
    lm = CladaLM("smollm2-135m", method=method, protocol=protocol, keep=0.5)
    lm.model.double()  # or a magnitude at its threshold turns over when sums are taken in another order
    context, endings = "Question: To dry wet shoes,\nAnswer:", [" fill them with newspaper.", " fill them with soup."]
    ids = lm.tok_encode(context)
    found = lm._loglikelihood_tokens([(("", e), ids, lm.tok_encode(e)) for e in endings], disable_tqdm=True)
    lm.close()
    model, _ = load_model("smollm2-135m")
    for ending, (score, _) in zip(endings, found, strict=True):
        tail, total = lm.tok_encode(ending), 0.0
        with torch.inference_mode(), clada.sparse(model.float(), coefficients="none", method=method, keep=0.5) as run:
            model.double()
            if protocol == "all" and method == "griffin":
                model(torch.tensor([ids]))
            run.prompt_is_cut = protocol == "answer"
            run.prompt = "sparse" if protocol == "all" else "dense"
            out = model(torch.tensor([ids[:-1]]), use_cache=True)
            for before, token in zip([ids[-1], *tail[:-1]], tail, strict=True):
                out = model(torch.tensor([[before]]), past_key_values=out.past_key_values, use_cache=True)
                total += float(torch.log_softmax(out.logits[0, -1].double(), -1)[token])
        assert score == pytest.approx(total, abs=1e-4)  # the harness takes the softmax in float32
    assert len({round(score, 3) for score, _ in found}) == 2
    # Endings padded to the longest one count as what they are; dense runs count for nothing.
    counted = sum(len(lm.tok_encode(ending)) for ending in endings) + (len(ids) - 1 if protocol == "all" else 0)
    assert lm.sparse.tokens == counted
    if method == "griffin":
        assert lm.sparse.neurons == counted * lm.sparse.policy.weight.size / 2


def test_neurons_are_chosen_by_the_same_tokens_under_both_protocols():
    chosen = []
    for protocol in ("answer", "all"):
        lm = CladaLM("smollm2-135m", method="griffin", protocol=protocol, keep=0.5)
        ids = lm.tok_encode("The minister said on Monday that")
        (run,) = (h.__self__ for h in lm.model._forward_hooks.values())
        lm._loglikelihood_tokens([(("", ""), ids, ids[:1])], disable_tqdm=True)
        chosen.append(run.needed)
        lm.close()
    assert np.array_equal(*chosen)
    assert chosen[0].mean() == 0.5


@pytest.mark.parametrize("protocol", ["answer", "all"])
def test_adapters_beside_each_other_answer_as_alone(protocol):
    methods = ("dense", "clada", "griffin")
    context, endings = "Question: To dry wet shoes,\nAnswer:", [" fill them with newspaper.", " fill them."]

    def ask(lm):
        ids = [lm.tok_encode(text) for text in (context, *endings)]
        requests = [(("", ending), begun, tail) for begun in (ids[0], ids[0][:1]) for ending, tail in
                    zip(endings, ids[1:], strict=True)]  # fmt: skip
        return lm._loglikelihood_tokens(requests, disable_tqdm=True)

    alone = {}
    for method in methods:
        lm = CladaLM("smollm2-135m", method=method, protocol=protocol, keep=0.5)
        alone[method] = ask(lm), lm.sparse and (lm.sparse.tokens, lm.sparse.neurons)
        lm.close()
    assert len({scores[0][0] for scores, _ in alone.values()}) == 3
    beside: list[CladaLM] = []
    for method in methods:
        beside.append(
            CladaLM("smollm2-135m", method, protocol=protocol, keep=0.5, beside=beside[0] if beside else None)
        )
        beside[-1].together = method != "griffin"
    # A passive one neither answers nor counts; those scored along have run when their own turn comes.
    first = ask(beside[0])
    counts = [lm.sparse and (lm.sparse.tokens, lm.sparse.neurons) for lm in beside]
    assert counts == [None, alone["clada"][1], (0, 0)]
    assert [first, ask(beside[1]), ask(beside[2])] == [alone[method][0] for method in methods]
    assert [lm.sparse and (lm.sparse.tokens, lm.sparse.neurons) for lm in beside] == [alone[m][1] for m in methods]
    for lm in beside:
        lm.close()


def test_the_command_resumes_and_refuses_in_one_line(data, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "results")
    command = ["evaluate", "--data", str(data), "--tasks", "piqa,boolq", "--methods", "clada", "--out", out, "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["model"], first["dtype"], first["protocol"]) == ("smollm2-135m", "float32", "answer")
    assert [(r["method"], r["task"], r["metric"]) for r in first["rows"]] == [
        (method, task, metric)
        for method in ("dense", "clada")
        for task, metric in (("piqa", "acc"), ("piqa", "acc_norm"), ("boolq", "acc"), ("mean", "first of each task"))
    ]
    for row in first["rows"]:
        assert set(row) >= {"value", "stderr", "n", "diff_to_dense", "diff_ci", "seed"}
        assert (row["active_fraction"] == 1) == (row["method"] == "dense")
    (path,) = (tmp_path / "results" / "smollm2-135m-float32").glob("clada-piqa-*.json")
    stored = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("clada.harness.CladaLM", lambda *_a, **_k: pytest.fail("the model was opened again"))
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out) == first
    path.write_text("{", encoding="utf-8")  # cut off: done again
    assert main(command) == 0
    assert json.loads(path.read_text()) == json.loads(stored)
    # One item of the two that are there; what is asked for beyond them is added, and dense has no protocol.
    capsys.readouterr()
    assert main([*command, "--limit", "1"]) == 0
    fewer = json.loads(capsys.readouterr().out)["rows"]
    assert [row["n"] for row in fewer if row["metric"] == "acc"] == [1, 1, 1, 1]
    assert main([*command, "--limit", "1", "--seed", "3"]) == 0  # draws others, and loses none
    assert json.loads(path.read_text()) == json.loads(stored)
    path.unlink()
    assert main([*command, "--limit", "1"]) == 0
    assert len(json.loads(path.read_text())["items"]) == 1
    assert main(command) == 0
    again = json.loads(path.read_text())
    assert again["items"] == json.loads(stored)["items"]
    assert again["sparse_tokens"] == json.loads(stored)["sparse_tokens"]
    monkeypatch.setattr("clada.evaluate.SPEED", {"prompt_tokens": 8, "new_tokens": 4, "repeats": 2, "batch_size": 1})
    capsys.readouterr()
    assert main([*command, "--speed"]) == 0
    speeds = {row["method"]: row["speed_to_dense"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert speeds["dense"] == 1
    assert speeds["clada"] > 0
    monkeypatch.undo()
    names = {p.name for p in path.parent.iterdir()}
    assert main([*command, "--protocol", "all", "--limit", "1"]) == 0
    assert {p.name.split("-")[0] for p in path.parent.iterdir() if p.name not in names} == {"clada"}
    for options, message in (
        (["--tasks", "chess"], "no local task 'chess'; there are hellaswag, piqa, copa, arc_challenge, boolq, coqa"),
        (["--data", str(tmp_path)], "no documents of piqa"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--seed", "-1"], "--seed -1 is negative"),
        (["--speed"], "too short to time methods on: 2240 tokens needed"),
        (["--plan", str(tmp_path / "none.json")], "none.json"),
    ):
        capsys.readouterr()
        assert main([*command, *options]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, error


def test_documents_with_missing_fields_and_broken_lines_are_named(tmp_path):
    (tmp_path / "hellaswag").mkdir()
    path = tmp_path / "hellaswag" / "a.jsonl"
    path.write_text('{"ctx": "x", "endings": [], "label": 0}\n', encoding="utf-8")
    with pytest.raises(InputError, match="lacks a field of hellaswag"):
        read_documents("hellaswag", tmp_path)
    (tmp_path / "piqa").mkdir()
    for content, message in (
        ('{"goal": "x"}\n', "lacks a field of piqa"), ("3\n", "lacks a field of piqa"), ("", "is empty"),
        ("\n", "is empty"),
        (json.dumps(DOCUMENTS["piqa"][0] | {"label": -1}), r"holds something else in it \(label -1\)"),
    ):  # fmt: skip
        (tmp_path / "piqa" / "a.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_documents("piqa", tmp_path)
    (tmp_path / "piqa" / "a.jsonl").write_text(
        json.dumps(DOCUMENTS["piqa"][0] | {"goal": "a\u2028b"}, ensure_ascii=False), encoding="utf-8"
    )
    assert read_documents("piqa", tmp_path)[0]["goal"] == "a\u2028b"
    (tmp_path / "piqa" / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(DOCUMENTS["piqa"][0]).encode())
    assert read_documents("piqa", tmp_path) == DOCUMENTS["piqa"][:1]
    path.write_bytes(b'{"ctx": "\xff"}')
    with pytest.raises(InputError, match="is not UTF-8"):
        read_documents("hellaswag", tmp_path)
    path.write_text("{}\nnot json\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"a.jsonl, line 2: not JSON; give one object a line"):
        read_documents("hellaswag", tmp_path)
    row = {"activity_label": "x", "ctx": "A man. He", "endings": ["a", "b", "c", "d"], "label": ""}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")  # as in the test split, which has no answers
    with pytest.raises(InputError, match=r"holds something else in it .* of a split with answers"):
        read_documents("hellaswag", tmp_path)


def test_hellaswag_contexts_are_cut_as_published(data):
    first, second = read_documents("hellaswag", data)
    assert first["query"] == "Baking bread: A man kneads dough on a table. He"  # the harness capitalises the fragment
    assert first["choices"][3] == " sings to it."
    assert second["query"] == "Fixing a bike: How to mend a flat tyre. Take the wheel off the bike."


def test_generated_answers_are_the_harness_own_and_in_place_ones(data):
    tasks = {task: local_task(task, read_documents(task, data)) for task in ("coqa", "xsum")}
    model, tokenizer = load_model("smollm2-135m")

    def answers(lm):
        found = lm_eval.simple_evaluate(model=lm, tasks=list(tasks.values()), bootstrap_iters=0)
        return {task: samples[0]["resps"][0][0] for task, samples in found["samples"].items()}, found["results"]

    theirs, results = answers(HFLM(pretrained=model, tokenizer=tokenizer))
    ours, own = answers(CladaLM("smollm2-135m", method="dense"))
    assert ours == theirs
    assert own["xsum"]["rouge1,none"] == results["xsum"]["rouge1,none"]
    lm = CladaLM("smollm2-135m", method="clada", keep=0.5)
    sparse_answers, _ = answers(lm)
    lm.close()
    prompt = tokenizer(read_documents("coqa", data)[0]["text"], return_tensors="pt")["input_ids"]
    with clada.sparse(model, coefficients="none", keep=0.5):
        begun = model(prompt[:, :-1], use_cache=True)
        out = model.generate(prompt, past_key_values=begun.past_key_values, max_new_tokens=32, do_sample=False,
                             pad_token_id=0)  # fmt: skip
    text = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    assert sparse_answers["coqa"] == text.split("\nQ:")[0]


@pytest.mark.parametrize(("method", "protocol"), [("clada", "answer"), ("griffin", "all")])
def test_prompts_side_by_side_are_answered_as_alone(method, protocol):
    """Shorter prompts are padded on the left, which must not shift their positions."""
    lm = CladaLM("smollm2-135m", method=method, protocol=protocol, keep=0.6)
    prompts = [
        "Rain fell on the town. The river",
        "The minister said on Monday that the government would not wait. She",
    ]
    options = {"max_length": 64, "stop": ["\n\n\n"], "do_sample": False, "max_new_tokens": 12}

    def answered(texts):
        ids, mask = lm.tok_batch_encode(texts)
        out = lm._model_generate(ids, attention_mask=mask, **options)
        return [lm.tokenizer.decode(row[ids.shape[1] :][:12]) for row in out]

    alone = [answered([text])[0] for text in prompts]
    together = answered(prompts)
    lm.close()
    assert together == alone


def test_endings_are_scored_in_parts_and_contexts_cut_as_the_harness_does(monkeypatch):
    model, tokenizer = load_model("smollm2-135m")
    theirs, ours = HFLM(pretrained=model, tokenizer=tokenizer, max_length=24), CladaLM("smollm2-135m", method="dense")
    ours._max_length = 24
    monkeypatch.setattr("clada.harness.TOGETHER", 2)
    context = theirs.tok_encode("The minister said on Monday that the government would not wait for " * 3)
    endings = [theirs.tok_encode(text) for text in (" rain", " the other parties in the house", " long", " it", " us")]
    requests = [(("", ""), context, ending) for ending in endings]
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    found = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    for (score, greedy), (wanted, same) in zip(found, expected, strict=True):
        assert score == pytest.approx(wanted, abs=1e-3)  # float32 sums in another order
        assert greedy == same


def test_what_has_no_score_is_refused_where_the_harness_own_model_stops():
    """And at the border of both, with an empty context too, the scores are the same."""
    model, tokenizer = load_model("smollm2-135m")
    theirs, ours = HFLM(pretrained=model, tokenizer=tokenizer, max_length=8), CladaLM("smollm2-135m", method="dense")
    ours._max_length = 8

    def request(context, continuation):
        return [Instance("loglikelihood", {}, (context, continuation), 0)]

    eight = " one two three four five six seven eight"
    assert len(tokenizer(eight)["input_ids"]) == 8
    for context, continuation in (
        ("The minister", eight), ("The minister said on Monday that rain", " one two three"), ("", eight),
        ("", "The minister"), ("The minister ", ""),
    ):  # fmt: skip
        ((expected, same),) = theirs.loglikelihood(request(context, continuation), disable_tqdm=True)
        ((score, greedy),) = ours.loglikelihood(request(context, continuation), disable_tqdm=True)
        assert score == pytest.approx(expected, abs=1e-3)  # float32 sums in another order
        assert greedy == same
    for context, continuation, message in (
        ("The minister", "", "the continuation after 'The minister' has no tokens, so no score; give it words"),
        ("", "", "the continuation after '' has no tokens"),
        ("", tokenizer.decode(theirs.prefix_token_id), "the continuation after '' has no tokens"),
        (" ", "", "the context of '' has no tokens"),
        ("The", f"{eight} nine", "has 9 tokens, more than the 8 positions of the model; shorten it"),
    ):
        with pytest.raises((AssertionError, IndexError)):
            theirs.loglikelihood(request(context, continuation), disable_tqdm=True)
        with pytest.raises(InputError, match=message):
            ours.loglikelihood(request(context, continuation), disable_tqdm=True)


def test_mistakes_at_the_harness_own_command_are_one_line(tmp_path):
    command = ("clada.harness", "--model", "clada", "--tasks", "piqa", "--model_args")
    done = finished(tmp_path, *command, "pretrained=smollm2-135m,method=magic")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("clada.harness: unknown method 'magic'; use clada")


@pytest.mark.parametrize(
    ("options", "message"),
    [("method=clada", "no model"), ("pretrained=smollm2-135m,metod=tt", "unknown model argument metod; there are"),
     ("pretrained=smollm2-135m,keep=half", "keep 'half' is not a number")],
)  # fmt: skip
def test_model_arguments_that_are_none_are_named(options, message):
    with pytest.raises(InputError, match=message):
        CladaLM.create_from_arg_string(options)


def test_none_in_model_arguments_leaves_nothing_out():
    # From Python the harness passes what it was not given as None.
    lm = CladaLM.create_from_arg_string(
        "pretrained=smollm2-135m,plan=none,coefficients=none", {"batch_size": None, "device": None}
    )
    assert lm.sparse.policy.prior is None  # the shipped plan has one
    lm.close()


def test_whole_texts_have_no_prompt_to_choose_neurons_by():
    lm = CladaLM("smollm2-135m", method="griffin", keep=0.5)
    with pytest.raises(InputError, match="griffin chooses neurons by a prompt"):
        lm.loglikelihood_rolling([])
    lm.close()


def test_overlap_and_rouge_of_known_answers(data):
    (doc,) = read_documents("coqa", data)
    assert doc["text"].endswith("Q: Who has a kite?\n\nA: Tom\n\nQ: What colour is it?\n\nA:")
    assert doc["golds"] == [["It is red"], ["red"]]  # answers that differ in case alone are one
    process = TASKS["coqa"]["process_results"]
    # Against each right answer in turn, the others being the references: "red" is 1 and 2 * 1/3 / (1 + 1/3) = 0.5.
    assert process(doc, [" red\nmore"]) == {"f1": pytest.approx(0.75), "em": 0.5}
    assert process({"golds": [["the Red kite"]]}, ["red kite."]) == {"f1": 1.0, "em": 1.0}
    (doc,) = read_documents("qasper_evidence", data)
    assert process(doc, ["WikiText"]) == {"f1": 1.0, "em": 1.0}  # any span is right
    (doc,) = read_documents("xsum", data)
    assert doc["text"].startswith("###\nArticle: The bridge")
    found = TASKS["xsum"]["process_results"](doc, [doc["golds"][0]])
    assert found == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def result(method, task, scores, seed=0):
    return {"method": method, "task": task, "items": {"acc": scores}, "indices": list(range(len(scores))),
            "active_fraction": 1.0 if method == "dense" else 0.5, "seed": seed}  # fmt: skip


def test_differences_are_paired_and_averaged_over_tasks():
    rng = np.random.default_rng(0)
    dense = {task: (rng.random(400) < 0.6).astype(float) for task in ("piqa", "hellaswag")}
    other = {task: np.where(rng.random(400) < 0.05, 1 - scores, scores) for task, scores in dense.items()}
    rows = compare([result("dense", t, s.tolist()) for t, s in dense.items()]
                   + [result("clada", t, s.tolist()) for t, s in other.items()])  # fmt: skip
    found = {(row["method"], row["task"]): row for row in rows}
    for task in dense:
        row, difference = found["clada", task], other[task] - dense[task]
        assert row["diff_to_dense"] == pytest.approx(difference.mean())
        half = 1.96 * difference.std(ddof=1) / 20
        # 10,000 draws: the interval's ends to a tenth of its half width
        assert row["diff_ci"] == pytest.approx([difference.mean() - half, difference.mean() + half], abs=0.1 * half)
        chance = 0.5 if task == "piqa" else 0.25
        expected = (other[task].mean() - chance) / (dense[task].mean() - chance)
        assert row["kept_above_chance"] == pytest.approx(expected)
        assert found["dense", task]["diff_ci"] == [0.0, 0.0]
    # A task in which dense guesses says nothing of what is kept above guessing.
    more = compare([result("dense", t, s.tolist()) for t, s in (dense | {"copa": np.zeros(4)}).items()]
                   + [result("clada", t, s.tolist()) for t, s in (other | {"copa": np.ones(4)}).items()])  # fmt: skip
    (with_copa,) = (row for row in more if (row["method"], row["task"]) == ("clada", "mean"))
    assert with_copa["kept_above_chance"] == pytest.approx(found["clada", "mean"]["kept_above_chance"])
    mean = found["clada", "mean"]
    assert mean["value"] == pytest.approx(np.mean([other[t].mean() for t in other]))
    assert mean["n"] == 800
    width = math.dist(mean["diff_ci"], found["clada", "piqa"]["diff_ci"])
    assert width < found["clada", "piqa"]["diff_ci"][1] - found["clada", "piqa"]["diff_ci"][0]
    for fmt in ("markdown", "latex", "csv"):
        assert as_table(rows, fmt).count("clada") == 3
