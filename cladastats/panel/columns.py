"""Does the response follow the prefix, and does cognitive load disturb that: the six-column panel regression.

    response = const + b * prefix_len + c * surprisal_norm + d * entropy_norm + pair effect + error

Every pair is observed at several prefix lengths, so the pair effects leave only what differs within a pair. The six
columns are those of Yang et al. (arXiv 2502.19078, Table 2). Nothing here depends on a sign or on significance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from clada.errors import InputError, NotIdentifiedError
from cladastats.panel.clustered import FewClusters, pair_effects_ols
from cladastats.panel.within import FEW_CLUSTERS, ROUNDING, Within, clusters_of, few, without_singletons
from cladastats.results.fit import COLUMNS, LOADS, RESPONSE_SCALES, RESPONSES, Column, Fit
from cladastats.results.verdicts import LITTLE_WITHIN


def fit_columns(panel: pd.DataFrame, metric: str, response: str = "toward", controls: Sequence[str] = ()) -> Fit:
    """Fit the paper's six columns: prefix, then surprisal, then entropy, each for RTS (odd) and NLS (even).

    Ordinary least squares with pair effects. Clusters are the pairs, or, where the panel has a column `cluster`, the
    pairs with the same number there, which share documents. Errors of G clusters are CR1 (linearmodels), and under
    `FEW_CLUSTERS` of them CR3 (pyfixest), beside which stands the wild cluster bootstrap's p; intervals and p are from
    t(G - 1). All columns of a group use the same rows, those with a response and every regressor, of pairs that have
    several.

    Args:
        panel: One row per group, pair and ratio, as in `panel-<metric>.parquet`.
        metric: Name of the panel's similarity.
        response: A key of `RESPONSES`.
        controls: Further panel columns that enter every model.

    Returns:
        The fitted columns.

    Raises:
        InputError: The panel lacks a column, repeats a row, is too small, is one cluster, splits a pair between
            clusters, or its response does not vary within pairs.
        NotIdentifiedError: A regressor does not vary within pairs, follows from the others, or does so without one of
            few clusters.

    Source: Yang et al., arXiv 2502.19078, Section 2 and Table 2.
    """
    if response not in RESPONSES:
        raise InputError(f"unknown response {response!r}; choose one of {', '.join(RESPONSES)}")
    outcome = RESPONSES[response]
    _, full_model = COLUMNS[6]
    repeated = {name for name in controls if name in (*full_model, outcome) or list(controls).count(name) > 1}
    if repeated:
        raise InputError(f"controls are already in the model: {', '.join(sorted(repeated))}; leave them out")
    regressors = (*full_model, *controls)
    _require_columns(panel, outcome, regressors)

    present = [group for group in ("rts", "nls") if (panel["group"] == group).any()]
    if not present:
        raise InputError("the panel has no rows of group nls or rts; build it again with `cladastats similarity`")
    absent_notes = tuple(
        f"no rows of group {group.upper()}: its columns are left out"
        for group in ("rts", "nls")
        if group not in present
    )
    rows = {group: complete_rows(panel, group, outcome, regressors) for group in present}
    columns = []
    for number, (group, names) in COLUMNS.items():
        if group in present:
            data, row_notes = rows[group]
            columns.append(_fit_column(number, group, data, outcome, (*names, *controls), absent_notes + row_notes))
    return Fit(metric, response, tuple(columns))


def summary_sentences(fit: Fit, *, vocab_size: int) -> list[str]:
    """What the fit shows, in three sentences: the prefix, cognitive load, and what the design can say.

    The prefix effect is the total one (columns 1 and 2); the load effects are those of the full columns (5 and 6).

    Args:
        fit: A fit with at least one group.
        vocab_size: Number of tokens the model chooses from; log2 of it turns normalised load into bits.

    Returns:
        Three sentences with effect sizes and 95 % intervals.
    """
    max_bits = math.log2(vocab_size)
    fitted = {column.column: column for column in fit.columns}
    totals = [fitted[number] for number in (2, 1) if number in fitted]
    fulls = [fitted[number] for number in (6, 5) if number in fitted]

    # Steps that were observed: one within-pair standard deviation. Anything larger would extrapolate.
    standardised = " and ".join(f"{column.standardised['prefix_len']:+.2f}" for column in totals)
    tokens = totals[0].within["prefix_len"]["sd_within"] * 1000
    loads = "; ".join(
        f"one standard deviation more of {load} ("
        + " and ".join(f"{column.within[term]['sd_within'] * max_bits:.2f}" for column in fulls)
        + f" bits) goes with {_effects(fulls, term)}"
        for term, load in LOADS.items()
    )
    size = " and ".join(
        f"{column.n_pairs:,} {column.group.upper()} pairs ({column.n_obs:,} rows; errors {column.cov})"
        for column in fulls
    )
    shares = ", ".join(
        f"{load} "
        + " and ".join(f"{column.within[term]['share_within']:.1%} in {column.group.upper()}" for column in fulls)
        for term, load in LOADS.items()
    )
    intervals = {f"prefix in {column.group.upper()}": column.ci["prefix_len"] for column in totals}
    intervals |= {
        f"{load} in {column.group.upper()}": column.ci[term] for term, load in LOADS.items() for column in fulls
    }
    with_zero = [name for name, (low, high) in intervals.items() if low <= 0 <= high]
    return [
        f"Prefix: one within-pair standard deviation more of prefix ({tokens:.0f} tokens) changes the response "
        f"{fit.response} ({RESPONSE_SCALES[fit.response]}) by {_effects(totals, 'prefix_len')} (95 % intervals in "
        f"brackets), that is by {standardised} of its own standard deviations.",
        f"Load: at equal prefix length and within pairs, {loads}.",
        f"Reach: each pair is compared only with itself, {size}, so this says nothing about differences between texts; "
        f"a longer prefix is also a shorter context of A; and as load is measured after the prefix was put in, its "
        f"effects are associations that rest on the part of its variance within pairs ({shares}); the intervals that "
        f"include zero are: {', '.join(with_zero) or 'none'}.",
    ]


def _effects(columns: Sequence[Column], term: str) -> str:
    """The change of the response per within-pair standard deviation of a term, with its interval, in each group."""
    effects = []
    for column in columns:
        step = column.within[term]["sd_within"]
        low, high = (bound * step for bound in column.ci[term])
        effects.append(f"{column.coef[term] * step:+.3g} [{low:+.3g}, {high:+.3g}] points in {column.group.upper()}")
    return " and ".join(effects)


def _require_columns(panel: pd.DataFrame, outcome: str, regressors: Sequence[str]) -> None:
    """Refuse a panel that lacks a needed column, or has text where a number is needed."""
    missing = [name for name in ("group", "pair", "ratio", outcome, *regressors) if name not in panel.columns]
    if missing:
        raise InputError(f"the panel has no column {', '.join(missing)}; it has {', '.join(map(str, panel.columns))}")
    not_numbers = [name for name in (outcome, *regressors) if not pd.api.types.is_numeric_dtype(panel[name])]
    if not_numbers:
        raise InputError(f"the panel's column {', '.join(not_numbers)} does not hold numbers; leave it out")


def complete_rows(
    panel: pd.DataFrame, group: str, outcome: str, regressors: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The group's rows with a response and every regressor, prefix in 1,000 tokens, and notes on the rest.

    Pairs of a single such row are left out: their effect explains it, so that they would only be counted as clusters,
    and make the errors and intervals too small (Correia 2015).

    Args:
        panel: one row per group, pair and ratio.
        group: "nls" or "rts".
        outcome: response column.
        regressors: columns, `prefix_len` among them.

    Returns:
        Rows indexed by pair and ratio, with a column `cluster`: the panel's where it has one, else the pair; notes.
    """
    rows = panel[panel["group"] == group].set_index(["pair", "ratio"], drop=False)
    if not rows.index.is_unique:
        pair, ratio = rows.index[rows.index.duplicated()][0]
        raise InputError(f"the panel holds {group.upper()} pair {pair} at ratio {ratio} more than once; remove copies")
    data = rows[[outcome, *regressors]].astype(float).replace([np.inf, -np.inf], np.nan)
    data["prefix_len"] /= 1000
    data["cluster"] = rows["cluster" if "cluster" in rows else "pair"]
    split = data["cluster"].groupby(level="pair").nunique() != 1
    if split.any():
        raise InputError(
            f"{group.upper()} pair {split.idxmax()} is in no cluster, or in several, and its effect needs one; mend "
            "the panel's column cluster"
        )
    complete = data.dropna()
    notes = []
    left_out = len(data) - len(complete)
    if left_out:
        no_response = int(data[outcome].isna().sum())
        notes.append(
            f"{left_out} of {len(data)} rows left out: {no_response} without a response, {left_out - no_response} "
            f"without a regressor"
        )
    several = without_singletons(complete)
    if len(several) < len(complete):
        notes.append(
            f"pairs of one row left out: {len(complete) - len(several)}; they say nothing about differences within "
            "pairs"
        )
    return several, tuple(notes)


def _fit_column(
    number: int, group: str, data: pd.DataFrame, outcome: str, regressors: Sequence[str], notes: tuple[str, ...]
) -> Column:
    """One model on complete rows indexed by pair and ratio."""
    names = list(regressors)
    clusters = clusters_of(data)
    data = data[[outcome, *names]]
    demeaned = data - data.groupby(level="pair").transform("mean")
    n_obs, n_pairs, n_clusters = len(data), data.index.get_level_values("pair").nunique(), len(np.unique(clusters))
    try:
        _require_estimable(data, demeaned, outcome, names, clusters)
    except (InputError, NotIdentifiedError) as error:
        raise type(error)(f"column {number} ({group.upper()}): {error}") from None

    result = pair_effects_ols(data[outcome], data[names], clusters)
    coef, se, wild_p = result.params, result.std_errors, {}
    if few(n_clusters):
        library = FewClusters(demeaned[outcome], demeaned[names], clusters)
        wild_p = library.wild_p()
        # The constant is the mean response less that of the regressors' means, an error pyfixest has no name for.
        _, cov = Within.of(data.assign(cluster=clusters), outcome, names).estimate()
        mean = data[names].mean().to_numpy()
        se = pd.Series({**library.errors(), "const": math.sqrt(mean @ cov @ mean)})
    t = coef / se
    df = n_clusters - 1
    half_width = stats.t.ppf(0.975, df) * se
    inclusive = float(result.rsquared_inclusive)

    sums_within = (demeaned**2).sum()
    sd_within = np.sqrt(sums_within / (n_obs - n_pairs))
    share_within = sums_within / ((data - data.mean()) ** 2).sum()
    little = [name for name in names if name in LOADS and share_within[name] < LITTLE_WITHIN]
    return Column(
        column=number,
        group=group,
        regressors=tuple(names),
        coef=coef.to_dict(),
        se=se.to_dict(),
        t=t.to_dict(),
        p=dict(zip(coef.index, (2 * stats.t.sf(np.abs(t), df)).tolist(), strict=True)),
        ci={name: (float(coef[name] - half_width[name]), float(coef[name] + half_width[name])) for name in coef.index},
        standardised={name: float(coef[name] * sd_within[name] / sd_within[outcome]) for name in names},
        vif=_variance_inflation(demeaned[names]),
        within={
            name: {"sd_within": float(sd_within[name]), "share_within": float(share_within[name])} for name in names
        },
        r2={
            "within": float(result.rsquared_within),
            "between": float(result.rsquared_between),
            "overall": float(result.rsquared_overall),
            "inclusive": inclusive,
            "adjusted": 1 - (1 - inclusive) * (n_obs - 1) / (n_obs - n_pairs - len(names)),
        },
        n_obs=n_obs,
        n_pairs=n_pairs,
        n_clusters=n_clusters,
        cov=f"clustered by {'document' if n_clusters < n_pairs else 'pair'}, "
        + ("CR3 (jackknife)" if few(n_clusters) else "CR1"),
        wild_p=wild_p,
        notes=notes
        + tuple(
            f"only {share_within[name]:.2%} of the variance of {name} lies within pairs, so "
            f"its coefficient rests on little"
            for name in little
        ),
    )


def _require_estimable(
    data: pd.DataFrame, demeaned: pd.DataFrame, outcome: str, names: list[str], clusters: np.ndarray
) -> None:
    """Refuse what pair effects cannot estimate, naming the regressor, the reason and the remedy."""
    n_pairs = data.index.get_level_values("pair").nunique()
    if n_pairs == 0:
        raise InputError(
            f"0 pairs with several complete rows, so that nothing identifies {', '.join(names)}; build the study "
            "with several ratios, or mend what is missing"
        )
    if n_pairs == 1:
        # The residuals of a single pair cancel in its score, which would give standard errors of zero.
        raise InputError("1 pairs with several complete rows, and clustered errors need 2; add pairs")
    if clusters.max() == 0:
        raise InputError(
            f"all {n_pairs} pairs share documents, so that they are one cluster, and clustered errors need 2; build "
            "the study with pairs of other documents"
        )
    size = np.sqrt((data**2).mean())
    spread = np.sqrt(((data - data.mean()) ** 2).mean())
    spread_within = np.sqrt((demeaned**2).mean())
    remedy = "leave it out of the controls, or build a panel in which it varies between the ratios of a pair"
    for name in names:
        if spread[name] <= ROUNDING * size[name]:
            raise NotIdentifiedError(
                f"{name} takes one value only ({data[name].iloc[0]:g}), so it has no coefficient next to the constant "
                f"(the paper reports one for Token_len, whose standard deviation is 0); {remedy}"
            )
        if spread_within[name] <= ROUNDING * size[name]:
            raise NotIdentifiedError(f"{name} is constant within every pair, so the pair effects absorb it; {remedy}")
    n_parameters = n_pairs + len(names)
    if len(data) <= n_parameters:
        raise InputError(
            f"{len(data)} rows for {n_parameters} parameters, pair effects included; add pairs with several ratios"
        )
    if not varies_within(data, outcome):
        raise InputError(f"the response {outcome} is constant within every pair: nothing to explain; check the panel")
    _require_independent(demeaned[names])
    within = Within.of(data.assign(cluster=clusters), outcome, names)
    if not within.identified():
        raise NotIdentifiedError(
            f"{', '.join(names)} are not identified without one of the {clusters.max() + 1} clusters, and errors of "
            f"fewer than {FEW_CLUSTERS} leave out each in turn (jackknife); add pairs"
        )


def varies_within(data: pd.DataFrame, name: str) -> bool:
    """Whether a column of a panel indexed by pair varies within pairs by more than rounding."""
    within = data[name] - data[name].groupby(level="pair").transform("mean")
    return bool(math.sqrt((within**2).mean()) > ROUNDING * math.sqrt((data[name] ** 2).mean()))


def _require_independent(demeaned: pd.DataFrame) -> None:
    """Refuse a regressor that follows from those before it; all are deviations from pair means and vary."""
    unit = demeaned / np.sqrt((demeaned**2).sum())
    for i, name in enumerate(unit.columns):
        before = unit.iloc[:, :i]
        weights = np.linalg.lstsq(before, unit[name])[0]
        if np.linalg.norm(unit[name] - before @ weights) <= ROUNDING:
            sources = [other for other, weight in zip(before, weights, strict=True) if abs(weight) > ROUNDING]
            raise NotIdentifiedError(
                f"{name} follows exactly from {', '.join(sources)} within pairs, so their coefficients cannot be told "
                f"apart; leave one of them out"
            )


def _variance_inflation(demeaned: pd.DataFrame) -> dict[str, float]:
    """Variance inflation factors: the diagonal of the inverse correlation matrix of the demeaned regressors."""
    unit = demeaned / np.sqrt((demeaned**2).sum())
    return dict(zip(unit.columns, np.diag(np.linalg.inv(unit.T @ unit)).tolist(), strict=True))
