"""The recommended commands, run."""

import json
import shlex
import shutil
import subprocess

import pytest
import yaml
from records import pair, ranking, says, verdict

from alignkit.data.checking.mending import EMPTY, LEVEL, OVERLAP, filled
from alignkit.records import Comparison, Feedback, Message, Record, ToolCall

CALL = (Message(role="assistant", tool_calls=(ToolCall(name="look"),)),)
THOUGHT = (Message(role="assistant", reasoning="hm"),)


def kept(mend: str, *records: Record) -> list[int]:
    """Which of the records a recommendation's jq keeps."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    script = mend.split("jq -c '")[1].removesuffix("' OUT.jsonl")
    lines = [one.model_copy(update={"id": str(n)}).model_dump_json(exclude_none=True) for n, one in enumerate(records)]
    done = subprocess.run(["jq", "-c", script], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [int(json.loads(line)["id"]) for line in done.stdout.splitlines()]


def test_names_are_filled_in_once_and_quoted() -> None:
    mend = filled(OVERLAP, "MANKIND AGAINST.jsonl", "corpus", ["it's, a KIND.jsonl", "b.jsonl"])
    words = shlex.split(mend)
    assert words[:-1] == ["alignkit", "data", "dedup", "MANKIND AGAINST.jsonl", "OUT.jsonl", "--as", "corpus"]
    assert yaml.safe_load(words[-1].removeprefix("against=")) == ["it's, a KIND.jsonl", "b.jsonl"]


def test_level_scores_go_and_records_without_scores_stay() -> None:
    records = [
        pair("q", "a", "b"),
        ranking("q", "ab", (1, 2), margins=(3, 3)),
        ranking("q", "ab", (1, 2), margins=(3, 1)),
        ranking("q", "abc", (1, 1, 2), margins=(3, 3, 1)),  # tied, not ranked against each other
        ranking("q", "abc", (1, 2, 3), margins=(3, 1, 1)),
    ]
    assert kept(LEVEL, *records) == [0, 2, 3]


def test_empty_answers_go_and_calls_and_thoughts_stay() -> None:
    a, ask = says("assistant", "a"), says("user", "q")
    pairs = [Comparison(prompt=ask, responses=(a, two), ranks=(1, 2)) for two in (CALL, THOUGHT)]
    assert kept(EMPTY["comparisons"], *pairs, pair("q", "a", " \n"), pair("q", "", "b"), pair("q", "a", "b")) == [
        0,
        1,
        4,
    ]
    calls = [Feedback(prompt=ask, response=one, label=True) for one in (CALL, THOUGHT)]
    assert kept(EMPTY["feedback"], *calls, verdict("q", "\t", True), verdict("q", "a", True)) == [0, 1, 3]
