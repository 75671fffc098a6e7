"""The command `alignkit data`, with import its own: asks, shows, ends with a code. Knows not how data is read."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit import cli_check, cli_corpus
from alignkit.cli_tokenizer import tokenizer
from alignkit.display import counting, number, print_json, print_not_read, print_table

data = typer.Typer(help="Data: import, check, clean, deduplicate, split, mix; tokenizers.", no_args_is_help=True)
data.add_typer(tokenizer, name="tokenizer")

MOST_FILES, MOST_REASONS = 20, 20
"""Lines of the tables in a terminal; `--json` has all."""


@data.callback()
def _group() -> None:
    """Data: import, check, clean, deduplicate, split, mix; tokenizers."""


@data.command(name="import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, a folder of files, or the name of a data set on a hub.")],
    out: Annotated[Path, typer.Argument(help="The JSONL file to write.")],
    as_: Annotated[
        str, typer.Option("--as", help="demonstrations, comparisons, prompts, corpus or feedback.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help="The form of the rows; auto recognises it row by row.")] = "auto",
    split: Annotated[
        str | None, typer.Option(help="A folder's files whose names begin so, or a hub's split (train).")
    ] = None,
    config: Annotated[str | None, typer.Option(help="A part of a data set on a hub.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first row that cannot be read.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Import data as records: each row is read, or listed with its reason in OUT's .rejects.jsonl."""
    importing = import_module("alignkit.data.importing")
    if as_ not in importing.KINDS:
        raise typer.BadParameter(f"{as_!r}: give one of {', '.join(importing.KINDS)}", param_hint="--as")
    try:
        with counting() as tell:
            done = importing.import_data(
                source, out, as_, format=format, split=split, config=config, strict=strict, tell=tell
            )
    except OSError as error:
        typer.echo(
            f"error: {out}: cannot be written: {error.strerror or error}. Make room, or write elsewhere", err=True
        )
        typer.echo(f"{out} is as it was; the same command goes on.", err=True)
        raise typer.Exit(1) from error
    if as_json:
        print_json(vars(done) | {"files": [vars(one) for one in done.files], "total": vars(done.total)})
    else:
        _show(done)


def _show(done: Any) -> None:
    total = done.total
    columns = ["file", "rows", "imported", "rejected", "records", "form"]
    lines = [
        [one.file, *map(number, (one.rows, one.imported, one.rejected, one.records)), ", ".join(one.forms)]
        for one in [*done.files[:MOST_FILES], *([total] if len(done.files) > 1 else [])]
    ]
    print_table(columns, lines)
    if len(done.files) > MOST_FILES:
        print(f"({len(done.files) - MOST_FILES:,} more files; --json lists all)")
    if total.several:
        print(f"{total.several:,} rows gave several records each.")
    if total.renamed:
        print(f"{total.renamed:,} ids stood in an earlier file too: they carry their own file's name before them.")
    if total.reasons:
        print()
        reasons = sorted(total.reasons.items(), key=lambda one: -one[1])
        print_table(["rejected", "reason"], [[number(count), reason] for reason, count in reasons[:MOST_REASONS]])
        if len(reasons) > MOST_REASONS:
            print(f"({len(reasons) - MOST_REASONS:,} more reasons; --json lists all)")
        print(f"Each of them, with its line: {done.rejects}")
    print_not_read(done.ignored)
    print(f"{total.records:,} records: {done.out}")


data.command()(cli_check.check)
for _command, _options in cli_corpus.COMMANDS:
    data.command(epilog=cli_corpus.epilog_of(_options))(_command)
