"""PPO end to end on a tiny model: what it reads, what it learns, what it leaves behind, and how it resumes."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from ppo_cases import advantages, config, letters, metrics, prepare, start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignkit.actors import Actors, load_actors
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.experience import make_rollouts, values
from alignkit.models import load_tokenizer
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import LoraOptions, ModelOptions, RuntimeOptions
from alignkit.records import Completion, Message, Scores
from alignkit.runs import Run
from alignkit.scorer import load_scorer, save_scorer
from alignkit.scoring import settle_length
from alignkit.stages.ppo import Ppo

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = RuntimeOptions(trackers=[], device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def finished(folder: Path) -> Run:
    """One uninterrupted run, under a controller that moves."""
    return start(folder / "whole", adaptive(folder))


def adaptive(folder: Path) -> PpoConfig:
    kl = {"coef": 0.05, "controller": "adaptive", "target": 1.0, "horizon": 100}
    return config(folder, kl=kl, train={"steps": 5, "checkpoint_every": 2, "evaluate_every": 2})


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_dir / "model.safetensors")


def opened(folder: Path, tmp_path: Path, settings: PpoConfig, reward: Any = letters) -> Ppo:
    run = Run.open(tmp_path / "opened", "ppo", settings, RUNTIME, id="test")
    return Ppo(settings, load_actors(settings, RUNTIME, run, reward))


def sampled(ppo: Ppo, number: int = 0) -> list[Completion]:
    """An update's completions."""
    config = ppo.config
    stream = range(number * ppo.supply.sampler.prompts, (number + 1) * ppo.supply.sampler.prompts)
    return ppo.supply.sampler.answers(
        ppo.supply.sampler.at(stream), number, range(ppo.supply.sampler.prompts), config.samples, config.temperature
    )


def test_reward_rises_and_the_artifact_loads(folder: Path) -> None:
    run = start(folder / "learns", config(folder, train={"steps": 12, "batch_size": 32}, missing_eos={"rule": "keep"}))
    lines = [line for line in metrics(run) if "objective/score" in line]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["objective/score"] > 2 * lines[0]["objective/score"]
    held_out = [line["validation/objective/score"] for line in metrics(run) if "validation/objective/score" in line]
    assert held_out[-1] > 1.5 * held_out[0]
    for line in lines:
        assert line["objective/rlhf_reward"] == pytest.approx(
            line["objective/score"] + line["objective/non_score_reward"]
        )
    model, info = AutoModelForCausalLM.from_pretrained(run.model_dir, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.generation_config.eos_token_id == [tiny.tokenizer().eos_token_id]
    assert run.record.status == "done" and run.record.metrics["objective/score"] == held_out[-1]


def test_interrupted_and_resumed_is_uninterrupted(folder: Path, finished: Run) -> None:
    calls = 0

    def stops(completions: list[Completion]) -> Scores:
        nonlocal calls
        calls += 1
        if calls == 6:  # two validations before, so the fourth update
            raise KeyboardInterrupt
        return letters(completions)

    with pytest.raises(KeyboardInterrupt):
        start(folder / "stopped", adaptive(folder), stops)
    seen = metrics(Run.open(folder / "stopped", "ppo", adaptive(folder), RUNTIME, id="test"))
    assert seen[-1]["step"] == 3
    resumed = start(folder / "stopped", adaptive(folder))
    assert metrics(resumed) == metrics(finished)
    for name, value in weights(finished).items():
        assert torch.equal(weights(resumed)[name], value), name
    coefs = [line["objective/kl_coef"] for line in metrics(finished) if "objective/kl_coef" in line]
    assert len(set(coefs)) > 2


ALGORITHMS: dict[str, dict[str, Any]] = {
    "rloo": {"advantage": "rloo", "samples": 4},
    "grpo": {
        "advantage": "grpo", "samples": 4, "average": "completion", "kl": {"coef": 0.02, "placement": "loss"},
        "clip_high": 0.28,
    },
    "dr_grpo": {"advantage": "dr_grpo", "samples": 4, "average": "budget"},
    "gspo": {"advantage": "grpo", "samples": 4, "loss": "gspo", "average": "completion", "clip": 3e-2},
    "cispo": {"advantage": "rloo", "samples": 4, "loss": "cispo", "entropy_coef": 0.01},
    "reinforce_plus_plus": {"advantage": "reinforce_plus_plus", "dual_clip": 3.0},
    "reinforce_plus_plus_baseline": {"advantage": "reinforce_plus_plus_baseline", "samples": 4},
    "remax": {"advantage": "remax"},
    "online_dpo": {"advantage": "online_dpo", "samples": 4, "average": "sequence"},
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_a_critic_the_reward_rises_and_a_resumed_run_is_the_same(
    folder: Path, tmp_path: Path, name: str
) -> None:
    train = {"steps": 8, "batch_size": 32, "checkpoint_every": 4, "schedule": "constant"}
    settings = config(
        folder, train=train, missing_eos={"rule": "keep"}, minibatches=1, **{"kl": {"coef": 0.02}} | ALGORITHMS[name]
    )
    whole = start(tmp_path / "whole", settings)
    scores = [line["objective/score"] for line in metrics(whole) if "objective/score" in line]
    assert sum(scores[-2:]) > 1.3 * sum(scores[:2])
    assert not any("critic" in name for line in metrics(whole) for name in line)
    calls = count(1)

    def stops(completions: list[Completion]) -> Scores:
        if next(calls) == (14 if name == "remax" else 8):  # in the sixth update, or the seventh
            raise KeyboardInterrupt
        return letters(completions)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped", settings, stops)
    resumed = start(tmp_path / "stopped", settings)
    assert metrics(resumed) == metrics(whole)
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key
    small = start(tmp_path / "budget", settings, token_budget=150)
    for key, value in weights(whole).items():
        assert (weights(small)[key] - value).norm() <= 1e-3 * value.norm(), key


def test_the_guard_stops_at_its_budget_of_kl_or_goes_back(folder: Path, tmp_path: Path) -> None:
    train = {"steps": 12, "batch_size": 32, "schedule": "constant", "evaluate_every": 2}
    settings = {"train": train, "missing_eos": {"rule": "keep"}, "kl": {"coef": 0.0}}
    free = start(tmp_path / "free", config(folder, **settings))
    kl = [line["objective/kl"] for line in metrics(free) if "objective/kl" in line]
    budget = (kl[4] + kl[5]) / 2
    assert max(kl[:5]) < budget < kl[5]
    limited = config(folder, **settings, guard={"kl": {"above": budget, "then": "stop"}})
    run = start(tmp_path / "stopped", limited)
    assert run.record.metrics["guard/ended_at"] == 6 and metrics(run)[-1]["step"] == 6
    assert run.record.metrics["objective/kl"] == metrics(run)[-1]["validation/objective/kl"]
    lasting = config(folder, **settings, guard={"kl": {"above": budget, "then": "stop", "for_updates": 3}})
    assert start(tmp_path / "lasting", lasting).record.metrics["guard/ended_at"] == 8
    warned = start(tmp_path / "warned", config(folder, **settings, guard={"kl": {"above": budget}}))
    assert "guard/ended_at" not in warned.record.metrics
    for name, value in weights(free).items():
        assert torch.equal(weights(warned)[name], value), name


@pytest.mark.parametrize("order", [("roll_back", "stop"), ("stop", "roll_back")])
def test_going_back_is_stronger_than_stopping(folder: Path, tmp_path: Path, order: tuple[str, str]) -> None:
    """Two bounds are crossed by the third update at once, and what crossed them is nobody's best."""
    guard = {
        "kl": {"below": 1e9, "for_updates": 3, "then": order[0]},
        "repetition": {"above": -1.0, "for_updates": 3, "then": order[1]},
        "held_out": {"reward": {"kind": "lexicon"}, "drop": 100.0},
    }
    train = {"steps": 6, "batch_size": 32, "schedule": "constant", "evaluate_every": 6}
    run = start(tmp_path / "run", config(folder, train=train, kl={"coef": 0.0}, guard=guard))
    assert run.record.metrics["guard/ended_at"] == 3 and metrics(run)[-1]["step"] == 3
    before = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())


def test_the_artifact_is_what_the_held_out_reward_likes_best(folder: Path, tmp_path: Path) -> None:
    """The trained reward wants more of what the held-out one, short answers, wants less of."""
    guard = {"held_out": {"reward": {"kind": "rules", "rule": "length", "length": 3}, "drop": 0.15}}
    train = {"steps": 12, "batch_size": 32, "schedule": "constant", "evaluate_every": 1, "checkpoint_every": 1}
    settings = config(folder, train=train, missing_eos={"rule": "keep"}, kl={"coef": 0.0}, guard=guard)

    def long(completions: list[Completion]) -> Scores:
        return Scores(total=tuple(len(c.ids) / 10 for c in completions))

    run = start(tmp_path / "guarded", settings, long)
    held_out = [m["validation/objective/held_out"] for m in metrics(run) if "validation/objective/held_out" in m]
    ended = int(run.record.metrics["guard/ended_at"])
    fell = [value < max(held_out[: n + 1]) - 0.15 for n, value in enumerate(held_out)]
    assert ended < 12 and len(fell) == ended + 1 and fell == [False] * ended + [True]
    assert run.record.metrics["objective/held_out"] == max(held_out)
    best = held_out.index(max(held_out))  # validation n follows update n
    short = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": max(best, 1)})})
    if best:
        expected = weights(start(tmp_path / "short", short, long))
        assert all(torch.equal(weights(run)[name], value) for name, value in expected.items())
    else:
        before = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
        assert all(torch.equal(before[name], value) for name, value in weights(run).items())


def test_remax_compares_with_the_greedy_answer(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, advantage="remax", kl={"coef": 0.0}, missing_eos={"rule": "keep"})
    ppo = opened(folder, tmp_path, settings)
    part = ppo.supply.sampler.update(0, 0)
    prompts = part.prompts
    experience = ppo.supply.score(sampled(ppo), [list(range(16))])
    baseline = ppo.supply.greedy_scores(part, 0)
    with ppo.actors.policy.plain() as model:
        for prompt, found in zip(prompts[:4], baseline.tolist(), strict=False):
            ids = torch.tensor([ppo.actors.format.prompt(prompt.messages)])
            answer = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=ppo.actors.format.end_id)
            text = ppo.actors.format.decode(answer[0, ids.shape[1] :].tolist()).content
            assert found == pytest.approx(sum(letter in "abcde" for letter in text) / 10)
    columns, judged = advantages(ppo, experience, baseline)
    expected = (experience.worth.total - baseline)[:, None] * experience.rollouts.mask
    torch.testing.assert_close(columns["advantage"], expected)
    assert baseline.std() > 0 and judged == {}


def test_remax_measures_both_answers_in_one_unit(folder: Path, tmp_path: Path) -> None:
    """A reward of the prompt alone teaches nothing, in the first update or a later one, now or one ahead."""
    reward = {"kind": "rules", "rule": "length", "length": 4, "normalise": "running"}
    for ahead in (0, 1):
        settings = config(
            folder, advantage="remax", reward=reward, kl={"coef": 0.0}, missing_eos={"rule": "keep"},
            rollouts={"ahead": ahead}, data={"validation": 0},
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("alignkit.rewards.length", lambda _: prompt_length)
            run = start(tmp_path / f"run{ahead}", settings, reward=None)
        lines = [line for line in metrics(run) if "policy/surrogate" in line]
        assert len(lines) == 3 and [line["policy/grad_norm"] for line in lines] == [0.0] * 3
        assert len({line["objective/score"] for line in lines}) > 1


def prompt_length(completions: list[Completion]) -> Scores:
    return Scores(total=tuple(float(len(one.prompt[0].content)) for one in completions))


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "dr_grpo", "reinforce_plus_plus_baseline"])
def test_groups_that_agree_train_nothing(folder: Path, tmp_path: Path, advantage: str) -> None:
    train, kl = {"batch_size": 12}, {"coef": 0.0}
    settings = config(folder, advantage=advantage, samples=6, kl=kl, train=train, missing_eos={"rule": "keep"})
    run = start(tmp_path / "run", settings, lambda c: Scores(total=(7.3,) * len(c)))
    before = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())


def test_a_run_that_the_guard_ended_is_finished_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while its artifact is written, after the checkpoint of the update that ended it."""
    guard = {"kl": {"above": -1.0, "then": "stop", "for_updates": 2}}
    train = {"steps": 6, "evaluate_every": 1, "checkpoint_every": 2}
    settings = config(folder, guard=guard, train=train, missing_eos={"rule": "keep"})
    whole = start(tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        patch.setattr(Actors, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "cut", settings)
    resumed = start(tmp_path / "cut", settings)
    assert resumed.record.metrics == whole.record.metrics and metrics(resumed) == metrics(whole)
    assert whole.record.metrics["guard/ended_at"] == 2 and resumed.record.throughput["tokens_per_second"] > 0


def test_early_stopping_keeps_the_best_weights_also_when_resumed(folder: Path) -> None:
    train = {"schedule": "constant", "evaluate_every": 1, "checkpoint_every": 2}
    keep = {"missing_eos": {"rule": "keep"}}
    patient = config(folder, train=train | {"steps": 6, "patience": 2}, **keep)

    def judge(validations: int = 0, last_update: int = 99) -> Any:
        held_out, updates = count(validations), count(1)

        def score(completions: list[Completion]) -> Scores:
            if len(completions) == patient.data.validation:
                return Scores(total=((0.0, 5.0, 1.0, 0.0)[next(held_out)],) * len(completions))
            if next(updates) > last_update:
                raise KeyboardInterrupt
            return letters(completions)

        return score

    whole = start(folder / "patient", patient, judge())
    assert metrics(whole)[-1]["step"] == 3 and whole.record.metrics["objective/score"] == 5
    once = start(folder / "once", config(folder, train=train | {"steps": 1}, **keep), judge())
    with pytest.raises(KeyboardInterrupt):
        start(folder / "cut", patient, judge(last_update=2))
    resumed = start(folder / "cut", patient, judge(validations=3))
    assert metrics(resumed) == metrics(whole)
    for name, value in weights(once).items():
        assert torch.equal(weights(whole)[name], value) and torch.equal(weights(resumed)[name], value), name


def test_one_trajectory_under_any_budget(folder: Path, finished: Run) -> None:
    small = start(folder / "budget", adaptive(folder), token_budget=150)
    for one, other in zip(metrics(finished), metrics(small), strict=True):
        # Explained variance is a difference of near-equal sums: one rounding moves it by 1e-5.
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4)
    for name, value in weights(finished).items():
        assert (weights(small)[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("minibatches", [1, 4])
def test_two_processes_give_the_trajectory_of_one(folder: Path, tmp_path: Path, minibatches: int) -> None:
    changes: dict[str, Any] = {"train": {"batch_size": 10}, "minibatches": minibatches}
    alone = start(tmp_path / "alone", config(folder, **changes))
    place = prepare(tmp_path / "two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests/stages"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(ROOT / "tests/stages/ppo_cases.py"), str(place), json.dumps(changes)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together = Run.open(place / "run", "ppo", config(place, **changes), RUNTIME, id="test")
    for one, other in zip(metrics(alone), metrics(together), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4)
    for name, value in weights(alone).items():
        assert (weights(together)[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_those_of_the_untouched_model_at_the_temperature(
    folder: Path, tmp_path: Path, temperature: float
) -> None:
    ppo = opened(folder, tmp_path, config(folder, temperature=temperature, samples=2))
    completions = sampled(ppo)
    experience = ppo.supply.score(completions, ppo.learner.minibatches(0, 0))
    plain = AutoModelForCausalLM.from_pretrained(folder / "model")
    for n, completion in enumerate(completions):
        context = ppo.actors.format.prompt(completion.prompt)
        with torch.no_grad():
            logits = plain(torch.tensor([[*context, *completion.ids]])).logits[0, len(context) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        length = len(completion.ids)
        torch.testing.assert_close(experience.old[n, :length], expected, rtol=1e-5, atol=1e-5)
        assert experience.rollouts.mask[n].sum() == length and not experience.old[n, length:].any()
    torch.testing.assert_close(experience.reference, experience.old, rtol=0, atol=1e-6)


def test_scores_know_which_tokens_were_impossible(folder: Path, tmp_path: Path) -> None:
    """Before min_new_tokens the end is never drawn: the log-probabilities are those of what was drawn from."""
    ppo = opened(folder, tmp_path, config(folder, min_new_tokens=4))
    completions = sampled(ppo)
    experience = ppo.supply.score(completions, ppo.learner.minibatches(0, 0))
    plain = AutoModelForCausalLM.from_pretrained(folder / "model")
    end = ppo.actors.format.end_id
    for n, completion in enumerate(completions):
        context = ppo.actors.format.prompt(completion.prompt)
        with torch.no_grad():
            logits = plain(torch.tensor([[*context, *completion.ids]])).logits[0, len(context) - 1 : -1]
        logits[:4, end] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(experience.old[n, : len(completion.ids)], expected, rtol=1e-5, atol=1e-5)
    ppo.step(0)  # asserts that training reads the same


def test_monte_carlo_advantages_by_hand(folder: Path, tmp_path: Path) -> None:
    """γ = λ = 1: what remains of the reward after each token, less the critic's value before it."""
    settings = config(folder, lam=1.0, whiten_advantages=False, kl={"coef": 0.3}, missing_eos={"rule": "keep"})
    ppo = opened(folder, tmp_path, settings)
    with torch.no_grad():
        for parameter in ppo.actors.policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        ppo.actors.critic.head.weight.fill_(0.1)
    completions = sampled(ppo)
    experience = ppo.supply.score(completions, [list(range(len(completions)))])
    columns, _ = advantages(ppo, experience)
    scores = letters(completions).total
    for n, completion in enumerate(completions):
        kl = [float(experience.old[n, t] - experience.reference[n, t]) for t in range(len(completion.ids))]
        assert any(abs(k) > 1e-3 for k in kl)
        for t in range(len(completion.ids)):
            rest = scores[n] - 0.3 * sum(kl[t:])
            assert float(columns["return"][n, t]) == pytest.approx(rest, abs=1e-5)
            assert float(columns["advantage"][n, t]) == pytest.approx(rest - float(columns["value"][n, t]), abs=1e-5)


def test_whitening_spans_the_update(folder: Path, tmp_path: Path) -> None:
    ppo = opened(folder, tmp_path, config(folder))
    completions = sampled(ppo)
    experience = ppo.supply.score(completions, ppo.learner.minibatches(0, 0))
    found = advantages(ppo, experience)[0]["advantage"][experience.rollouts.mask]
    assert found.mean().abs() < 1e-5 and found.std(unbiased=False) == pytest.approx(1, abs=1e-4)


def test_critic_starts_as_the_normalised_reward_model(folder: Path, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "classifier", seed=5, classifier=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    settings = config(folder, reward={"kind": "learned", "path": str(tmp_path / "reward")})
    make_reward_model(tmp_path / "classifier", tmp_path / "reward", mean=0.3, deviation=2.0)
    ppo = opened(folder, tmp_path, settings)
    completions = sampled(ppo)
    rollouts = make_rollouts(completions, ppo.actors.format, 8192)
    found = values(rollouts, ppo.actors.critic, ppo.accelerator)
    for n, completion in enumerate(completions):
        ids = [*ppo.actors.format.prompt(completion.prompt), *completion.ids]
        for t in range(len(completion.ids)):
            seen = torch.tensor([ids[: len(ids) - len(completion.ids) + t]])
            with torch.no_grad():
                raw = classifier.score(classifier.model(seen).last_hidden_state[0, -1])
            assert float(found[n, t]) == pytest.approx((float(raw) - 0.3) / 2.0, abs=1e-5)
    run = start(tmp_path / "run", settings, reward=None)
    assert run.record.status == "done"


def make_reward_model(source: Path, folder: Path, mean: float, deviation: float) -> None:
    """A SequenceClassification checkpoint as a reward stage would leave it."""
    scorer = load_scorer(ModelOptions(path=str(source)))
    head = load_file(source / "model.safetensors")["score.weight"]
    with torch.no_grad():
        scorer.head.weight.copy_(head)
        scorer.head.bias.zero_()
        scorer.mean.fill_(mean)
        scorer.deviation.fill_(deviation)
    save_scorer(scorer, ChatFormat.load(load_tokenizer(str(source)), "none", eos_token=tiny.END), folder)


@pytest.mark.parametrize("four_bit", [False, True])
def test_adapters(folder: Path, four_bit: bool) -> None:
    settings = config(folder, model={"lora": {"r": 4}, "load_in_4bit": four_bit}, train={"learning_rate": 1e-2})
    run = start(folder / f"lora{four_bit}", settings)
    lines = [line for line in metrics(run) if "objective/kl" in line]
    tolerance = 1e-2 if four_bit else 1e-5
    assert abs(lines[0]["objective/kl"]) < 10 * tolerance and abs(lines[-1]["objective/kl"]) > 1e-3
    adapter = load_file(run.model_dir / "adapter_model.safetensors")
    assert all("lora" in name for name in adapter) and any(
        value.abs().max() > 1e-3 for n, value in adapter.items() if "lora_B" in n
    )
    plain = AutoModelForCausalLM.from_pretrained(folder / "model")
    context = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = plain(context).logits
        after = PeftModel.from_pretrained(plain, run.model_dir)(context).logits
        again = AutoPeftModelForCausalLM.from_pretrained(run.model_dir)(context).logits
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(again, after)


@pytest.mark.parametrize("adapter", ["merge", "continue"])
def test_adapters_of_earlier_stages(folder: Path, tmp_path: Path, adapter: str) -> None:
    """Policy and reward model both come in as adapters; the KL is to the policy as it came in."""
    first = start(tmp_path / "first", config(folder, model={"lora": {"r": 4}}, train={"learning_rate": 1e-2}))
    scorer = load_scorer(ModelOptions(path=str(folder / "model"), lora=LoraOptions(r=2)))
    save_scorer(scorer, ChatFormat.load(tiny.tokenizer(), "none", eos_token=tiny.END), tmp_path / "reward")
    model = {"path": str(first.model_dir), "adapter": adapter} | ({"lora": {"r": 4}} if adapter == "merge" else {})
    settings = config(folder, model=model, reward={"kind": "learned", "path": str(tmp_path / "reward")})
    second = start(tmp_path / "second", settings, reward=None)
    lines = [line for line in metrics(second) if "objective/kl" in line]
    assert abs(lines[0]["objective/kl"]) < 1e-4 and abs(lines[-1]["objective/kl"]) > 1e-3
    context = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before, after = (
            AutoPeftModelForCausalLM.from_pretrained(run.model_dir)(context).logits for run in (first, second)
        )
    assert (after - before).abs().max() > 1e-4


def test_the_first_pass_is_checked(folder: Path, tmp_path: Path) -> None:
    ppo = opened(folder, tmp_path, config(folder))
    assert ppo.actors.reference is not None
    ppo.actors.reference.model.get_output_embeddings().weight[3] += 0.1
    with pytest.raises(RuntimeError, match="the policy is not its reference"):
        ppo.step(0)
    moving = opened(folder, tmp_path, config(folder))
    moving.actors.policy.model.model.embed_tokens.register_forward_hook(
        lambda module, _, output: output * 1.001 if torch.is_grad_enabled() else output
    )
    with pytest.raises(RuntimeError, match="the ratio is not 1"):
        moving.step(0)


def test_missing_end_tokens(folder: Path) -> None:
    ask = (Message(role="user", content="go"),)
    done, cut = (
        Completion(prompt=ask, response=Message(role="assistant", content="x", finished=f), ids=(1,))
        for f in (True, False)
    )
    scores = torch.tensor([0.5, 0.7])
    rules = {"replace": [0.5, -2.0], "subtract": [0.5, 0.2], "keep": [0.5, 0.7]}
    values = {"replace": {"value": -2.0}, "subtract": {"value": 0.5}, "keep": {}}
    for rule, expected in rules.items():
        settings = config(folder, missing_eos={"rule": rule, **values[rule]})
        assert settle_length(scores, [done, cut], settings).tolist() == pytest.approx(expected)
    lengths = (6, 7, 9, 10)
    completions = [done.model_copy(update={"ids": (1,) * n}) for n in lengths]
    settings = config(folder, overlong={"buffer": 4, "penalty": 2.0})  # max_new_tokens is 10
    assert settle_length(torch.ones(4), completions, settings).tolist() == pytest.approx([1, 0.5, -0.5, -1])


def test_rewards_inside_completions_stand_at_their_tokens(folder: Path, tmp_path: Path) -> None:
    def reward(completions: list[Completion]) -> Scores:
        steps = tuple(((0, 0.5), (len(c.ids) - 1, 0.25), (0, 0.5)) for c in completions)
        return Scores(total=(2.0,) * len(completions), steps=steps)

    settings = config(folder, advantage="reinforce_plus_plus", whiten_advantages=False, kl={"coef": 0.0})
    settings = settings.model_copy(update={"missing_eos": settings.missing_eos.model_copy(update={"rule": "keep"})})
    ppo = opened(folder, tmp_path, settings, reward)
    completions = sampled(ppo)
    experience = ppo.supply.score(completions, [list(range(16))])
    advantage = advantages(ppo, experience)[0]["advantage"]
    for n, completion in enumerate(completions):
        length = len(completion.ids)
        expected = [2.25 + (1.0 if t == 0 else 0.0) for t in range(length)]
        assert advantage[n, :length].tolist() == pytest.approx(expected)

    def beyond(completions: list[Completion]) -> Scores:
        return Scores(total=(0.0,) * len(completions), steps=tuple(((len(c.ids), 1.0),) for c in completions))

    with pytest.raises(InputError, match="and a step gives its token"):
        opened(folder, tmp_path, settings, beyond).supply.score(completions, [list(range(16))])


def test_scores_that_do_not_differ_are_left_as_they_are(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, score_scaling="running", missing_eos={"rule": "keep"})
    ppo = opened(folder, tmp_path, settings, lambda completions: Scores(total=(-1.0,) * len(completions)))
    columns, _ = advantages(ppo, ppo.supply.score(sampled(ppo), [list(range(16))]))
    assert columns["return"].abs().max() < 1.1


def test_log_ratios_are_clamped_and_scores_divided_by_their_running_deviation(folder: Path, tmp_path: Path) -> None:
    settings = config(
        folder, lam=1.0, whiten_advantages=False, kl={"coef": 1.0, "clamp": 1e-3}, missing_eos={"rule": "keep"},
        score_scaling="running",
    )  # fmt: skip
    ppo = opened(folder, tmp_path, settings)
    with torch.no_grad():
        for parameter in ppo.actors.policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    seen: list[float] = []
    for number in range(2):
        experience = ppo.supply.score(sampled(ppo, number), [list(range(16))])
        columns, _ = advantages(ppo, experience)
        seen += experience.worth.total.tolist()
        deviation = float(torch.tensor(seen, dtype=torch.float64).std(correction=0))
        ratios = (experience.old - experience.reference).clamp(-1e-3, 1e-3) * experience.rollouts.mask
        expected = experience.worth.total / deviation - ratios.sum(1)
        torch.testing.assert_close(columns["return"][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_critic_warms_up_before_the_policy_moves(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, critic={"warmup": 2})
    ppo = opened(folder, tmp_path, settings)
    before = [p.detach().clone() for p in ppo.actors.policy.parameters()]
    lines = [ppo.step(number) for number in range(3)]
    assert [any(name.startswith("policy/") for name in line) for line in lines] == [False, False, True]
    assert all("critic/error" in line for line in lines)
    again = opened(folder, tmp_path, settings)
    for number in range(2):
        again.step(number)
    assert all(torch.equal(a, b) for a, b in zip(before, again.actors.policy.parameters(), strict=True))
    with pytest.raises(InputError, match="leaves none of 3 updates for the policy"):
        opened(folder, tmp_path, config(folder, critic={"warmup": 3}))


def test_every_prompt_once_an_epoch_and_in_one_minibatch(folder: Path, tmp_path: Path) -> None:
    ppo = opened(folder, tmp_path, config(folder, train={"batch_size": 8}, samples=2, minibatches=3))
    asked = [
        prompt.messages[0].content
        for number in range(6)
        for prompt in ppo.supply.sampler.update(number, 4 * number).prompts
    ]
    assert len(asked) == len(set(asked)) == len(ppo.actors.prompts) == 24
    parts = ppo.learner.minibatches(0, 0)
    assert sorted(n for part in parts for n in part) == list(range(8)) and len(parts) == 3
    assert all(n + 1 in part for part in parts for n in part if n % 2 == 0)
    assert ppo.learner.minibatches(0, 1) != parts


def test_nan_reward_is_named(folder: Path) -> None:
    def broken(completions: list[Completion]) -> Scores:
        return Scores(total=tuple(float("nan") for _ in completions))

    with pytest.raises(InputError, match="nan"):
        start(folder / "broken", config(folder), broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"batch_size": 10}, "samples": 4}, "no multiple of samples"),
        ({"minibatches": 17}, "minibatches 17 exceed"),
        ({"min_new_tokens": 11}, "min_new_tokens 11 exceed"),
        ({"critic": {"init": "reward"}}, "kind: learned"),
        ({"missing_eos": {"rule": "subtract"}}, "above 0"),
        ({"data": {"over_long": "truncate_answer"}}, "use skip"),
        ({"kl_coef": 0.1}, "kl.coef"),
        ({"advantage": "rloo"}, "give samples: 2 or more"),
        ({"advantage": "remax", "critic": {"warmup": 1}}, "critic has no meaning with advantage: remax"),
        ({"advantage": "rloo", "samples": 2, "gamma": 0.9}, "gamma has no meaning with advantage: rloo"),
        ({"kl": {"estimator": "k3"}}, "estimator has no meaning with kl.placement: reward"),
        (
            {"model": {"lora": {}}, "rollouts": {"engine": "vllm", "ahead": 1, "correction": "truncated"}},
            "correction has no meaning with engine: vllm and ahead: 1",
        ),
        ({"kl": {"target": 3.0}}, "target has no meaning with kl.controller: fixed"),
        ({"kl": {"coef": 0.0, "controller": "adaptive"}}, "kl.coef must be above 0 with kl.controller: adaptive"),
        ({"model": {"lora": {"dropout": 0.1}}}, "model.lora.dropout has no meaning in ppo"),
        ({"advantage": "reinforce_plus_plus_baseline", "samples": 2, "gamma": 0.9}, "gamma has no meaning"),
        ({"guard": {"explained_variance": {"below": 0.0}}, "advantage": "remax"}, "remax has no critic"),
        ({"guard": {"without_signal": {"above": 0.9}}}, "give samples: 2 or more"),
        ({"loss": "cispo", "dual_clip": 3.0}, "dual_clip has no meaning for loss: cispo"),
        ({"guard": {"kl": {"then": "stop"}}}, "exactly one of `above` and `below`"),
        ({"guard": {"kl": {"above": 1.0, "then": "roll_back"}}}, "roll_back needs guard.held_out"),
        (
            {"guard": {"held_out": {"reward": {"kind": "lexicon"}, "drop": 1.0}}, "data": {"validation": 0}},
            "give data.validation",
        ),
        ({"missing_eos": {"rule": "keep", "value": 3.0}}, "value has no meaning with rule: keep"),
        ({"model": {"lora": {"alpha": 0.0}}}, "model.lora.alpha"),
        *(
            (
                {"advantage": "online_dpo", "samples": 2, name: value},
                f"{name} has no meaning with advantage: online_dpo",
            )
            for name, value in (("whiten_advantages", True), ("score_scaling", "running"))
        ),
        (
            {"train": {"patience": 2}, "reward": {"kind": "lexicon", "normalise": "running"}},
            "normalise: running changes their unit",
        ),
        ({"overlong": {"buffer": 11}}, "overlong.buffer 11 exceeds max_new_tokens 10"),
    ],
)
def test_impossible_options(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(folder, **changes)


def test_long_prompts(folder: Path, tmp_path: Path) -> None:
    tight = {"max_length": 17}
    with pytest.raises(InputError, match=r"data\.max_length 17: 14 of 24 prompts .*over_long: skip"):
        opened(folder, tmp_path, config(folder, data=tight))
    ppo = opened(folder, tmp_path, config(folder, data=tight | {"over_long": "skip"}))
    kept = [*ppo.actors.prompts, *ppo.actors.validation]
    assert 0 < len(kept) < 30 and all(len(prompt.messages[0].content) <= 7 for prompt in kept)


def test_online_dpo_is_dpo_on_the_best_and_the_worst_sample(folder: Path, tmp_path: Path) -> None:
    """The gradient of one update beside DPO's loss by plain passes, once the policy has left its reference."""
    beta, train = 0.3, {"steps": 4, "batch_size": 16, "max_grad_norm": 1e9}
    settings = config(
        folder, advantage="online_dpo", samples=4, average="sequence", kl={"coef": beta}, ppo_epochs=1, minibatches=1,
        missing_eos={"rule": "keep"}, train=train,
    )  # fmt: skip
    ppo = opened(folder, tmp_path, settings)
    policy, moved = ppo.actors.policy, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=moved)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    reference: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    plain.load_state_dict(policy.model.state_dict())

    def likelihood(model: Any, completion: Completion) -> torch.Tensor:
        context = ppo.actors.format.prompt(completion.prompt)
        logits = model(torch.tensor([[*context, *completion.ids]])).logits[0, len(context) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None]).sum()

    part = ppo.supply.sampler.update(1, 0)
    total, tied = torch.tensor(0.0), 0
    for first in range(0, 16, 4):
        four = part.completions[first : first + 4]
        scores = letters(four).total
        best, worst = (four[scores.index(pick(scores))] for pick in (max, min))
        tied += max(scores) == min(scores)
        h = [likelihood(plain, one) - likelihood(reference, one).detach() for one in (best, worst)]
        if max(scores) > min(scores):
            total = total - torch.nn.functional.logsigmoid(beta * (h[0] - h[1])) / 4
    total.backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    grads: dict[str, torch.Tensor] = {}
    step = ppo.learner.policy_optimizer.step

    def keep(*arguments: Any) -> Any:
        grads.update({name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None})
        return step(*arguments)

    ppo.learner.policy_optimizer.step = keep
    ppo.step(1)
    assert tied < 4 and any(g.norm() > 1e-3 for g in expected.values())
    for name, gradient in expected.items():
        assert (grads[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
