"""Options of a language model that is asked to judge. They know neither models nor what is made of its verdicts."""

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from alignkit.config import Config


class AskedModel(Config):
    """A language model that judges by guidelines, in a folder or behind a server, and how it is asked."""

    path: str | None = None
    """judge: a local model's folder."""
    url: str | None = None
    """remote: where the requests go; judge: an OpenAI-compatible server, such as http://localhost:8000/v1."""
    model: str | None = None
    """judge: the model's name on that server."""
    key_variable: str | None = None
    """judge: the environment variable that holds the server's key, such as OPENAI_API_KEY; never the key itself."""
    guidelines: str | None = None
    """judge: a text file that says what makes an answer good or bad; or YAML, {guidelines: [text, …], examples: […]}:
    worked examples, put before each question, of {prompt, answer, reasons, score} or, for a judge of pairs, {prompt,
    first, second, reasons, better}."""
    max_new_tokens: int = Field(default=512, ge=1)
    """judge: the longest verdict, its reasons included, in tokens."""
    cache: str | None = None
    """judge: a folder that keeps its answers, so that no verdict is asked for twice; it may serve several runs."""
    batch_size: int = Field(default=16, ge=1)
    """remote: completions in one request; judge: requests to its server at a time."""
    timeout: float | None = Field(default=None, gt=0.0)
    """judge by url: seconds for one answer (left out: 60)."""
    retries: int = Field(default=3, ge=0)
    """remote, judge by url: how often a request is repeated that met no connection, no answer in time or a status of
    500 or more, after 1, 2, 4 … seconds."""

    def check_judge(self, judge: str, group: str) -> None:
        """Raise ValueError where `judge` lacks its guidelines or a model, or has an option that would be ignored.
        `group`: the options' place in the recipe."""
        if self.guidelines is None:
            raise ValueError(f"{judge} needs {group}.guidelines, a text file")
        if (self.path is None) == (self.url is None) or (self.url is None) != (self.model is None):
            raise ValueError(f"{judge} needs either {group}.path or {group}.url and {group}.model")
        self.only_with(self.path is None, "with a local judge", "batch_size", "timeout", "retries", "key_variable")

    def check_address(self, group: str) -> None:
        """Raise ValueError for a server's address that is none, and for a key where its name should stand."""
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.username is not None or parts.password is not None:
                raise ValueError(
                    f"{group}.url holds a user's name; keys stand in the environment ({group}.key_variable)"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{group}.url: {self.url!r} is no http:// or https:// address")
        if self.key_variable is not None and re.fullmatch(r"[A-Za-z_]\w*", self.key_variable) is None:
            raise ValueError(f"{group}.key_variable is no environment variable's name; it never holds the key itself")


class JudgeSource(AskedModel):
    """A judge that compares two answers at a time."""

    on_failure: Literal["stop", "skip"] = "stop"
    """A question that gets no answer (no connection, an error of the server): the run stops, and goes on from there
    when started again; or its pair has no verdict. An answer that is no verdict never stops it."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.check_judge("judge", "judge")
        self.check_address("judge")
        return self
