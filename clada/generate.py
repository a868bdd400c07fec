"""`clada generate`: continue prompts; text on stdout as it comes, a line about speed and neurons on stderr."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help is instant
    from clada.cli import main as cli

    raise SystemExit(cli(["generate", *sys.argv[1:]]))

import argparse
import csv
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clada.engine import Engine, Step, check_logprobs
from clada.errors import CladaError, InputError
from clada.methods.coefficients import coefficients_for
from clada.methods.plan import Shares
from clada.methods.policy import LEAST_POSITIONS
from clada.sampling import Sampling, stop_strings
from clada.system.files import check_target, decode_text, read_text, replacing
from clada.system.jsonfile import json_line, text_records
from clada.trace.page import Trace, check_page


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    if args.plot:
        from clada.measure.plots import check_format, plot_load  # matplotlib takes a second to import

        check_format(Path(args.plot))
    for name in (args.metrics, args.plot):
        if name:
            check_target(Path(name))
    if args.html:
        check_page(Path(args.html))
    texts = read_prompts(args)
    coefficients = coefficients_for(args.coefficients, args.model)
    as_json = args.json or args.prompt_jsonl is not None
    options = _decode_options(args, as_json=as_json)
    engine = Engine.open(
        args.model,
        method=args.method,
        plan=args.plan,
        coefficients=coefficients,
        dtype=args.dtype,
        draft=args.draft,
        device=args.device,
        threads=args.threads,
        max_loss=args.max_loss,
        keep=args.keep,
        update_window=args.update_window,
        surprisal_quantile=args.surprisal_quantile,
        entropy_quantile=args.entropy_quantile,
    )
    prompts = _encode(engine, texts, args)
    results, seconds = [], 0.0
    for begin in range(0, len(prompts), args.batch_size):
        batch = prompts[begin : begin + args.batch_size]
        of_batch = generate(engine, batch, args.max_new_tokens, begin, stream=not as_json, **options)
        seconds += of_batch[0]["decode_s"]
        for result in of_batch:
            result = {"model": args.model, "dtype": args.dtype, **result}
            results.append(result)
            if as_json:
                print(json_line(result), flush=True)
    if args.metrics:
        write_metrics(results, Path(args.metrics))
    if args.html:
        end = "\n" if args.chat else ""  # where the template stands between prompt and answer
        prompted = [{**result, "prompt": text + end} for (_, text), result in zip(texts, results, strict=True)]
        Trace(*prompted).save(Path(args.html))
    if args.plot:
        rule = engine.policy.coefficients
        if args.update_window:  # thresholds move with the tokens
            rule = replace(rule, tau_surprisal_bits=None, tau_entropy_bits=None)
        plot_load(results, rule, Path(args.plot))
    if not args.json:
        _say(engine, results, seconds)


def _decode_options(args: argparse.Namespace, *, as_json: bool) -> dict[str, Any]:
    """The options of `Engine.decode`, checked before a model is opened; `as_json`: whether the output has steps."""
    if args.logprobs and not as_json:
        raise InputError("--logprobs are part of the JSON output; add --json")
    check_logprobs(args.logprobs)
    stop_strings(args.stop, None)
    return {
        "sampling": Sampling(args.temperature, args.top_p, args.top_k, args.seed, args.min_p, args.repetition_penalty),
        "stop": args.stop,
        "logprobs": args.logprobs,
        "layers": args.html is not None,
    }


def generate(
    engine: Engine, prompts: list[list[int]], max_new_tokens: int, first: int = 0, *, stream: bool, **options: Any
) -> list[dict[str, Any]]:
    """Decode prompts side by side and time it; text of a single one goes to stdout as it comes if `stream`.

    Args:
        engine: decodes.
        prompts: token ids.
        max_new_tokens: at most so many each.
        first: number of the first prompt, see `Engine.decode`.
        stream: whether to print.
        options: others of `Engine.decode`.

    Returns:
        for each prompt the fields of `--json` but model and dtype; times are those of the whole batch, `decode_s` is
        one forward pass per new token, `tokens_per_s` counts the tokens of all its prompts.
    """
    begin = time.perf_counter()
    state = engine.prefill(prompts, max_new_tokens)
    prefilled = time.perf_counter()
    steps: list[list[Step]] = [[] for _ in prompts]
    for index, step in engine.decode(state, max_new_tokens, first=first, **options):
        steps[index].append(step)
        if stream:
            print(step.token, end="", flush=True)
    decode_s = time.perf_counter() - prefilled
    if stream:
        print()
    coefficients = engine.policy.coefficients
    return [
        {
            "text": "".join(step.token for step in of_prompt),
            "method": engine.method,
            "prompt_tokens": len(prompt),
            "new_tokens": len(of_prompt),
            "prefill_s": prefilled - begin,
            "decode_s": decode_s,
            "tokens_per_s": sum(map(len, steps)) / decode_s,
            "active_fraction": sum(step.active_fraction for step in of_prompt) / len(of_prompt),
            "lambda": coefficients.lambda_,
            "gamma": coefficients.gamma,
            "coefficients": coefficients.source,
            "plan_covers_coefficients": engine.measured,
            "steps": [_fields_of(step) for step in of_prompt],
        }
        for prompt, of_prompt in zip(prompts, steps, strict=True)
    ]


def _fields_of(step: Step) -> dict[str, Any]:
    """The fields of a step as JSON has them: the likeliest tokens by name, and nothing that was not asked for."""
    values = {name: value for name, value in asdict(step).items() if value is not None}
    del values["top"]
    return {**values, "top": [candidate._asdict() for candidate in step.top]} if step.top else values


def write_metrics(results: list[dict[str, Any]], path: Path) -> None:
    """Write a row per generated token as CSV: prompt (from 0), step (from 0), the single values of its step."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        names = [name for name in results[0]["steps"][0] if name not in ("top", "layer_shares")]
        writer = csv.DictWriter(file, ["prompt", "step", *names], extrasaction="ignore")
        writer.writeheader()
        for prompt, result in enumerate(results):
            writer.writerows({"prompt": prompt, "step": i, **step} for i, step in enumerate(result["steps"]))


def read_prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The prompts of the command line: (what a message about it begins with, text).

    Raises:
        InputError: a file cannot be read, or holds no prompts.
    """
    if args.prompt is not None:
        return [("", str(args.prompt))]
    if args.prompt_jsonl is None:
        return [(f"{args.prompt_file}: ", _read(args.prompt_file))]
    name = args.prompt_jsonl
    records = text_records(_read(name), name, args.field, "name the field with --field")
    if not records:
        raise InputError(f"{name} has no lines; give a JSON object a line")
    return [(f"{name}, line {number:,}: ", record[args.field]) for number, record in records]


def _encode(engine: Engine, texts: list[tuple[str, str]], args: argparse.Namespace) -> list[list[int]]:
    """Token ids of the prompts. One that cannot be used is refused by its line before the first is decoded."""
    prompts = []
    for place, text in texts:
        try:
            prompts.append(engine.encode(text, chat=args.chat))
            engine.check_lengths(prompts[-1:], args.max_new_tokens)
        except CladaError as problem:
            raise type(problem)(f"{place}{problem}") from None
    return prompts


def _read(name: str) -> str:
    return decode_text(sys.stdin.buffer.read(), "standard input") if name == "-" else read_text(name)


def _say(engine: Engine, results: list[dict[str, Any]], seconds: float) -> None:
    """A line about speed and neurons, others about what the plan's loss does not hold for; `seconds` of decoding."""
    steps = [step for result in results for step in result["steps"]]
    under_load = sum(step["load_surprisal"] or step["load_entropy"] for step in steps)
    first = results[0]
    prompts = (
        f"prompt of {first['prompt_tokens']} tokens, dense, in {first['prefill_s']:.1f} s"
        if len(results) == 1
        else f"{len(results)} prompts, dense"
    )
    print(
        f"clada: {len(steps)} tokens at {len(steps) / seconds:.1f} tokens/s, "
        f"{sum(step['active_fraction'] for step in steps) / len(steps):.1%} of the MLP neurons computed ({prompts})",
        file=sys.stderr,
    )
    coefficients = engine.policy.coefficients
    if engine.speculation is not None:
        counted = engine.speculation
        print(
            f"clada: {counted.accepted} of {counted.drafted} drafted tokens accepted in {counted.checks} checks; the "
            "text is the dense model's",
            file=sys.stderr,
        )
    elif engine.method != "dense":
        plan = "none"
        if engine.setting is not None:
            plan = f"for at most {100 * engine.setting.max_loss:g}% loss"
        elif engine.plan is not None:
            plan = "for a share of the neurons, its loss not measured"
        print(
            f"clada: lambda {coefficients.lambda_:+.3f}, gamma {coefficients.gamma:+.3f} from {coefficients.source}, "
            f"plan {plan}; {under_load} of {len(steps)} tokens under load",
            file=sys.stderr,
        )
    longest = max(result["prompt_tokens"] + result["new_tokens"] for result in results)
    if engine.setting is not None and engine.policy.shares.attention and longest > LEAST_POSITIONS:
        print(
            f"clada: from {LEAST_POSITIONS:,} tokens on, values of little weight are left out too, which the plan's "
            "loss, measured on shorter texts, does not include",
            file=sys.stderr,
        )
    if engine.setting is not None and engine.setting.shares == Shares():
        print(
            f"clada: calibration found nothing that {engine.method} may leave out within "
            f"{100 * engine.setting.max_loss:g}%, so everything was computed; --keep X computes a share X of the "
            "neurons",
            file=sys.stderr,
        )
    if coefficients.model not in (None, engine.name):
        print(
            f"clada: these coefficients were fitted on {coefficients.model}; what counts as high load there may not "
            "here",
            file=sys.stderr,
        )
    if engine.setting is not None and not engine.measured:
        print(
            "clada: the plan's loss was measured with another load rule, which can compute more neurons than this one; "
            f"'clada calibrate --model {engine.name} --text FILE --coefficients FILE' makes a plan for one",
            file=sys.stderr,
        )
