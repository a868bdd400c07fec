"""The whole chain on real input: every number of a panel again from the corpus, with plain transformers only."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from clada.errors import NotIdentifiedError, StudyError
from clada.methods.coefficients import read_coefficients
from clada.models.assets import ASSETS
from clada.models.gguf import converted_folder
from cladastats.corpus import DEFAULTS, make_study
from cladastats.panel.columns import fit_columns
from cladastats.regress import regress, write_coefficients
from cladastats.similarities.metrics import METRICS
from cladastats.similarity import similarity
from cladastats.study import Study


@pytest.fixture(scope="module")
def by_hand(small_study):
    """Activations [30, 1536], surprisal and entropy of each sequence: transformers, hooks, one whole run each."""
    folder = converted_folder(ASSETS["smollm2-135m"].sha256)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = [m for name, m in model.named_modules() if re.search(r"layers\.\d+\.mlp\.down_proj$", name)]
    captured = {}
    for number, module in enumerate(layers):
        module.register_forward_pre_hook(lambda _m, args, i=number: captured.__setitem__(i, args[0][0, -1].double()))
    found = {}
    for ids, sequence_id in zip(small_study.corpus["token_ids"], small_study.corpus["sequence_id"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor(np.array(ids)[None], dtype=torch.long), use_cache=False).logits[0, -2].double()
        p = logits.softmax(-1)
        surprisal, entropy = -torch.log2(p[int(ids[-1])]), -(p * torch.log2(p)).nansum()
        found[sequence_id] = (np.stack([captured[i].numpy() for i in range(30)]), float(surprisal), float(entropy))
    return found


def test_corpus_file_has_the_promised_columns_and_sequences(small_study):
    corpus = small_study.corpus
    assert list(corpus.columns)[:9] == [
        "sequence_id", "group", "role", "pair", "ratio", "prefix_len", "token_ids", "documents", "target_distance",
    ]  # fmt: skip
    assert (corpus["token_ids"].map(len) == 65).all()
    assert corpus.groupby(["group", "role"]).size().to_dict() == {
        (group, role): n for group in ("nls", "rts") for role, n in (("A", 6), ("B", 6), ("hybrid", 18), ("matched", 6))
    }
    for (_, _), block in corpus.groupby(["group", "pair"]):
        ids = {row.role if row.role != "hybrid" else row.prefix_len: list(row.token_ids) for row in block.itertuples()}
        for p in (16, 24, 32):
            assert ids[p] == ids["B"][:p] + ids["A"][p:]
        assert ids["matched"] == ids["B"][:64] + ids["A"][64:]


def test_index_agrees_with_plain_transformers(small_study, by_hand):
    index = small_study.index.set_index("sequence_id")
    assert set(index.index) == set(by_hand)
    for sequence_id, (_, surprisal, entropy) in by_hand.items():
        assert index.loc[sequence_id, "surprisal_bits"] == pytest.approx(surprisal, abs=1e-3)  # bits
        assert index.loc[sequence_id, "entropy_bits"] == pytest.approx(entropy, abs=1e-3)


def cosine_of(x, y):
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)])


def cka_of(x, y):
    return np.mean([np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(x, y, strict=True)])


@pytest.mark.parametrize(("metric", "compare"), [("cosine", cosine_of), ("cka", cka_of)])
def test_every_row_of_the_panel_agrees_with_plain_transformers(small_study, by_hand, metric, compare):
    panel = small_study.panel(metric)
    assert len(panel) == 2 * 6 * 3
    rows = {
        (r.group, r.role, r.pair, r.ratio if r.role == "hybrid" else None): r for r in small_study.corpus.itertuples()
    }
    for row in panel.itertuples():
        a, b, m = (by_hand[rows[row.group, role, row.pair, None].sequence_id][0] for role in ("A", "B", "matched"))
        hybrid = rows[row.group, "hybrid", row.pair, row.ratio]
        h, surprisal, entropy = by_hand[hybrid.sequence_id]
        sims = {
            name: compare(x, y)
            for name, x, y in (("ab", a, b), ("hb", h, b), ("ha", h, a), ("hb_matched", h, m), ("ab_matched", a, m))
        }
        for name, value in sims.items():
            assert getattr(row, f"sim_{name}") == pytest.approx(value, abs=1e-4)
        # Shifts divide by 1 - sim, here above 0.1, which takes the bound of the similarities up by that.
        assert row.shift_toward == pytest.approx((sims["hb"] - sims["ab"]) / (1 - sims["ab"]), abs=2e-3)
        assert row.shift_matched == pytest.approx(
            (sims["hb_matched"] - sims["ab_matched"]) / (1 - sims["ab_matched"]), abs=2e-3
        )
        assert row.shift_away == pytest.approx(1 - sims["ha"], abs=1e-4)
        assert row.surprisal_norm == pytest.approx(surprisal / np.log2(49152), abs=1e-4)
        assert row.entropy_norm == pytest.approx(entropy / np.log2(49152), abs=1e-4)
        assert row.prefix_len == round(row.ratio * 64) == hybrid.prefix_len
        assert row.token_len == 64


def test_layers_average_to_the_pooled_panel(small_study):
    layers = small_study.panel("layers-cka")
    assert layers.groupby(["group", "pair", "ratio"]).size().eq(30).all()
    keys = ["group", "pair", "ratio"]
    pooled = small_study.panel("cka").set_index(keys)
    means = layers.groupby(keys)["sim_hb"].mean()
    pd.testing.assert_series_equal(means, pooled["sim_hb"], check_exact=False, rtol=1e-12)  # the same float64 mean


def test_every_metric_writes_a_panel(small_study, by_hand):
    rows = small_study.corpus
    for metric in METRICS:
        similarity(small_study, metric)
        panel = small_study.panel(metric)
        assert len(panel) == 36
        assert panel[["sim_ab", "sim_hb", "sim_ha"]].notna().all().all()
    # cosine_centred again by hand: pair 0 of NLS, the mean of each neuron over A and B of the other pairs.
    nls = rows[(rows["group"] == "nls") & rows["role"].isin(["A", "B"])]
    others = np.mean([by_hand[i][0] for i in nls.loc[nls["pair"] != 0, "sequence_id"]], axis=0)
    a, b = (by_hand[nls.loc[(nls["pair"] == 0) & (nls["role"] == role), "sequence_id"].item()][0] for role in "AB")
    row = small_study.panel("cosine_centred").query("group == 'nls' and pair == 0").iloc[0]
    assert row["sim_ab"] == pytest.approx(cosine_of(a - others, b - others), abs=1e-4)
    similarity(small_study, "cka", "population")
    population = pd.read_parquet(small_study.folder / "population-cka.parquet")
    assert len(population) == 2 * 3 * 30 * 4
    assert population["cka"].le(1 + 1e-12).all()


def test_coefficients_come_from_the_natural_full_column(small_study):
    fit = regress(small_study, "cka")
    write_coefficients(small_study, fit)
    found = read_coefficients(small_study.folder / "coefficients.json")
    assert (found.lambda_, found.gamma) == (fit.column(6).coef["surprisal_norm"], fit.column(6).coef["entropy_norm"])
    assert fit.column(6).group == "nls"
    natural = small_study.corpus.query("group == 'nls' and role in ('A', 'B')").merge(
        small_study.index, on="sequence_id"
    )
    assert found.tau_surprisal_bits == pytest.approx(np.quantile(natural["surprisal_bits"], 0.7))
    assert found.model == "smollm2-135m"
    assert Study(small_study.folder).fit("cka").to_dict() == fit.to_dict()


def test_token_len_is_refused_by_name(small_study):
    with pytest.raises(NotIdentifiedError, match="token_len takes one value only"):
        fit_columns(small_study.panel("cka"), "cka", controls=["token_len"])


def test_a_study_of_something_else_is_refused(small_study):
    asked = dict.fromkeys(DEFAULTS)
    assert make_study(str(small_study.folder), {**asked, "pairs": 6}).config == small_study.config
    for name, value in (("model", "gemma3-270m"), ("pairs", 5), ("ratios", (0.5,)), ("source", "text:x"), ("seed", 4)):
        with pytest.raises(StudyError, match=rf"is a study with {name} .*, not .*; give another folder with --study"):
            make_study(str(small_study.folder), {**asked, name: value})


def test_the_corpus_file_alone_can_be_built_again(small_study, tmp_path):
    (tmp_path / "study.json").write_bytes((small_study.folder / "study.json").read_bytes())
    asked = dict.fromkeys(DEFAULTS)
    again = make_study(str(tmp_path), asked)
    assert again.config.corpus_sha256 == small_study.config.corpus_sha256
    pd.testing.assert_frame_equal(again.corpus, small_study.corpus)
