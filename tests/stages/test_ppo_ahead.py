"""Rollouts one update ahead of training: who draws what, how stale it is, and that a resumed run is the same."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ppo_cases import config, letters, metrics, prepare, start
from safetensors.torch import load_file

from alignkit.ahead import Queue
from alignkit.config import InputError
from alignkit.learner import Learner
from alignkit.records import Completion, Scores
from alignkit.runs import Run
from alignkit.sampling import Sampler
from reward_models.scores import RewardFailure

TRAIN: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-2}
SAMPLES: dict[str, Any] = {"advantage": "rloo", "samples": 2, "resample": 1, "ppo_epochs": 1, "minibatches": 1}
CASES: dict[str, dict[str, Any]] = {
    "critic": {},
    "resample": SAMPLES,
    "value_head": {"roles": "value_head"},
    "remax": {"advantage": "remax"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("ahead"))
    rows = [json.loads(line) | {"n": n} for n, line in enumerate((folder / "prompts.jsonl").read_text().splitlines())]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder: Path, name: str, checkpoint_every: int = 1) -> Any:
    train = TRAIN | {"checkpoint_every": checkpoint_every}
    changes = {"missing_eos": {"rule": "keep"}, "train": train, "data": {"validation": 2}} | CASES[name]
    return config(folder, rollouts={"ahead": 1}, **changes)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_dir / "model.safetensors")


def scored(completions: list[Completion]) -> Scores:
    """By the response and by a column of its prompt, which a resumed run has to have kept."""
    found = letters(completions)
    bonus = tuple(
        score + completion.columns["n"] / 100 for score, completion in zip(found.total, completions, strict=True)
    )
    return Scores(total=bonus, parts={"letters": found.total})


def test_each_update_trains_on_what_the_policy_before_the_last_update_drew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, float]] = []

    def state(actors: Any) -> float:
        return float(sum(parameter.detach().double().sum() for parameter in actors.policy.parameters()))

    def watched(kind: str, method: Any, number: int) -> Any:
        def call(self: Any, *args: Any) -> Any:
            seen.append((kind, args[number], state(self.actors)))
            return method(self, *args)

        return call

    monkeypatch.setattr(Sampler, "update", watched("draw", Sampler.update, 0))
    monkeypatch.setattr(Learner, "optimise", watched("train", Learner.optimise, 6))
    run = start(tmp_path / "run", settings(folder, "critic"), scored)
    assert [(kind, number) for kind, number, _ in seen] == [
        ("draw", 0), ("draw", 1), ("train", 0), ("draw", 2), ("train", 1), ("draw", 3), ("train", 2), ("train", 3),
    ]  # fmt: skip
    drew = {number: policy for kind, number, policy in seen if kind == "draw"}
    trained = {number: policy for kind, number, policy in seen if kind == "train"}
    assert len(set(trained.values())) == 4
    assert drew == {0: trained[0], 1: trained[0], 2: trained[1], 3: trained[2]}
    lines = [line for line in metrics(run) if "objective/kl" in line]
    assert [line["sampling/lag"] for line in lines] == [0, 1, 1, 1]
    assert ["sampling/staleness" in line for line in lines] == [False, True, True, True]
    for line in lines:  # old log-probabilities are those of the policy that drew
        assert line["sampling/logp_difference"] < 1e-5 and line.get("sampling/staleness", 1.0) > 1e-3
    assert lines[1]["objective/kl"] == pytest.approx(0, abs=1e-4) and lines[2]["objective/kl"] > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_interrupted_or_that_its_reward_leaves_is_the_same_after_it_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """While the last update is drawn, another one waits: in a checkpoint of its time, or in one written for it."""
    whole = start(tmp_path / "whole", settings(folder, name), scored)
    drawing = [-1]
    update = Sampler.update

    def watched(self: Sampler, number: int, position: int) -> Any:
        drawing[0] = number
        return update(self, number, position)

    monkeypatch.setattr(Sampler, "update", watched)
    for error, every in ((KeyboardInterrupt("now"), 2), (RewardFailure("now"), 4)):

        def stops(completions: list[Completion], error: BaseException = error) -> Scores:
            if drawing[0] == 3:
                raise error
            return scored(completions)

        drawing[0] = -1
        place, sparse = tmp_path / type(error).__name__, settings(folder, name, every)
        with pytest.raises(type(error), match="now"):
            start(place, sparse, stops)
        (checkpoint,) = (place / "checkpoints").iterdir()
        kept = json.loads((checkpoint / "policy" / "state.json").read_text())["state"]
        assert kept["update"] == 2 and len(kept["kept"][0]["completions"]) == 8
        drawing[0] = -1
        resumed = start(place, sparse, scored)
        assert drawing == [3] and metrics(resumed) == metrics(whole)
        for key, value in weights(whole).items():
            assert torch.equal(weights(resumed)[key], value), key


def test_a_checkpoint_of_another_number_of_processes_is_refused() -> None:
    sampler: Any = SimpleNamespace(ranks=2, rank=0)
    with pytest.raises(InputError, match=r"1 processes left completions in this checkpoint; go on with as many"):
        Queue(sampler).restore([{}], {})
