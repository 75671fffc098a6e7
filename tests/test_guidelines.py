"""Guidelines: what files hold, what is refused, and that every one gets its turn."""

from collections import Counter
from pathlib import Path

import pytest
import tiny

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.guidelines import (
    Guideline,
    after_examples,
    drawn,
    read_examples,
    read_guidelines,
    read_judge,
    turns_between,
)
from alignkit.records import Message
from reward_models.judge import Example


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


WORKED = """\
guidelines:
- Be brief.
- critique: What is rude in it?
  revision: Say it politely.
examples:
- prompt: why?
  answer: since it is so and so
  guideline: Be brief.
  critique: It is long.
  revision: since so
- {prompt: "who?", answer: you, guideline: {critique: "Rude?", revision: Polite!}, critique: It is., revision: You do.}
"""


def test_worked_examples_are_whole_conversations_under_their_own_guideline(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(WORKED)
    brief, polite = read_guidelines(path)
    assert polite == Guideline("What is rude in it?", "Say it politely.")
    first = ["why?", "since it is so and so", brief.critique, "It is long.", brief.revision, "since so"]
    second = ["who?", "you", "Rude?", "It is.", "Polite!", "You do."]
    examples = read_examples(path)
    assert [turn.content for turn in examples] == first + second
    assert [turn.role for turn in examples] == ["user", "assistant"] * 6
    system, asked = Message(role="system", content="s"), Message(role="user", content="u")
    assert after_examples(examples, (system, asked)) == (system, *examples, asked)
    assert after_examples(examples, (asked,)) == (*examples, asked)
    path.write_text("- Be brief.\n")
    (tmp_path / "rules.txt").write_text("Be brief.\n")
    assert read_examples(path) == read_examples(tmp_path / "rules.txt") == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("critique: It is long.", "critique: ''", r"guidelines: .*a\.yaml:9: `critique` of an example must be a text"),
        ("answer: since it is so and so", "answer: 3", r"a\.yaml:7: `answer` of an example must be a text, and is 3"),
        ("  critique: It is long.\n", "", r"a\.yaml:6: an example is {prompt, answer, guideline, critique, revision}"),
        ("guideline: Be brief.", "guideline: 1", r"a\.yaml:8: an item is a text, or the two texts"),
        ("examples:", "example:", r"a\.yaml: must hold a list, .* or two lists: {guidelines: …, examples: …}"),
        ("guidelines:", "rules:", r"a\.yaml: must hold a list"),
        ("- {prompt:", "- who?\n- {prompt:", r"a\.yaml:11: an example is {.*}, and this is .who\?"),
    ],
)
def test_examples_that_are_none_are_named_with_their_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(WORKED.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_guidelines(tmp_path / "a.yaml")
        read_examples(tmp_path / "a.yaml")


JUDGED = """\
guidelines: [Be brief., Be kind.]
examples:
- {prompt: "why?", first: so, second: since it is so, reasons: So is shorter., better: first}
"""
SCORED = JUDGED.replace("first: so, second: since it is so,", "answer: so,").replace("better: first", "score: 9")


def test_a_judge_goes_by_a_text_or_by_texts_with_examples(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Be brief.\n\nguidelines: none\n")
    (tmp_path / "a.yaml").write_text("- Be brief.\n")
    (tmp_path / "b.yaml").write_text("tone: kind\n")
    for name in ("a.txt", "a.yaml", "b.yaml"):
        assert read_judge(tmp_path / name, "judge.guidelines", None) == ((tmp_path / name).read_text(), ())
    asked = (Message(role="user", content="why?"),)
    (tmp_path / "pairs.yaml").write_text(JUDGED)
    text, (example,) = read_judge(tmp_path / "pairs.yaml", "judge.guidelines", None)
    assert text == "Be brief.\nBe kind."
    assert example == Example(asked, ("so", "since it is so"), "So is shorter.", "first")
    (tmp_path / "scores.yaml").write_text(SCORED)
    _, (example,) = read_judge(tmp_path / "scores.yaml", "reward.guidelines", (1, 10))
    assert example == Example(asked, ("so",), "So is shorter.", "9")


@pytest.mark.parametrize(
    ("text", "points", "message"),
    [
        (SCORED, None, r"where: .*a\.yaml:3: an example is {prompt, first, second, reasons, better}, and this is"),
        (JUDGED, (1, 10), r"where: .*a\.yaml:3: an example is {prompt, answer, reasons, score}, and this is"),
        (SCORED, (1, 5), r"where: .*a\.yaml:3: `score` must be a number from 1 to 5, and is '9'"),
        (SCORED.replace("9", "true"), (1, 10), r"a\.yaml:3: `score` must be a number from 1 to 10, and is 'True'"),
        (JUDGED.replace("better: first", "better: both"), None, "`better` must be first or second or neither, and is"),
        (
            JUDGED.replace("first: so,", "first: ' ',"),
            None,
            r"where: .*a\.yaml:3: `first` of an example must be a text",
        ),
        (JUDGED.replace("Be kind.", "{critique: c, revision: r}"), None, r"a\.yaml:1: a judge's guideline is a text"),
        ("guidelines: []\n", None, r"a\.yaml: holds no guideline; write a text a line under `guidelines:`"),
        ("examples: []\n", None, r"where: .*a\.yaml: must hold a list"),
        ("guidelines: [\n", None, "not valid YAML"),
    ],
)
def test_what_a_judge_cannot_go_by_is_refused(
    tmp_path: Path, text: str, points: tuple[int, int] | None, message: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_judge(tmp_path / "a.yaml", "where", points)


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
    shown = said[:2] * 3
    longer = len(format.prompt([*shown, *said])) - len(format.prompt(said))
    assert longer > 3 * 11
    assert turns_between(format, [short, long], 10, tuple(shown)) == turns_between(format, [short, long], 10) + longer
