"""SFT, reward model and DPO on data that people wrote, and on a real checkpoint: a few steps each, in small.

What is learned in a few steps is how the training records look; what the stages report is checked to be there and
finite. Full runs are the recipes in recipes/examples.
"""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen3Config, Qwen3ForCausalLM

from alignkit.config import build
from alignkit.data.read import read
from alignkit.data.tokenizer import train_tokenizer
from alignkit.options import STAGES
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Comparison, Demonstration, Prompt
from alignkit.runs import Run, read_metrics
from alignkit.stages import dpo, ppo, reward, sft

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = RuntimeOptions(trackers=[], device="cpu")
RUNS = {"sft": sft.run, "reward": reward.run, "dpo": dpo.run, "ppo": ppo.run}


def small_model(folder: Path, texts: list[str]) -> str:
    """A random Qwen3 of 0.2 M parameters and a byte-level BPE of 1,024 tokens trained on the texts."""
    tokenizer = train_tokenizer(texts, "bpe", 1024)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def start(stage: str, directory: Path, values: dict[str, Any]) -> Run:
    settings: Any = build(STAGES[stage], values, "")
    run = Run.open(directory / stage, stage, settings, RUNTIME)
    RUNS[stage](settings, RUNTIME, run)
    return run


def assert_sound(run: Run, term: str, held_out: set[str]) -> None:
    """Every number finite; the mean of a third of the run's steps falls; the metrics of held-out records are there."""
    lines = read_metrics(run.directory)
    numbers = [value for line in lines for value in line.values()]
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    losses = [line[term] for line in lines if term in line]
    third = len(losses) // 3
    assert third >= 2
    assert sum(losses[-third:]) < sum(losses[:third])
    final = run.record.metrics
    assert held_out <= final.keys() and all(math.isfinite(final[name]) for name in held_out)
    assert run.record.status == "done" and run.record.throughput["tokens_per_second"] > 0


RANKED = {"held_out/accuracy", "held_out/nll", "held_out/calibration_error", "held_out/length_only_accuracy"}


def fit(rate: float, epochs: float = 4) -> dict[str, Any]:
    return {"learning_rate": rate, "batch_size": 8, "epochs": epochs, "warmup": 0.1}


# ----------------------------------------------------------------------------------------------- people's own data


def test_dolly(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/dolly/dolly.jsonl.gz"
    records = read(path, Demonstration).records
    assert len(records) > 14_000
    base = small_model(tmp_path / "base", [m.content for record in records[:300] for m in record.messages])
    data = {"path": str(path), "rows": 64, "validation": 16, "max_length": 512, "over_long": "skip"}
    model = {"path": base, "chat_template": "chatml"}
    run = start("sft", tmp_path, {"model": model, "data": data, "train": fit(5e-3)})
    assert_sound(run, "nll", {"nll"})
    before = next(line["validation/nll"] for line in read_metrics(run.directory) if "validation/nll" in line)
    assert run.record.metrics["nll"] < before - 0.5
    assert AutoModelForCausalLM.from_pretrained(run.model_dir).config.model_type == "qwen3"


@pytest.mark.parametrize("source", ["hh_rlhf/harmless.jsonl.gz", "oasst/trees.jsonl"], ids=["hh", "oasst"])
def test_comparisons(shared: Path, tmp_path: Path, source: str) -> None:
    path = shared / "data" / source
    found = read(path, Comparison, on_invalid="skip")
    sizes = {len(record.responses) for record in found.records}
    assert sizes == {2} if "hh" in source else max(sizes) == 9
    texts = [m.content for c in found.records[:150] for m in (*c.prompt, *(m for r in c.responses for m in r))]
    base = small_model(tmp_path / "base", texts)
    data = {"path": str(path), "rows": 40, "validation": 16, "max_length": 700, "over_long": "skip"}
    shape = {"data": data | {"on_invalid": "skip"}, "model": {"path": base, "chat_template": "chatml"}}
    scores = start("reward", tmp_path, shape | {"train": fit(3e-3)})
    assert_sound(scores, "ranking", RANKED | {"score_mean", "score_deviation"})
    assert AutoModelForSequenceClassification.from_pretrained(scores.model_dir).config.num_labels == 1
    policy = start("dpo", tmp_path, shape | {"train": fit(1e-3)})
    assert_sound(policy, "preference", {"preference", "accuracy", "margin", "chosen_gain"})
    first = next(line for line in read_metrics(policy.directory) if "preference" in line)
    assert first["preference"] == pytest.approx(math.log(2), abs=1e-3)


def test_a_task_with_checkable_answers(shared: Path, tmp_path: Path) -> None:
    """GSM8K: worked answers first, then PPO on whether the last number is the published result."""
    path = shared / "data/gsm8k/train.jsonl.gz"
    prompts = read(path, Prompt).records
    assert len(prompts) == 7473 and prompts[0].columns["answer"].isdigit()
    base = small_model(
        tmp_path / "base", [m.content for r in read(path, Demonstration).records[:200] for m in r.messages]
    )
    data = {"path": str(path), "rows": 64, "validation": 16, "max_length": 512, "over_long": "skip"}
    tuned = start(
        "sft", tmp_path, {"model": {"path": base, "chat_template": "chatml"}, "data": data, "train": fit(5e-3)}
    )
    assert_sound(tuned, "nll", {"nll"})
    policy = {"model": {"path": str(tuned.model_dir)}, "reward": {"kind": "rules", "rule": "number"}}
    sampling = {"samples": 2, "max_new_tokens": 24, "missing_eos": {"rule": "keep"}}
    run = start("ppo", tmp_path, policy | sampling | {"data": data, "train": {"batch_size": 16, "steps": 2}})
    lines = read_metrics(run.directory)
    scores = [line["objective/score"] for line in lines if "objective/score" in line]
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)
    assert run.record.status == "done" and run.record.data[0]["rows"] == 7473


# ------------------------------------------------------------------------------------------------ a real checkpoint


def test_the_chain_on_a_pretrained_checkpoint(shared: Path, tmp_path: Path) -> None:
    """Real weights go through SFT, a reward model and DPO with LoRA, each stage on the artifact before it."""
    stories = json.loads((shared / "data/tinystories/tinystories_800.json").read_text())[:48]
    runpy.run_path(str(ROOT / "recipes/examples/cut_stories.py"))["cut"](stories, tmp_path)
    comparisons, demonstrations = (str(tmp_path / f"{name}.jsonl") for name in ("comparisons", "demonstrations"))
    plain = {"chat_template": "none", "eos_token": "</s>"}
    base = {"path": str(shared / "models/stories260k"), **plain}
    data = {"path": demonstrations, "validation": 12, "max_length": 400}
    tuned = start("sft", tmp_path, {"model": base, "data": data, "train": fit(1e-3)})
    assert_sound(tuned, "nll", {"nll"})
    # A pretrained model, which learns where an answer ends: far below the 6.2 nats of an even guess from the start.
    lines = [line["validation/nll"] for line in read_metrics(tuned.directory) if "validation/nll" in line]
    assert 1 < lines[-1] < lines[0] < 3

    ranked = {"path": comparisons, "validation": 12, "max_length": 400}
    model = {"path": str(tuned.model_dir), **plain}
    scores = start("reward", tmp_path, {"model": model, "data": ranked, "train": fit(1e-3)})
    assert_sound(scores, "ranking", RANKED)
    adapted = {"model": model | {"lora": {"r": 4}}, "data": ranked, "train": fit(3e-3)}
    policy = start("dpo", tmp_path, adapted)
    assert_sound(policy, "preference", {"preference", "accuracy", "margin"})
    assert (policy.model_dir / "adapter_config.json").is_file()
