"""Jobs as a user starts them: killed and taken up again, on one process and on two, out of room, on a cluster."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="the extra `data` is not installed")
ROOT = Path(__file__).resolve().parents[3]
SHARDED = ["--as", "corpus", "work.shard_megabytes=1"]


def command(folder: Path, *arguments: str, limit: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    words = [sys.executable, "-m", "alignkit", "data", *arguments]
    limited = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *words] if limit else words
    return subprocess.Popen(
        limited, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(folder: Path, *arguments: str) -> str:
    process = command(folder, *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def corpus(path: Path, megabytes: float = 3.0) -> Path:
    """Rows of which every tenth says what another one says, near it or far before."""
    draw = random.Random(0)
    size, number = 0, 0
    said: list[str] = []
    with path.open("w") as file:
        while size < megabytes * 1e6:
            if number % 10 or not number:
                text = " ".join(f"{draw.choice('abcdefgh')}{draw.randrange(10**6)}" for _ in range(150))
                said.append(text)
            else:
                text = said[-1] if number % 20 else said.pop(draw.randrange(len(said) // 2))
            size += file.write(json.dumps({"text": text, "id": str(number)}) + "\n")
            number += 1
    return path


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Until a job's work folder holds such a file."""
    while not any(folder.glob(f".kept.jsonl.*.work/{pattern}")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.01)


def processes_in(folder: Path, command: bytes = b"") -> list[str]:
    """The processes there whose command holds a word: a job, its workers, the servers of both."""
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if place.joinpath("cwd").resolve() == folder and command in (place / "cmdline").read_bytes():
                found.append(place.name)
    return found


def workers_in(folder: Path) -> list[str]:
    """The processes that work for a job there, and the server that starts them."""
    return processes_in(folder, b"forkserver")


def outcome(folder: Path) -> dict[str, bytes]:
    """All files, without what times and paths of the report make different."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(files.pop("kept.report.json"))
    return files | {"counts": json.dumps([report[name] for name in ("records", "kept", "removed", "tags")]).encode()}


def test_workers_and_shards_change_no_result(tmp_path: Path) -> None:
    corpus(tmp_path / "in.jsonl")
    finish(tmp_path, "dedup", "in.jsonl", "one/kept.jsonl", "--as", "corpus", "work.workers=1")
    said = finish(tmp_path, "dedup", "in.jsonl", "two/kept.jsonl", *SHARDED, "work.workers=2")
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    # Which of a group of equals MinHash keeps may differ; here exact ones are all there is, and the first stays.
    assert one == two
    rows = (tmp_path / "in.jsonl").read_bytes().count(b"\n")
    assert one["kept.jsonl"].count(b"\n") == rows - (rows - 1) // 10
    assert "equal to another record" in said and "%|" not in said  # no foreign progress bars


def test_a_killed_job_leaves_no_output_and_the_same_command_ends_it(tmp_path: Path) -> None:
    corpus(tmp_path / "in.jsonl", 4.0)
    job = ("dedup", "in.jsonl", "killed/kept.jsonl", *SHARDED, "work.workers=1")
    finish(tmp_path, *(word.replace("killed/", "whole/") for word in job))
    for stage in ("shards", "stages/exact_hash/completions", "stages/minhash_hash/completions"):
        process = command(tmp_path, *job)
        wait_for(process, tmp_path / "killed", f"{stage}/*")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert all(path.name.startswith(".kept.jsonl.") for path in (tmp_path / "killed").iterdir())
    assert len(list((tmp_path / "killed").glob(".kept.jsonl.*.work/stages/exact_hash/completions/*"))) == 5  # MB
    said = finish(tmp_path, *job)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole"), said


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes in /proc")
def test_workers_end_with_the_job_that_was_killed(tmp_path: Path) -> None:
    corpus(tmp_path / "in.jsonl", 8.0)
    process = command(tmp_path, "clean", "in.jsonl", "out/kept.jsonl", *SHARDED, "work.workers=2", "quality=[gopher]")

    wait_for(process, tmp_path / "out", "stages/clean/completions/*")
    assert len(workers_in(tmp_path)) > 2
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while processes_in(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert not processes_in(tmp_path)


def test_other_options_begin_anew(tmp_path: Path) -> None:
    corpus(tmp_path / "in.jsonl", 1.5)
    process = command(tmp_path, "dedup", "in.jsonl", "out/kept.jsonl", *SHARDED, "work.workers=1")
    wait_for(process, tmp_path / "out", "shards.json")
    process.kill()
    process.wait()
    finish(tmp_path, "dedup", "in.jsonl", "out/kept.jsonl", "--as", "corpus", "exact=false", "minhash.bands=2")
    report = json.loads((tmp_path / "out/kept.report.json").read_text())
    assert {tag["step"] for tag in report["tags"]} == {"minhash"}
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_two_processes_do_not_work_on_one_output(tmp_path: Path) -> None:
    corpus(tmp_path / "in.jsonl", 3.0)
    first = command(tmp_path, "dedup", "in.jsonl", "out/kept.jsonl", *SHARDED, "work.workers=1")
    wait_for(first, tmp_path / "out", "shards.json")
    second = command(tmp_path, "dedup", "in.jsonl", "out/kept.jsonl", "--as", "corpus", "by=prompt")
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 2 and "another process is at work on it" in said
    assert first.wait(timeout=300) == 0
    assert outcome(tmp_path / "out")["kept.jsonl"]


@pytest.mark.parametrize("interrupt", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_worker_that_is_killed_ends_the_job_with_a_reason(tmp_path: Path, interrupt: signal.Handlers) -> None:
    corpus(tmp_path / "in.jsonl", 4.0)
    job = ("clean", "in.jsonl", "out/kept.jsonl", *SHARDED, "work.workers=2", "quality=[gopher]")
    before = signal.signal(signal.SIGINT, interrupt)  # the job inherits it: a shell's background jobs ignore SIGINT
    try:
        process = command(tmp_path, *job)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(process, tmp_path / "out", "stages/clean/completions/*")
    worker = max(workers_in(tmp_path), key=int)
    os.kill(int(worker), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "a worker of the stage clean was killed" in said and "Traceback" not in said
    finish(tmp_path, *job)


def test_a_worker_that_is_killed_while_it_waits_ends_the_job_too(tmp_path: Path) -> None:
    script = Path(__file__).with_name("idle_killed.py")
    command = [sys.executable, str(script), str(tmp_path / "job")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "ChildProcessError: a worker of the stage lasting was killed" in done.stderr


def test_a_full_disk_is_one_error_and_what_stood_there_stays(tmp_path: Path) -> None:
    corpus(tmp_path / "in.jsonl", 1.0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept.jsonl").write_text("before")
    job = ("clean", "in.jsonl", "out/kept.jsonl", "--as", "corpus", "work.workers=2")
    process = command(tmp_path, *job, limit="300")  # blocks of 1,024 bytes for one file
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in said
    assert "error: out/kept.jsonl: cannot be written: File too large. Make room, or write elsewhere" in said
    assert (tmp_path / "out/kept.jsonl").read_text() == "before"
    finish(tmp_path, *job)
    assert (tmp_path / "out/kept.jsonl").read_text() != "before"


def test_on_slurm_every_stage_waits_for_the_one_before(tmp_path: Path) -> None:
    """Stand-ins for its programs keep each job's script and what it waits for; run in order they give the result."""
    corpus(tmp_path / "in.jsonl", 1.5)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        f"#!{sys.executable}\nimport os, shutil, sys\nfolder = {str(tmp_path / 'jobs')!r}\n"
        "os.makedirs(folder, exist_ok=True)\nnumber = len(os.listdir(folder)) // 2 + 1\n"
        'shutil.copy(sys.argv[-1], f"{folder}/{number}.sh")\n'
        'open(f"{folder}/{number}.arguments", "w").write(" ".join(sys.argv[1:-1]))\n'
        'print("Submitted batch job", number)\n'
    )
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho here\n")
    for program in (sbatch, tmp_path / "scontrol"):
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    slurm = ["work.executor=slurm", "work.arguments.partition=cpu", "work.arguments.time='01:00:00'"]
    said = finish(tmp_path, "dedup", "in.jsonl", "out/kept.jsonl", *SHARDED, "minhash=null", *slurm)
    assert "Submitted. The last job writes out/kept.jsonl" in said
    scripts = sorted((tmp_path / "jobs").glob("*.sh"), key=lambda path: int(path.stem))
    jobs = [path for path in scripts if "launch_pickled_pipeline" in path.read_text()]  # others sum up statistics
    assert len(jobs) == 4  # hash, find, part, gather
    for before, path in pairwise(jobs):
        assert f"--dependency=afterok:{before.stem}" in path.with_suffix(".arguments").read_text()
    assert not (tmp_path / "out/kept.jsonl").exists()
    for path in jobs:
        array = next(line for line in path.read_text().splitlines() if "--array" in line)
        last = int(array.partition("=")[2].partition("%")[0].partition("-")[2])
        for task in range(last + 1):
            numbered = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here", "SLURM_CPUS_PER_TASK": "1"}
            search = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": search, **numbered}
            shell = path.read_text().replace("srun  -l -n 1 ", "")
            done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    rows = (tmp_path / "in.jsonl").read_bytes().count(b"\n")
    assert (tmp_path / "out/kept.jsonl").read_bytes().count(b"\n") == rows - (rows - 1) // 10
