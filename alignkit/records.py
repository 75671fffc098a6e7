"""The records that pass between stages: conversations, rankings, prompts, rewards. Knows neither files nor tokens."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class ToolCall(Record):
    """One call of a tool by the assistant."""

    name: str
    """The tool's name."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Its arguments by name."""
    id: str | None = None
    """Links the call to the tool message that answers it."""


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str = ""
    """The text of the turn."""
    reasoning: str | None = None
    """What the assistant thinks before it answers."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """The calls an assistant turn makes."""
    name: str | None = None
    """The tool that a tool message speaks for, or a speaker's name."""
    tool_call_id: str | None = None
    """The call that a tool message answers."""
    weight: float = Field(default=1.0, ge=0.0)
    """Weight of this turn in training; only assistant turns are ever trained. 0: context only."""
    finished: bool = True
    """False where a length limit cut this turn off: training then leaves out the end-of-turn token after it."""

    @field_validator("reasoning", "tool_calls")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return value or None

    @property
    def empty(self) -> bool:
        """True where the turn says nothing: no text, no reasoning, no tool call."""
        return not (self.content.strip() or self.reasoning or self.tool_calls)


Messages = tuple[Message, ...]
Tools = tuple[dict[str, Any], ...]


def _check_prompt(messages: Sequence[Message], field: str) -> None:
    if all(message.empty for message in messages):
        raise ValueError(f"empty prompt: `{field}` must hold at least one turn that says something")
    if messages[-1].role == "assistant":
        raise ValueError(f"`{field}` ends with the assistant's turn; it must end where the assistant is to answer")


class Document(Record):
    """Text to pretrain on."""

    text: str = Field(min_length=1)
    """The text itself."""
    id: str | None = None
    """A name, unique in its file."""
    source: str | None = None
    """Where the text comes from."""


class Demonstration(Record):
    """A conversation whose assistant turns show how to answer."""

    messages: Messages = Field(min_length=1)
    """The turns in order; the last is the assistant's."""
    tools: Tools | None = None
    """JSON schemas of the tools the assistant may call."""
    id: str | None = None
    """A name, unique in its file."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """Everything else the row carried."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.messages[-1].role != "assistant":
            raise ValueError(f"no response: the last turn of `messages` is the {self.messages[-1].role}'s")
        if self.messages[-1].empty:
            raise ValueError("no response: the last turn of `messages` is empty")
        if not any(message.weight for message in self.messages if message.role == "assistant"):
            raise ValueError("every assistant turn of `messages` has `weight` 0: there is nothing to train on")
        _check_prompt(self.messages[: last_question(self.messages)], "messages")
        return self


class Answers(Record):
    """A prompt and several responses to it."""

    prompt: Messages = Field(min_length=1)
    """The turns before the responses."""
    responses: tuple[Messages, ...] = Field(min_length=1)
    """The responses, each one or more turns that end with the assistant's. An empty text is a response too."""
    tools: Tools | None = None
    """JSON schemas of the tools the assistant may call."""
    id: str | None = None
    """A name, unique in its file."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """Everything else the row carried."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_prompt(self.prompt, "prompt")
        for index, response in enumerate(self.responses):
            if not response or response[-1].role != "assistant":
                raise ValueError(f"no response: `responses[{index}]` must end with the assistant's turn")
        return self

    def _check_number(self, field: str, values: Sequence[float] | None) -> None:
        if values is not None and len(values) != len(self.responses):
            raise ValueError(
                f"`{field}` holds {len(values)} values for {len(self.responses)} responses; give one for each"
            )


class Comparison(Answers):
    """One prompt, two or more responses, and their ranking."""

    ranks: tuple[int, ...]
    """The rank of each response: 1 is best, equal ranks are ties."""
    margins: tuple[float, ...] | None = None
    """A score for each response, where its judge gave one; higher is better."""

    @model_validator(mode="after")
    def _check_ranking(self) -> Self:
        if len(self.responses) < 2:
            raise ValueError("a ranking needs at least two `responses`, and has one")
        self._check_number("ranks", self.ranks)
        self._check_number("margins", self.margins)
        if len(set(self.ranks)) == 1:
            raise ValueError("all responses are tied: the ranking says nothing; give different `ranks`")
        return self


class Candidates(Answers):
    """A prompt and responses to it that are still to be labelled."""

    ranks: tuple[int, ...] | None = None
    """The rank that the row gives each response, to be replaced: 1 is best. null: none."""

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        self._check_number("ranks", self.ranks)
        return self


class Prompt(Record):
    """A conversation that waits for the assistant's answer."""

    messages: Messages = Field(min_length=1)
    """The turns before the answer."""
    tools: Tools | None = None
    """JSON schemas of the tools the assistant may call."""
    id: str | None = None
    """A name, unique in its file."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """Everything else the row carried: reference answers and whatever a reward wants to see."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_prompt(self.messages, "messages")
        return self


class Feedback(Record):
    """A user's verdict on one response: good or bad."""

    prompt: Messages = Field(min_length=1)
    """The turns before the response."""
    response: Messages = Field(min_length=1)
    """The response: one or more turns that end with the assistant's."""
    label: bool
    """True: good; false: bad."""
    correction: str | None = None
    """What the user would rather have read."""
    tools: Tools | None = None
    """JSON schemas of the tools the assistant may call."""
    id: str | None = None
    """A name, unique in its file."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """Everything else the row carried."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_prompt(self.prompt, "prompt")
        if self.response[-1].role != "assistant":
            raise ValueError("no response: `response` must end with the assistant's turn")
        return self


class Completion(Record):
    """What a model answered to a prompt."""

    prompt: Messages
    """The turns it answered."""
    response: Message
    """Its answer; the last one where an environment answered it."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """The columns of the prompt it answered."""
    ids: tuple[int, ...] = ()
    """The token ids that the model sampled, end-of-turn tokens included: the response's, after those of its answers
    in `turns`."""
    logps: tuple[float, ...] | None = None
    """Log-probability of each of `ids` as sampled, in nats, by the engine that sampled; null where it gave none."""
    tools: Tools | None = None
    """JSON schemas of the tools it could call."""
    turns: Messages = ()
    """The turns between prompt and response: the model's earlier answers, and what its environment answered."""
    inserted: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """The token ids between its turns, which it did not sample, each run of them with how many of `ids` are before."""

    @property
    def context(self) -> Messages:
        """The turns before the response."""
        return (*self.prompt, *self.turns)

    @property
    def finished(self) -> bool:
        """True where the model ended its turn itself; false where a length limit cut it."""
        return self.response.finished


class Scores(Record):
    """The rewards of a list of completions."""

    total: tuple[float | None, ...]
    """One reward for each completion, in the reward's own unit; null where it failed and is to be skipped."""
    parts: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    """What the total is made of, by name, each one value for each completion."""
    steps: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """Rewards inside a response: for each completion, (index of the token in its `ids`, reward) pairs."""

    @property
    def whole(self) -> tuple[float | None, ...]:
        """The reward of each completion with what of it stands inside."""
        inside = self.steps or ((),) * len(self.total)
        return tuple(
            None if total is None else total + sum(value for _, value in pairs)
            for total, pairs in zip(self.total, inside, strict=True)
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = {**self.parts, **({} if self.steps is None else {"steps": self.steps})}
        for name, values in columns.items():
            if len(values) != len(self.total):
                raise ValueError(f"`{name}` holds {len(values)} values for {len(self.total)} completions")
        return self


def last_question(messages: Sequence[Message]) -> int:
    """Length of the part of a conversation that its last answer answers: trailing assistant turns are left out."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return end
