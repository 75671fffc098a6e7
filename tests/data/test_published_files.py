"""Whole published data sets are read, and their rows, ties and odd cases are those their description counts."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from alignkit.data.importing import import_data
from alignkit.data.load import load_data
from alignkit.data.read import read
from alignkit.data.split import beginning
from alignkit.options.shared import DataOptions
from alignkit.records import Comparison, Demonstration, Document, Feedback, Prompt, Record


@pytest.mark.parametrize(
    ("file", "as_", "count"),
    [
        ("hh_rlhf/harmless.jsonl.gz", Comparison, 1500),
        ("ultrafeedback/train.jsonl.gz", Comparison, 1000),
        ("ultrafeedback/train_flipped30.jsonl.gz", Comparison, 1000),
        ("dolly/dolly.jsonl.gz", Demonstration, 14_515),
        ("self_instruct/seed_tasks.jsonl", Demonstration, 175),
        ("self_instruct/user_oriented_instructions.jsonl", Demonstration, 252),
        ("formats/alpaca_en_demo.json", Demonstration, 999),
        ("formats/dpo_en_demo.json", Comparison, 300),
        ("formats/kto_en_demo.json", Feedback, 300),
        ("gsm8k/train.jsonl.gz", Demonstration, 7473),
        ("gsm8k/train.jsonl.gz", Prompt, 7473),
        ("svamp/SVAMP.json", Prompt, 1000),
        ("movie_reviews/reviews.jsonl.gz", Document, 1800),
        ("xstest/xstest_prompts.csv", Prompt, 450),
        ("xstest/xstest_v2_completions_gpt4.csv", Demonstration, 450),
        ("mt_bench/question.jsonl", Prompt, 80),
        ("tinystories/tinystories_800.json", Document, 800),
        ("tinyshakespeare/input.txt", Document, 1),
        ("wikitext2/valid.txt", Document, 1),
    ],
)
def test_every_row_is_read(shared: Path, file: str, as_: type[Record], count: int) -> None:
    result = read(shared / "data" / file, as_)
    assert (len(result.records), result.rows, result.rejected) == (count, count, [])


def test_hh_keeps_empty_responses_and_the_pair_that_parts_early(shared: Path) -> None:
    comparisons = read(shared / "data/hh_rlhf/harmless.jsonl.gz", Comparison).records
    assert sum(response[-1].empty for comparison in comparisons for response in comparison.responses) == 4
    assert [max(map(len, comparison.responses)) for comparison in comparisons if len(comparison.responses[0]) > 1] == [
        2
    ]
    assert all(comparison.prompt[-1].role == "user" for comparison in comparisons)
    lengths = [[sum(len(turn.content) for turn in response) for response in c.responses] for c in comparisons]
    shorter = [1.0 if chosen < rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in lengths]
    assert sum(shorter) / len(shorter) == pytest.approx(0.55, abs=0.01)


def test_trees_give_rankings_of_2_to_9_most_of_them_below_the_root(shared: Path) -> None:
    rankings = read(shared / "data/oasst/trees.jsonl", Comparison)
    assert rankings.rows == 80
    # 174 questions have several replies; 3 of these sibling sets are not ranked throughout.
    sizes = Counter(len(ranking.responses) for ranking in rankings.records)
    assert sizes == {2: 51, 3: 91, 4: 21, 5: 2, 6: 4, 8: 1, 9: 1}
    assert all(sorted(r.ranks) == list(range(1, len(r.ranks) + 1)) for r in rankings.records)
    assert sum(len(ranking.prompt) > 1 for ranking in rankings.records) > len(rankings.records) / 2
    demonstrations = read(shared / "data/oasst/trees.jsonl", Demonstration).records
    trained = [t for d in demonstrations for t in d.messages if t.role == "assistant" and t.weight > 0]
    assert len(trained) == 208  # the questions that have an answer
    assert len(read(shared / "data/oasst/trees.jsonl", Prompt).records) == 373


def test_ultrafeedback_shows_its_ties_and_its_flipped_labels(shared: Path) -> None:
    clean, noisy = (
        read(shared / f"data/ultrafeedback/{name}.jsonl.gz", Comparison).records
        for name in ("train", "train_flipped30")
    )
    for records in (clean, noisy):
        margins = [record.margins[0] - record.margins[1] for record in records if record.margins]
        assert (len(margins), margins.count(0.0)) == (1000, 111)
    assert all(record.margins and record.margins[0] >= record.margins[1] for record in clean)
    flipped = [(a, b) for a, b in zip(clean, noisy, strict=True) if a.responses != b.responses]
    assert len(flipped) == 299
    assert all(a.responses == b.responses[::-1] and a.ranks == b.ranks == (1, 2) for a, b in flipped)


def test_a_folder_of_books_has_plain_line_ends(shared: Path) -> None:
    train, validation, sources = load_data(DataOptions(path=str(shared / "data/novels")), Document, seed=0)
    assert len(train) + len(validation) == len(sources) == 12
    assert len(validation) >= 1
    assert not any("\r" in document.text for document in train + validation)


def test_one_text_is_cut_for_validation(shared: Path) -> None:
    options = DataOptions(path=str(shared / "data/tinyshakespeare/input.txt"), validation=0.1)
    (train,), (validation,), _ = load_data(options, Document, seed=0)
    assert len(train.text) + len(validation.text) == 1_115_394
    assert len(validation.text) == pytest.approx(111_539, rel=0.01)


def test_reference_answers_are_numbers(shared: Path) -> None:
    for file in ("gsm8k/train.jsonl.gz", "svamp/SVAMP.json"):
        for prompt in read(shared / "data" / file, Prompt).records:
            float(prompt.columns["answer"])


@pytest.mark.parametrize(("file", "as_"), [("dolly/dolly.jsonl.gz", Demonstration), ("oasst/trees.jsonl", Comparison)])
def test_no_prompt_stands_on_both_sides(shared: Path, file: str, as_: type[Record]) -> None:
    options = DataOptions(path=str(shared / "data" / file), validation=0.1)
    train, validation, _ = load_data(options, as_, seed=0)
    assert not {beginning(record) for record in train} & {beginning(record) for record in validation}
    assert len(validation) / (len(train) + len(validation)) == pytest.approx(0.1, abs=0.06)


def test_an_import_of_everything_accounts_for_every_row(shared: Path, tmp_path: Path) -> None:
    done = import_data(str(shared / "data"), tmp_path / "all.jsonl", "prompts")
    # The rows that shared/README.md counts; no question can be made of texts: reviews, novels and two more files.
    conversations = [1500, 80, 1000, 1000, 14_515, 175, 252, 999, 300, 300, 7473, 1000, 6 * 450, 80, 80, 800]
    assert done.total.rows == sum(conversations) + 1800 + 12 + 1 + 1
    assert done.total.reasons == {"the row holds a Document, which cannot be read as a Prompt": 1800 + 12 + 1 + 1}
    assert done.total.records == done.total.imported - 80 + 373  # the questions of 80 trees
    assert {Path(name).name for name in done.ignored} == {"LICENSE.upstream"}
    lines = (tmp_path / "all.jsonl").read_text().split("\n")[:-1]
    ids = [row["id"] for line in lines if "id" in (row := json.loads(line))]
    assert len(lines) == done.total.records and len(set(ids)) == len(ids)
    assert len((tmp_path / "all.rejects.jsonl").read_text().splitlines()) == done.total.rejected == 1814


def test_the_rejected_rows_are_those_without_an_answer(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/hh_rlhf/harmless.jsonl.gz"
    import_data(str(path), tmp_path / "hh.jsonl", "demonstrations")
    rejected = [json.loads(line) for line in (tmp_path / "hh.rejects.jsonl").read_text().splitlines()]
    with gzip.open(path, "rt") as file:
        empty = [n for n, line in enumerate(file, 1) if json.loads(line)["chosen"].rstrip().endswith("\n\nAssistant:")]
    assert [row["line"] for row in rejected] == empty and len(empty) == 4
