"""A local language model as a judge: greedy answers of a model in a folder. Knows no reward."""

from typing import Literal

import torch

from alignkit.chat import ChatFormat
from alignkit.generate import rollout
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.shared import ModelOptions
from alignkit.records import Message, Prompt
from reward_models.judge import Ask, Messages


def local_judge(
    path: str,
    *,
    max_new_tokens: int = 512,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    token_budget: int = 8192,
) -> Ask:
    """Asks the frozen model in a folder, spoken to by its own chat template; no sampling. Raises InputError."""
    format = ChatFormat.load(load_tokenizer(path))
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
        return [answer.response.content for answer in answers]

    return ask
