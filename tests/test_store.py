"""Examples on the disk: what is written is read, and a writer that is killed leaves nothing taken for whole."""

import errno
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from loop_cases import examples

from alignkit.store import StoreWriter, read_store
from alignkit.trie import TokenSequence

TABLES = ("train 0", "validation 0")
ODD = [
    TokenSequence([5], [0.0]),
    TokenSequence([7, 7, 70_000, 1], [0.0, 0.1, 0.1, 1 / 3], columns={"bytes": 12.0, "rating": -1e-300}),
]


def write(path: Path, key: str = "key", **notes: Any) -> StoreWriter:
    writer = StoreWriter(path, key, TABLES)
    writer.add("train 0", [*examples(30), ODD])
    writer.commit(notes)
    return writer


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "run" / "examples.sqlite"
    write(path, counts=[{"skipped": 3}]).finish()
    found = read_store(path, "key")
    assert found is not None
    tables, notes = found
    train = tables["train 0"]
    assert notes == {"counts": [{"skipped": 3}]} and len(train) == 31 and len(tables["validation 0"]) == 0
    assert list(train) == [*examples(30), ODD]
    assert train[-1] == ODD and train[3:5] == examples(30)[3:5]
    for wrong in (31, -32):
        with pytest.raises(IndexError):
            train[wrong]
    assert read_store(path, "another key") is None and read_store(tmp_path / "none", "key") is None


def killed(path: Path) -> None:
    """A child writes 31 examples, commits, writes more, and is killed."""
    child = os.fork()
    if child == 0:
        writer = write(path, done=31)
        writer.add("train 0", examples(500))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_killed_writer_goes_on_after_its_last_commit(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    killed(path)
    assert not path.exists() and read_store(path, "key") is None
    writer = StoreWriter(path, "key", TABLES)
    assert writer.notes == {"done": 31}
    writer.add("train 0", examples(2, seed=7))
    writer.commit({"done": 33})
    writer.finish()
    found = read_store(path, "key")
    assert found is not None and list(found[0]["train 0"]) == [*examples(30), ODD, *examples(2, seed=7)]
    assert [file.name for file in tmp_path.iterdir()] == ["examples.sqlite"]


def test_another_key_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    killed(path)
    assert StoreWriter(path, "other", TABLES).notes == {}
    write(path, "third").finish()
    writer = StoreWriter(path, "fourth", TABLES)
    assert not path.exists(), "what another key has made is not to be read"
    writer.finish()
    found = read_store(path, "fourth")
    assert found is None, "nothing was committed: there is nothing to be read"


@pytest.mark.parametrize("damage", [b"", b"no database at all, but long enough to be taken for a page of one"])
def test_a_file_that_is_none_of_ours_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "examples.sqlite"
    path.with_name("examples.sqlite.partial").write_bytes(damage)
    write(path).finish()
    assert read_store(path, "key") is not None


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "examples.sqlite"
    writer = write(path)
    writer._database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(OSError, match=r"the examples cannot be written to .* is full") as told:
        writer.add("train 0", examples(5_000))
        writer.commit({})
    assert told.value.errno == errno.ENOSPC and isinstance(told.value.__cause__, sqlite3.OperationalError)
