"""Sample in an environment: what scripted episodes with the calculator are written as, and who reads them."""

from pathlib import Path
from typing import Any

import pytest
from environment_cases import TOOLS, Scripted, call_of, prepare, spelled
from sample_cases import written

from alignkit import chunks
from alignkit.config import InputError, build
from alignkit.data.read import read
from alignkit.environment import episodes
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.prepare import load_format
from alignkit.recipe.chain import plan
from alignkit.recipe.check import check_steps
from alignkit.recipe.read import load_recipe
from alignkit.records import Comparison, Demonstration, Feedback, Message
from alignkit.runs import Run, read_metrics
from alignkit.stages import sample
from reward_models.judge import Messages, comparison

QUIET = RuntimeOptions(trackers=[], device="cpu", allow_code=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("answers"))


def sampling(folder: Path, **changes: Any) -> SampleConfig:
    options: dict[str, Any] = {
        "model": {"path": str(folder / "calls"), "chat_template": "chatml"},
        "data": {"path": str(folder / "prompts.jsonl")},
        "environment": {**TOOLS, "max_tokens": 60},
        "samples": 2,
        "max_new_tokens": 24,
    }
    given = {} if "judge" in changes else {"reward": {"kind": "rules", "rule": "exact_match"}}
    return build(SampleConfig, options | given | changes, "")


def sampled(directory: Path, config: SampleConfig, *arguments: Any) -> Run:
    run = Run.open(directory, "sample", config, QUIET, id="test")
    sample.run(config, QUIET, run, *arguments)
    return run


DRAWN = Scripted(calls=[call_of("3*4"), "50", call_of("7*8"), "12", "4", "4"])
"""Two answers to each of the three products."""


def content(turns: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [
        (turn.role, turn.tool_calls[0].arguments["expression"] if turn.tool_calls else turn.content) for turn in turns
    ]


CALCULATED = [
    [("assistant", "3*4"), ("tool", "12"), ("assistant", "12")],
    [("assistant", "7*8"), ("tool", "56"), ("assistant", "56")],
]


def test_the_best_of_n_is_a_whole_conversation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "sample", DRAWN)
    run = sampled(tmp_path / "run", sampling(folder, minimum=1.0))
    records = read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records
    assert [content(record.messages[1:]) for record in records] == [*CALCULATED, [("assistant", "4")]]
    assert [record.messages[0].content for record in records] == ["3*4", "7*8", "2*2"]
    metrics = run.record.metrics
    assert metrics["environment/turns"] == pytest.approx(8 / 6)
    assert metrics["environment/tool_calls"] == pytest.approx(2 / 6) and metrics["environment/failed_calls"] == 0
    (line,) = read_metrics(run.directory)
    assert line["environment/turns"] == metrics["environment/turns"] and metrics["score"] == pytest.approx(4 / 6)
    format = load_format(ModelOptions(path=str(folder / "calls"), chat_template="chatml"))
    context, call, between, answer = spelled(3, 4, call_of("3*4"), "12", "12")
    (trained,) = format.completions([(records[0].messages[:1], records[0].messages[1:], None)])
    words = format.tokenizer
    assert list(trained.ids) == words(context + call + between + answer)["input_ids"]
    weighed = [token for token, weight in zip(trained.ids, trained.weights, strict=True) if weight]
    assert weighed == words(call)["input_ids"] + words(answer)["input_ids"]


def test_announced_tools_are_written_with_what_was_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "sample", DRAWN)
    sampled(tmp_path / "run", sampling(folder, minimum=1.0, environment={"kind": "tools", "tools": ["calculator"]}))
    records = read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records
    assert [tool["function"]["name"] for record in records for tool in record.tools or ()] == ["calculator"] * 3
    assert [content(record.messages[1:]) for record in records[:2]] == CALCULATED


def test_pairs_and_labels_hold_the_turns_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "sample", DRAWN)
    run = sampled(tmp_path / "pair", sampling(folder, write="pair"))
    pairs = read(tmp_path / "pair/data/comparisons.jsonl", Comparison).records
    assert [[content(one) for one in pair.responses] for pair in pairs] == [
        [CALCULATED[0], [("assistant", "50")]],
        [CALCULATED[1], [("assistant", "12")]],
    ]
    assert run.record.metrics["dropped/one_answer"] == 1
    sampled(tmp_path / "labels", sampling(folder, write="feedback", minimum=1.0))
    labelled = read(tmp_path / "labels/data/feedback.jsonl", Feedback).records
    assert [(content(one.response), one.label) for one in labelled[:2]] == [
        (CALCULATED[0], True),
        ([("assistant", "50")], False),
    ]


def test_a_judge_of_pairs_reads_whole_episodes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prefers whoever called the calculator, which the last turn does not tell."""
    monkeypatch.setattr(episodes, "sample", DRAWN)
    asked: list[str] = []

    def ask(conversations: list[Messages]) -> list[str]:
        texts = [messages[-1]["content"] for messages in conversations]
        asked.extend(texts)
        return [
            f"Better: {'first' if text.index('calculator') < text.index('<second>') else 'second'}" for text in texts
        ]

    judge = {"guidelines": str(folder / "prompts.jsonl"), "url": "http://127.0.0.1:9/v1", "model": "m"}
    monkeypatch.setattr(chunks, "CHUNK", 3)
    config = sampling(folder, write="pair", judge=judge)
    run = sampled(tmp_path / "run", config, None, comparison(ask, "Be good."))
    pairs = read(tmp_path / "run/data/comparisons.jsonl", Comparison).records
    assert [content(pair.responses[0]) for pair in pairs] == CALCULATED
    called = '{"name": "calculator", "arguments": {"expression": "3*4"}}'
    shown = f"<assistant>\n{called}\n</assistant>\n<tool>\n12\n</tool>\n<assistant>\n12\n</assistant>"
    assert f"<first>\n{shown}\n</first>\n\n<second>\n50\n</second>" in asked[0]
    assert run.record.metrics["environment/tool_calls"] == pytest.approx(2 / 6)
    assert written(run).keys() == {"comparisons.jsonl"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_new_tokens": 2}, "min_new_tokens has no meaning with an environment"),
        ({"environment": {"kind": "tools"}}, r"environment\.kind: tools needs environment\.tools"),
    ],
)
def test_what_cannot_go_together_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampling(folder, **changes)


def test_prompts_leave_room_for_the_replies(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leave no room for max_new_tokens 24 and 60 tokens of turns before it"):
        sampled(tmp_path / "run", sampling(folder, data={"path": str(folder / "prompts.jsonl"), "max_length": 85}))


RECIPE = """
name: played
runtime: {{trackers: [], device: cpu}}
stages:
  sample:
    model: {{path: {folder}/calls, chat_template: {template}, eos_token: "<|im_end|>"}}
    data: {{path: {folder}/prompts.jsonl, max_length: {room}}}
    reward: {{kind: rules, rule: number}}
    environment: {{kind: tools, tools: [{tool}], announce: false, max_tokens: 40}}
    max_new_tokens: 24
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "none"}, "sample: environment.kind: tools reads calls that are JSON between <tool_call> tags"),
        ({"room": 72}, "leave no room for max_new_tokens 24 and 40 tokens of turns before it"),
        ({"tool": "json:loads"}, "sample: environment.tools: 'json:loads' is code; add --allow-code"),
    ],
)
def test_check_names_what_the_run_would_refuse(folder: Path, tmp_path: Path, changes: Any, message: str) -> None:
    given = {"template": "chatml", "room": 99, "tool": "calculator", "folder": folder}
    (tmp_path / "sound.yaml").write_text(RECIPE.format(**given))
    (checked,) = check_steps(plan(load_recipe(tmp_path / "sound.yaml"), tmp_path / "runs"))
    assert (checked.records, checked.sequences) == (3, 3)
    (tmp_path / "played.yaml").write_text(RECIPE.format(**given | changes))
    with pytest.raises(InputError) as found:
        list(check_steps(plan(load_recipe(tmp_path / "played.yaml"), tmp_path / "runs")))
    assert message in str(found.value)
