"""The published JSON Schemas of the records, an example beside every field. Knows neither data nor who reads them."""

import json
from pathlib import Path
from typing import Any

from alignkit.records import (
    Comparison,
    Completion,
    Demonstration,
    Document,
    Feedback,
    Message,
    Messages,
    Prompt,
    Record,
    Scores,
    ToolCall,
)

VERSION = 1
"""Stands in every schema's `$id`; raised when a line that an earlier version wrote is no longer read as it was."""

ASKED: Messages = (Message(role="user", content="What colour is Anna's house?"),)
RED = Message(role="assistant", content="It is red.")
UNSURE = Message(role="assistant", content="I do not know.")
LOOK = ToolCall(name="look", arguments={"at": "Anna's house"}, id="call-1")
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look at something.",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
        },
    },
)
EXAMPLES: dict[type[Record], Record] = {
    ToolCall: LOOK,
    Message: Message(
        role="assistant",
        content="Let me look.",
        reasoning="I have not seen the house.",
        tool_calls=(LOOK,),
        name="look",
        tool_call_id="call-1",
        weight=1.0,
        finished=True,
    ),
    Document: Document(text="Anna has a red house.", id="house-1", source="houses.txt"),
    Demonstration: Demonstration(
        messages=(
            Message(role="system", content="Answer in one sentence."),
            *ASKED,
            Message(role="assistant", tool_calls=(LOOK,)),
            Message(role="tool", content="red", name="look", tool_call_id="call-1"),
            RED,
        ),
        tools=TOOLS,
        id="house-2",
        columns={"answer": "red"},
    ),
    Comparison: Comparison(
        prompt=ASKED,
        responses=((RED,), (UNSURE,), (Message(role="assistant", content="None of your business."),)),
        ranks=(1, 2, 3),
        margins=(4.5, 3.0, 0.5),
        tools=TOOLS,
        id="house-3",
        columns={"annotator": "a7"},
    ),
    Prompt: Prompt(messages=ASKED, tools=TOOLS, id="house-4", columns={"answer": "red"}),
    Feedback: Feedback(
        prompt=ASKED,
        response=(UNSURE,),
        label=False,
        correction="It is red.",
        tools=TOOLS,
        id="house-5",
        columns={"page": "chat"},
    ),
    Completion: Completion(
        prompt=ASKED,
        response=RED,
        columns={"answer": "red"},
        ids=(6, 1411, 2, 1290, 374, 2518, 13, 2),
        logps=(-0.5, -0.125, -0.0625, -0.5, -0.125, -1.25, -0.25, -0.0625),
        tools=TOOLS,
        turns=(Message(role="assistant", tool_calls=(LOOK,)), Message(role="tool", content="red", name="look")),
        inserted=((3, (198, 2518, 198)),),
    ),
    Scores: Scores(total=(1.5, None), parts={"correct": (1.0, None)}, steps=(((2, 0.5),), ())),
}
"""A record of each kind, every field filled."""

SCHEMAS: tuple[type[Record], ...] = (Document, Demonstration, Comparison, Prompt, Feedback, Completion, Scores)
"""The records whose JSON schemas are published in data_schemas/."""


def schema_of(record: type[Record]) -> dict[str, Any]:
    """The JSON Schema of a record, its version in `$id`, with the fields of its example beside their descriptions."""
    schema = record.model_json_schema()
    examples = {kind.__name__: example for kind, example in EXAMPLES.items()}
    parts: dict[str, dict[str, Any]] = {record.__name__: schema, **schema.get("$defs", {})}
    for name, part in parts.items():
        values = examples[name].model_dump(mode="json") | _short(examples[name])
        for field, described in part["properties"].items():
            described["examples"] = [values[field]]
    identity = f"urn:alignkit:{record.__name__.lower()}:{VERSION}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": identity}
    return {**head, **schema, "examples": [_short(EXAMPLES[record])]}


def _short(record: Record) -> dict[str, Any]:
    """A record as people write it, without what a reader fills in."""
    return record.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def write_schemas(folder: str | Path) -> None:
    """Write the JSON schema of every published record to `folder`/<record>.json."""
    for record in SCHEMAS:
        text = json.dumps(schema_of(record), indent=2, ensure_ascii=False)
        Path(folder, f"{record.__name__.lower()}.json").write_text(f"{text}\n", encoding="utf-8")
