"""Writes completions: `rollout` on transformers' `generate` with keyed draws. It does not know what a reward is.

A draw depends on (seed, update, prompt, sample, position) and nothing else, so the same completion comes out in any
batch, in any order and on any rank, up to rounding where a draw falls on the border of two tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.keyed import KeyedDraw, row_keys
from alignkit.policy import Policy
from alignkit.prefill import prompt_cache
from alignkit.records import Completion, Prompt


class EngineFailure(InputError):
    """An engine left prompts without answers. Nothing has been trained on what it was to answer."""


def rollout(
    policy: Policy,
    format: ChatFormat,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    update: int,
    samples: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    min_new_tokens: int = 0,
    token_budget: int = 8192,
    numbers: Sequence[int] | None = None,
) -> list[Completion]:
    """`samples` completions of each prompt, those of one prompt side by side, in the prompts' order.

    Sampled from softmax(logits / temperature), nothing cut off; temperature 0 is greedy. A completion ends after its
    first stop token (kept in `ids`) or at `max_new_tokens`; stop tokens are impossible before `min_new_tokens`.
    `numbers` are the prompts' numbers in the whole update, where only some of them are here (one rank's part).
    Where sampled, `logps` are the logs of the probabilities that the draws were made with.
    As many completions are generated together, one at least, as fit `token_budget` tokens at their longest: speed and
    memory only.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    contexts = format.prompts([(prompt.messages, prompt.tools) for prompt in prompts])
    jobs = [(p, s) for p in range(len(prompts)) for s in range(samples)]
    keys = row_keys(seed, update, [numbers[p] for p, _ in jobs], [s for _, s in jobs])
    answers = sample(
        policy,
        format,
        [contexts[p] for p, _ in jobs],
        keys,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        min_new_tokens=min_new_tokens,
        token_budget=token_budget,
    )
    return [completion_of(prompts[p], ids, format, logps) for (p, _), (ids, logps) in zip(jobs, answers, strict=True)]


def sample(
    policy: Policy,
    format: ChatFormat,
    contexts: Sequence[list[int]],
    keys: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    min_new_tokens: int = 0,
    token_budget: int = 8192,
) -> list[tuple[list[int], list[float] | None]]:
    """The ids that follow each of N contexts of ids, drawn with keys [N], and their log-probabilities; the rest is as
    in `rollout`."""
    order = sorted(range(len(contexts)), key=lambda n: len(contexts[n]))
    together = max(1, token_budget // (max(map(len, contexts), default=0) + max_new_tokens))
    answers: dict[int, tuple[list[int], list[float] | None]] = {}
    for start in range(0, len(order), together):
        part = order[start : start + together]
        draw = KeyedDraw(keys[part], len(contexts[part[-1]]), temperature, min_new_tokens, format.stop_ids)
        rows = _generate(policy, [contexts[n] for n in part], draw, max_new_tokens, format)
        answers.update(zip(part, rows, strict=True))
    return [answers[n] for n in range(len(contexts))]


def _generate(
    policy: Policy, contexts: list[list[int]], draw: "KeyedDraw", max_new_tokens: int, format: ChatFormat
) -> list[tuple[list[int], list[float] | None]]:
    """The generated ids of one left-padded batch, each up to its first stop token, and their log-probabilities."""
    longest = draw.prompt_length
    device = next(policy.model.parameters()).device
    ids = torch.tensor([[format.pad_id] * (longest - len(context)) + context for context in contexts], device=device)
    mask = torch.tensor([[0] * (longest - len(context)) + [1] * len(context) for context in contexts], device=device)
    with torch.no_grad():
        cache = prompt_cache(policy, contexts, max_new_tokens)
        with policy.plain() as model, without_defaults(model):
            rows = _decode(model, ids, mask, cache, draw, longest + max_new_tokens, format)
    answers = [_until_stop(row[longest:], format.stop_ids) for row in rows]
    known = draw.logps()
    return [(ids, None if known is None else known[n, : len(ids)].tolist()) for n, ids in enumerate(answers)]


@contextmanager
def without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """A checkpoint's own defaults (repetition penalty, forced tokens …) would change the distribution unseen."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _decode(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    cache: DynamicCache | None,
    draw: "KeyedDraw",
    length: int,
    format: ChatFormat,
) -> list[list[int]]:
    """Each row's ids, up to `length`. With a cache, finished rows leave whenever they are half of those generated."""
    stops = torch.tensor(format.stop_ids, dtype=torch.int64, device=ids.device)
    rows: dict[int, list[int]] = {}
    here = torch.arange(len(ids), device=ids.device)
    while True:
        config = GenerationConfig(
            max_new_tokens=length - ids.shape[1],
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(format.stop_ids) or None,
            pad_token_id=format.pad_id,
        )
        half = [] if cache is None else [_HalfFinished(draw.prompt_length, stops)]
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList(half),
        )
        rows.update(zip(here.tolist(), ids.tolist(), strict=True))
        left = (~_finished(ids, draw.prompt_length, stops)).nonzero().squeeze(1)
        if cache is None or not len(left) or ids.shape[1] == length:
            return [rows[n] for n in range(len(rows))]
        here, ids, mask = here[left], ids[left], _lengthened(mask, ids.shape[1])[left]
        cache.batch_select_indices(left)
        draw.keep(left.cpu())


class _HalfFinished(StoppingCriteria):
    """Stops every row as soon as half of them are finished."""

    def __init__(self, prompt_length: int, stops: Tensor) -> None:
        self.prompt_length = prompt_length
        self.stops = stops

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        finished = _finished(input_ids, self.prompt_length, self.stops)
        return (2 * finished.sum() >= len(finished)).expand(len(finished))


def _finished(ids: Tensor, prompt_length: int, stops: Tensor) -> Tensor:
    """[B] whether a stop token was generated."""
    return torch.isin(ids[:, prompt_length:], stops).any(1)


def _lengthened(mask: Tensor, length: int) -> Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), length - mask.shape[1])], 1)


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for t, token in enumerate(ids):
        if token in stop_ids:
            return ids[: t + 1]
    return ids


def completion_of(
    prompt: Prompt, ids: list[int], format: ChatFormat, logps: Sequence[float] | None = None
) -> Completion:
    """What sampled ids, the end token included, say in answer to a prompt; `logps` as their engine gave them."""
    return Completion(
        prompt=prompt.messages,
        response=format.decode(ids).model_copy(update={"finished": bool(ids) and ids[-1] in format.stop_ids}),
        columns=prompt.columns,
        ids=tuple(ids),
        logps=None if logps is None else tuple(logps),
        tools=prompt.tools,
    )
