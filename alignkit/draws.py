"""What is drawn for prompts, and how: seeds, lengths, temperature. Knows no model and no prompt's text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.ppo import PpoConfig
from alignkit.options.sample import SampleConfig
from alignkit.records import Prompt


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The arguments of `alignkit.generate.rollout`, which says what they mean."""

    seed: int
    update: int
    samples: int = 1
    max_new_tokens: int
    temperature: float = 1.0
    min_new_tokens: int = 0
    token_budget: int = 8192
    numbers: Sequence[int] | None = None

    @classmethod
    def of(
        cls,
        config: PpoConfig | SampleConfig | EvaluateConfig,
        token_budget: int,
        numbers: Sequence[int],
        update: int = 0,
    ) -> Self:
        """What a stage's options say is drawn for the prompts that go by `numbers`."""
        return cls(
            seed=config.seed,
            update=update,
            samples=config.samples,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            min_new_tokens=0 if isinstance(config, EvaluateConfig) else config.min_new_tokens,
            token_budget=token_budget,
            numbers=numbers,
        )

    def numbers_of(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """`numbers`, or those of a whole update."""
        return range(len(prompts)) if self.numbers is None else self.numbers
