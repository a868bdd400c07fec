"""Calibration: what it scores is what the engine computes, and the budget is kept."""

import argparse
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_kernels import basis_for
from tiny_models import tiny_model, tokens

from clada import calibrate as module
from clada.cpu.decoder import Decoder
from clada.cpu.pack import pack
from clada.engine import Engine
from clada.errors import InputError
from clada.measure import tables
from clada.measure.loss import Scorer
from clada.measure.search import dtypes_of, search
from clada.measure.tables import tabulate
from clada.measure.texts import read_windows
from clada.methods.coefficients import NONE, Coefficients
from clada.methods.plan import GRID, Plan, Shares
from clada.methods.policy import make_policy
from clada.methods.registry import shares_of
from clada.models.open import load_tokenizer

RULE = Coefficients(-0.6, 0.3, tau_surprisal_bits=9.0, tau_entropy_bits=3.0)


def windows_of(n, length=40):
    return [tokens(length, seed=100 + i) for i in range(n)]


@pytest.fixture
def small_search(monkeypatch):
    for place in (module, tables):
        monkeypatch.setattr(place, "WINDOW", 40)
    monkeypatch.setattr("clada.measure.search.PROMPT", 16)
    monkeypatch.setattr("clada.measure.tables.SAMPLED", 160)
    for place in (module, tables):
        monkeypatch.setattr(place, "model_revision", lambda _name: "sha256:tiny")


def test_a_plan_without_clada_never_takes_the_place_of_one_with_it(small_search, monkeypatch, tmp_path):
    """Unsaid, `clada generate` would refuse to run afterwards."""
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "load_model", lambda _name: (tiny_model("llama"), None))
    monkeypatch.setattr(module, "read_windows", lambda *_args: (windows_of(2), "0" * 64))
    args = argparse.Namespace(
        model="tiny", text="", methods=["tt"], max_loss=None, threads=1, coefficients="none", out=None
    )
    with pytest.raises(InputError, match="use --methods clada,tt, or --out FILE"):
        module.main(args)


def test_a_search_that_was_finished_is_not_done_again(small_search, monkeypatch, tmp_path, capsys):
    """An interrupted command goes on, another rule or budget is searched for, and what was found stays."""
    monkeypatch.setattr(module, "TABLE_WINDOWS", 2)
    monkeypatch.setattr(module, "SCORED_WINDOWS", 4)
    monkeypatch.setattr(module, "load_model", lambda _name: (tiny_model("llama"), None))
    monkeypatch.setattr(module, "read_windows", lambda *_args: (windows_of(6), "0" * 64))
    searched = []

    def noted(model, plan, method, windows, budgets, coefficients, dtype):
        searched.append((method, dtype))
        if len(searched) == 2:
            raise KeyboardInterrupt
        return search(model, plan, method, windows, budgets, coefficients, dtype)

    monkeypatch.setattr(module, "search", noted)
    args = argparse.Namespace(
        model="tiny", text="", methods=["clada"], max_loss=[0.5, 0.9], threads=1, coefficients="none",
        out=str(tmp_path / "plan.json"),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        module.main(args)
    module.main(args)
    assert searched == [("clada", "bfloat16"), ("clada", "int8"), ("clada", "int8")]
    assert capsys.readouterr().err.count("clada: clada in bfloat16 within 50%") == 2  # said again, not searched
    module.main(argparse.Namespace(**{**vars(args), "methods": ["tt"], "max_loss": [0.125]}))
    assert searched[3:] == [("tt", "bfloat16")]
    assert "clada: tt in bfloat16 within 12.5%" in capsys.readouterr().err
    module.main(argparse.Namespace(**{**vars(args), "coefficients": "paper"}))
    assert searched[4:] == [("clada", "bfloat16"), ("clada", "int8")]
    assert {(s.method, s.max_loss) for s in Plan.load(tmp_path / "plan.json").settings} == {
        ("clada", 0.5), ("clada", 0.9), ("tt", 0.125),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_tables_are_the_quantiles_of_what_torch_computes(family, small_search, monkeypatch):
    monkeypatch.setattr(tables, "SAMPLED", 10**6)  # every token
    model = tiny_model(family, seed=2)
    windows = windows_of(3)
    plan = tabulate(model, "tiny", windows, {})
    down = [module_ for name, module_ in model.named_modules() if name.endswith(("down_proj", "fc2"))]
    seen = [[] for _ in down]
    handles = [
        m.register_forward_pre_hook(lambda _m, args, i=i: seen[i].append(args[0].reshape(-1, 80)))
        for i, m in enumerate(down)
    ]
    surprisal = []
    for window in windows:
        ids = torch.tensor([window])
        logits = model(ids[:, :-1]).logits[0].double()
        surprisal.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none") / math.log(2))
    for handle in handles:
        handle.remove()
    for layer, m in enumerate(down):
        c = torch.cat(seen[layer]).abs() * m.weight.norm(dim=0)
        # The same values, sorted: float32 against float32.
        np.testing.assert_allclose(plan.tables["magnitude"][layer], np.quantile(c.numpy(), GRID), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(plan.tables["prior"][layer], c.square().mean(0).sqrt().numpy(), rtol=1e-4)
    expected = float(torch.cat(surprisal).quantile(0.7))
    assert plan.quantiles["0.7"]["surprisal_bits"] == pytest.approx(expected, rel=1e-4)  # float32 logits
    basis = plan.tables["basis"]
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)  # float32 rounding of unit rows


@pytest.mark.parametrize("rule", [RULE, NONE], ids=["by steps", "at once"])
def test_scored_loss_is_the_engines_token_by_token(rule, small_search, monkeypatch):
    """Windows side by side, teacher-forced, against the engine's steps one by one, under the same loads."""
    monkeypatch.setattr("clada.methods.policy.LEAST_POSITIONS", 8)  # so that the mean of all values is used
    model = tiny_model("llama", seed=5)
    plan = tabulate(model, "tiny", windows_of(4), {})
    shares = Shares(neurons=0.4, gate=0.2, output=0.2, prompt=0.1, attention=0.9)
    weights = pack(model, "float32")
    policy = make_policy("clada", weights, plan, shares, rule)
    windows, decoder = windows_of(3), Decoder(weights, 2)
    dense = make_policy("dense", weights, None, Shares())
    scorer = Scorer(decoder, windows, 16, dense, "magnitude")
    loss = scorer.score(policy, reference=dense)
    again = scorer.score(policy)
    assert np.array_equal(loss.nll, again.nll)
    nll, active, states = [], [], set()
    for window in windows:
        state = decoder.prefill([window[:16]], 24, dense.dense(1), "magnitude")
        needed = policy.needed(state.statistics)
        own = []
        for at, token in enumerate(window[16:], 16):
            outcome = state.outcome
            s = float(outcome.log_total[0] - outcome.logits[0, token]) / math.log(2)
            own.append(s * math.log(2))
            loads = rule.loads(s, float(outcome.entropy[0]) / math.log(2))
            states.add(loads)
            if at + 1 < len(window):
                decoder.step(state, [token], policy.selection([loads], needed))
                active.append(state.outcome.active[0] / weights.down_norm.size)
        nll.append(np.mean(own))
    assert (len(states) > 1) == (rule is RULE)
    # Sums of a batch and of one sequence run in another order; a magnitude may round across its threshold.
    np.testing.assert_allclose(loss.nll, nll, rtol=2e-3)
    assert loss.active == pytest.approx(np.mean(active), abs=0.005)
    assert 0.3 < loss.active < 0.75
    assert loss.kl is not None
    assert (loss.kl > 0).all()
    # Of the first batch of windows alone, here the only one; and of what scored before, nothing is left.
    (first,) = scorer.score_all([policy], dense, 1)
    assert np.array_equal(first.nll, loss.nll)
    assert np.array_equal(first.kl, loss.kl)


def test_layers_that_leave_nothing_out_run_once_for_all_policies(monkeypatch):
    weights = pack(tiny_model("llama", seed=5), "float32", basis_for(32))
    decoder, windows = Decoder(weights, 2), windows_of(10)
    dense = make_policy("dense", weights, None, Shares())
    words_alone = replace(dense, screen=0.5, shares=Shares(margin=2.0, attention=0.5, screen=0.5))
    read = []
    monkeypatch.setattr(Decoder, "read", lambda *given, to=Decoder.read: (read.append(given[3] is None), to(*given))[1])
    scorer = Scorer(decoder, windows, 16, dense)
    loss, whole = scorer.score_all([words_alone, dense], dense)
    assert read == [True, True]  # a batch of eight windows, and one of two
    assert (loss.kl > 0).all()
    assert np.abs(whole.kl).max() == 0
    assert not np.array_equal(loss.nll, whole.nll)
    alone = Scorer(decoder, windows, 16, dense).score(words_alone)
    assert np.array_equal(loss.nll, alone.nll)
    scorer.score(make_policy("dense", weights, None, Shares()))
    assert len(read) == 4
    scorer.score(replace(dense, magnitude=dense.magnitude + np.float32(1)))
    assert read[4:] == [False, False]


def test_the_dense_policy_loses_nothing_and_equals_transformers(small_search):
    model = tiny_model("qwen2", seed=1)
    weights = pack(model, "float32")
    dense = make_policy("dense", weights, None, Shares())
    windows = windows_of(2)
    loss = Scorer(Decoder(weights, 2), windows, 16, dense).score(dense, reference=dense)
    for window, nll in zip(windows, loss.nll, strict=True):
        ids = torch.tensor(window)
        expected = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, 15:-1], ids[16:])
        assert nll == pytest.approx(float(expected), rel=1e-4)  # float32, whole pass against steps
    assert loss.rise(loss) == (0, 0, 0)
    assert loss.active == 1
    assert np.abs(loss.kl).max() < 1e-5


@pytest.mark.parametrize("method", ["clada", "tt", "griffin", "wina"])
def test_budgets_are_kept_and_a_looser_one_never_keeps_more(method, small_search):
    model = tiny_model("llama", seed=3)
    plan = tabulate(model, "tiny", windows_of(4), {})
    budgets = [0.001, 0.05, 5.0]
    plan = search(model, plan, method, windows_of(8), budgets, NONE)
    found = [plan.setting(method, budget) for budget in budgets]
    for setting, budget in zip(found, budgets, strict=True):
        assert setting.loss["ppl_rise"] <= setting.loss["ppl_rise_upper"] <= budget
        assert setting.loss["scored_tokens"] == 8 * 24
    active = [setting.loss["active_fraction"] for setting in found]
    assert active == sorted(active, reverse=True)
    assert active[-1] < 1
    # The engine finds and uses what was stored.
    engine = Engine(model, None, method=method, plan=plan, coefficients="none", max_loss=5.0)
    assert engine.policy.shares == found[-1].shares
    assert engine.measured


def test_int8_of_short_rows_has_a_setting_of_its_own_that_computes_every_neuron(small_search):
    model = tiny_model("llama", seed=3)
    plan = tabulate(model, "tiny", windows_of(4), {})
    assert dtypes_of("clada", model.config) == ["bfloat16", "int8"]
    assert dtypes_of("clada-mlp", model.config) == dtypes_of("tt", model.config) == ["bfloat16"]
    assert dtypes_of("clada", SimpleNamespace(hidden_size=1024)) == ["bfloat16"]
    for dtype in ("bfloat16", "int8"):
        plan = search(model, plan, "clada", windows_of(8), [5.0], NONE, dtype)
    shares, words = (plan.setting("clada", 5.0, dtype).shares for dtype in ("bfloat16", "int8"))
    assert shares.neurons > 0
    assert (words.neurons, words.output) == (0, 0)
    assert words.margin < shares_of("clada", 0, 311).margin
    engine = Engine(model, None, plan=plan, coefficients="none", max_loss=5.0, dtype="int8")
    assert engine.policy.shares == words
    # A share to keep is of the neurons, also there.
    assert Engine(model, None, plan=plan, coefficients="none", keep=0.5, dtype="int8").policy.shares.neurons == 0.5


def test_a_budget_that_nothing_meets_leaves_nothing_out(small_search):
    model = tiny_model("llama", seed=3)
    plan = search(model, tabulate(model, "tiny", windows_of(4), {}), "clada", windows_of(6), [-0.99], NONE)
    assert plan.settings[0].shares == Shares()
    assert plan.settings[0].loss["ppl_rise"] == 0
    assert shares_of("clada", 0.5, 311).margin == pytest.approx(math.log(311 * 25) - 1.25)


SETTING = {
    "method": "clada", "max_loss": 0.02, "shares": {}, "loss": {}, "dtype": "bfloat16",
    "coefficients": {"lambda": 0, "gamma": 0, "tau_surprisal_bits": None, "tau_entropy_bits": None,
                     "tau_quantile": 0.7, "source": "none", "model": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("quantiles", {"0.7": 1.0}, ", quantiles[...]: expected object, got float"),
        ("quantiles", [], ", quantiles: expected object, got array"),
        ("quantiles", {"most": {"surprisal_bits": 1, "entropy_bits": 1}}, ", key in quantiles: expected str matching"),
        ("revision", None, ", revision: expected str, got null"),
        ("settings", [{}], ", settings[0]: object missing required field method"),
        ("settings", 3, ", settings: expected array, got int"),
        (
            "settings",
            [SETTING | {"shares": {"neurons": "0.5"}}],
            ", settings[0].shares.neurons: expected float, got str",
        ),
        ("settings", [SETTING | {"shares": {"neurons": 2}}], ": the share 'neurons' is 2.0; shares lie within 0 and 1"),
        ("settings", [SETTING | {"shares": {"neuron": 0.5}}], ": no share is called neuron"),
        (
            "settings",
            [SETTING | {"coefficients": {}}],
            ", settings[0].coefficients: object missing required field lambda",
        ),
        ("tables_sha256", "0", "smollm2-135m.safetensors does not belong to"),
    ],
)
def test_a_plan_with_anything_else_in_a_place_is_refused(tmp_path, name, value, message):
    shipped = Path(module.__file__).parent / "plans" / "smollm2-135m.json"
    for suffix in (".json", ".safetensors"):
        shutil.copy(shipped.with_suffix(suffix), tmp_path)
    path = tmp_path / shipped.name
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(InputError) as refusal:
        Plan.load(path)
    assert message in str(refusal.value)
    assert str(refusal.value).endswith("; make it again with 'clada calibrate'")
    assert "\n" not in str(refusal.value)


def test_a_text_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "study.json").write_text('{"revision": "r"}')
    (tmp_path / "corpus.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(InputError, match="cannot read text from") as refusal:
        read_windows(str(tmp_path), load_tokenizer("smollm2-135m"), "r", 8, 1)
    assert "\n" not in str(refusal.value)


def test_windows_longer_than_the_texts_read_at_once_are_filled(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps({"body": f"Article {i} says nothing."}) + "\n" for i in range(120)))
    tokenizer = load_tokenizer("smollm2-135m")
    whole = tokenizer("\n\n".join(f"Article {i} says nothing." for i in range(100)))["input_ids"]
    (window,), _ = read_windows(f"jsonl:{path}:body", tokenizer, "r", 600, 1)
    assert window[:350] == whole[:350]  # fifty texts hold about 400 tokens
    assert len(window) == 600
    with pytest.raises(InputError, match="gives 1 windows of 600 tokens, 2 needed"):
        read_windows(f"jsonl:{path}:body", tokenizer, "r", 600, 2)
