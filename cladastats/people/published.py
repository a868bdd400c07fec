"""Corpora as their authors published them: participants' values, averaged to the tables of `cladastats.people.corpora`.

Written from the authors' descriptions and tested on files made after these; the columns of each are checked on reading.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from clada.errors import InputError


def naturalstories(folder: Path) -> pd.DataFrame:
    """`processed_RTs.tsv` and `all_stories.tok` of languageMIT/naturalstories: self-paced reading.

    Its zones are those of the words. (Files made before October 2021 have story 3 off by one from zone 228 on.)
    """
    words = _table(folder / "all_stories.tok", "\t", ("word", "zone", "item")).dropna(subset=["zone", "item"])
    times = _table(folder / "processed_RTs.tsv", "\t", ("item", "zone", "RT", "correct"))
    times = times[(times["correct"] > 4) & (times["RT"] > 100) & (times["RT"] < 3000)]
    means = times.groupby(["item", "zone"])["RT"].agg(["mean", "std", "count"]).reset_index()
    table = words.merge(means, on=["item", "zone"], how="left")
    return pd.DataFrame(
        {
            "text_id": "naturalstories_" + table["item"].astype(int).astype(str).str.zfill(2),
            "word_index": table["zone"].astype(int),
            "word": table["word"].astype(str).str.strip(),
            "spr_rt_mean_ms": table["mean"],
            "spr_rt_sd_ms": table["std"],
            "spr_n": table["count"].fillna(0),
        }
    )


def ucl_et(folder: Path) -> pd.DataFrame:
    """`eyetracking.RT.txt` of Frank et al. (2013): 0 is a word not fixated in the first pass, and no time.

    Native speakers only, where `eyetracking.subj.txt` is there to tell.
    """
    needed = ("subj_nr", "sent_nr", "word_pos", "word", "RTfirstpass", "RTgopast")
    times = _table(folder / "eyetracking.RT.txt", "\t", needed)
    people = folder / "eyetracking.subj.txt"
    if people.is_file():
        ages = _table(people, "\t", ("subj_nr", "age_en"))
        times = times[times["subj_nr"].isin(ages.loc[ages["age_en"] == 0, "subj_nr"])]
    return _averaged(
        times.rename(columns={"sent_nr": "text", "word_pos": "index"}),
        "ucl_",
        {"gaze_ms": times["RTfirstpass"].replace(0, np.nan), "go_past_ms": times["RTgopast"].replace(0, np.nan)},
    )


def ucl_erp(folder: Path) -> pd.DataFrame:
    """`data_EEG.csv` of Aurnhammer and Frank (2019), tab-separated: the N400 and its baseline, no P600."""
    needed = ("sent_nr", "word_pos", "word", "N400", "baseline", "reject_data", "reject_word")
    values = _table(folder / "data_EEG.csv", "\t", needed)
    good = values["reject_data"] == 0
    table = _averaged(
        values.rename(columns={"sent_nr": "text", "word_pos": "index"}),
        "ucl_",
        {
            "N400_uV": values["N400"].where(good),
            "N400_base_uV": values["baseline"].where(good),
            "excluded_by_authors": values["reject_word"],
        },
        spread={"N400_uV": ("N400_sd", "erp_n")},
    )
    return table.assign(excluded_by_authors=(table["excluded_by_authors"] > 0).astype(int))


def provo(folder: Path) -> pd.DataFrame:
    """`Provo_Corpus-Eyetracking_Data.csv` of Luke and Christianson (2018).

    Words are the interest areas' labels in their order: the column Word_Number lacks words and has jumps.
    """
    needed = (
        "Text_ID", "IA_ID", "IA_LABEL", "IA_SKIP", "IA_FIRST_FIXATION_DURATION", "IA_FIRST_RUN_DWELL_TIME",
        "IA_REGRESSION_PATH_DURATION", "IA_DWELL_TIME",
    )  # fmt: skip
    values = _table(folder / "Provo_Corpus-Eyetracking_Data.csv", ",", needed, quoting=csv.QUOTE_MINIMAL)
    first_pass = values["IA_SKIP"] == 0
    return _averaged(
        values.rename(columns={"Text_ID": "text", "IA_ID": "index", "IA_LABEL": "word"}),
        "provo_",
        {
            "gaze_ms": values["IA_FIRST_RUN_DWELL_TIME"].where(first_pass),
            "go_past_cond_ms": values["IA_REGRESSION_PATH_DURATION"].where(first_pass),
            "first_fix_cond_ms": values["IA_FIRST_FIXATION_DURATION"].where(first_pass),
            "total_cond_ms": values["IA_DWELL_TIME"].replace(0, np.nan),
        },
    )


def meco_en(folder: Path) -> pd.DataFrame:
    """`joint_data_trimmed.csv`, the data frame of Siegelman et al. (2022) as comma-separated values; skips count as 0.

    After a double space readers' numbers of a word may differ by one, so a number's word is its most common one.
    """
    needed = ("lang", "trialid", "ianum", "ia", "skip", "firstrun.skip", "firstrun.dur", "firstfix.dur", "dur")
    values = _table(folder / "joint_data_trimmed.csv", ",", needed, quoting=csv.QUOTE_MINIMAL)
    values = values[(values["lang"] == "en") & values["ia"].notna()].rename(
        columns={"trialid": "text", "ianum": "index", "ia": "word"}
    )
    first_pass = (values["skip"] == 0) & (values["firstrun.skip"] == 0)
    return _averaged(
        values,
        "meco_en_",
        {
            "gaze_mean0_ms": values["firstrun.dur"].where(first_pass, 0.0),
            "first_fix_mean0_ms": values["firstfix.dur"].where(first_pass, 0.0),
            "total_mean0_ms": values["dur"].where(values["skip"] == 0, 0.0),
        },
    )


# corpus -> (the file by which its published form is known, its reader)
PUBLISHED: dict[str, tuple[str, Callable[[Path], pd.DataFrame]]] = {
    "naturalstories": ("processed_RTs.tsv", naturalstories),
    "ucl_et": ("eyetracking.RT.txt", ucl_et),
    "ucl_erp": ("data_EEG.csv", ucl_erp),
    "provo": ("Provo_Corpus-Eyetracking_Data.csv", provo),
    "meco_en": ("joint_data_trimmed.csv", meco_en),
}

TEXT = ("word", "ia", "IA_LABEL", "lang")  # columns that are no numbers


def _table(path: Path, separator: str, columns: tuple[str, ...], quoting: int = csv.QUOTE_NONE) -> pd.DataFrame:
    """The columns of a published table: UTF-8, or as Windows writes it; no word is taken for a missing value."""
    try:
        content = path.read_bytes()
        encoding = "utf-8-sig"
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            encoding = "cp1252"
        table = pd.read_csv(
            io.BytesIO(content),
            sep=separator,
            quoting=quoting,
            keep_default_na=False,
            na_values=["", "NA"],
            encoding=encoding,
            low_memory=False,
        )
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot read {path}: {(str(problem).splitlines() or [''])[0]}; get it anew") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    table = table[list(columns)]
    for name in columns:
        if name in TEXT:
            continue
        try:
            table = table.assign(**{name: pd.to_numeric(table[name])})
        except (ValueError, TypeError):
            raise InputError(f"the column {name} of {path} holds what is no number; get the file anew") from None
    return table


def _averaged(
    values: pd.DataFrame,
    prefix: str,
    measures: dict[str, pd.Series],
    spread: dict[str, tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Means over participants by `text` and `index`, the words numbered anew within their text.

    Args:
        values: a row per participant and word, with `text`, `index` and `word`.
        prefix: of the texts' names.
        measures: of each row, by the name of their mean.
        spread: names for the standard deviation and number of a measure.

    Raises:
        InputError: no row says what word it is of.
    """
    frame = pd.DataFrame(measures).assign(text=values["text"], index=values["index"], word=values["word"])
    frame = frame.dropna(subset=["text", "index", "word"])
    if frame.empty:
        raise InputError(
            f"the published {prefix.rstrip('_')} file has no row with a text, a number and a word; get it anew"
        )
    grouped = frame.groupby(["text", "index"], sort=True)
    table = grouped[list(measures)].mean()
    for name, (deviation, number) in (spread or {}).items():
        table[deviation], table[number] = grouped[name].std(), grouped[name].count()
    table["word"] = grouped["word"].agg(lambda words: str(words.mode().iloc[0]).strip())
    table = table.reset_index()
    width = max(2, len(str(int(table["text"].max()))))
    return table.assign(
        text_id=prefix + table["text"].astype(int).astype(str).str.zfill(width),
        word_index=table.groupby("text").cumcount() + 1,
    ).drop(columns=["text", "index"])
