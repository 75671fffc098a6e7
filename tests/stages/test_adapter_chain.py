"""SFT, reward model, DPO and PPO, each on the artifact before it: all weights, LoRA, and LoRA on 4-bit weights.

Two layers of width 32 on a CPU; a Qwen3 of 0.6 billion random weights, in bf16, where there is a CUDA device.
"""

import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_cases import FAMILIES, checkpoint, demonstrations, examples_of, prompt, rankings, write

from alignkit.config import build
from alignkit.models import load_policy
from alignkit.options import STAGES
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.packing import pack
from alignkit.runs import Run, read_metrics
from alignkit.scorer import load_scorer
from alignkit.stages import dpo, ppo, reward, sft

RUNS: dict[str, Any] = {"sft": sft.run, "reward": reward.run, "dpo": dpo.run, "ppo": ppo.run}
HOW: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"r": 4}},
    "4bit": {"lora": {"r": 4}, "load_in_4bit": True},
}
# More rows than the tokenizer has tokens, as published checkpoints have: sampled ids may mean nothing.
SMALL = {"vocab_size": 320}
LARGE = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "initializer_range": 0.02,
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", ["small", pytest.param("0.6B", marks=pytest.mark.gpu)])
def test_each_stage_goes_on_from_the_artifact_before_it(tmp_path: Path, size: str, how: str) -> None:
    base = checkpoint(tmp_path / "base", "qwen3", **(SMALL if size == "small" else LARGE))
    chance = random.Random(3)
    rows = {
        "sft": demonstrations(24),
        "reward": rankings(24, most=3),
        "dpo": rankings(24, most=3),
        "ppo": [{"messages": prompt(chance)} for _ in range(24)],
    }
    runtime = RuntimeOptions(trackers=[], device="cpu" if size == "small" else "cuda")
    rate = (1e-2 if how != "full" else 3e-3) if size == "small" else (1e-3 if how != "full" else 1e-4)

    def start(stage: str, model: Path, **options: Any) -> Run:
        values = {
            "model": {"path": str(model), **HOW[how]},
            "data": {"path": write(tmp_path / f"{stage}.jsonl", rows[stage]), "validation": 4},
            "train": {"learning_rate": rate, "batch_size": 8, "steps": 6},
        }
        settings: Any = build(STAGES[stage], values | options, "")
        run = Run.open(tmp_path / stage, stage, settings, runtime)
        RUNS[stage](settings, runtime, run)
        assert run.record.status == "done"
        assert (run.model_dir / "adapter_config.json").is_file() is (how != "full")
        return run

    tuned = start("sft", base)
    assert last(tuned, "nll") < first(tuned, "nll")
    scored = start("reward", tuned.model_dir)
    assert last(scored, "ranking") < first(scored, "ranking")
    preferred = start("dpo", tuned.model_dir)
    assert first(preferred, "preference") == pytest.approx(math.log(2), abs=1e-3 if size == "small" else 5e-2)
    assert last(preferred, "preference") < first(preferred, "preference")
    sampled = start(
        "ppo", preferred.model_dir, reward={"kind": "learned", "path": str(scored.model_dir)}, max_new_tokens=8
    )
    assert math.isfinite(last(sampled, "objective/score"))

    example = examples_of(base, rows["dpo"])[0]
    batch = pack(example, 4096)[0]
    with torch.no_grad():
        told = [
            load_policy(ModelOptions(path=str(path)), trainable=False)(batch).logps
            for path in (base, tuned.model_dir, preferred.model_dir, sampled.model_dir)
        ]
        scores = load_scorer(ModelOptions(path=str(scored.model_dir)), trainable=False)(batch)
    assert all(torch.isfinite(logps).all() for logps in told) and torch.isfinite(scores).all()
    assert all(not torch.equal(one, other) for one, other in pairwise(told))


def first(run: Run, name: str) -> float:
    """The first logged value of a metric."""
    return next(line[name] for line in read_metrics(run.directory) if name in line)


def last(run: Run, name: str) -> float:
    """The last logged value of a metric."""
    return [line[name] for line in read_metrics(run.directory) if name in line][-1]


def test_the_large_shape_has_0_6_billion_weights() -> None:
    kind, model = FAMILIES["qwen3"]
    with torch.device("meta"):
        count = sum(p.numel() for p in model(kind(tie_word_embeddings=True, **LARGE)).parameters())
    assert 5.5e8 < count < 6.5e8
