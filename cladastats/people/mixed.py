"""Linear mixed models with crossed random effects, for trials of subjects with items.

The formula is lme4's, and so are the terms, the coding of categories and the names. The estimates are found by the
library `mixedlm`, which computes the profiled likelihood of Bates et al. (2015, doi:10.18637/jss.v067.i01, section 3)
and its gradient. What it is given is centred and scaled, and what it returns is taken back to the units of the data,
so that milliseconds beside bits, or a predictor with a large mean, cost no precision. `benchmarks/mixed_models.py`
compares it with other libraries and with lme4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError
from cladastats.people.formula import (
    Array,
    MixedFormula,
    Variable,
    grouping,
    model_columns,
    parse,
    rows_text,
    variable,
)
from cladastats.results.fit import FORMATS, undefined_to_none
from cladastats.results.tables import TEXT_STYLES, html_table, latex_table, number_text, plain_table

COLLINEAR = 1e-7
"""Share of a column that the columns before it must leave over; what R's `lm` and lme4 ask for."""

MOST_SEARCHES = 12
"""How many places the maximum is looked for from at most."""

SAME_DEVIANCE = 2e-3
"""By how much the deviances of two searches differ that ended at the same maximum."""

SINGULAR = 1e-4
"""Standard deviation of an effect, in units of the residual's, below which it counts as zero; lme4's."""


@dataclass(frozen=True, repr=False)
class MixedFit:
    """A fitted linear mixed model; it shows itself as a table in JupyterLab and at the prompt.

    Attributes:
        formula: As given.
        reml: Whether the variances are those of restricted maximum likelihood.
        coef: Coefficients by term, in units of the response per unit of the term; names are lme4's.
        se: Their standard errors.
        df: Degrees of freedom by Satterthwaite's approximation (those of lmerTest).
        t: `coef / se`.
        p: Two-sided, from Student's t with `df` degrees of freedom.
        ci: 95 % intervals from the same distribution, columns `low` and `high`.
        variances: Variances and covariances of the random effects, and the residual variance, as lme4's
            `as.data.frame(VarCorr(m))` has them: columns `grp`, `var1`, `var2` (missing for a variance), `vcov`.
        loglik: Log-likelihood in nats; the restricted one with `reml`.
        singular: Whether the variance of some combination of the random effects is estimated as zero.
        n: Rows that were used.
        dropped: Rows that were left out because a value is missing.
        groups: Number of levels by grouping factor.
    """

    formula: str
    reml: bool
    coef: pd.Series
    se: pd.Series
    df: pd.Series
    t: pd.Series
    p: pd.Series
    ci: pd.DataFrame
    variances: pd.DataFrame
    loglik: float
    singular: bool
    n: int
    dropped: int
    groups: dict[str, int]

    @property
    def table(self) -> pd.DataFrame:
        """One row a term: `coef`, `se`, `df`, `t`, `p`, `ci_low`, `ci_high`."""
        return pd.DataFrame(
            {name: getattr(self, name) for name in ("coef", "se", "df", "t", "p")}
            | {"ci_low": self.ci["low"], "ci_high": self.ci["high"]}
        ).rename_axis("term")

    def show(self, fmt: str = "text") -> str:
        """The fit as text, markdown, latex (needs booktabs), html, csv (the terms) or json (everything).

        Raises:
            InputError: The format is unknown.
        """
        return _rendered(self, fmt)

    def to_dict(self) -> dict[str, Any]:
        """Everything the fit holds, ready for strict JSON."""
        return undefined_to_none(
            {
                "formula": self.formula,
                "reml": self.reml,
                "n": self.n,
                "dropped": self.dropped,
                "groups": self.groups,
                "loglik": self.loglik,
                "singular": self.singular,
                "terms": self.table.reset_index().to_dict("records"),
                "variances": self.variances.astype(object).where(self.variances.notna(), None).to_dict("records"),
            }
        )

    def __repr__(self) -> str:
        return self.show("text")

    def _repr_html_(self) -> str:
        return self.show("html")


def mixed_model(frame: pd.DataFrame, formula: str, reml: bool = False) -> MixedFit:
    """Fit a linear mixed model, with crossed or nested random effects, by maximum likelihood.

    Args:
        frame: One row a trial. Text, categories and truth values are coded by contrasts to the first level, levels of
            text in alphabetical order. Rows in which a column of the formula is missing are left out.
        formula: In lme4's notation, for instance `rt ~ surprisal + length + (1 + surprisal | subject) + (1 | item)`.
            `cladastats.people.formula.parse` says what it may hold.
        reml: Restricted maximum likelihood, lme4's default, instead of maximum likelihood.

    Returns:
        Coefficients, variances and what else `MixedFit` names.

    Raises:
        InputError: The formula, a column or the design cannot be used, or the fit did not converge.

    Source: Bates et al. (2015), doi:10.18637/jss.v067.i01; degrees of freedom: Kuznetsova et al. (2017),
    doi:10.18637/jss.v082.i13.
    """
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"the data must be a pandas DataFrame, not {type(frame).__name__}")
    parts = parse(formula)
    design = _design(frame, parts)
    return _fitted(design, formula, reml)


# -- From the data frame to columns in common units -----------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Columns in common units, X @ to_units.

    Attributes:
        values: The columns, of mean square one; without their means where there is an intercept. (rows, columns).
        to_units: Takes coefficients of `values` to those of the data's own columns. (columns, columns).
        names: Of the data's columns.
    """

    values: Array
    to_units: Array
    names: list[str]


@dataclass(frozen=True)
class _Design:
    """What a model is fitted to; `random` has a block, the number of each row's level and a name for each term."""

    response: Array
    fixed: _Block
    random: list[tuple[_Block, Array, str]]
    dropped: int


def _design(frame: pd.DataFrame, parts: MixedFormula) -> _Design:
    """The columns of a formula, checked."""
    texts = dict.fromkeys([parts.response, *parts.fixed.variables])
    texts.update(dict.fromkeys(text for term in parts.random for text in term.terms.variables))
    found = {text: variable(frame, parts.trees[text], text) for text in texts}
    if found[parts.response].levels is not None:
        raise InputError(f"the response {parts.response} holds categories, not numbers")
    groups = {term.columns: grouping(frame, term.columns) for term in parts.random}
    used = np.ones(len(frame), bool)
    for column in found.values():
        used &= ~np.isnan(column.values)
    for codes in groups.values():
        used &= codes >= 0
    if not used.any():
        raise InputError("no row has a value in every column of the formula")
    found = {text: _at(column, used) for text, column in found.items()}
    response = found[parts.response].values
    if np.ptp(response) == 0:
        raise InputError(f"the response {parts.response} is {response[0]:g} in every row; there is nothing to explain")
    if not parts.fixed.terms:
        raise InputError("the formula has neither an intercept nor a predictor outside of bars; leave the 0 out")
    fixed = _block(*model_columns(parts.fixed, found, len(response)), "the predictors")
    if len(fixed.names) >= len(response):
        raise InputError(f"{len(response):,} rows are too few for {len(fixed.names):,} coefficients")
    random = []
    for term in parts.random:
        codes = pd.factorize(groups[term.columns][used])[0]
        block = _block(*model_columns(term.terms, found, len(response)), f"the effects that vary by {term.group}")
        _check_levels(term.group, int(codes.max()) + 1, len(block.names), len(codes))
        random.append((block, codes, term.group))
    _check_distinct(random)
    return _Design(response, fixed, _as_lme4_orders(random), int((~used).sum()))


def _at(column: Variable, used: Array) -> Variable:
    """The rows that are used; levels of a category that are not among them are left out."""
    values = column.values[used]
    if column.levels is None:
        return Variable(values)
    present, codes = np.unique(values.astype(int), return_inverse=True)
    return Variable(codes.astype(float), tuple(column.levels[number] for number in present))


def _block(columns: Array, names: list[str], what: str) -> _Block:
    """Columns in common units.

    Raises:
        InputError: A column is constant, or others determine it.
    """
    centre = np.zeros(len(names))
    intercept = names[:1] == ["(Intercept)"]
    if intercept:
        centre[1:] = columns[:, 1:].mean(axis=0)
    values = columns - centre
    scale = np.sqrt((values**2).mean(axis=0))
    size = np.abs(columns).max(axis=0)
    for name, own, largest in zip(names, scale, size, strict=True):
        if own <= 1e-13 * largest or largest == 0:  # rounding of the mean leaves 1e-16
            raise InputError(f"{name} has the same value in every row, which the intercept holds already; leave it out")
    values /= scale
    _, triangle = np.linalg.qr(values / np.sqrt(len(values)))
    for number, name in enumerate(names):
        if abs(triangle[number, number]) < COLLINEAR:
            weights = np.linalg.lstsq(triangle[:number, :number], triangle[:number, number])[0]
            others = [names[other] for other in np.flatnonzero(np.abs(weights) > COLLINEAR**0.5)]
            raise InputError(f"among {what}, {name} is determined by {' and '.join(others)}; leave one of them out")
    to_units = np.diag(1 / scale)
    if intercept:
        to_units[0, 1:] = -centre[1:] / scale[1:]
    return _Block(values, to_units, names)


def _check_levels(group: str, levels: int, effects: int, rows: int) -> None:
    if levels < 2:
        raise InputError(f"the grouping factor {group} has one level; an effect that varies needs several")
    if levels >= rows:
        raise InputError(
            f"the grouping factor {group} has a level for every row, so that its effect is the residual; leave it out"
        )
    if levels * effects >= rows:
        raise InputError(
            f"{levels:,} levels of {group} with {effects} effects each are too many for {rows:,} rows; "
            "let fewer effects vary"
        )


def _check_distinct(random: Sequence[tuple[_Block, Array, str]]) -> None:
    """Whether no effect varies twice by the same levels."""
    for number, (block, codes, group) in enumerate(random):
        for other, other_codes, other_group in random[:number]:
            twice = [name for name in block.names if name in other.names]
            if twice and np.array_equal(codes, other_codes):
                by = group if group == other_group else f"{group}, whose levels are those of {other_group},"
                raise InputError(f"{twice[0]} varies by {by} in two terms, which cannot be told apart; keep one")


def _as_lme4_orders(random: list[tuple[_Block, Array, str]]) -> list[tuple[_Block, Array, str]]:
    """Terms by falling number of levels, unless they are in such an order."""
    levels = np.array([codes.max() for _, codes, _ in random])
    if (np.diff(levels) > 0).any():
        return [random[number] for number in np.argsort(levels, kind="stable")[::-1]]
    return random


# -- The fit --------------------------------------------------------------------------------------------------------


def _fitted(design: _Design, formula: str, reml: bool) -> MixedFit:
    """Fit the model in common units and take what is found back to those of the data."""
    fixed = design.fixed
    rows, terms = fixed.values.shape
    # What the predictors explain by least squares is taken away, so that a large mean costs no digits; this shifts the
    # coefficients and changes nothing else.
    explained = np.linalg.lstsq(fixed.values, design.response)[0]
    left = design.response - fixed.values @ explained
    unit = float(np.sqrt((left**2).mean()))
    if unit <= 1e-10 * np.std(design.response):
        raise InputError("the predictors determine the response exactly; a regression has no error to estimate")
    result = _estimate(design, left / unit, reml)
    coef = fixed.to_units @ (explained + unit * result.beta)
    se = unit * np.sqrt(np.diag(fixed.to_units @ result.vcov() @ fixed.to_units.T))
    df = _satterthwaite(result, fixed)
    # The density of y is that of y / unit, divided by unit for each degree of freedom; the restricted one is of fewer,
    # and holds the volume of the predictors.
    loglik = float(result.logLik().value) - (rows - reml * terms) * float(np.log(unit))
    if reml:
        loglik += float(np.linalg.slogdet(fixed.to_units)[1])
    from scipy.stats import t as student

    ci = coef[:, None] + (se * student.ppf(0.975, df))[:, None] * np.array([-1, 1])
    variances, singular = _variances(design, result, unit)

    def by_term(values: Array) -> pd.Series:
        return pd.Series(values, index=pd.Index(fixed.names, name="term"))

    return MixedFit(
        formula=formula,
        reml=reml,
        coef=by_term(coef),
        se=by_term(se),
        df=by_term(df),
        t=by_term(coef / se),
        p=by_term(2 * student.sf(np.abs(coef / se), df)),
        ci=pd.DataFrame(ci, index=pd.Index(fixed.names, name="term"), columns=["low", "high"]),
        variances=variances,
        loglik=loglik,
        singular=singular,
        n=rows,
        dropped=design.dropped,
        groups={group: int(codes.max()) + 1 for _, codes, group in design.random},
    )


def _estimate(design: _Design, response: Array, reml: bool) -> Any:
    """The library's fit to columns in common units, every grouping factor under its own number.

    Factors of covariances are searched without the bound at zero that makes them unique, since searches along it end at
    lesser maxima. Whatever a search reports of itself, its end counts once a second one, begun elsewhere, finds none
    higher.

    Raises:
        InputError: No two searches end at the highest likelihood found.
    """
    import mixedlm

    fixed = [f"x{number}" for number in range(len(design.fixed.names))]
    columns = {"y": response} | dict(zip(fixed, design.fixed.values.T, strict=True))
    random = []
    for number, (block, codes, _) in enumerate(design.random):
        columns[f"g{number}"] = codes
        effects = [f"z{number}_{effect}" for effect in range(len(block.names))]
        columns |= dict(zip(effects, block.values.T, strict=True))
        random.append(f"(0 + {' + '.join(effects)} | g{number})")
    formula = f"y ~ 0 + {' + '.join([*fixed, *random])}"
    control = mixedlm.lmerControl(gtol=5e-8 * len(response), use_analytic_gradient=True)  # what rounding allows
    deviance = mixedlm.mkLmerDevfun(mixedlm.lFormula(formula, pd.DataFrame(columns), REML=reml), control=control)
    found: list[Any] = []
    for start in _starts(design, deviance.get_start()):
        try:
            found.append(mixedlm.optimizeLmer(deviance, start, method="BFGS"))
        except (RuntimeError, ValueError, np.linalg.LinAlgError):  # a search that left the numbers' range
            continue
        best, *others = sorted(found, key=lambda search: search.deviance)
        if others and others[0].deviance - best.deviance < SAME_DEVIANCE:
            return mixedlm.mkLmerMod(deviance, best)
    raise InputError(
        f"the model did not converge: no two of {MOST_SEARCHES} searches ended at its highest likelihood; "
        "let fewer effects vary"
    )


def _starts(design: _Design, own: Array) -> Iterator[Array]:
    """Where searches begin: the library's own place, then Cholesky factors drawn at random, the same every time."""
    yield own
    random = np.random.RandomState(0)
    for _ in range(MOST_SEARCHES - 1):
        factors = [np.tril(random.normal(0, 0.3, (len(block.names),) * 2)) for block, _, _ in design.random]
        yield np.concatenate([_lower(np.where(np.eye(len(factor)), np.abs(factor), factor)) for factor in factors])


def _lower(matrix: Array) -> Array:
    """The lower triangle row by row."""
    return matrix[np.tril_indices(len(matrix))]


def _satterthwaite(result: Any, fixed: _Block) -> Array:
    """Degrees of freedom of the coefficients of the data's own columns.

    Columns in common units have coefficients that are those of the data's columns times a number, except that the
    intercept's is the mean's. For it, the columns are exchanged for those whose last one stands for the intercept at
    zero: what is left of the constant after all others.
    """
    import mixedlm

    df = mixedlm.satterthwaite_df(result).df
    if fixed.names[0] == "(Intercept)" and len(fixed.names) > 1:
        own = np.column_stack([(fixed.values @ np.linalg.inv(fixed.to_units))[:, 1:], np.ones(len(fixed.values))])
        orthogonal = np.linalg.qr(own / np.sqrt((own**2).mean(axis=0)))[0] * np.sqrt(len(own))
        shifted = replace(result, matrices=replace(result.matrices, X=orthogonal))
        df[0] = mixedlm.satterthwaite_df(shifted).df[-1]
    return df


def _variances(design: _Design, result: Any, unit: float) -> tuple[pd.DataFrame, bool]:
    """Variances and covariances in lme4's order, and whether some combination of effects has none."""
    rows: list[tuple[str, str | None, str | None, float]] = []
    singular = False
    names: dict[str, int] = {}
    found = result.VarCorr()
    for number, (block, _, group) in enumerate(design.random):
        common = np.asarray(found.get_cov(f"g{number}"))
        singular |= bool(np.linalg.eigvalsh(common)[0] < (SINGULAR * result.sigma) ** 2)
        values = unit**2 * block.to_units @ common @ block.to_units.T
        repeated = names.get(group, 0)
        names[group] = repeated + 1
        name = f"{group}.{repeated}" if repeated else group
        effects = block.names
        rows += [(name, effect, None, values[i, i]) for i, effect in enumerate(effects)]
        rows += [
            (name, effects[j], effects[i], values[i, j])
            for j in range(len(effects))
            for i in range(j + 1, len(effects))
        ]
    rows.append(("Residual", None, None, (unit * result.sigma) ** 2))
    return pd.DataFrame(rows, columns=["grp", "var1", "var2", "vcov"]), singular


# -- The table ------------------------------------------------------------------------------------------------------


def _rendered(fit: MixedFit, fmt: str) -> str:
    if fmt == "json":
        return json.dumps(fit.to_dict(), indent=2, allow_nan=False)
    if fmt == "csv":
        return str(fit.table.to_csv())
    if fmt not in FORMATS:
        raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")
    terms, random = _term_cells(fit), _variance_cells(fit)
    caption = _caption(fit)
    align = ["left"] + ["right"] * 6
    random_align = ["left", "left", "right", "right", "right"]
    if fmt in TEXT_STYLES:
        tables = [plain_table(terms, fmt, align, index=True), plain_table(random, fmt, random_align, index=False)]
        return "\n\n".join([caption[0], *tables, *caption[1:]])
    if fmt == "latex":
        what = "Variances of the random effects and of the residual"
        tables = [
            latex_table(terms, caption, align, index=True),
            latex_table(random, [what], random_align, index=False),
        ]
        return "\n".join(tables)
    return html_table(terms, caption, "mixed", index=True) + html_table(
        random, ["Random effects"], "mixed_random", index=False
    )


def _term_cells(fit: MixedFit) -> pd.DataFrame:
    ci = [f"[{number_text(low)}, {number_text(high)}]" for low, high in fit.ci.to_numpy()]
    return pd.DataFrame(
        {
            "estimate": fit.coef.map(number_text),
            "std. error": fit.se.map(number_text),
            "95 % interval": ci,
            "df": fit.df.map("{:,.1f}".format),
            "t": fit.t.map("{:.2f}".format),
            "p": fit.p.map(_p_text),
        },
    ).rename_axis(None)


def _variance_cells(fit: MixedFit) -> pd.DataFrame:
    rows = fit.variances
    variance = {(row.grp, row.var1): row.vcov for row in rows.itertuples() if pd.isna(row.var2)}
    cells = []
    for row in rows.itertuples():
        if pd.isna(row.var2):
            name = "" if pd.isna(row.var1) else row.var1
            cells.append((row.grp, name, number_text(row.vcov), number_text(row.vcov**0.5), ""))
        else:
            size = (variance[row.grp, row.var1] * variance[row.grp, row.var2]) ** 0.5
            correlation = f"{row.vcov / size:.2f}" if size else ""
            cells.append((row.grp, f"{row.var1}, {row.var2}", number_text(row.vcov), "", correlation))
    return pd.DataFrame(cells, columns=["group", "effect", "variance", "std. dev.", "correlation"])


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _caption(fit: MixedFit) -> list[str]:
    method = "restricted maximum likelihood" if fit.reml else "maximum likelihood"
    groups = ", ".join(f"{levels:,} {group}" for group, levels in fit.groups.items())
    lines = [
        f"Linear mixed model by {method}: {fit.formula}",
        f"{fit.n:,} rows; levels: {groups}; log-likelihood {fit.loglik:.2f}; degrees of freedom by Satterthwaite",
    ]
    if fit.dropped:
        lines.append(f"{rows_text(fit.dropped)} left out because a value is missing")
    if fit.singular:
        lines.append("The fit is singular: some random effect, or a combination of them, has no variance")
    return lines
