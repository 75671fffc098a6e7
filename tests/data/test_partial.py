"""An import that was interrupted goes on: same bytes, same counts, no row taken twice, nothing half done seen."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from alignkit.config import InputError
from alignkit.data import importing, partial
from alignkit.data.importing import import_data

ROOT = Path(__file__).resolve().parents[2]


def row(n: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"q {n} é", "completion": "a" * (1 + n * 37 % 300), **fields}


def lines(*rows: Any) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)


def folder(place: Path) -> Path:
    """Ids that stand twice in a file and in two, rows that hold nothing, one whose form the row before it tells."""
    place.mkdir()
    (place / "a.jsonl").write_text(lines(*(row(n, id=str(n % 5)) for n in range(7)), "{", {"prompt": "q"}, row(9)))
    (place / "b.json").write_text(json.dumps([row(n, id=str(n)) for n in range(3, 8)]))
    (place / "c.jsonl").write_text("")
    alpaca = {"instruction": "q", "output": "a"}
    (place / "d.jsonl").write_text(lines(row(1), alpaca, {"output": "x"}, row(2, id="a"), row(3, id="a"), "[" * 5))
    return place


def test_an_import_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    command = [sys.executable, str(ROOT / "tests/data/import_killed.py"), str(source), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    whole = said["whole"]
    assert [(one["rows"], one["imported"], one["renamed"]) for one in whole["files"]] == [
        (10, 6, 0), (5, 5, 2), (0, 0, 0), (6, 3, 0),
    ]  # fmt: skip
    assert sorted(whole["made"]) == ["made.jsonl", "made.rejects.jsonl"]
    for kill in said["kills"]:
        seen = {name: text for name, text in kill["left"].items() if not name.startswith(".")}
        assert seen.items() <= whole["made"].items()
        assert (kill["made"], kill["files"]) == (whole["made"], whole["files"])
    resumed = {kill["resumed"] for kill in said["kills"]}
    assert resumed == {0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 16, 17, 19}  # the rows that gave a record
    assert '"reason": "field `instruction` is missing' in whole["made"]["made.rejects.jsonl"]  # d.jsonl's third row
    assert whole["made"].items() <= said["often"].items() and said["starts"] > 2


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose import keeps a state after every row and is told of every row."""
    monkeypatch.setattr(partial, "EVERY", 0.0)
    return folder(tmp_path / "in")


def interrupted(source: Path | str, out: Path, after: int, **options: Any) -> None:
    """An import that ends, as by Ctrl-C, when it has kept its state so many times."""
    kept = 0

    class Ending(partial.Partial):
        def keep(self, state: Any) -> None:
            nonlocal kept
            super().keep(state)
            kept += 1
            if kept == after:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(importing, "Partial", Ending)
        import_data(str(source), out, "demonstrations", **options)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_same_import_goes_on_and_says_so(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = import_data(str(source), tmp_path / "whole/made.jsonl", "demonstrations")
    out = tmp_path / "out/made.jsonl"
    interrupted(source, out, 8)
    (work,) = names_in(out.parent)
    assert work.startswith(".made.jsonl.") and work.endswith(".work")
    done = import_data(str(source), out, "demonstrations")
    assert "goes on after 12 rows that an interrupted import had taken" in caplog.text
    assert (whole.resumed, done.resumed) == (0, 12)
    assert (done.files, done.total) == (whole.files, whole.total)
    assert names_in(out.parent) == ["made.jsonl", "made.rejects.jsonl"]
    for name in names_in(out.parent):
        assert (out.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def changed(source: Path) -> dict[str, Any]:
    (source / "d.jsonl").write_text(lines(row(8)))
    return {}


@pytest.mark.parametrize(
    "change", [changed, lambda _: {"format": "trl"}, lambda _: {"as_": "prompts"}, lambda _: {"split": "a"}]
)
def test_other_data_or_options_begin_anew_and_say_so(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], dict[str, Any]]
) -> None:
    out = tmp_path / "out/made.jsonl"
    interrupted(source, out, 8)
    options = {"as_": "demonstrations"} | change(source)
    done = import_data(str(source), out, **options)
    assert "an interrupted start had other data or options; this one begins anew" in caplog.text
    fresh = import_data(str(source), tmp_path / "fresh/made.jsonl", **options)
    assert (done.resumed, done.files) == (0, fresh.files)
    assert names_in(out.parent) == names_in(tmp_path / "fresh")
    assert out.read_bytes() == (tmp_path / "fresh/made.jsonl").read_bytes()


def test_a_damaged_file_leaves_nothing_to_go_on_from(source: Path, tmp_path: Path) -> None:
    (source / "z.jsonl.gz").write_bytes(gzip.compress(lines(row(1)).encode())[:-9])
    out = tmp_path / "out/made.jsonl"
    with pytest.raises(InputError, match=r"z\.jsonl\.gz: the gzip file is cut off"):
        import_data(str(source), out, "demonstrations")
    assert not names_in(out.parent)


def test_a_hub_that_ends_early_is_taken_up_at_the_same_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(partial, "EVERY", 0.0)
    commits = ["one", "one", "two"]
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name, timeout: SimpleNamespace(sha=commits.pop(0)))
    asked: list[str] = []
    fails = True

    def load_dataset(name: str, config: None, *, split: str, revision: str, streaming: bool) -> Iterator[Any]:
        asked.append(revision)
        for n in range(20):
            if n == 11 and fails:
                raise ConnectionError("gone")
            yield row(n, id=str(n))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    out = tmp_path / "made.jsonl"
    with pytest.raises(InputError, match=r"team/data: the hub gave no row after row 11: ConnectionError: gone"):
        import_data("team/data", out, "demonstrations")
    fails = False
    assert not out.exists()
    assert import_data("team/data", out, "demonstrations").resumed == 11
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [str(n) for n in range(20)]
    assert import_data("team/data", out, "demonstrations").resumed == 0
    assert asked == ["one", "one", "two"] and names_in(tmp_path) == ["made.jsonl"]
