"""Talks to a trained model: one conversation, answer by answer. It does not know where models come from."""

from dataclasses import dataclass, field

import torch

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.draws import Draws
from alignkit.environment.episodes import Episodes, answered, open_episodes
from alignkit.environment.seam import schemas_of
from alignkit.models import known_positions, load_policy, load_tokenizer
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.shared import ModelOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt, Tools
from reward_models.scores import said


@dataclass
class Conversation:
    """A model and what was said so far."""

    policy: Policy
    format: ChatFormat
    max_new_tokens: int
    temperature: float
    seed: int
    episodes: Episodes | None = None
    """What plays its answers, where an environment answers them."""
    tools: Tools | None = None
    messages: list[Message] = field(default_factory=list[Message])
    positions: int | None = None
    """How many tokens the model has embeddings for; None: any number."""

    def answer(self, text: str) -> Completion:
        """Say `text` and get the answer; both, and the turns between, are part of the conversation from then on.

        Raises InputError where there is nothing said, or no room for an answer in the model's positions.
        """
        if not text.strip():
            raise InputError("the message is empty; say something")
        asked = [*self.messages, Message(role="user", content=text)]
        used = len(self.format.prompt(asked, self.tools))
        if self.positions is not None and used + self.max_new_tokens > self.positions:
            raise InputError(
                f"{used} tokens of the conversation leave no room for {self.max_new_tokens} new ones in the model's "
                f"{self.positions} positions; start anew, or lower --max-new-tokens"
            )
        self.messages.append(Message(role="user", content=text))
        draws = Draws(
            seed=self.seed,
            update=len(self.messages),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        prompt = Prompt(messages=tuple(self.messages), tools=self.tools)
        (completion,) = answered(self.policy, self.format, [prompt], draws, self.episodes)
        self.messages += [*completion.turns, completion.response]
        return completion


def lines(completion: Completion) -> list[str]:
    """What to show of an answer: the turns before its last one with who speaks, then that one, tool calls included."""
    return [*(f"{turn.role}: {said(turn)}" for turn in completion.turns), said(completion.response)]


def open_conversation(
    path: str,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    environment: EnvironmentOptions | None = None,
    allow_code: bool = False,
) -> Conversation:
    """Load a model folder to talk to. Raises InputError where it is none, or has no chat template, or one under which
    the environment could not answer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16" if device == "cuda" else "float32"
    format = ChatFormat.load(load_tokenizer(path), on_unrendered="warn")
    episodes, tools = open_episodes(environment, format, allow_code), schemas_of(environment, allow_code)
    policy = load_policy(ModelOptions(path=path), device=device, precision=precision, trainable=False)
    before = [] if system is None else [Message(role="system", content=system)]
    positions = known_positions(path)
    return Conversation(policy.eval(), format, max_new_tokens, temperature, seed, episodes, tools, before, positions)
