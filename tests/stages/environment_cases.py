"""Environments that a recipe can name as `environment_cases:…`. They know nothing of who asks."""

from alignkit.records import Completion, Message


def curious(completion: Completion) -> list[Message] | None:
    """Asks on until an answer is short: with one message or two, by what was said."""
    text = completion.response.content
    if len(text) < 2:
        return None
    return [Message(role="user", content="you said " + text[-3:].strip())] + [Message(role="user", content="why?")] * (
        len(text) % 2
    )
