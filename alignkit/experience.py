"""What policy, reference and critic say about sampled completions, read off tries. It knows no reward and no loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from alignkit.chat import ChatFormat
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.records import Completion
from alignkit.scorer import Scorer
from alignkit.trie import TokenSequence, TrieBatch, places

Read = Callable[[TrieBatch], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """N completions as sequences, and as the rows in which they are scored and first trained."""

    sequences: list[TokenSequence]
    """[N] prompt ids, then response ids; what the policy sampled weighs 1, what stands between its turns 0."""
    mask: Tensor
    """[N, T] bool, true on the sampled tokens of each response, left-aligned: what was not sampled has no column."""
    parts: list[list[int]]
    """The completions of each minibatch of the first epoch: each is packed by itself, in scoring and in training."""
    budget: int
    """Tokens of one row."""
    barred: tuple[int, ...] = ()
    """Token ids that could not be drawn at a response's first tokens, those of column `barred`."""
    packed: list[list[TrieBatch]] = field(default_factory=list[list[TrieBatch]])
    """The rows of each part."""

    def rows_of(self, columns: dict[str, Tensor], part: Sequence[int]) -> list[TrieBatch]:
        """A part packed with `columns` ([N, T] each) at its sampled tokens."""
        chosen: list[TokenSequence] = []
        for n in part:
            weights = self.sequences[n].weights
            values = {name: _at_sampled(weights, column[n].tolist()) for name, column in columns.items()}
            values |= self.sequences[n].token_columns
            chosen.append(replace(self.sequences[n], token_columns=values))
        return pack(chosen, self.budget)

    def read(self, read: Read, accelerator: Accelerator) -> dict[str, Tensor]:
        """Readings of every sampled token, without gradient: rows -> [E] each, all of them -> [N, T] on the CPU."""
        found: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for batch in (batch for batches in self.packed for batch in batches):
                with accelerator.autocast():
                    found.append(read(batch.to(accelerator.device)))
        return self.placed(found)

    def placed(self, readings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Readings of all packed rows, [E] each in their order, at their tokens: [N, T] float32 on the CPU."""
        result: dict[str, Tensor] = {}
        rows = [(part, batch) for part, batches in zip(self.parts, self.packed, strict=True) for batch in batches]
        for (part, batch), read in zip(rows, readings, strict=True):
            row, column = torch.tensor(part, dtype=torch.int64)[batch.owners[batch.owner]], places(batch)
            for name, reading in read.items():
                target = result.setdefault(name, torch.zeros(self.mask.shape))
                target[row, column] = reading.detach().float().cpu()
        return result


def make_rollouts(
    completions: Sequence[Completion],
    format: ChatFormat,
    budget: int,
    parts: list[list[int]] | None = None,
    min_new_tokens: int = 0,
) -> Rollouts:
    """Completions ready to be scored; without `parts` all of them are one part.

    `min_new_tokens` is what they were sampled with: stop tokens were impossible before, and must be so in scoring,
    or a policy would lower its log-probabilities for free by expecting an end that is never drawn.
    """
    contexts = format.prompts([(completion.prompt, completion.tools) for completion in completions])
    sequences: list[TokenSequence] = []
    for context, completion in zip(contexts, completions, strict=True):
        ids, weights = spoken(context, completion)
        early = [float(t < min_new_tokens) for t in range(len(completion.ids))]
        barred = {"barred": _at_sampled(weights, early)} if min_new_tokens else {}
        sequences.append(TokenSequence(ids, weights, token_columns=barred))
    lengths = torch.tensor([len(completion.ids) for completion in completions], dtype=torch.int64)
    width = int(lengths.max()) if len(lengths) else 0
    parts = [list(range(len(sequences)))] if parts is None else parts
    return Rollouts(
        sequences=sequences,
        mask=torch.arange(width)[None] < lengths[:, None],
        parts=parts,
        budget=budget,
        barred=format.stop_ids if min_new_tokens else (),
        packed=[pack([sequences[n] for n in part], budget) if part else [] for part in parts],
    )


def spoken(context: Sequence[int], completion: Completion) -> tuple[list[int], list[float]]:
    """The ids of a prompt and what followed it, as they were when each token was drawn, with weight 1 on what the
    policy sampled."""
    ids, weights, start = list(context), [0.0] * len(context), 0
    for stop, between in (*completion.inserted, (len(completion.ids), ())):
        ids += [*completion.ids[start:stop], *between]
        weights += [1.0] * (stop - start) + [0.0] * len(between)
        start = stop
    return ids, weights


def _at_sampled(weights: Sequence[float], numbers: Sequence[float]) -> list[float]:
    """One number for each token of a sequence: those of the sampled ones, in their order, and 0 elsewhere."""
    following = iter(numbers)
    return [next(following) if weight else 0.0 for weight in weights]


def read_policy(
    rollouts: Rollouts, policy: Policy, accelerator: Accelerator, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every sampled token at the sampling temperature, nats, [N, T]; and, from the same forward,
    the value before it, where the policy has a value head."""

    def read(batch: TrieBatch) -> dict[str, Tensor]:
        found = policy(batch, temperature=temperature, barred=rollouts.barred)
        return {"logps": found.logps} | ({} if found.values is None else {"values": found.values})

    found = rollouts.read(read, accelerator)
    nothing = torch.zeros(rollouts.mask.shape)
    return found.get("logps", nothing), found.get("values", None if policy.value_head is None else nothing)


def reference_log_probabilities(
    rollouts: Rollouts, policy: Policy, frozen: Policy | None, accelerator: Accelerator, temperature: float
) -> Tensor:
    """The same under the reference: the frozen copy or, without one, the policy with its trained adapter off."""
    if frozen is not None:
        return read_policy(rollouts, frozen, accelerator, temperature)[0]
    with policy.reference():
        return read_policy(rollouts, policy, accelerator, temperature)[0]


def values(rollouts: Rollouts, critic: Scorer, accelerator: Accelerator) -> Tensor:
    """The critic's value before every sampled token, [N, T]: read at the token that predicts it."""
    found = rollouts.read(lambda batch: {"values": critic(batch, at="source")}, accelerator)
    return found.get("values", torch.zeros(rollouts.mask.shape))
