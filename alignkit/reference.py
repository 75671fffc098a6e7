"""What the reference says of every trained token: computed once and kept, or read as it moves. Knows no loss."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from alignkit.batches import CHUNK, Example, Indexed
from alignkit.config import content_hash
from alignkit.mixture import Mixture, in_memory
from alignkit.options.dpo import MovingReferenceOptions
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.progress import progress
from alignkit.runs import Run
from alignkit.store import StoredExamples, StoredNumbers, StoreWriter, discard_store, read_numbers
from alignkit.trie import TokenSequence, TrieBatch


def with_reference(
    policy: Policy, sides: Sequence[Sequence[Example]], budget: int, accelerator: Accelerator, run: Run
) -> list[Sequence[Example]]:
    """The examples of each side (training, validation), with each trained token's log-probability under the incoming
    model as token column "reference".

    Computed once, before training, when policy and reference are the same, chunk by chunk to a file in the run's
    folder: a killed run goes on after the last chunk, and finds it all again by what the examples are. Those that are
    read from the disk get theirs as they are read.
    """
    parts = [part for side in sides for part in _parts(side)]
    key = content_hash([_contents(part) for part in parts])
    _write(policy, parts, key, budget, accelerator, run)
    tables = read_numbers(_place(run), key)
    assert tables is not None
    columns = (_Referenced(part, tables[str(number)]) for number, part in enumerate(parts))
    referenced = (list(column) if in_memory(column.examples) else column for column in columns)
    found: list[Sequence[Example]] = []
    for side in sides:
        own = list(islice(referenced, len(_parts(side))))
        found.append(replace(side, parts=own) if isinstance(side, Mixture) else own[0])
    return found


def discard_reference(run: Run) -> None:
    """Remove what `with_reference` has written: once the run is marked done, since until then it may be resumed."""
    if run.is_main:
        discard_store(_place(run))


def _place(run: Run) -> Path:
    return run.directory / "reference.sqlite"


def _parts(side: Sequence[Example]) -> Sequence[Sequence[Example]]:
    return side.parts if isinstance(side, Mixture) else [side]


def _contents(examples: Sequence[Example]) -> str:
    """What the log-probabilities depend on beside the model."""
    if isinstance(examples, StoredExamples):
        return examples.contents
    return content_hash([[[list(map(int, s.ids)), list(s.weights)] for s in example] for example in examples])


@dataclass(frozen=True, slots=True)
class _Referenced(Indexed):
    """Examples with the numbers that are kept of each as their token column."""

    examples: Sequence[Example]
    logps: StoredNumbers

    def __len__(self) -> int:
        return len(self.examples)

    def at(self, index: int) -> Example:
        logps = iter(self.logps.at(index))
        found: list[TokenSequence] = []
        for sequence in self.examples[index]:
            column = array("f", (next(logps) if weight else 0.0 for weight in sequence.weights))
            found.append(replace(sequence, token_columns={**sequence.token_columns, "reference": column}))
        return found


def _write(
    policy: Policy, parts: Sequence[Sequence[Example]], key: str, budget: int, accelerator: Accelerator, run: Run
) -> None:
    """Keep the log-probabilities of all parts, each as a table, where they are not kept yet.

    How examples are packed shows in the last bits: the chunks are the same wherever examples are read from.
    """
    chunks = [(n, start) for n, part in enumerate(parts) for start in range(0, len(part), CHUNK)]
    title = f"{run.directory.name}: log-probabilities of the reference"
    writer, done = None, [len(chunks)]
    if run.is_main and read_numbers(_place(run), key) is None:
        writer = StoreWriter(_place(run), key, [str(n) for n in range(len(parts))])
        done = [writer.notes.get("done", 0)]
    broadcast_object_list(done)
    left = chunks[done[0] :]
    with progress(title, len(chunks), shown=run.is_main and bool(left)) as advance:
        for number, (part, start) in enumerate(left, done[0] + 1):
            logps = _of_all_ranks(policy, parts[part][start : start + CHUNK], budget, accelerator)
            if writer is not None:
                writer.add_numbers(str(part), logps)
                writer.commit({"done": number})
            advance(number, {})
    if writer is not None:
        writer.finish()
    accelerator.wait_for_everyone()


def _of_all_ranks(
    policy: Policy, examples: Sequence[Example], budget: int, accelerator: Accelerator
) -> list[Sequence[float]]:
    """The log-probabilities of each example, sequence by sequence; each rank reads every so many of the examples."""
    ranks = accelerator.num_processes
    own = _logps(policy, examples[accelerator.process_index :: ranks], budget, accelerator)
    parts: list[list[Sequence[float]]] = gather_object([own])
    return [parts[n % ranks][n // ranks] for n in range(len(examples))]


@torch.no_grad()
def _logps(
    policy: Policy, examples: Sequence[Example], budget: int, accelerator: Accelerator
) -> list[Sequence[float]]:
    counts = [sum(weight != 0 for sequence in example for weight in sequence.weights) for example in examples]
    logps = torch.zeros(sum(counts))
    for batch in pack([sequence for example in examples for sequence in example], budget):
        with accelerator.autocast():
            logps[batch.entry] = policy(batch.to(accelerator.device)).logps.float().cpu()
    return [each.tolist() for each in logps.split(counts)]


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
