"""PPO's roles on one base or one trunk, its saved pass, its replaced prompts and its text trained beside."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ppo_cases import config, letters, metrics, prepare, start
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignkit.actors import Actors, load_actors
from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.experience import make_rollouts, read_policy, values
from alignkit.likelihood import likelihood_objective
from alignkit.loop import make_optimizer, update
from alignkit.mismatch import engine_logps
from alignkit.models import load_policy
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import LoraOptions, ModelOptions, RuntimeOptions
from alignkit.records import Completion, Scores
from alignkit.runs import Run
from alignkit.sampling import Sampler
from alignkit.scorer import load_scorer, save_scorer
from alignkit.stages.ppo import Ppo
from alignkit.supply import Supply

RUNTIME = RuntimeOptions(trackers=[], device="cpu")
LORA: dict[str, Any] = {"lora": {"r": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("roles"))


def opened(place: Path, settings: PpoConfig, reward: Any = letters) -> Ppo:
    run = Run.open(place, "ppo", settings, RUNTIME, id="test")
    return Ppo(settings, load_actors(settings, RUNTIME, run, reward))


def reward_adapter(folder: Path, target: Path) -> str:
    """A reward model that is an adapter on the policy's base, with a head, a mean and a deviation."""
    scorer = load_scorer(ModelOptions(path=str(folder / "model"), lora=LoraOptions(r=2)), seed=7)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in scorer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        scorer.mean.fill_(0.3)
        scorer.deviation.fill_(2.0)
    save_scorer(scorer, ChatFormat.load(tiny.tokenizer(), "none", eos_token=tiny.END), target)
    return str(target)


def adapter_of(run: Run) -> dict[str, Tensor]:
    return load_file(run.model_dir / "adapter_model.safetensors")


def test_adapters_on_one_base_train_as_models_of_their_own(folder: Path, tmp_path: Path) -> None:
    """The same seeds draw the same adapters: the trajectories are one, whether or not the base is held twice."""
    common = {"model": LORA, "train": {"learning_rate": 1e-2}, "critic": {"init": "zero"}}
    whole, shared = (
        start(tmp_path / roles, config(folder, roles=roles, **common)) for roles in ("separate", "adapters")
    )
    for ours, theirs in zip(metrics(shared), metrics(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert adapter_of(shared).keys() == adapter_of(whole).keys()
    for name, value in adapter_of(whole).items():
        torch.testing.assert_close(adapter_of(shared)[name], value, rtol=1e-4, atol=1e-6)
    assert max(value.abs().max() for name, value in adapter_of(shared).items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize("four_bit", [False, True])
def test_policy_critic_and_reward_share_a_base(folder: Path, tmp_path: Path, four_bit: bool) -> None:
    source = {"kind": "learned", "path": reward_adapter(folder, tmp_path / "reward"), "scale": 3.0}
    model = {**LORA, "load_in_4bit": four_bit}
    settings = config(folder, roles="adapters", model=model, reward=source, train={"learning_rate": 1e-2})
    ppo = opened(tmp_path / "opened", settings, reward=None)
    policy, critic = ppo.actors.policy, ppo.actors.critic
    assert critic is not None and critic.model is policy.model
    own = {name for name, p in policy.named_parameters() if p.requires_grad}
    others = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert all("default" in name for name in own) and all("critic" in name or "head" in name for name in others)
    assert own and others
    completions = ppo.supply.sampler.update(0, 0).completions
    found = values(make_rollouts(completions, ppo.actors.format, 8192), critic, ppo.accelerator)
    alone = load_scorer(ModelOptions(path=str(source["path"])), trainable=False)
    if not four_bit:  # the separate reward model is not 4-bit
        expected = values(make_rollouts(completions, ppo.actors.format, 8192), alone, ppo.accelerator)
        mask = make_rollouts(completions, ppo.actors.format, 8192).mask
        torch.testing.assert_close(found, 3.0 * (expected - 0.3) / 2.0 * mask, rtol=1e-4, atol=1e-5)
        separate = opened(tmp_path / "separate", config(folder, reward=source), reward=None)
        assert ppo.actors.reward(completions).total == pytest.approx(
            separate.actors.reward(completions).total, abs=1e-4
        )
    before = [p.clone() for name, p in policy.model.named_parameters() if ".reward" in name]
    ppo.step(0)
    after = [p for name, p in policy.model.named_parameters() if ".reward" in name]
    assert before and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"roles": "adapters", "model": LORA},
        {"roles": "value_head"},
        {"advantage": "rloo", "samples": 4, "ppo_epochs": 1, "minibatches": 1, "kl": {"coef": 0.0}, "resample": 2},
    ],
    ids=lambda changes: str(changes.get("roles", "resample")),
)
def test_interrupted_and_resumed_is_uninterrupted(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    train = {"steps": 4, "checkpoint_every": 2, "evaluate_every": 2, "learning_rate": 1e-2}
    settings = config(folder, train=train, **changes)
    coarse = _coarse if "resample" in changes else letters
    calls = 0

    def counting(completions: list[Completion]) -> Scores:
        nonlocal calls
        calls += 1
        return coarse(completions)

    whole = start(tmp_path / "whole", settings, counting)
    last = calls - 1  # a validation follows the last update

    def stops(completions: list[Completion]) -> Scores:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return coarse(completions)

    calls = 0

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped", settings, stops)
    resumed = start(tmp_path / "stopped", settings, coarse)
    assert metrics(resumed) == metrics(whole)
    for file in whole.model_dir.glob("*.safetensors"):
        for name, value in load_file(file).items():
            assert torch.equal(load_file(resumed.model_dir / file.name)[name], value), name


def test_roles_that_cannot_be_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="roles: adapters share a frozen base"):
        config(folder, roles="adapters")
    with pytest.raises(InputError, match="advantage: rloo has none"):
        config(folder, roles="value_head", advantage="rloo", samples=4)
    with pytest.raises(InputError, match="warmup"):
        config(folder, roles="value_head", critic={"warmup": 1})
    with pytest.raises(InputError, match="coef"):
        config(folder, critic={"coef": 0.5})
    tiny.checkpoint(tmp_path / "other", seed=5)
    format = ChatFormat.load(tiny.tokenizer(), "none", eos_token=tiny.END)
    other = str(tmp_path / "other")
    for lora, message in ((None, "holds whole weights"), (LoraOptions(r=2), "stands on")):
        reward = tmp_path / f"reward {message}"
        save_scorer(load_scorer(ModelOptions(path=other, lora=lora)), format, reward)
        source = {"kind": "learned", "path": str(reward)}
        settings = config(folder, roles="adapters", model=LORA, critic={"init": "zero"}, reward=source)
        with pytest.raises(InputError, match=message):
            opened(tmp_path / f"refused {message}", settings, reward=None)


def test_a_value_head_learns_returns_on_the_policys_states(folder: Path, tmp_path: Path) -> None:
    """The head's gradient by hand: coef · mean of (value - return) · state over the tokens that were sampled."""
    settings = config(
        folder, roles="value_head", critic={"coef": 0.7}, value_clip=None, minibatches=1, ppo_epochs=1, lam=1.0,
        missing_eos={"rule": "keep"}, kl={"coef": 0.0},
    )  # fmt: skip
    ppo = opened(tmp_path / "opened", settings)
    policy = ppo.actors.policy
    assert ppo.actors.critic is None and policy.value_head is not None
    completions = ppo.supply.sampler.update(0, 0).completions
    with torch.no_grad():
        policy.value_head.weight.fill_(0.05)
    head = policy.value_head.weight.detach().clone()
    plain: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    scores, gradient, tokens = letters(completions).total, torch.zeros_like(head), 0
    rollouts = make_rollouts(completions, ppo.actors.format, 8192)
    _, found = read_policy(rollouts, policy, ppo.accelerator, 1.0)
    assert found is not None
    for n, completion in enumerate(completions):
        context = ppo.actors.format.prompt(completion.prompt)
        with torch.no_grad():
            states = plain.model(torch.tensor([[*context, *completion.ids]])).last_hidden_state[0]
        before = states[len(context) - 1 : -1]
        value = (before @ head.T).squeeze(1)
        torch.testing.assert_close(found[n, : len(value)], value, rtol=1e-4, atol=1e-5)
        gradient += 0.7 * ((value - scores[n])[:, None] * before).sum(0)
        tokens += len(value)
    grads: list[Tensor] = []
    step = ppo.learner.policy_optimizer.step
    ppo.learner.policy_optimizer.step = lambda *a: (grads.append(policy.value_head.weight.grad.clone()), step(*a))[1]
    ppo.learner.config = settings.model_copy(
        update={"train": settings.train.model_copy(update={"max_grad_norm": 0.0})}
    )
    ppo.step(0)
    torch.testing.assert_close(grads[0], gradient / tokens, rtol=1e-4, atol=1e-6)
    ppo.actors.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() <= plain.state_dict().keys()


def _unsure(completions: list[Completion]) -> Scores:
    """Says nothing of some completions."""
    scores = zip(letters(completions).total, completions, strict=True)
    return Scores(total=tuple(score if sum(c.ids) % 5 else None for score, c in scores))


GROUPS = {"advantage": "grpo", "samples": 4, "kl": {"coef": 0.02, "placement": "loss"}}
SAVED = {
    "kl-in-loss": (GROUPS, 0),
    "kl-in-loss-epochs": (GROUPS | {"ppo_epochs": 3}, 0),
    "kl-in-reward": ({"kl": {"coef": 0.1}}, 1),
    "kl-in-reward-epochs": ({"kl": {"coef": 0.1}, "ppo_epochs": 3}, 1),
}
"""Changes of the small run, and the updates out of four that need a pass which reads the policy."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every pass that reads the policy and trains nothing."""
    passes: list[int] = []

    def counted(*args: Any) -> tuple[Tensor, Tensor | None]:
        passes.append(1)
        return read_policy(*args)

    monkeypatch.setattr("alignkit.supply.read_policy", counted)
    return passes


@pytest.mark.parametrize("reward", [letters, _unsure])
@pytest.mark.parametrize("case", SAVED)
def test_the_saved_pass_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int], case: str, reward: Any
) -> None:
    """With one minibatch, the first pass that trains reads what the scoring pass would have; a KL that is a reward
    comes from the engine once that has been found to say the same."""
    changes, needed = SAVED[case]
    settings = config(folder, **{"ppo_epochs": 1} | changes, minibatches=1, data={"validation": 0}, train={"steps": 4})
    saved = start(tmp_path / "saved", settings, reward)
    failed = any(line.get("objective/failed", 0.0) > 0 for line in metrics(saved))
    assert len(read) > needed if failed else len(read) == needed
    small = start(tmp_path / "small", settings, reward, token_budget=150)
    monkeypatch.setattr(PpoConfig, "reads_as_it_trains", property(lambda self: False))
    apart = start(tmp_path / "apart", settings, reward)
    for ours, rows, theirs in zip(metrics(saved), metrics(small), metrics(apart), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        assert rows == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert any(line.get("objective/kl", 0.0) > 1e-4 for line in metrics(saved))
    assert failed == (reward is _unsure)


@pytest.mark.parametrize(
    ("changes", "gap"), [({"train": {"learning_rate": 1e-12}}, 0.0), ({}, 1e-3)], ids=["policy stays", "engine errs"]
)
def test_the_engine_is_not_taken_at_its_word(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int], changes: Any, gap: float
) -> None:
    """Rounding would be all the KL that a policy has which is its reference; and an engine may be another model."""
    say = engine_logps
    for place in ("stages.ppo", "supply"):
        monkeypatch.setattr(f"alignkit.{place}.engine_logps", lambda *args: say(*args) + gap)
    settings = config(folder, minibatches=1, data={"validation": 0}, **changes)
    run = start(tmp_path / "run", settings, letters)
    assert len(read) == settings.train.steps == 3
    assert all(line["sampling/logp_difference"] == pytest.approx(gap, abs=1e-5) for line in metrics(run)[1:])


@pytest.mark.parametrize("reward", [letters, _unsure])
@pytest.mark.parametrize("roles", ["separate", "adapters"])
def test_a_critic_that_judges_as_it_trains_learns_what_it_would(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, roles: str, reward: Any
) -> None:
    """With one step a pass, the critic's first one gives the values, and no pass of their own is made for them."""
    model = {"lora": {"r": 4}} if roles == "adapters" else {}
    settings = config(
        folder, roles=roles, model=model, minibatches=1, score_scaling="running", kl={"coef": 0.1},
        train={"steps": 4, "learning_rate": 1e-2 if model else 3e-3},
    )  # fmt: skip
    read: list[int] = []

    def counted(*args: Any) -> Tensor:
        read.append(1)
        return values(*args)

    monkeypatch.setattr(Supply, "trusted", lambda *_: None)
    monkeypatch.setattr("alignkit.stages.ppo.values", counted)
    joined = start(tmp_path / "joined", settings, reward)
    failed = [line.get("objective/failed", 0.0) > 0 for line in metrics(joined) if "objective/score" in line]
    assert len(read) == sum(failed) and (sum(failed) > 0) == (reward is _unsure)
    small = start(tmp_path / "small", settings, reward, token_budget=150)
    monkeypatch.setattr(Supply, "any_failed", lambda *_: True)
    apart = start(tmp_path / "apart", settings, reward)
    for ours, rows, theirs in zip(metrics(joined), metrics(small), metrics(apart), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
        assert rows == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert any(line.get("critic/error", 0.0) > 1e-3 for line in metrics(joined))


def _coarse(completions: list[Completion]) -> Scores:
    """0 or 1, so that the samples of a prompt often agree."""
    return Scores(total=tuple(float(sum(x in "abcde" for x in c.response.content) > 2) for c in completions))


def test_prompts_without_signal_give_way(folder: Path, tmp_path: Path) -> None:
    """By hand: places whose samples agreed take the stream's next prompts; the others stay as they were."""
    settings = config(folder, advantage="rloo", samples=2, resample=3, minibatches=1)
    ppo = opened(tmp_path / "opened", settings, _coarse)
    flags: list[Tensor] = []
    ppo.supply.sampler.reduce = lambda x: (flags.append(x.clone()), x)[1]
    part = ppo.supply.sampler.update(0, 0)
    once = opened(tmp_path / "once", settings.model_copy(update={"resample": 0}), _coarse).supply.sampler.update(0, 0)
    dead = [n for n, group in enumerate(once.worth.total.view(-1, 2).tolist()) if group[0] == group[1]]
    assert 0 < len(dead) < ppo.supply.sampler.prompts and flags[0].nonzero().flatten().tolist() == dead
    stream = ppo.supply.sampler.at(range(ppo.supply.sampler.prompts + len(dead)))
    for place in range(ppo.supply.sampler.prompts):
        if place not in dead:
            assert part.completions[2 * place : 2 * place + 2] == once.completions[2 * place : 2 * place + 2]
    second = flags[1].nonzero().flatten().tolist()
    settled = [place for place in dead if place not in second]
    assert settled and all(part.prompts[p] == stream[ppo.supply.sampler.prompts + dead.index(p)] for p in settled)
    assert (
        part.drawn
        == ppo.supply.sampler.prompts + sum(int(f.sum()) for f in flags)
        == ppo.supply.sampler.prompts + part.metrics["objective/resampled"]
    )
    assert [c.prompt for c in part.completions[::2]] == [prompt.messages for prompt in part.prompts]

    class Rank(Sampler):
        """One of two processes, which hears from the other what a single one found."""

        def __init__(self, rank: int, actors: Actors) -> None:
            said = iter(flags)
            super().__init__(settings, actors)
            self.rank, self.ranks, self.reduce = rank, 2, lambda x: next(said)

    halves = [Rank(rank, ppo.actors).update(0, 0) for rank in range(2)]
    for place in range(ppo.supply.sampler.prompts):
        half, at = halves[place % 2], place // 2
        ours, theirs = half.completions[2 * at : 2 * at + 2], part.completions[2 * place : 2 * place + 2]
        assert [(c.ids, c.prompt) for c in ours] == [(c.ids, c.prompt) for c in theirs]


def test_text_is_trained_beside(folder: Path, tmp_path: Path) -> None:
    """Where every completion scores alike, what is left of the update is coef times supervised training's."""
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a" * (n + 1)}]}
        for n in range(6)
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ptx = {"data": {"path": str(tmp_path / "text.jsonl"), "validation": 0}, "coef": 0.5, "batch_size": 4}
    settings = config(
        folder, advantage="rloo", samples=2, minibatches=1, ppo_epochs=1, kl={"coef": 0.0}, ptx=ptx,
        missing_eos={"rule": "keep"}, train={"max_grad_norm": 1e9},
    )  # fmt: skip
    ppo = opened(tmp_path / "opened", settings, lambda completions: Scores(total=(1.0,) * len(completions)))
    logged = ppo.step(0)
    policy = load_policy(settings.model, format=ppo.actors.format)
    optimizer = make_optimizer(policy, settings.train)
    found = update(policy, ppo.learner.beside(0)[0][0], likelihood_objective(0.5), optimizer, max_grad_norm=0.0)
    assert logged["policy/ptx"] == pytest.approx(found["nll"]) and logged["policy/grad_norm"] == pytest.approx(
        found["grad_norm"]
    )
    for ours, theirs in zip(ppo.actors.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    documents = {"data": {"world": "corpus", "rows": 5, "validation": 2}, "kind": "corpus"}
    corpus = opened(tmp_path / "corpus", build(PpoConfig, settings.model_dump() | {"ptx": documents}, "")).actors.ptx
    assert len(corpus) == 5 and all(len(example[0].ids) > 5 for example in corpus)


def test_completions_end_at_a_stop_token(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, stop=["!", "e"])
    ppo = opened(tmp_path / "opened", settings)
    plain = opened(tmp_path / "plain", config(folder)).supply.sampler.update(0, 0).completions
    for ours, whole in zip(ppo.supply.sampler.update(0, 0).completions, plain, strict=True):
        cut = next((t for t, id in enumerate(whole.ids) if tiny.tokenizer().decode([id]) in "!e"), None)
        assert ours.ids == (whole.ids if cut is None else whole.ids[: cut + 1])
        assert ours.finished is (whole.finished or cut is not None)
        assert not set(ours.response.content) & {"!", "e"}
    assert any(completion.finished for completion in ppo.supply.sampler.update(0, 0).completions)
    ppo.actors.save(tmp_path / "saved")
    assert len(json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"]) == 3
    with pytest.raises(InputError, match="stop: 'ab' is not a single token"):
        opened(tmp_path / "refused", config(folder, stop=["ab"]))
