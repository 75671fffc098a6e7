"""Run as a script: imports a folder undisturbed, and in processes that are killed at many of their disk operations.

Prints, as JSON, what the undisturbed import said, and for each kill what could be seen after it and what the next
start said; at last, how many starts an import needs that is killed again and again.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.data import partial
from alignkit.data.importing import import_data

partial.EVERY = 0.0  # a state is kept after every row that gives a record


def start(source: str, out: Path, last: int = 0) -> dict[str, Any] | None:
    """Import in a process that is killed before its disk operation number `last`; what it says, None where killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        done = 0

        def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal done
                done += 1
                if done == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*arguments, **named)

            return call

        os.fsync = counted(lambda file: None)  # which no kill of a process can tell from the real one
        os.replace, os.unlink = counted(os.replace), counted(os.unlink)
        said = import_data(source, out, "demonstrations")
        account = {"files": [vars(file) for file in said.files], "resumed": said.resumed, "operations": done}
        os.write(writer, json.dumps(account).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return json.loads(said) if status == 0 else None


def files_in(folder: Path) -> dict[str, str]:
    """What a folder holds; of a folder in it only the name."""
    return {path.name: path.read_text() if path.is_file() else "" for path in folder.iterdir()}


def killed(source: str, out: Path, last: int) -> dict[str, Any]:
    """Kill an import once, and take it up again."""
    assert start(source, out, last) is None
    left = files_in(out.parent)
    again = start(source, out)
    assert again
    return again | {"left": left, "made": files_in(out.parent)}


if __name__ == "__main__":
    source, work = sys.argv[1], Path(sys.argv[2])
    whole = start(source, work / "whole/made.jsonl")
    assert whole
    end = whole["operations"] + 1
    moments = [*range(1, end - 12, 3), *range(end - 12, end)]  # five to a row, and twelve when all rows are taken
    kills = [killed(source, work / str(last) / "made.jsonl", last) for last in moments]
    out, starts = work / "often/made.jsonl", 0
    while not out.exists():
        start(source, out, 20 + starts)
        starts += 1
    made = {name: files_in(work / name) for name in ("whole", "often")}
    said = {"whole": whole | {"made": made["whole"]}, "kills": kills, "often": made["often"], "starts": starts}
    print(json.dumps(said))
