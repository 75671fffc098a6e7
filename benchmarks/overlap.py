"""What drawing one update ahead saves: PPO with `rollouts.ahead` 0 and 1 beside a real vLLM server, in alternation.

    python benchmarks/overlap.py --vllm vllm-env/bin/vllm [--data FILE] [--rounds 3] [--updates 5] [--json FILE]

Server and trainer get a CPU core each, as on GPUs they get devices of their own: the server is bound to core 0, the
trainer to core 1, one thread on either. The model is that of `against_trl.py`, a Qwen3 of 6.8 M parameters with random
weights; policy and critic are adapters of rank 16, the reward is a model of the policy's size. Prompts of at most 128
tokens, one answer each, all answers of one length, one optimizer step in each pass over an update's answers, float32.

Each run is a process, and goes through 2 updates that are not counted and `--updates` that are; with `ahead: 1` each
of those overlaps the next one's generation. `generation` is what the trainer waited for completions, `scoring` and
`update` are as the stage logs them. The bound is what an overlap without loss would leave of an update with
`ahead: 0`: the longer of generation and training (scoring + update). `ahead: 1` also saves a pass over the policy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
from against_trl import spawned
from online_against_trl import PROMPT, make_prompts

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from vllm_real import running

from alignkit.provenance import provenance

SERVER, TRAINER = 0, 1
"""The cores."""
WARM = 2
"""Updates before those that count: the first has nothing to overlap."""
COUNTED = {
    "seconds": "seconds",
    "seconds/generation": "generation",
    "seconds/scoring": "scoring",
    "seconds/update": "update",
    "objective/score": "score",
    "objective/kl": "kl",
    "sampling/staleness": "staleness",
}
"""What is reported of an update, by the names under which it is logged."""
LORA = 16


def child(ahead: int, updates: int, given: dict[str, Any], url: str, folder: Path) -> dict[str, Any]:
    """One run's means over the updates that count."""
    os.sched_setaffinity(0, {TRAINER})
    from alignkit.actors import load_actors  # noqa: PLC0415
    from alignkit.config import build  # noqa: PLC0415
    from alignkit.options.ppo import PpoConfig  # noqa: PLC0415
    from alignkit.options.shared import RuntimeOptions  # noqa: PLC0415
    from alignkit.runs import Run  # noqa: PLC0415
    from alignkit.stages.ppo import Ppo  # noqa: PLC0415

    settings: dict[str, Any] = {
        "model": {"path": str(folder), "lora": {"r": LORA}},
        "data": {"path": str(folder / "prompts.jsonl"), "validation": 0},
        "train": {
            "learning_rate": 1e-3,
            "batch_size": given["answers"],
            # One more than are made, so that the last one has a next one to draw as well.
            "steps": WARM + updates + 1,
            "warmup": 0.0,
            "schedule": "constant",
        },
        "reward": {"kind": "learned", "path": str(folder / "reward")},
        "rollouts": {"engine": "vllm", "ahead": ahead},
        "min_new_tokens": given["length"],
        "max_new_tokens": given["length"],
        "missing_eos": {"rule": "keep"},
        "ppo_epochs": given["epochs"],
    }
    config = build(PpoConfig, settings, "")
    runtime = RuntimeOptions(token_budget=1024, trackers=[], rollout_url=url, device="cpu")
    run = Run.open(Path(tempfile.mkdtemp()) / "run", "ppo", config, runtime)
    ppo = Ppo(config, load_actors(config, runtime, run))
    logs = [ppo.step(number) for number in range(WARM + updates)]
    assert all(log["completion/length"] == given["length"] for log in logs)
    counted = {short: [log[name] for log in logs[WARM:]] for name, short in COUNTED.items() if name in logs[-1]}
    return {name: statistics.mean(values) for name, values in counted.items()} | {"each": counted["seconds"]}


def main() -> None:
    """Start the server, run all rounds, print the figures and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="vLLM's executable, of an environment of its own")
    parser.add_argument("--data", type=Path, help="a file of comparisons; left out: the built-in world")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=5, help="that count, in a run")
    parser.add_argument("--answers", type=int, default=32, help="of an update")
    parser.add_argument("--length", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the answers of an update")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        ahead, updates, given, url, folder = arguments.child
        print("FIGURES " + json.dumps(child(int(ahead), int(updates), json.loads(given), url, Path(folder))))
        return
    from alignkit.models import load_policy  # noqa: PLC0415
    from alignkit.options.shared import LoraOptions, ModelOptions  # noqa: PLC0415
    from alignkit.vllm_weights import start_command  # noqa: PLC0415

    work = {"answers": arguments.answers, "length": arguments.length, "epochs": arguments.epochs}
    folder = Path(tempfile.mkdtemp())
    make_prompts(arguments.data, (WARM + arguments.updates + 1) * arguments.answers, folder)
    command = start_command(load_policy(ModelOptions(path=str(folder), lora=LoraOptions(r=LORA))), bf16=False)
    runs: dict[str, list[dict[str, Any]]] = {"ahead 0": [], "ahead 1": []}
    said = subprocess.run([arguments.vllm, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    made_by = provenance("torch", "transformers", "accelerate")
    made_by["versions"]["vllm"] = said
    with running(arguments.vllm, command, folder / "server.log", core=SERVER) as url:
        print(made_by, flush=True)
        for _ in range(arguments.rounds):
            for name, found in runs.items():
                found.append(spawned(__file__, name[-1], arguments.updates, json.dumps(work), url, folder))
                print(name, json.dumps(found[-1]), flush=True)
    summary = summarise(runs)
    print(json.dumps(summary, indent=1))
    if arguments.json:
        found = {
            **made_by,
            "cores": "the server on one, the trainer on another",
            "data": arguments.data.name if arguments.data else "the built-in world",
            "model": f"Qwen3 of 6.8 M parameters, random weights; adapters of rank {LORA}",
            "work": work | {"prompt": f"at most {PROMPT} tokens", "updates": arguments.updates},
            "summary": summary,
            "runs": runs,
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, seconds per update, and how much shorter an update is one ahead."""
    found: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in rounds) for key in COUNTED.values() if key in rounds[0]}
        for name, rounds in runs.items()
    }
    now, ahead = found.values()
    bound = max(now["generation"], now["scoring"] + now["update"])
    return found | {
        "ratio": now["seconds"] / ahead["seconds"],
        "ratios": [first["seconds"] / second["seconds"] for first, second in zip(*runs.values(), strict=True)],
        "bound": {"seconds": bound, "ratio": now["seconds"] / bound},
    }


if __name__ == "__main__":
    main()
