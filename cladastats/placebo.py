"""`cladastats placebo`: studies made of a study, which say whether it is the prefix that matters."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["placebo", *sys.argv[1:]]))

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from clada.models.open import bos_tokens
from cladastats.extract import extract
from cladastats.panel.columns import complete_rows
from cladastats.panel.within import Within, within_summary
from cladastats.results.fit import RESPONSES
from cladastats.sequences.pairs import check_ratios, pair_rows
from cladastats.sequences.placebos import derived_study, make_placebo
from cladastats.sequences.tokenizer import study_tokenizer
from cladastats.sequences.windows import Window
from cladastats.similarity import similarity
from cladastats.study import Study


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    extract(make_placebo(Study(args.study), args.pairs))


def earlier_token(study: Study, metric: str = "cka", pairs: int | None = None) -> pd.DataFrame:
    """The prefix's effect one token earlier, beside that at the target, on the same pairs (B.1: why token 2,049?).

    Makes and extracts a study of its own in `STUDY/earlier`, whose sequences end one token before.

    Returns:
        a row per group and token (`target`, `earlier`): coef per 1,000 tokens, se, ci_low, ci_high, p, n_pairs.
    """
    config = study.config

    def rows(n_pairs: int) -> Iterator[dict[str, Any]]:
        check_ratios(config.ratios, config.length - 1, len(bos_tokens(study_tokenizer(config))))
        corpus = study.corpus
        for (group, pair), block in corpus[corpus["pair"] < n_pairs].groupby(["group", "pair"], sort=True):
            a, b = (
                Window(
                    row.token_ids[:-1],
                    [d for d in row.documents if d < config.length],
                    max(0, row.target_distance - 1),
                    following=np.append(row.token_ids[-1:], getattr(row, "following", ())).astype(np.int32),
                    document=getattr(row, "document", None),
                )
                for role in ("A", "B")
                for row in block[block["role"] == role].itertuples()
            )
            cluster = block["cluster"].iloc[0] if "cluster" in block else pair
            for made in pair_rows(group, pair, a, b, config.ratios, config.length - 1):
                yield {**made, "cluster": cluster}

    earlier = derived_study(study, "earlier", pairs, rows, {}, config.length - 1)
    extract(earlier)
    similarity(earlier, metric)
    records = []
    for token, panel in (("target", study.panel(metric)), ("earlier", earlier.panel(metric))):
        for group, rows_of_group in panel[panel["pair"] < earlier.config.pairs].groupby("group"):
            data, _ = complete_rows(rows_of_group, group, RESPONSES["toward"], ("prefix_len",))
            prefix = within_summary(Within.of(data, RESPONSES["toward"], ["prefix_len"]))["prefix_len"]
            low, high = prefix.pop("ci")
            n_pairs = data.index.get_level_values("pair").nunique()
            records.append(
                {"group": group, "token": token, **prefix, "ci_low": low, "ci_high": high, "n_pairs": n_pairs}
            )
    return pd.DataFrame.from_records(records)
