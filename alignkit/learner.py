"""The optimizer steps of an on-policy update: its minibatches, and what the policy learns beside. Knows no reward."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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

    def judge(
        self, rollouts: Rollouts, rewards: Tensor, part: list[int], factor: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The critic's first optimizer step of an update on all of `part`, whose tokens earn `rewards` [N, T]: the
        values [N, T] that it read on the way, and the step's means."""
        read: list[Readings] = []
        rows = rollouts.rows_of({"reward": rewards}, part)
        objective = keeping(critic_objective(self.config), read)
        means = self.step("critic", rows, objective, factor)
        return rollouts.placed(read[: len(rows)]).get("values", torch.zeros(rollouts.mask.shape)), means

    def optimise(
        self,
        rollouts: Rollouts,
        columns: dict[str, Tensor],
        orders: list[list[list[int]]],
        factor: float,
        names: Sequence[str],
        kl_coef: float,
        number: int = 0,
        stepped: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[dict[str, float], Tensor, float]:
        """Optimizer steps of the models named, over all minibatches of all epochs; the means over these steps; where
        `columns` lack "old", the log-probabilities [N, T] that the first step read; and the mean |log π - log π_old| a
        token before the policy's first step, in nats, 0 where it takes none.

        `stepped`: the means of the critic's first step, where it has been taken.
        """
        config = self.config
        barred = self.actors.format.stop_ids if config.min_new_tokens else ()
        read: list[Readings] = []
        objectives = {
            "policy": keeping(policy_objective(config, kl_coef, barred), read),
            "critic": critic_objective(config),
        }
        logs: list[dict[str, float]] = []
        old = torch.zeros(rollouts.mask.shape)
        parts = [part for order in orders for part in order]
        for step, part in enumerate(parts):
            rows = rollouts.rows_of(columns, part)
            beside = self.beside(number * config.ppo_epochs * config.minibatches + step)
            means: dict[str, float] = {}
            for name in names:
                if name == "critic" and not logs and stepped:
                    means |= stepped
                else:
                    means |= self.step(name, rows, objectives[name], factor, beside if name == "policy" else [])
            if not logs and "policy" in names and "old" not in columns:  # all tokens, on the rows as packed
                old = rollouts.placed(read[: len(rows)]).get("logps", old)
                columns = columns | {"old": old}
            logs.append(means)
        kept = [name for name in logs[0] if not name.endswith(("/loss", "/drift"))]
        means = {name: sum(log[name] for log in logs) / len(logs) for name in kept}
        return means, old, logs[0].get("policy/drift", 0.0)

    def step(
        self,
        name: str,
        rows: list[TrieBatch],
        objective: Objective,
        factor: float,
        beside: Sequence[tuple[list[TrieBatch], Objective]] = (),
    ) -> dict[str, float]:
        """One optimizer step of one model at `factor` times its learning rate; its means, by name/term."""
        (model, optimizer), train = self.trained()[name], self.config.train
        set_learning_rate(optimizer, factor)
        try:
            found = update(model, rows, objective, optimizer, self.actors.accelerator, train.max_grad_norm, beside)
        except NonFiniteLoss as error:
            raise NonFiniteLoss(
                f"{error}. Lower train.learning_rate (now {train.learning_rate:g}), or look for extreme scores of the "
                "reward; checkpoints written before are kept"
            ) from error
        return {f"{name}/{key}": value for key, value in found.items()}

    def beside(self, step: int) -> list[tuple[list[TrieBatch], Objective]]:
        """What an optimizer step trains the policy on besides completions: PPO-ptx's text."""
        ptx = self.config.ptx
        if ptx is None or self.ptx_epochs is None:
            return []
        examples = [self.actors.ptx[index] for index in self.ptx_epochs.batch(step)]
        rows = rows_of(examples, self.actors.token_budget, self.rank, self.ranks)
        return [(rows, likelihood_objective(ptx.coef, "ptx"))]
