"""One step is one step, however its sequences are spread over rows: against plain torch on the whole batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loop_cases import NLL, OBJECTIVES, QUIET, RANKING, SPREAD, Tiny, examples, grouped, trajectory

from alignkit import batches, loop
from alignkit.accumulate import accumulate, evaluate_chunks
from alignkit.agreement import count_chunks
from alignkit.batches import Chunks, rows_of
from alignkit.loop import NonFiniteLoss, Objective, Sums, evaluate_objective, fit, make_optimizer, update
from alignkit.mixture import Mixture, in_memory
from alignkit.options.shared import TrainOptions
from alignkit.packing import pack
from alignkit.trie import TokenSequence

OPTIONS = TrainOptions(learning_rate=0.01)


def plain_nll(model: Tiny, sequences: list) -> torch.Tensor:
    """Σ weight · nll / Σ weight, one sequence at a time, without a trie."""
    total, count = torch.zeros(()), 0.0
    for s in sequences:
        ids = torch.tensor(s.ids)
        hidden = model(ids, torch.arange(len(ids)))
        losses = F.cross_entropy(model.head(hidden[:-1]), ids[1:], reduction="none")
        total = total + (losses * torch.tensor(s.weights)[1:]).sum()
        count += sum(s.weights)
    return total / count


def test_an_update_equals_plain_torch_on_the_whole_batch() -> None:
    sequences = grouped(examples(6))
    model, plain = Tiny(), Tiny()
    means = update(model, pack(sequences, 50), NLL, make_optimizer(model, OPTIONS), max_grad_norm=0.5)
    loss = plain_nll(plain, sequences)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0).step()
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert means["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_token_budgets_give_one_trajectory(name: str) -> None:
    whole, reference = trajectory(name, lambda rank: 10_000)
    assert reference.forwards == 21 * (2 if name == "ranking" else 1)
    seen = set()
    for budget in (150, 60, 24):
        history, model = trajectory(name, lambda rank, b=budget: b)
        seen.add(model.forwards)
        for a, b in zip(whole, history, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-7), (budget, key)
        difference = sum(((p - q) ** 2).sum() for p, q in zip(model.parameters(), reference.parameters(), strict=True))
        assert difference.sqrt() < 1e-5 * sum((p**2).sum() for p in reference.parameters()).sqrt()
    assert len(seen) == 3


def test_1_2_4_and_8_forwards_give_one_gradient_and_a_split_ranking_goes_through_two_passes() -> None:
    sequences = grouped(examples(8))
    found: dict[int, torch.Tensor] = {}
    split = set()
    for budget in range(20, 400, 2):
        rows = pack(sequences, budget)
        model = Tiny()
        accumulate(model, rows, RANKING, backward=True)
        found.setdefault(len(rows), torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]))
        if rows[0].split_groups:
            split.add(len(rows))
            assert model.forwards == 4 * len(rows)
    assert {1, 2, 4, 8} <= found.keys() and split
    for gradient in found.values():
        assert (gradient - found[1]).norm() < 1e-5 * found[1].norm()


def test_a_loss_of_the_whole_step_equals_autograd_through_all_of_it() -> None:
    sequences = grouped(examples(6))
    model, plain = Tiny(), Tiny()
    means = accumulate(model, pack(sequences, 30), SPREAD, backward=True)
    logps = []
    for s in sequences:
        ids = torch.tensor(s.ids)
        logp = torch.log_softmax(plain.head(plain(ids, torch.arange(len(ids)))[:-1]), -1)
        chosen = logp.gather(1, ids[1:, None])[:, 0]
        logps.append(chosen[torch.tensor(s.weights)[1:] != 0].sum())
    logps = torch.stack(logps)
    loss = logps.var(correction=0) - logps.mean()
    loss.backward()
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_dropout_falls_alike_in_both_passes() -> None:
    """A whole-step objective that happens to be a sum must give the gradient of its one-pass twin under dropout."""
    rows = pack(grouped(examples(6)), 40)
    gradients = []
    for whole in (False, True):
        model = Tiny(dropout=0.5)
        torch.manual_seed(7)
        accumulate(model, rows, Objective(NLL.read, NLL.loss, NLL.count, whole_step=whole), backward=True)
        gradients.append(model.head.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_a_term_without_items_is_left_out() -> None:
    rows = pack(grouped(examples(3)), 1000)
    objective = Objective(
        NLL.read,
        lambda r, b: Sums({"nll": -(b.weight * r["logp"]).sum(), "none": r["logp"][:0].sum()}),
        lambda b: {"nll": float(b.weight.sum()), "none": 0.0},
    )
    means = evaluate_objective(Tiny(), rows, objective)
    assert set(means) == {"nll", "loss"} and means["loss"] == means["nll"]


def test_counts_and_sums_must_name_the_same_terms() -> None:
    rows = pack(grouped(examples(3)), 1000)
    with pytest.raises(ValueError, match="sums \\['likely', 'nll'\\], its count counts \\['nll'\\]"):
        evaluate_objective(Tiny(), rows, Objective(NLL.read, NLL.loss, lambda b: {"nll": 1.0}))


def test_a_nan_loss_names_its_term_and_touches_nothing() -> None:
    rows = pack(grouped(examples(4)), 40)
    model = Tiny()
    before = [p.clone() for p in model.parameters()]
    objective = Objective(
        NLL.read,
        lambda r, b: Sums({"good": -r["logp"].sum(), "bad": (r["logp"] + 100).log().sum() * float("nan")}),
        lambda b: {"good": 1.0, "bad": 1.0},
    )
    with pytest.raises(NonFiniteLoss, match="'bad' is not finite"):
        update(model, rows, objective, make_optimizer(model, OPTIONS))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_infinite_gradient_is_refused() -> None:
    rows = pack(grouped(examples(2)), 400)
    model = Tiny()
    objective = Objective(NLL.read, lambda r, b: Sums({"root": (r["logp"] * 0).sqrt().sum()}), lambda b: {"root": 1.0})
    with pytest.raises(NonFiniteLoss, match="gradient"):
        update(model, rows, objective, make_optimizer(model, OPTIONS))


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batches"):
        evaluate_objective(Tiny(), [], NLL)


@pytest.mark.parametrize("budget", [24, 60, 1_000], ids=["split groups", "rows", "one row a chunk"])
@pytest.mark.parametrize("objective", [NLL, RANKING], ids=["nll", "ranking"])
def test_a_validation_in_chunks_is_that_of_all_at_once(objective: Objective, budget: int) -> None:
    model, data = Tiny(dropout=0.5), examples(11)
    chunks = Chunks(data, 4, budget, 0, 1)
    assert len(chunks) == 3 and len(chunks[2:]) == 1
    whole = evaluate_objective(model, pack(grouped(data), 10_000), objective)
    assert evaluate_chunks(model, chunks, objective) == pytest.approx(whole, rel=1e-6)
    assert model.training
    counts = count_chunks(chunks, objective)
    assert evaluate_chunks(model, chunks, objective, None, counts) == evaluate_chunks(model, chunks, objective)


class Counting(Sequence[list[TokenSequence]]):
    """Examples that are read when they are asked for, and which they were."""

    def __init__(self, held: list[list[TokenSequence]]) -> None:
        self.held, self.asked = held, list[int]()

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return self.held[index]


def test_a_rank_reads_its_own_examples_alone_and_a_kept_chunk_once() -> None:
    data = Counting(examples(11))
    rows_of(data, 60, rank=1, ranks=2, chosen=[9, 8, 7, 6, 5])
    assert data.asked == [8, 6]
    for keep, times in ((True, 1), (False, 2)):
        data.asked.clear()
        chunks = Chunks(data, 4, 60, 0, 1, keep=keep)
        assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in chunks]
        assert data.asked == [*range(11)] * times
    assert in_memory(data.held) and not in_memory(data) and not in_memory(Mixture(("a", "b"), (data.held, data)))


def test_a_training_packs_what_it_holds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    inner = batches.rows_of
    monkeypatch.setattr(batches, "rows_of", lambda *given: packed.append(len(given[-1])) or inner(*given))
    monkeypatch.setattr(loop, "CHUNK", 2)
    options = TrainOptions(learning_rate=0.01, batch_size=4, steps=3, evaluate_every=1)
    results = []
    for held_out, times in ((examples(5), 1), (Counting(examples(5)), 5)):
        packed.clear()
        results.append(fit(Tiny(), examples(8), held_out, NLL, options, QUIET).metrics)
        assert packed == [2, 2, 1] * times, "of what is read: to count, and at each of 4 validations"
    assert results[0] == results[1]
