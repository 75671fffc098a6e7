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
from alignkit.config import InputError, build
from alignkit.continuous import Continuous
from alignkit.draws import Draws
from alignkit.experience import make_rollouts, read_policy
from alignkit.generate import rollout
from alignkit.mismatch import engine_logps
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.ppo import PpoConfig
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


def test_a_barred_end_is_refused() -> None:
    given = {"model": {"path": "m"}, "data": {"path": "d"}, "reward": {"kind": "lexicon"}, "min_new_tokens": 2}
    with pytest.raises(InputError, match="continuous cannot bar end tokens; remove min_new_tokens"):
        build(PpoConfig, given | {"rollouts": {"engine": "continuous"}}, "")
