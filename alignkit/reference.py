"""What the reference says of every trained token: computed once and kept, or read as it moves. Knows no loss."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.batches import Example
from alignkit.config import content_hash
from alignkit.options.dpo import MovingReferenceOptions
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.runs import Run
from alignkit.trie import TokenSequence, TrieBatch


def with_reference(
    policy: Policy, examples: Sequence[Example], budget: int, accelerator: Accelerator, run: Run
) -> list[Example]:
    """The examples with each trained token's log-probability under the incoming model as token column "reference".

    Computed once, before training, when policy and reference are the same, and found again by the sequences' content.
    """
    sequences = [sequence for example in examples for sequence in example]
    path = run.directory / "reference.safetensors"
    key = content_hash([[list(map(int, sequence.ids)), list(sequence.weights)] for sequence in sequences])
    known = load_file(path) if path.is_file() else {}
    if key not in known:
        known = {key: _of_all_ranks(policy, sequences, budget, accelerator)}
        if run.is_main:
            save_file(known, path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
    logps = iter(known[key].tolist())
    return [[_with_column(sequence, logps) for sequence in example] for example in examples]


def _with_column(sequence: TokenSequence, logps: Iterator[float]) -> TokenSequence:
    column = array("f", (next(logps) if weight else 0.0 for weight in sequence.weights))
    return replace(sequence, token_columns={**sequence.token_columns, "reference": column})


def _of_all_ranks(policy: Policy, sequences: Sequence[TokenSequence], budget: int, accelerator: Accelerator) -> Tensor:
    """[E] float32, sequence by sequence; each rank reads every so many of them."""
    ranks = accelerator.num_processes
    own = _logps(policy, sequences[accelerator.process_index :: ranks], budget, accelerator)
    parts = [iter(part) for part in gather_object([own.tolist()])]
    counts = [sum(weight != 0 for weight in sequence.weights) for sequence in sequences]
    return torch.tensor([logp for n, count in enumerate(counts) for logp in islice(parts[n % ranks], count)])


@torch.no_grad()
def _logps(policy: Policy, sequences: Sequence[TokenSequence], budget: int, accelerator: Accelerator) -> Tensor:
    logps = torch.zeros(sum(weight != 0 for sequence in sequences for weight in sequence.weights))
    for batch in pack(sequences, budget):
        with accelerator.autocast():
            logps[batch.entry] = policy(batch.to(accelerator.device)).logps.float().cpu()
    return logps


class MovingReference:
    """A reference that starts as the policy and is moved after it (TR-DPO, Gorbatovski et al. 2024).

    A frozen copy of all weights or, with LoRA, a second adapter on the same base. Adapters are copied, never averaged:
    the mean of two low-rank products is not the product of mean factors, so the options ask for mix = 1.
    """

    def __init__(self, policy: Policy, options: MovingReferenceOptions) -> None:
        self.options = options
        self.copy = policy.frozen_copy()
        self.weights = self.copy.own_weights()
        """What moves, in place."""
        self.followed = policy.own_weights()

    @torch.no_grad()
    def logps(self, batch: TrieBatch) -> Tensor:
        """[E] float32, without dropout. Read it before the policy, whose adapter the backward pass needs on."""
        training = self.copy.model.training
        self.copy.eval()
        try:
            return self.copy(batch).logps.float()
        finally:
            self.copy.model.train(training)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After optimizer step number `step`, from 1 on: π_ref ← α·π + (1-α)·π_ref each `every` steps."""
        if step % self.options.every == 0:
            for name, weight in self.weights.items():
                weight.lerp_(self.followed[name], self.options.mix)
