"""A recipe: the chain of stages a YAML file asks for, in running order. It knows no algorithm, no run and no torch."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from alignkit.config import Config, InputError, Node, apply_overrides, build, load_yaml
from alignkit.options import STAGES
from alignkit.options.shared import RuntimeOptions
from alignkit.recipe.artifacts import REFERENCE, misused

NAME = re.compile(r"[A-Za-z0-9_-]+")


class RecipeFile(Config):
    """The outermost keys of a recipe."""

    name: str | None = None
    """The folder under runs/ that the recipe writes to. Left out: the file's name."""
    seed: int = 0
    """The seed of every stage that names none of its own."""
    runtime: dict[str, Any] = Field(default_factory=dict)
    """How stages are executed; a stage may set its own beside this. Nothing here enters the id of a run."""
    stages: dict[str, dict[str, Any] | None] = Field(min_length=1)
    """The stages by name. The name is the stage's type, unless `stage:` says otherwise."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe, checked; its options still name earlier stages as "@name"."""

    name: str
    type: str
    config: Config
    runtime: RuntimeOptions
    parents: tuple[str, ...]
    """The stages it refers to, directly."""
    source: Node
    """Its lines of the file, to point at."""

    def mark(self, *keys: str) -> str:
        """Where a dotted option stands ("recipe.yaml:7: stages.dpo.beta")."""
        node, mark = self.source, self.source.mark
        for key in keys:
            mark = node.marks.get(key, mark)
            node = node.get(key)
            if not isinstance(node, Node):
                break
        return ": ".join(filter(None, [mark, ".".join(["stages", self.name, *keys])]))


@dataclass(frozen=True)
class Recipe:
    """A chain of stages; `stages` is in running order, each after those it refers to."""

    name: str
    path: Path
    stages: dict[str, Stage]

    def needed_for(self, targets: Sequence[str]) -> list[Stage]:
        """The stages named and all they build on, in running order. Raises InputError for a name it does not have."""
        needed: set[str] = set()
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            if name not in self.stages:
                raise InputError(f"{self.path}: there is no stage {name!r}{_hint(name, self.stages)}")
            if name not in needed:
                needed.add(name)
                waiting += self.stages[name].parents
        return [stage for stage in self.stages.values() if stage.name in needed]


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    allow_code: bool = False,
    stages: Mapping[str, type[Config]] = STAGES,
) -> Recipe:
    """Read and check a recipe; `overrides` as on the command line ("dpo.beta=0.2", "runtime.processes=2", "seed=1").

    Raises InputError for whatever is wrong in the file, one line per fault: file, line, dotted option, what to do.
    """
    tree = load_yaml(path)
    written = tree.get("stages")
    names = list(written) if isinstance(written, Mapping) else []
    tree = apply_overrides(tree, [_place(override, names) for override in overrides])
    file = build(RecipeFile, tree, "")
    name = path.stem if file.name is None else file.name
    for given in (name, *file.stages):
        if not NAME.fullmatch(given):
            raise InputError(f"{tree.mark}: the name {given!r} may hold letters, digits, `-` and `_` only")
    found, faults = dict[str, Stage](), list[str]()
    for stage in file.stages:
        try:
            found[stage] = _stage(stage, tree, file.seed, allow_code, stages)
        except InputError as error:
            faults.append(str(error))
    made = {other.name: (other.type, other.config) for other in found.values()}
    for one in found.values():
        faults += [f"{one.mark(*keys)}: {fault}" for keys, fault in misused(one.type, one.config, made)]
    if faults:
        raise InputError("\n".join(faults))
    return Recipe(name, path, _in_order(found))


def _place(override: str, names: Sequence[str]) -> str:
    """`dpo.beta=0.2` means `stages.dpo.beta=0.2`; the outermost keys stand for themselves."""
    dotted, equals, value = override.partition("=")
    first = dotted.strip().split(".")[0]
    if first in RecipeFile.model_fields or not equals:
        return override
    if first not in names:
        raise InputError(
            f"command line ({override}): {first!r} is neither a stage of this recipe nor one of "
            f"{', '.join(RecipeFile.model_fields)}{_hint(first, names)}"
        )
    return f"stages.{dotted.strip()}={value}"


def _stage(name: str, tree: Node, seed: int, allow_code: bool, types: Mapping[str, type[Config]]) -> Stage:
    everything: Node = tree["stages"]
    mark = everything.marks.get(name, "")
    node = everything[name] if isinstance(everything[name], Node) else Node(mark=mark)
    kind = node.get("stage", name)
    if kind not in types:
        where = f"{node.marks.get('stage', mark)}: stages.{name}"
        raise InputError(f"{where}: {kind!r} is no stage{_hint(str(kind), types)}. A name of your own needs `stage:`")
    own = {key: value for key, value in node.items() if key not in ("stage", "runtime")}
    if "seed" in types[kind].model_fields:
        own.setdefault("seed", seed)
    if not isinstance(node.get("runtime") or {}, Mapping):
        where = node.marks.get("runtime", mark)
        raise InputError(f"{where}: stages.{name}.runtime: input should be an object, and is {node['runtime']!r}")
    runtime = Node({**(tree.get("runtime") or {}), **(node.get("runtime") or {})})
    for part in (tree.get("runtime"), node.get("runtime")):
        runtime.marks |= part.marks if isinstance(part, Node) else {}
    if "allow_code" in runtime:
        where = runtime.marks.get("allow_code", mark)
        raise InputError(f"{where}: runtime.allow_code: a recipe is data; give --allow-code on the command line")
    runtime["allow_code"] = allow_code
    parents: dict[str, None] = {}
    for parent, where in _references(node, mark, f"stages.{name}"):
        if parent not in everything:
            raise InputError(f"{where}: `@{parent}` is no stage of this recipe{_hint(parent, everything)}")
        parents[parent] = None
    config = build(types[kind], Node(own, mark, node.marks), f"stages.{name}")
    return Stage(name, kind, config, build(RuntimeOptions, runtime, "runtime"), tuple(parents), node)


def _references(value: Any, mark: str, where: str) -> Iterator[tuple[str, str]]:
    """Each "@name" inside `value`, with the place where it stands."""
    if isinstance(value, str) and (match := REFERENCE.fullmatch(value)):
        yield match[1], f"{mark}: {where}"
    elif isinstance(value, Node):
        for key, item in value.items():
            yield from _references(item, value.marks.get(key, mark), f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _references(item, mark, where)


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Each stage after those it refers to, otherwise as written. Raises InputError for a cycle, naming it."""
    ordered: dict[str, Stage] = {}

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            cycle = " -> ".join([*above[above.index(name) :], name])
            raise InputError(f"{stages[name].mark()}: stages refer to each other in a circle: {cycle}")
        if name not in ordered:
            for parent in stages[name].parents:
                place(parent, (*above, name))
            ordered[name] = stages[name]

    for name in stages:
        place(name, ())
    return ordered


def _hint(name: str, known: Iterator[str] | Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else f" (there are: {', '.join(known)})"
