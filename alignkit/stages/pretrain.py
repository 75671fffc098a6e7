"""Pretraining: next-token training on documents, from a new model or on from a checkpoint. Knows no other stage."""

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from alignkit.chat import extend_embeddings
from alignkit.chat.tokens import add_special_tokens
from alignkit.config import InputError
from alignkit.data.documents import document_sequences
from alignkit.data.load import load_parts
from alignkit.data.tokenizer import FILL, train_tokenizer
from alignkit.examples import read_examples
from alignkit.examples_stored import discard_examples
from alignkit.loop import Example, Objective, Sums, fit, make_accelerator
from alignkit.models import known_positions, load_policy, load_tokenizer, save_model
from alignkit.objective import Readings
from alignkit.options.mixture import is_streamed
from alignkit.options.pretrain import ArchitectureOptions, PretrainConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.policy import Policy
from alignkit.prepare import check_positions, fit_examples, longest_of
from alignkit.records import Document
from alignkit.runs import Run
from alignkit.selfcheck import DROPOUTS
from alignkit.trie import TrieBatch
from alignkit.windows import Crops, Pieces


def run(config: PretrainConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Pretrain, and return the folder of the artifact: a plain checkpoint with its tokenizer."""
    accelerator = make_accelerator(runtime)
    start = config.model
    if start is None:
        folder = run.directory / "initial"
        # A stream's documents are many: what a killed start has finished is of the same id, so of the same documents.
        again = run.latest_checkpoint() is None and not (is_streamed(config.data) and run.record.id)
        if run.is_main and (again or not folder.exists()):
            partial = folder.with_name("initial.partial")
            for old in (partial, folder):
                shutil.rmtree(old, ignore_errors=True)
            create_model(config, partial)
            partial.rename(folder)
        accelerator.wait_for_everyone()
        start = ModelOptions(path=str(folder))
    tokenizer = load_tokenizer(start.path)
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "float32"
    # A new model has the dropout that was asked for, a checkpoint none.
    new_model = config.model is None
    positions = known_positions(start.path)
    policy = load_policy(start, device=accelerator.device, precision=precision, seed=config.seed, dropout=new_model)
    new = add_special_tokens(tokenizer, FILL) if config.fim_rate else ()
    if new:
        extend_embeddings(policy.model, tokenizer, new)

    def make(documents: Sequence[Document], held_out: bool, first: int) -> Sequence[Example | None]:
        rate = 0.0 if held_out else config.fim_rate
        found = document_sequences(documents, tokenizer, config.data.max_length, rate, config.seed, first)
        examples = fit_examples(found, config.data, runtime.token_budget, None, Counter())
        check_positions(min(longest_of(examples), config.data.max_length), start.path, positions)
        return examples

    def cut(examples: Sequence[Example]) -> Sequence[Example]:
        if config.example == "crop":
            return Crops(examples, config.data.max_length)
        return Pieces(examples) if config.example == "piece" else examples

    found = read_examples(config.data, Document, make, (), run, config.seed, tokenizer.get_vocab(), cut)
    run.log(0, found.sizes())

    def save(folder: Path) -> None:
        save_model(policy.model, policy.adapted, folder)
        tokenizer.save_pretrained(folder)

    result = fit(
        policy, found.train, found.validation, OBJECTIVE, config.train, runtime, run, config.seed, accelerator, save
    )
    perplexity = {"perplexity": math.exp(min(result.metrics["nll"], 700.0))}
    run.finish({**result.metrics, **perplexity}, result.throughput, result.peak_memory_bytes, run.model_dir)
    discard_examples(run)
    return run.model_dir


def create_model(config: PretrainConfig, folder: Path) -> None:
    """Write an untrained checkpoint: the tokenizer, trained on the documents, and weights drawn from the seed."""
    assert config.architecture is not None
    options = config.tokenizer
    if options.path is not None:
        tokenizer = load_tokenizer(options.path)
        add_special_tokens(tokenizer, FILL if config.fim_rate else ())
    else:
        extra = FILL if config.fim_rate else ()
        parts, _ = load_parts(config.data, Document, config.seed)
        texts = (document.text for part in parts for document in part.train)
        tokenizer = train_tokenizer(texts, options.kind, options.vocabulary, extra)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        shape = configuration(config.architecture, tokenizer, config.data.max_length)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def configuration(shape: ArchitectureOptions, tokenizer: PreTrainedTokenizerBase, context: int) -> PretrainedConfig:
    """The transformers configuration of a new model. Raises InputError where its class lacks what is asked."""
    try:
        default = AutoConfig.for_model(shape.model_type)
    except ValueError as error:
        raise InputError(f"architecture.model_type: transformers knows no {shape.model_type!r}") from error
    for name in shape.settings:
        if not hasattr(default, name):
            raise InputError(f"architecture.settings: {type(default).__name__} has no field {name!r}")
    dropouts = {name: shape.dropout for name in DROPOUTS if hasattr(default, name)}
    if shape.dropout and not dropouts:
        raise InputError(f"architecture.dropout: {shape.model_type} has none; leave it out")
    asked: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "head_dim": shape.width // shape.heads,
        "intermediate_size": shape.feed_forward or 4 * shape.width,
        "n_inner": shape.feed_forward or 4 * shape.width,
        "max_position_embeddings": context,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": shape.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **dropouts,
    }
    if not hasattr(default, "num_key_value_heads") and shape.kv_heads not in (None, shape.heads):
        raise InputError(f"architecture.kv_heads: {shape.model_type} has as many as heads; leave it out")
    fields = {name: value for name, value in asked.items() if hasattr(default, name)}
    try:
        return AutoConfig.for_model(shape.model_type, **{**fields, **shape.settings})
    except (TypeError, ValueError) as error:
        raise InputError(f"architecture: {shape.model_type} refuses it: {error}") from error


def _read(policy: Policy, batch: TrieBatch) -> Readings:
    return {"logps": policy(batch).logps}


def _loss(readings: Readings, batch: TrieBatch) -> Sums:
    nats = -(batch.weight * readings["logps"]).sum()
    return Sums({"nll": nats}, {"bits_per_byte": nats.detach() / math.log(2)})


def _count(batch: TrieBatch) -> dict[str, float]:
    return {"nll": batch.weight.sum().item(), "bits_per_byte": batch.owner_columns["bytes"].sum().item()}


OBJECTIVE = Objective(_read, _loss, _count)
"""`nll` in nats per token, end marks included, and the same loss as `bits_per_byte` of the documents' text."""
