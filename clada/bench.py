"""`clada bench`: speed and loss of methods on the same work, and the dense engines beside them."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from clada.cli import main as cli

    raise SystemExit(cli(["bench", *sys.argv[1:]]))

import argparse
import math
import platform
from pathlib import Path
from typing import Any

from tabulate import tabulate

from clada.errors import InputError
from clada.measure.comparison import PEERS, prepare, result_row, score, time_all
from clada.measure.texts import read_windows
from clada.methods.coefficients import coefficients_for
from clada.methods.plan import resolve_plan
from clada.methods.registry import method_of, with_dense
from clada.models.architectures import check_length
from clada.models.open import load_model, model_revision
from clada.system.files import check_target
from clada.system.jsonfile import json_line
from clada.system.machine import available_cores, set_threads


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    methods = with_dense(args.methods)
    peers = args.peers or []
    for peer in peers:
        if peer not in PEERS:
            raise InputError(f"unknown peer '{peer}'; use {', '.join(PEERS)}")
    if peers and args.batch_size > 1:
        raise InputError("peers decode one sequence at a time; leave --peers or --batch-size out")
    if args.new_tokens < 2:
        raise InputError("--new-tokens 1 decodes nothing, the first comes from the prompt; give at least 2")
    if args.plot:
        from clada.measure.plots import check_format, plot_pareto  # matplotlib takes a second to import

        check_format(Path(args.plot))
        check_target(Path(args.plot))
        if not args.scored_tokens:
            raise InputError("--plot draws speed against loss, which --scored-tokens 0 leaves out; leave one out")
    model, tokenizer = load_model(args.model)
    check_length(model.config, args.prompt_tokens + args.new_tokens, "ask for fewer tokens")
    threads = args.threads or available_cores()
    set_threads(threads)
    revision = model_revision(args.model)
    planned = any(method_of(method).needs_plan for method in methods)
    plan = resolve_plan(args.plan, args.model, revision, args.max_loss) if planned else None
    if plan is not None:
        plan.check_model(revision, model.config.num_hidden_layers)
    coefficients = coefficients_for(args.coefficients, args.model)
    scored = math.ceil(args.scored_tokens / args.new_tokens)
    if scored == 1:
        raise InputError(
            f"--scored-tokens {args.scored_tokens} are one window, whose loss has no interval; give more than "
            f"{args.new_tokens}, or 0"
        )
    windows, _ = read_windows(
        args.text,
        tokenizer,
        revision,
        args.prompt_tokens + args.new_tokens,
        max(scored, args.repeats * args.batch_size),
    )
    del tokenizer

    entries = prepare(model, methods, plan, coefficients, args, threads)
    peer_rows, bandwidth = time_all(entries, windows, args, model, peers, threads)
    del model
    losses = score(entries, windows[:scored], args.prompt_tokens) if scored else {}
    result = {
        "machine": f"{platform.machine()} {platform.system()}, {threads} threads",
        "bandwidth_gb_s": bandwidth,
        "model": args.model,
        "dtype": args.dtype,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "batch_size": args.batch_size,
        "coefficients": coefficients.source,
        "plan": "none" if plan is None else f"{args.plan or plan.model} (sha256:{plan.digest()[:8]})",
        "rows": [result_row(entry, entries[0], bandwidth, losses, args.batch_size) for entry in entries],
        "peers": peer_rows,
    }
    print(json_line(result) if args.json else as_table(result), flush=True)
    if args.plot:
        plot_pareto(result, Path(args.plot))


def as_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [
            row["method"],
            f"{row['tokens_per_s']:.1f}",
            f"{row['ratio_to_dense']:.2f}",
            f"{row['mlp_bytes_fraction']:.0%}",
            f"{row['bytes_per_token'] / 1e6:.0f}",
            f"{row['bandwidth_fraction']:.0%}",
            *(
                [
                    f"{row['ppl_rise']:+.2%} [{row['ppl_rise_ci'][0]:+.2%}, {row['ppl_rise_ci'][1]:+.2%}]",
                    f"{row['kl_to_dense']:.4f}",
                    f"{row['active_fraction']:.0%}",
                ]
                if "ppl_rise" in row
                else ["", "", ""]
            ),
        ]
        for row in result["rows"]
    ]
    dense = result["rows"][0]["tokens_per_s"]
    for peer in result["peers"]:
        name = f"{peer['name']} {peer['version']} {peer['dtype']}"
        rows.append(
            [name, f"{peer['tokens_per_s']:.1f}", f"{peer['tokens_per_s'] / dense:.2f}", "", "", "", "", "", ""]
        )
    headers = [
        "method", "tokens/s", "to dense", "MLP bytes", "MB/token", "of bandwidth", "perplexity rise [95 %]", "KL",
        "neurons",
    ]  # fmt: skip
    return (
        f"{result['model']} in {result['dtype']}, prompt {result['prompt_tokens']}, {result['new_tokens']} new tokens, "
        f"batch {result['batch_size']}; {result['machine']}, {result['bandwidth_gb_s']:.1f} GB/s\n\n"
        + tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    )
