"""The next-token objective: the mean negative log-likelihood of weighted tokens. Knows no stage and no data."""

from alignkit.objective import Objective, Readings, Sums
from alignkit.policy import Policy
from alignkit.trie import TrieBatch


def likelihood_objective(coef: float = 1.0, name: str = "nll") -> Objective:
    """coef · Σ w·(-log p) / Σ w over weighted tokens, in nats per token, as the term `name`."""

    def read(policy: Policy, batch: TrieBatch) -> Readings:
        return {"logps": policy(batch).logps}

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        return Sums({name: -coef * (batch.weight * readings["logps"]).sum()})

    def count(batch: TrieBatch) -> dict[str, float]:
        return {name: batch.weight.sum().item()}

    return Objective(read, loss, count)
