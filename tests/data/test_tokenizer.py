"""Tokenizers trained on a few sentences: what they keep, what they do not, and that they reload."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.tokenizer import BOS, EOS, PAD, UNKNOWN, train_tokenizer
from alignkit.records import Message

TEXTS = ["the cat sat on the mat.", "the dog sat on the cat!", "is the mat red? no, it is blue."] * 3


def test_bpe_keeps_every_text_even_of_scripts_it_never_saw() -> None:
    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    for text in ("the cat", "  two  spaces\n\ttab", "Straße 東京 🙂", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert 261 < len(tokenizer) <= 300
    # " the" stands in every sentence: a merge, so one token.
    assert len(tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1


def test_a_word_is_one_token_wherever_it_stands() -> None:
    tokenizer = train_tokenizer(TEXTS, "word", 100)
    ids = tokenizer("the cat sat. the\nthe dog", add_special_tokens=False)["input_ids"]
    the = tokenizer.convert_tokens_to_ids("the")
    assert [position for position, token in enumerate(ids) if token == the] == [0, 4, 6]
    assert tokenizer.decode(ids) == "the cat sat. the\nthe dog"
    assert tokenizer.decode(tokenizer("is the  cat red ?", add_special_tokens=False)["input_ids"]) == "is the cat red?"
    assert tokenizer.convert_tokens_to_ids("zebra") == tokenizer.convert_tokens_to_ids(UNKNOWN)


def test_the_word_vocabulary_keeps_the_most_frequent() -> None:
    tokenizer = train_tokenizer(["a a a b b c"], "word", 6 + 5 + 2)  # specials, four roles and the line end, two words
    known = tokenizer.get_vocab()
    assert "a" in known and "b" in known and "c" not in known


def test_characters_round_trip() -> None:
    tokenizer = train_tokenizer(TEXTS, "character", 60)
    ids = tokenizer("the cat\nsat", add_special_tokens=False)["input_ids"]
    assert len(ids) == len("the cat\nsat")
    assert tokenizer.decode(ids) == "the cat\nsat"


@pytest.mark.parametrize(("kind", "vocabulary"), [("bpe", 300), ("word", 100), ("character", 60)])
def test_the_saved_tokenizer_is_a_plain_one_with_all_marks(kind: str, vocabulary: int, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, vocabulary)  # type: ignore[arg-type]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "is the dog red?"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again(text)["input_ids"][0] == again.bos_token_id
    assert (again.bos_token, again.eos_token, again.pad_token) == (BOS, EOS, PAD)
    assert len({again.bos_token_id, again.eos_token_id, again.pad_token_id}) == 3
    format = ChatFormat.load(again, "chatml")
    assert not format.new_ids, "ChatML's marks are in the vocabulary already"
    turn = format.turns([Message(role="user", content=text), Message(role="assistant", content="no, it is blue.")])[0]
    supervised = [token for token, weight in zip(turn.ids, turn.weights, strict=True) if weight]
    assert format.decode(supervised).content == "no, it is blue."
    assert again.convert_ids_to_tokens(supervised[-1]) == "<|im_end|>"


def test_a_vocabulary_too_small_is_told_how_large_it_must_be() -> None:
    with pytest.raises(InputError, match="give at least 261"):
        train_tokenizer(TEXTS, "bpe", 200)
    with pytest.raises(InputError, match="vocabulary: 8"):
        train_tokenizer(TEXTS, "word", 8)
