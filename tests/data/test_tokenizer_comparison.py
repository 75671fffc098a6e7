"""Figures of tokenizers, held to texts counted by hand."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignkit.config import InputError
from alignkit.data.tokenizer import train_tokenizer
from alignkit.data.tokenizer_comparison import measure, tokens_of_words

HUGS = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5


def test_characters_by_hand() -> None:
    found = measure(train_tokenizer(["the cat sat\nthe dog"], "character", 60), ["the cat sat\nthe dog"])
    # 19 characters and bytes; 15 of them in 5 words of 3 letters.
    assert (found.tokens, found.bytes_per_token, found.tokens_per_word) == (19, 1.0, 3.0)
    assert (found.whole_words, found.unknown, found.lossless) == (0.0, 0.0, 1.0)


def test_words_by_hand() -> None:
    tokenizer = train_tokenizer(["the cat sat"], "word", 40)
    found = measure(tokenizer, ["the cat sat\nthe dog", "the cat"])
    # the cat sat \n the <unk> | the cat: 8 tokens of 26 bytes, 7 words.
    assert (found.tokens, found.bytes_per_token, found.tokens_per_word) == (8, 26 / 8, 1.0)
    assert (found.whole_words, found.unknown, found.lossless) == (6 / 7, 1 / 8, 1 / 2)


def test_merges_by_hand() -> None:
    found = measure(train_tokenizer(HUGS, "bpe", 261 + 4), ["hug pun", "bun"])
    # hug | Ġ pun | b un: 5 tokens of 10 bytes; of three words hug and pun are whole, bun is in two.
    assert (found.vocabulary, found.tokens, found.bytes_per_token) == (265, 5, 2.0)
    assert (found.tokens_per_word, found.whole_words, found.unknown) == (4 / 3, 2 / 3, 0.0)
    assert found.tokens_per_second > 0


def test_texts_without_a_token_are_refused() -> None:
    tokenizer = train_tokenizer(["a"], "character", 60)
    for texts in ([], [""]):
        with pytest.raises(InputError, match="makes no token of these"):
            measure(tokenizer, texts)


def test_tokens_that_hold_parts_of_words() -> None:
    # "don't stop" in five tokens: "do" "n't" " " "sto" "p"; the mark between n and t belongs to no word.
    offsets = [(0, 2), (2, 5), (5, 6), (6, 9), (9, 10)]
    assert tokens_of_words("don't stop", offsets) == [range(0, 2), range(1, 2), range(3, 5)]
    assert tokens_of_words("हिन्दी 9", [(0, 8)]) == [range(0, 1), range(0, 1)], "vowel signs do not end a word"
    assert tokens_of_words("...", [(0, 3)]) == []


def test_a_tokenizer_that_lacks_an_unknown_token_is_named() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match=r"cannot encode these texts.*Give it an unknown token, or train one"):
        measure(PreTrainedTokenizerFast(tokenizer_object=inner), ["a b"])
