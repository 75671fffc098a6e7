"""Answers that say nothing, counted by hand."""

from records import demonstration, document, found, pair, ranking, verdict

from alignkit.data.checking.answers import Answers


def test_empty_single_and_identical_answers_by_hand() -> None:
    told = found(
        Answers("comparisons"),
        pair("q", "", "two words"),
        pair("q", "yes", "no"),
        pair("q", "the same", " the same\n"),
        ranking("q", ["a b", "c d", "a b"], [1, 2, 3]),
        pair("q", "a b", "c d"),
    )
    counts = {name: (one.numbers["count"], one.numbers["of"], one.severity) for name, one in told.items()}
    assert counts == {
        "empty_answers": (1, 11, "warning"),
        "one_word_answers": (2, 11, "note"),
        "identical_responses": (2, 5, "warning"),
    }
    assert [sample.place for sample in told["identical_responses"].samples] == ["f:3", "f:4"]
    assert told["empty_answers"].measured == "1 of 11 answers (9.1 %) are empty"


def test_many_single_words_are_a_warning_and_a_long_one_is_none() -> None:
    told = found(Answers("demonstrations"), demonstration("q", "yes"), demonstration("q", "x" * 21))
    assert told["one_word_answers"].numbers["count"] == 1
    assert told["one_word_answers"].severity == "warning"
    assert "identical_responses" not in told


def test_the_cure_for_empty_answers_fits_the_kind() -> None:
    assert "select(.response |" in found(Answers("feedback"), verdict("q", "", True))["empty_answers"].mend
    assert ".responses[]" in found(Answers("comparisons"), pair("q", "", "b"))["empty_answers"].mend


def test_documents_have_no_answers() -> None:
    assert found(Answers("corpus"), document("text")) == {}
