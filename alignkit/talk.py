"""Talks to a trained model: one conversation, answer by answer. It does not know where models come from."""

from dataclasses import dataclass, field

import torch

from alignkit.chat import ChatFormat
from alignkit.generate import rollout
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.shared import ModelOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt


@dataclass
class Conversation:
    """A model and what was said so far."""

    policy: Policy
    format: ChatFormat
    max_new_tokens: int
    temperature: float
    seed: int
    messages: list[Message] = field(default_factory=list[Message])

    def answer(self, text: str) -> Completion:
        """Say `text` and get the answer; both are part of the conversation from then on."""
        self.messages.append(Message(role="user", content=text))
        (completion,) = rollout(
            self.policy,
            self.format,
            [Prompt(messages=tuple(self.messages))],
            seed=self.seed,
            update=len(self.messages),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        self.messages.append(completion.response)
        return completion


def open_conversation(
    path: str, system: str | None, max_new_tokens: int, temperature: float, seed: int
) -> Conversation:
    """Load a model folder to talk to. Raises InputError where it is none, or has no chat template."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16" if device == "cuda" else "float32"
    format = ChatFormat.load(load_tokenizer(path), on_unrendered="warn")
    policy = load_policy(ModelOptions(path=path), device=device, precision=precision, trainable=False)
    said = [] if system is None else [Message(role="system", content=system)]
    return Conversation(policy.eval(), format, max_new_tokens, temperature, seed, said)
