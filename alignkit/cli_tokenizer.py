"""The commands `alignkit data tokenizer`: train, compare, extend. They ask and show; they do not know tokens."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.display import counting, number, print_json, print_table

tokenizer = typer.Typer(help="Tokenizers: trained, compared, and given more tokens.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A file, a folder of files, or the name of a data set on a hub.")]
As = Annotated[
    str | None,
    typer.Option("--as", help="What the rows are: demonstrations, comparisons, prompts, corpus or feedback."),
]
Format = Annotated[str, typer.Option(help="The form of the rows; auto recognises it row by row.")]
Split = Annotated[str | None, typer.Option(help="A folder's files whose names begin so, or a hub's split (train).")]
Texts = Annotated[int | None, typer.Option(min=1, help="Take a sample of so many texts.")]
Megabytes = Annotated[float | None, typer.Option(help="Take a sample of so many megabytes of text.")]
Seed = Annotated[int, typer.Option(help="Chooses the sample.")]
ChatTemplate = Annotated[
    str | None, typer.Option(help="chatml, none (plain text that ends in EOS) or a .jinja file.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
LEARN_MEGABYTES = 100.0
"""The sample of `extend --learn` where none is asked for."""


@tokenizer.callback()
def _group() -> None:
    """Tokenizers: trained, compared, and given more tokens."""


@tokenizer.command()
def train(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The folder to write, which AutoTokenizer reads.")],
    vocabulary: Annotated[int, typer.Option(help="The largest number of tokens, special ones included.")],
    kind: Annotated[
        str, typer.Option(help="bpe or unigram (both of bytes, without loss), word or character.")
    ] = "bpe",
    special: Annotated[list[str] | None, typer.Option(help="One more special token; repeatable.")] = None,
    chat_template: ChatTemplate = None,
    as_: As = None,
    format: Format = "auto",
    split: Split = None,
    texts: Texts = None,
    megabytes: Megabytes = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on the texts of a source, read as a stream, or on a sample of them."""
    files = import_module("alignkit.data.tokenizer_files")
    with counting() as tell:
        stream = _stream(source, as_, format, split, tell)
        done = files.train_to_folder(
            stream, out, kind, vocabulary, special or [], chat_template, texts, megabytes, seed
        )
    if as_json:
        print_json({"out": str(out), "rows": stream.rows, "unread": stream.unread, **vars(done)})
        return
    _say_unread(stream)
    print(f"{done.tokens:,} tokens from {done.texts:,} texts of {done.bytes / 1e6:,.2f} MB: {out}")
    if done.tokens < vocabulary:
        print(f"({vocabulary:,} were asked for; the texts give no more.)")


@tokenizer.command()
def compare(
    tokenizers: Annotated[list[str], typer.Argument(help="Folders or hub names of tokenizers.")],
    on: Annotated[str, typer.Option("--on", help="The source of the texts, as for `train`.", show_default=False)],
    as_: As = None,
    format: Format = "auto",
    split: Split = None,
    texts: Texts = None,
    megabytes: Megabytes = 1.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare tokenizers on a sample of one's own texts."""
    models = import_module("alignkit.models")
    comparison = import_module("alignkit.data.tokenizer_comparison")
    streams = import_module("alignkit.data.text_stream")
    opened = [models.load_tokenizer(name, "TOKENIZER") for name in tokenizers]
    with counting() as tell:
        stream = _stream(on, as_, format, split, tell)
        sample = list(streams.sample_texts(stream, texts, megabytes, seed))
        found = [comparison.measure(one, sample) for one in opened]
    size = sum(len(text.encode()) for text in sample)
    if as_json:
        rows = [{"tokenizer": name, **vars(one)} for name, one in zip(tokenizers, found, strict=True)]
        print_json({"texts": len(sample), "bytes": size, "seed": seed, "tokenizers": rows})
        return
    _say_unread(stream)
    columns = ["tokenizer", "tokens", "bytes/token", "tokens/word", "whole", "unknown", "lossless", "tokens/s"]
    lines = [[name, *_cells(one)] for name, one in zip(tokenizers, found, strict=True)]
    print_table(columns, lines)
    print(f"On {len(sample):,} texts, {size / 1e6:,.2f} MB, of {on} (seed {seed}).")
    print("A word is a run of letters and digits. whole: words that are one known token; lossless: texts that decode")
    print("to what they were.")


@tokenizer.command()
def extend(
    model: Annotated[str, typer.Argument(help="A language model's folder or hub name.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, which from_pretrained reads.")],
    tokens: Annotated[
        list[str] | None, typer.Option(help="A token, or a .txt file with one on each line; repeatable.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help="A tokenizer whose tokens are to be added.")] = None,
    learn: Annotated[
        str | None, typer.Option(help="A source, as for `train`, to learn new tokens from, or from 100 MB of it.")
    ] = None,
    add: Annotated[int | None, typer.Option(min=1, help="The most tokens to learn.", show_default=False)] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token; repeatable.")] = None,
    chat_template: ChatTemplate = None,
    pad_to_multiple_of: Annotated[int | None, typer.Option(min=1, help="Round the embeddings' rows up to it.")] = None,
    as_: As = None,
    format: Format = "auto",
    split: Split = None,
    texts: Texts = None,
    megabytes: Megabytes = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Add tokens to a checkpoint, with embeddings made of those of the pieces that they replace."""
    _refuse_half(learn, add, {"--as": as_, "--split": split, "--texts": texts, "--megabytes": megabytes})
    if learn is not None and megabytes is None:
        megabytes = LEARN_MEGABYTES
    if not (tokens or from_ or learn or special or chat_template or pad_to_multiple_of):
        raise typer.BadParameter("give --tokens, --from, --learn, --special or --chat-template", param_hint="extend")
    import_module("transformers").utils.logging.disable_progress_bar()
    vocabularies = import_module("alignkit.vocabulary")
    streams = import_module("alignkit.data.text_stream")
    with counting() as tell:
        stream = _stream(learn, as_, format, split, tell) if learn else None
        done = vocabularies.extend_checkpoint(
            model,
            out,
            tokens=[one for name in tokens or () for one in _listed(name)],
            donor=from_,
            learn=streams.sample_texts(stream, texts, megabytes, seed) if stream else None,
            add=add or 0,
            special=special or [],
            chat_template=chat_template,
            pad_to_multiple_of=pad_to_multiple_of,
        )
    if as_json:
        print_json({"out": str(out), **vars(done)})
        return
    if stream:
        _say_unread(stream)
    kinds = [(done.merged, "by merges"), (done.literal, "as they are spelled"), (done.special, "special")]
    how = ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)
    print(f"{done.before:,} → {done.after:,} tokens" + (f" ({how})" if how else "") + f", {done.rows:,} rows: {out}")
    if from_:
        print(f"{done.skipped:,} tokens of {from_} are here already, or can be made of no merges here.")
    if done.tokens_of_texts:
        before, after = done.tokens_of_texts
        print(f"The texts of {learn} have {before:,} → {after:,} tokens ({after / before - 1:+.1%}).")
        if done.learned < (add or 0):
            print(f"({add:,} were asked for; nothing else stands together twice.)")


def _refuse_half(learn: str | None, add: int | None, about_texts: dict[str, Any]) -> None:
    """Refuse half of what learning tokens takes, and what is about its texts where there are none."""
    if (learn is None) != (add is None):
        raise typer.BadParameter("--learn SOURCE and --add N go together", param_hint="--learn")
    idle = [name for name, value in about_texts.items() if value is not None]
    if idle and learn is None:
        said = f"{', '.join(idle)}: about the texts of --learn, which is not given"
        raise typer.BadParameter(said, param_hint="extend")


def _listed(name: str) -> list[str]:
    if not name.endswith(".txt"):
        return [name]
    try:
        return [line for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{name}: cannot be read: {error}", param_hint="--tokens") from error


def _cells(one: Any) -> list[str]:
    shares = ["" if share is None else f"{share:.2%}" for share in (one.whole_words, one.unknown, one.lossless)]
    return [
        number(one.vocabulary),
        number(one.bytes_per_token),
        number(one.tokens_per_word),
        *shares,
        number(one.tokens_per_second),
    ]


def _stream(source: str, as_: str | None, format: str, split: str | None, tell: Any) -> Any:
    return import_module("alignkit.data.text_stream").TextStream(source, as_, format, split, tell)


def _say_unread(stream: Any) -> None:
    if stream.unread:
        typer.echo(f"{stream.unread:,} of {stream.rows:,} rows were not read; the first: {stream.fault}", err=True)
