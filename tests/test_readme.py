"""The README: its recipe loads, its commands exist, and its tree names every file."""

import re
from pathlib import Path

import pytest

from alignkit.recipe.read import load_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_recipe_loads(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "hh.yaml"
    path.write_text(recipe)
    assert list(load_recipe(path).stages) == ["sft", "reward", "dpo", "ppo", "evaluate"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).stages


def test_its_tree_names_every_file() -> None:
    lines = README.partition("## Files")[2].splitlines()
    folders: list[tuple[int, str]] = []
    named: set[str] = set()
    for line in filter(str.strip, lines):
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        if name.endswith("/"):
            folders.append((indent, name))
        named.add("".join(folder for _, folder in folders) + ("" if name.endswith("/") else name))
    folders_with_code = ("alignkit", "reward_models", "recipes", "benchmarks", "examples")
    found = [path for folder in folders_with_code for path in (ROOT / folder).rglob("*.py")]
    written = {path.relative_to(ROOT).as_posix() for path in found if "recipes/examples" not in path.as_posix()}
    private = re.compile(r".*(/__\w+__\.py|/metrics/\w+/\w+\.py)")
    assert {file for file in written if not private.fullmatch(file)} == {
        name for name in named if name.endswith(".py")
    }
