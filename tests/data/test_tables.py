"""Parquet and Arrow files give the rows that JSON lines of the same data give."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.data.read import read
from alignkit.options.shared import DataOptions
from alignkit.records import Comparison, Demonstration, Prompt

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
    {"role": "tool", "content": "1", "tool_call_id": "c"},
    {"role": "assistant", "content": "a"},
]
ROWS: list[dict[str, Any]] = [
    {"messages": TURNS, "level": 2, "tags": ["x", "y"], "more": {"deep": [1.5]}},
    {"prompt": "q", "completion": "a"},
    {"messages": TURNS[:1] + TURNS[-1:], "tools": [{"name": "f", "takes": {"x": "int"}}]},
    {"messages": TURNS[:1] + TURNS[-1:], "tools": [{"name": "g", "takes": {"y": "int"}}]},
]


def write(path: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    path = path.with_suffix(f".{kind}")
    table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(rows[:1]).schema if len(rows) == 1 else None)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    elif kind == "feather":
        feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_a_table_gives_what_json_lines_give(tmp_path: Path, kind: str) -> None:
    fields = [field for row in ROWS for field in row]
    path = write(tmp_path / "a", [{field: row.get(field) for field in fields} for row in ROWS], kind)
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = read(path, Demonstration)
    assert result.records == read(lines, Demonstration).records
    options = DataOptions(path=str(path), validation=0)
    assert load_data(options, Demonstration, seed=0)[0] == result.records


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_errors_name_the_number_of_the_row(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", [{"prompt": "q", "completion": text} for text in ("a", "b", "", "c")], kind)
    with pytest.raises(InputError, match=rf"a\.{kind}:3: no response: field `completion` is empty"):
        read(path, Demonstration)
    assert [line for line, _ in read(path, Demonstration, on_invalid="skip").rejected] == [3]


def test_what_json_does_not_know_becomes_text_and_numbers(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    row = {"prompt": "q", "at": when, "day": when.date(), "cost": Decimal("1.50"), "for": timedelta(minutes=1)}
    (record,) = read(write(tmp_path / "a", [row], "parquet"), Prompt).records
    expected = {"at": "2026-01-02T03:04:05+00:00", "day": "2026-01-02", "cost": 1.5, "for": 60.0}
    assert record.columns == expected
    assert Prompt.model_validate_json(record.model_dump_json()) == record


def test_bytes_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [{"prompt": "q", "image": {"bytes": b"\x89PNG", "path": None}}], "parquet")
    with pytest.raises(InputError, match=r"a\.parquet:1: field `image.bytes` holds bytes, which is no text; leave"):
        read(path, Prompt)


def test_a_folder_of_shards_is_read_in_their_order(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"):
        write(tmp_path / name, [{"prompt": name, "chosen": "a", "rejected": "b"}], "parquet")
    options = DataOptions(path=str(tmp_path), split="train", validation=0)
    prompts = [record.prompt[0].content for record in load_data(options, Comparison, seed=0)[0]]
    assert prompts == ["train-00000-of-00002", "train-00001-of-00002"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_a_table_cut_short_is_an_error_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", [{"prompt": f"q{n}", "completion": "a"} for n in range(500)], kind)
    whole = path.read_bytes()
    for length in (0, 3, 8, len(whole) // 3, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"a\.{kind}: is cut off"):
            read(path, Demonstration)


def test_a_table_is_not_compressed_again(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").touch()
    with pytest.raises(InputError, match=r"is compressed twice; unpack it"):
        read(tmp_path / "a.parquet.gz", Demonstration)
