"""The commands `alignkit data clean`, `dedup`, `split`, `mix`: they ask, show, end with a code. They know no step."""

import errno
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.config import Config, InputError, Node, apply_overrides, build, load_yaml
from alignkit.display import counting, describe, number, print_json, print_not_read, print_table
from alignkit.options.corpus import CleanOptions, DedupOptions, MixOptions, SplitOptions

SHOWN = 12
"""Reasons that the terminal shows; the report has all."""
WIDTH = 88
"""Characters of a sample in the terminal."""

Source = Annotated[str, typer.Argument(help="A file, a folder of files, or the name of a data set on a hub.")]
Out = Annotated[Path, typer.Argument(help="The JSONL file to write.")]
Given = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options, listed below.")]
As = Annotated[
    str | None,
    typer.Option(
        "--as", help="demonstrations, comparisons, prompts, corpus or feedback; left out, the first row tells."
    ),
]
Format = Annotated[str, typer.Option(help="The form of the rows; auto recognises it row by row.")]
File = Annotated[Path | None, typer.Option("--config", help="A YAML file of the options.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def clean(
    source: Source, out: Out, given: Given = None, as_: As = None, format: Format = "auto", config: File = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Clean records: HTML, Unicode, personal data, languages, rules for web text. What goes is listed with reasons."""
    _run("clean", "clean", CleanOptions, source, out, given, as_, format, config, as_json)


def dedup(
    source: Source, out: Out, given: Given = None, as_: As = None, format: Format = "auto", config: File = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Remove equal records, near duplicates, and what overlaps with evaluation data."""
    _run("dedup", "dedup", DedupOptions, source, out, given, as_, format, config, as_json)


def split(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The folder to write <part>.jsonl in.")],
    given: Given = None, as_: As = None, format: Format = "auto", config: File = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Divide records into train, validation and test; a prompt is never on two sides."""
    _run("split", "divide", SplitOptions, source, out, given, as_, format, config, as_json)


def mix(
    out: Out, given: Given = None, as_: As = None, config: File = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Mix records of several sources by their shares, in one seeded order."""
    chosen, work = _prepare("mix", "mix", MixOptions, given, config)
    mixed = _guarded(out, lambda tell: work(out, as_, chosen, tell))
    if mixed is not None and as_json:
        print_json(mixed.model_dump())
    elif mixed is not None:
        names = ["rows", "rejected", "records", "drawn", "left_out"]
        rows = [[one.name, *(number(getattr(one, name)) for name in names)] for one in mixed.sources]
        shares = [f"{one.drawn / mixed.records:.2%}" for one in mixed.sources]
        print_table(["source", *names, "share"], [[*row, share] for row, share in zip(rows, shares, strict=True)])
        print(f"{mixed.records:,} records: {mixed.out}")


def _run(
    command: str, module: str, options: type[Config], source: str, out: Path, given: list[str] | None,
    as_: str | None, format: str, config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    chosen, work = _prepare(command, module, options, given, config)
    outcome = _guarded(out, lambda tell: work(source, out, as_, format, chosen, tell))
    if outcome is not None and as_json:
        print_json(outcome.model_dump())
    elif outcome is not None:
        _show(outcome)


def _prepare(
    command: str, module: str, options: type[Config], given: list[str] | None, config: Path | None
) -> tuple[Any, Callable[..., Any]]:
    """The options as given, and the function that does the work."""
    chosen = build(
        options, apply_overrides(load_yaml(config) if config else Node(mark="command line"), given or []), ""
    )
    os.environ["TQDM_DISABLE"] = "1"  # read when datatrove is imported, here and in the workers
    try:
        return chosen, vars(import_module(f"alignkit.data.corpus.{module}"))[command]
    except ImportError as error:
        raise InputError(
            f"`alignkit data {command}` needs datatrove: pip install 'alignkit[data]' ({error})"
        ) from error


def _guarded(out: Path, work: Callable[[Any], Any]) -> Any:
    """What the work returns; None, said, where it was only submitted."""
    try:
        with counting("shards") as tell:
            done = work(tell)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        said = f"{out}: cannot be written: {error.strerror}. Make room, or write elsewhere" if full else str(error)
        typer.echo(f"error: {said}", err=True)
        typer.echo("Nothing was written; the same command goes on where it stood.", err=True)
        raise typer.Exit(1) from error
    if done is None:
        print(f"Submitted. The last job writes {out} and its report.")
    return done


def _show(done: Any) -> None:
    speed = done.bytes / 1e6 / max(done.seconds, 1e-9)
    print(f"{done.source}: {done.rows:,} rows ({done.as_}), {done.seconds:,.0f} s, {speed:.1f} MB/s")
    names = ["rows", "rejected", "records", "removed", "kept"]
    print_table(names, [[number(getattr(done, name)) for name in names]])
    counted = [
        ("changed by", done.changed),
        ("masked", done.masked),
        ("records", done.parts if len(done.parts) > 1 else {}),
    ]
    for title, counts in counted:
        if counts:
            print()
            print_table(
                [title, ""], [[name, number(count)] for name, count in sorted(counts.items(), key=lambda one: -one[1])]
            )
    if done.tags:
        print()
        rows = [[tag.step, tag.reason, number(tag.records), f"{tag.records / done.records:.2%}"] for tag in done.tags]
        print_table(["removed by", "reason", "records", "share"], rows[:SHOWN])
        for tag in done.tags[:SHOWN]:
            _sample(tag)
        print(f"All of them, with their reasons: {done.removed_file}")
    print_not_read(done.ignored)
    if done.rejects_file:
        print(f"Rows that hold no record: {done.rejects_file}")
    print(f"{done.kept:,} records: {', '.join(done.parts)}")


def _sample(tag: Any) -> None:
    for sample in tag.samples[:1]:
        print(
            f"\n{tag.step}, {tag.reason}: {sample['file']}:{sample['line']}"
            + (f" ({sample['found']})" if sample["found"] else "")
        )
        print(f"  {sample['text'][:WIDTH]}")
        if "like" in sample:
            print(f"  kept: {sample['like'][:WIDTH]}")


def epilog_of(options: type[Config]) -> str:
    """A command's options by name, for its --help."""
    described = [(name, kind, default, " ".join(text.split())) for name, kind, default, text in describe(options)]
    lines = [
        f"{name}: {kind}" + (f" = {default}" if default else "") + f" · {text}"
        for name, kind, default, text in described
    ]
    return "\n\n".join(["Options (KEY=VALUE):", *lines])


COMMANDS = ((clean, CleanOptions), (dedup, DedupOptions), (split, SplitOptions), (mix, MixOptions))
"""Each command with its options."""
