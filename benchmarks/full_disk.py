"""A disk that fills up at each stage: one clear line, and the same command goes on when there is room.

    mkdir /mnt/small && mount -t tmpfs -o size=128m tmpfs /mnt/small       # any small file system will do
    python benchmarks/full_disk.py /mnt/small

For every stage the disk is filled up to a few bytes, and up to 30 and 70 % of what the stage writes. The command must
end with exit code 2 and one line, or finish where that was enough, leave what was there as it was, and, once there is
room, finish with the files of a study that always had it. A line per trial goes to
`benchmarks/results/full-disk.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stored import write_lines

STAGES: tuple[tuple[str, ...], ...] = (
    ("corpus", "--source", "news", "--pairs", "8", "--length", "128"),
    ("extract",),
    ("similarity", "--metric", "cosine"),
    ("regress", "--metric", "cosine"),
    ("controls",),
    ("placebo", "--pairs", "4"),
    ("run",),
)
SHARES = (0.0, 0.3, 0.7)  # of what the stage writes, that there is room for


def content(folder: Path) -> dict[str, bytes]:
    """Every finished file of a study."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(stage: tuple[str, ...], study: Path) -> subprocess.CompletedProcess[str]:
    """A stage, as a user would run it."""
    arguments = [sys.executable, "-m", "cladastats", *stage, "--study", str(study)]
    return subprocess.run(arguments, capture_output=True, text=True)


def fill(disk: Path, room: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        left = shutil.disk_usage(disk).free - room
        block = b"\0" * 4096
        for _ in range(max(0, left // 4096)):
            file.write(block)
    return filler


def trial(
    disk: Path, before: dict[str, bytes], after: dict[str, bytes], stage: tuple[str, ...], room: int
) -> dict[str, Any]:
    """Run a stage on a disk with so much room, then with enough."""
    study = disk / "study"
    shutil.rmtree(study, ignore_errors=True)
    for name, data in before.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_bytes(data)
    filler = fill(disk, room)
    done = command(stage, study)
    said = [
        line for line in done.stderr.split("\n") if "the disk is full" in line or ("need" in line and "free" in line)
    ]
    kept = content(study)
    assert "Traceback" not in done.stderr, done.stderr
    # With most of the room some stages have written all they keep.
    assert (done.returncode, len(said)) in ((2, 1), (0, 0)), (done.returncode, done.stderr)
    assert room > 0 or done.returncode == 2, "finished without room"
    # A stage may write a file anew (`run` the coefficients), but then whole.
    assert all(kept[name] in (data, after[name]) for name, data in before.items()), "a finished file changed"
    filler.unlink()
    again = command(stage, study)
    assert again.returncode == 0, again.stderr
    said = [line.replace(str(study), "STUDY") for line in said]  # where it lay is nobody's matter
    return {"stage": stage[0], "room": room, "exit": done.returncode, "said": said, "files": content(study)}


def main() -> None:
    """Every stage at every share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path, help="a small file system, empty")
    disk = parser.parse_args().disk
    lines = []
    with tempfile.TemporaryDirectory() as place:
        roomy = Path(place) / "study"
        for stage in STAGES:
            before = content(roomy) if roomy.is_dir() else {}
            done = command(stage, roomy)
            assert done.returncode == 0, done.stderr
            after = content(roomy)
            written = sum(len(data) for name, data in after.items() if before.get(name) != data)
            for share in SHARES:
                line = trial(disk, before, after, stage, int(share * written))
                files = line.pop("files")
                # study.json and coefficients.json name their folder alike here; every file must be the same.
                differ = [name for name in after if files.get(name) != after[name]]
                assert not differ, differ
                lines.append({**line, "written": written})
                print(json.dumps(lines[-1]), flush=True)
    refused = sum(line["exit"] == 2 for line in lines)
    write_lines("full-disk.jsonl", lines)
    print(f"{len(lines)} trials: {refused} refused in one line, none lost anything, all finished when there was room")


if __name__ == "__main__":
    main()
