"""A real pretrained model (stories260k) on real stories: PPO makes their continuations more positive."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from alignkit.config import build
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.runs import Run
from alignkit.stages import ppo


@pytest.fixture(scope="module")
def openings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first dozen words of each story, as prompts."""
    stories = Path(__file__).resolve().parents[3] / "shared/data/tinystories/tinystories_800.json"
    if not stories.is_file():
        pytest.skip("no real stories beside the checkout")
    file = tmp_path_factory.mktemp("stories") / "openings.jsonl"
    with file.open("w") as lines:
        for story in json.loads(stories.read_text()):
            text = " ".join(story.split()[:12])
            lines.write(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n")
    return file


def test_ppo_makes_stories_more_positive(shared: Path, openings: Path, tmp_path: Path) -> None:
    settings = build(
        PpoConfig,
        {
            "model": {"path": str(shared / "models/stories260k"), "chat_template": "none", "eos_token": "<s>"},
            "data": {"path": str(openings), "validation": 64},
            "train": {"learning_rate": 3e-4, "batch_size": 64, "steps": 12, "warmup": 0.0},
            "reward": {"kind": "lexicon"},
            "kl": {"coef": 0.02},
            "missing_eos": {"rule": "keep"},
            "max_new_tokens": 32,
            "ppo_epochs": 2,
        },
        "",
    )
    runtime = RuntimeOptions(trackers=[], device="cpu")
    run = Run.open(tmp_path / "run", "ppo", settings, runtime, id="test")
    ppo.run(settings, runtime, run)
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    held_out = [line for line in lines if "validation/objective/score" in line]
    before, after = held_out[0], held_out[-1]
    assert before["validation/objective/kl"] == pytest.approx(0, abs=1e-4)
    assert after["validation/objective/score"] > before["validation/objective/score"] + 0.15
    assert 0 < after["validation/objective/kl"] < 15
    assert AutoModelForCausalLM.from_pretrained(run.model_dir).num_parameters() < 300_000
