"""Direct preference optimisation on ranked comparisons. Knows no other stage."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit import losses
from alignkit.config import content_hash
from alignkit.loop import Example, Objective, Sums, evaluate_objective, fit
from alignkit.models import save_policy
from alignkit.objective import Readings
from alignkit.options.dpo import DpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.prepare import finish, load_examples, open_setting, ranked_sequences
from alignkit.records import Comparison
from alignkit.runs import Run
from alignkit.trie import TokenSequence, TrieBatch, sum_by_owner


def run(config: DpoConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Optimise the policy on preferences, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format, accelerator = setting.format, setting.accelerator

    def tokenize(records: Sequence[Comparison]) -> list[list[TokenSequence]]:
        return ranked_sequences(format, records)

    train, validation, _ = load_examples(
        config.data, Comparison, tokenize, setting, run, config.seed, runtime.token_budget
    )
    policy = setting.policy(config.model, config.seed)
    examples = with_reference(policy, [*train, *validation], runtime.token_budget, accelerator, run)
    train, validation = examples[: len(train)], examples[len(train) :]
    objective = preference_objective(config)
    if config.loss == "sigmoid" and run.latest_checkpoint() is None:
        check_start(policy, train[: config.train.batch_size], objective, runtime.token_budget, accelerator)

    def save(folder: Path) -> None:
        save_policy(policy, format, folder)

    result = fit(policy, train, validation, objective, config.train, runtime, run, config.seed, accelerator, save)
    finish(run, result)
    return run.model_dir


def preference_objective(config: DpoConfig) -> Objective:
    """Mean over rankings of the mean over their untied pairs; the optional NLL is per token of the best responses."""

    def read(policy: Policy, batch: TrieBatch) -> Readings:
        return {"logps": sum_by_owner(policy(batch).logps, batch)}

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        logps, reference = readings["logps"], batch.owner_columns["reference"]
        better, worse, weight = _pairs(batch)
        items = _items(config, logps, reference, _lengths(batch), better, worse)
        terms = {"preference": (weight * items).sum()}
        if config.nll_coef:
            terms["nll"] = -config.nll_coef * logps[batch.owner_columns["rank"] == 1].sum()
        gained = (logps - reference).detach()
        metrics = {
            "accuracy": (weight * (gained[better] > gained[worse])).sum(),
            "margin": config.beta * (weight * (gained[better] - gained[worse])).sum(),
            "chosen_gain": (weight * gained[better]).sum(),
            "rejected_gain": (weight * gained[worse]).sum(),
        }
        return Sums(terms, metrics)

    def count(batch: TrieBatch) -> dict[str, float]:
        rankings = _pairs(batch)[2].sum().item()
        counts = dict.fromkeys(("preference", "accuracy", "margin", "chosen_gain", "rejected_gain"), rankings)
        if config.nll_coef:
            counts["nll"] = _lengths(batch)[batch.owner_columns["rank"] == 1].sum().item()
        return counts

    return Objective(read, loss, count)


def _pairs(batch: TrieBatch) -> tuple[Tensor, Tensor, Tensor]:
    return losses.ranking_pairs(batch.owner_columns["rank"], batch.group)


def _lengths(batch: TrieBatch) -> Tensor:
    """[O] tokens of each response."""
    return sum_by_owner(torch.ones_like(batch.weight), batch)


def _items(
    config: DpoConfig, logps: Tensor, reference: Tensor, lengths: Tensor, better: Tensor, worse: Tensor
) -> Tensor:
    """[P], the loss of each pair."""
    pairs = logps[better], logps[worse], reference[better], reference[worse]
    match config.loss:
        case "sigmoid":
            return losses.dpo_sigmoid(*pairs, config.beta, config.label_smoothing)
        case "robust":
            return losses.dpo_robust(*pairs, config.beta, config.label_smoothing)
        case "ipo":
            return losses.dpo_ipo(*pairs, config.beta, lengths[better], lengths[worse])
        case "hinge":
            return losses.dpo_hinge(*pairs, config.beta)


def with_reference(
    policy: Policy, examples: Sequence[Example], budget: int, accelerator: Accelerator, run: Run
) -> list[Example]:
    """The examples with each sequence's summed log-probability under the incoming model as column "reference".

    Computed once, before training, when policy and reference are the same, and kept in the run's directory.
    """
    sequences = [sequence for example in examples for sequence in example]
    path = run.directory / "reference.safetensors"
    key = content_hash([[list(map(int, sequence.ids)), list(sequence.weights)] for sequence in sequences])
    known = load_file(path) if path.is_file() else {}
    if key not in known:
        mine = list(range(accelerator.process_index, len(sequences), accelerator.num_processes))
        parts = gather_object([(mine, _summed(policy, [sequences[n] for n in mine], budget, accelerator))])
        logps = torch.zeros(len(sequences))
        for indices, values in parts:
            logps[indices] = values
        known = {key: logps}
        if run.is_main:
            save_file(known, path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
    reference = iter(known[key].tolist())
    return [
        [replace(sequence, columns={**sequence.columns, "reference": next(reference)}) for sequence in example]
        for example in examples
    ]


@torch.no_grad()
def _summed(policy: Policy, sequences: Sequence[TokenSequence], budget: int, accelerator: Accelerator) -> Tensor:
    logps = torch.zeros(len(sequences))
    for batch in pack(sequences, budget):
        moved = batch.to(accelerator.device)
        with accelerator.autocast():
            logps[batch.owners] = sum_by_owner(policy(moved).logps, moved).cpu()
    return logps


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
