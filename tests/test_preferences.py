"""Preference losses against TRL's own trainers, closed forms, brute force and numbers worked out by hand."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from alignkit import preferences
from alignkit.preferences import coupled, divergence_score, log_odds, plackett_luce, robust, sigmoid

PAIRS, TOKENS, BETA, SMOOTHING = 7, 5, 0.3, 0.2
Scores = tuple[Tensor, Tensor]


class FakeAccelerator:
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather


def trl_dpo(logps: Tensor, ref: Tensor, mask: Tensor, kind: str, divergence: str = "reverse_kl") -> Tensor:
    """TRL's mean loss for per-token log-probabilities [2P, T]; chosen rows first, `mask` marks real tokens."""
    zeros = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        log_probs=logps * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=FakeAccelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type=divergence, f_alpha_divergence_coef=0.5, loss_types=[kind],
        loss_weights=[1.0], beta=BETA, label_smoothing=SMOOTHING, use_weighting=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(discopop_tau=0.05),
    )  # fmt: skip
    wide = torch.cat([torch.zeros(len(mask), 1, dtype=mask.dtype), mask], 1)
    ref_chosen, ref_rejected = (ref * mask).sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(wide), "attention_mask": torch.ones_like(wide), "completion_mask": wide,
        "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of policy and reference [2P, T], lengths [2P], and the mask [2P, T]."""
    generator = torch.Generator().manual_seed(3)
    logps = -3 * torch.rand(2 * PAIRS, TOKENS, generator=generator, dtype=dtype)
    ref = -3 * torch.rand(2 * PAIRS, TOKENS, generator=generator, dtype=dtype)
    lengths = torch.randint(1, TOKENS + 1, (2 * PAIRS,), generator=generator)
    return logps, ref, lengths, (torch.arange(TOKENS)[None, :] < lengths[:, None]).long()


def transported(first: Tensor, second: Tensor) -> Tensor:
    first, second, mass = coupled(first, second, torch.full_like(first, 1 / PAIRS))
    return (mass * sigmoid(first, second, BETA, SMOOTHING)).sum() * PAIRS


# TRL's name -> ours, of the pairs' scores; AOT's are matched first, and come back as a mean of P items.
OURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda c, r: sigmoid(c, r, BETA),
    "robust": lambda c, r: robust(c, r, BETA, SMOOTHING),
    "hinge": lambda c, r: preferences.hinge(c, r, BETA),
    "exo_pair": lambda c, r: preferences.exo(c, r, BETA, SMOOTHING),
    "nca_pair": lambda c, r: preferences.nca(c, r, BETA),
    "bco_pair": lambda c, r: preferences.bco(c, r, BETA),
    "sppo_hard": lambda c, r: preferences.sppo(c, r, BETA),
    "apo_zero": lambda c, r: preferences.apo_zero(c, r, BETA),
    "apo_down": lambda c, r: preferences.apo_down(c, r, BETA),
    "discopop": lambda c, r: preferences.discopop(c, r, BETA),
    "aot_unpaired": lambda c, r: transported(c, r) / PAIRS,
}


def assert_trl(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logps: Tensor, relative: float = 1e-10
) -> None:
    """Both losses of the same log-probabilities, and their gradients."""
    ours_at, theirs_at = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    loss, expected = ours(ours_at), theirs(theirs_at)
    torch.testing.assert_close(loss, expected, rtol=relative, atol=0)
    (gradient,), (wanted,) = torch.autograd.grad(loss, ours_at), torch.autograd.grad(expected, theirs_at)
    assert wanted.abs().max() > 1e-4
    torch.testing.assert_close(gradient, wanted, rtol=10 * relative, atol=1e-14)


@pytest.mark.parametrize("kind", OURS)
def test_losses_of_log_ratios_and_their_gradients_equal_trl(kind: str) -> None:
    logps, ref, _, mask = drawn()

    def ours(at: Tensor) -> Tensor:
        return OURS[kind](*((at - ref) * mask).sum(1).chunk(2)).mean()

    # TRL rounds the rate of exo to float32.
    assert_trl(ours, lambda at: trl_dpo(at, ref, mask, kind), logps, 1e-6 if kind == "exo_pair" else 1e-10)


@pytest.mark.parametrize("kind", ["ipo", "sigmoid_norm", "sft", "aot"])
def test_losses_of_other_scores_and_their_gradients_equal_trl(kind: str) -> None:
    logps, ref, lengths, mask = drawn()

    def ours(at: Tensor) -> Tensor:
        chosen, rejected = (((at - ref) * mask).sum(1) / lengths).chunk(2)
        margin, ref_margin = ((x * mask).sum(1).chunk(2)[0] - (x * mask).sum(1).chunk(2)[1] for x in (at, ref))
        return {
            "ipo": lambda: preferences.ipo(chosen, rejected, BETA).mean(),
            "sigmoid_norm": lambda: sigmoid(chosen, rejected, BETA).mean(),
            "sft": lambda: -at[:PAIRS][mask[:PAIRS].bool()].mean(),
            "aot": lambda: transported(margin, ref_margin) / PAIRS,
        }[kind]()

    assert_trl(ours, lambda at: trl_dpo(at, ref, mask, kind), logps)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("forward_kl", "forward_kl"), ("js", "js_divergence"), ("alpha", "alpha_divergence")],
)
def test_scores_of_divergences_equal_trl(ours: preferences.Divergence, theirs: str) -> None:
    logps, ref, _, mask = drawn(torch.float32)

    def loss(at: Tensor) -> Tensor:
        ratios = ((at - ref) * mask).sum(1)
        return sigmoid(*divergence_score(ratios, ours, 0.5).chunk(2), BETA).mean()

    at = logps.clone().requires_grad_()
    torch.testing.assert_close(loss(at), trl_dpo(at, ref, mask, "sigmoid", theirs), rtol=1e-5, atol=0)
    found, expected = (torch.autograd.grad(x, at)[0] for x in (loss(at), trl_dpo(at, ref, mask, "sigmoid", theirs)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["sigmoid", "simpo", "orpo"])
def test_losses_without_a_reference_equal_trl(kind: str) -> None:
    logps, _, lengths, mask = drawn()

    def theirs(at: Tensor) -> Tensor:
        totals = (at * mask).sum(1)
        if kind == "orpo":
            means = (totals / lengths).float().chunk(2)
            return -ORPOTrainer.odds_ratio_loss(
                SimpleNamespace(beta=BETA, accelerator=FakeAccelerator()), *means
            )[0].mean()  # fmt: skip
        trainer = SimpleNamespace(
            alpha=0.0, loss_type=kind, simpo_gamma=0.4, beta=BETA, label_smoothing=0.1, accelerator=FakeAccelerator()
        )
        return CPOTrainer.cpo_loss(trainer, *(totals / lengths if kind == "simpo" else totals).chunk(2))[0].mean()

    def ours(at: Tensor) -> Tensor:
        totals = (at * mask).sum(1)
        if kind == "orpo":
            chosen, rejected = log_odds((totals / lengths).float()).chunk(2)
            return BETA * sigmoid(chosen, rejected, 1.0).mean()
        if kind == "simpo":
            return sigmoid(*(totals / lengths).chunk(2), BETA, 0.1, margin=0.4).mean()
        return sigmoid(*totals.chunk(2), BETA, 0.1).mean()

    if kind != "orpo":
        assert_trl(ours, theirs, logps)
        return
    at = logps.clone().requires_grad_()
    torch.testing.assert_close(ours(at), theirs(at), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours(at), at)[0], torch.autograd.grad(theirs(at), at)[0], rtol=1e-5, atol=1e-8
    )


# --------------------------------------------------------------------------------------------- by hand, closed forms


def scores(*values: float) -> Scores:
    """Scores of pairs that differ by `values`."""
    h = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return h - 1.0, torch.zeros_like(h) - 1.0


def test_equal_policies_lose_ln_2_whatever_beta() -> None:
    for beta in (0.01, 0.1, 5.0):
        assert sigmoid(*scores(0.0), beta).item() == pytest.approx(math.log(2), abs=1e-15)


def test_conservative_dpo_is_cross_entropy_with_soft_labels_and_stops_there() -> None:
    logits = 0.5 * torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    soft = torch.full_like(logits, 1 - 0.1)
    torch.testing.assert_close(
        sigmoid(*scores(-2.0, 0.0, 1.5), 0.5, label_smoothing=0.1),
        F.binary_cross_entropy_with_logits(logits, soft, reduction="none"),
    )
    h = torch.tensor([math.log(9) / 0.5], dtype=torch.float64, requires_grad=True)  # σ(βh) = .9
    (gradient,) = torch.autograd.grad(sigmoid(h, torch.zeros_like(h), 0.5, label_smoothing=0.1).sum(), h)
    assert abs(gradient.item()) < 1e-15


def test_exo_descends_to_the_same_place_by_the_other_divergence() -> None:
    h = torch.tensor([math.log(9) / 0.5], dtype=torch.float64, requires_grad=True)
    loss = preferences.exo(h, torch.zeros_like(h), 0.5, 0.1)
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert preferences.exo(h + 0.1, torch.zeros_like(h), 0.5, 0.1).item() > 0
    with pytest.raises(ValueError, match="above 0"):
        preferences.exo(h, h, 0.5, 0.0)


def test_robust_dpo_over_flipped_labels_averages_to_the_clean_loss() -> None:
    chosen, rejected = scores(-2.0, 0.3, 4.0)
    kept, flipped = robust(chosen, rejected, 0.7, 0.25), robust(rejected, chosen, 0.7, 0.25)
    torch.testing.assert_close(0.75 * kept + 0.25 * flipped, sigmoid(chosen, rejected, 0.7))


@pytest.mark.parametrize("rate", [-0.1, 0.5, 1.0])
@pytest.mark.parametrize("loss", [robust, sigmoid, preferences.exo])
def test_label_smoothing_out_of_range_is_refused(loss: Callable[..., Tensor], rate: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        loss(*scores(0.0), 0.1, rate)


def test_ipo_and_sppo_by_hand() -> None:
    assert preferences.ipo(*scores(3.0), 0.25).item() == pytest.approx((3 - 2) ** 2)
    chosen, rejected = torch.tensor([1.5]), torch.tensor([-3.0])
    assert preferences.sppo(chosen, rejected, 0.25).item() == pytest.approx((1.5 - 2) ** 2 + (-3 + 2) ** 2)


def test_losses_do_not_overflow_far_from_the_optimum() -> None:
    for loss in (sigmoid(*scores(-1e4, 1e4), 1.0), robust(*scores(-1e4, 1e4), 1.0, 0.1)):
        assert torch.isfinite(loss).all()
    chosen, rejected = scores(-1e4, 1e4)
    popped = preferences.discopop(chosen, rejected, 1.0)
    assert torch.isfinite(popped).all() and torch.isfinite(torch.autograd.grad(popped.sum(), chosen)[0]).all()
    for divergence in ("forward_kl", "js", "alpha"):
        ratios = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
        found = divergence_score(ratios, divergence)
        assert torch.isfinite(found).all() and found[1] == 0
        assert torch.isfinite(torch.autograd.grad(found.sum(), ratios)[0]).all()


def test_log_odds_by_hand_and_at_certainty() -> None:
    certain = torch.tensor([math.log(0.8), 0.0, -1e-30], requires_grad=True)
    odds = log_odds(certain)
    assert odds[0].item() == pytest.approx(math.log(4), rel=1e-6)
    assert torch.isfinite(odds).all() and torch.isfinite(torch.autograd.grad(odds.sum(), certain)[0]).all()


# ---------------------------------------------------------------------------------------------------- whole rankings


def test_plackett_luce_is_the_chance_of_drawing_the_ranking_item_by_item() -> None:
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    group = torch.zeros(4, dtype=torch.int64)
    total = 0.0
    for order in itertools.permutations(range(4)):
        chance, left = 1.0, list(range(4))
        for taken in order:
            chance *= (rewards[taken].exp() / rewards[left].exp().sum()).item()
            left.remove(taken)
        ranks = torch.tensor([1.0 + order.index(n) for n in range(4)])
        found = plackett_luce(rewards / 0.5, ranks, group, 0.5).sum().item()
        assert found == pytest.approx(-math.log(chance), abs=1e-12)
        total += math.exp(-found)
    assert total == pytest.approx(1)


def test_plackett_luce_on_pairs_is_dpo_and_ties_do_not_compete() -> None:
    chosen, rejected = scores(-2.0, 0.3, 4.0)
    both, group = torch.stack([chosen, rejected], 1).flatten(), torch.tensor([0, 0, 1, 1, 2, 2])
    ranks = torch.tensor([1.0, 2.0] * 3)
    items = plackett_luce(both, ranks, group, 0.7).unflatten(0, (3, 2)).sum(1)
    torch.testing.assert_close(items, sigmoid(chosen, rejected, 0.7))
    assert plackett_luce(both, torch.ones(6), group, 0.7).abs().max() == 0
    assert plackett_luce(both, ranks, torch.full((6,), -1), 0.7).abs().max() == 0
    tied = plackett_luce(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 1.0, 2.0]), torch.zeros(3), 1.0)
    expected = [math.log1p(math.exp(-0.5)), math.log1p(math.exp(-1.5)), 0]
    assert tied.tolist() == pytest.approx(expected, abs=1e-6)


def test_coupling_repeats_what_weighs_more() -> None:
    """Weights in whole numbers are so many equal items, which are sorted."""
    first, second = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([0.0, 7.0, 2.0])
    times = torch.tensor([1, 2, 3])
    a, b, mass = coupled(first, second, times.float())
    assert mass.sum().item() == pytest.approx(6)
    expected = list(zip(*(x.repeat_interleave(times).sort().values.tolist() for x in (first, second)), strict=True))
    found = [pair for *pair, m in zip(a.tolist(), b.tolist(), mass.tolist(), strict=True) for _ in range(round(m))]
    assert [tuple(pair) for pair in found] == expected


# ------------------------------------------------------------------------------------------- what they converge to

REWARDS = torch.tensor([0.0, 1.0, -0.5, 0.4, 0.9], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, -0.6, 0.4, 0.8, -1.2], dtype=torch.float64).log_softmax(0)


def descend(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """log π [5] at the minimum of a population's loss, starting at the reference."""
    theta = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], lr=0.5, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theta.log_softmax(0))
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach().log_softmax(0)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_each_divergence_reaches_its_own_optimum(divergence: preferences.Divergence) -> None:
    """The policy that maximises E[r] - β·D_f has β·f'(π/π_ref) = r + constant on every response (f-DPO)."""
    beta = 2.0
    preferred = torch.sigmoid(REWARDS[:, None] - REWARDS[None, :])
    weight = REFERENCE.exp()[:, None] * REFERENCE.exp()[None, :] * preferred

    def loss(logps: Tensor) -> Tensor:
        score = divergence_score(logps - REFERENCE, divergence)
        return (weight * sigmoid(score[:, None], score[None, :], beta)).sum()

    found = beta * divergence_score(descend(loss) - REFERENCE, divergence) - REWARDS
    assert (found - found.mean()).abs().max() < 1e-4


def test_plackett_luce_reaches_the_optimum_of_rlhf_from_whole_rankings() -> None:
    beta = 0.7
    rows = []
    for triple in itertools.permutations(range(5), 3):
        chance, left = 1.0, list(triple)
        for taken in triple:
            chance *= (REWARDS[taken].exp() / REWARDS[left].exp().sum()).item()
            left.remove(taken)
        rows.append((triple, chance))
    members = torch.tensor([triple for triple, _ in rows])
    weight = torch.tensor([chance for _, chance in rows], dtype=torch.float64)
    ranks, group = torch.tensor([1.0, 2.0, 3.0]).repeat(len(rows)), torch.arange(len(rows)).repeat_interleave(3)

    def loss(logps: Tensor) -> Tensor:
        items = plackett_luce((logps - REFERENCE)[members].flatten(), ranks, group, beta)
        return (weight * items.unflatten(0, (-1, 3)).sum(1)).sum()

    best = (REFERENCE + REWARDS / beta).log_softmax(0)
    assert (descend(loss).exp() - best.exp()).abs().sum() / 2 < 1e-6
