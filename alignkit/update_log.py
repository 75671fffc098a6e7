"""What an online update logs of its completions and its clock. Knows no advantage and no loss."""

from collections.abc import Mapping

import torch

from alignkit import rl
from alignkit.environment.tools import COUNTED, counted
from alignkit.options.ppo import PpoConfig
from alignkit.scoring import report
from alignkit.supply import Experience
from reward_models.rules import repeated


def describe(experience: Experience, config: PpoConfig, coef: float, reduce: rl.Reduce) -> dict[str, float]:
    """Means over the completions of all ranks (scores: that have one); KL and entropy in nats per completion. `coef`
    is the KL coefficient now."""
    mask, scores = experience.rollouts.mask, experience.worth.total
    kl = (rl.kl_k1(experience.old, experience.reference) * mask).sum(1)
    numbers = {
        "objective/score": scores,
        "objective/kl": kl,
        "objective/rlhf_reward": scores - coef * kl,
        "objective/non_score_reward": -coef * kl,
        "objective/entropy": -(experience.old * mask).sum(1),
        "completion/length": mask.sum(1),
        "completion/finished": torch.tensor([completion.finished for completion in experience.completions]),
        "completion/repetition": torch.tensor([repeated(completion.ids) for completion in experience.completions]),
    }
    if config.environment is not None:
        counts = [counted(completion) for completion in experience.completions]
        numbers |= {f"environment/{name}": torch.tensor([float(one[name]) for one in counts]) for name in COUNTED}
    known = ~scores.isnan()
    means = report(numbers, scores, experience.worth.parts, reduce)
    return means | {
        "objective/token_entropy": means["objective/entropy"] / max(means["completion/length"], 1.0),
        "objective/length_correlation": float(rl.correlation(scores[known], mask.sum(1)[known], reduce)),
    }


def pace(phases: Mapping[str, float], tokens: float, seconds: float) -> dict[str, float]:
    """What an update's clock says of its phases, in seconds, and of the tokens that were sampled in it."""
    return {f"seconds/{name}": spent for name, spent in phases.items()} | {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }
