"""Checkpoints with more tokens: plain transformers loads them, old texts are as before, new rows are means."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.data.tokenizer import TokenizerKind, train_tokenizer
from alignkit.options.sft import SftConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Message
from alignkit.runs import Run
from alignkit.stages import sft
from alignkit.vocabulary import extend_checkpoint

TEXTS = ["the cat sat on the mat, and the cats sang", "a hat on the mat\nthat the cat had"] * 5
OLD_TEXT = "qux zyx jwk 0\n!"
"""Nothing in it is learned from TEXTS."""
Checkpoint = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Random weights and a tokenizer trained on TEXTS."""

    def made(kind: TokenizerKind = "bpe", tied: bool = True, rows: int = 0, chat: str | None = None) -> Path:
        tokenizer = train_tokenizer(TEXTS, kind, 270)
        if chat:
            ChatFormat.load(tokenizer, chat)
        config = LlamaConfig(
            vocab_size=max(rows, len(tokenizer)),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        folder = tmp_path / f"base-{kind}-{tied}-{rows}"
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return made


def opened(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer, by plain transformers."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_old_texts_have_their_old_logits_and_new_rows_are_means(
    checkpoint: Checkpoint, tmp_path: Path, tied: bool
) -> None:
    base = checkpoint(tied=tied)
    done = extend_checkpoint(str(base), tmp_path / "out", learn=iter(TEXTS), add=7, tokens=["understand"])
    (old, words), (new, more) = opened(base), opened(tmp_path / "out")
    assert (done.before, done.after) == (len(words), len(more)) == (270, 270 + done.merged)
    assert new.config.vocab_size == done.rows == len(more)
    assert new.config.tie_word_embeddings == tied

    ids = words(OLD_TEXT, return_tensors="pt")["input_ids"]
    assert more(OLD_TEXT)["input_ids"] == ids[0].tolist()
    torch.testing.assert_close(new(ids).logits[..., :270], old(ids).logits, rtol=0, atol=1e-6)

    pieces = words.encode("understand", add_special_tokens=False)
    [understand] = more.encode("understand", add_special_tokens=False)
    assert len(pieces) > 2 and understand >= 270
    assert more.tokenize("I understand")[-1] == "Ġunderstand"
    for before, after in ((old.get_input_embeddings(), new.get_input_embeddings()), (old.lm_head, new.lm_head)):
        assert torch.equal(after.weight[:270], before.weight)
        mean = sum(before.weight[piece] for piece in pieces) / len(pieces)
        torch.testing.assert_close(after.weight[understand], mean)
    assert (new.lm_head.weight.data_ptr() == new.get_input_embeddings().weight.data_ptr()) == tied


@torch.no_grad()
def test_texts_with_new_tokens_read_as_the_mean_of_their_pieces(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint()
    done = extend_checkpoint(str(base), tmp_path / "out", learn=iter(TEXTS), add=7)
    (old, words), (new, more) = opened(base), opened(tmp_path / "out")
    count = lambda one: sum(len(one.encode(text, add_special_tokens=False)) for text in TEXTS)  # noqa: E731
    assert done.tokens_of_texts == (count(words), count(more))
    table, rows = old.get_input_embeddings().weight, new.get_input_embeddings().weight
    spelled = lambda id: words.encode(more.decode([id]), add_special_tokens=False)  # noqa: E731
    whole = [id for id in range(270, 277) if words.decode(spelled(id)) == more.decode([id])]
    assert whole
    for id in whole:
        torch.testing.assert_close(rows[id], table[spelled(id)].mean(0))


@torch.no_grad()
def test_special_tokens_are_near_the_mean_and_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint(tied=False)
    done = extend_checkpoint(str(base), tmp_path / "out", special=["<|a|>", "<|b|>"], pad_to_multiple_of=64)
    (old, _), (new, more) = opened(base), opened(tmp_path / "out")
    assert (done.special, done.merged, done.literal, done.rows) == (2, 0, 0, 320)
    assert more.tokenize("x<|a|><|b|>")[1:] == ["<|a|>", "<|b|>"]
    assert more.decode(more("x<|a|>")["input_ids"], skip_special_tokens=True) == "x"
    for before, after in ((old.get_input_embeddings(), new.get_input_embeddings()), (old.lm_head, new.lm_head)):
        mean, deviation = before.weight.mean(0), before.weight.std(0)
        for row in after.weight[270:]:  # the padding's too: a row at random could win the softmax
            assert ((row - mean).abs() < 0.06 * deviation).all()
        assert not torch.equal(after.weight[270], after.weight[271])


def test_rows_that_stand_empty_are_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = extend_checkpoint(str(checkpoint(rows=300)), tmp_path / "out", special=["<|a|>"])
    assert (done.after, done.rows) == (271, 300)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unigram", "character"])
def test_other_tokenizers_find_tokens_as_they_are_spelled(
    checkpoint: Checkpoint, tmp_path: Path, kind: TokenizerKind
) -> None:
    base = checkpoint(kind)
    done = extend_checkpoint(str(base), tmp_path / "out", tokens=["sat on"])
    (old, words), (new, more) = opened(base), opened(tmp_path / "out")
    assert (done.merged, done.literal) == (0, 1)
    assert "sat on" in more.tokenize("the cat sat on the mat") and "sat on" not in more.tokenize("the cat sat one")
    pieces = words.encode("sat on", add_special_tokens=False)
    row = new.get_input_embeddings().weight[len(words)]
    torch.testing.assert_close(row, old.get_input_embeddings().weight[pieces].mean(0))


def test_a_token_across_words_is_found_as_it_is_spelled_in_bpe_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = extend_checkpoint(str(checkpoint()), tmp_path / "out", tokens=["covid-19", "sang"])
    _, more = opened(tmp_path / "out")
    assert done.literal == 1 and done.merged > 0
    assert more.tokenize("the covid-19")[-1] == "covid-19" and more.tokenize("sang")[-1] == "sang"


def test_the_tokens_of_another_tokenizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    donor = train_tokenizer(["the dog ran home, the dogs run"] * 9, "bpe", 285)
    donor.save_pretrained(tmp_path / "donor")
    base = checkpoint()
    done = extend_checkpoint(str(base), tmp_path / "out", donor=str(tmp_path / "donor"))
    _, more = opened(tmp_path / "out")
    _, words = opened(base)
    assert len(words.tokenize("a dog")) > 2 and more.tokenize("a dog")[-1] == "Ġdog"
    spelled = [donor.decode([id]) for id in range(261, len(donor))]
    whole = [text for text in spelled if len(more.tokenize("\n" + text)) == 2]
    assert whole == spelled
    assert done.merged == done.after - 270 and done.skipped >= 256


def test_an_extended_checkpoint_with_chatml_keeps_the_token_contract_and_is_trained(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    extend_checkpoint(str(checkpoint()), out, learn=iter(TEXTS), add=7, chat_template="chatml")
    model, tokenizer = opened(out)
    format = ChatFormat.load(tokenizer)
    turn = format.turns([Message(role="user", content="the cat?"), Message(role="assistant", content="sat on it")])[0]
    answer = [token for token, weight in zip(turn.ids, turn.weights, strict=True) if weight]
    assert format.decode(answer).content == "sat on it"
    assert tokenizer.convert_ids_to_tokens(answer[-1]) == "<|im_end|>"
    assert answer[-1] in model.generation_config.eos_token_id

    turns = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat on the mat"}]
    rows = tmp_path / "data.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns, "id": str(n)}) + "\n" for n in range(8)))
    train = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2}
    config = build(
        SftConfig, {"model": {"path": str(out)}, "data": {"path": str(rows), "validation": 0}, "train": train}, ""
    )
    runtime = RuntimeOptions(trackers=[], device="cpu")
    run = Run.open(tmp_path / "run", "sft", config, runtime, id="test")
    sft.run(config, runtime, run)
    name = "model.embed_tokens.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (out, run.model_dir))
    assert before.shape == after.shape
    assert len(AutoTokenizer.from_pretrained(run.model_dir)) == len(tokenizer)
    learned = tokenizer.encode(" mat", add_special_tokens=False)
    assert not torch.equal(before[learned], after[learned])


def test_a_chat_template_that_was_there_stays(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint(chat="chatml")
    extend_checkpoint(str(base), tmp_path / "out", special=["<|a|>"])
    chat = [{"role": "user", "content": "the cat?"}]
    texts = [
        AutoTokenizer.from_pretrained(one).apply_chat_template(chat, tokenize=False)
        for one in (base, tmp_path / "out")
    ]
    assert texts[0] == texts[1]


@torch.no_grad()
def test_weights_keep_their_precision(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint()
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    extend_checkpoint(str(base), tmp_path / "out", special=["<|a|>"])
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_what_cannot_be_added_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base, out = str(checkpoint()), tmp_path / "out"
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for message in messages %}{{ message.content }")
    with pytest.raises(InputError, match=r"--tokens: 'the' is a token of the model already; leave it out"):
        extend_checkpoint(base, out, tokens=["the"])
    with pytest.raises(InputError, match=r"--special: '<\|bos\|>' is a token of .* already"):
        extend_checkpoint(base, out, special=["<|bos|>"])
    with pytest.raises(InputError, match=r"broken\.jinja"):
        extend_checkpoint(base, out, chat_template=str(broken))
    with pytest.raises(InputError, match="no byte-pair encoding, to which alone --from and --learn can add"):
        extend_checkpoint(str(checkpoint("character")), out, learn=iter(TEXTS), add=3)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="MODEL: no tokenizer can be loaded from"):
        extend_checkpoint(str(tmp_path / "bare"), out, special=["<|a|>"])
    assert not out.exists() and not list(tmp_path.glob(".out*")), "nothing is left half written"
    out.mkdir()
    with pytest.raises(InputError, match="exists already"):
        extend_checkpoint(base, out, special=["<|a|>"])
