"""Robustness checks, controls, placebos, claims, case study and maps of a real study."""

import io
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_regress import same

from clada.errors import InputError, StudyError
from clada.models.open import load_model, load_tokenizer
from cladastats.activations.parts import read_parts
from cladastats.cli import main
from cladastats.controls import controls
from cladastats.figures import activation_figure, coefficient_figure, layer_figure
from cladastats.panel.case_study import CLAIMS, activation_maps, case_gaps, case_study, mapped_pair
from cladastats.panel.claims import claims
from cladastats.panel.overview import across_measures, beside, descriptive, side_by_side
from cladastats.placebo import earlier_token
from cladastats.results.fit import FORMATS
from cladastats.results.robustness import ROBUST_COLUMNS, render_robustness, robustness_rows
from cladastats.sequences.placebos import PLACEBOS, make_placebo
from cladastats.sequences.sources import load_documents
from cladastats.study import Study


@pytest.fixture(scope="module")
def checked(small_study, tmp_path_factory):
    """A copy of the small study with placebo hybrids, an independent model's surprisal and robustness checks."""
    folder = tmp_path_factory.mktemp("robust") / "study"
    shutil.copytree(small_study.folder, folder)
    assert main(["placebo", "--study", str(folder), "--pairs", "3"]) == 0
    assert main(["controls", "--study", str(folder), "--independent", "gemma3-270m"]) == 0
    assert main(["regress", "--study", str(folder), "--claims"]) == 0  # it makes the checks of both metrics
    return Study(folder)


def test_everything_is_answered_and_shown_in_every_format(checked):
    fit = checked.fit("cka")
    rows = robustness_rows(fit)
    assert list(rows.columns) == list(ROBUST_COLUMNS)
    for check in (
        "test of a hypothesis", "ordered contrast", "cluster bootstrap", "permuted ratios", "every step rises",
        "NLS - RTS", "equivalence", "mixed model",
        "with controls", "without massive neurons", "placebo: end", "median of the layers", "with ratio effects",
        "smallest effect seen at 80 % power", "share of pairs that rise",
    ):  # fmt: skip
        assert check in set(rows["check"]), check
    assert "independent_surprisal_norm" in set(rows["term"])
    assert fit.robustness["notes"] == [
        "too few pairs to fit loads and controls between pairs",  # six of them
        "NLS and RTS: every pair is in the stratum 'no separator at any ratio'",
        "RTS: every pair is in the stratum 'target 64 tokens into its document'",
    ]
    assert rows["check"].str.startswith("stratum: target").sum() == 3  # thirds of the natural pairs
    assert fit.robustness["reuse"] == {"reused": False}
    equivalent = rows[rows["check"] == "equivalence"].iloc[0]
    assert "90 % interval" in equivalent["note"]
    assert pd.isna(equivalent["ci_low"])  # the columns are of 95 %
    layer = rows[(rows["check"] == "median of the layers") & (rows["group"] == "NLS")].iloc[0]
    values = [r["coef"] for r in fit.robustness["layers"] if (r["group"], r["term"]) == ("nls", "prefix_len")]
    assert layer["estimate"] == same(float(np.median(values)))
    for fmt in FORMATS:
        if fmt != "json":
            shown = render_robustness(fit, fmt)
            assert "cluster bootstrap" in shown
            if fmt == "latex":
                assert "$-$" in shown
                assert not re.search(r"(?<!\\)[_%&#](?!\S*\})", re.sub(r" & ", " ", shown)), shown
            assert "nan" not in shown.lower().replace("dominant", "")
    json.loads(checked.fit_path("cka", "toward").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_answers_outlive_a_plain_fit_of_the_same_panel(checked):
    before = checked.fit("cka").robustness
    assert main(["regress", "--study", str(checked.folder)]) == 0
    assert checked.fit("cka").robustness == before
    with pytest.raises(InputError, match="has no robustness checks; run 'cladastats regress --robust'"):
        render_robustness(replace(checked.fit("cosine"), robustness={}), "text")
    assert main(["regress", "--study", str(checked.folder), "--robust", "--controls", "frequency_zipf"]) == 2


def test_a_control_by_name_and_one_that_pairs_absorb(checked, capsys):
    study = str(checked.folder)
    assert main(["regress", "--study", study, "--controls", "previous_surprisal_norm"]) == 0
    assert "previous_surprisal_norm" in capsys.readouterr().out
    assert main(["regress", "--study", study, "--controls", "frequency_zipf"]) == 2
    assert "frequency_zipf is constant within every pair, so the pair effects absorb it" in capsys.readouterr().err


def test_placebo_panel_has_every_kind_and_its_study_is_its_own(checked, small_study, capsys):
    placebo = make_placebo(checked)
    panel = placebo.panel("cka")
    assert len(panel) == 2 * 3 * len(checked.config.ratios) * len(PLACEBOS)
    assert set(panel["placebo"]) == set(PLACEBOS)
    # A and B are the study's own, so that what placebo hybrids are compared with is the same.
    both = panel.merge(checked.panel("cka"), on=["group", "pair", "ratio"])
    np.testing.assert_allclose(both["sim_ab_x"], both["sim_ab_y"], rtol=1e-4)  # float32 forwards in other segments
    with pytest.raises(StudyError, match="has 3 pairs, not 5; delete it to make another"):
        make_placebo(checked, 5)
    with pytest.raises(InputError, match="placebo hybrids need 2 pairs"):
        make_placebo(small_study, 1)
    # Commands that are of a study, not of one made from it, say so.
    assert main(["figures", "--study", str(placebo.folder)]) == 2
    assert "holds hybrids of several kinds" in capsys.readouterr().err
    assert main(["similarity", "--study", str(placebo.folder), "--estimator", "population"]) == 2
    assert "population CKA is of one kind" in capsys.readouterr().err
    corpus = placebo.folder / "corpus.parquet"
    kept = corpus.rename(placebo.folder / "kept")
    assert main(["corpus", "--study", str(placebo.folder)]) == 2
    assert "has lost its corpus.parquet, which was made of another study's" in capsys.readouterr().err
    kept.rename(corpus)
    assert main(["corpus", "--study", str(placebo.folder)]) == 2
    assert "is made of another study's corpus; give that study's own folder" in capsys.readouterr().err


def test_controls_are_of_the_target_and_its_word(checked):
    table = controls(checked)
    corpus = checked.corpus
    hybrids = corpus[corpus["role"] == "hybrid"]
    assert len(table) == len(hybrids)
    tokenizer = load_tokenizer(checked.config.model)
    for row, (_, hybrid) in zip(table.itertuples(), hybrids.iterrows(), strict=True):
        assert row.target_length == len(tokenizer.decode(hybrid["token_ids"][-1:]).strip())
    assert table.groupby(["group", "pair"])["frequency_zipf"].nunique().max() == 1
    known = table["frequency_zipf"].dropna()  # missing where the target is no word, or none that is known
    assert len(known)
    assert known.between(0.01, 8).all()
    assert table["frequency_zipf"].max() > 4  # some target is a common word


def test_every_claim_has_the_estimate_of_its_file_and_keeps_what_is_there(checked, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (checked.folder / "fits").iterdir()}
    assert main(["regress", "--study", str(checked.folder), "--claims", "--format", "csv"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (checked.folder / "fits").iterdir()} == before
    shown = pd.read_csv(io.StringIO(capsys.readouterr().out))
    table = claims(checked)
    assert shown["estimate"].to_numpy() == pytest.approx(table["estimate"].to_numpy(), rel=1e-12)  # written as text
    for metric in ("cka", "cosine"):
        own = table[table["metric"] == metric].set_index("claim")
        assert len(own) == 14
        row = own.loc["2.2, NLS: surprisal disturbs flocking"]
        assert row["estimate"] == checked.fit(metric).column(6).coef["surprisal_norm"]
        assert row["test"].startswith("Holm of 12 (wild p ")  # of six pairs
        assert not any("not there" in agreeing for agreeing in own["agreeing"])


def test_every_measure_beside_each_other(checked):
    table = across_measures([checked])
    labels = ("r², one-feature CKA", "r², one-feature CKA, trimmed", "cosine")
    assert list(table["metric"]) == [label for label in labels for _ in range(2)]
    assert list(table["group"]) == ["NLS", "RTS"] * 3
    row, fit = table.iloc[1], checked.fit("cka")
    low, high = fit.column(1).ci["prefix_len"]
    assert row["prefix"] == f"{fit.column(1).coef['prefix_len']:.3g} [{low:.3g}, {high:.3g}]"
    short = beside([fit, checked.fit("cosine")])
    assert list(short.columns) == ["metric", "effect", "NLS", "RTS"]
    assert list(short["effect"]) == ["prefix", "surprisal", "entropy"] * 2
    assert short.loc[0, "RTS"] == row["prefix"]
    assert short.loc[5, "NLS"].startswith(f"{checked.fit('cosine').column(6).coef['entropy_norm']:.3g} [")
    same = fit.robustness["ratio_effects"]["rts"]["entropy_norm"]
    assert row["entropy at equal ratio"].startswith(f"{same['coef']:.3g} [")
    assert row["entropy"].startswith(f"{fit.column(5).coef['entropy_norm']:.3g} [")


def test_claims_of_the_case_study_are_counted_as_written():
    similarity = np.eye(13)
    similarity[3, 0] = similarity[5, 0] = similarity[8, 0] = 0.9  # 4, 6 and 9 to 1
    similarity[3, 1] = 0.95  # but 4 is nearer to 2
    gaps = case_gaps(similarity, *CLAIMS["a"][1:])
    assert gaps.tolist() == pytest.approx([-0.05, 0.9, 0.9, 0.9, 0.9, 0.9])
    _, samples, near, far = CLAIMS["e"]
    assert len(case_gaps(similarity, samples, near, far)) == 3 * 11  # a sample does not compete with itself


def test_case_study_on_a_real_model():
    model, tokenizer = load_model("smollm2-135m")
    found = case_study(model, tokenizer)
    assert found.layers.shape == (30, 13, 13)
    np.testing.assert_allclose(found.similarity, found.layers.mean(0))
    np.testing.assert_allclose(found.similarity, found.similarity.T)
    assert found.similarity[0, 7] == pytest.approx(1)  # sample 8 is sample 1
    # The last word decides: sentences that end in "city" are nearer to each other than to those that do not.
    assert found.similarity[:8, :8].min() > found.similarity[:8, 8:].max()
    assert list(found.claims["claim"]) == list("abcde")


def test_maps_end_in_the_activations_of_the_study(checked):
    model, tokenizer = load_model(checked.config.model)
    texts = mapped_pair(checked, tokenizer)
    assert texts.source == "pair 0 of the study's natural text (NLS)"
    maps = activation_maps(model, texts, layer=4)
    corpus = checked.corpus
    block = corpus[(corpus["group"] == "nls") & (corpus["pair"] == 0)]
    part, _ = next(iter(read_parts(checked)))
    for name, row in (("A", block[block["role"] == "A"].iloc[0]), ("A'", block[block["role"] == "hybrid"].iloc[0])):
        stored = part.tensors["activations"][part.sequence_ids.index(row["sequence_id"])][4]
        assert maps[name].shape == (65, 1536)
        # float32 sums in another order
        assert np.abs(maps[name][-1] - stored).max() <= 1e-4 * np.abs(stored).max()
    p = texts.prefix
    assert p == block[block["role"] == "hybrid"]["prefix_len"].min()
    assert np.abs(maps["A'"][:p] - maps["B"][:p]).max() <= 1e-4 * np.abs(maps["B"][:p]).max()


def test_maps_of_a_study_without_its_texts_are_of_the_embedded_news(small_copy):
    """As the repository's studies are kept."""
    (small_copy.folder / "corpus.parquet").unlink()
    model, tokenizer = load_model(small_copy.config.model)
    texts = mapped_pair(small_copy, tokenizer)
    assert texts.source == "two articles of the embedded news, as the study is kept without its texts"
    assert (texts.prefix, [len(ids) for ids in texts.tokens.values()]) == (16, [65] * 3)
    a, b, hybrid = texts.tokens.values()
    assert [*hybrid] == [*b[:16], *a[16:]]
    assert [*a] != [*b]
    news = load_documents("news").texts
    assert all(any(text.startswith(tokenizer.decode(ids[:-1])) for text in news) for ids in (a, b))
    figure = activation_figure(activation_maps(model, texts, layer=4), texts.prefix)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["A", "B", "A'"]


def test_the_token_before_is_a_study_of_sequences_cut_by_one(checked):
    table = earlier_token(checked, pairs=3)
    assert table.groupby("token").size().to_dict() == {"earlier": 2, "target": 2}
    assert (table["n_pairs"] == 3).all()
    earlier = Study(checked.folder / "earlier").corpus.set_index(["group", "pair", "role"])["token_ids"]
    whole = checked.corpus.set_index(["group", "pair", "role"])["token_ids"]
    for role in ("A", "B"):
        assert earlier["rts", 2, role].tolist() == whole["rts", 2, role].tolist()[:-1]


def test_figures_and_tables_of_a_checked_study(checked):
    fits = {metric: checked.fit(metric) for metric in ("cka", "cosine")}
    axes = coefficient_figure(fits).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["r², one-feature CKA", "cosine"]
    assert len(axes) == 3
    assert len(layer_figure(fits["cka"]).axes) == 2 * 3
    with pytest.raises(StudyError, match="has no layers; run 'cladastats regress --metric cka --robust'"):
        layer_figure(replace(fits["cka"], robustness={}))
    table = side_by_side(list(fits.values()))
    assert table.loc[("r², one-feature CKA", "Prefix (1,000 tokens), published (t)"), "(2) NLS"] == "lost (20.16)"
    assert table.loc[("cosine", "Entropy (norm.), published (t)"), "(5) RTS"] == "-0.35 (-4.25)"
    panel = checked.panel("cka")
    shown = descriptive(panel).loc[("nls", "surprisal_bits")]
    rows = panel[panel["group"] == "nls"]
    assert shown["mean"] == pytest.approx(rows["surprisal_bits"].mean())
    assert shown["median"] == rows["surprisal_bits"].median()
    spread = (rows.groupby("pair")["surprisal_bits"].var() * 2).sum() / 12  # 3 rows a pair, 6 pairs: 12 of freedom
    assert shown["std_within"] == pytest.approx(math.sqrt(spread))


def test_independent_surprisal_is_the_other_models_of_the_same_text(checked):
    table = controls(checked)
    model, other = load_model("gemma3-270m")
    tokenizer = load_tokenizer(checked.config.model)
    corpus = checked.corpus
    hybrids = corpus[(corpus["role"] == "hybrid") & (corpus["group"] == "nls")].iloc[:4]
    values = table[table["group"] == "nls"]["independent_surprisal_bits"].to_numpy()
    compared = 0
    for ids, value in zip(hybrids["token_ids"], values, strict=False):
        whole, context = (tokenizer.decode(part).replace("<|endoftext|>", "<eos>") for part in (ids, ids[:-1]))
        tokens = other(whole)["input_ids"]
        known = len(other(context)["input_ids"])
        if tokens[:known] != other(context)["input_ids"]:
            continue  # the target grows onto the token before it
        with torch.inference_mode():
            log_p = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
        expected = -sum(float(log_p[i - 1, tokens[i]]) for i in range(known, len(tokens))) / math.log(2)
        assert value == pytest.approx(expected, abs=1e-3)  # float32 logits, shared beginnings
        compared += 1
    assert compared
    with pytest.raises(InputError, match="is the study's own model"):
        controls(checked, checked.config.model)
