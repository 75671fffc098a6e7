"""Completions by transformers' continuous batching: pages of cache, CUDA graphs on a GPU. Knows no reward, no stage.

Its draws come from torch's own generator, in the order in which its scheduler forms batches: they are not keyed.
"""

import math
from collections.abc import Sequence

from transformers import ContinuousBatchingConfig, GenerationConfig

from alignkit.batches import seed_of
from alignkit.chat import ChatFormat
from alignkit.draws import Draws
from alignkit.generate import EngineFailure, completion_of, without_defaults
from alignkit.policy import Policy
from alignkit.records import Completion, Prompt

PAGE = 256
"""Tokens of one page of the cache."""


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

        `draws.token_budget` bounds the cache. Raises EngineFailure where a prompt is left without its answers.
        """
        assert draws.min_new_tokens == 0, "continuous batching cannot bar end tokens"
        if not prompts:
            return []
        numbers = draws.numbers_of(prompts)
        contexts = format.prompts([(prompt.messages, prompt.tools) for prompt in prompts])
        longest = max(map(len, contexts)) + draws.max_new_tokens
        sampled = draws.temperature > 0
        sampling = {"do_sample": True, "temperature": draws.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
        generation = GenerationConfig(
            max_new_tokens=draws.max_new_tokens,
            eos_token_id=list(format.stop_ids),
            pad_token_id=format.pad_id,
            **sampling,
        )
        batching = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=max(math.ceil(longest / PAGE) + 1, draws.token_budget // PAGE),
            return_logprobs=True,
            seed=seed_of("continuous", draws.seed, draws.update, *numbers),
        )
        # Each sample is a request: forks of one (num_return_sequences) fail where it ends at its first token (5.23).
        each = [context for context in contexts for _ in range(draws.samples)]
        with policy.plain() as model, without_defaults(model):
            answers = model.generate_batch(each, generation_config=generation, continuous_batching_config=batching)
        found = [answer for answer in answers.values() if answer.error is None and answer.generated_tokens]
        if len(found) != len(prompts) * draws.samples:
            why = next((answer.error for answer in answers.values() if answer.error), "see the log above")
            missing = len(prompts) * draws.samples - len(found)
            raise EngineFailure(f"rollouts.engine: continuous: {missing} completions are missing: {why}")
        asked = [prompt for prompt in prompts for _ in range(draws.samples)]
        return [
            completion_of(prompt, answer.generated_tokens, format, answer.logprobs if sampled else None)
            for prompt, answer in zip(asked, found, strict=True)
        ]

    def refresh(self) -> None:
        """There is no copy to renew."""
