"""Real evaluation data beside the repository, where present: XSum articles through the first stage."""

from pathlib import Path

import numpy as np
import pytest

from cladastats.corpus import DEFAULTS, make_study
from cladastats.sequences.sources import load_documents

XSUM = Path(__file__).parents[2] / "shared" / "data" / "xsum" / "dev.jsonl"
pytestmark = pytest.mark.skipif(
    not XSUM.is_file(), reason=f"no XSum data beside the repository (looked for {XSUM.name})"
)


def test_mangled_articles_are_repaired_and_counted():
    documents = load_documents(f"jsonl:{XSUM}:document")
    share = documents.encoding["documents_repaired"] / documents.encoding["documents"]
    assert 0.05 < share < 0.25  # about 12 % of the public copies are mangled
    assert "Â£" in XSUM.read_text(encoding="utf-8")
    assert not any("Â£" in text for text in documents.texts)


def test_a_study_of_xsum_has_several_documents_in_a_sequence(tmp_path):
    asked = {**dict.fromkeys(DEFAULTS), "source": f"jsonl:{XSUM}:document", "pairs": 3, "length": 2048}
    asked["windows"] = "stream"
    study = make_study(str(tmp_path / "study"), asked)
    natural = study.corpus.query("group == 'nls' and role == 'A'")
    assert natural["documents"].map(len).min() > 1
    assert (natural["target_distance"] < 2048).all()
    assert study.config.corpus["pos_distance_max"] <= 0.02
    assert np.isfinite(study.corpus.query("group == 'rts' and role == 'A'")["pos_distance"]).all()
