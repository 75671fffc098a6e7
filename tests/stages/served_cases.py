"""PPO, by a vLLM server or not, also on two processes: `torchrun … served_cases.py FOLDER PLACE`.

FOLDER holds checkpoint and prompts, PLACE/served.json the server's url, the options, and at which call the reward
of rank 1 fails, once. In PLACE each rank leaves what was drawn for it, or what it was told.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ppo_cases import config, letters, metrics, start

from alignkit.generate import EngineFailure
from alignkit.records import Completion, Scores
from alignkit.runs import Run
from reward_models.scores import RewardFailure

ROOT = Path(__file__).resolve().parents[2]


def launch(
    folder: Path, place: Path, url: str, changes: dict[str, Any], fails: int | None = None
) -> subprocess.Popen[str]:
    """The run on two processes."""
    place.mkdir(exist_ok=True)
    (place / "served.json").write_text(json.dumps({"url": url, "changes": changes, "fails": fails}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests/stages"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*launcher, __file__, str(folder), str(place)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def run_served(
    folder: Path, place: Path, url: str, changes: dict[str, Any], rank: int = 0, fails: int | None = None
) -> Run:
    """The run in `place`, on what `folder` holds; each call of the reward leaves a line of what this rank drew."""
    place.mkdir(exist_ok=True)
    lines = place / f"drawn-{rank}.jsonl"

    def kept(completions: list[Completion]) -> Scores:
        with lines.open("a") as file:
            file.write(json.dumps([(c.prompt[0].content, c.ids) for c in completions]) + "\n")
        if rank == 1 and len(lines.read_text().splitlines()) == fails:
            raise RewardFailure("reward: no")
        return letters(completions)

    return start(place / "run", config(folder, **changes), kept, rollout_url=url)


def drawn(place: Path, ranks: int = 1) -> list[list[Any]]:
    """What all ranks drew in each call of the reward, sorted."""
    parts = [(place / f"drawn-{rank}.jsonl").read_text().splitlines() for rank in range(ranks)]
    return [sorted(one for line in lines for one in json.loads(line)) for lines in zip(*parts, strict=True)]


def updates(run: Run) -> list[dict[str, float]]:
    """What was logged of each."""
    return [line for line in metrics(run) if "objective/kl" in line]


if __name__ == "__main__":
    folder, place, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
    given = json.loads((place / "served.json").read_text())
    try:
        run_served(folder, place, given["url"], given["changes"], rank, given["fails"])
    except (EngineFailure, RewardFailure) as failure:
        (place / f"told-{rank}").write_text(str(failure))
