"""Reading times that are made up: words of the embedded news, times that follow their lengths."""

from functools import cache

import pandas as pd

from cladastats.sequences.sources import load_documents


@cache
def news_sentences(number):
    """Sentences of the news, as lists of words."""
    found = []
    for text in load_documents("news").texts:
        for line in text.replace("\n", " ").split(". "):
            words = f"{line.strip()}.".split()
            if 8 <= len(words) <= 14 and line.isascii() and '"' not in line:
                found.append(words)
        if len(found) >= number:
            return found[:number]
    raise AssertionError


def times_of(sentences, rng):
    """A table as of eye-tracking: time grows with the length of a word, a little with that of the one before."""
    rows = []
    for number, words in enumerate(sentences, 1):
        for index, word in enumerate(words, 1):
            spill = len(words[index - 2]) if index > 1 else 0
            gaze = 200 + 12 * len(word) + 4 * spill + rng.normal(0, 15)
            rows.append((f"ucl_{number:03d}", index, word, round(gaze, 3), round(gaze + abs(rng.normal(0, 40)), 3)))
    return pd.DataFrame(rows, columns=["text_id", "word_index", "word", "gaze_ms", "go_past_ms"])


def trials_of(sentences, rng, readers=4):
    """The same of several readers, with `subj`, `sentence` and `time`; the first one skips every fourth word."""
    table = times_of(sentences, rng)
    people = [
        table.assign(subj=n, time=(table["gaze_ms"] + rng.normal(0, 5, len(table))).round(1))
        for n in range(1, readers + 1)
    ]
    rows = pd.concat(people, ignore_index=True)
    rows["sentence"] = rows["text_id"].str[-3:].astype(int)
    rows["skipped"] = (rows["subj"] == 1) & (rows["word_index"] == 4)
    return rows[["subj", "sentence", "word_index", "word", "time", "skipped"]]


def words_of(sentences, rng):
    """What `cladastats words` writes of sentences, by chance: no model is asked."""
    rows = [(f"{n:03d}", i, word) for n, words in enumerate(sentences, 1) for i, word in enumerate(words, 1)]
    table = pd.DataFrame(rows, columns=["text_id", "word_index", "word"])
    length = table["word"].str.len()
    n = len(table)
    surprisal = (2 + length * 0.5 + rng.normal(0, 2, n)).clip(0.1)
    return table.assign(
        surprisal_bits=surprisal.round(4),
        surprisal_tokens_bits=(surprisal + 0.1).round(4),
        entropy_bits=rng.uniform(1, 9, n).round(4),
        effort=(0.2 + 0.01 * surprisal + rng.normal(0, 0.02, n)).round(5),
        effort_load=rng.uniform(0.1, 0.3, n).round(5),
        magnitude=rng.uniform(5, 20, n).round(4),
        hidden_norm=rng.uniform(5, 20, n).round(4),
        tokens=rng.integers(1, 4, n),
        length=length,
        frequency_zipf=(7 - 0.3 * length + rng.normal(0, 0.3, n)).round(2),
        position=table["word_index"],
        effort_00=rng.uniform(0, 1, n).round(5),
        effort_01=rng.uniform(0, 1, n).round(5),
    )
