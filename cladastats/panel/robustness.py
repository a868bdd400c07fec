"""Robustness of the panel regressions: the checks of the six-column table, each a function of one response.

`robustness` makes all of them for a study. Effects of the prefix are in response points per 1,000 tokens, as in the
table. Nothing here depends on a sign or on significance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.multitest import multipletests

from cladastats.panel.columns import complete_rows, varies_within
from cladastats.panel.contrasts import group_difference, ordered
from cladastats.panel.power import power
from cladastats.panel.strata import placebos, strata, trimmed_form
from cladastats.panel.within import (
    Within,
    bootstrap,
    clusters_of,
    pair_effects_summary,
    per_pair,
    permutation,
    summary_of,
    within_summary,
)
from cladastats.results.fit import COLUMNS, CONFIRMATORY, LOADS, RESPONSES, Fit
from cladastats.similarities.metrics import METRICS
from cladastats.study import Study

INDEPENDENT = "independent_surprisal_bits"
"""Column of the controls: surprisal of the target for another model."""

STATIC_CONTROLS = ("frequency_zipf", "target_length")
"""Controls that are properties of the pair's target."""


def confirmatory(fit: Fit) -> list[dict[str, Any]]:
    """The tests of the hypotheses (`CONFIRMATORY`), not corrected: their family is both of the paper's metrics.

    Args:
        fit: With columns 1, 2, 5 and 6, as far as its groups are there.

    Returns:
        A record per test: column, group, term, coef, p.
    """
    columns = {column.column: column for column in fit.columns}
    tests = [(columns[number], term) for number, term in CONFIRMATORY if number in columns]
    return [
        {
            "column": column.column,
            "group": column.group,
            "term": term,
            "coef": column.coef[term],
            "p": column.p[term],
        }
        for column, term in tests
    ]


def layers(panel: pd.DataFrame, outcome: str) -> list[dict[str, Any]]:
    """The table layer by layer: the prefix alone, and loads beside it, with Benjamini-Hochberg over the layers.

    Args:
        panel: `panel-layers-<metric>`.
        outcome: its column.

    Returns:
        a record per group, term and layer; layers whose response is missing, or constant within every pair but for
        rounding, are left out.
    """
    records: list[dict[str, Any]] = []
    # The prefix's total effect, and the loads' at equal prefix.
    models = ((("prefix_len",), ("prefix_len",)), (("prefix_len", *LOADS), LOADS))
    for group in ("rts", "nls"):
        for names, shown in models:
            fits: dict[int, dict[str, dict[str, Any]]] = {}
            for layer, rows in panel[panel["group"] == group].groupby("layer"):
                data, _ = complete_rows(rows, group, outcome, ("prefix_len", *LOADS))
                within = Within.of(data, outcome, names)
                if within.identified() and varies_within(data, outcome):
                    fits[int(layer)] = within_summary(within)
            for term in shown:
                corrected = multipletests([fit[term]["p"] for fit in fits.values()], method="fdr_bh")[1]
                for (layer, fit), p in zip(fits.items(), corrected, strict=True):
                    records.append({"group": group, "term": term, "layer": layer, **fit[term], "p_bh": float(p)})
    return records


def ratio_effects(data: pd.DataFrame, outcome: str) -> dict[str, dict[str, Any]]:
    """The loads' coefficients with an effect for every ratio in the place of the line in tokens.

    Where the response bends with the prefix and load does too, a line leaves the bend to the loads.

    Args:
        data: Complete rows of one group, indexed by pair and ratio, prefix in 1,000 tokens.
        outcome: Response column.

    Returns:
        Per load `coef`, `se`, `ci` and `p`.
    """
    place = data.index.get_level_values("ratio")
    steps = {f"ratio {r:g}": (place == r).astype(float) for r in np.unique(place)[1:]}
    coefficients = pair_effects_summary(data.assign(**steps), outcome, [*steps, *LOADS])
    return {name: coefficients[name] for name in LOADS}


def mixed(data: pd.DataFrame, outcome: str, names: Sequence[str]) -> dict[str, Any]:
    """Mixed model: a random intercept and prefix slope per pair, and the pair means of every regressor.

    With the means beside them, the regressors' coefficients are effects within pairs, and those of the means are what
    differs between pairs on top; a random slope lets pairs follow their prefix to different degrees.

    Args:
        data: Complete rows of one group, indexed by pair and ratio, prefix in 1,000 tokens.
        outcome: Response column.
        names: Regressors, `prefix_len` among them.

    Returns:
        `terms`: per regressor `coef`, `se`, `ci`, `p` (normal), and the same of the means; standard deviations of
        intercepts, slopes and residuals, whether it converged, and what statsmodels warned of. No terms where there is
        no fit at all.

    Source: Mundlak (1978), On the pooling of time series and cross section data.
    """
    scale = data.std()
    unit = data / scale  # of like size, which the optimiser needs
    means = unit[list(names)].groupby(level="pair").transform("mean")
    exog = unit[list(names)].assign(const=1.0)
    varying = [name for name in names if means[name].std() > 1e-9]  # the prefix's mean is the same in every whole pair
    exog = exog.join(means[varying].add_suffix("_mean"))
    slope = exog[["const", "prefix_len"]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = MixedLM(unit[outcome], exog, groups=data.index.get_level_values("pair"), exog_re=slope)
        try:
            result = model.fit(reml=True, method=["lbfgs", "powell"])
        except np.linalg.LinAlgError as problem:  # a few pairs may leave the likelihood without a maximum
            return {"terms": {}, "sd_slope": None, "converged": False, "warnings": [str(problem)]}
    ratio = {name: scale[outcome] / scale[name] for name in names} | {
        f"{name}_mean": scale[outcome] / scale[name] for name in varying
    }
    variances = np.diag(result.cov_re)
    return {
        "terms": _terms(result, result.bse, ratio),
        "sd_intercept": float(math.sqrt(variances[0]) * scale[outcome]),
        "sd_slope": float(math.sqrt(variances[1]) * ratio["prefix_len"]),
        "sd_residual": float(math.sqrt(result.scale) * scale[outcome]),
        "converged": bool(result.converged),
        "warnings": sorted({str(w.message).splitlines()[0] for w in caught}),
    }


def controlled(data: pd.DataFrame, outcome: str, extra: Sequence[str]) -> dict[str, Any]:
    """The full column with controls that vary within pairs, and the prefix's slope moderated by those that do not.

    Args:
        data: rows with the response and every control that varies within pairs; others may be missing.
        outcome: response column.
        extra: controls that vary within pairs.

    Returns:
        `with_controls`: coefficients and intervals; `moderators`: of prefix x (control - its mean), each by itself.
    """
    coefficients = {"with_controls": pair_effects_summary(data, outcome, ["prefix_len", *LOADS, *extra])}
    moderators = {}
    for name in STATIC_CONTROLS:
        rows = data.dropna(subset=[name])  # a target without a word has no frequency
        if rows[name].std() > 0 and len(rows) > rows.index.get_level_values("pair").nunique() + 2:
            term = f"prefix_len x {name}"
            product = rows["prefix_len"] * (rows[name] - rows[name].mean())
            moderators[term] = pair_effects_summary(rows.assign(**{term: product}), outcome, ["prefix_len", term])[term]
    return {**coefficients, "moderators": moderators}


def between(data: pd.DataFrame, outcome: str, names: Sequence[str]) -> dict[str, Any]:
    """Across pairs instead of within them: ordinary least squares on pair means, errors as within pairs.

    What the paper's reading of load needs, as load differs between texts far more than within a pair; but texts differ
    in much else.

    Args:
        data: Complete rows of one group, indexed by pair and ratio, prefix in 1,000 tokens.
        outcome: Response column.
        names: Regressors.

    Returns:
        Per regressor that differs between pairs `coef`, `se`, `ci` and `p`; empty with too few pairs.
    """
    means = data.assign(cluster=clusters_of(data)).groupby(level="pair").mean()
    names = [name for name in names if means[name].std() > 0]
    across = Within.across(means, outcome, names)
    df = len(means) - len(names) - 1
    if df < 2 or not across.identified():
        return {}
    return summary_of(names, *across.fit(), min(across.df, df))


def two_way_clusters(study: Study, data: dict[str, pd.DataFrame], outcome: str) -> dict[str, Any]:
    """Two-way clustering by the texts A and B where a text is in several pairs, as in a corpus made elsewhere.

    Args:
        study: A study with its corpus.
        data: Complete rows of each group, indexed by pair and ratio.
        outcome: Response column.

    Returns:
        `reused`: whether a text is in several pairs; if so, the coefficients of each group whose texts are enough.

    Source: Cameron, Gelbach and Miller (2011), Robust inference with multiway clustering.
    """
    corpus = study.corpus
    texts = corpus[corpus["role"].isin(["A", "B"])].pivot(index=["group", "pair"], columns="role", values="sequence_id")
    counts = texts.groupby("group").apply(lambda rows: pd.Series(rows.to_numpy().ravel()).duplicated().any())
    if not counts.any():
        return {"reused": False}
    coefficients: dict[str, Any] = {"reused": True}
    names = ["prefix_len", *LOADS]
    for group, rows in data.items():
        codes = texts.loc[group].reindex(rows.index.get_level_values("pair"))
        clusters = {role: pd.factorize(codes[role])[0] for role in ("A", "B")}
        clusters["both"] = pd.factorize(clusters["A"] * len(rows) + clusters["B"])[0]
        fits = {role: Within.of(rows.assign(cluster=of), outcome, names) for role, of in clusters.items()}
        if not all(within.identified() for within in fits.values()):
            continue
        coef, _ = fits["A"].fit()
        a, b, both = (np.diag(within.estimate()[1]) for within in fits.values())
        # Of fewer texts than rows: t with as many degrees of freedom as the rarer of both has texts, less one.
        coefficients[group] = summary_of(names, coef, np.sqrt(a + b - both), min(fits["A"].df, fits["B"].df))
    return coefficients


@dataclass(frozen=True)
class Checked:
    """What the checks of a study look at.

    Attributes:
        fit: The fit that is checked.
        outcome: Panel column of its response.
        panel: The fit's panel with the controls.
        rows: Complete rows of each group, indexed by pair and ratio, as the fit used them.
        controlled: The same with every control that varies within pairs; others are missing where a target has none.
        complete: Rows with every control.
        varying: Controls that vary within pairs.
        seed: The study's.
    """

    fit: Fit
    outcome: str
    panel: pd.DataFrame
    rows: dict[str, pd.DataFrame]
    controlled: dict[str, pd.DataFrame]
    complete: dict[str, pd.DataFrame]
    varying: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, study: Study, fit: Fit, controls: pd.DataFrame) -> Checked:
        """Join the panel of a study's fit with its controls."""
        outcome = RESPONSES[fit.response]
        extras = controls.drop(columns="independent_model")
        varying = ["previous_surprisal_norm"]
        if INDEPENDENT in extras:
            extras["independent_surprisal_norm"] = extras.pop(INDEPENDENT) / math.log2(study.config.vocab_size)
            varying.append("independent_surprisal_norm")
        panel = study.panel(fit.metric).merge(extras, on=["group", "pair", "ratio"])
        groups = dict.fromkeys(column.group for column in fit.columns)
        full = ("prefix_len", *LOADS)
        rows = {group: complete_rows(panel, group, outcome, full)[0] for group in groups}
        static = panel.set_index(["group", "pair", "ratio"])[list(STATIC_CONTROLS)]
        controlled_rows = {
            group: complete_rows(panel, group, outcome, (*full, *varying))[0].join(static.loc[group])
            for group in groups
        }
        every = (*full, *STATIC_CONTROLS, *varying)
        complete = {group: complete_rows(panel, group, outcome, every)[0] for group in groups}
        return cls(fit, outcome, panel, rows, controlled_rows, complete, tuple(varying), study.config.seed)

    def without_frequency(self) -> dict[str, bool]:
        """Notes on rows whose target has no word frequency, by group; False: to be said."""
        notes = {}
        for group, rows in self.controlled.items():
            lacking = len(rows) - len(self.complete[group])
            note = (
                f"{lacking} of {len(rows)} rows of {group.upper()} have no word frequency: left out between pairs and "
                "where it moderates the prefix"
            )
            notes[note] = lacking == 0
        return notes

    def bootstrap(self) -> dict[str, dict[str, Any]]:
        """The cluster bootstrap of every column."""
        intervals = {}
        for column in self.fit.columns:
            rng = np.random.default_rng([self.seed, 4, column.column])
            within = Within.of(self.rows[column.group], self.outcome, COLUMNS[column.column][1])
            intervals[str(column.column)] = bootstrap(within, rng)
        return intervals

    def group_checks(self) -> dict[str, dict[str, Any]]:
        """The checks of each group by itself: by check, then by group."""
        checks: dict[str, Callable[[str], Any]] = {
            "permutation": lambda group: permutation(
                self.rows[group], self.outcome, np.random.default_rng([self.seed, 5, group == "nls"])
            ),
            "per_pair": lambda group: per_pair(self.rows[group], self.outcome),
            "ordered": lambda group: ordered(self.rows[group], self.outcome),
            "ratio_effects": lambda group: ratio_effects(self.rows[group], self.outcome),
            "mixed": lambda group: mixed(self.rows[group], self.outcome, ["prefix_len", *LOADS]),
            "controls": lambda group: controlled(self.controlled[group], self.outcome, self.varying),
            "between": lambda group: between(
                self.complete[group], self.outcome, [*LOADS, *STATIC_CONTROLS, *self.varying]
            ),
        }
        return {name: {group: check(group) for group in self.rows} for name, check in checks.items()}


def robustness(
    study: Study,
    fit: Fit,
    controls: pd.DataFrame,
    trimmed: pd.DataFrame | None = None,
    placebo: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Every check of this module for a fit of a study; seeds are the study's.

    Args:
        study: A study with activations.
        fit: The fit that the answers belong to.
        controls: Of the study, as `cladastats controls` makes them.
        trimmed: Panel without the few neurons of massive activity, for metric `cka`; None: there is none.
        placebo: Panel of the study's placebo hybrids; None: there are none.

    Returns:
        Ready for JSON: `confirmatory`, `group_difference`, `power`, `layers`, `strata`, `placebo`, `reuse`, `trimmed`,
        `trimmed_checks`, and per group `bootstrap` (by column), `permutation`, `per_pair`, `ordered`, `ratio_effects`,
        `mixed`, `controls`, `between`. What a study does not allow is None or left out, and `notes` says why.
    """
    checked = Checked.of(study, fit, controls)
    margin = (study.config.equivalence_margin, study.config.equivalence_margin_source)
    strata_records, strata_notes = strata(checked.panel, checked.outcome)
    answers: dict[str, Any] = {
        "confirmatory": confirmatory(fit),
        "group_difference": group_difference(fit, *margin),
        "power": power(fit),
        "strata": strata_records,
        "reuse": two_way_clusters(study, checked.rows, checked.outcome),
        "bootstrap": checked.bootstrap(),
        **checked.group_checks(),
    }
    if METRICS[fit.metric].per_layer:
        answers["layers"] = layers(study.panel(f"layers-{fit.metric}"), checked.outcome)
    answers |= {"trimmed": None} if trimmed is None else trimmed_form(trimmed, fit, margin)
    if placebo is not None:
        answers["placebo"] = placebos(placebo, checked.panel, checked.outcome)
    reasons = {
        "no independent model's surprisal: cladastats controls --independent MODEL adds it": INDEPENDENT in controls,
        **checked.without_frequency(),
        "too few pairs for the bootstrap of some columns": all(answers["bootstrap"].values()),
        "too few pairs to fit loads and controls between pairs": all(answers["between"].values()),
        "no placebo hybrids: cladastats placebo adds them": placebo is not None,
    }
    return {**answers, "notes": [*(note for note, complete in reasons.items() if not complete), *strata_notes]}


def _terms(result: Any, se: pd.Series, units: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Coefficients of a fit of statsmodels or linearmodels with intervals and p, each times its unit."""
    interval = result.conf_int()
    return {
        name: {
            "coef": float(result.params[name] * unit),
            "se": float(se[name] * unit),
            "ci": (interval.loc[name] * unit).tolist(),
            "p": float(result.pvalues[name]),
        }
        for name, unit in units.items()
    }
