"""The page holds the files' numbers, and nothing that points outside it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic

from alignkit.config import InputError
from alignkit.display import number
from alignkit.lineage import write_record
from alignkit.report import write_report
from alignkit.report.page import duration
from alignkit.report.read import read_stages


class Page(HTMLParser):
    """The page's cells, text and attributes, as a browser would see them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells: dict[tuple[str, str], tuple[float, str]] = {}
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self._cell: tuple[str, str, float] | None = None
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        named: dict[str, Any] = dict(attrs)
        if "data-value" in named:
            self._cell = named["data-model"], named["data-metric"], float(named["data-value"])

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._cell and data.strip():
            model, metric, value = self._cell
            self.cells[model, metric] = value, data
            self._cell = None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_runs(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(runs: Path) -> Page:
    assert write_report(runs) == runs / "report.html"
    return Page(runs / "report.html")


def test_the_table_holds_the_numbers_of_the_file(page: Page, runs: Path) -> None:
    rows = json.loads((runs / "evaluate" / "results" / "results.json").read_text())["rows"]
    assert len(rows) == len(page.cells) > 30
    for row in rows:
        value, text = page.cells[row["model"], row["metric"]]
        assert value == row["value"]
        shown = float(text.removesuffix(" %").replace(",", "")) / (100 if text.endswith("%") else 1)
        assert shown == pytest.approx(row["value"], rel=5e-3, abs=1e-12)


def test_the_chain_holds_every_run_in_order_with_its_numbers(page: Page, runs: Path) -> None:
    text = " ".join(" ".join(page.words).split())
    chain = text[text.index("The chain") : text.index("Curves")]
    places = [chain.index(f" {name} ") for name in synthetic.CHAIN]
    assert places == sorted(places)
    for name in synthetic.CHAIN:
        record = json.loads((runs / name / "run.json").read_text())
        assert record["id"][:8] in chain and record["id"] in text
        assert record["data"][0]["sha256"][:16] in text
    assert "loss 0.6173" in chain and "peak memory 912 MB" in chain and "examples/s 151.5" in chain
    assert "6 stages in 7 min 15 s" in text


def test_nothing_points_outside(page: Page, runs: Path) -> None:
    html = (runs / "report.html").read_text()
    assert "://" not in html and "@import" not in html and "src=" not in html
    assert not {"script", "link", "img", "iframe", "base", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("href", "xlink:href"):
            assert value is not None and value.startswith("#")
    referred = set(re.findall(r"url\(#([^)]+)\)", html)) | {
        v[1:] for n, v in page.attributes if n == "xlink:href" and v
    }
    assert referred <= {value for name, value in page.attributes if name == "id"}
    assert len(html) < 600_000


def test_answers_are_text_and_never_markup(page: Page) -> None:
    assert "b" in page.tags  # the table's own
    assert any("Take a pin <b>and</b> turn it." in words for words in page.words)
    assert any("1803 & again" in words for words in page.words)
    assert "".join(page.words).count("cut off") == 3
    text = "".join(page.words)
    called = 'assistant: {"name": "look", "arguments": {"at": "Rill <market>"}}'
    assert text.count(f"{called}tool: a stall with breadassistant: ") == 3


def test_every_curve_is_drawn_and_both_themes_colour_it(page: Page, runs: Path) -> None:
    html = (runs / "report.html").read_text()
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels.count("loss against the step") == 5
    assert {"gold reward of every model", "gold reward against KL", "reward against KL"} <= set(labels)
    assert "objective: kl against the step" in labels
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--series-1)" in svgs and "#00000" not in svgs
    assert set(re.findall(r"#[0-9a-f]{6}\b", svgs)) == set()


def test_a_curve_is_drawn_once_and_a_number_stands_once(tmp_path: Path) -> None:
    write_record(tmp_path / "sft", synthetic.record("sft", 0, metrics={"nll": 1.5, "loss": 1.5, "held_out/nll": 1.25}))
    lines = [{"step": n, "nll": 2.0 - n, "loss": 2.0 - n, "validation/grad_norm": 1.0} for n in range(3)]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(tmp_path))
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels == ["loss against the step", "grad norm against the step"]
    chain = " ".join(" ".join(page.words).split()).partition("The chain")[2].partition("Curves")[0]
    assert "held out: nll 1.25 loss 1.5 examples/s" in chain


def test_the_numbers_of_an_evaluation_that_is_not_in_the_table_stand_in_the_chain(tmp_path: Path) -> None:
    for place, name in enumerate(("first", "second")):
        write_record(
            tmp_path / name,
            synthetic.record("evaluate", place, metrics={f"{name}/score": 0.25 + place}, artifact="results"),
        )
        (tmp_path / name / "results").mkdir()
        (tmp_path / name / "results" / "results.json").write_text(json.dumps(synthetic.results()))
    words = " ".join(" ".join(Page(write_report(tmp_path)).words).split()).partition("The chain")[2]
    assert "first: score 0.25" in words and "second: score" not in words


def test_a_report_of_a_chain_that_failed_halfway(tmp_path: Path) -> None:
    for number_, name in enumerate(("base", "sft")):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, synthetic.record(name, number_))
    failed = synthetic.record("reward", 2, status="failed", error="loss is NaN at step <3>", ended=None, metrics={})
    (tmp_path / "reward").mkdir()
    write_record(tmp_path / "reward", failed)
    text = "".join(Page(write_report(tmp_path)).words)
    assert "loss is NaN at step <3>" in text and "failed" in text and "Results" not in text


def test_superseded_runs_are_left_out_and_parents_come_first(tmp_path: Path) -> None:
    write_record(tmp_path / "dpo", synthetic.record("dpo", 0, started="2026-01-01T00:00:00+00:00"))
    write_record(tmp_path / "sft", synthetic.record("sft", 9, parents={}))
    old = synthetic.record("sft", 1, id="77" * 32)
    write_record(tmp_path / f"sft.{old.id[:8]}", old)
    assert [stage.name for stage in read_stages(tmp_path)] == ["sft", "dpo"]


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run in it"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="there is no run in it"):
        write_report(tmp_path / "absent")


def test_numbers_and_durations_in_words() -> None:
    assert [number(x) for x in (0.00012345, 1.23456, 12345.6, 3.0, -0.5)] == [
        "0.0001234",
        "1.235",
        "12,346",
        "3",
        "-0.5",
    ]
    assert [duration(x) for x in (None, 59.6, 61.0, 3725.0)] == ["–", "1 min 0 s", "1 min 1 s", "1 h 2 min"]
