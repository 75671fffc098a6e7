"""The guard's bounds on plain numbers."""

from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.guard import breaches, fallen
from alignkit.options.guard import GUARDED, GuardOptions


def guard(**options: Any) -> GuardOptions:
    return build(GuardOptions, options, "guard")


@pytest.mark.parametrize("name", GUARDED)
def test_every_bound_is_on_its_own_number(name: str) -> None:
    metrics = dict.fromkeys(GUARDED.values(), 0.0) | {GUARDED[name]: 2.0}
    options = guard(**{other: {"above": 1.0, "then": "stop"} for other in GUARDED})
    (breach,) = breaches(options, metrics, {})
    assert f"{GUARDED[name]} is 2, above 1 (guard.{name})" == breach.text and breach.then == "stop"
    options = guard(**{other: {"below": -1.0} for other in GUARDED})
    assert breaches(options, metrics, {}) == []
    (breach,) = breaches(options, metrics | {GUARDED[name]: -1.5}, {})
    assert "below -1" in breach.text and breach.then == "warn"


def test_a_bound_may_have_to_be_crossed_in_a_row() -> None:
    options, memory = guard(kl={"above": 1.0, "for_updates": 2}), {}
    found = [bool(breaches(options, {"objective/kl": kl}, memory)) for kl in (2, 0, 2, 2, 2, 1)]
    assert found == [False, False, False, True, True, False]
    assert memory == {"guard/kl": 0}


def test_what_is_not_measured_is_not_crossed() -> None:
    assert breaches(guard(explained_variance={"below": 0.5}), {"objective/kl": 1.0}, {}) == []
    assert breaches(guard(), {"objective/kl": 1e9}, {}) == []


def test_a_held_out_reward_may_fall_so_far_and_no_further() -> None:
    options = guard(held_out={"reward": {"kind": "lexicon"}, "drop": 0.5})
    assert fallen(options, 1.6, 2.0) is None and fallen(options, 1.6, float("-inf")) is None
    breach = fallen(options, 1.4, 2.0)
    assert breach is not None and "1.4, 0.6 below its best" in breach.text and breach.then == "roll_back"
    assert fallen(guard(), 0.0, 2.0) is None
    assert options.rolls_back() and not guard(kl={"above": 1.0}).rolls_back()
    both = {"reward": {"kind": "lexicon"}, "drop": 0.5, "then": "warn"}
    assert guard(kl={"above": 1.0, "then": "roll_back"}, held_out=both).rolls_back()
    with pytest.raises(InputError, match="roll_back needs guard"):
        guard(kl={"above": 1.0, "then": "roll_back"})
