"""The language model that a judge asks: in a folder, answering greedily, or behind a server. Knows no reward."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.contents import Contents
from alignkit.generate import rollout
from alignkit.guidelines import read_judge
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.judge import AskedModel, JudgeSource
from alignkit.options.shared import ModelOptions
from alignkit.records import Message, Prompt
from reward_models.endpoint import cached, endpoint
from reward_models.judge import CUT, Ask, Compare, Messages, comparison, has_choice


def local_judge(
    path: str,
    *,
    max_new_tokens: int = 512,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    token_budget: int = 8192,
) -> Ask:
    """Asks the frozen model in a folder, spoken to by its own chat template; no sampling. Raises InputError."""
    tokenizer = load_tokenizer(path)
    if not tokenizer.chat_template:
        raise InputError(f"{path} has no chat template, which a judge is spoken to by: save one with its tokenizer")
    format = ChatFormat.load(tokenizer)
    options = ModelOptions(path=path)
    policy = load_policy(options, device=device, precision=precision, trainable=False, format=format).eval()

    def ask(conversations: list[Messages]) -> list[str]:
        prompts = [Prompt(messages=tuple(Message(**message) for message in messages)) for messages in conversations]
        answers = rollout(
            policy,
            format,
            prompts,
            seed=0,
            update=0,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            token_budget=token_budget,
        )
        return [answer.response.content + ("" if answer.finished else CUT) for answer in answers]

    return ask


def asked(source: AskedModel, group: str, readable: Callable[[str], bool], **held: Any) -> Ask:
    """The language model that a judge's options name, with its memory of `readable` answers. `group`: their place in
    the recipe; `held`: device, precision and token budget of a local model. Raises InputError."""
    if source.path is not None:
        ask = local_judge(source.path, max_new_tokens=source.max_new_tokens, **held)
        lies_here = source.cache is not None and Path(source.path).is_dir()
        answers = Contents().of(Path(source.path)) if lies_here else source.path
    else:
        key = None if source.key_variable is None else os.environ.get(source.key_variable)
        if source.key_variable is not None and not key:
            raise InputError(f"{group}.key_variable: the environment variable that it names is not set")
        answers = f"{source.url} {source.model}"
        waits = {"at_once" if name == "batch_size" else name: value for name, value in patience(source).items()}
        ask = endpoint(str(source.url), str(source.model), key=key, max_new_tokens=source.max_new_tokens, **waits)
    return ask if source.cache is None else cached(ask, source.cache, f"{answers} {source.max_new_tokens}", readable)


def patience(source: AskedModel) -> dict[str, Any]:
    """How a server is asked: how much at a time, how long, how often."""
    return {"batch_size": source.batch_size, "timeout": source.timeout or 60.0, "retries": source.retries}


def build_comparison(source: JudgeSource, **held: Any) -> Compare:
    """The judge of pairs that `source` names. Raises InputError where it cannot be made."""
    guidelines, examples = read_judge(str(source.guidelines), "judge.guidelines", None)
    ask = asked(source, "judge", has_choice, **held)
    return comparison(ask, guidelines, examples=examples, skip=source.on_failure == "skip")


def check_judge(source: JudgeSource) -> None:
    """Raise InputError for what can be seen to be missing before a model is there."""
    read_judge(str(source.guidelines), "judge.guidelines", None)
    if source.path is None:
        asked(source.model_copy(update={"cache": None}), "judge", has_choice)
