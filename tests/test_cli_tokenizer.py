"""`alignkit data tokenizer`, as a user meets it: what it prints, and the codes it ends with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignkit.cli import main
from alignkit.data.tokenizer import train_tokenizer

STORIES = ["The cat sat on the mat.", "The dog sat on the cat!", "Is the mat red? No, it is blue."]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """(exit code, output, errors) of the command inside this process, in a folder with data and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
    Path("broken.jinja").write_text("{% for message in messages %}")
    small = train_tokenizer(STORIES, "bpe", 265)
    small.save_pretrained("base")
    shape = LlamaConfig(
        vocab_size=265, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained("base")
    capsys.readouterr()

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(("data", "tokenizer", *words))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_train_writes_what_transformers_reads(command: Command) -> None:
    code, output, errors = command(
        "train", "stories.jsonl", "made", "--vocabulary", "270", "--chat-template", "chatml", "--special", "<|note|>"
    )
    assert (code, errors) == (0, "")
    assert output == "270 tokens from 3 texts of 0.00 MB: made\n"
    tokenizer = AutoTokenizer.from_pretrained("made")
    assert len(tokenizer) == 270 and tokenizer.tokenize("<|note|>") == ["<|note|>"]
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Is it?"}], tokenize=False)
    assert said.startswith("<|bos|><|im_start|>user\nIs it?<|im_end|>")
    said = json.loads(command("train", "stories.jsonl", "few", "--vocabulary", "999", "--texts", "2", "--json")[1])
    assert (said["rows"], said["texts"], said["unread"]) == (3, 2, 0) and said["tokens"] < 999


def test_compare_shows_a_line_for_each_tokenizer(command: Command) -> None:
    command("train", "stories.jsonl", "letters", "--vocabulary", "60", "--kind", "character")
    code, output, errors = command("compare", "letters", "base", "--on", "stories.jsonl")
    assert (code, errors) == (0, "")
    lines = [line.split() for line in output.splitlines()]
    assert lines[0][:3] == ["tokenizer", "tokens", "bytes/token"]
    # 77 letters, spaces and marks; 20 words of 17 + 17 + 21 letters.
    assert [lines[1][0], *lines[1][2:7]] == ["letters", "1", "2.75", "0.00%", "0.00%", "100.00%"]
    assert lines[2][:2] == ["base", "265"]
    assert "On 3 texts, 0.00 MB, of stories.jsonl (seed 0)." in output
    found = json.loads(command("compare", "letters", "--on", "stories.jsonl", "--json")[1])
    assert (found["texts"], found["bytes"], found["tokenizers"][0]["tokens"]) == (3, 77, 77)


def test_extend_says_what_it_added(command: Command) -> None:
    Path("words.txt").write_text("blue\n\nred\n")
    code, output, errors = command(
        "extend",
        "base",
        "made",
        "--learn",
        "stories.jsonl",
        "--add",
        "3",
        "--tokens",
        "words.txt",
        "--special",
        "<|a|>",
    )
    assert (code, errors) == (0, "")
    tokenizer = AutoTokenizer.from_pretrained("made")
    assert len(tokenizer.tokenize(" blue")) == len(tokenizer.tokenize(" red")) == 1
    added = len(tokenizer) - 265
    head, texts = output.splitlines()
    assert head == f"265 → {265 + added} tokens ({added - 1} by merges, 1 special), {265 + added} rows: made"
    assert texts.startswith("The texts of stories.jsonl have ")
    assert AutoModelForCausalLM.from_pretrained("made").config.vocab_size == len(tokenizer)


def test_tokens_that_were_named_are_not_counted_as_learned(command: Command) -> None:
    output = command("extend", "base", "made", "--learn", "stories.jsonl", "--add", "999", "--tokens", "blue")[1]
    assert output.endswith("(999 were asked for; nothing else stands together twice.)\n")
    said = json.loads(
        command("extend", "base", "two", "--learn", "stories.jsonl", "--add", "2", "--tokens", "blue", "--json")[1]
    )
    assert said["learned"] == 2 < said["merged"]


def test_rows_that_are_not_read_are_counted(command: Command) -> None:
    with Path("stories.jsonl").open("a") as file:
        file.write("{broken\n")
    code, _, errors = command("train", "stories.jsonl", "made", "--vocabulary", "270")
    assert code == 0 and errors.startswith("1 of 4 rows were not read; the first: stories.jsonl:4: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "stories.jsonl", "made", "--vocabulary", "20"), "error: vocabulary: 20 cannot hold the 256 bytes"),
        (("train", "stories.jsonl", "made", "--vocabulary", "300", "--kind", "wordpiece"), "'wordpiece' is no kind"),
        (("train", "stories.jsonl", "base", "--vocabulary", "300"), "error: base: exists already; name a new folder"),
        (("train", "stories.jsonl", "made", "--vocabulary", "300", "--chat-template", "broken.jinja"), "broken.jinja"),
        (("train", "gone.jsonl", "made", "--vocabulary", "300"), "gone.jsonl: there is no such file or folder"),
        (("compare", "broken.jinja", "--on", "stories.jsonl"), "TOKENIZER: no tokenizer can be loaded"),
        (("extend", "base", "made", "--learn", "stories.jsonl"), "--learn SOURCE and --add N go together"),
        (("extend", "base", "made", "--special", "<|b|>", "--texts", "3", "--as", "corpus"), "--as, --texts: about"),
        (("compare", "base", "--on", "stories.jsonl", "--megabytes", "0.0000001"), "take more of them (--megabytes)"),
        (("extend", "base", "made"), "give --tokens, --from, --learn, --special or"),
        (("extend", "base", "made", "--tokens", "gone.txt"), "gone.txt: cannot be read"),
        (("extend", "base", "made", "--special", "<|bos|>"), "'<|bos|>' is a token of 'base' already; leave it out"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_error_and_exit_code_2(command: Command, words: tuple[str, ...], message: str) -> None:
    code, _, errors = command(*words)
    assert code == 2 and message in errors
    assert not Path("made").exists()
