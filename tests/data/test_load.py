"""load_data: reading, drawing, splitting, the embedded world, and what it reports of its sources."""

import hashlib
from pathlib import Path

import pytest

from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.options.shared import DataOptions
from alignkit.records import Comparison, Demonstration, Document, Prompt


def write(path: Path, count: int, more: str = "") -> Path:
    path.write_text("".join(f'{{"prompt": "q {path.stem} {i}", "completion": "a"}}\n' for i in range(count)) + more)
    return path


def test_a_file_is_drawn_split_and_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 100, "{}\n{\n")
    options = DataOptions(path=str(path), rows=50, validation=10, on_invalid="skip", format="trl")
    train, validation, sources = load_data(options, Demonstration, seed=0)
    assert (len(train), len(validation)) == (40, 10)
    (source,) = sources
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source["path"], source["rows"], source["rejected"]) == (str(path), 102, 2)
    assert source["reasons"][1].startswith("line 102: malformed JSON")
    assert load_data(options, Demonstration, seed=0)[0] == train
    assert load_data(options, Demonstration, seed=1)[0] != train


def test_without_rows_the_order_of_the_file_stays(tmp_path: Path) -> None:
    options = DataOptions(path=str(write(tmp_path / "a.jsonl", 20)), validation=0)
    train, validation, sources = load_data(options, Demonstration, seed=0)
    assert [record.messages[0].content for record in train] == [f"q a {i}" for i in range(20)]
    assert validation == []
    assert "rejected" not in sources[0]


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("train-b", "train-a", "test"):
        write(tmp_path / f"{name}.jsonl", 3)
    train, _, sources = load_data(DataOptions(path=str(tmp_path), split="train", validation=0), Prompt, seed=0)
    assert [record.messages[0].content.split()[1] for record in train] == ["train-a"] * 3 + ["train-b"] * 3
    assert [Path(source["path"]).name for source in sources] == ["train-a.jsonl", "train-b.jsonl"]


def test_a_single_text_is_cut_in_two(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("word\n" * 1000)
    train, validation, _ = load_data(DataOptions(path=str(tmp_path / "book.txt"), validation=0.1), Document, seed=0)
    assert (len(train), len(validation)) == (1, 1)
    assert len(validation[0].text) == 500


def test_the_world_serves_its_kinds() -> None:
    options = DataOptions(world="comparisons", rows=60, validation=10)
    train, validation, sources = load_data(options, Comparison, seed=0)
    assert len(train) + len(validation) == 60
    assert len(validation) >= 10
    assert (sources[0]["path"], sources[0]["rows"]) == ("world:comparisons", 60)
    again = load_data(options, Comparison, seed=0)
    assert again == (train, validation, sources)
    assert load_data(options, Comparison, seed=1)[2][0]["sha256"] != sources[0]["sha256"]
    assert len(load_data(DataOptions(world="comparisons", rows=8, validation=0), Prompt, seed=0)[0]) == 8
    held = load_data(DataOptions(world="prompts", rows=20, split="heldout", validation=0), Prompt, seed=0)[0]
    assert not {p.messages for p in held} & {p.messages for p in train if isinstance(p, Prompt)}
    with pytest.raises(InputError, match=r"`data.world: corpus` cannot serve here: .* Document"):
        load_data(DataOptions(world="corpus", rows=5), Comparison, seed=0)
