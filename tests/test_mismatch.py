"""What an engine says of its tokens: equal to the trainer's, measured where it is not, and corrected exactly."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from alignkit.accumulate import accumulate
from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.experience import make_rollouts, read_policy
from alignkit.generate import rollout
from alignkit.losses import truncated_importance
from alignkit.mismatch import engine_logps, mismatch
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import ModelOptions
from alignkit.packing import pack
from alignkit.records import Completion, Message, Prompt
from alignkit.surrogates import policy_objective
from alignkit.trie import TokenSequence, TrieBatch

ASK = (Message(role="user", content="go"),)
BASE = {"model": {"path": "m"}, "data": {"path": "d"}, "reward": {"kind": "lexicon"}, "max_new_tokens": 2}


def said(*logps: float) -> Completion:
    answer = Message(role="assistant", content="x" * len(logps))
    return Completion(prompt=ASK, response=answer, ids=(1,) * len(logps), logps=logps or None)


@pytest.mark.parametrize(("temperature", "held"), [(1.0, 0), (0.7, 0), (1.3, 5)])
def test_transformers_says_what_the_trainer_reads(tmp_path: Path, temperature: float, held: int) -> None:
    """At the sampling temperature, with the end barred before `held` tokens, for completions of many lengths."""
    folder = tiny.checkpoint(tmp_path, spread=0.15)
    policy = load_policy(ModelOptions(path=str(folder)), trainable=False)
    format = ChatFormat.load(load_tokenizer(str(folder)), "none", eos_token=tiny.END)
    texts = ["a", "what is it?", "tell me of 12 big bears.", "go!"]
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in texts]
    options: dict[str, Any] = {"seed": 1, "update": 2, "samples": 24, "max_new_tokens": 12, "min_new_tokens": held}
    completions = rollout(policy, format, prompts, temperature=temperature, token_budget=150, **options)
    assert len({len(completion.ids) for completion in completions}) > 3
    rollouts = make_rollouts(completions, format, 512, min_new_tokens=held)
    trainer, _ = read_policy(rollouts, policy, Accelerator(cpu=True), temperature)
    engine = engine_logps(completions, rollouts.mask)
    assert engine is not None
    torch.testing.assert_close(engine, trainer, rtol=0, atol=2e-5)
    assert (engine[rollouts.mask] < 0).all() and engine[rollouts.mask].std() > 0.01
    greedy = rollout(policy, format, prompts, temperature=0.0, **options)
    assert engine_logps(greedy, rollouts.mask) is None


def test_the_difference_by_hand() -> None:
    completions, mask = [said(-1.0, -2.0, -0.5), said(-3.0)], torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    engine = engine_logps(completions, mask)
    assert engine is not None and engine.tolist() == [[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]]
    old = torch.tensor([[-1.0, -2.5, -0.25], [-2.0, 7.0, 7.0]])
    found = mismatch(old, engine, mask, 2.0, lambda x: x)
    e = torch.tensor([0.0, -0.5, 0.25, 1.0]).exp()
    assert found == {
        "sampling/logp_difference": pytest.approx((0 + 0.5 + 0.25 + 1) / 4),
        "sampling/ratio": pytest.approx(e.mean().item()),
        "sampling/truncated": 0.25,
    }
    both = mismatch(old, engine, mask, None, lambda x: 2 * x)  # two ranks with the same
    assert both == {name: found[name] for name in ("sampling/logp_difference", "sampling/ratio")}
    assert engine_logps([said(-1.0), said()], torch.ones(2, 1).bool()) is None
    weight = truncated_importance(old.clone().requires_grad_(), engine, 2.0)
    torch.testing.assert_close(weight[mask], e.clamp(max=2))
    assert not weight.requires_grad


class Chain(nn.Module):
    """Two tokens of a vocabulary of two: a distribution of its own at the start and after either token."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.3, -0.4], [0.9, 0.1], [-0.2, 0.6]], dtype=torch.float64))

    def chances(self) -> Tensor:
        return self.logits.detach().softmax(1)

    def forward(self, batch: TrieBatch, **_: Any) -> Any:
        before = batch.ids[batch.source]
        state = torch.where(batch.positions[batch.source] == 0, 0, 1 + before)
        return SimpleNamespace(logps=self.logits.log_softmax(1)[state, batch.target], entropies=None)


def expected_gradient(by: Tensor, config: PpoConfig, old: bool) -> Tensor:
    """Σ over the four completions of their chance under `by` times the gradient of their policy loss."""
    total = torch.zeros(3, 2, dtype=torch.float64)
    advantage = {(0,): 1.0, (1,): -0.5, (0, 0): 2.0, (0, 1): -1.0, (1, 0): 0.5, (1, 1): -3.0}
    for first, second in product(range(2), repeat=2):
        model = Chain()
        policy = model.chances()
        columns = {"engine": by, "old": policy} if old else {"engine": by}
        numbers = {
            name: [0.0, *(p.log()[s, t] for s, t in ((0, first), (1 + first, second)))] for name, p in columns.items()
        }
        numbers["advantage"] = [0.0, advantage[first,], advantage[first, second]]
        sequence = TokenSequence([9, first, second], [0.0, 1.0, 1.0], 0, token_columns=numbers)
        accumulate(model, pack([sequence], 8), policy_objective(config), backward=True)
        assert model.logits.grad is not None
        total += by[0, first] * by[1 + first, second] * model.logits.grad
    return total


@pytest.mark.parametrize("old", [True, False], ids=["read_before", "read_as_it_trains"])
@pytest.mark.parametrize("average", ["token", "completion"])
def test_the_corrected_gradient_is_on_policy_in_expectation(average: str, old: bool) -> None:
    """The engine errs at the second token, whose weights then undo it; beyond the cap they would not."""
    plain = build(PpoConfig, BASE | {"average": average}, "")
    corrected = build(PpoConfig, BASE | {"average": average, "rollouts": {"correction": "truncated"}}, "")
    tight = build(PpoConfig, BASE | {"average": average, "rollouts": {"correction": "truncated", "cap": 1.01}}, "")
    policy = Chain().chances()
    engine = policy.clone()
    engine[1], engine[2] = torch.tensor([0.5, 0.5]), torch.tensor([0.45, 0.55])
    assert (policy / engine).max() < 2
    on_policy = expected_gradient(policy, plain, old)
    torch.testing.assert_close(expected_gradient(engine, corrected, old), on_policy, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(expected_gradient(policy, corrected, old), on_policy, rtol=1e-6, atol=1e-9)
    for wrong in (plain, tight):
        assert (expected_gradient(engine, wrong, old) - on_policy).abs().max() > 1e-3


def test_a_cap_without_a_correction_is_refused() -> None:
    with pytest.raises(InputError, match=r"cap has no meaning with rollouts\.correction: none"):
        build(PpoConfig, BASE | {"rollouts": {"cap": 3.0}}, "")
