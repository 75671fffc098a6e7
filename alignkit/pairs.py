"""The objective of preference optimisation: a batch's rankings as pairs, and any loss on them. Knows no stage."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit import preferences
from alignkit.losses import ranking_pairs
from alignkit.objective import Objective, Readings, Sums
from alignkit.options.dpo import DpoConfig, LossName
from alignkit.policy import Policy
from alignkit.trie import TrieBatch, sum_by_owner

PairLoss = Callable[[Tensor, Tensor, DpoConfig], Tensor]


def _sigmoid(chosen: Tensor, rejected: Tensor, config: DpoConfig, margin: float = 0.0) -> Tensor:
    return preferences.sigmoid(chosen, rejected, config.beta, config.label_smoothing, margin)


LOSSES: Mapping[LossName, PairLoss] = MappingProxyType(
    {
        **dict.fromkeys(("sigmoid", "sigmoid_norm", "cpo", "aot", "aot_unpaired"), _sigmoid),
        "simpo": lambda chosen, rejected, o: _sigmoid(chosen, rejected, o, o.margin),
        "hinge": lambda chosen, rejected, o: preferences.hinge(chosen, rejected, o.beta),
        "ipo": lambda chosen, rejected, o: preferences.ipo(chosen, rejected, o.beta),
        "robust": lambda chosen, rejected, o: preferences.robust(chosen, rejected, o.beta, o.label_smoothing),
        "exo": lambda chosen, rejected, o: preferences.exo(chosen, rejected, o.beta, o.label_smoothing),
        "nca": lambda chosen, rejected, o: preferences.nca(chosen, rejected, o.beta),
        "bco": lambda chosen, rejected, o: preferences.bco(chosen, rejected, o.beta),
        "sppo": lambda chosen, rejected, o: preferences.sppo(chosen, rejected, o.beta),
        "apo_zero": lambda chosen, rejected, o: preferences.apo_zero(chosen, rejected, o.beta),
        "apo_down": lambda chosen, rejected, o: preferences.apo_down(chosen, rejected, o.beta),
        "discopop": lambda chosen, rejected, o: preferences.discopop(chosen, rejected, o.beta),
        "orpo": lambda chosen, rejected, o: o.beta * preferences.sigmoid(chosen, rejected, 1.0),
    }
)
"""Each loss of the scores that `Pairs.scores` gives it; plackett_luce alone takes whole rankings instead."""

METRICS = ("accuracy", "margin", "chosen_gain", "rejected_gain")


def preference_objective(config: DpoConfig, reference: Callable[[TrieBatch], Tensor] | None = None) -> Objective:
    """Mean over rankings of the mean over their untied pairs (with plackett_luce, of their negative log-likelihood),
    each loss with its weight; the optional NLL is per token of the best responses.

    `reference` gives its log-probabilities of a row, [E]; without it they are the row's token column "reference".
    """
    weighs = config.weighting == "wpo"

    def read(policy: Policy, batch: TrieBatch) -> Readings:
        held = {} if reference is None else {"reference": reference(batch)}
        found = policy(batch, collision=weighs)
        return {"logps": found.logps} | ({"collisions": found.collisions} if weighs else {}) | held

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        pairs = Pairs(config, readings, batch)
        terms = {"preference": torch.stack([w * pairs.loss(name) for name, w in config.losses.items()]).sum()}
        if config.nll_coef:
            best = batch.owner_columns["rank"] == 1
            terms["nll"] = -config.nll_coef * sum_by_owner(readings["logps"], batch)[best].sum()
        return Sums(terms, pairs.metrics())

    def count(batch: TrieBatch) -> dict[str, float]:
        rankings = _ranked(batch)[2].sum().item()
        counts = dict.fromkeys(("preference", *METRICS), rankings)
        if config.nll_coef:
            counts["nll"] = _lengths(batch)[batch.owner_columns["rank"] == 1].sum().item()
        return counts

    return Objective(read, loss, count, whole_step=any(name.startswith("aot") for name in config.losses))


class Pairs:
    """The P untied pairs of a batch's rankings, as (chosen, rejected), and what a loss makes of them."""

    def __init__(self, config: DpoConfig, readings: Readings, batch: TrieBatch) -> None:
        self.config, self.batch = config, batch
        self.lengths = _lengths(batch)
        self.better, self.worse, self.weight = _ranked(batch)
        self.policy = readings["logps"]
        self.reference = torch.zeros_like(self.policy)
        if config.has_reference:
            self.reference = {**batch.entry_columns, **readings}["reference"]
        self.importance = torch.ones_like(self.weight)
        if config.weighting == "wpo":
            likely = sum_by_owner((self.policy - readings["collisions"]).detach(), batch) / self.lengths.clamp(min=1)
            self.importance = torch.exp(likely[self.better] + likely[self.worse])

    def loss(self, name: LossName) -> Tensor:
        """The sum of a loss over all rankings, each weighing 1."""
        if name == "plackett_luce":
            scores, ranks = self.divergence_score(self.log_ratio()), self.batch.owner_columns["rank"]
            return preferences.plackett_luce(scores, ranks, self.batch.group, self.config.beta).sum()
        chosen, rejected = self.scores(name)
        weight = self.weight * self.importance
        if name in ("aot", "aot_unpaired"):
            chosen, rejected, weight = preferences.coupled(chosen, rejected, weight)
        return (weight * LOSSES[name](chosen, rejected, self.config)).sum()

    def scores(self, name: LossName) -> tuple[Tensor, Tensor]:
        """What a loss compares, [P] each: as a rule the log-ratios to the reference of chosen and rejected."""
        policy, reference = self.sums(self.policy), self.sums(self.reference)
        if name == "aot":
            return policy[0] - policy[1], reference[0] - reference[1]
        chosen, rejected = (self.divergence_score(p - r) for p, r in zip(policy, reference, strict=True))
        if name in ("sigmoid_norm", "ipo", "simpo", "orpo"):
            lengths = self.lengths.clamp(min=1)
            chosen, rejected = chosen / lengths[self.better], rejected / lengths[self.worse]
        return (preferences.log_odds(chosen), preferences.log_odds(rejected)) if name == "orpo" else (chosen, rejected)

    def log_ratio(self) -> Tensor:
        """[O] log π/π_ref in nats, log π where the losses have no reference."""
        return sum_by_owner(self.policy, self.batch) - sum_by_owner(self.reference, self.batch)

    def divergence_score(self, log_ratio: Tensor) -> Tensor:
        return preferences.divergence_score(log_ratio, self.config.divergence, self.config.divergence_alpha)

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """([P], [P]) sums of [E] over the tokens of each pair's responses; LD-DPO's where the tail weighs less."""
        if self.config.tail_weight == 1:
            whole = sum_by_owner(values, self.batch)
            return whole[self.better], whole[self.worse]
        # Entries stand response by response, so the beginning of a response is a difference of running sums.
        running = F.pad(values.double().cumsum(0), (1, 0))
        lengths = self.lengths.long()
        ends = lengths.cumsum(0)
        common = torch.minimum(lengths[self.better], lengths[self.worse])

        def of(owner: Tensor) -> Tensor:
            start = (ends - lengths)[owner]
            head, tail = running[start + common] - running[start], running[ends[owner]] - running[start + common]
            return (head + self.config.tail_weight * tail).to(values.dtype)

        return of(self.better), of(self.worse)

    def metrics(self) -> dict[str, Tensor]:
        """Sums over rankings: how often, and by how much times β, the first loss's scores agree with the ranking; and
        what chosen and rejected responses gained on the reference in nats (without one: their log-probability)."""
        first = next(iter(self.config.losses))
        whole = first in ("aot", "plackett_luce")  # they compare other things than the two responses of a pair
        gained = self.log_ratio().detach()
        both = gained[self.better], gained[self.worse]
        chosen, rejected = both if whole else (score.detach() for score in self.scores(first))
        numbers = ((chosen > rejected).float(), self.config.beta * (chosen - rejected), *both)
        return {name: (self.weight * number).sum() for name, number in zip(METRICS, numbers, strict=True)}


def _ranked(batch: TrieBatch) -> tuple[Tensor, Tensor, Tensor]:
    return ranking_pairs(batch.owner_columns["rank"], batch.group)


def _lengths(batch: TrieBatch) -> Tensor:
    """[O] tokens of each response; an empty one that was cut off has none."""
    return sum_by_owner(torch.ones_like(batch.weight), batch)
