"""A reward that a server computes, asked over HTTP. Knows neither what the server does nor who wrote the completions.

The request is a POST of JSON, the answer JSON with one number, or null, for each response, in their order:

    {"prompts": [[{"role": "user", "content": "2 + 2?"}], …], "responses": ["4", …], "columns": {"answer": ["4", …]}}
    {"scores": [1.0, …]}

`columns` holds every data column of the prompts, with null where one lacks it; what JSON has no form for is its text.
"""

import json
from typing import Any, cast

from alignkit.config import InputError
from alignkit.records import Completion
from reward_models.http import post
from reward_models.scores import Reward, Values, as_dict, columns_of, guarded


def remote(
    url: str, *, batch_size: int = 16, timeout: float = 60.0, retries: int = 3, skip: bool = False, wait: float = 1.0
) -> Reward:
    """The scores of the server at `url`, `batch_size` completions a request; the rest as in `post` and `guarded`.

    A refused request (400 to 499) is repeated with each of its completions alone, to find the one that it is about.
    """

    def score(completions: list[Completion]) -> Values:
        answer = post(url, request_of(completions), timeout=timeout, retries=retries, wait=wait)
        scores: Any = cast("dict[str, Any]", answer).get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise InputError(f'{url}: its answer is not of the form {{"scores": [...]}}: {json.dumps(answer)[:80]}')
        return cast("list[float | None]", scores)

    return guarded(score, f"remote ({url})", skip=skip, size=batch_size)


def request_of(completions: list[Completion]) -> dict[str, Any]:
    """What a server is asked about these completions."""
    return {
        "prompts": [[as_dict(message) for message in completion.context] for completion in completions],
        "responses": [completion.response.content for completion in completions],
        "columns": columns_of(completions),
    }
