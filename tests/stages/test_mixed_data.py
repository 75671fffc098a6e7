"""Mixtures and streams in real stages: the same training from memory and from the disk, cut off anywhere."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from chat_cases import (
    PowerCut,
    assert_equal_runs,
    checkpoint,
    cut_after,
    demonstrations,
    interrupted,
    message,
    metrics,
    options_of,
    rankings,
    sentence,
    start,
    write,
)

from alignkit import examples_stored as made
from alignkit.config import InputError, build, parse_yaml
from alignkit.data.load import load_data
from alignkit.options.dpo import DpoConfig
from alignkit.options.pretrain import PretrainConfig
from alignkit.options.reward import RewardConfig
from alignkit.options.sft import SftConfig
from alignkit.records import Demonstration
from alignkit.runs import Run
from alignkit.stages import dpo, pretrain, reward, sft


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mixed")
    checkpoint(made / "base")
    for name, rows in (("few", 12), ("many", 40)):
        write(made / f"{name}.jsonl", demonstrations(rows, seed=rows))
        write(made / f"{name}_ranked.jsonl", rankings(rows, most=3, seed=rows))
    texts = [{"text": " ".join(sentence(random.Random(n)) for _ in range(6))} for n in range(60)]
    write(made / "texts.jsonl", texts)
    (made / "book.txt").write_text("the cat sat on the mat.\n" * 60)
    return made


def mixed(folder: Path, stream: bool, ending: str = "", **data: Any) -> dict[str, Any]:
    sources = [{"path": str(folder / f"{name}{ending}.jsonl"), "weight": 1.0} for name in ("few", "many")]
    return {"path": None, "sources": sources, "stream": stream, "validation": 0.2, **data}


def tuning(folder: Path, stream: bool, **data: Any) -> SftConfig:
    return options_of(SftConfig, folder, {"data": mixed(folder, stream, **data)}, 5e-3, 8, 6)


def pretraining(folder: Path, stream: bool, **options: Any) -> PretrainConfig:
    sources = [{"path": str(folder / "texts.jsonl"), "epochs": 3}, {"path": str(folder / "book.txt")}]
    given = {
        "architecture": {"model_type": "llama", "layers": 1, "width": 16, "heads": 2},
        "tokenizer": {"kind": "bpe", "vocabulary": 300},
        "data": {"sources": sources, "stream": stream, "max_length": 40, "validation": 0.1, "temperature": 2},
        "train": {"learning_rate": 1e-2, "batch_size": 16, "steps": 6, "checkpoint_every": 2},
        "fim_rate": 0.4,
    }
    return build(PretrainConfig, {**given, **options}, "")


CASES = {"sft": (sft, tuning), "pretrain": (pretrain, pretraining)}


@pytest.mark.parametrize("stage", CASES)
def test_a_stream_trains_as_memory_does_to_the_last_bit(
    stage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "BATCH", 5)
    monkeypatch.setattr(made, "COMMIT", 16)
    module, options = CASES[stage]
    from_disk = start(module, tmp_path / "stream", options(folder, True))
    in_memory = start(module, tmp_path / "memory", options(folder, False))
    assert_equal_runs(from_disk, in_memory)
    assert from_disk.record.data == in_memory.record.data
    assert not list(from_disk.directory.glob("examples*")), "what was kept for the training is removed after it"
    first = metrics(from_disk)[0]
    names = ("few", "many") if stage == "sft" else ("texts", "book")
    assert {f"data/{what}/{name}" for what in ("train", "validation", "draws") for name in names} < first.keys()
    assert any(f"validation/nll/{names[0]}" in line for line in metrics(from_disk))


def test_rankings_stream_too(folder: Path, tmp_path: Path) -> None:
    runs = []
    for stream in (True, False):
        changes = {"data": mixed(folder, stream, "_ranked")}
        runs.append(start(reward, tmp_path / str(stream), options_of(RewardConfig, folder, changes, 5e-3, 8, 6)))
    assert_equal_runs(*runs)
    assert {"ranking/few_ranked", "accuracy/many_ranked"} < metrics(runs[0])[-2].keys()


def test_too_many_epochs_are_refused_before_a_reference_is_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"path": str(folder / "few_ranked.jsonl"), "epochs": 0.5}, {"path": str(folder / "many_ranked.jsonl")}]
    config = options_of(DpoConfig, folder, {"data": {"path": None, "sources": sources}}, 5e-3, 8, 6)
    monkeypatch.setattr(dpo, "with_reference", lambda *_: pytest.fail("a reference was computed"))
    with pytest.raises(InputError, match=r"examples of few_ranked, and its `epochs`, 0\.5, allows [56];"):
        start(dpo, tmp_path / "run", config)


def test_preferences_are_mixed_with_their_reference(folder: Path, tmp_path: Path) -> None:
    data = {key: value for key, value in mixed(folder, False, "_ranked").items() if key != "stream"}
    config = options_of(DpoConfig, folder, {"data": data}, 5e-3, 8, 6)
    run = interrupted(dpo, tmp_path / "cut", config, 3)
    assert_equal_runs(run, start(dpo, tmp_path / "whole", config))
    assert {"preference/few_ranked", "accuracy/many_ranked"} < metrics(run)[-2].keys()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", CASES)
def test_cut_off_and_resumed_is_uninterrupted(stage: str, stream: bool, folder: Path, tmp_path: Path) -> None:
    module, options = CASES[stage]
    config = options(folder, stream)
    cut = interrupted(module, tmp_path / "cut", config, 3)
    assert_equal_runs(cut, start(module, tmp_path / "whole", config))


def test_a_pass_killed_while_it_tokenizes_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "BATCH", 4)
    monkeypatch.setattr(made, "COMMIT", 10)
    config = tuning(folder, True)
    whole = start(sft, tmp_path / "whole", config)
    child = os.fork()
    if child == 0:
        turns_of = sft.open_setting
        calls = 0

        def killing(*arguments: Any) -> Any:
            setting = turns_of(*arguments)
            inner = type(setting.format).turns_of

            def counted(self: Any, *given: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == 9:
                    os.kill(os.getpid(), signal.SIGKILL)
                return inner(self, *given)

            type(setting.format).turns_of = counted
            return setting

        sft.open_setting = killing
        start(sft, tmp_path / "killed", config)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [file.name for file in (tmp_path / "killed").glob("examples*")]
    assert "examples.sqlite.partial" in left and "examples.sqlite" not in left
    seen: list[int] = []
    read = sft.load_examples

    def watched(options: Any, kind: Any, tokenize: Any, *more: Any) -> Any:
        return read(options, kind, lambda records: (seen.append(len(records)), tokenize(records))[1], *more)

    monkeypatch.setattr(sft, "load_examples", watched)
    resumed = start(sft, tmp_path / "killed", config)
    assert 0 < sum(seen) < 52, "records whose tokens were kept are not tokenized again"
    assert_equal_runs(resumed, whole)


def test_a_resumed_training_reads_no_record_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuning(folder, True)

    def refused(*_: Any) -> Any:
        raise AssertionError("records were read")

    def once(*arguments: Any) -> Any:
        monkeypatch.setattr(made, "load_parts", refused)
        return parts(*arguments)

    parts = made.load_parts
    monkeypatch.setattr(made, "load_parts", once)
    interrupted(sft, tmp_path / "cut", config, 3)


def test_changed_data_is_read_anew(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write(path, demonstrations(30))
    changes = {"data": {"path": str(path), "stream": True}}
    config = options_of(SftConfig, folder, changes, 5e-3, 8, 6)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        start(sft, tmp_path / "run", config)
    assert (tmp_path / "run" / "examples.sqlite").exists()
    write(path, demonstrations(20))
    assert start(sft, tmp_path / "run", config).record.data[0]["rows"] == 20


def test_what_is_skipped_is_counted_alike(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", demonstrations(30))
    Path(path).write_text(Path(path).read_text() + '{"messages": []}\n{"messages": 3}\n')
    runs = []
    for stream in (True, False):
        data = {"path": path, "stream": stream, "on_invalid": "skip", "over_long": "skip", "max_length": 60}
        runs.append(start(sft, tmp_path / str(stream), options_of(SftConfig, folder, {"data": data}, 5e-3, 8, 6)))
    assert_equal_runs(*runs)
    assert metrics(runs[0])[0]["data/skipped"] > 0
    assert runs[0].record.data == runs[1].record.data and runs[0].record.data[0]["rejected"] == 2


def test_a_row_that_cannot_be_read_is_named_as_without_a_stream(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [*demonstrations(3), {"messages": 3}])
    said = []
    for stream in (True, False):
        config = options_of(SftConfig, folder, {"data": {"path": path, "stream": stream}}, 5e-3, 8, 1)
        with pytest.raises(InputError, match=r"data\.jsonl:4: .*on_invalid: skip") as told:
            start(sft, tmp_path / str(stream), config)
        said.append(str(told.value))
    assert said[0] == said[1]


def test_a_hubs_data_set_is_streamed_at_its_revision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = demonstrations(30)
    asked: list[Any] = []

    def load_dataset(name: str, config: None, *, split: str, revision: str, streaming: bool) -> Any:
        asked.append((name, config, split, revision, streaming))
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    class Info:
        sha = "c0ffee"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda name, timeout: Info)
    hub = options_of(SftConfig, folder, {"data": {"path": "team/talks", "stream": True}}, 5e-3, 8, 6)
    local = options_of(SftConfig, folder, {"data": {"path": write(tmp_path / "d.jsonl", rows)}}, 5e-3, 8, 6)
    run = start(sft, tmp_path / "hub", hub)
    assert_equal_runs(run, start(sft, tmp_path / "local", local))
    assert set(asked) == {("team/talks", None, "train", "c0ffee", True)}
    assert run.record.data == [{"path": "team/talks", "revision": "c0ffee", "rows": 30}]

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_after(patch, 3)
        start(sft, tmp_path / "cut", hub)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(huggingface_hub, "dataset_info", unreachable)
    assert_equal_runs(start(sft, tmp_path / "cut", hub), run)


def test_a_beginning_that_two_sources_share_is_held_out_of_both_or_of_none(tmp_path: Path) -> None:
    rows = demonstrations(60)
    paths = [write(tmp_path / "a.jsonl", rows[:40]), write(tmp_path / "b.jsonl", rows[20:])]
    data = {"sources": [{"path": path} for path in paths], "validation": 0.3}
    options = build(SftConfig, {"model": {"path": "x"}, "data": data}, "").data
    train, validation, _ = load_data(options, Demonstration, 0)
    assert len(train) + len(validation) == 80
    assert not {one.messages for one in train} & {one.messages for one in validation}


A, B = {"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"sources": [A, {**B, "weight": 0}]}, r"data\.sources\.1\.weight: input should be greater than 0"),
        ({"sources": [A, {**B, "epochs": -1}]}, r"data\.sources\.1\.epochs: input should be greater than 0"),
        ({"sources": [A, {**B, "wieght": 1}]}, r"data\.sources\.1\.wieght: unknown key; did you mean `weight`\?"),
        ({"sources": [A, {"path": "b.jsonl"}]}, "b has no weight, and others have"),
        ({"sources": [A, A]}, r"a\.jsonl stands there twice"),
        ({"sources": [A, {**B, "path": "c/a.json"}]}, "two are called 'a'; give each a `name`"),
        ({"sources": []}, "at least 1 item"),
        ({"sources": [A], "path": "a.jsonl"}, "exactly one of `path` .*, `sources`"),
        ({"sources": [A, B], "temperature": 2.0}, "temperature has no meaning where sources have weights"),
        ({"path": "a.jsonl", "temperature": 2.0}, "temperature has no meaning without `sources`"),
        ({"sources": [A], "rows": 3}, "rows is for one `path`; remove it"),
        ({"sources": [A], "split": "train"}, "split is for one `path`; give it per source"),
        ({"path": "a.jsonl", "stream": True, "rows": 3}, "all records are read, and rows draws some"),
        ({"world": "demonstrations", "rows": 3, "stream": True}, "makes its records in memory; remove stream"),
        ({}, r"exactly one of `path` \(a file\), `sources` \(a mixture\) and `world`"),
        ({"sources": [A, {"path": "/", "weight": 1}]}, r"data\.sources\.1.*path: '/' has no name .*; give a `name`"),
    ],
)
def test_mixtures_that_could_not_hold_are_refused(data: dict[str, Any], told: str) -> None:
    written = parse_yaml(json.dumps({"model": {"path": "x"}, "data": data}), "recipe.yaml")
    with pytest.raises(InputError, match=told):
        build(SftConfig, written, "")


def test_a_source_without_a_record_left_is_named(folder: Path, tmp_path: Path) -> None:
    rows = [{"messages": [message("user", f"why {n} " * 90), message("assistant", "so")]} for n in range(9)]
    long = write(tmp_path / "long.jsonl", rows)
    sources = [{"path": str(folder / "many.jsonl")}, {"path": long}]
    for stream in (True, False):
        data = {"path": None, "sources": sources, "max_length": 120, "over_long": "skip", "stream": stream}
        config = options_of(SftConfig, folder, {"data": data}, 5e-3, 8, 6)
        with pytest.raises(InputError, match="no training record of long is left"):
            start(sft, tmp_path / str(stream), config)


def test_names_come_from_paths_and_stay() -> None:
    paths = ["x/web.jsonl.gz", "x/books/", "@sample", "team/a b", "c.parquet"]
    data = {"sources": [{"path": path} for path in paths]}
    options = build(SftConfig, {"model": {"path": "x"}, "data": data}, "").data
    assert [one.name for one in options.sources or ()] == ["web", "books", "sample", "a_b", "c"]
    assert json.loads(options.model_dump_json())["sources"][0]["name"] == "web"
    moved = (options.sources or [])[2].model_copy(update={"path": "runs/x/sample/data"})
    assert moved.name == "sample"


def test_what_was_tokenized_stays_until_the_run_is_marked_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for stage, (module, options) in CASES.items():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Run, "finish", killed)
            start(module, tmp_path / stage, options(folder, True))
        assert (tmp_path / stage / "examples.sqlite").exists()


def test_a_new_model_that_is_whole_is_not_made_again_from_a_stream(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretraining(folder, True)
    made_new = pretrain.create_model

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    def half(config: Any, folder: Path) -> None:
        folder.mkdir()
        killed()

    for name, broken in (("create_model", half), ("read_examples", killed)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pretrain, name, broken)
            start(pretrain, tmp_path / "cut", config)
    monkeypatch.setattr(pretrain, "create_model", lambda *_: pytest.fail("it was made again"))
    cut = start(pretrain, tmp_path / "cut", config)
    assert not (tmp_path / "cut" / "initial.partial").exists()
    monkeypatch.setattr(pretrain, "create_model", made_new)
    assert_equal_runs(cut, start(pretrain, tmp_path / "whole", config))
