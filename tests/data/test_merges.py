"""New merges: learned as training from nothing learns them, reached, and blind to what they do not join."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from alignkit.data.merges import Merges, takes_merges, words_of
from alignkit.data.tokenizer import train_tokenizer

HUGS = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5
TEXTS = ["the cat sat on the mat, and the cats sang", "a hat on the mat\nthat the cat had"] * 5


def bytes_only() -> Tokenizer:
    """A byte-level BPE of 256 bytes and the special tokens, without any merge."""
    return train_tokenizer(["a"], "bpe", 261).backend_tokenizer


def test_merges_are_learned_in_the_order_of_their_counts() -> None:
    merges = Merges(bytes_only())
    # Letters: 3 × 36 + 5. u+g 20 times, u+n 16; then h+ug 15, then p+un 12: 20 + 16 + 15 + 12 joined.
    assert merges.learn(HUGS, 4) == (113, 113 - 63)
    assert list(merges.ranks) == [("u", "g"), ("u", "n"), ("h", "ug"), ("p", "un")]
    assert merges.new == {"ug": 261, "un": 262, "hug": 263, "pun": 264}
    ids = bytes_only().get_vocab()
    assert merges.pieces["hug"] == (ids["h"], ids["u"], ids["g"])


def test_what_is_said_once_is_not_learned() -> None:
    merges = Merges(bytes_only())
    merges.learn(["ab", "ab", "cd"], 10)
    assert list(merges.ranks) == [("a", "b")]


def test_the_new_tokens_only_join_what_the_old_tokenizer_made() -> None:
    old = train_tokenizer(TEXTS, "bpe", 275).backend_tokenizer
    merges = Merges(old)
    before, after = merges.learn(TEXTS, 12)
    assert merges.add(merges.word(" understand") or "") and merges.add(merges.word("hathat") or "")
    new = Tokenizer.from_str(merges.written())
    count = lambda one: sum(len(one.encode(text, add_special_tokens=False).ids) for text in TEXTS)  # noqa: E731
    assert (before, after) == (count(old), count(new)) and after < before
    spelled = {id: merges.pieces[token] for token, id in merges.new.items()}
    chance = random.Random(0)
    for _ in range(300):
        text = "".join(chance.choices([*TEXTS[0].split(), "understand", " ", " ", "\n", "é", "hat", "9"], k=12))
        joined = [old for id in new.encode(text).ids for old in spelled.get(id, (id,))]
        assert joined == old.encode(text).ids
        assert new.decode(new.encode(text).ids) == text
    assert new.encode("I understand", add_special_tokens=False).tokens[-1] == "Ġunderstand"
    assert new.encode("\nhathat", add_special_tokens=False).tokens[-1] == "hathat"


def test_tokens_outside_the_vocabulary_keep_their_ids() -> None:
    old = bytes_only()
    old.add_tokens([AddedToken("new york", normalized=False)])
    merges = Merges(old)
    merges.learn(HUGS, 4)
    now = Tokenizer.from_str(merges.written()).get_vocab()
    assert {token: now[token] for token in old.get_vocab()} == old.get_vocab()
    assert len(set(now.values())) == len(now) == 262 + 4


def test_a_word_that_an_old_token_blocks_adds_nothing() -> None:
    # "abc" is a token that no merge makes: to make it would change what texts become.
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "abc": 3, "bc": 4}, []))
    merges = Merges(inner)
    assert merges.split("abc") == ["a", "b", "c"]
    assert not merges.add("abc")
    assert (merges.ranks, merges.new, merges.pieces) == ({}, {}, {})
    merges.learn(["abc"] * 9, 9)
    assert list(merges.ranks) == [("a", "b")]


def test_words_of_a_tokenizer_without_borders() -> None:
    inner = Tokenizer(models.BPE({"a": 0}, []))
    words = words_of(inner, "▁one▁two,▁▁3▁vies.")
    assert words == ["▁one", "▁two", ",", "▁", "▁3", "▁vies", "."]
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert words_of(inner, "one two") == ["one", "Ġtwo"]


def test_bytes_and_the_unknown_are_not_joined() -> None:
    letters = {"<unk>": 0, "<0xC3>": 1, "<0x9F>": 2, "a": 3, "b": 4}
    inner = Tokenizer(models.BPE(letters, [], unk_token="<unk>", byte_fallback=True))
    merges = Merges(inner)
    merges.learn(["ßß", "ab", "ab"], 9)
    assert list(merges.ranks) == [("a", "b")]


@pytest.mark.parametrize(("kind", "takes"), [("bpe", True), ("unigram", False), ("word", False)])
def test_only_byte_pair_encoding_takes_merges(kind: str, takes: bool) -> None:
    assert takes_merges(train_tokenizer(TEXTS, kind, 300).backend_tokenizer) == takes  # type: ignore[arg-type]
