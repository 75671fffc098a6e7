"""Running normalisation against mean and deviation of everything seen, computed anew."""

from statistics import fmean, pstdev

import pytest
import torch

from alignkit.config import InputError
from alignkit.records import Completion, Message, Scores
from reward_models.combined import combined
from reward_models.running import Running, moments, normalised
from reward_models.scores import RewardFailure

BATCHES = [[3.0, 5.0, 4.0], [100.0, -2.0], [7.0]]


def asked(n: int) -> list[Completion]:
    prompt = (Message(role="user", content="?"),)
    return [Completion(prompt=prompt, response=Message(role="assistant", content="x"))] * n


def test_each_batch_is_measured_by_all_so_far() -> None:
    running, seen = Running(), list[float]()
    for batch in BATCHES:
        seen += batch
        scores = normalised(lambda _, b=batch: Scores(total=tuple(b)), running, "reward/a")(asked(len(batch)))
        mean, deviation = fmean(seen), pstdev(seen)
        assert scores.total == pytest.approx([(x - mean) / deviation for x in batch])
        assert scores.parts == {"raw": tuple(batch)}
    assert moments(running.memory, "reward/a") == pytest.approx((fmean(seen), pstdev(seen)))
    # a resumed run's memory, through JSON's numbers
    again = Running({key: float(repr(value)) for key, value in running.memory.items()})
    for one in (running, again):
        one.last = normalised(lambda _: Scores(total=(1.0, None, 2.0)), one, "reward/a")(asked(3)).total  # type: ignore[attr-defined]
    assert running.last == again.last and running.last[1] is None  # type: ignore[attr-defined]


def test_equal_scores_stay_equal_and_nothing_is_learned_on_the_side() -> None:
    running = Running()
    same = normalised(lambda c: Scores(total=(0.3,) * len(c)), running, "a")
    assert same(asked(4)).total == pytest.approx((0.0,) * 4)
    known = dict(running.memory)
    with running.unchanged():
        other = normalised(lambda c: Scores(total=(5.0,) * len(c)), running, "a")
        assert other(asked(2)).total == pytest.approx((4.7, 4.7))
    assert running.memory == known and running.learning
    assert normalised(lambda c: Scores(total=(5.0,)), Running(learning=False), "a")(asked(1)).total == (5.0,)
    with pytest.raises(InputError, match="no meaning for rewards inside a response"):
        normalised(lambda c: Scores(total=(0.0,), steps=((),)), running, "a")(asked(1))


def test_all_ranks_are_one() -> None:
    """Two ranks that add their sums up know what one rank with both batches knows."""
    one, alone = Running(), Running()
    normalised(lambda _: Scores(total=(1.0, 2.0, 10.0)), one, "a")(asked(3))
    normalised(lambda _: Scores(total=(1.0, 2.0)), alone, "a")(asked(2))
    theirs = torch.tensor([alone.memory[f"{what} of a"] for what in ("number", "sum", "squares")])
    other = Running(reduce=lambda sums: sums + theirs)
    normalised(lambda _: Scores(total=(10.0,)), other, "a")(asked(1))
    assert other.memory == one.memory


def test_names_that_resemble_each_other_are_kept_apart() -> None:
    running = Running()
    for name in ("a", "a_sum", "a_squares"):
        normalised(lambda _: Scores(total=(1.0, 3.0)), running, name)(asked(2))
    assert {moments(running.memory, name) for name in ("a", "a_sum", "a_squares")} == {(2.0, 1.0)}


def test_a_part_that_fails_keeps_no_other_from_adding_up() -> None:
    """Each rank adds up as often as the others, wherever in a sum a part fails."""

    def fails(_: list[Completion]) -> Scores:
        raise RewardFailure("reward: no")

    for failing in (False, True):
        calls: list[torch.Tensor] = []
        running = Running(reduce=lambda sums, calls=calls: calls.append(sums) or sums)
        fine = normalised(lambda c: Scores(total=(1.0,) * len(c)), running, "b")
        if failing:
            with pytest.raises(RewardFailure, match="reward: no"):
                combined({"a": fails, "b": fine, "c": fails})(asked(2))
        else:
            combined({"b": fine})(asked(2))
        assert len(calls) == 1


def test_a_failure_on_one_rank_reaches_all() -> None:
    """The one that fails adds NaN to the others' sums, so that none waits for it; nothing is remembered."""
    told: list[torch.Tensor] = []

    def fails(_: list[Completion]) -> Scores:
        raise RewardFailure("reward: no")

    failing, other = Running(reduce=lambda sums: told.append(sums) or sums), Running(reduce=lambda x: x + told[0])
    with pytest.raises(RewardFailure, match="reward: no"):
        normalised(fails, failing, "a")(asked(2))
    with pytest.raises(RewardFailure, match="failed on another process"):
        normalised(lambda _: Scores(total=(1.0, 2.0)), other, "a")(asked(2))
    assert failing.memory == other.memory == {} and len(told) == 1
    with failing.unchanged(), pytest.raises(RewardFailure, match="reward: no"):
        normalised(fails, failing, "a")(asked(2))
    assert len(told) == 1
