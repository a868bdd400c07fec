"""Extraction in pieces and on clusters: the same bits, whoever computed them, and whatever died on the way."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import distributed
import pytest
from processes import finished, running

from cladastats.activations.parts import part_path
from cladastats.cli import main
from cladastats.study import Study


@pytest.fixture
def empty(tiny_study, tmp_path):
    """A copy of the shared study of a tiny model without activations, and what its parts hold."""
    return bare_copy(tiny_study, tmp_path / "study"), contents(tiny_study)


def bare_copy(study, folder):
    folder.mkdir()
    for name in ("study.json", "corpus.parquet"):
        shutil.copy(study.folder / name, folder)
    return Study(folder)


def contents(study):
    return {path.name: path.read_bytes() for path in sorted((study.folder / "activations").glob("part-*"))}


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


HANGS = 1800  # seconds after which a test hangs; on a loaded machine, processes take minutes to begin


def wait_for(what, seconds=HANGS):
    """Until it is true: processes take as long as they take; the limit only ends a test that hangs."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_pieces_merge_into_what_one_run_gives(empty, tiny_study, tmp_path, capsys):
    study, expected = empty
    assert len(expected) == 3
    apart = [bare_copy(tiny_study, tmp_path / f"machine{i}") for i in (1, 2)]
    for i, machine in enumerate(apart, start=1):
        assert main(["extract", "--study", str(machine.folder), "--shard", f"{i}/2"]) == 0
        assert not (machine.folder / "activations" / "index.parquet").exists()
    assert sorted(contents(apart[0])) == ["part-00000.safetensors", "part-00002.safetensors"]
    command = ["merge", "--study", str(study.folder)]
    assert main([*command, str(apart[0].folder)]) == 2
    assert "1 of 3 parts are missing, the first" in last_line(capsys)
    assert main([*command, "--verify", *(str(machine.folder) for machine in apart)]) == 0
    assert contents(study) == expected
    assert study.index.equals(tiny_study.index)
    for name in ("down_norms.safetensors", "index.parquet"):
        path = study.folder / "activations" / name
        assert path.read_bytes() == (tiny_study.folder / "activations" / name).read_bytes()
    assert main(["similarity", "--study", str(study.folder)]) == 0
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(SystemExit) as end:
            main(["extract", "--study", str(study.folder), "--shard", wrong])
        assert end.value.code == 2
        assert "like 1/4" in last_line(capsys)


def test_what_is_wrong_with_parts_is_found_and_how_to_mend_it(tiny_study, tmp_path, capsys):
    shutil.copytree(tiny_study.folder, tmp_path / "study")
    study, command = Study(tmp_path / "study"), ["verify", "--study", str(tmp_path / "study")]
    assert main(command) == 0
    paths = [part_path(study, number) for number in range(3)]
    whole = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].write_bytes(whole[1][:-10])
    altered = bytearray(whole[2])
    altered[-10] ^= 1
    paths[2].write_bytes(altered)
    (study.folder / "activations" / "part-00007.safetensors").write_bytes(whole[0])
    capsys.readouterr()
    assert main([*command, "--json"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["parts"] == 3
    assert [(p["part"], p["problem"]) for p in found["problems"]] == [
        ("part-00000.safetensors", "missing"),
        ("part-00001.safetensors", "is truncated or altered"),
        ("part-00002.safetensors", "is truncated or altered"),
        ("part-00007.safetensors", "of no shard of this corpus"),
    ]
    assert f"'cladastats extract --study {study.folder}' makes it" in found["problems"][0]["remedy"]
    assert "4 problems with the 3 parts of" in said.err
    assert main(["merge", "--study", str(study.folder)]) == 2
    # Without --verify too, a part that cannot be read at all is named.
    paths[0].write_bytes(whole[0])
    paths[2].write_bytes(whole[2])
    assert main(["merge", "--study", str(study.folder)]) == 2
    assert "part-00001.safetensors is truncated or altered; run 'cladastats extract" in last_line(capsys)
    # The remedy mends it.
    (study.folder / "activations" / "part-00007.safetensors").unlink()
    assert main(["extract", "--study", str(study.folder)]) == 0
    assert main(command) == 0
    assert contents(study) == contents(tiny_study)
    # A part of another study, and a folder of one.
    value = json.loads((study.folder / "study.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(study.folder, other)
    (other / "study.json").write_text(json.dumps({**value, "revision": "sha256:other"}))
    assert main(["verify", "--study", str(other)]) == 2
    assert "of another study; move it away" in capsys.readouterr().out
    assert main(["merge", "--study", str(study.folder), str(other)]) == 2
    assert "has another model or corpus" in last_line(capsys)


def test_a_study_that_does_not_fit_the_disk_is_refused_before_it_starts(small_study, tmp_path, monkeypatch, capsys):
    study = bare_copy(small_study, tmp_path / "study")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert main(["extract", "--study", str(study.folder)]) == 2
    assert re.search(r"the activations of 72 sequences need 0\.01 GB and .* has 0\.00 GB free", last_line(capsys))
    assert contents(study) == {}


# -- Dask: real schedulers and workers, in processes of their own --------------------------------------------------


def extraction(study, cluster, **options):
    """`cladastats extract` on a cluster, in the background."""
    command = ("cladastats", "extract", "--study", study.folder, "--cluster", cluster)
    return running(study.folder.parent, *command, **options)


def holding(folder, after):
    """Environment of Dask's workers in which one waits at a shard, after it has measured `after` others."""
    preload = str(Path(__file__).with_name("held_shards.py"))
    return {
        **os.environ,
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([preload]),
        "HELD_SHARDS": str(folder),
        "HELD_AFTER": str(after),
    }


def test_a_local_cluster_gives_the_same_bits_though_a_worker_is_killed(empty, tmp_path):
    study, expected = empty
    with extraction(study, "local:2", environment=holding(tmp_path, 0)) as run:
        held = tmp_path / "held"
        wait_for(lambda: run.returncode is not None or (held.exists() and held.read_text().endswith("\n")))
        os.kill(int(held.read_text()), signal.SIGKILL)
        assert run.wait(HANGS) == 0, run.stderr
    said = run.stderr
    assert "cladastats: dashboard http" in said
    assert "Traceback" not in said
    assert contents(study) == expected


@contextmanager
def scheduler(folder, port=0):
    """A Dask scheduler; yields its process and its address."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    options = ("--port", port, "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
    with running(folder, "distributed.cli.dask_scheduler", *options) as process:
        wait_for(file.exists)
        wait_for(lambda: file.read_text().endswith("}"))
        yield process, json.loads(file.read_text())["address"]


def worker(folder, address, **options):
    """A Dask worker, which computes in the process that is started."""
    arguments = (address, "--nthreads", "2", "--no-dashboard", "--no-nanny", "--local-directory", folder)
    return running(folder, "distributed.cli.dask_worker", *arguments, **options)


def await_workers(address, number):
    """Until a scheduler has so many workers."""
    with distributed.Client(address, timeout=HANGS) as client:
        client.wait_for_workers(number, timeout=HANGS)


def test_a_lost_scheduler_ends_in_one_line_and_nothing_is_lost(empty, tmp_path, capsys):
    study, expected = empty
    with scheduler(tmp_path) as (process, address):
        assert main(["extract", "--study", str(study.folder), "--cluster", address]) == 2
        assert "has no workers; start some with 'dask worker" in last_line(capsys)
        with worker(tmp_path, address, environment=holding(tmp_path, 1)):
            await_workers(address, 1)
            with extraction(study, address) as run:
                # The worker waits at its second shard, so that there is work left whenever the first one is noticed.
                wait_for(lambda: run.returncode is not None or contents(study))
                os.kill(process.pid, signal.SIGKILL)
                assert run.wait(HANGS) == 2, run.stderr
    said = run.stderr
    line = said.strip().splitlines()[-1]
    assert line.endswith("the scheduler is gone; finished parts are kept: run the same command again when there is one")
    assert "Traceback" not in said
    kept = contents(study)
    assert len(kept) == 1
    with scheduler(tmp_path) as (_, address), worker(tmp_path, address), worker(tmp_path, address):
        await_workers(address, 2)
        with extraction(study, address) as run:
            assert run.wait(HANGS) == 0, run.stderr
    assert contents(study) == expected
    assert {name: expected[name] for name in kept} == kept


# Each queue's commands, played by scripts that start a job at once: submit, delete, and what a job asks for. A job runs
# from a copy, as a queue keeps one: dask-jobqueue removes its script when it is submitted.
QUEUES = {
    "slurm": (
        ("sbatch", 'cp "$1" "$0.job"; sh "$0.job" > "$0.log" 2>&1 & echo Submitted batch job $!'),
        ("scancel", 'kill "$1"'),
        "#SBATCH --mem=4G",
    ),
    "pbs": (
        ("qsub", 'cp "$1" "$0.job"; sh "$0.job" > "$0.log" 2>&1 & echo $!.server'),
        ("qdel", 'kill "${1%%.*}"'),
        "#PBS -l select=1:ncpus=1:mem=3815MB",
    ),
    "lsf": (
        ("bsub", 'cat > "$0.job"; sh "$0.job" > "$0.log" 2>&1 & echo "Job <$!> is submitted."'),
        ("bkill", 'kill "$1"'),
        "#BSUB -n 1",
    ),
}


@pytest.mark.parametrize("queue", QUEUES)
def test_jobs_of_a_queue_are_submitted_and_work(empty, tmp_path, capsys, monkeypatch, queue):
    """The queue's commands are played, everything else is real."""
    study, expected = empty
    programs = tmp_path / "bin"
    programs.mkdir()
    file = tmp_path / "queue.json"
    options = {"jobs": 1, "cores": 1, "memory": "4GB", "interface": "lo", "log_directory": str(tmp_path / "logs")}
    file.write_text(json.dumps(options | ({"use_stdin": True} if queue == "lsf" else {})))
    command = ["extract", "--study", str(study.folder), "--cluster", f"{queue}:{file}"]
    submit, delete, asked = QUEUES[queue]
    assert main(command) == 2
    assert f"there is no {submit[0]} here" in last_line(capsys)
    for name, text in (submit, delete):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    done = finished(tmp_path, "cladastats", *command)
    assert done.returncode == 0, done.stderr
    assert contents(study) == expected
    assert asked in (programs / f"{submit[0]}.job").read_text()


# Dask warns, when it is collected, of a cluster that could not be made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_describes_no_queue_is_refused(empty, tmp_path, capsys, monkeypatch):
    study, _ = empty
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    file = tmp_path / "slurm.json"
    for content, message in (
        ("{", "does not describe a slurm cluster"),
        ('{"cores": 1}', "does not describe a slurm cluster"),
        ('{"jobs": 0}', "jobs is 0"),
        ('{"jobs": 1, "cores": 2}', "no memory"),
        (
            '{"jobs": 1, "memory": "1GB", "cores": 1, "colour": "red"}',
            "no option colour; it takes those of dask-jobqueue's SLURMCluster",
        ),
        ('{"jobs": 1, "memory": "lots", "cores": 1}', "does not describe a cluster"),
        ('{"jobs": 1, "memory": "1GB", "cores": "four"}', "does not describe a cluster"),
    ):
        file.write_text(content)
        assert main(["extract", "--study", str(study.folder), "--cluster", f"slurm:{file}"]) == 2
        assert message in last_line(capsys)


@pytest.mark.parametrize("name", ["local:0", "local:many", "moon:1", "tcp://127.0.0.1:9"])
def test_a_cluster_that_is_none_is_refused(empty, name, capsys):
    study, _ = empty
    assert main(["extract", "--study", str(study.folder), "--cluster", name]) == 2
    line = last_line(capsys)
    assert name in line
    assert contents(study) == {}
