"""A policy that calls the calculator now and then learns to call it, by the reward of right answers alone."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from environment_cases import checkpoint
from ppo_cases import metrics, start

from alignkit.config import build
from alignkit.likelihood import likelihood_objective
from alignkit.loop import fit
from alignkit.models import load_policy, save_policy
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions, TrainOptions
from alignkit.prepare import load_format
from alignkit.records import Message, ToolCall

CALLS = 0.4


def conversation(random: Random) -> list[Message]:
    """Two in five call the calculator and say what it says; the others guess."""
    a, b = random.randrange(10), random.randrange(10)
    asked = Message(role="user", content=f"{a}*{b}")
    if random.random() >= CALLS:
        return [asked, Message(role="assistant", content=str(random.randrange(10, 82)))]
    call = ToolCall(name="calculator", arguments={"expression": f"{a}*{b}"})
    answer = str(a * b)
    tool = Message(role="tool", content=answer)
    return [asked, Message(role="assistant", tool_calls=(call,)), tool, Message(role="assistant", content=answer)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen such conversations, and all hundred questions."""
    folder = tmp_path_factory.mktemp("calculator")
    checkpoint(folder / "base")
    options = ModelOptions(path=str(folder / "base"), chat_template="chatml")
    format = load_format(options)
    policy, random = load_policy(options, format=format), Random(0)
    conversations = [(conversation(random), None) for _ in range(6000)]
    examples = format.turns_of(conversations)
    train = TrainOptions(learning_rate=3e-3, batch_size=64, epochs=8)
    fit(policy, examples, [], likelihood_objective(), train, RuntimeOptions(trackers=[], device="cpu"))
    save_policy(policy, format, folder / "model")
    pairs = [(a, b) for a in range(10) for b in range(10)]
    rows = [{"messages": [{"role": "user", "content": f"{a}*{b}"}], "answer": str(a * b)} for a, b in pairs]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("advantage", ["grpo", "gae"])
def test_it_learns_to_call_the_calculator(folder: Path, tmp_path: Path, advantage: str) -> None:
    changes: dict[str, Any] = {"grpo": {"advantage": "grpo", "samples": 4}, "gae": {"critic": {"learning_rate": 1e-3}}}
    settings = build(
        PpoConfig,
        {
            "model": {"path": str(folder / "model")},
            "data": {"path": str(folder / "prompts.jsonl"), "validation": 0, "max_length": 64},
            "environment": {"kind": "tools", "tools": ["calculator"], "announce": False, "max_tokens": 20},
            "reward": {"kind": "rules", "rule": "exact_match"},
            "train": {"learning_rate": 5e-4, "batch_size": 64, "steps": 25, "schedule": "constant"},
            "missing_eos": {"value": 0.0},
            "kl": {"coef": 0.0},
            "ppo_epochs": 2,
            "max_new_tokens": 8,
        }
        | changes[advantage],
        "",
    )
    run = start(tmp_path / "run", settings, None)
    lines = [line for line in metrics(run) if "objective/score" in line]
    names = ("objective/score", "environment/tool_calls", "environment/turns", "environment/failed_calls")
    first, last = ([sum(line[name] for line in part) / 4 for name in names] for part in (lines[:4], lines[-4:]))
    assert first[0] < 0.65 and first[1] < 0.65
    assert last[0] > max(0.75, 1.4 * first[0]) and last[1] > 0.9
    assert last[2] == pytest.approx(1 + last[1]) and last[3] < 0.05
