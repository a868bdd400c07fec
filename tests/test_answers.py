"""Sentences made of a study's numbers: they say what the numbers say, whichever way these point."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_claims import checked_fits, checks
from test_regress import simulate_panel

from clada.errors import StudyError
from clada.measure.plots import load_figure
from clada.methods.coefficients import Coefficients
from cladastats.panel.answers import about, coefficients_answer, load_answer, prefix_answer, with_longer
from cladastats.panel.case_study import CaseStudy, case_answer, map_likeness, maps_answer
from cladastats.panel.columns import fit_columns
from cladastats.panel.overview import responses_by_ratio
from cladastats.panel.power import Design, paper_correlation, plan, seen
from cladastats.regress import coefficients_from_fit
from cladastats.results.robustness import checks_of_term
from cladastats.study import Study

CONFIG = SimpleNamespace(
    model="smollm2-135m", source="news", pairs=60, length=2048, ratios=(0.25, 0.375, 0.5), windows="document",
    equivalence_margin=0.5, equivalence_margin_source="a pilot", vocab_size=49152,
)  # fmt: skip


@pytest.fixture(scope="module")
def panel():
    """Within pairs, load varies enough to be tested; natural text follows less, and load disturbs it."""
    return simulate_panel(n_pairs=60)


@pytest.fixture(scope="module")
def fits(panel):
    return checked_fits(panel)


def study_of(fits, panel, folder, **config):
    """A study as far as answers look at it."""
    return SimpleNamespace(
        folder=folder,
        config=SimpleNamespace(**{**vars(CONFIG), **config}),
        fit=lambda metric: fits[metric],
        fit_path=lambda metric, _response: Path(f"fits/{metric}.json"),
        panel=lambda _metric: panel,
    )


def test_the_prefix_answer_has_the_means_the_verdicts_and_the_power(fits, panel, tmp_path):
    answer = prefix_answer([study_of(fits, panel, tmp_path)])
    for row in responses_by_ratio(panel).query("ratio == 0.5").itertuples():
        label = "natural text (NLS)" if row.group == "nls" else "random words (RTS)"
        (line,) = (line for line in answer.splitlines() if line.startswith(f"| {label}"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [f"{100 * value:.2g} %" for value in (row.mean, row.ci_low, row.ci_high, row.median)]
        assert cells == [label, "50 %", numbers[0], f"{numbers[1]} to {numbers[2]}", numbers[3], "60"]
    (supported,) = (line for line in answer.splitlines() if line.startswith("- Supported"))
    for group in ("NLS", "RTS"):
        assert f"2.1, {group}: activations follow a longer prefix (r², one-feature CKA; cosine)" in supported
    assert "Obs. 2: NLS follows its prefix less than RTS" in supported
    assert "2.2" not in answer
    enough = seen(fits["cka"]).query("term == 'prefix_len'")["large_enough"]
    assert answer.endswith(
        {
            (True, True): "large enough for the prefix in random words (RTS) and the prefix in natural text (NLS).",
            (False, False): "too small for the prefix in random words (RTS) and the prefix in natural text (NLS).",
            (True, False): "large enough for the prefix in random words (RTS), and too small for the prefix in natural "
            "text (NLS).",
            (False, True): "large enough for the prefix in natural text (NLS), and too small for the prefix in random "
            "words (RTS).",
        }[tuple(enough)]
    )


def test_a_panel_turned_round_gives_the_opposite_answer(panel, tmp_path):
    """Nothing in a sentence depends on the sign that we expect."""
    turned = panel.assign(shift_toward=-panel["shift_toward"])
    fit = fit_columns(turned, "cka")
    made = {metric: replace(fit, metric=metric, robustness=checks(turned, fit, turned)) for metric in ("cka", "cosine")}
    study = study_of(made, turned, tmp_path)
    (contradicted,) = (line for line in prefix_answer([study]).splitlines() if line.startswith("- Contradicted"))
    assert "2.1, NLS: activations follow a longer prefix" in contradicted
    (contradicted,) = (line for line in load_answer(study).splitlines() if line.startswith("- Contradicted"))
    assert "2.2, NLS: surprisal disturbs flocking" in contradicted


def test_the_load_answer_has_the_shares_and_the_verdicts(fits, panel, tmp_path):
    answer = load_answer(study_of(fits, panel, tmp_path))
    for number, label in ((6, "natural text (NLS)"), (5, "random words (RTS)")):
        within = fits["cka"].column(number).within
        shares = [f"{within[term]['share_within']:.2%}" for term in ("surprisal_norm", "entropy_norm")]
        (line,) = (line for line in answer.splitlines() if line.startswith(f"| {label}"))
        assert [cell.strip() for cell in line.strip("|").split("|")] == [label, *shares]
    (supported,) = (line for line in answer.splitlines() if line.startswith("- Supported"))
    assert "2.2, NLS: entropy disturbs flocking" in supported
    assert "2.1" not in answer
    # Of random words the paper claims no effect, so that there is none to be large enough for.
    assert "in random words" not in answer.rpartition("**Is the study large enough?**")[2]


def test_what_stands_between_and_what_is_lacking_is_said(fits, panel, tmp_path):
    said = about(study_of(fits, panel, tmp_path))
    assert "Every natural text lies within one document." in said
    assert said.endswith(
        "This study has no panel of r² without the few neurons of massive activity, Pearson's r, population CKA and no "
        "record of what stands between the exchanged beginning and the last word. What follows goes without, and a "
        "verdict that needs it is undecided."
    )
    for name in ("panel-cka_trimmed", "panel-pearson", "population-cka"):
        (tmp_path / f"{name}.parquet").touch()
    recorded = panel.assign(target_distance=1, separator_between=panel["ratio"] == 0.25)
    said = about(study_of(fits, recorded, tmp_path, windows="stream"))
    assert said.endswith("In this study one does in 33% of the natural rows.")
    said = about(study_of(fits, panel, tmp_path, windows="stream"))
    assert "another document may begin between" in said
    assert "one does in" not in said


def test_longer_prefixes_are_of_the_folder_beside(small_copy):
    assert [study.folder for study in with_longer(small_copy)] == [small_copy.folder]
    longer = small_copy.folder.with_name(f"{small_copy.folder.name}-long")
    longer.mkdir()
    shutil.copy(small_copy.folder / "study.json", longer)
    assert [study.folder for study in with_longer(Study(small_copy.folder))] == [small_copy.folder, longer]


@pytest.mark.parametrize(
    ("lam", "ci", "said"),
    [
        (-0.5, (-0.7, -0.3), "by 0.5, so that the engine computes more neurons. The 95 % interval of lambda, -0.7 to "
         "-0.3, excludes zero."),
        (0.2, (-0.1, 0.5), "by 1.2, so that the engine computes fewer neurons. The 95 % interval of lambda, -0.1 to "
         "0.5, includes zero, so that the study does not decide the direction."),
        (0.0, (0.0, 0.0), "by 1, so that the engine computes as many neurons as without a rule."),
    ],
)  # fmt: skip
def test_the_coefficients_answer_follows_the_sign_and_the_interval(fits, panel, tmp_path, lam, ci, said):
    content = coefficients_from_fit(
        fits["cka"], tau_surprisal_bits=7.06, tau_entropy_bits=6.0, tau_quantile=0.7, vocab_size=49152,
        model="smollm2-135m", study={},
    )  # fmt: skip
    content |= {"lambda": lam, "ci": {**content["ci"], "lambda": list(ci)}}
    study = study_of(fits, panel, tmp_path)
    with pytest.raises(StudyError, match=r"has no coefficients\.json; run 'cladastats regress --study "):
        coefficients_answer(study)
    (tmp_path / "coefficients.json").write_text(json.dumps(content))
    answer = coefficients_answer(study)
    assert f"**High surprisal** (above 7.1 bits) multiplies the thresholds {said}" in answer
    (supported,) = (line for line in answer.splitlines() if line.startswith("- Supported"))
    assert supported.endswith(
        "2.2, NLS: surprisal disturbs flocking (r², one-feature CKA); 2.2, NLS: entropy disturbs flocking (r², "
        "one-feature CKA)."
    )


def test_effects_that_a_study_sees_are_those_of_a_plan_of_its_size(fits):
    own, planned = seen(fits["cka"]), plan(fits["cka"], [60], 12)
    for row, same in zip(own.itertuples(), planned.itertuples(), strict=True):
        assert (row.column, row.term, row.paper_r) == (same.column, same.term, same.paper_r)
        assert row.smallest_effect == pytest.approx(same.smallest_effect, rel=1e-12)  # the same sum in another order
        assert row.large_enough == same.sees_r
    design = Design.of(fits["cka"].column(6), "entropy_norm")
    assert own.iloc[-1]["paper_here"] == design.coefficient(paper_correlation("cka", 6, "entropy_norm"))


def test_one_coefficient_by_every_check():
    """Of the repository's own fits, also those that an earlier version made."""
    fit = Study(Path(__file__).parents[1] / "figures" / "studies" / "pilot-smollm2-135m").fit("cka")
    table = checks_of_term(fit, "prefix_len")
    assert list(table.columns) == ["NLS", "RTS"]
    alone = fit.column(2)
    assert (
        table.loc["test of a hypothesis", "NLS"] == f"{alone.coef['prefix_len']:.3g}, p = {alone.p['prefix_len']:.2g}"
    )
    low, high = fit.robustness["bootstrap"]["2"]["prefix_len"]["ci"]
    assert table.loc["cluster bootstrap", "NLS"] == f"{alone.coef['prefix_len']:.3g} [{low:.3g}, {high:.3g}]"
    trimmed = fit.robustness["trimmed"]["rts"]["prefix_len"]
    assert table.loc["without massive neurons", "RTS"].startswith(f"{trimmed['coef']:.3g} [")
    loads = checks_of_term(fit, "entropy_norm")
    full = fit.column(6)
    assert loads.loc["test of a hypothesis", "NLS"].startswith(f"{full.coef['entropy_norm']:.3g}, p = ")
    assert "permuted ratios" not in loads.index
    earlier = replace(fit, robustness=json.loads(json.dumps(fit.robustness)))
    for value in earlier.robustness["per_pair"].values():
        value["n_pairs"] = value.pop("slopes")
    assert checks_of_term(earlier, "prefix_len").equals(table)


def test_the_sentences_answer_counts_what_holds():
    def found(metric, verdicts):
        claims = pd.DataFrame({"claim": list("abcde"), "verdict": verdicts})
        return CaseStudy(metric, (), np.eye(1), np.eye(1), claims)

    some = ["holds", "does not hold", "holds", "does not hold", "does not hold"]
    assert case_answer([found("cka", some), found("cosine", ["does not hold"] * 5)]) == (
        "By r², one-feature CKA, 2 of 5 claims hold (a, c). By cosine, 0 of 5 claims hold."
    )


def test_the_maps_answer_names_the_nearer_text():
    a, b = np.array([[9.0, 9, 9], [1, 2, 3]]), np.array([[9.0, 9, 9], [3, 1, 2]])
    like = {"A": a, "B": b, "A'": -a}  # magnitudes count; the first token is of the exchanged beginning
    assert map_likeness(like, 1) == pytest.approx({("A", "B"): -0.5, ("A'", "A"): 1, ("A'", "B"): -0.5})
    assert (
        "more like those of A, whose words they are. The correlation is 1.000 with A and -0.500 with B"
        in maps_answer(like, 1)
    )
    assert "more like those of B, the text of the beginning." in maps_answer({**like, "A'": b}, 1)


def test_load_of_generated_tokens_is_drawn_with_its_thresholds():
    steps = [
        {"surprisal_bits": s, "entropy_bits": h, "load_surprisal": s > 3, "load_entropy": h > 2}
        for s, h in ((1.0, 1.0), (4.0, 1.5), (2.0, 2.5))
    ]
    figure = load_figure([{"steps": steps}], Coefficients(-0.1, 0.1, 3.0, 2.0))
    upper, lower = figure.axes
    assert [list(line.get_ydata()) for line in upper.lines] == [[1.0, 4.0, 2.0], [4.0], [3.0, 3.0]]
    assert [list(line.get_xdata()) for line in lower.lines][:2] == [[0, 1, 2], [2]]
    assert upper.get_title() == ""  # one prompt needs no number
