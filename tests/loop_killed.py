"""Run as a script: trains in a child process that is killed 20 times at random moments, and once undisturbed."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from loop_cases import NLL, Tiny, examples
from safetensors.torch import save_file

from alignkit.config import Config
from alignkit.loop import fit
from alignkit.options.shared import RuntimeOptions, TrainOptions
from alignkit.runs import Run

QUIET = RuntimeOptions(trackers=[], token_budget=60, device="cpu")
OPTIONS = TrainOptions(
    learning_rate=0.01, batch_size=4, steps=400, checkpoint_every=3, evaluate_every=20, patience=15, keep_checkpoints=2
)


def train(directory: Path) -> None:
    run = Run.open(directory, "sft", Config(), QUIET)
    model = Tiny(dropout=0.1)

    def save(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file({name: p.detach() for name, p in model.named_parameters()}, folder / "model.safetensors")

    data = examples(50)
    fit(model, data[:40], data[40:], NLL, OPTIONS, QUIET, run, seed=3, save=save)
    run.finish({})


def start(directory: Path) -> int:
    """A child that trains; its process id. The parent must not have used autograd before."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            train(directory)
            code = 0
        finally:
            os._exit(code)
    return child


def main(folder: Path, kills: int) -> None:
    killed = 0
    while killed < kills:
        child = start(folder / "killed")
        time.sleep(random.uniform(0.0, 0.5))
        finished, status = os.waitpid(child, os.WNOHANG)
        assert not finished, f"the training ended (status {status}) before it was killed {kills} times"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    for name in ("killed", "undisturbed"):
        assert os.waitpid(start(folder / name), 0)[1] == 0, name


if __name__ == "__main__":
    main(Path(sys.argv[1]), 20)
