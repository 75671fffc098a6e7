"""Guidelines: what files hold, what is refused, and that every one gets its turn."""

from collections import Counter
from pathlib import Path

import pytest
import tiny

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.guidelines import Guideline, drawn, read_guidelines, turns_between
from alignkit.records import Message


def test_a_line_is_a_guideline(tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_text("# ours\n\nBe brief.\n  Say {what} you do not know. \n")
    found = read_guidelines(path)
    assert len(found) == 2
    assert "Be brief." in found[0].critique and "Be brief." in found[0].revision
    assert "Say {what} you do not know." in found[1].critique
    assert found[0].critique != found[0].revision


def test_yaml_may_bring_its_own_requests(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("- Be brief.\n- critique: What is rude in it?\n  revision: Say it politely.\n")
    brief, polite = read_guidelines(path)
    assert "Be brief." in brief.revision
    assert polite == Guideline("What is rude in it?", "Say it politely.")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "# nothing\n\n", "holds no guideline"),
        ("a.yaml", "", "must hold a list"),
        ("a.yaml", "rule: be brief\n", "must hold a list"),
        ("a.yaml", "- fine\n- critique: what?\n", r"a\.yaml:2: an item is a text, or the two texts"),
        ("a.yaml", "- critique: what?\n  revision: ''\n", r"a\.yaml:1: an item is a text"),
        ("a.yaml", "- 3\n", r"a\.yaml:1: an item is a text"),
        ("a.yaml", "- [\n", "not valid YAML"),
        ("a.json", "[]", r"must end in \.txt"),
    ],
)
def test_what_is_no_list_of_guidelines_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_guidelines(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"guidelines: .*absent\.txt: cannot be read"):
        read_guidelines(tmp_path / "absent.txt")


def test_rounds_use_every_guideline_before_one_comes_back() -> None:
    three = [Guideline(name, name) for name in "abc"]
    for prompt in range(20):
        names = [one.critique for one in drawn(three, 0, prompt, 7)]
        assert sorted(names[:3]) == list("abc") and names[3:6] == names[:3] and names[6] == names[0]
    first = Counter(drawn(three, 0, prompt, 1)[0].critique for prompt in range(600))
    assert all(160 < count < 240 for count in first.values())  # 200 ± 3.5 deviations of 11.5
    assert drawn(three, 0, 5, 2) == drawn(three, 0, 5, 7)[:2]
    assert [drawn(three, 0, n, 1) for n in range(20)] != [drawn(three, 1, n, 1) for n in range(20)]


def test_the_room_that_a_round_takes() -> None:
    """In plain text a letter is a token: the longer requests, and two turns of ten tokens that may end in one more."""
    format = ChatFormat.load(tiny.tokenizer(), "none", tiny.END)
    short, long = Guideline("why", "so"), Guideline("but why", "so then")
    turns = [("user", "p"), ("assistant", "a" * 10), ("user", long.critique), ("assistant", "b" * 10)]
    said = [Message(role=role, content=text) for role, text in [*turns, ("user", long.revision)]]
    exact = len(format.prompt(said)) - len(format.prompt(said[:1]))
    assert exact <= turns_between(format, [short, long], 10) <= exact + 4
