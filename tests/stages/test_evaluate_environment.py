"""Evaluate in an environment: scripted episodes with the calculator, counted by hand, and drawn ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from environment_cases import TOOLS, Scripted, call_of, curious, prepare, spelled
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.draws import Draws
from alignkit.environment import episodes
from alignkit.environment.episodes import Episodes
from alignkit.evaluation.answers import Speaker, _sequences  # pyright: ignore[reportPrivateUsage]
from alignkit.experience import spoken
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.records import Completion, Message, Prompt, Scores
from alignkit.runs import Run
from alignkit.stages import evaluate

QUIET = RuntimeOptions(trackers=[], device="cpu", allow_code=True)
WRONG = "Error: this is not an arithmetic expression"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("answers"))


def whole_episode(completions: list[Completion]) -> Scores:
    """How many messages follow the prompt: what sees less than the episode counts less."""
    return Scores(total=tuple(float(len(completion.turns) + 1) for completion in completions))


def evaluated(folder: Path, directory: Path, rewards: Any = None, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "models": [str(folder / "calls"), str(folder / "guesses")],
        "data": {"path": str(folder / "prompts.jsonl")},
        "chat_template": "chatml",
        "reward": {"kind": "rules", "rule": "exact_match"},
        "metrics": ["exact_match"],
        "environment": TOOLS,
        "max_new_tokens": 12,
        "bootstrap": 100,
    }
    config = build(EvaluateConfig, options | changes, "evaluate")
    run = Run.open(directory, "evaluate", config, QUIET, "test")
    out = evaluate.run(config, QUIET, run, rewards)
    results = json.loads((out / "results.json").read_text())
    results["table"] = {(row["model"], row["metric"]): row["value"] for row in results["rows"]}
    results["samples"] = json.loads((out / "samples.json").read_text())
    results["answers"] = [
        json.loads((out / "answers" / f"{name}.json").read_text())["answers"] for name in results["models"]
    ]
    return results


SCRIPT = {"calls": [call_of("3*4"), "50", call_of("2*")], "guesses": ["12", "56", "1"]}
"""Of three products one is calculated, one guessed, one asked for wrongly; the other model guesses them all."""


EPISODES = [spelled(3, 4, call_of("3*4"), "12", "12"), spelled(7, 8, "50"), spelled(2, 2, call_of("2*"), WRONG, WRONG)]


def nats(folder: Path, parts: list[str]) -> float:
    """log π of the odd parts by a plain pass, nats."""
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = [words(part)["input_ids"] for part in parts]
    whole = torch.tensor([[token for part in ids for token in part]])
    with torch.no_grad():
        logps = model(whole).logits[0].log_softmax(-1)
    total = at = 0
    for number, part in enumerate(ids):
        if number % 2:
            total += sum(float(logps[at + n - 1, token]) for n, token in enumerate(part))
        at += len(part)
    return total


def test_scripted_episodes_are_evaluated_as_counted_by_hand(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "sample", Scripted(**SCRIPT))
    options = {**TOOLS, "max_tokens": 60}
    found = evaluated(
        folder, tmp_path / "run", environment=options, max_new_tokens=24, reference=str(folder / "guesses")
    )
    table, words = found["table"], AutoTokenizer.from_pretrained(folder / "calls")
    assert table["calls", "reward"] == table["calls", "exact_match"] == pytest.approx(1 / 3)
    assert table["guesses", "reward"] == table["guesses", "exact_match"] == pytest.approx(2 / 3)
    assert table["guesses", "win_rate"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    counts = {"turns": 5 / 3, "tool_calls": 2 / 3, "failed_calls": 1 / 3}
    assert {name: table["calls", name] for name in counts} == pytest.approx(counts)
    assert (table["guesses", "turns"], table["guesses", "tool_calls"]) == (1, 0)
    own = [[words(part)["input_ids"] for part in parts[1::2]] for parts in EPISODES]
    assert [one["ids"] for one in found["answers"][0]] == [[t for part in parts for t in part] for parts in own]
    lengths = [6 + 2, 2, 5 + len(words(WRONG)["input_ids"]) + 1]
    assert table["calls", "length"] == pytest.approx(sum(lengths) / 3)
    kl = [nats(folder / "calls", parts) - nats(folder / "guesses", parts) for parts in EPISODES]
    assert [one["kl"] for one in found["answers"][0]] == pytest.approx(kl, abs=1e-4)
    assert table["calls", "kl"] == pytest.approx(sum(kl) / 3, abs=1e-4) and table["guesses", "kl"] == 0
    first, second, _ = found["samples"]
    called = '{"name": "calculator", "arguments": {"expression": "3*4"}}'
    turns = [("assistant", called), ("tool", "12"), ("assistant", "12")]
    assert [(turn["role"], turn["content"]) for turn in first["responses"][0]["turns"]] == turns
    assert second["responses"][0]["turns"] == [{"role": "assistant", "content": "50"}]
    assert found["answers"][0][0]["turns"][0]["tool_calls"][0]["name"] == "calculator"


def test_rewards_and_win_rates_are_of_the_whole_episode(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three messages where a call is answered (call, reply, answer), one where none is made."""
    monkeypatch.setattr(episodes, "sample", Scripted(**SCRIPT))
    options = {**TOOLS, "max_tokens": 60}
    found = evaluated(folder, tmp_path, {"reward": whole_episode}, environment=options, max_new_tokens=24)
    assert found["table"]["calls", "reward"] == pytest.approx((3 + 1 + 3) / 3)
    assert found["table"]["guesses", "win_rate"] == pytest.approx((0 + 0.5 + 0) / 3)


def test_without_an_environment_a_call_is_the_answer(folder: Path, tmp_path: Path) -> None:
    found = evaluated(folder, tmp_path, environment=None)
    assert not any(metric == "turns" for _, metric in found["table"])
    assert all(one["turns"] == [] and one["counts"] == {} for one in found["answers"][0])
    assert found["samples"][0]["responses"][0]["turns"] == []


def test_episodes_that_are_drawn_have_the_kl_of_plain_passes(tmp_path: Path) -> None:
    """A token a letter, and what an environment of our own says between them; the ids from the template by hand."""
    for seed, name in enumerate(("one", "two")):
        tiny.checkpoint(tmp_path / name, seed=seed, spread=0.4)
    prompts = "".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(6))
    (tmp_path / "p.jsonl").write_text(prompts)
    talk = {"kind": "function", "path": "environment_cases:curious", "max_turns": 3, "max_tokens": 70}
    found = evaluated(
        tmp_path,
        tmp_path / "run",
        {"reward": whole_episode},
        models=[str(tmp_path / "one"), str(tmp_path / "two")],
        data={"path": str(tmp_path / "p.jsonl")},
        chat_template="none",
        eos_token=tiny.END,
        metrics=[],
        environment=talk,
        max_new_tokens=30,
        samples=2,
    )
    words = tiny.tokenizer()
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two")]
    assert max(len(one["turns"]) for one in found["answers"][1]) > 3
    for one in found["answers"][1]:
        said = iter(one["ids"])
        ids, places = words(f"say {one['prompt']}")["input_ids"], list[int]()
        for number, turn in enumerate(one["turns"]):
            if turn["role"] != "assistant":
                ids = ids + words(turn["content"])["input_ids"]
                continue
            last = number + 1 == len(one["turns"])
            drawn = list(said) if last else words(turn["content"] + tiny.END)["input_ids"]
            assert last or drawn == [next(said) for _ in drawn]
            places += range(len(ids), len(ids) + len(drawn))
            ids = ids + drawn
        with torch.no_grad():
            logps = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for model in models]
        kl = sum(float(logps[1][at - 1, ids[at]] - logps[0][at - 1, ids[at]]) for at in places)
        assert one["kl"] == pytest.approx(kl, abs=1e-3) and len(places) == len(one["ids"])
        assert one["scores"]["reward"] == len(one["turns"])


def test_a_reference_with_a_template_of_its_own_is_given_the_replies_in_it(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "one", spread=0.4)
    (tmp_path / "other.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] + ' ' + m.content + ('~.' if m.role == 'assistant' else '. ') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
    )
    tokenizer = load_tokenizer(str(tmp_path / "one"))
    plain, other = (
        ChatFormat.load(tokenizer, template, tiny.END) for template in ("none", str(tmp_path / "other.jinja"))
    )
    policy = load_policy(ModelOptions(path=str(tmp_path / "one")), trainable=False)
    asked = [Prompt(messages=(Message(role="user", content=f"say {n}"),)) for n in range(8)]
    options = EnvironmentOptions(kind="function", path="a:b", max_turns=3)
    played = Episodes(plain, curious, options).play(
        policy, asked, Draws(seed=0, update=0, samples=5, max_new_tokens=30)
    )
    assert {len(completion.inserted) for completion in played} >= {1, 2}
    words = tiny.tokenizer()
    for sequence, completion in zip(_sequences(Speaker(policy, other), played), played, strict=True):
        text = ""
        for turn in (*completion.prompt, *completion.turns):
            text += f"{turn.role[0]} {turn.content}" + ("~." if turn.role == "assistant" else ". ")
        last = list(completion.ids[completion.inserted[-1][0] if completion.inserted else 0 :])
        assert list(sequence.ids) == words(text + "a ")["input_ids"] + last
        assert [t for t, w in zip(sequence.ids, sequence.weights, strict=True) if w] == list(completion.ids)
    for sequence, completion in zip(_sequences(Speaker(policy, plain), played), played, strict=True):
        assert list(sequence.ids) == spoken(plain.prompt(completion.prompt), completion)[0]


def test_prompts_leave_room_for_the_replies(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leave no room for max_new_tokens 12 and 40 tokens of turns before it"):
        evaluated(folder, tmp_path / "other", data={"path": str(folder / "prompts.jsonl"), "max_length": 53})
