"""A small PPO run that tests start, also as processes of its own: `python ppo_cases.py FOLDER [CHANGES]`.

CHANGES are JSON for `config`; the reward is `letters`, unless they name one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import tiny
from torch import Tensor

from alignkit.config import build
from alignkit.experience import values
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Scores
from alignkit.runs import Run
from alignkit.stages import ppo
from alignkit.supply import Experience

BASE: dict[str, Any] = {
    "train": {"learning_rate": 3e-3, "batch_size": 16, "steps": 3, "warmup": 0.0},
    "reward": {"kind": "lexicon"},
    "max_new_tokens": 10,
    "kl": {"coef": 0.02},
    "minibatches": 2,
    "ppo_epochs": 2,
}


def letters(completions: list[Completion]) -> Scores:
    """A tenth for every `a`, `b`, … `e` in the response."""
    return Scores(total=tuple(sum(letter in "abcde" for letter in c.response.content) / 10 for c in completions))


def prepare(folder: Path) -> Path:
    """A tiny checkpoint and 30 prompts in `folder`."""
    tiny.checkpoint(folder / "model")
    texts = [f"say {n}" + "?" * (n % 5) for n in range(30)]
    rows = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def config(folder: Path, **changes: Any) -> PpoConfig:
    """The small run on what `prepare` made; `changes` replace groups, `train` and `model` are merged."""
    model = {"path": str(folder / "model"), "chat_template": "none", "eos_token": tiny.END} | changes.pop("model", {})
    train = BASE["train"] | changes.pop("train", {})
    data = {"path": str(folder / "prompts.jsonl"), "validation": 6} | changes.pop("data", {})
    return build(PpoConfig, BASE | {"model": model, "train": train, "data": data} | changes, "")


def start(directory: Path, settings: PpoConfig, reward: Any = letters, **runtime: Any) -> Run:
    """Runs the stage in `directory` (or goes on there); returns the finished run."""
    options = RuntimeOptions(trackers=[], device="cpu", **runtime)
    run = Run.open(directory, "ppo", settings, options, id="test")
    ppo.run(settings, options, run, reward)
    return run


def advantages(
    ppo: ppo.Ppo, experience: Experience, baseline: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The columns of an update, its values read by a pass of their own, and what is logged of them."""
    critic, aim = ppo.actors.critic, ppo.aim(experience, baseline)
    value = experience.value if critic is None else values(experience.rollouts, critic, ppo.accelerator)
    return ppo.advantages(experience, aim, ppo.rewards(experience, aim), value)


def metrics(run: Run) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    clock = ("seconds", "tokens_per_second")
    return [{name: value for name, value in line.items() if not name.startswith(clock)} for line in lines]


if __name__ == "__main__":
    place, changes = Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    start(place / "run", config(place, **changes), None if "reward" in changes else letters, allow_code=True)
