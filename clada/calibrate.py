"""`clada calibrate`: what each method may leave out of a model within a loss budget (Eq. 10).

Two parts of a text, neither of which sees the other:

1. Tables: per layer, quantiles of what the methods test (magnitudes, gates, inputs), and the statistics they weigh
   tests with. A share to drop then names a threshold in every layer.
2. The search: the share grows step by step as long as the loss stays within three quarters of the budget, the rest
   being for other texts: the rise of perplexity over the dense model, its upper 95 % bound, on held windows, decoded
   by the engine's own steps with the load rule active. Steps are fixed beforehand and the first failure ends the
   search (fixed-sequence testing), so the bound of the chosen step holds although several were tried on the same text.

Thresholds are judged by the model's output alone. Giving every layer the same error of its own is ruinous: a few
massive activations own it.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for torch
    from clada.cli import main as cli

    raise SystemExit(cli(["calibrate", *sys.argv[1:]]))

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.activations import ACT2FN

from clada.coefficients import Coefficients, resolve_coefficients, to_json
from clada.decoder import Decoder
from clada.dejavu import TABLES, train
from clada.errors import InputError
from clada.families import anatomy, check_length
from clada.load import surprisal_and_entropy_bits
from clada.loss import Loss, Scorer
from clada.models import load_model, model_revision
from clada.paths import check_target
from clada.plan import BUDGET, GRID, Plan, Setting, Shares, cached_plan_path
from clada.policies import (
    METHODS,
    Policy,
    basis_of,
    check_method,
    layout_of,
    make_policy,
    shares_of,
)
from clada.texts import read_windows
from clada.threads import available_cores, set_threads
from clada.weights import norms_of, pack

WINDOW = 512  # tokens: a prompt, then as many again
PROMPT = 256
TABLE_WINDOWS = 24
DIVERGENCE_WINDOWS = 16
SCORED_WINDOWS = 64  # 16,384 tokens, so that a 2 % budget stands well above its own uncertainty
SAMPLED = 512  # tokens for quantiles: 800,000 magnitudes a layer on the smallest model
# Shares that are tested, one after the other; below the first little is saved.
SHARES = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
# Of the summed magnitude: the smallest tenth of it is most neurons.
FINER_SHARES = {"top-p": (0.01, 0.02, 0.03, 0.04, 0.05, 0.07)}
SCREEN_PART = 2 / 3  # of the directions of the head's input are kept for the screen: memory, not bytes read
DTYPE = "bfloat16"  # thresholds and losses hardly depend on it
# Of a budget, what the bound may take on the calibration's text: on XSum the shipped plans lost 1.1 to 2 times as much.
CAREFUL = 0.75
# Bytes. On some machines three fifths of rows that are shorter take as long to read as all; see
# benchmarks/selection-log.md.
SHORT_ROW = 1024
LOAD_QUANTILES = tuple(round(0.05 * i, 2) for i in range(1, 20))


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
        check_method(method)
    if args.out:
        if Path(args.out).suffix != ".json":
            raise InputError(f"--out {args.out} has not the ending .json, beside which the tables lie; name it so")
        check_target(Path(args.out))
    model, tokenizer = load_model(args.model)
    check_length(model.config, WINDOW, "calibrate a model with more positions")
    set_threads(args.threads or available_cores())
    needed = TABLE_WINDOWS + SCORED_WINDOWS
    windows, text_sha256 = read_windows(args.text, tokenizer, model_revision(args.model), WINDOW, needed)
    coefficients = resolve_coefficients(args.coefficients, args.model)
    out = Path(args.out) if args.out else cached_plan_path(model_revision(args.model))
    plan = _begun(out, args.model, text_sha256)
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
    for method, dtype in [(m, dtype) for m in methods if m in METHODS for dtype in _dtypes(m, model.config)]:
        if not _searched(plan, method, dtype, budgets, coefficients):
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


def _searched(plan: Plan, method: str, dtype: str, budgets: Sequence[float], coefficients: Coefficients) -> bool:
    """Whether an earlier run of the same versions, perhaps interrupted later, found all of this."""
    rule = to_json(coefficients.with_quantiles(plan.quantiles))
    found = {s.max_loss for s in plan.settings if (s.method, s.dtype, s.coefficients) == (method, dtype, rule)}
    return set(budgets) <= found and plan.provenance.get("packages") == _packages()


def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("clada", "torch", "transformers")}


def _dtypes(method: str, config: Any) -> list[str]:
    """Precisions that need a setting of their own: others have the first one's."""
    return [DTYPE, *(["int8"] if method == "clada" and _words_alone(config, "int8") else [])]


def _words_alone(config: Any, dtype: str) -> bool:
    """Whether leaving out neurons saves too little: a row of the down-projection, a byte an element, is short."""
    return dtype == "int8" and config.hidden_size < SHORT_ROW


def _begun(path: Path, model: str, text_sha256: str) -> Plan | None:
    """The plan that an earlier run on the same text left, whose tables and methods are kept."""
    if not path.is_file():
        return None
    try:
        plan = Plan.load(path)
    except InputError:
        return None  # another version's, or half a plan: made anew
    same = plan.revision == model_revision(model) and plan.provenance.get("text_sha256") == text_sha256
    return plan if same else None


@torch.inference_mode()
def tabulate(model: Any, name: str, windows: Sequence[Sequence[int]], provenance: dict[str, Any]) -> Plan:
    """Statistics of a text that thresholds are looked up in; a plan without settings.

    Args:
        model: a transformers model in float32.
        name: what it is called.
        windows: token ids.
        provenance: of the text.

    Returns:
        a plan whose tables are, for L layers, N neurons, Q inputs of the output projection and H inputs of the others:
        quantiles [L, G] at the shares `GRID` of `magnitude` |h_i| ||w_down_i|| (Eq. 9), `magnitude_plain` |h_i|,
        `gate` |act(gate_i)| gate_weight_i, `activation` |act(gate_i)|, `output`, `attention_input` and `mlp_input`
        |x_j| ||w_j|| and the same `_plain` without the norm, and of `screen` [1, G]; `gate_weight` [L, N] E|up_i|
        ||w_down_i||; `prior` [L, N], root mean square magnitudes; `basis` and `center` of the output head's screen.
    """
    parts = anatomy(model)
    weights = norms_of(parts)
    activation, sample = ACT2FN[parts.activation], np.random.default_rng(0)
    n = len(parts.layers)
    per_window = math.ceil(SAMPLED / len(windows))
    rows: dict[tuple[str, int], list[torch.Tensor]] = {}
    squares, count = torch.zeros(n, weights.down_norm.shape[1], dtype=torch.float64), 0
    inputs: list[torch.Tensor] = []
    chosen = torch.zeros(0, dtype=torch.int64)

    def keep(kind: str, layer: int, x: torch.Tensor) -> None:
        rows.setdefault((kind, layer), []).append(x.reshape(-1, x.shape[-1])[chosen].abs())

    def taken(kind: str, layer: int, *, output: bool = False, act: bool = False) -> Any:
        def hook(_module: Any, args: tuple[torch.Tensor, ...], result: torch.Tensor | None = None) -> None:
            x = result if output and result is not None else args[0]
            if kind == "h":
                squares[layer] += x.reshape(-1, x.shape[-1]).double().square().sum(0)
            keep(kind, layer, activation(x) if act else x)

        return hook

    handles = []
    for i, layer in enumerate(parts.layers):
        handles += [
            layer.qkv[0].register_forward_pre_hook(taken("attention_input", i)),
            layer.output.register_forward_pre_hook(taken("output", i)),
            layer.up.register_forward_pre_hook(taken("mlp_input", i)),
            layer.down.register_forward_pre_hook(taken("h", i)),
        ]
        if layer.gate is not None:
            handles.append(layer.gate.register_forward_hook(taken("activation", i, output=True, act=True)))
            handles.append(layer.up.register_forward_hook(taken("up", i, output=True)))
    surprisal, entropy = [], []
    try:
        for window in tqdm(windows, unit="window", desc="tables", file=sys.stderr):
            ids = torch.tensor(window)
            chosen = torch.from_numpy(sample.choice(len(window) - 1, min(per_window, len(window) - 1), replace=False))
            hidden = parts.stack(ids[None, :-1], use_cache=False).last_hidden_state[0]
            inputs.append(hidden)
            count += len(hidden)
            logits = parts.head(hidden[chosen])
            if parts.final_softcap:
                logits = parts.final_softcap * torch.tanh(logits / parts.final_softcap)
            s, h = surprisal_and_entropy_bits(logits, ids[1:][chosen])
            surprisal.append(s.numpy())
            entropy.append(h.numpy())
    finally:
        for handle in handles:
            handle.remove()

    tables: dict[str, np.ndarray] = {}

    def put(name: str, values: list[np.ndarray]) -> None:
        tables[name] = np.stack([np.quantile(v, GRID) for v in values]).astype(np.float32)

    def both(name: str, kind: str, norms: np.ndarray) -> None:
        values = [torch.cat(rows.pop((kind, i))).numpy() for i in range(n)]
        put(f"{name}_plain", values)
        put(name, [v * norm for v, norm in zip(values, norms, strict=True)])

    gate_weight = np.ones_like(weights.down_norm)
    if parts.layers[0].gate is not None:
        for i in range(n):
            gate_weight[i] = weights.down_norm[i] * torch.cat(rows.pop(("up", i))).mean(0).numpy()
        gates = [torch.cat(rows.pop(("activation", i))).numpy() for i in range(n)]
        put("activation", gates)
        put("gate", [v * weight for v, weight in zip(gates, gate_weight, strict=True)])
    else:  # the only test there is comes after the only product there is
        tables["activation"] = tables["gate"] = np.zeros((n, len(GRID)), np.float32)
    both("magnitude", "h", weights.down_norm)
    both("output", "output", weights.output_norm)
    both("attention_input", "attention_input", weights.input_norm[:, 0])
    both("mlp_input", "mlp_input", weights.input_norm[:, 1])
    tables["gate_weight"] = gate_weight
    tables["prior"] = ((squares / count).sqrt().numpy() * weights.down_norm).astype(np.float32)

    x = torch.cat(inputs)
    center = x.mean(0)
    width = x.shape[1]
    # Principal directions of the head's input: few of them make most of what differs between words.
    directions = torch.linalg.eigh((x - center).t().double() @ (x - center).double())[1].flip(1).t()
    tables["basis"] = directions[: int(width * SCREEN_PART)].float().numpy()
    tables["center"] = center.numpy()
    head = parts.head.weight.detach()
    terms = torch.from_numpy(tables["basis"])
    size = (terms @ (head - head.mean(0)).t()).norm(dim=1)
    put("screen", [(((x - center) @ terms.t()).abs() * size).numpy()])

    loads = np.stack([np.concatenate(surprisal), np.concatenate(entropy)])
    names = ("surprisal_bits", "entropy_bits")
    quantiles = {str(q): dict(zip(names, np.quantile(loads, q, axis=1).tolist(), strict=True)) for q in LOAD_QUANTILES}
    provenance = {**provenance, "window": WINDOW, "packages": _packages()}
    return Plan(name, model_revision(name), (), quantiles, tables, provenance)


def search(
    model: Any,
    plan: Plan,
    method: str,
    windows: Sequence[Sequence[int]],
    budgets: Sequence[float],
    coefficients: Coefficients,
    dtype: str = DTYPE,
) -> Plan:
    """Find what a method may leave out within each budget.

    Args:
        model: a transformers model in float32.
        plan: its tables.
        method: of `clada.policies.METHODS`.
        windows: token ids, scored.
        budgets: rises of perplexity allowed, as shares, ascending.
        coefficients: the load rule, active while searching.
        dtype: precision to measure at.

    Returns:
        the plan with this method's settings, those of the same method, precision and budgets replaced.
    """
    coefficients = coefficients.with_quantiles(plan.quantiles)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    words_alone = _words_alone(model.config, dtype)
    family = shares_of(method, 0.5, vocabulary, words_alone)
    weights = pack(model, dtype, basis_of(plan, family), layout=layout_of(method))
    decoder = Decoder(weights, torch.get_num_threads())

    def policy(shares: Shares) -> Policy:
        return make_policy(method, weights, plan, shares, coefficients)

    dense = make_policy("dense", weights, None, Shares())
    with tqdm(desc=f"calibrate {method} {dtype}", unit="batch", file=sys.stderr) as progress:

        def scorer(part: Sequence[Sequence[int]]) -> Scorer:
            return Scorer(decoder, part, PROMPT, dense, policy(family).statistics, progress.update)

        held = scorer(windows)
        held_dense = held.score(dense)
        best: dict[float, tuple[Shares, Loss]] = {budget: (Shares(), held_dense) for budget in budgets}
        open_budgets = list(budgets)
        for dropped in (*FINER_SHARES.get(method, ()), *SHARES):
            shares = shares_of(method, dropped, vocabulary, words_alone)
            loss = held.score(policy(shares))
            rise, _, upper = loss.rise(held_dense)
            progress.set_postfix_str(f"{dropped:.0%} dropped: {rise:+.2%}, bound {upper:+.2%}")
            open_budgets = [budget for budget in open_budgets if upper <= CAREFUL * budget]
            best.update(dict.fromkeys(open_budgets, (shares, loss)))
            if not open_budgets:
                break

        # The divergence from the model that leaves nothing out; it varies far less than the loss, so that a part of
        # the windows is enough for what needs the dense model's every distribution beside the method's own.
        chosen = list(dict.fromkeys(shares for shares, _ in best.values()))
        part = scorer(windows[:DIVERGENCE_WINDOWS])
        diverged = dict(zip(chosen, part.score_all([policy(shares) for shares in chosen], dense), strict=True))
    found = []
    for budget, (shares, loss) in best.items():
        rise, _, upper = loss.rise(held_dense)
        kl = diverged[shares].kl
        measured = {
            "ppl_rise": rise,
            "ppl_rise_upper": upper,
            "kl_to_dense": 0.0 if kl is None else float(kl.mean()),
            "dense_perplexity": float(np.exp(held_dense.nll.mean())),
            "scored_tokens": loss.tokens,
            "active_fraction": loss.active,
        }
        found.append(Setting(method, budget, shares, measured, to_json(policy(shares).coefficients), dtype))

    def key(setting: Setting) -> tuple[str, str, float]:
        return setting.method, setting.dtype, setting.max_loss

    kept = [s for s in plan.settings if key(s) not in map(key, found)]
    return replace(plan, settings=tuple(sorted([*kept, *found], key=key)))
