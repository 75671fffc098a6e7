"""A smaller quickstart, from nothing to the report: true utility rises from base to SFT to DPO and to PPO."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALLER = (
    "pretrain.data.rows=10000",
    "pretrain.train.epochs=4.0",
    "sft.data.rows=4000",
    "reward.data.rows=5000",
    "reward.train.epochs=1",
    "dpo.data.rows=4000",
    "ppo.train.steps=36",
    "evaluate.data.rows=200",
)


def test_each_stage_is_truly_better_than_the_one_before(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignkit", "run", str(ROOT / "recipes/quickstart.yaml"), "--runs", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *SMALLER], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "quickstart"
    rows = json.loads((place / "evaluate/results/results.json").read_text())["rows"]
    gold = {row["model"]: row for row in rows if row["metric"] == "gold"}
    print({name: (round(row["low"], 2), round(row["value"], 2), round(row["high"], 2)) for name, row in gold.items()})
    for worse, better in (("pretrain", "sft"), ("sft", "dpo"), ("sft", "ppo")):
        assert gold[worse]["high"] < gold[better]["low"], (worse, better)
    held_out = json.loads((place / "reward/run.json").read_text())["metrics"]
    ceiling = held_out["held_out/accuracy_ceiling"]
    assert 0.9 * ceiling < held_out["held_out/accuracy"] < ceiling
    assert held_out["held_out/nll_floor"] < held_out["held_out/nll"]
    assert re.search(
        r"reward on held-out records: accuracy \S+  accuracy_ceiling \S+ .* nll \S+  nll_floor \S+\n", done.stdout
    )
    assert re.search(r"\ngold +\d\.\d+ \[", done.stdout)
    assert "<svg" in (place / "report.html").read_text()
