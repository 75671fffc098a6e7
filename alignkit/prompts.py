"""The prompts that a stage samples from: those that leave room for an answer. It knows no model and no algorithm."""

import logging
from collections import Counter
from collections.abc import Sequence

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.data.placed import place_of, placed
from alignkit.environment.seam import announced
from alignkit.models import known_positions
from alignkit.options.critique import CritiqueConfig
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.ppo import PpoConfig
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Prompt
from alignkit.runs import Run

logger = logging.getLogger(__name__)


def fitting(
    prompts: Sequence[Prompt],
    formats: Sequence[ChatFormat],
    config: PpoConfig | EvaluateConfig | SampleConfig | CritiqueConfig,
    budget: int,
    more: int = 0,
) -> list[Prompt]:
    """The prompts that leave room for max_new_tokens, and `more` tokens, in each of `formats`: within data.max_length
    and what its model has positions for.

    Raises InputError for one that does not, where over_long is not `skip`; where none is left; and where one may
    exceed the token budget with its completion: runtime options must not change a result.
    """
    known = [known_positions(format.tokenizer.name_or_path) for format in formats]
    limit = min([config.data.max_length, *(positions for positions in known if positions is not None)])
    bounds = "data.max_length" if limit == config.data.max_length else "the model's positions:"
    room = limit - config.max_new_tokens - more

    def lengths_of(some: Sequence[Prompt]) -> list[int]:
        conversations = [(prompt.messages, prompt.tools) for prompt in some]
        contexts = zip(*(format.prompts(conversations) for format in formats), strict=True)
        return [max(len(context) for context in of_prompt) for of_prompt in contexts]

    lengths = placed(config.data, prompts, lengths_of)
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= room]
    if len(kept) < len(prompts):
        over = next(n for n, length in enumerate(lengths) if length > room)
        skip = config.data.over_long == "skip"
        told = f"{len(prompts) - len(kept)} of {len(prompts)} prompts leave no room for max_new_tokens"
        told = f"{bounds} {limit}: {told} {config.max_new_tokens}"
        told += f" and {more} tokens of turns before it" if more else ""
        if not kept or not skip:
            way = "Raise data.max_length" if limit == config.data.max_length else "Lower max_new_tokens"
            way += "" if skip else ", or set data.over_long: skip"
            first = place_of(config.data, prompts[over]) or repr(prompts[over].messages[-1].content[:60])
            raise InputError(f"{told}; the first, {first}, has {lengths[over]} tokens. {way}")
        logger.warning(f"{told}: skipped")
    longest = max((length for length in lengths if length <= room), default=0) + more + config.max_new_tokens
    if longest > budget:
        raise InputError(
            f"runtime.token_budget: {budget} is less than a prompt and its completion, {longest} tokens; raise it, or "
            "lower data.max_length or max_new_tokens"
        )
    return kept


def load_prompts(
    config: SampleConfig | CritiqueConfig, format: ChatFormat, run: Run, runtime: RuntimeOptions, more: int = 0
) -> tuple[list[Prompt], int]:
    """The prompts of a stage that writes data, with the tools of its environment, and how many were skipped for their
    length; sources go on the record.

    Ids that several of them have are taken off, since what is written has them again. Raises InputError.
    """
    given, _, sources = load_data(config.data, Prompt, config.seed)
    run.add_data(sources)
    if isinstance(config, SampleConfig) and config.environment is not None:
        given, more = announced(given, config.environment, runtime.allow_code), config.environment.max_tokens
    prompts = fitting(given, [format], config, runtime.token_budget, more)
    return unique(prompts), len(given) - len(prompts)


def unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without the ids that several of them have."""
    ids = Counter(prompt.id for prompt in prompts)
    return [prompt if ids[prompt.id] == 1 else prompt.model_copy(update={"id": None}) for prompt in prompts]
