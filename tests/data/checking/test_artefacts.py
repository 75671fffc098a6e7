"""Looks of a response: recognised one by one, and as predictors of labels that are planted or random."""

from random import Random

import pytest
from records import found, pair, verdict

from alignkit.data.checking.artefacts import Artefacts
from alignkit.data.checking.features import STYLES, beginnings, styles


def looks(text: str) -> set[str]:
    return {name for bit, name in enumerate(STYLES) if styles(text) >> bit & 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain words.", set()),
        ("- one\n- two.", {"list"}),
        ("Steps:\n1. go\n2. stop.", {"list"}),
        ("**Bold** words.", {"markdown"}),
        ("# Title\nText.", {"markdown"}),
        ("```python\nx\n```", {"markdown", "code"}),
        ("def f(x):\n    return x", {"code", "no end mark"}),
        ("I'm sorry, but I can't help with that.", {"refusal", "apology"}),
        ("We apologise.", {"apology"}),
        ("Sure!", {"exclamation mark"}),
        ("What do you mean?", {"question at the end"}),
        ("and then", {"no end mark"}),
        ('He said "no."', set()),
        ("", {"no end mark"}),
    ],
)
def test_styles(text: str, expected: set[str]) -> None:
    assert looks(text) == expected


def test_beginnings_take_punctuation_as_words() -> None:
    assert beginnings("  I’m SORRY, no") == ("i’m", "i’m sorry ,")
    assert beginnings("") == ("", "")


def test_a_planted_look_is_found_and_chance_is_not() -> None:
    """The better response begins with "Sure" in 80 of 100 pairs, else the worse one; nothing else differs."""
    records = [
        pair(f"question {n}", *(("Sure, so.", "No, so.") if n % 5 else ("No, so.", "Sure, so."))) for n in range(200)
    ]
    one = found(Artefacts(), *records)["artefacts"]
    first = one.numbers["first word"]
    assert (first["accuracy"], first["decided"], first["right"]) == (0.8, 1.0, 0.8)
    assert set(first["values"]) == {("sure", 160, 40), ("no", 40, 160)}
    assert one.numbers["list"]["accuracy"] == 0.5
    assert one.severity == "warning"
    assert one.details[0].startswith("first word: 80.0 %")


def test_a_rare_look_tells_few_pairs_but_those_well() -> None:
    plain = [pair(f"question {n}", "so.", "so.") for n in range(180)]
    told = [pair(f"more {n}", "so", "so.") for n in range(20)]
    numbers = found(Artefacts(), *plain, *told)["artefacts"].numbers["no end mark"]
    assert (numbers["decided"], numbers["right"], numbers["accuracy"]) == (0.1, 1.0, 0.55)


def test_random_labels_are_not_told() -> None:
    rng = Random(1)
    words = ["so", "and", "no", "yes", "well"]
    records = [pair(f"q{n}", *(f"{rng.choice(words)} {rng.choice(words)}." for _ in range(2))) for n in range(400)]
    assert found(Artefacts(), *records)["artefacts"].severity == "fine"


def test_feedback_is_told_by_the_mean_of_both_shares() -> None:
    """Of 100 good ones 90 end in a full stop, of 300 bad ones 60: right in 90 % and in 80 %."""
    good = [verdict(f"g{n}", "so." if n < 90 else "so", True) for n in range(100)]
    bad = [verdict(f"b{n}", "so." if n < 60 else "so", False) for n in range(300)]
    numbers = found(Artefacts(), *good, *bad)["artefacts"].numbers["no end mark"]
    assert numbers["accuracy"] == pytest.approx(0.85)
    assert 0.75 < numbers["low"] < 0.85 < numbers["high"] < 0.95


def test_few_pairs_say_nothing() -> None:
    assert found(Artefacts(), pair("q", "a", "b"))["artefacts"].severity == "fine"


def test_one_prompt_is_no_all_clear() -> None:
    one = found(Artefacts(), *[pair("q", f"so {n}!", f"so {n}.") for n in range(400)])["artefacts"]
    assert (one.severity, one.numbers) == ("note", {})
    assert one.measured == "too few prompts to look for artefacts: one half of them has 0 pairs"
