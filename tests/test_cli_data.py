"""`alignkit data`, as a user meets it: what it prints, and the codes it ends with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.cli import main

GOOD, BAD = '{"prompt": "q", "completion": "a", "id": "1"}\n', '{"prompt": "q"}\n'


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """(exit code, output, errors) of the command inside this process, in a folder with data."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a.jsonl").write_text(GOOD + BAD + BAD)
    Path("in/b.jsonl").write_text(GOOD)
    Path("in/notes.pdf").touch()

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(("data", *words))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_an_import_shows_what_became_of_every_row(command: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = command("import", "in", "made.jsonl", "--as", "demonstrations")
    assert (code, errors) == (0, "")
    lines = [line.split() for line in output.splitlines()]
    assert lines[:4] == [
        ["file", "rows", "imported", "rejected", "records", "form"],
        ["in/a.jsonl", "3", "1", "2", "1", "trl"],
        ["in/b.jsonl", "1", "1", "0", "1", "trl"],
        ["total", "4", "2", "2", "2", "trl"],
    ]
    assert "1 ids stood in an earlier file too" in output
    assert ["2", "field", "`completion`", "is", "missing"] in lines
    assert "Each of them, with its line: made.rejects.jsonl" in output
    assert "Not read: in/notes.pdf" in output
    assert output.endswith("2 records: made.jsonl\n")
    assert [json.loads(line)["id"] for line in Path("made.jsonl").read_text().splitlines()] == ["1", "b.jsonl/1"]


def test_json_for_programs(command: Callable[..., tuple[int, str, str]]) -> None:
    said = json.loads(command("import", "in", "made.jsonl", "--as", "demonstrations", "--json")[1])
    assert (said["out"], said["rejects"], said["ignored"]) == ("made.jsonl", "made.rejects.jsonl", ["in/notes.pdf"])
    counts = [(one["file"], one["rows"], one["imported"], one["rejected"], one["records"]) for one in said["files"]]
    assert counts == [("in/a.jsonl", 3, 1, 2, 1), ("in/b.jsonl", 1, 1, 0, 1)]
    assert said["total"]["reasons"] == {"field `completion` is missing": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("in", "made.jsonl", "--as", "demonstrations", "--strict"), "error: in/a.jsonl:2: field `completion`"),
        (("in", "made.jsonl", "--as", "comparisons"), "error: in: none of its 4 rows can be imported as comparisons"),
        (("in", "made.jsonl", "--as", "demos"), "'demos': give one of demonstrations, comparisons"),
        (("in", "made.jsonl", "--as", "prompts", "--format", "trll"), "error: unknown format 'trll'; known: auto, "),
        (("in", "in/made.jsonl", "--as", "prompts"), "error: in/made.jsonl: it or made.rejects.jsonl would lie in"),
        (("in", "made.jsonl"), "Missing option '--as'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_error_and_exit_code_2(
    command: Callable[..., tuple[int, str, str]], words: tuple[str, ...], message: str
) -> None:
    code, _, errors = command("import", *words)
    assert code == 2 and message in errors
    assert not Path("made.jsonl").exists() and not Path("made.rejects.jsonl").exists()


def test_where_it_cannot_write_it_fails_with_code_1(command: Callable[..., tuple[int, str, str]]) -> None:
    code, _, errors = command("import", "in/a.jsonl", "in/b.jsonl/made.jsonl", "--as", "demonstrations")
    assert code == 1 and "error: in/b.jsonl/made.jsonl: cannot be written: " in errors


def test_an_import_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    script = """if True:
        import sys
        from alignkit.cli import main
        try:
            main(["data", "import", "a.jsonl", "made.jsonl", "--as", "demonstrations"])
        finally:
            print([name for name in ("torch", "transformers", "datasets", "pyarrow") if name in sys.modules])
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")
