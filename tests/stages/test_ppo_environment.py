"""PPO over episodes of several turns: what is read, weighed and trained, and that a resumed run is the same one."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import environment_cases
import pytest
import tiny
import torch
from environment_cases import curious
from ppo_cases import advantages, config, letters, metrics, prepare, start
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignkit.actors import load_actors
from alignkit.config import InputError
from alignkit.experience import spoken
from alignkit.objective import Sums
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Message, Scores
from alignkit.runs import Run
from alignkit.stages.ppo import Ppo
from alignkit.supply import Experience
from alignkit.surrogates import policy_objective
from reward_models.functions import from_function
from reward_models.judge import judge
from reward_models.remote import request_of

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = RuntimeOptions(trackers=[], device="cpu", allow_code=True)
TALK: dict[str, Any] = {
    "environment": {"kind": "function", "path": "environment_cases:curious", "max_turns": 4, "max_tokens": 70},
    "max_new_tokens": 30,
    "missing_eos": {"rule": "keep"},
}
GRPO: dict[str, Any] = {"advantage": "grpo", "samples": 4, "average": "completion", "clip_high": 0.28}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("talk"))
    tiny.checkpoint(folder / "model", spread=0.4)
    return folder


def opened(place: Path, settings: PpoConfig, reward: Any = letters) -> Ppo:
    run = Run.open(place, "ppo", settings, RUNTIME, id="test")
    return Ppo(settings, load_actors(settings, RUNTIME, run, reward))


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.model_dir / "model.safetensors")


@pytest.fixture(scope="module")
def ppo(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ppo:
    """A critic with values of its own, and steps inside the completions."""

    def stepwise(completions: list[Completion]) -> Scores:
        steps = tuple(((len(c.ids) - 1, 0.25), (0, -0.5)) for c in completions)
        return letters(completions).model_copy(update={"steps": steps})

    settings = config(folder, **TALK, gamma=0.9, lam=0.8, whiten_advantages=False, kl={"coef": 0.1})
    made = opened(tmp_path_factory.mktemp("opened"), settings, stepwise)
    assert made.actors.critic is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*made.actors.critic.head.parameters(), *made.actors.policy.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def experience(ppo: Ppo) -> Experience:
    completions = ppo.supply.sampler.update(0, 0).completions
    assert len({len(completion.inserted) for completion in completions}) > 2
    return ppo.supply.score(completions, ppo.learner.minibatches(0, 0))


def whole(ppo: Ppo, completion: Completion) -> tuple[Tensor, list[int]]:
    """The ids of an episode, and the places of what was sampled."""
    ids, weights = spoken(ppo.actors.format.prompt(completion.prompt), completion)
    return torch.tensor([ids]), [place for place, weight in enumerate(weights) if weight]


def test_log_probabilities_and_values_are_those_of_plain_passes(ppo: Ppo, experience: Experience) -> None:
    """Each episode alone through the transformers models, read where something was sampled."""
    columns, _ = advantages(ppo, experience)
    critic = ppo.actors.critic
    assert critic is not None and ppo.actors.reference is not None
    for n, completion in enumerate(experience.completions):
        ids, places = whole(ppo, completion)
        before = [place - 1 for place in places]
        assert experience.rollouts.mask[n].sum() == len(places) == len(completion.ids)
        for role, found in ((ppo.actors.policy, experience.old), (ppo.actors.reference, experience.reference)):
            with role.plain() as model, torch.no_grad():
                logps = model(ids).logits[0].log_softmax(-1)
            expected = logps[before, ids[0, places]]
            torch.testing.assert_close(found[n, : len(places)], expected, atol=1e-5, rtol=1e-4)
            assert not found[n, len(places) :].any()
        assert completion.logps is not None and len(completion.logps) == len(places)
        torch.testing.assert_close(torch.tensor(completion.logps), experience.old[n, : len(places)], atol=1e-4, rtol=0)
        with torch.no_grad():
            states = AutoModelForCausalLM.from_pretrained(ppo.config.model.path).model(ids).last_hidden_state[0]
            expected = critic.head(states).squeeze(-1)[before]
        torch.testing.assert_close(columns["value"][n, : len(places)], expected, atol=1e-4, rtol=1e-4)


def test_advantages_step_over_what_was_not_sampled(ppo: Ppo, experience: Experience) -> None:
    """δ and GAE written out token by token over the sampled ones alone, the score at the last of them."""
    columns, _ = advantages(ppo, experience)
    for n, completion in enumerate(experience.completions):
        length = len(completion.ids)
        value, old, reference = (
            x[n, :length].tolist() for x in (columns["value"], columns["old"], columns["reference"])
        )
        rewards = [-0.1 * (a - b) for a, b in zip(old, reference, strict=True)]
        rewards[0] -= 0.5
        rewards[-1] += 0.25 + (letters([completion]).total[0] or 0.0)
        following = carried = 0.0
        for t in reversed(range(length)):
            carried = rewards[t] + 0.9 * following - value[t] + 0.9 * 0.8 * carried
            following = value[t]
            assert float(columns["advantage"][n, t]) == pytest.approx(carried, abs=1e-4)
            assert float(columns["return"][n, t]) == pytest.approx(carried + value[t], abs=1e-4)
        assert not columns["advantage"][n, length:].any()


def test_the_gradient_is_that_of_a_plain_pass_over_sampled_tokens(ppo: Ppo, experience: Experience) -> None:
    """-Σ A·log π over the sampled tokens alone, by hand; nothing comes from what was inserted."""
    columns, _ = advantages(ppo, experience)
    policy = ppo.actors.policy
    objective = policy_objective(ppo.config)
    policy.zero_grad()
    for batch in experience.rollouts.rows_of(columns, range(len(experience.completions))):
        sums = objective.loss(objective.read(policy, batch), batch)
        assert isinstance(sums, Sums)
        sums.loss["surrogate"].backward()
        assert float(sums.metrics["drift"]) < 1e-3
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    with policy.plain() as model:
        for n, completion in enumerate(experience.completions):
            ids, places = whole(ppo, completion)
            logps = model(ids).logits[0].log_softmax(-1)[[place - 1 for place in places], ids[0, places]]
            (-(columns["advantage"][n, : len(places)] * logps).sum()).backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_metrics_count_what_was_sampled(ppo: Ppo, experience: Experience) -> None:
    found, completions = ppo.describe(experience), experience.completions
    n = len(completions)
    assert found["completion/length"] == pytest.approx(sum(len(c.ids) for c in completions) / n)
    assert found["environment/turns"] == pytest.approx(1 + sum(len(c.inserted) for c in completions) / n)
    assert found["environment/tool_calls"] == found["environment/failed_calls"] == 0
    assert found["completion/finished"] == pytest.approx(sum(c.finished for c in completions) / n)


@pytest.mark.parametrize("algorithm", ["gae", "grpo"])
def test_the_reward_rises_and_a_resumed_run_is_the_same(folder: Path, tmp_path: Path, algorithm: str) -> None:
    changes = TALK | (GRPO if algorithm == "grpo" else {})
    train = {"steps": 8, "batch_size": 32, "checkpoint_every": 3, "evaluate_every": 8, "schedule": "constant"}
    settings = config(folder, **changes, train=train)
    run = start(tmp_path / "whole", settings, allow_code=True)
    lines = [line for line in metrics(run) if "objective/score" in line]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert sum(line["objective/score"] for line in lines[-2:]) > 1.2 * sum(
        line["objective/score"] for line in lines[:2]
    )
    assert all(1 < line["environment/turns"] < 4 for line in lines)
    calls: list[int] = []

    def stops(completions: list[Completion]) -> Scores:
        calls.append(1)
        if len(calls) == 6:  # the fifth update, after a validation
            raise KeyboardInterrupt
        return letters(completions)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped", settings, stops, allow_code=True)
    resumed = start(tmp_path / "stopped", settings, allow_code=True)
    assert metrics(resumed) == metrics(run)
    for name, value in weights(run).items():
        assert torch.equal(weights(resumed)[name], value), name
    few = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 3})})
    small = start(tmp_path / "small", few, allow_code=True, token_budget=150)
    scores = [line for line in metrics(small) if "objective/score" in line]
    for one, other in zip(lines, scores, strict=False):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage": "remax", "data": {"validation": 0}},
        {"roles": "value_head"},
        {"advantage": "rloo", "samples": 4, "kl": {"coef": 0.0}, "ppo_epochs": 1, "minibatches": 1},
        {"model": {"lora": {"r": 4}}, "roles": "adapters", "resample": 1, "samples": 2},
        {"advantage": "online_dpo", "samples": 4, "average": "sequence", "kl": {"coef": 0.1}},
    ],
)
def test_every_way_to_train_takes_episodes(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """The first minibatch's ratio is checked to be 1 as they run; the loss moves the policy."""
    run = start(tmp_path / "run", config(folder, **TALK | changes, train={"steps": 2}), allow_code=True)
    lines = [line for line in metrics(run) if "objective/score" in line]
    assert len(lines) == 2 and all(line["environment/turns"] > 1 for line in lines)
    assert lines[1]["objective/kl"] > 0 and all(math.isfinite(value) for line in lines for value in line.values())


def test_episodes_that_wait_for_their_update_survive_a_stop(folder: Path, tmp_path: Path) -> None:
    """Their turns, the ids between them and what the engine said of them are in the checkpoint."""
    train = {"steps": 5, "checkpoint_every": 2, "evaluate_every": 5}
    settings = config(
        folder, **TALK, rollouts={"ahead": 1, "correction": "truncated"}, train=train, data={"validation": 0}
    )
    whole, calls = start(tmp_path / "whole", settings, allow_code=True), []

    def stops(completions: list[Completion]) -> Scores:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return letters(completions)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped", settings, stops, allow_code=True)
    resumed = start(tmp_path / "stopped", settings, allow_code=True)
    assert metrics(resumed) == metrics(whole) and any(line.get("sampling/lag") for line in metrics(whole))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    lines = [line["sampling/logp_difference"] for line in metrics(whole) if "sampling/logp_difference" in line]
    assert len(lines) == 5 and max(lines) < 2e-5


def on_two(place: Path, changes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The run on what `prepare` made, in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests/stages"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "tests/stages/ppo_cases.py"), str(place), json.dumps(changes)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_two_processes_play_as_one(folder: Path, tmp_path: Path) -> None:
    changes = TALK | {"train": {"batch_size": 10, "learning_rate": 1e-3}, "minibatches": 4, "data": {"validation": 1}}
    alone = start(tmp_path / "alone", config(folder, **changes), allow_code=True)
    place = prepare(tmp_path / "two")
    tiny.checkpoint(place / "model", spread=0.4)
    done = on_two(place, changes)
    assert done.returncode == 0, done.stderr[-3000:]
    together = Run.open(place / "run", "ppo", config(place, **changes), RUNTIME, id="test")
    assert max(line.get("environment/turns", 0) for line in metrics(alone)) > 1
    for one, other in zip(metrics(alone), metrics(together), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-3, nan_ok=True)
    for name, value in weights(alone).items():
        assert (weights(together)[name] - value).norm() <= 1e-4 * value.norm(), name


def test_an_environment_that_fails_for_one_process_ends_both_after_saving(tmp_path: Path) -> None:
    place = prepare(tmp_path / "two")
    tiny.checkpoint(place / "model", spread=0.4)
    talk = TALK["environment"] | {"path": "environment_cases:unsteady"}
    changes = TALK | {"environment": talk, "train": {"checkpoint_every": 9, "steps": 9}, "data": {"validation": 0}}
    said = on_two(place, changes).stderr
    assert said.count("EnvironmentFailure: environment environment_cases:unsteady") == 2, said[-3000:]
    (saved,) = (place / "run/checkpoints").glob("*")
    assert int(saved.name.removeprefix("step-")) >= 1


def test_rewards_see_the_turns_before_the_response() -> None:
    user = {"role": "user", "content": "2*3?"}
    call = {"role": "assistant", "tool_calls": [{"name": "calculator", "arguments": {"expression": "2*3"}}]}
    tool, answer = {"role": "tool", "content": "6"}, {"role": "assistant", "content": "6."}
    one = Completion.model_validate({"prompt": [user], "response": answer, "turns": [call, tool]})
    seen: dict[str, Any] = {}

    def keeps(**columns: Any) -> list[float]:
        seen.update(columns)
        return [1.0]

    from_function(keeps)([one])
    assert seen["prompts"] == ["2*3?"] and seen["completions"] == ["6."]
    from_function(keeps, conversational=True)([one])
    assert seen["prompts"] == [[user]]
    function = {"name": "calculator", "arguments": {"expression": "2*3"}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert seen["completions"] == [[called, tool, answer]]
    assert request_of([one])["prompts"] == [[user, called, tool]] and request_of([one])["responses"] == ["6."]
    asked: list[Any] = []
    judge(lambda messages: [asked.append(messages) or "Score: 3"], "Be right.")([one])
    text = asked[0][0][0]["content"]
    assert (
        text.index("2*3?")
        < text.index('{"name": "calculator"')
        < text.index("<tool>\n6\n")
        < text.index("<answer>\n6.")
    )


def test_a_failing_environment_is_named_and_what_was_trained_is_saved(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, **TALK, train={"steps": 4, "checkpoint_every": 4}, data={"validation": 0})
    calls: list[int] = []

    def counts(completion: Completion, fails_at: int = -1) -> list[Message] | None:
        calls.append(1)
        if len(calls) == fails_at:
            raise OSError("the server is gone")
        return curious(completion)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_cases, "curious", counts)
        whole = start(tmp_path / "whole", settings, allow_code=True)
        last = len(calls)
        calls.clear()
        patch.setattr(environment_cases, "curious", lambda completion: counts(completion, last))
        with pytest.raises(
            InputError, match="environment_cases:curious: its answer is missing: the server is gone: '"
        ):
            start(tmp_path / "stopped", settings, allow_code=True)
    stopped = Run.open(tmp_path / "stopped", "ppo", settings, RUNTIME, id="test").latest_checkpoint()
    assert stopped is not None and stopped.name == "step-3"
    assert metrics(start(tmp_path / "stopped", settings, allow_code=True)) == metrics(whole)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stop": ["e"]}, "stop has no meaning with an environment"),
        ({"min_new_tokens": 3}, "min_new_tokens has no meaning with an environment"),
        ({"rollouts": {"engine": "continuous"}}, "rollouts.engine: continuous plays no environment"),
        ({"environment": {"kind": "tools", "tool": []}}, "environment.tool: unknown key; did you mean `tools`"),
        ({"environment": {"kind": "function", "path": "a:b", "max_assistant_turns": 3}}, "max_turns`"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        config(folder, **TALK | changes)


def test_code_and_room_are_asked_for(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, **TALK)
    run = Run.open(tmp_path / "run", "ppo", settings, RUNTIME, id="test")
    with pytest.raises(InputError, match=r"environment\.path: .* is code; add --allow-code"):
        load_actors(settings, RUNTIME.model_copy(update={"allow_code": False}), run, letters)
    tight = config(folder, **TALK, data={"max_length": 104})
    with pytest.raises(InputError, match="leave no room for max_new_tokens 30 and 70 tokens"):
        load_actors(tight, RUNTIME, run, letters)
    with pytest.raises(InputError, match="less than a prompt and its completion"):
        load_actors(settings, RUNTIME.model_copy(update={"token_budget": 104}), run, letters)
