"""Rollouts: what they depend on, what distribution they follow, and when they end."""

from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from alignkit.chat import ChatFormat
from alignkit.generate import rollout
from alignkit.keyed import draw, row_keys, uniforms
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.shared import ModelOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt

TEXTS = ["a", "what is it?", "tell me of 12 big bears.", "go!", "is there a way to sing and to be happy?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(ModelOptions(path=str(folder)), trainable=False)


@pytest.fixture(scope="module")
def format(folder: Path) -> ChatFormat:
    return ChatFormat.load(load_tokenizer(str(folder)), "none", eos_token=tiny.END)


def prompts(texts: list[str]) -> list[Prompt]:
    return [Prompt(messages=(Message(role="user", content=text),), columns={"text": text}) for text in texts]


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


def test_rollouts_depend_on_their_keys_alone(policy: Policy, format: ChatFormat) -> None:
    same = {"seed": 3, "update": 7, "samples": 2, "max_new_tokens": 12}
    whole = rollout(policy, format, prompts(TEXTS), **same)
    small = rollout(policy, format, prompts(TEXTS), token_budget=64, **same)
    backwards = rollout(policy, format, prompts(TEXTS[::-1]), numbers=range(4, -1, -1), **same)
    second_rank = rollout(policy, format, prompts(TEXTS[1::2]), numbers=range(1, 5, 2), **same)
    assert ids(small) == ids(whole)
    assert [ids(backwards)[2 * n : 2 * n + 2] for n in range(4, -1, -1)] == [
        ids(whole)[2 * n : 2 * n + 2] for n in range(5)
    ]
    assert ids(second_rank) == ids(whole)[2:4] + ids(whole)[6:8]
    assert [completion.columns["text"] for completion in whole] == [text for text in TEXTS for _ in range(2)]
    others = [rollout(policy, format, prompts(TEXTS), **same | change) for change in ({"seed": 4}, {"update": 8})]
    assert all(a != b for other in others for a, b in zip(ids(other), ids(whole), strict=True))
    assert all(a != b for a, b in zip(ids(whole)[::2], ids(whole)[1::2], strict=True))


def test_left_padded_batch_equals_single_greedy(folder: Path, policy: Policy, format: ChatFormat) -> None:
    batched = rollout(policy, format, prompts(TEXTS), seed=0, update=0, max_new_tokens=12, temperature=0)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for text, completion in zip(TEXTS, batched, strict=True):
        context = torch.tensor([format.prompt((Message(role="user", content=text),))])
        alone = plain.generate(context, max_new_tokens=12, do_sample=False)[0, context.shape[1] :]
        assert list(completion.ids) == alone.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50) * 2
    logits[7] = -torch.inf
    n = 40_000
    keys = row_keys(1, 2, range(n), [0] * n)
    drawn, chance = draw((logits / temperature).expand(n, -1), uniforms(keys, 5))
    expected = n * torch.softmax(logits / temperature, 0)
    observed = torch.bincount(drawn, minlength=50)
    assert observed[7] == 0
    torch.testing.assert_close(chance, torch.softmax(logits / temperature, 0)[drawn])
    likely = expected > 5
    chi_square = ((observed - expected) ** 2 / expected)[likely].sum()
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_rollouts_follow_the_model(folder: Path, policy: Policy, format: ChatFormat) -> None:
    """The frequency of two-token completions against the untouched model's own probabilities."""
    n, temperature = 4000, 0.7
    completions = rollout(
        policy,
        format,
        prompts(["go!"]),
        seed=0,
        update=0,
        samples=n,
        max_new_tokens=2,
        temperature=temperature,
        token_budget=n * 64,
    )
    plain = AutoModelForCausalLM.from_pretrained(folder)
    context = format.prompt((Message(role="user", content="go!"),))
    with torch.no_grad():
        first = (plain(torch.tensor([context])).logits[0, -1] / temperature).softmax(0)
        pairs = torch.tensor([[*context, token] for token in range(len(first))])
        second = (plain(pairs).logits[:, -1] / temperature).softmax(1)
    expected = {}
    for a in range(len(first)):
        if a == format.end_id:
            expected[(a,)] = float(first[a])
        else:
            expected |= {(a, b): float(first[a] * second[a, b]) for b in range(len(first))}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    observed = Counter(ids(completions))
    likely = [key for key, p in expected.items() if p * n > 5]
    rest = n * (1 - sum(expected[key] for key in likely))
    chi_square = sum((observed[key] - n * expected[key]) ** 2 / (n * expected[key]) for key in likely)
    chi_square += (n - sum(observed[key] for key in likely) - rest) ** 2 / rest
    assert chi_square < len(likely) + 4 * (2 * len(likely)) ** 0.5


def test_uniforms_are_uniform_and_unrelated() -> None:
    n = 20_000
    keys = (
        row_keys(0, 0, range(n // 2), [0] * (n // 2)).tolist() + row_keys(0, 0, range(n // 2), [1] * (n // 2)).tolist()
    )
    assert len(set(keys)) == n
    columns = torch.stack([uniforms(torch.tensor(keys), position) for position in range(4)])
    assert columns.min() >= 0 and columns.max() < 1
    assert (columns.mean(1) - 0.5).abs().max() < 4 * (1 / 12 / n) ** 0.5
    correlation = torch.corrcoef(torch.cat([columns[:, : n // 2], columns[:, n // 2 :]]))
    assert (correlation - torch.eye(8)).abs().max() < 4.5 / (n // 2) ** 0.5


def test_draw_at_the_borders() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(3, -1)
    assert draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]))[0].tolist() == [1, 2, 2]


def test_stop_tokens_end_a_completion(policy: Policy, format: ChatFormat) -> None:
    free = rollout(policy, format, prompts(TEXTS), seed=0, update=0, samples=40, max_new_tokens=12)
    assert {completion.finished for completion in free} == {True, False}
    for completion in free:
        assert (completion.ids[-1] == format.end_id) == completion.finished
        assert format.end_id not in completion.ids[:-1]
        assert completion.finished or len(completion.ids) == 12
        assert tiny.END not in completion.response.content
    held = rollout(policy, format, prompts(TEXTS), seed=0, update=0, samples=40, max_new_tokens=12, min_new_tokens=6)
    assert min(len(completion.ids) for completion in held) > 6


def test_defaults_of_the_checkpoint_do_not_leak(policy: Policy, format: ChatFormat) -> None:
    options = {"seed": 0, "update": 0, "max_new_tokens": 12}
    before = ids(rollout(policy, format, prompts(TEXTS), **options))
    policy.model.generation_config.repetition_penalty = 5.0
    policy.model.generation_config.suppress_tokens = [1, 2, 3]
    try:
        assert ids(rollout(policy, format, prompts(TEXTS), **options)) == before
        assert policy.model.generation_config.repetition_penalty == 5.0
    finally:
        policy.model.generation_config.repetition_penalty = None
        policy.model.generation_config.suppress_tokens = None


def test_no_prompts_no_completions(policy: Policy, format: ChatFormat) -> None:
    assert rollout(policy, format, [], seed=0, update=0, max_new_tokens=4) == []
