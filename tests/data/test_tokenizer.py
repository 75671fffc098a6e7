"""Tokenizers trained on a few sentences: what they keep, what they do not, and that they reload."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.tokenizer import BOS, EOS, PAD, UNKNOWN, TokenizerKind, train_tokenizer
from alignkit.records import Message

TEXTS = ["the cat sat on the mat.", "the dog sat on the cat!", "is the mat red? no, it is blue."] * 3


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_bytes_keep_every_text_even_of_scripts_they_never_saw(kind: TokenizerKind) -> None:
    tokenizer = train_tokenizer(TEXTS, kind, 300)
    for text in ("the cat", "  two  spaces\n\ttab", "Straße 東京 🙂", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert 261 < len(tokenizer) <= 300
    # " the" stands in every sentence: a merge, so one token.
    assert len(tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1


def test_merges_of_a_closed_example() -> None:
    # u+g 20 times, u+n 16; then h+ug 15, then p+un 12.
    texts = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5
    model = json.loads(train_tokenizer(iter(texts), "bpe", 261 + 4).backend_tokenizer.to_str())["model"]
    assert model["merges"] == [["u", "g"], ["u", "n"], ["h", "ug"], ["p", "un"]]


def test_unigram_makes_a_frequent_word_one_token_though_no_other_word_holds_it() -> None:
    texts = ["he said it and she said it", "they went", "so it was", "and he said no"] * 20
    tokenizer = train_tokenizer(iter(texts), "unigram", 290)
    assert tokenizer.tokenize("he said") == ["he", "Ġsaid"]
    assert 265 < len(tokenizer) <= 290 and tokenizer.unk_token is None
    assert len(train_tokenizer(texts, "unigram", 265)) == 265
    pieces = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    assert not [piece for piece, _ in pieces if "\n" in piece], "the marks of training are gone"


def test_unigram_splits_to_the_largest_product_of_its_pieces() -> None:
    tokenizer = train_tokenizer(TEXTS, "unigram", 290)
    scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])

    def best(word: str) -> float:
        parts = [
            scores[word[:n]] + (best(word[n:]) if word[n:] else 0.0)
            for n in range(1, len(word) + 1)
            if word[:n] in scores
        ]
        return max(parts)

    for word in ("the", "matted", "bluest"):
        assert sum(scores[piece] for piece in tokenizer.tokenize(word)) == pytest.approx(best(word))


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


@pytest.mark.parametrize(("kind", "vocabulary"), [("bpe", 300), ("unigram", 300), ("word", 100), ("character", 60)])
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
    with pytest.raises(InputError, match="unigram finds no pieces in so little text"):
        train_tokenizer([], "unigram", 300)


def test_special_tokens_are_named_once() -> None:
    with pytest.raises(InputError, match=r"<\|im_end\|>, a once"):
        train_tokenizer(TEXTS, "bpe", 300, ["<|im_end|>", "a", "a"])
    tokenizer = train_tokenizer(TEXTS, "bpe", 300, ["<|note|>"])
    assert tokenizer.tokenize("cat<|note|>")[-1] == "<|note|>" and "<|note|>" in tokenizer.all_special_tokens
