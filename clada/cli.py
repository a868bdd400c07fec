"""The `clada` command: only parses and calls; what a command does is in the module of its name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clada.system.commandline import Commands, numbers, positive_int, run, thread_count, whole_number


def _generate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file, verbatim; - is standard input"
    )
    prompt.add_argument(
        "--prompt-jsonl", metavar="FILE", help="a prompt from every line, a JSON object; answers come as JSON lines"
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="of the JSON objects; default text")
    parser.add_argument(
        "--batch-size", type=positive_int, default=1, metavar="N", help="prompts decoded side by side; default 1"
    )
    parser.add_argument("--max-new-tokens", type=positive_int, default=128, metavar="N", help="default 128")
    parser.add_argument("--method", default="clada", metavar="M", help="default clada; docs/engine.md has the others")
    _coefficients(parser)
    _plan(parser)
    parser.add_argument("--max-loss", type=float, metavar="X", help="which of the plan's budgets; default 0.02")
    parser.add_argument("--keep", type=float, metavar="X", help="compute this share of the neurons, whatever the loss")
    parser.add_argument(
        "--update-window",
        type=positive_int,
        metavar="N",
        help="judge load by quantiles of the last N tokens; default: of the corpus",
    )
    for load in ("surprisal", "entropy"):
        parser.add_argument(
            f"--{load}-quantile",
            type=float,
            metavar="Q",
            help=f"{load} above this quantile of the calibration text is high load; default: as the coefficients say",
        )
    _dtype(parser)
    parser.add_argument(
        "--draft",
        metavar="DTYPE",
        help="for --method speculative: precision of the weights that draft, or text for the text so far alone; "
        "default: int8; int4 for weights in int8; text for weights in int4 or file",
    )
    _device(parser)
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample within this probability")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among so many tokens; 0: all")
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample among tokens this share as likely as the likeliest",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="of the sampling")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="above 1 makes tokens that were there before less likely; default: as the model's generation config says",
    )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text; can be given several times; default: as the model's generation config says",
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of streaming text")
    parser.add_argument(
        "--logprobs", type=whole_number, default=0, metavar="N", help="list the N likeliest tokens of each step in JSON"
    )
    parser.add_argument("--metrics", metavar="FILE", help="write a CSV row per generated token")
    parser.add_argument("--plot", metavar="FILE", help="draw surprisal and entropy with their load thresholds")
    parser.add_argument("--html", metavar="FILE", help="write a page of the text, its tokens shaded by what they cost")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--text",
        required=True,
        metavar="FILE|STUDY",
        help="calibration text: a UTF-8 file, jsonl:FILE:FIELD, or a study folder (its natural sequences)",
    )
    parser.add_argument(
        "--max-loss",
        type=numbers,
        metavar="X,...",
        help="budgets: rise of perplexity over dense, as a share; default 0.02",
    )
    parser.add_argument("--methods", type=_names, metavar="M,...", help="default clada")
    _coefficients(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="where the plan goes; default: the cache, where generate finds it"
    )


def _bench(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--text", required=True, metavar="FILE|STUDY", help="a UTF-8 file, jsonl:FILE:FIELD, or a study folder"
    )
    parser.add_argument("--methods", type=_names, metavar="M,...", help="beside dense; default clada")
    _dtype(parser)
    parser.add_argument("--prompt-tokens", type=positive_int, default=512, metavar="P", help="default 512")
    parser.add_argument("--new-tokens", type=positive_int, default=128, metavar="N", help="default 128")
    parser.add_argument("--repeats", type=positive_int, default=7, metavar="R", help="interleaved rounds; default 7")
    parser.add_argument(
        "--batch-size", type=positive_int, default=1, metavar="N", help="default 1; more without --peers"
    )
    parser.add_argument("--peers", type=_names, metavar="P,...", help="transformers, llama.cpp; default none")
    parser.add_argument(
        "--scored-tokens",
        type=whole_number,
        default=16_384,
        metavar="N",
        help="least for the loss, 0: speed only; default 16,384",
    )
    _coefficients(parser)
    _plan(parser)
    parser.add_argument("--max-loss", type=float, metavar="X", help="which of the plan's budgets; default 0.02")
    parser.add_argument("--keep", type=float, metavar="X", help="compute this share of the neurons, whatever the loss")
    parser.add_argument("--plot", metavar="FILE", help="draw speed against loss")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--methods", type=_names, metavar="M,...", help="beside dense; default clada")
    parser.add_argument("--tasks", type=_names, metavar="T,...", help="default: all known ones in DIR")
    parser.add_argument("--data", required=True, metavar="DIR", help="holds TASK/*.jsonl with the published fields")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="items of each task, at random; default all")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the items and the bootstrap; default 0")
    parser.add_argument(
        "--protocol",
        choices=("answer", "all"),
        default="answer",
        help="sparse from the prompt's last token on (default), or at every token",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    _device(parser)
    _coefficients(parser)
    _plan(parser)
    parser.add_argument("--max-loss", type=float, metavar="X", help="which of the plan's budgets; default 0.02")
    parser.add_argument("--keep", type=float, metavar="X", help="compute this share of the neurons, whatever the loss")
    parser.add_argument("--speed", action="store_true", help="time the methods too, beside dense in interleaved runs")
    parser.add_argument(
        "--out", default="evaluations", metavar="DIR", help="where results are kept; default evaluations"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--format", choices=("markdown", "latex", "csv", "json"), default="markdown", help="of the table"
    )
    output.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="M",
        help="smollm2-135m (default), gemma3-270m, a folder, a GGUF file or a hub id",
    )
    parser.add_argument("--threads", type=thread_count, metavar="N", help="default: all cores")


def _coefficients(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coefficients",
        metavar="FILE|paper|none",
        help="lambda and gamma; default: those of the newest study of the model, else none",
    )


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", metavar="FILE|none", help="what may be left out; default: the cached or shipped plan of the model"
    )


def _dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8", "int4", "file"),
        default="float32",
        help="precision of the weights, file: as the GGUF file has them; default float32",
    )


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


COMMANDS: Commands = {
    "generate": ("continue a prompt, computing only the neurons each token needs", _generate),
    "calibrate": ("find what may be left out of a model within a loss budget", _calibrate),
    "evaluate": ("task accuracy of methods against dense on the same items", _evaluate),
    "bench": ("compare speed and loss of methods, and the speed of other engines", _bench),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `clada` command; see `clada --help`."""
    return run(
        "clada",
        "Decode a language model by computing only the neurons a token needs.",
        COMMANDS,
        argv,
        resumes=("calibrate", "evaluate"),
    )
