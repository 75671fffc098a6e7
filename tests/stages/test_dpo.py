"""DPO: TRL's loss and gradients; its reference; runs end to end, cut off, adapted, reloaded."""

import math
import sqlite3
from array import array
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from chat_cases import (
    PowerCut,
    assert_equal_gradients,
    assert_equal_runs,
    checkpoint,
    cut_after,
    demonstrations,
    examples_of,
    gradients,
    interrupted,
    metrics,
    options_of,
    plain_logps,
    rankings,
    start,
    trl_step,
    weights,
    write,
)
from peft import AutoPeftModelForCausalLM, PeftConfig
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from alignkit.accumulate import accumulate
from alignkit.batches import rows_of
from alignkit.config import InputError, build
from alignkit.loop import Example, make_accelerator
from alignkit.models import load_policy
from alignkit.options.dpo import DpoConfig, LossName
from alignkit.options.sft import SftConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.packing import pack
from alignkit.pairs import preference_objective
from alignkit.policy import Policy
from alignkit.reference import with_reference
from alignkit.runs import Run
from alignkit.stages import dpo, sft
from alignkit.trie import sum_by_owner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dpo")
    checkpoint(made / "base")
    write(made / "data.jsonl", rankings(30))
    write(made / "demonstrations.jsonl", demonstrations(24))
    return made


def config(folder: Path, **changes: Any) -> DpoConfig:
    return options_of(DpoConfig, folder, changes, 3e-3, 6, 8)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Any:
    return start(dpo, folder / "whole", config(folder))


def against(reference: Path, examples: list[Example], directory: Path, settings: DpoConfig) -> list[Example]:
    """The examples with the reference's log-probabilities, as the stage computes them."""
    runtime = RuntimeOptions(trackers=[], device="cpu")
    run = Run.open(directory, "dpo", settings, runtime)
    policy = load_policy(ModelOptions(path=str(reference)))
    return list(with_reference(policy, [examples], 4096, make_accelerator(runtime), run)[0])


# ------------------------------------------------------------------------------------------------------------- TRL

LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {}),
    "ipo": ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
    "hinge": ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
    "robust": ({"loss": "robust", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "with nll": ({"nll_coef": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "several": (
        {"mixture": {"sigmoid": 0.8, "bco": 0.2}, "nll_coef": 1.0},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
    "some of them smoothed": (
        {"mixture": {"robust": 0.8, "bco": 0.2}, "label_smoothing": 0.2},
        {"loss_type": ["robust", "bco_pair"], "loss_weights": [0.8, 0.2], "label_smoothing": 0.2},
    ),
    "normalised": ({"loss": "sigmoid_norm"}, {"loss_type": ["sigmoid_norm"]}),
    "of the step": ({"loss": "aot"}, {"loss_type": ["aot"]}),
    "unpaired": ({"loss": "aot_unpaired"}, {"loss_type": ["aot_unpaired"]}),
    "divergence": ({"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    "long tails": ({"tail_weight": 0.3}, {"ld_alpha": 0.3}),
    "weighted": ({"weighting": "wpo"}, {"use_weighting": True}),
}
PLAIN = ("sigmoid", "ipo", "hinge", "robust", "with nll")


@pytest.mark.parametrize(
    ("family", "loss"), [*(("llama", loss) for loss in LOSSES), *(("qwen3", loss) for loss in PLAIN)]
)
def test_loss_and_gradients_are_those_of_trl(folder: Path, tmp_path: Path, family: str, loss: str) -> None:
    """The reference is another model than the policy, so that the loss is far from its start."""
    base = checkpoint(tmp_path / "base", family, seed=3)
    reference = checkpoint(tmp_path / "reference", family, seed=4)
    rows = rankings(7, most=2, seed=1)
    ours, theirs = LOSSES[loss]
    pairs = [{"prompt": r["prompt"], "chosen": r["responses"][0], "rejected": r["responses"][1]} for r in rows]
    loss_of_trl, expected = trl_step(DPOTrainer, TrlConfig, base, reference, pairs, beta=0.3, **theirs)

    settings = config(folder, beta=0.3, **ours)
    examples = against(reference, examples_of(base, rows), tmp_path / "run", settings)
    policy = load_policy(ModelOptions(path=str(base)))
    for budget in (4096, 150):
        policy.zero_grad()
        batches = rows_of(examples, budget)
        assert (len(batches) > 2) == (budget == 150)
        found = accumulate(policy, batches, preference_objective(settings), backward=True)
        assert found["loss"] == pytest.approx(loss_of_trl, rel=1e-5)
        assert abs(found["loss"] - math.log(2)) > 0.02
        assert_equal_gradients(gradients(policy.model), expected, 2e-5)


# --------------------------------------------------------------------------------------------------------- rankings


@pytest.mark.parametrize("budget", [4096, 400, 130])
def test_a_ranking_weighs_one_over_its_untied_pairs(folder: Path, tmp_path: Path, budget: int) -> None:
    """Against the definition, pair by pair in plain passes; the smallest budget spreads rankings over rows."""
    drawn = rankings(40)
    rows = [*drawn[:3], next(row for row in drawn if len(row["ranks"]) == 9)]
    settings = config(folder, beta=0.2, label_smoothing=0.1, nll_coef=0.5)
    examples = examples_of(folder / "base", rows)
    reference_folder = checkpoint(tmp_path / "reference", seed=4)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    reference: Any = AutoModelForCausalLM.from_pretrained(reference_folder, dtype=torch.float32)
    means, best, best_tokens = [], [], 0
    for row, example in zip(rows, examples, strict=True):
        logps, lengths = plain_logps(model, example)
        with torch.no_grad():
            gains = logps - plain_logps(reference, example)[0]
        gains = gains + (logps - logps.detach())
        ranks = row["ranks"]
        pairs = [(a, b) if ranks[a] < ranks[b] else (b, a) for a, b in combinations(range(len(ranks)), 2)]
        margins = torch.stack([0.2 * (gains[a] - gains[b]) for a, b in pairs if ranks[a] != ranks[b]])
        means.append((-0.9 * F.logsigmoid(margins) - 0.1 * F.logsigmoid(-margins)).mean())
        best += [logps[n] for n, rank in enumerate(ranks) if rank == 1]
        best_tokens += sum(lengths[n] for n, rank in enumerate(ranks) if rank == 1)
    loss = torch.stack(means).mean() - 0.5 * torch.stack(best).sum() / best_tokens
    loss.backward()

    policy = load_policy(ModelOptions(path=str(folder / "base")))
    batches = rows_of(against(reference_folder, examples, tmp_path / "run", settings), budget)
    assert any(batch.split_groups for batch in batches) == (budget == 130)
    found = accumulate(policy, batches, preference_objective(settings), backward=True)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_equal_gradients(gradients(policy.model), gradients(model), 2e-5)


SETTINGS: dict[str, dict[str, Any]] = {
    "robust": {"label_smoothing": 0.1},
    "exo": {"label_smoothing": 0.1},
    "orpo": {"nll_coef": 1.0},
    "simpo": {"beta": 2.0, "margin": 0.5},
}


@pytest.mark.parametrize("loss", get_args(LossName))
def test_every_loss_is_one_number_however_the_rows_are_cut(folder: Path, tmp_path: Path, loss: str) -> None:
    """Rankings of two to nine; the smallest budget spreads some over rows."""
    drawn = rankings(40)
    rows = [*drawn[:3], next(row for row in drawn if len(row["ranks"]) == 9)]
    settings = config(folder, loss=loss, **SETTINGS.get(loss, {}))
    reference = checkpoint(tmp_path / "reference", seed=4)
    examples = examples_of(folder / "base", rows)
    if settings.has_reference:
        examples = against(reference, examples, tmp_path / "run", settings)
    policy = load_policy(ModelOptions(path=str(folder / "base")))
    found: list[tuple[float, Any]] = []
    for budget in (4096, 130):
        policy.zero_grad()
        means = accumulate(policy, rows_of(examples, budget), preference_objective(settings), backward=True)
        found.append((means["loss"], gradients(policy.model)))
    (loss_whole, whole), (loss_cut, cut) = found
    assert loss_cut == pytest.approx(loss_whole, rel=1e-5)
    assert any(gradient.abs().max() > 1e-5 for gradient in whole.values())
    assert_equal_gradients(cut, whole, 2e-5)


def test_ranks_may_begin_anywhere(folder: Path) -> None:
    """The likelihood that is trained along is the best response's."""
    policy, settings = load_policy(ModelOptions(path=str(folder / "base"))), config(folder, loss="cpo", nll_coef=1.0)
    found: list[dict[str, float]] = []
    for first in (1, 0, 2):
        rows = rankings(3, most=2, seed=1)
        for row in rows:
            row["ranks"] = [rank - 1 + first for rank in row["ranks"]]
        batches = rows_of(examples_of(folder / "base", rows), 4096)
        found.append(accumulate(policy, batches, preference_objective(settings), backward=False))
    assert found[0]["nll"] > 0 and found[1] == found[2] == found[0]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sigmoid_norm", "simpo"])
def test_an_empty_response_that_was_cut_off_weighs_nothing(folder: Path, tmp_path: Path, loss: str) -> None:
    rows, settings = rankings(3, most=2, seed=1), config(folder, loss=loss)
    rows[1]["responses"][1][-1] |= {"content": "", "finished": False}
    examples = against(folder / "base", examples_of(folder / "base", rows), tmp_path / "run", settings)
    policy = load_policy(ModelOptions(path=str(folder / "base")))
    found = accumulate(policy, rows_of(examples, 4096), preference_objective(settings), backward=True)
    assert math.isfinite(found["loss"]) and all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_a_margin_is_simpos_alone(folder: Path) -> None:
    batches = rows_of(examples_of(folder / "base", rankings(5, most=2, seed=1)), 4096)
    policy = load_policy(ModelOptions(path=str(folder / "base")))

    def loss(**options: Any) -> float:
        return accumulate(policy, batches, preference_objective(config(folder, **options)), backward=False)["loss"]

    both = loss(mixture={"simpo": 0.3, "cpo": 0.7}, margin=0.5)
    assert both == pytest.approx(0.3 * loss(loss="simpo", margin=0.5) + 0.7 * loss(loss="cpo"))


def test_a_whole_ranking_weighs_one_in_plackett_luce(folder: Path, tmp_path: Path) -> None:
    """Against the definition, response by response in plain passes."""
    rows = rankings(4, seed=2)
    settings = config(folder, loss="plackett_luce", beta=0.2)
    reference_folder = checkpoint(tmp_path / "reference", seed=4)
    examples = examples_of(folder / "base", rows)
    folders = folder / "base", reference_folder
    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32) for place in folders]
    total, ranked = 0.0, 0
    with torch.no_grad():
        for row, example in zip(rows, examples, strict=True):
            policy, reference = (plain_logps(model, example)[0] for model in models)
            rewards, ranks = (0.2 * (policy - reference)).tolist(), row["ranks"]
            for n, rank in enumerate(ranks):
                left = [rewards[n], *(r for r, other in zip(rewards, ranks, strict=True) if other > rank)]
                total += math.log(sum(map(math.exp, left))) - rewards[n]
            ranked += len(set(ranks)) > 1
    policy = load_policy(ModelOptions(path=str(folder / "base")))
    batches = rows_of(against(reference_folder, examples, tmp_path / "run", settings), 4096)
    found = accumulate(policy, batches, preference_objective(settings), backward=False)
    assert found["loss"] == pytest.approx(total / ranked, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mixture": {"sigmoid": 1.0, "simpo": 1.0}}, "simpo has no reference and cannot be mixed"),
        ({"mixture": {"sigmoid": 0.0}}, "give each loss a weight above 0"),
        ({"loss": "ipo", "mixture": {"sigmoid": 1.0}}, "loss has no meaning beside mixture"),
        ({"loss": "exo"}, "exo needs label_smoothing"),
        ({"train": {"learning_rate": 0.0}}, r"train\.learning_rate: .*greater than 0"),
        ({"train": {"betas": [0.9, 1.0]}}, r"train\.betas.*less than 1"),
        ({"beta": math.inf}, "beta: .*finite"),
        ({"loss": "orpo"}, "orpo needs nll_coef"),
        ({"loss": "nca", "divergence": "js"}, "divergence has no meaning for loss: nca"),
        ({"margin": 0.5}, "margin has no meaning for loss: sigmoid"),
        (
            {"mixture": {"ipo": 0.5, "bco": 0.5}, "label_smoothing": 0.1},
            "label_smoothing has no meaning for loss: ipo [+] bco",
        ),
        ({"loss": "plackett_luce", "tail_weight": 0.5}, "tail_weight has no meaning for loss: plackett_luce"),
        ({"loss": "aot", "weighting": "wpo"}, "weighting has no meaning for loss: aot"),
        ({"divergence_alpha": 0.3}, "divergence_alpha has no meaning with divergence: reverse_kl"),
        ({"divergence": "alpha", "divergence_alpha": 1.0}, "1 is the reverse KL"),
    ],
)
def test_options_that_contradict_each_other_are_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(folder, **changes)


# ------------------------------------------------------------------------------------------------------ end to end


def test_a_run_learns_what_is_preferred(finished: Any) -> None:
    validation = [line for line in metrics(finished) if "validation/loss" in line]
    assert validation[0]["validation/preference"] == pytest.approx(math.log(2), abs=1e-4)
    assert validation[0]["validation/margin"] == pytest.approx(0, abs=1e-4)
    assert validation[-1]["validation/preference"] < math.log(2) - 0.05
    assert validation[-1]["validation/accuracy"] > 0.8
    assert validation[-1]["validation/chosen_gain"] > validation[-1]["validation/rejected_gain"]
    assert AutoModelForCausalLM.from_pretrained(finished.model_dir).config.vocab_size == 300


@pytest.mark.parametrize("steps", [1, 3])
def test_cut_off_and_resumed_is_uninterrupted(finished: Any, folder: Path, tmp_path: Path, steps: int) -> None:
    assert_equal_runs(interrupted(dpo, tmp_path / "cut", config(folder), steps), finished)


def test_with_lora_and_dropout_too(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, model={"lora": {"r": 2, "dropout": 0.2}})
    whole = start(dpo, tmp_path / "whole", settings)
    assert_equal_runs(interrupted(dpo, tmp_path / "cut", settings, 3), whole)


def test_the_token_budget_changes_nothing(finished: Any, folder: Path, tmp_path: Path) -> None:
    small = RuntimeOptions(trackers=[], device="cpu", token_budget=120)
    cut = start(dpo, tmp_path / "small", config(folder), small)
    whole = weights(finished.model_dir)
    for name, tensor in weights(cut.model_dir).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)


def test_a_wrong_reference_is_noticed_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    settings = config(folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 0)
        start(dpo, tmp_path / "run", settings)
    path = tmp_path / "run" / "reference.sqlite"
    generator = torch.Generator().manual_seed(0)

    def spoil(logps: bytes) -> bytes:
        told = array("f", logps)
        return array("f", (torch.tensor(told) + 3 * torch.randn(len(told), generator=generator)).tolist()).tobytes()

    with sqlite3.connect(path) as database:
        database.create_function("spoil", 1, spoil)
        database.execute('UPDATE "0" SET example = spoil(example)')
    with pytest.raises(RuntimeError, match="not ln 2: the reference is not the policy"):
        start(dpo, tmp_path / "run", settings)
    # Other data have another key: what stands in the file is not taken for theirs.
    with sqlite3.connect(path) as database:
        database.execute("""UPDATE state SET value = json_replace(value, '$.key', 'of other data')""")
    assert start(dpo, tmp_path / "run", settings).record.status == "done"


# -------------------------------------------------------------------------------------------------------- artifacts


@torch.no_grad()
def logps(policy: Policy, folder: Path) -> Tensor:
    """Log-probabilities of fixed responses."""
    sequences = [s for example in examples_of(folder / "base", rankings(4, seed=12)) for s in example]
    found = torch.zeros(len(sequences))
    for batch in pack(sequences, 4096):
        found[batch.owners] = sum_by_owner(policy(batch).logps, batch)
    return found


def trained(directory: Path, settings: DpoConfig) -> tuple[Policy, Path]:
    """The policy as it stood in memory when it was saved, and its artifact."""
    kept: list[Policy] = []
    with pytest.MonkeyPatch.context() as patch:
        save = dpo.save_policy
        patch.setattr(dpo, "save_policy", lambda policy, *rest: (kept.append(policy), save(policy, *rest)))
        run = start(dpo, directory, settings)
    return kept[0].eval(), run.model_dir


@pytest.mark.parametrize("how", ["full", "lora", "4bit"])
def test_an_artifact_reloads_to_the_same(folder: Path, tmp_path: Path, how: str) -> None:
    options: dict[str, Any] = {
        "full": {},
        "lora": {"lora": {"r": 2}},
        "4bit": {"lora": {"r": 2}, "load_in_4bit": True},
    }
    if how == "4bit":
        pytest.importorskip("bitsandbytes")
    policy, artifact = trained(tmp_path / "run", config(folder, model=options[how]))
    four = {"load_in_4bit": True, "adapter": "continue"} if how == "4bit" else {}
    expected = logps(policy, folder)
    again = load_policy(ModelOptions(path=str(artifact), **four), trainable=False)
    torch.testing.assert_close(logps(again, folder), expected, rtol=1e-5, atol=1e-3)
    before = load_policy(ModelOptions(path=str(folder / "base")), trainable=False)
    assert (logps(before, folder) - expected).abs().max() > 1


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """An SFT stage's LoRA artifact."""
    values = {
        "model": {"path": str(folder / "base"), "lora": {"r": 2}},
        "data": {"path": str(folder / "demonstrations.jsonl"), "validation": 0},
        "train": {"learning_rate": 1e-2, "batch_size": 8, "steps": 4},
    }
    return start(sft, folder / "adapter", build(SftConfig, values, "")).model_dir


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"lora": {"r": 2}},
        {"adapter": "continue"},
        {"lora": {"r": 2}, "load_in_4bit": True},
        {"adapter": "continue", "load_in_4bit": True},
    ],
    ids=["merge", "merge-lora", "continue", "merge-lora-4bit", "continue-4bit"],
)
def test_an_adapter_of_sft_goes_on(folder: Path, tmp_path: Path, adapter: Path, how: dict[str, Any]) -> None:
    """The reference is what SFT left, and what comes out loads with plain classes to the same log-probabilities."""
    if "load_in_4bit" in how:
        pytest.importorskip("bitsandbytes")
    policy, artifact = trained(tmp_path / "run", config(folder, model={"path": str(adapter)} | how))
    assert (policy.adapted is None) == (how == {})
    sft_policy = load_policy(ModelOptions(path=str(adapter)), trainable=False)
    if policy.adapted is not None and "load_in_4bit" not in how:
        with policy.reference():
            torch.testing.assert_close(logps(policy, folder), logps(sft_policy, folder), rtol=1e-5, atol=1e-3)
    expected = logps(policy, folder)
    assert (expected - logps(sft_policy, folder)).abs().max() > 1
    if "load_in_4bit" in how:
        again = load_policy(ModelOptions(path=str(artifact), load_in_4bit=True, adapter="continue"), trainable=False)
        torch.testing.assert_close(logps(again, folder), expected, rtol=1e-5, atol=1e-3)
        return
    kind: Any = AutoModelForCausalLM if policy.adapted is None else AutoPeftModelForCausalLM
    plain = kind.from_pretrained(artifact, dtype=torch.float32)
    with torch.no_grad():
        found = torch.cat([plain_logps(plain, e)[0] for e in examples_of(folder / "base", rankings(4, seed=12))])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    if "lora" in how:
        # The base of the new adapter is the merged SFT model, made once and in its own precision.
        base = PeftConfig.from_pretrained(artifact).base_model_name_or_path
        assert Path(base) == adapter / ".merged"
