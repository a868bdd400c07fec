"""`cladastats verify`: is every part of a study there, whole, and its own?"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["verify", *sys.argv[1:]]))

import argparse
from pathlib import Path

from clada.errors import StudyError
from clada.system.jsonfile import json_line
from cladastats.activations.parts import DamagedPartError, part_path, read_part, shard_ids, shards_of
from cladastats.study import Study


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        StudyError: something is wrong; what, is printed before.
    """
    study = Study(args.study)
    damaged = problems(study)
    parts = len(shards_of(study.corpus))
    if args.json:
        shown = [{"part": path.name, "problem": what, "remedy": remedy} for path, what, remedy in damaged]
        print(json_line({"study": str(study.folder), "parts": parts, "problems": shown}))
    else:
        for path, what, remedy in damaged:
            print(f"{path}: {what}; {remedy}")
    if damaged:
        raise StudyError(f"{len(damaged)} problems with the {parts} parts of {study.folder}; remedies are above")
    print(f"cladastats: all {parts} parts of {study.folder} are whole", file=sys.stderr)


def problems(study: Study) -> list[tuple[Path, str, str]]:
    """What is wrong with a study's parts: (file, what, what mends it), in order."""
    again = f"'cladastats extract --study {study.folder}' makes it"
    damaged, expected = [], set()
    for number, blocks in enumerate(shards_of(study.corpus)):
        path = part_path(study, number)
        expected.add(path.name)
        if not path.exists():
            damaged.append((path, "missing", again))
            continue
        try:
            read_part(path, study.config.identity(), shard_ids(blocks))
        except DamagedPartError as damage:
            damaged.append((path, damage.what, f"{again} anew"))
        except StudyError:
            damaged.append((path, "of another study", f"move it away, then {again}"))
    foreign = {path for path in (study.folder / "activations").glob("part-*") if path.name not in expected}
    damaged += [(path, "of no shard of this corpus", "move it away") for path in sorted(foreign)]
    return damaged
