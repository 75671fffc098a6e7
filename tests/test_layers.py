"""Imports point down, or sideways without a cycle."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # the first that matches; whatever else lies in alignkit/ is machinery, layer 2
    (4, r"recipes\.|alignkit\.(cli(_[a-z]+)?|launch|__main__)$"),
    (3, r"alignkit\.(stages|recipe|serve|report)(\.|$)"),
    (1, r"reward_models"),
    (0, r"alignkit\.(records|schemas|config|marks|names|losses|preferences|rl|trie|packing|options)(\.|$)"),
    (2, r"alignkit\."),
]
HEAVY = {"transformers", "accelerate", "peft", "datasets", "trl", "bitsandbytes", "evaluate"}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("alignkit", "reward_models", "recipes")
    for path in (ROOT / folder).rglob("*.py")
}


def layer(module: str) -> int:
    return next(number for number, pattern in LAYERS if re.match(pattern, module))


def imported(module: str) -> set[str]:
    """Every module imported anywhere in the file, functions included: ours by full name, others by package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} line {node.lineno}: import by the full name"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in FILES else node.module for name in full}
    return {name if name in FILES else name.split(".")[0] for name in names} - {"alignkit", module}


IMPORTS = {module: imported(module) for module in FILES if module != "alignkit"}


def test_imports_point_down() -> None:
    for module, names in IMPORTS.items():
        for name in names & FILES.keys():
            assert layer(name) <= layer(module), (
                f"{module} (layer {layer(module)}) imports {name} (layer {layer(name)})"
            )


def test_no_cycles() -> None:
    TopologicalSorter({module: names & FILES.keys() for module, names in IMPORTS.items()}).prepare()


def test_stages_do_not_know_each_other() -> None:
    for module, names in IMPORTS.items():
        if module.startswith("alignkit.stages."):
            others = {name for name in names if name.startswith("alignkit.stages.")}
            assert not others, f"{module} imports {others}"


def test_the_lowest_layer_is_pure() -> None:
    for module, names in IMPORTS.items():
        if layer(module) == 0:
            assert not names & HEAVY, f"{module} imports {names & HEAVY}"
        if re.match(r"alignkit\.(records|schemas|config|options)", module):
            assert "torch" not in names, f"{module} imports torch"
