"""When and on which machine a result was measured: `benchmarks/results/measured.json`, and the sentence that says so.

A page of results calls `note` before it is written. Files that are new or changed get today's date and this machine.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stored import RESULTS

from clada.system.machine import available_cores

NOTES = RESULTS / "measured.json"


def _notes() -> dict[str, dict[str, str]]:
    return dict(json.loads(NOTES.read_text(encoding="utf-8")))


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _name(path: Path) -> str:
    return path.relative_to(RESULTS).as_posix()


def _machine() -> str:
    """The processor as the system names it, and the cores that this process may use."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {available_cores()} cores"


def note(paths: Iterable[Path]) -> None:
    """Note today's date and this machine for every result that is not the one that was noted."""
    notes = _notes()
    for path in paths:
        if notes.get(_name(path), {}).get("sha256") != _checksum(path):
            today = datetime.now(UTC).date().isoformat()
            notes[_name(path)] = {"sha256": _checksum(path), "date": today, "machine": _machine()}
    lines = [f'"{name}": {json.dumps(notes[name])}' for name in sorted(notes)]
    NOTES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def when_and_where(paths: Sequence[Path]) -> str:
    """For instance "2026-11-26 to 2026-11-27 on a Zen 4 server, 2 cores", of all results of a table.

    Raises:
        SystemExit: A result is not the one that was noted.
    """
    notes = _notes()
    unknown = [_name(path) for path in paths if notes.get(_name(path), {}).get("sha256") != _checksum(path)]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: when was this measured? Write the page anew, which notes it")
    own = [notes[_name(path)] for path in paths]
    dates = sorted({one["date"] for one in own})
    machines = sorted({one["machine"] for one in own})
    return f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {' and '.join(machines)}"


def read(path: Path) -> Any:
    """A stored result: of `.jsonl` a list with an entry for each line."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
