"""Speculative decoding against dense, by how drafts are made and how long they are; as tables.

    python benchmarks/speculation.py --text jsonl:articles.jsonl:body --model smollm2-135m --dtype float32

Every kind of draft decodes the same prompts greedily, in turn, beside dense. A kind learns from prompt to prompt, as
the engine does. Before each prompt, steps over T positions are timed, because the memory of a shared machine is slower
for minutes. `allowed` is the speed-up that the measured costs and the measured acceptance allow: tokens a check /
(tokens drafted a check x cost of drafting one + cost of the check). Costs are means over all prompts, in steps of one
position. The result takes the place of the former one of the same model and precisions in
`benchmarks/results/speculation.jsonl`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from stored import put
from tabulate import tabulate

from clada import load_model
from clada.assembly import DENSE, Choice, Parts, assemble, drafter_of, who_drafts
from clada.cpu.decoder import State
from clada.decoding import Sampler, most_likely_words, steps
from clada.measure.texts import read_windows
from clada.methods.coefficients import Coefficients
from clada.models.description import Description
from clada.models.open import model_revision
from clada.speculation.checks import Speculation
from clada.speculation.drafters import Drafter, ModelDrafter, NgramDrafter, TextOrModelDrafter
from clada.speculation.pace import LONGEST, Draft, Pace
from clada.system.machine import available_cores, set_threads

POSITIONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16)
PROMPT, NEW = 256, 96
ROUNDS = 4  # of steps over some positions, beside each prompt
NO_RULE = Coefficients(0.0, 0.0)


def time_positions(parts: Parts, ids: list[int], seconds: dict[int, list[float]]) -> None:
    """Add the seconds of steps over so many positions after a prompt, of interleaved rounds."""
    dense = parts.policy.dense(1)
    state = parts.decoder.prefill([ids[:PROMPT]], max(POSITIONS), dense)
    mark = parts.decoder.bookmark(state)
    for _ in range(ROUNDS):
        for count in POSITIONS:
            parts.decoder.rewind(state, mark)
            begin = time.perf_counter()
            parts.decoder.run(state, [ids[PROMPT : PROMPT + count]], dense)
            seconds[count].append(time.perf_counter() - begin)


class Whole(ModelDrafter):
    """Drafts as many tokens as there is room for."""

    def goes_on(self, draft: Draft, likely: float) -> bool:  # noqa: ARG002
        """Always."""
        return True


class UntilLoad(ModelDrafter):
    """Drafts up to the first token under load."""

    def goes_on(self, draft: Draft, likely: float) -> bool:  # noqa: ARG002
        """While there is none."""
        return self.loaded not in draft.kinds


def kinds_of_drafts(drafter: NgramDrafter | TextOrModelDrafter) -> dict[str, Timed]:
    """What is compared, by name; none knows anything yet."""
    if isinstance(drafter, NgramDrafter):
        return {"from the text": Timed(drafter)}
    parts, rule = (drafter.model.decoder, drafter.model.policy), drafter.model.rule

    def pace() -> Pace:
        return Pace(drafter.pace.position_cost, drafter.pace.token_cost())

    shared = pace()
    kinds = {f"{count} tokens": Timed(Whole(*parts, rule, pace()), count) for count in (2, 4, 7)}
    return kinds | {
        "until load": Timed(UntilLoad(*parts, rule, pace())),
        "while likely, no load": Timed(ModelDrafter(*parts, None, pace())),
        "while likely": Timed(ModelDrafter(*parts, rule, pace())),
        "from the text": Timed(NgramDrafter(pace())),
        "text or model": Timed(TextOrModelDrafter(ModelDrafter(*parts, rule, shared), NgramDrafter(shared))),
    }


class Timed:
    """A drafter with the time that it takes and the lengths of its drafts, and the speculation that uses it."""

    def __init__(self, drafter: Drafter, most: int = LONGEST) -> None:
        self.drafter, self.seconds, self.lengths = drafter, 0.0, list[int]()
        self.speculation = Speculation(self, most)

    @property
    def pace(self) -> Pace:
        """Of the drafter."""
        return self.drafter.pace

    @property
    def bytes_read(self) -> np.ndarray:
        """Of the drafter."""
        return self.drafter.bytes_read

    def draft(self, state: State, token: int, sampler: Sampler, most: int) -> Draft:
        """As the drafter does."""
        begin = time.perf_counter()
        draft = self.drafter.draft(state, token, sampler, most)
        self.seconds += time.perf_counter() - begin
        self.lengths.append(len(draft.tokens))
        return draft


def decode(parts: Parts, prompt: list[int], speculation: Speculation | None) -> tuple[list[int], float]:
    """Greedy tokens after a prompt, and the seconds that they took."""
    state = parts.decoder.prefill([prompt], NEW, parts.policy.dense(1))
    begin = time.perf_counter()
    if speculation is None:
        records = list(steps(parts.decoder, parts.policy, state, most_likely_words, NEW))
    else:
        rules = [NO_RULE.loads]
        records = list(
            speculation.steps(parts.decoder, parts.policy, state, most_likely_words, NEW, rules, lambda *_: False)
        )
    return [record.tokens[0] for record in records], time.perf_counter() - begin


def compare(parts: Parts, drafter: NgramDrafter | TextOrModelDrafter, texts: list[list[int]]) -> dict[str, Any]:
    """Decode after every text's prompt with every kind of draft; a row for each, seconds of steps, speed of dense."""
    kinds = kinds_of_drafts(drafter)
    spent = dict.fromkeys(["dense", *kinds], 0.0)
    steps_of: dict[int, list[float]] = {count: [] for count in POSITIONS}
    for text in texts:
        prompt = text[:PROMPT]
        time_positions(parts, text, steps_of)
        expected, seconds = decode(parts, prompt, None)
        spent["dense"] += seconds
        for name, timed in kinds.items():
            found, seconds = decode(parts, prompt, timed.speculation)
            if found != expected:
                raise AssertionError(f"drafts of {name} changed the text")
            spent[name] += seconds
    tokens, rows = len(texts) * NEW, []
    costs = {count: float(np.mean(some)) for count, some in steps_of.items()}
    for name, timed in kinds.items():
        done = timed.speculation
        # In steps of one position.
        lengths = np.array(timed.lengths) + 1
        check = float(np.interp(lengths, POSITIONS, [costs[count] for count in POSITIONS]).mean()) / costs[1]
        drafting = timed.seconds / done.checks / costs[1]
        rows.append(
            {
                "draft": name,
                "accepted": done.acceptance,
                "drafted a check": done.drafted / done.checks,
                "tokens a check": tokens / done.checks,
                "cost of one": timed.seconds / costs[1] / max(1, done.drafted),
                "of a check": check,
                "x dense": spent["dense"] / spent[name],
                "allowed": tokens / done.checks / (drafting + check),
            }
        )
    seconds_of = {count: float(np.median(some)) for count, some in steps_of.items()}
    return {"seconds": seconds_of, "dense_tokens_per_s": tokens / spent["dense"], "rows": rows}


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="prompts, as `clada bench` takes them")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--draft", help="as `clada generate` takes it")
    parser.add_argument("--prompts", type=int, default=16)
    args = parser.parse_args()
    threads = available_cores()
    set_threads(threads)
    model, tokenizer = load_model(args.model)
    windows, _ = read_windows(args.text, tokenizer, model_revision(args.model), PROMPT + 16, args.prompts)

    def assembled(choice: Choice, dtype: str) -> Parts:
        return assemble(model, [choice], dtype, threads)[0]

    parts = assembled(DENSE, args.dtype)
    precisions = args.dtype, who_drafts(args.dtype, args.draft)
    drafter = drafter_of(assembled, Description.of(model), *precisions, None, NO_RULE)
    result = compare(parts, drafter, windows[: args.prompts])
    costs = result["seconds"]
    print(f"{args.model}, {args.dtype}, {threads} threads: a step of one position takes {1e3 * costs[1]:.1f} ms\n")
    relative = [f"{costs[count] / costs[1]:.2f}" for count in POSITIONS]
    print(tabulate([relative], [f"T = {count}" for count in POSITIONS], tablefmt="github", disable_numparse=True))
    about = {
        "model": args.model,
        "dtype": args.dtype,
        "draft": precisions[1],
        "threads": threads,
        "prompts": args.prompts,
        "new_tokens": NEW,
    }
    print()
    print(tabulate(result["rows"], headers="keys", tablefmt="github", floatfmt=".2f"))
    put("speculation.jsonl", [{**about, **result}], ("model", "dtype", "draft"))


if __name__ == "__main__":
    main()
