"""Mixtures: shares by hand, the order against plain counting, losses by source, trainings that agree."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from loop_cases import NLL, QUIET, RANKING, SPREAD, Tiny, examples, mixed_examples

from alignkit.accumulate import accumulate
from alignkit.batches import Epochs, seed_of
from alignkit.config import Config, InputError
from alignkit.loop import Objective, fit
from alignkit.mixture import SOURCE, Mixture, draws_of, sample_of
from alignkit.options.shared import TrainOptions
from alignkit.packing import pack
from alignkit.runs import Run, read_metrics
from alignkit.source_losses import by_source

NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("sizes", "weights", "temperature", "draws"),
    [
        ([10, 20, 70], [1.0, 1.0, 2.0], 1.0, [25, 25, 50]),
        ([10, 20, 70], [0.2, 0.2, 0.4], 1.0, [25, 25, 50]),
        ([10, 20, 70], None, 1.0, [10, 20, 70]),
        # √16 : √64 : √400 = 4 : 8 : 20, of 480
        ([16, 64, 400], None, 2.0, [60, 120, 300]),
        # a thousandth power: all but equal; the largest share, the last, gets what is left over
        ([10, 20, 70], None, 1000.0, [33, 33, 34]),
        # 7/3 each: the first has the example that is left
        ([1, 2, 4], [1.0, 1.0, 1.0], 1.0, [3, 2, 2]),
    ],
)
def test_shares_by_hand(sizes: list[int], weights: list[float] | None, temperature: float, draws: list[int]) -> None:
    assert draws_of(NAMES, sizes, weights, temperature) == draws


def test_shares_of_a_temperature_are_its_closed_form() -> None:
    sizes = [1_000, 30_000, 5_000_000]
    draws = draws_of(NAMES, sizes, None, 1 / 0.3)
    powers = [size**0.3 for size in sizes]
    for drawn, power in zip(draws, powers, strict=True):
        assert drawn == pytest.approx(sum(sizes) * power / sum(powers), abs=1)
    assert sum(draws) == sum(sizes)


def test_a_share_below_one_example_is_refused() -> None:
    with pytest.raises(InputError, match=r"the share of a is 0\.001 of the 10 examples to draw"):
        draws_of(NAMES[:2], [4, 6], [1.0, 9_999.0], 1.0)


def taken(epochs: Epochs, steps: int) -> list[int]:
    return [example for step in range(steps) for example in epochs.batch(step)]


def test_an_epoch_draws_its_shares_and_no_example_twice_before_all_have_come() -> None:
    sizes, draws = [3, 10, 7], [8, 5, 7]
    epochs = Epochs(20, 6, 5, sizes, draws)
    assert epochs.steps == 4
    drawn = taken(epochs, 4 * epochs.steps)
    starts = [0, 3, 13, 20]
    for epoch in range(4):
        part = drawn[20 * epoch : 20 * (epoch + 1)]
        assert [sum(a <= n < b for n in part) for a, b in pairwise(starts)] == draws
    counts = Counter(drawn)
    # 4 × 8 draws of 3, 4 × 5 of 10, 4 × 7 of 7
    assert sorted(counts[n] for n in range(3)) == [10, 11, 11]
    assert {counts[n] for n in range(3, 13)} == {2} and {counts[n] for n in range(13, 20)} == {4}
    assert {n for n in drawn[:20] if 3 <= n < 13} | {n for n in drawn[20:40] if 3 <= n < 13} == set(range(3, 13))


def test_the_order_is_seeded_and_any_step_is_found_at_once() -> None:
    sizes, draws = [30, 70], [50, 50]
    first, second = Epochs(100, 7, 1, sizes, draws), Epochs(100, 7, 1, sizes, draws)
    order = taken(first, 40)
    assert second.batch(33) == first.batch(33) and second.batch(2) == first.batch(2)
    assert taken(Epochs(100, 7, 2, sizes, draws), 40) != order
    # Neighbours come of both sources: in 100 fair draws a run of 20 of one source has a chance below 1e-4.
    runs = "".join("a" if n < 30 else "b" for n in order[:100])
    assert "a" * 20 not in runs and "b" * 20 not in runs


@pytest.mark.parametrize(("size", "batch"), [(50, 8), (300_000, 50_000)])
def test_one_source_is_gone_through_as_before(size: int, batch: int) -> None:
    epochs = Epochs(size, batch, 3)
    for epoch in range(2):
        generator = torch.Generator().manual_seed(seed_of(3, "epoch", epoch))
        steps = range(epoch * epochs.steps, (epoch + 1) * epochs.steps)
        assert [n for step in steps for n in epochs.batch(step)] == torch.randperm(size, generator=generator).tolist()


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 9])
def test_what_was_drawn_is_counted(steps: int) -> None:
    epochs = Epochs(20, 6, 5, [3, 10, 7], [8, 5, 7])
    drawn = taken(epochs, steps)
    assert epochs.drawn(steps) == [sum(a <= n < b for n in drawn) for a, b in ((0, 3), (3, 13), (13, 20))]


def test_a_source_that_would_come_too_often_is_an_error_before_the_first_step() -> None:
    train = mixed_examples(most=(3.0, None))  # 4 of 16 examples are "few", and an epoch draws 12 of it
    options = TrainOptions(learning_rate=0.1, batch_size=4, epochs=2)
    with pytest.raises(InputError, match=r"8 steps draw 24 of the 4 examples of few, .* `epochs`, 3, allows 12;"):
        fit(Tiny(), train, [], NLL, options, QUIET)
    fit(Tiny(), train, [], NLL, options.model_copy(update={"epochs": 1.0}), QUIET)


def test_examples_stand_source_by_source_and_say_so() -> None:
    mixture = mixed_examples()
    few, many = mixture.parts
    assert len(mixture) == 16 and [len(few), len(many)] == [4, 12]
    for n in range(16):
        plain = few[n] if n < 4 else many[n - 4]
        assert [s.ids for s in mixture[n]] == [s.ids for s in plain]
        assert [s.columns for s in mixture[n]] == [{**s.columns, SOURCE: float(n >= 4)} for s in plain]
    assert mixture[3:5] == [mixture[3], mixture[4]] and mixture[-1] == mixture[15]
    for wrong in (16, -17):
        with pytest.raises(IndexError):
            mixture[wrong]


def test_a_sample_has_every_source_by_its_share_of_the_draws() -> None:
    mixture = mixed_examples()  # 12 and 4 of 16 draws
    few, many = mixture.parts
    assert sample_of(mixture, 8) == [*few, *few[:2], *many[:2]]
    assert sample_of(mixture, 1) == [few[0], many[0]]
    assert sample_of(mixture, 99) == [*few, *few, *few, *many[:4]]
    assert sample_of(Mixture(("many",), (many,), (12,)), 5) == many[:5] == sample_of(many, 5)


@pytest.mark.parametrize("budget", [1_000, 60, 24], ids=["one row", "rows", "split groups"])
@pytest.mark.parametrize("objective", [NLL, RANKING], ids=["nll", "ranking"])
def test_losses_by_source_are_those_of_each_alone_and_add_up(objective: Objective, budget: int) -> None:
    model, mixture = Tiny(), mixed_examples()

    def means(wanted: list[int], objective: Objective) -> tuple[dict[str, float], dict[str, float]]:
        chosen = [replace(sequence, group=n) for n in wanted for sequence in mixture[n]]
        (whole,) = pack(chosen, 10_000)
        return accumulate(model, pack(chosen, budget), objective, backward=False), dict(objective.count(whole))

    told = by_source(objective, mixture.names)
    found, counts = means([1, 2, 5, 9, 14], told)
    plain, _ = means([1, 2, 5, 9, 14], objective)
    assert {name: value for name, value in found.items() if "/" not in name} == plain
    alone = {"few": means([1, 2], objective)[0], "many": means([5, 9, 14], objective)[0]}
    for name in plain.keys() - {"loss"}:
        for source, own in alone.items():
            assert found[f"{name}/{source}"] == pytest.approx(own[name], rel=1e-6)
        whole = sum(counts[f"{name}/{source}"] * found[f"{name}/{source}"] for source in alone)
        assert whole / counts[name] == pytest.approx(found[name], rel=1e-6)


def test_a_source_that_no_example_of_a_step_is_of_has_no_loss() -> None:
    mixture = mixed_examples()
    batches = pack([s for n in (5, 9) for s in mixture[n]], 1_000)
    found = accumulate(Tiny(), batches, by_source(NLL, mixture.names), backward=False)
    assert {name for name in found if "/" in name} == {"nll/many", "likely/many"}


def test_telling_sources_apart_changes_no_gradient() -> None:
    mixture = mixed_examples()
    grads = []
    for objective in (RANKING, by_source(RANKING, mixture.names)):
        model = Tiny()
        accumulate(model, pack([s for e in mixture for s in e], 60), objective, backward=True)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_training_on_a_mixture_logs_its_sources_and_depends_on_no_budget(tmp_path: Path) -> None:
    options = TrainOptions(learning_rate=0.01, batch_size=4, epochs=2, evaluate_every=4)
    models = []
    for budget in (1_000, 24):
        runtime = QUIET.model_copy(update={"token_budget": budget})
        run = Run.open(tmp_path / str(budget), "sft", Config(), runtime)
        models.append(Tiny())
        validation = Mixture(("few", "many"), (examples(2, seed=8), examples(3, seed=9)))
        fit(models[-1], mixed_examples(), validation, NLL, options, runtime, run, seed=1)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (a - b).norm() < 1e-5 * a.norm()
    lines = read_metrics(tmp_path / "24")
    assert {"validation/nll/few", "validation/nll/many"} < lines[1].keys()
    assert {"nll/few", "nll/many"} < {name for line in lines for name in line}


def test_losses_of_a_whole_step_are_not_told_apart() -> None:
    fit(Tiny(), mixed_examples(), [], SPREAD, TrainOptions(learning_rate=0.01, batch_size=8, steps=1), QUIET)
