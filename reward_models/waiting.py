"""Waits for a call, so many seconds and no longer. Knows no reward."""

import threading
from collections.abc import Callable
from typing import Any


class TooLong(TimeoutError):
    """A call has not come back in time."""


def within(seconds: float | None, call: Callable[[], Any]) -> Any:
    """What `call` returns. Raises TooLong after so many seconds (None: never); its thread is then left behind, and
    ends with the process at the latest."""
    if seconds is None:
        return call()
    found: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # raised again where the caller waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TooLong(f"nothing came back within {seconds:g} s")
    if raised:
        raise raised[0]
    return found[0]
