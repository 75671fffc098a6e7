"""KTO: preference optimisation from responses that are labelled one by one. Knows no other stage."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignkit.batches import seed_of
from alignkit.config import InputError
from alignkit.loop import Example, Objective, Sums, fit
from alignkit.models import save_policy
from alignkit.objective import Readings
from alignkit.options.kto import KtoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.policy import Policy
from alignkit.preferences import kto
from alignkit.prepare import finish, load_examples, open_setting, sequences_of
from alignkit.records import Feedback
from alignkit.reference import discard_reference, with_reference
from alignkit.runs import Run
from alignkit.trie import TokenSequence, TrieBatch, sum_by_owner

ESTIMATE = -1.0
"""In the place of a label: a response to another prompt, which the baseline is read off."""


def run(config: KtoConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Optimise the policy on labelled responses, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format, accelerator = setting.format, setting.accelerator

    tokenize = partial(sequences_of, format)
    train, validation, _ = load_examples(
        config.data, Feedback, tokenize, setting, run, config.seed, runtime.token_budget
    )
    if config.loss == "kto":
        train, validation = (mismatched(part, config.seed) for part in (train, validation))
    policy = setting.policy(config.model, config.seed)
    train, validation = with_reference(policy, [train, validation], runtime.token_budget, accelerator, run)

    def save(folder: Path) -> None:
        save_policy(policy, format, folder)

    objective = kto_objective(config)
    result = fit(policy, train, validation, objective, config.train, runtime, run, config.seed, accelerator, save)
    finish(run, result)
    discard_reference(run)
    return run.model_dir


def mismatched(examples: Sequence[Example], seed: int) -> list[Example]:
    """Each labelled response with the one before it in a seeded circle, as an answer to its own prompt.

    KTO's baseline is read off these. None is longer than the longest response was with its own
    prompt: the end of such an answer is left out. Raises InputError for a single example.
    """
    if len(examples) == 1:
        raise InputError(
            "data: KTO compares each response with that of another record: give it two or more, and data.validation "
            "none or two or more"
        )
    generator = torch.Generator().manual_seed(seed_of(seed, "mismatched"))
    order = torch.randperm(len(examples), generator=generator).tolist()
    longest = max((len(sequence.ids) for example in examples for sequence in example), default=0)
    result = list(examples)
    for place, n in enumerate(order):
        (own,), (other,) = examples[n], examples[order[place - 1]]
        prompt, answer = own.ids[: _start(own)], other.ids[_start(other) :]
        weights = [*own.weights[: _start(own)], *other.weights[_start(other) :]]
        ids = [*prompt, *answer]
        result[n] = [own, TokenSequence(ids[:longest], weights[:longest], columns={"good": ESTIMATE})]
    return result


def _start(sequence: TokenSequence) -> int:
    """Where the response begins; at the end, where it has no token."""
    return next((place for place, weight in enumerate(sequence.weights) if weight), len(sequence.ids))


def kto_objective(config: KtoConfig) -> Objective:
    """Mean over labelled responses; KTO's baseline is that of the whole step, and not differentiated."""

    def read(policy: Policy, batch: TrieBatch) -> Readings:
        return {"logps": policy(batch).logps}

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        gains = sum_by_owner(readings["logps"], batch) - sum_by_owner(batch.entry_columns["reference"], batch)
        good, bad, estimate = _parts(batch)
        labelled = good | bad
        baseline = gains[estimate].detach().mean().clamp(min=0) if estimate.any() else gains.new_zeros(())
        weights = config.desirable_weight, config.undesirable_weight
        items = kto(gains[labelled], good[labelled], config.beta, baseline, *weights)
        metrics = {
            "baseline": baseline * labelled.sum(),
            "good_gain": gains[good].detach().sum(),
            "bad_gain": gains[bad].detach().sum(),
        }
        return Sums({"preference": items.sum()}, metrics)

    def count(batch: TrieBatch) -> dict[str, float]:
        good, bad, _ = (float(part.sum()) for part in _parts(batch))
        return {"preference": good + bad, "baseline": good + bad, "good_gain": good, "bad_gain": bad}

    return Objective(read, loss, count, whole_step=config.loss == "kto")


def _parts(batch: TrieBatch) -> tuple[Tensor, Tensor, Tensor]:
    """bool [O] each: responses labelled good, labelled bad, and those that only the baseline is read off."""
    label = batch.owner_columns["good"]
    return label == 1, label == 0, label == ESTIMATE
