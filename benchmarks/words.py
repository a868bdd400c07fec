"""How long surprisal of short stimuli takes, against minicons: sentences of the embedded news, one interleaved run.

    python benchmarks/words.py                    # 2,000 sentences on SmolLM2-135M, minicons in batches of 1 to 64
    python benchmarks/words.py --sentences 50 --rounds 1

A sentence of fifteen words costs one pass of the layers and of the head, and the sums over its logits. Read one by one
its weights are read from memory for few tokens; read together with much longer ones, it is filled up with tokens that
are computed for nothing. The head's logits are larger than all else (49,152 a token): copies of them cost as much as
layers do. `words` is timed with everything that its table has by default, effort included, and `surprisal` without
effort; of minicons only the scores of tokens are asked for, without its correction of word boundaries, in the order of
the sentences as they come and sorted by length, which its users can do. All read the same model in memory, with the
same threads, in turns; the first sentences warm every one up.

Values are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from minicons.scorer import IncrementalLMScorer
from tabulate import tabulate

import clada
from clada.system.machine import available_cores
from cladastats.language import language
from cladastats.sequences.sources import load_documents
from cladastats.texts.effort import effort_rule
from cladastats.texts.meter import Meter
from cladastats.texts.text import Text

MODEL = "smollm2-135m"
BATCHES = (1, 8, 16, 32, 64)
WARM = 16  # sentences


def sentences(number: int) -> list[Text]:
    """Sentences of 6 to 30 words, one of each document, as stimuli are: each by itself."""
    found: list[Text] = []
    for document in load_documents("news").texts:
        for tokens in language("en").sentences(document):
            words = tuple("".join(token.spacing + token.value for token in tokens).split())
            if 6 <= len(words) <= 30:
                found.append(Text(str(len(found)), words))
                break
        if len(found) == number:
            return found
    raise SystemExit(f"the news have only {len(found)} such sentences")


def minicons_scores(scorer: IncrementalLMScorer, texts: list[str], batch: int) -> list[list[float]]:
    """Surprisal of tokens in bits, by minicons."""
    scores = []
    for begin in range(0, len(texts), batch):
        prepared = scorer.prepare_text(texts[begin : begin + batch])
        scores += scorer.compute_stats(prepared, base_two=True)
    return scores


def main() -> None:
    """Time all, in turns, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(available_cores())
    texts = sentences(args.sentences)
    model, tokenizer = clada.load_model(MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may set a padding token
        scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    full, plain = Meter(model, tokenizer, effort_rule(MODEL)), Meter(model, tokenizer)
    start = tokenizer.convert_ids_to_tokens(plain.start)
    strings = [start + text.characters for text in texts]
    by_length = sorted(strings, key=len)

    expected = [-sum(scores) for scores in minicons_scores(scorer, strings[:WARM], 8)]
    table = plain.measure(texts[:WARM])
    found = table.groupby("text_id", sort=False)["surprisal_tokens_bits"].sum()
    np.testing.assert_allclose(found, expected, atol=2e-3)  # sums of some thirty tokens in float32

    runs: dict[str, Callable[[list[Text], list[str]], object]] = {
        "words": lambda given, _: full.measure(given),
        "words, surprisal only": lambda given, _: plain.measure(given),
    }
    for batch in BATCHES:
        for name, order in ((f"minicons, batch {batch}", strings), (f"minicons, batch {batch}, sorted", by_length)):
            runs[name] = lambda _given, some, b=batch, o=order: minicons_scores(
                scorer, o if len(some) == len(strings) else some, b
            )
    for run in runs.values():
        run(texts[:WARM], strings[:WARM])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(texts, strings)
            seconds[name].append(time.perf_counter() - begin)
    best = min(median(values) for name, values in seconds.items() if name.startswith("minicons"))
    rows = [
        (name, f"{median(values):.2f}", f"{len(texts) / median(values):.0f}", f"{median(values) / best:.2f}")
        for name, values in seconds.items()
    ]
    print(tabulate(rows, headers=("run", "seconds", "sentences/s", "of minicons' best"), disable_numparse=True))
    print(json.dumps({"model": MODEL, "sentences": len(texts), "threads": torch.get_num_threads(), "seconds": seconds}))


if __name__ == "__main__":
    main()
