"""TRL's RewardTrainer as a stage: weights of TRL by hand, scores of the model it trained, our artifact around it."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_cases import checkpoint, examples_of, format_of, messages, metrics, rankings, start, weights, write
from datasets import Dataset
from test_reward import plain_scores
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GraniteConfig, GraniteForCausalLM
from trl import RewardConfig, RewardTrainer

from alignkit.calibration import score
from alignkit.config import InputError, build
from alignkit.models import load_tokenizer
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import ModelOptions
from alignkit.options.trl import TrlConfig
from alignkit.records import Completion
from alignkit.rewards import build_reward
from alignkit.runs import Run
from alignkit.scorer import Scorer, load_scorer, save_scorer
from alignkit.stages import trl
from alignkit.trunk import plain_attention

OPTIONS = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trl_reward")
    checkpoint(made / "base")
    write(made / "pairs.jsonl", rankings(16, most=2))
    write(made / "rankings.jsonl", rankings(12, most=4))
    return made


def config(folder: Path, **changes: Any) -> TrlConfig:
    """Four steps on 16 pairs, with TRL's defaults: activation checkpointing, a linear schedule."""
    data = {"path": str(folder / "pairs.jsonl"), "validation": 0} | changes.pop("data", {})
    model = {"path": str(folder / "base")} | changes.pop("model", {})
    return build(TrlConfig, {"model": model, "data": data, "trainer": "reward", "options": OPTIONS} | changes, "")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    return start(trl, folder / "whole", config(folder))


def classifier_in(path: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)


def scores_of(classifier: Any, folder: Path, rows: list[dict[str, Any]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([plain_scores(classifier, example) for example in examples_of(folder / "base", rows)])


def ours(scorer: Scorer, folder: Path, rows: list[dict[str, Any]]) -> Tensor:
    return score(scorer, [s for example in examples_of(folder / "base", rows) for s in example], 4096)


def test_the_weights_are_those_of_trl_alone(folder: Path, tmp_path: Path, whole: Run) -> None:
    """On the conversations as TRL tokenizes them, from the head that our seed draws."""
    scorer = load_scorer(ModelOptions(path=str(folder / "base")), seed=0)
    save_scorer(scorer, format_of(folder / "base"), tmp_path / "initial")
    model = classifier_in(tmp_path / "initial")
    rows = [
        {name: [*row["prompt"], *row["responses"][place]] for place, name in enumerate(("chosen", "rejected"))}
        for row in rankings(16, most=2)
    ]
    arguments = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], seed=0, **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    RewardTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    trained, before = classifier_in(whole.model_dir).state_dict(), classifier_in(tmp_path / "initial").state_dict()
    assert trained.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=0)
    assert all(not torch.equal(before[name], value) for name, value in trained.items() if "score" in name)


def test_the_artifact_scores_as_the_model_that_was_trained(folder: Path, whole: Run) -> None:
    """TRL's own checkpoint of the last step; mean and deviation over all training responses."""
    trained = classifier_in(whole.directory / "checkpoints/checkpoint-4")
    scorer = load_scorer(ModelOptions(path=str(whole.model_dir)), trainable=False)
    held_out = rankings(5, seed=9)
    expected = scores_of(trained, folder, held_out)
    torch.testing.assert_close(ours(scorer, folder, held_out), expected, rtol=1e-4, atol=1e-5)
    assert scorer.head.bias.item() == 0
    reference = scores_of(trained, folder, rankings(16, most=2))
    assert scorer.mean.item() == pytest.approx(reference.mean().item(), abs=1e-4)
    assert scorer.deviation.item() == pytest.approx(reference.std().item(), rel=1e-4)
    completions = [
        Completion(prompt=messages(row["prompt"]), response=messages(response)[0])
        for row in held_out
        for response in row["responses"]
    ]
    reward = build_reward(RewardSource(kind="learned", path=str(whole.model_dir)))
    normal = (expected - reference.mean()) / reference.std()
    torch.testing.assert_close(torch.tensor(reward(completions).total), normal, rtol=1e-3, atol=1e-3)


def test_a_run_is_left_as_by_other_stages_and_every_untied_pair_is_a_row(folder: Path, tmp_path: Path) -> None:
    data = {"path": str(folder / "rankings.jsonl"), "validation": 4}
    options = OPTIONS | {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1}
    run = start(trl, tmp_path / "run", config(folder, data=data, options=options))
    record, lines = run.record, metrics(run)
    assert record.status == "done" and record.data[0]["rows"] == 12 and record.artifact == "model"
    (first,) = [line for line in lines if line["step"] == 0]
    assert (first["data/train"], first["data/validation"]) == (8, 4)
    untied = [sum(a != b for a, b in combinations(row["ranks"], 2)) for row in rankings(12, most=4)]
    held_out = record.metrics["held_out/pairs"]
    assert lines[-1]["step"] == sum(untied) - held_out and 4 <= held_out < sum(untied)  # a pair a step
    assert record.metrics["eval_accuracy"] >= 0 and record.metrics["score_deviation"] > 0


@pytest.mark.parametrize("how", ["lora", "4bit"])
def test_adapters_and_head_are_trained_and_reload(folder: Path, tmp_path: Path, how: str) -> None:
    options = {"lora": {"r": 2}, "load_in_4bit": how == "4bit"}
    kept: list[tuple[Any, Scorer, Tensor]] = []
    rows = rankings(4, seed=9)

    def keep(scorer: Scorer, *rest: Any) -> None:
        with plain_attention(scorer.model):
            kept.append((classifiers[0], scorer, scores_of(classifiers[0].eval(), folder, rows)))
        save_scorer(scorer, *rest)

    classifiers: list[Any] = []
    heads: list[Tensor] = []

    def opened(scorer: Scorer) -> Any:
        heads.append(scorer.head.weight.detach().clone())
        classifiers.append(trl_as_classifier(scorer))
        return classifiers[0]

    trl_as_classifier = trl.as_classifier
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl, "as_classifier", opened)
        patch.setattr(trl, "save_scorer", keep)
        run = start(trl, tmp_path / "run", config(folder, model=options))
    ((_, scorer, expected),) = kept
    assert (run.model_dir / "adapter_model.safetensors").is_file()
    assert not torch.equal(scorer.head.weight, heads[0])
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(run.model_dir).items() if "lora_B" in name)
    four = {"load_in_4bit": True, "adapter": "continue"} if how == "4bit" else {}
    again = load_scorer(ModelOptions(path=str(run.model_dir), **four), trainable=False)
    torch.testing.assert_close(ours(again, folder, rows), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 1e-2


def test_padding_with_the_end_token_moves_no_score(folder: Path, tmp_path: Path, whole: Run) -> None:
    """TRL would read the score one token too early; the artifact keeps the tokenizer as it came."""
    checkpoint(tmp_path / "base")
    tokenizer = load_tokenizer(str(tmp_path / "base"))
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "base")
    run = start(trl, tmp_path / "run", config(folder, model={"path": str(tmp_path / "base")}))
    left, right = weights(run.model_dir), weights(whole.model_dir)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0)
    assert load_tokenizer(str(run.model_dir)).pad_token == "<|im_end|>"


def test_cut_off_and_resumed_is_uninterrupted(folder: Path, tmp_path: Path, whole: Run) -> None:
    class PowerCut(Exception):
        pass

    class Cut(RewardTrainer):
        def training_step(self, *arguments: Any, **options: Any) -> Any:
            if self.state.global_step == 3:
                raise PowerCut
            return super().training_step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trl.TRAINERS, "reward", (Cut, *trl.TRAINERS["reward"][1:]))
        with pytest.raises(PowerCut):
            start(trl, tmp_path / "run", config(folder))
    assert not (tmp_path / "run/model").exists() and (tmp_path / "run/checkpoints/checkpoint-2").is_dir()
    resumed = start(trl, tmp_path / "run", config(folder))
    left, right = weights(resumed.model_dir), weights(whole.model_dir)
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert [line["step"] for line in metrics(resumed)] == [line["step"] for line in metrics(whole)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"pad_token": "x"}}, r"options\.pad_token: remove it; alignkit loads and tokenizes"),
        ({"options": {"max_length": 9}}, r"options\.max_length: remove it"),
        ({"reward": {"kind": "lexicon"}}, "reward goes with trainer: grpo or rloo"),
        ({"data": {"max_length": 9}}, r"data\.max_length is 9"),
    ],
)
def test_what_would_be_ignored_is_refused(folder: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        start(trl, tmp_path / "run", config(folder, **changes))


def test_an_architecture_without_such_a_class_is_named(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    granite = GraniteConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **shape, pad_token_id=0)
    GraniteForCausalLM(granite).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="granite has no SequenceClassification class; use a stage of type reward"):
        start(trl, tmp_path / "run", config(folder, model={"path": str(tmp_path / "base")}))
