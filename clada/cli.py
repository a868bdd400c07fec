"""The `clada` command: only parses and calls; what a command does is in the module of its name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clada.commandline import Commands, positive_int, run


def _generate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file, verbatim; - is standard input"
    )
    parser.add_argument("--max-new-tokens", type=positive_int, default=128, metavar="N", help="default 128")
    parser.add_argument("--method", choices=("clada", "dense"), default="clada", help="default clada")
    _coefficients(parser)
    parser.add_argument(
        "--plan", metavar="FILE|none", help="base thresholds; default: the shipped or cached plan of the model"
    )
    parser.add_argument("--dtype", choices=("float32",), default="float32", help="precision of the weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample within this probability")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among so many tokens; 0: all")
    parser.add_argument("--seed", type=int, metavar="S", help="of the sampling")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of streaming text")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--text",
        required=True,
        metavar="FILE|STUDY",
        help="calibration text: a UTF-8 file, or a study folder (its natural sequences)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=0.02,
        metavar="X",
        help="budget: rise of perplexity over dense, as a share; default 0.02",
    )
    _coefficients(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="where the plan goes; default: the cache, where generate finds it"
    )


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="M",
        help="smollm2-135m (default), gemma3-270m, a folder, a GGUF file or a hub id",
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="default: all cores")


def _coefficients(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coefficients",
        metavar="FILE|paper|none",
        help="lambda and gamma; default: those of the newest study of the model, else none",
    )


COMMANDS: Commands = {
    "generate": ("continue a prompt, computing only the neurons each token needs", _generate),
    "calibrate": ("find the base thresholds of a model within a loss budget", _calibrate),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `clada` command; see `clada --help`."""
    return run(
        "clada", "Decode a language model by computing only the neurons a token needs.", COMMANDS, argv, resumes=False
    )
