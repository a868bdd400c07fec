"""`figures/SPEED.md`: every table of speed and loss, from `benchmarks/results` alone.

    python benchmarks/speed_page.py

`TABLES` is the list of them. To add one: store the results in `benchmarks/results`, add a `Table` with its title, what
a row is, the command, the files and the columns, and run the command above. It also notes when and where new results
were measured (`measured.py`).
"""

from __future__ import annotations

from measured import note
from speed_rows import (
    Table,
    ablations,
    beside_dense,
    change,
    code,
    drafts,
    engines,
    int4_rounds,
    lines,
    methods,
    number,
    one_command,
    percent,
    plans,
    positions,
    precisions,
    shares,
    words,
)
from stored import FIGURES

PAGE = FIGURES / "SPEED.md"
TEXT = "--text jsonl:dev.jsonl:document"
OVER_DENSE = (
    ("over dense", number("ratio_to_dense", 2)),
    ("bytes allow", number("bytes", 2)),
)
ENGINE_COLUMNS = (
    ("run of", words("dtype")),
    ("engine", words("engine")),
    ("tokens/s", number("speed")),
    ("`clada` dense over it", number("dense", 2)),
    ("`clada` 2 % over it", number("clada", 2)),
)
SHARE_COLUMNS = (
    ("model", words("model")),
    ("precision", words("dtype")),
    ("left out", percent("skipped_mlp")),
    ("rows", words("rows")),
    ("over dense", number("speedup", 2)),
    ("bytes allow", number("speedup_allowed", 2)),
    ("reached", percent("share_of_allowed")),
)
START_COLUMNS = (
    ("engine", words("engine")),
    ("first token, s", number("first_token_s", 2)),
    ("over transformers", number("ratio", 2)),
    ("memory, MB", number("resident_mb")),
    ("of it grown, MB", number("grown_mb")),
)
ABLATION_COLUMNS = (
    ("base", percent("dropped")),
    ("variant", words("named")),
    ("neurons", percent("active_fraction", 1)),
    ("rise over dense", percent("ppl_rise", 1)),
    ("against thresholds alone", change("against_none", 2)),
)
OTHER_MACHINE = (
    ("precision", words("dtype")),
    ("plan", words("budget")),
    ("`clada`, tokens/s", number("tokens_per_s")),
    *OVER_DENSE,
    ("memory, GB/s", number("bandwidth_gb_s")),
)
ABLATIONS = f"python benchmarks/ablations.py {TEXT} --fitted STUDY/coefficients.json"
ABLATED = (
    "Each row is a variant in `bfloat16`, in the MLP alone. The base share is searched at which a variant computes "
    "as many neurons as the thresholds alone, so that work is equal. Perplexity is of 16,384 tokens. The last "
    "column has 95 % intervals; above zero the variant is worse."
)

TABLES = (
    Table(
        "Beside other engines",
        "Each row is an engine in a run of one precision: SmolLM2-135M, a prompt of 512 tokens, 128 new ones, 2 "
        "threads. Speeds are medians of fifteen rounds in three runs. The last columns are medians of the rounds' "
        "ratios. The speed of the memory changes between runs, so that only rows of one precision compare.",
        f"python benchmarks/speed.py {TEXT}",
        ("speed-float32-2-run*.json", "speed-bfloat16-2-run*.json", "speed-int8-2-run*.json"),
        ENGINE_COLUMNS,
        engines,
    ),
    Table(
        "All in one command",
        "Each row is an engine in a run of one precision, as above, in one run of `clada bench` with all methods and "
        "engines: medians of five rounds, and of the rounds' ratios. Drafts decode freely, the others the text's own "
        "tokens.",
        f"python benchmarks/engines.py {TEXT}",
        ("engines-*.json",),
        (
            *ENGINE_COLUMNS[:3],
            ("dense over it", number("dense", 2)),
            ("2 % over it", number("clada", 2)),
            ("speculative over it", number("speculative", 2)),
        ),
        one_command,
    ),
    Table(
        "Plans over dense",
        "Each row is a precision and a plan: SmolLM2-135M, as above. *Over dense* is the median of fifteen rounds' "
        "ratios, *runs* the lowest and the highest median of the three runs. *Bytes allow* is the ratio if time "
        "followed the bytes read. *Rise* is that of perplexity on 16,384 tokens of XSum over dense at the same "
        "precision, with a 95 % interval. Calibration never saw this text; the design of the search was chosen "
        "while looking at XSum.",
        f"python benchmarks/speed.py {TEXT}",
        (
            *("speed-float32-*.json", "speed-bfloat16-*.json", "speed-int8-*.json"),
            *("loss-float32.json", "loss-bfloat16.json", "loss-int8.json"),
        ),
        (
            ("precision", words("dtype")),
            ("plan", words("budget")),
            ("over dense", number("ratio", 2)),
            ("runs", words("runs")),
            ("bytes allow", number("bytes", 2)),
            ("rise", change("ppl_rise", 2)),
            ("neurons", percent("active_fraction")),
        ),
        plans,
    ),
    Table(
        "Four bits and files",
        "Each row is a model at a precision in blocks. *Rise* is that of dense perplexity over `float32` of the same "
        "GGUF file, on news, with a 95 % interval. *Matrices* is what the engine holds, *file* the whole file.",
        "python benchmarks/precisions.py --text jsonl:articles.jsonl:body --dtypes int4,file",
        ("precisions.jsonl",),
        (
            ("model", words("model")),
            ("precision", words("dtype")),
            ("rise", change("ppl_rise", 2)),
            ("tokens scored", number("scored_tokens")),
            ("matrices, MB", number("matrix_mb")),
            ("file, MB", number("file_mb")),
        ),
        precisions,
    ),
    Table(
        "Four bits beside llama.cpp",
        "Each row is a model and a file of llama.cpp's: tokens per second of dense decoding in `int4` and of "
        "llama.cpp, medians of eight interleaved rounds. *Ratio* is the median of the rounds' own, *rounds* the lowest "
        "and the highest. Weights of TinyLlama's shape are random, and so are blocks of Q4_K and Q6_K.",
        "python benchmarks/int4.py",
        ("int4.jsonl",),
        (
            ("model", words("model")),
            ("file", words("file")),
            ("file, MB", number("file_mb")),
            ("`clada` int4", number("clada", 1)),
            ("llama.cpp", number("llama.cpp", 1)),
            ("ratio", number("over", 2)),
            ("rounds", words("range")),
        ),
        int4_rounds,
    ),
    Table(
        "Speculative decoding",
        "Each row is a kind of draft for a model: eight prompts of 256 tokens, 96 new ones, greedy. *Checks* and "
        "*drafts* have the precision of the weights that do so. "
        "*Text or model* is the engine's; at `int4` and `file` it is the text alone. Those *from the text* repeat what "
        "stood there. *Drafted* and *tokens* are means of a check, which is a step of the dense model over a draft and "
        "the token before it. "
        "*Ratio* is the speed over dense. *Allowed* is what acceptance allows by what drafts and steps over several "
        "positions cost; both were timed in turn with the texts.",
        f"python benchmarks/speculation.py {TEXT} --prompts 8 --dtype float32\n"
        "# also --dtype bfloat16, int8, int4 and file, --draft int4, --model gemma3-270m",
        ("speculation.jsonl",),
        (
            ("model", words("model")),
            ("checks", words("dtype")),
            ("drafts", words("drafts in")),
            ("draft", words("draft")),
            ("accepted", percent("accepted")),
            ("drafted", number("drafted a check", 2)),
            ("tokens", number("tokens a check", 2)),
            ("ratio", number("x dense", 2)),
            ("allowed", number("allowed", 2)),
        ),
        drafts,
    ),
    Table(
        "The same words",
        "Each row compares greedy words of the dense method with those of another: prompts of 64 tokens, up to 128 new "
        "ones. *Different* are texts with any other word. transformers, at `float32`, runs each text once and "
        "says what it finds likeliest in every place.",
        f"python benchmarks/same_words.py {TEXT} --dtype float32\n# also --dtype bfloat16, --model gemma3-270m",
        ("same-words.jsonl",),
        (
            ("model", words("model")),
            ("precision", words("dtype")),
            ("beside", words("beside")),
            ("prompts", number("prompts")),
            ("words", number("words")),
            ("different", number("different")),
        ),
        lines,
    ),
    Table(
        "Several positions in a step",
        "Each row is a step over so many consecutive positions of one text. *Cost* is its time in steps of one "
        "position; both are medians of four rounds beside each of eight prompts.",
        f"python benchmarks/speculation.py {TEXT} --prompts 8 --dtype float32",
        ("speculation.jsonl",),
        (
            ("model", words("model")),
            ("precision", words("dtype")),
            ("positions", words("positions")),
            ("cost", number("cost", 2)),
        ),
        positions,
    ),
    Table(
        "Prompts",
        "Each row is a precision and a length of the prompt: tokens per second, medians of five interleaved rounds. "
        "torch runs transformers' modules in `float32`, llama.cpp a file of the same precision (F32, F16, Q4_0). The "
        "last columns are medians of the rounds' ratios.",
        f"python benchmarks/prompts.py {TEXT}",
        ("prompts.jsonl",),
        (
            ("precision", words("dtype")),
            ("tokens", number("prompt_tokens")),
            ("`clada`", number("clada")),
            ("torch", number("torch")),
            ("llama.cpp", number("llama.cpp")),
            ("over torch", number("over_torch", 2)),
            ("over llama.cpp", number("over_llama.cpp", 2)),
        ),
        lines,
    ),
    Table(
        "Scoring",
        "Each row is a precision and a method: the second halves of 16 windows of 512 tokens of XSum scored by SmolLM2-"
        "135M, all tokens *at once* and token *by token*, eight windows side by side. Tokens per second, medians of "
        "three interleaved rounds, without the prompts. *Loss* is in nats per token. *Difference* is of both ways, "
        "with its standard error: a neuron at its threshold may fall on either side. At `int8` the plan leaves out "
        "words alone, so that its layers are those of dense, which ran before.",
        f"python benchmarks/scoring.py {TEXT}",
        ("scoring.jsonl",),
        (
            ("precision", words("dtype")),
            ("method", code("method")),
            ("at once", number("at_once")),
            ("by token", number("by_steps")),
            ("ratio", number("ratio", 2)),
            ("loss", number("nll", 4)),
            ("difference", lambda row: f"{row['difference']:+.2g} ± {row['standard_error']:.2g}"),
        ),
        lines,
    ),
    Table(
        "Every method",
        "Each row is a method with a plan: SmolLM2-135M in `bfloat16`. Speeds are medians of nine interleaved "
        "rounds; differences of 0.05 are noise. *Rise* is of 4,096 tokens of XSum, with a 95 % interval. `clada-"
        "mlp` was not calibrated, and leaves out as many neurons as `clada`. Calibration found nothing for "
        "`griffin` within 5 %, so that it computes everything. `teal` and `wina` need another layout of the "
        "weights, which is slower where little is left out.",
        f"python benchmarks/methods.py {TEXT}",
        ("methods-bfloat16-*.json", "methods-speed-bfloat16-*.json"),
        (
            ("method", code("method")),
            ("plan", words("budget")),
            ("over dense", number("ratio_to_dense", 2)),
            ("rise", change("ppl_rise")),
            ("neurons", percent("active_fraction")),
        ),
        methods,
        ("methods.png", "Speed over dense against the rise of perplexity, a line for each method"),
    ),
    Table(
        "Load awareness, SmolLM2-135M",
        ABLATED,
        ABLATIONS,
        ("ablations-smollm2-135m.jsonl",),
        ABLATION_COLUMNS,
        ablations,
    ),
    Table(
        "Load awareness, Gemma 3 270M",
        ABLATED,
        f"{ABLATIONS} \\\n  --model gemma3-270m",
        ("ablations-gemma3-270m.jsonl",),
        ABLATION_COLUMNS,
        ablations,
    ),
    Table(
        "Batches",
        "Each row is a number of sequences side by side, in `bfloat16`: a prompt of 512 tokens, 64 new ones, the "
        "plan for 2 %, two rounds. A batch reads what any of its sequences needs, so that less can be left out.",
        f"python benchmarks/batches.py {TEXT}",
        ("batch-smollm2-135m-*.json", "batch-gemma3-270m-*.json"),
        (
            ("model", words("model")),
            ("batch", words("batch_size")),
            ("dense, tokens/s", number("dense")),
            ("`clada`, tokens/s", number("tokens_per_s")),
            *OVER_DENSE,
            ("MLP bytes read", percent("mlp_bytes_fraction")),
        ),
        beside_dense,
    ),
    Table(
        "Long contexts",
        "Each row is a length of the prompt: 64 new tokens, the plan for 2 %, two rounds, tokens per second. From "
        "1,024 positions on, `clada` gives positions with little attention the mean of all values, which needs no "
        "reading. *Prefill* is its share of the time if so many *new* tokens follow.",
        f"python benchmarks/contexts.py {TEXT}",
        tuple(f"context-{m}-{d}-*.json" for m in ("smollm2-135m", "gemma3-270m") for d in ("bfloat16", "int8")),
        (
            ("model", words("model")),
            ("precision", words("dtype")),
            ("context", number("prompt_tokens")),
            ("dense", number("dense")),
            ("`clada`", number("tokens_per_s")),
            *OVER_DENSE,
            ("prefill", percent("prefill_share")),
            ("new", number("new")),
        ),
        beside_dense,
        ("contexts.png", "Tokens per second against the length of the context"),
    ),
    Table(
        "Losses at other settings",
        "Each row is a plan for 2 % in `bfloat16`, at another length or of another model. *Rise* is that of "
        "perplexity on XSum, with a 95 % interval, on so many *scored* tokens.",
        f"clada bench {TEXT} --coefficients none --methods clada \\\n  --dtype bfloat16 --max-loss 0.02 --json",
        ("loss-bfloat16-context-2048.json", "loss-gemma3-270m-bfloat16-2.json"),
        (
            ("model", words("model")),
            ("context", number("prompt_tokens")),
            ("scored", number("scored_tokens")),
            ("rise", change("ppl_rise", 2)),
            ("neurons", percent("active_fraction")),
        ),
        beside_dense,
    ),
    Table(
        "A fixed share of the neurons",
        "Each row leaves out a share of the MLP's neurons in `bfloat16`. The two *shapes* have random weights. Rows"
        " are *gathered* where the neurons stay the same for a text, as with `--method griffin`, and *scattered* "
        "where they change from token to token. *Reached* is the speed as a share of what the bytes allow.",
        "python benchmarks/fixed_share.py",
        ("fixed-share.jsonl",),
        SHARE_COLUMNS,
        shares,
    ),
    Table(
        "Start",
        "Each row is an engine: seconds to the first token of a prompt of 512, in a process of its own, medians of "
        "four. *Memory* is beyond what imports take. *Grown* is what of it came after the model was opened. Rows of "
        "`clada` start from an open model. Those of `clada generate` are whole commands with a prompt of one word, "
        "which start from the cache. At first use it has neither kernels nor packed weights: one run each.",
        "python benchmarks/start.py",
        ("start.jsonl",),
        START_COLUMNS,
    ),
)

# Of plans, kernels or starts before the present ones.
OLDER = (
    Table(
        "Start on Zen 5",
        "Each row is an engine. Columns are those of the table before.",
        "python benchmarks/start.py",
        ("zen5/start.jsonl",),
        START_COLUMNS,
    ),
    Table(
        "Zen 5",
        "Each row is a precision and a plan of another machine, one run. Plans in `bfloat16` and `float32` had a "
        "test of the gate too, and `int8` left out neurons, which it no longer does.",
        f"python benchmarks/speed.py {TEXT}",
        ("zen5/speed-*.json",),
        OTHER_MACHINE,
        beside_dense,
    ),
    Table(
        "Zen 5 beside other engines",
        "Each row is an engine in a run with the plan for 2 %.",
        f"python benchmarks/speed.py {TEXT}",
        ("zen5/speed-*-2.json",),
        ENGINE_COLUMNS,
        engines,
    ),
    Table(
        "Xeon",
        "Each row is a precision and a plan on two of 16 cores of an Intel Xeon guest, one run. Ratios are good to "
        "about 0.1: some lie above what the bytes allow.",
        f"python benchmarks/speed.py {TEXT}",
        ("xeon/speed-bfloat16-?.json", "xeon/speed-int8-?.json"),
        OTHER_MACHINE,
        beside_dense,
    ),
    Table(
        "Xeon beside other engines",
        "Each row is an engine in a run with the plan for 2 %, three rounds, with a finer estimate of the vocabulary.",
        f"python benchmarks/speed.py {TEXT}",
        ("xeon/speed-int8-2-peers.json",),
        ENGINE_COLUMNS,
        engines,
    ),
    Table(
        "A fixed share on Zen 5",
        "Each row leaves out a share of the MLP's neurons in `bfloat16`. Columns are those of the table of Zen 4.",
        "python benchmarks/fixed_share.py",
        ("zen5/fixed-share.jsonl",),
        SHARE_COLUMNS,
        shares,
    ),
    Table(
        "A fixed share on the Xeon",
        "Each row leaves out a share of the MLP's neurons. Columns are those of the table of Zen 4.",
        "python benchmarks/fixed_share.py",
        ("xeon/fixed-share.jsonl",),
        SHARE_COLUMNS,
        shares,
    ),
)

INTRODUCTION = """\
# Speed

How fast `clada` decodes, and what it loses. This page is written by `python benchmarks/speed_page.py` from the files in
`benchmarks/results`; each table names the command that measures it, and when and where it was measured.
[docs/speed-and-quality.md](../docs/speed-and-quality.md) says in words what the tables show.

Texts are articles of XSum: `dev.jsonl`, whose checksum is in [corpora/xsum.md](../corpora/xsum.md). Plans have no load
rule. Batches have one sequence where nothing else is said. The machines are shared with others, so that speeds of
different runs do not compare: a ratio is always of one run. Ratios of single runs are good to about 0.05."""
OLDER_INTRODUCTION = """\
## Older measurements

These are of plans, kernels or starts before the present ones. They are kept because the machines are others, or because
nothing newer is there."""


def report() -> str:
    """The page."""
    parts = [INTRODUCTION, "## Measurements", *(table.text() for table in TABLES)]
    return "\n\n".join([*parts, OLDER_INTRODUCTION, *(table.text() for table in OLDER)]) + "\n"


def publish() -> None:
    """Note what is new, write the page."""
    note(path for table in (*TABLES, *OLDER) for path in table.paths())
    PAGE.write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    publish()
