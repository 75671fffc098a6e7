"""JSON against schemas and mathematics against answers, on cases decided by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError
from alignkit.records import Completion, Message
from reward_models.verifiers import json_schema, mathematics

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def said(text: str, **columns: Any) -> Completion:
    prompt = (Message(role="user", content="who?"),)
    return Completion(prompt=prompt, response=Message(role="assistant", content=text), columns=columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "Ada", "age": 36}', 1),
        ('\n ```json\n{"name": "Ada"}\n```\n', 1),
        ('```\n{"name": "Ada"}\n```', 1),
        ('Here it is:\n```json\n{"name": "Ada"}\n```', 0),
        ('```json\n{"name": "Ada"}\n``` done', 0),
        ('{"name": "Ada", "age": -1}', 0),
        ('{"name": "Ada", "age": 3.5}', 0),
        ('{"age": 3}', 0),
        ('{"name": "Ada", "more": 1}', 0),
        ("[1]", 0),
        ('{"name": "Ada"', 0),
        ("", 0),
        ('{"name": "Ada", "age": NaN}', 0),
        ("[" * 100_000, 0),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0),
    ],
)
def test_json_against_a_schema(text: str, expected: float) -> None:
    pytest.importorskip("jsonschema")
    assert json_schema(SCHEMA)([said(text)]).total == (expected,)


@pytest.mark.parametrize(("text", "expected"), [("0.02", 1), ("1e999", 0), ("1" + "0" * 400, 0), ("[1e999]", 0)])
def test_numbers_beyond_floating_point_are_none(text: str, expected: float) -> None:
    pytest.importorskip("jsonschema")
    assert json_schema({"type": ["number", "array"], "multipleOf": 0.01})([said(text)]).total == (expected,)


def test_schemas_in_files_their_drafts_and_faults(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert json_schema(str(file))([said('{"name": "Ada"}'), said("{}")]).total == (1, 0)
    # exclusiveMinimum is a number since draft 6, a boolean before
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert json_schema(old)([said("3"), said("4")]).total == (0, 1)
    with pytest.raises(InputError, match=r"reward\.json_schema: is no JSON Schema: True is not .*exclusiveMinimum"):
        json_schema({key: value for key, value in old.items() if key != "$schema"})
    inside = {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}
    assert json_schema(inside)([said("[1, 2]"), said('["1"]')]).total == (1, 0)
    for where in ("http://127.0.0.1:9/none.json", "#/$defs/none"):
        with pytest.raises(InputError, match="points at nothing in it"):
            json_schema({"$ref": where})([said("1")])
    for text, message in (("[1]", "is a JSON object"), ("{", "is not JSON")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            json_schema(str(file))
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        json_schema(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("It is $\\frac{1}{2}$.", "0.5", 1),
        ("It is 0.5", "\\frac12", 1),
        ("so \\boxed{\\frac{2}{4}}", "1/2", 1),
        ("$x^2 + 2x + 1$", "(x+1)^2", 1),
        ("$x^2 + 2x$", "(x+1)^2", 0),
        ("so it is 72", "48 + 24 = 72\n#### 72", 1),
        ("so it is 73", "48 + 24 = 72\n#### 72", 0),
        ("$\\{2, 1\\}$", "$\\{1,2\\}$", 1),
        ("$\\sqrt{8}$", "2\\sqrt{2}", 1),
        ("it is 2", "2\\sqrt{2}", 0),
        ("it is $2x+1$", "2x+1", 1),
        ("it is 2", "2x+1", 0),
        ("1024", "2^{10}", 1),
        ("$(1,2)$", "(1, 2)", 1),
        ("It costs \\boxed{1,234}", "It is 1,234.", 1),
        ("12", "12 apples", 1),
        ("I do not know", "4", 0),
        ("", "4", 0),
        ("it is −5", "-5", 1),
        ("it is −5", "5", 0),
        ("$\\pi$", "pi", 1),
        ("$pi$", "pi", 1),
        ("$ip$", "pi", 0),
        ("$2\\pi$", "2 pi", 1),
        ("$\\sin(x)$", "sin(x)", 1),
        ("$isn(x)$", "sin(x)", 0),
        ("$\\ln 2$", "ln 2", 1),
        ("it is 2", "ln 2", 0),
        ("$\\infty$", "infinity", 1),
        ("$\\sqrt{2}$", "sqrt(2)", 1),
        ("$\\{y, x\\}$", "x or y", 1),
        ("$b$", "B", 1),
        ("$-x$", "-x", 1),
        ("$(a, b)$", "(a, b)", 1),
        ("$yx$", "$xy$", 1),
        ("$2yx$", "2xy", 1),
        ("$ab - x$", "ab-x", 1),
        ("$\\text{Tuesday}$", "\\text{Tuesday}", 1),
        ("$\\text{sey}$", "\\text{yes}", 0),
        ("5", "5 sec", 1),
    ],
)
def test_mathematics(text: str, answer: str, expected: float) -> None:
    pytest.importorskip("math_verify")
    assert mathematics()([said(text, answer=answer)]).total == (expected,)


@pytest.mark.parametrize(
    "answer", ["yes", "abc", "No solution", "The answer is (no).", "twenty-five", "three", "sí", "x in R", "Infinity"]
)
def test_words_are_no_products_of_letters(answer: str) -> None:
    pytest.importorskip("math_verify")
    for text in ("", f"${answer[::-1]}$", answer):
        with pytest.raises(
            InputError, match=r"'key' holds words and no mathematics: .*take rule: exact_match or cont"
        ):
            mathematics("key")([said(text, key=answer)])


def test_answers_that_are_no_mathematics() -> None:
    pytest.importorskip("math_verify")
    with pytest.raises(InputError, match="the column 'key' holds no mathematics: ' '"):
        mathematics("key")([said("4", key=" ")])
    with pytest.raises(InputError, match="no column 'answer'"):
        mathematics()([said("4")])
