"""Tiny checkpoints for tests: a character tokenizer and a random transformer on disk."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz ?!.0123456789"
END = "~"


def tokenizer(letters: str = LETTERS, end: str = END) -> PreTrainedTokenizerFast:
    """One token a character; the last one, `end`, ends an answer."""
    inner = Tokenizer(WordLevel({letter: n for n, letter in enumerate(letters + end)}, unk_token=letters[-1]))
    inner.pre_tokenizer = Split(Regex("."), "isolated")
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end)


def checkpoint(
    folder: Path,
    letters: str = LETTERS,
    *,
    seed: int = 0,
    width: int = 32,
    layers: int = 2,
    spread: float = 0.3,
    tied: bool = False,
    classifier: bool = False,
) -> Path:
    """A random Llama with its tokenizer. `spread` is the weights' deviation: larger makes predictions less even."""
    words = tokenizer(letters)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=spread,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
        num_labels=1,
    )
    torch.manual_seed(seed)
    model = (LlamaForSequenceClassification if classifier else LlamaForCausalLM)(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
