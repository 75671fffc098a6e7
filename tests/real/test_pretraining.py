"""The recipe of tiny Shakespeare, its first steps: below what letters alone tell, not below what two letters can."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignkit.options.shared import RuntimeOptions
from alignkit.recipe.read import load_recipe
from alignkit.runs import Run, read_metrics
from alignkit.stages import pretrain

RECIPE = Path(__file__).resolve().parents[2] / "recipes/examples/shakespeare.yaml"
STEPS = 40


def entropy(counts: Counter[Any]) -> float:
    """In nats."""
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values())


def test_the_recipe_of_tiny_shakespeare_learns_more_than_how_often_letters_stand(shared: Path, tmp_path: Path) -> None:
    text = (shared / "data/tinyshakespeare/input.txt").read_text(encoding="utf-8")[:200_000]
    part = tmp_path / "part.txt"
    part.write_text(text, encoding="utf-8")
    changed = [f"pretrain.data.path={part}", f"pretrain.train.steps={STEPS}", f"pretrain.train.evaluate_every={STEPS}"]
    config: Any = load_recipe(RECIPE, [*changed, "pretrain.data.validation=0.02"]).stages["pretrain"].config
    runtime = RuntimeOptions(trackers=[], device="cpu")
    run = Run.open(tmp_path / "run", "pretrain", config, runtime)
    pretrain.run(config, runtime, run)
    losses = [line["validation/nll"] for line in read_metrics(run.directory) if "validation/nll" in line]
    letters = Counter(text)
    pairs = entropy(Counter(pairwise(text))) - entropy(letters)
    assert losses[0] > math.log(len(letters)) - 0.1, "it begins with an even guess"
    assert pairs < losses[-1] < entropy(letters) - 0.2
