"""Lets a model answer prompts and measures each answer: scores, KL, length. It knows no statistics and no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from alignkit.chat import ChatFormat
from alignkit.chat.continuation import between
from alignkit.chat.files import record_of
from alignkit.draws import Draws
from alignkit.environment.episodes import Episodes, answered, open_episodes
from alignkit.environment.tools import counted
from alignkit.evaluation.perplexity import log_probabilities
from alignkit.experience import spoken
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Prompt
from alignkit.trie import TokenSequence
from reward_models.scores import Reward, valued


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model and how it is spoken to."""

    policy: Policy
    format: ChatFormat
    episodes: Episodes | None = None
    """What plays its completions, where an environment answers them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion and what was measured on it."""

    prompt: int
    """The prompt's number."""
    sample: int
    """The completion's number among those of its prompt."""
    text: str
    """Of its last turn."""
    reasoning: str | None
    finished: bool
    """Whether the model ended its turn itself."""
    ids: tuple[int, ...]
    """The tokens that it sampled, end-of-turn tokens included."""
    kl: float | None
    """log π - log π_ref of the whole completion, nats (Schulman's k1); None where there is no comparison."""
    scores: dict[str, float] = field(default_factory=dict[str, float])
    """By the reward's name, and "name/part" for what it is made of."""
    turns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Where an environment answered: every message after the prompt, the model's and the environment's."""
    counts: dict[str, float] = field(default_factory=dict[str, float])
    """Where an environment answered: how many turns, tool calls and failed calls."""


def open_format(path: str, config: EvaluateConfig) -> ChatFormat:
    """How a model is spoken to: the recipe's template only where it has none of its own, the recipe's template_kwargs
    only where no stage has left it theirs. Raises InputError."""
    tokenizer = load_tokenizer(path)
    template = None if tokenizer.chat_template else config.chat_template
    kwargs = None if record_of(tokenizer) else config.template_kwargs
    return ChatFormat.load(tokenizer, template, config.eos_token if template else None, kwargs)


def open_speaker(
    path: str,
    config: EvaluateConfig,
    device: torch.device,
    precision: Literal["float32", "bf16"],
    allow_code: bool = False,
) -> Speaker:
    """The frozen model in a folder, and how it is spoken to. Raises InputError."""
    format, model = open_format(path, config), ModelOptions(path=path)
    policy = load_policy(model, device=device, precision=precision, trainable=False, format=format)
    return Speaker(policy.eval(), format, open_episodes(config.environment, format, allow_code))


def answer(
    speaker: Speaker,
    reference: Speaker | None,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Reward],
    config: EvaluateConfig,
    runtime: RuntimeOptions,
    accelerator: Accelerator,
) -> list[Answer]:
    """`config.samples` answers to each prompt, in order; each rank makes its share and gets all.

    Equal seeds draw alike for every model. KL is measured where sampling is (temperature above 0) and the two models
    share their token ids.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    numbers = list(range(rank, len(prompts), ranks))
    mine = [prompts[n] for n in numbers]
    draws = Draws.of(config, runtime.token_budget, numbers)
    with accelerator.autocast():
        completions = answered(speaker.policy, speaker.format, mine, draws, speaker.episodes)
        kl = _kl(speaker, reference, completions, config, runtime)
    scores = _scores(rewards, completions)
    found = [
        Answer(
            prompt=numbers[n // config.samples],
            sample=n % config.samples,
            text=completion.response.content,
            reasoning=completion.response.reasoning,
            finished=completion.finished,
            ids=completion.ids,
            kl=kl[n],
            scores=scores[n],
            **({} if speaker.episodes is None else _episode(completion)),
        )
        for n, completion in enumerate(completions)
    ]
    gathered: list[Answer] = gather_object(found)
    return sorted(gathered, key=lambda one: (one.prompt, one.sample))


def _kl(
    speaker: Speaker,
    reference: Speaker | None,
    completions: Sequence[Completion],
    config: EvaluateConfig,
    runtime: RuntimeOptions,
) -> list[float] | list[None]:
    if reference is None or config.temperature == 0 or not comparable(speaker, reference):
        return [None] * len(completions)
    if reference is speaker:
        return [0.0] * len(completions)
    logps = [
        log_probabilities(one.policy, _sequences(one, completions), runtime.token_budget, config.temperature)
        for one in (speaker, reference)
    ]
    return (logps[0] - logps[1]).tolist()


def comparable(speaker: Speaker, reference: Speaker) -> bool:
    """Whether the same ids are the same tokens for both models."""
    return speaker.format.tokenizer.get_vocab() == reference.format.tokenizer.get_vocab()


def _episode(completion: Completion) -> dict[str, Any]:
    """What an answer holds of its turns."""
    turns = [turn.model_dump(mode="json", exclude_none=True) for turn in (*completion.turns, completion.response)]
    return {"turns": turns, "counts": counted(completion)}


def _sequences(speaker: Speaker, completions: Sequence[Completion]) -> list[TokenSequence]:
    """The sampled ids after the prompt, and between the replies, as this model is given them; only they count."""
    contexts = speaker.format.prompts([(one.prompt, one.tools) for one in completions])
    return [
        TokenSequence(*spoken(context, _as_given(one, speaker.format)))
        for context, one in zip(contexts, completions, strict=True)
    ]


def _as_given(completion: Completion, format: ChatFormat) -> Completion:
    """The completion with what stands between its turns as this format prints it."""
    turns = completion.turns
    ends = [n for n in range(1, len(turns) + 1) if n == len(turns) or turns[n].role == "assistant"]
    inserted = [
        (place, tuple(between(format, completion.prompt, turns[:end], completion.tools)[1]))
        for (place, _), end in zip(completion.inserted, ends, strict=True)
    ]
    return completion.model_copy(update={"inserted": tuple(inserted)})


def _scores(rewards: Mapping[str, Reward], completions: list[Completion]) -> list[dict[str, float]]:
    result: list[dict[str, float]] = [{} for _ in completions]
    for name, reward in rewards.items():
        if not completions:
            break
        scores = valued(completions, reward, name)
        columns = {name: scores.whole, **{f"{name}/{part}": values for part, values in scores.parts.items()}}
        for column, values in columns.items():
            for scored, value in zip(result, values, strict=True):
                assert value is not None, "EvaluateConfig takes no reward that skips"
                scored[column] = float(value)
    return result
