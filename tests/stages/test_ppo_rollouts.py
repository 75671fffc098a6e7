"""PPO by engines: what is logged of them, what correcting for them changes, and what it does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_cases import config, metrics, prepare, start
from safetensors.torch import load_file

from alignkit.runs import Run
from alignkit.sampling import Sampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("rollouts"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_dir / "model.safetensors")


def distance(a: Run, b: Run) -> float:
    one, other = weights(a), weights(b)
    return float(sum((one[name] - other[name]).abs().sum() for name in one))


AT_ONCE: dict[str, Any] = {
    "advantage": "rloo", "samples": 4, "kl": {"coef": 0.02, "placement": "loss"}, "ppo_epochs": 1, "minibatches": 1,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, AT_ONCE], ids=["ppo", "read_as_it_trains"])
def test_an_engine_that_agrees_needs_no_correction_and_one_that_does_not_is_seen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    plain = start(tmp_path / "plain", config(folder, **changes))
    corrected = config(folder, rollouts={"correction": "truncated"}, **changes)
    same = start(tmp_path / "same", corrected)
    for line in (line for run in (plain, same) for line in metrics(run) if "objective/kl" in line):
        assert 0 < line["sampling/logp_difference"] < 1e-5 and line["sampling/ratio"] == pytest.approx(1, abs=1e-5)
    assert [line.get("sampling/truncated") for line in metrics(same) if "objective/kl" in line] == [0.0] * 3
    moved = distance(plain, same)
    answers = Sampler.answers

    def louder(self: Sampler, *args: Any) -> Any:
        return [c.model_copy(update={"logps": tuple(x - 1 for x in c.logps or ())}) for c in answers(self, *args)]

    monkeypatch.setattr(Sampler, "answers", louder)
    wrong = start(tmp_path / "wrong", corrected)
    first = next(line for line in metrics(wrong) if "objective/kl" in line)
    assert first["sampling/logp_difference"] == pytest.approx(1, abs=1e-4) and first["sampling/truncated"] == 1.0
    assert first["sampling/ratio"] == pytest.approx(2.71828, rel=1e-4)
    ignored = start(tmp_path / "ignored", config(folder, **changes))
    assert distance(plain, ignored) == 0
    assert distance(plain, wrong) > 100 * max(moved, 1e-6)
