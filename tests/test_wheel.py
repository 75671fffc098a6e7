"""The wheel: both packages with all their files, the command, and nothing else at the top."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for folder in ("alignkit", "reward_models", "data_schemas", "recipes", "tests"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        commands = next(
            archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")
        )
    packages = [source / "alignkit", source / "reward_models"]
    written = {
        path.relative_to(source).as_posix() for package in packages for path in package.rglob("*") if path.is_file()
    }
    schemas = {f"alignkit/data_schemas/{path.name}" for path in (ROOT / "data_schemas").glob("*.json")}
    assert len(schemas) >= 6
    assert names == written | schemas
    assert "alignkit = alignkit.cli:main" in commands
