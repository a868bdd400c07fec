"""`clada generate`: continue a prompt; text on stdout as it comes, a line about speed and neurons on stderr."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for torch
    from clada.cli import main as cli

    raise SystemExit(cli(["generate", *sys.argv[1:]]))

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clada.engine import Engine, Sampling, Step
from clada.errors import InputError
from clada.models import load_model


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    prompt = _read_prompt(args)
    sampling = Sampling(args.temperature, args.top_p, args.top_k, args.seed)
    model, tokenizer = load_model(args.model, dtype=args.dtype, device=args.device)
    engine = Engine(
        model,
        tokenizer,
        method=args.method,
        plan=args.plan,
        coefficients=args.coefficients,
        dtype=args.dtype,
        threads=args.threads,
    )
    prompt_ids = engine.encode(prompt, chat=args.chat)
    result = generate(engine, prompt_ids, args.max_new_tokens, sampling, stream=not args.json)
    if args.json:
        print(json.dumps({"model": args.model, "dtype": args.dtype, **result}, ensure_ascii=False))
    else:
        _say(engine, result)


def generate(
    engine: Engine, prompt_ids: list[int], max_new_tokens: int, sampling: Sampling, *, stream: bool
) -> dict[str, Any]:
    """Decode a prompt and time it; text goes to stdout as it comes if `stream`.

    Returns:
        the fields of `--json` but model and dtype; `decode_s` is one forward pass per new token.
    """
    begin = time.perf_counter()
    state = engine.prefill(prompt_ids, max_new_tokens)
    prefilled = time.perf_counter()
    steps: list[Step] = []
    for step in engine.decode(state, max_new_tokens, sampling):
        steps.append(step)
        if stream:
            print(step.token, end="", flush=True)
    decode_s = time.perf_counter() - prefilled
    if stream:
        print()
    coefficients = engine.policy.coefficients
    return {
        "text": "".join(step.token for step in steps),
        "method": engine.method,
        "prompt_tokens": len(prompt_ids),
        "new_tokens": len(steps),
        "prefill_s": prefilled - begin,
        "decode_s": decode_s,
        "tokens_per_s": len(steps) / decode_s,
        "active_fraction": sum(step.active_fraction for step in steps) / len(steps),
        "lambda": coefficients.lambda_,
        "gamma": coefficients.gamma,
        "coefficients": coefficients.source,
        "plan_covers_coefficients": engine.plan is None or engine.plan.covers(coefficients),
        "steps": [asdict(step) for step in steps],
    }


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return str(args.prompt)
    try:
        content = sys.stdin.buffer.read() if args.prompt_file == "-" else Path(args.prompt_file).read_bytes()
        return content.decode("utf-8")
    except OSError as problem:
        raise InputError(f"cannot read {args.prompt_file}: {problem.strerror}; check the path") from None
    except UnicodeDecodeError as problem:
        raise InputError(
            f"{args.prompt_file} is not UTF-8 (byte {problem.start:,}); convert it, with iconv for instance"
        ) from None


def _say(engine: Engine, result: dict[str, Any]) -> None:
    under_load = sum(step["load_surprisal"] or step["load_entropy"] for step in result["steps"])
    print(
        f"clada: {result['new_tokens']} tokens at {result['tokens_per_s']:.1f} tokens/s, "
        f"{result['active_fraction']:.1%} of the MLP neurons computed "
        f"(prompt of {result['prompt_tokens']} tokens, dense, in {result['prefill_s']:.1f} s)",
        file=sys.stderr,
    )
    if engine.method == "clada":
        plan = "none" if engine.plan is None else f"for at most {engine.plan.max_loss:.0%} loss"
        print(
            f"clada: lambda {result['lambda']:+.3f}, gamma {result['gamma']:+.3f} from {result['coefficients']}, "
            f"plan {plan}; {under_load} of {result['new_tokens']} tokens under load",
            file=sys.stderr,
        )
    fitted_on = engine.policy.coefficients.model
    if fitted_on not in (None, engine.model.name_or_path):
        print(
            f"clada: these coefficients were fitted on {fitted_on}; what counts as high load there may not here",
            file=sys.stderr,
        )
    if not result["plan_covers_coefficients"]:
        print(
            "clada: the plan's loss was measured with coefficients that compute more neurons than these; "
            "'clada calibrate --coefficients FILE' makes a plan for them",
            file=sys.stderr,
        )
