"""Continuous batching as the engine: what it draws follows the model, it says so, and it depends on its seed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from alignkit.chat import ChatFormat
from alignkit.continuous import Continuous
from alignkit.draws import Draws
from alignkit.experience import make_rollouts, read_policy
from alignkit.generate import rollout
from alignkit.mismatch import engine_logps
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.shared import LoraOptions, ModelOptions
from alignkit.policy import Policy
from alignkit.records import Message, Prompt

TEXTS = ["a", "what is it?", "tell me of 12 big bears."]
PROMPTS = [Prompt(messages=(Message(role="user", content=text),), columns={"text": text}) for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"), spread=0.15)


@pytest.fixture(scope="module")
def format(folder: Path) -> ChatFormat:
    return ChatFormat.load(load_tokenizer(str(folder)), "none", eos_token=tiny.END)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    policy = load_policy(ModelOptions(path=str(folder), lora=LoraOptions(r=4))).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return policy


def test_it_says_what_the_trainer_reads_and_repeats_itself(policy: Policy, format: ChatFormat) -> None:
    options: dict[str, Any] = {"seed": 3, "update": 1, "samples": 4, "max_new_tokens": 8, "temperature": 0.7}
    found = Continuous().rollout(policy, format, PROMPTS, Draws(token_budget=512, **options))
    assert [completion.columns["text"] for completion in found] == [text for text in TEXTS for _ in range(4)]
    rollouts = make_rollouts(found, format, 512)
    trainer, _ = read_policy(rollouts, policy, Accelerator(cpu=True), 0.7)
    said = engine_logps(found, rollouts.mask)
    assert said is not None
    torch.testing.assert_close(said, trainer, rtol=0, atol=2e-5)
    assert {len(completion.ids) == 8 or completion.finished for completion in found} == {True}
    again = Continuous().rollout(policy, format, PROMPTS, Draws(token_budget=512, **options))
    other = Continuous().rollout(policy, format, PROMPTS, Draws(token_budget=512, **options | {"update": 2}))
    assert [c.ids for c in again] == [c.ids for c in found] != [c.ids for c in other]
    greedy: dict[str, Any] = {"seed": 0, "update": 0, "max_new_tokens": 8, "temperature": 0.0}
    alike = Continuous().rollout(policy, format, PROMPTS, Draws(**greedy)), rollout(policy, format, PROMPTS, **greedy)
    assert [c.ids for c in alike[0]] == [c.ids for c in alike[1]] and alike[0][0].logps is None


def test_its_first_tokens_follow_the_softmax(folder: Path, format: ChatFormat) -> None:
    policy, n = load_policy(ModelOptions(path=str(folder)), trainable=False), 800
    found = Continuous().rollout(policy, format, PROMPTS[:1], Draws(seed=0, update=0, samples=n, max_new_tokens=1))
    context = torch.tensor([format.prompt(PROMPTS[0].messages)])
    with torch.no_grad():
        chances = AutoModelForCausalLM.from_pretrained(folder)(context).logits[0, -1].softmax(0)
    observed = Counter(completion.ids[0] for completion in found)
    likely = [token for token in range(len(chances)) if chances[token] * n > 5]
    chi_square = sum((observed[t] - n * float(chances[t])) ** 2 / (n * float(chances[t])) for t in likely)
    assert len(likely) > 20 and chi_square < len(likely) + 4 * (2 * len(likely)) ** 0.5


@pytest.mark.parametrize(("held", "most"), [(3, 8), (8, 8)])
def test_no_answer_ends_before_its_minimum(folder: Path, format: ChatFormat, held: int, most: int) -> None:
    """With half of all tokens as stops, the first are those of the other engine, and each log-probability is that of
    plain transformers with the stops at -inf."""
    policy = load_policy(ModelOptions(path=str(folder)), trainable=False)
    many = format.stopping_at([*tiny.LETTERS[:20]])
    options: dict[str, Any] = {"seed": 3, "update": 1, "samples": 6, "max_new_tokens": most, "min_new_tokens": held}
    options |= {"temperature": 0.7, "numbers": [4, 2, 9]}
    found = Continuous().rollout(policy, many, PROMPTS, Draws(**options))
    keyed = rollout(policy, many, PROMPTS, **options)
    assert [c.ids[:held] for c in found] == [c.ids[:held] for c in keyed]
    assert all(len(c.ids) >= held and not set(c.ids[:held]) & set(many.stop_ids) for c in found)
    assert [c.finished for c in found] == [bool(set(c.ids) & set(many.stop_ids)) for c in found]
    assert any(c.finished for c in found) == (most > held)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for completion in found:
        context = many.prompt(completion.prompt)
        with torch.no_grad():
            logits = plain(torch.tensor([[*context, *completion.ids]])).logits[0, len(context) - 1 : -1] / 0.7
        logits[:held, list(many.stop_ids)] = -torch.inf
        expected = logits.log_softmax(-1)[torch.arange(len(completion.ids)), list(completion.ids)]
        torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=0, atol=2e-5)
    greedy = options | {"temperature": 0.0, "samples": 1}
    alike = Continuous().rollout(policy, many, PROMPTS, Draws(**greedy)), rollout(policy, many, PROMPTS, **greedy)
    assert [c.ids for c in alike[0]] == [c.ids for c in alike[1]] and alike[0][0].logps is None
