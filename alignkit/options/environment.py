"""What answers a policy between its turns, as a recipe names it. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config


class EnvironmentOptions(Config):
    """What answers the policy between its turns."""

    kind: Literal["tools", "function"]
    """`tools`: executes the policy's tool calls; `function`: Python of your own that answers each turn, run only with
    --allow-code."""
    tools: list[str] = Field(default_factory=list)
    """tools: what can be called: `calculator`, or functions of your own as `package.module:function` (with
    --allow-code), each described by its type hints and docstring."""
    announce: bool = True
    """tools: prompts that bring no tools of their own get these; false: the model knows them already."""
    timeout: float | None = Field(default=None, gt=0.0)
    """tools: seconds for one call (left out: any); what hangs stays behind in a thread."""
    path: str | None = None
    """function: `package.module:function`, from a Completion to the messages that answer it, or None at the end."""
    max_turns: int = Field(default=4, ge=2)
    """The policy's turns in one episode, at most."""
    max_tokens: int = Field(default=256, ge=1)
    """Tokens that environment and template may put between the turns of one episode; an answer that does not fit ends
    it, as max_new_tokens does. Prompts must leave room for both."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, kind in (("tools", "tools"), ("timeout", "tools"), ("announce", "tools"), ("path", "function")):
            self.only_with(self.kind == kind, f"for kind: {self.kind}", name)
        if self.kind == "tools" and not self.tools:
            raise ValueError("environment.kind: tools needs environment.tools, such as [calculator]")
        if self.kind == "function" and self.path is None:
            raise ValueError("environment.kind: function needs environment.path")
        for path in (*self.tools, *([] if self.path is None else [self.path])):
            if ":" not in path and (path == self.path or path != "calculator"):
                raise ValueError(f"environment: {path!r} is not of the form package.module:function, nor `calculator`")
        return self
