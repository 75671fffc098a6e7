"""PPO by engines: what is logged of them, what correcting for them changes, and what it does not."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ppo_cases import config, metrics, prepare, start
from safetensors.torch import load_file
from vllm_fake import fake_vllm

from alignkit.config import InputError
from alignkit.generate import EngineFailure
from alignkit.recipe.identity import Contents, stage_ids
from alignkit.recipe.read import load_recipe
from alignkit.runs import Run
from alignkit.sampling import Sampler
from alignkit.vllm_server import VllmServer


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


def test_a_server_that_holds_other_weights_is_found_out(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, **SERVED)
    (other := tmp_path / "other").mkdir()
    tiny.checkpoint(other, seed=1)
    with fake_vllm(other) as (fake, served):
        fake.root = str(folder / "model")  # what it says it holds
        with pytest.raises(InputError, match=r"differ by \d\.\d\d nats a token, more than 0\.5"):
            start(tmp_path / "run", settings, rollout_url=served.url)


def test_continuous_batching_samples_for_updates(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, rollouts={"engine": "continuous"}, train={"steps": 2, "batch_size": 8})
    lines = [line for line in metrics(start(tmp_path / "run", settings, token_budget=128)) if "objective/kl" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["sampling/logp_difference"] < 1e-5 and line["sampling/ratio"] == pytest.approx(1, abs=1e-5)


def test_a_server_draws_one_update_ahead_with_the_adapter_of_its_time(folder: Path, tmp_path: Path) -> None:
    rollouts = {"engine": "vllm", "correction": "truncated", "ahead": 1}
    with fake_vllm(folder / "model") as (fake, served):
        run = start(tmp_path / "run", config(folder, **SERVED | {"rollouts": rollouts}), rollout_url=served.url)
        assert len(fake.loaded) == 4  # as it came in, and after each of three updates
    lines = [line for line in metrics(run) if "objective/kl" in line]
    assert [line["sampling/lag"] for line in lines] == [0, 1, 1] and lines[2]["sampling/staleness"] > 1e-3
    assert all(line["sampling/logp_difference"] < 1e-4 for line in lines)


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
