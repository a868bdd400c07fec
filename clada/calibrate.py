"""`clada calibrate`: what each method may leave out of a model within a loss budget (Eq. 10).

Two parts of a text, neither of which sees the other: one for the tables that thresholds are looked up in
(`clada.measure.tables`), one for the search of what may be left out (`clada.measure.search`).
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from clada.cli import main as cli

    raise SystemExit(cli(["calibrate", *sys.argv[1:]]))

import argparse
from collections.abc import Sequence
from pathlib import Path

from clada.errors import InputError
from clada.measure.search import dtypes_of, search
from clada.measure.tables import WINDOW, package_versions, tabulate
from clada.measure.texts import read_windows
from clada.methods.coefficients import Coefficients, coefficients_for, to_json
from clada.methods.dejavu import TABLES, train
from clada.methods.plan import BUDGET, Plan, cached_plan_path
from clada.methods.registry import METHODS, check_leaves_out
from clada.models.architectures import check_length
from clada.models.open import load_model, model_revision
from clada.system.files import check_target
from clada.system.machine import available_cores, set_threads

TABLE_WINDOWS = 24

SCORED_WINDOWS = 64  # 16,384 tokens, so that a 2 % budget stands well above its own uncertainty


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    budgets = sorted(set(args.max_loss or [BUDGET]))
    for budget in budgets:
        if not 0 < budget < 1:
            raise InputError(f"--max-loss {budget} is outside (0, 1); 0.02 allows perplexity to rise by 2 %")
    methods = args.methods or ["clada"]
    for method in methods:
        check_leaves_out(method)
    if args.out:
        if Path(args.out).suffix != ".json":
            raise InputError(f"--out {args.out} has not the ending .json, beside which the tables lie; name it so")
        check_target(Path(args.out))
    model, tokenizer = load_model(args.model)
    check_length(model.config, WINDOW, "calibrate a model with more positions")
    set_threads(args.threads or available_cores())
    needed = TABLE_WINDOWS + SCORED_WINDOWS
    windows, text_sha256 = read_windows(args.text, tokenizer, model_revision(args.model), WINDOW, needed)
    coefficients = coefficients_for(args.coefficients, args.model)
    out = Path(args.out) if args.out else cached_plan_path(model_revision(args.model))
    plan = _earlier_plan(out, args.model, text_sha256)
    if plan is None:
        if not args.out and "clada" not in methods:
            raise InputError(
                f"a plan with {', '.join(methods)} alone would take the place of the one that clada decodes by; "
                f"use --methods {','.join(['clada', *methods])}, or --out FILE"
            )
        plan = tabulate(model, args.model, windows[:TABLE_WINDOWS], {"text_sha256": text_sha256})
    if "dejavu" in methods and TABLES[0] not in plan.tables:
        plan, right = train(model, plan, windows[TABLE_WINDOWS:], windows[:TABLE_WINDOWS])
        plan.save(out)
        print(f"clada: predictors find {right:.1%} of the needed half of the neurons; plan in {out}", file=sys.stderr)
    for method, dtype in [(m, dtype) for m in methods if m in METHODS for dtype in dtypes_of(m, model.config)]:
        if not _is_searched(plan, method, dtype, budgets, coefficients):
            plan = search(model, plan, method, windows[TABLE_WINDOWS:], budgets, coefficients, dtype)
            plan.save(out)  # after every search: what is found is kept, and `--methods` of the others adds them
        for setting in plan.settings:
            if (setting.method, setting.dtype) == (method, dtype) and setting.max_loss in budgets:
                print(
                    f"clada: {method} in {dtype} within {100 * setting.max_loss:g}%: perplexity "
                    f"{setting.loss['ppl_rise']:+.2%} (95 % bound {setting.loss['ppl_rise_upper']:+.2%}) on "
                    f"{setting.loss['scored_tokens']:,} tokens, {setting.loss['active_fraction']:.1%} of the neurons "
                    f"active; plan in {out}",
                    file=sys.stderr,
                )


def _is_searched(plan: Plan, method: str, dtype: str, budgets: Sequence[float], coefficients: Coefficients) -> bool:
    """Whether an earlier run of the same versions, perhaps interrupted later, found all of this."""
    rule = to_json(coefficients.with_quantiles(plan.quantiles))
    searched = {s.max_loss for s in plan.settings if (s.method, s.dtype, s.coefficients) == (method, dtype, rule)}
    return set(budgets) <= searched and plan.provenance.get("packages") == package_versions()


def _earlier_plan(path: Path, model: str, text_sha256: str) -> Plan | None:
    """The plan that an earlier run on the same text left, whose tables and methods are kept."""
    if not path.is_file():
        return None
    try:
        plan = Plan.load(path)
    except InputError:
        return None  # another version's, or half a plan: made anew
    same = plan.revision == model_revision(model) and plan.provenance.get("text_sha256") == text_sha256
    return plan if same else None
