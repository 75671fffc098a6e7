"""What stands more than once, counted by hand."""

from records import demonstration, document, found, pair, prompt, ranking, verdict

from alignkit.data.checking.repeats import Repeats, repeated


def test_repeats_and_the_first_of_them() -> None:
    assert repeated([5, 7, 5, 9, 7, 5]) == (3, (0, 2, 1, 4, 5))
    assert repeated([1, 2, 3]) == (0, ())


def test_records_are_compared_without_ids_and_prompts_without_case() -> None:
    told = found(
        Repeats(),
        demonstration("Why?", "because"),
        demonstration("why? ", "because"),  # another prompt to the letter
        demonstration("Why?", "because").model_copy(update={"id": "2"}),
        demonstration("How?", "so"),
    )
    assert (told["duplicates"].numbers, told["duplicates"].records) == ({"count": 1, "of": 4}, (0, 2))
    assert told["duplicate_prompts"].numbers == {"count": 2, "of": 4}
    assert told["duplicates"].severity == "warning"


def test_the_label_tells_records_apart() -> None:
    assert found(Repeats(), verdict("q", "a", True), verdict("q", "a", False))["duplicates"].severity == "fine"
    assert found(Repeats(), pair("q", "a", "b"), pair("q", "b", "a"))["duplicates"].severity == "fine"
    assert found(Repeats(), pair("q", "a", "b"), pair("q", "a", "b"))["duplicates"].numbers["count"] == 1


def test_tools_and_scores_tell_records_apart() -> None:
    one, tools = prompt("q"), ({"name": "look"},)
    numbers = found(Repeats(), one, one.model_copy(update={"tools": tools}))["duplicates"].numbers
    assert numbers["count"] == 0
    scored = [ranking("q", "ab", (1, 2), margins=(2.0, margin)) for margin in (1.0, 0.0, 1.0)]
    assert found(Repeats(), *scored)["duplicates"].records == (0, 2)


def test_prompts_and_documents_repeat_as_a_whole() -> None:
    assert found(Repeats(), prompt("a"), prompt("a")).keys() == {"duplicates"}
    assert found(Repeats(), document("a"), document("a"))["duplicates"].numbers == {"count": 1, "of": 2}
