"""The published schemas are those of the code, and say of every field what it is, with an example that is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit import schemas
from alignkit.data.formats import detect, to_records
from alignkit.records import Comparison, Demonstration, Document, Feedback, Prompt, Record
from alignkit.schemas import EXAMPLES, SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = {
    record: json.loads((ROOT / f"data_schemas/{record.__name__.lower()}.json").read_text()) for record in SCHEMAS
}


def test_the_committed_schemas_are_those_of_the_code(tmp_path: Path) -> None:
    schemas.write_schemas(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "data_schemas").iterdir()}
    command = "python -c \"from alignkit.schemas import write_schemas; write_schemas('data_schemas')\""
    assert written == committed, f"run: {command}"
    assert len(committed) == 7


def test_the_package_carries_the_schemas() -> None:
    inside = Path(schemas.__file__).parent / "data_schemas"
    assert json.loads((inside / "comparison.json").read_text())["title"] == "Comparison"


@pytest.mark.parametrize("record", SCHEMAS)
def test_every_field_has_a_description_and_an_example(record: type[Record]) -> None:
    schema = WRITTEN[record]
    assert schema["$id"] == f"urn:alignkit:{record.__name__.lower()}:1"
    for part in (schema, *schema.get("$defs", {}).values()):
        for name, field in part["properties"].items():
            (example,) = field["examples"]
            assert field["description"] and example not in (None, "", [], {}), f"{part['title']}.{name}"


@pytest.mark.parametrize("record", SCHEMAS)
def test_the_examples_are_records(record: type[Record]) -> None:
    (example,) = WRITTEN[record]["examples"]
    assert record.model_validate(example) == EXAMPLES[record]
    fields: dict[str, Any] = {name: field["examples"][0] for name, field in WRITTEN[record]["properties"].items()}
    assert record.model_validate(fields) == EXAMPLES[record]
    if record in (Document, Demonstration, Comparison, Prompt, Feedback):
        assert to_records(example, record, detect(example) or "") == [EXAMPLES[record]]


@pytest.mark.parametrize("record", SCHEMAS)
def test_the_schemas_accept_the_examples_and_nothing_unknown(record: type[Record]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, of alignkit[eval]")
    validator = jsonschema.Draft202012Validator(WRITTEN[record])
    validator.check_schema(WRITTEN[record])
    (example,) = WRITTEN[record]["examples"]
    validator.validate(example)
    assert not validator.is_valid({**example, "surprise": 1})
