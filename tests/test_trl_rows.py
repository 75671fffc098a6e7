"""Token sequences as the rows of TRL's datasets: every token in its place, and what TRL cannot be told refused."""

from collections.abc import Sequence

import pytest

from alignkit.config import InputError
from alignkit.trie import TokenSequence
from alignkit.trl_rows import labelled_rows, pair_rows, response_rows, whole_pair_rows


def answer(ids: Sequence[int], weights: Sequence[float], **columns: float) -> TokenSequence:
    return TokenSequence(ids, weights, columns=columns)


def test_labels_are_of_what_is_trained() -> None:
    examples = [[answer([5, 6, 7], [0, 0, 1])], [answer([5, 8, 9, 6], [0, 1, 0, 1]), answer([4, 2], [0, 1])]]
    assert labelled_rows(examples) == [
        {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]},
        {"input_ids": [5, 8, 9, 6], "labels": [-100, 8, -100, 6]},
        {"input_ids": [4, 2], "labels": [-100, 2]},
    ]


def test_every_untied_pair_is_a_row() -> None:
    """Responses of ranks 2, 1, 1: the first loses to both others, which are equal."""
    ranking = [answer([1, 2, rank, 9], [0, 0, 1, 1], rank=place) for rank, place in ((30, 2.0), (31, 1.0), (32, 1.0))]
    assert pair_rows([ranking]) == [
        {"prompt_ids": [1, 2], "chosen_ids": [31, 9], "rejected_ids": [30, 9]},
        {"prompt_ids": [1, 2], "chosen_ids": [32, 9], "rejected_ids": [30, 9]},
    ]
    assert whole_pair_rows([ranking])[0] == {"chosen_ids": [1, 2, 31, 9], "rejected_ids": [1, 2, 30, 9]}


def test_a_label_s_estimate_of_the_kl_is_the_answer_before_it_in_its_batch() -> None:
    examples = [[answer([1, n, 9], [0, 1, 1], good=float(n % 2))] for n in range(2, 7)]
    rows = response_rows(examples, 3)
    assert [row["completion_ids"][0] for row in rows] == [2, 3, 4, 5, 6]
    assert [row["KL_completion_ids"][0] for row in rows] == [4, 2, 3, 6, 5]
    assert [row["label"] for row in rows] == [False, True, False, True, False]


def test_the_end_of_a_turn_is_no_part_of_an_answer_that_was_cut_off() -> None:
    cut, whole = answer([1, 2, 9], [0, 1, 0], rank=1.0, good=1.0), answer([1, 3, 9], [0, 1, 1], rank=2.0)
    assert pair_rows([[cut, whole]]) == [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3, 9]}]
    assert response_rows([[cut]], 1)[0]["completion_ids"] == [2]


def test_what_trl_cannot_be_told_is_refused() -> None:
    with pytest.raises(InputError, match=r"trainer: sft knows no weights, and a turn has 0\.5"):
        labelled_rows([[answer([1, 2], [0, 0.5])]])
    between = answer([1, 2, 3, 4], [0, 1, 0, 1], rank=1.0, good=1.0)
    with pytest.raises(InputError, match="trainer: dpo trains every token of a response"):
        pair_rows([[between, answer([1, 5], [0, 1], rank=2.0)]])
    with pytest.raises(InputError, match="use a stage of type kto"):
        response_rows([[between]], 8)
