"""Reward-model training: Bradley-Terry over all untied pairs of each ranking. Knows no other stage."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignkit.data.world import limits
from alignkit.evaluation.statistics import (
    length_only_accuracy,
    preference_accuracy,
    preference_calibration,
    preference_nll,
)
from alignkit.loop import Example, Objective, Sums, fit
from alignkit.losses import bradley_terry, centring, ranking_pairs
from alignkit.objective import Readings
from alignkit.options.reward import RewardConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.packing import pack
from alignkit.prepare import finish, load_examples, open_setting, ranked_sequences
from alignkit.records import Comparison
from alignkit.runs import Run
from alignkit.scorer import Scorer, load_scorer, save_scorer
from alignkit.trie import TokenSequence, TrieBatch


def run(config: RewardConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Train a reward model, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format = setting.format

    def tokenize(records: Sequence[Comparison]) -> list[list[TokenSequence]]:
        return ranked_sequences(format, records)

    train, validation, compared = load_examples(
        config.data, Comparison, tokenize, setting, run, config.seed, runtime.token_budget
    )
    scorer = setting.scorer(config.model, config.seed)
    # A constant cancels in every pair: its gradient is rounding noise, which AdamW would blow up to steps.
    scorer.head.bias.requires_grad_(config.centring > 0)
    objective = ranking_objective(config.margin, config.centring)

    def save(folder: Path) -> None:
        set_normalisation(scorer, train[: config.reference_rows], runtime.token_budget)
        save_scorer(scorer, format, folder)
        check_reload(scorer, folder, [train[0]], runtime.token_budget)

    result = fit(
        scorer, train, validation, objective, config.train, runtime, run, config.seed, setting.accelerator, save
    )
    metrics = held_out_metrics(scorer, validation, runtime.token_budget) if validation else {}
    if config.data.world and compared:
        best = limits(compared)
        metrics |= {"held_out/accuracy_ceiling": best.accuracy, "held_out/nll_floor": best.nll}
    metrics = dict(sorted(metrics.items()))
    finish(run, result, {**metrics, "score_mean": scorer.mean.item(), "score_deviation": scorer.deviation.item()})
    return run.model_dir


def ranking_objective(margin: float, centring_coef: float) -> Objective:
    """Mean over rankings of the mean over their untied pairs, in nats; ties and lone responses add nothing."""

    def read(scorer: Scorer, batch: TrieBatch) -> Readings:
        return {"scores": scorer(batch)}

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        better, worse, weight = _pairs(batch)
        chosen, rejected = readings["scores"][better], readings["scores"][worse]
        rating = batch.owner_columns["rating"]
        gap = margin * (rating[better] - rating[worse])
        terms = {"ranking": (weight * bradley_terry(chosen, rejected, gap)).sum()}
        if centring_coef:
            terms["centring"] = centring_coef * (weight * centring(chosen, rejected)).sum()
        metrics = {
            "accuracy": (weight * (chosen > rejected)).sum().detach(),
            "score_gap": (weight * (chosen - rejected)).sum().detach(),
        }
        return Sums(terms, metrics)

    def count(batch: TrieBatch) -> dict[str, float]:
        rankings = _pairs(batch)[2].sum().item()
        terms = ["ranking", "accuracy", "score_gap"] + ["centring"] * bool(centring_coef)
        return dict.fromkeys(terms, rankings)

    return Objective(read, loss, count)


def _pairs(batch: TrieBatch) -> tuple[Tensor, Tensor, Tensor]:
    return ranking_pairs(batch.owner_columns["rank"], batch.group)


@torch.no_grad()
def score(scorer: Scorer, sequences: Sequence[TokenSequence], budget: int) -> Tensor:
    """Raw scores [N] of sequences, in their order."""
    scores = torch.zeros(len(sequences))
    device = scorer.head.weight.device
    for batch in pack(sequences, budget):
        scores[batch.owners] = scorer(batch.to(device)).cpu()
    return scores


def set_normalisation(scorer: Scorer, examples: Sequence[Example], budget: int) -> None:
    """Take mean and deviation of the score over the examples' responses."""
    scores = score(scorer, [sequence for example in examples for sequence in example], budget)
    scorer.mean.copy_(scores.mean())
    scorer.deviation.copy_(scores.std().clamp_min(1e-6))


def check_reload(scorer: Scorer, folder: Path, examples: Sequence[Example], budget: int) -> None:
    """Load what was saved, and raise RuntimeError where it scores differently (a lost head, a lost adapter)."""
    sequences = [sequence for example in examples for sequence in example]
    again = load_scorer(ModelOptions(path=str(folder)), trainable=False).to(scorer.head.weight.device)
    before, after = score(scorer, sequences, budget), score(again, sequences, budget)
    low_precision = any(p.dtype not in (torch.float32, torch.float64) for p in scorer.parameters())
    tolerance = 0.5 if low_precision else 1e-3
    if not torch.allclose(before, after, atol=tolerance * max(1.0, float(scorer.deviation))):
        raise RuntimeError(f"{folder}: saved scores differ from trained ones: {after.tolist()} and {before.tolist()}")


def held_out_metrics(scorer: Scorer, examples: Sequence[Example], budget: int) -> dict[str, float]:
    """Accuracy, NLL and calibration error on untied pairs, each ranking weighing 1, beside length-only accuracy."""
    sequences = [sequence for example in examples for sequence in example]
    scores = score(scorer, sequences, budget)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    start = 0
    for example in examples:
        ranks = torch.tensor([sequence.columns["rank"] for sequence in example])
        first, second, share = ranking_pairs(ranks, torch.zeros(len(example), dtype=torch.int64))
        found.append((first + start, second + start, share))
        start += len(example)
    better, worse, weight = (torch.cat(part) for part in zip(*found, strict=True))
    lengths = torch.tensor([sum(w != 0 for w in sequence.weights) for sequence in sequences])
    margins, weights = (scores[better] - scores[worse]).tolist(), weight.tolist()
    by_length = length_only_accuracy(lengths[better].tolist(), lengths[worse].tolist(), weights)
    return {
        "held_out/accuracy": preference_accuracy(margins, weights),
        "held_out/nll": preference_nll(margins, weights),
        "held_out/calibration_error": preference_calibration(margins, weights),
        "held_out/length_only_accuracy": by_length["best"],
        "held_out/pairs": float(len(margins)),
    }
