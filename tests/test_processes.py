"""Two processes train as one does: uneven rows, uneven numbers of forwards, even a rank without an example."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_cases import SETTINGS, trajectory

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two gloo processes have left their trajectories."""
    folder = tmp_path_factory.mktemp("processes")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(ROOT / "tests/loop_cases.py"), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_give_the_trajectory_of_one(setting: str, folder: Path) -> None:
    name, _, batch = SETTINGS[setting]
    history, model = trajectory(name, lambda rank: 10_000, batch=batch)
    ranks = [json.loads((folder / f"{setting}-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1], "the ranks differ in metrics, weights or the number of forwards"
    assert ranks[0]["forwards"] > model.forwards
    for one, two in zip(history, ranks[0]["history"], strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-7)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1).tolist()
        there = ranks[0]["parameters"][name]
        there = [x for row in there for x in row] if isinstance(there[0], list) else there
        norm = sum(x * x for x in flat) ** 0.5
        assert sum((a - b) ** 2 for a, b in zip(flat, there, strict=True)) ** 0.5 < 1e-5 * norm, name
