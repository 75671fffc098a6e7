"""Errors about records name the row that they are of, whatever the data lies in."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.data.load import load_data
from alignkit.data.placed import place_of, placed
from alignkit.options.mixture import StreamedDataOptions
from alignkit.options.shared import DataOptions
from alignkit.records import Demonstration, Document, Prompt


def row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]}


def write(path: Path, texts: Sequence[str]) -> Path:
    lines = "".join(json.dumps(row(text)) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def options(**given: Any) -> DataOptions:
    return build(StreamedDataOptions, given, "data")


def no_bad_ones(records: Sequence[Demonstration]) -> int:
    for number, record in enumerate(records):
        if "bad" in record.messages[-1].content:
            raise InputError(f"number {number} is {record.messages[-1].content}")
    return len(records)


def test_the_first_record_at_fault_is_named_by_its_row(tmp_path: Path) -> None:
    texts = [f"{n}" for n in range(9)]
    texts[5], texts[7] = "bad 5", "bad 7"
    data = options(path=str(write(tmp_path / "a.jsonl.gz", texts)), validation=0)
    records, _, _ = load_data(data, Demonstration, 0)
    assert placed(data, records[:5], no_bad_ones) == 5
    with pytest.raises(InputError, match=rf"^{tmp_path}/a\.jsonl\.gz:6: number 0 is bad 5$"):
        placed(data, records, no_bad_ones)


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_folder_and_of_a_mixture_its_file_is_named(tmp_path: Path, stream: bool) -> None:
    (tmp_path / "many").mkdir()
    write(tmp_path / "many/a.jsonl", ["1", "2"])
    write(tmp_path / "many/b.jsonl", ["3", "bad"])
    good = write(tmp_path / "good.jsonl", ["4", "5", "6"])
    sources = [{"name": "good", "path": str(good)}, {"name": "many", "path": str(tmp_path / "many")}]
    data = options(sources=sources, validation=0, stream=stream)
    records, _, _ = load_data(data, Demonstration, 0)
    with pytest.raises(InputError, match=rf"^{tmp_path}/many/b\.jsonl:2: number 0 is bad$"):
        placed(data, records, no_bad_ones)


def test_a_row_that_was_skipped_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["1", "2"])
    path.write_text("not json\n" + path.read_text() + "\n" + json.dumps(row("bad")) + "\n")
    data = options(path=str(path), validation=0, on_invalid="skip")
    records, _, _ = load_data(data, Demonstration, 0)
    with pytest.raises(InputError, match=rf"^{path}:5: number 0 is bad$"):
        placed(data, records, no_bad_ones)


def test_what_lies_in_no_row_keeps_its_own_words(tmp_path: Path) -> None:
    world = options(world="demonstrations", rows=8, validation=0)
    made, _, _ = load_data(world, Demonstration, 0)

    def refuse(records: Sequence[object]) -> None:
        raise InputError(f"{len(records)} refused")

    with pytest.raises(InputError, match=r"^8 refused$"):
        placed(world, made, refuse)
    (tmp_path / "one.txt").write_text("a document that is cut in two")
    cut = options(path=str(tmp_path / "one.txt"), validation=0.5)
    head, _, _ = load_data(cut, Document, 0)
    with pytest.raises(InputError, match=r"^1 refused$"):
        placed(cut, head, refuse)
    with pytest.raises(InputError, match=r"^0 refused$"):
        placed(cut, [], refuse)


def test_what_fails_in_company_alone_is_told_as_it_is(tmp_path: Path) -> None:
    data = options(path=str(write(tmp_path / "a.jsonl", ["1", "2", "3"])), validation=0)
    records, _, _ = load_data(data, Demonstration, 0)

    def few(records: Sequence[Demonstration]) -> None:
        if len(records) > 1:
            raise InputError("too many")

    with pytest.raises(InputError, match=r"^too many$"):
        placed(data, records, few)


def test_a_prompt_is_known_again_with_the_tools_that_an_environment_announced(tmp_path: Path) -> None:
    data = options(path=str(write(tmp_path / "a.jsonl", ["1"])), validation=0)
    prompts, _, _ = load_data(data, Prompt, 0)
    tool = {"type": "function", "function": {"name": "add"}}
    assert place_of(data, prompts[0].model_copy(update={"tools": (tool,)})) == f"{tmp_path}/a.jsonl:1"
