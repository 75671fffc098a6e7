"""Refusals by their opening: sentences of our own, either way."""

import pytest

from alignkit.config import InputError
from alignkit.records import Completion, Message
from reward_models.refusal import PHRASES, refusal, refuses


def said(text: str, **columns: object) -> Completion:
    prompt = (Message(role="user", content="how?"),)
    return Completion(prompt=prompt, response=Message(role="assistant", content=text), columns=columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("Sorry, I won't. Ask someone else.", True),
        ("I CANNOT\nassist you with picking locks.", True),
        ("This is something that I must decline.", True),
        ("I'm unable to provide that.", True),
        ("Of course! First, heat the oven.", False),
        ("I can help with that.", False),
        ("I can't wait to tell you about it!", False),
        ("He said that hi can't help", False),
        ("Here is how. " + "Then stir it well. " * 20 + "I can't help with more.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_opening(text: str, expected: bool) -> None:
    assert refuses(text) is expected


def test_where_declining_is_wanted() -> None:
    no, yes = "I can't help with that.", "Sure: it is four."
    assert refusal()([said(no), said(yes)]).total == (1, 0)
    asked = [said(no, unsafe=True), said(yes, unsafe="yes"), said(no, unsafe="False"), said(yes, unsafe=0)]
    assert refusal("unsafe")(asked).total == (1, 0, 0, 1)
    with pytest.raises(InputError, match=r"reward\.wanted_column: 'unsafe' holds 'maybe', not true or false"):
        refusal("unsafe")([said(no, unsafe="maybe")])
    with pytest.raises(InputError, match=r"reward\.wanted_column: the prompt's data has no column 'unsafe'"):
        refusal("unsafe")([said(no, other=1)])


def test_every_phrase_is_found_and_stands_there_once() -> None:
    assert len(set(PHRASES)) == len(PHRASES)
    assert all(refuses(phrase.capitalize() + ".") and phrase == phrase.lower() for phrase in PHRASES)
