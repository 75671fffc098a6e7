"""The objectives of online updates: policy losses on sampled tokens, and the critic's. Knows no stage."""

import torch
from torch import Tensor

from alignkit import losses, rl
from alignkit.objective import Objective, Sums
from alignkit.options.ppo import PpoConfig
from alignkit.trie import TrieBatch, places, sum_by_owner

METRICS = ("clip_fraction", "approx_kl", "ratio", "drift")
"""Of the tokens. clip_fraction is what lies beyond the clip, whether or not the loss still has a gradient there."""


def policy_objective(config: PpoConfig, kl_coef: float = 0.0, barred: tuple[int, ...] = ()) -> Objective:
    """The policy loss, with the KL where it is a loss and the entropy bonus, each a mean as `config.average` says, and
    with the error of a value head.

    Columns "advantage", for the KL "reference", and for a value head "value" and "return" stand at each token; so does
    "old", unless the policy that is trained is still the one that sampled, and, where the config corrects for the
    engine that sampled, its log-probability "engine". `kl_coef` is the coefficient now.
    `drift` is |log π - log π_old|, a mean over tokens as every metric is.
    """
    in_loss, bonus, own_critic = config.kl.placement == "loss", config.entropy_coef, config.roles == "value_head"
    terms = ["surrogate", *(["kl_penalty"] if in_loss else []), *(["entropy_bonus"] if bonus else [])]
    by_token = (*METRICS, *(["value_error"] if own_critic else []))

    def read(policy: object, batch: TrieBatch) -> dict[str, Tensor]:
        assert callable(policy)
        found = policy(batch, temperature=config.temperature, barred=barred, entropy=bonus != 0)
        extra = ({"entropies": found.entropies} if bonus else {}) | ({"values": found.values} if own_critic else {})
        return {"logps": found.logps, **extra}

    def loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
        logp = readings["logps"]
        sampled = old = batch.entry_columns.get("old", logp.detach())
        advantage, share = batch.entry_columns["advantage"], _shares(config, batch)
        if config.loss == "gspo":  # the ratio of a whole completion, its geometric mean, stands at each of its tokens
            length = _lengths(batch)
            logp, old = ((sum_by_owner(x, batch) / length)[batch.owner] for x in (logp, old))
        surrogate = _surrogate(config, logp, old, advantage)
        if config.rollouts.correction == "truncated":
            engine = batch.entry_columns["engine"]
            surrogate = surrogate * losses.truncated_importance(sampled, engine, config.rollouts.cap)
        sums = {"surrogate": (share * surrogate).sum()}
        if in_loss:
            estimate = rl.kl_k2 if config.kl.estimator == "k2" else rl.kl_k3
            left = estimate(readings["logps"], batch.entry_columns["reference"])
            sums["kl_penalty"] = kl_coef * (share * left).sum()
        if bonus:
            sums["entropy_bonus"] = -bonus * (share * readings["entropies"]).sum()
        if own_critic:
            columns = batch.entry_columns
            error = losses.value_clip(readings["values"], columns["value"], columns["return"], config.value_clip)
            sums["value_error"] = config.critic.coef * (batch.weight * error).sum()
        with torch.no_grad():
            beyond = losses.is_clipped(logp, old, advantage, config.clip, config.clip_high)
            gap = readings["logps"] - sampled
            numbers = (beyond.float(), rl.kl_k3(-gap, torch.zeros_like(gap)), torch.exp(gap), gap.abs())
            metrics = {name: (batch.weight * x).sum() for name, x in zip(METRICS, numbers, strict=True)}
        return Sums(sums, metrics)

    def count(batch: TrieBatch) -> dict[str, float]:
        return dict.fromkeys(terms, _items(config, batch)) | dict.fromkeys(by_token, float(batch.weight.sum()))

    return Objective(read, loss, count)


def critic_objective(config: PpoConfig) -> Objective:
    """Half the squared error of the value before each token, a mean over all tokens of the step.

    Columns "value" and "return" stand at each token or, where the critic that is trained is the one that judges, its
    reward, column "reward": values are then those that it reads, and returns follow from them.
    """

    def loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
        columns, now = batch.entry_columns, readings["values"].detach()
        old = columns.get("value", now)
        returns = columns["return"] if "return" in columns else _returns(config, batch, now)
        error = batch.weight * losses.value_clip(readings["values"], old, returns, config.value_clip)
        return Sums({"error": error.sum()}, {"value": (batch.weight * now).sum()})

    return Objective(
        read=lambda critic, batch: {"values": critic(batch, at="source")},
        loss=loss,
        count=lambda batch: dict.fromkeys(("error", "value"), float(batch.weight.sum())),
    )


def _surrogate(config: PpoConfig, logp: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """[E], the policy loss of each token."""
    if config.loss == "cispo":
        return losses.cispo(logp, old, advantage, config.clip, config.clip_high)
    return losses.policy_clip(logp, old, advantage, config.clip, config.clip_high, config.dual_clip)


def _returns(config: PpoConfig, batch: TrieBatch, values: Tensor) -> Tensor:
    """[E], the returns that follow from the values before each token, and from their column "reward"."""
    owner, place = batch.owner.cpu(), places(batch).cpu()
    width = int(place.max()) + 1 if len(place) else 0
    rewards, judged, mask = (torch.zeros(len(batch.owners), width) for _ in range(3))
    rewards[owner, place], judged[owner, place] = batch.entry_columns["reward"].cpu(), values.cpu()
    mask[owner, place] = 1.0
    return rl.gae(rewards, judged, mask, config.gamma, config.lam)[1][owner, place].to(values.device)


def _shares(config: PpoConfig, batch: TrieBatch) -> Tensor:
    """[E], what a token counts in a mean: its completion's length divides it where completions count alike."""
    return batch.weight / _lengths(batch)[batch.owner] if config.average == "completion" else batch.weight


def _items(config: PpoConfig, batch: TrieBatch) -> float:
    """How many items a mean is over: tokens, completions, or the tokens that completions may have at most."""
    if config.average == "token":
        return float(batch.weight.sum())
    return len(batch.owners) * (config.max_new_tokens if config.average == "budget" else 1.0)


def _lengths(batch: TrieBatch) -> Tensor:
    """[O] sampled tokens of each completion."""
    return sum_by_owner(batch.weight, batch)
