"""The commands as a user types them: results on stdout, mistakes as one line and exit code 2."""

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from processes import finished, running
from tiny_models import tiny_model

from clada.cli import main as clada
from clada.errors import InputError
from clada.measure.texts import read_windows
from clada.methods.plan import Plan, resolve_plan
from clada.models.open import load_tokenizer, model_revision
from cladastats.cli import main as cladastats


def refused(capsys, command, *args):
    """The one line a command that exits with code 2 says."""
    try:
        code = command([str(arg) for arg in args])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    return said.err.rstrip("\n")


SHIPPED = ("smollm2-135m", "gemma3-270m")
GENERATE = ("generate", "--prompt", "Hello", "--max-new-tokens", "2")


@pytest.fixture
def files(tmp_path):
    """Files that cannot be used, by name."""
    content = {
        "latin1.txt": "café".encode("latin-1"),
        "empty.txt": b"",
        "blank.txt": b" \n",
        "latin1.jsonl": '{"text": "café"}'.encode("latin-1"),
        "broken.jsonl": b'{"text": "a"}\n{"text": ',
        "other.jsonl": b'{"body": "a"}',
        "short.jsonl": b'{"text": "A short text of a few words."}',
        "nothing.jsonl": b'{"text": ""}',
        "mark.txt": b"\xef\xbb\xbf",
        "gap.jsonl": b'{"text": "a"}\n\n{"text": ""}\n',
        "half.jsonl": b'{"text": "a"}\n{"text": "\\ud83d"}',
        "bad.json": b"{",
        "plan.json": json.dumps({"schema": "clada/coefficients/1"}).encode(),
        "away.json": json.dumps(
            {
                "schema": "clada/coefficients/1", "lambda": 0.1, "gamma": 0.1, "tau_surprisal_bits": 1.0,
                "tau_entropy_bits": 1.0, "tau_quantile": 0.7, "model": "m", "response": "away",
            }
        ).encode(),
    }  # fmt: skip
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "study.json").write_text('{"revision": "sha256:other"}')
    return tmp_path


@pytest.fixture(scope="module")
def compiled():
    """Kernels are there: where they are not, the first command says on stderr that it compiles them."""
    clada(["generate", "--prompt", "a", "--max-new-tokens", "1"])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*GENERATE, "--model", "nobody/nothing"], "unknown model 'nobody/nothing'.*embedded"),
        ([*GENERATE, "--model", "news"], "embedded corpus, not a model"),
        ([*GENERATE, "--model", "{files}/folder"], "has no config.json"),
        ([*GENERATE, "--plan", "{files}/missing.json"], "cannot read .*missing.json: No such file"),
        ([*GENERATE, "--plan", "{files}/bad.json"], "bad.json is not a JSON file"),
        ([*GENERATE, "--plan", "{files}/plan.json"], "has schema 'clada/coefficients/1', not 'clada/plan/3'"),
        ([*GENERATE, "--plan", "none", "--coefficients", "{files}/away.json"], "opposite .*--response toward"),
        ([*GENERATE, "--plan", "none", "--coefficients", "{files}/missing.json"], "cannot read"),
        ([*GENERATE, "--plan", "none", "--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        ([*GENERATE, "--plan", "none", "--method", "fast"], "unknown method 'fast'; use clada, .*dense"),
        ([*GENERATE, "--plan", "none", "--keep", "0.5"], "leave --plan none out"),
        ([*GENERATE, "--keep", "1.5"], r"keep 1.5 is outside \(0, 1\]"),
        ([*GENERATE, "--max-loss", "0.5", "--coefficients", "none"], r"only for losses of .* or add it with .*0\.5'"),
        (["generate", "--prompt-jsonl", "{files}/missing.jsonl"], "cannot read .*missing.jsonl"),
        (["generate", "--prompt-jsonl", "{files}/empty.txt"], "has no lines"),
        (
            ["generate", "--prompt-jsonl", "{files}/short.jsonl", "--field", "nothing"],
            r"short.jsonl, line 1: no text in field 'nothing' \(there: 'text'\); name the field with --field",
        ),
        (["bench", "--text", "{files}/missing.txt"], "cannot read .*missing.txt: No such file"),
        (["bench", "--text", "{files}/short.jsonl"], "too little text"),
        (["bench", "--text", "{files}/short.jsonl", "--methods", "fast"], "unknown method 'fast'"),
        (["bench", "--text", "{files}/short.jsonl", "--peers", "vllm"], "unknown peer 'vllm'"),
        (["bench"], "the following arguments are required: --text"),
        ([*GENERATE, "--plan", "none", "--temperature", "-1"], "a temperature of 0 or at least 1e-6"),
        (["generate", "--prompt", "a", "--max-new-tokens", "9000"], "9,001 tokens do not fit llama.*8,192 positions"),
        ([*GENERATE, "--method", "magic"], "unknown method 'magic'; use clada"),
        (["generate"], "one of the arguments --prompt --prompt-file --prompt-jsonl is required"),
        (["generate", "--prompt", " "], "clada: the prompt is blank; give a text with words in it"),
        (["generate", "--prompt", ""], "clada: the prompt is empty; give a text with words in it"),
        (["generate", "--prompt-file", "{files}/missing.txt"], "cannot read .*missing.txt: No such file"),
        (["generate", "--prompt-file", "{files}/folder"], "cannot read .*folder: Is a directory"),
        (["generate", "--prompt-file", "{files}/latin1.txt"], "latin1.txt is not UTF-8"),
        (["generate", "--prompt-file", "{files}/empty.txt"], "empty.txt: the prompt is empty"),
        (["generate", "--prompt-file", "{files}/blank.txt"], "blank.txt: the prompt is blank"),
        (["generate", "--prompt-file", "{files}/mark.txt"], "mark.txt: the prompt is empty"),
        (["generate", "--prompt-jsonl", "{files}/gap.jsonl"], "gap.jsonl, line 3: the prompt is empty"),
        (["generate", "--prompt-jsonl", "{files}/half.jsonl"], "half.jsonl, line 2: the prompt holds half a character"),
        (["generate", "--prompt-jsonl", "{files}/broken.jsonl"], "broken.jsonl, line 2: not JSON; give"),
        (["generate", "--prompt", "a", "--max-new-tokens", "0"], "'0' is not a whole number of at least 1"),
        (["calibrate", "--text", "{files}/missing.txt"], "cannot read .*missing.txt: No such file"),
        (["calibrate", "--text", "jsonl:{files}/gap.jsonl:body"], "line 1: no text in field 'body'"),
        (["calibrate", "--text", "{files}/latin1.txt"], r"latin1.txt is not UTF-8 \(byte 3\); convert it"),
        (["calibrate", "--text", "{files}/short.jsonl"], "too little text"),
        (["calibrate", "--text", "{files}/short.jsonl", "--max-loss", "2"], "max-loss 2.0 is outside"),
        (["calibrate", "--text", "{files}/short.jsonl", "--max-loss", "a"], "'a' is not a list of numbers"),
        (["calibrate", "--text", "{files}/short.jsonl", "--methods", "fast"], "unknown method 'fast'"),
        (["calibrate", "--text", "{files}/folder"], "cannot read text"),
        (["calibrate", "--text", "{files}/foreign"], "study of another model"),
        ([*GENERATE, "--seed", "-1"], "seed -1 is outside"),
        ([*GENERATE, "--temperature", "nan"], "a temperature of 0 or at least 1e-6"),
        ([*GENERATE, "--model", "x" * 300], "clada: cannot use x{300}: File name too long; check the path"),
        ([*GENERATE, "--plot", "a.mp3"], r"cannot draw a.mp3: '.mp3' is no format of figures; use .*png"),
        (["bench", "--text", "{files}/short.jsonl", "--plot", "a.mp3"], "cannot draw a.mp3"),
        (["bench", "--text", "{files}/short.jsonl", "--scored-tokens", "-5"], "'-5' is not a whole number"),
        (["bench", "--text", "{files}/short.jsonl", "--prompt-tokens", "9000"], "9,128 tokens do not fit llama"),
        (["bench", "--text", "{files}/short.jsonl", "--peers", "llama.cpp", "--batch-size", "2"], "one sequence"),
        (["bench", "--text", "{files}/short.jsonl", "--new-tokens", "1"], "give at least 2"),
        (["bench", "--text", "{files}/short.jsonl", "--scored-tokens", "9"], "9 are one window"),
        (["bench", "--text", "{files}/short.jsonl", "--plot", "a.png", "--scored-tokens", "0"], "leave one out"),
        (["calibrate", "--text", "{files}/short.jsonl", "--out", "p.safetensors"], "has not the ending .json"),
        (["calibrate", "--text", "{files}/short.jsonl", "--out", "llama-3.1"], "has not the ending .json"),
        ([*GENERATE, "--metrics", "{files}/folder"], "cannot write .*folder, which is not a file"),
        ([*GENERATE, "--metrics", "{files}/short.jsonl/a.csv"], "short.jsonl is no folder that can be written to"),
        ([*GENERATE, "--prompt", "caf\udce9"], "half a character"),
        ([*GENERATE, "--threads", "100000"], "more than 1,024 threads"),
        ([*GENERATE, "--update-window", "9" * 20], "below 2\\^31"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)  # fmt: skip
def test_mistakes_with_clada(capsys, files, args, message):
    import re

    line = refused(capsys, clada, *(arg.replace("{files}", str(files)) for arg in args))
    assert re.search(message, line), line


CORPUS = ("corpus", "--study", "{files}/study", "--pairs", "2", "--length", "64")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*CORPUS, "--source", "gutenberg"], "unknown source 'gutenberg'; use news, xsum, jsonl"),
        ([*CORPUS, "--source", "jsonl:{files}/missing.jsonl"], "cannot read .*missing.jsonl: No such file"),
        ([*CORPUS, "--source", "jsonl:{files}/latin1.jsonl"], "latin1.jsonl is not UTF-8"),
        ([*CORPUS, "--source", "jsonl:{files}/broken.jsonl"], "line 2: not JSON"),
        ([*CORPUS, "--source", "jsonl:{files}/other.jsonl"], r"no text in field 'text' \(there: 'body'\)"),
        ([*CORPUS, "--source", "jsonl:{files}/nothing.jsonl"], "holds no text"),
        (
            [*CORPUS, "--source", "jsonl:{files}/short.jsonl"],
            "too little text: 0 pairs of 65 tokens within documents, A and B of different ones, fit, 2 asked",
        ),
        ([*CORPUS, "--source", "text:{files}/folder"], "has no .*txt file"),
        ([*CORPUS, "--source", "text:{files}/missing"], "is not a folder"),
        ([*CORPUS, "--ratios", "0.5,1.0"], r"ratio 1.0 is outside \(0, 1\)"),
        ([*CORPUS, "--ratios", "a"], "is not a list of numbers"),
        ([*CORPUS, "--ratios", "nan"], "outside"),
        ([*CORPUS, "--pairs", "0"], "'0' is not a whole number of at least 1"),
        ([*CORPUS, "--model", "nobody/nothing"], "unknown model"),
        ([*CORPUS, "--length", "8192"], "8,193 tokens do not fit llama.*use a shorter --length"),
        ([*CORPUS, "--model", "{opt}", "--length", "2048"], "2,049 tokens do not fit opt: its position table has"),
        ([*CORPUS, "--model", "{mamba}"], "model family 'mamba' is not supported; supported are"),
        (["extract", "--study", "{files}/missing"], "is not a study"),
        (
            ["regress", "--study", "{study}", "--metric", "magic"],
            "unknown metric 'magic'; use cka, cka_trimmed, cosine",
        ),
        (["regress", "--study", "{study}", "--metric", "jaccard"], "no panel-jaccard.parquet; run 'cladastats simil"),
        (["regress", "--study", "{study}", "--controls", "token_len"], "token_len takes one value only"),
        (["regress", "--study", "{study}", "--controls", "age"], "no column age; it has"),
        (["regress", "--study", "{study}", "--metric", "cosine", "--estimator", "biased"], "belongs to --metric cka"),
        (["regress", "--study", "{study}", "--estimator", "population"], "compares sets of pairs"),
        (["regress", "--study", "{study}", "--response", "magic"], "invalid choice"),
        (["extract", "--study", "x" * 300], "File name too long; check the path"),
        (["run", "--study", "{study}", "--model", "gemma3-270m"], "with model smollm2-135m, not gemma3-270m"),
        (["run", "--study", "{study}", "--pairs", "9"], "is a study with pairs 6, not 9"),
        (["run", "--study", "{damaged}"], "study.json is not a JSON file"),
    ],
)  # fmt: skip
def test_mistakes_with_cladastats(capsys, files, small_copy, args, message):
    import re

    for model_type, positions in (("opt", 2048), ("mamba", 64)):
        folder = files / model_type
        folder.mkdir()
        config = {"model_type": model_type, "max_position_embeddings": positions, "vocab_size": 49152}
        (folder / "config.json").write_text(json.dumps(config))
        load_tokenizer("smollm2-135m").save_pretrained(folder)
    (files / "damaged").mkdir()
    (files / "damaged" / "study.json").write_text("{")
    capsys.readouterr()
    places = {"files": files, "study": small_copy.folder, "damaged": files / "damaged", "opt": files / "opt"}
    line = refused(capsys, cladastats, *(arg.format(**places, mamba=files / "mamba") for arg in args))
    assert re.search(message, line), line


def test_one_ratio_does_not_identify_the_prefix(capsys, tmp_path, small_copy):
    panel = small_copy.panel("cka").query("ratio == 0.5")
    panel.to_parquet(small_copy.folder / "panel-cka.parquet")
    line = refused(capsys, cladastats, "regress", "--study", small_copy.folder)
    assert "prefix_len" in line


def test_regress_on_the_newest_study_needs_no_option(tmp_path, small_copy, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, cladastats, "regress", "--metric", "cka")
    assert "no study below studies/" in line
    shutil.copytree(small_copy.folder, tmp_path / "studies" / "older")
    shutil.copytree(small_copy.folder, tmp_path / "studies" / "newest")
    os.utime(tmp_path / "studies" / "older" / "study.json", (1, 1))
    done = finished(tmp_path, "cladastats.regress", "--metric", "cka")
    assert done.returncode == 0, done.stderr
    assert "Prefix (1,000 tokens)" in done.stdout
    said = "newest/coefficients.json now holds lambda and gamma of metric r², one-feature CKA (cka), response toward"
    assert said in done.stderr


@pytest.mark.parametrize("fmt", ["text", "markdown", "latex", "csv", "html", "json"])
def test_regress_prints_every_format(capsys, small_copy, fmt):
    assert cladastats(["regress", "--study", str(small_copy.folder), "--format", fmt]) == 0
    out = capsys.readouterr().out
    marks = {
        "text": "(6) NLS",
        "markdown": "|",
        "latex": r"\begin{tabular}",
        "csv": "column,",
        "html": "<table",
        "json": "{",
    }
    assert marks[fmt] in out
    if fmt == "json":
        assert json.loads(out) == json.loads((small_copy.folder / "fits" / "cka.json").read_text())


def test_away_is_written_and_then_refused_by_the_engine(capsys, small_copy):
    assert cladastats(["regress", "--study", str(small_copy.folder), "--response", "away"]) == 0
    assert (small_copy.folder / "fits" / "cka-away.json").exists()
    capsys.readouterr()
    path = small_copy.folder / "coefficients.json"
    assert "response 'away'" in refused(capsys, clada, *GENERATE, "--plan", "none", "--coefficients", path)


def test_controls_are_shown_and_leave_the_files_alone(capsys, small_copy):
    before = {
        p: p.read_bytes() for p in (small_copy.folder / "coefficients.json", small_copy.fit_path("cka", "toward"))
    }
    assert cladastats(["regress", "--study", str(small_copy.folder), "--controls", "sim_ha", "--json"]) == 0
    assert "sim_ha" in json.loads(capsys.readouterr().out)["columns"][0]["coef"]
    assert {path: path.read_bytes() for path in before} == before


def test_figures_are_drawn(small_copy, capsys):
    shutil.rmtree(small_copy.folder / "figures")
    assert cladastats(["figures", "--study", str(small_copy.folder)]) == 0
    assert {path.name for path in (small_copy.folder / "figures").iterdir()} == {
        f"prefix-{metric}.{suffix}" for metric in ("cka", "cka_trimmed", "cosine") for suffix in ("png", "pdf")
    }
    # Population CKA is drawn too once it is computed.
    assert cladastats(["similarity", "--study", str(small_copy.folder), "--estimator", "population"]) == 0
    assert cladastats(["figures", "--study", str(small_copy.folder)]) == 0
    for name in ("prefix-cka", "prefix-cosine", "population-cka"):
        assert (small_copy.folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (small_copy.folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_generate_reads_the_study_and_says_what_it_used(small_copy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_copy.folder, tmp_path / "studies" / "one")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("  The capital of France\n")
    args = ["generate", "--prompt-file", str(prompt), "--max-new-tokens", "5"]
    assert clada([*args, "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    fitted = json.loads((small_copy.folder / "coefficients.json").read_text())
    assert (result["lambda"], result["gamma"]) == (fitted["lambda"], fitted["gamma"])
    assert set(result) >= {
        "text", "model", "method", "dtype", "prompt_tokens", "new_tokens", "prefill_s", "decode_s", "tokens_per_s",
        "active_fraction", "lambda", "gamma", "steps",
    }  # fmt: skip
    assert set(result["steps"][0]) == {
        "token_id", "token", "surprisal_bits", "entropy_bits", "active_fraction", "load_surprisal", "load_entropy",
    }  # fmt: skip
    assert result["new_tokens"] == len(result["steps"]) == 5
    # Read verbatim: the spaces before and the line end after are part of the prompt.
    assert result["prompt_tokens"] == len(load_tokenizer("smollm2-135m")("  The capital of France\n")["input_ids"])
    assert 0 < result["active_fraction"] < 1
    assert clada(args) == 0
    said = capsys.readouterr()
    assert said.out == result["text"] + "\n"
    assert "tokens/s" in said.err
    assert "% of the MLP neurons computed" in said.err
    assert "from studies/one/coefficients.json" in said.err


def test_coefficients_of_another_model_are_said_to_be(small_copy, capsys):
    path = small_copy.folder / "coefficients.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "gemma3-270m"}))
    assert clada([*GENERATE, "--plan", "none", "--coefficients", str(path)]) == 0
    assert "these coefficients were fitted on gemma3-270m" in capsys.readouterr().err


def test_generate_reads_standard_input_and_chats(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompt").write_text("Hi!")

    def generated(*extra):
        with (tmp_path / "prompt").open() as prompt:
            monkeypatch.setattr("sys.stdin", prompt)
            assert (
                clada(["generate", "--prompt-file", "-", "--max-new-tokens", "3", "--json", "--plan", "none", *extra])
                == 0
            )
        return json.loads(capsys.readouterr().out)

    plain, chat = generated(), generated("--chat")
    assert chat["prompt_tokens"] > plain["prompt_tokens"] + 5  # the template's turns
    assert plain["active_fraction"] == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_plans_are_of_the_embedded_models(name):
    plan = resolve_plan(None, name, Plan.load(shipped(name)).revision)
    assert plan is not None
    for budget in (0.01, 0.02, 0.05):
        for dtype in ("bfloat16", "int8"):
            setting = plan.setting("clada", budget, dtype)
            assert setting.loss["ppl_rise_upper"] <= budget
            assert setting.loss["scored_tokens"] >= 16_000
            assert 0 < setting.loss["active_fraction"] <= 1
            assert setting.shares.margin is not None


def test_a_damaged_plan_in_the_cache_does_not_hide_the_shipped_one(tmp_path, monkeypatch):
    expected = Plan.load(shipped("smollm2-135m"))
    monkeypatch.setattr("clada.methods.plan.cached_plan_path", lambda _revision: tmp_path / "plan.json")
    for content in ("{", "[]", json.dumps({"schema": "clada/plan/2"})):
        (tmp_path / "plan.json").write_text(content)
        found = resolve_plan(None, "smollm2-135m", expected.revision)
        assert found is not None
        assert found.settings == expected.settings


def test_a_plan_for_another_budget_does_not_hide_the_shipped_one(tmp_path, monkeypatch):
    expected = Plan.load(shipped("smollm2-135m"))
    monkeypatch.setattr("clada.methods.plan.cached_plan_path", lambda _revision: tmp_path / "plan.json")
    replace(expected, settings=tuple(replace(s, max_loss=0.1) for s in expected.settings)).save(tmp_path / "plan.json")

    def found(max_loss):
        plan = resolve_plan(None, "smollm2-135m", expected.revision, max_loss)
        assert plan is not None
        return plan.setting("clada", max_loss).max_loss

    assert [found(budget) for budget in (None, 0.05, 0.1)] == [0.02, 0.05, 0.1]
    with pytest.raises(InputError, match=r"only for losses of 0\.1, 0\.1, 0\.1; name"):
        found(0.5)


def test_lines_end_where_json_lets_them(tmp_path, capsys):
    """U+2028 within a string is no end of a line, though Python's `splitlines` says so."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two"}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    args = ["generate", "--prompt-jsonl", str(path), "--max-new-tokens", "2", "--plan", "none"]
    assert clada(args) == 0
    expected = load_tokenizer("smollm2-135m")("one\u2028two")["input_ids"]
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(expected)
    windows, _ = read_windows(f"jsonl:{path}:text", load_tokenizer("smollm2-135m"), "", len(expected), 1)
    assert windows == [expected]


def test_a_prompt_too_long_is_refused_before_the_first_is_decoded(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in (1, 9000)))
    said = refused(capsys, clada, "generate", "--prompt-jsonl", path, "--plan", "none")
    assert f"{path}, line 2: 9,129 tokens do not fit llama: it was trained for 8,192 positions; shorten" in said


def test_prompts_of_a_jsonl_file_in_batches_with_metrics_and_plot(tmp_path, capsys):
    texts = ["The minister said on Monday", "Police in the city", "Rain"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"document": text}) + "\n" for text in texts))
    args = ["generate", "--prompt-jsonl", str(path), "--field", "document", "--max-new-tokens", "4", "--plan", "none"]
    metrics, plot = tmp_path / "metrics.csv", tmp_path / "load.png"
    assert clada([*args, "--batch-size", "2", "--metrics", str(metrics), "--plot", str(plot)]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert clada(args) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["text"] for r in results] == [r["text"] for r in alone]
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["step"]) for row in rows] == [(str(p), str(s)) for p in range(3) for s in range(4)]
    assert [int(row["token_id"]) for row in rows] == [s["token_id"] for r in results for s in r["steps"]]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_measures_every_method_on_the_same_tokens(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(
        "The council met on Tuesday to discuss the new road, and nobody agreed on where it should go. " * 30
    )
    args = [
        "bench", "--text", str(text), "--methods", "clada,clada-no-load", "--prompt-tokens", "24", "--new-tokens", "8",
        "--repeats", "2", "--scored-tokens", "40", "--dtype", "bfloat16", "--coefficients", "none",
        "--plot", str(tmp_path / "pareto.png"),
    ]  # fmt: skip
    assert clada([*args, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) >= {"machine", "bandwidth_gb_s", "model", "dtype", "coefficients", "plan", "rows", "peers"}
    dense, *others = result["rows"]
    assert dense["method"] == "dense"
    assert dense["ratio_to_dense"] == dense["mlp_bytes_fraction"] == dense["active_fraction"] == 1
    # bfloat16, every weight once: 30 layers of 3.54 million, the head, and the cache on top.
    assert 2 * (30 * 3_538_944 + 49_152 * 576) < dense["bytes_per_token"] < 1.05 * 2 * (30 * 3_538_944 + 49_152 * 576)
    for row in others:
        assert set(row) >= {
            "tokens_per_s", "tokens_per_s_all", "bandwidth_fraction", "ppl_rise", "ppl_rise_ci", "kl_to_dense",
            "sparsity",
        }  # fmt: skip
        assert len(row["tokens_per_s_all"]) == 2
        assert row["bytes_per_token"] < dense["bytes_per_token"]
        assert row["mlp_bytes_fraction"] < 1
        assert row["scored_tokens"] == 40
        assert row["ppl_rise_ci"][0] <= row["ppl_rise"] <= row["ppl_rise_ci"][1]
        assert row["kl_to_dense"] > 0
    assert others[0]["kl_to_dense"] == others[1]["kl_to_dense"]  # without coefficients there is no load rule
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    digest = resolve_plan(None, "smollm2-135m", model_revision("smollm2-135m")).digest()
    assert result["plan"] == f"smollm2-135m (sha256:{digest[:8]})"
    assert clada([*args[:-2], "--scored-tokens", "0", "--peers", "transformers"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].split()[0] for line in table[4:]] == ["dense", "clada", "clada-no-load", "transformers"]


def shipped(name):
    from pathlib import Path

    import clada as package

    return Path(package.__file__).parent / "plans" / f"{name}.json"


def test_a_plan_of_another_model_is_refused(capsys, tmp_path):
    model = tiny_model("llama", vocab_size=49152)
    model.save_pretrained(tmp_path / "model")
    load_tokenizer("smollm2-135m").save_pretrained(tmp_path / "model")
    capsys.readouterr()
    args = (*GENERATE, "--model", tmp_path / "model", "--coefficients", "none")
    assert "the plan is for smollm2-135m" in refused(capsys, clada, *args, "--plan", shipped("smollm2-135m"))
    assert f"no plan for {tmp_path}/model; make one with 'clada calibrate" in refused(capsys, clada, *args)
    assert clada([*map(str, args), "--plan", "none"]) == 0


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_generate_decodes_families_without_a_gate(capsys, tmp_path, family):
    tiny_model(family, vocab_size=49152).save_pretrained(tmp_path)
    load_tokenizer("smollm2-135m").save_pretrained(tmp_path)
    capsys.readouterr()
    assert clada([*GENERATE, "--model", str(tmp_path), "--plan", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 2


def test_interrupted_with_ctrl_c_resumes(small_study, tmp_path, capsys):
    """A real process, a real SIGINT between shards: one line, exit code 2, and the rest is done by the next run."""
    folder = tmp_path / "study"
    folder.mkdir()
    for name in ("study.json", "corpus.parquet"):
        shutil.copy(small_study.folder / name, folder)
    first = folder / "activations" / "part-00000.safetensors"
    with running(tmp_path, "cladastats", "run", "--study", folder) as process:
        while not first.exists() and process.returncode is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == 2, process.stderr
    err = process.stderr
    assert err.splitlines()[-1] == "cladastats: interrupted; the same command goes on from the finished files"
    assert "Traceback" not in err
    kept = first.read_bytes()
    assert cladastats(["run", "--study", str(folder)]) == 0
    assert "Prefix (1,000 tokens)" in capsys.readouterr().out
    assert first.read_bytes() == kept


def test_full_disk_is_one_line_and_resumes(tiny_copy, monkeypatch, capsys):
    import errno

    from clada.system import files as paths

    part = tiny_copy.folder / "activations" / "part-00001.safetensors"
    content = part.read_bytes()
    part.unlink()

    def full(self, *_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(paths.Path, "write_bytes", full)
        line = refused_last(capsys, "extract", "--study", tiny_copy.folder)
    assert line == "cladastats: the disk is full; make room, then run the same command again"
    assert not part.exists()
    assert cladastats(["extract", "--study", str(tiny_copy.folder)]) == 0
    assert part.read_bytes() == content


def refused_last(capsys, *args):
    assert cladastats([str(arg) for arg in args]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_cuda_is_refused_where_there_is_none(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "no CUDA device" in refused(capsys, clada, *GENERATE, "--device", "cuda")


def test_evaluation_is_refused_on_a_device_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ("evaluate", "--data", tmp_path, "--device", "cuda")
    assert "no CUDA device" in refused(capsys, clada, *command)
    assert "--speed times the kernels, which run on the CPU" in refused(capsys, clada, *command, "--speed")


def test_a_method_that_may_leave_out_nothing_says_so(capsys):
    """The shipped plan found no share of the neurons that GRIFFIN may fix within 2 %; dense is never run in silence."""
    assert clada(["generate", "--prompt", "The minister said", "--max-new-tokens", "2", "--method", "griffin"]) == 0
    said = capsys.readouterr().err
    assert (
        "calibration found nothing that griffin may leave out within 2%, so everything was computed; --keep X" in said
    )
