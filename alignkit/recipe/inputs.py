"""Finds what a stage will read, also before it is made: folders of data, and the chat formats of models.

It checks no record, and knows neither rewards nor what a stage does.
"""

from collections.abc import Mapping

from alignkit.chat import ChatFormat
from alignkit.data.load import places_of
from alignkit.evaluation.answers import open_format
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.mixture import MixedDataOptions
from alignkit.options.shared import DataOptions, ModelOptions
from alignkit.prepare import load_format
from alignkit.recipe.artifacts import REFERENCE
from alignkit.recipe.chain import Step
from alignkit.recipe.hub import tokenizer_folder
from alignkit.recipe.identity import existing

SPOKEN = ("chat_template", "eos_token", "template_kwargs")
"""The options of a model that say how it is spoken to from then on."""


def data_of(data: DataOptions | None, steps: Mapping[str, Step]) -> DataOptions | None:
    """The options with the folders of what earlier stages have made; None where one is not made yet."""
    if data is None:
        return None
    places = [_folder_of(place.path, steps) for place in places_of(data)]
    if any(path is None and place.path is not None for path, place in zip(places, places_of(data), strict=True)):
        return None
    if isinstance(data, MixedDataOptions) and data.sources is not None:
        sources = [place.model_copy(update={"path": p}) for place, p in zip(data.sources, places, strict=True)]
        return data.model_copy(update={"sources": sources})
    return data.model_copy(update={"path": places[0]})


def _folder_of(path: str | None, steps: Mapping[str, Step]) -> str | None:
    reference = REFERENCE.fullmatch(path) if path is not None else None
    if reference is None:
        return path
    made = steps[reference[1]]
    return None if made.state != "done" or made.record is None else str(made.directory / made.record.artifact)


def formats_of(step: Step, steps: Mapping[str, Step]) -> list[ChatFormat | None]:
    """The formats that the stage's models will have; None for one whose tokenizer is not made yet."""
    config = step.stage.config
    if isinstance(config, EvaluateConfig):
        asked = [ModelOptions(path=path) for path in config.models]
    else:
        asked = [vars(config)["model"]]
    return [made and _format(made, step) for made in (_made(options, steps) for options in asked)]


def _format(made: ModelOptions, step: Step) -> ChatFormat:
    config, stage = step.stage.config, step.stage
    mark = stage.mark("models") if isinstance(config, EvaluateConfig) else stage.mark("model", "path")
    folder = made.path if existing(made.path) else tokenizer_folder(made.path, mark)
    if isinstance(config, EvaluateConfig) and not any(getattr(made, key) for key in SPOKEN):
        return open_format(folder, config)
    return load_format(made.model_copy(update={"path": folder}))


def _made(options: ModelOptions, steps: Mapping[str, Step]) -> ModelOptions | None:
    """The options with a path where the tokenizer lies: the artifact's, or, where that is not made yet, the one it
    will be made from, spoken to as the stages in between say. None where the tokenizer is not made yet."""
    while reference := REFERENCE.fullmatch(options.path):
        parent = steps[reference[1]]
        if parent.state == "done" and parent.record is not None:
            return options.model_copy(update={"path": str(parent.directory / parent.record.artifact)})
        inner = getattr(parent.stage.config, "model", None)
        if not isinstance(inner, ModelOptions):
            return None
        spoken = {key: getattr(options, key) or getattr(inner, key) for key in SPOKEN}
        options = options.model_copy(update={"path": inner.path, **spoken})
    return options
