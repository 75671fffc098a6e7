"""Mixtures on the disk: shares by hand counts, one seeded order, ids that stand once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.data.read import read
from alignkit.options.corpus import MixOptions
from alignkit.records import Document

pytest.importorskip("datatrove", reason="the extra `data` is not installed")
from alignkit.data.corpus.mix import Mixed, mix


def sources(folder: Path, **sizes: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for name, size in sizes.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name} {n}", "id": str(n)}) + "\n" for n in range(size)))
        made.append({"path": str(path)})
    return made


def mixed(folder: Path, given: list[dict[str, Any]], **options: Any) -> tuple[Mixed, list[dict[str, Any]]]:
    out = folder / "out" / "mixed.jsonl"
    chosen = build(MixOptions, {"sources": given, "work": {"workers": 1}, **options}, "")
    done = mix(out, None, chosen, lambda what, count: None)
    assert done is not None
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == done.records == sum(source.drawn for source in done.sources)
    assert Mixed.model_validate_json((out.parent / "mixed.report.json").read_text()) == done
    assert len(read(out, Document).records) == len(rows)  # ids stand once
    return done, rows


def test_shares_are_met_and_no_record_comes_twice_more_than_another(tmp_path: Path) -> None:
    given = sources(tmp_path, a=10, b=30)
    given = [{**given[0], "weight": 3}, {**given[1], "weight": 1}]
    done, rows = mixed(tmp_path, given, records=60)
    assert [(source.drawn, source.left_out) for source in done.sources] == [(45, 0), (15, 15)]
    times = Counter(row["text"] for row in rows)
    assert sorted(times[f"a {n}"] for n in range(10)) == [4] * 5 + [5] * 5
    assert sorted(times[f"b {n}"] for n in range(30)) == [0] * 15 + [1] * 15
    assert {row["id"] for row in rows if row["text"] == "a 0"} >= {"a/0", "a/0#2", "a/0#3", "a/0#4"}


def test_without_weights_sizes_and_temperature_decide(tmp_path: Path) -> None:
    given = sources(tmp_path, a=100, b=25)
    assert [source.drawn for source in mixed(tmp_path, given)[0].sources] == [100, 25]
    # 100^(1/2) : 25^(1/2) = 2 : 1
    assert [source.drawn for source in mixed(tmp_path, given, temperature=2.0, records=90)[0].sources] == [60, 30]


def test_the_order_is_the_seeds_and_mixes_all(tmp_path: Path) -> None:
    given = sources(tmp_path, a=200, b=200)
    rows = mixed(tmp_path, given)[1]
    assert rows == mixed(tmp_path, given)[1]
    assert rows != mixed(tmp_path, given, seed=1)[1]
    first = sum(row["text"].startswith("a") for row in rows[:200])
    assert 70 < first < 130  # 100, deviation 5
    assert [row["text"] for row in rows] != sorted(row["text"] for row in rows)


def test_one_source_alone_keeps_its_ids(tmp_path: Path) -> None:
    _, rows = mixed(tmp_path, sources(tmp_path, a=5))
    assert sorted(row["id"] for row in rows) == ["0", "1", "2", "3", "4"]


def test_ids_stay_apart_in_a_mixture_of_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": n, "id": n}) + "\n" for n in ("0", "0#2")))
    _, rows = mixed(tmp_path, [{"path": str(tmp_path / "a.jsonl")}], records=4)
    assert sorted(row["id"] for row in rows) == ["0", "0##2", "0##2#2", "0#2"]


def test_rejected_rows_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    done, _ = mixed(tmp_path, [{"path": str(tmp_path / "a.jsonl")}])
    assert (done.sources[0].rejected, done.sources[0].records) == (1, 1)
    assert json.loads((tmp_path / "out/mixed.rejects.jsonl").read_text())["line"] == 2


def test_what_cannot_be_mixed_is_named(tmp_path: Path) -> None:
    given = sources(tmp_path, a=10, b=10)
    with pytest.raises(
        InputError, match=r"20 records are to come of the 10 of a.*2\.00 times, and its `epochs` allows 1"
    ):
        mixed(tmp_path, [{**given[0], "epochs": 1.0}], records=20)
    with pytest.raises(InputError, match="b has no weight, and others have"):
        mixed(tmp_path, [{**given[0], "weight": 1.0}, given[1]])
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    with pytest.raises(InputError, match=r"different kinds of records .*a\.jsonl: corpus.*p\.jsonl: demonstrations"):
        mixed(tmp_path, [given[0], {"path": str(tmp_path / "p.jsonl")}])
    assert not (tmp_path / "out/mixed.jsonl").exists()
