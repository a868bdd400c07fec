"""Which library fits mixed models with crossed random effects as lme4 does, how fast, and in how much memory?

    pip install lme-python interlace-lme gpboost
    python benchmarks/mixed_models.py              # every library that is installed; half an hour on two cores
    python benchmarks/mixed_models.py --write DIR  # the data, for benchmarks/lme4_reference.R

Each library fits the models of `tests/mixed_designs.py` by maximum likelihood. A fit agrees with lme4 if its
log-likelihood is within 0.01 of the stored one. Another value without an error is worse than a refusal. What a library
refuses, or cannot be asked, is not supported: gpboost has no correlated slopes, some formulas hold functions. `clada`
is `cladastats.mixed_model`, which searches with the library mixedlm, from several places and in common units. Of
statsmodels, whose `MixedLM` takes crossed factors as one dense block of all rows, `tests/test_mixed.py` has one case.

Then a million trials of 100 subjects with 500 items are fitted, each in a process of its own: seconds, and the most
memory the process held, data included. A fit is given up after ten minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from stored import RESULTS
from tabulate import tabulate

TESTS = Path(__file__).parent.parent / "tests"
sys.path.append(str(TESTS))  # where the simulated experiments are

from mixed_designs import CODINGS, DESIGNS, checksum  # noqa: E402

MILLION = "rt ~ surprisal + length + (1 + surprisal | subject) + (1 | item)"
INTERCEPTS = "rt ~ surprisal + length + (1 | subject) + (1 | item)"
LIMIT_S = 600


def million() -> pd.DataFrame:
    """A million trials."""
    random = np.random.RandomState(1)
    rows = 1_000_000
    subject, item = random.randint(0, 100, rows), random.randint(0, 500, rows)
    surprisal, length = random.gamma(2, 3, rows), random.randint(2, 12, 500)[item]
    rt = 300 + 4 * surprisal + 5.0 * length + random.normal(0, 40, 100)[subject] + random.normal(0, 15, 500)[item]
    rt = rt + random.normal(0, 2, 100)[subject] * surprisal + random.normal(0, 90, rows)
    return pd.DataFrame({"subject": subject, "item": item, "surprisal": surprisal, "length": length, "rt": rt})


# -- The libraries: log-likelihood of a frame and a formula ---------------------------------------------------------


def clada(frame: pd.DataFrame, formula: str) -> float:
    """This package."""
    from cladastats import mixed_model

    return mixed_model(frame, formula).loglik


def mixedlm(frame: pd.DataFrame, formula: str) -> float:
    """The library it searches with, by itself."""
    import mixedlm

    return float(mixedlm.lmer(formula, frame, REML=False).logLik().value)


def lme_python(frame: pd.DataFrame, formula: str) -> float:
    """The library lme-python; whole numbers do not name groups there."""
    import lme_python
    import polars

    columns = {
        name: frame[name].astype(str) if name in ("subject", "item", "site") else frame[name].to_numpy()
        for name in frame
    }
    return float(lme_python.lmer(formula, polars.DataFrame(columns), reml=False).log_likelihood)


def interlace(frame: pd.DataFrame, formula: str) -> float:
    """The library interlace-lme; random terms are a list."""
    from interlace import fit

    random = re.findall(r"\([^()]*\|[^()]*\)", formula)
    fixed = formula
    for term in random:
        fixed = fixed.replace(f" + {term}", "")
    return float(fit(fixed, frame, random=random, method="ML").llf)


def gpboost(frame: pd.DataFrame, formula: str) -> float:
    """The library gpboost, which has no formulas."""
    import gpboost

    if re.search(r"\((?!1 \|)[^()]*\|", formula) or re.search(r"[*/:]|log|scale|I\(", formula):
        raise ValueError("only random intercepts and plain columns are asked of it")
    names = re.findall(r"\(1 \| (\w+)\)", formula)
    fixed = [name.strip() for name in formula.partition("~")[2].partition("(")[0].split("+") if name.strip()]
    columns = np.column_stack([np.ones(len(frame)), *(frame[name] for name in fixed)])
    model = gpboost.GPModel(group_data=frame[names].to_numpy(), likelihood="gaussian")
    model.fit(y=frame[formula.split()[0]].to_numpy(), X=columns)
    return -float(model.get_current_neg_log_likelihood())


LIBRARIES = {
    "clada": (clada, "mixedlm", "MIT"),
    "mixedlm": (mixedlm, "mixedlm", "MIT"),
    "lme-python": (lme_python, "lme-python", "MIT; its wheels hold MKL and a part under LGPL"),
    "interlace-lme": (interlace, "interlace-lme", "BSD"),
    "gpboost": (gpboost, "gpboost", "Apache 2.0"),
}


def agreement(library: str) -> dict[str, Any]:
    """On which of the designs a library finds lme4's log-likelihood."""
    reference = json.loads((TESTS / "reference" / "lme4.json").read_text(encoding="utf-8"))["designs"]
    fit = LIBRARIES[library][0]
    found: dict[str, Any] = {}
    for name, (make, formula) in DESIGNS.items():
        table = make()
        table = table.dropna() if library != "clada" else table
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                difference = fit(table, formula) - reference[name]["ml"]["loglik"]
        except Exception as error:  # any way in which a library says no
            found[name] = {"refused": f"{type(error).__name__}: {error}"[:200]}
        else:
            found[name] = {"loglik_minus_lme4": difference, "seconds": time.perf_counter() - began}
    return found


def at_size(library: str, formula: str) -> dict[str, Any]:
    """The time and memory of a million trials in this process."""
    table = million()
    began, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loglik = LIBRARIES[library][0](table, formula)
    return {
        "loglik": loglik,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def in_process(*arguments: str) -> dict[str, Any]:
    """What this script prints with those arguments, or why it did not."""
    command = [sys.executable, __file__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    except subprocess.TimeoutExpired:
        return {"refused": f"not ready after {LIMIT_S} s"}
    except subprocess.CalledProcessError as error:
        return {"refused": error.stderr.strip().rpartition("\n")[2][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare() -> list[dict[str, Any]]:
    """One row a library that is installed."""
    rows = []
    for library, (_, package, licence) in LIBRARIES.items():
        try:
            row: dict[str, Any] = {"library": library, "version": version(package), "licence": licence}
        except PackageNotFoundError:
            continue
        row["designs"] = in_process("--agreement", library)
        row["intercepts"] = in_process("--size", library, INTERCEPTS)
        row["slopes"] = in_process("--size", library, MILLION)
        rows.append(row)
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""

    def seconds(size: dict[str, Any]) -> str:
        return "refused" if "refused" in size else f"{size['seconds']:.0f} s, {size['memory_gb']:.1f} GB"

    cells = []
    for row in rows:
        values = [value for value in row["designs"].values() if isinstance(value, dict)]
        differences = [value["loglik_minus_lme4"] for value in values if "refused" not in value]
        agree = sum(abs(difference) < 0.01 for difference in differences)
        cells.append(
            [
                row["library"],
                row["version"],
                f"{agree} of {len(DESIGNS)}",
                len(differences) - agree,
                len(DESIGNS) - len(differences),
                seconds(row["intercepts"]),
                seconds(row["slopes"]),
            ]
        )
    heads = ["library", "version", "lme4's value", "another", "not supported", "10^6, intercepts", "10^6, slopes"]
    return tabulate(cells, headers=heads)


def main() -> None:
    """Run the comparison, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="DIR", type=Path, help="write the data and stop")
    parser.add_argument("--agreement", metavar="LIBRARY", help=argparse.SUPPRESS)
    parser.add_argument("--size", nargs=2, metavar=("LIBRARY", "FORMULA"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        args.write.mkdir(parents=True, exist_ok=True)
        asked = {}
        for name, (make, formula) in DESIGNS.items():
            table = make()
            table.to_csv(args.write / f"{name}.csv", index=False, lineterminator="\n")
            asked[name] = {"formula": formula, "checksum": checksum(table)}
        codings = [{"design": design, "formula": formula} for design, formula in CODINGS]
        content = json.dumps({"designs": asked, "codings": codings}, indent=1)
        (args.write / "designs.json").write_text(content, encoding="utf-8")
    elif args.agreement:
        print("\n" + json.dumps(agreement(args.agreement)))
    elif args.size:
        print("\n" + json.dumps(at_size(*args.size)))
    else:
        rows = compare()
        (RESULTS / "mixed-models.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(shown(rows))
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
