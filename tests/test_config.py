"""Strict configuration: YAML 1.2 scalars, line marks, errors that name the line and the way out. No stage."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from alignkit.config import Config, InputError, apply_overrides, build, content_hash, load_yaml, parse_yaml
from alignkit.options import STAGES


class Train(Config):
    learning_rate: float
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["linear", "cosine"] = "linear"


class Lora(Config):
    r: int = 16


class Stage(Config):
    train: Train
    lora: Lora | None = None
    beta: float = 0.1
    names: list[str] = Field(default_factory=list)
    targets: Literal["all"] | list[str] = "all"
    loras: list[Lora] = Field(default_factory=list)
    output: Path | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def fail(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        build(Stage, load_yaml(write(folder, text)), "stages.dpo")
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5), ("5e-7", 5e-7), ("1E3", 1000.0), ("+.5", 0.5), ("-.inf", float("-inf")), ("3.", 3.0),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("true", True), ("FALSE", False),
        ("007", 7), ("0o17", 15), ("0x1F", 31), ("1_000", "1_000"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"),
        ("~", None), ("null", None), ("", None), ("'5'", "5"), ("!!str 5", "5"), ("[1, a]", [1, "a"]),
        ("{no: 1}", {"no": 1}), ("e5", "e5"), (".", "."), ("1e", "1e"),
    ],
)  # fmt: skip
def test_yaml_scalars_follow_version_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text, "x")
    assert parsed == value
    assert type(parsed) is type(value) or isinstance(value, list | dict)


def test_nan_is_a_float() -> None:
    assert parse_yaml(".nan", "x") != parse_yaml(".nan", "x")


def test_a_good_file_builds(tmp_path: Path) -> None:
    text = "train: {learning_rate: 2e-5, betas: [0.9, 0.95]}\nlora: {}\noutput: out\ntargets: [q, v]\nbeta: 1\n"
    stage = build(Stage, load_yaml(write(tmp_path, text)), "")
    assert stage.train.learning_rate == 2e-5
    assert stage.train.betas == (0.9, 0.95)
    assert stage.lora == Lora(r=16)
    assert stage.output == Path("out")
    assert stage.targets == ["q", "v"]
    assert type(stage.beta) is float


def test_a_config_is_frozen_and_described() -> None:
    train = Train(learning_rate=1.0)
    with pytest.raises(ValueError, match="frozen"):
        train.learning_rate = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    assert Train.model_fields["learning_rate"].description == "Peak learning rate."


def test_duplicate_key_names_both_lines(tmp_path: Path) -> None:
    message = fail(tmp_path, "beta: 1.0\ntrain:\n  learning_rate: 1.0\nbeta: 2.0\n")
    assert message == "recipe.yaml:4: the key `beta` stands here twice (first at recipe.yaml:1); remove one"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  learning_rte: 0.5\n  learning_rate: 1.0\n",
         "recipe.yaml:2: stages.dpo.train.learning_rte: unknown key; did you mean `learning_rate`?"),
        ("train: {learning_rate: 1.0}\nlearning_rate: 0.5\n",
         "recipe.yaml:2: stages.dpo.learning_rate: unknown key; here it is `train.learning_rate`"),
        ("train: {learning_rate: 1.0}\nr: 8\n", "recipe.yaml:2: stages.dpo.r: unknown key; here it is `lora.r`"),
        ("train: {learning_rate: 1.0}\nnum_train_epochs: 3\n",
         "recipe.yaml:2: stages.dpo.num_train_epochs: unknown key; here it is `train.epochs`"),
        ("train: {learning_rate: 1.0}\nmicro_batch_size: 3\n",
         "recipe.yaml:2: stages.dpo.micro_batch_size: unknown key; here it is not needed: `train.batch_size`"),
        ("train: {learning_rate: 1.0}\nlora:\n  zzz: 3\n",
         "recipe.yaml:3: stages.dpo.lora.zzz: unknown key; known here: r"),
        ("beta: 1.0\ntrain: {}\n",
         "recipe.yaml:2: stages.dpo.train.learning_rate: required and missing: Peak learning rate."),
        ("train: {learning_rate: '2e-5'}\n",
         'recipe.yaml:1: stages.dpo.train.learning_rate: input should be a valid number, and is "2e-5"'),
        ("train: {learning_rate: 1.0}\nbeta: true\n",
         "recipe.yaml:2: stages.dpo.beta: input should be a valid number, and is true"),
        ("train:\n  learning_rate: 1.0\n  schedule: cosin\n",
         "recipe.yaml:3: stages.dpo.train.schedule: input should be 'linear' or 'cosine', and is \"cosin\""),
        ("train: {learning_rate: 1.0}\ntargets: 5\n",
         "recipe.yaml:2: stages.dpo.targets: input should be 'all', and is 5; or input should be a valid array"),
        ("train: {learning_rate: 1.0}\nloras:\n- r: 1\n- r: x\n",
         'recipe.yaml:4: stages.dpo.loras.1.r: input should be a valid integer, and is "x"'),
        ("train: {learning_rate: 1.0}\nloras:\n- {rr: 1}\n",
         "recipe.yaml:3: stages.dpo.loras.0.rr: unknown key; did you mean `r`?"),
        ("train:\n  learning_rate: 1.0\n  betas: [0.9]\n",
         "recipe.yaml:3: stages.dpo.train.betas.1: required and missing"),
        ("train: {learning_rate: 1.0}\nnames: [a, 3]\n",
         "recipe.yaml:2: stages.dpo.names.1: input should be a valid string, and is 3"),
    ],
)  # fmt: skip
def test_each_fault_names_line_field_and_way_out(tmp_path: Path, text: str, expected: str) -> None:
    assert fail(tmp_path, text).startswith(expected)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    assert len(fail(tmp_path, "train: {learning_rate: x}\nbeta: y\nnome: 1\n").splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2\n", r"recipe.yaml:\d: not valid YAML"),
        ("- 1\n- 2\n", "must hold `key: value` lines"),
        ("", "must hold `key: value` lines"),
        ("b: 1\na: @sft\n", 'recipe.yaml:2: not valid YAML: .*in quotes: "@name"'),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]\n", "recipe.yaml:1: the tag .* is not allowed"),
        ("a: !env HOME\n", "recipe.yaml:1: the tag '!env' is not allowed"),
        ("a: &x\n  b: *x\n", "recipe.yaml:1: an alias"),
        ("a: !!int x\n", "recipe.yaml:1: 'x' is not a number"),
    ],
)
def test_a_file_that_is_not_plain_data_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_yaml(write(tmp_path, text))


def test_an_unreadable_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(InputError, match="is not UTF-8 at byte 3"):
        load_yaml(tmp_path / "latin.yaml")


def test_overrides_set_leave_and_are_named_in_errors(tmp_path: Path) -> None:
    node = load_yaml(write(tmp_path, "train:\n  learning_rate: 1.0\nbeta: 0.1\n"))
    changed = apply_overrides(node, ["beta=0.2", "train.learning_rate=3e-4", "lora.r=4", "names=[a, b]"])
    stage = build(Stage, changed, "")
    assert (stage.beta, stage.train.learning_rate, stage.lora, stage.names) == (0.2, 3e-4, Lora(r=4), ["a", "b"])
    assert node == {"train": {"learning_rate": 1.0}, "beta": 0.1}
    with pytest.raises(InputError, match=r"^command line \(beta=high\): beta: input should be a valid number"):
        build(Stage, apply_overrides(node, ["beta=high"]), "")
    with pytest.raises(InputError, match=r"recipe.yaml:2: train.learning_rate: .* number"):
        build(Stage, apply_overrides(load_yaml(write(tmp_path, "train:\n  learning_rate: x\n")), ["beta=1"]), "")


@pytest.mark.parametrize(
    ("override", "expected"),
    [("beta", "not of the form"), ("a..b=1", "not of the form"), ("beta.x=1", "`beta` holds 0.1, not a group"),
     ("beta=[1", "not valid YAML")],
)  # fmt: skip
def test_malformed_overrides_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        apply_overrides(load_yaml(write(tmp_path, "beta: 0.1\n")), [override])


def test_content_hash_sees_values_and_not_their_order() -> None:
    assert content_hash({"a": 1, "b": (1, 2)}) == content_hash({"b": [1, 2], "a": 1})
    assert content_hash(Lora(r=4)) == content_hash({"r": 4})
    assert content_hash(Lora(r=4)) != content_hash(Lora(r=5))
    # printf '{"a":[1,null]}' | sha256sum
    assert content_hash({"a": [1, None]}) == "a290b55a84a4e851c13e570346d396a0ff58e13e3b458112237484f9ed3b8950"
    with pytest.raises(TypeError):
        content_hash(object())


EVERY = {
    "dpo": {"mixture": {"sigmoid": 0.8, "bco": 0.2}, "divergence": "reverse_kl"},
    "ppo": {"advantage": "grpo", "samples": 4, "reward": {"kind": "combined", "of": {"a": {"kind": "lexicon"}}}},
    "kto": {"loss": "apo_zero_unpaired"},
    "sample": {"write": "feedback", "minimum": -0.5, "reward": {"kind": "rules", "rule": "number"}},
    "critique": {"guidelines": "rules.txt", "rounds": 3, "write": "both"},
    "trl": {"trainer": "rloo", "options": {"beta": 0.1}, "reward": {"kind": "lexicon"}},
}


@pytest.mark.parametrize("stage", EVERY)
def test_options_survive_being_written_out_whole_for_a_stages_process(stage: str) -> None:
    given = {"model": {"path": "m"}, "data": {"path": "d"}} | EVERY[stage]
    config = build(STAGES[stage], given, "")
    assert build(STAGES[stage], config.model_dump(mode="json"), "") == config


def test_a_wrong_name_in_a_mixture_is_named() -> None:
    given = {"model": {"path": "m"}, "data": {"path": "d"}, "mixture": {"sigmoid": 0.8, "bcoo": 0.2}}
    with pytest.raises(InputError, match=r"mixture\.bcoo: the key input should be 'sigmoid'"):
        build(STAGES["dpo"], given, "")
