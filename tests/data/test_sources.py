"""A data set on a hub is streamed as `datasets` gives it. No network: its loader is replaced by a local data set."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset

from alignkit.config import InputError
from alignkit.data.importing import import_data

ROWS = [{"prompt": "q", "completion": "a", "score": None}, {"prompt": "q", "completion": None, "score": 1}]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the loader was asked for, at the commit that the hub names."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(
        name: str, config: str | None, *, split: str, revision: str, streaming: bool
    ) -> datasets.IterableDataset:
        calls.append((name, config, split, revision, streaming))
        if split != "train":
            raise ValueError(f"Bad split: {split}.\nAvailable splits: ['train']")
        return Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name, timeout: SimpleNamespace(sha="c0ffee"))
    return calls


def test_a_hubs_data_set_is_streamed_row_by_row(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    done = import_data("team/data", tmp_path / "a.jsonl", "demonstrations", config="main")
    assert asked == [("team/data", "main", "train", "c0ffee", True)]
    assert [(file.file, file.rows, file.imported) for file in done.files] == [("team/data", 2, 1)]
    assert json.loads((tmp_path / "a.jsonl").read_text())["messages"][1]["content"] == "a"
    rejected = json.loads((tmp_path / "a.rejects.jsonl").read_text())
    assert (rejected["file"], rejected["line"], rejected["field"]) == ("team/data", 2, "completion")


def test_a_split_that_is_not_there_is_one_error(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"team/data: .* split 'test' .*ValueError: Bad split: test. Available splits"
    ):
        import_data("team/data", tmp_path / "a.jsonl", "demonstrations", split="test")
    assert not list(tmp_path.iterdir())


def test_without_a_network_a_name_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^nobody/nothing: is neither a file or folder here nor .*: Offline"
    ) as caught:
        import_data("nobody/nothing", tmp_path / "a.jsonl", "demonstrations")
    assert "\n" not in str(caught.value)


def test_options_of_a_hub_or_a_folder_have_no_meaning_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    for options, fault in (({"config": "main"}, "`--config` names"), ({"split": "train"}, "`--split` chooses")):
        with pytest.raises(InputError, match=fault):
            import_data(str(tmp_path / "a.jsonl"), tmp_path / "b.jsonl", "demonstrations", **options)
