"""DPO through its stage goes most of the way to the enumerated KL-constrained optimum from sampled rankings.

The policy is the transformer of `bigram_transformer`. Labels are drawn with 8·r, so DPO with 8·β has the optimum of β.
"""

import json
from pathlib import Path

import pytest
import tiny
import torch
from bigram_transformer import START, fitted, logps
from bigram_world import REWARDS, SEQUENCES, optimum, total_variation
from transformers import AutoModelForCausalLM

from alignkit.config import build
from alignkit.options.dpo import DpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.runs import Run
from alignkit.stages import dpo

BETA, SHARPNESS, RANKED = 0.3, 8.0, 6
RUNTIME = RuntimeOptions(trackers=[], device="cpu")


def rankings(count: int, reference: torch.Tensor) -> list[str]:
    """Plackett-Luce rankings of responses drawn from the reference [1296], as JSON lines."""
    torch.manual_seed(0)
    drawn = torch.multinomial(reference.exp(), count * RANKED, replacement=True).view(count, RANKED)
    utilities = SHARPNESS * REWARDS[drawn] - torch.rand(drawn.shape, dtype=torch.float64).log().neg().log()
    ranks = 1 + (utilities[:, None, :] > utilities[:, :, None]).sum(-1)
    words = ["".join("abcdef"[letter] for letter in sequence) for sequence in SEQUENCES.tolist()]
    return [
        json.dumps({"prompt": START, "responses": [words[n] for n in row], "ranks": rank})
        for row, rank in zip(drawn.tolist(), ranks.tolist(), strict=True)
    ]


def trained(folder: Path, count: int, epochs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of the 1,296 sequences before and after DPO on so many rankings."""
    fitted(folder / "reference")
    before = logps(AutoModelForCausalLM.from_pretrained(folder / "reference"))
    (folder / "rankings.jsonl").write_text("\n".join(rankings(count, before)) + "\n")
    options = {
        "model": {"path": str(folder / "reference"), "chat_template": "none", "eos_token": tiny.END},
        "data": {"path": str(folder / "rankings.jsonl"), "validation": 0},
        "train": {"learning_rate": 2e-3, "batch_size": 64, "epochs": epochs},
        "beta": SHARPNESS * BETA,
    }
    settings = build(DpoConfig, options, "")
    run = Run.open(folder / "run", "dpo", settings, RUNTIME, id="test")
    dpo.run(settings, RUNTIME, run)
    return before, logps(AutoModelForCausalLM.from_pretrained(run.model_dir))


def assert_nearer(before: torch.Tensor, after: torch.Tensor, gaps: float, variations: float, slope: float) -> None:
    """The shares that are left of J* - J and of the total variation, and how steeply the implicit reward follows r."""
    best = BETA * float(torch.logsumexp(before + REWARDS / BETA, 0))

    def gap(policy: torch.Tensor) -> float:
        return best - float(policy.exp() @ (REWARDS - BETA * (policy - before)))

    star = optimum(BETA)[0]
    # The implicit reward follows r, up to a constant, where the reference draws.
    implicit, weight = BETA * (after - before), before.exp() / before.exp().sum()
    deviations = torch.stack([REWARDS - weight @ REWARDS, implicit - weight @ implicit])
    covariance = (weight * deviations) @ deviations.T
    found = float(covariance[0, 1] / covariance[0, 0])
    left = total_variation(after, star)
    print(f"J* - J: {gap(before):.4f} -> {gap(after):.4f}; total variation {left:.3f}; slope {found:.3f}")
    assert -1e-6 < gap(after) < gaps * gap(before)
    assert left < variations * total_variation(before, star)
    assert slope < found < 1.05
    assert float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()) > 0.8


def test_towards_the_optimum(tmp_path: Path) -> None:
    assert_nearer(*trained(tmp_path, 6000, 2), gaps=0.3, variations=0.6, slope=0.6)


@pytest.mark.slow
def test_more_rankings_come_nearer(tmp_path: Path) -> None:
    assert_nearer(*trained(tmp_path, 20_000, 3), gaps=0.15, variations=0.35, slope=0.8)
