"""PPO through its stage reaches the enumerated KL-constrained optimum, and the KL that it logs is the true one.

The policy is the transformer of `bigram_transformer`.
"""

import json
from pathlib import Path

import pytest
import tiny
import torch
from bigram_transformer import START, fitted, logps
from bigram_world import LENGTH, REF_LOGPS, SEQUENCES, VOCAB, optimum, reward, standing
from transformers import AutoModelForCausalLM

from alignkit.actors import load_actors
from alignkit.checkpoint import copy_parameters
from alignkit.config import build
from alignkit.models import load_policy
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.records import Completion, Scores
from alignkit.runs import Run
from alignkit.stages import ppo

BETA = 0.1
RUNTIME = RuntimeOptions(trackers=[], device="cpu")


def bigram_reward(completions: list[Completion]) -> Scores:
    """The enumerated reward; -1 where the start symbol is used as a letter, which the enumeration leaves out."""
    sequences = torch.tensor([completion.ids for completion in completions])
    scores = torch.where((sequences < VOCAB).all(1), reward(sequences), -1.0)
    return Scores(total=tuple(scores.tolist()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bigram")
    (folder / "prompts.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": START}]}) + "\n")
    fitted(folder / "reference")
    return folder


def settings_of(folder: Path, batch: int, updates: int) -> PpoConfig:
    options = {
        "model": {"path": str(folder / "reference"), "chat_template": "none", "eos_token": tiny.END},
        "data": {"path": str(folder / "prompts.jsonl"), "validation": 0},
        "train": {"learning_rate": 1e-3, "batch_size": batch, "steps": updates, "warmup": 0.0},
        "critic": {"learning_rate": 2e-3},
        "reward": {"kind": "lexicon"},
        "kl": {"coef": BETA},
        "samples": batch,
        "min_new_tokens": LENGTH,
        "max_new_tokens": LENGTH,
        "missing_eos": {"rule": "keep"},
        "ppo_epochs": 2,
        "lam": 1.0,
        "value_clip": None,
    }
    return build(PpoConfig, options, "")


def trained(folder: Path, batch: int, updates: int) -> tuple[Run, torch.Tensor, torch.Tensor]:
    """The finished run, and log π of the 1,296 sequences before and after."""
    settings = settings_of(folder, batch, updates)
    run = Run.open(folder / f"run-{batch}-{updates}", "ppo", settings, RUNTIME, id="test")
    ppo.run(settings, RUNTIME, run, bigram_reward)
    before = logps(AutoModelForCausalLM.from_pretrained(folder / "reference"))
    return run, before, logps(AutoModelForCausalLM.from_pretrained(run.model_dir))


def gap(before: torch.Tensor, after: torch.Tensor) -> float:
    """J* - J, exactly, for the KL to the fitted reference."""
    rewards = reward(SEQUENCES)
    best = BETA * torch.logsumexp(before + rewards / BETA, 0)
    objective = after.exp() @ (rewards - BETA * (after - before))
    return float(best - objective)


def test_towards_the_optimum(folder: Path) -> None:
    run, before, after = trained(folder, batch=512, updates=40)
    assert float((REF_LOGPS.exp() * (REF_LOGPS - before)).sum()) < 1e-3
    start, end = gap(before, before), gap(before, after)
    print(f"J* - J: {start:.4f} -> {end:.4f} after {512 * 40:,} samples; {standing(after)}")
    assert start == pytest.approx(optimum(BETA)[1] - 0.502162, abs=5e-3)
    assert -1e-6 < end < 0.3 * start
    # The KL that a run logs is the enumerated one, within three standard errors of its 8,192 samples.
    settings = settings_of(folder, 8192, 1)
    reopened = ppo.Ppo(settings, load_actors(settings, RUNTIME, run, bigram_reward))
    copy_parameters(reopened.actors.policy, load_policy(ModelOptions(path=str(run.model_dir))).state_dict(), "the run")
    supply = reopened.supply
    completions = supply.sampler.answers(supply.sampler.at([0]), 0, [0], 8192, 1.0)
    logged = reopened.describe(supply.score(completions))["objective/kl"]
    exact = float(after.exp() @ (after - before))
    deviation = float((after.exp() @ (after - before - exact) ** 2) ** 0.5)
    print(f"logged KL {logged:.4f}, exact {exact:.4f}, standard error {deviation / 8192**0.5:.4f}")
    assert abs(logged - exact) < 3 * deviation / 8192**0.5


@pytest.mark.slow
def test_the_optimum(folder: Path) -> None:
    _, before, after = trained(folder, batch=256, updates=1000)
    end = gap(before, after)
    print(f"J* - J = {end:.5f} after 256,000 samples; {standing(after)}")
    assert -1e-6 < end < 0.01
