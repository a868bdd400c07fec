"""Runs in Dask's workers (a preload): holds one of them at a shard, so that a test can end it, or another, there.

`HELD_SHARDS` is a folder. A worker that begins a shard after it has measured `HELD_AFTER` others, and is the first to
do so, writes its process id into the file `held` there, and waits for its end.
"""

import os
import time
from pathlib import Path

from cladastats.activations.work import Worker

measure, done = Worker.part, 0


def part(self, blocks):
    global done
    if done >= int(os.environ["HELD_AFTER"]):
        try:
            with (Path(os.environ["HELD_SHARDS"]) / "held").open("x") as file:
                file.write(f"{os.getpid()}\n")
        except FileExistsError:
            pass  # another one is held already
        else:
            while True:
                time.sleep(1)
    result = measure(self, blocks)
    done += 1
    return result


def dask_setup(_worker):
    Worker.part = part
