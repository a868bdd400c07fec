"""Broken files and options: does every one end in one line, or in a documented result?

    python benchmarks/fuzz.py --study studies/demo                # 10,000 files and option sets, some minutes
    python benchmarks/fuzz.py --study studies/demo --only part --seed 3 --files 1 --trace      # one of them again

Whole files of every kind (those of a small finished study, the shipped plan, texts) are damaged at random: bytes
flipped, cut, doubled, put in; JSON values replaced by others of any kind. Each is read in this process by what reads it
for a user. A `CladaError` of one line is right, and so is a result; anything else is printed, with the seed that makes
it again. Command lines of every command are drawn at random from its options, with values that fit and that do not;
they must end with exit code 0, or 2 and one line. Models are not opened, corpora not built, robustness checks not made:
what comes before is what options can break. Counts go to `benchmarks/results/fuzz.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from stored import FIGURES, RESULTS
from tqdm import tqdm

import clada.cli
import clada.methods.plan
import cladastats.cli
from clada.errors import CladaError, ModelError
from clada.measure.scores import EVALUATION_SCHEMA, Scores
from clada.measure.tasks import read_documents
from clada.measure.texts import read_windows
from clada.methods.coefficients import resolve_coefficients
from clada.methods.plan import Plan
from clada.methods.policy import make_policy
from clada.methods.selection import Norms
from clada.models.open import load_config, load_tokenizer
from clada.system.commandline import PATH_ERRORS, Parser
from cladastats.activations.clusters import read_queue
from cladastats.activations.parts import part_path, read_part, shard_ids, shards_of
from cladastats.controls import controls
from cladastats.extract import extract
from cladastats.language import language
from cladastats.panel.columns import summary_sentences
from cladastats.people.corpora import open_corpus
from cladastats.people.description import SOURCES
from cladastats.people.results import effect_table, show, verdicts
from cladastats.people.trials import read_trials
from cladastats.regress import regress
from cladastats.sequences.sources import load_documents
from cladastats.similarity import similarity
from cladastats.study import Study
from cladastats.texts.stimuli import read_texts, table_texts
from cladastats.texts.tablefile import read_table

WORDS = "a it the was some more house green letter window morning question understand government"
WEIRD = (
    None, True, 0, -1, 10**30, 1e308, -1e-308, float("nan"), float("inf"), "", "nan", "\x00", "x" * 1000, "../../x", [],
    {}, [[]], {"a": None}, [None], "9" * 400,
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file that is nearly the same."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        kind, at = rng.randrange(6), rng.randrange(len(data) + 1) if data else 0
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif kind == 3:
            del data[at : at + rng.choice((1, 8, 1000))]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice((1, 8, 1000))]
        else:
            end = min(len(data), at + rng.choice((4, 8)))
            data[at:end] = rng.choice((b"\xff", b"\x00", b"\x7f")) * (end - at)
    return bytes(data)


def altered(content: bytes, rng: random.Random) -> bytes:
    """JSON, or JSON lines, with some values replaced, gone, or of another name; now and then damaged as bytes."""
    if rng.random() < 0.3:
        return damaged(content, rng)
    try:
        lines = [json.loads(content)]
    except ValueError:
        lines = [json.loads(line) for line in content.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, key = lines, rng.randrange(len(lines))
        while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.85:
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if place is not lines and rng.random() < 0.2:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(WEIRD))
    return "\n".join(json.dumps(line) for line in lines).encode()


class Target:
    """A kind of file: one that is whole, how it is broken, and what reads it."""

    def __init__(self, path: Path, read: Callable[[], Any], change: Callable[[bytes, random.Random], bytes]) -> None:
        self.path, self.read, self.change = path, read, change
        self.whole = path.read_bytes()

    def spoil(self, rng: random.Random) -> None:
        """Break it."""
        self.path.write_bytes(self.change(self.whole, rng))

    def mend(self) -> None:
        """Put the whole one back."""
        self.path.write_bytes(self.whole)


def accepted(kind: Any, value: str) -> bool:
    """Whether an option of that type takes this value."""
    try:
        return kind is None or kind(value) is not None
    except (ValueError, argparse.ArgumentTypeError):
        return False


class Options:
    """Command lines: one is drawn, and run in a folder of its own."""

    VALUES = (
        "0",
        "-1",
        "1",
        "2",
        "0.5",
        "nan",
        "inf",
        "1e400",
        "",
        " ",
        "x",
        "\t\n",
        "a,b",
        ",",
        "1/2",
        "3/2",
        "none",
        "..",
    )

    def __init__(self, study: Path, place: Path) -> None:
        self.study, self.place, self.arguments = study, place / "commands", [""]
        self.files = (str(place / "text.jsonl"), str(place / "text" / "a.txt"), str(place), "jsonl:x:y", "cka", "paper")
        self.packages = {"clada": clada.cli, "cladastats": cladastats.cli}
        for package, module in self.packages.items():
            for name in module.COMMANDS:
                import_module(f"{package}.{name}")
        import_module("cladastats.panel.robustness")

        def refuse(*_arguments: Any, **_options: Any) -> None:
            raise ModelError("this is as far as options go; what follows takes a model")

        heavy = ("load_model", "build_corpus", "load_documents", "robustness", "measure_texts")
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in self.packages:
                for function in heavy:
                    if hasattr(module, function):
                        setattr(module, function, refuse)

    def spoil(self, rng: random.Random) -> None:
        """Draw a command line; half of the studies are the finished one."""
        package = rng.choice(list(self.packages))
        command = rng.choice(list(self.packages[package].COMMANDS))
        parser = Parser()
        self.packages[package].COMMANDS[command][1](parser)
        arguments = [package, command]
        for action in parser._actions[1:]:  # without --help
            if not action.required and rng.random() > 0.3 and action.dest != "study":
                continue
            values = [*self.VALUES, *self.files, *(action.choices or ())]
            if rng.random() < 0.8:  # one that the option can be
                values = [v for v in action.choices or values if accepted(action.type, v)] or values
            value = str(self.study) if action.dest == "study" and rng.random() < 0.6 else str(rng.choice(values))
            if action.option_strings:
                arguments.append(rng.choice(action.option_strings))
            if action.nargs != 0:
                arguments.append(value)
        if rng.random() < 0.1:
            arguments.insert(rng.randrange(1, len(arguments) + 1), rng.choice((*self.VALUES, "--no-such")))
        self.arguments = arguments

    def read(self) -> None:
        """Run it.

        Raises:
            CladaError: it was refused in one line, which is right.
            AssertionError: another exit code, or more than a line.
        """
        self.place.mkdir(exist_ok=True)
        said, module = StringIO(), self.packages[self.arguments[0]]
        stdin, sys.stdin = sys.stdin, TextIOWrapper(BytesIO(b"a prompt\n"))
        try:
            with chdir(self.place), redirect_stdout(StringIO()), redirect_stderr(said):
                code = module.main(self.arguments[1:])
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdin = stdin
        assert code in (0, 2), f"{self.arguments}: exit code {code}"
        if code == 2:
            # Progress bars rewrite their line, and end where the message begins.
            written = re.split(r"[\r\n]", said.getvalue())
            lines = [line for line in written if f"{self.arguments[0]}: " in line or "--help'" in line]
            assert lines, f"{self.arguments}: said {said.getvalue()[-300:]!r}"
            assert "Traceback" not in said.getvalue(), f"{self.arguments}: said {said.getvalue()[-300:]!r}"
            raise CladaError(lines[-1])

    def mend(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.place, ignore_errors=True)


def targets(study: Study, place: Path) -> dict[str, Target | Options]:
    """All kinds, on copies below `place`."""
    # Long, because it is a list: an entry for each kind of input, and the files that these are copied from.
    # Without the panel of the metric that reads the norms, so that it is made from them each time.
    shutil.copytree(study.folder, place / "study", ignore=shutil.ignore_patterns("panel*jaccard*"))
    shutil.copytree(Path(clada.methods.plan.__file__).parent.parent / "plans", place / "plans")
    folder, plans = place / "study", place / "plans"
    ids = shard_ids(shards_of(study.corpus)[0])
    identity, revision = study.config.identity(), study.config.revision
    plan_path = plans / "smollm2-135m.json"
    plan = Plan.load(plan_path)
    layers, neurons = plan.tables["prior"].shape
    width = plan.tables["center"].shape[0]
    norms = Norms(
        input_norm=np.ones((layers, 2, width), np.float32),
        output_norm=np.ones((layers, width), np.float32),
        down_norm=np.ones((layers, neurons), np.float32),
    )
    tokenizer = load_tokenizer("smollm2-135m")
    (place / "text.jsonl").write_text(
        "".join(json.dumps({"body": f"Text {i} of ours.", "text": "Ours."}) + "\n" for i in range(9))
    )
    (place / "text").mkdir()
    (place / "text" / "a.txt").write_text("A few words of our own. " * 20)
    (place / "stimuli.csv").write_text('item,word,rt\n1,The,300\n1,"dog,",310\n1,ran.,\n2,It,290\n2,rained.,1\n')
    (place / "piqa").mkdir()
    piqa = {"goal": "To dry shoes,", "sol1": "use paper.", "sol2": "use soup.", "label": 0}
    (place / "piqa" / "a.jsonl").write_text("".join(json.dumps({**piqa, "id": i}) + "\n" for i in range(4)))
    (place / "coqa").mkdir()
    turn = [{"input_text": "Who?"}, {"input_text": "What?"}]
    coqa = {"story": "Tom has a kite.", "questions": turn, "answers": turn, "additional_answers": {"0": turn}}
    (place / "coqa" / "a.jsonl").write_text(json.dumps(coqa) + "\n")
    queue = {"jobs": 2, "cores": 1, "memory": "1GB"}
    (place / "queue.json").write_text(json.dumps(queue))
    wanted = {"schema": EVALUATION_SCHEMA, "seed": 0, "method": "dense"}
    kept = {"sparse_tokens": 0, "computed_tokens": 0.0, "items": {"0": {"acc": 1.0}, "1": {"acc": 0.0}}}
    (place / "scores.json").write_text(json.dumps({**wanted, **kept}))
    (place / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") * 2)
    (place / "model").mkdir()
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 9}
    (place / "model" / "config.json").write_text(json.dumps(config))

    def use_norms() -> None:
        similarity(Study(folder), "jaccard")
        for path in folder.glob("panel*jaccard*"):
            path.unlink()

    def use_plan() -> None:
        found = Plan.load(plan_path)
        found.check_model(revision, layers)
        for setting in found.settings[:3]:
            make_policy(setting.method, norms, found, setting.shares)

    def use_fit() -> None:
        fit = Study(folder).fit("cka")
        fit.table("text")
        summary_sentences(fit, vocab_size=49152)

    human = place / "human"
    human.mkdir()
    drawn = random.Random(0)
    vocabulary = [word for word in WORDS.split() for _ in range(2)]
    sentences = [[drawn.choice(vocabulary) for _ in range(9)] for _ in range(40)]
    rows = [
        (f"ucl_{i:03d}", j, word, 200 + 12 * len(word) + drawn.gauss(0, 9), 300 + 12 * len(word) + drawn.gauss(0, 9))
        for i, words in enumerate(sentences, 1)
        for j, word in enumerate(words, 1)
    ]
    times = pd.DataFrame(rows, columns=["text_id", "word_index", "word", "gaze_ms", "go_past_ms"])
    times.to_csv(human / "ucl_et.tsv", sep="\t", index=False)
    names = {"gaze_ms": "gaze_mean0_ms", "go_past_ms": "total_mean0_ms"}
    times.rename(columns=names).assign(first_fix_mean0_ms=times["gaze_ms"]).to_csv(
        human / "meco_en.tsv", sep="\t", index=False
    )
    texts = [json.dumps({"text_id": f"ucl_{i:03d}", "text": " ".join(words)}) for i, words in enumerate(sentences, 1)]
    (human / "meco_en_text.jsonl").write_text("\n".join(texts))
    items = [(f"i{i}", "HC", words[-1], " ".join(words), 800.0 + i, 90.0, 50) for i, words in enumerate(sentences * 3)]
    columns = ["text_id", "condition", "critical_word", "sentence_upto_target", "rt_sum3_mean_ms", "rt_sum3_sd_ms", "n"]
    pd.DataFrame(items, columns=columns).to_csv(human / "brothers2021.tsv", sep="\t", index=False)
    raw = times.assign(subj_nr=1, sent_nr=times["text_id"].str[-3:].astype(int))
    raw = raw.rename(columns={"word_index": "word_pos", "gaze_ms": "RTfirstpass", "go_past_ms": "RTgopast"})
    raw.drop(columns="text_id").to_csv(human / "eyetracking.RT.txt", sep="\t", index=False)
    shutil.copytree(FIGURES / "studies" / "human" / "smollm2-135m", place / "found")

    def use_results() -> None:
        table = effect_table(place / "found")
        show(table, "text")
        verdicts(table)

    def use_scores() -> None:
        scores = Scores(place / "scores.json", wanted, [{}, {}], None, 0)
        if not scores.missing:
            scores.result()

    controls(Study(folder))
    part = part_path(Study(folder), 0)
    activations = folder / "activations"
    return {
        "study.json": Target(folder / "study.json", lambda: extract(Study(folder)), altered),
        "corpus": Target(folder / "corpus.parquet", lambda: extract(Study(folder)), damaged),
        "part": Target(part, lambda: read_part(part, identity, ids), damaged),
        "index": Target(activations / "index.parquet", lambda: similarity(Study(folder), "cosine"), damaged),
        "norms": Target(activations / "down_norms.safetensors", use_norms, damaged),
        "panel": Target(folder / "panel-cka.parquet", lambda: regress(Study(folder), "cka"), damaged),
        "fit": Target(folder / "fits" / "cka.json", use_fit, altered),
        "controls": Target(folder / "controls.parquet", lambda: controls(Study(folder)), damaged),
        "coefficients": Target(
            folder / "coefficients.json",
            lambda: resolve_coefficients(folder / "coefficients.json").factors(),
            altered,
        ),
        "plan": Target(plan_path, use_plan, altered),
        "plan tables": Target(plan_path.with_suffix(".safetensors"), use_plan, damaged),
        "jsonl corpus": Target(
            place / "text.jsonl", lambda: load_documents(f"jsonl:{place / 'text.jsonl'}:body"), altered
        ),
        "text corpus": Target(place / "text" / "a.txt", lambda: load_documents(f"text:{place / 'text'}"), damaged),
        "jsonl text": Target(
            place / "text.jsonl",
            lambda: read_windows(f"jsonl:{place / 'text.jsonl'}:body", tokenizer, revision, 8, 2),
            altered,
        ),
        "plain text": Target(
            place / "text" / "a.txt",
            lambda: read_windows(str(place / "text" / "a.txt"), tokenizer, revision, 8, 2),
            damaged,
        ),
        "study text": Target(
            folder / "corpus.parquet", lambda: read_windows(str(folder), tokenizer, revision, 8, 2), damaged
        ),
        "choices": Target(place / "piqa" / "a.jsonl", lambda: read_documents("piqa", place), altered),
        "conversations": Target(place / "coqa" / "a.jsonl", lambda: read_documents("coqa", place), altered),
        "queue": Target(place / "queue.json", lambda: read_queue("slurm", str(place / "queue.json")), altered),
        "scores": Target(place / "scores.json", use_scores, altered),
        "gguf": Target(place / "model.gguf", lambda: load_config(str(place / "model.gguf")), damaged),
        "config": Target(place / "model" / "config.json", lambda: load_config(str(place / "model")), altered),
        "reading times": Target(human / "ucl_et.tsv", lambda: open_corpus("ucl_et", human), damaged),
        "running texts": Target(human / "meco_en_text.jsonl", lambda: open_corpus("meco_en", human), altered),
        "words": Target(place / "text.jsonl", lambda: read_texts(place / "text.jsonl", language()), altered),
        "stimuli": Target(
            place / "stimuli.csv",
            lambda: table_texts(read_table(place / "stimuli.csv"), "stimuli.csv", language(), by=("item",)),
            damaged,
        ),
        "items": Target(human / "brothers2021.tsv", lambda: open_corpus("brothers2021", human), damaged),
        "published": Target(human / "eyetracking.RT.txt", lambda: read_trials(SOURCES["ucl_et"], human), damaged),
        "human": Target(place / "found" / "provo.json", use_results, altered),
        "options": Options(folder, place),
    }


def main() -> None:
    """Break, read, count, print what is not right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True, help="a small study on which `run` and `regress --robust` are done")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--only", help="one kind of file")
    parser.add_argument("--trace", action="store_true", help="print the traceback of a finding")
    args = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    findings: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        kinds = targets(Study(args.study), Path(place))
        names = [args.only] if args.only else list(kinds)
        for number in tqdm(range(args.files), unit="file", file=sys.stderr):
            name, seed = names[number % len(names)], args.seed + number // len(names)
            target = kinds[name]
            target.spoil(random.Random(f"{name} {seed}"))
            outcome = "result"
            try:
                with warnings.catch_warnings(), redirect_stderr(StringIO()):
                    warnings.simplefilter("ignore")
                    target.read()
            except CladaError as mistake:
                outcome = "refused" if "\n" not in str(mistake) else "refused in several lines"
            except BaseException as problem:
                if isinstance(problem, OSError) and problem.errno in PATH_ERRORS:  # a command says it in one line
                    counts.setdefault(name, Counter())["refused"] += 1
                    continue
                last = traceback.extract_tb(problem.__traceback__)[-1]
                outcome = type(problem).__name__
                where = f"{Path(last.filename).name}:{last.lineno}"
                key = f"{name}: {outcome} at {where}"
                if key not in findings:
                    findings[key] = f"--only '{name}' --seed {seed} --files 1"
                    print(f"{key}: {str(problem)[:200]!r} ({findings[key]})")
                    if args.trace:
                        traceback.print_exc()
            finally:
                target.mend()
            counts.setdefault(name, Counter())[outcome] += 1
    total = {"files": args.files, "seed": args.seed, "outcomes": counts, "findings": findings}
    if not args.only:
        (RESULTS / "fuzz.json").write_text(json.dumps(total, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"files": args.files, "findings": len(findings)}))


if __name__ == "__main__":
    main()
