"""The critique stage: its turns with a scripted speaker, what it writes on a tiny model, and kills."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from sample_cases import PROMPTS, QUIET, critiquing, prepare, start, written

from alignkit import chunks
from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.data.read import read
from alignkit.generate import rollout
from alignkit.guidelines import Guideline, drawn, read_guidelines
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.critique import CritiqueConfig
from alignkit.options.shared import ModelOptions
from alignkit.records import Comparison, Completion, Demonstration, Message, Prompt, ToolCall
from alignkit.runs import read_metrics
from alignkit.stages import critique
from alignkit.stages.critique import records_of, revised, summary


def user(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


class Script:
    """Says what is written down for (turn, place), and remembers what it was asked."""

    def __init__(self, said: dict[tuple[int, int], Message], cut: tuple[tuple[int, int], ...] = ()) -> None:
        self.said, self.cut = said, cut
        self.asked: dict[tuple[int, int], list[tuple[str, str]]] = {}

    def __call__(self, turn: int, places: list[int], prompts: list[Prompt]) -> list[Completion]:
        found: list[Completion] = []
        for place, prompt in zip(places, prompts, strict=True):
            self.asked[turn, place] = [(message.role, message.content) for message in prompt.messages]
            response = self.said.get((turn, place), Message(role="assistant", content=f"{turn}.{place}"))
            ended = response.model_copy(update={"finished": (turn, place) not in self.cut})
            found.append(Completion(prompt=prompt.messages, response=ended, ids=(1, 2)))
        return found


BRIEF, POLITE = Guideline("is it brief?", "make it brief"), Guideline("is it polite?", "make it polite")


def test_each_round_sees_the_latest_answer_and_its_own_critique() -> None:
    script = Script({(0, 0): Message(role="assistant", content="0.0", reasoning="hm")})
    (row,) = revised([user("why?")], [[BRIEF, POLITE]], script)
    assert script.asked[2, 0] == [
        ("user", "why?"),
        ("assistant", "0.0"),
        ("user", "is it brief?"),
        ("assistant", "1.0"),
        ("user", "make it brief"),
    ]
    assert script.asked[3, 0] == [("user", "why?"), ("assistant", "2.0"), ("user", "is it polite?")]
    assert script.asked[4, 0][-1] == ("user", "make it polite")
    assert row == {
        "answer": "0.0",
        "finished": [True, True, True],
        "rounds": [
            {"guideline": "is it brief?", "critique": "1.0", "revision": "2.0"},
            {"guideline": "is it polite?", "critique": "3.0", "revision": "4.0"},
        ],
        "dropped": None,
        "tokens": 10,
    }


def test_worked_examples_stand_before_each_request_and_not_before_the_answer() -> None:
    said = Message(role="user", content="who?"), Message(role="assistant", content="you")
    system = Message(role="system", content="s")
    asked = Prompt(messages=(system, Message(role="user", content="why?")))
    script = Script({})
    (row,) = revised([asked], [[BRIEF]], script, examples=said)
    assert script.asked[0, 0] == [("system", "s"), ("user", "why?")]
    for turn in (1, 2):
        begins = [("system", "s"), ("user", "who?"), ("assistant", "you"), ("user", "why?"), ("assistant", "0.0")]
        assert script.asked[turn, 0][:5] == begins
    assert script.asked[2, 0][5:] == [("user", "is it brief?"), ("assistant", "1.0"), ("user", "make it brief")]
    assert row["rounds"] == [{"guideline": "is it brief?", "critique": "1.0", "revision": "2.0"}]


def test_a_conversation_ends_where_a_turn_says_nothing() -> None:
    script = Script(
        {
            (0, 0): Message(role="assistant", content=" "),
            (1, 1): Message(role="assistant", tool_calls=(ToolCall(name="look"),)),
        },
        cut=((2, 2), (1, 3)),
    )
    prompts, by = [user(str(n)) for n in range(5)], [[BRIEF]] * 5
    rows = revised(prompts, by, script)
    assert [row["dropped"] for row in rows] == ["empty", "tool_call", "unfinished", "unfinished", None]
    assert (1, 0) not in script.asked and (2, 1) not in script.asked and (2, 3) not in script.asked
    assert [row["tokens"] for row in rows] == [2, 4, 6, 4, 6]
    kept = revised(prompts, by, Script({}, cut=((2, 2), (1, 3))), keep_unfinished=True)
    assert [row["dropped"] for row in kept] == [None] * 5
    config = build(CritiqueConfig, {"model": {"path": "m"}, "data": {"path": "d"}, "guidelines": "g"}, "")
    answers = [record.messages[-1] for record in records_of(prompts, kept, config)["demonstrations"]]
    assert [answer.finished for answer in answers] == [True, True, False, True, True]
    files: Any = {"demonstrations": [1]}
    found = summary(rows, files, skipped=2)
    dropped = {name.partition("/")[2]: n for name, n in found.items() if name.startswith("dropped/")}
    assert dropped == {"empty": 1, "over_long": 2, "tool_call": 1, "unfinished": 2}
    assert (found["prompts"], found["kept"]) == (7, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("critique"))


def test_it_writes_what_plain_rollouts_say_turn_by_turn(folder: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", critiquing(folder))
    shown = read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records
    compared = {c.id: c for c in read(tmp_path / "run/data/comparisons.jsonl", Comparison).records}
    format = ChatFormat.load(load_tokenizer(str(folder / "model")), "none", tiny.END)
    policy = load_policy(ModelOptions(path=str(folder / "model")), trainable=False, format=format).eval()
    guidelines = read_guidelines(folder / "rules.yaml")

    def say(prompt: Prompt, number: int, turn: int, *turns: str) -> str:
        said = [Message(role=role, content=text) for role, text in zip(("assistant", "user") * 2, turns, strict=False)]
        asked = prompt.model_copy(update={"messages": (*prompt.messages, *said)})
        (completion,) = rollout(policy, format, [asked], seed=0, update=turn, max_new_tokens=8, numbers=[number])
        return completion.response.content

    def expected(prompt: Prompt, number: int) -> tuple[str, str] | None:
        first = latest = say(prompt, number, 0)
        for place, one in enumerate(drawn(guidelines, 0, number, 2)):
            told = say(prompt, number, 2 * place + 1, latest, one.critique) if latest.strip() else ""
            again = (latest, one.critique, told, one.revision)
            latest = say(prompt, number, 2 * place + 2, *again) if told.strip() else ""
        return (first, latest) if latest.strip() else None

    prompts = read(folder / "prompts.jsonl", Prompt).records[:9]
    found = {prompt.id: expected(prompt, number) for number, prompt in enumerate(prompts)}
    texts = {name: both for name, both in found.items() if both is not None}
    revisions = {record.id: record.messages[-1].content for record in shown}
    assert len(texts) > 4
    assert {name: text for name, text in revisions.items() if name in found} == {n: b for n, (_, b) in texts.items()}
    assert len(shown) == run.record.metrics["kept"] == PROMPTS - run.record.metrics.get("dropped/empty", 0)
    for name, (first, last) in texts.items():
        if first != last:
            said = [response[0].content for response in compared[name].responses]
            assert (said, compared[name].ranks) == ([last, first], (1, 2))
    assert len(compared) == len(shown) - run.record.metrics["unchanged"] == run.record.metrics["comparisons"]
    assert all(record.columns["answer"] == record.id for record in shown)
    assert all(len(record.columns["critique"]["rounds"]) == 2 for record in shown)


def test_a_killed_run_goes_on_and_ends_with_the_same_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = critiquing(folder)
    whole = start(tmp_path / "whole", config)
    monkeypatch.setattr(chunks, "CHUNK", 6)
    calls = 0

    def failing(*arguments: Any, **options: Any) -> list[Completion]:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return rollout(*arguments, **options)

    monkeypatch.setattr(critique, "rollout", failing)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "killed", config)
    made = sorted(path.name for path in (tmp_path / "killed/chunks").iterdir())
    assert made == ["00000000.json"]  # five turns a chunk
    monkeypatch.setattr(critique, "rollout", rollout)
    resumed = start(tmp_path / "killed", config)
    assert written(resumed) == written(whole) and set(written(whole)) == {"demonstrations.jsonl", "comparisons.jsonl"}
    assert resumed.record.metrics == whole.record.metrics
    assert len(read_metrics(resumed.directory)) == 4


def test_comparisons_alone_count_what_did_not_change(folder: Path, tmp_path: Path) -> None:
    metrics = start(tmp_path / "run", critiquing(folder, write="comparisons", temperature=0.0)).record.metrics
    assert set(written(start(tmp_path / "run", critiquing(folder, write="comparisons", temperature=0.0)))) == {
        "comparisons.jsonl"
    }
    dropped = sum(n for name, n in metrics.items() if name.startswith("dropped/"))
    assert metrics["kept"] == metrics["comparisons"] == PROMPTS - dropped
    assert metrics.get("dropped/unchanged", 0) == metrics["unchanged"]


def test_worked_examples_change_the_critiques_take_room_and_are_not_trained_on(folder: Path, tmp_path: Path) -> None:
    """Under the requests of rules.yaml; the example has 18 letters, and whatever ends its six turns."""
    rules = folder / "rules.yaml"
    listed = "".join(f"  {line}\n" for line in rules.read_text().splitlines())
    example = '{prompt: "who?", answer: b, guideline: {critique: "wrong?", revision: again}, critique: c, revision: d}'
    (tmp_path / "few.yaml").write_text(f"guidelines:\n{listed}examples:\n- {example}\n")
    few = critiquing(folder, guidelines=str(tmp_path / "few.yaml"))
    plain, shown = start(tmp_path / "plain", critiquing(folder)), start(tmp_path / "shown", few)

    def lines(run: Any) -> dict[str | None, Demonstration]:
        records = read(run.directory / "data/demonstrations.jsonl", Demonstration).records
        return {record.id: record for record in records}

    before, after = lines(plain), lines(shown)
    both = before.keys() & after.keys()
    told = [[lines.columns["critique"] for lines in (before[name], after[name])] for name in both]
    assert all(one["answer"] == other["answer"] for one, other in told)  # the first answer does not see them
    assert sum(one["rounds"][0]["critique"] != other["rounds"][0]["critique"] for one, other in told) > len(both) / 2
    assert all(after[name].messages[:-1] == before[name].messages[:-1] for name in both)
    needed: list[int] = []
    for name in ("rules.yaml", "few.yaml"):
        path = folder / name if name == "rules.yaml" else tmp_path / name
        with pytest.raises(InputError, match="leave no room") as found:
            start(tmp_path / f"no {name}", critiquing(folder, guidelines=str(path), data={"max_length": 20}))
        needed.append(int(str(found.value).partition("and ")[2].split()[0]))
    format = ChatFormat.load(load_tokenizer(str(folder / "model")), "none", tiny.END)
    turns = [
        Message(role=r, content=c)
        for r, c in zip(["user", "assistant"] * 3, ["who?", "b", "wrong?", "c", "again", "d"], strict=True)
    ]
    last = Message(role="user", content="x")
    assert needed[1] - needed[0] == len(format.prompt([*turns, last])) - len(format.prompt([last])) >= 18


def test_prompts_need_room_for_the_whole_conversation(folder: Path, tmp_path: Path) -> None:
    """5 to 10 letters of a prompt, 16 of two turns, some 15 of two requests, and 8 of the revision."""
    with pytest.raises(InputError, match=r"max_length 20: .* leave no room for max_new_tokens 8 and 3\d tokens"):
        start(tmp_path / "run", critiquing(folder, data={"max_length": 20}))
    with pytest.raises(InputError, match=r"token_budget: 30 is less than a prompt and its completion"):
        start(tmp_path / "run", critiquing(folder), runtime=QUIET.model_copy(update={"token_budget": 30}))
