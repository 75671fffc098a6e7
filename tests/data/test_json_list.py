"""A JSON list in pieces is what the whole of it is: `json` is the oracle, for items, lines and places of faults."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.config import InputError
from alignkit.data.json_list import list_rows

ITEMS = [
    {"a": "é\"\\\n\t", "b": [1, -2.5e-7, 123456789012345678901234567890, {"c": []}]},
    "text with ] and , and [ in it", 12, 1.25, -3e10, 4e+2, True, False, None, float("inf"), -float("inf"), "", {}, [],
    "\U0001f600", " " * 50, "x" * 300, 7,
]  # fmt: skip
TEXTS = [
    json.dumps(ITEMS),
    json.dumps(ITEMS, indent=3, ensure_ascii=False),
    " \n [" + ",\n\n\t".join(json.dumps(item) + "\r\n" + " " * 40 for item in ITEMS) + "\n]\n \n",
    "[]",
    "[ \n ]",
]


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@pytest.mark.parametrize("text", TEXTS)
def test_the_size_of_the_pieces_changes_nothing(text: str) -> None:
    whole = json.loads(text)
    at, lines = text.index("[") + 1, []
    for _ in whole:
        at += len(text[at:]) - len(text[at:].lstrip(" \n\r\t,"))
        lines.append(text.count("\n", 0, at) + 1)
        at = json.JSONDecoder().raw_decode(text, at)[1]
    for size in (*range(1, 40), 100, 10_000):
        rows = list(list_rows(Path("a.json"), pieces(text, size)))
        assert [row for _, row in rows] == whole, size
        assert [line for line, _ in rows] == lines, size


@pytest.mark.parametrize("text", TEXTS[:3])
def test_a_list_that_ends_early_is_an_error_wherever_it_ends(text: str) -> None:
    whole = json.loads(text)
    for end in range(text.index("[") + 1, text.rindex("]")):
        rows = []
        with pytest.raises(InputError, match=r"^a\.json:\d+: malformed JSON at column \d+: ") as caught:
            rows.extend(row for _, row in list_rows(Path("a.json"), pieces(text[:end], 7)))
        assert rows == whole[: len(rows)]
        assert "of the list)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('[{"a": 1},\n {"a": "b}]', "2: malformed JSON at column 8", "(item 2 of the list); cut off: fetch it"),
        ('[{"a": 1},\n {"a": 1}', "2: malformed JSON at column 10", "(item 2 of the list); cut off: fetch it"),
        ('[{"a": 1},\n\n', "3: malformed JSON at column 1", "(item 2 of the list); cut off: fetch it"),
        ('[{"a": 1},\n {"a" 1}, 2]', "2: malformed JSON at column 7", "(item 2 of the list); correct it, or put"),
        ('[{"a": 1}\n{"a": 1}]', "2: malformed JSON at column 1", "(item 1 of the list); correct it, or put"),
        ('[{"a": "x\ty"}, 2]', "1: malformed JSON at column 10", "Invalid control character at (item 1 of the list)"),
        ('[1, 2]\n\n x', "3: malformed JSON at column 2", "the list has ended; put all rows in one list"),
        ("[1,\n" + "[" * 200_000, "2: malformed JSON at column 1", "nested too deeply (item 2 of the list)"),
        ("[1,\n" + "1" * 5000 + "]", "2: malformed JSON at column 1", "Exceeds the limit"),
    ],
)  # fmt: skip
def test_a_fault_is_told_by_line_column_and_item(text: str, place: str, said: str) -> None:
    for size in (1, 3, 10, 1_000_000):
        if len(text) > 1000 and size < 1_000_000:
            continue
        with pytest.raises(InputError) as caught:
            list(list_rows(Path("a.json"), pieces(text, size)))
        assert str(caught.value).startswith(f"a.json:{place}: ") and said in str(caught.value), size


def test_a_fault_is_found_where_it_stands_and_no_later() -> None:
    """However long the rest is, it is not read to the end before the fault is told."""
    taken: list[str] = []

    def endless() -> Iterator[str]:
        for piece in ['[{"a": 1}, {"a" 2}, ', *['{"a": 3}, '] * 1000]:
            taken.append(piece)
            yield piece

    with pytest.raises(InputError, match="item 2 of the list"):
        list(list_rows(Path("a.json"), endless()))
    assert len(taken) < 10
