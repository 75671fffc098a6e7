"""Your own loss on your own data, with LoRA, in a loop you can read: RRHF, which alignkit does not have.

    python examples/custom_loop.py MODEL OUTPUT [TEMPLATE]      TEMPLATE: "none" where the model has none

RRHF (Yuan et al. 2023, https://arxiv.org/abs/2304.05302): max(0, p₋ - p₊) - p₊, p = mean log-probability of a token.
"""

import sys
from pathlib import Path

from alignkit.chat import ChatFormat
from alignkit.loop import Objective, Sums, make_optimizer, update
from alignkit.models import load_policy, load_tokenizer, save_policy
from alignkit.options.shared import LoraOptions, ModelOptions, TrainOptions
from alignkit.packing import pack
from alignkit.records import Message
from alignkit.trie import TokenSequence, sum_by_owner

PAIRS = [  # prompt, the better answer, the worse one
    ("is the shop open on sunday?", "yes, from 9 to 5.", "look it up."),
    ("what is 2 plus 2?", "4.", "what a silly question. it is 5."),
    ("my parcel is late.", "i am sorry. i will ask where it is.", "so what?"),
]


def read(policy, batch):  # what the loss needs of the model: differentiable, per sequence
    return {"logp": sum_by_owner(policy(batch).logps, batch) / sum_by_owner(batch.weight, batch)}


def loss(readings, batch):  # sums over items, never means: `update` divides by `count` over the whole step
    order = batch.group * 2 + batch.owner_columns["worse"].long()
    better, worse = readings["logp"][order.argsort()].view(-1, 2).T
    terms = {"ranking": (worse - better).clamp(min=0).sum(), "best": -better.sum()}
    return Sums(terms, {"accuracy": (better > worse).sum()})


def count(batch):  # how many of each the step holds, in its own unit: here pairs
    return {name: len(batch.group.unique()) for name in ("ranking", "best", "accuracy")}


def main(model: str, output: str, template: str | None = None, steps: int = 20) -> list[dict[str, float]]:
    format = ChatFormat.load(load_tokenizer(model), template)
    policy = load_policy(ModelOptions(path=model, lora=LoraOptions(r=8)), format=format)
    optimizer = make_optimizer(policy, TrainOptions(learning_rate=2e-3))
    history, sequences = [], []
    for group, (prompt, *answers) in enumerate(PAIRS):
        for worse, answer in enumerate(answers):
            s = format.completion([Message(role="user", content=prompt)], [Message(role="assistant", content=answer)])
            sequences.append(TokenSequence(s.ids, s.weights, group, {"worse": worse}))
    for step in range(steps):
        history.append(update(policy, pack(sequences, 2048), Objective(read, loss, count), optimizer))
        print(step, {name: round(value, 4) for name, value in history[-1].items()})
    save_policy(policy, format, Path(output))
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
