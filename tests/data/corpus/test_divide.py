"""Parts: their shares, that no prompt is on two sides, and that a record stays where it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.options.corpus import SplitOptions

pytest.importorskip("datatrove", reason="the extra `data` is not installed")
from alignkit.data.corpus.divide import split


def parted(folder: Path, rows: list[Any], **options: Any) -> dict[str, list[Any]]:
    source, out = folder / "in.jsonl", folder / "out"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = build(SplitOptions, {"work": {"workers": 1}, **options}, "")
    done = split(str(source), out, None, "auto", chosen, lambda what, count: None)
    assert done is not None and done.kept == len(rows) and sum(done.parts.values()) == len(rows)
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in out.glob("*.jsonl")}


def asked(rows: list[Any]) -> set[str]:
    return {row["messages"][0]["content"].casefold() for row in rows}


def test_a_prompt_is_on_one_side_only_and_shares_are_met(tmp_path: Path) -> None:
    rows = [{"prompt": f"{'Q' if n % 2 else 'q'}uestion {n // 3}", "completion": str(n)} for n in range(3000)]
    parts = parted(tmp_path, rows, parts={"train": 0.7, "validation": 0.1, "test": 0.2})
    sides = {name: asked(held) for name, held in parts.items()}
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["validation"]
    assert not sides["test"] & sides["validation"]
    # 1000 prompts: standard deviations of 14.5, 9.5 and 12.6.
    for name, share in (("train", 700), ("validation", 100), ("test", 200)):
        assert abs(len(sides[name]) - share) < 60
    assert [len(held) for held in parts.values()] == [3 * len(sides[name]) for name in parts]


def test_a_record_stays_on_its_side_when_others_come(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a"} for n in range(200)]
    few, many = (parted(tmp_path / name, made, parts={"a": 0.5, "b": 0.5}) for name, made in
                 ((_made(tmp_path / "few"), rows[:100]), (_made(tmp_path / "many"), rows)))  # fmt: skip
    assert asked(few["a"]) <= asked(many["a"]) and asked(few["b"]) <= asked(many["b"])
    other = parted(tmp_path, rows, parts={"a": 0.5, "b": 0.5}, seed=1)
    assert asked(other["a"]) != asked(many["a"])


def _made(path: Path) -> str:
    path.mkdir()
    return path.name


def test_parts_that_are_no_shares_are_refused() -> None:
    for parts, said in (
        ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
        ({"a": 1.5, "b": -0.5}, "above 0"),
        ({"../a": 0.5, "b": 0.5}, "name"),
    ):
        with pytest.raises(InputError, match=said):
            build(SplitOptions, {"parts": parts}, "")
