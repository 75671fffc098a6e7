"""The only training loop: batches by seed, steps, validation, checkpoints, resume. It knows no loss and no model.

`fit` is a whole training, made of calls of `update`; both need nothing but a torch module and an Objective.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from alignkit.accumulate import evaluate_chunks, evaluate_objective
from alignkit.agreement import count_chunks
from alignkit.batches import CHUNK, Chunks, Example, rows_of, seed_of, total_steps
from alignkit.best import Best
from alignkit.checkpoint import copy_tensors, load_checkpoint, save_checkpoint
from alignkit.config import InputError
from alignkit.mixture import Mixture, epochs_of, in_memory
from alignkit.objective import NonFiniteLoss, Objective, Sums
from alignkit.optimize import (
    lost_updates,
    make_accelerator,
    make_optimizer,
    schedule_factor,
    set_learning_rate,
    update,
)
from alignkit.options.shared import RuntimeOptions, TrainOptions
from alignkit.progress import peak_memory_bytes, progress
from alignkit.runs import Run
from alignkit.source_losses import by_source

__all__ = [
    "Example",
    "FitResult",
    "Follower",
    "NonFiniteLoss",
    "Objective",
    "Sums",
    "evaluate_objective",
    "fit",
    "make_accelerator",
    "make_optimizer",
    "update",
]


@dataclass(frozen=True)
class FitResult:
    """What a training left behind, besides the weights in the model."""

    metrics: dict[str, float]
    """Last validation's means, with early stopping the best's; without validation examples, the last step's."""
    steps: int
    """Optimizer steps made, those before a resume included."""
    throughput: dict[str, float]
    """examples_per_second and tokens_per_second (tokens computed, shared prefixes once), over the training steps."""
    peak_memory_bytes: int
    """The largest over the ranks."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What follows the model without a gradient, such as a moving reference."""

    follow: Callable[[int], None]
    """Called after each optimizer step with its number, from 1 on."""
    tensors: Mapping[str, Tensor]
    """All of it that changes: kept in checkpoints, and copied back in place."""


def fit(
    model: nn.Module,
    train: Sequence[Example],
    validation: Sequence[Example],
    objective: Objective,
    options: TrainOptions,
    runtime: RuntimeOptions | None = None,
    run: Run | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    save: Callable[[Path], None] | None = None,
    follower: Follower | None = None,
) -> FitResult:
    """Trains `model` in place on `train`, one `update` a step, and goes on from the run's last checkpoint if any.

    Of a Mixture each source's losses are logged beside those of all, and `validation` is to be one too. The batches
    depend on `seed` alone; runtime.token_budget and the number of processes change memory and speed. With
    `run`: metrics, checkpoints, and in the end `save(run.model_dir)` on rank 0. With `options.patience`: the model
    ends with the weights of its best validation. `follower` moves after each step, before a validation or checkpoint.
    Raises NonFiniteLoss naming step and term.
    """
    if not train:
        raise ValueError("there are no training examples")
    if options.patience is not None and not validation:
        raise InputError(
            "train.patience counts validations, and no validation record is left: hold out more, or drop it"
        )
    runtime = runtime or RuntimeOptions()
    training = _Training(model, train, validation, objective, options, runtime, run, seed, accelerator, follower)
    result = training.go()
    if save is not None and run is not None:
        if training.main:
            save(run.model_dir)
        training.accelerator.wait_for_everyone()
    return result


class _Training:
    """The state of one `fit`, so that its steps are short functions."""

    def __init__(
        self,
        model: nn.Module,
        train: Sequence[Example],
        validation: Sequence[Example],
        objective: Objective,
        options: TrainOptions,
        runtime: RuntimeOptions,
        run: Run | None,
        seed: int,
        accelerator: Accelerator | None,
        follower: Follower | None,
    ) -> None:
        self.accelerator = accelerator or make_accelerator(runtime)
        self.model: nn.Module = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.train, self.objective, self.options, self.runtime = train, objective, options, runtime
        self.run, self.seed, self.follower = run, seed, follower
        self.main = self.accelerator.is_main_process
        self.optimizer = make_optimizer(self.model, options)
        self.total = total_steps(options, len(train))
        self.epochs = epochs_of(train, options, seed)
        if isinstance(train, Mixture) and not objective.whole_step:
            self.objective = by_source(objective, train.names)
        self.evaluate_every = options.evaluate_every or math.ceil(self.total / 5)
        self.checkpoint_every = options.checkpoint_every or self.evaluate_every
        size = len(validation) if objective.whole_step else CHUNK
        self.held_out = Chunks(validation, max(1, size), *self.layout, keep=in_memory(validation))
        self.held_out_counts: dict[str, float] | None = None
        self.validates = len(validation) > 0
        self.done = 0
        """Optimizer steps made."""
        self.best = Best(keeps=bool(options.patience))
        self.examples = self.tokens = 0
        self.seconds = 0.0

    def go(self) -> FitResult:
        self.resume()
        self.model.train()
        if self.done == 0:
            self.log(0, {"lost_updates": lost_updates(self.optimizer)})
            if self.validates:
                self.validate()
        title = self.run.directory.name if self.run else "training"
        last: dict[str, float] = {}
        with progress(title, self.total, shown=self.main) as advance:
            while self.done < self.total and not self.best.worn(self.options.patience):
                last = self.step()
                step = self.done
                if step % self.runtime.log_every == 0 or step == self.total:
                    self.log(step, last)
                advance(step, {"loss": last["loss"], "tokens/s": last["tokens_per_second"]})
                if self.validates and (step % self.evaluate_every == 0 or step == self.total):
                    self.validate()
                if step % self.checkpoint_every == 0 and step < self.total:
                    self.checkpoint()
        if self.best.weights:
            self.best.put_back(self.model)
        return self.result(last)

    def step(self) -> dict[str, float]:
        """One optimizer step; returns what it logs."""
        started = time.perf_counter()
        chosen = self.epochs.batch(self.done)
        rows = rows_of(self.train, *self.layout, chosen)
        # Dropout's numbers depend on the step alone, so that a resumed run needs no generator state.
        set_seed(seed_of(self.seed, "step", self.done, self.accelerator.process_index))
        factor = schedule_factor(self.options, self.done, self.total)
        set_learning_rate(self.optimizer, factor)
        with self.naming(f"step {self.done + 1} of {self.total}"):
            limit = self.options.max_grad_norm
            means = update(self.model, rows, self.objective, self.optimizer, self.accelerator, limit)
        self.done += 1
        if self.follower is not None:
            self.follower.follow(self.done)
        tokens = sum(len(batch.ids) for batch in rows)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.tokens += tokens
        self.examples += len(chosen)
        rates = {"tokens_per_second": self.accelerator.num_processes * tokens / seconds, "seconds": seconds}
        return {**means, "learning_rate": factor * self.options.learning_rate, **rates}

    @property
    def layout(self) -> tuple[int, int, int]:
        """What rows depend on beside examples: token budget, rank, ranks."""
        return self.runtime.token_budget, self.accelerator.process_index, self.accelerator.num_processes

    def validate(self) -> None:
        with self.naming(f"validation after step {self.done}"):
            if self.held_out_counts is None and len(self.held_out) > 1:
                self.held_out_counts = count_chunks(self.held_out, self.objective, self.accelerator)
            means = evaluate_chunks(self.model, self.held_out, self.objective, self.accelerator, self.held_out_counts)
        self.log(self.done, {f"validation/{name}": value for name, value in means.items()})
        self.best.see(self.model, -means["loss"], means)

    @contextmanager
    def naming(self, place: str) -> Iterator[None]:
        """Says where a loss became NaN, what is kept and what to do."""
        try:
            yield
        except NonFiniteLoss as error:
            kept = self.run.latest_checkpoint() if self.run else None
            raise NonFiniteLoss(
                f"{place}: {error}. {f'The checkpoint {kept} is kept' if kept else 'No checkpoint was written yet'}. "
                f"Lower train.learning_rate (now {self.options.learning_rate:g}) or raise train.warmup, "
                "and look for broken values in the data"
            ) from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.run is not None:
            self.run.log(step, metrics)

    def checkpoint(self) -> None:
        if self.run is not None and self.main:
            extra: dict[str, Mapping[str, Tensor]] = {"best": self.best.weights} if self.best.weights else {}
            if self.follower is not None:
                extra["follower"] = self.follower.tensors
            with self.run.checkpoint_dir(self.done, self.options.keep_checkpoints) as folder:
                state = {"step": self.done, "best": self.best.numbers()}
                save_checkpoint(folder, self.model, self.optimizer, state, extra)

    def resume(self) -> None:
        folder = self.run.latest_checkpoint() if self.run else None
        if self.run is not None and folder is not None:
            values, tensors = load_checkpoint(folder, self.model, self.optimizer)
            self.done = values["step"]
            self.best.restore(values["best"], tensors.get("best", {}))
            if self.follower is not None:
                copy_tensors(self.follower.tensors, tensors.get("follower", {}), str(folder))
            self.run.truncate(self.done)
        self.accelerator.wait_for_everyone()

    def result(self, last: dict[str, float]) -> FitResult:
        numbers = torch.tensor([self.tokens, peak_memory_bytes(self.accelerator.device)], dtype=torch.float64)
        gathered: Any = self.accelerator.gather(numbers.to(self.accelerator.device).unsqueeze(0))
        seconds = max(self.seconds, 1e-9)
        return FitResult(
            metrics=self.best.metrics or last,
            steps=self.done,
            throughput={
                "examples_per_second": self.examples / seconds,
                "tokens_per_second": float(gathered[:, 0].sum()) / seconds,
            },
            peak_memory_bytes=int(gathered[:, 1].max()),
        )
