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
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions, TrainOptions
from alignkit.prepare import load_format
from alignkit.records import Message, ToolCall
from alignkit.runs import Run
from alignkit.stages import evaluate

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


TOOLS: dict[str, Any] = {"kind": "tools", "tools": ["calculator"], "announce": False, "max_tokens": 20}
TURNS = {"one turn": None, "episodes": TOOLS}


def evaluated(folder: Path, run: Run, place: Path, environment: dict[str, Any] | None) -> dict[tuple[str, str], float]:
    """What `evaluate` finds of the policy before and after."""
    options: dict[str, Any] = {
        "models": [str(folder / "model"), str(run.model_dir)],
        "data": {"path": str(folder / "prompts.jsonl"), "max_length": 64},
        "environment": environment,
        "reward": {"kind": "rules", "rule": "exact_match"},
        "max_new_tokens": 8,
        "bootstrap": 100,
    }
    config, runtime = build(EvaluateConfig, options, ""), RuntimeOptions(trackers=[], device="cpu")
    made = evaluate.run(config, runtime, Run.open(place, "evaluate", config, runtime, "test"))
    results = json.loads((made / "results.json").read_text())
    names = dict(zip(results["models"], ("model", "ppo"), strict=True))
    return {(names[row["model"]], row["metric"]): row["value"] for row in results["rows"]}


@pytest.mark.parametrize("advantage", ["grpo", "gae"])
def test_it_learns_to_call_the_calculator(folder: Path, tmp_path: Path, advantage: str) -> None:
    changes: dict[str, Any] = {"grpo": {"advantage": "grpo", "samples": 4}, "gae": {"critic": {"learning_rate": 1e-3}}}
    settings = build(
        PpoConfig,
        {
            "model": {"path": str(folder / "model")},
            "data": {"path": str(folder / "prompts.jsonl"), "validation": 0, "max_length": 64},
            "environment": TOOLS,
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
    found = {name: evaluated(folder, run, tmp_path / name, environment) for name, environment in TURNS.items()}
    assert max(found["one turn"][name, "reward"] for name in ("model", "ppo")) < 0.2
    assert found["episodes"]["ppo", "reward"] > max(0.75, 1.4 * found["episodes"]["model", "reward"])
    assert found["episodes"]["ppo", "reward"] == pytest.approx(last[0], abs=0.15)
    assert found["episodes"]["ppo", "tool_calls"] > 0.9 and found["episodes"]["ppo", "kl"] > 0
