"""A tiny model, data and objectives for the tests of the loop; run as a script, it trains them under torchrun."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from alignkit import loop
from alignkit.config import Config
from alignkit.loop import FitResult, Objective, Sums, evaluate_objective, fit, make_optimizer, update
from alignkit.mixture import Mixture
from alignkit.options.shared import RuntimeOptions, TrainOptions
from alignkit.packing import pack
from alignkit.runs import Run
from alignkit.trie import TokenSequence, TrieBatch, sum_by_owner

VOCABULARY, WIDTH = 23, 12


class Tiny(nn.Module):
    """Predicts the next token, and scores a node, from a token and its depth."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.depth = nn.Embedding(64, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        # No bias: a ranking loss has no gradient in it, and Adam would scale the rounding noise up to whole steps.
        self.score = nn.Linear(WIDTH, 1, bias=False)
        self.forwards = 0

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        self.forwards += 1
        return torch.tanh(self.inner(self.dropout(self.token(ids) + self.depth(positions))))


def read_logps(model: Tiny, batch: TrieBatch) -> dict[str, Tensor]:
    logits = model.head(model(batch.ids, batch.positions)[batch.source])
    return {"logp": torch.log_softmax(logits, -1).gather(1, batch.target[:, None])[:, 0]}


def nll_loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
    logp = readings["logp"]
    return Sums({"nll": -(batch.weight * logp).sum()}, {"likely": (logp > -2.5).sum()})


NLL = Objective(
    read_logps,
    nll_loss,
    lambda batch: {"nll": float(batch.weight.sum()), "likely": float(len(batch.target))},
)


def read_scores(model: Tiny, batch: TrieBatch) -> dict[str, Tensor]:
    return {"score": model.score(model(batch.ids, batch.positions)[batch.last])[:, 0], **read_logps(model, batch)}


def ranking_loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
    """Each ranking 1, spread over its untied pairs; and a second term with a unit of its own."""
    score, rank = readings["score"], batch.owner_columns["rank"]
    loss, right = score.sum() * 0, 0.0
    for group in batch.group.unique():
        members = (batch.group == group).nonzero()[:, 0]
        pairs = [(a, b) for a in members for b in members if rank[a] < rank[b]]
        for a, b in pairs:
            loss = loss - F.logsigmoid(score[a] - score[b]) / len(pairs)
            right += float(score[a] > score[b]) / len(pairs)
    return Sums(
        {"ranking": loss, "nll": -0.1 * (batch.weight * readings["logp"]).sum()}, {"accuracy": torch.tensor(right)}
    )


def ranking_count(batch: TrieBatch) -> dict[str, float]:
    rankings = float(len(batch.group.unique()))
    return {"ranking": rankings, "accuracy": rankings, "nll": float(batch.weight.sum())}


RANKING = Objective(read_scores, ranking_loss, ranking_count, owner_readings=frozenset({"score"}))


def spread_loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
    """No sum over items: the variance of all sequences' log-probabilities in the step (times their number)."""
    logp = sum_by_owner(readings["logp"], batch)
    return Sums({"spread": ((logp - logp.mean()) ** 2).sum() - logp.sum()}, {})


SPREAD = Objective(read_logps, spread_loss, lambda batch: {"spread": float(len(batch.owners))}, whole_step=True)

OBJECTIVES = {"nll": NLL, "ranking": RANKING, "spread": SPREAD}


def examples(count: int, seed: int = 0, responses: int = 3) -> list[list[TokenSequence]]:
    """Rankings of `responses` continuations of a prompt; lengths vary."""
    random = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=random))
        return torch.randint(VOCABULARY, (length,), generator=random).tolist()

    made = []
    for _ in range(count):
        prompt = tokens(2, 9)
        answers = [tokens(1, 12) for _ in range(responses)]
        made.append(
            [
                TokenSequence(
                    prompt + answer, [0.0] * len(prompt) + [1.0 + 0.5 * r] * len(answer), columns={"rank": float(r)}
                )
                for r, answer in enumerate(answers)
            ]
        )
    return made


def grouped(step: list[list[TokenSequence]], rank: int = 0, ranks: int = 1) -> list[TokenSequence]:
    return [
        TokenSequence(s.ids, s.weights, n, s.columns)
        for n, example in enumerate(step)
        if n % ranks == rank
        for s in example
    ]


def trajectory(
    name: str,
    budget: Callable[[int], int],
    steps: int = 20,
    batch: int = 5,
    accelerator: Accelerator | None = None,
) -> tuple[list[dict[str, float]], Tiny]:
    """`steps` updates on fixed data, and a final evaluation; `budget(rank)` is the token budget."""
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    model = Tiny()
    optimizer = make_optimizer(model, TrainOptions(learning_rate=0.01, weight_decay=0.1))
    data = examples(steps * batch)
    history = []
    for step in range(steps):
        rows = pack(grouped(data[step * batch : (step + 1) * batch], rank, ranks), budget(rank))
        history.append(update(model, rows, OBJECTIVES[name], optimizer, accelerator))
    rows = pack(grouped(data[:batch], rank, ranks), budget(rank))
    history.append(evaluate_objective(model, rows, OBJECTIVES[name], accelerator))
    return history, model


SETTINGS = {
    # The ranks have different budgets, so different numbers of forwards; with one example a step, one has none at all.
    "nll": ("nll", (40, 120), 5),
    "ranking": ("ranking", (24, 1000), 5),
    "spread": ("spread", (40, 120), 5),
    "spread-alone": ("spread", (1000, 1000), 1),
    "nll-alone": ("nll", (24, 24), 1),
}


WHOLE = TrainOptions(learning_rate=0.01, batch_size=5, epochs=2, evaluate_every=4, checkpoint_every=3, patience=9)


def whole_training(run: Run | None, accelerator: Accelerator | None = None) -> tuple[FitResult, Tiny]:
    """9 training examples in batches of 5 and 4; with 2 ranks, the one of 3 validation rows is alone on its rank."""
    model, data = Tiny(), examples(12)
    runtime = RuntimeOptions(trackers=[], token_budget=60, device="cpu")
    result = fit(model, data[:9], data[9:], RANKING, WHOLE, runtime, run, 3, accelerator)
    return result, model


QUIET = RuntimeOptions(trackers=[], token_budget=60, device="cpu")


def mixed_examples(most: tuple[float | None, float | None] = (None, None)) -> Mixture:
    """4 examples of "few" and 12 of "many", of which an epoch of 16 draws 12 and 4."""
    return Mixture(("few", "many"), (examples(4, seed=4), examples(12, seed=5)), (12, 4), most)


def mixed_training(accelerator: Accelerator | None = None) -> tuple[FitResult, Tiny]:
    """8 steps on a mixture in batches of 5, 5, 5 and 1; validation in chunks of 2, the last of them one example."""
    model = Tiny()
    validation = Mixture(("few", "many"), (examples(2, seed=8), examples(3, seed=9)))
    options = TrainOptions(learning_rate=0.01, batch_size=5, epochs=2)
    chunk, loop.CHUNK = loop.CHUNK, 2
    try:
        return fit(model, mixed_examples(), validation, RANKING, options, QUIET, None, 3, accelerator), model
    finally:
        loop.CHUNK = chunk


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, "two independent processes instead of one group"
    rank = accelerator.process_index
    for part in ("first", "resumed"):
        if part == "resumed" and rank == 0:
            assert (folder / "run/checkpoints/step-3").is_dir()
        run = Run.open(folder / "run", "reward", Config(), RuntimeOptions(trackers=[]))
        accelerator.wait_for_everyone()
        result, model = whole_training(run, accelerator)
        parameters = {key: p.tolist() for key, p in model.named_parameters()}
        (folder / f"{part}-{rank}.json").write_text(json.dumps({"metrics": result.metrics, "parameters": parameters}))
    result, model = mixed_training(accelerator)
    parameters = {key: p.tolist() for key, p in model.named_parameters()}
    (folder / f"mixed-{rank}.json").write_text(json.dumps({"metrics": result.metrics, "parameters": parameters}))
    for setting, (name, budgets, batch) in SETTINGS.items():
        history, model = trajectory(name, lambda rank, b=budgets: b[rank], batch=batch, accelerator=accelerator)
        parameters = {key: p.tolist() for key, p in model.named_parameters()}
        result = {"history": history, "parameters": parameters, "forwards": model.forwards}
        (folder / f"{setting}-{accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
