"""Direct preference optimisation on ranked comparisons, by any loss of docs/algorithms.md. Knows no other stage."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from alignkit.batches import total_steps
from alignkit.config import InputError
from alignkit.loop import Example, Follower, Objective, evaluate_objective, fit
from alignkit.mixture import epochs_of
from alignkit.models import save_policy
from alignkit.options.dpo import DpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.packing import pack
from alignkit.pairs import preference_objective
from alignkit.policy import Policy
from alignkit.prepare import finish, load_examples, open_setting, sequences_of
from alignkit.records import Comparison
from alignkit.reference import MovingReference, discard_reference, with_reference
from alignkit.runs import Run


def run(config: DpoConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Optimise the policy on preferences, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format, accelerator = setting.format, setting.accelerator

    tokenize = partial(sequences_of, format)
    train, validation, _ = load_examples(
        config.data, Comparison, tokenize, setting, run, config.seed, runtime.token_budget
    )
    check_moves(config, len(train))
    epochs_of(train, config.train, config.seed)  # before a reference is computed for nothing
    policy = setting.policy(config.model, config.seed)
    moving = MovingReference(policy, config.moving_reference) if config.moving_reference is not None else None
    if config.has_reference and moving is None:
        train, validation = with_reference(policy, [train, validation], runtime.token_budget, accelerator, run)
    objective = preference_objective(config, None if moving is None else moving.logps)
    if config.starts_at_ln2 and run.latest_checkpoint() is None:
        check_start(policy, train[: config.train.batch_size], objective, runtime.token_budget, accelerator)

    def save(folder: Path) -> None:
        save_policy(policy, format, folder)

    follower = None if moving is None else Follower(moving.follow, moving.weights)
    result = fit(
        policy, train, validation, objective, config.train, runtime, run, config.seed, accelerator, save, follower
    )
    finish(run, result)
    discard_reference(run)
    return run.model_dir


def check_moves(config: DpoConfig, examples: int) -> None:
    """Raises InputError where a reference that is to move would be trained against only where it started."""
    moving, steps = config.moving_reference, total_steps(config.train, examples)
    if moving is not None and moving.every >= steps:
        raise InputError(
            f"moving_reference.every: the reference moves after step {moving.every}, and the run has {steps} steps; "
            "lower it, or remove moving_reference"
        )


def check_start(
    policy: Policy, examples: Sequence[Example], objective: Objective, budget: int, accelerator: Accelerator
) -> None:
    """Before training policy and reference are equal, so the sigmoid loss is ln 2. Raises RuntimeError if not."""
    numbered = [replace(s, group=n) for n, example in enumerate(examples) for s in example]
    found = evaluate_objective(policy, pack(numbered, budget), objective, accelerator)["preference"]
    exact = accelerator.mixed_precision == "no" and all(
        p.dtype == torch.float32 for p in policy.parameters() if p.is_floating_point()
    )
    if abs(found - math.log(2)) > (1e-3 if exact else 5e-2):
        raise RuntimeError(f"the loss before training is {found:.4f}, not ln 2: the reference is not the policy")
