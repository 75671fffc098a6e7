"""PPO by engines: what is logged of them, what correcting for them changes, and what it does not."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ppo_cases import config, letters, metrics, prepare, start
from safetensors.torch import load_file
from served_cases import drawn, launch, run_served
from vllm_fake import fake_vllm

from alignkit.config import InputError
from alignkit.contents import Contents
from alignkit.generate import EngineFailure
from alignkit.learner import Learner
from alignkit.recipe.identity import stage_ids
from alignkit.recipe.read import load_recipe
from alignkit.records import Completion
from alignkit.runs import Run, read_metrics
from alignkit.sampling import Sampler
from alignkit.vllm_server import VllmServer
from reward_models.scores import RewardFailure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("rollouts"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(next(run.model_dir.glob("*model.safetensors")))


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
    changes = {**changes, "train": {"steps": 2}}
    plain = start(tmp_path / "plain", config(folder, **changes))
    corrected = config(folder, rollouts={"correction": "truncated"}, **changes)
    same = start(tmp_path / "same", corrected)
    for line in (line for run in (plain, same) for line in metrics(run) if "objective/kl" in line):
        assert 0 < line["sampling/logp_difference"] < 1e-5 and line["sampling/ratio"] == pytest.approx(1, abs=1e-5)
    assert [line.get("sampling/truncated") for line in metrics(same) if "objective/kl" in line] == [0.0] * 2
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


SERVED: dict[str, Any] = {
    "model": {"lora": {"r": 4}}, "rollouts": {"engine": "vllm", "correction": "truncated"},
    "train": {"steps": 3, "batch_size": 8, "checkpoint_every": 1, "learning_rate": 3e-2}, "data": {"validation": 2},
    "max_new_tokens": 6,
}  # fmt: skip


def test_a_vllm_server_gets_each_updates_adapter_and_a_run_that_it_left_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VllmServer.__init__.__kwdefaults__, "wait", 0.01)
    settings = config(folder, **SERVED)
    with fake_vllm(folder / "model") as (fake, served):
        whole = start(tmp_path / "whole", settings, rollout_url=served.url)
        # the policy as it came in and after each of three updates, and nothing twice
        assert len(fake.loaded) == 4 and list(fake.adapters) == fake.loaded[-1:]
        each = fake.completions
    lines = [line for line in metrics(whole) if "objective/kl" in line]
    assert len(lines) == 3 and lines[-1]["objective/kl"] > 0.05
    for line in lines:
        assert line["sampling/logp_difference"] < 1e-4 and line["sampling/ratio"] == pytest.approx(1, abs=1e-4)
    with fake_vllm(folder / "model") as (fake, served):
        fake.down = each * 6 // 10  # in the second update or later
        with pytest.raises(EngineFailure, match=f"{served.url}/v1/completions: no answer after 4 tries: status 503"):
            start(tmp_path / "left", settings, rollout_url=served.url)
        assert any((tmp_path / "left" / "checkpoints").iterdir())
        fake.down = None
        resumed = start(tmp_path / "left", settings, rollout_url=served.url)
    assert metrics(resumed) == metrics(whole)
    assert distance(resumed, whole) == 0


def test_a_vllm_server_gets_each_updates_whole_weights(folder: Path, tmp_path: Path) -> None:
    train = {**SERVED["train"], "learning_rate": 3e-3}
    settings = config(folder, **SERVED | {"model": {}, "train": train})
    with fake_vllm(folder / "model") as (fake, served):
        fake.dev = True
        run = start(tmp_path / "run", settings, rollout_url=served.url)
    assert served.paths.count("/collective_rpc") == served.paths.count("/reset_prefix_cache") == 4
    lines = [line for line in metrics(run) if "objective/kl" in line]
    assert len(lines) == 3 and lines[-1]["objective/kl"] > 0.05
    assert all(line["sampling/logp_difference"] < 1e-4 for line in lines)


def test_a_server_that_holds_other_weights_is_found_out(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, **SERVED)
    (other := tmp_path / "other").mkdir()
    tiny.checkpoint(other, seed=1)
    with fake_vllm(other) as (fake, served):
        fake.root = str(folder / "model")  # what it says it holds
        with pytest.raises(InputError, match=r"differ by \d\.\d\d nats a token, more than 0\.5"):
            start(tmp_path / "run", settings, rollout_url=served.url)


@pytest.mark.parametrize("held", [0, 3])
def test_continuous_batching_samples_for_updates(folder: Path, tmp_path: Path, held: int) -> None:
    train = {"steps": 2, "batch_size": 8}
    settings = config(folder, rollouts={"engine": "continuous"}, train=train, min_new_tokens=held)
    lines = [line for line in metrics(start(tmp_path / "run", settings, token_budget=128)) if "objective/kl" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["sampling/logp_difference"] < 1e-5 and line["sampling/ratio"] == pytest.approx(1, abs=1e-5)


OVERLAPPED = SERVED | {"rollouts": {"engine": "vllm", "ahead": 1}}


def test_a_server_draws_while_the_update_before_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    optimise = Learner.optimise
    with fake_vllm(folder / "model") as (fake, served):

        def while_asked(self: Learner, *args: Any) -> Any:
            """The training of an update lasts until the server has been asked for all of the next."""
            until, end = (args[6] + 2) * 8 if args[6] < 2 else 0, time.monotonic() + 30
            while fake.completions - held_out < until and time.monotonic() < end:
                time.sleep(0.01)
            seen.append((fake.loaded[-1], fake.completions - held_out))
            return optimise(self, *args)

        monkeypatch.setattr(Learner, "optimise", while_asked)
        held_out = 2  # validation before the first update
        settings = config(folder, **OVERLAPPED | {"train": {**SERVED["train"], "evaluate_every": 3}})
        run = start(tmp_path / "run", settings, rollout_url=served.url)
        # update 1 is drawn by the adapter that drew update 0, update 2 by what update 0 made of it
        assert seen == [(fake.loaded[0], 16), (fake.loaded[1], 24), (fake.loaded[1], 24)]
    lines = [line for line in metrics(run) if "objective/kl" in line]
    assert [line["sampling/lag"] for line in lines] == [0, 1, 1]
    assert lines[0]["sampling/logp_difference"] < 1e-4 and "sampling/staleness" not in lines[0]
    for line in lines[1:]:  # old log-probabilities are the server's, of the adapter that drew
        assert line["sampling/staleness"] > 1e-3 and "sampling/logp_difference" not in line
    assert lines[1]["objective/kl"] == pytest.approx(0, abs=1e-4) and lines[2]["objective/kl"] > 1e-3
    for line in (line for line in map(json.loads, run.metrics_path.open()) if "objective/kl" in line):
        phases = sum(line[f"seconds/{name}"] for name in ("generation", "scoring", "update"))
        assert phases == pytest.approx(line["seconds"], rel=0.1)


@pytest.mark.parametrize("fault", ["server", "reward"])
def test_what_fails_while_an_update_is_trained_ends_the_next_one_before_it_begins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setitem(VllmServer.__init__.__kwdefaults__, "wait", 0.01)
    broken, calls = [True], [0]

    def reward(completions: Sequence[Completion]) -> Any:
        """Fails at the scores of update 2, which the server draws while update 1 is trained."""
        calls[0] += 1
        if fault == "reward" and broken[0] and calls[0] == 4:  # after a validation and two updates
            raise RewardFailure("reward: no")
        return letters(completions)

    settings = config(
        folder, **OVERLAPPED | {"train": {**SERVED["train"], "checkpoint_every": 9, "evaluate_every": 9}}
    )
    with fake_vllm(folder / "model") as (fake, served):
        fake.down = 2 + 16 + 4 if fault == "server" else None
        with pytest.raises(EngineFailure if fault == "server" else RewardFailure):
            start(tmp_path / "run", settings, reward, rollout_url=served.url)
        left = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
        fake.down, broken[0] = None, False
        run = start(tmp_path / "run", settings, reward, rollout_url=served.url)
    assert len(left) == 1 and left[0].endswith("2")
    lines = [line for line in metrics(run) if "objective/kl" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["sampling/lag"] for line in lines] == [0, 1, 0]  # drawn anew, by the policy as it then is


# the KL is a loss: in the reward its rounding would give samples that score alike advantages, of either sign
TWO = SERVED | {
    "advantage": "rloo", "samples": 2, "train": {**SERVED["train"], "batch_size": 10},
    "kl": {"coef": 0.02, "placement": "loss"},
}  # fmt: skip


@pytest.mark.parametrize("ahead", [0, 1])
def test_two_processes_draw_from_a_server_what_one_does(tmp_path: Path, ahead: int) -> None:
    """Three prompts of each update are one rank's, two the other's."""
    changes = TWO | {"rollouts": {"engine": "vllm", "ahead": ahead}}
    with fake_vllm(prepare(tmp_path) / "model") as (fake, at):
        alone = run_served(tmp_path, tmp_path / "one", at.url, changes)
        loaded = len(fake.loaded)
        said = launch(tmp_path, tmp_path / "two", at.url, changes).communicate(timeout=120)[1]
        assert len(fake.loaded) == 2 * loaded, said[-3000:]
    assert drawn(tmp_path / "two", 2) == drawn(tmp_path / "one")
    for one, other in zip(metrics(alone), read_metrics(tmp_path / "two/run"), strict=True):
        assert {name: other[name] for name in one} == pytest.approx(one, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("refused", [("/v1/load_lora_adapter", 3), ("/v1/completions", 2 + 2 * 5 + 3)])
def test_a_server_that_refuses_one_process_ends_both_and_they_go_on(
    tmp_path: Path, ahead: int, refused: tuple[str, int]
) -> None:
    """In the third update; the adapter is loaded by the main process alone."""
    train = {**TWO["train"], "steps": 4, "checkpoint_every": 9, "evaluate_every": 9}
    changes = TWO | {"rollouts": {"engine": "vllm", "ahead": ahead}, "train": train}
    with fake_vllm(prepare(tmp_path) / "model") as (fake, at):
        fake.refused = refused
        said = launch(tmp_path, tmp_path / "two", at.url, changes).communicate(timeout=120)[1]
        told = [(tmp_path / f"two/told-{rank}").read_text() for rank in range(2)]
        assert told[0] == told[1] and f"{refused[0]}: refuses the request with status 400" in told[0], said[-3000:]
        (left,) = (tmp_path / "two/run/checkpoints").iterdir()
        assert left.name.endswith("2")
        launch(tmp_path, tmp_path / "two", at.url, changes).communicate(timeout=120)
    steps = [line["step"] for line in read_metrics(tmp_path / "two/run") if "objective/kl" in line]
    assert steps == [1, 2, 3, 4]


def test_where_a_server_listens_does_not_make_another_run_and_which_engine_does(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "m").mkdir()

    def id_of(runtime: str, rollouts: str) -> str:
        given = (
            f"model: {{path: {tmp_path}/m, lora: {{}}}}, data: {{world: prompts, rows: 9}}, reward: {{kind: lexicon}}"
        )
        recipe.write_text(f"name: x\nruntime: {runtime}\nstages:\n  ppo: {{{given}, rollouts: {rollouts}}}\n")
        return stage_ids(load_recipe(recipe), Contents())["ppo"]

    here = id_of("{rollout_url: http://a:1}", "{engine: vllm}")
    assert here == id_of("{rollout_url: http://b:2}", "{engine: vllm}")
    assert here != id_of("{rollout_url: http://a:1}", "{engine: transformers}")
