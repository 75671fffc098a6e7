"""An import accounts for every row: hand-counted rows, round trips, and every way in which bad input comes."""

import bz2
import gzip
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from alignkit.config import InputError
from alignkit.data.importing import KINDS, Imported, import_data
from alignkit.data.read import read
from alignkit.records import Demonstration

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"prompt": "q", "completion": "a"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
TREE = {
    "message_tree_id": "t",
    "prompt": {"message_id": "t", "role": "prompter", "text": "q", "replies": [
        {"role": "assistant", "text": str(rank), "rank": rank, "replies": [
            {"message_id": f"u{rank}", "role": "prompter", "text": "r", "replies": [
                {"role": "assistant", "text": "x", "rank": 1}, {"role": "assistant", "text": "y", "rank": 0},
            ]},
        ]} for rank in range(3)
    ]},
}  # fmt: skip


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def take(source: Path, as_: str = "demonstrations", **options: Any) -> tuple[Imported, list[Any], list[Any]]:
    """What an import said, the rows it wrote, and those it rejected. Whatever it did, the sums agree."""
    out = source.parent / "out" / "made.jsonl"
    done = import_data(str(source), out, as_, **options)
    rows, rejected = (
        [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        for path in (out, out.with_name("made.rejects.jsonl"))
    )
    for count in (*done.files, done.total):
        assert count.rows == count.imported + count.rejected
        assert count.imported == sum(count.forms.values())
        assert count.rejected == sum(count.reasons.values())
    assert (len(rows), len(rejected)) == (done.total.records, done.total.rejected)
    assert len(read(out, KINDS[as_]).records) == len(rows)
    return done, rows, rejected


def test_each_row_is_imported_or_listed_with_file_line_field_and_reason(tmp_path: Path) -> None:
    bad = [b"{", {"prompt": "q"}, b'{"prompt": "\xe9"}', b'{"prompt": "\\ud800", "completion": "a"}', {"foo": 1}, 3]
    path = write(tmp_path / "a.jsonl", GOOD, *bad, b"", GOOD)
    done, rows, rejected = take(path)
    assert (done.total.rows, done.total.imported) == (8, 2)
    assert [turn["content"] for row in rows for turn in row["messages"]] == ["q", "a"] * 2
    assert [row["line"] for row in rejected] == [2, 3, 4, 5, 6, 7]
    assert {row["file"] for row in rejected} == {str(path)}
    assert [row.get("field") for row in rejected] == [None, "completion", None, None, None, None]
    assert [row["row"] for row in rejected[:2]] == ["{\n", '{"prompt": "q"}']
    reasons = [row["reason"].partition(";")[0] for row in rejected]
    assert reasons[1:] == [
        "field `completion` is missing",
        "is not UTF-8 (byte 0xe9)",
        r"holds half of a surrogate pair ('\ud800'), which is no text",
        "the row's form (foo) is not known",
        "a row must be an object, and is int",
    ]
    assert reasons[0].startswith("malformed JSON at column ")


@pytest.mark.parametrize(("as_", "count"), [("comparisons", 4), ("demonstrations", 3), ("prompts", 4)])
def test_a_tree_gives_a_record_for_each_question(tmp_path: Path, as_: str, count: int) -> None:
    done, rows, _ = take(write(tmp_path / "a.jsonl", TREE), as_)
    assert (done.total.rows, done.total.records, done.total.several) == (1, count, 1)
    if as_ == "comparisons":
        assert [len(row["responses"]) for row in rows] == [3, 2, 2, 2]
        assert [row["ranks"] for row in rows] == [[1, 2, 3], [2, 1], [2, 1], [2, 1]]


def test_a_row_that_holds_nothing_of_the_kind_is_rejected(tmp_path: Path) -> None:
    lonely = {"message_tree_id": "s", "prompt": {"role": "prompter", "text": "q", "replies": []}}
    done, _, rejected = take(write(tmp_path / "a.jsonl", TREE, lonely), "comparisons")
    assert (done.total.imported, done.total.rejected) == (1, 1)
    assert rejected[0]["reason"].startswith("holds no Comparison")


def test_reasons_that_differ_in_numbers_and_values_only_are_counted_together(tmp_path: Path) -> None:
    turns = [[{"role": "elf", "content": "x"}], [{"role": "user", "content": "q"}, {"role": "orc", "content": "x"}]]
    bad = [{"messages": messages} for messages in turns] + [{"prompt": "q", "note": n} for n in range(3)]
    done, _, rejected = take(write(tmp_path / "a.jsonl", GOOD, *bad))
    assert sorted(done.total.reasons.values()) == [2, 3]
    assert done.total.reasons["field `completion` is missing"] == 3
    assert [row["field"] for row in rejected] == ["messages[0].role", "messages[1].role", *["completion"] * 3]


@pytest.mark.parametrize(
    ("as_", "row"),
    [
        ("demonstrations", {"messages": [{"role": "user", "content": "é\u2028\0"}, {"role": "assistant", "weight": 0.5,
                            "content": "a", "reasoning": "r"}], "tools": [{"name": "f"}], "score": [1, None]}),
        ("comparisons", {"instruction": "q", "completions": [{"response": str(n), "overall_score": n % 3}
                                                             for n in range(4)]}),
        ("prompts", {"question": "q", "answer": "so\n#### 7"}),
        ("corpus", {"text": "t\r\n", "source": "s"}),
        ("feedback", {"prompt": "q", "completion": "a", "label": False}),
    ],
)  # fmt: skip
def test_what_is_imported_is_what_reading_the_source_gives(tmp_path: Path, as_: str, row: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", *({**row, "id": str(n)} for n in range(3)))
    take(path, as_)
    again = read(tmp_path / "out/made.jsonl", KINDS[as_]).records
    assert again == read(path, KINDS[as_]).records
    take(tmp_path / "out/made.jsonl", as_, format="alignkit")
    assert (tmp_path / "out/out/made.jsonl").read_bytes() == (tmp_path / "out/made.jsonl").read_bytes()


def test_a_folder_mixes_formats_layouts_and_compressions(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    line = json.dumps(GOOD).encode() + b"\n"
    write(folder / "a.jsonl", GOOD)
    (folder / "b.json").write_text(json.dumps([{"instruction": "q", "input": "", "output": "a"}] * 2))
    (folder / "c.csv").write_text("prompt,completion\nq,a\nq,a\nq,a\n")
    write(
        folder / "deep/d.ndjson", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    )
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(line * 4))
    (folder / "f.jsonl.bz2").write_bytes(bz2.compress(line * 5))
    (folder / "g.jsonl.xz").write_bytes(lzma.compress(line * 6))
    with pa.CompressedOutputStream(str(folder / "h.jsonl.zst"), "zstd") as file:
        file.write(line * 7)
    Dataset.from_list([GOOD] * 8).to_parquet(folder / "i.parquet")
    Dataset.from_list([GOOD] * 9).save_to_disk(folder / "j")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / "README.md").write_text("About")
    done, rows, _ = take(folder)
    counted = {Path(count.file).relative_to(folder).parts[0]: count.records for count in done.files}
    assert list(counted.values()) == [1, 2, 3, 1, 4, 5, 6, 7, 8, 9]
    assert [row["messages"] for row in rows] == [rows[0]["messages"]] * 46
    assert [form for count in done.files for form in count.forms] == ["trl", "alpaca", "trl", "sharegpt"] + ["trl"] * 6
    ignored = {Path(name).name for name in done.ignored}
    assert ignored == {"notes.pdf", "README.md", "dataset_info.json", "state.json"}


def test_a_file_that_mixes_forms_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [GOOD, {"instruction": "q", "output": "a"}, PAIR, {"question": "q", "answer": "a"}, {"text": "t"}]
    done, made, rejected = take(write(tmp_path / "a.jsonl", *rows))
    assert done.total.forms == {"trl": 2, "alpaca": 1, "gsm8k": 1}
    assert [[turn["content"] for turn in row["messages"]] for row in made] == [["q", "a"]] * 4
    assert [(row["line"], row["reason"]) for row in rejected] == [
        (5, "the row holds a Document, which cannot be read as a Demonstration")
    ]
    assert [count.rejected for count in take(write(tmp_path / "b.jsonl", *rows), format="alpaca")[0].files] == [4]


def test_ids_are_unique_over_all_files(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl", *({**GOOD, "id": name} for name in ("1", "2", "1")), GOOD, GOOD)
    write(tmp_path / "in/b.jsonl", *({**GOOD, "id": name} for name in ("2", "3", "2")))
    done, rows, rejected = take(tmp_path / "in")
    assert [row.get("id") for row in rows] == ["1", "2", None, None, "b.jsonl/2", "3"]
    assert [(row["line"], row["field"]) for row in rejected] == [(3, "id"), (3, "id")]
    assert "'1' stands on line 1 too" in rejected[0]["reason"] and "'2' stands on line 1 too" in rejected[1]["reason"]
    assert [count.renamed for count in done.files] == [0, 1]


def test_the_first_rejection_ends_a_strict_import(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, {"prompt": "q"}, b"{")
    with pytest.raises(InputError, match=r"a\.jsonl:2: field `completion` is missing"):
        take(path, strict=True)
    assert not list((tmp_path / "out").iterdir())
    assert take(write(tmp_path / "b.jsonl", GOOD), strict=True)[0].rejects is None


def gz_cut() -> bytes:
    return gzip.compress(json.dumps(GOOD).encode() * 9)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("b.jsonl.gz", gz_cut(), "b.jsonl.gz: the gzip file is cut off or damaged; fetch it again"),
        ("b.jsonl.gz", b"plain", "b.jsonl.gz: is not a gzip file"),
        ("b.jsonl.bz2", bz2.compress(b"x" * 99)[:-9], "b.jsonl.bz2: the bzip2 file is cut off or damaged"),
        ("b.jsonl.xz", lzma.compress(b"x" * 99)[:-9], "b.jsonl.xz: the xz file is cut off or damaged"),
        ("b.jsonl.zst", b"plain", "b.jsonl.zst: the zstd file is cut off or damaged"),
        ("b.json", b'[{"prompt": "q", "completion": "a"}, {"pro', "b.json:1: malformed JSON at column"),
        ("b.json", json.dumps(GOOD, indent=1).encode(), "b.json:1: is an object over many lines; give a list of rows"),
        ("b.csv", b'prompt,completion\nq,a\n"q,a', "b.csv:3: malformed CSV"),
        ("b.csv", b"prompt,completion\nq,\xe9\n", "b.csv:2: is not UTF-8 (byte 0xe9)"),
        ("b.csv", b"prompt,prompt\nq,a\n", "b.csv:1: the heading names `prompt` twice"),
        ("b.csv", b"prompt,completion\nq,\0\n", "b.csv:2: holds NUL bytes"),
        ("b.txt", b"one\n\0two", "b.txt:2: holds NUL bytes"),
        ("b.jsonl", json.dumps(GOOD).encode("utf-16"), "b.jsonl:1: is UTF-16; save the file as UTF-8"),
        ("b.parquet", b"PAR1junk", "b.parquet: is cut off, damaged or no Parquet file"),
        ("b.arrow", b"junk", "b.arrow: is cut off"),
        ("b.feather", b"", "b.feather: is cut off"),
        ("b.jsonl", None, "b.jsonl: cannot be read: No such file or directory"),
    ],
)
def test_a_damaged_file_ends_the_import_and_nothing_is_taken_for_whole(
    tmp_path: Path, name: str, content: bytes | None, fault: str
) -> None:
    write(tmp_path / "in/a.jsonl", GOOD)
    damaged = tmp_path / "in" / name
    if content is None:
        damaged.symlink_to("nowhere")
    else:
        damaged.write_bytes(content)
    before = write(tmp_path / "out/made.jsonl", GOOD).read_bytes()
    with pytest.raises(InputError) as caught:
        take(tmp_path / "in")
    assert str(caught.value).startswith(f"{tmp_path}/in/{fault}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"made.jsonl": before}


def test_nul_bytes_in_a_line_cost_that_line(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    path = write(tmp_path / "a.jsonl", GOOD, line.replace(b"q", b"\0"), b"\0" * 50, GOOD)
    done, _, rejected = take(path)
    assert (done.total.imported, [row["line"] for row in rejected]) == (2, [2, 3])
    assert all(row["reason"].startswith("holds NUL bytes") for row in rejected)


def test_a_line_of_10_mb_is_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**GOOD, "completion": "a" * 10_000_000}, b"x" * 10_000_000, GOOD)
    done, rows, rejected = take(path)
    assert [len(row["messages"][1]["content"]) for row in rows] == [10_000_000, 1]
    assert (done.total.rejected, len(rejected[0]["row"])) == (1, 200)


def test_numbers_and_nesting_beyond_all_bounds_cost_their_rows(tmp_path: Path) -> None:
    nested = b'{"prompt": "q", "completion": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    rows = [GOOD, b'{"x": ' + b"1" * 5000 + b"}", nested, b"[" * 200_000, GOOD]
    done, _, rejected = take(write(tmp_path / "a.jsonl", *rows))
    assert (done.total.imported, [row["line"] for row in rejected]) == (2, [2, 3, 4])


def test_very_many_tiny_files(tmp_path: Path) -> None:
    for number in range(2000):
        write(
            tmp_path / f"in/{number % 7}/{number}.jsonl",
            {**GOOD, "id": str(number % 1000)},
            *([b"{"] if number == 9 else []),
        )
    done, rows, rejected = take(tmp_path / "in")
    assert (len(done.files), done.total.rows, done.total.rejected, done.total.renamed) == (2000, 2001, 1, 1000)
    assert len({row["id"] for row in rows}) == 2000
    assert Path(rejected[0]["file"]).relative_to(tmp_path / "in").as_posix() == "2/9.jsonl"


@pytest.mark.parametrize(
    ("source", "out", "fault"),
    [
        ("a.jsonl", "made.json", "give a file that ends in .jsonl"),
        ("a.jsonl", "made.rejects.jsonl", "not in .rejects.jsonl"),
        ("a.jsonl", "a.jsonl", "would lie in what is imported"),
        ("b.rejects.jsonl", "b.jsonl", "it or b.rejects.jsonl would lie in what is imported"),
        (".", "sub/made.jsonl", "would lie in what is imported"),
        ("a.jsonl", "folder.jsonl", "is a folder"),
        ("empty.jsonl", "made.jsonl", "empty.jsonl: holds no row"),
        ("folder.jsonl", "made.jsonl", "the folder holds no data file"),
        ("docs.jsonl", "made.jsonl", "none of its 1 rows can be imported as demonstrations. docs.jsonl:1: the row"),
        ("strange.jsonl", "made.jsonl", "(foo) is not known. Rename its fields to those of a known form, or name"),
        ("absent.jsonl", "made.jsonl", "absent.jsonl: there is no such file or folder"),
        ("./absent", "made.jsonl", "./absent: there is no such file or folder"),
        ("nobody/nothing", "made.jsonl", "nobody/nothing: is neither a file or folder here nor a data set"),
    ],
)  # fmt: skip
def test_input_that_cannot_serve_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.jsonl").mkdir()
    Path("empty.jsonl").touch()
    write(Path("b.rejects.jsonl"), GOOD)
    write(Path("a.jsonl"), GOOD), write(Path("docs.jsonl"), {"text": "t"}), write(Path("strange.jsonl"), {"foo": 1})
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError) as caught:
        import_data(source, Path(out), "demonstrations")
    assert fault in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before


def test_rejects_of_an_earlier_import_go(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, b"{")
    assert len(take(path)[2]) == 1
    write(path, GOOD, GOOD)
    assert len(take(path)[1]) == 2
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["made.jsonl"]


# ------------------------------------------------------------------------------------------------------- processes


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """The command `alignkit data import` in a process of its own, whose files may have so many KiB."""

    def command(*words: str, most: str = "unlimited") -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        line = ["bash", "-c", f'ulimit -f {most}; exec "$0" "$@"', sys.executable, "-m", "alignkit", "data", "import"]
        return subprocess.Popen(
            [*line, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return command


def test_a_killed_import_leaves_nothing_to_be_taken_for_whole(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    words = ("a.jsonl", "out/made.jsonl", "--as", "demonstrations")
    process = start(*words)
    with (tmp_path / "a.jsonl").open("wb", buffering=0) as pipe:
        pipe.write((json.dumps(GOOD).encode() + b"\n") * 1000)
        while not any(path.stat().st_size for path in (tmp_path / "out").glob(".made.jsonl.*.work/records.jsonl")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        second = start(*words)
        _, said = second.communicate()
        assert second.returncode == 2 and "out/made.jsonl: another process is at work on it; wait for its end" in said
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert all(path.name.startswith(".") for path in (tmp_path / "out").iterdir())
    (tmp_path / "a.jsonl").unlink()
    write(tmp_path / "a.jsonl", GOOD, GOOD)
    again = start(*words)
    _, said = again.communicate()
    assert again.returncode == 0 and "had other data or options; this one begins anew" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["made.jsonl"]
    assert len(read(tmp_path / "out/made.jsonl", Demonstration).records) == 2


def test_a_full_disk_is_one_error_and_what_stood_there_stays(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    write(tmp_path / "a.jsonl", *[GOOD] * 5000)
    before = write(tmp_path / "out/made.jsonl", GOOD).read_bytes()
    process = start("a.jsonl", "out/made.jsonl", "--as", "demonstrations", most="100")
    _, said = process.communicate()
    assert process.returncode == 1 and "Traceback" not in said
    assert "error: out/made.jsonl: cannot be written: File too large. Make room, or write elsewhere" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"made.jsonl": before}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from /proc")
@pytest.mark.parametrize("name", ["big.jsonl", "big.jsonl.gz", "big.json", "big.arrow", "big.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """40 MB of rows take no more than 20 MB over what 4 MB take; a table is read by its groups, here of 1 MB."""
    script = """if True:
        import sys
        from pathlib import Path
        from alignkit.data.importing import import_data
        import_data(sys.argv[1], Path("made.jsonl"), "demonstrations")
        (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        print(int(line.split()[1]) // 1024)
    """
    peaks: list[int] = []
    draw = random.Random(0)  # what it draws cannot be compressed
    for count in (400, 4000):
        rows = [{"prompt": f"q {n}", "completion": draw.randbytes(5000).hex(), "id": str(n)} for n in range(count)]
        path = tmp_path / name
        if name.endswith(".arrow"):
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(str(path), table.schema) as file:
                file.write_table(table, max_chunksize=100)
        elif name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
        else:
            lines = (json.dumps(row) + "\n" for row in rows)
            data = (f"[{','.join(lines)}]" if name == "big.json" else "".join(lines)).encode()
            path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script, str(path)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 20, peaks
