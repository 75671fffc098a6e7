"""Asks a language model behind an OpenAI-compatible server, and remembers its answers. Knows no reward.

POST {url}/chat/completions with model, messages, temperature 0 and max_tokens; the answer is the first choice's text.
"""

import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from alignkit.config import InputError, content_hash
from reward_models.http import post
from reward_models.judge import CUT, Ask, Messages
from reward_models.scores import Unscored, explained


def endpoint(
    url: str,
    model: str,
    *,
    key: str | None = None,
    max_new_tokens: int = 512,
    at_once: int = 16,
    timeout: float = 60.0,
    retries: int = 3,
    wait: float = 1.0,
) -> Ask:
    """Asks `model` at `url` (such as http://localhost:8000/v1), `at_once` requests at a time; the rest as in `post`.

    A request that fails is that one's lack of an answer, and says why. What no text can hold, half of a surrogate
    pair, is a question mark in the answer.
    """
    full = f"{url.rstrip('/')}/chat/completions"

    def one(messages: Messages) -> str | Unscored:
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_new_tokens}
        try:
            answer = post(full, body, timeout=timeout, retries=retries, key=key, wait=wait)
        except (OSError, InputError) as error:
            return explained(error)
        try:
            choice: dict[str, Any] = answer["choices"][0]
            text: Any = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text, choice = None, {}
        if not isinstance(text, str):
            return Unscored(f"missing: {full}: no choices[0].message.content in answer")
        text = text.encode(errors="replace").decode()
        return text + CUT if choice.get("finish_reason") == "length" else text

    def ask(conversations: list[Messages]) -> list[str | Unscored]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, conversations))

    return ask


def cached(ask: Ask, folder: str | Path, model: str, readable: Callable[[str], bool] = lambda answer: True) -> Ask:
    """`ask` that answers what it was asked before out of `folder`/answers.sqlite, by the hash of `model` and messages.

    `model` says all that decides an answer beside the messages: change it and the model is asked anew. Several
    processes may share the folder. What has no answer is not remembered; an answer that is not `readable`, such as no
    verdict, is asked for anew in the next call and replaced, since the model may have been mended.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder, "answers.sqlite")

    def opened() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60)
        connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        return connection

    def again(conversations: list[Messages]) -> Sequence[str | Unscored]:
        keys = [content_hash([model, messages]) for messages in conversations]
        with closing(opened()) as connection:
            rows = (connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone() for key in keys)
            known: dict[str, str | Unscored] = {
                key: row[0] for key, row in zip(keys, list(rows), strict=True) if row is not None and readable(row[0])
            }
        new = {key: messages for key, messages in zip(keys, conversations, strict=True) if key not in known}
        if new:
            known |= zip(new, ask(list(new.values())), strict=True)
            answers = [(key, known[key]) for key in new if isinstance(known[key], str)]
            with closing(opened()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers)
        return [known[key] for key in keys]

    return again
