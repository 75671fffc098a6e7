"""TR-DPO: TRL's trajectory and a hand loop's with adapters; moves by hand; every loss; runs cut off and resumed."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from chat_cases import (
    QUIET,
    assert_equal_gradients,
    assert_equal_runs,
    checkpoint,
    comparisons,
    examples_of,
    format_of,
    gradients,
    interrupted,
    metrics,
    options_of,
    plain_logps,
    rankings,
    start,
    trl_trainer,
    weights,
    without_marks,
    write,
)
from peft import AutoPeftModelForCausalLM, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from alignkit.accumulate import accumulate
from alignkit.batches import rows_of
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.loop import Example, make_accelerator
from alignkit.models import load_policy, load_tokenizer, save_model
from alignkit.options.dpo import WITHOUT_REFERENCE, DpoConfig, LossName, MovingReferenceOptions
from alignkit.options.shared import LoraOptions, ModelOptions, RuntimeOptions
from alignkit.packing import pack
from alignkit.pairs import preference_objective
from alignkit.prepare import ranked_sequences
from alignkit.reference import MovingReference, with_reference
from alignkit.runs import Run
from alignkit.stages import dpo
from alignkit.trie import TrieBatch

ROOT = Path(__file__).resolve().parents[2]
WHOLE_BATCH = {"batch_size": 7, "schedule": "constant", "warmup": 0.0, "learning_rate": 1e-2, "eps": 1e-3}
"""All seven pairs in every step, so that order plays no part; a large epsilon does not blow rounding up to steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("moving")
    checkpoint(made / "base")
    write(made / "data.jsonl", rankings(30))
    write(made / "pairs.jsonl", rankings(7, most=2, seed=1))
    return made


def config(folder: Path, every: int = 3, mix: float = 0.6, **changes: Any) -> DpoConfig:
    moving = {"moving_reference": {"every": every, "mix": mix}}
    return options_of(DpoConfig, folder, moving | changes, 3e-3, 6, 8)


def on_pairs(folder: Path, every: int, mix: float, **changes: Any) -> DpoConfig:
    data = {"path": str(folder / "pairs.jsonl"), "validation": 0}
    return config(folder, every, mix, data=data, train=WHOLE_BATCH, beta=0.3, **changes)


def losses(run: Run) -> list[float]:
    """Of each optimizer step."""
    return [line["loss"] for line in metrics(run) if "grad_norm" in line]


# --------------------------------------------------------------------------------------------------------- oracles


def training_of_trl(base: Path, steps: int, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of TRL's own loop on the seven pairs, and the weights it ends with."""
    rows = rankings(7, most=2, seed=1)
    pairs = [{"prompt": r["prompt"], "chosen": r["responses"][0], "rejected": r["responses"][1]} for r in rows]
    loop = {"max_steps": steps, "logging_steps": 1, "save_strategy": "no"}
    optimizer = {"learning_rate": 1e-2, "adam_epsilon": 1e-3, "lr_scheduler_type": "constant"}
    trainer = trl_trainer(DPOTrainer, TrlConfig, base, base, pairs, beta=0.3, **loop, **optimizer, **options)
    trainer.train()
    history = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return history, {name: p.detach() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize(("loss", "mix"), [("sigmoid", 0.6), ("sigmoid", 1.0), ("ipo", 0.6)])
def test_a_run_is_that_of_trl(folder: Path, tmp_path: Path, loss: LossName, mix: float) -> None:
    """Six steps with moves after the second, fourth and sixth."""
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": mix}
    expected, model = training_of_trl(folder / "base", 6, loss_type=[loss], **sync)
    run = start(dpo, tmp_path / "run", on_pairs(folder, 2, mix, loss=loss))
    assert losses(run) == pytest.approx(expected, rel=2e-5)
    for name, weight in load_file(run.model_dir / "model.safetensors").items():
        torch.testing.assert_close(weight, model[name], rtol=2e-5, atol=2e-6)
    still = start(dpo, tmp_path / "still", on_pairs(folder, 2, mix, loss=loss, moving_reference=None))
    assert losses(still)[:2] == pytest.approx(losses(run)[:2], rel=1e-6)
    assert all(abs(a - b) > 0.02 * b for a, b in zip(losses(run)[2:], losses(still)[2:], strict=True))


def test_a_run_with_adapters_is_that_of_a_loop_by_hand(folder: Path, tmp_path: Path) -> None:
    """Its reference is a deep copy of the whole PEFT model, made anew after every second step."""
    policy = load_policy(ModelOptions(path=str(folder / "base"), lora=LoraOptions(r=2)))
    save_model(policy.model, policy.adapted, tmp_path / "start")
    model: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "start", is_trainable=True, dtype=torch.float32)
    reference = copy.deepcopy(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=1e-3, weight_decay=0.0)
    examples = examples_of(folder / "base", rankings(7, most=2, seed=1))
    expected = []
    for step in range(1, 7):
        with torch.no_grad():
            held = torch.stack([plain_logps(reference, example)[0] for example in examples])
        gains = torch.stack([plain_logps(model, example)[0] for example in examples]) - held
        loss = -F.logsigmoid(0.3 * (gains[:, 0] - gains[:, 1])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        expected.append(loss.item())
        reference = copy.deepcopy(model) if step % 2 == 0 else reference

    run = start(dpo, tmp_path / "run", on_pairs(folder, 2, 1.0, model={"lora": {"r": 2}}))
    assert losses(run) == pytest.approx(expected, rel=2e-5)
    assert [n for n, loss in enumerate(expected) if abs(loss - math.log(2)) < 1e-6] == [0, 2, 4]
    by_hand = get_peft_model_state_dict(model)
    for name, weight in load_file(run.model_dir / "adapter_model.safetensors").items():
        torch.testing.assert_close(weight, by_hand[name], rtol=2e-5, atol=2e-6)


def test_moves_by_hand(folder: Path) -> None:
    """α = ¼ each second step: 0 → 1 → 1.75 after a policy of 4 throughout, then 3.3125 after one of 8."""
    policy = load_policy(ModelOptions(path=str(folder / "base")))
    moving = MovingReference(policy, MovingReferenceOptions(every=2, mix=0.25))
    for weight in moving.weights.values():
        weight.data.fill_(0.0)
    found = []
    for step in range(1, 7):
        for parameter in policy.parameters():
            parameter.data.fill_(4.0 if step < 6 else 8.0)
        moving.follow(step)
        values = torch.cat([weight.flatten() for weight in moving.copy.parameters()])
        assert (values == values[0]).all()
        found.append(values[0].item())
    assert found == [0.0, 1.0, 1.0, 1.75, 1.75, 3.3125]
    assert not any(weight.requires_grad for weight in moving.copy.parameters())


# ---------------------------------------------------------------------------------------------------------- losses

SETTINGS: dict[str, dict[str, Any]] = {"robust": {"label_smoothing": 0.1}, "exo": {"label_smoothing": 0.1}}


@pytest.mark.parametrize("loss", [name for name in get_args(LossName) if name not in WITHOUT_REFERENCE])
def test_every_loss_reads_it_as_it_would_kept_numbers(folder: Path, tmp_path: Path, loss: LossName) -> None:
    """Whole rows, and rankings spread over rows; the reference is another model than the policy."""
    other = ModelOptions(path=str(checkpoint(tmp_path / "reference", seed=4)))
    drawn = rankings(40)
    examples = examples_of(folder / "base", [*drawn[:3], next(row for row in drawn if len(row["ranks"]) == 9)])
    settings = config(folder, loss=loss, **SETTINGS.get(loss, {}))
    run = Run.open(tmp_path / "run", "dpo", settings, QUIET)
    kept = with_reference(load_policy(other), [examples], 4096, make_accelerator(QUIET), run)[0]
    moving = MovingReference(load_policy(other), MovingReferenceOptions())
    policy = load_policy(ModelOptions(path=str(folder / "base")))

    def loss_and_gradients(examples: list[Example], budget: int, objective: Any) -> tuple[float, dict[str, Tensor]]:
        policy.zero_grad()
        rows = rows_of(examples, budget)
        assert any(row.split_groups for row in rows) == (budget == 130)
        return accumulate(policy, rows, objective, backward=True)["loss"], gradients(policy.model)

    expected, slopes = loss_and_gradients(kept, 4096, preference_objective(settings))
    for budget in (4096, 130):
        found, own = loss_and_gradients(examples, budget, preference_objective(settings, moving.logps))
        assert found == pytest.approx(expected, rel=1e-5)
        assert_equal_gradients(own, slopes, 2e-5)


# -------------------------------------------------------------------------------------------------------- adapters


def one_row(format: ChatFormat) -> TrieBatch:
    examples = ranked_sequences(format, comparisons(rankings(3)))
    (row,) = pack([sequence for example in examples for sequence in example], 8192)
    return row


def test_reading_it_leaves_the_policy_as_it_is(folder: Path) -> None:
    """While its adapter has dropout and trains; the reference has none, and no gradient."""
    policy = load_policy(ModelOptions(path=str(folder / "base"), lora=LoraOptions(r=2, dropout=0.5)))
    row = one_row(format_of(folder / "base"))
    moving = MovingReference(policy, MovingReferenceOptions(every=1, mix=1.0))
    with torch.no_grad():
        for parameter in policy.own_weights().values():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    before = load_policy(ModelOptions(path=str(folder / "base")), trainable=False)(row).logps
    torch.testing.assert_close(moving.logps(row), before)
    moving.follow(1)
    with torch.no_grad():
        after = policy.eval()(row).logps
    assert (after - before).abs().max() > 0.1
    policy.train()
    trained = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert torch.equal(moving.logps(row), after)
    assert policy.model.training and not torch.equal(policy(row).logps, after)
    assert trained == {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert trained and all("default" in name.split(".") for name in trained)


@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["two tables", "tied"])
def test_it_takes_over_the_tokens_that_an_adapter_brings(tmp_path: Path, family: str) -> None:
    base = without_marks(checkpoint(tmp_path / "base", family, chat=False))
    format = ChatFormat.load(load_tokenizer(str(base)), "chatml")
    policy = load_policy(ModelOptions(path=str(base), lora=LoraOptions(r=2)), format=format)
    row = one_row(format)
    assert {300, 301} <= set(row.ids.tolist())

    @torch.no_grad()
    def moved(std: float) -> Tensor:
        for parameter in policy.own_weights().values():
            parameter.normal_(std=std, generator=torch.Generator().manual_seed(0))
        return policy(row).logps

    first = moved(0.1)
    moving = MovingReference(policy, MovingReferenceOptions(every=1, mix=1.0))
    assert any("trainable_tokens_delta" in name for name in moving.weights)
    assert torch.equal(moving.logps(row), first)
    second = moved(0.2)
    assert (second - first).abs().max() > 0.1
    assert torch.equal(moving.logps(row), first)
    moving.follow(1)
    assert torch.equal(moving.logps(row), second)


# ------------------------------------------------------------------------------------------------------ end to end

HOW: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"r": 2}},
    "4bit": {"lora": {"r": 2}, "load_in_4bit": True},
}


@pytest.mark.parametrize("how", HOW)
def test_right_after_a_move_the_loss_is_ln_2_again(folder: Path, tmp_path: Path, how: str) -> None:
    if how == "4bit":
        pytest.importorskip("bitsandbytes")
    train = {"evaluate_every": 1, "learning_rate": 1e-2}
    run = start(dpo, tmp_path / "run", config(folder, 2, 1.0, model=HOW[how], train=train))
    found = {line["step"]: line["validation/preference"] for line in metrics(run) if "validation/loss" in line}
    assert list(found) == list(range(7))
    for step, loss in found.items():
        assert (abs(loss - math.log(2)) < 1e-5) == (step % 2 == 0), found
    # Only the policy is in the artifact.
    assert not any("reference" in name for name in weights(run.model_dir))


@pytest.mark.parametrize("steps", [3, 5], ids=["before the first move is kept", "after"])
@pytest.mark.parametrize(
    ("mix", "model"), [(0.6, {}), (1.0, {"lora": {"r": 2, "dropout": 0.2}})], ids=["full", "lora"]
)
def test_cut_off_and_resumed_is_uninterrupted(
    folder: Path, tmp_path: Path, mix: float, model: dict[str, Any], steps: int
) -> None:
    settings = config(folder, 3, mix, model=model)
    whole = start(dpo, tmp_path / "whole", settings)
    assert_equal_runs(interrupted(dpo, tmp_path / "cut", settings, steps), whole)


def test_an_adapter_that_goes_on_is_its_own_first_reference(folder: Path, tmp_path: Path) -> None:
    first = start(dpo, tmp_path / "first", config(folder, moving_reference=None, model={"lora": {"r": 2}}))
    model = {"path": str(first.model_dir), "adapter": "continue"}
    settings = config(folder, 3, 1.0, model=model, train={"evaluate_every": 1, "learning_rate": 1e-2})
    whole = start(dpo, tmp_path / "whole", settings)
    found = [line["validation/preference"] for line in metrics(whole) if "validation/loss" in line]
    assert [n for n, loss in enumerate(found) if abs(loss - math.log(2)) < 1e-5] == [0, 3, 6]
    assert_equal_runs(interrupted(dpo, tmp_path / "cut", settings, 5), whole)


@pytest.mark.parametrize("how", ["full", "lora"])
def test_budget_and_recomputed_activations_change_nothing(folder: Path, tmp_path: Path, how: str) -> None:
    """Recomputed in the backward pass, activations must be those of the policy's adapter, not of the reference's."""
    settings = config(folder, 2, 1.0, model=HOW[how], train={"eps": 1e-3, "learning_rate": 1e-2})
    whole = start(dpo, tmp_path / "whole", settings)
    for changes in ({"token_budget": 120}, {"activation_checkpointing": True}):
        runtime = RuntimeOptions(trackers=[], device="cpu", **changes)
        other = start(dpo, tmp_path / next(iter(changes)), settings, runtime)
        assert losses(other) == pytest.approx(losses(whole), rel=1e-4)
        for name, tensor in weights(other.model_dir).items():
            torch.testing.assert_close(tensor, weights(whole.model_dir)[name], rtol=1e-4, atol=1e-5)


def test_two_processes_give_the_run_of_one(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, 2, 0.6, train={"eps": 1e-3, "learning_rate": 1e-2, "batch_size": 5})
    alone = start(dpo, tmp_path / "alone", settings)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests/stages"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(Path(__file__)), str(tmp_path / "settings.json"), str(tmp_path / "together")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    together = Run.open(tmp_path / "together", "dpo", settings, QUIET, id="test")
    for one, two in zip(metrics(alone), metrics(together), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    for name, tensor in weights(together.model_dir).items():
        torch.testing.assert_close(tensor, weights(alone.model_dir)[name], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": "simpo"}, "moving_reference has no meaning for loss: simpo, which has no reference; remove it"),
        ({"loss": "cpo"}, "moving_reference has no meaning for loss: cpo"),
        ({"loss": "orpo", "nll_coef": 1.0}, "moving_reference has no meaning for loss: orpo"),
        ({"model": {"lora": {}}}, "moving_reference.mix: the mean of two adapters' factors .* give mix: 1"),
        ({"model": {"adapter": "continue"}}, "moving_reference.mix: the mean of two adapters' factors"),
        ({"train": {"patience": 2}}, "train.patience compares validations"),
        ({"moving_reference": {"every": 0}}, "moving_reference.every: input should be greater"),
        ({"moving_reference": {"mix": 0}}, "moving_reference.mix: input should be greater than 0"),
        ({"moving_reference": {"mix": 1.1}}, "moving_reference.mix: input should be less"),
        ({"sync_ref_model": True}, "here it is `moving_reference: {}`"),
    ],
)
def test_what_cannot_move_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(folder, **changes)


def test_a_run_too_short_for_a_move_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="moves after step 512, and the run has 6 steps"):
        start(dpo, tmp_path / "run", config(folder, moving_reference={}))


if __name__ == "__main__":
    start(dpo, Path(sys.argv[2]), DpoConfig.model_validate_json(Path(sys.argv[1]).read_text()))
