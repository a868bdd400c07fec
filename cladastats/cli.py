"""The `cladastats` command: only parses and calls; what a stage does is in the module of its name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clada.system.commandline import Commands, numbers, positive_int, run, thread_count, whole_number


def _study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study",
        metavar="DIR",
        help="the study's folder, or its URL (s3://...); default: newest below studies/",
    )


def _corpus(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    parser.add_argument("--source", metavar="S", help="news (default), xsum, jsonl:PATH[:field] or text:DIR")
    parser.add_argument(
        "--model", metavar="M", help="smollm2-135m (default), gemma3-270m, a folder, a GGUF file or a hub id"
    )
    parser.add_argument("--pairs", type=positive_int, metavar="N", help="pairs in each group; default 100")
    parser.add_argument("--length", type=positive_int, metavar="L", help="tokens before the target; default 512")
    parser.add_argument("--ratios", type=numbers, metavar="R,...", help="prefix shares; default 0.25,0.375,0.5")
    parser.add_argument("--seed", type=whole_number, metavar="S", help="of every draw; default 0")
    parser.add_argument(
        "--windows",
        choices=("document", "stream"),
        help="each sequence within one document (default), or cut from the joined documents",
    )
    parser.add_argument(
        "--paper", action="store_true", help="the paper's shape: 2000 pairs of length 2048, windows of joined documents"
    )
    parser.add_argument(
        "--storage-dtype", choices=("float32", "float16"), help="of the activations on disk; default float32"
    )
    parser.add_argument(
        "--threads", type=thread_count, metavar="N", help="of torch during extraction; default: all cores"
    )
    parser.add_argument(
        "--equivalence-margin",
        type=float,
        metavar="X",
        help="NLS-RTS difference of the prefix coefficient that counts as none (points per 1,000 tokens); default: "
        "that of a pilot, 5.5 divided by the length",
    )
    parser.add_argument(
        "--margin-source",
        dest="equivalence_margin_source",
        metavar="TEXT",
        help="where that margin is from, for the record: a pilot on other texts, for instance",
    )


def _run(parser: argparse.ArgumentParser) -> None:
    _corpus(parser)
    parser.add_argument(
        "--from", dest="recorded", metavar="FILE", help="repeat the study of this study.json, in the folder of --study"
    )


def _extract(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--cluster",
        metavar="C",
        help="local:N processes, tcp://HOST:PORT of a Dask scheduler, or slurm:FILE, pbs:FILE, lsf:FILE (JSON: jobs, "
        "and options of dask-jobqueue); default: this process",
    )
    where.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="every N-th part from the I-th on, for other schedulers; then merge",
    )


def _merge(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="copies of the study that have more of its parts")
    parser.add_argument("--verify", action="store_true", help="compare every part's checksum")


def _verify(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with 1 <= I <= N, like 1/4")
    return int(i), int(n)


def _similarity(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    _metric(parser)
    parser.add_argument(
        "--response",
        choices=("toward", "matched", "away", "raw"),
        default="toward",
        help="of the hybrids, default toward: what 'regress' explains; the panels of 'similarity' hold all four",
    )


def _metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="cka",
        metavar="M",
        help="cka (default; r2, one-feature CKA), pearson, cosine, cosine_centred or jaccard",
    )
    parser.add_argument(
        "--estimator",
        choices=("within", "trimmed", "population", "neurons", "debiased", "biased"),
        help="of cka; default within",
    )


def _regress(parser: argparse.ArgumentParser) -> None:
    _similarity(parser)
    parser.add_argument(
        "--controls", type=_names, default=(), metavar="NAME,...", help="further panel columns in every regression"
    )
    parser.add_argument(
        "--robust",
        action="store_true",
        help="bootstrap, permutation, monotonicity, NLS-RTS equivalence, strata, layers, mixed model, controls, "
        "between-pair fits, placebo, power",
    )
    parser.add_argument(
        "--claims",
        action="store_true",
        help="the verdicts on the paper's claims by cka and cosine instead of a table; robustness checks that are not "
        "there are made first (with --robust: all of them again)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--format",
        choices=("text", "markdown", "latex", "csv", "html", "json"),
        default="text",
        help="of the table; default text",
    )
    output.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")


def _controls(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    parser.add_argument("--independent", metavar="M", help="a model of another kind, for a surprisal of its own")


def _placebo(parser: argparse.ArgumentParser) -> None:
    _study(parser)
    parser.add_argument("--pairs", type=positive_int, metavar="N", help="of each group, the first; default 32")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="smollm2-135m", metavar="M", help="smollm2-135m (default), gemma3-270m, a folder, a hub id"
    )


def _words(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--revision", metavar="R", help="of a hub id: branch, tag or commit, such as step1000")
    parser.add_argument(
        "--text", metavar="FILE", help=".txt, .jsonl with a text in every line, or with --data the name of a corpus"
    )
    parser.add_argument(
        "--table", metavar="FILE", help="stimuli with a row per word or per sentence: .csv, .tsv, .txt, .xlsx, .parquet"
    )
    parser.add_argument("--word-column", metavar="W", help="of the table: its words, or its sentences; default: word")
    parser.add_argument(
        "--by", type=_names, default=(), metavar="C,...", help="columns that make a text; without it every row is one"
    )
    parser.add_argument("--context-column", metavar="C", help="of the table: what the model reads before each text")
    parser.add_argument("--language", default="en", metavar="L", help="code of ISO 639-1; default en")
    parser.add_argument("--segment", action="store_true", help="find the words of unspaced Chinese or Japanese")
    parser.add_argument("--data", metavar="DIR", help="the folder of the corpora that 'cladastats human' reads")
    parser.add_argument(
        "--out", default="words.csv", metavar="FILE", help=".csv, .tsv, .xlsx or .parquet; default words.csv"
    )
    parser.add_argument("--layers", action="store_true", help="every layer too, as a long table and a figure")
    parser.add_argument("--html", metavar="FILE", help="write a page of the texts too, words shaded by what they cost")
    parser.add_argument(
        "--beside", metavar="FILE", help="on that page, a table that was written before: of another model or text"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="default cpu")
    parser.add_argument("--window", type=positive_int, metavar="N", help="tokens read at once; default 2048")
    thresholds = parser.add_mutually_exclusive_group()
    thresholds.add_argument("--no-effort", action="store_true", help="surprisal and entropy alone")
    thresholds.add_argument("--calibrate", action="store_true", help="measure effort's thresholds on these texts")
    thresholds.add_argument(
        "--plan", metavar="FILE", help="whose thresholds tell which neurons are needed; default: the model's"
    )
    parser.add_argument("--max-loss", type=float, metavar="X", help="the plan's budget; default 0.02")
    parser.add_argument("--keep", type=float, metavar="X", help="call this share of the neurons needed instead")
    parser.add_argument(
        "--coefficients", default="paper", metavar="FILE", help="load rule of effort_load; default: the paper's"
    )


def _human(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--data", metavar="DIR", help="the corpora's tables and texts, see corpora/human.md")
    parser.add_argument(
        "--corpus",
        type=_names,
        metavar="NAME,...",
        help="of the package, or descriptions of yours (.toml); default: six",
    )
    parser.add_argument("--average", action="store_true", help="trials of corpora, averaged over participants")
    parser.add_argument(
        "--table", metavar="FILE", help="your own trials, a row each: .csv, .tsv, .txt, .xlsx, .parquet"
    )
    parser.add_argument("--words", metavar="FILE", help="what 'cladastats words' wrote of the texts that were read")
    parser.add_argument("--measure", type=_names, metavar="COLUMN,...", help="of the table: what is to be explained")
    parser.add_argument("--subject", metavar="COLUMN", help="of the table; default: subject, where there is one")
    parser.add_argument(
        "--item", metavar="COLUMN", help="of the table; default: item, where there is one, else the text"
    )
    parser.add_argument(
        "--on",
        type=_names,
        metavar="COLUMN,...",
        help="which word a row is of, by columns of both tables, or COLUMN=WORDSCOLUMN; default: those of text_id, "
        "text, item, condition and word_index that both have",
    )
    parser.add_argument(
        "--formula", metavar="F", help="of the mixed model, as for lme4; default: see the documentation"
    )
    parser.add_argument("--unit", default="ms", metavar="U", help="of the measures: ms (default), microvolt, ...")
    parser.add_argument(
        "--range", type=numbers, metavar="LOW,HIGH", help="of values that count; default for ms: 0,10000"
    )
    parser.add_argument(
        "--no-shift-check", metavar="REASON", help="the measures may follow neighbouring words, and why"
    )
    parser.add_argument("--out", default="studies/human", metavar="DIR", help="default studies/human")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--format",
        choices=("text", "markdown", "latex", "html", "csv", "json"),
        default="text",
        help="of the table; default text",
    )
    output.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")


def _figures(parser: argparse.ArgumentParser) -> None:
    _study(parser)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


COMMANDS: Commands = {
    "run": ("all stages on one study, finished ones skipped; ends with the regression table", _run),
    "corpus": ("build natural and random sequences, their hybrids and matched references", _corpus),
    "extract": ("run the model; neuron activations, surprisal and entropy at the target", _extract),
    "merge": ("one study of parts that were extracted apart", _merge),
    "verify": ("is every part of a study there, whole, and its own?", _verify),
    "similarity": ("similarity of activations, and how far each hybrid has shifted", _similarity),
    "controls": ("word frequency, lengths, surprisal of the token before, and of an independent model", _controls),
    "placebo": ("hybrids that should not act as prefixes do: other texts, shuffled, in other places", _placebo),
    "regress": ("the six panel regressions; writes coefficients.json for the engine", _regress),
    "words": ("surprisal, entropy and effort of every word of texts or stimuli, in any language model", _words),
    "human": ("your own trials in a mixed model; does effort predict what readers do beyond surprisal?", _human),
    "figures": ("draw responses against prefix length, and population CKA by layer", _figures),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `cladastats` command; see `cladastats --help`."""
    description = "Do MLP activations follow the prefix, and does cognitive load disturb that?"
    return run("cladastats", description, COMMANDS, argv, resumes=set(COMMANDS) - {"words"})
