"""What two sets share, by hand."""

import numpy as np
from records import document, found, items, pair, prompt

from alignkit.data.checking.overlap import Against
from alignkit.data.checking.runs import runs_of, words_of

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_runs_depend_on_their_words_and_order_alone() -> None:
    words = words_of(f"Zero, {TEXT}! Fourteen.")
    runs = runs_of(words)
    assert len(runs) == 15 - 13 + 1
    assert runs[1] == runs_of(words_of(TEXT.upper()))[0]
    assert len(np.unique(runs)) == 3
    assert runs_of(words[1:14][::-1])[0] != runs[1]
    assert len(runs_of(words[:12])) == 0


def test_a_run_of_thirteen_words_is_an_overlap() -> None:
    test = Against("test", items(document(f"before {TEXT} after"), document("something else"), document(TEXT)))
    told = found(test, document(f"{TEXT.title()}, indeed"), document(TEXT.replace("seven", "7")), document("short"))
    assert told["overlap"].numbers == {"records": 1, "theirs": 2, "their_records": 3, "words": 13}
    assert [(one.place, one.texts) for one in told["overlap"].samples] == [("f:1", (TEXT,))]
    assert told["overlap"].severity == "problem"


def test_a_hundredth_of_a_test_set_may_overlap() -> None:
    rest = [document(f"another text {n}") for n in range(99)]
    assert found(Against("test", items(document(TEXT), *rest)), document(TEXT))["overlap"].severity == "warning"
    assert found(Against("test", items(document(TEXT), *rest[1:])), document(TEXT))["overlap"].severity == "problem"


def test_what_many_records_hold_is_a_common_phrase() -> None:
    many = [document(f"{TEXT} number{n}") for n in range(11)]
    assert found(Against("test", items(document(TEXT))), *many)["overlap"].severity == "fine"
    assert found(Against("test", items(document(TEXT))), *many[:10])["overlap"].numbers["records"] == 10
    assert found(Against("test", items(*many)), document(TEXT))["overlap"].severity == "fine"


def test_shared_prompts_on_both_sides() -> None:
    test = Against("test", items(prompt("What is  it?"), prompt("what is it?"), prompt("else")))
    told = found(test, pair("What is it?", "a", "b"), pair("new", "a", "b"))
    numbers = told["shared_prompts"].numbers
    assert (numbers["records"], numbers["theirs"], told["shared_prompts"].records) == (1, 2, (0,))


def test_judgments_that_contradict_the_other_set() -> None:
    test = Against("test", items(pair("q", "a", "b"), pair("p", "a", "b")))
    told = found(test, pair("q", "b", "a"), pair("p", "a", "b"), pair("r", "a", "b"))
    assert (told["contradictions_against"].numbers, told["contradictions_against"].records) == (
        {"count": 1, "of": 3},
        (0,),
    )
    assert "contradictions_against" not in found(Against("test", items(prompt("q"))), pair("q", "a", "b"))
