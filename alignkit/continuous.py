"""Completions by transformers' continuous batching: pages of cache, CUDA graphs on a GPU. Knows no reward, no stage.

Its draws come from torch's own generator, in the order in which its scheduler forms batches: they are not keyed.
"""

import math
from collections.abc import Sequence

from transformers import ContinuousBatchingConfig, GenerationConfig

from alignkit.batches import seed_of
from alignkit.chat import ChatFormat
from alignkit.draws import Draws
from alignkit.generate import EngineFailure, completion_of, sample, without_defaults
from alignkit.keyed import row_keys
from alignkit.policy import Policy
from alignkit.records import Completion, Prompt

PAGE = 256
"""Tokens of one page of the cache."""
Drawn = tuple[list[int], list[float] | None]
"""Ids, and their log-probabilities as sampled, in nats; None where greedy."""


class Continuous:
    """Samples from the policy itself."""

    def rollout(
        self,
        policy: Policy,
        format: ChatFormat,
        prompts: Sequence[Prompt],
        draws: Draws,
    ) -> list[Completion]:
        """As `alignkit.generate.rollout`, but for the draws: a call's generator is seeded by (seed, update, prompts).

        `draws.token_budget` bounds the cache. The first min_new_tokens are drawn as `rollout` draws them, since
        continuous batching drops the processor that bars stop tokens (transformers 5.23). Raises EngineFailure where
        a prompt is left without its answers.
        """
        if not prompts:
            return []
        asked = [prompt for prompt in prompts for _ in range(draws.samples)]
        # Each sample is a request: forks of one (num_return_sequences) fail where it ends at its first token (5.23).
        contexts = [
            context
            for context in format.prompts([(prompt.messages, prompt.tools) for prompt in prompts])
            for _ in range(draws.samples)
        ]
        begun = _begun(policy, format, contexts, draws.numbers_of(prompts), draws)
        contexts = [context + ids for context, (ids, _) in zip(contexts, begun, strict=True)]
        gone_on = _batched(policy, format, contexts, draws.numbers_of(prompts), draws)
        return [
            completion_of(prompt, [*first, *rest], format, None if a is None or b is None else [*a, *b])
            for prompt, (first, a), (rest, b) in zip(asked, begun, gone_on, strict=True)
        ]

    def refresh(self) -> None:
        """There is no copy to renew."""


def _begun(
    policy: Policy, format: ChatFormat, contexts: list[list[int]], numbers: Sequence[int], draws: Draws
) -> list[Drawn]:
    """The first min_new_tokens of each answer, among which there is no stop token."""
    barred = draws.min_new_tokens
    if not barred:
        return [([], None if draws.temperature == 0 else [])] * len(contexts)
    samples = range(draws.samples)
    keys = row_keys(draws.seed, draws.update, [n for n in numbers for _ in samples], [*samples] * len(numbers))
    return sample(
        policy,
        format,
        contexts,
        keys,
        max_new_tokens=barred,
        temperature=draws.temperature,
        min_new_tokens=barred,
        token_budget=draws.token_budget,
    )


def _batched(
    policy: Policy, format: ChatFormat, contexts: list[list[int]], numbers: Sequence[int], draws: Draws
) -> list[Drawn]:
    """What follows each context: up to its first stop token, or to max_new_tokens with those before."""
    room, sampled = draws.max_new_tokens - draws.min_new_tokens, draws.temperature > 0
    if not room:
        return [([], [] if sampled else None)] * len(contexts)
    sampling = {"do_sample": True, "temperature": draws.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
    generation = GenerationConfig(
        max_new_tokens=room,
        eos_token_id=list(format.stop_ids),
        pad_token_id=format.pad_id,
        **sampling,
    )
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=max(math.ceil((max(map(len, contexts)) + room) / PAGE) + 1, draws.token_budget // PAGE),
        return_logprobs=True,
        seed=seed_of("continuous", draws.seed, draws.update, *numbers),
    )
    with policy.plain() as model, without_defaults(model):
        answers = model.generate_batch(contexts, generation_config=generation, continuous_batching_config=batching)
    found = [answer for answer in answers.values() if answer.error is None and answer.generated_tokens]
    if len(found) != len(contexts):
        why = next((answer.error for answer in answers.values() if answer.error), "see the log above")
        missing = len(contexts) - len(found)
        raise EngineFailure(f"rollouts.engine: continuous: {missing} completions are missing: {why}")
    return [(answer.generated_tokens, answer.logprobs if sampled else None) for answer in found]
