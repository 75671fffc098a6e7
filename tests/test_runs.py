"""A run's directory: nothing written before is lost, whatever ends the process."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from alignkit.config import Config, InputError
from alignkit.lineage import standing
from alignkit.options.shared import RuntimeOptions
from alignkit.runs import Run, atomic_write, checkpoint_step, read_metrics, read_record, sha256_file


class Options(Config):
    seed: int = 7
    beta: float = 0.1


QUIET = RuntimeOptions(trackers=[])


def open_run(directory: Path, id: str = "a" * 64) -> Run:
    return Run.open(directory, "sft", Options(), QUIET, id, {"base": "b" * 64})


def test_run_json_holds_every_field_of_the_contract(tmp_path: Path) -> None:
    run = open_run(tmp_path / "sft")
    assert json.loads((run.directory / "run.json").read_text())["status"] == "running"
    run.add_data([{"path": "x.jsonl", "sha256": "0" * 64, "rows": 3}])
    run.finish({"loss": math.nan, "accuracy": 0.5}, {"examples_per_second": 2.0, "tokens_per_second": 9.0}, 1024)
    stored = json.loads((run.directory / "run.json").read_text())
    fields = (
        "stage status id config runtime parents data seed versions git hardware started ended metrics throughput "
        "peak_memory_bytes"
    )
    assert set(fields.split()) <= set(stored)
    assert (stored["status"], stored["seed"], stored["peak_memory_bytes"]) == ("done", 7, 1024)
    assert stored["metrics"] == {"loss": None, "accuracy": 0.5}
    assert stored["data"] == [{"path": "x.jsonl", "sha256": "0" * 64, "rows": 3}]
    assert stored["started"].endswith("+00:00") and stored["ended"] >= stored["started"]
    assert stored["versions"]["torch"]


def test_a_failure_is_recorded_and_the_next_start_goes_on(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.fail(ValueError("loss is NaN"))
    record = read_record(tmp_path)
    assert record is not None and (record.status, record.error) == ("failed", "loss is NaN")
    open_run(tmp_path)
    record = read_record(tmp_path)
    assert record is not None and (record.status, record.error) == ("running", None)


def test_a_run_of_another_id_is_not_overwritten(tmp_path: Path) -> None:
    open_run(tmp_path)
    with pytest.raises(InputError, match="another run"):
        open_run(tmp_path, "c" * 64)


def test_metrics_are_appended_and_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for step in (1, 2, 3, 4):
        run.log(step, {"loss": 1.0 / step})
        if step == 2:
            with run.checkpoint_dir(step) as folder:
                (folder / "state.json").write_text("{}")
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')  # the kill
    again = open_run(tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    again.truncate(2)
    again.log(3, {"loss": 0.25})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_without_a_checkpoint_the_metrics_start_over(tmp_path: Path) -> None:
    open_run(tmp_path).log(1, {"loss": 1.0})
    open_run(tmp_path)
    assert read_metrics(tmp_path) == []


def test_metrics_stay_json_when_a_number_is_not_finite(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.log(1, {"loss": math.inf})
    assert run.metrics_path.read_text() == '{"step": 1, "loss": null}\n'


def test_checkpoints_take_their_name_when_whole_and_only_then_replace_the_oldest(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for step in (8, 9, 10):
        with run.checkpoint_dir(step, keep=2) as folder:
            (folder / "weights").write_text(str(step))
            assert [path.name for path in run.checkpoints()] == [f"step-{old}" for old in (8, 9) if old < step]
    assert [path.name for path in run.checkpoints()] == ["step-9", "step-10"]
    newest = run.latest_checkpoint()
    assert newest is not None and (newest / "weights").read_text() == "10"


def test_a_checkpoint_of_transformers_is_whole_once_it_holds_its_state(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for step in (20, 100, 120):
        (run.checkpoints_dir / f"checkpoint-{step}").mkdir(parents=True)
    for step in (20, 100):
        (run.checkpoints_dir / f"checkpoint-{step}/trainer_state.json").write_text("{}")
    run.log(100, {"loss": 1.0})
    again = open_run(tmp_path)
    assert [checkpoint_step(path) for path in again.checkpoints()] == [20, 100]
    assert [line["step"] for line in read_metrics(run.directory)] == [100]


def test_a_full_disk_leaves_the_last_checkpoint_and_the_record(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with run.checkpoint_dir(1) as folder:
        (folder / "weights").write_text("whole")
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(OSError, match="No space"), run.checkpoint_dir(2) as folder:
        (folder / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    newest = run.latest_checkpoint()
    assert newest is not None and (newest / "weights").read_text() == "whole"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1"]
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_metrics_on_a_full_disk_raise(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.metrics_path.unlink(missing_ok=True)
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run.log(1, {"loss": 1.0})


def test_atomic_write_leaves_the_old_text_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    atomic_write(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_a_process_killed_while_writing_leaves_a_run_that_opens(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        sys.path.insert(0, "tests")
        from test_runs import open_run
        run = open_run(Path(sys.argv[1]))
        for step in range(1, 10**6):
            run.log(step, {"loss": 1.0})
            with run.checkpoint_dir(step) as folder:
                (folder / "a").write_text(str(step) * 10_000)
                (folder / "b").write_text(str(step))
            print(step, flush=True)
    """
    for kill_after in (1, 2, 3, 5):
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as child:
            assert child.stdout is not None
            for _ in range(kill_after):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        run = open_run(tmp_path)
        newest = run.latest_checkpoint()
        assert newest is not None
        step = (newest / "b").read_text()
        assert newest.name == f"step-{step}" and (newest / "a").read_text() == step * 10_000
        run.truncate(int(step))
        assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, int(step) + 1))
        assert not list((tmp_path / "checkpoints").glob("*.partial"))
        for path in run.checkpoints():
            path.rename(path.with_name(path.name + ".partial"))  # start over


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = open_run(tmp_path / "sft")
    run.log(1, {"loss": 1.0})
    run.finish({"loss": 1.0})
    assert not run.is_main and not (tmp_path / "sft").exists()


def test_tensorboard_gets_what_metrics_jsonl_gets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 - slow

    run = Run.open(tmp_path / "sft", "sft", Options(), RuntimeOptions(), "a" * 64)
    run.log(1, {"loss": 2.0})
    run.log(2, {"loss": 1.0})
    run.finish({})
    events = EventAccumulator(str(tmp_path / "sft" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]


def test_an_unknown_tracker_is_the_users_error(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "sft", "sft", Options(), RuntimeOptions(trackers=["tensorbord"]), "a" * 64)
    with pytest.raises(InputError, match=r"tensorbord.*tensorboard"):
        run.log(1, {"loss": 2.0})


def test_a_damaged_record_is_one_clear_error(tmp_path: Path) -> None:
    open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"stage": "sft"')
    with pytest.raises(InputError, match=r"run\.json"):
        read_record(tmp_path)


def test_an_artifact_finds_what_it_was_made_from_where_runs_moved(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "hh"
    Run.open(runs / "sft", "sft", Options(), QUIET, "1" * 64)
    Run.open(runs / "dpo", "dpo", Options(), QUIET, "2" * 64, {"sft": "1" * 64})
    made_from = runs / "sft" / "model" / ".merged"
    assert standing(made_from, runs / "dpo" / "model") == made_from
    for other in (tmp_path / "base", tmp_path / "sft" / "model"):
        assert standing(other, runs / "dpo" / "model") == other, "no run's: as it is"
    (runs / "sft").rename(runs / "sft.11111111")
    assert standing(made_from, runs / "dpo" / "model") == runs / "sft.11111111" / "model" / ".merged"
    runs.parent.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "hh"
    assert standing(made_from, moved / "dpo" / "model") == moved / "sft.11111111" / "model" / ".merged"
    Run.open(moved / "sft", "sft", Options(), QUIET, "3" * 64)
    assert standing(made_from, moved / "dpo" / "model") == moved / "sft.11111111" / "model" / ".merged"
    shutil.rmtree(moved / "sft.11111111")
    with pytest.raises(InputError, match="made from the run 11111111"):
        standing(made_from, moved / "dpo" / "model")


def test_an_artifact_finds_the_run_that_its_own_run_was_made_from(tmp_path: Path) -> None:
    """The base of a continued adapter is a grandparent's, also for a copy of the chain."""
    runs = tmp_path / "runs" / "hh"
    Run.open(runs / "pretrain", "pretrain", Options(), QUIET, "1" * 64)
    Run.open(runs / "sft", "sft", Options(), QUIET, "2" * 64, {"pretrain": "1" * 64})
    Run.open(runs / "dpo", "dpo", Options(), QUIET, "3" * 64, {"sft": "2" * 64})
    base = runs / "pretrain" / "model"
    for name, id in (("pretrain", "1"), ("sft", "2"), ("dpo", "3")):
        (runs / name).rename(runs / f"{name}.{id * 8}")
    Run.open(runs / "pretrain", "pretrain", Options(), QUIET, "4" * 64)
    assert standing(base, runs / "dpo.33333333" / "model") == runs / "pretrain.11111111" / "model"
    shutil.copytree(runs, tmp_path / "runs" / "copy")
    copied = tmp_path / "runs" / "copy"
    assert standing(base, copied / "dpo.33333333" / "model") == runs / "pretrain.11111111" / "model"
    shutil.rmtree(runs / "pretrain.11111111")
    with pytest.raises(InputError, match="made from the run 11111111"):
        standing(base, runs / "dpo.33333333" / "model")


def test_a_run_of_another_chain_is_not_taken_for_an_ancestor_of_its_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    Run.open(one / "sft", "sft", Options(), QUIET, "1" * 64)
    Run.open(other / "sft", "sft", Options(), QUIET, "2" * 64)
    Run.open(other / "dpo", "dpo", Options(), QUIET, "3" * 64, {"sft": "2" * 64})
    assert standing(one / "sft" / "model", other / "dpo" / "model") == one / "sft" / "model"


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_said_again_on_resume_stands_once(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.log(0, {"data/train": 4.0})
    with run.checkpoint_dir(1):
        run.log(1, {"loss": 2.0})
    again = open_run(tmp_path)
    again.log(0, {"data/train": 4.0})
    again.truncate(1)
    assert read_metrics(tmp_path) == [{"step": 0, "data/train": 4.0}, {"step": 1, "loss": 2.0}]
