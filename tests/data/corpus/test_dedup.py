"""Duplicates and overlap against hand counts, the Jaccard similarity itself, and the words of the rule."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.options.corpus import DedupOptions
from alignkit.records import Comparison, Demonstration, Document

pytest.importorskip("datatrove", reason="the extra `data` is not installed")
from alignkit.data.corpus.dedup import dedup, prompt_of
from alignkit.data.corpus.gather import Outcome

WORDS = [
    f"{a}{b}" for a in ("bel", "cor", "dum", "fil", "gra", "hol", "jun", "kes") for b in ("a", "ento", "is", "or", "u")
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def deduped(folder: Path, rows: list[Any], **options: Any) -> tuple[Outcome, list[Any], list[Any]]:
    out = folder / "out" / "kept.jsonl"
    chosen = build(DedupOptions, {"work": {"workers": 1}, **options}, "")
    done = dedup(str(write(folder / "in.jsonl", rows)), out, None, "auto", chosen, lambda what, count: None)
    assert done is not None and done.records == len(rows) == done.kept + done.removed
    removed = out.with_name("kept.removed.jsonl")
    return done, *(
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for path in (out, removed)
    )


def text(seed: int, words: int = 150) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def jaccard(one: list[str], other: list[str], n: int = 5) -> float:
    first, second = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (one, other))
    return len(first & second) / len(first | second)


def test_equal_texts_leave_the_first(tmp_path: Path) -> None:
    rows = [
        {"text": "a b", "id": "1"},
        {"text": "c", "id": "2"},
        {"text": "a b", "id": "3"},
        {"text": "a  b", "id": "4"},
    ]
    done, kept, removed = deduped(tmp_path, rows, minhash=None)
    assert [row["id"] for row in kept] == ["1", "2", "4"]
    assert [(row["line"], row["record"]["id"]) for row in removed] == [(3, "3")]
    assert [(tag.step, tag.records) for tag in done.tags] == [("exact", 1)]


def test_labels_and_numbers_make_records_different(tmp_path: Path) -> None:
    good = {"prompt": "q", "completion": "a", "label": True}
    done, _, _ = deduped(tmp_path, [good, {**good, "label": False}, {**good, "id": "x"}], minhash=None)
    assert done.removed == 1


def test_near_duplicates_go_and_different_texts_stay(tmp_path: Path) -> None:
    base = [text(seed) for seed in range(20)]
    near = [[*words[:75], "changed", *words[76:]] for words in base[:10]]
    assert all(jaccard(one, other) > 0.93 for one, other in zip(base, near, strict=False))
    assert max(jaccard(one, other) for i, one in enumerate(base) for other in base[:i]) < 0.1
    # Missed with probability (1 - s^8)^14 < 1e-5 each, found among strangers with 14 s^8 < 1e-6.
    rows = [{"text": " ".join(words)} for words in [*base, *near]]
    done, kept, removed = deduped(tmp_path, rows)
    assert (len(kept), len(removed)) == (20, 10)
    assert [row["tags"][0]["step"] for row in removed] == ["minhash"] * 10
    held = {row["text"].replace("changed", "") for row in kept}
    assert len(held) == 20
    assert all("like" in sample for tag in done.tags for sample in tag.samples)
    assert deduped(tmp_path, rows, minhash=None)[0].removed == 0


def test_numbers_are_alike_unless_told_apart(tmp_path: Path) -> None:
    words = text(1, 40)
    rows = [{"text": f" {number} ".join(words)} for number in ("17", "4,250")]
    assert deduped(tmp_path, rows)[0].removed == 1
    assert deduped(tmp_path, rows, minhash={"numbers": True})[0].removed == 0


def test_a_prompt_stays_once_where_prompts_are_compared(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}, {"prompt": "r", "completion": "a"}]
    assert deduped(tmp_path, rows)[0].removed == 0
    _, kept, _ = deduped(tmp_path, rows, by="prompt")
    assert [row["messages"][-1]["content"] for row in kept] == ["a", "a"]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ranked = {"prompt": turns[:1], "responses": [turns[1:], turns[1:]], "ranks": [1, 2]}
    assert prompt_of(Demonstration, {"messages": turns}) == prompt_of(Comparison, ranked) == "q"
    assert prompt_of(Document, {"text": "t"}) == "t"


def test_runs_of_words_and_prompts_of_other_data_are_kept_out(tmp_path: Path) -> None:
    test = text(7, 30)
    held_out = write(tmp_path / "test.jsonl", [{"prompt": " ".join(test), "completion": "short answer"}])
    rows = [
        {"text": " ".join([*text(1, 20), *test[5:18], *text(2, 20)])},  # 13 words in a row
        {"text": " ".join([*text(1, 20), *test[5:17], "x", *text(2, 20)])},  # 12
        {
            "text": " ".join([*text(3, 9), *(word.title() + "," for word in test[5:18])])
        },  # case and marks do not matter
    ]
    _, kept, removed = deduped(tmp_path, rows, against=[str(held_out)])
    assert [row["line"] for row in removed] == [1, 3]
    assert removed[0]["tags"] == [{"step": "overlap", "reason": str(held_out), "found": " ".join(test[5:18])}]
    assert kept == [rows[1]]
    assert deduped(tmp_path, rows, against=[str(held_out)], overlap_words=12)[0].removed == 3

    asked = [{"prompt": "What  IS this?", "completion": "a"}, {"prompt": "What is that?", "completion": "b"}]
    other = write(tmp_path / "other.jsonl", [{"prompt": "what is this?"}])
    _, kept, removed = deduped(tmp_path, asked, against=[str(held_out), str(other)])
    assert [row["tags"][0]["step"] for row in removed] == ["prompt"]
    assert removed[0]["tags"][0]["reason"] == str(other)


def write_kept(folder: Path) -> Path:
    (folder / "out").mkdir(exist_ok=True)
    return write(folder / "out/kept.jsonl", [{"text": "a"}])


def test_a_place_that_patterns_would_miss_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n[1]").mkdir()
    with pytest.raises(InputError, match=r"the path holds '\['"):
        deduped(tmp_path / "n[1]", [{"text": "a"}])


def test_wrong_options_are_named(tmp_path: Path) -> None:
    rows = [{"text": "a"}]
    with pytest.raises(InputError, match="against: there is no such file or folder: nowhere"):
        deduped(tmp_path, rows, against=["nowhere"])
    (tmp_path / "mixed.jsonl").write_text('{"text": "t"}\n{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(InputError, match=r"mixed\.jsonl:2: .*make records of it with `alignkit data import`"):
        deduped(tmp_path, rows, against=[str(tmp_path / "mixed.jsonl")])
    with pytest.raises(InputError, match="would be written over what is read"):
        deduped(tmp_path, rows, against=[str(write_kept(tmp_path))])
    with pytest.raises(InputError, match="overlap_words has no meaning without `against`"):
        deduped(tmp_path, rows, overlap_words=5)
    with pytest.raises(InputError, match="nothing is to be done"):
        deduped(tmp_path, rows, exact=False, minhash=None)
