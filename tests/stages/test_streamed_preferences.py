"""DPO from a stream: the training of memory to the last bit under every kind of reference, killed anywhere."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_cases import assert_equal_runs, checkpoint, interrupted, metrics, options_of, rankings, start, write

from alignkit import reference
from alignkit.mixture import in_memory
from alignkit.options.dpo import DpoConfig
from alignkit.runs import Run
from alignkit.stages import dpo

SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "rankings": {"loss": "plackett_luce"},
    "of the step": {"loss": "aot"},
    "lora": {"model": {"lora": {"r": 2, "dropout": 0.1}}},
    "moving": {"moving_reference": {"every": 2, "mix": 0.5}},
    "orpo": {"loss": "orpo", "nll_coef": 1.0},
    "simpo": {"loss": "simpo", "beta": 2.0, "margin": 0.5},
}


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK", 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("streamed")
    checkpoint(made / "base")
    for name, rows in (("few", 12), ("many", 30)):
        write(made / f"{name}.jsonl", rankings(rows, most=3, seed=rows))
    return made


def config(folder: Path, stream: bool, mixed: bool = False, **changes: Any) -> DpoConfig:
    sources = [{"path": str(folder / f"{name}.jsonl"), "weight": 1.0} for name in ("few", "many")]
    data = {"path": None, "sources": sources} if mixed else {"path": str(folder / "many.jsonl")}
    return options_of(
        DpoConfig, folder, {"data": {**data, "stream": stream, "validation": 0.2}, **changes}, 5e-3, 6, 5
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_stream_trains_as_memory_does_and_resumes_to_the_last_bit(
    setting: str, folder: Path, tmp_path: Path
) -> None:
    held = start(dpo, tmp_path / "memory", config(folder, False, **SETTINGS[setting]))
    streamed = config(folder, True, **SETTINGS[setting])
    run = interrupted(dpo, tmp_path / "cut", streamed, 3)
    assert_equal_runs(run, held)
    assert run.record.data == held.record.data
    left = [file.name for kept in (run, held) for file in kept.directory.glob("*.sqlite*")]
    assert not left, "what was kept for the training is removed after it"


def test_a_mixture_streams_too(folder: Path, tmp_path: Path) -> None:
    runs = [start(dpo, tmp_path / str(stream), config(folder, stream, mixed=True)) for stream in (True, False)]
    assert_equal_runs(*runs)
    assert {"preference/few", "accuracy/many"} < metrics(runs[0])[-2].keys()


def test_neither_examples_nor_their_reference_are_held(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stopped(policy: Any, train: Any, validation: Any, *_: Any) -> None:
        given.extend([train, validation])
        raise KeyboardInterrupt

    monkeypatch.setattr(dpo, "fit", stopped)
    for mixed in (False, True):
        with pytest.raises(KeyboardInterrupt):
            start(dpo, tmp_path / str(mixed), config(folder, True, mixed))
    assert len(given) == 4 and not any(map(in_memory, given))
    assert all("reference" in sequence.token_columns for side in given for sequence in side[0])


@pytest.mark.parametrize("stream", [True, False])
def test_a_reference_that_is_killed_halfway_goes_on_where_it_was(stream: bool, folder: Path, tmp_path: Path) -> None:
    settings = config(folder, stream)
    whole = start(dpo, tmp_path / "whole", settings)
    command = [sys.executable, __file__, str(folder), str(tmp_path / "killed"), str(stream)]
    assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    left = {file.name for file in (tmp_path / "killed").glob("reference*")}
    assert "reference.sqlite.partial" in left and "reference.sqlite" not in left
    made: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        counted(made.append, patch)
        resumed = start(dpo, tmp_path / "killed", settings)
    assert len(made) == 3, "24 records for training are 4 chunks, 6 held out are one, and two were kept"
    assert_equal_runs(resumed, whole)


def counted(tell: Any, patch: Any = None) -> None:
    """Calls `tell` with the number of each chunk, from 1 on, before its reference is computed."""
    inner, calls = reference._of_all_ranks, 0

    def watched(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        tell(calls)
        return inner(*arguments)

    (patch or pytest.MonkeyPatch()).setattr(reference, "_of_all_ranks", watched)


def test_what_was_computed_stays_until_the_run_is_marked_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "finish", killed)
        start(dpo, tmp_path / "run", config(folder, True))
    assert {file.name for file in (tmp_path / "run").glob("*.sqlite")} == {"examples.sqlite", "reference.sqlite"}
    monkeypatch.setattr(reference, "_of_all_ranks", lambda *_: pytest.fail("it was computed again"))
    start(dpo, tmp_path / "run", config(folder, True))


if __name__ == "__main__":  # a run that kills itself before the third chunk of its reference
    reference.CHUNK = 7
    counted(lambda calls: os.kill(os.getpid(), signal.SIGKILL) if calls == 3 else None)
    start(dpo, Path(sys.argv[2]), config(Path(sys.argv[1]), sys.argv[3] == "True"))
