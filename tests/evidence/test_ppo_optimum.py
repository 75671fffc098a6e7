"""PPO through its stage reaches the enumerated KL-constrained optimum, and the KL that it logs is the true one.

The policy is a transformer of .2 M parameters, first fitted to the reference; its 1,296 sequences are then enumerated.
"""

import json
from pathlib import Path

import pytest
import tiny
import torch
from bigram_world import LENGTH, REF_LOGPS, REFERENCE, SEQUENCES, VOCAB, context_numbers, optimum, reward, standing
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

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
START = "g"  # the start symbol is the prompt


def bigram_reward(completions: list[Completion]) -> Scores:
    """The enumerated reward; -1 where the start symbol is used as a letter, which the enumeration leaves out."""
    sequences = torch.tensor([completion.ids for completion in completions])
    scores = torch.where((sequences < VOCAB).all(1), reward(sequences), -1.0)
    return Scores(total=tuple(scores.tolist()))


def logps(model: LlamaForCausalLM) -> torch.Tensor:
    """Log-probability of all 1,296 sequences in plain passes, the letters a to f alone being possible."""
    rows = torch.cat([torch.full((len(SEQUENCES), 1), 6), SEQUENCES], 1)
    with torch.no_grad():
        distribution = model(rows[:, :-1]).logits[..., :6].double().log_softmax(-1)
    return distribution.gather(2, SEQUENCES[..., None]).squeeze(2).sum(1)


def fitted(folder: Path) -> Path:
    """A transformer of .2 M parameters, fitted to the reference in every context."""
    words = tiny.tokenizer("abcdef" + START)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    assert 150_000 < model.num_parameters() < 250_000
    prefixes = SEQUENCES[::VOCAB, :-1]  # [216, 3]: with the start symbol before them, every context of every token
    rows = torch.cat([torch.full((len(prefixes), 1), 6), prefixes], 1)
    target = REFERENCE[context_numbers(SEQUENCES)[::VOCAB]].softmax(-1).float()  # [216, 4, 6]
    steps = 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        # Over all eight tokens, so that the start symbol and the end become improbable.
        loss = -(target * model(rows).logits.log_softmax(-1)[..., :VOCAB]).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


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
    # The KL that a run logs is the enumerated one, within two standard errors of its 2,048 samples.
    settings = settings_of(folder, 2048, 1)
    reopened = ppo.Ppo(settings, load_actors(settings, RUNTIME, run, bigram_reward))
    copy_parameters(reopened.actors.policy, load_policy(ModelOptions(path=str(run.model_dir))).state_dict(), "the run")
    logged = reopened.describe(reopened.score(reopened.sample(reopened.drawn(0), 0, [0])))["objective/kl"]
    exact = float(after.exp() @ (after - before))
    deviation = float((after.exp() @ (after - before - exact) ** 2) ** 0.5)
    assert abs(logged - exact) < 2 * deviation / 2048**0.5


@pytest.mark.slow
def test_the_optimum(folder: Path) -> None:
    _, before, after = trained(folder, batch=1024, updates=250)
    end = gap(before, after)
    print(f"J* - J = {end:.5f} after 256,000 samples; {standing(after)}")
    assert -1e-6 < end < 0.01
