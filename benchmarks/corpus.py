"""Noisy copies of given texts cleaned and deduplicated: MB/s, scaling over workers, peak memory, what went.

    python benchmarks/corpus.py --texts PATH... [--megabytes 1000] [--scaling 100] [--out DIR]

Texts are cut at paragraphs into documents of about 3,000 characters and repeated in rounds until the size is reached.
Each round after the first changes a share of the words of its documents, from none to a fifth, so that near duplicates
of all degrees arise. A tenth of all documents gets dirt: broken encoding, control characters, an HTML frame, an e-mail
address, lines of a menu.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from alignkit.data.stream import entries_of
from alignkit.lineage import atomic_write, replacing
from alignkit.provenance import provenance
from alignkit.records import Document

SIZE = 3000
DIRT = ("encoding", "control", "page", "email", "menu")
DIRTY = 0.1
ALL_RULES = "gopher_repetition,gopher,c4,fineweb"
RATES = (0.0, 0.001, 0.01, 0.05, 0.2)
"""Share of words that a round changes; 0: exact copies."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, help="files or folders of any form")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--scaling", type=int, default=100, help="megabytes for 1 worker against all; 0: left out")
    parser.add_argument("--quality", default=ALL_RULES, help="rules of the largest corpus")
    parser.add_argument("--scaling-quality", default=ALL_RULES, help="rules of the other")
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    base = [document for path in given.texts for document in documents(path)]
    cores = len(os.sched_getaffinity(0))
    results: list[dict[str, Any]] = []
    sizes = [(given.scaling, workers, given.scaling_quality) for workers in (1, cores)] if given.scaling else []
    for megabytes, workers, rules in [*sizes, (given.megabytes, cores, given.quality)]:
        made = make(base, given.out / f"{megabytes}.jsonl", megabytes)
        cleaned = given.out / f"{megabytes}.clean.jsonl"
        results += [
            run("clean", made, cleaned, workers, f"quality=[{rules}]"),
            run("dedup", cleaned, given.out / f"{megabytes}.dedup.jsonl", workers),
        ]
        for result in results[-2:]:
            print(
                {name: value for name, value in result.items() if name not in ("tags", "changed", "masked")},
                flush=True,
            )
        made_by = provenance("datatrove", "spacy", "ftfy", "phonenumbers")
        written = {**made_by, "documents": len(base), "results": results}
        atomic_write(given.out / "corpus.json", json.dumps(written, indent=1) + "\n")


def documents(path: str) -> Iterator[str]:
    """The texts at a path, long ones cut between paragraphs."""
    for entry in entries_of(path, Document):
        for record in entry.records:
            part: list[str] = []
            for paragraph in record.text.split("\n"):
                part.append(paragraph)
                if sum(map(len, part)) > SIZE:
                    yield "\n".join(part)
                    part = []
            if "".join(part).strip():
                yield "\n".join(part)


def make(base: Sequence[str], path: Path, megabytes: int) -> Path:
    """Rounds of the base's documents until the size is reached; the same bytes every time."""
    if path.exists():
        return path
    rng = random.Random(megabytes)
    words = "".join(base[:200]).split()
    size = turn = 0
    with replacing(path) as file:
        while size < megabytes * 10**6:
            rate = RATES[(turn - 1) % len(RATES)] if turn else 0.0
            for number, text in enumerate(base):
                if rate:
                    text = changed(text, rate, words, rng)
                if rng.random() < DIRTY:
                    text = dirtied(text, rng.choice(DIRT), number)
                size += file.write(json.dumps({"text": text, "id": f"{turn}/{number}"}) + "\n")
                if size >= megabytes * 10**6:
                    break
            turn += 1
    return path


def changed(text: str, rate: float, words: Sequence[str], rng: random.Random) -> str:
    """The text with a share of its words replaced."""
    pieces = text.split(" ")
    for _ in range(round(rate * len(pieces))):
        pieces[rng.randrange(len(pieces))] = rng.choice(words)
    return " ".join(pieces)


def dirtied(text: str, kind: str, number: int) -> str:
    """The text with one kind of dirt."""
    if kind == "encoding":
        return f"{text}\n“Déjà vu”, said Zoë.".encode().decode("latin-1")
    if kind == "control":
        return text.replace(" ", " \x07", 5)
    if kind == "page":
        body = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n") if paragraph.strip())
        menu = "<nav><a href='/'>Home</a> <a href='/shop'>Shop</a></nav>"
        return f"<!DOCTYPE html><html><body>{menu}<article>{body}</article><footer>Imprint</footer></body></html>"
    if kind == "email":
        return f"{text}\nWrite to reader{number}@mail.org for more."
    return f"Home\nShop\nSign in\nUse of cookies\n{text}"


def run(command: str, source: Path, out: Path, workers: int, *options: str) -> dict[str, Any]:
    """One command in processes of its own: seconds, throughput, the most memory that they held together."""
    for left in out.parent.glob(f".{out.name}.*"):
        shutil.rmtree(left)
    words = [sys.executable, "-m", "alignkit", "data", command, str(source), str(out), "--as", "corpus", "--json"]
    begun, memory = time.monotonic(), 0
    with (out.parent / "said.json").open("w+") as said:
        process = subprocess.Popen([*words, f"work.workers={workers}", *options], stdout=said)
        while process.poll() is None:
            time.sleep(0.2)
            memory = max(memory, held_by(process.pid))
        seconds = time.monotonic() - begun
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}")
        said.seek(0)
        account = json.loads(said.read())
    size = source.stat().st_size
    tags = {f"{tag['step']}: {tag['reason']}": tag["records"] for tag in account["tags"]}
    kept = {name: account[name] for name in ("records", "kept", "removed", "changed", "masked")}
    return {
        "command": command,
        "options": options,
        "workers": workers,
        "bytes": size,
        "seconds": seconds,
        "megabytes_per_second": size / 1e6 / seconds,
        "peak_bytes": memory,
        **kept,
        "tags": tags,
    }


def held_by(process: int) -> int:
    """Bytes in memory of a process and all that came of it, shared pages counted once for each."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(process)
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += one.memory_info().rss
    return total


if __name__ == "__main__":
    main()
