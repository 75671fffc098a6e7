"""Files in every layout are read, and every fault names its file, line and field, or is skipped and counted."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError
from alignkit.data.files import files_of
from alignkit.data.read import read
from alignkit.records import Comparison, Demonstration, Document, Prompt, Record

GOOD = '{"prompt": "q", "completion": "a"}'
PAIR = '{"prompt": "q", "chosen": "a", "rejected": "b"}'


def write(folder: Path, name: str, *lines: str | bytes) -> Path:
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f"{GOOD}\n\n{GOOD}\r\n"),
        ("a.jsonl.gz", f"\ufeff{GOOD}\n{GOOD}"),
        ("a.json", f"[{GOOD},\n {GOOD}\n]\n \n"),
        ("a.json.gz", f"  [{GOOD}, {GOOD}]"),
        ("a.json", f"{GOOD}\n{GOOD}"),
        ("a.csv", 'prompt,completion\nq,a\n"q",a\n'),
    ],
)
def test_every_layout_is_read(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    result = read(path, Demonstration)
    assert [[turn.content for turn in record.messages] for record in result.records] == [["q", "a"]] * 2
    assert (result.rows, result.rejected) == (2, [])
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_text_file_is_one_document_with_plain_line_ends(tmp_path: Path) -> None:
    (document,) = read(write(tmp_path, "book.txt.gz", "One\r\ntwo\r\n"), Document).records
    assert document == Document(text="One\ntwo\n", source="book.txt.gz")


def test_a_list_of_strings_is_documents_or_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '["one", "two"]')
    assert [record.text for record in read(path, Document).records] == ["one", "two"]
    assert [record.messages[0].content for record in read(path, Prompt).records] == ["one", "two"]


FAULTS: list[tuple[str, type[Record], tuple[str | bytes, ...], str]] = [
    ("malformed", Demonstration, (GOOD, '{"prompt": q}'), "2: malformed JSON at column 12: Expecting value; each"),
    ("cut off", Demonstration, (GOOD, GOOD[:-1]), "2: malformed JSON at column"),
    ("deep", Demonstration, (GOOD, "[" * 200_000), "2: malformed JSON: nested too deeply"),
    ("encoding", Demonstration, (GOOD, b'{"prompt": "\xe9"}'), "2: is not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ("surrogate", Demonstration, (GOOD, r'{"prompt": "\ud800", "completion": "a"}'), "2: holds half of a surrogate"),
    ("missing", Demonstration, (GOOD, '{"prompt": "q"}'), "2: field `completion` is missing; the row has prompt"),
    ("missing", Comparison, (PAIR, '{"prompt": "q", "chosen": "a"}'), "2: field `rejected` is missing; the row has"),
    ("type", Demonstration, (GOOD, '{"prompt": 3, "completion": "a"}'), "2: field `prompt` must be text or a list"),
    ("prompt", Demonstration, (GOOD, '{"prompt": " ", "completion": "a"}'), "2: empty prompt: `messages` must hold"),
    ("response", Demonstration, (GOOD, '{"prompt": "q", "completion": ""}'), "2: no response: field `completion` is"),
    ("weights", Demonstration, (GOOD, '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", '
                                '"content": "a", "weight": 0}]}'), "2: every assistant turn of `messages` has"),
    ("no object", Demonstration, (GOOD, "[1]"), "2: a row must be an object, and is list"),
    ("role", Demonstration, (GOOD, '{"messages": [{"role": "elf", "content": "x"}]}'), "2: field `messages[0].role`:"),
    ("single", Comparison, ('{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}',
                            '{"prompt": "q", "responses": ["a"], "ranks": [1]}'), "2: a ranking needs at least two"),
    ("tied", Comparison, ('{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}',
                          '{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]}'), "2: all responses are tied"),
    ("ids", Prompt, ('{"id": "x", "prompt": "q"}', '{"id": "x", "prompt": "r"}'),
     "2: field `id`: 'x' stands on line 1 too; give each row its own, or none"),
]  # fmt: skip


@pytest.mark.parametrize(("as_", "lines", "fault"), [case[1:] for case in FAULTS])
def test_a_bad_row_is_an_error_with_its_line_or_is_skipped_and_counted(
    tmp_path: Path, as_: type[Record], lines: tuple[str, ...], fault: str
) -> None:
    path = write(tmp_path, "data.jsonl", *lines, *lines[:1] if '"id"' not in lines[0] else ())
    with pytest.raises(InputError) as caught:
        read(path, as_)
    assert str(caught.value).startswith(f"{path}:{fault}")
    assert str(caught.value).endswith("leave such rows out with `data.on_invalid: skip`)")
    result = read(path, as_, on_invalid="skip")
    assert [line for line, _ in result.rejected] == [2]
    assert f"2: {result.rejected[0][1]}".startswith(fault)
    assert len(result.records) == result.rows - 1 >= 1


def test_all_faults_are_counted_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", GOOD, "{", GOOD, "{}", "x")
    with pytest.raises(
        InputError, match=r"a\.jsonl:2: malformed.*\(2 more of 5 rows cannot be used; correct the file"
    ):
        read(path, Demonstration)


def test_rows_before_the_first_of_a_known_form_are_skipped_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"foo": 1}', "3", GOOD, '{"bar": 1}', GOOD)
    result = read(path, Demonstration, on_invalid="skip")
    assert ([line for line, _ in result.rejected], len(result.records), result.rows) == ([1, 2, 4], 2, 5)
    assert result.rejected[0][1].startswith("the row's form (foo) is not known")
    with pytest.raises(InputError, match=r"a\.jsonl:1: the row's form \(foo\) is not known.*\(2 more of 5 rows"):
        read(path, Demonstration)


def test_skipping_everything_is_still_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:1: malformed .*no other of the 2 rows can be used"):
        read(write(tmp_path, "a.jsonl", "{", "["), Demonstration, on_invalid="skip")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b"", "a.jsonl: holds no Demonstration; the file is empty"),
        ("a.json", b'[{"prompt": "q"}\n{"prompt": "q"}]', "a.json:2: malformed JSON at column 1: expected ','"),
        ("a.json", b'[\n{"prompt": "q"},\n{"prompt" "q"}]', "a.json:3: malformed JSON at column 11"),
        ("a.json", b'[{"prompt": "q", "completion": "a"}', "a.json:1: malformed JSON"),
        (
            "a.json",
            f"[{GOOD}]\n[{GOOD}]".encode(),
            "a.json:2: malformed JSON at column 1: the list has ended; put all",
        ),
        ("a.json", f"[{GOOD}]]".encode(), "a.json:1: malformed JSON at column 37: the list has ended"),
        ("a.jsonl", b'["one"]\n\n["two"]\n', "a.jsonl:3: malformed JSON at column 1: the list has ended"),
        ("a.json", b'[\n"\xe9"]', "a.json:2: is not UTF-8 (byte 0xe9)"),
        ("a.txt", b"one\ntwo \xff", "a.txt:2: is not UTF-8 (byte 0xff)"),
        ("a.csv", b'prompt,completion\n"q,a', "a.csv:2: malformed CSV"),
        ("a.csv", b"prompt,completion\nq\n", "a.csv:2: has not as many fields as the heading (2)"),
        ("a.jsonl", b'{"foo": 1}', "a.jsonl:1: the row's form (foo) is not known"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: is not a gzip file"),
        ("b.jsonl.gz", gzip.compress(b"x" * 99)[:-9], "b.jsonl.gz: the gzip file is cut off or damaged"),
        ("a.xlsx", b"", "a.xlsx: files that end in '.xlsx' are not read; convert it to JSON lines"),
        ("absent.jsonl", None, "absent.jsonl: cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_data_is_an_error_either_way(
    tmp_path: Path, name: str, content: bytes | None, fault: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for on_invalid in ("error", "skip"):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name, Demonstration, on_invalid=on_invalid)
        assert str(caught.value).startswith(f"{tmp_path}/{fault}")


def test_the_form_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", GOOD)
    with pytest.raises(InputError, match="unknown format 'trll'; known: auto, alignkit, trl"):
        read(path, Demonstration, "trll")
    with pytest.raises(
        InputError, match=r"a\.jsonl:1: field `instruction` is missing; the row has prompt, completion"
    ):
        read(path, Demonstration, "dolly")


def test_a_message_says_which_list_item_by_its_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "q", "completion": "a"}] * 3 + [{"prompt": "q", "completion": ""}]
    with pytest.raises(InputError, match=r"a\.json:14: no response"):
        read(write(tmp_path, "a.json", json.dumps(rows, indent=2)), Demonstration)


def test_a_folder_gives_its_files_by_name_and_split(tmp_path: Path) -> None:
    for name in ("train-1.jsonl", "train-0.jsonl.gz", "test.jsonl", "LICENSE"):
        write(tmp_path, name, GOOD)
    (tmp_path / "train").mkdir()
    write(tmp_path / "train", "x.txt", "text")
    names = [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path, "train")]
    assert names == ["train/x.txt", "train-0.jsonl.gz", "train-1.jsonl"]
    assert len(files_of(tmp_path)) == 4
    assert files_of(tmp_path / "test.jsonl") == [tmp_path / "test.jsonl"]
    for name in (
        ".ipynb_checkpoints/train-1.jsonl",
        ".cache/train/y.jsonl",
        ".train.jsonl",
        "README.md",
        "license.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path, name, GOOD)
    assert [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path, "train")] == names
    assert len(files_of(tmp_path)) == 4
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-far")
    elsewhere.mkdir()
    write(elsewhere, "y.jsonl", GOOD)
    (tmp_path / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "train")
    (tmp_path / "also").symlink_to(elsewhere)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    found = [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path)]
    assert len(found) == 6 and {"train/x.txt", "gone.jsonl"} < set(found), "each once; a link to no file is one"
    assert len({"linked/y.jsonl", "also/y.jsonl"} & set(found)) == 1
    with pytest.raises(InputError, match="holds no data file whose name begins with 'dev'"):
        files_of(tmp_path, "dev")
    with pytest.raises(InputError, match="leave `split` out"):
        files_of(tmp_path / "test.jsonl", "train")
