"""A trained reward model's last steps: the scale of its scores, a reload, held-out metrics. Knows no loss."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignkit.evaluation.statistics import (
    length_only_accuracy,
    preference_accuracy,
    preference_calibration,
    preference_nll,
)
from alignkit.loop import Example
from alignkit.losses import ranking_pairs
from alignkit.options.shared import ModelOptions
from alignkit.packing import pack
from alignkit.scorer import Scorer, load_scorer
from alignkit.trie import TokenSequence


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
