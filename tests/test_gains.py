"""Gains on held-out texts: effects that were put in are found, with what could have been found beside them."""

import itertools
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from clada.errors import InputError, StudyError
from clada.system.jsonfile import with_checksum, write_json
from cladastats.people import evidence, gains
from cladastats.people.corpora import Measure, ReadingCorpus
from cladastats.people.density import Rows
from cladastats.people.description import SOURCES
from cladastats.people.evidence import detectable, effects, gain, holm, largest_noncentrality, pooled
from cladastats.people.gains import Sample, analyse, designs, layer_columns, prepared
from cladastats.people.results import FAMILY, effect_table, pooled_table, show, verdicts

COLUMNS = (*gains.BASELINE, *gains.PREDICTORS.values())


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(gains, "SHUFFLES", 19)
    monkeypatch.setattr(evidence, "RESAMPLES", 1999)
    monkeypatch.setattr(evidence, "EFFECT_RESAMPLES", 500)


def made_rows(rng, texts=25, words=60, **coefficients):
    """Rows as `prepared` gives them; times follow length, surprisal, and the columns that are named."""
    frame = pd.DataFrame(rng.normal(size=(texts * words, len(COLUMNS))), columns=list(COLUMNS))
    place = np.arange(len(frame))
    frame["text_id"] = frame["item"] = place // words
    frame["word_index"] = frame["position"] = place % words + 1.0
    frame["block"] = place // 12
    frame["surprisal_bits"] += 0.5 * frame["length"]
    frame["effort"] += 0.5 * frame["surprisal_bits"]
    for name, lag in itertools.product(COLUMNS, (1, 2)):
        frame[f"{name}_{lag}"] = frame.groupby("item")[name].shift(lag)
    for name in ("punctuation", "sentence_final"):
        frame[name] = rng.integers(0, 2, len(frame)).astype(float)
    frame["effort_load"], frame["effort_00"], frame["effort_01"] = rng.normal(size=(3, len(frame)))
    frame["magnitude"] = np.exp(rng.normal(size=len(frame)))
    frame["word_class"] = rng.choice(["noun", "verb", "function"], len(frame))
    known = {"length": 10.0, "surprisal_bits": 8.0} | coefficients
    frame["time"] = 250 + sum(value * frame[name] for name, value in known.items())
    frame["time"] += rng.normal(0, 10, texts)[frame["item"]] + rng.normal(0, 30, len(frame))
    return frame[frame["length_2"].notna()].reset_index(drop=True)


def made_trials(rng, subjects=6, **options):
    """The same read by several subjects, who differ by more than words do."""
    words = made_rows(rng, **options)
    frame = words.loc[words.index.repeat(subjects)].reset_index(drop=True)
    frame["subject"] = np.tile([f"s{number}" for number in range(subjects)], len(words))
    frame["time"] += np.tile(rng.normal(0, 60, subjects), len(words)) + rng.normal(0, 50, len(frame))
    return frame.sample(frac=0.9, random_state=1)


def steps_of(found):
    return {row["predictor"]: row for row in found["rows"]}


# -- gains --------------------------------------------------------------------------------------------------------


def test_a_gain_is_found_where_there_is_one_and_its_test_keeps_its_size():
    rng = np.random.default_rng(7)
    sizes = np.full(40, 20.0)
    found = gain(rng.normal(0.08 * 20, 0.3 * np.sqrt(20), 40), sizes)
    assert found["p"] < 0.01
    assert 0 < found["ci_low"] < found["delta_ll"] < found["ci_high"]
    # of a mean over 40 units of 20 words; the bootstrap's own error is 11 % with 40 units
    assert found["se"] == pytest.approx(0.3 / np.sqrt(800), rel=0.35)
    # 200 sets without a gain: 5 % +- 3 standard errors of a binomial
    below = [gain(rng.normal(0, 3.0, 40), sizes)["p"] < 0.05 for _ in range(200)]
    assert 0.05 - 3 * 0.0154 <= np.mean(below) <= 0.05 + 3 * 0.0154


def test_a_gain_of_a_few_units_is_tested_by_every_flip_of_their_signs(monkeypatch):
    monkeypatch.setattr(evidence, "RESAMPLES", 10_000)
    rng = np.random.default_rng(11)
    sizes = np.array([3, 5, 2, 8, 4, 6, 1, 7, 9, 5.0])
    sums = rng.normal(0.05 * sizes, 0.3 * np.sqrt(sizes))
    found = gain(sums, sizes)
    every = np.array(list(itertools.product((1, -1), repeat=10))) @ sums
    assert found["p"] == (every >= every[0] - 1e-12).mean()
    # The percentiles of 10,000 resamples beside those of 10,000 others. The Monte-Carlo standard error of one is about
    # sqrt(0.025 * 0.975 / 10,000) over the density there, 0.7 % of the interval's length; six of the difference of two.
    drawn = np.random.default_rng(12).integers(0, 10, (10_000, 10))
    low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    assert [found["ci_low"], found["ci_high"]] == pytest.approx([low, high], abs=0.06 * (high - low))
    assert found["delta_ll"] == sums.sum() / sizes.sum()


def test_effort_that_was_put_in_is_found_and_effort_that_was_not_is_not():
    rng = np.random.default_rng(8)
    found = analyse(made_rows(rng, effort=9.0), Measure("time"))
    rows = steps_of(found)
    assert list(rows) == ["surprisal", "entropy", "effort"]
    assert rows["surprisal"]["p"] < 0.002
    assert rows["effort"]["p"] < 0.002
    assert rows["effort"]["effect_low"] < 9.0 * rows["effort"]["sd"] < rows["effort"]["effect_high"]
    assert rows["effort"]["total_low"] < 9.0 * rows["effort"]["sd"] < rows["effort"]["total_high"]
    assert rows["effort"]["ci_low"] > 0
    assert found["effort"]["placebo"]["p"] == 1 / 20
    assert found["effort"]["placebo"]["delta_ll"] < 0 < rows["effort"]["delta_ll"]
    for name in ("with_controls", "matched_surprisal", "without_lags", "smaller_baseline"):
        assert found["effort"][name]["p"] < 0.01
    assert found["effort"]["lags"]["delta_ll"] < rows["effort"]["delta_ll"] / 5
    assert found["effort"]["vif"] > 1.1
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert (found["units_are"], found["units"], found["subjects"]) == ("texts", 25, 0)

    nothing = analyse(made_rows(rng, texts=8, words=180), Measure("time"))
    absent = steps_of(nothing)["effort"]
    assert absent["delta_ll"] < rows["effort"]["delta_ll"] / 10
    assert absent["effect_low"] < 0 < absent["effect_high"]
    assert absent["effect_bound"] < 9.0  # the effect above is excluded
    assert absent["gain_bound"] < rows["effort"]["delta_ll"]
    assert (nothing["units_are"], nothing["units"]) == ("sentences", 8 * 15)


def test_effort_of_the_word_before_is_in_the_confirmatory_step():
    found = analyse(made_rows(np.random.default_rng(3), effort_1=9.0), Measure("time"))
    row = steps_of(found)["effort"]
    assert row["p"] < 0.002
    assert row["effect_low"] < 0 < row["effect_high"]
    assert row["total_low"] < 9.0 * row["sd"] < row["total_high"]
    assert found["effort"]["without_lags"]["p"] > 0.05
    assert found["effort"]["lags"]["p"] < 0.002


def test_trials_have_subjects_of_their_own():
    found = analyse(made_trials(np.random.default_rng(4), texts=20, words=20, effort=20.0), Measure("time"))
    row = steps_of(found)["effort"]
    assert (found["subjects"], found["reliability"]) == (6, None)
    assert row["p"] < 0.01
    assert abs(row["effect"] - 20.0 * row["sd"]) < 3 * row["effect_se"]
    assert found["effort"]["placebo"]["p"] == 1 / 20
    trials = made_trials(np.random.default_rng(4), texts=20, words=20)
    known, ignored = (Sample.of(rows, Measure("time")) for rows in (trials, trials.drop(columns="subject")))
    assert (
        known.rows.density([0]).sum() > ignored.rows.density([0]).sum() + 100
    )  # nats: who reads is a part of the errors else


def test_words_without_effort_have_two_steps():
    rows = made_rows(np.random.default_rng(5))
    measured = [name for name in rows if not str(name).startswith(("effort", "magnitude", "hidden_norm"))]
    found = analyse(rows[measured], Measure("time"))
    assert [row["predictor"] for row in found["rows"]] == ["surprisal", "entropy"]
    assert found["effort"] is None
    assert found["layers"] == []
    empty = analyse(rows.assign(effort=np.nan, effort_1=np.nan, effort_2=np.nan, hidden_norm=1.0), Measure("time"))
    assert [row["predictor"] for row in empty["rows"]] == ["surprisal", "entropy"]


# -- models -------------------------------------------------------------------------------------------------------


def test_the_models_are_nested_and_effort_has_lags():
    words = made_rows(np.random.default_rng(0), texts=2).assign(P600_uV=1.0, time=1.0)
    found = designs(SOURCES["ucl_erp"].measures[1], words)
    assert all(set(small) < set(large) for small, large in pairwise(found.values()))
    known = {
        "N400_base_uV",
        "N400_uV",
        "position",
        "length_2",
        "frequency_zipf_1",
        "tokens",
        "tokens_2",
        "hidden_norm_1",
    }
    assert known < set(found["baseline"])
    assert set(found["effort"]) - set(found["entropy"]) == {"effort", "effort_1", "effort_2"}
    assert "tokens" not in designs(Measure("time"), words.assign(tokens=1.0))["baseline"]
    assert "hidden_norm_1" not in designs(Measure("time"), words.drop(columns="hidden_norm_1"))["baseline"]
    # The words that are measured may all be one token each, while others are more.
    some = words.assign(tokens=np.where(words.index < 50, 1.0, 2.0), time=np.where(words.index < 50, 1.0, np.nan))
    baseline = designs(Measure("time"), some)["baseline"]
    assert "tokens" not in baseline
    assert {"tokens_1", "hidden_norm"} <= set(baseline)


@pytest.mark.parametrize(
    ("changed", "measure", "said"),
    [
        ({"effort": 1.0, "effort_1": 1.0, "effort_2": 1.0}, Measure("time"), "the same for every word: effort, "),
        ({"time": 1.0}, Measure("time"), "the same for every word: time"),
        ({"before": "time"}, Measure("time", covariates=("before",)), "time holds only what other"),
        ({"a": "entropy_bits"}, Measure("time", covariates=("a",)), "entropy_bits holds only what other"),
        ({"a": "punctuation", "b": "punctuation"}, Measure("time", covariates=("a", "b")), ": b holds only what other"),
    ],
)
def test_columns_that_explain_nothing_are_refused_by_name(changed, measure, said):
    rows = made_rows(np.random.default_rng(1), texts=8)
    rows = rows.assign(**{name: rows[value] if isinstance(value, str) else value for name, value in changed.items()})
    with pytest.raises(InputError, match=said):
        analyse(rows, measure)


def test_too_few_words_for_the_coefficients_are_refused():
    rows = made_rows(np.random.default_rng(1), texts=3, words=40)
    with pytest.raises(InputError, match="114 words with two words before them and every predictor, in 3 texts; 115"):
        analyse(rows, Measure("time"))


def test_the_layers_of_a_deep_model_are_all_found_in_order():
    numbers = [100, 7, 101, 99, 10]
    names = [f"effort_{layer:02d}" for layer in numbers]
    words = pd.DataFrame(columns=["effort", "effort_1", "effort_2", "effort_load", "effort_00_1", *names])
    assert layer_columns(words) == dict(zip(numbers, names, strict=True))


def test_trials_get_the_predictors_of_their_words():
    words = pd.DataFrame({"text_id": ["a"] * 5, "word_index": range(1, 6), "word": ["The", "old", "cat", "sat", "up."]})
    numbers = pd.DataFrame({name: np.arange(5.0) * (place + 1) for place, name in enumerate(COLUMNS)})
    table = words.merge(pd.DataFrame({"subject": ["x", "y"]}), how="cross").assign(
        item="a", block=0, sentence_final=False, time=1.0
    )
    rows = prepared(ReadingCorpus("mine", [], table, (), 0), pd.concat([words, numbers], axis=1))
    assert len(rows) == 6  # three words with two before them, two subjects
    last = rows[(rows["word"] == "up.") & (rows["subject"] == "y")].iloc[0]
    assert (last["length"], last["length_1"], last["hidden_norm_2"]) == (4.0, 3.0, 8.0)
    bare = prepared(ReadingCorpus("mine", [], table, (), 0), pd.concat([words, numbers[["length"]]], axis=1))
    assert "effort_1" not in bare


# -- effects ------------------------------------------------------------------------------------------------------


def test_effects_are_those_of_a_mixed_model_and_their_errors_over_texts():
    rng = np.random.default_rng(2)
    items = np.repeat(np.arange(60), 20)
    x = rng.normal(size=(1200, 3))
    y = 5 + x @ [1.0, 0.5, 0.0] + rng.normal(0, 1, 60)[items] + rng.normal(0, 3, 1200)
    found = effects(Rows(y, x, items, items), [0, 1, 2], [0, 1], [2.0, 1.0])
    theirs = MixedLM(y, np.column_stack([np.ones(1200), x]), items).fit(reml=False)
    # statsmodels stops searching the variances at about 1e-5 of them.
    assert found["effect"] == pytest.approx(theirs.fe_params[1], rel=1e-4)
    assert found["total"] == pytest.approx(theirs.fe_params[1] + 2 * theirs.fe_params[2], rel=1e-4)
    # 60 texts: the standard error of a standard error is 1 / sqrt(120), 9 %
    covariance = np.asarray(theirs.cov_params())[1:3, 1:3]
    assert found["effect_se"] == pytest.approx(np.sqrt(covariance[0, 0]), rel=0.3)
    assert found["total_se"] == pytest.approx(np.sqrt([1, 2] @ covariance @ [1, 2]), rel=0.3)
    assert found["design"] == pytest.approx(found["effect_se"] ** 2 / covariance[0, 0], rel=0.05)
    assert found["effect_low"] < found["effect"] < found["effect_bound"] < found["effect_high"]
    # what the right coefficients gain: half the log of the ratio of the variances of errors, without and with them
    assert 0.5 * np.log((9 + 1.25) / 9) < found["gain_bound"] < 0.12


def test_the_detectable_effect_is_shown_four_times_in_five():
    effect, gained = detectable(error=2.0, design=1.5, words=1000, family=12, cost=1.7)
    q = effect / 2.0
    level = stats.norm.isf(0.05 / 12)
    assert stats.norm.sf(level - (q**2 / 2 - 1.7) / q) == pytest.approx(0.8)  # the gain's mean over its deviation, q
    assert gained == pytest.approx(1.5 * (q**2 / 2 - 1.7) / 1000)
    assert detectable(2.0, 1.5, 1000, 1, 1.7)[0] < effect


def test_the_largest_noncentrality_is_excluded_at_five_percent():
    assert stats.ncx2.cdf(8.0, 3, largest_noncentrality(8.0, 3)) == pytest.approx(0.05, abs=1e-9)
    assert largest_noncentrality(0.1, 3) == 0.0


# -- many measures ------------------------------------------------------------------------------------------------


def test_measures_that_were_not_computed_count_in_the_family():
    found = holm([0.001, 0.03, 0.004], 12)
    assert found == pytest.approx([0.012, 0.3, 0.044])  # times 12, 10, 11
    assert holm([0.01, 0.04], 2) == pytest.approx([0.02, 0.04])


def test_a_pooled_estimate_is_paule_and_mandels():
    values, errors = np.array([1.0, 3.0, 2.0, 6.0]), np.array([0.5, 0.8, 0.4, 1.0])
    found = pooled(values.tolist(), errors.tolist())
    weights = 1 / (errors**2 + found["tau"] ** 2)
    mean = weights @ values / weights.sum()
    assert weights @ (values - mean) ** 2 == pytest.approx(3, abs=1e-4)  # what defines tau
    assert found["estimate"] == pytest.approx(mean)
    half = stats.t.ppf(0.975, 3) / np.sqrt(weights.sum())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=1e-4)
    # Studies that agree better than their errors let expect: no variance between, and no shorter interval.
    alike = pooled([2.0, 2.0, 2.0], [0.3, 0.3, 0.3])
    assert (alike["estimate"], alike["tau"]) == (pytest.approx(2.0), 0.0)
    assert alike["high"] - 2.0 == pytest.approx(stats.t.ppf(0.975, 2) * 0.3 / np.sqrt(3))
    assert alike["bound"] == pytest.approx(2.0 + stats.t.ppf(0.95, 2) * 0.3 / np.sqrt(3))


# -- results ------------------------------------------------------------------------------------------------------


def test_the_family_is_the_confirmatory_measures_of_the_six_corpora():
    assert {name: len(SOURCES[name].confirmatory) for name in FAMILY} == FAMILY
    assert sum(FAMILY.values()) == 12


def kept(folder, corpus, measures, *, effort=True, schema="cladastats/human/2"):
    """A file as `cladastats human` writes it, with made numbers; of measures their unit, sign, and p of effort."""
    steps = ("surprisal", "entropy", "effort")[: 3 if effort else 2]
    numbers = {
        "delta_ll": 0.002, "ci_low": -0.001, "ci_high": 0.004, "se": 0.001, "design": 1.0, "gain_bound": 0.005,
        "effect": 3.0, "effect_low": 1.0, "effect_high": 5.0, "effect_se": 1.0, "effect_bound": 4.6,
        "total": 4.0, "total_low": 1.0, "total_high": 7.0, "total_se": 1.5, "total_bound": 6.5, "sd": 1.0, "cost": 1.7,
    }  # fmt: skip
    made = [
        {
            "measure": name, "confirmatory": True, "sign": sign, "words": 1000, "unit": unit, "units": 40,
            "units_are": "texts", "sd": 50.0,
            "rows": [numbers | {"predictor": step, "p": p if step == "effort" else 0.0001} for step in steps],
        }
        for name, unit, sign, p in measures
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{corpus}.json", with_checksum({"schema": schema, "corpus": corpus, "measures": made}))


@pytest.fixture
def folder(tmp_path):
    kept(tmp_path / "m", "ucl_et", [("gaze_ms", "ms", 1, 0.004), ("go_past_ms", "ms", 1, 0.5)])
    kept(tmp_path / "m", "ucl_erp", [("N400_uV", "microvolt", -1, 0.3), ("P600_uV", "microvolt", 0, 0.001)])
    kept(tmp_path / "m", "brothers2021", [("rt_sum3_mean_ms", "ms", 1, 0.3)])
    return tmp_path / "m"


def test_the_table_begins_with_the_positive_control_and_corrects_in_the_whole_family(folder):
    table = effect_table(folder)
    assert list(table["predictor"]) == ["surprisal"] * 5 + ["entropy"] * 5 + ["effort"] * 5
    assert set(table["family"]) == {12}
    effort = table[table["predictor"] == "effort"].set_index("measure")["p_holm"]
    assert effort.to_dict() == pytest.approx(
        {"gaze_ms": 0.044, "go_past_ms": 1.0, "N400_uV": 1.0, "P600_uV": 0.012, "rt_sum3_mean_ms": 1.0}
    )  # 0.004 times 11, 0.001 times 12
    assert effect_table(folder, ["ucl_et"])["p_holm"].iloc[-2] == pytest.approx(0.048)
    assert table["effect_sde"].iloc[0] == pytest.approx(detectable(1.0, 1.0, 1000, 12, 1.7)[0])


def test_a_table_of_the_users_own_is_a_family_of_its_measures(tmp_path):
    kept(tmp_path / "m", "mine", [("a", "ms", 0, 0.03), ("b", "ms", 0, 0.01)])
    table = effect_table(tmp_path / "m", ["mine"])
    assert set(table["family"]) == {2}
    assert list(table[table["predictor"] == "effort"]["p_holm"]) == pytest.approx([0.03, 0.02])
    assert "0 of 0 measures" in verdicts(table)[0]  # no sign of surprisal's effect is known
    assert pooled_table(table).empty


def test_one_measure_of_each_corpus_is_pooled_and_brain_responses_with_gains_alone(folder):
    found = pooled_table(effect_table(folder)).set_index(["predictor", "quantity"])
    assert found["studies"].to_dict()[("effort", "gain")] == 3
    assert found["studies"].to_dict()[("effort", "effect")] == 2
    assert found.loc[("effort", "effect"), "estimate"] == pytest.approx(3.0 / 50)
    assert found.loc[("effort", "gain"), "estimate"] == pytest.approx(0.002)


@pytest.mark.parametrize("fmt", ["text", "markdown", "latex", "html"])
def test_tables_for_people_say_the_size_of_the_family(folder, fmt):
    said = show(effect_table(folder), fmt)
    assert "family of 12 measures" in said
    assert said.index("surprisal") < said.index("effort")
    for word in ("detectable", "excluded", "with lags", "brothers2021"):
        assert word in said


def test_verdicts_say_what_was_to_be_seen(folder, tmp_path):
    said = verdicts(effect_table(folder))
    assert said[0].startswith("Positive control: surprisal beyond the baseline predicts 5 of 5 measures better")
    assert "the known sign in 3 of 4 measures" in said[0]
    assert "2 of 5 measures are predicted better with it and its two lags" in said[1]
    assert "gaze_ms (more with more effort)" in said[1]
    assert "Excluded are gains over 5.0, effects over 4.6 ms of the word itself, and 6.5 ms with its lags." in said[2]
    assert sum(line.startswith("Pooled over") for line in said) == 6
    kept(tmp_path / "bare", "ucl_et", [("gaze_ms", "ms", 1, 0.0)], effort=False)
    assert verdicts(effect_table(tmp_path / "bare"))[1] == "Nothing is said of effort: these words have none."


@pytest.mark.parametrize(
    ("effect", "p", "said"),
    [(-0.2, 0.01, "is supported"), (0.2, 0.01, "is contradicted"), (-0.2, 0.06, "is not supported")],
)
def test_verdicts_look_at_the_sign(folder, effect, p, said):
    table = effect_table(folder, ["ucl_erp"])
    row = (table["measure"] == "N400_uV") & (table["predictor"] == "effort")
    table.loc[row, ["effect", "total", "p_holm"]] = effect, effect, p
    lines = verdicts(table)
    assert ("N400_uV (less with more effort)" in lines[1]) == (p < 0.05 and effect < 0)
    assert any(f"the N400 {said}" in line for line in lines)


def test_results_of_an_earlier_version_are_refused_with_the_remedy(tmp_path):
    kept(tmp_path / "m", "ucl_et", [("gaze_ms", "ms", 1, 0.1)], schema="cladastats/human/1")
    with pytest.raises(StudyError, match=r"computed by an earlier version.*delete it and run 'cladastats human' again"):
        effect_table(tmp_path / "m")
    (tmp_path / "m" / "ucl_et.json").write_text('{"schema": "clada/plan/1"}')
    with pytest.raises(StudyError, match="give a file of that kind"):
        effect_table(tmp_path / "m")
