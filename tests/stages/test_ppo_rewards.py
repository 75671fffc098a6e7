"""PPO and a reward of parts: what is logged, what a failure leaves behind, how a run stops and goes on."""

import json
import math
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from http_server import serving
from ppo_cases import advantages, config, letters, metrics, prepare, start
from safetensors.torch import load_file
from served_cases import launch

from alignkit.actors import load_actors
from alignkit.advantages import advantage_columns, token_rewards
from alignkit.config import InputError, build
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Scores
from alignkit.rewards import build_reward
from alignkit.runs import Run, read_metrics
from alignkit.scoring import report, scored, with_scores
from alignkit.stages.ppo import Ppo
from reward_models.rules import length
from reward_models.scores import RewardFailure, guarded

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = RuntimeOptions(trackers=[], device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ppo"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_dir / "model.safetensors")


def failing(skip: bool, every: int = 5) -> Any:
    """`letters`, but one completion in `every` gets not-a-number."""

    def score(completions: list[Completion]) -> list[float]:
        values = letters(completions).total
        return [
            math.nan if sum(c.ids) % every == 0 else float(v or 0) for c, v in zip(completions, values, strict=True)
        ]

    return guarded(score, "mine", skip=skip)


def opened(folder: Path, directory: Path, settings: PpoConfig, reward: Any) -> Ppo:
    run = Run.open(directory, "ppo", settings, RUNTIME, id="test")
    return Ppo(settings, load_actors(settings, RUNTIME, run, reward))


def test_every_part_is_logged(folder: Path, tmp_path: Path) -> None:
    of = {"mood": {"kind": "lexicon", "scale": 2.0}, "brevity": {"kind": "rules", "rule": "length", "length": 4}}
    settings = config(folder, reward={"kind": "combined", "of": of}, missing_eos={"rule": "keep"}, train={"steps": 2})
    run = start(tmp_path / "run", settings, reward=None)
    lines = [line for line in metrics(run) if "objective/score" in line]
    names = {name for name in lines[0] if name.startswith("objective/score/")}
    assert names == {f"objective/score/{n}" for n in ("mood", "mood/positive", "mood/negative", "brevity")}
    for line in lines:
        parts = line["objective/score/mood"] + line["objective/score/brevity"]
        assert line["objective/score"] == pytest.approx(parts) and line["objective/failed"] == 0
    ppo = opened(folder, tmp_path / "again", settings, build_reward(settings.reward))
    completions = ppo.supply.sampler.answers(
        ppo.supply.sampler.at(range(ppo.supply.sampler.prompts)), 0, range(ppo.supply.sampler.prompts), 1, 1.0
    )
    parts = build_reward(settings.reward)(completions).parts
    for name, values in parts.items():
        mean = sum(value or 0.0 for value in values) / len(values)
        assert lines[0][f"objective/score/{name}"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "whiten"),
    [
        ("gae", True), ("rloo", False), ("grpo", False), ("dr_grpo", True), ("reinforce_plus_plus", True),
        ("reinforce_plus_plus_baseline", True), ("remax", False),
    ],
)  # fmt: skip
def test_advantages_are_those_without_the_failed_completions(advantage: str, whiten: bool) -> None:
    """Groups of four of which one, three, or all of a group fail: the others' advantages are those of the rest alone,
    group by group, with the group's own size."""
    torch.manual_seed(0)
    n, width, samples = 12, 5, 4
    base = {"model": {"path": "m"}, "data": {"path": "d"}, "reward": {"kind": "lexicon"}, "train": {"batch_size": 12}}
    options = {"advantage": advantage, "samples": samples, "whiten_advantages": whiten}

    def made(samples: int) -> PpoConfig:
        return build(PpoConfig, base | options | {"samples": samples}, "")

    mask = torch.arange(width)[None] < torch.randint(1, width + 1, (n,))[:, None]
    scores, old, reference, value = torch.randn(n), *torch.randn(3, n, width)
    failed = torch.tensor([0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1]).bool()
    given = torch.where(failed, torch.nan, scores)
    critic = value if advantage == "gae" else None
    rewards = token_rewards(made(samples), given, old - reference, mask, 0.1)
    columns, judged = advantage_columns(made(samples), given, rewards, old, reference, mask, 0.1, critic)
    assert not columns["advantage"][failed].any() and columns["advantage"].isfinite().all()
    group, compares = torch.arange(n) // samples, made(samples).compares
    kept = ~failed & (group == 0) if compares else ~failed  # in the second group one is left: nothing to compare with
    rest = made(3 if compares else 1)
    part = None if critic is None else critic[kept]
    tokens = old[kept], reference[kept], mask[kept]
    of_kept = token_rewards(rest, scores[kept], tokens[0] - tokens[1], mask[kept], 0.1)
    expected, of_rest = advantage_columns(rest, scores[kept], of_kept, *tokens, 0.1, part)
    assert torch.allclose(columns["advantage"][kept], expected["advantage"], atol=1e-6)
    assert not columns["advantage"][~kept].any()
    assert judged["advantage/without_signal"] == pytest.approx(2 / 3)
    if critic is not None:
        assert torch.allclose(columns["return"][kept], expected["return"], atol=1e-6)
        assert judged["critic/explained_variance"] == pytest.approx(of_rest["critic/explained_variance"], abs=1e-5)


def test_minibatches_lose_the_failed_and_empty_ones_go() -> None:
    scores = torch.tensor([1.0, math.nan, math.nan, 2.0, math.nan, 3.0])
    orders = [[[0, 1], [2, 4], [3, 5]], [[2, 3], [4, 1], [0, 5]]]
    assert with_scores(orders, scores, lambda x: x) == [[[0], [3, 5]], [[3], [0, 5]]]
    # another rank holds scores in the emptied ones
    other = torch.tensor([[1, 1, 1], [1, 1, 1]])
    assert with_scores(orders, scores, lambda x: x + other) == [[[0], [], [3, 5]], [[3], [], [0, 5]]]


def test_means_are_over_the_completions_that_have_one() -> None:
    scores, parts = torch.tensor([1.0, math.nan, 4.0, 2.5]), {"a": torch.tensor([math.nan, math.nan, 4.0, 0.0])}
    found = report({"score": scores, "length": torch.tensor([1, 2, 3, 6])}, scores, parts, lambda x: x)
    assert found == {"score": 2.5, "length": 3.0, "objective/score/a": 2.0, "objective/failed": 0.25}
    with pytest.raises(RewardFailure, match="failed on every completion"):
        report({"score": scores[1:2]}, scores[1:2], {}, lambda x: x)


def test_a_failed_completion_does_not_touch_the_update(folder: Path, tmp_path: Path) -> None:
    """The same weights, bit for bit, whatever a failed completion says: and other ones than where it is worth 0."""
    settings = config(
        folder, advantage="rloo", samples=4, missing_eos={"rule": "keep"}, kl={"coef": 0.1, "placement": "loss"},
        entropy_coef=0.01, average="completion", train={"steps": 1, "batch_size": 32}, data={"validation": 0},
    )  # fmt: skip
    skipped = start(tmp_path / "skipped", settings, failing(skip=True, every=3))
    (line,) = (line for line in metrics(skipped) if "objective/failed" in line)
    ppo = opened(folder, tmp_path / "again", settings, failing(skip=True, every=3))
    completions = ppo.supply.sampler.answers(
        ppo.supply.sampler.at(range(ppo.supply.sampler.prompts)), 0, range(ppo.supply.sampler.prompts), 4, 1.0
    )
    known = [n for n, c in enumerate(completions) if sum(c.ids) % 3]
    assert 0 < len(known) < 32 and line["objective/failed"] == pytest.approx(1 - len(known) / 32)
    total = letters(completions).total
    assert line["objective/score"] == pytest.approx(sum(total[n] or 0 for n in known) / len(known))
    orders = [ppo.learner.minibatches(0, epoch) for epoch in range(settings.ppo_epochs)]
    experience = ppo.supply.score(completions, orders[0])
    # an update by hand on the rest alone
    columns, _ = advantages(ppo, experience)
    rest = [[[n for n in part if n in known] for part in order] for order in orders]
    ppo.learner.optimise(experience.rollouts, columns, rest, 1.0, ["policy"], settings.kl.coef)
    by_hand = ppo.actors.policy.model.state_dict()
    for name, value in weights(skipped).items():
        assert torch.equal(by_hand[name], value), name
    scores = failing(skip=True, every=3)
    zeros = start(tmp_path / "zeros", settings, lambda c: Scores(total=tuple(v or 0.0 for v in scores(c).total)))
    assert any(not torch.equal(weights(zeros)[name], value) for name, value in weights(skipped).items())


@pytest.mark.parametrize("advantage", ["gae", "remax", "reinforce_plus_plus"])
def test_a_run_goes_on_past_failures(folder: Path, tmp_path: Path, advantage: str) -> None:
    settings = config(folder, advantage=advantage, minibatches=8, score_scaling="running", train={"steps": 3})
    run = start(tmp_path / "run", settings, failing(skip=True, every=3))
    lines = [line for line in metrics(run) if "objective/failed" in line]
    assert any(line["objective/failed"] > 0 for line in lines)
    numbers = [value for line in lines for value in line.values()]
    assert all(value is not None and math.isfinite(value) for value in numbers)


@pytest.mark.parametrize("call", [4, 6, 7])
def test_a_failure_stops_after_saving_and_the_run_goes_on_the_same(folder: Path, tmp_path: Path, call: int) -> None:
    """Calls: the first validation, two updates, a validation, two updates, a validation: 4 and 7 are validations. The
    memory of the running means is saved as it was before the failed update."""
    settings = config(
        folder,
        reward={"kind": "rules", "rule": "length", "length": 4, "normalise": "running", "scale": 0.5},
        train={"steps": 4, "evaluate_every": 2, "checkpoint_every": 3},
        score_scaling="running",
        missing_eos={"rule": "keep"},
    )
    whole = start(tmp_path / "whole", settings, reward=None)
    calls = count(1)

    def broken(target: int) -> Any:
        inner = length(target)

        def score(completions: list[Completion]) -> Scores:
            if next(calls) == call:
                raise RewardFailure("reward mine: the score of completion 0 is missing: 'x' in answer to 'y'")
            return inner(completions)

        return score

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignkit.rewards.length", broken)
        with pytest.raises(RewardFailure, match="completion 0 is missing"):
            start(tmp_path / "stopped", settings, reward=None)
    stopped = Run.open(tmp_path / "stopped", "ppo", settings, RUNTIME, id="test")
    last = stopped.latest_checkpoint()
    assert last is not None and last.name == f"step-{ {4: 2, 6: 3, 7: 4}[call] }"
    resumed = start(tmp_path / "stopped", settings, reward=None)
    assert metrics(resumed) == metrics(whole)
    assert len({line["objective/score/raw"] for line in metrics(whole) if "objective/score/raw" in line}) > 2
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


@pytest.mark.parametrize("kind", ["rule", "library"])
def test_what_raises_stops_after_saving(folder: Path, tmp_path: Path, kind: str) -> None:
    """An answer that is no number, met after updates, and an exception of a reward that nothing guards."""
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}], "answer": "1"} for n in range(30)]
    rows[7]["answer"] = "four"
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path / "answers.jsonl"), "validation": 0}
    train = {"batch_size": 4, "steps": 7, "checkpoint_every": 100}
    settings = config(folder, reward={"kind": "rules", "rule": "number"}, data=data, train=train)
    calls = count(1)

    def raises(completions: list[Completion]) -> Scores:
        return letters(completions) if next(calls) < 3 else 1 / 0  # type: ignore[return-value]

    why = "missing: the column 'answer' holds no number: 'four': .* in answer to 'say 7'"
    why = why if kind == "rule" else "every score is missing: ZeroDivisionError"
    with pytest.raises(RewardFailure, match=why):
        start(tmp_path / "run", settings, reward=None if kind == "rule" else raises)
    (saved,) = (tmp_path / "run/checkpoints").glob("step-*")
    assert saved.name == "step-2"


def test_a_cut_off_completion_is_worth_what_the_rule_says_and_nothing_inside_it(folder: Path) -> None:
    settings = config(folder, missing_eos={"rule": "replace", "value": -1.0})
    prompt = ({"role": "user", "content": "?"},)
    ones = [
        Completion.model_validate(
            {"prompt": prompt, "response": {"role": "assistant", "finished": ended}, "ids": (1, 2)}
        )
        for ended in (True, False)
    ]
    found = scored(ones, lambda c: Scores(total=(0.5, 0.5), steps=(((0, 3.0),), ((1, 3.0),))), settings)
    assert found.total.tolist() == [3.5, -1.0] and found.steps is not None
    assert found.steps.tolist() == [[3.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("call", [1, 3])
def test_a_failure_on_one_of_two_processes_ends_both_and_they_go_on(folder: Path, tmp_path: Path, call: int) -> None:
    """On rank 1, in the validation before the first update, or in the second one's scores."""
    changes = {"train": {"checkpoint_every": 9, "evaluate_every": 9}}
    said = launch(folder, tmp_path / "two", "", changes, fails=call).communicate(timeout=120)[1]
    told = "validation: reward: no" if call == 1 else "reward: no"
    assert [(tmp_path / f"two/told-{rank}").read_text() for rank in range(2)] == [told] * 2, said[-3000:]
    left = [folder.name for folder in (tmp_path / "two/run/checkpoints").glob("*")]
    assert left == ([] if call == 1 else ["step-1"])
    launch(folder, tmp_path / "two", "", changes).communicate(timeout=120)
    assert [line["step"] for line in read_metrics(tmp_path / "two/run") if "objective/kl" in line] == [1, 2, 3]


def test_validation_is_measured_by_what_training_has_seen(folder: Path, tmp_path: Path) -> None:
    reward = {"kind": "rules", "rule": "length", "length": 4, "normalise": "running"}
    settings = config(folder, reward=reward, missing_eos={"rule": "keep"}, train={"steps": 1})
    ppo = opened(folder, tmp_path / "run", settings, None)
    before, _ = ppo.validate()
    assert before["objective/score"] == before["objective/score/raw"]
    assert list(ppo.memory) == ["kl_coef", "drawn"]
    experience = ppo.supply.score(
        ppo.supply.sampler.answers(
            ppo.supply.sampler.at(range(ppo.supply.sampler.prompts)), 0, range(ppo.supply.sampler.prompts), 1, 1.0
        )
    )
    assert float(experience.worth.total.mean()) == pytest.approx(0, abs=1e-6)
    known = dict(ppo.memory)
    assert known["number of reward"] == 16
    after, _ = ppo.validate()
    mean = known["sum of reward"] / 16
    deviation = math.sqrt(known["squares of reward"] / 16 - mean**2)
    assert after["objective/score"] == pytest.approx((after["objective/score/raw"] - mean) / deviation)
    assert ppo.memory == known


def test_a_library_reward_may_skip_too(folder: Path) -> None:
    settings = config(folder, missing_eos={"rule": "subtract", "value": 1.0})
    prompt = ({"role": "user", "content": "?"},)
    ones = [Completion.model_validate({"prompt": prompt, "response": {"role": "assistant"}, "ids": (1,)})] * 2
    found = scored(ones, lambda c: Scores(total=(None, 2.0), parts={"p": (None, 1.0)}), settings)
    assert found.total.isnan().tolist() == [True, False] and found.parts["p"].isnan().tolist() == [True, False]


def test_two_processes_skip_and_remember_as_one(folder: Path, tmp_path: Path) -> None:
    """Scores of a server that fails on some, normalised; of the one held-out prompt, one process has nothing."""

    def lengths(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        sizes = [len(text) for text in body["responses"]]
        return 200, {"scores": [size if size % 3 else None for size in sizes]}

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([*(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests/stages"))])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with serving(lengths) as served:
        far = {"kind": "remote", "url": served.url, "on_failure": "skip", "batch_size": 4, "normalise": "running"}
        brief = {"kind": "rules", "rule": "length", "length": 4}
        changes = {
            "reward": {"kind": "combined", "of": {"far": far, "brief": brief}},
            "train": {"batch_size": 10, "learning_rate": 1e-3}, "minibatches": 4, "missing_eos": {"rule": "keep"},
            "data": {"validation": 1},
        }  # fmt: skip
        alone = start(tmp_path / "alone", config(folder, **changes), reward=None)
        place = prepare(tmp_path / "two")
        command = [*launcher, str(ROOT / "tests/stages/ppo_cases.py"), str(place), json.dumps(changes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    together = Run.open(place / "run", "ppo", config(place, **changes), RUNTIME, id="test")
    failed = [line["objective/failed"] for line in metrics(alone) if "objective/failed" in line]
    assert any(0 < share < 1 for share in failed)
    for one, other in zip(metrics(alone), metrics(together), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-3, nan_ok=True)
    for name, value in weights(alone).items():
        assert (weights(together)[name] - value).norm() <= 1e-4 * value.norm(), name


def test_nothing_is_trained_on_nothing(folder: Path, tmp_path: Path) -> None:
    """All fail in the third update: what two have trained is saved, and a reward that works goes on from there."""
    settings = config(
        folder, missing_eos={"rule": "keep"}, data={"validation": 0}, score_scaling="running",
        train={"steps": 4, "checkpoint_every": 4},
    )  # fmt: skip
    whole, calls = start(tmp_path / "whole", settings), count(1)

    def fails(completions: list[Completion]) -> Scores:
        return Scores(total=(None,) * len(completions)) if next(calls) == 3 else letters(completions)

    with pytest.raises(RewardFailure, match="it failed on every completion"):
        start(tmp_path / "stopped", settings, fails)
    resumed = start(tmp_path / "stopped", settings)
    assert metrics(resumed) == metrics(whole) and next(calls) == 4
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_resampling_and_remembering_exclude_each_other(folder: Path) -> None:
    inside = {"kind": "combined", "of": {"a": {"kind": "lexicon"}}, "normalise": "running"}
    with pytest.raises(InputError, match="resample replaces what normalise: running has already seen"):
        config(folder, reward={"kind": "combined", "of": {"b": inside}}, resample=1, samples=2)
