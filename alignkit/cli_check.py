"""The command `alignkit data check`: asks, shows a report, ends with a code. Does not know what is measured.

Exit codes: 0 done; 1 the page cannot be written; 2 the input is wrong, or, with --strict, a problem or a warning was
found that is not ignored.
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from alignkit.config import InputError
from alignkit.display import console, counting, number, print_json, print_table

STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold blue", "fine": "green"}
MOST_SAMPLES = 2
"""Of a finding in a terminal; the page and `--json` have all."""
WIDEST = 100
"""Columns of text: longer lines are hard to read."""


def check(
    source: Annotated[str, typer.Argument(help="A file, a folder of files, or the name of a data set on a hub.")],
    as_: Annotated[
        str | None,
        typer.Option("--as", help="demonstrations, comparisons, prompts, corpus or feedback; else recognised."),
    ] = None,
    format: Annotated[str, typer.Option(help="The form of the rows; auto recognises it row by row.")] = "auto",
    split: Annotated[
        str | None, typer.Option(help="A folder's files whose names begin so, or a hub's split (train).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model's folder or hub name: count its tokens, render by its template.")
    ] = None,
    chat_template: Annotated[str | None, typer.Option(help="chatml, none or a .jinja file, for --model.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="The longest sequence, in tokens of --model.")] = None,
    token_records: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Records to render: a sample where there are more (2000).")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="A test set that must share nothing; repeatable.")
    ] = None,
    personal: Annotated[bool, typer.Option(help="Look for personal data.")] = True,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page, too.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with 2 where a problem or a warning is found.")
    ] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A finding that --strict accepts; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Check a data set: what is in it, what that does to training, and what mends it."""
    checking = import_module("alignkit.data.checking")
    if as_ is not None and as_ not in checking.KINDS:
        raise typer.BadParameter(f"{as_!r}: give one of {', '.join(checking.KINDS)}", param_hint="--as")
    if html is not None and html.is_dir():
        raise InputError(f"--html {html}: is a folder; name the file that is to be written in it")
    for name in ignore or ():
        if name not in checking.NAMES:
            raise InputError(f"--ignore {name}: there is no such finding; give one of {', '.join(checking.NAMES)}")
    asked = checking.Asked(model, chat_template, max_length, token_records, tuple(against or ()), personal)
    with counting() as tell:
        report = checking.check_data(source, as_, format=format, split=split, asked=asked, tell=tell)
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    if html is not None:
        _write(report, html)
        if not as_json:
            print(f"\nThe same as a page, with charts: {html}")
    failed = [one.name for one in report.findings if one.severity in ("problem", "warning")]
    failed = [name for name in failed if name not in (ignore or ())]
    if strict and failed:
        typer.echo(f"error: --strict: {', '.join(failed)}", err=True)
        raise typer.Exit(2)


def _write(report: Any, html: Path) -> None:
    try:
        import_module("alignkit.report.data_page").write_page(report, html)  # imports matplotlib
    except OSError as error:
        typer.echo(f"error: {html}: cannot be written: {error.strerror or error}", err=True)
        raise typer.Exit(1) from error


def _show(report: Any) -> None:
    out = console()
    rows = f"{report.rows:,} row{'s' * (report.rows != 1)} in {report.files} file{'s' * (report.files != 1)}"
    print(f"{report.source}: {report.records:,} {report.as_} of {rows}\n")
    print_table(
        ["length", "unit", "texts", "total", "min", "median", "95 %", "max"],
        [
            [one.part, one.unit, *map(number, (one.count, one.total, one.min, one.median, one.p95, one.max))]
            for one in report.lengths
        ],
    )
    for one in report.findings:
        if one.severity != "fine":
            _show_finding(out, one)
    good = [one for one in report.findings if one.severity == "fine"]
    if good:
        out.print(Text("\nin order", STYLES["fine"]))
        for one in good:
            _print(out, Text(one.measured), 2)


def _show_finding(out: Console, one: Any) -> None:
    out.print()
    _print(out, Text.assemble((one.severity, STYLES[one.severity]), (f"  {one.name}", "bold")), 0)
    _print(out, Text(one.measured), 2)
    for line in one.details:
        _print(out, Text(line), 4)
    if one.effect:
        _print(out, Text(one.effect), 2)
    if one.mend:
        _print(out, Text(f"→ {one.mend}", "cyan"), 2)
    for sample in one.samples[:MOST_SAMPLES]:
        _print(out, Text(sample.place, "dim"), 4)
        for text in sample.texts:
            _print(out, Text(text, no_wrap=True, overflow="ellipsis"), 6)


def _print(out: Console, text: Text, indent: int) -> None:
    out.print(Padding(text, (0, 0, 0, indent)), width=min(out.width, WIDEST))
