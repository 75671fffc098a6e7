"""The reward stage: TRL's loss and gradients; rankings with ties; runs end to end, cut off, adapted, reloaded."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from chat_cases import (
    assert_equal_gradients,
    assert_equal_runs,
    checkpoint,
    examples_of,
    format_of,
    gradients,
    interrupted,
    metrics,
    options_of,
    rankings,
    start,
    trl_arguments,
    weights,
    write,
)
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig as TrlConfig
from trl import RewardTrainer

from alignkit.accumulate import accumulate
from alignkit.batches import rows_of
from alignkit.calibration import check_reload, held_out_metrics, score
from alignkit.chat import ChatFormat
from alignkit.loop import Example
from alignkit.options.reward import RewardConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.runs import read_metrics
from alignkit.scorer import Scorer, load_scorer, save_scorer
from alignkit.stages import reward
from alignkit.stages.reward import ranking_objective


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reward")
    checkpoint(made / "base")
    write(made / "data.jsonl", rankings(30))
    return made


def config(folder: Path, **changes: Any) -> RewardConfig:
    return options_of(RewardConfig, folder, changes, 3e-3, 6, 8)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Any:
    return start(reward, folder / "whole", config(folder))


def plain_scores(classifier: Any, example: Example) -> Tensor:
    """One plain pass a response."""
    return torch.stack([classifier(torch.tensor([sequence.ids])).logits[0, 0] for sequence in example])


def renamed(model: Scorer) -> dict[str, Tensor]:
    """Our gradients by the names of a SequenceClassification model, which has no bias."""
    found = gradients(model)
    assert found.pop("head.bias").abs() < 1e-5 * found["head.weight"].norm()
    return {name.removeprefix("model.").replace("head.weight", "score.weight"): g for name, g in found.items()}


# ------------------------------------------------------------------------------------------------------------- TRL


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("extra", ["plain", "margin", "centring"])
def test_loss_and_gradients_are_those_of_trl(folder: Path, tmp_path: Path, family: str, extra: str) -> None:
    base = checkpoint(tmp_path / "base", family, seed=3)
    rows = rankings(7, most=2, seed=1)
    for n, row in enumerate(rows):
        row["margins"] = [3.0 + n, 1.0]
    scorer = load_scorer(ModelOptions(path=str(base)), seed=5)
    save_scorer(scorer, format_of(base), tmp_path / "scorer")
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer", dtype=torch.float32)
    pairs = [
        {"chosen": [*row["prompt"], *row["responses"][0]], "rejected": [*row["prompt"], *row["responses"][1]]}
        | ({"margin": 0.5 * (2.0 + n)} if extra == "margin" else {})
        for n, row in enumerate(rows)
    ]
    centring = 0.3 if extra == "centring" else None
    arguments = trl_arguments(TrlConfig, tmp_path, len(rows), center_rewards_coefficient=centring)
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = RewardTrainer(theirs, arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    loss: Any = trainer.compute_loss(theirs, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    expected = gradients(theirs)

    objective = ranking_objective(0.5 if extra == "margin" else 0.0, 0.3 if extra == "centring" else 0.0)
    for budget in (4096, 150):
        scorer.zero_grad()
        batches = rows_of(examples_of(folder / "base", rows), budget)
        assert (len(batches) > 2) == (budget == 150)
        assert accumulate(scorer, batches, objective, backward=True)["loss"] == pytest.approx(loss.item(), rel=1e-6)
        if extra == "centring":
            scorer.head.bias.grad = torch.zeros(1)  # only there the constant matters, and TRL has none
        assert_equal_gradients(renamed(scorer), expected)


# --------------------------------------------------------------------------------------------------------- rankings


@pytest.mark.parametrize("budget", [4096, 400, 130])
def test_a_ranking_weighs_one_over_its_untied_pairs(folder: Path, tmp_path: Path, budget: int) -> None:
    """Against the definition, pair by pair in plain passes; the smallest budget spreads rankings over rows."""
    drawn = rankings(40)
    rows = [*drawn[:4], next(row for row in drawn if len(row["ranks"]) == 9)]
    assert any(len(set(row["ranks"])) < len(row["ranks"]) for row in rows)
    examples = examples_of(folder / "base", rows)
    scorer = load_scorer(ModelOptions(path=str(folder / "base")), seed=5)
    save_scorer(scorer, format_of(folder / "base"), tmp_path / "scorer")
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer", dtype=torch.float32)
    means = []
    for row, example in zip(rows, examples, strict=True):
        scores = plain_scores(classifier, example)
        pairs = [
            (a, b) if row["ranks"][a] < row["ranks"][b] else (b, a) for a, b in combinations(range(len(scores)), 2)
        ]
        items = [-F.logsigmoid(scores[a] - scores[b]) for a, b in pairs if row["ranks"][a] != row["ranks"][b]]
        means.append(torch.stack(items).mean())
    loss = torch.stack(means).mean()
    loss.backward()

    batches = rows_of(examples, budget)
    assert any(batch.split_groups for batch in batches) == (budget == 130)
    ours = accumulate(scorer, batches, ranking_objective(0.0, 0.0), backward=True)
    assert ours["loss"] == ours["ranking"] == pytest.approx(loss.item(), rel=1e-5)
    assert_equal_gradients(renamed(scorer), gradients(classifier))


def test_held_out_metrics_are_those_of_plain_counting(folder: Path, tmp_path: Path) -> None:
    rows = rankings(6, seed=11)
    examples = examples_of(folder / "base", rows)
    scorer = load_scorer(ModelOptions(path=str(folder / "base")), seed=5)
    scorer.head.bias.data.fill_(3.0)
    save_scorer(scorer, format_of(folder / "base"), tmp_path / "scorer")
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer", dtype=torch.float32)
    right = nll = pairs = 0.0
    with torch.no_grad():
        for row, example in zip(rows, examples, strict=True):
            scores, ranks = plain_scores(classifier, example), row["ranks"]
            untied = [(a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]]
            right += sum((scores[a] > scores[b]).item() for a, b in untied) / len(untied) / len(rows)
            nll += sum(-F.logsigmoid(scores[a] - scores[b]).item() for a, b in untied) / len(untied) / len(rows)
            pairs += len(untied)
    found = held_out_metrics(scorer, examples, 300)
    assert found["held_out/accuracy"] == pytest.approx(right, abs=1e-6)
    assert found["held_out/nll"] == pytest.approx(nll, rel=1e-5)
    assert found["held_out/pairs"] == pairs
    assert 0.5 <= found["held_out/length_only_accuracy"] <= 1


def test_a_plain_classifier_reads_the_score_at_the_end_where_no_token_pads(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.pad_token = None
    format = ChatFormat.load(tokenizer)
    example = examples_of(folder / "base", rankings(1, seed=3))[0]
    assert format.pad_id in format.stop_ids and all(one.ids[-1] in format.stop_ids for one in example)
    scorer = load_scorer(ModelOptions(path=str(folder / "base")), seed=5)
    save_scorer(scorer, format, tmp_path / "scorer")
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer", dtype=torch.float32)
    bare: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer", dtype=torch.float32)
    bare.config.pad_token_id = None
    with torch.no_grad():
        for one in example:
            ids = torch.tensor([one.ids])
            torch.testing.assert_close(classifier(ids).logits, bare(ids).logits)


# ------------------------------------------------------------------------------------------------------ end to end


def test_a_run_learns_what_is_better(finished: Any) -> None:
    validation = [line for line in metrics(finished) if "validation/loss" in line]
    assert validation[-1]["validation/ranking"] < validation[0]["validation/ranking"] - 0.1
    final = finished.record.metrics
    assert final["held_out/accuracy"] == pytest.approx(validation[-1]["validation/accuracy"], abs=1e-6)
    assert final["held_out/accuracy"] > 0.8
    assert final["held_out/nll"] == pytest.approx(validation[-1]["validation/ranking"], rel=1e-5)
    names = {"calibration_error", "length_only_accuracy", "pairs"}
    assert {f"held_out/{name}" for name in names} < final.keys()
    assert final["score_deviation"] > 0


def test_scores_are_normalised_on_reference_responses(finished: Any, folder: Path) -> None:
    """Over all training responses here; plain passes of the exported classifier lack the bias alone."""
    scorer = load_scorer(ModelOptions(path=str(finished.model_dir)), trainable=False)
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(finished.model_dir, dtype=torch.float32)
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "set_normalisation", lambda scorer, train, budget: seen.extend(train))
        start(reward, finished.directory.with_name("again"), config(folder, train={"steps": 1}))
    with torch.no_grad():
        scores = torch.cat([plain_scores(classifier, example) for example in seen]) + scorer.head.bias
    assert scorer.mean.item() == pytest.approx(scores.mean().item(), abs=1e-4)
    assert scorer.deviation.item() == pytest.approx(scores.std().item(), rel=1e-4)
    normal = scorer.normalise(scores)
    assert normal.mean().item() == pytest.approx(0, abs=1e-3) and normal.std().item() == pytest.approx(1, rel=1e-3)
    scorer.fold_normalisation()
    ours = score(scorer, [sequence for example in seen for sequence in example], 4096)
    torch.testing.assert_close(ours, normal, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_cut_off_and_resumed_is_uninterrupted(finished: Any, folder: Path, tmp_path: Path, steps: int) -> None:
    assert_equal_runs(interrupted(reward, tmp_path / "cut", config(folder), steps), finished)


def test_the_token_budget_changes_nothing(finished: Any, folder: Path, tmp_path: Path) -> None:
    small = RuntimeOptions(trackers=[], device="cpu", token_budget=120)
    cut = start(reward, tmp_path / "small", config(folder), small)
    whole = weights(finished.model_dir)
    for name, tensor in weights(cut.model_dir).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- artifacts


def trained(directory: Path, settings: RewardConfig) -> tuple[Scorer, Path]:
    """The scorer as it stood in memory when it was saved, and its artifact."""
    kept: list[Scorer] = []
    with pytest.MonkeyPatch.context() as patch:
        save = reward.save_scorer
        patch.setattr(reward, "save_scorer", lambda scorer, *rest: (kept.append(scorer), save(scorer, *rest)))
        run = start(reward, directory, settings)
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
    scorer, artifact = trained(tmp_path / "run", config(folder, model=options[how]))
    sequences = [sequence for example in examples_of(folder / "base", rankings(4, seed=12)) for sequence in example]
    expected = score(scorer, sequences, 4096)
    assert scorer.mean != 0 and scorer.deviation != 1
    four = {"load_in_4bit": True, "adapter": "continue"} if how == "4bit" else {}
    again = load_scorer(ModelOptions(path=str(artifact), **four), trainable=False)
    torch.testing.assert_close(score(again, sequences, 4096), expected, rtol=1e-4, atol=1e-4)
    assert again.mean == scorer.mean and again.deviation == scorer.deviation
    if how == "full":
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(artifact, dtype=torch.float32)
        with torch.no_grad():
            exported = plain_scores(classifier, sequences) + scorer.head.bias
        torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
        assert not hasattr(AutoModelForCausalLM.from_pretrained(artifact), "score")


def test_an_adapter_is_trained_on(folder: Path, tmp_path: Path) -> None:
    """Head and adapter start where the artifact left them, whether merged or continued."""
    first, artifact = trained(tmp_path / "first", config(folder, model={"lora": {"r": 2}}))
    before = [line["validation/ranking"] for line in metrics_of(tmp_path / "first")][-1]
    for how in ({"adapter": "continue"}, {"lora": {"r": 2}}, {}):
        name = "-".join(how) or "merged"
        second, _ = trained(tmp_path / name, config(folder, model={"path": str(artifact)} | how))
        after = [line["validation/ranking"] for line in metrics_of(tmp_path / name)]
        assert after[0] == pytest.approx(before, rel=1e-3) and after[-1] < before
        assert (second.adapted is None) == (how == {})
    assert first.adapted is not None


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(directory) if "validation/ranking" in line]


def test_a_lost_head_is_noticed(folder: Path, tmp_path: Path) -> None:
    scorer = load_scorer(ModelOptions(path=str(folder / "base")), seed=5)
    save_scorer(scorer, format_of(folder / "base"), tmp_path / "scorer")
    example = examples_of(folder / "base", rankings(1, seed=3))
    check_reload(scorer, tmp_path / "scorer", example, 4096)
    (tmp_path / "scorer" / "head.safetensors").unlink()
    with pytest.raises(RuntimeError, match="saved scores differ"):
        check_reload(scorer, tmp_path / "scorer", example, 4096)


def test_a_base_without_a_template(folder: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", chat=False)
    settings = config(folder, model={"path": str(tmp_path / "base"), "chat_template": "chatml"})
    run = start(reward, tmp_path / "run", settings)
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(run.model_dir).chat_template
