"""A user's own Python is found where the user stands."""

import sys
from pathlib import Path

import pytest

from alignkit.code import named_function


def test_code_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_lies_here.py").write_text("def act(x): return 2 * x")
    monkeypatch.chdir(tmp_path)
    here = {"", str(tmp_path)}
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in here])
    assert named_function("mine_lies_here:act", True, "reward.path")(21) == 42
