"""Which answers become data, against selections made by hand."""

import math
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.options.sample import SampleConfig
from alignkit.records import Comparison, Demonstration, Feedback, Message, Prompt
from alignkit.selection import Candidate, best_and_worst, best_of, best_of_n_kl_bound, ranks_of, select

PROMPT = Prompt(
    messages=(
        Message(role="user", content="hi"),
        Message(role="assistant", content="hello"),
        Message(role="user", content="what is it?"),
    ),
    id="p7",
    columns={"answer": "42", "topic": "numbers"},
)


def config(write: str, **changes: Any) -> SampleConfig:
    given = {"model": {"path": "m"}, "data": {"path": "d"}, "reward": {"kind": "world"}, "samples": 6, "write": write}
    return build(SampleConfig, given | changes, "")


def answers(*said: tuple[str, float], cut: tuple[int, ...] = ()) -> list[Candidate]:
    return [
        Candidate((Message(role="assistant", content=text, finished=n not in cut),), score)
        for n, (text, score) in enumerate(said)
    ]


FIVE = answers(("b", 1.0), ("e", 3.0), ("b", 1.0), ("a", 3.0), ("d", -2.0), ("c", 1.0))


def texts(record: Comparison) -> list[str]:
    return [response[-1].content for response in record.responses]


def test_the_best_keep_the_order_of_equal_ones() -> None:
    scores = [1.0, 3.0, 2.0, 3.0]
    assert best_of(scores) == [1]
    assert best_of(scores, 3) == [1, 3, 2]
    assert best_of(scores, 4, minimum=2.0) == [1, 3, 2]
    assert best_of(scores, minimum=3.5) == []
    assert ranks_of(scores) == [3, 1, 2, 1]
    assert best_and_worst(scores) == (1, 0)
    assert best_and_worst([2.0, 2.0]) is None


def test_the_bound_by_hand() -> None:
    assert best_of_n_kl_bound(1) == 0
    assert best_of_n_kl_bound(4) == pytest.approx(1.386294 - 0.75, abs=1e-6)


def test_best_writes_the_answer_as_a_demonstration_whose_context_is_not_trained() -> None:
    found = select(PROMPT, FIVE, config("best"))
    (record,) = found.records
    assert isinstance(record, Demonstration)
    assert [(turn.content, turn.weight) for turn in record.messages] == [
        ("hi", 1.0),
        ("hello", 0.0),
        ("what is it?", 1.0),
        ("e", 1.0),
    ]
    assert (record.id, record.columns) == ("p7", {"answer": "42", "topic": "numbers", "sampled": {"score": 3.0}})
    assert found.dropped is None and [one.score for one in found.used] == [3.0]


def test_the_top_answers_are_different_ones_with_ids_of_their_own() -> None:
    found = select(PROMPT, FIVE, config("best", top=4))
    records = [record for record in found.records if isinstance(record, Demonstration)]
    assert [record.messages[-1].content for record in records] == ["e", "a", "b", "c"]
    assert [record.id for record in records] == ["p7", "p7/2", "p7/3", "p7/4"]
    kept = select(PROMPT, FIVE, config("best", top=4, minimum=2)).used
    assert [one.response[-1].content for one in kept] == ["e", "a"]


def test_a_ranking_holds_every_different_answer_by_score_with_ties() -> None:
    (record,) = select(PROMPT, FIVE, config("ranking")).records
    assert isinstance(record, Comparison)
    assert texts(record) == ["e", "a", "b", "c", "d"]
    assert record.ranks == (1, 1, 2, 2, 3)
    assert record.margins == (3.0, 3.0, 1.0, 1.0, -2.0)
    assert (record.id, record.columns) == ("p7", PROMPT.columns)


def test_a_pair_is_the_best_against_the_worst() -> None:
    (record,) = select(PROMPT, FIVE, config("pair")).records
    assert isinstance(record, Comparison)
    assert (texts(record), record.ranks, record.margins) == (["e", "d"], (1, 2), (3.0, -2.0))


def test_feedback_is_good_from_the_minimum_on() -> None:
    records = select(PROMPT, FIVE, config("feedback", minimum=1)).records
    verdicts = [(one.response[0].content, one.label) for one in records if isinstance(one, Feedback)]
    assert verdicts == [("b", True), ("e", True), ("a", True), ("d", False), ("c", True)]
    assert len({dict(one)["id"] for one in records}) == 5


def test_equal_answers_of_a_noisy_reward_get_its_mean() -> None:
    noisy = answers(("a", 1.0), ("b", 1.5), ("a", 4.0))
    (record,) = select(PROMPT, noisy, config("pair")).records
    assert isinstance(record, Comparison)
    assert (texts(record), record.margins) == (["a", "b"], (2.5, 1.5))


def test_parts_of_the_score_go_along() -> None:
    two = [
        Candidate((Message(role="assistant", content=text),), score, parts={"kind": score / 2})
        for text, score in (("a", 1.0), ("b", 2.0))
    ]
    (best,) = select(PROMPT, two, config("best")).records
    assert dict(best)["columns"]["sampled"] == {"score": 2.0, "parts": {"kind": 1.0}}
    (pair,) = select(PROMPT, two, config("pair")).records
    assert dict(pair)["columns"]["sampled"] == {"parts": {"kind": [1.0, 0.5]}}


@pytest.mark.parametrize(
    ("write", "given", "reason"),
    [
        ("best", answers(("a", 1.0), ("b", 2.0), cut=(0, 1)), "unfinished"),
        ("best", answers(("", 1.0), (" ", 2.0)), "empty"),
        ("pair", answers(("a", 1.0), ("b", 2.0), cut=(1,)), "one_answer"),
        ("pair", answers(("a", 1.0), ("a", 1.0)), "one_answer"),
        ("pair", answers(("a", 1.0), ("b", 1.0)), "tied"),
        ("ranking", answers(("a", 1.0), ("b", 1.0)), "tied"),
    ],
)
def test_what_says_nothing_is_dropped_with_its_reason(write: str, given: list[Candidate], reason: str) -> None:
    found = select(PROMPT, given, config(write))
    assert (found.records, found.used, found.dropped) == ((), (), reason)


def test_below_the_minimum_nothing_is_left() -> None:
    assert select(PROMPT, FIVE, config("best", minimum=3.5)).dropped == "below_minimum"


def test_cut_answers_can_be_kept() -> None:
    given = answers(("a", 1.0), ("b", 2.0), cut=(1,))
    assert select(PROMPT, given, config("best")).used[0].response[-1].content == "a"
    (kept,) = select(PROMPT, given, config("best", unfinished="keep")).records
    assert isinstance(kept, Demonstration)
    assert (kept.messages[-1].content, kept.messages[-1].finished) == ("b", False)
    twice = answers(("a", 1.0), ("b", 2.0), ("b", 4.0), cut=(1,))
    (pair,) = select(PROMPT, twice, config("pair", unfinished="keep")).records
    assert isinstance(pair, Comparison)
    assert (texts(pair), pair.margins) == (["b", "a"], (3.0, 1.0))  # one answer, however often, wherever it was cut


@pytest.mark.parametrize(
    ("write", "changes", "message"),
    [
        ("pair", {"top": 2}, "top has no meaning with write: pair"),
        ("ranking", {"minimum": 1}, "minimum has no meaning with write: ranking"),
        ("feedback", {}, "write: feedback needs minimum"),
        ("pair", {"samples": 1}, "write: pair compares the answers to a prompt: give samples: 2 or more"),
        ("best", {"top": 7}, "top 7 exceeds samples 6"),
        ("best", {"temperature": 0}, "temperature: 0 is greedy, and all 6 samples would be equal"),
        ("best", {"min_new_tokens": 65}, "min_new_tokens 65 exceed max_new_tokens 64"),
        ("best", {"model": {"path": "m", "lora": {}}}, "model.lora is for stages that train"),
        ("best", {"data": {"path": "d", "over_long": "truncate_answer"}}, "is not offered for prompts"),
    ],
)
def test_options_that_would_be_ignored_are_refused(write: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(write, **changes)


def test_nothing_is_held_out_of_the_prompts() -> None:
    assert config("best").data.validation == 0
    assert math.isclose(best_of_n_kl_bound(2), math.log(2) - 0.5)
