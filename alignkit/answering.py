"""The answers that the sample stage labels: drawn by a policy, or the data's own. Knows not what they are worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accelerate import Accelerator

from alignkit.data.load import load_data
from alignkit.draws import Draws
from alignkit.environment.episodes import answered, open_episodes
from alignkit.loop import make_accelerator
from alignkit.models import load_policy
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.prepare import open_setting
from alignkit.prompts import load_prompts, unique
from alignkit.records import Candidates, Completion, Prompt
from alignkit.runs import Run


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts, and where answers to them come from."""

    accelerator: Accelerator
    precision: Literal["float32", "bf16"]
    """Of frozen weights."""
    prompts: list[Prompt]
    skipped: int
    """Prompts left out for their length."""
    answers: Callable[[list[int], list[Prompt]], list[list[Completion]]]
    """(numbers, prompts) -> the answers to each."""
    given: Any = None
    """What the answers depend on besides options and prompts, as JSON knows it."""
    ranks: Sequence[tuple[int, ...] | None] = ()
    """Those that the data gives the answers to each prompt; empty where answers are drawn."""


def drawn(config: SampleConfig, model: ModelOptions, runtime: RuntimeOptions, run: Run) -> Asked:
    """Answers that the policy draws to the data's prompts. Raises InputError."""
    setting = open_setting(model, runtime)
    accelerator, format, n = setting.accelerator, setting.format, config.samples
    episodes = open_episodes(config.environment, format, runtime.allow_code)
    prompts, skipped = load_prompts(config, format, run, runtime)
    held = {"device": accelerator.device, "precision": setting.precision}
    policy = load_policy(model, trainable=False, format=format, **held).eval()

    def answers(numbers: list[int], part: list[Prompt]) -> list[list[Completion]]:
        draws = Draws.of(config, runtime.token_budget, numbers)
        with accelerator.autocast():
            said = answered(policy, format, part, draws, episodes)
        return [said[start : start + n] for start in range(0, len(said), n)]

    return Asked(accelerator, setting.precision, prompts, skipped, answers)


def given(config: SampleConfig, runtime: RuntimeOptions, run: Run) -> Asked:
    """The responses of the data itself, as completions; nothing is tokenized. Raises InputError."""
    accelerator = make_accelerator(runtime)
    found, _, sources = load_data(config.data, Candidates, config.seed)
    run.add_data(sources)
    prompts = [Prompt(messages=one.prompt, tools=one.tools, id=one.id, columns=one.columns) for one in found]

    def answers(numbers: list[int], part: list[Prompt]) -> list[list[Completion]]:
        return [
            [
                Completion(
                    prompt=asked.messages,
                    response=said[-1],
                    turns=said[:-1],
                    tools=asked.tools,
                    columns=asked.columns,
                )
                for said in found[n].responses
            ]
            for n, asked in zip(numbers, part, strict=True)
        ]

    precision = "bf16" if accelerator.mixed_precision == "bf16" else "float32"
    said = [one.model_dump(mode="json") for one in found]
    return Asked(accelerator, precision, unique(prompts), 0, answers, said, [one.ranks for one in found])
