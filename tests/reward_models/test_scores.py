"""Rewards that fail: which completion is named, what is asked again, what is skipped, how long is waited."""

import logging
import threading
import time
from typing import Any
from urllib.error import URLError

import pytest
import torch

from alignkit.config import InputError
from alignkit.records import Completion, Message, Scores
from reward_models.combined import combined
from reward_models.functions import from_function, scaled
from reward_models.scores import RewardFailure, Unscored, guarded, valued
from reward_models.waiting import TooLong, within


def said(*texts: str) -> list[Completion]:
    prompt = (Message(role="user", content="how many?"),)
    return [Completion(prompt=prompt, response=Message(role="assistant", content=text)) for text in texts]


class Fails:
    """The length of each response; raises where one is "bad", and notes how many it was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error or KeyError("x"), list[int]()

    def __call__(self, completions: list[Completion]) -> list[float]:
        self.calls.append(len(completions))
        if any(completion.response.content == "bad" for completion in completions):
            raise self.error
        return [float(len(completion.response.content)) for completion in completions]


def test_what_raises_is_found_and_named() -> None:
    fails = Fails()
    with pytest.raises(
        RewardFailure, match=r"completion 1 is missing: KeyError: 'x' \(.*test_scores.py, line \d+\)"
    ) as e:
        guarded(fails, "mine")(said("a", "bad", "ccc"))
    assert "'bad' in answer to 'how many?'" in str(e.value) and isinstance(e.value, InputError)
    assert isinstance(e.value.__cause__, KeyError) and fails.calls == [3, 1, 1, 1]


def test_what_raises_is_skipped_alone_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scores = guarded(Fails(), "mine", skip=True)(said("a", "bad", "ccc", "bad"))
    assert scores.total == (1.0, None, 3.0, None)
    assert "2 of 4 completions are skipped; reward mine: the score of completion 1 is missing" in caplog.text
    sized = Fails()
    assert guarded(sized, "mine", skip=True, size=2)(said("a", "b", "bad", "dd", "e")).total == (1, 1, None, 2, 1)
    assert sized.calls == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("error", [ConnectionError("down"), TooLong("late")])
def test_without_a_connection_nothing_is_asked_again(error: Exception) -> None:
    fails = Fails(error)
    assert guarded(fails, "mine", skip=True)(said("a", "bad")).total == (None, None)
    assert fails.calls == [2]
    with pytest.raises(RewardFailure, match=f"completion 0 is missing: {error}"):
        guarded(fails, "mine")(said("a", "bad"))


@pytest.mark.parametrize("error", [TimeoutError("the program took long"), OSError("disk"), SystemExit(3)])
def test_what_one_completion_brings_about_costs_no_other_its_score(error: Any) -> None:
    assert guarded(Fails(error), "mine", skip=True)(said("a", "bad", "ccc")).total == (1.0, None, 3.0)


def test_a_server_that_is_not_there_is_not_asked_for_each() -> None:
    calls: list[int] = []

    def gone(completions: list[Completion]) -> list[float]:
        calls.append(len(completions))
        raise URLError("refused")

    assert guarded(gone, "mine", skip=True)(said(*"abcdef")).total == (None,) * 6
    assert calls == [6, 1, 1]


def test_a_call_that_fails_only_together_with_one_without_a_score() -> None:
    def score(completions: list[Completion]) -> list[float | None]:
        if len(completions) > 1:
            raise TypeError("cannot add None")
        return [None if completions[0].response.content == "bad" else 1.0]

    assert guarded(score, "mine", skip=True)(said("a", "bad", "b")).total == (1.0, None, 1.0)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda c: 1 / 0, r"every score is missing: ZeroDivisionError: .*test_scores.py"),
        (lambda c: Scores(total=(1.0,)), "returned 1 scores for 2 completions"),
        (lambda c: Scores(total=(1.0, 2.0), parts={"p": (1.0,)}), "every score is missing: ValidationError"),
        (lambda c: Scores(total=(1.0, float("nan"))), "completion 1 is nan"),
        (lambda c: Scores(total=(0.0, 0.0), steps=((), ((0, float("nan")),))), "gives its token 0 the reward nan"),
        (lambda c: Scores(total=(0.0, 0.0), steps=(((2, 1.0),), ())), "completion 0 has 2 tokens, .* its token 2"),
        (lambda c: Scores(total=(0.0, 0.0), steps=(((-1, 1.0),), ())), "its token -1 the reward 1.0: 'a'"),
    ],
)
def test_whatever_a_reward_does_wrong_is_its_failure(given: Any, why: str) -> None:
    asked = [one.model_copy(update={"ids": (1, 2)}) for one in said("a", "b")]
    with pytest.raises(RewardFailure, match=f"reward mine: .*{why}"):
        valued(asked, given, "mine")


def test_the_whole_reward_counts_what_stands_inside() -> None:
    scores = Scores(total=(1.0, None), steps=(((0, 0.5), (1, 0.25)), ((0, 1.0),)))
    assert scores.whole == (1.75, None) and Scores(total=(2.0,)).whole == (2.0,)


def test_what_fails_together_only_has_failed() -> None:
    def together(completions: list[Completion]) -> list[float]:
        if len(completions) > 1:
            raise ValueError("too many")
        return [1.0]

    assert guarded(together, "mine", skip=True)(said("a", "b")).total == (None, None)
    assert guarded(together, "mine", skip=True)(said("a")).total == (1.0,)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None], (1.0, None)),
        ([float("nan"), True], (None, 1.0)),
        (["1", float("-inf")], (None, None)),
        ([torch.tensor(2.0), [1.0]], (2.0, None)),
        ([Unscored("missing: why not"), 0.5], (None, 0.5)),
        ([10**400, -(10**6000)], (None, None)),
        ([1e39, 3.4e38], (None, 3.4e38)),
        ([1.0], (None, None)),
        ([], (None, None)),
    ],
)
def test_values_that_are_no_scores(values: list[Any], expected: tuple[float | None, ...]) -> None:
    assert guarded(lambda completions: values, "mine", skip=True)(said("a", "b")).total == expected
    with pytest.raises(RewardFailure, match=r"reward mine: .* in answer to 'how many"):
        guarded(lambda completions: values, "mine")(said("a", "b"))


def test_a_call_that_takes_too_long_is_given_up() -> None:
    free = threading.Event()

    def slow(completions: list[str], **columns: Any) -> list[float]:
        free.wait(30)
        return [0.0] * len(completions)

    started = time.monotonic()
    with pytest.raises(RewardFailure, match=r"reward slow: .* missing: nothing came back within 0.1 s"):
        from_function(slow, timeout=0.1)(said("a"))
    assert from_function(slow, timeout=0.1, skip=True)(said("a", "b")).total == (None, None)
    assert time.monotonic() - started < 10
    free.set()
    assert from_function(slow, timeout=10.0)(said("a", "b")).total == (0.0, 0.0)


def test_what_a_timed_call_raises_comes_through() -> None:
    with pytest.raises(KeyError):
        within(5.0, lambda: {}["x"])
    assert within(None, lambda: 3) == within(5.0, lambda: 3) == 3


def test_what_has_no_score_has_none_in_a_sum() -> None:
    one, other = guarded(Fails(), "one", skip=True), guarded(lambda completions: [1.0] * len(completions), "other")
    for combine in ("sum", "mean", "min", "lower"):
        scores = combined({"one": scaled(one, 2.0, 3.0), "other": other}, combine)(said("a", "bad"))
        assert scores.total[1] is None and scores.total[0] is not None
        assert scores.parts == {"one": (2.0, None), "other": (1.0, 1.0)}
