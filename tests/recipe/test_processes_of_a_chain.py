"""A chain of real stages whose processes are killed, or are several: it ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_chain
from safetensors.torch import load_file
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
LONG = ("sft.train.steps=300", "sft.train.checkpoint_every=10", "--only", "sft")


def start(folder: Path, *words: str, command: tuple[str, ...] = ("-m", "alignkit", "run")) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, *command, "small.yaml", *words]
    return subprocess.Popen(whole, cwd=folder, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.slow
def test_a_chain_killed_at_random_moments_ends_the_same(tmp_path: Path) -> None:
    small_chain.prepare(tmp_path)
    assert start(tmp_path, "name=whole", *LONG).wait() == 0
    draw = random.Random(0)
    record = tmp_path / "runs/killed/sft/run.json"
    for _ in range(5):
        driver = start(tmp_path, "name=killed", *LONG)
        metrics = tmp_path / "runs/killed/sft/metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        # A stage needs seconds to start; the moment is drawn from its work, not from its imports.
        while driver.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.5))
        if draw.random() < 0.5:
            os.killpg(driver.pid, signal.SIGKILL)
        else:
            driver.kill()  # the stage notices that its driver is gone
        driver.wait()
    assert start(tmp_path, "name=killed", *LONG).wait() == 0
    assert json.loads(record.read_text())["status"] == "done"
    names = [tmp_path / "runs" / name / "sft" for name in ("whole", "killed")]
    whole, killed = ((folder / "model/model.safetensors").read_bytes() for folder in names)
    assert whole == killed
    steps = [[json.loads(line)["step"] for line in (f / "metrics.jsonl").read_text().splitlines()] for f in names]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    small_chain.prepare(tmp_path)
    assert start(tmp_path, "name=one", "--only", "sft").wait() == 0
    assert start(tmp_path, "name=two", "runtime.processes=2", "--only", "sft").wait() == 0
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "recipes" / "sft.py"))
    assert start(tmp_path, "name=launched", command=launch).wait() == 0
    one, two, launched = (
        load_file(tmp_path / "runs" / name / "sft/model/model.safetensors") for name in ("one", "two", "launched")
    )
    assert_close(two, one, rtol=1e-5, atol=1e-5)
    assert_close(launched, two, rtol=0, atol=0)
    record = json.loads((tmp_path / "runs/launched/sft/run.json").read_text())
    assert record["hardware"]["processes"] == 2


SAMPLE = """
name: small
runtime: {trackers: [], device: cpu}
stages:
  sample:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: many.jsonl, max_length: 100}
    reward: {kind: lexicon}
    samples: 4
    write: feedback
    minimum: 0
    unfinished: keep
    max_new_tokens: 12
"""


@pytest.mark.slow
def test_sampling_killed_at_random_moments_and_in_two_processes_writes_the_same_file(tmp_path: Path) -> None:
    small_chain.prepare(tmp_path)
    rows = [json.dumps({"prompt": f"say {n}" + "?" * (n % 4)}) for n in range(1000)]
    (tmp_path / "many.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "small.yaml").write_text(SAMPLE)
    assert start(tmp_path, "name=whole").wait() == 0
    draw = random.Random(0)
    chunks = tmp_path / "runs/killed/sample/chunks"
    for made in range(1, 10, 3):
        driver = start(tmp_path, "name=killed")
        while driver.poll() is None and len(list(chunks.glob("*.json"))) < made:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert made <= len(list(chunks.glob("*.json"))) < 16
    assert start(tmp_path, "name=killed", "runtime.processes=2").wait() == 0
    whole, killed = (tmp_path / "runs" / name / "sample" for name in ("whole", "killed"))
    assert (whole / "data/feedback.jsonl").read_bytes() == (killed / "data/feedback.jsonl").read_bytes()
    logs = [(folder / "metrics.jsonl").read_text() for folder in (whole, killed)]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 16
