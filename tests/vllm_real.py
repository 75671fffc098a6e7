"""Starts vLLM's own server on a CPU, as a process beside this one, and ends it. Knows nothing of alignkit."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

SETTINGS = "HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1"
ON_A_CPU = "--no-enable-chunked-prefill --enforce-eager"


@contextmanager
def running(
    executable: str, command: str, log: Path, *, port: int | None = None, core: int | None = None, options: str = ""
) -> Iterator[str]:
    """A server started by `command`, its `vllm` being `executable`, with further `options`, all of it on one `core` if
    given; the url at which it answers. What it says goes to the file `log`."""
    port = port or free_port()
    bound = "" if core is None else f"taskset -c {core} env VLLM_CPU_OMP_THREADS_BIND={core} OMP_NUM_THREADS=1"
    words = command.replace("vllm serve", f"{executable} serve", 1)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("ab") as said:
        server = subprocess.Popen(
            f"exec {bound} env {SETTINGS} {words} {ON_A_CPU} {options} --port {port}",
            shell=True,
            stdout=said,
            stderr=said,
            start_new_session=True,
            env=environment,
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while not answers(url):
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(url: str) -> bool:
    """Whether a server is ready there."""
    try:
        with urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


def free_port() -> int:
    """One on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
