"""A transformer of .2 M parameters fitted to the bigram world; its 1,296 sequences are then enumerated."""

from pathlib import Path

import tiny
import torch
from bigram_world import REFERENCE, SEQUENCES, VOCAB, context_numbers
from transformers import LlamaConfig, LlamaForCausalLM

START = "g"  # the start symbol is the prompt


def logps(model: LlamaForCausalLM) -> torch.Tensor:
    """Log-probability of all 1,296 sequences in plain passes, the letters a to f alone being possible."""
    rows = torch.cat([torch.full((len(SEQUENCES), 1), 6), SEQUENCES], 1)
    with torch.no_grad():
        distribution = model(rows[:, :-1]).logits[..., :6].double().log_softmax(-1)
    return distribution.gather(2, SEQUENCES[..., None]).squeeze(2).sum(1)


def fitted(folder: Path) -> Path:
    """A transformer of .2 M parameters, fitted to the reference in every context; it ends after four letters."""
    words = tiny.tokenizer("abcdef" + START)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    assert 150_000 < model.num_parameters() < 250_000
    # [216, 5]: the start symbol, three letters, one more. Their prefixes are every context of every token; after the
    # fourth letter comes the end.
    prefixes = SEQUENCES[::VOCAB, :-1]
    rows = torch.cat([torch.full((len(prefixes), 1), 6), prefixes, torch.arange(len(prefixes))[:, None] % VOCAB], 1)
    target = torch.zeros(*rows.shape, len(words))
    target[:, :-1, :VOCAB] = REFERENCE[context_numbers(SEQUENCES)[::VOCAB]].softmax(-1).float()
    target[:, -1, words.eos_token_id] = 1.0
    steps = 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        # Over all eight tokens, so that the start symbol becomes improbable.
        loss = -(target * model(rows).logits.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
