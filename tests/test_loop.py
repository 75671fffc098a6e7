"""A whole training: resumed bit for bit, stopped early with its best weights, ended by a NaN with one clear error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from loop_cases import NLL, RANKING, Tiny, examples
from torch import nn

from alignkit.config import Config, InputError
from alignkit.loop import FitResult, NonFiniteLoss, Objective, evaluate_objective, fit
from alignkit.models import load_policy
from alignkit.options.shared import LoraOptions, ModelOptions, RuntimeOptions, TrainOptions
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.runs import Run, read_metrics
from alignkit.trie import TokenSequence, TrieBatch

ROOT = Path(__file__).resolve().parents[1]
QUIET = RuntimeOptions(trackers=[], token_budget=60, device="cpu")
DATA = examples(46)
TRAIN, VALIDATION = DATA[:36], DATA[36:]


def open_run(directory: Path) -> Run:
    return Run.open(directory, "sft", Config(), QUIET)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def failing(objective: Objective, forwards: int) -> Objective:
    """The objective, cut off in the middle of its n-th forward."""
    left = [forwards]

    def read(model: Tiny, batch: object) -> dict[str, torch.Tensor]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return objective.read(model, batch)  # type: ignore[arg-type]

    return Objective(read, objective.loss, objective.count, objective.whole_step)


def numbers(run: Run) -> list[dict[str, float]]:
    timings = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(run.directory)]


@pytest.mark.parametrize("objective", [NLL, RANKING], ids=["nll", "ranking"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(objective: Objective, tmp_path: Path) -> None:
    """With dropout, several forwards a step, two-pass steps, a partial last batch, and the best weights kept aside."""
    options = TrainOptions(
        learning_rate=0.02, batch_size=8, epochs=3, checkpoint_every=2, evaluate_every=3, patience=9, weight_decay=0.1
    )
    runtime = QUIET.model_copy(update={"token_budget": 40})

    def train(model: Tiny, run: Run, objective: Objective) -> FitResult:
        return fit(model, TRAIN, VALIDATION, objective, options, runtime, run, seed=5)

    whole, run = Tiny(dropout=0.2), open_run(tmp_path / "whole")
    expected = train(whole, run, objective)
    assert expected.steps == 15 and run.latest_checkpoint() == tmp_path / "whole/checkpoints/step-14"
    for share in (0.05, 0.3, 0.0, 0.2):
        resumed = open_run(tmp_path / "cut")
        with pytest.raises(KeyboardInterrupt):
            train(Tiny(seed=int(share == 0.0), dropout=0.2), resumed, failing(objective, int(share * whole.forwards)))
        assert bool(resumed.latest_checkpoint()) == (share != 0.05)
    model = Tiny(seed=1, dropout=0.2)
    result = train(model, open_run(tmp_path / "cut"), objective)
    assert same(model, whole)
    assert result.metrics == expected.metrics and numbers(resumed) == numbers(run)


def test_the_trajectory_does_not_depend_on_the_token_budget() -> None:
    options = TrainOptions(learning_rate=0.02, batch_size=6, steps=20)
    models = []
    for budget in (24, 10_000):
        models.append(Tiny())
        fit(models[-1], TRAIN, [], RANKING, options, QUIET.model_copy(update={"token_budget": budget}))
    assert models[0].forwards > 4 * models[1].forwards
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert (p - q).norm() < 1e-5 * q.norm()


def test_an_epoch_sees_every_example_once_and_the_order_follows_the_seed() -> None:
    def seen(seed: int) -> list[int]:
        order: list[int] = []

        def count(batch: object) -> dict[str, float]:
            order.extend(batch.owner_columns["number"].int().tolist())  # type: ignore[attr-defined]
            return NLL.count(batch)  # type: ignore[arg-type]

        train = [[TokenSequence([n % 20, 1], [0, 1], columns={"number": float(n)})] for n in range(10)]
        result = fit(Tiny(), train, [], Objective(NLL.read, NLL.loss, count), STEP, QUIET, seed=seed)
        assert result.steps == 6
        return order

    first = seen(1)
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10)) and first[:10] != first[10:]
    assert first == seen(1) != seen(2)


STEP = TrainOptions(learning_rate=0.01, batch_size=4, epochs=2)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    """Validation shares the tokens' frequencies with training, and nothing else: then what follows is memorised."""
    train, validation = (
        [[TokenSequence([n % 5 for n in s.ids], s.weights) for s in e] for e in d] for d in (TRAIN[:8], VALIDATION)
    )
    options = TrainOptions(
        learning_rate=0.05, batch_size=8, steps=500, evaluate_every=2, patience=3, schedule="constant"
    )
    model, run = Tiny(), open_run(tmp_path)
    result = fit(model, train, validation, NLL, options, QUIET, run)
    losses = {
        line["step"]: line["validation/loss"] for line in read_metrics(run.directory) if "validation/loss" in line
    }
    best = min(losses, key=lambda step: losses[step])
    assert 0 < best < result.steps == best + 6 < 500
    sequences = [TokenSequence(s.ids, s.weights, n) for n, e in enumerate(validation) for s in e]
    after = evaluate_objective(model, pack(sequences, 60), NLL)
    assert after["loss"] == result.metrics["loss"] == losses[best]
    again = fit(model, train, validation, NLL, options, QUIET, open_run(tmp_path))
    assert again.steps == result.steps and again.metrics == result.metrics


def test_a_nan_ends_training_with_one_clear_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    options = TrainOptions(learning_rate=0.02, batch_size=4, steps=9, checkpoint_every=2)
    run, model, seen = open_run(tmp_path), Tiny(), []

    def read(model: Tiny, batch: object) -> dict[str, torch.Tensor]:
        readings = NLL.read(model, batch)  # type: ignore[arg-type]
        seen.append(1)
        return {"logp": readings["logp"] * (float("nan") if len(seen) == 6 else 1.0)}

    runtime = QUIET.model_copy(update={"token_budget": 1000})
    with pytest.raises(NonFiniteLoss) as error:
        fit(model, TRAIN, [], Objective(read, NLL.loss, NLL.count), options, runtime, run)
    checkpoint = tmp_path / "checkpoints/step-4"
    for part in ("step 6 of 9", "'nll'", str(checkpoint), "train.learning_rate (now 0.02)"):
        assert part in str(error.value)
    assert checkpoint.is_dir() and all(p.isfinite().all() for p in model.parameters())
    assert fit(model, TRAIN, [], NLL, options, runtime, open_run(tmp_path)).steps == 9


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainOptions(learning_rate=0.02, batch_size=4, steps=9, checkpoint_every=2)
    run, written = open_run(tmp_path), []

    def full(values: object, path: Path) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        save_file(values, path)  # type: ignore[arg-type]

    from safetensors.torch import save_file  # noqa: PLC0415

    monkeypatch.setattr("alignkit.checkpoint.save_file", full)
    with pytest.raises(OSError, match=r"step-4.*No space left on device.*make room"):
        fit(Tiny(), TRAIN, [], NLL, options, QUIET, run)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    model, whole = Tiny(seed=1), Tiny()
    fit(model, TRAIN, [], NLL, options, QUIET, open_run(tmp_path))
    fit(whole, TRAIN, [], NLL, options, QUIET)
    assert same(model, whole)


def test_what_a_training_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(learning_rate=0.02, batch_size=6, epochs=2)
    run = open_run(tmp_path)
    saved = []
    result = fit(Tiny(), TRAIN, VALIDATION, NLL, options, QUIET, run, save=saved.append)
    assert saved == [run.model_dir] and result.steps == 12 and result.peak_memory_bytes > 2**26
    lines = read_metrics(run.directory)
    steps = [line for line in lines if "grad_norm" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation/loss" in line] == [0, 3, 6, 9, 12]
    seconds = sum(line["seconds"] for line in steps)
    assert result.throughput["examples_per_second"] == pytest.approx(72 / seconds, rel=1e-6)
    tokens = sum(line["tokens_per_second"] * line["seconds"] for line in steps)
    assert result.throughput["tokens_per_second"] == pytest.approx(tokens / seconds, rel=1e-6)
    assert steps[0]["learning_rate"] == pytest.approx(0.01) and steps[-1]["learning_rate"] == pytest.approx(0.02 / 11)
    shown = capsys.readouterr().err
    assert "12/12" in shown and "tokens/s" in shown and "s left" in shown


def test_no_examples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no training examples"):
        fit(Tiny(), [], [], NLL, STEP, QUIET)


def test_a_transformer_with_lora_resumes_bit_for_bit(tmp_path: Path) -> None:
    options = TrainOptions(learning_rate=0.01, batch_size=4, steps=6, checkpoint_every=2, weight_decay=0.1)
    path = str(tiny.checkpoint(tmp_path / "base"))
    model_options = ModelOptions(path=path, lora=LoraOptions(r=4, dropout=0.1))

    forwards = []

    def read(policy: Policy, batch: TrieBatch) -> dict[str, torch.Tensor]:
        forwards.append(len(batch.ids))
        return {"logp": policy(batch).logps}

    def train(run: Run, objective: Objective, seed: int) -> Policy:
        policy = load_policy(model_options, seed=seed)
        fit(policy, TRAIN[:12], VALIDATION[:3], objective, options, QUIET, run)
        return policy

    objective = Objective(read, NLL.loss, NLL.count)
    whole = train(open_run(tmp_path / "whole"), objective, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train(open_run(tmp_path / "cut"), failing(objective, len(forwards) - 3), seed=0)
    assert (tmp_path / "cut/checkpoints/step-4").is_dir()
    assert same(train(open_run(tmp_path / "cut"), objective, seed=1), whole)
    frozen = load_policy(model_options, seed=0)
    assert not same(frozen, whole)


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments_a_run_ends_the_same(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/loop_killed.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, whole = (tmp_path / name / "model/model.safetensors" for name in ("killed", "undisturbed"))
    assert killed.read_bytes() == whole.read_bytes()
    logs = [Run.open(tmp_path / name, "sft", Config(), QUIET) for name in ("killed", "undisturbed")]
    assert numbers(logs[0]) == numbers(logs[1])
    assert json.loads((tmp_path / "killed/run.json").read_text())["status"] == "running"


def test_patience_needs_records_to_validate_on() -> None:
    """As where all that were held out are over-long."""
    options = TrainOptions(learning_rate=1e-3, patience=1)
    with pytest.raises(InputError, match=r"train\.patience counts validations, and no validation record is left"):
        fit(Tiny(), examples(4), [], NLL, options)
