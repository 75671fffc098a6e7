"""Whatever bytes a file holds, reading it ends in rows or in an InputError, never in another exception."""

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignkit.config import InputError
from alignkit.data.importing import import_data

ROWS = [{"prompt": f"q{n} é", "completion": "a", "score": n / 2, "tags": ["x", None]} for n in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
TABLE = b"id,prompt,completion\n" + b"".join(b'%d,"q\n""%d""",a\r\n' % (n, n) for n in range(30))


def tables() -> dict[str, bytes]:
    table = pa.Table.from_pylist(ROWS)
    parquet, stream = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table, parquet, row_group_size=10)
    with pa.ipc.new_stream(stream, table.schema) as file:
        file.write_table(table)
    return {".parquet": parquet.getvalue().to_pybytes(), ".arrow": stream.getvalue().to_pybytes()}


FILES = {
    ".jsonl": LINES,
    ".json": LIST,
    ".csv": TABLE,
    ".txt": LINES,
    ".jsonl.gz": gzip.compress(LINES),
    ".jsonl.bz2": bz2.compress(LINES),
    ".jsonl.xz": lzma.compress(LINES),
    ".jsonl.zst": pa.Codec("zstd").compress(LINES, asbytes=True),
    **tables(),
}


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, the end cut off, a part doubled or left out."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[at] = draw.choice([0, 0x0A, 0x0D, 0x22, 0x5C, 0x7B, 0xD8, 0xFF, draw.randrange(256)])
        elif kind == 1:
            del data[max(1, at) :]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randint(1, 40)]
        elif len(data) > 50:
            del data[at : at + draw.randint(1, 40)]
    return bytes(data)


@pytest.mark.parametrize("suffix", FILES)
def test_no_bytes_break_an_import(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(suffix)
    as_ = "corpus" if suffix == ".txt" else "demonstrations"
    path, out = tmp_path / f"a{suffix}", tmp_path / "out/made.jsonl"
    for number in range(60):
        path.write_bytes(damaged(FILES[suffix], draw) if number else FILES[suffix])
        out.unlink(missing_ok=True)
        try:
            done = import_data(str(path), out, as_)
        except InputError as error:
            assert number and not out.exists() and str(error).startswith(str(path))
            continue
        rejected = [] if done.rejects is None else Path(done.rejects).read_text().splitlines()
        assert len(out.read_text().split("\n")) - 1 == done.total.imported
        assert len([json.loads(line) for line in rejected]) == done.total.rejected
        assert done.total.rows == done.total.imported + done.total.rejected
        assert number or done.total.imported == (1 if suffix == ".txt" else 30)
