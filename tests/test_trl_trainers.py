"""Options of TRL's trainers: in TRL's types, or refused by name."""

from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.options.trl import TrlConfig
from alignkit.trl_trainers import TRAINERS, of_tokens, options_of


def config(trainer: str, options: dict[str, Any]) -> TrlConfig:
    more = {"reward": {"kind": "lexicon"}} if trainer in ("grpo", "rloo") else {}
    data = {"path": "x.jsonl", "max_length": 77}
    return build(TrlConfig, {"model": {"path": "m"}, "data": data, "trainer": trainer, "options": options} | more, "")


def test_values_are_of_trls_types() -> None:
    """What YAML 1.2 reads as text: off, 1e-5."""
    given = {"packing": "off", "learning_rate": "1e-5", "max_steps": 3, "optim": "adamw_torch", "save_strategy": "no"}
    assert options_of(config("sft", given)) == {
        **{"packing": False, "learning_rate": 1e-5, "max_steps": 3, "save_strategy": "no", "max_length": 77},
        "optim": "adamw_torch",
    }
    assert options_of(config("grpo", {"beta": 0.1})) == {"beta": 0.1}  # it has no max_length


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rate": "abc"}, r"options\.learning_rate: 'abc': Input should be a valid number"),
        ({"max_steps": 2.7}, r"options\.max_steps: 2\.7: Input should be a valid integer"),
        ({"packing": "perhaps"}, r"options\.packing: 'perhaps': Input should be a valid boolean"),
        ({"optim": "nope"}, r"options\.optim: 'nope': Input should be 'adamw_torch'"),
        ({"lr_scheduler_type": "nope"}, r"options\.lr_scheduler_type: 'nope'"),
        ({"resume_from_checkpoint": "x"}, r"options\.resume_from_checkpoint is set by alignkit"),
        ({"chat_template_path": "x"}, r"options\.chat_template_path: remove it; alignkit loads and tokenizes"),
        ({"model_init_kwargs": {"dtype": "float16"}}, r"options\.model_init_kwargs: remove it"),
    ],
)
def test_other_values_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        options_of(config("sft", options))


@pytest.mark.parametrize(("trainer", "method"), [("dpo", "_prepare_dataset"), ("rloo", "_tokenize_prompts")])
def test_another_trl_is_refused_rather_than_given_texts(
    monkeypatch: pytest.MonkeyPatch, trainer: str, method: str
) -> None:
    assert method in vars(of_tokens(trainer, {}))
    monkeypatch.delattr(TRAINERS[trainer][0], method)
    with pytest.raises(InputError, match=rf"trainer: {trainer}: trl .* takes no token ids there; install trl 1\.16"):
        of_tokens(trainer, {})
