"""KTO: TRL's loss and gradients; its baseline; runs end to end and cut off."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_cases import (
    assert_equal_gradients,
    assert_equal_runs,
    checkpoint,
    gradients,
    interrupted,
    message,
    metrics,
    options_of,
    prompt,
    sentence,
    start,
    trl_step,
    weights,
    write,
)
from trl import KTOConfig as TrlConfig
from trl import KTOTrainer

from alignkit.accumulate import accumulate
from alignkit.batches import rows_of
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.loop import Example, make_accelerator
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.kto import KtoConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.prepare import labelled_sequences
from alignkit.records import Feedback, Message
from alignkit.reference import with_reference
from alignkit.runs import Run
from alignkit.stages import kto
from alignkit.stages.kto import kto_objective, mismatched
from alignkit.trie import TokenSequence


def feedback(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Verdicts on single answers: happy ones are good."""
    chance = random.Random(seed)
    made: list[dict[str, Any]] = []
    for n in range(rows):
        mood = "happy " if n % 2 else "sad "
        answer = [message("assistant", mood * 2 + sentence(chance))]
        made.append({"prompt": prompt(chance), "completion": answer, "label": bool(n % 2)})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kto")
    checkpoint(made / "base")
    write(made / "data.jsonl", feedback(60))
    return made


def config(folder: Path, **changes: Any) -> KtoConfig:
    return options_of(KtoConfig, folder, changes, 3e-3, 12, 12)


def labelled(base: Path, rows: list[dict[str, Any]]) -> list[Example]:
    """The rows' sequences, as the stage makes them."""
    verdicts = [
        Feedback(
            prompt=tuple(Message.model_validate(turn) for turn in row["prompt"]),
            response=tuple(Message.model_validate(turn) for turn in row["completion"]),
            label=row["label"],
        )
        for row in rows
    ]
    return list(labelled_sequences(ChatFormat.load(load_tokenizer(str(base))), verdicts))


def in_a_circle(examples: list[Example]) -> list[Example]:
    """Each with the answer of the one before, as TRL takes them in a batch; the first with the last's."""
    circle: list[Example] = []
    for n, ((own,), (other,)) in enumerate(zip(examples, [examples[-1], *examples[:-1]], strict=True)):
        start, begin = own.weights.index(1.0), other.weights.index(1.0)
        ids = [*own.ids[:start], *other.ids[begin:]]
        made = TokenSequence(ids, [0.0] * start + [1.0] * (len(ids) - start), columns={"good": kto.ESTIMATE})
        circle.append([examples[n][0], made])
    return circle


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_loss_and_gradients_are_those_of_trl(folder: Path, tmp_path: Path, loss: str) -> None:
    """The reference is another model than the policy, so that baseline and gains are far from zero."""
    base = checkpoint(tmp_path / "base", seed=4)
    reference = checkpoint(tmp_path / "reference", seed=3)
    rows = feedback(7, seed=1)
    theirs = {"beta": 0.3, "loss_type": loss, "desirable_weight": 1.5}
    loss_of_trl, expected = trl_step(KTOTrainer, TrlConfig, base, reference, rows, **theirs)

    settings = config(folder, beta=0.3, loss=loss, desirable_weight=1.5)
    examples = in_a_circle(labelled(base, rows)) if loss == "kto" else labelled(base, rows)
    runtime = RuntimeOptions(trackers=[], device="cpu")
    run = Run.open(tmp_path / "run", "kto", settings, runtime)
    accelerator = make_accelerator(runtime)
    policy = load_policy(ModelOptions(path=str(reference)))
    (examples,) = with_reference(policy, [examples], 4096, accelerator, run)
    policy = load_policy(ModelOptions(path=str(base)))
    for budget in (4096, 120):
        policy.zero_grad()
        batches = rows_of(examples, budget)
        assert (len(batches) > 2) == (budget == 120)
        found = accumulate(policy, batches, kto_objective(settings), backward=True)
        assert found["loss"] == pytest.approx(loss_of_trl, rel=1e-5)
        assert (found["baseline"] > 0.1) == (loss == "kto")
        assert_equal_gradients(gradients(policy.model), expected, 2e-5)


def test_every_response_answers_another_prompt_once(folder: Path) -> None:
    examples = labelled(folder / "base", feedback(9))
    made = mismatched(examples, seed=5)
    longest = max(len(sequence.ids) for (sequence,) in examples)
    answers = [tuple(sequence.ids[sequence.weights.index(1.0) :]) for (sequence,) in examples]
    taken: list[int] = []
    for n, ((own,), (same, other)) in enumerate(zip(examples, made, strict=True)):
        start = own.weights.index(1.0)
        assert same is own and list(other.ids[:start]) == list(own.ids[:start])
        assert len(other.ids) <= longest and other.columns == {"good": kto.ESTIMATE}
        answer = tuple(other.ids[start:])
        taken.append(next(m for m, whole in enumerate(answers) if m != n and whole[: len(answer)] == answer))
    assert sorted(taken) == list(range(9))
    assert mismatched([], 0) == []
    with pytest.raises(InputError, match="two or more"):
        mismatched(examples[:1], 0)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Any:
    return start(kto, folder / "whole", config(folder))


def test_a_run_learns_what_is_good(finished: Any) -> None:
    validation = [line for line in metrics(finished) if "validation/loss" in line]
    assert validation[0]["validation/preference"] == pytest.approx(0.5, abs=1e-4)
    assert validation[-1]["validation/preference"] < 0.48
    assert validation[-1]["validation/good_gain"] > validation[-1]["validation/bad_gain"] + 1


def test_cut_off_and_resumed_is_uninterrupted(finished: Any, folder: Path, tmp_path: Path) -> None:
    assert_equal_runs(interrupted(kto, tmp_path / "cut", config(folder), 3), finished)


def test_the_token_budget_changes_nothing(finished: Any, folder: Path, tmp_path: Path) -> None:
    cut = start(kto, tmp_path / "small", config(folder), RuntimeOptions(trackers=[], device="cpu", token_budget=120))
    whole = weights(finished.model_dir)
    for name, tensor in weights(cut.model_dir).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)


def test_an_empty_response_that_was_cut_off_is_paired_too(folder: Path) -> None:
    rows = feedback(4)
    rows[2]["completion"][-1] |= {"content": "", "finished": False}
    made = mismatched(labelled(folder / "base", rows), seed=5)
    assert len(made) == 4 and sum(sum(other.weights) == 0 for _, other in made) == 1
