"""A causal language model over rows of tries: log-probabilities leave it, never logits. Knows no checkpoint."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from alignkit.role import OWN, Role
from alignkit.trie import TrieBatch
from alignkit.trunk import plain_attention, replaced_trunk, run_trunk, trunk_of

if TYPE_CHECKING:
    from peft import PeftModel

# Logits of one chunk of predictions, in numbers: 256 MB in float32. Above it, chunks are recomputed backward.
CHUNK = 2**26
# Below it, on a CPU, pieces that its caches hold: 8 MB, or 256 predictions where the vocabulary is larger.
PIECE, PREDICTIONS = 2**21, 256


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """What leaves a policy."""

    logps: Tensor
    """[E] float32, log-probability of each entry's target, in nats."""
    entropies: Tensor | None
    """[E] float32, entropy of each prediction, in nats; only where asked for."""
    collisions: Tensor | None = None
    """[E] float32, log Σ p² of each prediction: how likely two draws are to agree; only where asked for."""
    values: Tensor | None = None
    """[E] float32, the value before each token; only where the policy has a value head."""


class Policy(Role):
    """A causal language model that takes rows of tries and gives log-probabilities, never logits."""

    def __init__(
        self, model: PreTrainedModel, adapted: "PeftModel | None" = None, tries: bool = True, adapter: str = OWN
    ) -> None:
        super().__init__(model, adapted, tries, adapter)
        self.value_head: nn.Linear | None = None

    def add_value_head(self) -> None:
        """Makes the policy its own critic: a scalar on the states that predict a token, at first 0; never saved."""
        place = next(self.model.parameters()).device
        self.value_head = nn.Linear(self.model.config.get_text_config().hidden_size, 1, device=place)
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        batch: TrieBatch,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        collision: bool = False,
        barred: Sequence[int] = (),
    ) -> TokenLogProbs:
        """Log-probabilities of a row's entries at a sampling temperature; entropies and (without gradient) collisions.

        `barred` token ids are impossible where the entry column "barred" is not 0, as when they were sampled.
        """
        self.speak()
        states = run_trunk(trunk_of(self.model), batch, batch.source, batch.owner, self.tries)
        hidden = states.hidden
        values = None
        if self.value_head is not None:
            with torch.autocast(hidden.device.type, enabled=False):
                values = self.value_head(hidden.float()).squeeze(-1)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        rows = max(1, CHUNK // vocabulary)
        recomputed = len(hidden) > rows and torch.is_grad_enabled()
        if not recomputed and hidden.device.type == "cpu":
            rows = min(rows, max(PREDICTIONS, PIECE // vocabulary))
        chunks: list[tuple[Tensor, Tensor, Tensor]] = []
        held = batch.entry_columns.get("barred") if barred else None
        holds = [None] * len(batch.target) if held is None else held.split(rows)
        for chunk, target, hold in zip(hidden.split(rows), batch.target.split(rows), holds, strict=False):
            arguments = (chunk, target, temperature, entropy, collision, states.output, hold, barred)
            if recomputed:
                chunks.append(checkpoint(self._head, *arguments, use_reentrant=False))
            else:
                chunks.append(self._head(*arguments))
        logps, entropies, collisions = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return TokenLogProbs(logps, entropies if entropy else None, collisions if collision else None, values)

    def _head(
        self,
        hidden: Tensor,
        target: Tensor,
        temperature: float,
        entropy: bool,
        collision: bool,
        output: type[Any],
        hold: Tensor | None,
        barred: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        with replaced_trunk(self.model, output(last_hidden_state=hidden[None])):
            logits = self.model(input_ids=target[None], use_cache=False).logits.squeeze(0).float()
        if temperature != 1.0:
            logits = logits / temperature
        if hold is not None:
            with torch.no_grad():  # in place: what has probability 0 has gradient 0 without autograd's copies
                ids = list(barred)
                logits[:, ids] = logits[:, ids].masked_fill(hold[:, None] != 0, -torch.inf)
        logp = -F.cross_entropy(logits, target, reduction="none")
        entropic = collided = logp.new_zeros(0)
        if entropy:
            log_distribution = logits.log_softmax(-1)
            # Below -1000 a probability is 0, and 0 times -inf, or times what overflows backward, were no number.
            entropic = -(log_distribution.exp() * log_distribution.clamp(min=-1e3)).sum(-1)
        if collision:
            with torch.no_grad():
                collided = torch.logsumexp(2 * logits, -1) - 2 * torch.logsumexp(logits, -1)
        return logp, entropic, collided

    @contextmanager
    def reference(self) -> Iterator[None]:
        """While open, the policy is its reference: adapters off, or the incoming adapter's frozen copy on.

        Raises ValueError for a fully trained policy, whose reference is a copy (`frozen_copy`) or cached numbers.
        """
        if self.adapted is None:
            raise ValueError("a fully trained policy has no reference inside: take frozen_copy() before training")
        if "reference" in self.adapted.peft_config:
            self.adapter, own = "reference", self.adapter
            try:
                yield
            finally:
                self.adapter = own
        else:
            self.speak()  # inside, adapters are off, and must stay so
            with self.trainable_as_before(), self.adapted.disable_adapter():
                yield

    def frozen_copy(self) -> "Policy":
        """The policy as it is now, never trained, for use as a reference: a model of its own, or with LoRA the adapter
        "reference" on the same base."""
        if self.adapted is None:
            twin = Policy(copy.deepcopy(self.model), tries=self.tries)
            return twin.requires_grad_(False).eval()
        if "reference" not in self.adapted.peft_config:
            self.adapted.add_adapter("reference", copy.deepcopy(self.adapted.peft_config[self.adapter]))
        twin, own = Policy(self.model, self.adapted, self.tries, "reference"), self.own_weights()
        for name, weight in twin.own_weights().items():
            weight.requires_grad_(False).data = own[name].detach().clone()
        return twin

    def own_weights(self) -> dict[str, nn.Parameter]:
        """All weights, or with LoRA those of its adapter, by names that are the same in a `frozen_copy`."""
        weights = dict(self.model.named_parameters())
        if self.adapted is None:
            return weights
        parts = {name: name.split(".") for name in weights}
        own = {name: [part for part in parts[name] if part != self.adapter] for name in weights}
        return {".".join(own[name]): weight for name, weight in weights.items() if own[name] != parts[name]}

    @contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The transformers model with its ordinary attention, for `generate`."""
        self.speak()
        with plain_attention(self.model) as model:
            yield model
