"""A tiny chat model with a byte-level BPE, records as JSON lines, and runs of a stage: for tests of offline stages."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from alignkit import loop
from alignkit.chat import ChatFormat
from alignkit.config import Config, build
from alignkit.data.tokenizer import train_tokenizer
from alignkit.loop import Example
from alignkit.models import load_tokenizer
from alignkit.options.shared import RuntimeOptions
from alignkit.prepare import ranked_sequences
from alignkit.records import Comparison, Message
from alignkit.runs import Run

C = TypeVar("C", bound=Config)

# ChatML that prints nothing after an answer's end: TRL trains whatever stands there, alignkit never does.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT = "the a cat dog sat ran on under old new mat tree and then it was very happy sad why how who knows"
WORDS = TEXT.split()
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
QUIET = RuntimeOptions(trackers=[], device="cpu")


def sentence(chance: random.Random, longest: int = 8) -> str:
    """One to `longest` words."""
    return " ".join(chance.choices(WORDS, k=chance.randint(1, longest))) + "."


def checkpoint(folder: Path, family: str = "llama", seed: int = 0, chat: bool = True, **shape: Any) -> Path:
    """Random weights and a tokenizer of 300 tokens on disk; with `chat` the tokenizer has TEMPLATE."""
    tokenizer = train_tokenizer([sentence(random.Random(n)) for n in range(200)], "bpe", 300)
    tokenizer.chat_template = TEMPLATE if chat else None
    kind, model = FAMILIES[family]
    torch.manual_seed(seed)
    small = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.1,
    }
    config = kind(
        **small | shape,
        tie_word_embeddings=family == "qwen3",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without_marks(base: Path) -> Path:
    """The checkpoint's tokenizer without the tokens of ChatML."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace("<|im_", "<|was_"))
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|bos|>", eos_token="<|eos|>").save_pretrained(base)
    return base


def format_of(folder: Path) -> ChatFormat:
    """How the checkpoint is spoken to."""
    return ChatFormat.load(load_tokenizer(str(folder)))


def message(role: str, content: str) -> dict[str, str]:
    """A message as data files hold it."""
    return {"role": role, "content": content}


def messages(turns: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    """The same as records."""
    return tuple(Message.model_validate(turn) for turn in turns)


def prompt(chance: random.Random) -> list[dict[str, str]]:
    """One to three turns that end with the user's; some begin with a system message."""
    turns = [message("system", sentence(chance))] if chance.random() < 0.3 else []
    for _ in range(chance.randint(0, 1)):
        turns += [message("user", sentence(chance)), message("assistant", sentence(chance))]
    return [*turns, message("user", sentence(chance))]


def demonstrations(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one or two answers."""
    chance = random.Random(seed)
    return [{"messages": [*prompt(chance), message("assistant", sentence(chance))]} for _ in range(rows)]


def rankings(rows: int, most: int = 9, seed: int = 0) -> list[dict[str, Any]]:
    """Rankings of 2 to `most` responses; happier ones rank higher, and where `most` > 2 some are tied."""
    chance = random.Random(seed)
    made: list[dict[str, Any]] = []
    for _ in range(rows):
        size = chance.randint(2, most)
        ranks = [1, 2] if size == 2 else [chance.randint(1, size) for _ in range(size)]
        if len(set(ranks)) == 1:
            ranks[0] += 1
        texts = [("sad " if rank > 1 else "happy ") * 2 + sentence(chance) for rank in ranks]
        order = [sorted(set(ranks)).index(rank) + 1 for rank in ranks]
        responses = [[message("assistant", text)] for text in texts]
        made.append({"prompt": prompt(chance), "responses": responses, "ranks": order})
    return made


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """The rows as JSON lines; returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def comparisons(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Rows of `rankings` as records."""
    return [
        Comparison(
            prompt=messages(row["prompt"]),
            responses=tuple(messages(response) for response in row["responses"]),
            ranks=tuple(row["ranks"]),
            margins=tuple(row["margins"]) if "margins" in row else None,
        )
        for row in rows
    ]


def examples_of(base: Path, rows: Sequence[dict[str, Any]]) -> list[Example]:
    """Rows of `rankings` as examples in the format of a checkpoint."""
    return [*ranked_sequences(format_of(base), comparisons(rows))]


def options_of(
    kind: type[C], folder: Path, changes: dict[str, Any], learning_rate: float, batch_size: int, validation: int
) -> C:
    """A stage's options on `folder`/base and `folder`/data.jsonl, six steps and three checkpoints, with `changes`."""
    train = {"learning_rate": learning_rate, "batch_size": batch_size, "steps": 6, "checkpoint_every": 2}
    options = {
        "model": {"path": str(folder / "base")},
        "train": train,
        "data": {"path": str(folder / "data.jsonl"), "validation": validation},
    }
    merged = {key: value | changes.get(key, {}) for key, value in options.items()}
    return build(kind, changes | merged, "")


def start(stage: Any, directory: Path, config: Any, runtime: RuntimeOptions = QUIET) -> Run:
    """Runs a stage in `directory`, or goes on there."""
    run = Run.open(directory, stage.__name__.rpartition(".")[2], config, runtime, id="test")
    assert stage.run(config, runtime, run) == run.model_dir
    return run


class PowerCut(BaseException):
    """What `cut_after` raises."""


def cut_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Lets `steps` optimizer steps pass, then raises PowerCut inside the next."""
    update: Callable[..., dict[str, float]] = loop.update
    made = 0

    def cut(*arguments: Any) -> dict[str, float]:
        nonlocal made
        if made == steps:
            raise PowerCut
        made += 1
        return update(*arguments)

    monkeypatch.setattr(loop, "update", cut)


def interrupted(stage: Any, directory: Path, config: Any, steps: int) -> Run:
    """A run that is cut off after `steps` steps and then started again."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, steps)
        start(stage, directory, config)
    assert not (directory / "model").exists()
    return start(stage, directory, config)


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of an artifact, by file and name."""
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def assert_equal_runs(one: Run, other: Run) -> None:
    """Artifacts and logs agree bit for bit."""
    left, right = weights(one.model_dir), weights(other.model_dir)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert metrics(one) == metrics(other)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Name -> gradient, 0 where none arrived."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Every tensor differs by at most `tolerance` of the whole gradient's norm, and so do all together."""
    assert ours.keys() == theirs.keys()
    whole = torch.stack([g.norm() for g in theirs.values()]).norm()
    apart = torch.stack([(ours[n] - theirs[n]).norm() for n in theirs]).norm()
    assert whole > 0
    assert apart <= tolerance * whole, f"{apart / whole:.2e}"


def trl_arguments(arguments: Any, folder: Path, rows: int, **options: Any) -> Any:
    """Arguments of a trainer of TRL that takes all rows at once, in float32."""
    return arguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        max_length=None,
        per_device_train_batch_size=rows,
        **options,
    )


def plain_logps(model: Any, example: Example) -> tuple[Tensor, list[int]]:
    """[O] summed log-probabilities of each response in a plain pass of its own, and the responses' lengths."""
    totals, lengths = [], []
    for sequence in example:
        table = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        trained = [t for t, weight in enumerate(sequence.weights) if weight]
        totals.append(torch.stack([table[t - 1, sequence.ids[t]] for t in trained]).sum())
        lengths.append(len(trained))
    return torch.stack(totals), lengths


def trl_trainer(
    trainer: Any, arguments: Any, base: Path, reference: Path, rows: Sequence[dict[str, Any]], **options: Any
) -> Any:
    """A trainer of TRL that takes all rows at once."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = trl_arguments(arguments, base / "trl", len(rows), **options)
    return trainer(
        model,
        AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        settings,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(base),
    )


def trl_step(*arguments: Any, **options: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a `trl_trainer` before its first step."""
    opened = trl_trainer(*arguments, **options)
    loss: Any = opened.compute_loss(opened.model, opened.data_collator(list(opened.train_dataset)))
    loss.backward()
    return loss.item(), gradients(opened.model)
