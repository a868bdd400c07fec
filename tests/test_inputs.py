"""What the commands take from outside: files that a user names, studies of the working folder, cores of the machine."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

from clada import Engine, sparse
from clada.cli import main
from clada.errors import InputError
from clada.measure.texts import read_windows
from clada.methods.coefficients import NONE, PAPER, coefficients_for
from clada.models.open import load_tokenizer
from clada.system.jsonfile import json_line
from clada.system.machine import available_cores
from cladastats.activations.clusters import read_queue

ROOT = Path(__file__).parent.parent
PLANS = ROOT / "clada" / "plans"


def test_a_byte_order_mark_is_no_text(tmp_path, capsys):
    """Windows' editors write one; every file that a user names is read through the same function."""
    mark, tokenizer = b"\xef\xbb\xbf", load_tokenizer("smollm2-135m")
    text, lines = tmp_path / "text.txt", tmp_path / "text.jsonl"
    text.write_bytes(mark + b"The council met.\r\n")
    lines.write_bytes(mark + b'{"text": "The council met.\\r\\n"}\r\n')
    (tmp_path / "coefficients.json").write_bytes(
        mark + b'{"schema": "clada/coefficients/1", "lambda": -0.5, "gamma": 0.25, "tau_surprisal_bits": 1, '
        b'"tau_entropy_bits": null, "tau_quantile": 0.7, "model": "smollm2-135m", "response": "toward"}'
    )
    for suffix in (".json", ".safetensors"):
        shutil.copy(PLANS / f"smollm2-135m{suffix}", tmp_path / f"plan{suffix}")
    (tmp_path / "plan.json").write_bytes(mark + (tmp_path / "plan.json").read_bytes())
    files = ["--coefficients", str(tmp_path / "coefficients.json"), "--plan", str(tmp_path / "plan.json")]
    for prompt in (["--prompt-file", str(text)], ["--prompt-jsonl", str(lines)]):
        assert main(["generate", *prompt, "--max-new-tokens", "1", "--json", *files]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["prompt_tokens"] == len(tokenizer("The council met.\r\n")["input_ids"])  # verbatim
        assert (result["lambda"], result["gamma"]) == (-0.5, 0.25)
    (tmp_path / "queue.json").write_bytes(mark + b'{"jobs": 0}')
    with pytest.raises(InputError, match=r"queue.json does not describe a slurm cluster \(jobs is 0\)"):
        read_queue("slurm", str(tmp_path / "queue.json"))
    # Text to measure on has its lines ended as on Unix, a string of JSON what it says.
    for name, words in ((str(text), "The council met.\n"), (f"jsonl:{lines}", "The council met.\r\n")):
        ids = tokenizer(words)["input_ids"]
        assert read_windows(name, tokenizer, "", len(ids), 1)[0] == [ids]


def test_damaged_studies_of_others_do_not_matter(tmp_path, monkeypatch, capsys):
    """The newest study of the model that runs is meant; what else lies below `studies/` is not read."""
    monkeypatch.chdir(tmp_path)
    whole = {
        "schema": "clada/coefficients/1", "lambda": -0.5, "gamma": 0.25, "tau_surprisal_bits": 1.0,
        "tau_entropy_bits": 1.0, "tau_quantile": 0.7, "model": "mine", "response": "toward",
    }  # fmt: skip

    def study(name, study_json, coefficients_json):
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in (("study.json", study_json), ("coefficients.json", coefficients_json)):
            (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
        os.utime(folder / "study.json", (len(list(folder.parent.iterdir())),) * 2)

    study("a", {"model": "mine"}, whole)
    for number, (study_json, coefficients_json) in enumerate(
        [("{", "{"), ({"model": "other"}, "{"), ("[" * 100_000, "3"), ({"model": "other"}, {**whole, "model": "other"}),
         ({"model": ["mine"]}, "\x00"), ({"model": "mine"}, {**whole, "model": "other", "lambda": "x"})]
    ):  # fmt: skip
        study(f"b{number}", study_json, coefficients_json)
    assert coefficients_for(None, "mine").source == "studies/a/coefficients.json"
    assert coefficients_for(None, "nobody's") is NONE
    assert coefficients_for("paper", "mine") is PAPER
    study("c", "{", {**whole, "gamma": 0.5})  # all that is needed is whole
    assert coefficients_for(None, "mine").gamma == 0.5
    generate = ["generate", "--prompt", "a", "--max-new-tokens", "1", "--method", "dense", "--plan", "none", "--json"]
    assert main(generate) == 0
    assert json.loads(capsys.readouterr().out)["coefficients"] == "none"
    # Of the model itself the newest is meant, and said to be damaged; nothing older takes its place in silence.
    for study_json, coefficients_json, message in (
        ({"model": "mine"}, "{", "studies/d/coefficients.json is not a JSON file; write it again or give another one"),
        ("{", {**whole, "lambda": None}, r"studies/d/coefficients.json.*lambda.*; .*"),
        ("{", {**whole, "response": "away"}, "studies/d/coefficients.json were fitted on the response 'away'.*"),
    ):
        study("d", study_json, coefficients_json)
        with pytest.raises(InputError, match=message + ", or use --coefficients none$") as refusal:
            coefficients_for(None, "mine")
        assert "\n" not in str(refusal.value)
    # From Python nothing is taken from the working folder.
    model = tiny_model("llama")
    model.name_or_path = "mine"
    assert Engine(model, None, plan="none").policy.coefficients == NONE
    with sparse(model, "none") as run:
        assert run.policy.coefficients == NONE


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 6), ("150000 100000", 2), ("400000 100000", 4), ("3200000 100000", 6)]
)
def test_cores_are_those_of_the_container(monkeypatch, quota, cores):
    """By its quota (Linux control groups, version 2), rounded up, and by the affinity of the process."""
    from loky.backend import context

    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)), raising=False)
    monkeypatch.setattr(os.path, "exists", lambda name: name == "/sys/fs/cgroup/cpu.max")
    monkeypatch.setattr(context, "open", lambda _name: io.StringIO(f"{quota}\n"), raising=False)
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    assert available_cores() == cores


def test_results_are_strict_json():
    """A number that JSON cannot say is a mistake of ours, and never printed as one that some readers take."""
    assert json_line({"a": [0.1, None, "\u00e9"]}) == '{"a": [0.1, null, "\u00e9"]}'
    for value in (float("nan"), float("inf"), np.float64("nan")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            json_line({"steps": [{"surprisal_bits": value}]})
    # What a command prints goes through it, or through a writer that is as strict.
    for package in ("clada", "cladastats"):
        files = (ROOT / package).rglob("*.py")
        assert not [file.name for file in files if "print(json.dumps(" in file.read_text(encoding="utf-8")]


def test_text_of_a_study_of_another_tokenizer_is_refused(small_copy):
    """Its numbers would be other tokens here, though the weights are the same."""
    tokenizer, config = load_tokenizer("smollm2-135m"), small_copy.config
    windows, _ = read_windows(str(small_copy.folder), tokenizer, config.revision, 64, 2)
    assert len(windows) == 2
    path = small_copy.folder / "study.json"
    path.write_text(path.read_text(encoding="utf-8").replace(config.tokenizer_sha256, "0" * 64), encoding="utf-8")
    with pytest.raises(InputError, match="study of another model or tokenizer"):
        read_windows(str(small_copy.folder), tokenizer, config.revision, 64, 2)
