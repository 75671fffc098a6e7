"""The optimizer steps of an on-policy update: its minibatches, and what the policy learns beside. Knows no reward."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alignkit.actors import Actors
from alignkit.batches import Epochs, rows_of
from alignkit.experience import Rollouts
from alignkit.likelihood import likelihood_objective
from alignkit.loop import NonFiniteLoss, Objective, make_optimizer, update
from alignkit.objective import Readings, keeping
from alignkit.optimize import set_learning_rate
from alignkit.options.ppo import PpoConfig
from alignkit.sampling import shuffled
from alignkit.surrogates import critic_objective, policy_objective
from alignkit.trie import TrieBatch


class Learner:
    """The trained models of one run with their optimizers."""

    def __init__(self, config: PpoConfig, actors: Actors) -> None:
        self.config, self.actors = config, actors
        self.rank, self.ranks = actors.accelerator.process_index, actors.accelerator.num_processes
        self.ptx_epochs = Epochs(len(actors.ptx), config.ptx.batch_size, config.seed) if config.ptx else None
        self.policy_optimizer = make_optimizer(actors.policy, config.train)
        self.critic_optimizer = None
        if actors.critic is not None:
            rate = config.critic.learning_rate or 5 * config.train.learning_rate
            own = config.train.model_copy(update={"learning_rate": rate})
            self.critic_optimizer = make_optimizer(actors.critic, own)

    def trained(self) -> dict[str, tuple[nn.Module, Optimizer]]:
        """What is trained, by name, with its optimizer; the policy first."""
        models: dict[str, tuple[nn.Module, Optimizer]] = {"policy": (self.actors.policy, self.policy_optimizer)}
        if self.actors.critic is not None and self.critic_optimizer is not None:
            models["critic"] = self.actors.critic, self.critic_optimizer
        return models

    def minibatches(self, number: int, epoch: int) -> list[list[int]]:
        """This rank's completions in each minibatch of an epoch; those of one prompt stay together."""
        order = shuffled(self.config.prompts_per_update, self.config.seed, "minibatches", number, epoch)
        parts: list[list[int]] = []
        for part in order.tensor_split(self.config.minibatches):
            own = [place // self.ranks for place in part.tolist() if place % self.ranks == self.rank]
            parts.append([p * self.config.samples + s for p in own for s in range(self.config.samples)])
        return parts

    def optimise(
        self,
        rollouts: Rollouts,
        columns: dict[str, Tensor],
        orders: list[list[list[int]]],
        factor: float,
        names: Sequence[str],
        kl_coef: float,
        number: int = 0,
        stale: bool = False,
    ) -> tuple[dict[str, float], Tensor]:
        """Optimizer steps of the models named, over all minibatches of all epochs; the means over these steps, and
        where `columns` lack "old", the log-probabilities [N, T] that the only step read.

        `stale`: the policy has moved since they were sampled; the first minibatch's drift says how far.
        """
        config = self.config
        barred = self.actors.format.stop_ids if config.min_new_tokens else ()
        read: list[Readings] = []
        objectives = {
            "policy": keeping(policy_objective(config, kl_coef, barred), read),
            "critic": critic_objective(config.value_clip),
        }
        for _, optimizer in self.trained().values():
            set_learning_rate(optimizer, factor)
        logs: list[dict[str, float]] = []
        moved: dict[str, float] = {}
        old = torch.zeros(rollouts.mask.shape)
        parts = [part for order in orders for part in order]
        for step, part in enumerate(parts):
            rows = rollouts.rows_of(columns, part)
            beside = self.beside(number * config.ppo_epochs * config.minibatches + step)
            means: dict[str, float] = {}
            try:
                for name in names:
                    model, optimizer = self.trained()[name]
                    limit = config.train.max_grad_norm
                    more = beside if name == "policy" else []
                    found = update(model, rows, objectives[name], optimizer, self.actors.accelerator, limit, more)
                    means |= {f"{name}/{key}": value for key, value in found.items()}
            except NonFiniteLoss as error:
                raise NonFiniteLoss(
                    f"{error}. Lower train.learning_rate (now {config.train.learning_rate:g}), or look for "
                    "extreme scores of the reward; the last checkpoint stands"
                ) from error
            if not logs and "policy" in names:
                if "old" not in columns:  # the only step, on the rows as they were packed
                    old = rollouts.placed(read[: len(rows)]).get("logps", old)
                if stale:
                    moved["sampling/staleness"] = means["policy/drift"]
                else:
                    self.actors.check("the ratio is not 1 in the first minibatch", means["policy/drift"])
            logs.append({name: value for name, value in means.items() if not name.endswith(("/loss", "/drift"))})
        return {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]} | moved, old

    def beside(self, step: int) -> list[tuple[list[TrieBatch], Objective]]:
        """What an optimizer step trains the policy on besides completions: PPO-ptx's text."""
        ptx = self.config.ptx
        if ptx is None or self.ptx_epochs is None:
            return []
        examples = [self.actors.ptx[index] for index in self.ptx_epochs.batch(step)]
        rows = rows_of(examples, self.actors.token_budget, self.rank, self.ranks)
        return [(rows, likelihood_objective(ptx.coef, "ptx"))]
