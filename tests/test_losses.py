"""Losses against TRL's own trainers, closed forms, brute force and numbers worked out by hand."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trl import DPOTrainer, RewardTrainer

from alignkit.losses import (
    bradley_terry,
    centring,
    dpo_hinge,
    dpo_ipo,
    dpo_robust,
    dpo_sigmoid,
    is_clipped,
    nll,
    policy_clip,
    ranking_pairs,
    value_clip,
)

PAIRS, TOKENS, BETA, SMOOTHING = 7, 5, 0.3, 0.2


class FakeAccelerator:
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather


def trl_dpo(logps: Tensor, ref: Tensor, mask: Tensor, kind: str) -> Tensor:
    """TRL's mean loss for per-token log-probabilities [2P, T]; chosen rows first, `mask` marks real tokens."""
    zeros = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        log_probs=logps * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=FakeAccelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=BETA,
        label_smoothing=SMOOTHING, use_weighting=False, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1,
    )  # fmt: skip
    wide = torch.cat([torch.zeros(len(mask), 1, dtype=mask.dtype), mask], 1)
    ref_chosen, ref_rejected = (ref * mask).sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(wide), "attention_mask": torch.ones_like(wide), "completion_mask": wide,
        "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "ipo", "hinge", "sft"])
def test_preference_losses_and_gradients_equal_trl(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logps = -3 * torch.rand(2 * PAIRS, TOKENS, generator=generator, dtype=torch.float64)
    ref = -3 * torch.rand(2 * PAIRS, TOKENS, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, TOKENS + 1, (2 * PAIRS,), generator=generator)
    mask = (torch.arange(TOKENS)[None, :] < lengths[:, None]).long()

    theirs_at, ours_at = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    theirs = trl_dpo(theirs_at, ref, mask, kind)
    (chosen, rejected), (ref_chosen, ref_rejected) = (ours_at * mask).sum(1).chunk(2), (ref * mask).sum(1).chunk(2)
    four = (chosen, rejected, ref_chosen, ref_rejected)
    ours: dict[str, Callable[[], Tensor]] = {
        "sigmoid": lambda: dpo_sigmoid(*four, BETA).mean(),
        "robust": lambda: dpo_robust(*four, BETA, SMOOTHING).mean(),
        "ipo": lambda: dpo_ipo(*four, BETA, *lengths.chunk(2)).mean(),
        "hinge": lambda: dpo_hinge(*four, BETA).mean(),
        "sft": lambda: nll(ours_at[:PAIRS][mask[:PAIRS].bool()]).mean(),
    }
    loss = ours[kind]()
    torch.testing.assert_close(loss, theirs, rtol=1e-12, atol=0)
    loss.backward()
    theirs.backward()
    torch.testing.assert_close(ours_at.grad, theirs_at.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("margin", [None, torch.tensor([0.0, 0.5, 2.0])])
def test_reward_loss_with_margin_and_centring_equals_trl(margin: Tensor | None) -> None:
    scores = torch.tensor([1.0, -0.3, 0.2, 0.4, 0.1, 2.0], requires_grad=True)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=FakeAccelerator(), _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(center_rewards_coefficient=0.01), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(6, 2)} | ({} if margin is None else {"margin": margin})
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    chosen, rejected = scores.chunk(2)
    ours = bradley_terry(chosen, rejected, margin).mean() + 0.01 * centring(chosen, rejected).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, scores), torch.autograd.grad(theirs, scores))


def margins(*values: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four log-probabilities whose log-ratio margins are `values`."""
    h = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(h)
    return h - 4.0, zero - 3.0, zero - 4.0, zero - 3.0


def test_equal_policies_lose_ln_2_whatever_beta() -> None:
    for beta in (0.01, 0.1, 5.0):
        assert dpo_sigmoid(*margins(0.0), beta).item() == pytest.approx(math.log(2), abs=1e-15)


def test_conservative_dpo_is_cross_entropy_with_soft_labels_and_stops_there() -> None:
    four = margins(-2.0, 0.0, 1.5)
    logits = 0.5 * torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    soft = torch.full_like(logits, 1 - 0.1)
    torch.testing.assert_close(
        dpo_sigmoid(*four, 0.5, label_smoothing=0.1),
        F.binary_cross_entropy_with_logits(logits, soft, reduction="none"),
    )
    h = torch.tensor([math.log(9) / 0.5], dtype=torch.float64, requires_grad=True)  # σ(βh) = .9
    zero = torch.zeros(1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(dpo_sigmoid(h, zero, zero, zero, 0.5, label_smoothing=0.1).sum(), h)
    assert abs(gradient.item()) < 1e-15


def test_robust_dpo_over_flipped_labels_averages_to_the_clean_loss() -> None:
    chosen, rejected, ref_chosen, ref_rejected = margins(-2.0, 0.3, 4.0)
    kept = dpo_robust(chosen, rejected, ref_chosen, ref_rejected, 0.7, 0.25)
    flipped = dpo_robust(rejected, chosen, ref_rejected, ref_chosen, 0.7, 0.25)
    clean = dpo_sigmoid(chosen, rejected, ref_chosen, ref_rejected, 0.7)
    torch.testing.assert_close(0.75 * kept + 0.25 * flipped, clean)


@pytest.mark.parametrize("rate", [-0.1, 0.5, 1.0])
def test_label_smoothing_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_robust(*margins(0.0), 0.1, rate)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_sigmoid(*margins(0.0), 0.1, rate)


def test_ipo_by_hand() -> None:
    assert dpo_ipo(*margins(3.0), 0.25).item() == pytest.approx((3 - 2) ** 2)
    chosen, rejected = torch.tensor([-4.0]), torch.tensor([-9.0])
    per_token = dpo_ipo(chosen, rejected, chosen - 1, rejected + 2, 0.25, torch.tensor([2]), torch.tensor([4]))
    assert per_token.item() == pytest.approx((0.5 + 0.5 - 2) ** 2)
    with pytest.raises(ValueError, match="both lengths"):
        dpo_ipo(chosen, rejected, chosen, rejected, 0.25, chosen_length=torch.tensor([2]))


def test_losses_do_not_overflow_far_from_the_optimum() -> None:
    for loss in (dpo_sigmoid(*margins(-1e4, 1e4), 1.0), dpo_robust(*margins(-1e4, 1e4), 1.0, 0.1)):
        assert torch.isfinite(loss).all()
    torch.testing.assert_close(bradley_terry(torch.tensor(-500.0), torch.tensor(500.0)), torch.tensor(1000.0))


def test_nll_per_token() -> None:
    torch.testing.assert_close(nll(torch.tensor([-6.0]), torch.tensor([4])), torch.tensor([1.5]))


def test_all_untied_pairs_of_every_ranking_weigh_one_together() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(1, 4, (40,), generator=generator)
    group = torch.randint(-1, 8, (40,), generator=generator)
    better, worse, weight = ranking_pairs(ranks, group)

    rankings: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, j in itertools.permutations(range(40), 2):
        if group[i] == group[j] >= 0 and ranks[i] < ranks[j]:
            rankings[int(group[i])].append((i, j))
    expected = {pair: 1 / len(pairs) for pairs in rankings.values() for pair in pairs}
    found = {(int(b), int(w)): float(x) for b, w, x in zip(better, worse, weight, strict=True)}
    assert found == pytest.approx(expected)
    assert len(found) == len(better)
    assert weight.sum().item() == pytest.approx(len(rankings))


def test_the_pairs_of_a_long_ranking_need_no_table_of_pairs_by_pairs() -> None:
    better, worse, weight = ranking_pairs(torch.arange(1000), torch.zeros(1000, dtype=torch.int64))
    assert len(better) == 1000 * 999 // 2 and (better < worse).all()
    assert (weight == 1 / 499_500).all()


def test_rankings_that_order_nothing_give_no_pairs() -> None:
    better, worse, weight = ranking_pairs(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 1]))
    assert (len(better), len(worse), weight.sum().item()) == (0, 0, 0)


#                 ratio, advantage, loss, gradient in logp flows
CLIPPED_CASES = [
    (1.0, 2.0, -2.0, True),
    (1.5, 2.0, -2.4, False),
    (1.5, -2.0, 3.0, True),
    (0.5, 2.0, -1.0, True),
    (0.5, -2.0, 1.6, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "flows"), CLIPPED_CASES)
def test_clipped_policy_loss_by_hand(ratio: float, advantage: float, expected: float, flows: bool) -> None:
    old, a = torch.tensor([-1.3], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    loss = policy_clip(logp, old, a, clip=0.2)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    step = 1e-6
    slope = (policy_clip(logp + step, old, a, 0.2) - policy_clip(logp - step, old, a, 0.2)).item() / (2 * step)
    assert gradient.item() == pytest.approx(slope, abs=1e-8)
    assert (gradient.item() != 0) is flows
    assert is_clipped(logp, old, a, 0.2).item() is not flows


def test_clip_high_widens_the_upper_side_only() -> None:
    one, old = torch.ones(1), torch.zeros(1)
    up = policy_clip(old + math.log(1.5), old, one, clip=0.2, clip_high=0.28)
    down = policy_clip(old + math.log(0.5), old, -one, clip=0.2, clip_high=0.28)
    assert (up.item(), down.item()) == (pytest.approx(-1.28), pytest.approx(0.8))


def test_clipped_value_loss_by_hand() -> None:
    old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 1.1])
    value = torch.tensor([1.1, 2.0, 2.0], requires_grad=True)
    # inside the band; outside it, towards the return: the clipped error is the larger; outside it, past the return.
    torch.testing.assert_close(value_clip(value, old, returns, 0.2), 0.5 * torch.tensor([1.9**2, 1.8**2, 0.9**2]))
    (gradient,) = torch.autograd.grad(value_clip(value, old, returns, 0.2).sum(), value)
    torch.testing.assert_close(gradient, torch.tensor([-1.9, 0.0, 0.9]))
    torch.testing.assert_close(
        value_clip(value, old, returns, None), 0.5 * F.mse_loss(value, returns, reduction="none")
    )
