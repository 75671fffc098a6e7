"""The loop around online updates: validation, early stopping, checkpoints, resume, progress. It knows no algorithm."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from alignkit.best import Best
from alignkit.checkpoint import load_checkpoint, save_checkpoint
from alignkit.generate import EngineFailure
from alignkit.guard import Breach, breaches, fallen
from alignkit.optimize import lost_updates
from alignkit.options.guard import GuardOptions
from alignkit.options.shared import RuntimeOptions, TrainOptions
from alignkit.progress import peak_memory_bytes, progress
from alignkit.runs import Run
from reward_models.scores import RewardFailure

logger = logging.getLogger(__name__)
SHOWN = ("objective/score", "objective/kl", "tokens_per_second")
"""What the progress bar shows of an update's metrics."""


@dataclass(frozen=True, slots=True)
class Online:
    """What an algorithm hands over. The model named first is the one that is validated."""

    models: Mapping[str, tuple[nn.Module, Optimizer]]
    """Name -> what is trained, and its optimizer."""
    step: Callable[[int], dict[str, float]]
    """Update number (from 0) -> what it logs; `seconds` and `tokens_per_second` are among it."""
    validate: Callable[[], tuple[dict[str, float], float]] | None
    """() -> metrics, and the number that early stopping wants large."""
    memory: dict[str, float]
    """Numbers of the algorithm that a resumed run must know; read and written in place."""
    save: Callable[[Path], None]
    """Writes the artifact."""
    guard: GuardOptions | None = None
    """What ends the run early, if anything."""
    keep: Callable[[], tuple[list[dict[str, Any]], dict[str, Tensor]]] | None = None
    """() -> what else a checkpoint holds: JSON and tensors."""
    restore: Callable[[list[dict[str, Any]], dict[str, Tensor]], None] | None = None
    """Takes it back."""


@dataclass
class _State:
    update: int = 0
    ended: str = ""
    """How the guard ended the run, if it did."""
    due: bool = False
    """Whether the validation after this update is still to be made."""
    latest: dict[str, float] = field(default_factory=dict[str, float])
    """The last validation's metrics."""
    seconds: float = 0.0
    tokens: float = 0.0
    memory: dict[str, float] = field(default_factory=dict[str, float])
    kept: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def fit_online(
    online: Online, total: int, options: TrainOptions, runtime: RuntimeOptions, run: Run, accelerator: Accelerator
) -> Path:
    """Run `total` updates, going on from the run's last checkpoint if any; returns the artifact's folder.

    The run ends with the last weights; with those of the best validation where `options.patience` is set and the guard
    did not stop it, or where the guard rolled it back.
    """
    return _Loop(online, total, options, runtime, run, accelerator).go()


class _Loop:
    def __init__(
        self,
        online: Online,
        total: int,
        options: TrainOptions,
        runtime: RuntimeOptions,
        run: Run,
        accelerator: Accelerator,
    ) -> None:
        self.online, self.total, self.options = online, total, options
        self.runtime, self.run, self.accelerator = runtime, run, accelerator
        self.evaluate_every = options.evaluate_every or math.ceil(total / 5)
        self.checkpoint_every = options.checkpoint_every or self.evaluate_every
        self.model = next(iter(online.models.values()))[0]
        self.guard = online.guard
        rolls_back = online.guard is not None and online.guard.rolls_back()
        self.best = Best(keeps=bool(options.patience) or rolls_back)
        self.state = _State()

    def go(self) -> Path:
        self.resume()
        last: dict[str, float] = {}
        if self.state.update == 0:
            optimizers = {name: optimizer for name, (_, optimizer) in self.online.models.items()}
            self.run.log(0, {f"{name}/lost_updates": lost_updates(one) for name, one in optimizers.items()})
            self.validate()
        elif self.state.due:
            self.validate()
        with progress(self.run.directory.name, self.total, shown=self.accelerator.is_main_process) as advance:
            while self.state.update < self.total and not self.stopped():
                last = self.step()
                self.state.update += 1
                number = self.state.update
                self.count(last)
                if self.guard is not None:
                    self.heed(breaches(self.guard, last, self.online.memory))
                if number % self.runtime.log_every == 0 or number == self.total or self.state.ended:
                    self.run.log(number, last)
                advance(number, {name: last[name] for name in SHOWN})
                if number % self.evaluate_every == 0 or number == self.total or self.state.ended:
                    self.validate()
                if number % self.checkpoint_every == 0 and number < self.total:
                    self.checkpoint()
        metrics = self.state.latest or self.best.metrics
        if self.best.weights and (self.state.ended == "roll_back" or (self.options.patience and not self.state.ended)):
            self.best.put_back(self.model)
            metrics = self.best.metrics
        ended = {"guard/ended_at": float(self.state.update)} if self.state.ended else {}
        return self.finish({**(metrics or last), **ended})

    def step(self) -> dict[str, float]:
        """An update. Where reward or engine fail before anything is trained, what there is is saved as it was."""
        before = dict(self.online.memory)
        try:
            return self.online.step(self.state.update)
        except (RewardFailure, EngineFailure):
            self.online.memory.clear()
            self.online.memory.update(before)
            self.rescue()
            raise

    def rescue(self) -> None:
        """A checkpoint out of turn, where something has been trained."""
        if self.state.update:
            self.checkpoint()
        self.accelerator.wait_for_everyone()  # a launcher ends the others once one has left

    def count(self, metrics: dict[str, float]) -> None:
        self.state.seconds += metrics["seconds"]
        self.state.tokens += metrics["tokens_per_second"] * metrics["seconds"]

    def validate(self) -> None:
        if self.online.validate is None:
            return
        try:
            metrics, objective = self.online.validate()
        except (RewardFailure, EngineFailure):
            self.state.due = True
            self.rescue()
            raise
        self.state.due = False
        self.state.latest = metrics
        self.run.log(self.state.update, {f"validation/{name}": value for name, value in metrics.items()})
        if self.guard is not None and (breach := fallen(self.guard, objective, self.best.objective)):
            self.heed([breach])
        if self.state.ended:
            return  # what crossed a bound is nobody's best
        self.best.see(self.model, objective, metrics)

    def heed(self, found: list[Breach]) -> None:
        """Say what the guard found, and end the run where it says so."""
        for breach in found:
            end = {"warn": "", "stop": "; stopping", "roll_back": "; going back to the best validation's weights"}
            if self.accelerator.is_main_process:
                logger.warning(f"update {self.state.update}: {breach.text}{end[breach.then]}")
            if breach.then != "warn" and self.state.ended != "roll_back":
                self.state.ended = breach.then

    def stopped(self) -> bool:
        return self.best.worn(self.options.patience) or bool(self.state.ended)

    def checkpoint(self) -> None:
        """Everything that changes: the models, their optimizers, the position, and what the algorithm remembers."""
        if not self.accelerator.is_main_process:
            return
        self.state.memory = dict(self.online.memory)
        extra = {"best": self.best.weights} if self.best.weights else {}
        if self.online.keep is not None:
            self.state.kept, tensors = self.online.keep()
            extra |= {"kept": tensors} if tensors else {}
        with self.run.checkpoint_dir(self.state.update, self.options.keep_checkpoints) as folder:
            for name, (model, optimizer) in self.online.models.items():
                (folder / name).mkdir()
                state = {**asdict(self.state), "best": self.best.numbers()} if model is self.model else {}
                save_checkpoint(folder / name, model, optimizer, state, extra if model is self.model else {})

    def resume(self) -> None:
        folder = self.run.latest_checkpoint()
        if folder is not None:
            for name, (model, optimizer) in self.online.models.items():
                state, tensors = load_checkpoint(folder / name, model, optimizer)
                if model is self.model:
                    self.best.restore(state.pop("best"), tensors.get("best", {}))
                    self.state = _State(**state)
                    if self.online.restore is not None:
                        self.online.restore(self.state.kept, tensors.get("kept", {}))
            self.online.memory.update(self.state.memory)
            self.run.truncate(self.state.update)
        self.accelerator.wait_for_everyone()

    def finish(self, metrics: dict[str, float]) -> Path:
        if self.accelerator.is_main_process:
            self.online.save(self.run.model_dir)
        self.accelerator.wait_for_everyone()
        seconds = max(self.state.seconds, 1e-9)
        examples = self.state.update * self.options.batch_size
        rates = {"examples_per_second": examples / seconds, "tokens_per_second": self.state.tokens / seconds}
        self.run.finish(metrics, rates, peak_memory_bytes(self.accelerator.device))
        return self.run.model_dir
