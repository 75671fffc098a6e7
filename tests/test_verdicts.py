"""What a judge's verdicts on pairs make of a prompt's answers, against tables made by hand."""

from itertools import product
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.options.sample import SampleConfig
from alignkit.records import Comparison, Completion, Message, Prompt
from alignkit.verdicts import (
    Verdict,
    decided,
    judged,
    measure_judged,
    select_judged,
    summary_judged,
    widest,
    wins,
)

PROMPT = Prompt(messages=(Message(role="user", content="why?"),), id="p", columns={"topic": "x"})
JUDGE = {"guidelines": "rules.txt", "path": "judge"}


def config(write: str = "ranking", **changes: Any) -> SampleConfig:
    given = {"model": {"path": "m"}, "data": {"path": "d"}, "judge": JUDGE, "write": write}
    return build(SampleConfig, given | changes, "")


def row(texts: str, *verdicts: tuple[int, int, float | None], cut: str = "") -> dict[str, Any]:
    """Answers of one letter each; those in `cut` did not finish."""
    turns = [{"role": "assistant", "content": text, "finished": text not in cut} for text in texts]
    said = [{"response": [turn], "tokens": 2} for turn in turns]
    return {"answers": said, "verdicts": list(verdicts)}


def texts(record: Any) -> list[str]:
    assert isinstance(record, Comparison)
    return [response[0].content for response in record.responses]


def test_a_ranking_goes_by_wins_and_ties_equal_ones() -> None:
    """b beats all, a and c tie and beat d: b 3, a 1.5, c 1.5, d 0."""
    four = row("abcd", (0, 1, 0.0), (0, 2, 0.5), (0, 3, 1.0), (1, 2, 1.0), (1, 3, 1.0), (2, 3, 1.0))
    (record,) = select_judged(PROMPT, four, config()).records
    assert isinstance(record, Comparison)
    assert (texts(record), record.ranks, record.margins) == (["b", "a", "c", "d"], (1, 2, 2, 3), (3.0, 1.5, 1.5, 0.0))
    assert (record.id, record.columns, record.prompt) == ("p", {"topic": "x"}, PROMPT.messages)


def test_a_pair_is_one_that_the_judge_decided_itself() -> None:
    """a has most wins and d fewest, but d beat a; b, second, beat d: 2 wins apart from 1, as a from b and from c."""
    five: list[Verdict] = [
        (0, 1, 1.0), (0, 2, 1.0), (0, 3, 0.0), (0, 4, 1.0),
        (1, 2, 1.0), (1, 3, 1.0), (1, 4, 0.5),
        (2, 3, 1.0), (2, 4, 0.5), (3, 4, 0.5),
    ]  # fmt: skip
    won = wins(range(5), five)
    assert won == {0: 3.0, 1: 2.5, 2: 1.5, 3: 1.5, 4: 1.5}
    assert widest(won, five) == (0, 2)
    (record,) = select_judged(PROMPT, row("abcde", *five), config("pair")).records
    assert isinstance(record, Comparison)
    assert (texts(record), record.ranks, record.margins) == (["a", "c"], (1, 2), (3.0, 1.5))


def test_the_better_one_of_a_pair_always_has_more_wins() -> None:
    """Over all 729 outcomes of the six pairs of four answers."""
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for outcome in product((0.0, 0.5, 1.0), repeat=6):
        verdicts: list[Verdict] = [(i, j, one) for (i, j), one in zip(pairs, outcome, strict=True)]
        won = wins(range(4), verdicts)
        assert sum(won.values()) == 6
        if len(set(won.values())) > 1:
            better, worse = widest(won, verdicts)
            assert won[better] > won[worse]
            assert (better, worse, 1.0) in verdicts or (worse, better, 0.0) in verdicts


def test_no_label_rests_on_a_missing_verdict() -> None:
    """a has none against b and c: it goes, since it lacks two; then b and c are compared."""
    three = row("abc", (0, 1, None), (0, 2, None), (1, 2, 0.0))
    found = select_judged(PROMPT, three, config())
    assert texts(found.records[0]) == ["c", "b"]
    assert decided([(0, 1, None), (0, 2, 1.0), (1, 2, 0.5)]) == [0, 2]  # a and b lack one each: the last goes
    assert decided([(0, 1, None)]) == [0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (row("ab", (0, 1, None)), "no_verdict"),
        (row("ab", (0, 1, 0.5)), "tied"),
        (row("abc", (0, 1, 1.0), (1, 2, 1.0), (0, 2, 0.0)), "tied"),  # each beats one
        (row("aa"), "one_answer"),
        (row("ab", cut="b"), "one_answer"),
        (row("ab", cut="ab"), "unfinished"),
    ],
)
@pytest.mark.parametrize("write", ["pair", "ranking"])
def test_what_says_nothing_is_dropped_with_its_reason(given: dict[str, Any], reason: str, write: str) -> None:
    found = select_judged(PROMPT, given, config(write))
    assert (found.records, found.used, found.dropped) == ((), (), reason)


def test_different_finished_answers_are_compared_each_pair_once() -> None:
    def answer(text: str, finished: bool = True) -> Completion:
        said = Message(role="assistant", content=text, finished=finished)
        return Completion(prompt=PROMPT.messages, response=said, ids=(1,))

    asked: list[Any] = []

    def compare(pairs: Any) -> list[float | None]:
        asked.append(list(pairs))
        return [0.5] * len(pairs)

    drawn = [
        [answer("x"), answer("y"), answer("x"), answer("z", False)],
        [answer("x", False), answer("y"), answer("y")],
    ]
    rows = judged([PROMPT, PROMPT], drawn, compare, keep_unfinished=False)
    assert asked == [[(PROMPT.messages, "x", "y")]]
    assert [one["verdicts"] for one in rows] == [[(0, 1, 0.5)], []]
    kept = judged([PROMPT, PROMPT], drawn, compare, keep_unfinished=True)
    assert [(i, j) for i, j, _ in kept[0]["verdicts"]] == [(0, 1), (0, 3), (1, 3)]
    assert [(i, j) for i, j, _ in kept[1]["verdicts"]] == [(0, 1)]


def test_what_was_asked_and_what_became_of_it_adds_up() -> None:
    rows = [
        row("ab", (0, 1, 1.0)),
        row("ab", (0, 1, None)),
        row("ab", (0, 1, 0.5)),
        row("abc", (0, 1, None), (0, 2, 1.0), (1, 2, 0.0)),
        row("ab", cut="ab"),
    ]
    chosen = [select_judged(PROMPT, one, config()) for one in rows]
    found = summary_judged(rows, chosen, skipped=2)
    assert found == {
        "prompts": 7,
        "kept": 2,
        "dropped/no_verdict": 1,
        "dropped/over_long": 2,
        "dropped/tied": 1,
        "dropped/unfinished": 1,
        "records": 2,
        "answers": 11,
        "answers/unfinished": 2,
        "answers/no_verdict": 2,
        "pairs": 6,
        "pairs/won": 3,
        "pairs/tied": 1,
        "pairs/no_verdict": 2,
    }
    measured = measure_judged(rows[:3])
    assert measured == {"won": 1 / 3, "tied": 1 / 3, "no_verdict": 1 / 3, "tokens": 2.0, "unfinished": 0.0}
    assert measure_judged([row("aa")]) == {"tokens": 2.0, "unfinished": 0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"write": "best"}, "write: best needs reward: a judge of pairs gives no scores; use pair or ranking"),
        ({"write": "feedback", "minimum": 1}, "write: feedback needs reward"),
        ({"reward": {"kind": "world"}}, "give exactly one of `reward` .* and `judge`"),
        ({"judge": None}, "give exactly one of `reward` .* and `judge`"),
        ({"judge": {"path": "judge"}}, "judge needs judge.guidelines, a text file"),
        ({"judge": JUDGE | {"url": "http://a/v1"}}, "judge needs either judge.path or judge.url and judge.model"),
        ({"judge": JUDGE | {"retries": 1}}, "retries has no meaning with a local judge; remove it"),
        ({"judge": {"guidelines": "r.txt", "model": "m", "url": "ftp://a"}}, "judge.url: 'ftp://a' is no http://"),
        ({"judge": JUDGE | {"points": [1, 5]}}, "judge.points: unknown key"),
        ({"samples": 1}, "write: ranking compares the answers to a prompt: give samples: 2 or more"),
        ({"minimum": 1}, "minimum has no meaning with write: ranking"),
    ],
)
def test_options_that_would_be_ignored_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**({"write": "ranking"} | changes))
