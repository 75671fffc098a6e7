"""Asks a server: JSON there, JSON back, and again where that may help. Knows no reward and no message's form."""

import json
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from alignkit.config import InputError
from reward_models.waiting import within

BUSY = (408, 429)
"""What a server says that has no time now: request timeout, too many requests."""


class _Stay(HTTPRedirectHandler):
    """Follows no redirection: urllib would turn the POST into a GET and hand the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


_OPENER = build_opener(_Stay)


def post(url: str, body: Mapping[str, Any], **options: Any) -> Any:
    """The JSON that `url` answers to a POST of `body`; the rest as in `ask`, and an answer that is not JSON is an
    InputError too."""
    return _json(url, ask(url, body, **options))


def get(url: str, **options: Any) -> Any:
    """The JSON that `url` answers to a GET; the rest as in `post`."""
    return _json(url, ask(url, None, **options))


def ask(
    url: str,
    body: Mapping[str, Any] | None,
    *,
    timeout: float = 60.0,
    retries: int = 3,
    key: str | None = None,
    wait: float = 1.0,
) -> bytes:
    """What `url` answers to a POST of `body`, or without one to a GET; `key` goes along as a bearer token.

    Without an answer within `timeout` seconds, without a connection, with a status of 500 or more, or with one of
    `BUSY` it is asked again, up to `retries` times, after `wait`, 2·`wait`, 4·`wait` … seconds, or as many as its
    Retry-After says if they are more; then ConnectionError. Any other status that is no success is an InputError at
    once. Both name the url.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else _written(body)
    method = "GET" if body is None else "POST"
    request, problem, asked_for = Request(url, data, headers, method=method), "", 0.0
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(max(wait * 2 ** (attempt - 1), asked_for))
            asked_for = 0.0
        try:
            status, answer, later = within(timeout, lambda: _asked(request, timeout))
        except (OSError, HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        if status < 300:
            return answer
        problem = f"status {status}: {answer[:400].decode(errors='replace')!r}"
        if status < 500 and status not in BUSY:
            raise InputError(f"{url}: refuses the request with {problem}")
        asked_for = float(later) if later.isdecimal() else 0.0  # a date is not heeded
    raise ConnectionError(f"{url}: no answer after {retries + 1} tries: {problem}")


def _asked(request: Request, timeout: float) -> tuple[int, bytes, str]:
    """Status, body and Retry-After of an answer; of a refusal what its body says, if it still says something."""
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            return response.status, response.read(), ""
    except HTTPError as refusal:
        try:
            told = refusal.read(400)
        except (OSError, HTTPException):
            told = b""
        return refusal.code, told, refusal.headers.get("Retry-After", "")


def _written(body: Mapping[str, Any]) -> bytes:
    """The body as JSON; what JSON has no form for is its text, not-a-number too."""
    return json.dumps(json.loads(json.dumps(body, default=str), parse_constant=str)).encode()


def _json(url: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        raise InputError(f"{url}: its answer is not JSON: {answer[:80]!r}") from error
