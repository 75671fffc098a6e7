"""The command `alignkit`: run, check, show, report, chat, data. It decides and prints; only a model imports torch.

Exit codes: 0 done, 1 failed, 2 the user's input is wrong.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from alignkit.cli_data import data
from alignkit.config import InputError, build
from alignkit.display import artifact_of, number, print_json, print_table, runs_table
from alignkit.lineage import read_record
from alignkit.marks import parse_yaml
from alignkit.options.environment import EnvironmentOptions
from alignkit.recipe import load_recipe, plan
from alignkit.recipe.drive import RUNS, as_rows, guarded, print_results, run_recipe

app = typer.Typer(
    help="RLHF from a pretrained checkpoint to an assistant: recipes, their runs, and the models they leave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="stage.key=value", help="Options set for this run.")]
Runs = Annotated[Path, typer.Option(help="The folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
AllowCode = Annotated[bool, typer.Option(help="Run Python functions named as rewards, tools or environments.")]


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option(help="A stage to bring up to date; repeatable.")] = None,
    runs: Runs = RUNS,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Bring a recipe's stages up to date: what is done is skipped, what changed is run, what was killed goes on."""
    run_recipe(recipe, overrides or [], only, runs, allow_code, as_json)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe, the data it reads, and the tokens made of them. Loads no weights, writes no run."""
    steps = plan(load_recipe(recipe, overrides or [], allow_code=allow_code), runs)
    checks = import_module("alignkit.recipe.check")  # imports transformers
    found = list(checks.check_steps(steps))
    if as_json:
        print_json([vars(one) | {"state": step.state} for one, step in zip(found, steps, strict=True)])
        return
    rows = [
        [
            one.stage,
            step.state,
            number(one.records),
            number(one.tokens),
            number(one.longest),
            number(one.left_out),
            one.note,
        ]
        for one, step in zip(found, steps, strict=True)
    ]
    print_table(["stage", "state", "records", "tokens", "longest", "left out", ""], rows)
    print("The recipe, its data and its tokens are in order.")


@app.command()
def show(
    what: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE|FOLDER]", help="A recipe, or a folder of runs; all runs if left out."),
    ] = None,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """List the runs of a recipe with their state and metrics."""
    if what is not None and what.is_file():
        steps = plan(load_recipe(what, overrides or [], allow_code=True), runs)
        if as_json:
            print_json(as_rows(steps))
        else:
            runs_table([(step.stage.name, step.state, step.record) for step in steps])
            for step in steps:
                if step.state == "done" and step.stage.type == "evaluate":
                    print_results(step)
        return
    folder = runs if what is None else what
    if not folder.is_dir():
        raise InputError(f"{folder}: there is neither a recipe nor a folder of runs")
    found = [(path.parent, read_record(path.parent)) for path in sorted(folder.rglob("run.json"))]
    if as_json:
        print_json([{"directory": place, **record.model_dump(mode="json")} for place, record in found if record])
    else:
        runs_table(
            [(str(place.relative_to(folder)), record.status if record else "", record) for place, record in found]
        )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A recipe's folder of runs: runs/quickstart.")],
) -> None:
    """Write a recipe's report.html again, whatever state its runs are in."""
    print(import_module("alignkit.report").write_report(folder))  # imports matplotlib


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="A run (runs/quickstart/ppo) or a model's folder.")],
    prompt: Annotated[str | None, typer.Option(help="Ask this one thing and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.7,
    seed: int = 0,
    environment: Annotated[
        str | None,
        typer.Option(metavar="YAML", help='Answers its turns, such as "{kind: tools, tools: \\[calculator]}".'),
    ] = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Talk to a model; an empty line or Ctrl-D ends it."""
    folder = artifact_of(model, read_record(model) if model.is_dir() else None)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no model, which is a folder; `alignkit show` lists the runs there are")
    talk = import_module("alignkit.talk")  # imports torch
    conversation = talk.open_conversation(
        str(folder), system, max_new_tokens, temperature, seed, _environment(environment), allow_code
    )
    if prompt is None:
        while text := _ask():
            print(*talk.lines(conversation.answer(text)), sep="\n", flush=True)
        return
    completion = conversation.answer(prompt)
    if as_json:
        turns = [turn.model_dump(mode="json", exclude_none=True) for turn in completion.turns]
        told = {} if environment is None else {"turns": turns}
        print_json({"response": completion.response.content, "finished": completion.finished, **told})
    else:
        print(*talk.lines(completion), sep="\n")


def _environment(text: str | None) -> EnvironmentOptions | None:
    if text is None:
        return None
    given = parse_yaml(text, "--environment")
    if not isinstance(given, Mapping):
        raise InputError(f"--environment: {text!r} is no mapping, such as {{kind: tools, tools: [calculator]}}")
    return build(EnvironmentOptions, given, "environment")


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


@app.command(hidden=True)
def stage(directory: Path) -> None:
    """Run the stage prepared in a directory: what `run` starts as a process of its own."""
    raise typer.Exit(import_module("alignkit.recipe.child").run_prepared(directory))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command's entry point."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that nothing here asks for
    guarded(lambda: app(args=None if arguments is None else list(arguments), standalone_mode=True))
