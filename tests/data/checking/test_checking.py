"""The whole check: rows, samples, cures, and what is known of real data."""

import json
from pathlib import Path

import pytest

from alignkit.config import InputError
from alignkit.data.checking import Asked, Report, check_data
from alignkit.data.checking.finding import EXCERPT, NAMES, Finding, Sample, cut, ends, shown

LIGHT = Asked(personal=False)


def named(report: Report) -> dict[str, Finding]:
    findings = {one.name: one for one in report.findings}
    assert findings.keys() <= set(NAMES)
    return findings


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_are_accounted_for_and_samples_say_where(tmp_path: Path) -> None:
    good, again = {"prompt": "why?", "completion": "so"}, {"prompt": "why?", "completion": "so"}
    bad = {"prompt": "why?", "completion": ""}
    source = write(tmp_path / "a.jsonl", good, bad, bad, {"prompt": "how?", "completion": "thus"}, again)
    report = check_data(source, asked=LIGHT)
    assert (report.as_, report.files, report.rows, report.records, report.rejected) == ("demonstrations", 1, 5, 3, 2)
    findings = named(report)
    assert findings["rejected_rows"].severity == "problem"
    assert [one.place for one in findings["rejected_rows"].samples] == [f"{source}:2", f"{source}:3"]
    assert findings["rejected_rows"].details[0].startswith("2 × ")
    assert findings["rejected_rows"].mend.startswith(f"alignkit data import {source} OUT.jsonl --as demonstrations")
    assert [one.place for one in findings["duplicates"].samples] == [f"{source}:1", f"{source}:5"]
    assert findings["duplicates"].samples[0].texts == ("user: why?", "so")
    assert [one.severity for one in report.findings] == sorted(
        (one.severity for one in report.findings), key=["problem", "warning", "note", "fine"].index
    )


def test_a_folder_against_another_set(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train/a.jsonl", {"prompt": "why?", "completion": "so"})
    write(tmp_path / "train/b.jsonl", {"prompt": "how?", "completion": "so"})
    test = write(tmp_path / "test.jsonl", {"prompt": "How?"})
    report = check_data(str(tmp_path / "train"), asked=Asked(against=(test,), personal=False))
    assert (report.files, report.against) == (2, [test])
    shared = named(report)["shared_prompts"]
    assert [one.place for one in shared.samples] == [str(tmp_path / "train/b.jsonl") + ":1"]
    assert f"'against=[{test}]'" in shared.mend


def test_excerpts_are_masked_before_they_are_cut() -> None:
    text = "x " * 28 + "secret" + " y" * 100
    one = Finding("n", "note", "", samples=(Sample("f:1", (text,)),), records=(3, 9))
    found = shown(one, {3: Sample("f:4", ("a\nb",))}, lambda text: text.replace("secret", "[M]"))
    assert [sample.place for sample in found.samples] == ["f:1", "f:4"]
    assert "x [M]" in found.samples[0].texts[0]
    assert "secr" not in found.samples[0].texts[0]
    assert found.samples[1].texts == ("a b",)
    assert len(cut(text)) == EXCERPT + 3
    assert len(ends("x" * 10**6)) < 10_000


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "why?"})
    with pytest.raises(InputError, match="none of its 1 rows can be read as feedback"):
        check_data(source, "feedback", asked=LIGHT)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="holds no row"):
        check_data(str(tmp_path / "empty.jsonl"), "prompts", asked=LIGHT)
    with pytest.raises(InputError, match="need --model"):
        check_data(source, asked=Asked(max_length=8))


# ------------------------------------------------------------------------------------------------------- real data


def test_picking_the_shorter_is_right_in_55_percent_of_hh(shared: Path) -> None:
    findings = named(check_data(str(shared / "data/hh_rlhf"), asked=LIGHT))
    bias = findings["length_bias_characters"].numbers
    assert 1 - bias["longer"] == pytest.approx(0.553, abs=0.005)
    assert bias["longer_high"] < 0.5
    assert findings["empty_answers"].numbers["count"] == 4


def test_the_ties_of_ultrafeedback(shared: Path) -> None:
    findings = named(check_data(str(shared / "data/ultrafeedback/train.jsonl.gz"), asked=LIGHT))
    assert findings["tied_scores"].numbers == {"count": 111, "of": 1000}
    assert findings["scores_against_ranks"].numbers["count"] == 0


def test_flipped_labels_contradict_the_ones_they_were(shared: Path) -> None:
    """299 labels were flipped; 111 pairs are tied by score, 4 hold one response twice, which nobody can judge."""
    folder = shared / "data/ultrafeedback"
    flipped, train = str(folder / "train_flipped30.jsonl.gz"), str(folder / "train.jsonl.gz")
    both = named(check_data(str(folder), asked=LIGHT))["contradictions"]
    assert (both.numbers["units"], both.numbers["contradictory"]) == (996, 299)
    against = named(check_data(flipped, asked=Asked(against=(train,), personal=False)))
    assert against["contradictions_against"].numbers == {"count": 299, "of": 996}
    assert against["shared_prompts"].numbers["records"] == 1000


@pytest.mark.parametrize(
    ("path", "kind", "records"),
    [
        ("dolly", "demonstrations", 14515),
        ("oasst", "comparisons", 171),
        ("formats/kto_en_demo.json", "feedback", 300),
        ("svamp", "prompts", 1000),
        ("tinystories", "corpus", 800),
    ],
)
def test_every_kind_of_real_data(shared: Path, path: str, kind: str, records: int) -> None:
    report = check_data(str(shared / "data" / path), asked=LIGHT)
    assert (report.as_, report.records, report.rejected) == (kind, records, 0)
    assert report.lengths


def test_an_id_that_stands_twice_is_refused_as_a_stage_would(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "id": str(n % 2)} for n in range(3)]
    report = check_data(write(tmp_path / "a.jsonl", *rows, {"prompt": "question 1"}), asked=LIGHT)
    rejected = named(report)["rejected_rows"]
    assert (rejected.numbers["count"], rejected.samples[0].place) == (1, f"{tmp_path}/a.jsonl:3")
    assert [one.place for one in named(report)["duplicates"].samples] == [f"{tmp_path}/a.jsonl:{n}" for n in (2, 4)]
