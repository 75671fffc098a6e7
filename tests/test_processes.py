"""Two processes train as one does: uneven rows, uneven numbers of forwards, even a rank without an example."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import reference_cases
import tiny
import torch
from loop_cases import SETTINGS, Tiny, mixed_training, trajectory, whole_training

from alignkit.config import Config
from alignkit.loop import make_accelerator
from alignkit.options.shared import RuntimeOptions
from alignkit.runs import Run, read_metrics

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two gloo processes have left their trajectories."""
    folder = tmp_path_factory.mktemp("processes")
    launch("loop_cases.py", folder)
    return folder


def launch(script: str, folder: Path, timeout: float | None = None) -> None:
    """Run a script of the tests in two processes, on a folder."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "tests" / script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_give_the_trajectory_of_one(setting: str, folder: Path) -> None:
    name, _, batch = SETTINGS[setting]
    history, model = trajectory(name, lambda rank: 10_000, batch=batch)
    ranks = [json.loads((folder / f"{setting}-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1], "the ranks differ in metrics, weights or the number of forwards"
    assert ranks[0]["forwards"] > model.forwards
    for one, two in zip(history, ranks[0]["history"], strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-7)
    assert_equal(model, ranks[0]["parameters"])


def test_a_whole_training_in_two_processes_equals_one_and_resumes_to_the_same_bits(folder: Path) -> None:
    result, model = whole_training(None)
    first, other, resumed, other_resumed = (
        json.loads((folder / f"{part}-{rank}.json").read_text()) for part in ("first", "resumed") for rank in range(2)
    )
    assert first == other == resumed == other_resumed
    assert first["metrics"] == pytest.approx(result.metrics, rel=1e-5)
    assert_equal(model, first["parameters"])
    steps = [line["step"] for line in read_metrics(folder / "run") if "grad_norm" in line]
    assert steps == [1, 2, 3, 4], "the resumed training must log each step once"


def test_a_mixture_in_two_processes_gives_the_trajectory_of_one(folder: Path) -> None:
    result, model = mixed_training()
    first, other = (json.loads((folder / f"mixed-{rank}.json").read_text()) for rank in range(2))
    assert first == other and "ranking/few" in first["metrics"]
    assert first["metrics"] == pytest.approx(result.metrics, rel=1e-5)
    assert_equal(model, first["parameters"])


def test_two_processes_compute_the_reference_of_one(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "base")
    launch("reference_cases.py", tmp_path, timeout=120)
    runtime = RuntimeOptions(trackers=[], device="cpu")
    run = Run.open(tmp_path / "alone", "dpo", Config(), runtime)
    alone = reference_cases.columns(tmp_path, make_accelerator(runtime), run)
    assert len(alone) == 22 and all(column[:2] == [0.0, 0.0] and max(column[2:]) < 0 for column in alone)
    for rank in range(2):
        found = json.loads((tmp_path / f"reference-{rank}.json").read_text())
        assert found == [pytest.approx(column, rel=1e-5) for column in alone]


def test_a_rank_that_waits_for_examples_hears_why_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": 3}\n')
    launch("examples_cases.py", tmp_path, timeout=120)
    told = [(tmp_path / f"told-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] and "texts.jsonl:1: " in told[0]
    assert not list((tmp_path / "run").glob("*.writing"))


def assert_equal(model: Tiny, parameters: dict[str, list]) -> None:
    """Each tensor to 1e-5 of its norm."""
    for name, parameter in model.named_parameters():
        there = torch.tensor(parameters[name])
        assert (parameter - there).norm() < 1e-5 * parameter.norm(), name
