"""Texts of sources: what is read, what is told of the rest, and samples held to counts and chances."""

import json
from collections import Counter
from pathlib import Path

import pytest

from alignkit.config import InputError
from alignkit.data.text_stream import TextStream, sample_texts


def test_every_text_of_any_kind_of_row_is_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns, "id": "1"}) + "\n{broken\n")
    (tmp_path / "b.txt").write_text("A story.")
    told: list[tuple[str, int]] = []
    chats = TextStream(str(tmp_path / "a.jsonl"), tell=lambda what, rows: told.append((what, rows)))
    assert list(chats) == ["Why?", "So."] == list(chats), "read anew each time"
    assert (chats.rows, chats.unread) == (2, 1) and chats.fault.startswith(f"{tmp_path}/a.jsonl:2: ")
    assert list(TextStream(str(tmp_path / "b.txt"))) == ["A story."]
    assert list(TextStream(str(tmp_path / "a.jsonl"), as_="prompts")) == ["Why?"]


def test_a_source_without_text_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why?"}\n')
    with pytest.raises(InputError, match=r"holds no text\. .*a\.jsonl:1: "):
        list(TextStream(str(tmp_path / "a.jsonl"), as_="comparisons"))
    with pytest.raises(InputError, match="--as: 'docs' is no kind of record; give one of demonstrations"):
        list(TextStream(str(tmp_path / "a.jsonl"), as_="docs"))


def test_without_a_limit_the_stream_itself_is_passed_on() -> None:
    endless = iter(lambda: "text", None)
    assert sample_texts(endless, None, None) is endless


def test_a_sample_of_megabytes_ends_at_its_last_byte_and_keeps_the_order() -> None:
    texts = [f"{number:04}" * 25 for number in range(200)]  # 100 bytes each
    sample = list(sample_texts(texts, None, 0.00125, seed=3))
    assert sorted(map(len, sample)) == [50, *[100] * 12]
    assert [text[:4] for text in sample] == sorted(text[:4] for text in sample)
    assert (
        sample == list(sample_texts(texts, None, 0.00125, seed=3)) != list(sample_texts(texts, None, 0.00125, seed=4))
    )
    assert list(sample_texts(["ééé"], None, 3e-6)) == ["é"], "no character is cut"
    assert list(sample_texts(texts, None, 1.0)) == texts


def test_a_sample_of_texts_takes_each_with_the_same_chance() -> None:
    taken = Counter(text for seed in range(2000) for text in sample_texts("abcdefghij", 3, None, seed))
    assert sum(taken.values()) == 6000
    # 2000 draws with chance 3/10: mean 600, deviation 20.5.
    assert all(abs(count - 600) < 4 * 20.5 for count in taken.values())


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="--megabytes: a limit must be above 0"):
        sample_texts(["a"], None, 0.0)
