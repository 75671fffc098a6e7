"""Rewards of a server on this machine: what it is asked, when it is asked again, what it may answer."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from http_server import serving

from alignkit.config import InputError
from alignkit.records import Completion, Message
from reward_models.http import post
from reward_models.remote import remote
from reward_models.scores import RewardFailure


def said(*texts: str, **columns: Any) -> list[Completion]:
    prompt = (Message(role="system", content="be brief"), Message(role="user", content="how many?"))
    return [
        Completion(prompt=prompt, response=Message(role="assistant", content=text), columns=columns) for text in texts
    ]


def lengths(_: int, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"scores": [len(text) for text in body["responses"]]}


@contextmanager
def raw(*parts: bytes, between: float) -> Iterator[str]:
    """A server that sends these bytes to whoever asks, with so many seconds between, and hangs up."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            for part in parts:
                try:
                    self.request.sendall(part)
                except OSError:
                    return  # who asked has stopped waiting
                time.sleep(between)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_wire_format_in_batches() -> None:
    with serving(lengths) as served:
        asked = [*said("a", "bb", answer=1), *said("ccc", other=["x", None])]
        assert remote(served.url, batch_size=2)(asked).total == (1, 2, 3)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how many?"}]
    assert served.asked == [
        {"prompts": [turns, turns], "responses": ["a", "bb"], "columns": {"answer": [1, 1]}},
        {"prompts": [turns], "responses": ["ccc"], "columns": {"other": [["x", None]]}},
    ]
    assert served.headers[0]["Content-Type"] == "application/json" and "Authorization" not in served.headers[0]
    with serving(lengths) as served:
        remote(served.url)(asked)
        assert served.asked[0]["columns"] == {"answer": [1, 1, None], "other": [None, None, ["x", None]]}


def test_what_may_pass_is_asked_again() -> None:
    with serving(lambda n, body: (503, {}) if n < 2 else lengths(n, body)) as served:
        assert remote(served.url, retries=2, wait=0.01)(said("a")).total == (1,)
        assert len(served.asked) == 3
    with serving(lambda n, body: (500, {})) as served:
        with pytest.raises(RewardFailure, match=r"no answer after 2 tries: status 500: '{}': 'a' in answer"):
            remote(served.url, retries=1, wait=0.01)(said("a", "b"))
        assert remote(served.url, batch_size=1, retries=0, skip=True)(said("a", "b")).total == (None, None)
        assert len(served.asked) == 4
    with pytest.raises(RewardFailure, match=f"{served.url}: no answer after 2 tries: .*refused"):
        remote(served.url, retries=1, wait=0.01)(said("a"))


def test_the_waits_double(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("reward_models.http.time.sleep", waits.append)
    with serving(lambda n, body: (500, {})) as served, pytest.raises(ConnectionError):
        post(served.url, {}, retries=4)
    assert waits == [1, 2, 4, 8]


def test_a_busy_server_is_given_the_time_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("reward_models.http.time.sleep", slept.append)
    with serving(
        lambda n, body: (429, {"error": "slow down"}) if n < 3 else (200, {"ok": n}), Retry_After="3"
    ) as served:
        assert post(served.url, {}, wait=1.0) == {"ok": 3}
    assert slept == [3.0, 3.0, 4.0]
    for when in ("²", "Wed, 21 Oct 2026 07:28:00 GMT"):  # a digit to Python, and a date: no number of seconds
        slept.clear()
        with serving(lambda n, body: (429, {}), Retry_After=when) as served, pytest.raises(ConnectionError):
            post(served.url, {}, wait=1.0, retries=1)
        assert slept == [1.0]
    slept.clear()
    with (
        serving(lambda n, body: (429, {"error": "slow down"})) as served,
        pytest.raises(ConnectionError, match="slow down"),
    ):
        post(served.url, {}, wait=1.0, retries=1)
    assert slept == [1.0]


def test_a_server_that_does_not_answer_in_time() -> None:
    free = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number == 0:
            free.wait(30)
        return lengths(number, body)

    with serving(slow) as served:
        assert remote(served.url, timeout=0.3, retries=1, wait=0.01)(said("a")).total == (1,)
        assert len(served.asked) == 2
        free.set()


def test_an_answer_that_drips_is_none_in_time() -> None:
    """Each byte comes in time, the last one does not."""
    with raw(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n", *[b" "] * 40, between=0.1) as url:
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=r"nothing came back within 0\.4 s"):
            post(url, {}, timeout=0.4, retries=0)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("code", [503, 429])
def test_a_busy_server_whose_words_do_not_come_is_asked_again(code: int) -> None:
    with (
        raw(f"HTTP/1.1 {code} Busy\r\nContent-Length: 40\r\n\r\n".encode(), between=0.0) as url,
        pytest.raises(ConnectionError, match=f"no answer after 2 tries: status {code}: ''"),
    ):
        post(url, {}, timeout=5.0, retries=1, wait=0.01)


def test_what_json_has_no_form_for_is_text() -> None:
    with serving(lengths) as served:
        remote(served.url)(said("a", score=[1.5, math.nan, -math.inf], when=date(2026, 1, 2)))
    assert served.asked[0]["columns"] == {"score": [[1.5, "NaN", "-Infinity"]], "when": ["2026-01-02"]}


def test_what_is_refused_is_not_repeated_but_found() -> None:
    def picky(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return (422, {"error": "too rude"}) if "rude" in body["responses"] else lengths(number, body)

    with serving(picky) as served:
        with pytest.raises(
            RewardFailure, match=r"refuses the request with status 422: .*too rude.*: 'rude' in answer"
        ):
            remote(served.url)(said("a", "rude"))
        assert [body["responses"] for body in served.asked] == [["a", "rude"], ["a"], ["rude"]]
        assert remote(served.url, skip=True)(said("a", "rude", "bb")).total == (1, None, 2)
    with serving(lambda n, body: (307, {})) as served:
        with pytest.raises(InputError, match="status 307"):
            post(served.url, {}, key="secret")
        assert served.paths == ["/"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"scores": [1.0]}, "returned 1 scores for 2 completions"),
        ({"scores": [1.0, None]}, "completion 1 is None, not a number: 'b'"),
        (b'{"scores": [1.0, NaN]}', "completion 1 is nan, not a number: 'b'"),
        ({"scores": [1.0, "2"]}, "completion 1 is '2', not a number: 'b'"),
        ({"score": 1}, r'its answer is not of the form \{"scores": \[...\]\}: \{"score": 1\}'),
        (b"oops", "its answer is not JSON: b'oops'"),
    ],
)
def test_answers_that_hold_no_scores(answer: Any, message: str) -> None:
    with serving(lambda n, body: (200, answer)) as served:
        with pytest.raises(RewardFailure, match=message) as found:
            remote(served.url)(said("a", "b"))
        assert served.url in str(found.value)
    assert json.dumps(served.asked[0])
