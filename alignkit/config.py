"""Strict configuration: YAML with line marks into frozen pydantic models. It does not know any stage."""

import difflib
import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class InputError(ValueError):
    """The user's input is wrong (exit code 2). The message names file and line, the field, and what to do."""


class Config(BaseModel):
    """Base of every group of options: strict, frozen, unknown keys refused; a docstring under a field describes it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


AnyConfig = TypeVar("AnyConfig", bound=BaseModel)


class Node(dict[str, Any]):
    """A YAML mapping that remembers where it and each of its keys stood ("recipe.yaml:12", or "command line")."""

    def __init__(self, values: Mapping[str, Any] = {}, mark: str = "", marks: Mapping[str, str] = {}) -> None:
        super().__init__(values)
        self.mark = mark
        self.marks = dict(marks)


class Items(list[Any]):
    """A YAML list that remembers where each of its items stood."""

    def __init__(self, values: Sequence[Any] = (), mark: str = "", marks: Sequence[str] = ()) -> None:
        super().__init__(values)
        self.mark = mark
        self.marks = list(marks)


# ---------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema: `2e-5` is a number, `no` and `2024-01-01` are strings."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # pyright: ignore


_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
for _tag, _pattern, _first in (
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    (_NULL, r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    for _char in _first:
        _Loader.yaml_implicit_resolvers.setdefault(_char, []).append((_tag, re.compile(_pattern)))


def load_yaml(path: str | Path) -> Node:
    """Read one YAML mapping with its line marks. Raises InputError where the file is anything else."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, Node):
        raise InputError(f"{path}: must hold `key: value` lines, and holds {_short(value)}")
    return value


def parse_yaml(text: str, name: str, mark: str | None = None) -> Any:
    """Parse one YAML document. `name` stands in the line marks; `mark`, if given, replaces every one of them."""
    try:
        root = _Loader(text).get_single_node()
        return None if root is None else _plain(root, name, mark, ())
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = mark or (f"{name}:{at.line + 1}" if at else name)
        hint = '; write a reference in quotes: "@name"' if "'@'" in (error.problem or "") else ""
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{mark or name}: not valid YAML: {error}".replace("\n", " ")) from error


def _plain(node: yaml.Node, name: str, mark: str | None, above: tuple[int, ...]) -> Any:
    here = mark or f"{name}:{node.start_mark.line + 1}"
    if id(node) in above:
        raise InputError(f"{here}: an alias (*name) may not contain itself")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, name, mark, above)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        children = cast(list[yaml.Node], node.value)
        marks = [mark or f"{name}:{child.start_mark.line + 1}" for child in children]
        return Items([_plain(child, name, mark, above) for child in children], here, marks)
    text = cast(str, node.value)
    if node.tag == _STR:
        return text
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    try:
        if node.tag == _INT:
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if node.tag == _FLOAT:
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except ValueError as error:
        raise InputError(f"{here}: {text!r} is not a number") from error
    raise InputError(f"{here}: the tag {node.tag!r} is not allowed; a recipe holds plain data only")


def _mapping(node: yaml.MappingNode, name: str, mark: str | None, above: tuple[int, ...]) -> Node:
    here = mark or f"{name}:{node.start_mark.line + 1}"
    if node.tag != "tag:yaml.org,2002:map":
        raise InputError(f"{here}: the tag {node.tag!r} is not allowed; a recipe holds plain data only")
    result = Node(mark=here)
    for key_node, value_node in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
        line = mark or f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{line}: a key must be a plain name")
        key = cast(str, key_node.value)
        if key in result:
            raise InputError(f"{line}: the key `{key}` stands here twice (first at {result.marks[key]}); remove one")
        result[key] = _plain(value_node, name, mark, above)
        result.marks[key] = line
    return result


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> Node:
    """Return a copy of `mapping` in which each dotted `key.key=value` is set; values are read as YAML."""
    result = _copy(mapping)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        mark = f"command line ({override})"
        if not equals or not all(keys):
            raise InputError(f"command line: {override!r} is not of the form key.key=value")
        group = result
        for depth, key in enumerate(keys[:-1], start=1):
            if group.get(key) is None:
                group[key] = Node(mark=mark)
                group.marks[key] = mark
            if not isinstance(group[key], Node):
                held = f"`{'.'.join(keys[:depth])}` holds {_short(group[key])}"
                raise InputError(f"{mark}: {held}, not a group of keys; set it as a whole")
            group = group[key]
        group[keys[-1]] = parse_yaml(text, "command line", mark)
        group.marks[keys[-1]] = mark
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value)
        copied = {key: _copy(item) for key, item in items.items()}
        return Node(copied, value.mark, value.marks) if isinstance(value, Node) else Node(copied)
    if isinstance(value, Items):
        return Items([_copy(item) for item in value], value.mark, value.marks)
    return value


# ------------------------------------------------------------------------------------------------------ building


def build(config: type[AnyConfig], mapping: Mapping[str, Any], where: str) -> AnyConfig:
    """Validate `mapping` into `config`. `where` is the dotted place of the mapping in its file (may be empty).

    Raises InputError with one line per fault: file and line, dotted field, what is wrong, the nearest valid name.
    """
    try:
        # JSON mode keeps types strict and still takes a YAML list for a tuple and a string for a Path.
        return config.model_validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    lines: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        path = _path_in(mapping, fault)
        dotted = ".".join(str(part) for part in (*([where] if where else []), *path))
        said = lines.setdefault((_mark_of(mapping, path), dotted or config.__name__), [])
        message = _say(config, mapping, path, fault)
        if message not in said:
            said.append(message)
    raise InputError("\n".join(": ".join([*filter(None, at), "; or ".join(said)]) for at, said in lines.items()))


def _path_in(mapping: Mapping[str, Any], fault: ErrorDetails) -> list[str | int]:
    """The fault's place in the user's own tree: pydantic's location without the union members it names in between."""
    value: Any = mapping
    path: list[str | int] = []
    for part in fault["loc"]:
        if (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path.append(part)
            value = cast(Any, value)[part]
    if fault["type"] == "missing":
        path.append(fault["loc"][-1])
    return path


def _mark_of(mapping: Mapping[str, Any], path: Sequence[str | int]) -> str:
    value: Any = mapping
    mark = mapping.mark if isinstance(mapping, Node) else ""
    for part in path:
        if isinstance(value, Node) and isinstance(part, str):
            mark = value.marks.get(part, mark)
            value = value.get(part)
        elif isinstance(value, Items) and isinstance(part, int):
            mark = value.marks[part] if part < len(value.marks) else mark
            value = value[part]
    return mark


def _say(config: type[BaseModel], mapping: Mapping[str, Any], path: Sequence[str | int], fault: ErrorDetails) -> str:
    models = list(_models_at(config, path[:-1]))
    key = str(path[-1]) if path else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown key{_nearest(config, models, path)}"
    if fault["type"] == "missing":
        described = [model.model_fields[key].description for model in models if key in model.model_fields]
        return "required and missing" + (f": {described[0]}" if described and described[0] else "")
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if fault["type"] in ("value_error", "assertion_error"):
        return message
    value: Any = mapping
    for part in path:
        value = value[part]
    return f"{message[:1].lower()}{message[1:]}, and is {_short(value)}"


def _nearest(config: type[BaseModel], models: Sequence[type[BaseModel]], path: Sequence[str | int]) -> str:
    key = str(path[-1])
    names = [name for model in models for name in model.model_fields]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    if near:
        return f"; did you mean `{near[0]}`?"
    elsewhere = [dotted for dotted in dotted_fields(config) if dotted.rpartition(".")[2] == key]
    if elsewhere:
        return f"; here it is `{elsewhere[0]}`"
    if key in FOREIGN_NAMES:
        return f"; here it is {FOREIGN_NAMES[key]}"
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(names)}"


def dotted_fields(config: type[BaseModel]) -> Iterator[str]:
    """Every field of `config` and of the groups inside it, by dotted name, outermost first."""
    yield from config.model_fields
    for name, field in config.model_fields.items():
        for model in _models_in(field.annotation):
            yield from (f"{name}.{inner}" for inner in dotted_fields(model))


def _models_at(config: type[BaseModel], path: Sequence[str | int]) -> Iterator[type[BaseModel]]:
    if not path:
        yield config
    elif isinstance(path[0], str) and path[0] in config.model_fields:
        rest = path[1:] if len(path) < 2 or isinstance(path[1], str) else path[2:]
        for model in _models_in(config.model_fields[path[0]].annotation):
            yield from _models_at(model, rest)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple) or hasattr(annotation, "__metadata__"):
        for part in get_args(annotation):
            yield from _models_in(part)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the value's canonical JSON; key order, and tuple or list, make no difference."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


FOREIGN_NAMES = {
    # TRL's and transformers' names, then axolotl's; the answer reads on from "here it is".
    "model_name_or_path": "`model.path`",
    "model_name": "`model.path`",
    "tokenizer_name_or_path": "not needed: the tokenizer comes with `model.path`",
    "chat_template_path": "`model.chat_template`",
    "use_peft": "`model.lora: {}`",
    "lora_r": "`model.lora.r`",
    "lora_alpha": "`model.lora.alpha`",
    "lora_dropout": "`model.lora.dropout`",
    "lora_target_modules": "`model.lora.target_modules`",
    "dataset_name": "`data.path`",
    "dataset_path": "`data.path`",
    "dataset_train_split": "`data.path`, with `data.validation` held out of it",
    "dataset_test_split": "`data.validation`",
    "eval_split": "`data.validation`",
    "max_seq_length": "`data.max_length`",
    "max_prompt_length": "`data.max_length`, with `data.over_long: truncate_prompt_left`",
    "truncation_mode": "`data.over_long`",
    "num_train_epochs": "`train.epochs`",
    "max_steps": "`train.steps`",
    "per_device_train_batch_size": "`train.batch_size`, the examples of a step over all devices",
    "per_device_eval_batch_size": "not needed: memory is `runtime.token_budget`",
    "gradient_accumulation_steps": "not needed: `train.batch_size` counts the whole step",
    "lr": "`train.learning_rate`",
    "lr_scheduler_type": "`train.schedule`",
    "warmup_ratio": "`train.warmup`",
    "warmup_steps": "`train.warmup`, as a share of the steps",
    "adam_beta1": "`train.betas`",
    "adam_beta2": "`train.betas`",
    "adam_epsilon": "`train.eps`",
    "optim": "not an option: AdamW, with `train.betas`, `train.eps` and `train.weight_decay`",
    "eval_steps": "`train.evaluate_every`",
    "eval_strategy": "`train.evaluate_every`",
    "save_steps": "`train.checkpoint_every`",
    "save_strategy": "`train.checkpoint_every`",
    "save_total_limit": "`train.keep_checkpoints`",
    "early_stopping_patience": "`train.patience`",
    "logging_steps": "`runtime.log_every`",
    "report_to": "`runtime.trackers`",
    "bf16": "`runtime.precision: bf16`",
    "fp16": "`runtime.precision: bf16`",
    "torch_dtype": "`runtime.precision`",
    "dtype": "`runtime.precision`",
    "gradient_checkpointing": "`runtime.activation_checkpointing`",
    "use_cpu": "`runtime.device: cpu`",
    "output_dir": "not an option: a run is written to runs/<recipe>/<stage>/",
    "packing": "not needed: every batch is packed",
    "padding_free": "not needed: no batch is padded",
    "attn_implementation": "not needed: the attention that shares prefixes is set for you",
    "resume_from_checkpoint": "not needed: run the recipe again and it goes on where it stopped",
    "loss_type": "`loss`",
    "rpo_alpha": "`nll`",
    "kl_coef": "`kl.coef`",
    "init_kl_coef": "`kl.coef`",
    "num_ppo_epochs": "`epochs`",
    "num_mini_batches": "`minibatches`",
    "cliprange": "`clip`",
    "cliprange_value": "`value_clip`",
    "vf_coef": "`value_coef`",
    "response_length": "`max_new_tokens`",
    "max_completion_length": "`max_new_tokens`",
    "reward_model_path": "`reward: {kind: learned, path: ...}`",
    "base_model": "`model.path`",
    "adapter": "`model.lora: {}`; with `model.load_in_4bit: true` for QLoRA",
    "lora_target_linear": "`model.lora.target_modules: all-linear`",
    "datasets": "`data.path`",
    "val_set_size": "`data.validation`",
    "sequence_len": "`data.max_length`",
    "sample_packing": "not needed: every batch is packed",
    "micro_batch_size": "not needed: `train.batch_size` counts the whole step, `runtime.token_budget` splits it",
    "num_epochs": "`train.epochs`",
    "optimizer": "not an option: AdamW, with `train.betas`, `train.eps` and `train.weight_decay`",
    "lr_scheduler": "`train.schedule`",
    "evals_per_epoch": "`train.evaluate_every`",
    "saves_per_epoch": "`train.checkpoint_every`",
    "flash_attention": "not needed: the attention that shares prefixes is set for you",
    "rl": "a stage of its own: `dpo`, `ppo` or `reward`",
}
"""TRL's and axolotl's common names, each answered with ours."""
