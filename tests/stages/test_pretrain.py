"""Pretraining: the objective against plain arithmetic, documents into pieces, new models of many families, a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from chat_cases import assert_equal_runs, interrupted, start
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.config import InputError
from alignkit.data.documents import document_sequences
from alignkit.data.load import load_data
from alignkit.data.tokenizer import FILL, train_tokenizer
from alignkit.data.world import generate
from alignkit.models import load_policy
from alignkit.options.pretrain import ArchitectureOptions, PretrainConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.records import Document
from alignkit.runs import Run, read_metrics
from alignkit.stages import pretrain

QUIET = RuntimeOptions(trackers=[])
SMALL = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1}
CHECKPOINT = {"architecture": None, "tokenizer": None}
DATA = {"world": "corpus", "rows": 300, "max_length": 48, "validation": 0.1}


def options(**changed: object) -> PretrainConfig:
    given = {
        "architecture": {"model_type": "llama", **SMALL},
        "tokenizer": {"kind": "word", "vocabulary": 400},
        "data": DATA,
        "train": {"learning_rate": 1e-2, "batch_size": 16, "epochs": 2},
    }
    return PretrainConfig.model_validate({k: v for k, v in {**given, **changed}.items() if v is not None})


def pretrained(config: PretrainConfig, folder: Path) -> Run:
    run = Run.open(folder, "pretrain", config, QUIET)
    assert pretrain.run(config, QUIET, run) == run.model_dir
    return run


def plain_nats(folder: Path, texts: list[str]) -> tuple[float, int]:
    """Summed nats and predicted tokens of texts under a checkpoint, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return nats, tokens


def test_a_run_leaves_a_plain_checkpoint_whose_validation_transformers_confirms(tmp_path: Path) -> None:
    run = pretrained(options(data={**DATA, "validation": 30}), tmp_path / "run")
    metrics = run.record.metrics
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    first = next(line["validation/nll"] for line in lines if "validation/nll" in line)
    assert metrics["nll"] < first - 0.5, "training lowered the validation loss"
    documents = [document.text for document in generate("corpus", 300, 0)]  # type: ignore[union-attr]
    held_out = held_out_texts(documents)
    nats, tokens = plain_nats(run.model_dir, held_out)
    assert metrics["nll"] == pytest.approx(nats / tokens, rel=1e-4)
    size = sum(len(text.encode()) for text in held_out)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def held_out_texts(documents: list[str]) -> list[str]:
    """The validation documents of `options()`, as the reader splits them."""
    config = options(data={**DATA, "validation": 30})
    _, validation, _ = load_data(config.data, Document, config.seed)
    assert 30 <= len(validation) < 60 and {d.text for d in validation} <= set(documents)
    return [document.text for document in validation]


def test_a_checkpoint_is_trained_on_with_its_own_tokenizer(tmp_path: Path) -> None:
    first = pretrained(options(), tmp_path / "first")
    more = options(architecture=None, tokenizer=None, model={"path": str(first.model_dir)})
    second = pretrained(more, tmp_path / "second")
    assert second.record.metrics["nll"] < first.record.metrics["nll"]
    assert (second.model_dir / "tokenizer.json").read_text() == (first.model_dir / "tokenizer.json").read_text()


def test_a_token_budget_below_the_pieces_is_refused_and_changes_none(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("the cat sat on the mat. " * 40)
    config = options(data={"path": str(book), "max_length": 48, "validation": 0.5})
    for budget in (47, 48):
        runtime = QUIET.model_copy(update={"token_budget": budget})
        run = Run.open(tmp_path / str(budget), "pretrain", config, runtime)
        if budget < 48:
            with pytest.raises(InputError, match=r"runtime\.token_budget: 47 is less than a sequence of 48 tokens"):
                pretrain.run(config, runtime, run)
        else:
            assert pretrain.run(config, runtime, run) == run.model_dir


def test_pieces_predict_each_token_once_and_carry_the_bytes_once() -> None:
    tokenizer = train_tokenizer(["abc"], "character", 30)
    text = "abcabcab"
    (pieces,) = document_sequences([Document(text=text)], tokenizer, max_length=4)
    whole = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    predicted = [i for piece in pieces for i, w in zip(piece.ids, piece.weights, strict=True) if w]
    assert predicted == whole[1:]
    assert all(len(piece.ids) <= 4 and piece.weights[0] == 0 for piece in pieces)
    assert [left.ids[-1] for left in pieces[:-1]] == [right.ids[0] for right in pieces[1:]]
    assert sum(piece.columns["bytes"] for piece in pieces) == pytest.approx(len(text))


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
@pytest.mark.parametrize("example", ["document", "piece", "crop"])
def test_an_example_is_a_document_a_piece_or_a_crop(tmp_path: Path, example: str, stream: bool) -> None:
    book = tmp_path / "book.txt"
    book.write_text("abcd" * 100)
    data = {"path": str(book), "max_length": 11, "validation": 0, "stream": stream}
    train = {"learning_rate": 1e-3, "batch_size": 5, "steps": 2}
    tokenizer = {"kind": "character", "vocabulary": 64}
    run = pretrained(options(data=data, train=train, tokenizer=tokenizer, example=example), tmp_path / "run")
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    # 402 tokens with both marks, of which 401 are predicted, 10 in a piece.
    assert lines[0]["data/train"] == {"document": 1, "piece": 41, "crop": 392}[example]
    per_token = [line["bits_per_byte"] / line["nll"] * math.log(2) for line in lines if "nll" in line]
    assert per_token == pytest.approx([401 / 400] * 2)  # predicted tokens per byte, the same in every batch


def test_dropout_is_what_was_asked_for_and_else_none(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b"], "word", 60)
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    for dropout in (0.0, 0.3):
        shape = ArchitectureOptions(model_type="gpt2", layers=1, width=16, heads=2, dropout=dropout)
        config = pretrain.configuration(shape, tokenizer, 16)
        assert [getattr(config, name) for name in names] == [dropout] * 3
    with pytest.raises(InputError, match=r"architecture\.dropout: mamba has none"):
        pretrain.configuration(ArchitectureOptions(model_type="mamba", dropout=0.1), tokenizer, 16)
    shape = {"model_type": "gpt2", "layers": 1, "width": 16, "heads": 2}
    train = {"learning_rate": 1e-9, "batch_size": 16, "steps": 1}
    losses = {}
    for dropout in (0.0, 0.3):
        run = pretrained(options(architecture={**shape, "dropout": dropout}, train=train), tmp_path / f"{dropout}")
        (losses[dropout],) = (line["loss"] for line in read_metrics(run.directory) if "loss" in line)
    assert losses[0.0] != losses[0.3], "the forward pass that trains drops"
    # A checkpoint that is trained on has none, whatever its configuration says.
    dropping = run.model_dir
    assert load_policy(ModelOptions(path=str(dropping))).model.config.attn_pdrop == 0.0
    assert load_policy(ModelOptions(path=str(dropping)), dropout=True).model.config.attn_pdrop == 0.3


def test_fill_in_the_middle_moves_text_and_loses_none() -> None:
    tokenizer = train_tokenizer(["abcdefghij"], "character", 40, FILL)
    documents = [Document(text="abcdefghij")] * 200
    prefix, suffix, middle = (f"<|fim_{part}|>" for part in ("prefix", "suffix", "middle"))
    cuts = set()
    moved = 0
    for (piece,) in document_sequences(documents, tokenizer, 64, fim_rate=0.5, seed=3):
        text = tokenizer.decode(piece.ids).removeprefix("<|bos|>").removesuffix("<|eos|>")
        if text.startswith(prefix):
            moved += 1
            before, rest = text.removeprefix(prefix).split(suffix)
            after, between = rest.split(middle)
            assert before + between + after == "abcdefghij"
            cuts.add((len(before), len(after)))
        else:
            assert text == "abcdefghij"
    assert 70 < moved < 130  # 100 ± 4 deviations of a fair coin
    assert len(cuts) > 25
    again = document_sequences(documents, tokenizer, 64, fim_rate=0.5, seed=3)
    assert again == document_sequences(documents, tokenizer, 64, fim_rate=0.5, seed=3)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt2", "gpt_neox", "gemma", "olmo2", "phi3"])
def test_a_new_model_has_the_shape_that_was_asked(family: str) -> None:
    tokenizer = train_tokenizer(["a b c d e f"], "word", 60)
    shape = ArchitectureOptions(model_type=family, layers=3, width=32, heads=4, feed_forward=48)
    model = AutoModelForCausalLM.from_config(pretrain.configuration(shape, tokenizer, 40))
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 32, 4)
    assert config.vocab_size == len(tokenizer) and config.max_position_embeddings == 40
    assert 48 in (getattr(config, "intermediate_size", 0), getattr(config, "n_inner", 0))
    assert config.eos_token_id == tokenizer.eos_token_id and config.pad_token_id == tokenizer.pad_token_id
    assert model(torch.tensor([[0, 5, 6]])).logits.shape == (1, 3, len(tokenizer))
    assert sum(p.numel() for p in model.parameters()) < 80_000


def test_grouped_query_attention_and_further_settings_reach_the_configuration() -> None:
    tokenizer = train_tokenizer(["a b"], "word", 60)
    shape = ArchitectureOptions(
        model_type="llama", layers=1, width=32, heads=4, kv_heads=2, tied=False, settings={"rms_norm_eps": 1e-3}
    )
    config = pretrain.configuration(shape, tokenizer, 16)
    assert (config.num_key_value_heads, config.tie_word_embeddings, config.rms_norm_eps) == (2, False, 1e-3)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model_type": "lama"}, "knows no 'lama'"),
        ({"settings": {"layerz": 3}}, "no field 'layerz'"),
        ({"model_type": "gpt2", "kv_heads": 1}, "kv_heads"),
    ],
)
def test_a_shape_that_no_class_has_is_named(wrong: dict[str, object], told: str) -> None:
    tokenizer = train_tokenizer(["a b"], "word", 60)
    shape = ArchitectureOptions.model_validate({**SMALL, **wrong})
    with pytest.raises(InputError, match=told):
        pretrain.configuration(shape, tokenizer, 16)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"architecture": None}, "exactly one of"),
        ({"model": {"path": "x"}}, "exactly one of"),
        ({"architecture": {**SMALL, "heads": 3}}, "no multiple of heads"),
        ({"architecture": {**SMALL, "kv_heads": 4}}, "no multiple of kv_heads"),
        ({"architecture": None, "model": {"path": "x"}}, "brings its own"),
        ({"example": "crop"}, "example: crop has no epochs; set train.steps"),
        ({**CHECKPOINT, "model": {"path": "x", "chat_template": "chatml"}}, "model.chat_template: documents have no"),
        ({**CHECKPOINT, "model": {"path": "x", "eos_token": "x"}}, "model.eos_token"),
        ({**CHECKPOINT, "model": {"path": "x", "template_kwargs": {"x": 1}}}, "model.template_kwargs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options(**changed)


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    config = options(train={"learning_rate": 1e-2, "batch_size": 16, "steps": 6, "checkpoint_every": 2})
    assert_equal_runs(interrupted(pretrain, tmp_path / "cut", config, 3), start(pretrain, tmp_path / "whole", config))
