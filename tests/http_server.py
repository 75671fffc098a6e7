"""A server on this machine that answers as a test says, and remembers what it was asked."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Served:
    """A running server."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests, in their order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def serving(
    answer: Callable[[Any, dict[str, Any]], tuple[int, Any]], routes: bool = False, **headers: str
) -> Iterator[Served]:
    """Runs `answer(number of the request, its body) -> (status, body)`; bytes are sent as they are.

    With `routes` it is told the request's path in the place of its number. A GET has an empty body. `headers` go with
    every answer, Retry_After as Retry-After.
    """
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            served.asked.append(body)
            served.headers.append(dict(self.headers))
            served.paths.append(self.path)
            status, said = answer(self.path if routes else len(served.asked) - 1, body)
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            try:
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"{served.url}/elsewhere")
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # who asked has stopped waiting

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
