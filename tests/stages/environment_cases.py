"""Environments that a recipe can name as `environment_cases:…`, and a checkpoint that can write calls. They know
nothing of who asks."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit.chat import ChatFormat
from alignkit.policy import Policy
from alignkit.records import Completion, Message

OPEN, CLOSE = '<tool_call>{"name": "calculator", "arguments": {"expression": "', '"}}</tool_call>'


def curious(completion: Completion) -> list[Message] | None:
    """Asks on until an answer is short: with one message or two, by what was said."""
    text = completion.response.content
    if len(text) < 2:
        return None
    return [Message(role="user", content="you said " + text[-3:].strip())] + [Message(role="user", content="why?")] * (
        len(text) % 2
    )


ASKED = itertools.count(1)


def unsteady(completion: Completion) -> list[Message] | None:
    """`curious`, but gone for the second of several processes once it was asked a number of times."""
    if os.environ.get("RANK") == "1" and next(ASKED) > 10:
        raise OSError("the other side is gone")
    return curious(completion)


def checkpoint(folder: Path, seed: int = 0) -> None:
    """A random Llama over numbers, role names, and the two halves of a call, a token each."""
    words = ["?", "user", "assistant", "tool", "\n", "*", *map(str, range(82)), "<|im_start|>", "<|im_end|>"]
    inner = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="?"))
    inner.pre_tokenizer = Split(Regex(r"[a-z]+|[0-9]+|[\s\S]"), "isolated")
    inner.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", unk_token="?", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.add_tokens([AddedToken(OPEN, normalized=False), AddedToken(CLOSE, normalized=False)])
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Scripted:
    """In the place of sampling: what is said first, job by job of each model, and after a tool's reply its words."""

    def __init__(self, **first: list[str]) -> None:
        """`first`: by the names of the models' folders."""
        self.first = first

    def __call__(
        self, policy: Policy, format: ChatFormat, contexts: Sequence[list[int]], keys: Tensor, **_: Any
    ) -> list[tuple[list[int], None]]:
        words = format.tokenizer
        texts = [words.decode(context) for context in contexts]
        replied = [text.rpartition("<|im_start|>tool\n")[2].partition("<|im_end|>")[0] for text in texts]
        opening = iter(self.first[Path(policy.model.name_or_path).name])
        said = [
            reply if "<|im_start|>tool" in text else next(opening) for text, reply in zip(texts, replied, strict=True)
        ]
        return [(words(text + "<|im_end|>")["input_ids"], None) for text in said]


def prompts_of(path: Path, *pairs: tuple[int, int]) -> Path:
    """Products as questions, with their answers."""
    rows = [
        {"id": f"{a}*{b}", "messages": [{"role": "user", "content": f"{a}*{b}"}], "answer": str(a * b)}
        for a, b in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call_of(expression: str) -> str:
    """The text of a call of the calculator."""
    return OPEN + expression + CLOSE


TOOLS: dict[str, Any] = {"kind": "tools", "tools": ["calculator"], "announce": False, "max_tokens": 40}


def prepare(place: Path) -> Path:
    """Two checkpoints, calls and guesses, and three products as prompts."""
    for seed, name in enumerate(("calls", "guesses")):
        checkpoint(place / name, seed)
    prompts_of(place / "prompts.jsonl", (3, 4), (7, 8), (2, 2))
    return place


def spelled(a: int, b: int, *turns: str) -> list[str]:
    """A conversation in ChatML, what the policy says standing at the odd places."""
    asked = f"<|im_start|>user\n{a}*{b}<|im_end|>\n<|im_start|>assistant\n"
    if len(turns) == 1:
        return [asked, turns[0] + "<|im_end|>"]
    said, reply, answer = turns
    between = f"\n<|im_start|>tool\n{reply}<|im_end|>\n<|im_start|>assistant\n"
    return [asked, said + "<|im_end|>", between, answer + "<|im_end|>"]
