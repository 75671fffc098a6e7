"""What recipes/*.py do: run one type of stage of a recipe, or all of it. It knows no algorithm."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from alignkit.config import InputError
from alignkit.display import describe
from alignkit.options import STAGES
from alignkit.options.shared import RuntimeOptions
from alignkit.recipe.drive import guarded, run_recipe
from alignkit.recipe.read import RecipeFile, load_recipe


def launch(stage: str | None, default: Path, arguments: list[str] | None = None) -> NoReturn:
    """The launcher of a type of stage; None: of whole chains. Grammar: [RECIPE] [key=value ...] [--allow-code].

    Without a recipe it is `default`. What the stage builds on is built first. Under `accelerate launch` with
    several processes, the first one drives the chain, and each stage gets that many processes of its own.
    """
    guarded(lambda: _launch(stage, default, sys.argv[1:] if arguments is None else arguments))


def _launch(stage: str | None, default: Path, arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(help_of(stage, default))
        return
    if int(os.environ.get("RANK", "0")) > 0:
        return
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise InputError("a launcher drives one machine; start it on one, without --num_machines")
    flags = [argument for argument in arguments if argument.startswith("-")]
    if unknown := set(flags) - {"--allow-code"}:
        raise InputError(f"unknown option {', '.join(sorted(unknown))}; options of the stage are given as key=value")
    recipes = [argument for argument in arguments if "=" not in argument and argument not in flags]
    if len(recipes) > 1:
        raise InputError(f"one recipe at a time, not {' and '.join(recipes)}; options are given as key=value")
    path = Path(recipes[0]) if recipes else default
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    overrides = [f"runtime.processes={processes}"] if processes > 1 else []
    given = [argument for argument in arguments if "=" in argument and argument not in flags]
    names = None if stage is None else _stages_of(path, stage)
    for one in given:
        overrides += [one] if names is None else _placed(one, stage or "", names)
    run_recipe(path, overrides, names, allow_code=bool(flags))


def _stages_of(path: Path, kind: str) -> list[str]:
    """The recipe's stages of a type, by name. Raises InputError where it has none."""
    names = [stage.name for stage in load_recipe(path).stages.values() if stage.type == kind]
    if not names:
        raise InputError(f"{path} has no {kind} stage")
    return names


def _placed(override: str, kind: str, names: list[str]) -> list[str]:
    """A key of the stage's own options is meant for it; anything else as `alignkit run` takes it."""
    first = override.partition("=")[0].split(".")[0]
    if first in STAGES[kind].model_fields and first not in RecipeFile.model_fields:
        return [f"{name}.{override}" for name in names]
    return [override]


def help_of(stage: str | None, default: Path) -> str:
    """The text of --help: the grammar, then every option with its description."""
    script = "run" if stage is None else stage
    lines = [f"usage: [accelerate launch] recipes/{script}.py [RECIPE] [key=value ...] [--allow-code]", ""]
    if stage is None:
        lines += [f"Runs a recipe's chain; without one, {default.name}. Keys: stage.key=value."]
        lines += [f"  {name}: {config.__doc__}" for name, config in STAGES.items()]
    else:
        lines += [STAGES[stage].__doc__ or "", "", f"Without a recipe: the stage of {default.name}, and"]
        lines += ["what it builds on. Options (key=value):", *_options(list(describe(STAGES[stage])))]
    runtime = list(describe(RuntimeOptions, "runtime."))
    return "\n".join([*lines, "", "How it is executed:", *_options(runtime)])


def _options(described: list[tuple[str, str, str, str]]) -> list[str]:
    lines: list[str] = []
    for name, kind, default, description in described:
        lines += [f"  {name}: {kind}" + (f" = {default}" if default else ""), f"      {' '.join(description.split())}"]
    return lines
