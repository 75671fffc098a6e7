"""Task metrics, loaded by path without a network, against numbers worked out by hand."""

import ast
import importlib.util
import math

import pytest

from alignkit.config import InputError, build
from alignkit.evaluation import task_metrics
from alignkit.evaluation.statistics import Bootstrap
from alignkit.evaluation.task_metrics import FOLDER, load_metric, task_metric
from alignkit.options.evaluate import NEEDED_PACKAGES, EvaluateConfig

BOOT = Bootstrap(100)
needs_extras = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in NEEDED_PACKAGES.values()),
    reason="rouge-score and sacrebleu (alignkit[eval]) are not installed",
)


def values(name: str, predictions: list[str], references: list[object], label: str | None = None) -> dict[str, float]:
    return {k: v.value for k, v in task_metric(name, predictions, references, BOOT, label).items()}


def test_accuracy() -> None:
    found = task_metric("accuracy", ["Yes ", "no", "yes", "maybe"], ["yes", "no", "no", "no"], BOOT)
    assert found["accuracy"].value == 0.5
    assert found["accuracy"].low is not None and found["accuracy"].low < 0.5 < (found["accuracy"].high or 0)
    assert load_metric("accuracy").compute(predictions=["a", "b"], references=["a", "c"]) == {"accuracy": 0.5}


def test_precision_recall_f1_of_one_label() -> None:
    # predicted cat 3 times, 2 of them right; cat is there 4 times
    predictions = ["cat", "cat", "cat", "dog", "dog", "dog"]
    references = ["cat", "cat", "dog", "cat", "cat", "dog"]
    found = values("precision_recall_f1", predictions, list(references), "Cat")
    assert found == pytest.approx({"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7})


def test_precision_recall_f1_is_the_mean_over_labels() -> None:
    # a: p 1/2, r 1, f1 2/3; b: p 1, r 1/2, f1 2/3; the answer "?" is no label and counts for no precision
    found = values("precision_recall_f1", ["a", "a", "b", "?"], ["a", "b", "b", "b"])
    assert found == pytest.approx({"precision": (1 / 2 + 1) / 2, "recall": (1 + 1 / 3) / 2, "f1": (2 / 3 + 1 / 2) / 2})


def test_exact_match_takes_any_of_the_references() -> None:
    assert values("exact_match", [" 12", "twelve", "Twelve"], ["12", ["12", "twelve"], ["12", "twelve"]]) == {
        "exact_match": 2 / 3
    }


def test_squad_by_hand() -> None:
    # "the red cat" against "a big red dog": {red, cat} and {big, red, dog} share one word: f1 = 2·1/(2 + 3)
    found = values("squad", ["The  Cat!", "the red cat", ""], ["cat", ["a big red dog", "blue"], ["", "x"]])
    assert found == pytest.approx({"squad_exact_match": 2 / 3, "squad_f1": (1 + 0.4 + 1) / 3})


@needs_extras
def test_rouge_by_hand() -> None:
    # "the cat sat" / "the cat ran off": 2 of 3 and 4 words, 1 of 2 and 3 pairs, common subsequence 2
    found = values("rouge", ["the cat sat"], ["the cat ran off"])
    assert found == pytest.approx({"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7})


@needs_extras
def test_bleu_by_hand() -> None:
    # n-gram precisions 5/6, 3/5, 2/4, 1/3; six words against six: no brevity penalty
    found = values("bleu", ["a b c d e f"], [["a b c d x f"]])
    expected = 100 * math.exp(sum(math.log(p) for p in (5 / 6, 3 / 5, 2 / 4, 1 / 3)) / 4)
    assert found["bleu"] == pytest.approx(expected)
    assert values("bleu", ["a b c d", "e f g h"], [["x", "a b c d"], "e f g h"])["bleu"] == pytest.approx(100)


@needs_extras
def test_chrf_bounds() -> None:
    assert values("chrf", ["same text here"], ["same text here"])["chrf"] == pytest.approx(100)
    assert values("chrf", ["qqq"], ["zzz"])["chrf"] == 0.0


def test_corpus_metrics_have_intervals() -> None:
    found = task_metric("precision_recall_f1", ["a", "a", "b", "b"] * 10, ["a", "b", "b", "b"] * 10, BOOT, "a")["f1"]
    assert found.value == pytest.approx(2 / 3)
    assert found.low is not None and found.high is not None and found.low < 2 / 3 < found.high


def test_several_answers_to_a_reference_count_by_their_mean() -> None:
    answers, wanted = ["a", "b", "a", "a", "c", "b"], ["a", "a", "b"]  # one, two and one of two are right
    found = task_metric("accuracy", answers, wanted, BOOT)["accuracy"]
    one_each = task_metric("accuracy", ["a", "b"] * 3, ["a"] * 3 + ["b"] * 3, BOOT)["accuracy"]
    assert found.value == one_each.value == pytest.approx(4 / 6)
    assert task_metric("accuracy", answers[::2], wanted, BOOT)["accuracy"].value == pytest.approx(2 / 3)
    for name in ("accuracy", "precision_recall_f1"):  # a second like the first adds nothing, to intervals neither
        once = task_metric(name, answers[::2], wanted, BOOT)
        assert task_metric(name, [one for one in answers[::2] for _ in range(2)], wanted, BOOT) == once
    again = task_metric("precision_recall_f1", answers, wanted, BOOT, "a")
    assert again["precision"].value == pytest.approx(1.0) and again["recall"].value == pytest.approx(3 / 4)


def test_two_references_for_a_label_are_refused() -> None:
    with pytest.raises(InputError, match="accuracy needs one reference answer, and a prompt has 2"):
        task_metric("accuracy", ["a", "b"], ["a", ["b", "c"]], BOOT)


def test_a_missing_extra_is_said_when_the_recipe_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.options.shared.find_spec", lambda name: None)
    options = {"models": ["m"], "data": {"path": "p.jsonl"}, "metrics": ["accuracy", "rouge"]}
    with pytest.raises(InputError, match=r"rouge needs the package rouge_score; run pip install .alignkit\[eval\]"):
        build(EvaluateConfig, options, "evaluate")


def test_metric_modules_stand_alone() -> None:
    """evaluate copies a module and scans its imports: one name an import, and none of ours."""
    assert {path.name for path in FOLDER.iterdir() if not path.name.startswith("_")} == set(
        EvaluateConfig.model_fields["metrics"].annotation.__args__[0].__args__
    )
    for path in FOLDER.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert len(node.names) == 1
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("alignkit")
    assert set(task_metrics.MEANS) | set(task_metrics.LABELS) <= {path.parent.name for path in FOLDER.glob("*/*.py")}
