"""What is written is read back as it was, whatever it holds."""

from pathlib import Path

import pytest

from alignkit.data.read import read
from alignkit.data.write import write_records
from alignkit.records import Comparison, Demonstration, Feedback, Message, Prompt, Record, ToolCall

TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},)
ASKED = (
    Message(role="system", content="Be brief.\nAlways."),
    Message(role="user", content='"é" \u2028 \\n?', name="ann"),
    Message(role="assistant", tool_calls=(ToolCall(name="look", arguments={"at": [1, None]}, id="c1"),), weight=0.0),
    Message(role="tool", content="Human: hi\n\nAssistant: no transcript", name="look", tool_call_id="c1"),
)
SAID = Message(role="assistant", content="so", reasoning="hm", weight=0.5)
COLUMNS = {"answer": "42", "score": 1.5, "sampled": {"score": -0.25, "parts": {"a": 1.0}}, "nothing": None}
OTHER = Message(role="assistant", content="")


@pytest.mark.parametrize(
    "records",
    [
        [Demonstration(messages=(*ASKED, SAID), tools=TOOLS, id="1", columns=COLUMNS),
         Demonstration(messages=(*ASKED, SAID))],
        [Comparison(prompt=ASKED, responses=((SAID,), (OTHER,)), ranks=(2, 1), margins=(0.5, 1e-9), tools=TOOLS,
                    columns=COLUMNS)],
        [Comparison(prompt=ASKED, responses=((SAID,), (OTHER,), (SAID,)), ranks=(1, 2, 2))],
        [Feedback(prompt=ASKED, response=(SAID,), label=label, id=str(label), columns=COLUMNS)
         for label in (True, False)],
        [Prompt(messages=ASKED, tools=TOOLS, id="p", columns=COLUMNS)],
    ],
)  # fmt: skip
def test_records_survive_a_file(records: list[Record], tmp_path: Path) -> None:
    write_records(tmp_path / "data.jsonl", records)
    assert len((tmp_path / "data.jsonl").read_bytes().strip().split(b"\n")) == len(records)
    found = read(tmp_path / "data.jsonl", type(records[0])).records
    assert [one.model_dump(mode="json") for one in found] == [one.model_dump(mode="json") for one in records]
