"""`alignkit data check`, as a user meets it: what it prints, the page, and the codes it ends with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.cli import main

Command = Callable[..., tuple[int, str, str]]
ROWS = [
    {"prompt": "why <b>?", "chosen": "so it is", "rejected": "who knows", "score_chosen": 1, "score_rejected": 1},
    {"prompt": "how?", "chosen": "like this", "rejected": "", "score_chosen": 2, "score_rejected": 1},
    {"prompt": "when?", "chosen": "x"},
]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """(exit code, output, errors) of the command inside this process, in a folder with data."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("good.jsonl").write_text(json.dumps({"prompt": "why?", "completion": "so it is"}) + "\n")

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(("data", "check", *words))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_worst_stands_first_with_rows_and_a_cure(command: Command) -> None:
    code, output, errors = command("a.jsonl")
    assert (code, errors) == (0, "")
    assert output.startswith("a.jsonl: 2 comparisons of 3 rows in 1 file\n")
    order = [output.index(name) for name in ("rejected_rows", "empty_answers", "tied_scores", "in order")]
    assert order == sorted(order)
    lines = [line.strip() for line in output.splitlines()]
    assert "1 of 3 rows (33.3 %) cannot be read" in lines
    assert lines[lines.index("a.jsonl:3") + 1] == "field `rejected` is missing; the row has prompt, chosen"
    assert lines[lines.index("a.jsonl:2") + 1 :][:2] == ["user: how?", "[1] like this"]
    assert any(line.startswith("→ alignkit data import a.jsonl OUT.jsonl --as comparisons") for line in lines)
    assert max(map(len, lines)) <= 100


def test_json_for_programs(command: Command) -> None:
    said = json.loads(command("a.jsonl", "--json")[1])
    assert (said["as_"], said["rows"], said["records"], said["rejected"]) == ("comparisons", 3, 2, 1)
    findings = {one["name"]: one for one in said["findings"]}
    assert findings["tied_scores"]["numbers"] == {"count": 1, "of": 2}
    assert findings["rejected_rows"]["samples"][0]["place"] == "a.jsonl:3"
    assert {one["part"]: one["count"] for one in said["lengths"]} == {"prompt": 2, "answer": 4, "whole": 2}


def test_strict_ends_with_2_unless_all_is_accepted(command: Command) -> None:
    code, output, errors = command("a.jsonl", "--strict")
    assert (code, errors) == (2, "error: --strict: rejected_rows, empty_answers, tied_scores\n")
    assert "rejected_rows" in output
    accepted = [word for name in ("rejected_rows", "empty_answers", "tied_scores") for word in ("--ignore", name)]
    assert command("a.jsonl", "--strict", *accepted)[0] == 0
    assert command("good.jsonl", "--strict")[0] == 0
    code, _, errors = command("good.jsonl", "--ignore", "tied_score")
    assert (code, "there is no such finding" in errors) == (2, True)
    assert command("missing.jsonl", "--ignore", "tied_score")[2] == errors  # told before anything is read
    assert command("good.jsonl", "--strict", "--ignore", "tied_scores")[0] == 0


def test_wrong_input_ends_with_2(command: Command) -> None:
    for alone in (("--max-length", "8"), ("--chat-template", "none"), ("--token-records", "8")):
        code, _, errors = command("good.jsonl", *alone)
        assert code == 2
        assert errors.startswith("error: --max-length, --chat-template and --token-records need --model")
    assert command("missing.jsonl")[0] == 2
    assert command("good.jsonl", "--as", "poems")[0] == 2


def test_the_page_needs_no_other_file(command: Command) -> None:
    code, output, _ = command("a.jsonl", "--html", "page.html")
    page = Path("page.html").read_text()
    assert (code, output.endswith("The same as a page, with charts: page.html\n")) == (0, True)
    assert page.count("<svg") == 4  # three parts' lengths, and what tells labels
    assert "user: why &lt;b&gt;?" in page
    assert "why <b>" not in page
    assert not [mark for mark in ("http://", "https://", "src=", "@import") if mark in page]
    assert page.count("url(") == page.count("url(#")
    assert page.index("cannot be read") < page.index("are empty")


def test_a_page_that_cannot_be_written(command: Command) -> None:
    Path("folder").mkdir()
    assert command("good.jsonl", "--html", "folder")[0] == 2
    Path("file").touch()
    code, _, errors = command("good.jsonl", "--html", "file/page.html")
    assert (code, errors.startswith("error: file/page.html: cannot be written")) == (1, True)
