"""A conversation never lies on both sides of a split, whose sizes are those asked for."""

from itertools import compress

import pytest

from alignkit.config import InputError
from alignkit.data import split
from alignkit.data.split import SplitDraws, beginning, cut_document, draw, held_out
from alignkit.records import Comparison, Demonstration, Document, Message, Prompt


def ask(text: str, *more: str, system: str | None = None) -> Prompt:
    turns = [Message(role="user" if i % 2 == 0 else "assistant", content=said) for i, said in enumerate((text, *more))]
    return Prompt(messages=(*([Message(role="system", content=system)] if system else []), *turns))


PROMPTS = [ask(f"question {i}") for i in range(2000)]


def hold_out(records: list[Prompt], share: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    out = held_out([SplitDraws(records, seed)], share)
    return [r for r, held in zip(records, out, strict=True) if not held], list(compress(records, out))


def test_one_beginning_stays_on_one_side() -> None:
    grown = [ask(f"Question  {i}", "a", "b", system="Be kind.") for i in range(2000)]
    for size in (0.1, 150):
        train, validation = hold_out(PROMPTS + grown, size, seed=0)
        assert {beginning(r) for r in train} & {beginning(r) for r in validation} == set()
        assert len(train) + len(validation) == 4000


def test_every_record_knows_its_beginning() -> None:
    user, answer = Message(role="user", content="Hi  THERE"), Message(role="assistant", content="a")
    system = Message(role="system", content="s")
    assert beginning(Demonstration(messages=(system, user, answer))) == "hi there"
    assert beginning(Comparison(prompt=(user,), responses=((answer,), (answer,)), ranks=(1, 2))) == "hi there"
    assert beginning(Document(text="A\nb")) == "a b"
    assert beginning(Prompt(messages=(system,))) == "s"


def test_a_share_is_met_within_its_binomial_error() -> None:
    # 2000 draws at 0.1: mean 200, deviation 13.4; four deviations.
    assert abs(len(hold_out(PROMPTS, 0.1, seed=0)[1]) - 200) < 54


def test_a_share_does_not_move_records_when_others_come() -> None:
    _, few = hold_out(PROMPTS[:1000], 0.1, seed=0)
    _, many = hold_out(PROMPTS, 0.1, seed=0)
    assert few == [record for record in many if int(record.messages[0].content.split()[1]) < 1000]


def test_a_number_is_met_exactly_where_no_two_begin_alike() -> None:
    train, validation = hold_out(PROMPTS, 137, seed=0)
    assert (len(train), len(validation)) == (1863, 137)


@pytest.mark.parametrize("share", [0.1, 0.5, 3, 137, 1999])
def test_draws_on_the_disk_hold_out_by_the_definition(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [draw(beginning(record), 5) for record in PROMPTS]
    last = max(n for n in numbers if n < share) if share < 1 else sorted(numbers)[int(share) - 1]
    for size in (7, 1000, 2000, 1 << 16):
        monkeypatch.setattr(split, "BLOCK", size)
        out = held_out([SplitDraws(PROMPTS[:900], 5), SplitDraws(PROMPTS[900:], 5)], share)
        assert out.tolist() == [number <= last for number in numbers]


def test_the_seed_decides_and_the_order_stays() -> None:
    one, same, other = (hold_out(PROMPTS, 100, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    order = [PROMPTS.index(record) for record in one[0][:200]]
    assert order == sorted(order)


def test_small_sets_keep_one_on_each_side() -> None:
    for share in (0.001, 0.999, 1):
        train, validation = hold_out(PROMPTS[:2], share, seed=0)
        assert (len(train), len(validation)) == (1, 1)
    assert hold_out(PROMPTS[:2], 0, seed=0) == (PROMPTS[:2], [])


def test_what_cannot_be_held_out_is_an_error() -> None:
    with pytest.raises(InputError, match="all 3 records begin with the same question"):
        hold_out([ask("x"), ask("X "), ask("x", "y", "z")], 0.5, seed=0)
    with pytest.raises(InputError, match="2000 records are to be held out of 2000"):
        hold_out(PROMPTS, 2000, seed=0)


def test_one_long_text_is_cut_at_the_end_of_a_line() -> None:
    document = Document(text="".join(f"line {i}\n" for i in range(1000)), source="book")
    head, tail = cut_document(document, 0.1)
    assert head.text + tail.text == document.text
    assert head.text.endswith("\n")
    assert len(tail.text) == pytest.approx(0.1 * len(document.text), rel=0.01)
    assert tail.source == "book"
    head, tail = cut_document(Document(text="x" * 100), 0.1)
    assert (len(head.text), len(tail.text)) == (90, 10)
